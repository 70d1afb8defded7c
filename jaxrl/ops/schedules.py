"""Schedules: multipliers as functions of training progress."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

SCHEDULES: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "constant": jnp.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}
"""By name: from progress in [0, 1] to the factor of a rate. All are 1 at the beginning."""


def progress(num_env_steps: Float[Array, ""], horizon: Float[Array, ""]) -> Float[Array, ""]:
    """Share of the horizon that has passed, at most 1; 0 throughout if the horizon is infinite.

    >>> float(progress(jnp.float32(50.0), jnp.float32(200.0)))
    0.25
    """
    return jnp.minimum(num_env_steps / horizon, 1.0)
