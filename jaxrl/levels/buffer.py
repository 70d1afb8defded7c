"""A buffer of levels as data: drawn from by score, and overwritten from the lowest score up.

All functions are pure. Each of them looks at the whole buffer once, however many levels it moves; the sorts that it
needs are one a call.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl.ops import trees
from jaxrl.types import Key

Transform = Literal["rank", "proportional"]


@struct.dataclass
class Buffer:
    """L slots.

    Attributes:
      levels: parameters of the environment, leaves [L, ...].
      lifetime: of the learners on each, in their steps.
      score: as it was last told; higher is replayed more.
      reference: what stays of a level as long as it is there, such as another learner's return on it.
      active: which slots hold a level; of the others nothing is read.
    """

    levels: PyTree
    lifetime: Int[Array, " L"]
    score: Float[Array, " L"]
    reference: Float[Array, " L"]
    active: Bool[Array, " L"]

    @property
    def size(self) -> int:
        """L."""
        return self.active.shape[0]


def empty(level_like: PyTree, size: int) -> Buffer:
    """A buffer without levels.

    Args:
      level_like: one level, arrays or `jax.ShapeDtypeStruct`s.
      size: L.

    Example:
      >>> empty({"side": jnp.int32(4), "wall": jnp.zeros(9, bool)}, 5).levels["wall"].shape
      (5, 9)
    """
    return Buffer(
        levels=jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), level_like),
        lifetime=jnp.zeros(size, jnp.int32),
        score=jnp.zeros(size, jnp.float32),
        reference=jnp.zeros(size, jnp.float32),
        active=jnp.zeros(size, bool),
    )


def insert(
    buffer: Buffer,
    levels: PyTree,
    lifetimes: Int[Array, " n"],
    scores: Float[Array, " n"],
    references: Float[Array, " n"],
    only_better: bool = False,
) -> Buffer:
    """Puts levels into inactive slots, then into those of the lowest scores.

    What is put in never drives out something else that is put in by the same call. A level whose score or reference is
    not finite stays out.

    Args:
      buffer: L slots.
      levels: n of them, leaves [n, ...].
      lifetimes: theirs.
      scores: theirs.
      references: theirs.
      only_better: whether a level takes an active slot only if its score is higher than that of the slot; the best of
        the new ones meets the worst of the old ones.

    Raises:
      ValueError: n is greater than L.

    Example:
      >>> put = jax.jit(lambda buffer, x: insert(buffer, x, jnp.ones(2, jnp.int32), x, x))
      >>> put(put(empty(jnp.float32(0), 3), jnp.array([5.0, 1.0])), jnp.array([2.0, 3.0])).score.tolist()
      [5.0, 2.0, 3.0]
    """
    num = scores.shape[0]
    if num > buffer.size:
        raise ValueError(f"insert: {num} levels do not go into a buffer of {buffer.size}.")
    sound = jnp.isfinite(scores) & jnp.isfinite(references)
    # Inactive slots first, then from the lowest score up; what is put in, from the highest score down.
    slots = jax.lax.top_k(jnp.where(buffer.active, -buffer.score, jnp.inf), num)[1]
    order = jnp.argsort(jnp.where(sound, -scores, jnp.inf))
    enters = sound[order]
    if only_better:
        enters &= ~buffer.active[slots] | (scores[order] > buffer.score[slots])
    new = Buffer(levels, lifetimes.astype(jnp.int32), scores, references, jnp.ones(num, bool))
    new = jax.tree.map(lambda x: x[order], new)
    old = jax.tree.map(lambda x: x[slots], buffer)
    return jax.tree.map(lambda x, rows: x.at[slots].set(rows), buffer, trees.where(enters, new, old))


def replay(
    key: Key,
    buffer: Buffer,
    num: int,
    transform: Transform = "rank",
    temperature: Float[Array, ""] | float = 0.0,
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Draws slots without replacement, with probabilities that grow with the score.

        rank           p_i ∝ (rank of i from 1, the highest score)^(-1 / T)     (Jiang et al. 2021, arXiv:2010.03934)
        proportional   p_i ∝ exp(score_i / T)

    At T = 0 both are the highest scores themselves. The draw is that of the largest log p_i + Gumbel noise, which has
    no sum that could overflow.

    Args:
      key: of the draw.
      buffer: L slots.
      num: n, at most L.
      transform: from scores to probabilities.
      temperature: T.

    Returns:
      The slots, and which of them are active: where there are fewer than n, those that are not come last.

    Example:
      >>> scores, active = jnp.array([1.0, 7.0, 3.0, 9.0]), jnp.array([True, True, True, False])
      >>> buffer = empty(jnp.float32(0), 4).replace(score=scores, active=active)
      >>> slots, known = jax.jit(replay, static_argnums=2)(jax.random.key(0), buffer, 4)
      >>> slots.tolist(), known.tolist()
      ([1, 2, 0, 3], [True, True, True, False])
    """
    preference = buffer.score
    if transform == "rank":
        order = jnp.argsort(jnp.where(buffer.active, -buffer.score, jnp.inf))
        rank = jnp.zeros(buffer.size).at[order].set(jnp.arange(1.0, buffer.size + 1.0))
        preference = -jnp.log(rank)
    noisy = preference + temperature * jax.random.gumbel(key, (buffer.size,))
    slots = jax.lax.top_k(jnp.where(buffer.active, noisy, -jnp.inf), num)[1]
    return slots, buffer.active[slots]


def rescore(
    buffer: Buffer, slots: Int[Array, " n"], scores: Float[Array, " n"], known: Bool[Array, " n"] | None = None
) -> Buffer:
    """Replaces the scores of some slots; where one is not finite, or the slot is inactive, the old one stays.

    Args:
      buffer: L slots.
      slots: n of them, no two the same.
      scores: theirs.
      known: of which of them a score is told at all; None: of all.

    Example:
      >>> buffer = empty(jnp.float32(0), 3).replace(active=jnp.array([True, True, False]))
      >>> jax.jit(rescore)(buffer, jnp.array([1, 2, 0]), jnp.array([9.0, 8.0, jnp.nan])).score.tolist()
      [0.0, 9.0, 0.0]
    """
    told = jnp.isfinite(scores) & buffer.active[slots]
    if known is not None:
        told &= known
    score = buffer.score.at[slots].set(jnp.where(told, scores, buffer.score[slots]))
    return dataclasses.replace(buffer, score=score)
