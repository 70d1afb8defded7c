"""Replay buffers: rings over time, sampled in O(batch), uniformly or by priority.

A buffer holds the last L rows of B environments, leaves [L, B, ...]; row t+1 follows row t in time, as long as no
pointer lies between them. What was stored keeps its dtype, so that images of uint8 stay small.

    add       T rows are written where the pointer is, and the pointer moves on             O(T B)
    sample    N entries (row, environment), each the start of a *window* of n rows          O(N), O(N log L) by priority
    windows   the rows from there on, leaves [n, N, ...]                                    O(n N)
    n_step    the transition over n steps from there on                                     O(n N)

An entry may be drawn if its window is whole: n rows written one after the other, of which none is newer than the
pointer. So a sequence of n rows and an n-step return are the same draw, and single transitions are n = 1.

Nothing is copied inside of a jitted program that owns the state (`jaxrl.advance` donates it): writing is in place.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from jaxrl import validation
from jaxrl.ops import sums
from jaxrl.types import Action, Observation, memoize

_LEAST_PRIORITY = 1e-6
"""Added to every priority, so that no entry is never drawn again (Schaul et al. 2016, section 3.3)."""


@struct.dataclass
class Experience:
    """What an off-policy algorithm stores of one step; in a buffer leaves [L, B, ...].

    Attributes:
      obs: observation acted on.
      action: action taken.
      reward: raw reward.
      terminated: the successor is terminal: it has no value.
      truncated: the episode was cut after this step: the successor has a value.
      next_obs: the true successor observation, never that of the next episode.
      extras: whatever else an algorithm stores.
    """

    obs: Observation
    action: Action
    reward: Float[Array, "..."]
    terminated: Bool[Array, "..."]
    truncated: Bool[Array, "..."]
    next_obs: Observation
    extras: Any = ()


@struct.dataclass
class Priorities:
    """Priorities to the power of α, with the sums that make drawing cheap.

    Attributes:
      levels: leaves first: entry i is [i // 16, i % 16]; the entry i of every further level is the sum of row i of the
        level before. The last has one row.
      greatest: the greatest priority given so far, before the power.
    """

    levels: tuple[Float[Array, "_ 16"], ...]
    greatest: Float[Array, ""]


@struct.dataclass
class BufferState:
    """What a buffer holds.

    Attributes:
      items: leaves [L, B, ...].
      pointer: the row that is written next.
      filled: rows that have been written, at most L.
      priorities: see `Priorities`; () if uniform.
    """

    items: PyTree
    pointer: Int[Array, ""]
    filled: Int[Array, ""]
    priorities: PyTree


@struct.dataclass
class Sample:
    """Entries drawn from a buffer.

    Attributes:
      index: row · B + environment of the first row of each window.
      weight: importance of each, 1 if uniform.
    """

    index: Int[Array, " N"]
    weight: Float[Array, " N"]


@struct.dataclass
class NStep:
    """Transitions over at most n steps; N of them.

    Attributes:
      obs: s_t.
      action: a_t.
      reward: Σ_{k<h} γ^k r_{t+k}.
      discount: γ^h, 0 if the last of the h steps terminated.
      next_obs: the successor of the last of them.
      length: h, from 1 to n.
      weight: importance of each, if they were drawn by priority; otherwise ().
    """

    obs: Observation
    action: Action
    reward: Float[Array, " N"]
    discount: Float[Array, " N"]
    next_obs: Observation
    length: Int[Array, " N"]
    weight: Float[Array, " N"] | tuple[()] = ()


@struct.dataclass
class Coefficients:
    """How much priorities count.

    Attributes:
      alpha: P(i) is proportional to the priority to this power; 0 is uniform.
      beta: power of the importance weights at the beginning.
      beta_end: the same at the end of the horizon.
    """

    alpha: Float[Array, ""]
    beta: Float[Array, ""]
    beta_end: Float[Array, ""]


class Buffer(NamedTuple):
    """A replay buffer as pure functions.

    Attributes:
      hyperparams: `() -> params`, coefficients that may be swept; () if uniform.
      init: `(item) -> state` for one item of one environment, of which only shapes and dtypes are read.
      add: `(params, state, rows [T, B, ...]) -> state`.
      noise: `(key, *axes) -> bits [*axes, N]`: the randomness of as many draws, to be made before a loop over them.
      sample: `(params, state, bits [N], progress) -> Sample`; `progress` from 0 to 1 anneals β. Some window must be
        whole.
      update: `(params, priorities, index [N], priority [N]) -> priorities` for entries that were drawn since the last
        `add`; does nothing if uniform. An entry given twice gets one of its priorities.
    """

    hyperparams: Callable[[], PyTree]
    init: Callable[[PyTree], Any]
    add: Callable[[PyTree, Any, PyTree], Any]
    noise: Callable[..., UInt32[Array, "*axes N"]]
    sample: Callable[[PyTree, Any, UInt32[Array, " N"], Float[Array, ""]], Sample]
    update: Callable[[PyTree, PyTree, Int[Array, " N"], Float[Array, " N"]], PyTree]


@memoize
def uniform(capacity: int, num_envs: int, batch_size: int, num_steps: int = 1) -> Buffer:
    """A buffer from which every whole window is drawn with equal probability, with replacement.

    Args:
      capacity: transitions held, L = capacity / num_envs rows; a multiple of `num_envs`.
      num_envs: B.
      batch_size: entries of one draw, N.
      num_steps: rows of a window, n.

    Returns:
      The buffer.

    Raises:
      ValueError: a count is not positive, the capacity is no multiple of `num_envs`, reaches 2^31, or has no room for
        a window. (`add`, when traced:) L is no multiple of the rows added.

    Example:
      >>> buffer = uniform(capacity=8, num_envs=2, batch_size=3)
      >>> state = buffer.add((), buffer.init({"x": jnp.float32(0.0)}), {"x": jnp.ones((4, 2))})
      >>> drawn = buffer.sample((), state, buffer.noise(jax.random.key(0)), 0.0)
      >>> windows(state.items, drawn.index, 1)["x"].tolist()
      [[1.0, 1.0, 1.0]]
    """
    num_rows = _validate("uniform", capacity, num_envs, batch_size, num_steps)

    def init(item: PyTree) -> BufferState:
        return _empty(item, num_rows, num_envs, ())

    def add(params: PyTree, state: BufferState, rows: PyTree) -> BufferState:
        return _write(state, rows)

    def sample(
        params: PyTree, state: BufferState, bits: UInt32[Array, " N"], progress: Float[Array, ""] | float
    ) -> Sample:
        return _sample_uniform(state, bits, num_steps)

    def update(params: PyTree, priorities: PyTree, index: Array, priority: Array) -> PyTree:
        return priorities

    return Buffer(tuple, init, add, _noise(batch_size), sample, update)


@memoize
def prioritized(
    capacity: int,
    num_envs: int,
    batch_size: int,
    num_steps: int = 1,
    alpha: float = 0.6,
    beta: float = 0.4,
    beta_end: float = 1.0,
) -> Buffer:
    """A buffer that draws by priority (Schaul et al. 2016, arXiv:1511.05952, the proportional variant).

        P(i) = p_i^α / Σ_j p_j^α                           eq. 1
        w_i  = (M P(i))^-β / max_k (M P(k))^-β             section 3.4, the maximum over the batch drawn

    with p = |priority| + 1e-6 and M entries. A batch is stratified: its k-th entry is drawn from the k-th of N equal
    shares of the sum of all p^α. What is new gets the greatest priority given so far, 1 before any; an entry of which
    the window is not whole, or was overwritten, has none and is not drawn. Sums are float32: a draw resolves
    2^-24 of the total.

    Args:
      capacity: as in `uniform`.
      num_envs: B.
      batch_size: N.
      num_steps: n.
      alpha: default of the coefficient α.
      beta: default of β at the beginning.
      beta_end: default of β at the end.

    Returns:
      The buffer; its hyperparameters are `Coefficients`.

    Raises:
      ValueError: as `uniform`.

    Example:
      >>> buffer = prioritized(capacity=8, num_envs=2, batch_size=2)
      >>> params = buffer.hyperparams()
      >>> state = buffer.add(params, buffer.init({"x": jnp.float32(0.0)}), {"x": jnp.ones((1, 2))})
      >>> drawn = buffer.sample(params, state, buffer.noise(jax.random.key(0)), 0.0)
      >>> drawn.index.tolist(), drawn.weight.tolist()
      ([0, 1], [1.0, 1.0])
    """
    num_rows = _validate("prioritized", capacity, num_envs, batch_size, num_steps)

    def hyperparams() -> Coefficients:
        return Coefficients(jnp.float32(alpha), jnp.float32(beta), jnp.float32(beta_end))

    def init(item: PyTree) -> BufferState:
        return _empty(item, num_rows, num_envs, Priorities(sums.empty(capacity), jnp.float32(1.0)))

    def add(params: Coefficients, state: BufferState, rows: PyTree) -> BufferState:
        num_new = jax.tree.leaves(rows)[0].shape[0]
        # The windows that the new rows complete, and then those that now reach beyond the newest row.
        first = state.pointer - (num_steps - 1)
        # Of a row that comes twice, since as many rows are added as there are, only the later one.
        offset = jnp.arange(max(0, num_new + num_steps - 1 - num_rows), num_new + num_steps - 1)
        whole = (offset < num_new) & (offset >= num_steps - 1 - state.filled)
        value = jnp.where(whole, state.priorities.greatest**params.alpha, 0.0)
        row = (first + offset) % num_rows
        index = row[:, None] * num_envs + jnp.arange(num_envs)[None]
        levels = sums.put(state.priorities.levels, index.ravel(), jnp.repeat(value, num_envs))
        priorities = dataclasses.replace(state.priorities, levels=levels)
        return dataclasses.replace(_write(state, rows), priorities=priorities)

    def sample(
        params: Coefficients, state: BufferState, bits: UInt32[Array, " N"], progress: Float[Array, ""] | float
    ) -> Sample:
        levels = state.priorities.levels
        # 24 bits are what a float32 holds.
        share = (jnp.arange(batch_size) + (bits >> 8) * jnp.float32(2.0**-24)) / batch_size
        index, value = sums.find(levels, share * jnp.sum(levels[-1]))
        beta = params.beta + (params.beta_end - params.beta) * progress
        return Sample(index, (jnp.min(value) / value) ** beta)

    def update(params: Coefficients, priorities: Priorities, index: Array, priority: Array) -> Priorities:
        priority = jnp.abs(priority) + _LEAST_PRIORITY
        levels = sums.put(priorities.levels, index, priority**params.alpha)
        return Priorities(levels, jnp.maximum(priorities.greatest, jnp.max(priority)))

    return Buffer(hyperparams, init, add, _noise(batch_size), sample, update)


def fixed(batch_size: int, num_steps: int, example: Experience) -> Buffer:
    """Uniform draws from a dataset, to which nothing is added.

    Its params are the dataset itself, from `jaxrl.datasets.dataset`; its state is (). So a dataset is a leaf of an
    agent's hyperparameters, and one program takes any of the same shapes.

    Args:
      batch_size: N.
      num_steps: n.
      example: one transition, arrays or `ShapeDtypeStruct`s; only shapes and dtypes matter.

    Returns:
      The buffer; its default params are a dataset without rows, which cannot be drawn from.

    Raises:
      ValueError: a count is not positive.

    Example:
      >>> rows = Experience(*(jnp.arange(4.0),) * 3, *(jnp.zeros(4, bool),) * 2, jnp.arange(4.0))
      >>> buffer = fixed(2, 1, jax.tree.map(lambda x: x[0], rows))
      >>> data = buffer.hyperparams().replace(items=jax.tree.map(lambda x: x[:, None], rows), filled=jnp.int32(4))
      >>> drawn = buffer.sample(data, (), buffer.noise(jax.random.key(0)), 0.0)
      >>> windows(data.items, drawn.index, 1).reward.shape
      (1, 2)
    """
    validation.count("fixed", "batch_size", batch_size)
    validation.count("fixed", "num_steps", num_steps)

    def sample(params: BufferState, state: PyTree, bits: Array, progress: Float[Array, ""] | float) -> Sample:
        return _sample_uniform(params, bits, num_steps)

    def same(params: PyTree, state: PyTree, *unused: Any) -> PyTree:
        return state

    return Buffer(lambda: _empty(example, 0, 1, ()), lambda item: (), same, _noise(batch_size), sample, same)


def extend(buffer: Buffer, params: PyTree, state: Any, rows: PyTree) -> Any:
    """Adds any number of rows, in the largest parts of which whole ones fill the ring; the oldest are overwritten.

    Args:
      buffer: the buffer.
      params: its coefficients.
      state: before.
      rows: leaves [T, B, ...].

    Returns:
      The state after all rows.

    >>> buffer = uniform(capacity=6, num_envs=1, batch_size=1)
    >>> state = extend(buffer, (), buffer.init({"x": jnp.int32(0)}), {"x": jnp.arange(8)[:, None]})
    >>> state.items["x"].ravel().tolist(), int(state.pointer)
    ([6, 7, 2, 3, 4, 5], 2)
    """
    num_rows, num_new = (jax.tree.leaves(tree)[0].shape[0] for tree in (state.items, rows))
    size = math.gcd(num_rows, num_new)
    if size == num_new:
        return buffer.add(params, state, rows)
    parts = jax.tree.map(lambda x: x.reshape((num_new // size, size, *x.shape[1:])), rows)
    return jax.lax.scan(lambda state, part: (buffer.add(params, state, part), None), state, parts)[0]


def check_rows(owner: str, config: Any, window: int) -> None:
    """Checks that no rows are split at a buffer's end, and that there is something to draw after the warm-up.

    Args:
      owner: the algorithm, for messages.
      config: with capacity, num_envs, num_steps and num_warmup_steps.
      window: rows of what is drawn.

    Raises:
      ValueError: one of these does not hold.
    """
    step, unit = config.num_steps, config.num_envs * config.num_steps
    if config.capacity % unit:
        raise ValueError(
            f"{owner}: capacity must be a multiple of num_envs · num_steps, so that no rows are split at the buffer's "
            f"end; got capacity = {config.capacity}, num_envs = {config.num_envs}, num_steps = {step}: try "
            f"capacity = {max(1, config.capacity // unit) * unit}."
        )
    if config.num_warmup_steps % step or config.num_warmup_steps < window:
        raise ValueError(
            f"{owner}: num_warmup_steps must be a multiple of num_steps and at least the rows that are drawn at once, "
            f"so that there is something to draw; got num_warmup_steps = {config.num_warmup_steps}, "
            f"num_steps = {step} and windows of {window} rows: try num_warmup_steps = "
            f"{max(-(-window // step), config.num_warmup_steps // step) * step}."
        )


def windows(items: PyTree, index: Int[Array, " N"], num_steps: int) -> PyTree:
    """The n rows that begin at each entry.

    Args:
      items: of a `BufferState`, leaves [L, B, ...].
      index: from `Sample`.
      num_steps: n, at most that of the buffer.

    Returns:
      Leaves [n, N, ...], in the order of time.
    """
    num_rows, num_envs = jax.tree.leaves(items)[0].shape[:2]
    row, column = index // num_envs, index % num_envs
    flat = ((row[None] + jnp.arange(num_steps)[:, None]) % num_rows) * num_envs + column[None]
    # By one index: with two XLA merges the write before into the read on a CPU, and copies whole arrays for it.
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:]))[flat], items)


def n_step(items: Experience, index: Int[Array, " N"], num_steps: int, gamma: Float[Array, ""]) -> NStep:
    """The transition over n steps from each entry, shorter where its episode ends before.

        R = Σ_{k<h} γ^k r_{t+k},   discount = γ^h (1 - terminated_{t+h-1}),   s' = the successor of step t+h-1,

    where h is the number of steps up to the first at which the episode ended, at most n. A truncation cuts the sum too,
    but is bootstrapped from: its successor is the true one.

    Source: Sutton 1988; with deep Q-learning Hessel et al. 2017, arXiv:1710.02298, section 3.

    Args:
      items: of a `BufferState`.
      index: from `Sample`.
      num_steps: n, at most that of the buffer.
      gamma: γ.

    Returns:
      The transitions. Only of rewards and flags are all n rows read.
    """
    num_rows, num_envs = items.reward.shape
    reward, terminated, truncated = windows((items.reward, items.terminated, items.truncated), index, num_steps)
    ended = terminated | truncated
    # Whether the episode has not ended before each row.
    running = jnp.cumsum(ended, axis=0) - ended == 0
    powers = gamma ** jnp.arange(num_steps, dtype=jnp.float32)
    length = jnp.sum(running, axis=0)
    total = jnp.sum(jnp.where(running, powers[:, None] * reward, 0.0), axis=0)
    # Of the steps that count only the last can have terminated.
    terminal = jnp.any(terminated & running, axis=0)
    last = ((index // num_envs + length - 1) % num_rows) * num_envs + index % num_envs
    obs, action = windows((items.obs, items.action), index, 1)
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    return NStep(
        obs=one(obs),
        action=one(action),
        reward=total,
        discount=jnp.where(terminal, 0.0, gamma ** length.astype(jnp.float32)),
        next_obs=one(windows(items.next_obs, last, 1)),
        length=length,
    )


def _validate(owner: str, capacity: int, num_envs: int, batch_size: int, num_steps: int) -> int:
    """Checks sizes; returns the number of rows."""
    given = {"capacity": capacity, "num_envs": num_envs, "batch_size": batch_size, "num_steps": num_steps}
    for name, value in given.items():
        validation.count(owner, name, value)
    if capacity % num_envs or capacity >= 2**31 or capacity // num_envs < num_steps:
        raise ValueError(
            f"{owner}: capacity must be a multiple of num_envs below 2^31 with at least num_steps rows; got "
            f"capacity = {capacity}, num_envs = {num_envs}, num_steps = {num_steps}: "
            f"try capacity = {max(capacity // num_envs, num_steps) * num_envs}."
        )
    return capacity // num_envs


def _empty(item: PyTree, num_rows: int, num_envs: int, priorities: PyTree) -> BufferState:
    zeros = jax.tree.map(lambda x: jnp.zeros((num_rows, num_envs, *x.shape), x.dtype), item)
    return BufferState(zeros, jnp.int32(0), jnp.int32(0), priorities)


def _sample_uniform(state: BufferState, bits: UInt32[Array, " N"], num_steps: int) -> Sample:
    """Entries of whole windows, all as likely."""
    num_rows, num_envs = jax.tree.leaves(state.items)[0].shape[:2]
    draw = _below(bits, (state.filled - num_steps + 1) * num_envs)
    row = (state.pointer - state.filled + draw // num_envs) % num_rows
    return Sample(row * num_envs + draw % num_envs, jnp.ones(bits.shape, jnp.float32))


def _noise(batch_size: int) -> Callable[..., UInt32[Array, "*axes N"]]:
    return lambda key, *axes: jax.random.bits(key, (*axes, batch_size), jnp.uint32)


def _write(state: BufferState, rows: PyTree) -> BufferState:
    """Writes rows [T, B, ...] at the pointer."""
    num_rows = jax.tree.leaves(state.items)[0].shape[0]
    num_new = jax.tree.leaves(rows)[0].shape[0]
    if num_rows % num_new:
        raise ValueError(
            "The rows of a buffer must be a multiple of the rows added at once, so that none are split at its end; got "
            f"{num_rows} rows (capacity / num_envs) and {num_new} added. Change the capacity."
        )

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), state.pointer, axis=0)

    return dataclasses.replace(
        state,
        items=jax.tree.map(put, state.items, rows),
        pointer=(state.pointer + num_new) % num_rows,
        filled=jnp.minimum(state.filled + num_new, num_rows),
    )


def _below(bits: UInt32[Array, " N"], bound: Int[Array, ""]) -> Int[Array, " N"]:
    """⌊bits · bound / 2^32⌋, from 0 to bound - 1: the upper word of a product of two words, in halves of a word.

    A float32 has 2^23 uniform values, too few for a million entries.
    """
    bound = jnp.broadcast_to(bound.astype(jnp.uint32), bits.shape)
    high, low, bound_high, bound_low = bits >> 16, bits & 0xFFFF, bound >> 16, bound & 0xFFFF
    one = high * bound_low + (low * bound_low >> 16)
    other = low * bound_high + (one & 0xFFFF)
    return (high * bound_high + (one >> 16) + (other >> 16)).astype(jnp.int32)
