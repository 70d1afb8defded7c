"""Choosing actions by their values."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl.values.records import ILLEGAL


def epsilon_greedy(
    noise: Float[Array, "*batch 2"], values: Float[Array, "*batch A"], epsilon: Float[Array, ""]
) -> Int[Array, "*batch"]:
    """With probability ε any legal action, otherwise the best, from two uniform numbers each.

    >>> epsilon_greedy(jnp.array([0.4, 0.1]), jnp.array([0.0, 1.0]), jnp.float32(0.5)).item()
    0
    """
    legal = values > 0.5 * ILLEGAL
    # The k-th legal action, k = ⌊noise · number⌋.
    rank = jnp.floor(noise[..., 1:] * jnp.sum(legal, axis=-1, keepdims=True)).astype(jnp.int32)
    anything = jnp.argmax((jnp.cumsum(legal, axis=-1) > rank) & legal, axis=-1)
    return jnp.where(noise[..., 0] < epsilon, anything, jnp.argmax(values, axis=-1)).astype(jnp.int32)


def legal_only(values: Float[Array, "*batch A"], obs: Any) -> Float[Array, "*batch A"]:
    """Values with those of illegal actions replaced by `ILLEGAL`, where the observation has an `action_mask`.

    >>> legal_only(jnp.array([1.0, 2.0]), {"action_mask": jnp.array([True, False])}).tolist()
    [1.0, -1000000000.0]
    """
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    return values if mask is None else jnp.where(mask.astype(bool), values, ILLEGAL)
