"""Surrogate objectives of the ratio r = π(a|s) / π_proximal(a|s) and the advantage A.

Where the policy that acted differs from the one to stay close to, each sample is weighted by π_proximal / π_behavior
(Hilton et al. 2022, arXiv:2110.00641, eq. 3): two policies that are one and the same unless an algorithm keeps another.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.types import Metrics, Objective, PolicyInputs, memoize


@struct.dataclass
class Clip:
    """Coefficients of `clip`.

    Attributes:
      clip: ε, how far the ratio may move from 1 before the gain stops.
    """

    clip: Float[Array, ""]


@struct.dataclass
class KLPenalty:
    """Coefficients of `kl_penalty`.

    Attributes:
      beta: weight of the KL divergence.
    """

    beta: Float[Array, ""]


def _ratios(inputs: PolicyInputs) -> tuple[Array, Array]:
    ratio = jnp.exp(inputs.log_prob - inputs.proximal_log_prob)
    weight = jnp.exp(inputs.proximal_log_prob - inputs.behavior_log_prob)
    return ratio, weight


@memoize
def clip(epsilon: float = 0.2) -> Objective:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), to be minimized.

        L = -E[ min( r A, clip(r, 1-ε, 1+ε) A ) ]

    Args:
      epsilon: the default of the coefficient `clip`.

    Returns:
      The objective; its params are a `Clip`. Metric `policy/clip_fraction`: share of samples outside of the range.

    Raises:
      ValueError: `epsilon` is not positive.

    Example:
      >>> clip(0.1).init(jax.random.key(0)).clip.item()
      0.10000000149011612
    """
    if epsilon <= 0:
        raise ValueError(f"clip: epsilon must be positive; got epsilon = {epsilon}.")

    def init(key: jax.Array) -> Clip:
        del key
        return Clip(clip=jnp.float32(epsilon))

    def loss(params: Clip, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = _ratios(inputs)
        clipped = jnp.clip(ratio, 1 - params.clip, 1 + params.clip)
        gain = jnp.minimum(ratio * inputs.advantage, clipped * inputs.advantage)
        outside = jnp.abs(ratio - 1) > params.clip
        return -jnp.mean(weight * gain), {"policy/clip_fraction": jnp.mean(outside.astype(jnp.float32))}

    return Objective(init, loss, name="clip")


@memoize
def kl_penalty(beta: float = 1.0) -> Objective:
    """The surrogate with a fixed KL penalty (Schulman et al. 2017, arXiv:1707.06347, eq. 8), to be minimized.

        L = -E[ r A - β KL(π_proximal(·|s) ‖ π(·|s)) ]

    Args:
      beta: the default of the coefficient `beta`.

    Returns:
      The objective; its params are a `KLPenalty`. Metric `policy/penalty`: the mean KL divergence.

    Raises:
      ValueError: `beta` is negative.

    Example:
      >>> kl_penalty().init(jax.random.key(0)).beta.item()
      1.0
    """
    if beta < 0:
        raise ValueError(f"kl_penalty: beta must not be negative; got beta = {beta}.")

    def init(key: jax.Array) -> KLPenalty:
        del key
        return KLPenalty(beta=jnp.float32(beta))

    def loss(params: KLPenalty, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = _ratios(inputs)
        divergence = inputs.proximal_policy.kl(inputs.policy)
        gain = weight * ratio * inputs.advantage - params.beta * divergence
        return -jnp.mean(gain), {"policy/penalty": jnp.mean(divergence)}

    return Objective(init, loss, name="kl_penalty")
