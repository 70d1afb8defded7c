"""Divergences of two distributions of the same kind beyond KL, in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl.ops.distributions.autoregressive import AutoregressiveCategorical
from jaxrl.ops.distributions.bang_bang import BangBang
from jaxrl.ops.distributions.categorical import Categorical, MultiCategorical
from jaxrl.ops.distributions.gaussian import Gaussian, TanhGaussian

# Below it α(α - 1) divides rounding errors, and the limit is taken instead.
_NEAR_LIMIT = 1e-3
# Of ∫ p^α q^(1-α), which may be infinite for α outside of [0, 1]: beyond it gradients are 0.
_MOST_LOG_INTEGRAL = 40.0
_LEAST_RATIO = 1e-8


def alpha_divergence(policy: Any, other: Any, alpha: Float[Array, ""]) -> Float[Array, "*batch"]:
    """The α-divergence of two policies over the same actions, an f-divergence, exact.

        D_α(p ‖ q) = (∫ p^α q^(1-α) - 1) / (α (α - 1))  =  E_q[f_α(p/q)],
        f_α(r) = (r^α - 1 - α (r - 1)) / (α (α - 1))

    α = 1 is KL(p ‖ q) and α = 0 KL(q ‖ p), both as limits; ½ is four times the squared Hellinger distance,
    Σ (√p - √q)² / 2; 2 is half of Pearson's χ², -1 half of Neyman's. Actions of several independent parts factorize
    under the integral, and a squashed Gaussian has the divergence of the Gaussian before it.

    Args:
      policy: p, a distribution of `jaxrl.ops.distributions`, but no mixture.
      other: q, one of the same kind.
      alpha: α. Outside of [0, 1] the integral may be infinite or beyond all numbers; it counts as e^40 at most, with a
        gradient of 0 there. Within 0.001 of 0 and 1 the limits are taken, where the derivative by α is 0.

    Raises:
      ValueError: the kind of distribution has no closed form.

    Source: Belousov and Peters 2017, arXiv:1801.00056, for the family in reinforcement learning; the Gaussian integral
    is that of Rényi's divergence.
    """
    scale = alpha * (alpha - 1.0)
    limit = jnp.abs(scale) < _NEAR_LIMIT
    safe_alpha = jnp.where(limit, 0.5, alpha)
    log_integral = jnp.minimum(_log_integral(policy, other, safe_alpha), _MOST_LOG_INTEGRAL)
    exact = jnp.expm1(log_integral) / jnp.where(limit, -0.25, scale)
    return jnp.where(limit, jnp.where(alpha > 0.5, policy.kl(other), other.kl(policy)), exact)


def _log_integral(policy: Any, other: Any, alpha: Array) -> Array:
    """log ∫ p^α q^(1-α), [*batch]."""
    if isinstance(policy, Categorical):
        return jax.nn.logsumexp(alpha * policy.log_probs() + (1.0 - alpha) * other.log_probs(), axis=-1)
    if isinstance(policy, AutoregressiveCategorical):
        return _log_integral(policy.joint(), other.joint(), alpha)
    if isinstance(policy, MultiCategorical):
        pairs = zip(policy.parts(), other.parts(), strict=True)
        return jnp.sum(jnp.stack([_log_integral(p, q, alpha) for p, q in pairs]), axis=0)
    if isinstance(policy, BangBang):
        return jnp.sum(_log_integral(policy.entries(), other.entries(), alpha), axis=-1)
    if isinstance(policy, TanhGaussian):
        return _log_integral(policy.base(), other.base(), alpha)
    if isinstance(policy, Gaussian):
        log_std, other_log_std = (jnp.broadcast_to(x.log_std, x.mean.shape) for x in (policy, other))
        # In units of p's deviation, so that no width is too small.
        wider = 2.0 * (other_log_std - log_std)
        mixed = (1.0 - alpha) + alpha * jnp.exp(wider)
        variance = jnp.where(mixed > _LEAST_RATIO, mixed, 1.0)
        z = (policy.mean - other.mean) * jnp.exp(-log_std)
        spread = 0.5 * (alpha * wider - jnp.log(variance))
        finite = spread - alpha * (1.0 - alpha) * z * z / (2.0 * variance)
        return jnp.sum(jnp.where(mixed > _LEAST_RATIO, finite, _MOST_LOG_INTEGRAL), axis=-1)
    raise ValueError(
        f"alpha_divergence: there is no closed form for {type(policy).__name__}. Use an objective of single samples, "
        "as spo or drift_objective, or another head."
    )
