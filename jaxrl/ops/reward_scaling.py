"""Scaling of rewards by the spread of their discounted return, and by its bound.

R_t = γ R_{t-1} [not ended_{t-1}] + r_t
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxrl.ops import statistics


@struct.dataclass
class RewardScale:
    """By what rewards are divided, and what goes on from one rollout to the next.

    Attributes:
      statistics: moments of the discounted return R so far.
      discounted_return: R of each environment, 0 where an episode starts.
    """

    statistics: statistics.RunningStatistics
    discounted_return: Float[Array, " B"]


def init_scale(num_envs: int) -> RewardScale:
    """The scale before any reward, for B environments at the start of an episode."""
    return RewardScale(statistics.init_statistics(jnp.float32(0)), jnp.zeros(num_envs, jnp.float32))


def scale_rewards(
    scale: RewardScale,
    reward: Float[Array, "T B"],
    ended: Bool[Array, "T B"],
    gamma: Float[Array, ""],
    limit: float = 10.0,
) -> tuple[Float[Array, "T B"], RewardScale]:
    """Divides rewards by the running standard deviation of the discounted return that precedes them.

        R_t = γ R_{t-1} [not ended_{t-1}] + r_t,     r̃_t = clip(r_t / sqrt(Var R + 1e-8), ±limit)

    (Engstrom et al. 2020, arXiv:2005.12729, algorithm 1 in appendix A.2, with R forgotten where an episode ends.)

    Args:
      scale: from `init_scale` or the rollout before.
      reward: raw rewards.
      ended: where episodes ended.
      gamma: the training discount.
      limit: largest absolute scaled reward.

    Returns:
      The scaled rewards, and the scale with this rollout added.
    """
    scale, _ = _observed(scale, reward, ended, gamma)
    return jnp.clip(reward / jnp.sqrt(scale.statistics.var + 1e-8), -limit, limit), scale


def scale_in_stream(
    scale: RewardScale, reward: Float[Array, ""], ended: Bool[Array, ""], gamma: Float[Array, ""]
) -> tuple[Float[Array, ""], RewardScale]:
    """As `scale_rewards` for one reward of one environment, by the sample variance and without a limit.

    Source: Elsayed et al. 2024, arXiv:2410.14606, and their authors' program: the first reward is as it came.

    >>> no, gamma = jnp.bool_(False), jnp.float32(0.5)
    >>> first, scale = scale_in_stream(init_scale(1), jnp.float32(2.0), no, gamma)
    >>> second, _ = scale_in_stream(scale, jnp.float32(3.0), no, gamma)  # R is 2, then 4: a variance of 2
    >>> float(first), round(float(second), 4)
    (2.0, 2.1213)
    """
    scale, _ = _observed(scale, reward[None, None], ended[None, None], gamma)
    return reward * jax.lax.rsqrt(statistics.sample_variance(scale.statistics) + 1e-8), scale


def _observed(
    scale: RewardScale, reward: Float[Array, "T B"], ended: Bool[Array, "T B"], gamma: Float[Array, ""]
) -> tuple[RewardScale, Float[Array, "T B"]]:
    """The scale with a rollout added, and R of it."""

    def accumulate(r: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = row
        r = gamma * r + reward
        return jnp.where(ended, 0.0, r), r

    last, values = jax.lax.scan(accumulate, scale.discounted_return, (reward, ended))
    return RewardScale(statistics.update_statistics(scale.statistics, values, 2), last), values


@struct.dataclass
class ReturnScale:
    """What bounds scaled returns, for agents that keep raw rewards and scale those that they draw.

    Attributes:
      scale: moments of R, and R of each environment.
      greatest: the greatest |R| so far.
    """

    scale: RewardScale
    greatest: Float[Array, ""]


def init_return_scale(num_envs: int) -> ReturnScale:
    """Before any reward."""
    return ReturnScale(init_scale(num_envs), jnp.float32(0.0))


def observe_returns(
    scale: ReturnScale, reward: Float[Array, "T B"], ended: Bool[Array, "T B"], gamma: Float[Array, ""]
) -> ReturnScale:
    """The scale with a rollout of raw rewards added; arguments as in `scale_rewards`."""
    moments, values = _observed(scale.scale, reward, ended, gamma)
    return ReturnScale(moments, jnp.maximum(scale.greatest, jnp.max(jnp.abs(values))))


def return_divisor(scale: ReturnScale, bound: Float[Array, ""] | float) -> Float[Array, ""]:
    """What rewards are divided by: R then has a deviation of at most 1, and never more than the bound.

        max(sqrt(Var R + 1e-8), max |R| / bound)

    Source: Lee et al. 2025, arXiv:2502.15280, in the form of the authors' code (DAVIAN-Robotics/SimbaV2), which forgets
    R with the last reward of an episode instead of after it.

    Args:
      scale: what has been seen.
      bound: of |R|, 5 in the paper.

    >>> seen = observe_returns(init_return_scale(1), jnp.full((4, 1), 2.0), jnp.zeros((4, 1), bool), jnp.float32(0.5))
    >>> return_divisor(seen, 1.0).item(), round(return_divisor(seen, 100.0).item(), 3)
    (3.75, 0.67)
    """
    return jnp.maximum(jnp.sqrt(scale.scale.statistics.var + 1e-8), scale.greatest / bound)
