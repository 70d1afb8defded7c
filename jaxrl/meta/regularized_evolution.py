"""Regularized evolution (Real et al. 2019, arXiv:1802.01548): a population that loses its oldest member, not its worst.

It searches what has no gradient and no mean, such as programs of a loss. One step of the algorithm, with its shapes:

    propose        a parent from a tournament of T, mutated; or something new          [M]
    recognize      what computes the same as one trained before, or as one another     [M]
    train          fresh learners for the first C that are new, `num_steps` steps      [C, S]
    enter          in the place of the oldest: new ones, and known ones with their
                   old score                                                           [P]
    hold out       fresh learners for the best so far, on keys that never change       [H]

All of it is inside the compiled program. Since C learners train whatever is proposed, more is proposed than trained, so
that a duplicate costs a fingerprint and no training (Co-Reyes et al. 2021, arXiv:2101.03958, section 3.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree, UInt32

from jaxrl.evaluation import evaluate
from jaxrl.ops import expressions, trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.progress import not_finite
from jaxrl.types import Action, Algorithm, Key, Memory, Metrics, Observation, memoize

Fitness = Callable[[Any, Metrics], Float[Array, ""]]
"""`(state, metrics [num_steps]) -> fitness` of one learner after its training."""


class Genomes(NamedTuple):
    """What can be searched.

    Attributes:
      draw: `(key) -> genome`, a tree of arrays of fixed shapes.
      mutate: `(key, genome) -> genome`, a small change.
      fingerprint: `(genome) -> 64 bits` as uint32 [2], equal for genomes that need not be told apart.
      name: for messages.
    """

    draw: Callable[[Key], PyTree]
    mutate: Callable[[Key, PyTree], PyTree]
    fingerprint: Callable[[PyTree], UInt32[Array, "2"]]
    name: str


@memoize
def programs(num_nodes: int = 12, start: expressions.Expression | None = None) -> Genomes:
    """Losses as expression graphs (`jaxrl.ops.expressions`), for `hparams.head` of dqn with `values.graph`.

    Args:
      num_nodes: of each; the head must have as many.
      start: the first nodes of every program that is drawn, which mutations may change; None: from nothing.

    Raises:
      ValueError: `start` is no loss, or has `num_nodes` nodes or more.

    Example:
      >>> programs(12, expressions.TD).draw(jax.random.key(0)).operation.shape
      (12,)
    """
    first = None if start is None else expressions.program_of(start)
    num_given = 0 if first is None else first.operation.shape[0]
    if num_nodes <= num_given:
        raise ValueError(f"programs: num_nodes must be above those of start; got {num_nodes} and {num_given}.")
    return Genomes(
        lambda key: expressions.random_program(key, num_nodes, first),
        expressions.mutate,
        expressions.fingerprint,
        f"programs of {num_nodes}",
    )


@struct.dataclass
class Hyperparams:
    """Of the inner algorithm and of the search.

    Attributes:
      inner: the algorithm's; the leaf that is searched is replaced.
      mutation_probability: of a proposal; otherwise it is drawn anew.
    """

    inner: PyTree
    mutation_probability: Float[Array, ""]

    @property
    def env(self) -> PyTree:
        """Parameters of the environment."""
        return self.inner.env


@struct.dataclass
class State:
    """All that one step changes. A fitness that is not finite, or of parameters that are not, is -inf.

    Attributes:
      key: of the steps to come.
      key_held_out: of the held-out learners; it stays.
      genomes: the population, leaves [P, ...]; the oldest is number `num_entered` modulo P.
      fitness: of it, -inf where nothing has entered yet, [P].
      num_entered: so far.
      known: fingerprints of those trained last, [K, 2].
      known_fitness: of them, [K].
      num_trained: genomes that have been trained.
      best: the best genome of all.
      best_fitness: of it.
      agent: the first of the learners that `best` trained in the last held-out evaluation.
    """

    key: Key
    key_held_out: Key
    genomes: PyTree
    fitness: Float[Array, " P"]
    num_entered: Int[Array, ""]
    known: UInt32[Array, "K 2"]
    known_fitness: Float[Array, " K"]
    num_trained: Int[Array, ""]
    best: PyTree
    best_fitness: Float[Array, ""]
    agent: PyTree

    @property
    def params(self) -> PyTree:
        """The agent's parameters, of algorithms that have `params`."""
        return self.agent.params

    @property
    def actor(self) -> PyTree:
        """The agent's environments, of algorithms that have an `actor`."""
        return self.agent.actor


@memoize
def regularized_evolution(
    algorithm: Algorithm,
    genomes: Genomes,
    leaf: str = "head",
    *,
    num_steps: int,
    population_size: int = 300,
    tournament_size: int = 25,
    num_children: int = 8,
    num_proposals: int | None = None,
    num_known: int = 4096,
    num_seeds: int = 1,
    num_held_out: int = 4,
    fitness: Literal["evaluation", "training"] | Fitness = "training",
    num_episodes: int = 16,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Evolves a leaf of an algorithm's hyperparameters by tournaments, mutation and age.

    - Until P members have entered, proposals are drawn, not mutated.
    - All learners of a step have the same keys, so they differ by their genome alone.
    - Where the algorithm has a `horizon`, it is set to the learner's life unless it is given.

    Args:
      algorithm: the inner learner.
      genomes: what is searched.
      leaf: the field of its hyperparameters that is replaced, a record as `genomes` makes it.
      num_steps: of a learner's life.
      population_size: P, 300 in the paper.
      tournament_size: T, 25 in the paper.
      num_children: C, genomes trained in a step.
      num_proposals: M; None: 4 C, or P if that is less.
      num_known: K, genomes of which the fingerprint is remembered.
      num_seeds: S, learners for each genome.
      num_held_out: H.
      fitness: the mean return of the episodes that ended in training, as in the paper; or of `evaluate` after it; or a
        function. It is maximized.
      num_episodes: of `evaluate`.
      num_devices: that learners are cut over.
      chunk: learners that run together on a device; None: all.

    Returns:
      The algorithm. `hyperparams(**changes)` takes the inner algorithm's changes and `mutation_probability`. `act`
      plays with the learner that the best genome trained.

      Metrics: `fitness/best` so far, `fitness/mean` of the population where finite, `fitness/num_not_finite` of the
      genomes trained; `search/num_new`, genomes trained that were new, and `search/share_known`, proposals that were
      not; `held_out/fitness`; `episode/return_sum` and `episode/count` of all training, if the algorithm has them.

    Raises:
      ValueError: the leaf is no field, a count is not positive, or C ≤ M ≤ P, T ≤ P does not hold.

    Example:
      >>> import jaxrl
      >>> from jaxrl import values
      >>> from jaxrl.algorithms.dqn import dqn
      >>> agent = dqn(jaxrl.make_env("probe/Credit"), head=values.graph(expressions.TD, num_nodes=8))
      >>> search = regularized_evolution(agent, programs(8), num_steps=2, population_size=32)
      >>> search.name, search.hyperparams().mutation_probability.item() < 1.0
      ('regularized_evolution(dqn, programs of 8)', True)
    """
    proposals = min(4 * num_children, population_size) if num_proposals is None else num_proposals
    _check(
        algorithm,
        leaf,
        num_steps=num_steps,
        num_children=num_children,
        num_proposals=proposals,
        population_size=population_size,
        tournament_size=tournament_size,
        num_known=num_known,
        num_seeds=num_seeds,
        num_held_out=num_held_out,
    )
    check_split(num_children * num_seeds, num_devices, chunk)
    play = evaluate(algorithm, num_episodes) if fitness == "evaluation" else None

    def hyperparams(**changes: Any) -> Hyperparams:
        probability = changes.pop("mutation_probability", 0.95)
        inner = algorithm.hyperparams(**changes)
        if hasattr(inner, "horizon") and "horizon" not in changes:
            inner = trees.replace_leaf(inner, "horizon", jnp.float32(num_steps * algorithm.env_steps))
        return Hyperparams(inner, jnp.asarray(probability, jnp.float32))

    def learner(key: Key, genome: PyTree, inner: PyTree) -> tuple[Any, Array, Metrics]:
        """State at the end of a life, fitness, and sums over its episodes."""
        key_train, key_play = jax.random.split(key)
        hparams = dataclasses.replace(inner, **{leaf: genome})
        body = lambda state, _: algorithm.step(state, hparams)
        state, metrics = jax.lax.scan(body, algorithm.init(key_train, hparams), None, num_steps)
        episodes = {name: jnp.sum(metrics[name]) for name in _EPISODES if name in metrics}
        if play is not None:
            score = play(key_play, state, hparams.env).mean_return
        elif fitness == "training":
            score = episodes[_EPISODES[0]] / episodes[_EPISODES[1]]
        else:
            score = fitness(state, metrics)  # type: ignore[operator]
        sound = jnp.isfinite(score) & ~not_finite(state, None)
        return state, jnp.where(sound, score, -jnp.inf).astype(jnp.float32), episodes

    def of_lane(lane: Array, keys: Key, children: PyTree, inner: PyTree) -> tuple[Array, Metrics]:
        genome = jax.tree.map(lambda x: x[lane // num_seeds], children)
        return learner(keys[lane % num_seeds], genome, inner)[1:]

    train_all = over_members(of_lane, (0, None, None, None), num_devices, chunk)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_held_out, key_genome, key_agent = jax.random.split(key, 4)
        genome = genomes.draw(key_genome)
        inner = dataclasses.replace(hparams.inner, **{leaf: genome})
        return State(
            key=key,
            key_held_out=key_held_out,
            genomes=jax.tree.map(lambda x: jnp.stack([x] * population_size), genome),
            fitness=jnp.full(population_size, -jnp.inf, jnp.float32),
            num_entered=jnp.int32(0),
            known=jnp.zeros((num_known, 2), jnp.uint32),
            known_fitness=jnp.full(num_known, -jnp.inf, jnp.float32),
            num_trained=jnp.int32(0),
            best=genome,
            best_fitness=jnp.float32(-jnp.inf),
            agent=algorithm.init(key_agent, inner),
        )

    def propose(key: Key, state: State, hparams: Hyperparams) -> PyTree:
        key_tournament, key_mutate, key_draw, key_which = jax.random.split(key, 4)
        members = jax.random.permutation(key_tournament, population_size)[:tournament_size]
        parent = members[jnp.argmax(state.fitness[members])]
        mutant = genomes.mutate(key_mutate, jax.tree.map(lambda x: x[parent], state.genomes))
        is_mutant = jax.random.uniform(key_which) < hparams.mutation_probability
        is_mutant &= state.num_entered >= population_size
        return trees.where(is_mutant, mutant, genomes.draw(key_draw))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_propose, key_train = jax.random.split(state.key, 3)

        # --- Propose and recognize -------------------------------------------------------------------------------
        proposed = jax.vmap(propose, (0, None, None))(jax.random.split(key_propose, proposals), state, hparams)
        prints = jax.vmap(genomes.fingerprint)(proposed)
        met = jnp.all(prints[:, None] == state.known[None], axis=-1)
        met &= (jnp.arange(num_known) < state.num_trained)[None]
        is_known = jnp.any(met, axis=-1)
        twin = jnp.argmax(jnp.all(prints[:, None] == prints[None], axis=-1), axis=-1)
        is_new = ~is_known & (twin == jnp.arange(proposals))
        rank = jnp.cumsum(is_new) - 1

        # --- Train -----------------------------------------------------------------------------------------------
        # New ones first; if there are not enough, some known ones train once more for nothing.
        chosen = jnp.argsort(~is_new, stable=True)[:num_children]
        children = jax.tree.map(lambda x: x[chosen], proposed)
        keys = jax.random.split(key_train, num_seeds)
        scores, episodes = train_all(jnp.arange(num_children * num_seeds), keys, children, hparams.inner)
        score = jnp.mean(scores.reshape(num_children, num_seeds), axis=1)
        is_child = is_new[chosen]

        # --- Enter -----------------------------------------------------------------------------------------------
        is_trained = is_new[twin] & (rank[twin] < num_children)
        of_twin = score[jnp.clip(rank[twin], 0, num_children - 1)]
        value = jnp.where(is_known, state.known_fitness[jnp.argmax(met, axis=-1)], of_twin)
        enters = is_known | is_trained
        place = (state.num_entered + jnp.cumsum(enters) - 1) % population_size
        place = jnp.where(enters, place, population_size)
        row = jnp.where(is_child, (state.num_trained + jnp.arange(num_children)) % num_known, num_known)
        leader = jnp.argmax(jnp.where(is_child, score, -jnp.inf))
        is_better = is_child[leader] & (score[leader] > state.best_fitness)
        best = trees.where(is_better, jax.tree.map(lambda x: x[leader], children), state.best)

        # --- Held out --------------------------------------------------------------------------------------------
        keys = jax.random.split(state.key_held_out, num_held_out)
        agents, held_out, _ = jax.vmap(learner, (0, None, None))(keys, best, hparams.inner)
        population = state.fitness.at[place].set(value, mode="drop")
        sound = jnp.isfinite(population)
        metrics = {
            "fitness/best": jnp.where(is_better, score[leader], state.best_fitness),
            "fitness/mean": jnp.sum(jnp.where(sound, population, 0.0)) / jnp.sum(sound),
            "fitness/num_not_finite": jnp.sum(is_child & ~jnp.isfinite(score)).astype(jnp.float32),
            "search/num_new": jnp.sum(is_child).astype(jnp.float32),
            "search/share_known": 1.0 - jnp.mean(is_new.astype(jnp.float32)),
            "held_out/fitness": jnp.mean(held_out),
        } | {name: jnp.sum(sums) for name, sums in episodes.items()}
        return State(
            key=key,
            key_held_out=state.key_held_out,
            genomes=jax.tree.map(lambda x, new: x.at[place].set(new, mode="drop"), state.genomes, proposed),
            fitness=population,
            num_entered=state.num_entered + jnp.sum(enters, dtype=jnp.int32),
            known=state.known.at[row].set(prints[chosen], mode="drop"),
            known_fitness=state.known_fitness.at[row].set(score, mode="drop"),
            num_trained=state.num_trained + jnp.sum(is_child, dtype=jnp.int32),
            best=best,
            best_fitness=metrics["fitness/best"],
            agent=jax.tree.map(lambda x: x[0], agents),
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.agent, memory, obs, key)

    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=algorithm.initial_memory,
        env_steps=(num_children * num_seeds + num_held_out) * num_steps * algorithm.env_steps,
        name=f"regularized_evolution({algorithm.name}, {genomes.name})",
        env=algorithm.env,
        config=algorithm.config,
    )


_EPISODES = ("episode/return_sum", "episode/count")


def _check(algorithm: Algorithm, leaf: str, **counts: int) -> None:
    fields = [field.name for field in dataclasses.fields(algorithm.hyperparams())]
    if leaf not in fields:
        raise ValueError(f"regularized_evolution: leaf must be one of {', '.join(fields)}; got leaf = {leaf!r}.")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"regularized_evolution: {name} must be at least 1; got {name} = {value}.")
    children, most = counts["num_children"], counts["population_size"]
    if not (children <= counts["num_proposals"] <= most and counts["tournament_size"] <= most):
        raise ValueError(
            "regularized_evolution: needs num_children <= num_proposals <= population_size and tournament_size <= "
            f"population_size; got {children}, {counts['num_proposals']}, {most} and {counts['tournament_size']}."
        )
