"""Whether two runs or sweeps differ: in what was run, in the final scores, and in the learning curves."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray

from jaxrl.analysis import statistics
from jaxrl.analysis.settings import Settings, flat_record, record_of, returns_of, same, settings_of, text
from jaxrl.analysis.statistics import Statistic

# Entries of a record that always differ.
_PASSING = ("created", "changes")
_NUM_CURVE_POINTS = 50
_LEVEL = 0.05
_MAX_WIDTH = 60


@dataclasses.dataclass(frozen=True)
class EnvComparison:
    """Two groups of runs in one environment; B against A.

    Attributes:
      env: the environment.
      num_settings: settings that both have.
      num_seeds: known scores of A and of B, over those settings.
      num_diverged: how many of these diverged and count as the lowest score of both.
      scores: aggregate over seeds of A and of B, averaged over the settings.
      difference: B less A.
      interval: of the difference, by stratified bootstrap.
      effect_size: difference of the means in pooled standard deviations of the seeds (Cohen's d).
      improvement: probability that a run of B scores higher than one of A, its lower and upper bound.
      p_value: of the test of the scores.
      p_adjusted: the same after Holm's correction over the environments.
      smallest_p: the smallest p-value that these numbers of seeds and permutations can give.
      curve_p_value: of the test of the curves; NaN where there are none to compare.
      curve_p_adjusted: the same after Holm's correction.
      curve_peak: env steps at which the curves differ most, in units of their spread.
      curve_range: first and last step at which they differ at the level of 5%, all steps together; NaN if none.
    """

    env: str
    num_settings: int
    num_seeds: tuple[int, int]
    num_diverged: tuple[int, int]
    scores: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    effect_size: float
    improvement: tuple[float, float, float]
    p_value: float
    p_adjusted: float
    smallest_p: float
    curve_p_value: float
    curve_p_adjusted: float
    curve_peak: float
    curve_range: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What differs between two runs or sweeps.

    Attributes:
      names: of A and B.
      config: entries of the records and of the swept names that differ: name, A's, B's.
      envs: one entry for each environment that both have.
      score_name: what the score is.
      test: the test of the scores, in words.
      curve_test: the test of the curves, in words.
      confidence: of the intervals.
    """

    names: tuple[str, str]
    config: tuple[tuple[str, Any, Any], ...]
    envs: tuple[EnvComparison, ...]
    score_name: str
    test: str
    curve_test: str
    confidence: float

    def lines(self) -> list[str]:
        """The comparison as lines for a terminal."""
        a, b = self.names
        lines = [f"A  {a}", f"B  {b}", ""]
        lines.append(f"{len(self.config) or 'No'} recorded entries differ{':' if self.config else '.'}")
        width = max((len(name) for name, _, _ in self.config), default=0)
        for name, left, right in self.config:
            lines.append(f"  {name:<{width}}  A {_short(left)}   B {_short(right)}")
        lines += ["", f"Score: {self.score_name}."]
        for env in self.envs:
            lines += ["", *self._env_lines(env)]
        lines += ["", f"Test of the scores: {self.test}"]
        curves = any(not math.isnan(env.curve_p_value) for env in self.envs)
        return [*lines, f"Test of the curves: {self.curve_test}"] if curves else lines

    def _env_lines(self, env: EnvComparison) -> list[str]:
        settings = "1 setting" if env.num_settings == 1 else f"{env.num_settings} matching settings"
        holm = f", {_p(env.p_adjusted)} after Holm over {len(self.envs)} environments" if len(self.envs) > 1 else ""
        sure = f"{self.confidence:.0%} interval"
        lines = [
            f"{env.env or 'Environment not recorded'}: {settings}, {env.num_seeds[0]} and {env.num_seeds[1]} scores",
            f"  score         A {env.scores[0]:.4g}   B {env.scores[1]:.4g}",
            f"  B - A         {env.difference:+.4g}, {sure} {_span(env.interval)}; effect size {env.effect_size:+.2f}",
            f"  P(B > A)      {env.improvement[0]:.2f}, {sure} {_span(env.improvement[1:])}",
            f"  scores        {_verdict(env.p_adjusted)}: p = {_p(env.p_value)}{holm}",
        ]
        if not math.isnan(env.curve_p_value):
            holm = f", {_p(env.curve_p_adjusted)} after Holm" if len(self.envs) > 1 else ""
            found = f"  curves        {_verdict(env.curve_p_adjusted)}: p = {_p(env.curve_p_value)}{holm}"
            where = f"; most at {env.curve_peak:,.0f} env steps"
            if not math.isnan(env.curve_range[0]):
                where += f"; from {env.curve_range[0]:,.0f} to {env.curve_range[1]:,.0f}"
            lines.append(found + where)
        if any(env.num_diverged):
            lines.append(
                f"  diverged      A {env.num_diverged[0]}, B {env.num_diverged[1]}; they count as the lowest score"
            )
        if env.smallest_p * len(self.envs) > _LEVEL:
            lines.append(
                f"  few seeds     p cannot be below {_p(env.smallest_p)} here: no difference can be found at 5%"
            )
        return lines


def compare_runs(
    dataset_a: xarray.Dataset,
    dataset_b: xarray.Dataset,
    names: tuple[str, str] = ("A", "B"),
    aggregate: Statistic = statistics.iqm,
    confidence: float = 0.95,
    num_permutations: int = 10_000,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs or sweeps in each environment that both have, over the settings that both have.

    Scores: T = mean over settings of [aggregate of B's seeds - aggregate of A's]. Under the null hypothesis the labels
    A and B are exchangeable within a setting; p is the share of relabelings with |T*| ≥ |T|. All relabelings are
    counted if they are at most `num_permutations`; otherwise p = (1 + count) / (1 + num_permutations) over random ones
    (Phipson and Smyth 2010). The groups are taken as independent; where the same seeds were used in both, the test is
    a cautious one.

    Curves: the greatest difference of mean curves over all steps, each in units of the standard deviation of all
    members there (max-T, Westfall and Young 1993), with the same relabelings. Curves are interpolated to 50 steps that
    all members have.

    Holm's correction (1979) is made over environments, for scores and for curves on their own. A diverged member has
    the lowest score of its environment in either dataset; its curve goes on at the lowest return of its own dataset.

    Args:
      dataset_a: of a sweep, or of a run alone (dimensions seed and step).
      dataset_b: the other one.
      names: what to call them.
      aggregate: over seeds, for the test of the scores.
      confidence: of the bootstrap intervals.
      num_permutations: of the tests.
      num_resamples: of the bootstrap.
      seed: of permutations and bootstrap.

    Raises:
      ValueError: no environment or no setting is in both, a setting of one matches several of the other, or their
        scores are not the same quantity.

    Example:
      >>> def run(level):
      ...     return xarray.Dataset({"score": ("seed", level + np.arange(5.0))})
      >>> found = compare_runs(run(0.0), run(9.0), aggregate=statistics.mean)
      >>> found.envs[0].difference, round(found.envs[0].p_value, 4)
      (9.0, 0.0079)
    """
    a, b = _matched(dataset_a, dataset_b)
    if a.score_name != b.score_name:
        raise ValueError(f"The scores are not the same quantity: {a.score_name}, and {b.score_name}.")
    shared = [env for env in a.envs if env in b.envs]
    pairs = [(a.envs.index(env), b.envs.index(env)) for env in shared]
    if not shared and len(a.envs) == len(b.envs) == 1 and "" in (*a.envs, *b.envs):
        shared, pairs = [a.envs[0] or b.envs[0]], [(0, 0)]
    if not shared:
        raise ValueError(f"No environment is in both: A has {', '.join(a.envs)}; B has {', '.join(b.envs)}.")
    rows = _matching_rows(a, b)
    steps_a, returns_a = returns_of(dataset_a, a)
    steps_b, returns_b = returns_of(dataset_b, b)
    found = []
    for env, (i, j) in zip(shared, pairs, strict=True):
        left, right = _joint_worst(a.scores[:, i], a.diverged[:, i], b.scores[:, j], b.diverged[:, j])
        groups = [(_known(left[m]), _known(right[n]), m, n) for m, n in rows]
        groups = [group for group in groups if len(group[0]) and len(group[1])]
        if not groups:
            raise ValueError(f"No setting has a known score in both A and B in {env or 'the environment'}.")
        scores = [(x, y) for x, y, _, _ in groups]
        curves = _common_curves(
            [(steps_a, returns_a[m, i], steps_b, returns_b[n, j]) for _, _, m, n in groups if len(steps_a)]
        )
        found.append(
            EnvComparison(
                env=env,
                num_settings=len(groups),
                num_seeds=(sum(len(x) for x, _ in scores), sum(len(y) for _, y in scores)),
                num_diverged=(
                    int(sum(a.diverged[m, i].sum() for _, _, m, _ in groups)),
                    int(sum(b.diverged[n, j].sum() for _, _, _, n in groups)),
                ),
                **_score_figures(scores, aggregate, confidence, num_permutations, num_resamples, seed),
                **_curve_figures(curves, num_permutations, seed),
            )
        )
    adjusted = holm([env.p_value for env in found])
    adjusted_curves = holm([env.curve_p_value for env in found])
    found = [
        dataclasses.replace(env, p_adjusted=p, curve_p_adjusted=q)
        for env, p, q in zip(found, adjusted, adjusted_curves, strict=True)
    ]
    kind = getattr(aggregate, "__name__", "aggregate").replace("iqm", "interquartile mean")
    many = f"all relabelings of the seeds within each setting, or {num_permutations:,} random ones"
    correction = ", Holm's correction over environments" if len(found) > 1 else ""
    return Comparison(
        names=names,
        config=tuple(config_differences(dataset_a, dataset_b)),
        envs=tuple(found),
        score_name=a.score_name,
        test=f"two-sided permutation test of the difference of {kind}s over seeds, {many}{correction}.",
        curve_test="permutation test of the greatest standardized difference of mean curves over all steps (max-T), "
        f"{many}{correction}.",
        confidence=confidence,
    )


def config_differences(dataset_a: xarray.Dataset, dataset_b: xarray.Dataset) -> list[tuple[str, Any, Any]]:
    """Entries of the two records, chosen values and swept names that differ; None where one has none.

    Example:
      >>> a = xarray.Dataset({"score": ("seed", [1.0])}, attrs={"record": '{"config": {"depth": 2}}'})
      >>> b = xarray.Dataset({"score": ("seed", [1.0])}, attrs={"record": '{"config": {"depth": 3}}'})
      >>> config_differences(a, b)
      [('config.depth', 2, 3)]
    """
    a, b = (flat_record(record_of(dataset)) for dataset in (dataset_a, dataset_b))
    swept = [settings_of(dataset, split_algorithms=None) for dataset in (dataset_a, dataset_b)]
    for flat, settings, dataset in zip((a, b), swept, (dataset_a, dataset_b), strict=True):
        scalars = {name: coord.item() for name, coord in dataset.coords.items() if not coord.ndim and name != "step"}
        flat |= {f"chosen {name}": value for name, value in scalars.items()}
        flat |= {f"swept {name}": _distinct(values) for name, values in settings.columns.items()}
    return [
        (name, a.get(name), b.get(name))
        for name in {**a, **b}
        if name.split(".")[0] not in _PASSING and not same(a.get(name), b.get(name))
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: p-values that hold for all tests together; NaN is no test.

    Example:
      >>> holm([0.01, 0.04, 0.03])
      [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = [int(i) for i in np.argsort(p) if not np.isnan(p[i])]
    adjusted, highest = p.copy(), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, float(p[index]) * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted.tolist()


def permutation_test(
    groups: Sequence[tuple[Any, Any]],
    aggregate: Statistic = statistics.iqm,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Two-sided permutation test of the difference of an aggregate, averaged over groups of exchangeable values.

    Args:
      groups: the values of A and of B in each group, [n] and [m]: the seeds of one setting.
      aggregate: of the last axis.
      num_permutations: relabelings; all of them are taken if there are no more.
      seed: of the random ones.

    Returns:
      The p-value, and the smallest one that could have come out.

    Example:
      >>> permutation_test([([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])], statistics.mean)
      (0.1, 0.1)
    """
    pooled = [np.concatenate([np.asarray(x, np.float64), np.asarray(y, np.float64)]) for x, y in groups]
    sizes = [(len(x), len(y)) for x, y in groups]
    labels, exact = _relabelings(sizes, num_permutations, seed)
    total = np.zeros(len(labels[0]))
    for values, (num_a, num_b), label in zip(pooled, sizes, labels, strict=True):
        left = values[np.nonzero(~label)[1].reshape(-1, num_a)]
        right = values[np.nonzero(label)[1].reshape(-1, num_b)]
        total += aggregate(right, axis=-1) - aggregate(left, axis=-1)
    return _p_value(np.abs(total), exact, sizes)


def _p_value(reached: np.ndarray, exact: bool, sizes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The share of relabelings that reach the first, the true one; and the smallest share there can be."""
    # Sums in another order differ by rounding.
    slack = 1e-9 * reached.max()
    count = int(np.sum(reached >= reached[0] - slack))
    if exact:
        return count / len(reached), int(np.sum(reached >= reached.max() - slack)) / len(reached)
    # Groups of one size may change places: every difference has an equal one with the other sign.
    mirrored = 2 if all(a == b for a, b in sizes) else 1
    return count / len(reached), max(1 / len(reached), mirrored / _num_relabelings(sizes))


def _num_relabelings(sizes: Sequence[tuple[int, int]]) -> int:
    return math.prod(math.comb(a + b, a) for a, b in sizes)


def _relabelings(sizes: Sequence[tuple[int, int]], num: int, seed: int) -> tuple[list[np.ndarray], bool]:
    """Which values of each group are B's, [R, n + m] a group, the true labels first; and whether these are all."""
    if _num_relabelings(sizes) <= num:
        ways = []
        for a, b in sizes:
            chosen = np.array(list(itertools.combinations(range(a + b), a)))
            ways.append(~np.any(chosen[:, :, None] == np.arange(a + b), axis=1))
        index = np.indices([len(way) for way in ways]).reshape(len(ways), -1)
        return [way[i] for way, i in zip(ways, index, strict=True)], True
    generator = np.random.default_rng(seed)
    labels = []
    for a, b in sizes:
        true = np.arange(a + b) >= a
        labels.append(np.concatenate([true[None], generator.permuted(np.tile(true, (num, 1)), axis=1)]))
    return labels, False


def _score_figures(
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    aggregate: Statistic,
    confidence: float,
    num_permutations: int,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    a, b = (_padded([pair[side] for pair in scores]) for side in (0, 1))

    def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (aggregate(y, axis=-1) - aggregate(x, axis=-1)).mean(-1)

    def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return statistics.probability_of_improvement(y, x)

    few = min(min(len(x), len(y)) for x, y in scores) < 2
    intervals = [
        (np.nan, np.nan)
        if few
        else tuple(
            float(bound) for bound in statistics.stratified_bootstrap((a, b), of, confidence, num_resamples, seed)
        )
        for of in (difference, improvement)
    ]
    freedom = sum(len(x) + len(y) - 2 for x, y in scores)
    squares = sum(len(x) * np.var(x) + len(y) * np.var(y) for x, y in scores)
    spread = math.sqrt(squares / freedom) if freedom else 0.0
    means = float((statistics.mean(b) - statistics.mean(a)).mean())
    p_value, smallest = permutation_test(scores, aggregate, num_permutations, seed)
    return {
        "scores": (float(aggregate(a, axis=-1).mean()), float(aggregate(b, axis=-1).mean())),
        "difference": float(difference(a, b)),
        "interval": intervals[0],
        "effect_size": means / spread if spread else (0.0 if not means else math.copysign(math.inf, means)),
        "improvement": (float(improvement(a, b)), *intervals[1]),
        "p_value": p_value,
        "p_adjusted": np.nan,
        "smallest_p": smallest,
    }


def _curve_figures(
    curves: tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]] | None, num_permutations: int, seed: int
) -> dict[str, Any]:
    nothing = {"curve_p_value": np.nan, "curve_p_adjusted": np.nan, "curve_peak": np.nan}
    if curves is None:
        return {**nothing, "curve_range": (np.nan, np.nan)}
    steps, groups = curves
    sizes = [(len(x), len(y)) for x, y in groups]
    labels, exact = _relabelings(sizes, num_permutations, seed)
    pooled = [np.concatenate(group) for group in groups]
    total = np.zeros((len(labels[0]), len(steps)))
    for values, (num_a, num_b), label in zip(pooled, sizes, labels, strict=True):
        total += np.where(label, 1.0 / num_b, -1.0 / num_a) @ values
    spread = np.sqrt(sum(values.var(0) for values in pooled))
    distance = np.abs(
        np.divide(total, spread, out=np.zeros_like(total), where=spread > 1e-12 * np.abs(pooled[0]).max())
    )
    greatest = distance.max(1)
    p_value, _ = _p_value(greatest, exact, sizes)
    reached = (greatest[:, None] >= distance[0] - 1e-9 * greatest.max()).mean(0) <= _LEVEL
    where = steps[reached]
    return {
        **nothing,
        "curve_p_value": p_value,
        "curve_peak": float(steps[np.argmax(distance[0])]),
        "curve_range": (float(where[0]), float(where[-1])) if len(where) else (np.nan, np.nan),
    }


def _common_curves(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]] | None:
    """The curves of A and B, [n, T] each, at steps that all members have; None if there are no such steps."""
    first, last = -np.inf, np.inf
    members: list[list[list[tuple[np.ndarray, np.ndarray]]]] = []
    for steps_a, a, steps_b, b in pairs:
        both = []
        for steps, curves in ((steps_a, a), (steps_b, b)):
            known = [(steps[~np.isnan(curve)], curve[~np.isnan(curve)]) for curve in curves]
            known = [member for member in known if len(member[0])]
            both.append(known)
            for at, _ in known:
                first, last = max(first, at[0]), min(last, at[-1])
        if all(both):
            members.append(both)
    if not members or not first < last:
        return None
    steps = np.linspace(first, last, _NUM_CURVE_POINTS)
    return steps, [
        (np.stack([np.interp(steps, *member) for member in a]), np.stack([np.interp(steps, *member) for member in b]))
        for a, b in members
    ]


def _joint_worst(
    a: np.ndarray, diverged_a: np.ndarray, b: np.ndarray, diverged_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gives the diverged members of both the lowest score of either."""
    known = np.concatenate([_known(a), _known(b)])
    lowest = known.min() if len(known) else np.nan
    return np.where(diverged_a, lowest, a), np.where(diverged_b, lowest, b)


def _matched(dataset_a: xarray.Dataset, dataset_b: xarray.Dataset) -> tuple[Settings, Settings]:
    """Settings of both, `algorithm` being a name in both or in neither."""
    several = any(dataset.sizes.get("algorithm", 1) > 1 for dataset in (dataset_a, dataset_b))
    return settings_of(dataset_a, several), settings_of(dataset_b, several)


def _matching_rows(a: Settings, b: Settings) -> list[tuple[int, int]]:
    """Pairs of settings that agree in every name that both have."""
    names = [name for name in a.names if name in b.names]
    rows = [
        (i, j)
        for i in range(len(a))
        for j in range(len(b))
        if all(same(a.columns[name][i], b.columns[name][j]) for name in names)
    ]
    if not rows:
        raise ValueError(f"No setting is in both: the values of {', '.join(names)} never agree.")
    if len({i for i, _ in rows}) < len(rows) or len({j for _, j in rows}) < len(rows):
        extra = [name for name in (*a.names, *b.names) if name not in names]
        raise ValueError(
            "A setting of one matches several of the other, since only one of them was swept over "
            f"{', '.join(extra) or 'its settings'}: choose a value with dataset.sel(...)."
        )
    return rows


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _short(value: Any) -> str:
    shown = "(" + ", ".join(map(text, value)) + ")" if isinstance(value, (list, tuple)) else text(value)
    if isinstance(value, Mapping):
        shown = str(dict(value))
    return shown if len(shown) <= _MAX_WIDTH else shown[: _MAX_WIDTH - 1] + "…"


def _span(bounds: tuple[float, ...]) -> str:
    low, high = bounds
    return f"{low:.4g} to {high:.4g}" if not math.isnan(low) else "unknown (needs 2 seeds each)"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"{value:.1e}"


def _verdict(p_value: float) -> str:
    return "differ at the 5% level" if p_value <= _LEVEL else "no difference found"
