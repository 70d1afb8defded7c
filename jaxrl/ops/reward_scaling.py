"""Scaling of rewards by the spread of their discounted return."""

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

    def accumulate(r: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = row
        r = gamma * r + reward
        return jnp.where(ended, 0.0, r), r

    last, values = jax.lax.scan(accumulate, scale.discounted_return, (reward, ended))
    stats = statistics.update_statistics(scale.statistics, values, 2)
    return jnp.clip(reward / jnp.sqrt(stats.var + 1e-8), -limit, limit), RewardScale(stats, last)
