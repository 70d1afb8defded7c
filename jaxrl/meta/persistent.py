"""Evolution strategies over truncated lives: learners live on, and each generation sees a stretch of them.

One generation, with its shapes; N antithetic pairs of learners live on from one to the next:

    begin       pairs whose life was over begin anew, both from one key                     [N, 2]
    perturb     ε ~ N(0, σ² I) of each pair: new (PES), or that of its life (NRES)          [N, ...]
    live        K steps of the two, under μ + ε and μ - ε                                   [N, 2]
    score       the fitness of this stretch, F⁺ and F⁻                                      [N, 2]
    move        one optimizer step on  g = 1/N Σ ξ (F⁺ - F⁻) / (2 σ²)

    PES     ξ = the sum of the pair's ε since its life began    (Vicol et al. 2021, arXiv:2112.13835, algorithm 2)
    NRES    ξ = ε, drawn when the life began                    (Li et al. 2023, arXiv:2304.12180, algorithm 1)

A fitness late in a life depends on the leaves through all stretches before it. Both weights account for that, so at a
mean that stays, g is an unbiased estimate of the derivative of the mean fitness over all stretches of a life, smoothed
by the perturbations. With ξ = the ε of this stretch alone (`estimator="truncated"`) it knows of the last stretch only,
and is biased as truncated backpropagation is; it is here to compare with. As the mean moves, what a learner has gone
through belongs to earlier means: that bias all of them have, and it shrinks with the learning rate.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import validation
from jaxrl.levels import lives
from jaxrl.levels.lives import Fitness, Normalize, Tasks
from jaxrl.meta.held_out import held_out
from jaxrl.meta.leaves import evolving_leaves
from jaxrl.ops import trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.strategies import common
from jaxrl.types import Action, Algorithm, Key, Memory, Metrics, Observation, memoize

Estimator = Literal["pes", "nres", "truncated"]


@struct.dataclass
class Hyperparams:
    """Of the inner algorithm and of the strategy.

    Attributes:
      inner: the algorithm's; the evolving leaves are where the mean begins.
      sigma: standard deviation of the perturbations.
      learning_rate: of the optimizer.
      max_grad_norm: of the estimate; a greater one is scaled down to it.
    """

    inner: PyTree
    sigma: Float[Array, ""]
    learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]

    @property
    def env(self) -> PyTree:
        """Parameters of the environment."""
        return self.inner.env


@struct.dataclass
class Pair:
    """Two learners that differ by their leaves alone; a batch of pairs has leaves [N, ...].

    Attributes:
      learners: states of the inner algorithm, leaves [2, ...].
      env: their task, or () if all have that of the hyperparameters.
      perturbation: ξ of the last generation, by the leaves' paths.
      age: steps so far; at 0 the pair is about to begin.
      end: age at which its life is over.
    """

    learners: PyTree
    env: PyTree
    perturbation: dict[str, Array]
    age: Int[Array, ""]
    end: Int[Array, ""]


@struct.dataclass
class State:
    """All that one step changes.

    Attributes:
      key: of the generations to come.
      key_held_out: of the held-out learners; it stays.
      mean: center of the search by dotted path; logarithms of those leaves that evolve as such.
      opt_state: the optimizer's.
      pairs: learners, leaves [N, ...].
      values: the evolving leaves at the mean.
      agent: the first of the learners that the mean trained in the last held-out evaluation.
      num_generations: done so far.
    """

    key: Key
    key_held_out: Key
    mean: dict[str, Array]
    opt_state: optax.OptState
    pairs: Pair
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
def persistent(
    algorithm: Algorithm,
    leaves: str | tuple[str, ...] = "objective",
    *,
    estimator: Estimator = "nres",
    num_steps: int,
    truncation: int,
    num_pairs: int = 32,
    num_generations: int = 1,
    num_held_out: int = 8,
    fitness: Literal["evaluation", "training"] | Fitness = "evaluation",
    num_episodes: int = 16,
    max_episode_steps: int | None = None,
    sampled: bool = False,
    tasks: Tasks | None = None,
    normalize: Normalize | None = None,
    log: tuple[str, ...] = (),
    optimizer: Optimizer = adam,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Evolves leaves of an algorithm's hyperparameters by stretches of learners' lives (PES, NRES).

    A generation costs `truncation` steps of each learner, where that of `jaxrl.evolve` costs `num_steps`. What is
    maximized differs: the mean over all stretches of a life of the fitness that each ends with, not the fitness in the
    end alone.

    - The two of a pair begin from the same key and meet the same noise. A life's beginning sees its first perturbation.
    - Lives end at different generations: the first ones are cut short at 1, 2, …, T/K stretches in turn.
    - Fitness is used as it is: ranks would say something else than the derivative. The optimizer sets its scale.
    - A pair with a fitness that is not finite counts as 0 in the estimate, and in `fitness/num_not_finite`.

    Args:
      algorithm: the inner learner.
      leaves: as for `jaxrl.evolve`.
      estimator: the weights ξ; see above. Li et al. find that NRES has the least variance of unbiased ones of its kind.
      num_steps: T, of a life.
      truncation: K, steps of a generation, which divide T.
      num_pairs: N.
      num_generations: in one step.
      num_held_out: H, learners under the mean at the end of each step; their lives are whole.
      fitness: of a stretch: the mean return of `evaluate` at its end; or that of the episodes that ended in it; or a
        function of the state at its end and its metrics [K].
      num_episodes: as for `jaxrl.evolve`.
      max_episode_steps: as for `evaluate`.
      sampled: as for `evaluate`.
      tasks: draws the environment's parameters of each life of a pair; None: those of the hyperparameters.
      normalize: as for `jaxrl.evolve`.
      log: those of `leaves` that evolve as their logarithm.
      optimizer: of the mean.
      num_devices: as for `population`; it divides N.
      chunk: pairs that run together on a device; None: all.

    Returns:
      The algorithm; one step of it is `num_generations` generations and the held-out evaluation. Its hyperparameters
      are a `Hyperparams`, of which `hyperparams(**changes)` takes its own leaves as `meta_sigma`, `meta_learning_rate`
      and `meta_max_grad_norm`, and the inner algorithm's changes. `act` and `evaluate` play with the learner that the
      mean trained.

      Metrics: of a generation, averaged: `fitness/...`, `strategy/snr` and `strategy/half_cosine` as those of
      strategies, `strategy/gradient` and `strategy/step`, norms; `held_out/...`, `episode/...` as those of
      `jaxrl.evolve`.

    Raises:
      ValueError: a path names no leaf or one that is not float, a count is not positive, K does not divide T, pairs do
        not split, or the estimator or fitness is not known.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"))
      >>> rates = persistent(agent, "learning_rate", log=("learning_rate",), num_steps=6, truncation=2, num_pairs=4)
      >>> hparams = rates.hyperparams(meta_sigma=0.3)
      >>> state, metrics = jax.eval_shape(jaxrl.train(rates, 1), jax.random.key(0), hparams)
      >>> metrics["held_out/fitness"].shape, state.pairs.age.shape
      ((1,), (4,))
    """
    chosen = evolving_leaves("persistent", algorithm, leaves, log)
    _check(estimator, num_steps, truncation, num_pairs, num_generations, num_held_out)
    check_split(num_pairs, num_devices, chunk)
    if tasks and algorithm.env is None:
        raise ValueError(f"persistent: tasks need an algorithm with an environment; {algorithm.name!r} has none.")
    score_of = lives.scorer("persistent", algorithm, fitness, num_episodes, max_episode_steps, sampled, normalize)
    play_held_out = held_out(lives.learner(algorithm, num_steps, score_of, tasks), num_held_out, num_devices, chunk)

    def hyperparams(**changes: Any) -> Hyperparams:
        own = {name: changes.pop(f"meta_{name}") for name in _LEAVES if f"meta_{name}" in changes}
        inner = algorithm.hyperparams(**changes)
        if "horizon" not in changes:
            inner = lives.with_task(algorithm, inner, None, num_steps)
        default = Hyperparams(inner, *(jnp.float32(value) for value in _LEAVES.values()))
        return trees.with_changes(default, own, dict.fromkeys(_LEAVES, (0.0, jnp.inf)))

    def decoded(mean: dict[str, Array]) -> dict[str, Array]:
        return {name: jnp.exp(value) if name in log else value for name, value in mean.items()}

    def of_pair(key: Key, pair: Pair, mean: dict[str, Array], hparams: Hyperparams) -> tuple[Pair, Array, Metrics]:
        """A generation of one pair: its state, the fitness of the two [2], and sums over their episodes."""
        key_init, key_noise, key_play, *keys = jax.random.split(key, 3 + (tasks is not None))
        begins = pair.age == 0
        noise = _normal(key_noise, mean, hparams.sigma)
        own, weight = _perturbed(estimator, begins, noise, pair.perturbation)
        env = pair.env if tasks is None else trees.where(begins, tasks(keys[0]), pair.env)
        inner = lives.with_task(algorithm, hparams.inner, None if tasks is None else env, None)

        def side(sign: Array, learner: Any) -> tuple[Any, Array, Metrics]:
            moved = {name: value + sign * own[name] for name, value in mean.items()}
            inner_own = trees.replace_leaves(inner, decoded(moved))
            learner = trees.where(begins, algorithm.init(key_init, inner_own), learner)
            learner, metrics = lives.live(algorithm, learner, inner_own, truncation)
            return learner, score_of(key_play, learner, metrics, inner_own), lives.episode_sums(metrics)

        learners, scores, episodes = jax.vmap(side)(jnp.array([1.0, -1.0]), pair.learners)
        age = pair.age + truncation
        over = age >= pair.end
        after = Pair(learners, env, weight, jnp.where(over, 0, age), jnp.where(over, num_steps, pair.end))
        return after, scores, episodes

    all_pairs = over_members(of_pair, (0, 0, None, None), num_devices, chunk)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_held_out, key_agent, key_learners, key_task = jax.random.split(key, 5)
        named = trees.named_leaves(hparams.inner)
        mean = {name: jnp.log(named[name]) if name in log else jnp.copy(named[name]) for name in chosen}
        agent = algorithm.init(key_agent, hparams.inner)
        # Replaced as soon as the pairs begin; only their shapes matter.
        learner = algorithm.init(key_learners, hparams.inner)
        task = () if tasks is None else tasks(key_task)
        several = lambda tree, *axes: jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *x.shape)), tree)
        num_stretches = num_steps // truncation
        pairs = Pair(
            learners=several(learner, num_pairs, 2),
            env=several(task, num_pairs),
            perturbation=several(jax.tree.map(jnp.zeros_like, mean), num_pairs),
            age=jnp.zeros(num_pairs, jnp.int32),
            end=truncation * (1 + jnp.arange(num_pairs, dtype=jnp.int32) * num_stretches // num_pairs),
        )
        return State(
            key=key,
            key_held_out=key_held_out,
            mean=mean,
            opt_state=optimizer(hparams, hparams.learning_rate).init(mean),
            pairs=pairs,
            values=decoded(mean),
            agent=agent,
            num_generations=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        def generation(carry: Any, _: None) -> tuple[Any, tuple[Metrics, Metrics]]:
            key, mean, opt_state, pairs = carry
            key, key_pairs = jax.random.split(key)
            pairs, scores, episodes = all_pairs(jax.random.split(key_pairs, num_pairs), pairs, mean, hparams)
            gradient, metrics = _estimate(pairs.perturbation, scores, hparams.sigma)
            # Optimizers descend.
            downward = jax.tree.map(jnp.negative, gradient)
            updates, opt_state = optimizer(hparams, hparams.learning_rate).update(downward, opt_state, mean)
            metrics |= {"strategy/gradient": optax.tree.norm(gradient), "strategy/step": optax.tree.norm(updates)}
            mean = optax.apply_updates(mean, updates)
            return (key, mean, opt_state, pairs), (metrics, jax.tree.map(jnp.sum, episodes))

        # --- Generations -----------------------------------------------------------------------------------------
        carry = (state.key, state.mean, state.opt_state, state.pairs)
        (key, mean, opt_state, pairs), (rows, episodes) = jax.lax.scan(generation, carry, None, num_generations)
        metrics = {name: (jnp.max if name == "fitness/best" else jnp.mean)(row) for name, row in rows.items()}

        # --- Held out --------------------------------------------------------------------------------------------
        values = decoded(mean)
        agent, found, more = play_held_out(state.key_held_out, values, hparams.inner)
        metrics |= found
        metrics |= {name: jnp.sum(sums) + jnp.sum(more[name]) for name, sums in episodes.items()}
        return State(
            key=key,
            key_held_out=state.key_held_out,
            mean=mean,
            opt_state=opt_state,
            pairs=pairs,
            values=values,
            agent=agent,
            num_generations=state.num_generations + num_generations,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.agent, memory, obs, key)

    num_inner = num_generations * 2 * num_pairs * truncation + num_held_out * num_steps
    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=algorithm.initial_memory,
        env_steps=num_inner * algorithm.env_steps,
        name=f"persistent({algorithm.name}, {estimator})",
        env=algorithm.env,
        config=algorithm.config,
    )


_LEAVES = {"sigma": 0.1, "learning_rate": 0.01, "max_grad_norm": jnp.inf}


def _normal(key: Key, mean: dict[str, Array], sigma: Float[Array, ""]) -> dict[str, Array]:
    keys = jax.random.split(key, len(mean))
    return {name: sigma * jax.random.normal(k, mean[name].shape) for k, name in zip(keys, mean, strict=True)}


def _perturbed(
    estimator: Estimator, begins: Bool[Array, ""], noise: dict[str, Array], before: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """ε and ξ of a pair, from new noise and from ξ of the generation before."""
    if estimator == "pes":
        return noise, {name: value + jnp.where(begins, 0.0, before[name]) for name, value in noise.items()}
    if estimator == "nres":
        noise = trees.where(begins, noise, before)
    return noise, noise


def _estimate(
    weights: dict[str, Array], scores: Float[Array, "N 2"], sigma: Float[Array, ""]
) -> tuple[dict[str, Array], Metrics]:
    """g and how much of it is signal."""
    difference = scores[:, 0] - scores[:, 1]
    difference = jnp.where(jnp.isfinite(difference), difference, 0.0) / (2.0 * jnp.square(sigma))
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])(weights)
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], weights))
    with jax.default_matmul_precision("float32"):
        gradient = difference @ flat / len(difference)
    return unravel(gradient), {
        **common.fitness_metrics(scores.T.ravel(), pairs=True),
        **common.quality(difference, flat, pairs=False),
    }


def _check(
    estimator: str, num_steps: int, truncation: int, num_pairs: int, num_generations: int, num_held_out: int
) -> None:
    counts = {
        "num_steps": num_steps,
        "truncation": truncation,
        "num_pairs": num_pairs,
        "num_generations": num_generations,
        "num_held_out": num_held_out,
    }
    for name, value in counts.items():
        validation.count("persistent", name, value)
    if num_steps % truncation:
        raise ValueError(
            "persistent: truncation must divide num_steps, so that lives end with a generation; "
            f"got num_steps = {num_steps}, truncation = {truncation}."
        )
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"persistent: estimator must be one of {', '.join(get_args(Estimator))}; got estimator = {estimator!r}."
        )
