"""A natural-gradient step within a trust region (Schulman et al. 2015, arXiv:1502.05477, appendix C).

    g = ∇ surrogate;  x ≈ (F + damping)⁻¹ g by conjugate gradients;  θ ← θ + α √(2 δ / xᵀFx) x

F is the Hessian of the mean KL divergence at the present parameters, only ever multiplied with vectors. α is 1, or with
a line search shortened until the surrogate grows and the divergence is at most δ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxrl.ops.linear import conjugate_gradient

SurrogateAndKL = Callable[[PyTree], tuple[Float[Array, ""], Float[Array, ""]]]
"""`params -> (surrogate, mean KL divergence from the present policy to theirs)`."""


class Region(NamedTuple):
    """How far a step may go.

    Attributes:
      max_kl: δ, in nats.
      damping: added to the diagonal of F.
      backtrack_factor: by which the line search shortens the step.
    """

    max_kl: Float[Array, ""]
    damping: Float[Array, ""]
    backtrack_factor: Float[Array, ""]


def step(
    surrogate_and_kl: SurrogateAndKL, params: PyTree, region: Region, num_cg_steps: int, num_backtracks: int
) -> tuple[PyTree, dict[str, Array]]:
    """Moves parameters along the natural gradient of a surrogate.

    Args:
      surrogate_and_kl: what is climbed, and how far the policy has gone.
      params: θ, where the divergence is 0.
      region: how far.
      num_cg_steps: of conjugate gradients, at most.
      num_backtracks: times that the step is shortened at most; after that nothing is changed. 0: it is taken whole.

    Returns:
      The parameters after the step, and of the step taken `policy/kl`, `policy/step` (α; 0 where the line search gave
      up) and `policy/improvement` of the surrogate, and `gradient/norm`.

    Example:
      >>> ones = jnp.ones(2)
      >>> bowl = lambda x: (-jnp.sum((x - 3.0) ** 2), jnp.sum((x - ones) ** 2) / 2)
      >>> after, info = step(bowl, ones, Region(jnp.float32(0.01), jnp.float32(0.0), jnp.float32(0.5)), 2, 0)
      >>> [round(x, 3) for x in after.tolist()], round(float(info["policy/kl"]), 4)
      ([1.1, 1.1], 0.01)
    """
    gradient = jax.grad(lambda params: surrogate_and_kl(params)[0])(params)
    fisher = _fisher(lambda params: surrogate_and_kl(params)[1], params, region.damping)
    direction = conjugate_gradient(fisher, gradient, num_cg_steps)
    curvature = optax.tree.vdot(direction, fisher(direction))
    length = jnp.sqrt(2.0 * region.max_kl / jnp.maximum(curvature, 1e-20))
    whole = optax.tree.scale(length, direction)
    params, info = _search(surrogate_and_kl, params, whole, region, num_backtracks)
    return params, info | {"gradient/norm": jnp.asarray(optax.tree.norm(gradient))}


def _fisher(kl: Any, params: PyTree, damping: Array) -> Any:
    """v ↦ (F + damping) v, F the Hessian of the mean KL divergence at the old policy."""

    def product(vector: PyTree) -> PyTree:
        _, curved = jax.jvp(jax.grad(kl), (params,), (vector,))
        return jax.tree.map(lambda x, v: x + damping * v, curved, vector)

    return product


def _search(
    surrogate_and_kl: SurrogateAndKL, params: PyTree, whole: PyTree, region: Region, num_backtracks: int
) -> tuple[PyTree, dict[str, Array]]:
    """Shortens a step until the surrogate grows and the KL divergence is at most δ; metrics of it."""
    before, _ = surrogate_and_kl(params)

    def taken(fraction: Array) -> PyTree:
        return jax.tree.map(lambda old, change: old + fraction * change, params, whole)

    def look(fraction: Array) -> tuple[Array, Array, Array]:
        surrogate, kl = surrogate_and_kl(taken(fraction))
        return (surrogate > before) & (kl <= region.max_kl), surrogate - before, kl

    fraction = jnp.float32(1.0)
    good, gain, kl = look(fraction)
    if not num_backtracks:
        return taken(fraction), {"policy/kl": kl, "policy/step": fraction, "policy/improvement": gain}

    def unfinished(carry: Any) -> Array:
        return ~carry[0] & (carry[1] < num_backtracks)

    def shorten(carry: Any) -> Any:
        _, count, fraction, *_ = carry
        fraction = fraction * region.backtrack_factor
        good, gain, kl = look(fraction)
        return good, count + 1, fraction, gain, kl

    good, _, fraction, gain, kl = jax.lax.while_loop(unfinished, shorten, (good, jnp.int32(0), fraction, gain, kl))
    fraction, gain, kl = (jnp.where(good, x, 0.0) for x in (fraction, gain, kl))
    return taken(fraction), {"policy/kl": kl, "policy/step": fraction, "policy/improvement": gain}
