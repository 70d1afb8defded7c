"""Multi-level Monte Carlo: an estimate with a long trajectory's bias from trajectories that are short on average.

A level J ~ Geom(1/2) is drawn, and 2^J samples g_0, g_1, … of a Markov chain are taken, or one if J > K (the greatest
level, so that T_max = 2^K). With g^j the mean of the first 2^j samples, the estimate is

    h = g^0 + 2^J (g^J - g^(J-1))   if J ≤ K,   otherwise g^0.

As P(J) = 2^-J, the expectation telescopes to that of g^K, the mean over T_max samples; the expected number of samples
is K + 2^-K, about log2 T_max. Source: Dorfman and Levy 2022 (arXiv:2202.04428); Suttle et al. 2023 (arXiv:2301.12083).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl.types import Key

MAX_LEVEL = 30
"""Lengths are int32."""


def draw_level(key: Key, max_level: int) -> Int[Array, ""]:
    """Draws J ~ Geom(1/2), J ≥ 1, and gives 0 in place of a level above `max_level`: one sample, used as it is.

    Args:
      key: a random key.
      max_level: K, from 0 to `MAX_LEVEL`.

    Returns:
      The level; the trajectory has 2^level samples.

    >>> levels = jax.vmap(lambda key: draw_level(key, 2))(jax.random.split(jax.random.key(0), 1000))
    >>> [round(float((levels == j).mean()), 1) for j in range(4)]
    [0.2, 0.5, 0.3, 0.0]
    """
    # The number of leading zeros of a random word: k with probability 2^-(k + 1).
    level = jax.lax.clz(jax.random.bits(key)).astype(jnp.int32) + 1
    return jnp.where(level > max_level, 0, level)


def sample_weight(index: Int[Array, "..."], level: Int[Array, "..."]) -> Float[Array, "..."]:
    """How often sample i counts in the estimate of level J, so that h = Σ_i w_i g_i.

        w_i = [i = 0] + 2^J (1/2^J - [i < 2^(J-1)] / 2^(J-1)) = [i = 0] ± 1,   + in the second half;   w_0 = 1 if J = 0

    The factor 2^J cancels the means' denominators, so one running sum makes the estimate.

    Args:
      index: i, from 0 to 2^J - 1.
      level: J.

    Returns:
      w, float32.

    >>> sample_weight(jnp.arange(4), jnp.int32(2)).tolist()
    [0.0, -1.0, 1.0, 1.0]
    """
    half = jnp.where(index < (1 << level) // 2, jnp.float32(-1.0), 1.0)
    return jnp.where(index == 0, jnp.float32(1.0), 0.0) + jnp.where(level == 0, 0.0, half)


def expected_length(max_level: int) -> float:
    """The expected number of samples of one estimate, Σ_{j ≤ K} 2^-j 2^j + 2^-K = K + 2^-K.

    >>> expected_length(10)
    10.0009765625
    """
    return max_level + 2.0**-max_level
