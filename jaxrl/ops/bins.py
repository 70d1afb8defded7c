"""Scalars as categorical distributions over bins: two-hot, HL-Gauss, and the projection of a distribution.

A value is spread over K bins with equally spaced centers z_1 < … < z_K, and a network that returns K logits is trained
by cross-entropy on that histogram; its value is the mean of the centers under softmax(logits). The ends of the centers
are data (a leaf may hold them), their number is structure.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, ArrayLike, Float


@struct.dataclass
class Support:
    """The range of what is represented.

    Attributes:
      low: the least value that can be represented.
      high: the greatest.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]


def bin_centers(low: ArrayLike, high: ArrayLike, num_bins: int) -> Float[Array, " K"]:
    """Equally spaced centers z_1 = low … z_K = high.

    Args:
      low: the least value that can be represented.
      high: the greatest; above `low`.
      num_bins: K, at least 2.

    Raises:
      ValueError: fewer than two bins.

    >>> bin_centers(-1.0, 1.0, 5).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, so that there is a width; got num_bins = {num_bins}.")
    return jnp.linspace(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32), num_bins)


def two_hot(x: Float[Array, "*batch"], centers: Float[Array, " K"]) -> Float[Array, "*batch K"]:
    """Splits the weight of a value between the two nearest centers, so that the mean is the value.

        p_i = max(0, 1 - |x - z_i| / (z_2 - z_1)),   x clipped to [z_1, z_K]

    Source: Bellemare et al. 2017, arXiv:1707.06887, equation 7, for a distribution of one atom.

    Args:
      x: values; those outside of the centers are moved to the nearest end.
      centers: equally spaced, from `bin_centers`.

    Returns:
      Probabilities.

    >>> two_hot(jnp.float32(0.25), bin_centers(-1.0, 1.0, 3)).tolist()
    [0.0, 0.75, 0.25]
    """
    distance = _offsets(jnp.clip(x, centers[0], centers[-1]), centers) / (centers[1] - centers[0])
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def hl_gauss(
    x: Float[Array, "*batch"], centers: Float[Array, " K"], sigma_ratio: ArrayLike = 0.75
) -> Float[Array, "*batch K"]:
    """Integrates a normal density around a value over each bin.

        p_i ∝ Φ((z_i + w/2 - x) / σ) - Φ((z_i - w/2 - x) / σ),   w = z_2 - z_1,   σ = sigma_ratio · w,

    normalized over the bins, x clipped to [z_1, z_K]. The mean is the value, but for less than a bin near the ends.

    Source: Imani and White 2018, arXiv:1806.04613; Farebrother et al. 2024, arXiv:2403.03950, section 3.1, whose ratio
    0.75 spreads a value over about six bins.

    Args:
      x: values.
      centers: equally spaced, from `bin_centers`.
      sigma_ratio: standard deviation in units of a bin's width, positive.

    Returns:
      Probabilities.

    >>> [round(p, 3) for p in hl_gauss(jnp.float32(0.0), bin_centers(-2.0, 2.0, 5), 0.5).tolist()]
    [0.001, 0.157, 0.683, 0.157, 0.001]
    """
    width = centers[1] - centers[0]
    edges = jnp.concatenate([centers - 0.5 * width, centers[-1:] + 0.5 * width])
    scale = math.sqrt(2.0) * jnp.asarray(sigma_ratio, jnp.float32) * width
    cumulative = jax.lax.erf(-_offsets(jnp.clip(x, centers[0], centers[-1]), edges) / scale)
    mass = cumulative[..., 1:] - cumulative[..., :-1]
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


def project(
    atoms: Float[Array, "*batch J"], probs: Float[Array, "*batch J"], centers: Float[Array, " K"]
) -> Float[Array, "*batch K"]:
    """Moves a distribution's weight from its atoms to the two nearest centers of each.

        p_i = Σ_j probs_j max(0, 1 - |clip(atom_j) - z_i| / (z_2 - z_1))

    With atoms r + γ z it is the target of a categorical value distribution (C51).

    Source: Bellemare et al. 2017, arXiv:1707.06887, equation 7.

    Args:
      atoms: the values that the distribution may take.
      probs: their probabilities.
      centers: equally spaced, from `bin_centers`.

    Returns:
      Probabilities.

    >>> project(jnp.float32([0.0, 0.5]), jnp.float32([0.5, 0.5]), bin_centers(-1.0, 1.0, 3)).tolist()
    [0.0, 0.75, 0.25]
    """
    return jnp.einsum("...j,...jk->...k", probs, two_hot(atoms, centers))


def expected_value(logits: Float[Array, "*batch K"], centers: Float[Array, " K"]) -> Float[Array, "*batch"]:
    """The mean Σ_i softmax(logits)_i z_i.

    >>> float(expected_value(jnp.zeros(3), bin_centers(0.0, 4.0, 3)))
    2.0
    """
    return jnp.sum(jax.nn.softmax(logits) * jnp.broadcast_to(centers, logits.shape), axis=-1)


def cross_entropy(logits: Float[Array, "*batch K"], probs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """-Σ_i p_i log softmax(logits)_i."""
    return optax.softmax_cross_entropy(logits, probs)


def _offsets(x: Float[Array, "*batch"], points: Float[Array, " K"]) -> Float[Array, "*batch K"]:
    """x less each of the points."""
    shape = (*x.shape, points.shape[0])
    return jnp.broadcast_to(x[..., None], shape) - jnp.broadcast_to(points, shape)
