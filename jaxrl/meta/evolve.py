"""Evolution strategies as meta-learners: they search for hyperparameters under which a fresh learner learns best.

One step of the algorithm, with its shapes; it is `num_generations` generations and one evaluation of the mean:

    ask            P candidates for the evolving leaves                                    [P, ...]
    train          a fresh learner for each candidate and seed, `num_steps` steps          [P, S]
    score          its fitness; the mean over seeds is the candidate's                     [P]
    tell           the strategy moves its mean
    hold out       fresh learners under the mean, on keys that never change                [H]

All of it is inside the compiled program. The learners of a generation are lanes of one axis [P S], cut over devices and
into chunks like the members of a population; all candidates are kept once, not once a lane.

A leaf may be anything that learns better or worse: a rate, an environment's parameter, the weights of a learned
objective. Learners may meet a task of their own each, drawn from a distribution, and lives of different lengths; the
held-out keys then mean held-out tasks. Persistent learners, which live on from one generation to the next (PES, NRES),
would keep their state in `State`, in the place where `_train` begins with `init`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import validation
from jaxrl.evaluation import evaluate
from jaxrl.meta.leaves import chosen_leaves
from jaxrl.ops import trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.types import Action, Algorithm, EnvParams, Key, Memory, Metrics, Observation, Strategy, memoize

Fitness = Callable[[Any, Metrics], Float[Array, ""]]
"""`(state, metrics [num_steps]) -> fitness` of one learner after its training."""

Tasks = Callable[[Key], EnvParams]
"""`(key) -> parameters of the environment`, drawn from a distribution of tasks."""


@struct.dataclass
class Hyperparams:
    """Of the inner algorithm and of the strategy.

    Attributes:
      inner: the algorithm's; the evolving leaves are where the mean begins.
      strategy: the strategy's.
    """

    inner: PyTree
    strategy: PyTree

    @property
    def env(self) -> PyTree:
        """Parameters of the environment."""
        return self.inner.env


@struct.dataclass
class State:
    """All that one step changes.

    Attributes:
      key: of the generations to come.
      key_held_out: of the held-out learners; it stays.
      strategy: state of the strategy.
      values: the evolving leaves at the mean, by dotted path.
      agent: the first of the learners that the mean trained in the last held-out evaluation.
      num_generations: done so far.
    """

    key: Key
    key_held_out: Key
    strategy: PyTree
    values: dict[str, Array]
    agent: PyTree
    num_generations: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The agent's parameters, of algorithms that have `params`."""
        return self.agent.params

    @property
    def actor(self) -> PyTree:
        """The agent's environments, of algorithms that have an `actor`."""
        return self.agent.actor


@memoize
def evolve(
    algorithm: Algorithm,
    strategy: Strategy,
    leaves: str | tuple[str, ...] = "objective",
    *,
    num_steps: int,
    num_generations: int = 1,
    num_seeds: int = 1,
    num_held_out: int = 8,
    fitness: Literal["evaluation", "training"] | Fitness = "evaluation",
    num_episodes: int = 16,
    max_episode_steps: int | None = None,
    sampled: bool = False,
    common_keys: Literal["all", "pairs", "none"] = "all",
    tasks: Tasks | None = None,
    lifetimes: Callable[[Key], Int[Array, ""]] | None = None,
    normalize: Callable[[Float[Array, ""], EnvParams], Float[Array, ""]] | None = None,
    log: tuple[str, ...] = (),
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Evolves leaves of an algorithm's hyperparameters by the fitness of learners that train with them.

    - A learner is `num_steps` steps of the algorithm from a fresh state. Where its hyperparameters have a `horizon`,
      that is what it is set to unless it is given, so that schedules and progress end with the learner's life.
    - All learners are new in each generation. With common keys the candidates of a generation differ by their leaves
      alone: same environments, same initial weights, same noise; with `tasks` and `lifetimes` also the same task and
      the same length of life, so `common_keys = "pairs"` compares the two of a pair on one task and spreads a
      generation over many.
    - The population's own fitness is no progress curve, since each generation has other keys: `held_out/fitness` is.
    - Evaluation episodes are not counted in `env_steps`; all training is, that of held-out learners too.

    Args:
      algorithm: the inner learner.
      strategy: asks for candidates and is told their fitness.
      leaves: dotted paths of leaves, or of records and trees of them (`"objective"`), all float.
      num_steps: of a learner's life.
      num_generations: in one step.
      num_seeds: S, learners for each candidate.
      num_held_out: H, learners under the mean at the end of each step.
      fitness: the mean return of `evaluate` after training; or that of the episodes that ended in training; or a
        function. It is maximized, and NaN ranks last.
      num_episodes: of a learner's evaluation.
      max_episode_steps: as for `evaluate`.
      sampled: as for `evaluate`.
      common_keys: which candidates share their learners' keys: all of a generation, those of an antithetic pair, none.
      tasks: draws the environment's parameters of each learner; None: all have those of the hyperparameters. Leaves
        that evolve keep their own value.
      lifetimes: draws how many of the `num_steps` steps each learner learns; what comes after changes nothing, its
        metrics are 0, and the learner's `horizon` is its own life. All `num_steps` are computed, and counted in
        `env_steps`. None: all of them.
      normalize: `(fitness, the learner's environment parameters) -> fitness`, so that tasks weigh alike in means: a
        share of the best return, for instance.
      log: those of `leaves` that evolve as their logarithm, which keeps them positive.
      num_devices: as for `population`.
      chunk: learners that run together on a device; None: all.

    Returns:
      The algorithm; one step of it is `num_generations` generations and the held-out evaluation. Its hyperparameters
      are a `Hyperparams`; `hyperparams(**changes)` takes the inner algorithm's changes, and `strategy=` a record.
      `act` and `evaluate` play with the learner that the mean trained.

      Metrics: those of the strategy's `tell` (`fitness/...`, `strategy/...`), averaged over the generations but for
      `fitness/best`, their maximum; `held_out/fitness`, the mean over held-out learners of which it is finite,
      `held_out/std`, `held_out/num_not_finite`; `episode/return_sum` and `episode/count` of all training, if the
      algorithm has them.

    Raises:
      ValueError: a path names no leaf or one that is not float, a count is not positive, pairs are asked of a strategy
        without them, a leaf of `log` does not evolve or is not positive, or the learners do not split evenly.

    Example:
      >>> import jaxrl
      >>> from jaxrl import strategies
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"))
      >>> search, name = strategies.snes(4), "learning_rate"
      >>> rates = evolve(agent, search, name, log=(name,), num_steps=2, num_held_out=1)
      >>> hparams = rates.hyperparams(strategy=search.hyperparams(sigma=0.5))
      >>> state, metrics = jax.eval_shape(jaxrl.train(rates, 1), jax.random.key(0), hparams)
      >>> metrics["held_out/fitness"].shape, sorted(state.values)
      ((1,), ['learning_rate'])
    """
    chosen = _evolving(algorithm, leaves, log)
    num_candidates = strategy.population_size
    _check(strategy, num_steps, num_generations, num_seeds, num_held_out, fitness, common_keys)
    if (tasks or normalize) and algorithm.env is None:
        raise ValueError(
            f"evolve: tasks and normalize need an algorithm with an environment; {algorithm.name!r} has env = None."
        )
    check_split(num_candidates * num_seeds, num_devices, chunk)
    play = evaluate(algorithm, num_episodes, max_episode_steps, sampled) if fitness == "evaluation" else None
    life = float(num_steps * algorithm.env_steps)

    def hyperparams(**changes: Any) -> Hyperparams:
        own = changes.pop("strategy", None)
        inner = algorithm.hyperparams(**changes)
        if hasattr(inner, "horizon") and "horizon" not in changes:
            inner = trees.replace_leaf(inner, "horizon", jnp.float32(life))
        return Hyperparams(inner, strategy.hyperparams() if own is None else trees.as_arrays(own))

    def decoded(mean: dict[str, Array]) -> dict[str, Array]:
        return {name: jnp.exp(value) if name in log else value for name, value in mean.items()}

    def learner(key: Key, values: dict[str, Array], inner: PyTree) -> tuple[Any, Array, Metrics]:
        """State at the end of a life, fitness, and sums over its episodes."""
        drawn = {"tasks": tasks, "lifetimes": lifetimes}
        key_train, key_play, *keys = jax.random.split(key, 2 + sum(draw is not None for draw in drawn.values()))
        lifetime = None
        if tasks is not None:
            inner = dataclasses.replace(inner, env=tasks(keys[0]))
        if lifetimes is not None:
            lifetime = jnp.clip(lifetimes(keys[-1]), 1, num_steps)
            if hasattr(inner, "horizon"):
                inner = trees.replace_leaf(inner, "horizon", lifetime.astype(jnp.float32) * algorithm.env_steps)
        hparams = trees.replace_leaves(inner, values)
        state, metrics = _train(algorithm, key_train, hparams, num_steps, lifetime)
        episodes = {name: jnp.sum(metrics[name]) for name in _EPISODES if name in metrics}
        if play is not None:
            score = play(key_play, state, hparams.env).mean_return
        elif fitness == "training":
            score = _training_return(episodes)
        else:
            score = fitness(state, metrics)  # type: ignore[operator]
        if normalize is not None:
            score = normalize(score, hparams.env)
        return state, jnp.asarray(score, jnp.float32), episodes

    def of_lane(lane: Array, keys: Key, candidates: dict[str, Array], inner: PyTree) -> tuple[Array, Metrics]:
        candidate, seed = lane // num_seeds, lane % num_seeds
        own = jax.tree.map(lambda x: x[candidate], candidates)
        group = {"all": 0, "pairs": candidate % max(num_candidates // 2, 1), "none": candidate}[common_keys]
        _, score, episodes = learner(keys[group, seed], decoded(own), inner)
        return score, episodes

    train_all = over_members(of_lane, (0, None, None, None), num_devices, chunk)
    num_lanes, held_out_chunk = _padded(num_held_out, num_devices, chunk)
    train_padded = over_members(learner, (0, None, None), num_devices, held_out_chunk)
    num_groups = {"all": 1, "pairs": max(num_candidates // 2, 1), "none": num_candidates}[common_keys]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_held_out, key_strategy, key_agent = jax.random.split(key, 4)
        named = trees.named_leaves(hparams.inner)
        mean = {name: jnp.log(named[name]) if name in log else jnp.copy(named[name]) for name in chosen}
        return State(
            key=key,
            key_held_out=key_held_out,
            strategy=strategy.init(key_strategy, mean, hparams.strategy),
            values={name: jnp.copy(named[name]) for name in chosen},
            agent=algorithm.init(key_agent, hparams.inner),
            num_generations=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        def generation(carry: tuple[Key, PyTree], _: None) -> tuple[tuple[Key, PyTree], tuple[Metrics, Metrics]]:
            key, own = carry
            key, key_train = jax.random.split(key)
            keys = jax.random.split(key_train, (num_groups, num_seeds))
            candidates = strategy.ask(own, hparams.strategy)
            scores, episodes = train_all(jnp.arange(num_candidates * num_seeds), keys, candidates, hparams.inner)
            score = jnp.mean(scores.reshape(num_candidates, num_seeds), axis=1)
            own, metrics = strategy.tell(own, candidates, score, hparams.strategy)
            return (key, own), (metrics, jax.tree.map(jnp.sum, episodes))

        # --- Generations -----------------------------------------------------------------------------------------
        (key, own), (rows, episodes) = jax.lax.scan(generation, (state.key, state.strategy), None, num_generations)
        metrics = {name: (jnp.max if name == "fitness/best" else jnp.mean)(row) for name, row in rows.items()}

        # --- Held out --------------------------------------------------------------------------------------------
        values = decoded(strategy.mean(own))
        keys = jax.random.split(state.key_held_out, num_held_out)[jnp.arange(num_lanes) % num_held_out]
        agents, scores, more = jax.tree.map(lambda x: x[:num_held_out], train_padded(keys, values, hparams.inner))
        sound = jnp.isfinite(scores)
        held_out = jnp.sum(jnp.where(sound, scores, 0.0)) / jnp.sum(sound)
        square = jnp.sum(jnp.where(sound, jnp.square(scores - held_out), 0.0)) / jnp.sum(sound)
        metrics |= {
            "held_out/fitness": held_out,
            "held_out/std": jnp.sqrt(square),
            "held_out/num_not_finite": jnp.sum(~sound).astype(jnp.float32),
        }
        metrics |= {name: jnp.sum(sums) + jnp.sum(more[name]) for name, sums in episodes.items()}
        return State(
            key=key,
            key_held_out=state.key_held_out,
            strategy=own,
            values=values,
            agent=jax.tree.map(lambda x: x[0], agents),
            num_generations=state.num_generations + num_generations,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.agent, memory, obs, key)

    num_learners = num_generations * num_candidates * num_seeds + num_held_out
    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=algorithm.initial_memory,
        env_steps=num_learners * num_steps * algorithm.env_steps,
        name=f"evolve({algorithm.name}, {strategy.name})",
        env=algorithm.env,
        config=algorithm.config,
    )


_EPISODES = ("episode/return_sum", "episode/count")


def _train(
    algorithm: Algorithm, key: Key, hparams: PyTree, num_steps: int, lifetime: Int[Array, ""] | None
) -> tuple[Any, Metrics]:
    def step(state: Any, n: Int[Array, ""]) -> tuple[Any, Metrics]:
        after, metrics = algorithm.step(state, hparams)
        if lifetime is None:
            return after, metrics
        lives = n < lifetime
        metrics = {name: jnp.where(lives, value, jnp.zeros_like(value)) for name, value in metrics.items()}
        return trees.where(lives, after, state), metrics

    return jax.lax.scan(step, algorithm.init(key, hparams), jnp.arange(num_steps))


def _training_return(episodes: Metrics) -> Array:
    if set(episodes) != set(_EPISODES):
        raise ValueError(
            "evolve: fitness = 'training' needs an algorithm with the metrics episode/return_sum and episode/count; "
            "pass a function of (state, metrics)."
        )
    return episodes["episode/return_sum"] / episodes["episode/count"]


def _padded(num_learners: int, num_devices: int, chunk: int | None) -> tuple[int, int | None]:
    """Lanes and chunk for learners that need not divide: all devices of a program take part in each of its maps."""
    each = math.ceil(num_learners / num_devices)
    if chunk is None or chunk >= each:
        return each * num_devices, None
    return each * num_devices, max(n for n in range(1, chunk + 1) if each % n == 0)


def _evolving(algorithm: Algorithm, leaves: str | tuple[str, ...], log: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the leaves that evolve."""
    named = trees.named_leaves(algorithm.hyperparams())
    chosen = chosen_leaves("evolve", algorithm, leaves, "evolve")
    for name in log:
        if name not in chosen:
            raise ValueError(f"evolve: log names {name!r}, which does not evolve; there are {', '.join(chosen)}.")
        if not bool(jnp.all(named[name] > 0)):
            raise ValueError(f"evolve: {name} must be positive to evolve as its logarithm; its default is not.")
    return chosen


def _check(
    strategy: Strategy,
    num_steps: int,
    num_generations: int,
    num_seeds: int,
    num_held_out: int,
    fitness: Any,
    common_keys: str,
) -> None:
    counts = {
        "num_steps": num_steps,
        "num_generations": num_generations,
        "num_seeds": num_seeds,
        "num_held_out": num_held_out,
    }
    for name, value in counts.items():
        validation.count("evolve", name, value)
    if fitness not in ("evaluation", "training") and not callable(fitness):
        raise ValueError(
            "evolve: fitness must be 'evaluation', 'training' or a function of (state, metrics); "
            f"got fitness = {fitness!r}."
        )
    if common_keys not in ("all", "pairs", "none"):
        raise ValueError(f"evolve: common_keys must be 'all', 'pairs' or 'none'; got common_keys = {common_keys!r}.")
    if common_keys == "pairs" and not strategy.pairs:
        raise ValueError(
            f"evolve: common_keys = 'pairs' needs a strategy of antithetic pairs; {strategy.name} has none: "
            "take common_keys = 'all'."
        )
