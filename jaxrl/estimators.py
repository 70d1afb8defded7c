"""Estimators: how a rollout becomes advantages and value targets (`jaxrl.types.Estimator`).

The sums themselves are in `jaxrl.ops.returns`, with the laws about terminated and truncated episodes.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.ops import returns
from jaxrl.types import Estimator, ReturnInputs, memoize

Baseline = Literal["value", "leave_one_out", "none"]


@struct.dataclass
class VTrace:
    """Coefficients of `vtrace`.

    Attributes:
      clip_rho: ρ̄, bound of the weight of an error; it decides whose value function is learned.
      clip_c: c̄, bound of the weight of a trace; it decides how fast.
    """

    clip_rho: Float[Array, ""]
    clip_c: Float[Array, ""]


@memoize
def gae() -> Estimator:
    """Generalized advantages; the target is the λ-return (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    With λ = 1 these are the n-step advantages of A3C (Mnih et al. 2016, arXiv:1602.01783, algorithm S3), n reaching
    to the end of the rollout or of the episode.

    Example:
      >>> gae().name
      'gae'
    """

    def estimate(params: tuple[()], inputs: ReturnInputs) -> tuple[Array, Array]:
        del params
        advantage = returns.gae(
            inputs.reward,
            inputs.value,
            inputs.next_value,
            inputs.terminated,
            inputs.truncated,
            inputs.gamma,
            inputs.trace_lambda,
        )
        return advantage, advantage + inputs.value

    return Estimator(tuple, estimate, "gae")


@memoize
def vtrace(clip_rho: float = 1.0, clip_c: float = 1.0) -> Estimator:
    """V-trace, for data from an older policy (Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2).

    The advantage carries the weight ρ_t, so the objective must not weight it again: use `policy_gradient`.

    Args:
      clip_rho: the default of ρ̄.
      clip_c: the default of c̄.

    Raises:
      ValueError: a bound is not positive, or c̄ is greater than ρ̄.

    Example:
      >>> vtrace(clip_c=0.9).init().clip_c.item()
      0.8999999761581421
    """
    if not 0 < clip_c <= clip_rho:
        raise ValueError(
            f"vtrace: the bounds must be 0 < clip_c <= clip_rho; got clip_c = {clip_c}, clip_rho = {clip_rho}."
        )

    def init() -> VTrace:
        return VTrace(clip_rho=jnp.float32(clip_rho), clip_c=jnp.float32(clip_c))

    def estimate(params: VTrace, inputs: ReturnInputs) -> tuple[Array, Array]:
        target, advantage = returns.vtrace(
            inputs.reward,
            inputs.value,
            inputs.next_value,
            inputs.terminated,
            inputs.truncated,
            inputs.log_ratio,
            inputs.gamma,
            inputs.trace_lambda,
            params.clip_rho,
            params.clip_c,
        )
        return advantage, target

    return Estimator(init, estimate, "vtrace", weighted=True)


@memoize
def monte_carlo(baseline: Baseline = "value") -> Estimator:
    """Discounted returns less a baseline, REINFORCE's (Williams 1992, eq. 4; λ is not read).

        A_t = G_t - b_t,   G_t = r_t + γ G_{t+1}

    G ends with the episode; where the rollout or a time limit cuts it, the value of the successor stands for the rest.

    Args:
      baseline: `value`: V(s_t). `leave_one_out`: the mean of G_t over the other environments at the same step, RLOO's
        (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8); it needs at least two environments, and pays
        where they share their initial state. `none`: 0.

    Raises:
      ValueError: the baseline is unknown.

    Example:
      >>> monte_carlo("leave_one_out").name
      'monte_carlo'
    """
    if baseline not in get_args(Baseline):
        raise ValueError(f"monte_carlo: baseline must be one of {get_args(Baseline)}; got baseline = {baseline!r}.")

    def estimate(params: tuple[()], inputs: ReturnInputs) -> tuple[Array, Array]:
        del params
        target = returns.lambda_returns(
            inputs.reward, inputs.next_value, inputs.terminated, inputs.truncated, inputs.gamma, 1.0
        )
        if baseline == "value":
            return target - inputs.value, target
        if baseline == "none":
            return target, target
        others = (jnp.sum(target, axis=1, keepdims=True) - target) / (target.shape[1] - 1)
        return target - others, target

    return Estimator(tuple, estimate, "monte_carlo", min_envs=2 if baseline == "leave_one_out" else 1)
