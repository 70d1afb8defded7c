"""Fitness shaping: from the fitness of P candidates to the weights with which they move the mean.

All but `raw` sum to zero, so that a constant added to every fitness changes nothing. A fitness that is not finite
counts as less than every finite one; where none is finite, all weights are zero.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Shaping = Callable[[Float[Array, " P"]], Float[Array, " P"]]
"""`fitness [P] -> weights [P]`."""


def lowered(fitness: Float[Array, " P"]) -> Float[Array, " P"]:
    """The fitness with -inf for what is not finite.

    Example:
      >>> lowered(jnp.array([1.0, jnp.nan, jnp.inf])).tolist()
      [1.0, -inf, -inf]
    """
    return jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)


def centered_rank(fitness: Float[Array, " P"]) -> Float[Array, " P"]:
    """Ranks, from -1/2 for the worst to 1/2 for the best (Salimans et al. 2017, arXiv:1703.03864, section 2.1).

    Equal candidates share the mean of their ranks.

    Example:
      >>> centered_rank(jnp.array([3.0, 1.0, 3.0, jnp.nan, 5.0])).tolist()
      [0.125, -0.25, 0.125, -0.5, 0.5]
    """
    fitness = lowered(fitness)
    below = jnp.sum(fitness[None, :] < fitness[:, None], axis=1)
    equal = jnp.sum(fitness[None, :] == fitness[:, None], axis=1) - 1
    return (below + 0.5 * equal) / max(len(fitness) - 1, 1) - 0.5


def pairwise(fitness: Float[Array, " P"]) -> Float[Array, " P"]:
    """1/2 for the better and -1/2 for the worse of each antithetic pair, 0 for both if they are equal.

    Since the two lie opposite each other, their part of the gradient is that of 1 for the winner and 0 for the loser
    (Jackson et al. 2024, the rank transformation of temporally-aware learned objectives). A tie counts for nothing.

    Args:
      fitness: of candidates i and i + P/2 as pairs.

    Example:
      >>> (pairwise(jnp.array([3.0, 1.0, 2.0, 1.0])) + 0.0).tolist()
      [0.5, 0.0, -0.5, 0.0]
    """
    plus, minus = jnp.split(lowered(fitness), 2)
    half = 0.5 * ((plus > minus).astype(jnp.float32) - (plus < minus).astype(jnp.float32))
    return jnp.concatenate([half, -half])


def z_score(fitness: Float[Array, " P"]) -> Float[Array, " P"]:
    """Fitness less its mean, by its standard deviation; what is not finite counts as the worst that is.

    Example:
      >>> [round(z, 3) for z in z_score(jnp.array([1.0, 3.0, jnp.nan])).tolist()]
      [-0.707, 1.414, -0.707]
    """
    filled = raw(fitness)
    centered = filled - jnp.mean(filled)
    return centered / (jnp.std(filled) + 1e-8)


def raw(fitness: Float[Array, " P"]) -> Float[Array, " P"]:
    """The fitness itself; what is not finite counts as the worst that is.

    Example:
      >>> raw(jnp.array([1.0, 3.0, jnp.nan])).tolist()
      [1.0, 3.0, 1.0]
    """
    sound = jnp.isfinite(fitness)
    worst = jnp.min(jnp.where(sound, fitness, jnp.inf))
    return jnp.where(sound, fitness, jnp.where(jnp.isfinite(worst), worst, 0.0))


def by_rank(fitness: Float[Array, " P"], weights: Float[Array, " P"]) -> Float[Array, " P"]:
    """Gives the first weight to the best candidate and so on; equal ones share the mean of theirs.

    Args:
      fitness: of the candidates.
      weights: best first.

    Returns:
      A weight for each candidate; zeros if no fitness is finite.

    Example:
      >>> by_rank(jnp.array([1.0, 4.0, 1.0]), jnp.array([3.0, 2.0, 1.0])).tolist()
      [1.5, 3.0, 1.5]
    """
    fitness = lowered(fitness)
    own = jnp.zeros_like(weights).at[jnp.argsort(-fitness)].set(weights)
    same = (fitness[None, :] == fitness[:, None]).astype(weights.dtype)
    shared = same @ own / jnp.sum(same, axis=1)
    return jnp.where(jnp.any(jnp.isfinite(fitness)), shared, jnp.zeros_like(shared))


def is_tied(fitness: Float[Array, " P"], pairs: bool) -> Bool[Array, " Q"]:
    """Which pairs are tied, [P/2]; without pairs, which candidates have the fitness of another one, [P].

    Example:
      >>> is_tied(jnp.array([3.0, 1.0, 3.0, 2.0]), pairs=True).tolist()
      [True, False]
    """
    fitness = lowered(fitness)
    if pairs:
        plus, minus = jnp.split(fitness, 2)
        return plus == minus
    return jnp.sum(fitness[None, :] == fitness[:, None], axis=1) > 1
