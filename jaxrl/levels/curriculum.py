"""Curricula: where the learners of an outer loop are sent, by what earlier ones made of the levels."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import validation
from jaxrl.levels import lives
from jaxrl.levels.buffer import Buffer, Transform, empty, insert, replay, rescore
from jaxrl.ops import trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.types import Algorithm, Curriculum, EnvParams, Key, Metrics, memoize


@struct.dataclass
class Regret:
    """Hyperparameters of `regret`.

    Attributes:
      antagonist: of the antagonist; its levels take the place of `env`, and its life that of a `horizon`.
      temperature: T of the replay; 0: the highest scores.
    """

    antagonist: PyTree
    temperature: Float[Array, ""]


@struct.dataclass
class State:
    """All that a generation changes.

    Attributes:
      key: of the draws to come.
      buffer: levels that learners have met; `score` is the regret, `reference` the antagonist's return.
    """

    key: Key
    buffer: Buffer


@struct.dataclass
class Tickets:
    """What `tell` needs of a draw; G levels, of which the last R are replayed.

    Attributes:
      key: of the state after the generation.
      key_antagonist: of the antagonists' lives.
      levels: leaves [G, ...].
      lifetimes: steps on each.
      slots: of the replayed ones.
      known: which of them the buffer held; the others are new, and will not be kept.
    """

    key: Key
    key_antagonist: Key
    levels: PyTree
    lifetimes: Int[Array, " G"]
    slots: Int[Array, " R"]
    known: Bool[Array, " R"]


@memoize
def regret(
    antagonist: Algorithm,
    tasks: lives.Tasks,
    *,
    num_levels: int,
    num_steps: int,
    lifetimes: lives.Lifetimes | None = None,
    size: int = 4000,
    p_replay: float = 0.5,
    transform: Transform = "rank",
    only_better: bool = False,
    fitness: Literal["evaluation", "training"] | lives.Fitness = "evaluation",
    num_episodes: int = 16,
    max_episode_steps: int | None = None,
    sampled: bool = False,
    normalize: lives.Normalize | None = None,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Curriculum:
    """Levels on which a learning rule falls furthest behind a written one (GROOVE).

    Jackson et al. 2023, arXiv:2310.02782, sections 3.2 and 3.3.

    The score of a level l with N steps of life is the algorithmic regret of the rule η:

        AR_η(l, N) = J(antagonist after N steps on l) - J(learner under η after N steps on l)

    Of the G levels of a generation, R = `p_replay` G are drawn from a buffer by their scores and the others are new.
    All are scored by this generation's learners; the new ones enter the buffer, in place of the lowest scores. J of the
    learner is the mean over all that met the level, those whose fitness is finite.

    - The antagonist knows nothing of η. It learns once on each level, when the level enters, and its J is kept there.
      So a generation trains G - R antagonists. That J is one noisy figure for as long as the level stays: a level on
      which the antagonist was lucky keeps a regret that is too high.
    - R is the same in each generation, where the paper throws a coin for each learner, so that shapes are fixed.
    - A replay that the buffer cannot serve yet, in the first generations, meets a new level that is not kept.

    Args:
      antagonist: learns on new levels, A2C in the paper.
      tasks: draws the environment's parameters.
      num_levels: G; for `jaxrl.evolve` the number of antithetic pairs.
      num_steps: as for `jaxrl.evolve`; the antagonist takes as many of its own steps, so give it rollouts of the same
        size.
      lifetimes: as for `jaxrl.evolve`; a life belongs to its level and is replayed with it.
      size: of the buffer.
      p_replay: share of levels that are replayed; `p_replay` G is a whole number.
      transform: of scores to probabilities; see `jaxrl.levels.buffer.replay`.
      only_better: whether a new level takes a full buffer's slot only if its regret is higher than what is there.
      fitness: J, as for `jaxrl.evolve`: give both the same, and likewise the next four.
      num_episodes: of an evaluation.
      max_episode_steps: as for `evaluate`.
      sampled: as for `evaluate`.
      normalize: as for `jaxrl.evolve`.
      num_devices: as for `jaxrl.evolve`.
      chunk: antagonists that run together on a device; None: all.

    Returns:
      The curriculum; its hyperparameters are a `Regret`, its state a `State`. Metrics, of one generation, means over
      finite values: `curriculum/score_new` and `curriculum/score_replayed` (NaN if there were none), the regret;
      `curriculum/reference`, the antagonist's J on new levels; `curriculum/score_buffer`, the mean of all scores;
      `curriculum/num_replayed` and `curriculum/num_active`, levels.

    Raises:
      ValueError: a count is not positive, `p_replay` G is not a whole number below G, the buffer does not hold the
        levels of a generation, the antagonist has no environment, or the transform or fitness is not known.

    Example:
      >>> import jaxrl
      >>> from jaxrl.envs import chains
      >>> agent = jaxrl.ppo(chains.make("Short"))
      >>> course = regret(agent, chains.levels("Short"), num_levels=4, num_steps=2, size=8)
      >>> hparams = course.hyperparams(antagonist=agent.hyperparams(learning_rate=0.1))
      >>> state = jax.eval_shape(course.init, jax.random.key(0), hparams)
      >>> levels, lifetimes, tickets = jax.eval_shape(course.draw, state, hparams)
      >>> state.buffer.score.shape, levels.length.shape, lifetimes.shape, tickets.slots.shape
      ((8,), (4,), (4,), (2,))
    """
    _check(num_levels, num_steps, size, p_replay, transform)
    num_replayed = round(p_replay * num_levels)
    num_new = num_levels - num_replayed
    check_split(num_new, num_devices, chunk)
    if antagonist.env is None:
        raise ValueError(f"regret: levels need an antagonist with an environment; {antagonist.name!r} has env = None.")
    score_of = lives.scorer("regret", antagonist, fitness, num_episodes, max_episode_steps, sampled, normalize)

    def hyperparams(**changes: Any) -> Regret:
        default = Regret(antagonist.hyperparams(), jnp.float32(0.0))
        return trees.with_changes(default, changes, {"temperature": (0.0, jnp.inf)})

    life = lives.learner(antagonist, num_steps, score_of)

    def outcome(key: Key, level: EnvParams, lifetime: Int[Array, ""], own: PyTree) -> Float[Array, ""]:
        own = lives.with_task(antagonist, own, None, num_steps)
        return life(key, {}, own, (level, None if lifetimes is None else lifetime))[1]

    outcomes = over_members(outcome, (0, 0, 0, None), num_devices, chunk)

    def init(key: Key, hparams: Regret) -> State:
        del hparams
        return State(key, empty(jax.eval_shape(tasks, key), size))

    def draw(state: State, hparams: Regret) -> tuple[EnvParams, Int[Array, " G"], Tickets]:
        key, key_antagonist, key_replay, key_tasks, key_lives = jax.random.split(state.key, 5)
        levels = jax.vmap(tasks)(jax.random.split(key_tasks, num_levels))
        steps = jnp.full(num_levels, num_steps, jnp.int32)
        if lifetimes is not None:
            drawn = jax.vmap(lifetimes)(jax.random.split(key_lives, num_levels))
            steps = jnp.clip(drawn, 1, num_steps).astype(jnp.int32)
        ids, known = replay(key_replay, state.buffer, num_replayed, transform, hparams.temperature)
        kept = jax.tree.map(lambda x: x[ids], (state.buffer.levels, state.buffer.lifetime))
        new = jax.tree.map(lambda x: x[num_new:], (levels, steps))
        levels, steps = jax.tree.map(lambda x, y: x.at[num_new:].set(y), (levels, steps), trees.where(known, kept, new))
        return levels, steps, Tickets(key, key_antagonist, levels, steps, ids, known)

    def tell(state: State, tickets: Tickets, fitness: Float[Array, " G"], hparams: Regret) -> tuple[State, Metrics]:
        keys = jax.random.split(tickets.key_antagonist, num_new)
        levels, steps = jax.tree.map(lambda x: x[:num_new], (tickets.levels, tickets.lifetimes))
        references = outcomes(keys, levels, steps, hparams.antagonist)
        score_new = references - fitness[:num_new]
        score_replayed = state.buffer.reference[tickets.slots] - fitness[num_new:]
        buffer = rescore(state.buffer, tickets.slots, score_replayed, tickets.known)
        buffer = insert(buffer, levels, steps, score_new, references, only_better)
        return State(tickets.key, buffer), {
            "curriculum/score_new": _mean(score_new),
            "curriculum/score_replayed": _mean(score_replayed, tickets.known),
            "curriculum/reference": _mean(references),
            "curriculum/score_buffer": _mean(buffer.score, buffer.active),
            "curriculum/num_replayed": jnp.sum(tickets.known).astype(jnp.float32),
            "curriculum/num_active": jnp.sum(buffer.active).astype(jnp.float32),
        }

    return Curriculum(
        init=init,
        draw=draw,
        tell=tell,
        hyperparams=hyperparams,
        tasks=tasks,
        lifetimes=lifetimes,
        num_levels=num_levels,
        num_steps=num_steps,
        env_steps=num_new * num_steps * antagonist.env_steps,
        name=f"regret({antagonist.name})",
    )


def _mean(values: Float[Array, " n"], among: Bool[Array, " n"] | bool = True) -> Float[Array, ""]:
    """Of the finite ones; NaN if there is none."""
    counted = jnp.isfinite(values) & among
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.sum(counted)


def _check(num_levels: int, num_steps: int, size: int, p_replay: float, transform: str) -> None:
    for name, value in {"num_levels": num_levels, "num_steps": num_steps, "size": size}.items():
        validation.count("regret", name, value)
    replayed = p_replay * num_levels
    if not (0 <= replayed < num_levels and abs(replayed - round(replayed)) < 1e-6):
        raise ValueError(
            "regret: p_replay times num_levels must be a whole number below num_levels, so that each generation meets "
            f"some new levels; got p_replay = {p_replay}, num_levels = {num_levels}."
        )
    if size < num_levels:
        raise ValueError(
            f"regret: the buffer must hold the levels of a generation; got size = {size}, num_levels = {num_levels}."
        )
    if transform not in get_args(Transform):
        raise ValueError(
            f"regret: transform must be one of {', '.join(get_args(Transform))}; got transform = {transform!r}."
        )
