"""Losses and divergences that several algorithms report or minimize; all are means over a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def value_loss(value: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Half the mean squared error, E[(V - G)²] / 2.

    >>> float(value_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    1.0
    """
    return 0.5 * jnp.mean(jnp.square(value - target))


def clipped_value_loss(
    value: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    old_value: Float[Array, "*batch"],
    clip: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The value loss without gain from moving by more than `clip` away from where the value was.

        E[max((V - G)², (V_old + clip(V - V_old, ±clip) - G)²)] / 2

    Source: Engstrom et al. 2020, arXiv:2005.12729, the code-level optimization called value function clipping.

    Args:
      value: V, being learned.
      target: G.
      old_value: V_old, when the data was collected.
      clip: how far it may move.

    >>> float(clipped_value_loss(jnp.array([1.0]), jnp.array([1.0]), jnp.array([0.0]), 0.5))
    0.125
    """
    error = jnp.square(value - target)
    moved = jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.mean(jnp.maximum(error, jnp.square(old_value + moved - target)))


def approximate_kl(log_prob: Float[Array, "*batch"], old_log_prob: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Estimates KL(old ‖ new) from samples of the old policy: E[(r - 1) - log r] with r = new / old; never negative.

    Source: Schulman 2020, Approximating KL divergence (joschu.net/blog/kl-approx.html), estimator k3.

    >>> float(approximate_kl(jnp.zeros(3), jnp.zeros(3)))
    0.0
    """
    log_ratio = log_prob - old_log_prob
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio)
