"""Scaling of rewards by the spread of their discounted return."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl.ops import statistics


def scale_rewards(
    stats: statistics.RunningStatistics,
    discounted_return: Float[Array, " B"],
    reward: Float[Array, "T B"],
    ended: Bool[Array, "T B"],
    gamma: Float[Array, ""],
    limit: float = 10.0,
) -> tuple[Float[Array, "T B"], statistics.RunningStatistics, Float[Array, " B"]]:
    """Divides rewards by the running standard deviation of the discounted return that precedes them.

        R_t = γ R_{t-1} [not ended_{t-1}] + r_t,     r̃_t = clip(r_t / sqrt(Var R + 1e-8), ±limit)

    (Engstrom et al. 2020, arXiv:2005.12729, algorithm 1 in appendix A.2, with R forgotten where an episode ends.)

    Args:
      stats: moments of R so far.
      discounted_return: R of each environment before this rollout, 0 where an episode starts.
      reward: raw rewards.
      ended: where episodes ended.
      gamma: the training discount.
      limit: largest absolute scaled reward.

    Returns:
      The scaled rewards, the moments with this rollout added, and R after it.
    """

    def accumulate(r: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = row
        r = gamma * r + reward
        return jnp.where(ended, 0.0, r), r

    last, values = jax.lax.scan(accumulate, discounted_return, (reward, ended))
    stats = statistics.update_statistics(stats, values, 2)
    return jnp.clip(reward / jnp.sqrt(stats.var + 1e-8), -limit, limit), stats, last
