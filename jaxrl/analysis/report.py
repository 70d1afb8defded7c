"""Reports of sweeps: one self-contained page of HTML, or Markdown with its figures beside it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from jaxrl.analysis import report_figures, sensitivity, statistics
from jaxrl.analysis.report_pages import (
    Block,
    Fold,
    Heading,
    Paragraph,
    Picture,
    Table,
    Tiles,
    write_html,
    write_pages,
)
from jaxrl.analysis.sensitivity import BestSetting
from jaxrl.analysis.settings import Settings, default_row, flat_record, record_of, returns_of, settings_of, text

_CONFIDENCE = 0.95
_SURE = "95% interval "
_NUM_TOP = 10
_NUM_CURVES = 3
_NUM_PAIRS = 3
# Rows of the table of all settings that the page holds.
_MAX_ROWS = 2000
_MAX_VALUE = 200
_THRESHOLDS = np.linspace(-0.25, 1.25, 61)

_DEFINITIONS = (
    ("Score", "Of a member (one setting and one seed): {score}."),
    (
        "Diverged",
        "A member whose losses, gradients or parameters became NaN or infinite. It is not dropped: its score is the "
        "lowest of any member in its environment, and its curve goes on at the lowest return.",
    ),
    ("IQM", "Interquartile mean: of n seeds the lowest and the highest quarter (⌊n/4⌋ each) are dropped."),
    (
        "Interval",
        "95% percentile bootstrap interval: 2,000 times seeds are drawn with replacement, within each task. It tells "
        "what other seeds would have given, not what another task would.",
    ),
    (
        "Tuning and held-out seeds",
        "The best setting is chosen on the first half of the seeds and its score is that on the other half. A maximum "
        "over noisy scores is too high on the seeds that it was found on, not on others.",
    ),
    ("Wins", "Share of bootstrap resamples of the tuning seeds in which a setting is the best; ties are shared out."),
    ("Rank correlation", "Spearman's, of the settings' scores on the tuning seeds and on the held-out seeds."),
    (
        "Importance",
        "Share of the variance of the settings' mean scores. On a full grid by functional ANOVA: first order counts "
        "a name by itself, total its interactions too. Where settings are drawn or listed or some are missing: "
        "first order from bins, less what shuffled scores give, with a permutation p-value.",
    ),
    (
        "Normalized score",
        "Per environment, 0 is the lowest and 1 the highest mean score of a setting in this sweep. Averages over "
        "environments use it.",
    ),
    ("Optimality gap", "Mean of max(1 - normalized score, 0): how far runs fall short of 1; less is better."),
    (
        "Probability of improvement",
        "How probable it is that a run of X scores higher than one of Y in the same environment, averaged over "
        "environments; ties count half.",
    ),
    ("Performance profile", "Share of runs that score above τ, averaged over environments, for every τ."),
)


def write_report(datasets: Sequence[tuple[str, xarray.Dataset]], path: Path | str) -> Path:
    """Writes a report of sweeps, or of runs alone, as one page of HTML that needs nothing else.

    What it says, in this order: a summary, curves of the best settings and of the median one, which names matter and
    how, all settings, algorithms against each other, how the numbers are computed, configuration and machine.

    Args:
      datasets: label and dataset of each sweep (see `jaxrl.analysis.settings`).
      path: the file; one that is there is replaced.

    Returns:
      The path.

    Raises:
      ValueError: there is no dataset, or one holds no score.
      StorageError: the file cannot be written.
    """
    return write_html(_title(datasets), _blocks(datasets), Path(path))


def write_markdown(datasets: Sequence[tuple[str, xarray.Dataset]], path: Path | str) -> Path:
    """Writes the same as `write_report` as Markdown; figures are put into a folder `<stem>_figures` beside it.

    Args:
      datasets: label and dataset of each sweep.
      path: the file; one that is there is replaced.

    Returns:
      The path.

    Raises:
      ValueError: there is no dataset, or one holds no score.
      StorageError: a file cannot be written.
    """
    return write_pages(_title(datasets), _blocks(datasets), Path(path))


@dataclasses.dataclass(frozen=True)
class _View:
    """A sweep in some environments, with what several parts of the report need."""

    dataset: xarray.Dataset
    label: str

    @functools.cached_property
    def settings(self) -> Settings:
        return settings_of(self.dataset)

    @functools.cached_property
    def best(self) -> BestSetting:
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
        return sensitivity.importance(self.settings)

    @functools.cached_property
    def default(self) -> int | None:
        return default_row(self.settings, record_of(self.dataset))

    @functools.cached_property
    def scaled(self) -> np.ndarray:
        return sensitivity.scaled(self.settings)

    @property
    def score(self) -> str:
        """Label of axes."""
        return "normalized score" if len(self.settings.envs) > 1 else "score (episode return)"

    @functools.cached_property
    def report_seeds(self) -> list[int]:
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
            values, lambda drawn, axis: statistics.iqm(drawn, axis).mean(0)[None], _CONFIDENCE
        )
        return _with_interval(self.best.report_scores[row], np.ravel(low)[0], np.ravel(high)[0], words)


def _title(datasets: Sequence[tuple[str, xarray.Dataset]]) -> str:
    if not datasets:
        raise ValueError("A report needs at least one dataset.")
    return f"Report of {datasets[0][0]}" if len(datasets) == 1 else f"Report of {len(datasets)} sweeps"


def _blocks(datasets: Sequence[tuple[str, xarray.Dataset]]) -> list[Block]:
    blocks: list[Block] = []
    for label, dataset in datasets:
        blocks += _sweep(_View(dataset, label))
    scores = dict.fromkeys(settings_of(dataset).score_name for _, dataset in datasets)
    rows = tuple((name, meaning.format(score=" or ".join(scores))) for name, meaning in _DEFINITIONS)
    blocks += [
        Heading(2, "How the numbers are computed"),
        Table("After Agarwal et al. 2021 (arXiv:2108.13264) and Hutter et al. 2014.", ("what", "meaning"), rows),
        Heading(2, "Configuration and machine"),
    ]
    for label, dataset in datasets:
        blocks.append(_record(label, dataset))
    return blocks


def _sweep(view: _View) -> list[Block]:
    """One sweep: the summary over all environments, then algorithms, then each environment."""
    settings = view.settings
    several = len(settings.envs) > 1
    blocks: list[Block] = [Heading(2, view.label), Paragraph(_summary(view), "lead")]
    if not view.unjudged:
        blocks.append(_tiles(view))
        if "algorithm" in settings.names:
            blocks += _algorithms(view)
        if several:
            blocks += [Heading(3, "All environments"), _env_table(view), *_names(view), *_all_settings(view)]
    for index, env in enumerate(settings.envs):
        inside = view.dataset.isel(env=[index]) if several else view.dataset
        part = _View(inside, f"{view.label}, {env}" if env else view.label)
        if several:
            blocks += [Heading(3, env), Paragraph(_summary(part))]
        if not part.unjudged:
            blocks += [*_curves(part), *_names(part), *_all_settings(part)]
    return blocks


def _summary(view: _View) -> str:
    settings = view.settings
    members, diverged = int(settings.ran.sum()), int(settings.diverged.sum())
    who = settings.algorithm or ("several algorithms" if "algorithm" in settings.names else "one algorithm")
    where = _listed([env or "one environment" for env in settings.envs])
    steps = view.dataset["step"].values if "step" in view.dataset.coords else np.zeros(0)
    length = f", {steps.max():,.0f} env steps each" if steps.size else ""
    sentences = [
        f"{_count(len(settings), 'setting')} × {_count(len(settings.seeds), 'seed')}"
        + (f" × {_count(len(settings.envs), 'environment')}" if len(settings.envs) > 1 else "")
        + f" ({_count(members, 'member')}) of {who} on {where}{length}.",
        *([view.unjudged] if view.unjudged else _judgement(view)),
    ]
    share = f"{_count(diverged, 'member')} of {members:,} diverged ({diverged / members:.1%})"
    sentences.append(f"{share} and count as the lowest score." if diverged else "No member diverged.")
    if unknown := int((settings.ran & np.isnan(settings.scores)).sum()):
        sentences.append(f"{_count(unknown, 'member')} without a score {'is' if unknown == 1 else 'are'} left out.")
    return " ".join(sentences)


def _judgement(view: _View) -> list[str]:
    """The best setting, how good and how sure, and the default one."""
    settings, best = view.settings, view.best
    many = len(settings) > 1
    unit = ", normalized," if len(settings.envs) > 1 else ""
    sentences = [f"Best setting: {settings.label(best.row)}."] if many else []
    if best.held_out:
        where = f"the {_count(len(best.report_seeds), 'held-out seed')} ({_span(best.report_seeds)})"
        score = view.reported(best.row, _SURE)
        sentences.append(f"Chosen on seeds {_span(best.tune_seeds)}; its IQM{unit} on {where} is {score}.")
    elif len(best.report_seeds) > 1:
        where = f"{_count(len(best.report_seeds), 'seed')} ({_span(best.report_seeds)})"
        sentences.append(f"The IQM{unit} over {where} is {view.reported(best.row, _SURE)}.")
    else:
        high = ", and the score is too high, since it was chosen for it." if many else "."
        sentences.append(f"Its score{unit} is {_number(best.score)}. There is one seed only: no interval{high}")
    if many and best.held_out:
        again = f"It wins in {best.wins[best.row]:.0%} of the resamples of the tuning seeds"
        if not math.isnan(best.rank_correlation):
            again += f"; the settings' rank correlation between both sets of seeds is {best.rank_correlation:.2f}"
        sentences.append(again + ".")
    if view.default == best.row:
        sentences.append("It is the default setting.")
    elif view.default is not None:
        score = view.reported(view.default, _SURE)
        sentences.append(f"The default setting ({settings.label(view.default)}) has {score} on the same seeds.")
    return sentences


def _tiles(view: _View) -> Tiles:
    settings, best = view.settings, view.best
    entries = [
        (f"{len(settings):,}", "setting" if len(settings) == 1 else "settings"),
        (f"{len(settings.seeds):,}", "seed" if len(settings.seeds) == 1 else "seeds"),
        (f"{int(settings.ran.sum()):,}", "members"),
        (_number(best.score, 3), "best setting's score, held-out seeds" if best.held_out else "score"),
    ]
    if view.default is not None:
        entries.append((_number(best.report_scores[view.default], 3), "default setting's score"))
    if not math.isnan(best.rank_correlation):
        entries.append((f"{best.rank_correlation:.2f}", "rank correlation across seeds"))
    return Tiles((*entries, (f"{int(settings.diverged.sum()):,}", "diverged members")))


def _env_table(view: _View) -> Table:
    rows = []
    for index, env in enumerate(view.settings.envs):
        own = _View(view.dataset.isel(env=[index]), env)
        overall = _with_interval(*view.best.env_scores[index])
        rows.append((env, overall, own.settings.label(own.best.row), own.reported(own.best.row)))
    return Table(
        f"Scores on the held-out seeds (IQM, 95% interval), not normalized. Best overall: "
        f"{view.settings.label(view.best.row)}.",
        ("environment", "best overall", "best here", "its score"),
        tuple(rows),
    )


def _curves(view: _View) -> list[Block]:
    steps, returns = returns_of(view.dataset, view.settings)
    title = Heading(4, "Learning curves")
    if not len(steps) or np.isnan(returns).all():
        return [title, Paragraph("There are no training returns in the dataset.")]
    count = len(view.settings)
    rows = {row: f"#{rank + 1}: {view.settings.label(row)}" for rank, row in enumerate(view.order[:_NUM_CURVES])}
    if count == 1:
        rows = {0: view.settings.label(0) if view.settings.names else view.label}
    middle = view.order[count // 2]
    if middle not in rows:
        rows[middle] = f"median, #{count // 2 + 1} of {count}: {view.settings.label(middle)}"
    if view.default is not None:
        known = rows.get(view.default, view.settings.label(view.default))
        rows[view.default] = f"default, {known}"
    drawn = [(label, returns[row, 0][view.report_seeds]) for row, label in rows.items()]
    seeds = f"seeds {_span(view.best.report_seeds)}"
    if view.best.held_out and count > 1:
        seeds += f", not those on which they were chosen ({_span(view.best.tune_seeds)})"
    band = "with its 95% interval" if len(view.report_seeds) > 1 else "one seed, so there is no interval"
    return [
        title,
        Picture(
            "curves",
            report_figures.draw_curves(steps, drawn, _CONFIDENCE),
            f"Learning curves of {len(drawn)} settings: "
            + "; ".join(f"{label} ends at {_number(_last(values))}" for label, values in drawn),
            f"Mean return of the episodes that ended in each slice of training: IQM over {seeds}, {band}.",
        ),
    ]


def _names(view: _View) -> list[Block]:
    """Which names matter and how: importance, marginals, pairs."""
    settings = view.settings
    if len(settings) < 2 or not settings.names or np.isnan(view.center).all():
        return []
    shares = view.shares
    labels = [str(name) for name in shares["name"].values]
    first = shares["first_order"].values
    noise = shares.attrs["noise_share"]
    caption = f"Method: {shares.attrs['method']} over {shares.attrs['num_settings']:,} settings."
    if not math.isnan(noise):
        caption += f" About {min(noise, 1.0):.0%} of the variance is expected from having few seeds."
    if not np.isnan(shares["p_value"]).all():
        found = zip(labels, shares["p_value"].values, strict=True)
        caption += " Permutation p-values: " + ", ".join(f"{name} {p:.2g}" for name, p in found) + "."
    blocks: list[Block] = [Heading(4, "What matters")]
    if np.isnan(first).all():
        blocks.append(Paragraph("All settings have the same mean score: nothing matters here."))
    else:
        shown = zip(labels, first, strict=True)
        alt = "Importance by itself: " + ", ".join(f"{name} {share:.0%}" for name, share in shown)
        blocks.append(Picture("importance", report_figures.draw_importance(shares), alt, caption))
    ranked = [settings.factors[i] for i in np.argsort(-np.nan_to_num(first), kind="stable")]
    names = [name for factor in ranked for name in factor.names]
    drawn = {name for factor in ranked if factor.sampled for name in factor.names}
    curves = [sensitivity.marginals(settings, name) for name in names]
    points = [(settings.columns[name], view.center) if name in drawn else None for name in names]
    highest = [
        f"{name} {text(curve[name].values[int(np.nanargmax(curve['mean'].values))])}"
        for name, curve in zip(names, curves, strict=True)
    ]
    blocks.append(
        Picture(
            "marginals",
            report_figures.draw_marginals(curves, points, view.score),
            "Score over the values of each name. Highest mean at: " + ", ".join(highest),
            "IQM over all seeds, averaged over the other names (circles), and of the best setting with that value "
            "(squares), each with its 95% interval over seeds; the most important name first."
            + (" Gray: each setting." if drawn else ""),
        )
    )
    return blocks + _pairs(view)


def _pairs(view: _View) -> list[Block]:
    settings, shares = view.settings, view.shares
    first, pair = np.nan_to_num(shares["first_order"].values), np.nan_to_num(shares["pair"].values)
    pairs = sorted(
        itertools.combinations(range(len(settings.factors)), 2),
        key=lambda ij: -(first[ij[0]] + first[ij[1]] + pair[ij]),
    )[:_NUM_PAIRS]
    if not pairs:
        return []
    chosen = [(settings.factors[i], settings.factors[j]) for i, j in pairs]
    joined = _listed([f"{a.label} and {b.label}" for a, b in chosen])
    if all(not factor.sampled for two in chosen for factor in two):
        maps = []
        for down, along in chosen:
            rows, row_of = sensitivity.levels(settings.along(down))
            columns, column_of = sensitivity.levels(settings.along(along))
            values = np.full((len(rows), len(columns)), np.nan)
            for row, column in np.ndindex(*values.shape):
                values[row, column] = statistics.mean(view.center[(row_of == row) & (column_of == column)])
            maps.append((down.label, rows, along.label, columns, values))
        if all(np.isnan(values).all() for *_, values in maps):
            return []
        picture = report_figures.draw_heat_maps(maps, view.score)
        caption = "Mean score over seeds and over the other names; darker is higher."
        return [Picture("pairs", picture, f"Heat maps of {joined}.", f"{caption} The pairs that explain most.")]
    drawn = [(a.label, settings.along(a), b.label, settings.along(b)) for a, b in chosen]
    picture = report_figures.draw_pairs(drawn, view.center, view.score)
    caption = "Mean score of each setting over seeds; darker is higher."
    return [Picture("pairs", picture, f"Scatter of {joined}.", caption)]


def _all_settings(view: _View) -> list[Block]:
    settings, best = view.settings, view.best
    if len(settings) < 2:
        return []
    blocks: list[Block] = [Heading(4, "All settings")]
    if len(settings.names) > 1 and not np.isnan(view.center).all():
        most = report_figures.MAX_LINES
        shown = f" {most:,} of them, evenly over the ranking." if len(settings) > most else ""
        blocks.append(
            Picture(
                "parallel",
                report_figures.draw_parallel(settings.columns, view.center, view.score),
                f"Parallel coordinates of {len(settings)} settings over {_listed(list(settings.names))}.",
                "One line a setting, through its values to its mean score over seeds; darker is higher." + shown,
            )
        )
    top = view.order[:_NUM_TOP]
    rows = [row for row in (*top, view.default) if row is not None]
    rows = list(dict.fromkeys(rows))
    held_out = "score on held-out seeds" if best.held_out else "score"
    body = tuple(
        (
            f"{view.order.index(row) + 1}" + (" (default)" if row == view.default else ""),
            *(text(value) for value in settings.values(row).values()),
            view.reported(row),
            _number(best.tune_scores[row]),
            f"{best.wins[row]:.0%}",
            f"{int(settings.diverged[row].sum())}",
        )
        for row in rows
    )
    blocks.append(
        Table(
            f"The {len(top)} best of {len(settings):,} settings, ranked on the tuning seeds"
            + (f" ({_span(best.tune_seeds)})" if best.held_out else "")
            + ". IQM over seeds with its 95% interval.",
            ("rank", *settings.names, held_out, "on tuning seeds", "wins", "diverged"),
            body,
            strong=0,
        )
    )
    if len(settings.envs) == 1:
        table = sensitivity.settings_table(view.settings).sort_values("score", ascending=False, kind="stable")
        cut = f", the best {_MAX_ROWS:,}" if len(table) > _MAX_ROWS else ""
        content = table.head(_MAX_ROWS).to_csv(index=False, float_format="%.6g")
        blocks.append(Fold(f"All settings on all seeds as CSV{cut}", content, "settings.csv"))
    return blocks


def _algorithms(view: _View) -> list[Block]:
    """Each algorithm with the best of its settings, on normalized scores of the held-out seeds."""
    bounds = sensitivity.score_bounds(view.settings)
    scores: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    seeds = (view.best.tune_seeds, view.best.report_seeds) if view.best.held_out else (None, None)
    for name in dict.fromkeys(view.settings.columns["algorithm"]):
        own = view.settings.take([row for row, other in enumerate(view.settings.columns["algorithm"]) if other == name])
        if np.isnan(statistics.mean(own.scores)).any(1).all():
            continue
        best = sensitivity.best_setting(own, *seeds, bounds=bounds)
        report = [own.seeds.index(seed) for seed in best.report_seeds]
        scores[str(name)] = sensitivity.scaled(own, bounds)[best.row][:, report]
        chosen[str(name)] = own.label(best.row, without=("algorithm",))
    if not scores:
        return []
    few = min(values.shape[1] for values in scores.values()) < 2
    aggregates = {
        "IQM": lambda x: statistics.iqm(x.reshape(len(x), -1)),
        "median of means": lambda x: statistics.median(statistics.mean(x)),
        "mean": lambda x: statistics.mean(x.reshape(len(x), -1)),
        "optimality gap": lambda x: statistics.optimality_gap(x.reshape(len(x), -1)),
    }
    rows = tuple(
        (name, chosen[name], *(_estimate((values,), of, few) for of in aggregates.values()))
        for name, values in scores.items()
    )
    profiles = []
    for name, values in scores.items():
        center = statistics.performance_profile(values, _THRESHOLDS)
        low, high = statistics.stratified_bootstrap((values,), lambda x: statistics.performance_profile(x, _THRESHOLDS))
        profiles.append((name, center, low, high))
    pairs = tuple(
        (x, y, _estimate((scores[x], scores[y]), statistics.probability_of_improvement, few))
        for x, y in itertools.permutations(scores, 2)
    )
    blocks: list[Block] = [
        Heading(3, "Algorithms"),
        Table(
            "Each algorithm with its best setting, chosen on the tuning seeds: normalized scores on the held-out seeds "
            "over all environments, with 95% intervals.",
            ("algorithm", "setting", *aggregates),
            rows,
        ),
        Picture(
            "profiles",
            report_figures.draw_profiles(profiles, _THRESHOLDS),
            f"Performance profiles of {_listed(list(scores))}.",
            "Share of runs above each normalized score, with pointwise 95% intervals; higher is better.",
        ),
    ]
    if pairs:
        blocks.append(Table("Probability of improvement P(X > Y), with 95% intervals.", ("X", "Y", "P(X > Y)"), pairs))
    return blocks


def _record(label: str, dataset: xarray.Dataset) -> Block:
    flat = flat_record(record_of(dataset))
    if not flat:
        return Paragraph(f"{label}: the dataset has no record of how it was made.")
    rows = tuple((name, _cut(value)) for name, value in flat.items())
    return Table(label, ("entry", "value"), rows)


def _cut(value: Any) -> str:
    shown = " ".join(map(text, value)) if isinstance(value, list) else text(value)
    return shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]}…"


def _estimate(arrays: tuple[np.ndarray, ...], of: Any, few: bool) -> str:
    center = float(of(*(values[None] for values in arrays))[0])
    low, high = (math.nan, math.nan) if few else map(float, statistics.stratified_bootstrap(arrays, of))
    return _with_interval(center, low, high)


def _with_interval(center: float, low: float, high: float, words: str = "") -> str:
    if math.isnan(center):
        return "unknown"
    if math.isnan(low):
        return _number(center)
    # Two digits of the interval's width: more would be noise.
    width = high - low
    digits = max(0, 1 - math.floor(math.log10(width))) if width > 1e-9 * abs(center) else None
    of, begin, end = (_number(value) if digits is None else f"{value:,.{digits}f}" for value in (center, low, high))
    return f"{of} ({words}{begin} to {end})"


def _number(value: float, digits: int = 4) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _span(seeds: Sequence[Any]) -> str:
    """Seeds in words: neighbors as a range."""
    whole = all(isinstance(seed, int) for seed in seeds) and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 2 else _listed([text(seed) for seed in seeds])


def _last(values: np.ndarray) -> float:
    center = statistics.iqm(values.T)
    known = center[~np.isnan(center)]
    return float(known[-1]) if len(known) else math.nan
