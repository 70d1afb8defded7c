"""A sweep as a report looks at it, and its numbers in words."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray

from jaxrl.analysis import sensitivity, statistics
from jaxrl.analysis.sensitivity import BestSetting
from jaxrl.analysis.settings import Settings, default_row, record_of, settings_of, text

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class View:
    """A sweep in some environments, with what several parts of the report need."""

    dataset: xarray.Dataset
    label: str

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings with their scores."""
        return settings_of(self.dataset)

    @functools.cached_property
    def best(self) -> BestSetting:
        """The setting that is chosen; ValueError if none can be."""
        return sensitivity.best_setting(self.settings)

    @functools.cached_property
    def unjudged(self) -> str:
        """Why no setting can be chosen; "" if one can."""
        try:
            _ = self.best
        except ValueError as error:
            return str(error)
        return ""

    @functools.cached_property
    def shares(self) -> xarray.Dataset:
        """Importance of the names."""
        return sensitivity.importance(self.settings)

    @functools.cached_property
    def default(self) -> int | None:
        """The default setting's row, if it was run."""
        return default_row(self.settings, record_of(self.dataset))

    @functools.cached_property
    def scaled(self) -> np.ndarray:
        """Scores as they are compared, [S, E, N]."""
        return sensitivity.scaled(self.settings)

    @property
    def score(self) -> str:
        """Label of axes."""
        return "normalized score" if len(self.settings.envs) > 1 else "score (episode return)"

    @functools.cached_property
    def report_seeds(self) -> list[int]:
        """Places of the seeds that tell the score."""
        return [self.settings.seeds.index(seed) for seed in self.best.report_seeds]

    @functools.cached_property
    def center(self) -> np.ndarray:
        """Mean score of each setting over all seeds, [S]."""
        return statistics.mean(self.scaled).mean(1)

    @functools.cached_property
    def order(self) -> list[int]:
        """Settings from the best on the tuning seeds to the worst; those without a score last."""
        tuned = np.nan_to_num(self.best.tune_scores, nan=-np.inf)
        others = [int(row) for row in np.argsort(-tuned, kind="stable") if row != self.best.row]
        return [self.best.row, *others]

    def reported(self, row: int, words: str = "") -> str:
        """The score of a setting on the held-out seeds with its interval."""
        values = self.scaled[row][:, self.report_seeds]
        low, high = statistics.bootstrap_interval(
            values, lambda drawn, axis: statistics.iqm(drawn, axis).mean(0)[None], CONFIDENCE
        )
        return with_interval(self.best.report_scores[row], np.ravel(low)[0], np.ravel(high)[0], words)


def estimate(arrays: tuple[np.ndarray, ...], of: Any, few: bool) -> str:
    """An aggregate of scores with its 95% bootstrap interval; without the interval where seeds are too few."""
    center = float(of(*(values[None] for values in arrays))[0])
    low, high = (math.nan, math.nan) if few else map(float, statistics.stratified_bootstrap(arrays, of))
    return with_interval(center, low, high)


def with_interval(center: float, low: float, high: float, words: str = "") -> str:
    """A number with its interval, to the digits that the interval leaves sure."""
    if math.isnan(center):
        return "unknown"
    if math.isnan(low):
        return number(center)
    # Two digits of the interval's width: more would be noise.
    width = high - low
    digits = max(0, 1 - math.floor(math.log10(width))) if width > 1e-9 * abs(center) else None
    of, begin, end = (number(value) if digits is None else f"{value:,.{digits}f}" for value in (center, low, high))
    return f"{of} ({words}{begin} to {end})"


def number(value: float, digits: int = 4) -> str:
    """A number for people; a dash if it is not known."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def count_of(count: int, what: str) -> str:
    """So many of what: `1 seed`, `2 seeds`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and a last `and`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def span(seeds: Sequence[Any]) -> str:
    """Seeds in words: neighbors as a range."""
    whole = all(isinstance(seed, int) for seed in seeds) and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 2 else listed([text(seed) for seed in seeds])


def last(values: np.ndarray) -> float:
    """The last IQM over seeds that is known of curves [seeds, points]."""
    center = statistics.iqm(values.T)
    known = center[~np.isnan(center)]
    return float(known[-1]) if len(known) else math.nan
