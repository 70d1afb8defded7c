"""Spaces of observations and actions: hashable, static descriptions."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Integers 0 … n-1, dtype int32, shape ().

    >>> Discrete(3).shape
    ()
    """

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element."""
        return ()

    @property
    def dtype(self) -> Any:
        """Dtype of one element."""
        return jnp.int32


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, entry i from 0 … nvec[i]-1, dtype int32, shape (len(nvec),)."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element."""
        return (len(self.nvec),)

    @property
    def dtype(self) -> Any:
        """Dtype of one element."""
        return jnp.int32


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays within bounds.

    Attributes:
      low: lower bounds: one number for all entries, or a flat tuple, one number an entry in row-major order.
      high: upper bounds, likewise.
      shape: shape of one element.
      dtype: name of the element's dtype.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    shape: tuple[int, ...]
    dtype_name: str = "float32"

    @property
    def dtype(self) -> Any:
        """Dtype of one element."""
        return jnp.dtype(self.dtype_name)

    @property
    def low_array(self) -> np.ndarray:
        """Lower bounds, `shape`."""
        return _bounds(self.low, self.shape)

    @property
    def high_array(self) -> np.ndarray:
        """Upper bounds, `shape`."""
        return _bounds(self.high, self.shape)

    @property
    def bounded(self) -> bool:
        """Whether every entry has finite bounds on both sides."""
        limit = float(np.finfo(np.float32).max) / 2
        return bool(np.all(np.abs(self.low_array) < limit) and np.all(np.abs(self.high_array) < limit))


@dataclasses.dataclass(frozen=True)
class Dict:
    """Named spaces; an element is a dict. The name `action_mask` marks which discrete actions are legal."""

    spaces: tuple[tuple[str, "Space"], ...]

    def __getitem__(self, name: str) -> "Space":
        return dict(self.spaces)[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(name for name, _ in self.spaces)


Space = Discrete | MultiDiscrete | Box | Dict


def _bounds(bound: float | tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(bound, tuple):
        return np.asarray(bound, np.float32).reshape(shape)
    return np.full(shape, bound, np.float32)


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Box:
    """Builds a `Box` from bounds given as numbers or arrays.

    Args:
      low: lower bound, a number or an array that broadcasts to `shape`.
      high: upper bound, likewise.
      shape: shape of one element.
      dtype: dtype of one element.

    Raises:
      ValueError: a lower bound exceeds an upper one, or the bounds do not broadcast to `shape`.
    """

    def pack(bound: Any) -> float | tuple[float, ...]:
        array = np.broadcast_to(np.asarray(bound, np.float64), shape)
        return float(array.flat[0]) if array.size and np.all(array == array.flat[0]) else tuple(array.ravel().tolist())

    if not np.all(np.asarray(low) <= np.asarray(high)):
        raise ValueError(f"box: every lower bound must be at most the upper one; got low = {low}, high = {high}.")
    return Box(pack(low), pack(high), tuple(shape), jnp.dtype(dtype).name)


def sample(space: Space, key: jax.Array) -> Any:
    """Draws a uniform element; an unbounded side of a Box is taken to end one unit beyond the other (or at ±1).

    Args:
      space: the space to draw from.
      key: a random key.

    Returns:
      One element (for a `Dict`, a dict of elements).
    """
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n, jnp.int32)
    if isinstance(space, MultiDiscrete):
        return jax.random.randint(key, space.shape, 0, jnp.asarray(space.nvec), jnp.int32)
    if isinstance(space, Dict):
        keys = jax.random.split(key, len(space.spaces))
        return {name: sample(sub, k) for (name, sub), k in zip(space.spaces, keys, strict=True)}
    limit = float(np.finfo(np.float32).max) / 2
    low, high = space.low_array, space.high_array
    finite_low, finite_high = np.abs(low) < limit, np.abs(high) < limit
    low_used = np.where(finite_low, low, np.where(finite_high, high - 1.0, -1.0))
    high_used = np.where(finite_high, high, low_used + np.where(finite_low, 1.0, 2.0))
    uniform = jax.random.uniform(key, space.shape, jnp.float32, low_used, high_used)
    if space.dtype == jnp.bool_:
        return uniform > 0.5
    if jnp.issubdtype(space.dtype, jnp.integer):
        return jnp.floor(jax.random.uniform(key, space.shape, jnp.float32, low_used, high_used + 1)).astype(space.dtype)
    return uniform.astype(space.dtype)


def zeros(space: Space) -> Any:
    """An element's shape and dtype filled with zeros (a mask of legal actions with ones)."""
    if isinstance(space, Dict):
        return {name: jnp.ones_like(zeros(sub)) if name == "action_mask" else zeros(sub) for name, sub in space.spaces}
    return jnp.zeros(space.shape, space.dtype)


def contains(space: Space, element: Any) -> bool:
    """Whether a concrete element has the space's structure, shape, dtype and bounds (host only)."""
    if isinstance(space, Dict):
        return (
            isinstance(element, dict)
            and set(element) == set(space.names)
            and all(contains(sub, element[name]) for name, sub in space.spaces)
        )
    array = np.asarray(element)
    if array.shape != space.shape or array.dtype != space.dtype:
        return False
    if isinstance(space, Discrete):
        return bool((array >= 0) & (array < space.n))
    if isinstance(space, MultiDiscrete):
        return bool(np.all((array >= 0) & (array < np.asarray(space.nvec))))
    tolerance = 1e-5 * (1 + np.abs(array.astype(np.float64)))
    return bool(np.all(array >= space.low_array - tolerance) and np.all(array <= space.high_array + tolerance))


def size(space: Space) -> int:
    """Number of entries of one element (for a `Dict`, over all its parts)."""
    if isinstance(space, Dict):
        return sum(size(sub) for _, sub in space.spaces)
    return math.prod(space.shape)
