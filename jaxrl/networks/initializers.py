"""Initializers."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_NEWTON_SCHULZ_STEPS = 48
"""The cubic iteration multiplies a small singular value by 1.5 a step: 48 steps lift one of 1e-7 times the largest
to 1, and a Gaussian square matrix of side 1,024 has a smaller one with probability below 1e-3."""

_MAX_TOGETHER = 2**16
"""Kernels of at most so many entries are orthogonalized together, padded to the largest of them."""

_pending: contextvars.ContextVar[list[tuple[Array, float]] | None] = contextvars.ContextVar("pending", default=None)


def orthogonal(scale: float = 1.0) -> Callable[[jax.Array, Sequence[int], Any], Array]:
    """Haar-distributed (semi-)orthogonal matrices times `scale` (Saxe et al. 2014, arXiv:1312.6120).

    All axes but the last are merged into rows. The matrix is the orthogonal polar factor of a Gaussian one, found by
    the Newton–Schulz iteration X ← X (3 I - XᵀX) / 2: matrix products only. A QR decomposition would be batched under
    `vmap`, which on some CPUs deadlocks inside LAPACK (jaxlib 0.10.2) and on GPUs is slow.

    Args:
      scale: factor of the result; √2 suits ReLU, 0.01 a policy's last layer, 1 a value's.

    Returns:
      A flax initializer `(key, shape, dtype) -> array`.

    Raises:
      ValueError: (from the initializer) the shape has fewer than two axes.

    Example:
      >>> kernel = orthogonal(2.0)(jax.random.key(0), (8, 3), jnp.float32)
      >>> bool(jnp.allclose(kernel.T @ kernel, 4 * jnp.eye(3), atol=1e-4))
      True
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if len(shape) < 2:
            raise ValueError(f"orthogonal needs a shape of at least two axes; got shape = {tuple(shape)}.")
        pending = _pending.get()
        if pending is not None:
            placeholder = jnp.zeros(tuple(shape), dtype)
            pending.append((placeholder, scale))
            return placeholder
        return (scale * _orthogonal_kernels(key, [tuple(shape)])[0]).astype(dtype)

    return init


def initialize(module: nn.Module, key: jax.Array, *inputs: Any) -> PyTree:
    """`module.init(key, *inputs)`, with all orthogonal kernels found in one computation.

    The distribution is the same, the program several times smaller: one draw and one iteration instead of one for each
    layer, which compiles in half the time and on a GPU launches a fraction of the kernels.

    Args:
      module: a flax module.
      key: a random key.
      *inputs: what `module.init` takes.

    Returns:
      The variables.

    Example:
      >>> params = initialize(nn.Dense(3, kernel_init=orthogonal()), jax.random.key(0), jnp.zeros(5))
      >>> params["params"]["kernel"].shape
      (5, 3)
    """
    key_module, key_kernels = jax.random.split(key)
    with _deferring() as pending:
        params = module.init(key_module, *inputs)
    shapes = [placeholder.shape for placeholder, _ in pending]
    made = {
        id(placeholder): (scale * kernel).astype(placeholder.dtype)
        for (placeholder, scale), kernel in zip(pending, _orthogonal_kernels(key_kernels, shapes), strict=True)
    }
    found = [id(leaf) for leaf in jax.tree.leaves(params) if id(leaf) in made]
    if len(found) != len(made):
        # Some layer changed what its initializer gave it; then the kernels are made one by one.
        return module.init(key_module, *inputs)
    return jax.tree.map(lambda leaf: made.get(id(leaf), leaf), params)


@contextlib.contextmanager
def _deferring() -> Iterator[list[tuple[Array, float]]]:
    pending: list[tuple[Array, float]] = []
    token = _pending.set(pending)
    try:
        yield pending
    finally:
        _pending.reset(token)


def _orthogonal_kernels(key: jax.Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """A matrix with orthonormal columns (or rows, if it has fewer) for each shape."""
    sides = [(math.prod(shape[:-1]), shape[-1]) for shape in shapes]
    sizes = [rows * columns for rows, columns in sides]
    words = jax.random.normal(key, (sum(sizes),), jnp.float32)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    tall = [
        words[start : start + size].reshape(max(side), min(side))
        for start, size, side in zip(starts, sizes, sides, strict=True)
    ]
    small = [i for i, size in enumerate(sizes) if size <= _MAX_TOGETHER]
    if small:
        height, width = max(tall[i].shape[0] for i in small), max(tall[i].shape[1] for i in small)
        padded = [jnp.pad(tall[i], ((0, height - tall[i].shape[0]), (0, width - tall[i].shape[1]))) for i in small]
        # Rows and columns of zeros stay zero.
        together = _polar_factors(jnp.stack(padded))
        for i, matrix in zip(small, together, strict=True):
            tall[i] = matrix[: tall[i].shape[0], : tall[i].shape[1]]
    for i in set(range(len(shapes))) - set(small):
        tall[i] = _polar_factors(tall[i][None])[0]
    return [
        (matrix if rows >= columns else matrix.T).reshape(shape)
        for matrix, (rows, columns), shape in zip(tall, sides, shapes, strict=True)
    ]


def _polar_factors(x: Array) -> Array:
    """The orthogonal polar factors of a stack of tall matrices [L, R, C]."""
    # Bounded spectrum: the Frobenius norm is at least the largest singular value.
    x = x / jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))

    def refine(_: int, x: Array) -> Array:
        gram = jnp.einsum("lrc,lrd->lcd", x, x, precision=jax.lax.Precision.HIGHEST)
        return 1.5 * x - 0.5 * jnp.einsum("lrc,lcd->lrd", x, gram, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.fori_loop(0, _NEWTON_SCHULZ_STEPS, refine, x)
