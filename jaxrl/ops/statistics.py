"""Running statistics of observations, and measures of fit."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree, UInt32

from jaxrl.ops import trees
from jaxrl.types import Observation


@struct.dataclass
class RunningStatistics:
    """Mean and variance of each entry of an observation over all samples seen.

    The count is an unsigned integer: exact up to 4 294 967 295 samples, where it stays; from there on the statistics
    are an exponential average over that many samples, so they neither overflow nor freeze. The variance is kept rather
    than the sum of squares, which would swallow new samples once it is large, and the mean carries the part that
    float32 rounds away, so that it follows the data also where an entry is far from zero.

    Attributes:
      count: number of samples, uint32, shape ().
      mean: tree of the observation, float32.
      mean_residual: what is to be added to `mean` beyond its precision.
      var: population variance, float32.
    """

    count: UInt32[Array, ""]
    mean: PyTree
    mean_residual: PyTree
    var: PyTree


def init_statistics(example_obs: Observation) -> RunningStatistics:
    """Statistics of no samples.

    Args:
      example_obs: one observation, arrays or `ShapeDtypeStruct`s; only the shapes matter.
    """

    def zeros() -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), example_obs)

    return RunningStatistics(count=jnp.zeros((), jnp.uint32), mean=zeros(), mean_residual=zeros(), var=zeros())


def update_statistics(statistics: RunningStatistics, batch: Observation, num_batch_axes: int) -> RunningStatistics:
    """Adds a batch, all samples of equal weight, by the parallel update

        w = n_batch / (n + n_batch),   d = mean_batch - mean
        mean ← mean + w d,   var ← (1 - w) var + w var_batch + w (1 - w) d².

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37(3), equation 2.1.

    Args:
      statistics: of the samples before.
      batch: observations; the first `num_batch_axes` axes of each leaf are samples, at least one.
      num_batch_axes: static.
    """
    num_samples = math.prod(jax.tree.leaves(batch)[0].shape[:num_batch_axes])
    axes = tuple(range(num_batch_axes))
    total = statistics.count + jnp.uint32(num_samples)
    total = jnp.where(total < statistics.count, jnp.uint32(2**32 - 1), total)
    weight = jnp.float32(num_samples) / total.astype(jnp.float32)

    def update(mean: Array, residual: Array, var: Array, samples: Array) -> tuple[Array, Array, Array]:
        # Distances to the mean so far, then to the batch's: sums of small numbers keep their digits.
        distance = _to_float(samples) - jnp.broadcast_to(mean, samples.shape)
        shift = jnp.mean(distance, axis=axes)
        deviation = distance - jnp.broadcast_to(shift, distance.shape)
        correction = jnp.mean(deviation, axis=axes)
        batch_var = jnp.mean(jnp.square(deviation), axis=axes) - jnp.square(correction)
        rest = correction - residual
        between = jnp.square(shift + rest)
        new_var = (1.0 - weight) * var + weight * (batch_var + (1.0 - weight) * between)
        # Two-float sum: what mean + weight * shift rounds away joins the residual.
        moved = mean + weight * shift
        low = residual + weight * rest + (weight * shift - (moved - mean))
        new_mean = moved + low
        return new_mean, low - (new_mean - moved), new_var

    updated = jax.tree.map(update, statistics.mean, statistics.mean_residual, statistics.var, batch)
    mean, residual, var = jax.tree.transpose(
        jax.tree.structure(statistics.mean), jax.tree.structure((0, 0, 0)), updated
    )
    return RunningStatistics(count=total, mean=mean, mean_residual=residual, var=var)


def update_with_transition(
    statistics: RunningStatistics, next_obs: Observation, first_obs: Observation, ended: Bool[Array, ""]
) -> tuple[RunningStatistics, RunningStatistics]:
    """Adds one transition's observations: the true successor and, where the episode ended, the next one's first.

    Every observation is counted once, in the order in which it comes. A single sample is Welford's update (1962,
    Technometrics 4(3)).

    Args:
      statistics: of everything up to the observation that was acted on.
      next_obs: one observation, the true successor.
      first_obs: one observation, read only where the episode ended.
      ended: whether it did.

    Returns:
      The statistics that include `next_obs`, to normalize it with, and those for the observation to act on next.
    """
    seen = update_statistics(statistics, next_obs, 0)
    return seen, trees.where(ended, update_statistics(seen, first_obs, 0), seen)


def sample_variance(statistics: RunningStatistics) -> PyTree:
    """The unbiased variance of each entry, n / (n - 1) of the population's; 1 before there are two samples."""
    count = statistics.count.astype(jnp.float32)
    factor = count / jnp.maximum(count - 1.0, 1.0)
    return jax.tree.map(lambda var: jnp.where(count < 2.0, 1.0, factor * var), statistics.var)


def normalize_in_stream(statistics: RunningStatistics, obs: Observation) -> Observation:
    """As `normalize`, by the sample variance and without a bound.

    Source: Elsayed et al. 2024, arXiv:2410.14606, where these moments change with each transition: in the beginning
    the two variances differ, and so does what is learned first. Their authors' program has them so.
    """
    by_samples = dataclasses.replace(statistics, var=sample_variance(statistics))
    return normalize(by_samples, obs, clip=math.inf)


def normalize(
    statistics: RunningStatistics, obs: Observation, clip: float = 10.0, epsilon: float = 1e-8
) -> Observation:
    """Centers and scales observations: clip((x - mean) / √(var + ε), ±clip).

    Before the first update it only converts to float32. A leaf that a dict holds under the name `action_mask` is left
    as it is.

    Args:
      statistics: as updated so far.
      obs: observations, leaves [*batch, *shape]; integers and booleans become float32.
      clip: bound of the result.
      epsilon: least variance.
    """

    def apply(path: tuple[Any, ...], x: Array, mean: Array, residual: Array, var: Array) -> Array:
        if path and getattr(path[-1], "key", None) == "action_mask":
            return x
        x = _to_float(x)
        scale = jnp.broadcast_to(jax.lax.rsqrt(var + epsilon), x.shape)
        centered = x - jnp.broadcast_to(mean, x.shape) - jnp.broadcast_to(residual, x.shape)
        return jnp.where(statistics.count == 0, x, jnp.clip(centered * scale, -clip, clip))

    return jax.tree_util.tree_map_with_path(apply, obs, statistics.mean, statistics.mean_residual, statistics.var)


def explained_variance(prediction: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Share of the target's variance that a prediction accounts for, 1 - Var(target - prediction) / Var(target).

    1 is perfect, 0 no better than a constant, negative worse; 0 where the target does not vary.
    """
    variance = jnp.var(target)
    varies = variance > 0
    ratio = jnp.var(target - prediction) / jnp.where(varies, variance, 1.0)
    return jnp.where(varies, 1.0 - ratio, 0.0)


def standardize(x: Float[Array, "*batch"], epsilon: float = 1e-8) -> Float[Array, "*batch"]:
    """Centers and scales a batch by its own moments over all axes: (x - mean) / (std + ε).

    >>> standardize(jnp.array([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    return (x - jnp.mean(x)) / (jnp.std(x) + epsilon)


def _to_float(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.float32)
