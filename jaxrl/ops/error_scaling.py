"""Scaling of TD errors by the spread of rewards, discounts and returns."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxrl.ops import statistics, trees

_LEAST_VARIANCE = 1e-4
_LEAST_VARIANCE_WITHOUT_RETURN = 1e-2


@struct.dataclass
class ErrorScale:
    """Running moments of one stream of transitions.

    Attributes:
      reward: of rewards.
      discount: of discounts, γ or 0 where the episode terminated.
      squared_return: of squared undiscounted returns of whole episodes.
      episode_return: of the episode in progress, shape ().
    """

    reward: statistics.RunningStatistics
    discount: statistics.RunningStatistics
    squared_return: statistics.RunningStatistics
    episode_return: Float[Array, ""]


def init_error_scale() -> ErrorScale:
    """The scale before any transition."""

    def empty() -> statistics.RunningStatistics:
        return statistics.init_statistics(jnp.float32(0))

    return ErrorScale(empty(), empty(), empty(), jnp.float32(0))


def update_error_scale(
    scale: ErrorScale,
    reward: Float[Array, ""],
    gamma: Float[Array, ""],
    terminated: Bool[Array, ""],
    ended: Bool[Array, ""],
) -> tuple[Float[Array, ""], ErrorScale]:
    """Adds one transition and gives the deviation by which its TD error is divided,

        σ² = Var(r) + Var(γ) E[G²]

    (Schaul et al. 2021, arXiv:2105.05347, equation 6), at least 1e-4, and 1 while no episode has ended and
    σ² ≤ 0.01, as in the code of Vasan et al. 2024 (arXiv:2411.15370).

    Args:
      scale: of the transitions before.
      reward: r.
      gamma: the discount.
      terminated: whether the episode terminated, where the discount is 0.
      ended: whether it ended, for either reason: its return is complete.

    Returns:
      σ with this transition, and the scale.
    """
    episode_return = scale.episode_return + reward
    with_return = statistics.update_statistics(scale.squared_return, jnp.square(episode_return), 0)
    scale = ErrorScale(
        reward=statistics.update_statistics(scale.reward, reward, 0),
        discount=statistics.update_statistics(scale.discount, jnp.where(terminated, 0.0, gamma), 0),
        squared_return=trees.where(ended, with_return, scale.squared_return),
        episode_return=jnp.where(ended, 0.0, episode_return),
    )
    variance = scale.reward.var + scale.discount.var * scale.squared_return.mean
    unknown = (scale.squared_return.count == 0) & (variance <= _LEAST_VARIANCE_WITHOUT_RETURN)
    return jnp.where(unknown, 1.0, jnp.sqrt(jnp.maximum(variance, _LEAST_VARIANCE))), scale
