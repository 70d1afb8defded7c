"""Linear systems whose matrix is known only by its product with a vector."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def conjugate_gradient(
    product: Callable[[Any], Any], target: PyTree, num_steps: int, tolerance: float = 1e-10
) -> PyTree:
    """Solves M x = b for a symmetric positive definite M, from x = 0.

    `jax.scipy.sparse.linalg.cg` gives wrong solutions under `vmap` over what the product closes over (seen with jax
    0.10.2 and 0.11.2 on CPU), so this is a plain loop of a fixed length.

    Args:
      product: x ↦ M x, trees like `target`.
      target: b.
      num_steps: steps; each takes one product. In exact arithmetic as many as M has distinct eigenvalues suffice.
      tolerance: share of |b|² below which the squared residual stops the steps (they become zero).

    Returns:
      x, a tree like `target`.

    Source: Hestenes and Stiefel 1952, Journal of Research of the National Bureau of Standards 49(6), equation 3:1.

    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradient(lambda x: matrix @ x, jnp.array([3.0, 4.0]), 2).round(4).tolist()
    [1.0, 1.0]
    """
    enough = tolerance * optax.tree.vdot(target, target)

    def step(_: int, carry: Any) -> Any:
        x, residual, direction, square = carry
        curved = product(direction)
        curvature = jnp.asarray(optax.tree.vdot(direction, curved))
        going = (square > enough) & (curvature > 0.0)
        rate = jnp.where(going, square / jnp.where(going, curvature, 1.0), 0.0)
        x = jax.tree.map(lambda x, d: x + rate * d, x, direction)
        residual = jax.tree.map(lambda r, c: r - rate * c, residual, curved)
        new_square = jnp.where(going, optax.tree.vdot(residual, residual), square)
        turn = jnp.where(going, new_square / jnp.where(square > 0, square, 1.0), 0.0)
        direction = jax.tree.map(lambda r, d: r + turn * d, residual, direction)
        return x, residual, direction, new_square

    start = (jax.tree.map(jnp.zeros_like, target), target, target, optax.tree.vdot(target, target))
    return jax.lax.fori_loop(0, num_steps, step, start)[0]
