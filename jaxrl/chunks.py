"""Chunks: S actions in a row. Those that replay has, and those that were meant when they were chosen.

An agent that chooses a chunk at every step has at each time up to S opinions of what to do now: the first action of the
chunk chosen now, the second of the one before, and so on. `blend` takes their mean.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl.buffers import Experience, windows

# Of m j in `blend`, so that weights and their sums stay finite.
_MOST_GAIN = 40.0


@struct.dataclass
class Plans:
    """What chunks chosen so far say of this step and the S - 1 after it; leading axes [*batch].

    Attributes:
      total: sum of the actions meant for each step, by their weights.
      weight: sum of these weights; 0 where nothing is meant yet.
    """

    total: Float[Array, "*batch S A"]
    weight: Float[Array, "*batch S"]


def no_plans(length: int, size: int, *batch: int) -> Plans:
    """At the start of an episode.

    Args:
      length: actions of a chunk, S.
      size: entries of an action, A.
      *batch: leading axes.
    """
    return Plans(jnp.zeros((*batch, length, size), jnp.float32), jnp.zeros((*batch, length), jnp.float32))


def blend(
    plans: Plans, chunk: Float[Array, "*batch S A"], gain: Float[Array, ""]
) -> tuple[Float[Array, "*batch A"], Plans]:
    """The action that this chunk and the older ones mean for now, and what they mean for later.

        a_t = Σ_j w_j c_{t-j, j} / Σ_j w_j,   w_j = exp(m j),   c_{t-j, j} the entry j of the chunk from j steps ago

    The longer ago it was chosen the more it weighs, as in the authors' codes of ACT (Zhao et al. 2023,
    arXiv:2304.13705) and CQN-AS (younggyoseo/CQN-AS), there written exp(-m i) from the oldest on.

    Args:
      plans: before this step, of this episode.
      chunk: chosen now.
      gain: m; m j counts as at most 40.

    >>> first, plans = blend(no_plans(2, 1), jnp.array([[0.0], [4.0]]), jnp.float32(0.0))
    >>> second, _ = blend(plans, jnp.array([[2.0], [9.0]]), jnp.float32(0.0))
    >>> first.tolist(), second.tolist()
    ([0.0], [3.0])
    """
    grown = jnp.clip(gain * jnp.arange(chunk.shape[-2], dtype=jnp.float32), -_MOST_GAIN, _MOST_GAIN)
    new = jnp.broadcast_to(jnp.exp(grown), plans.weight.shape)
    total, weight = plans.total + new[..., None] * chunk, plans.weight + new
    later = lambda x, axis: jnp.concatenate(
        [jax.lax.slice_in_dim(x, 1, None, axis=axis), jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))], axis
    )
    action = total[..., 0, :] / weight[..., :1]
    return action, Plans(later(total, total.ndim - 2), later(weight, weight.ndim - 1))


def taken(items: Experience, index: Int[Array, " N"], length: int) -> Float[Array, "N S*A"]:
    """The actions of a buffer from each entry on; after its episode's end the last one again and again.

    Args:
      items: of a `BufferState`, actions [L, B, A].
      index: from `Sample`.
      length: S, at most the rows of the buffer's windows.

    Returns:
      One row for each entry, step after step.
    """
    action, terminated, truncated = windows((items.action, items.terminated, items.truncated), index, length)
    ended = terminated | truncated
    last = jnp.sum(jnp.cumsum(ended, axis=0) - ended == 0, axis=0) - 1
    step = jnp.minimum(jnp.broadcast_to(jnp.arange(length)[:, None], ended.shape), last[None])
    action = jnp.take_along_axis(action, step[..., None], axis=0)
    return jnp.moveaxis(action, 0, 1).reshape((index.shape[0], -1))
