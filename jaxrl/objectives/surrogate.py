"""Surrogate objectives of the ratio r = π(a|s) / π_proximal(a|s) and the advantage A.

Where the policy that acted differs from the one to stay close to, each sample is weighted by π_proximal / π_behavior
(Hilton et al. 2022, arXiv:2110.00641, eq. 3): two policies that are one and the same unless an algorithm keeps another.
As in the code of these authors, π / π_behavior counts as 100 where it is greater, and the weight is lowered to that
end; a sample with a smaller one is not touched.

At r = 1 the gradient of each of them is the policy gradient, -E[weight A ∇log π].
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.ops.distributions import alpha_divergence
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


@struct.dataclass
class AlphaPenalty:
    """Coefficients of `alpha_penalty`.

    Attributes:
      alpha: α, which divergence.
      beta: its weight.
    """

    alpha: Float[Array, ""]
    beta: Float[Array, ""]


@struct.dataclass
class SPO:
    """Coefficients of `spo`.

    Attributes:
      epsilon: ε, the distance of the ratio from 1 at which a sample has had its gain.
    """

    epsilon: Float[Array, ""]


@struct.dataclass
class DPO:
    """Coefficients of `dpo`.

    Attributes:
      alpha: α, scale of the drift where the advantage is positive.
      beta: β, scale of the drift where it is negative.
    """

    alpha: Float[Array, ""]
    beta: Float[Array, ""]


@struct.dataclass
class MDPO:
    """Coefficients of `mdpo`.

    Attributes:
      step_size: t at the beginning; the weight of the KL divergence is 1/t.
    """

    step_size: Float[Array, ""]


# Of π / π_behavior: the default of the authors of PPO-EWMA.
_LOG_MAX_WEIGHT = math.log(100.0)
# Of 1 - progress: `mdpo` divides by it.
_MIN_REMAINING = 1e-4


def ratios(inputs: PolicyInputs) -> tuple[Array, Array]:
    """π / π_proximal and the weight of each sample, π_proximal / π_behavior unless their product exceeds 100."""
    ratio = jnp.exp(inputs.log_prob - inputs.proximal_log_prob)
    least = jax.lax.stop_gradient(inputs.log_prob) - _LOG_MAX_WEIGHT
    weight = jnp.exp(inputs.proximal_log_prob - jnp.maximum(inputs.behavior_log_prob, least))
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
        ratio, weight = ratios(inputs)
        clipped = jnp.clip(ratio, 1 - params.clip, 1 + params.clip)
        gain = jnp.minimum(ratio * inputs.advantage, clipped * inputs.advantage)
        outside = jnp.abs(ratio - 1) > params.clip
        return -jnp.mean(weight * gain), {"policy/clip_fraction": jnp.mean(outside.astype(jnp.float32))}

    return Objective(init, loss, name="clip", weighted=True)


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
        ratio, weight = ratios(inputs)
        divergence = inputs.proximal_policy.kl(inputs.policy)
        gain = weight * ratio * inputs.advantage - params.beta * divergence
        return -jnp.mean(gain), {"policy/penalty": jnp.mean(divergence)}

    return Objective(init, loss, name="kl_penalty", weighted=True)


@memoize
def alpha_penalty(alpha: float = 0.5, beta: float = 1.0) -> Objective:
    """The surrogate with a penalty from the family of α-divergences, to be minimized.

        L = -E[ r A - β D_α(π(·|s) ‖ π_proximal(·|s)) ]

    α = 0 is `kl_penalty`, α = 1 the divergence of `mdpo`, ½ Hellinger's, 2 Pearson's χ²; in between they go over into
    one another. Which one it is, is a number among the coefficients, so a sweep or a search may choose it in one
    program. The divergence is of whole distributions, exact (`jaxrl.ops.distributions.alpha_divergence`).

    Args:
      alpha: the default of the coefficient `alpha`. For Gaussian policies keep it in [0, 1].
      beta: the default of the coefficient `beta`.

    Returns:
      The objective; its params are an `AlphaPenalty`. Metric `policy/penalty`: the mean divergence.

    Raises:
      ValueError: `alpha` is not finite or `beta` is negative; when it is used, the policy is a mixture.

    Source: Belousov and Peters 2017, arXiv:1801.00056, for the family; they solve the constrained problem in closed
    form, here it is a penalty as in PPO, eq. 8.

    Example:
      >>> alpha_penalty(alpha=2.0).init(jax.random.key(0)).alpha.item()
      2.0
    """
    if not math.isfinite(alpha) or not beta >= 0:
        raise ValueError(
            f"alpha_penalty: alpha must be finite and beta not negative; got alpha = {alpha}, beta = {beta}."
        )

    def init(key: jax.Array) -> AlphaPenalty:
        del key
        return AlphaPenalty(alpha=jnp.float32(alpha), beta=jnp.float32(beta))

    def loss(params: AlphaPenalty, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = ratios(inputs)
        divergence = alpha_divergence(inputs.policy, inputs.proximal_policy, params.alpha)
        gain = weight * ratio * inputs.advantage - params.beta * divergence
        return -jnp.mean(gain), {"policy/penalty": jnp.mean(divergence)}

    return Objective(init, loss, name="alpha_penalty", weighted=True)


@memoize
def spo(epsilon: float = 0.2) -> Objective:
    """Simple policy optimization (Xie et al. 2025, arXiv:2401.16025, eq. 16), to be minimized.

        L = -E[ r A - |A| (r - 1)² / (2ε) ]

    A sample's gain is greatest at r = 1 + ε sign(A). Beyond that its gradient leads back, where that of `clip` is zero.

    Args:
      epsilon: the default of the coefficient `epsilon`.

    Returns:
      The objective; its params are an `SPO`. Metric `policy/ratio_deviation`: the mean of |r - 1|.

    Raises:
      ValueError: `epsilon` is not positive.

    Example:
      >>> spo().init(jax.random.key(0)).epsilon.item()
      0.20000000298023224
    """
    if not epsilon > 0:
        raise ValueError(f"spo: epsilon must be positive; got epsilon = {epsilon}.")

    def init(key: jax.Array) -> SPO:
        del key
        return SPO(epsilon=jnp.float32(epsilon))

    def loss(params: SPO, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = ratios(inputs)
        penalty = jnp.abs(inputs.advantage) * jnp.square(ratio - 1) / (2 * params.epsilon)
        gain = ratio * inputs.advantage - penalty
        return -jnp.mean(weight * gain), {"policy/ratio_deviation": jnp.mean(jnp.abs(ratio - 1))}

    return Objective(init, loss, name="spo", weighted=True)


@memoize
def dpo(alpha: float = 2.0, beta: float = 0.6) -> Objective:
    """Discovered policy optimization (Lu et al. 2022, arXiv:2210.05639, its closed form), to be minimized.

        L = -E[ r A - f(r, A) ]
        f = ReLU( (r-1) A - α tanh((r-1) A / α) )       where A >= 0
            ReLU( A log r - β tanh(A log r / β) )       elsewhere

    The drift f and its slope are zero at r = 1. Where A > 0 the gain goes to α + A as r grows, instead of stopping at
    a bound; where A < 0 it is greatest at a ratio below 1 and falls beyond it. The constants are those with which the
    authors replaced a learned drift.

    Args:
      alpha: the default of the coefficient `alpha`.
      beta: the default of the coefficient `beta`.

    Returns:
      The objective; its params are a `DPO`. Metric `policy/drift`: the mean of f.

    Raises:
      ValueError: `alpha` or `beta` is not positive.

    Example:
      >>> dpo(alpha=1.5).init(jax.random.key(0)).alpha.item()
      1.5
    """
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"dpo: alpha and beta must be positive; got alpha = {alpha}, beta = {beta}.")

    def init(key: jax.Array) -> DPO:
        del key
        return DPO(alpha=jnp.float32(alpha), beta=jnp.float32(beta))

    def loss(params: DPO, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = ratios(inputs)
        advantage = inputs.advantage
        rise = (ratio - 1) * advantage
        fall = (inputs.log_prob - inputs.proximal_log_prob) * advantage
        drift = jnp.where(
            advantage >= 0,
            jax.nn.relu(rise - params.alpha * jnp.tanh(rise / params.alpha)),
            jax.nn.relu(fall - params.beta * jnp.tanh(fall / params.beta)),
        )
        return -jnp.mean(weight * (ratio * advantage - drift)), {"policy/drift": jnp.mean(drift)}

    return Objective(init, loss, name="dpo", weighted=True)


@memoize
def mdpo(step_size: float = 1.0) -> Objective:
    """On-policy mirror descent (Tomar et al. 2022, arXiv:2005.09814, section 4.1), to be minimized.

        L = -E[ r A - KL(π(·|s) ‖ π_proximal(·|s)) / t ],   t = step_size (1 - progress)

    The divergence is the other way round than in `kl_penalty`. Its gradient is zero at the first optimizer step of an
    iteration, so it acts through the later ones: the authors take ten, each on the whole rollout. Its weight grows with
    progress, hence it needs a finite training horizon, and 1 - progress counts as 1e-4 where it is smaller.

    Args:
      step_size: the default of the coefficient `step_size`.

    Returns:
      The objective; its params are an `MDPO`. Metrics `policy/penalty`: the mean KL divergence; `policy/step_size`: t.

    Raises:
      ValueError: `step_size` is not positive.

    Example:
      >>> mdpo().init(jax.random.key(0)).step_size.item()
      1.0
    """
    if not step_size > 0:
        raise ValueError(f"mdpo: step_size must be positive; got step_size = {step_size}.")

    def init(key: jax.Array) -> MDPO:
        del key
        return MDPO(step_size=jnp.float32(step_size))

    def loss(params: MDPO, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = ratios(inputs)
        divergence = inputs.policy.kl(inputs.proximal_policy)
        step = params.step_size * jnp.maximum(1 - inputs.progress, _MIN_REMAINING)
        gain = weight * ratio * inputs.advantage - divergence / step
        return -jnp.mean(gain), {"policy/penalty": jnp.mean(divergence), "policy/step_size": step}

    return Objective(init, loss, name="mdpo", weighted=True)
