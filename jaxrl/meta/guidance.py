"""Weights of single samples that a few expert data choose: guided offline learning.

Yang et al. (2023, arXiv:2309.01448, GORL): offline methods improve a policy and hold it to the data, with one balance
for all samples. Here a network gives a balance to each of them, and follows the derivative of an expert loss of the
parameters after one step of the learner:

    L(θ, φ) = E_i[ improvement_i(θ) + w_φ(i) constraint_i(θ) ]
    θ̂(φ) = θ - α ∇_θ L(θ, φ),   φ ← φ - β ∇_φ expert loss(θ̂(φ)),   then θ by its own optimizer

Losses are functions, so any learner with losses of single samples may be guided, also one without an improvement.
(The abstract and descriptions of the paper were at hand.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

SampleLosses = Callable[[Any, Any], tuple[Float[Array, " N"], Float[Array, " N"]]]
"""`(params, batch) -> (improvement, constraint)`, for each sample."""

Weigh = Callable[[Any, Any], Float[Array, " N"]]
"""`(meta, batch) -> w`, for each sample."""


def weighted_inner(losses: SampleLosses, weigh: Weigh) -> Callable[[Any, Any, Any], Float[Array, ""]]:
    """The learner's loss, each sample's constraint by its weight.

    Args:
      losses: of single samples.
      weigh: gives the weights, such as the logistic of a network's output.

    Returns:
      `(params, meta, batch) -> scalar`, the mean of improvement + weight · constraint.

    Example:
      >>> losses = lambda theta, batch: (0.0 * batch, jnp.square(theta - batch))
      >>> inner = weighted_inner(losses, lambda phi, batch: jnp.full_like(batch, phi))
      >>> float(inner(1.0, 0.5, jnp.array([1.0, 3.0])))
      1.0
    """

    def loss(params: PyTree, meta: PyTree, batch: PyTree) -> Array:
        improvement, constraint = losses(params, batch)
        return jnp.mean(improvement + weigh(meta, batch) * constraint)

    return loss


def guidance(
    inner: Callable[[Any, Any, Any], Float[Array, ""]],
    expert_loss: Callable[[Any, Any], Float[Array, ""]],
    params: PyTree,
    meta: PyTree,
    batch: PyTree,
    expert: PyTree,
    rate: float | Float[Array, ""],
) -> tuple[Float[Array, ""], PyTree]:
    """The expert loss after one step of the learner, and its derivative by the weights.

        -α (∇_θ expert loss at θ̂)ᵀ ∂²L/∂θ∂φ

    so a sample's weight rises where its constraint's gradient points as the expert's does.

    Args:
      inner: `(params, meta, batch) -> L`; see `weighted_inner`.
      expert_loss: `(params, expert) -> scalar`, of cloning for instance.
      params: θ.
      meta: φ.
      batch: samples.
      expert: a few samples of an expert.
      rate: α.

    Returns:
      The loss at θ̂, and its derivative, a tree like `meta`.

    Example:
      >>> losses = lambda theta, batch: (0.0 * batch, jnp.square(theta - batch))
      >>> inner = weighted_inner(losses, lambda phi, batch: phi)
      >>> samples, expert = jnp.array([1.0, -1.0]), jnp.array([1.0])
      >>> distance = lambda theta, expert: jnp.mean(jnp.square(theta - expert))
      >>> value, slope = guidance(inner, distance, 0.0, jnp.array([0.5, 0.5]), samples, expert, 0.1)
      >>> bool(slope[0] < 0 < slope[1])  # the first sample is the expert's kind
      True
    """

    def after(meta: PyTree) -> Array:
        grads = jax.grad(inner)(params, meta, batch)
        return expert_loss(jax.tree.map(lambda x, g: x - rate * g, params, grads), expert)

    return jax.value_and_grad(after)(meta)
