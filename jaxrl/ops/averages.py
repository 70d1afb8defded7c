"""Exponentially weighted averages of trees whose first samples are not overweighted."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, ArrayLike, Float, PyTree


@struct.dataclass
class Average:
    """A weighted mean of trees.

    Attributes:
      mean: of the trees so far.
      weight: the sum of their weights, shape ().
    """

    mean: PyTree
    weight: Float[Array, ""]


def start_average(tree: PyTree, weight: float) -> Average:
    """An average of one tree.

    Args:
      tree: the first sample.
      weight: its weight: 1 for a sample like all others, 0 for one that the next replaces.
    """
    # A copy, so that a state that also holds the tree itself can be donated.
    return Average(jax.tree.map(jnp.copy, tree), jnp.float32(weight))


def update_average(average: Average, tree: PyTree, decay: ArrayLike) -> Average:
    """Adds a sample of weight 1 after multiplying the weight of all earlier ones by `decay`.

        w' = β w + 1,   mean' = (β w / w') mean + tree / w'

    Source: Hilton et al. 2022, arXiv:2110.00641, appendix A and the authors' code: an EWMA with bias correction.

    Args:
      average: of the samples before.
      tree: the new sample.
      decay: β in [0, 1]; the average reaches back about 1 / (1 - β) samples.

    >>> average = update_average(start_average(jnp.float32(1.0), 1.0), jnp.float32(4.0), 0.5)
    >>> float(average.mean)
    3.0
    """
    weight = jnp.asarray(decay) * average.weight + 1.0
    share = 1.0 / weight
    return Average(jax.tree.map(lambda mean, new: mean + share * (new - mean), average.mean, tree), weight)


def moments(x: Float[Array, "*batch"]) -> dict[str, Any]:
    """Mean and mean square of a batch, which an `Average` may average."""
    return {"mean": jnp.mean(x), "square": jnp.mean(jnp.square(x))}


def standardize_by(average: Average, x: Float[Array, "*batch"], epsilon: float = 1e-8) -> Float[Array, "*batch"]:
    """Centers and scales a batch by averaged `moments`: (x - mean) / (std + ε)."""
    mean = average.mean["mean"]
    variance = jnp.maximum(average.mean["square"] - jnp.square(mean), 0.0)
    return (x - mean) / (jnp.sqrt(variance) + epsilon)
