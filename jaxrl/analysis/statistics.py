"""Aggregates of few runs and their uncertainty (Agarwal et al. 2021, arXiv:2108.13264), in NumPy.

All work along the last axis and broadcast over those before it; NaN means that a value is not known and is left out.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Statistic = Callable[..., Any]
"""`(values, axis=-1) -> aggregate`, ignoring NaN, vectorized over the other axes."""


def mean(values: Any, axis: int = -1) -> np.ndarray:
    """Mean of the known values; NaN if there are none."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def median(values: Any, axis: int = -1) -> np.ndarray:
    """Median of the known values; NaN if there are none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.asarray(np.nanmedian(np.asarray(values, np.float64), axis))


def iqm(values: Any, axis: int = -1) -> np.ndarray:
    """Interquartile mean: that of the middle half, which no single outlier moves.

    Of n known values the ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are dropped.

    Args:
      values: [..., n].
      axis: the axis of the n values.

    Returns:
      [...]; NaN where nothing is known.

    Example:
      >>> float(iqm([0.0, 1.0, 2.0, 1000.0]))
      1.5
    """
    # NaN sorts last, so the known values are the first `count` ranks.
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    count = (~np.isnan(ordered)).sum(-1, keepdims=True)
    cut, rank = count // 4, np.arange(ordered.shape[-1])
    return mean(np.where((rank >= cut) & (rank < count - cut), ordered, np.nan))


def bootstrap_interval(
    values: Any,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over seeds.

    Seeds are drawn with replacement, the same ones for all leading axes, so that a curve is resampled as a whole.

    Args:
      values: [..., seeds].
      statistic: of the last axis.
      confidence: share of the resamples that the interval holds.
      num_resamples: how often seeds are drawn.
      seed: of the draws: the same arguments give the same interval.

    Returns:
      Lower and upper bound, [...]; NaN where fewer than two seeds are known.

    Raises:
      ValueError: `confidence` is not between 0 and 1, `num_resamples` is not positive, or there are no values.
    """
    values = _checked(values, 1, confidence, num_resamples)
    num_seeds = values.shape[-1]
    draws = np.random.default_rng(seed).integers(num_seeds, size=(num_resamples, num_seeds))
    low, high = _percentiles(statistic(values[..., draws], axis=-1), confidence)
    certain = (~np.isnan(values)).sum(-1) >= 2
    return np.where(certain, low, np.nan), np.where(certain, high, np.nan)


def stratified_bootstrap_interval(
    values: Any,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of one statistic over all tasks and seeds.

    The tasks are fixed, not a sample: seeds are drawn with replacement within each task on its own, and the statistic
    is that of all tasks' draws together (Agarwal et al. 2021, section 4.1).

    Args:
      values: scores on a scale that the tasks share, [tasks, seeds]; NaN where a task has fewer seeds.
      statistic: of the last axis; it gets [num_resamples, tasks * seeds].
      confidence: share of the resamples that the interval holds.
      num_resamples: how often seeds are drawn.
      seed: of the draws.

    Returns:
      Lower and upper bound.

    Raises:
      ValueError: `values` does not have two axes, a task has no known value, `confidence` is not between 0 and 1, or
        `num_resamples` is not positive.
    """
    values = _checked(values, 2, confidence, num_resamples)
    if values.ndim != 2:
        raise ValueError(f"values must have the axes [tasks, seeds]; got shape {values.shape}.")
    if empty := np.flatnonzero(np.isnan(values).all(1)).tolist():
        raise ValueError(f"Every task needs at least one known value; those of index {empty} have none.")
    generator = np.random.default_rng(seed)

    def resample(scores: np.ndarray) -> np.ndarray:
        known = scores[~np.isnan(scores)]
        return known[generator.integers(len(known), size=(num_resamples, len(known)))]

    drawn = np.concatenate([resample(scores) for scores in values], axis=1)
    low, high = _percentiles(statistic(drawn, axis=-1), confidence)
    return float(low), float(high)


def _checked(values: Any, min_axes: int, confidence: float, num_resamples: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < min_axes or 0 in values.shape:
        raise ValueError(f"There must be at least one value and {min_axes} axes; got shape {values.shape}.")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            "confidence must be between 0 and 1 and num_resamples at least 1; "
            f"got confidence = {confidence}, num_resamples = {num_resamples}."
        )
    return values


def _percentiles(statistics: np.ndarray, confidence: float) -> np.ndarray:
    tail = 50.0 * (1.0 - confidence)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanpercentile(statistics, [tail, 100.0 - tail], axis=-1)
