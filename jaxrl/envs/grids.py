"""Grid worlds of objects, the tasks on which learning rules are learned, with their best returns known exactly.

Oh et al. (2020, arXiv:2007.08794, appendix A). The agent moves on a grid with walls; an object is collected by entering
its cell, pays its reward, ends the episode with one probability, and comes back with another in each later step:

    c' = the cell that the action leads to (up, down, left, right, stay), or c at the edge and before a wall
    r  = Σ_i e_i 1[c' = x_i] r_i,   terminated with probability 1 - Π_i (1 - e_i 1[c' = x_i] p_i)
    e_i' = 0 where it was just collected, 1 where it was there, otherwise 1 with probability q_i

A `Level` is the parameters of one such world: arrays of one greatest size, so that levels may be stacked and mapped.
`levels(name)` draws them; the default parameters are one such draw, with the longest episodes. The state (cell and
which objects are there) is seen as its number, so agents may be tables. The time limit is not seen: it truncates.

==========  ======  ============  ===========================================================
name        side    steps         objects, each (reward, p of the end, q of coming back)
==========  ======  ============  ===========================================================
Dense       11      500           2 (1, 0, .05), (-1, .5, .1), (-1, 0, .5)
Sparse      13      50            (1, 1, 0), (-1, 1, 0)
Long        11      1000          2 (1, 0, .01), 2 (-1, .5, 1)
Longer      9       2000          2 (1, .1, .01), 5 (-1, .8, 1); a wall with two gaps
LongDense   11      2000          4 (1, 0, .005); two walls that cross, with two gaps each
Small       4–6     20–100        1–3, drawn; 7 walls
Medium      6–8     100–250       2–4, drawn; 10 walls
Large       8–10    250–750       2–5, drawn; 15 walls
All         4–10    20–750        1–5, drawn; 15 walls
==========  ======  ============  ===========================================================

Of the first five only places are drawn, of the others everything: steps log-uniform, rewards uniform in [-1, 1], the
first in [0, 1], p log-uniform in [.01, 1], q in [.001, .1] (Jackson et al. 2023, whose code moves in five ways where
Oh et al. have nine). Walls are drawn on the greatest grid, so that a smaller level has fewer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, Key, memoize

__all__ = ["GridState", "Level", "Spec", "levels", "make", "names", "optimal_return", "optimal_values"]

Observe = Literal["index", "one_hot", "maps"]

# Up, down, left, right, stay.
_MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.int32)


@struct.dataclass
class Level:
    """Parameters of one world; C cells of the greatest grid, counted row by row, and K objects at most.

    Attributes:
      max_episode_steps: T, after which an episode is truncated.
      side: of the grid, at most √C.
      wall: cells that cannot be entered.
      start: the first cell.
      position: cell of each object; no two are the same.
      present: which of the objects there are; all of them are there when an episode begins.
      reward: paid for collecting.
      p_terminate: probability that collecting ends the episode.
      p_respawn: probability in each step that a collected object comes back.
    """

    max_episode_steps: Int[Array, ""]
    side: Int[Array, ""]
    wall: Bool[Array, " C"]
    start: Int[Array, ""]
    position: Int[Array, " K"]
    present: Bool[Array, " K"]
    reward: Float[Array, " K"]
    p_terminate: Float[Array, " K"]
    p_respawn: Float[Array, " K"]


@struct.dataclass
class GridState:
    """State of an episode.

    Attributes:
      time: steps since the reset.
      cell: where the agent is.
      exists: which objects are there.
    """

    time: Int[Array, ""]
    cell: Int[Array, ""]
    exists: Bool[Array, " K"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A distribution of levels.

    Attributes:
      side: least and greatest.
      steps: least and greatest length of an episode.
      num_objects: least and greatest number.
      objects: of each object (reward, probability of the end, probability of coming back), or None to draw them.
      num_walls: cells drawn as walls.
      walls: cells that always are walls, as (row, column).
    """

    side: tuple[int, int]
    steps: tuple[int, int]
    num_objects: tuple[int, int]
    objects: tuple[tuple[float, float, float], ...] | None = None
    num_walls: int = 0
    walls: tuple[tuple[int, int], ...] = ()

    @property
    def num_states(self) -> int:
        """Cells times sets of objects."""
        return self.side[1] ** 2 * 2 ** self.num_objects[1]


def _fixed(side: int, steps: int, objects: Any, walls: Any = ()) -> Spec:
    return Spec((side, side), (steps, steps), (len(objects), len(objects)), tuple(objects), walls=tuple(walls))


_GOOD = (1.0, 0.0, 0.05)
SPECS: dict[str, Spec] = {
    "Dense": _fixed(11, 500, (_GOOD, _GOOD, (-1.0, 0.5, 0.1), (-1.0, 0.0, 0.5))),
    "Sparse": _fixed(13, 50, ((1.0, 1.0, 0.0), (-1.0, 1.0, 0.0))),
    "Long": _fixed(11, 1000, 2 * ((1.0, 0.0, 0.01),) + 2 * ((-1.0, 0.5, 1.0),)),
    "Longer": _fixed(
        9,
        2000,
        2 * ((1.0, 0.1, 0.01),) + 5 * ((-1.0, 0.8, 1.0),),
        walls=((row, 4) for row in range(9) if row not in (1, 7)),
    ),
    "LongDense": _fixed(
        11,
        2000,
        4 * ((1.0, 0.0, 0.005),),
        walls=sorted(
            {(row, 5) for row in range(11) if row not in (0, 7)} | {(4, col) for col in range(11) if col not in (2, 8)}
        ),
    ),
    "Small": Spec((4, 6), (20, 100), (1, 3), num_walls=7),
    "Medium": Spec((6, 8), (100, 250), (2, 4), num_walls=10),
    "Large": Spec((8, 10), (250, 750), (2, 5), num_walls=15),
    "All": Spec((4, 10), (20, 750), (1, 5), num_walls=15),
}
"""The distributions by name."""


def names() -> tuple[str, ...]:
    """All distributions."""
    return tuple(SPECS)


def spec_of(name: str, **changes: Any) -> Spec:
    """A distribution by name, with other values of some fields.

    Raises:
      ValueError: a range is empty, there is not room for all objects and the agent, or the objects that are given are
        not as many as the greatest number.
      TypeError: the distribution does not have the field.

    Example:
      >>> spec_of("Small", side=(3, 3), num_walls=0).num_states
      72
    """
    spec = dataclasses.replace(SPECS[name], **changes)
    owner = f"grids/{name}"
    for field, least in (("side", 2), ("steps", 1), ("num_objects", 1)):
        low, high = getattr(spec, field)
        if not least <= low <= high:
            raise ValueError(
                f"{owner}: {field} must be (least, greatest) with {least} <= least <= greatest; "
                f"got {field} = {getattr(spec, field)}."
            )
    taken = spec.num_walls + len(spec.walls)
    # Of walls drawn on a greater grid only a share falls on a small one.
    certain = taken if spec.side[0] == spec.side[1] else 0
    if spec.num_walls < 0 or spec.side[0] ** 2 - certain < 1 + spec.num_objects[1]:
        raise ValueError(
            f"{owner}: the agent and {spec.num_objects[1]} objects must have cells of their own beside {taken} walls "
            f"on {spec.side[0]} x {spec.side[0]} cells; take fewer, or a greater side."
        )
    if spec.objects is not None and len(spec.objects) != spec.num_objects[1]:
        raise ValueError(
            f"{owner}: objects must be as many as the greatest number; got {len(spec.objects)} objects, "
            f"num_objects = {spec.num_objects}."
        )
    return spec


@memoize
def levels(name: str, **changes: Any) -> Callable[[Key], Level]:
    """How the levels of a distribution are drawn.

    Args:
      name: one of `names()`.
      **changes: fields of `Spec`.

    Returns:
      `(key) -> Level`, pure; equal arguments give the same function.

    Example:
      >>> batch = jax.vmap(levels("Sparse"))(jax.random.split(jax.random.key(0), 5))
      >>> batch.position.shape, bool((batch.position[:, 0] != batch.position[:, 1]).all())
      ((5, 2), True)
    """
    spec = spec_of(name, **changes)
    (low, high), num_objects = spec.side, spec.num_objects[1]
    rows, columns = np.divmod(np.arange(high * high), high)

    def draw(key: Key) -> Level:
        key_side, key_steps, key_count, key_objects, key_walls, key_places = jax.random.split(key, 6)
        side = jax.random.randint(key_side, (), low, high + 1)
        wall = _chosen(key_walls, jnp.ones(high * high, bool), spec.num_walls)
        if spec.walls:
            wall = wall.at[jnp.array([row * high + column for row, column in spec.walls])].set(True)
        free = (rows < side) & (columns < side) & ~wall
        places = jax.lax.top_k(jnp.where(free, jax.random.uniform(key_places, free.shape), -1.0), num_objects + 1)[1]
        reward, p_terminate, p_respawn = _objects(key_objects, spec)
        return Level(
            max_episode_steps=jnp.round(_log_uniform(key_steps, (), *spec.steps)).astype(jnp.int32),
            side=side,
            wall=wall,
            start=places[0],
            position=places[1:],
            present=jnp.arange(num_objects) < jax.random.randint(key_count, (), spec.num_objects[0], num_objects + 1),
            reward=reward,
            p_terminate=p_terminate,
            p_respawn=p_respawn,
        )

    return draw


@memoize
def make(name: str, observe: Observe = "index", **changes: Any) -> Env:
    """Makes the worlds of a distribution; which one it is, the parameters say.

    Args:
      name: one of `names()`.
      observe: `index`: the number of the state, cell + C Σ_i e_i 2^(K-1-i). `one_hot`: the same as a vector. `maps`:
        the cell, one-hot, and for each object its cell, one-hot, or zeros where it is not there, [C (1 + K)].
      **changes: fields of `Spec`.

    Returns:
      The environment. Its `max_episode_steps` is the greatest of the distribution.

    Raises:
      ValueError: an option is out of its range.
      TypeError: the distribution does not have the option.

    Example:
      >>> make("Sparse").observation_space, make("Sparse").max_episode_steps
      (Discrete(n=676), 50)
    """
    spec = spec_of(name, **changes)
    if observe not in get_args(Observe):
        raise ValueError(f"grids/{name}: observe must be one of {get_args(Observe)}; got observe = {observe!r}.")
    num_cells, num_objects = spec.side[1] ** 2, spec.num_objects[1]

    @functools.cache
    def default() -> Any:
        # Outside of any trace, and once.
        with jax.ensure_compile_time_eval():
            level = jax.jit(levels(name, **changes))(jax.random.key(0))
        return jax.tree.map(np.asarray, level.replace(max_episode_steps=np.int32(spec.steps[1])))

    def observation(state: GridState, params: Level) -> Array:
        if observe == "maps":
            where = jax.nn.one_hot(params.position, num_cells, dtype=jnp.float32) * state.exists[:, None]
            here = jax.nn.one_hot(state.cell, num_cells, dtype=jnp.float32)
            return jnp.concatenate([here, where.ravel()])
        index = _index(state.cell, state.exists, num_cells)
        return index if observe == "index" else jax.nn.one_hot(index, spec.num_states, dtype=jnp.float32)

    def reset(key: Key, params: Level) -> tuple[GridState, Array]:
        del key  # all chance is in the objects
        state = GridState(jnp.int32(0), params.start, params.present)
        return state, observation(state, params)

    def step(key: Key, state: GridState, action: Array, params: Level) -> tuple[GridState, EnvStep]:
        draws = jax.random.uniform(key, (num_objects + 1,))
        cell = _moved(state.cell, jnp.asarray(_MOVES)[action], params)
        collected = state.exists & (params.position == cell)
        back = draws[:-1] < params.p_respawn
        after = GridState(
            time=state.time + 1,
            cell=cell,
            exists=(state.exists | back) & ~collected & params.present,
        )
        return after, EnvStep(
            obs=observation(after, params),
            reward=jnp.sum(jnp.where(collected, params.reward, 0.0)),
            terminated=draws[-1] < 1.0 - jnp.prod(jnp.where(collected, 1.0 - params.p_terminate, 1.0)),
            truncated=after.time >= params.max_episode_steps,
        )

    size = {"index": None, "one_hot": spec.num_states, "maps": num_cells * (1 + num_objects)}[observe]
    return Env(
        name=f"grids/{name}",
        reset=reset,
        step=step,
        default_params=lambda: trees.as_arrays(default()),
        observation_space=spaces.Discrete(spec.num_states) if size is None else spaces.box(0.0, 1.0, (size,)),
        action_space=spaces.Discrete(len(_MOVES)),
        max_episode_steps=spec.steps[1],
    )


def optimal_values(level: Level) -> Float[Array, " S"]:
    """The greatest expected undiscounted return of an episode that begins in each state, by dynamic programming.

        V_0 = 0,   V_{k+1}(c, e) = max_a [ r(c', e) + (1 - p(c', e)) E V_k(c', e') ],   c' = c after a

    T steps of it, T being the level's time limit: the value of knowing the time, which no policy of the state alone
    can exceed.

    Args:
      level: one level; a batch is mapped with `jax.vmap`.

    Returns:
      V_T by the number of the state (`observe="index"`), S = C 2^K.
    """
    num_cells, num_objects = level.wall.shape[0], level.position.shape[0]
    cells = jnp.arange(num_cells)
    following = jax.vmap(lambda cell: jax.vmap(lambda move: _moved(cell, move, level))(jnp.asarray(_MOVES)))(cells)
    here = level.position[:, None] == cells[None]
    exists = jnp.stack(jnp.meshgrid(*[jnp.array([False, True])] * num_objects, indexing="ij"))
    collected = exists.reshape(num_objects, -1, 1) & here[:, None]
    column = lambda leaf: leaf[:, None, None]
    shape = (2,) * num_objects + (num_cells,)
    reward = jnp.sum(jnp.where(collected, column(level.reward), 0.0), axis=0).reshape(shape)
    goes_on = jnp.prod(jnp.where(collected, column(1.0 - level.p_terminate), 1.0), axis=0).reshape(shape)

    def backup(_: Array, value: Array) -> Array:
        # The expectation over the objects, one axis each, at the cell that was entered.
        for i in range(num_objects):
            absent, there = jnp.moveaxis(value, i, 0)
            rate = jnp.where(level.present[i], level.p_respawn[i], 0.0)
            kept = jnp.where(jnp.broadcast_to(here[i], there.shape), absent, there)
            value = jnp.stack([(1.0 - rate) * absent + rate * there, kept], axis=i)
        return jnp.max((reward + goes_on * value)[..., following], axis=-1)

    return jax.lax.fori_loop(0, level.max_episode_steps, backup, jnp.zeros(shape, jnp.float32)).ravel()


def optimal_return(level: Level) -> Float[Array, ""]:
    """The greatest expected return of an episode: `optimal_values` where it begins.

    Example:
      >>> level = make("Sparse").default_params()
      >>> round(float(optimal_return(level)), 4)  # the good object, without the bad one
      1.0
    """
    return optimal_values(level)[_index(level.start, level.present, level.wall.shape[0])]


def _index(cell: Array, exists: Array, num_cells: int) -> Int[Array, ""]:
    weight = 2 ** np.arange(exists.shape[0])[::-1].astype(np.int32)
    return (cell + num_cells * jnp.sum(jnp.where(exists, weight, 0))).astype(jnp.int32)


def _moved(cell: Array, move: Array, params: Level) -> Int[Array, ""]:
    width = round(params.wall.shape[0] ** 0.5)
    position = jnp.stack(jnp.divmod(cell, width)) + move
    row, column = jnp.clip(position, 0, params.side - 1)
    target = row * width + column
    return jnp.where(params.wall[target], cell, target).astype(jnp.int32)


def _chosen(key: Key, allowed: Array, num: int) -> Bool[Array, " C"]:
    """`num` of the allowed cells."""
    if num == 0:
        return jnp.zeros_like(allowed)
    return jnp.zeros_like(allowed).at[jax.lax.top_k(jax.random.uniform(key, allowed.shape), num)[1]].set(True)


def _objects(key: Key, spec: Spec) -> tuple[Array, Array, Array]:
    """Rewards, probabilities of the end and of coming back, each [K]."""
    if spec.objects is not None:
        reward, p_terminate, p_respawn = jnp.array(spec.objects, jnp.float32).T
        return reward, p_terminate, p_respawn
    key_reward, key_terminate, key_respawn = jax.random.split(key, 3)
    shape = (spec.num_objects[1],)
    reward = jax.random.uniform(key_reward, shape, minval=-1.0, maxval=1.0)
    reward = reward.at[0].set(jnp.abs(reward[0]))
    return reward, _log_uniform(key_terminate, shape, 0.01, 1.0), _log_uniform(key_respawn, shape, 0.001, 0.1)


def _log_uniform(key: Key, shape: tuple[int, ...], low: float, high: float) -> Array:
    return jnp.exp(jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high)))
