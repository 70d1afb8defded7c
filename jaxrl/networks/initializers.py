"""Initializers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_NEWTON_SCHULZ_STEPS = 48
"""The cubic iteration multiplies a small singular value by 1.5 a step: 48 steps lift one of 1e-7 times the largest
to 1, and a Gaussian square matrix of side 1,024 has a smaller one with probability below 1e-3."""


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
        rows, columns = math.prod(shape[:-1]), shape[-1]
        gaussian = jax.random.normal(key, (max(rows, columns), min(rows, columns)), jnp.float32)
        # Bounded spectrum: the Frobenius norm is at least the largest singular value.
        start = gaussian / jnp.sqrt(jnp.sum(jnp.square(gaussian)))

        def refine(_: int, x: Array) -> Array:
            gram = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
            return 1.5 * x - 0.5 * jnp.matmul(x, gram, precision=jax.lax.Precision.HIGHEST)

        tall = jax.lax.fori_loop(0, _NEWTON_SCHULZ_STEPS, refine, start)
        matrix = tall if rows >= columns else tall.T
        return (scale * matrix).reshape(tuple(shape)).astype(dtype)

    return init
