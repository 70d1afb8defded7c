"""How the score of a sweep depends on its settings, and which setting is best, without fooling oneself.

Seeds are resampled as whole columns: members of several settings that share a seed may share their random numbers.
Several environments are averaged on a common scale: each score is normalized per environment between the lowest and
the highest mean score that a setting of the sweep has there, unless bounds are given. A diverged member counts as the
lowest score of its environment.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import scipy.stats
import xarray

from jaxrl.analysis import statistics
from jaxrl.analysis.settings import Settings, is_number, settings_of, text
from jaxrl.analysis.statistics import Statistic

Bounds = Mapping[str, tuple[float, float]]
"""For each environment the scores that become 0 and 1."""

Sweep = xarray.Dataset | Settings
"""The dataset of a sweep, or `settings_of` it."""

# More distinct values than this are binned, and bins hold about equally many settings.
_MAX_LEVELS = 12
_NUM_BINS = 8
# Rows of settings whose resamples are held at once: 64 rows, 16 seeds, 2,000 resamples are 16 MB.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class BestSetting:
    """The best setting, chosen on some seeds and judged on others; S settings, E environments.

    Attributes:
      row: its row in `settings_of(dataset)`.
      values: its swept values, by name.
      tune_score: the score it was chosen for.
      score: its score on the other seeds: what to expect of it.
      low: lower bound of the score's interval over seeds.
      high: upper bound.
      env_scores: score, lower and upper bound in each environment, not normalized, on the other seeds, [E, 3].
      tune_scores: of all settings, [S].
      report_scores: of all settings on the other seeds, [S].
      wins: share of the resamples of the tuning seeds in which each setting is best; ties are shared out, [S].
      rank_correlation: Spearman's, of all settings between the two sets of seeds; NaN where it is not defined.
      tune_seeds: labels of the seeds it was chosen on.
      report_seeds: labels of the seeds it was judged on.
      held_out: whether these are other seeds. They are not where there is one seed, so that the score of a choice is
        too high, or one setting, where nothing is chosen and all seeds count.
    """

    row: int
    values: dict[str, Any]
    tune_score: float
    score: float
    low: float
    high: float
    env_scores: np.ndarray
    tune_scores: np.ndarray
    report_scores: np.ndarray
    wins: np.ndarray
    rank_correlation: float
    tune_seeds: tuple[Any, ...]
    report_seeds: tuple[Any, ...]
    held_out: bool


def settings_table(sweep: Sweep, aggregate: Statistic = statistics.iqm, confidence: float = 0.95) -> pandas.DataFrame:
    """One row for each setting and environment: its aggregate over seeds with an interval.

    Args:
      sweep: its dataset, or its settings.
      aggregate: over seeds.
      confidence: of the percentile bootstrap intervals over seeds.

    Returns:
      Columns `algorithm`, `env`, the swept names, `score`, `low`, `high` (NaN with fewer than two seeds), `num_seeds`
      that ran, and `num_diverged` of them.

    Example:
      >>> score = xarray.DataArray([[1.0, 3.0], [5.0, 7.0]], {"rate": [0.1, 0.2]}, ("rate", "seed"))
      >>> settings_table(xarray.Dataset({"score": score}))[["rate", "score", "num_seeds"]].values.tolist()
      [[0.1, 2.0, 2.0], [0.2, 6.0, 2.0]]
    """
    settings = _settings(sweep)
    center = aggregate(settings.scores, axis=-1)
    low, high = _intervals(settings.scores, aggregate, confidence)
    rows = [
        {
            "algorithm": settings.algorithm,
            "env": name,
            **settings.values(row),
            "score": center[row, env],
            "low": low[row, env],
            "high": high[row, env],
            "num_seeds": int(settings.ran[row, env].sum()),
            "num_diverged": int(settings.diverged[row, env].sum()),
        }
        for env, name in enumerate(settings.envs)
        for row in range(len(settings))
        if settings.ran[row, env].any()
    ]
    return pandas.DataFrame(rows)


def marginals(
    sweep: Sweep,
    name: str,
    bounds: Bounds | None = None,
    aggregate: Statistic = statistics.iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> xarray.Dataset:
    """The score over the values of one name, with the mean over the other names and with the best of them.

    Args:
      sweep: its dataset, or its settings.
      name: a swept name. Of a number with more than 12 values (a drawn one) 8 bins are made that hold about equally
        many settings; their label is the median of the values inside.
      bounds: for the normalization of several environments.
      aggregate: over seeds.
      confidence: of the bootstrap intervals over seeds.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      Dimension `name`; `mean`, `mean_low`, `mean_high`: of the settings with that value; `best`, `best_low`,
      `best_high`: of the one with the highest score among them, whose interval does not know that it was chosen for
      being the highest; `num_settings`.

    Raises:
      ValueError: the name was not swept.

    Example:
      >>> score = xarray.DataArray([[[1.0], [3.0]], [[5.0], [9.0]]], {"a": [1, 2], "b": [1, 2]}, ("a", "b", "seed"))
      >>> curve = marginals(xarray.Dataset({"score": score}), "a")
      >>> curve["mean"].values.tolist(), curve["best"].values.tolist()
      ([2.0, 7.0], [3.0, 9.0])
    """
    settings = _settings(sweep)
    if name not in settings.names:
        raise ValueError(f"{name!r} was not swept; choose one of {', '.join(settings.names) or 'none: there is one'}.")
    scores = scaled(settings, bounds)
    center = _over_envs(aggregate(scores, axis=-1))
    draws = np.random.default_rng(seed).integers(len(settings.seeds), size=(num_resamples, len(settings.seeds)))
    resampled = _resampled(scores, aggregate, draws)
    labels, groups = levels(settings.columns[name])
    tail = 50.0 * (1.0 - confidence)

    def bounds_of(values: np.ndarray) -> list[float]:
        values = values[~np.isnan(values)]
        many = len(settings.seeds) > 1 and len(values)
        return np.percentile(values, [tail, 100.0 - tail]).tolist() if many else [np.nan, np.nan]

    columns: dict[str, list[float]] = {}
    for group in range(len(labels)):
        rows = np.flatnonzero((groups == group) & ~np.isnan(center))
        top = rows[np.argmax(center[rows])] if len(rows) else 0
        of_mean, of_best = center[rows], center[[top]] if len(rows) else center[:0]
        found = {
            "mean": [statistics.mean(of_mean), *bounds_of(statistics.mean(resampled[rows], axis=0))],
            "best": [statistics.mean(of_best), *bounds_of(resampled[top] if len(rows) else center[:0])],
        }
        for key, three in found.items():
            for suffix, value in zip(("", "_low", "_high"), three, strict=True):
                columns.setdefault(key + suffix, []).append(float(value))
        columns.setdefault("num_settings", []).append(len(rows))
    return xarray.Dataset({key: (name, values) for key, values in columns.items()}, {name: labels})


def importance(
    sweep: Sweep, bounds: Bounds | None = None, num_permutations: int = 1000, seed: int = 0
) -> xarray.Dataset:
    """Share of the variance of the settings' mean score that each swept name explains.

    On a full grid the functional ANOVA is exact: with f the mean score and V its variance over the settings, the
    first-order share of a name is Var(E[f | name]) / V, the total share, which counts its interactions too, is
    E[Var(f | all other names)] / V, and that of a pair Var(E[f | both]) / V less both first-order shares (Sobol 1993;
    Hutter et al. 2014, ICML, section 3). Zipped names are one.

    Settings that are drawn, listed or left out are no full grid. The first-order share is then estimated from bins:
    η² = Var(bin means) / V, less what chance gives, (η² - m) / (1 - m) with m the mean of η² over permutations of the
    scores, and at least 0. The share of permutations that reach η² is its p-value. Shares of interactions are not
    estimated.

    Args:
      sweep: its dataset, or its settings.
      bounds: for the normalization of several environments.
      num_permutations: of the null where settings are no full grid.
      seed: of the permutations.

    Returns:
      Dimensions `name` and `other`; `first_order` (name), `total` (name), `pair` (name, other), `p_value` (name): NaN
      where it is not estimated. Attributes: `method`, `num_settings`, and `noise_share`, the expected share of V that
      comes from having few seeds: it is spread over all shares, over interactions mostly.

    Example:
      >>> score = xarray.DataArray([[[0.0], [1.0]], [[2.0], [3.0]]], {"a": [1, 2], "b": [1, 2]}, ("a", "b", "seed"))
      >>> importance(xarray.Dataset({"score": score}))["first_order"].values.tolist()
      [0.8, 0.2]
    """
    settings = _settings(sweep)
    scores = scaled(settings, bounds)
    center = _over_envs(statistics.mean(scores))
    num = (~np.isnan(scores)).sum(-1)
    squares = np.where(np.isnan(scores), 0.0, (scores - statistics.mean(scores)[..., None]) ** 2).sum(-1)
    noise = np.divide(squares, (num - 1) * num, out=np.full(num.shape, np.nan), where=num > 1)
    labels = [factor.label for factor in settings.factors]
    size = len(labels)
    first, total, p_value = np.full(size, np.nan), np.full(size, np.nan), np.full(size, np.nan)
    pair = np.full((size, size), np.nan)
    known = ~np.isnan(center)
    variance = float(np.var(center[known])) if known.any() else 0.0
    # Below this the scores differ by rounding only.
    if variance > 1e-20 * float(np.mean(np.square(center[known]))):
        if settings.is_grid():
            grid = center.reshape([settings.dims[factor.dim] for factor in settings.factors])
            first, total, pair = _anova(grid, variance)
        else:
            first, p_value = _binned(settings, center, num_permutations, seed)
    return xarray.Dataset(
        {
            "first_order": ("name", first),
            "total": ("name", total),
            "pair": (("name", "other"), pair),
            "p_value": ("name", p_value),
        },
        {"name": labels, "other": labels},
        {
            "method": "functional ANOVA of the full grid" if settings.is_grid() else "binned first-order shares",
            "num_settings": len(settings),
            "noise_share": float(statistics.mean(noise.sum(1)) / len(settings.envs) ** 2 / (variance or np.nan)),
        },
    )


def best_setting(
    sweep: Sweep,
    tune_seeds: Sequence[Any] | None = None,
    report_seeds: Sequence[Any] | None = None,
    bounds: Bounds | None = None,
    aggregate: Statistic = statistics.iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> BestSetting:
    """Chooses the best setting on one set of seeds and reports it on another, so that luck does not count.

    Args:
      sweep: its dataset, or its settings. Only settings with a score in every environment are candidates. Of equal
        aggregates (at a task's ceiling) the one with the higher mean is taken, then the first.
      tune_seeds: labels of the seeds to choose on; None: the first half of them.
      report_seeds: labels of the seeds to judge on; None: all others.
      bounds: for the normalization of several environments.
      aggregate: over seeds.
      confidence: of the percentile bootstrap interval over the reporting seeds.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: a seed is unknown, in both sets, or a set is empty; or no setting has a score in every environment.

    Example:
      >>> score = xarray.DataArray([[1.0, 3.0], [5.0, 7.0]], {"rate": [0.1, 0.2], "seed": [0, 1]}, ("rate", "seed"))
      >>> best = best_setting(xarray.Dataset({"score": score}))
      >>> best.values, best.tune_score, best.score
      ({'rate': 0.2}, 5.0, 7.0)
    """
    settings = _settings(sweep)
    alone = len(settings.seeds) == 1 or len(settings) == 1
    tune, report = (
        (everything := list(range(len(settings.seeds))), everything)
        if alone and tune_seeds is None and report_seeds is None
        else _split(settings.seeds, tune_seeds, report_seeds)
    )
    scores = scaled(settings, bounds)
    tuned = _over_envs(aggregate(scores[..., tune], axis=-1))
    if np.isnan(tuned).all():
        raise ValueError(
            f"No setting has a score in every environment on the seeds {[settings.seeds[i] for i in tune]}: "
            "choose other seeds, or fewer environments with dataset.sel(env=...)."
        )
    reported = _over_envs(aggregate(scores[..., report], axis=-1))
    means = _over_envs(statistics.mean(scores[..., tune]))
    row = int(np.lexsort((-np.arange(len(tuned)), means, np.nan_to_num(tuned, nan=-np.inf)))[-1])
    generator = np.random.default_rng(seed)
    drawn = _resampled(scores[..., tune], aggregate, generator.integers(len(tune), size=(num_resamples, len(tune))))
    drawn = np.where(np.isnan(drawn), -np.inf, drawn)
    winners = drawn == drawn.max(0)
    low, high = statistics.bootstrap_interval(
        scores[row][..., report],
        lambda values, axis: _over_envs(aggregate(values, axis=axis), axis=0)[None],
        confidence,
        num_resamples,
        seed,
    )
    env_low, env_high = _intervals(settings.scores[[row]][..., report], aggregate, confidence)
    env_center = aggregate(settings.scores[row][:, report], axis=-1)
    return BestSetting(
        row=row,
        values=settings.values(row),
        tune_score=float(tuned[row]),
        score=float(reported[row]),
        low=float(np.ravel(low)[0]),
        high=float(np.ravel(high)[0]),
        env_scores=np.stack([env_center, env_low[0], env_high[0]], -1),
        tune_scores=tuned,
        report_scores=reported,
        wins=(winners / winners.sum(0)).mean(1),
        rank_correlation=rank_correlation(tuned, reported) if tune != report else np.nan,
        tune_seeds=tuple(settings.seeds[i] for i in tune),
        report_seeds=tuple(settings.seeds[i] for i in report),
        held_out=tune != report,
    )


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's rank correlation of the pairs in which both are known; NaN if there are fewer than two, or no spread.

    Example:
      >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
      0.5
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 2 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return float("nan")
    return round(float(np.corrcoef(scipy.stats.rankdata(x[known]), scipy.stats.rankdata(y[known]))[0, 1]), 12)


def score_bounds(settings: Settings) -> Bounds:
    """For each environment the lowest and the highest mean score of a setting: what normalizes by default."""
    center = statistics.mean(settings.scores)
    lowest, highest = np.nanmin(_or_zero(center), axis=0), np.nanmax(_or_zero(center), axis=0)
    return {
        name: (float(low), float(high if high > low else low + 1.0))
        for name, low, high in zip(settings.envs, lowest, highest, strict=True)
    }


def scaled(settings: Settings, bounds: Bounds | None = None) -> np.ndarray:
    """The members' scores, normalized if there are several environments or bounds are given, [S, E, N].

    Raises:
      ValueError: an environment has no bounds, or its upper one is not above its lower one.
    """
    if len(settings.envs) == 1 and not bounds:
        return settings.scores
    bounds = bounds or score_bounds(settings)
    if missing := [env for env in settings.envs if env not in bounds]:
        raise ValueError(f"There are no bounds for {', '.join(missing)}; bounds are given for {', '.join(bounds)}.")
    low, high = np.array([bounds[env] for env in settings.envs], np.float64).T
    return statistics.normalize(settings.scores, low, high)


def levels(values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Distinct values in order, or the medians of bins of many numbers, and which one each value belongs to."""
    distinct = list(dict.fromkeys(values))
    if not all(is_number(value) for value in distinct):
        return [text(value) for value in distinct], np.array([distinct.index(value) for value in values])
    column = np.asarray(values, np.float64)
    if len(distinct) <= _MAX_LEVELS:
        return sorted(distinct), np.searchsorted(np.sort(np.asarray(distinct, np.float64)), column)
    edges = np.quantile(column, np.linspace(0.0, 1.0, _NUM_BINS + 1)[1:-1])
    found, groups = np.unique(np.searchsorted(edges, column), return_inverse=True)
    return [float(np.median(column[groups == group])) for group in range(len(found))], groups


def _anova(grid: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First-order, total and pair shares of the axes of a full grid."""
    axes = range(grid.ndim)

    def explained(*kept: int) -> float:
        return float(np.var(grid.mean(tuple(axis for axis in axes if axis not in kept)))) / variance

    first = np.array([explained(axis) for axis in axes])
    total = np.array([float(grid.var(axis).mean()) / variance for axis in axes])
    pair = np.full((grid.ndim, grid.ndim), np.nan)
    for i in axes:
        for j in range(i):
            pair[i, j] = pair[j, i] = max(explained(i, j) - first[i] - first[j], 0.0)
    # Rounding would show as 0.8000000000000002.
    return first.round(12), total.round(12), pair.round(12)


def _binned(settings: Settings, center: np.ndarray, num_permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First-order shares less those of chance, and their p-values."""
    known = ~np.isnan(center)
    scores = center[known] - center[known].mean()
    permuted = np.random.default_rng(seed).permuted(np.tile(scores, (num_permutations, 1)), axis=1)
    tried = np.concatenate([scores[None], permuted])
    shares, p_values = [], []
    for factor in settings.factors:
        _, groups = levels(settings.along(factor))
        member = np.eye(int(groups.max()) + 1)[groups[known]]
        counts = np.maximum(member.sum(0), 1.0)
        share = np.square(tried @ member / np.sqrt(counts)).sum(1) / np.square(scores).sum()
        chance = share[1:].mean()
        shares.append(max((share[0] - chance) / (1.0 - chance), 0.0) if chance < 1.0 else np.nan)
        p_values.append((1 + np.sum(share[1:] >= share[0] - 1e-12)) / (1 + num_permutations))
    return np.array(shares), np.array(p_values)


def _over_envs(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Mean over environments; unknown where one is unknown."""
    return values.mean(axis)


def _or_zero(center: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(center).all(0), 0.0, center)


def _resampled(scores: np.ndarray, aggregate: Statistic, draws: np.ndarray) -> np.ndarray:
    """The aggregate over each draw of seeds, averaged over environments: [S, E, N] and [R, N] to [S, R]."""
    blocks = range(0, len(scores), _BLOCK)
    return np.concatenate(
        [_over_envs(aggregate(scores[start : start + _BLOCK][..., draws], axis=-1)) for start in blocks]
    )


def _intervals(scores: np.ndarray, aggregate: Statistic, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    blocks = range(0, len(scores), _BLOCK)
    found = [statistics.bootstrap_interval(scores[i : i + _BLOCK], aggregate, confidence) for i in blocks]
    return np.concatenate([low for low, _ in found]), np.concatenate([high for _, high in found])


def _settings(sweep: Sweep) -> Settings:
    return sweep if isinstance(sweep, Settings) else settings_of(sweep)


def _split(
    seeds: tuple[Any, ...], tune: Sequence[Any] | None, report: Sequence[Any] | None
) -> tuple[list[int], list[int]]:
    """Positions of the tuning and of the reporting seeds."""
    for name, chosen in (("tune_seeds", tune), ("report_seeds", report)):
        if chosen is not None and (unknown := [seed for seed in chosen if seed not in seeds]):
            raise ValueError(f"{name} has {unknown}, which the sweep does not have; it has {list(seeds)}.")
    if tune is None:
        left = [seed for seed in seeds if report is None or seed not in report]
        tune = left[: len(seeds) // 2] if report is None else left
    report = [seed for seed in seeds if seed not in tune] if report is None else report
    if not len(tune) or not len(report) or set(tune) & set(report):
        raise ValueError(
            "tune_seeds and report_seeds must each have a seed and none in common; "
            f"got {list(tune)} and {list(report)} of {list(seeds)}."
        )
    return [seeds.index(seed) for seed in tune], [seeds.index(seed) for seed in report]
