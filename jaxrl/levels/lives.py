"""The life of one learner inside an outer loop: its task, its training, and its fitness in the end."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxrl.evaluation import evaluate
from jaxrl.ops import trees
from jaxrl.types import Algorithm, EnvParams, Key, Metrics

Fitness = Callable[[Any, Metrics], Float[Array, ""]]
"""`(state, metrics [num_steps]) -> fitness` of one learner after its training."""

Normalize = Callable[[Float[Array, ""], EnvParams], Float[Array, ""]]
"""`(fitness, the learner's environment parameters) -> fitness`."""

Tasks = Callable[[Key], EnvParams]
"""`(key) -> parameters of the environment`, drawn from a distribution of tasks."""

Lifetimes = Callable[[Key], Int[Array, ""]]
"""`(key) -> steps` of a learner's life."""

_EPISODES = ("episode/return_sum", "episode/count")


def with_task(
    algorithm: Algorithm, hparams: PyTree, task: EnvParams | None, lifetime: Int[Array, ""] | int | None
) -> PyTree:
    """Hyperparameters of a learner with a task and a length of life of its own.

    Args:
      algorithm: the learner's.
      hparams: of all learners.
      task: the environment's parameters; None: those of `hparams`.
      lifetime: in steps of the algorithm; None: `horizon` stays. Otherwise it is set, where there is one.
    """
    if task is not None:
        hparams = dataclasses.replace(hparams, env=task)  # type: ignore[type-var]
    if lifetime is not None and hasattr(hparams, "horizon"):
        horizon = jnp.asarray(lifetime, jnp.float32) * algorithm.env_steps
        hparams = trees.replace_leaf(hparams, "horizon", horizon)
    return hparams


def live(
    algorithm: Algorithm, state: Any, hparams: PyTree, num_steps: int, lifetime: Int[Array, ""] | None = None
) -> tuple[Any, Metrics]:
    """Trains for some steps; what comes after the end of the life changes nothing, and its metrics are 0.

    Args:
      algorithm: the learner's.
      state: to begin with.
      hparams: the learner's.
      num_steps: that are computed.
      lifetime: how many of them count; None: all.

    Returns:
      The state, and the metrics of each step, [num_steps].
    """

    def step(state: Any, n: Int[Array, ""]) -> tuple[Any, Metrics]:
        after, metrics = algorithm.step(state, hparams)
        if lifetime is None:
            return after, metrics
        lives = n < lifetime
        metrics = {name: jnp.where(lives, value, jnp.zeros_like(value)) for name, value in metrics.items()}
        return trees.where(lives, after, state), metrics

    return jax.lax.scan(step, state, jnp.arange(num_steps))


def scorer(
    owner: str,
    algorithm: Algorithm,
    fitness: Literal["evaluation", "training"] | Fitness = "evaluation",
    num_episodes: int = 16,
    max_episode_steps: int | None = None,
    sampled: bool = False,
    normalize: Normalize | None = None,
) -> Callable[[Key, Any, Metrics, PyTree], Float[Array, ""]]:
    """How a learner's fitness is told.

    Args:
      owner: the outer loop, for messages.
      algorithm: the learner's.
      fitness: the mean return of evaluation; or that of the episodes that ended in training; or a function.
      num_episodes: of the evaluation.
      max_episode_steps: as for `evaluate`.
      sampled: as for `evaluate`.
      normalize: what is made of it.

    Returns:
      `(key, state, metrics, hparams) -> fitness`, float32.

    Raises:
      ValueError: the fitness is none of these, there is no environment to evaluate in or to normalize by, or (when
        called) training says nothing of episodes.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"))
      >>> score = scorer("here", agent, "training")
      >>> rows = {"episode/return_sum": jnp.array([3.0, 1.0]), "episode/count": jnp.array([1.0, 1.0])}
      >>> score(jax.random.key(0), None, rows, None).item()
      2.0
    """
    if fitness not in ("evaluation", "training") and not callable(fitness):
        raise ValueError(
            f"{owner}: fitness must be 'evaluation', 'training' or a function of (state, metrics); "
            f"got fitness = {fitness!r}."
        )
    if normalize and algorithm.env is None:
        raise ValueError(
            f"{owner}: tasks and normalize need an algorithm with an environment; {algorithm.name!r} has env = None."
        )
    play = evaluate(algorithm, num_episodes, max_episode_steps, sampled) if fitness == "evaluation" else None

    def score(key: Key, state: Any, metrics: Metrics, hparams: PyTree) -> Float[Array, ""]:
        if play is not None:
            found = play(key, state, hparams.env).mean_return
        elif fitness == "training":
            found = _training_return(owner, metrics)
        else:
            found = fitness(state, metrics)  # type: ignore[operator]
        if normalize is not None:
            found = normalize(found, hparams.env)
        return jnp.asarray(found, jnp.float32)

    return score


Learner = Callable[..., tuple[Any, Float[Array, ""], Metrics]]
"""`(key, values, hparams, given=None) -> (state, fitness, sums over its episodes)` of a whole life."""


def learner(
    algorithm: Algorithm,
    num_steps: int,
    score_of: Callable[[Key, Any, Metrics, PyTree], Float[Array, ""]],
    tasks: Tasks | None = None,
    lifetimes: Lifetimes | None = None,
) -> Learner:
    """A whole life, from a fresh state to its fitness.

    Args:
      algorithm: the learner's.
      num_steps: that are computed.
      score_of: tells the fitness; see `scorer`.
      tasks: draws the environment's parameters; None: those of the hyperparameters.
      lifetimes: draws how many of the steps count; None: all.

    Returns:
      A pure function `(key, values, hparams, given=None)`: `values` are leaves of the hyperparameters by dotted path
      that are replaced after the task is set, `given` is a pair (task, lifetime) in place of what would be drawn, each
      of which may be None.
    """
    draws = [draw for draw in (tasks, lifetimes) if draw is not None]

    def life(key: Key, values: dict[str, Array], hparams: PyTree, given: Any = None) -> tuple[Any, Array, Metrics]:
        key_train, key_play, *keys = jax.random.split(key, 2 + len(draws))
        if given is None:
            task = None if tasks is None else tasks(keys[0])
            lifetime = None if lifetimes is None else jnp.clip(lifetimes(keys[-1]), 1, num_steps)
        else:
            task, lifetime = given
        own = trees.replace_leaves(with_task(algorithm, hparams, task, lifetime), values)
        state, metrics = live(algorithm, algorithm.init(key_train, own), own, num_steps, lifetime)
        return state, score_of(key_play, state, metrics, own), episode_sums(metrics)

    return life


def episode_sums(metrics: Metrics) -> Metrics:
    """Sums over steps of what counts episodes, where there is such."""
    return {name: jnp.sum(metrics[name]) for name in _EPISODES if name in metrics}


def _training_return(owner: str, metrics: Metrics) -> Array:
    if not set(_EPISODES) <= set(metrics):
        raise ValueError(
            f"{owner}: fitness = 'training' needs an algorithm with the metrics episode/return_sum and episode/count; "
            "pass a function of (state, metrics)."
        )
    return jnp.sum(metrics["episode/return_sum"]) / jnp.sum(metrics["episode/count"])
