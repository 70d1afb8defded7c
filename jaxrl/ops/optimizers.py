"""Optimizers as functions of hyperparameters, so that rates and bounds stay data."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array, Float

Optimizer = Callable[[Any, Float[Array, ""]], optax.GradientTransformation]
"""`(hparams, learning_rate) -> transformation`, rebuilt in every step, so that rates stay data."""


def adam(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """Adam (ε = 1e-5) behind clipping of the global gradient norm.

    Args:
      hparams: of the algorithm; its leaf `max_grad_norm` is the greatest norm.
      learning_rate: at present.

    >>> import types
    >>> import jax.numpy as jnp
    >>> transform = adam(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    >>> round(float(updates), 3)
    -0.1
    """
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_adam(eps=1e-5),
        optax.scale(-learning_rate),  # type: ignore[arg-type]
    )


def rmsprop(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """RMSProp (decay 0.99, ε = 1e-5, Mnih et al. 2016, arXiv:1602.01783, eq. 8) behind clipping of the global norm.

    Args:
      hparams: of the algorithm; its leaf `max_grad_norm` is the greatest norm.
      learning_rate: at present.

    >>> import types
    >>> import jax.numpy as jnp
    >>> transform = rmsprop(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    >>> round(float(updates), 3)
    -0.998
    """
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_rms(decay=0.99, eps=1e-5),
        optax.scale(-learning_rate),  # type: ignore[arg-type]
    )
