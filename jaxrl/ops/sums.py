"""A tree of sums: entries in proportion to their values, found by running sums in as many steps as there are levels."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FAN_OUT = 16
"""Children of a node: five levels hold a million values, where a binary tree needs twenty."""

Levels = tuple[Float[Array, "size 16"], ...]
"""The values themselves first, then of each row the sum, up to a single row."""


def empty(num_entries: int) -> Levels:
    """The tree of so many zeros.

    >>> [level.shape for level in empty(100)]
    [(7, 16), (1, 16)]
    """
    sizes = [-(-num_entries // FAN_OUT)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // FAN_OUT))
    return tuple(jnp.zeros((size, FAN_OUT), jnp.float32) for size in sizes)


def put(levels: Levels, index: Int[Array, " N"], value: Float[Array, " N"]) -> Levels:
    """Gives entries a value, and every sum above them.

    Args:
      levels: the tree.
      index: of the entries.
      value: not negative.

    >>> levels = put(empty(20), jnp.array([3, 17]), jnp.array([1.0, 2.0]))
    >>> levels[-1][0, :3].tolist()
    [1.0, 2.0, 0.0]
    """
    changed = []
    for level in levels:
        row = index // FAN_OUT
        level = level.at[row, index % FAN_OUT].set(value)
        changed.append(level)
        # Summed anew, so that rounding errors do not add up.
        index, value = row, jnp.sum(level[row], axis=-1)
    return tuple(changed)


def find(levels: Levels, point: Float[Array, " N"]) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """The entries in whose share of the running sum the points lie, and their values. None has the value 0.

    Args:
      levels: the tree; not all of it zero.
      point: from 0 up to the sum of all, `jnp.sum(levels[-1])`.

    >>> levels = put(empty(20), jnp.array([3, 17]), jnp.array([1.0, 2.0]))
    >>> index, value = find(levels, jnp.array([0.5, 1.5, 2.5]))
    >>> index.tolist(), value.tolist()
    ([3, 17, 17], [1.0, 2.0, 2.0])
    """
    index, value = jnp.zeros(point.shape, jnp.int32), point
    for level in reversed(levels):
        parts = level[index]
        # Where rounding would lead to an entry of value 0, or beyond the last, the nearest other one is taken.
        sums = jnp.where(parts > 0, jnp.cumsum(parts, axis=-1), 0.0)
        point = jnp.minimum(point, jnp.max(sums, axis=-1) * (1.0 - 2.0**-23))
        child = jnp.argmax(sums > point[:, None], axis=-1)
        before, value = (jnp.take_along_axis(x, child[:, None], axis=-1)[:, 0] for x in (sums - parts, parts))
        point = jnp.maximum(point - before, 0.0)
        index = index * FAN_OUT + child.astype(jnp.int32)
    return index, value
