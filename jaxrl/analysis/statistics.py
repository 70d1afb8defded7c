"""Aggregates of few runs and their uncertainty (Agarwal et al. 2021, arXiv:2108.13264), in NumPy.

All work along the last axis, or the last two where it says [tasks, seeds], and broadcast over those before; NaN means
that a value is not known and is left out.
"""

import warnings
from collections.abc import Callable, Sequence
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

    Of n known values the ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are dropped, as `scipy.stats.trim_mean(values, 0.25)` and
    rliable do; they have no rule for NaN.

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


def optimality_gap(values: Any, target: float = 1.0, axis: int = -1) -> np.ndarray:
    """How far values fall short of a target on average: mean of max(target - x, 0); exceeding it earns nothing.

    Args:
      values: normalized scores, [..., n].
      target: the score from which on more does not count (γ in Agarwal et al. 2021, section 4.3).
      axis: the axis of the n values.

    Returns:
      [...], in units of the scores; less is better; NaN where nothing is known.

    Example:
      >>> float(optimality_gap([0.5, 1.0, 3.0]))
      0.16666666666666666
    """
    return mean(np.maximum(target - np.asarray(values, np.float64), 0.0), axis)


def probability_of_improvement(x: Any, y: Any) -> np.ndarray:
    """How probable it is that a run of X scores higher than a run of Y on a task, on average over the tasks.

    P(X > Y) = 1/M Σ_m 1/(N_m K_m) Σ_i Σ_j S(x_mi, y_mj), where S is 1 if x > y, 1/2 if they are equal, else 0 (Agarwal
    et al. 2021, equation 1): the Mann-Whitney statistic as a share.

    Args:
      x: scores, [..., tasks, seeds], or [seeds] of one task.
      y: scores, [..., tasks, other seeds]; the tasks in the same order.

    Returns:
      [...], from 0 to 1; 1/2 means that neither is better. NaN if a task has no known value.

    Raises:
      ValueError: the numbers of tasks differ.

    Example:
      >>> float(probability_of_improvement([1.0, 2.0], [1.0, 0.0]))
      0.875
    """
    x, y = np.atleast_2d(np.asarray(x, np.float64)), np.atleast_2d(np.asarray(y, np.float64))
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"x and y must have the same tasks; got {x.shape[-2]} and {y.shape[-2]}.")
    # Comparisons with NaN are false. One run of X at a time: a bootstrap's values are too many for all pairs at once.
    wins = sum(((run > y) + 0.5 * (run == y)).sum(-1) for run in np.moveaxis(x, -1, 0)[..., None])
    pairs = (~np.isnan(x)).sum(-1) * (~np.isnan(y)).sum(-1)
    return np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0).mean(-1)


def performance_profile(values: Any, thresholds: Any) -> np.ndarray:
    """Share of the runs that score above each threshold, on average over the tasks (run-score distribution).

    F(τ) = 1/M Σ_m 1/N_m Σ_n [x_mn > τ] (Agarwal et al. 2021, equation 2).

    Args:
      values: normalized scores, [..., tasks, seeds], or [seeds] of one task.
      thresholds: τ, [thresholds].

    Returns:
      [..., thresholds], falling from 1 to 0.

    Example:
      >>> performance_profile([0.2, 0.5, 0.9], [0.0, 0.5, 1.0]).round(3).tolist()
      [1.0, 0.333, 0.0]
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    # One threshold at a time: a bootstrap's values are too many for another axis.
    shares = [
        mean(np.where(np.isnan(values), np.nan, values > threshold)).mean(-1) for threshold in np.ravel(thresholds)
    ]
    return np.stack(shares, axis=-1)


def normalize(scores: Any, low: Any, high: Any) -> np.ndarray:
    """Puts scores on a scale that tasks share: (score - low) / (high - low).

    Args:
      scores: [..., seeds], or [tasks, seeds] with bounds for each task.
      low: the score that becomes 0, a number or [tasks].
      high: the score that becomes 1, a number or [tasks].

    Raises:
      ValueError: `high` is not above `low`.

    Example:
      >>> normalize([[10.0, 20.0], [1.0, 2.0]], [0.0, 1.0], [20.0, 3.0]).tolist()
      [[0.5, 1.0], [0.0, 0.5]]
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not np.all(high > low):
        raise ValueError(
            f"high must be above low for every task; got low = {low.tolist()}, high = {high.tolist()}. "
            "Leave out a task whose scores are all the same, or give it bounds."
        )
    return (np.asarray(scores, np.float64) - low[..., None]) / (high - low)[..., None]


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
    low, high = stratified_bootstrap(
        (values,),
        lambda drawn: statistic(drawn.reshape(len(drawn), -1), axis=-1),
        confidence,
        num_resamples,
        seed,
    )
    return float(low), float(high)


def stratified_bootstrap(
    arrays: Sequence[Any],
    statistic: Callable[..., Any],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of any statistic of one or several groups of runs over the same tasks.

    Seeds are drawn with replacement within each task and group on its own.

    Args:
      arrays: scores of each group, [tasks, seeds]; NaN where a task has fewer seeds.
      statistic: gets one array [num_resamples, tasks, seeds] a group, gives [num_resamples, ...].
      confidence: share of the resamples that the interval holds.
      num_resamples: how often seeds are drawn.
      seed: of the draws.

    Returns:
      Lower and upper bound, [...].

    Raises:
      ValueError: an array does not have two axes, a task has no known value, `confidence` is not between 0 and 1, or
        `num_resamples` is not positive.

    Example:
      >>> low, high = stratified_bootstrap(([[1.0, 2.0]], [[3.0, 4.0]]), probability_of_improvement)
      >>> float(low), float(high)
      (0.0, 0.0)
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for values in arrays:
        values = _checked(values, 2, confidence, num_resamples)
        if values.ndim != 2:
            raise ValueError(f"values must have the axes [tasks, seeds]; got shape {values.shape}.")
        if empty := np.flatnonzero(np.isnan(values).all(1)).tolist():
            raise ValueError(f"Every task needs at least one known value; those of index {empty} have none.")
        draws = np.full((num_resamples, *values.shape), np.nan)
        for task, scores in enumerate(values):
            known = scores[~np.isnan(scores)]
            draws[:, task, : len(known)] = known[generator.integers(len(known), size=(num_resamples, len(known)))]
        drawn.append(draws)
    low, high = _percentiles(np.moveaxis(np.asarray(statistic(*drawn)), 0, -1), confidence)
    return low, high


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
