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
objective. Learners may meet a task of their own each, drawn from a distribution or by a curriculum, and lives of
different lengths; the held-out keys then mean held-out tasks.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import validation
from jaxrl.levels import lives
from jaxrl.levels.lives import Fitness, Lifetimes, Normalize, Tasks
from jaxrl.meta.held_out import held_out
from jaxrl.meta.leaves import evolving_leaves
from jaxrl.ops import trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.types import Action, Algorithm, Curriculum, Key, Memory, Metrics, Observation, Strategy, memoize


@struct.dataclass
class Hyperparams:
    """Of the inner algorithm and of the strategy.

    Attributes:
      inner: the algorithm's; the evolving leaves are where the mean begins.
      strategy: the strategy's.
      curriculum: the curriculum's; () without one.
    """

    inner: PyTree
    strategy: PyTree
    curriculum: PyTree = ()

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
      curriculum: state of the curriculum; () without one.
    """

    key: Key
    key_held_out: Key
    strategy: PyTree
    values: dict[str, Array]
    agent: PyTree
    num_generations: Int[Array, ""]
    curriculum: PyTree = ()

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
    lifetimes: Lifetimes | None = None,
    curriculum: Curriculum | None = None,
    normalize: Normalize | None = None,
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
      curriculum: takes the place of `tasks` and `lifetimes`: chooses one level for each antithetic pair with all its
        seeds, and is told what the learners made of it, the mean of those whose fitness is finite. Needs
        `common_keys = "pairs"`. Held-out learners meet levels of the distribution behind it. See `jaxrl.levels.regret`.
      normalize: `(fitness, the learner's environment parameters) -> fitness`, so that tasks weigh alike in means: a
        share of the best return, for instance.
      log: those of `leaves` that evolve as their logarithm, which keeps them positive.
      num_devices: as for `population`.
      chunk: learners that run together on a device; None: all.

    Returns:
      The algorithm; one step of it is `num_generations` generations and the held-out evaluation. Its hyperparameters
      are a `Hyperparams`; `hyperparams(**changes)` takes the inner algorithm's changes, and `strategy=` and
      `curriculum=` a record each. `act` and `evaluate` play with the learner that the mean trained.

      Metrics: those of the strategy's `tell` (`fitness/...`, `strategy/...`), averaged over the generations but for
      `fitness/best`, their maximum; `held_out/fitness`, the mean over held-out learners of which it is finite,
      `held_out/std`, `held_out/num_not_finite`; those of the curriculum, averaged over the generations where they
      are not NaN; `episode/return_sum` and `episode/count` of all training, if the algorithm has them.

    Raises:
      ValueError: a path names no leaf or one that is not float, a count is not positive, pairs are asked of a strategy
        without them, a leaf of `log` does not evolve or is not positive, the learners do not split evenly, or the
        curriculum has other numbers of levels or steps.

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
    chosen = evolving_leaves("evolve", algorithm, leaves, log)
    num_candidates = strategy.population_size
    _check(strategy, num_steps, num_generations, num_seeds, num_held_out, common_keys)
    if curriculum is not None:
        _check_curriculum(curriculum, num_candidates, num_steps, common_keys, tasks, lifetimes)
        tasks, lifetimes = curriculum.tasks, curriculum.lifetimes
    if tasks and algorithm.env is None:
        raise ValueError(
            f"evolve: tasks and normalize need an algorithm with an environment; {algorithm.name!r} has env = None."
        )
    check_split(num_candidates * num_seeds, num_devices, chunk)
    score_of = lives.scorer("evolve", algorithm, fitness, num_episodes, max_episode_steps, sampled, normalize)
    learner = lives.learner(algorithm, num_steps, score_of, tasks, lifetimes)

    def hyperparams(**changes: Any) -> Hyperparams:
        own = changes.pop("strategy", None)
        course = changes.pop("curriculum", None)
        if course is None and curriculum is not None:
            course = curriculum.hyperparams()
        inner = algorithm.hyperparams(**changes)
        if "horizon" not in changes:
            inner = lives.with_task(algorithm, inner, None, num_steps)
        own = strategy.hyperparams() if own is None else trees.as_arrays(own)
        return Hyperparams(inner, own, () if course is None else trees.as_arrays(course))

    def decoded(mean: dict[str, Array]) -> dict[str, Array]:
        return {name: jnp.exp(value) if name in log else value for name, value in mean.items()}

    def of_lane(
        lane: Array, keys: Key, candidates: dict[str, Array], inner: PyTree, course: PyTree
    ) -> tuple[Array, Metrics]:
        candidate, seed = lane // num_seeds, lane % num_seeds
        own = jax.tree.map(lambda x: x[candidate], candidates)
        group = {"all": 0, "pairs": candidate % max(num_candidates // 2, 1), "none": candidate}[common_keys]
        given = None if curriculum is None else jax.tree.map(lambda x: x[group], course)
        _, score, episodes = learner(keys[group, seed], decoded(own), inner, given)
        return score, episodes

    train_all = over_members(of_lane, (0, None, None, None, None), num_devices, chunk)
    play_held_out = held_out(learner, num_held_out, num_devices, chunk)
    num_groups = {"all": 1, "pairs": max(num_candidates // 2, 1), "none": num_candidates}[common_keys]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_held_out, key_strategy, key_agent, *keys = jax.random.split(key, 4 + (curriculum is not None))
        named = trees.named_leaves(hparams.inner)
        mean = {name: jnp.log(named[name]) if name in log else jnp.copy(named[name]) for name in chosen}
        return State(
            key=key,
            key_held_out=key_held_out,
            strategy=strategy.init(key_strategy, mean, hparams.strategy),
            values={name: jnp.copy(named[name]) for name in chosen},
            agent=algorithm.init(key_agent, hparams.inner),
            num_generations=jnp.int32(0),
            curriculum=() if curriculum is None else curriculum.init(keys[0], hparams.curriculum),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        def generation(carry: tuple[Key, PyTree, PyTree], _: None) -> tuple[Any, tuple[Metrics, Metrics]]:
            key, own, course = carry
            key, key_train = jax.random.split(key)
            keys = jax.random.split(key_train, (num_groups, num_seeds))
            met, tickets = (), None
            if curriculum is not None:
                levels, lifetime, tickets = curriculum.draw(course, hparams.curriculum)
                met = levels, None if lifetimes is None else lifetime
            candidates = strategy.ask(own, hparams.strategy)
            scores, episodes = train_all(jnp.arange(num_candidates * num_seeds), keys, candidates, hparams.inner, met)
            scores = scores.reshape(num_candidates, num_seeds)
            own, metrics = strategy.tell(own, candidates, jnp.mean(scores, axis=1), hparams.strategy)
            if curriculum is not None:
                of_level = scores.reshape(2, num_groups, num_seeds)
                sound = jnp.isfinite(of_level)
                mean = jnp.sum(jnp.where(sound, of_level, 0.0), axis=(0, 2)) / jnp.sum(sound, axis=(0, 2))
                course, more = curriculum.tell(course, tickets, mean, hparams.curriculum)
                metrics |= more
            return (key, own, course), (metrics, jax.tree.map(jnp.sum, episodes))

        # --- Generations -----------------------------------------------------------------------------------------
        carry = (state.key, state.strategy, state.curriculum)
        (key, own, course), (rows, episodes) = jax.lax.scan(generation, carry, None, num_generations)
        metrics = {name: _over_generations(name, row) for name, row in rows.items()}

        # --- Held out --------------------------------------------------------------------------------------------
        values = decoded(strategy.mean(own))
        agent, found, more = play_held_out(state.key_held_out, values, hparams.inner)
        metrics |= found
        metrics |= {name: jnp.sum(sums) + jnp.sum(more[name]) for name, sums in episodes.items()}
        return State(
            key=key,
            key_held_out=state.key_held_out,
            strategy=own,
            values=values,
            agent=agent,
            num_generations=state.num_generations + num_generations,
            curriculum=course,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.agent, memory, obs, key)

    num_learners = num_generations * num_candidates * num_seeds + num_held_out
    of_curriculum = 0 if curriculum is None else curriculum.env_steps
    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=algorithm.initial_memory,
        env_steps=num_learners * num_steps * algorithm.env_steps + num_generations * of_curriculum,
        name=f"evolve({algorithm.name}, {strategy.name})",
        env=algorithm.env,
        config=algorithm.config,
    )


def _over_generations(name: str, row: Float[Array, " n"]) -> Float[Array, ""]:
    if name == "fitness/best":
        return jnp.max(row)
    return (jnp.nanmean if name.startswith("curriculum/") else jnp.mean)(row)


def _check(
    strategy: Strategy,
    num_steps: int,
    num_generations: int,
    num_seeds: int,
    num_held_out: int,
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
    if common_keys not in ("all", "pairs", "none"):
        raise ValueError(f"evolve: common_keys must be 'all', 'pairs' or 'none'; got common_keys = {common_keys!r}.")
    if common_keys == "pairs" and not strategy.pairs:
        raise ValueError(
            f"evolve: common_keys = 'pairs' needs a strategy of antithetic pairs; {strategy.name} has none: "
            "take common_keys = 'all'."
        )


def _check_curriculum(
    curriculum: Curriculum, num_candidates: int, num_steps: int, common_keys: str, tasks: Any, lifetimes: Any
) -> None:
    if tasks is not None or lifetimes is not None:
        raise ValueError(
            "evolve: a curriculum chooses the learners' levels and lives; give tasks and lifetimes to the curriculum "
            "and leave them out here."
        )
    if common_keys != "pairs":
        raise ValueError(
            "evolve: a curriculum chooses one level for each antithetic pair: take common_keys = 'pairs'; "
            f"got common_keys = {common_keys!r}."
        )
    if (curriculum.num_levels, curriculum.num_steps) != (num_candidates // 2, num_steps):
        raise ValueError(
            f"evolve: the curriculum must have num_levels = {num_candidates // 2}, one for each antithetic pair, and "
            f"num_steps = {num_steps}; got num_levels = {curriculum.num_levels}, num_steps = {curriculum.num_steps}."
        )
