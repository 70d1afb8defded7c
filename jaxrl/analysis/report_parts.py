"""The parts of a report: environments, curves, what matters, all settings, algorithms."""

import itertools
import math

import numpy as np

from jaxrl.analysis import report_figures, sensitivity, statistics
from jaxrl.analysis.report_pages import Block, Fold, Heading, Paragraph, Picture, Table
from jaxrl.analysis.report_view import CONFIDENCE, View, estimate, last, listed, number, span, with_interval
from jaxrl.analysis.settings import returns_of, text

_NUM_TOP = 10
_NUM_CURVES = 3
_NUM_PAIRS = 3
# Rows of the table of all settings that the page holds.
_MAX_ROWS = 2000
_THRESHOLDS = np.linspace(-0.25, 1.25, 61)


def env_table(view: View) -> Table:
    """Scores in each environment: of the setting that is the best over all, and of the best one there."""
    rows = []
    for index, env in enumerate(view.settings.envs):
        own = View(view.dataset.isel(env=[index]), env)
        overall = with_interval(*view.best.env_scores[index])
        rows.append((env, overall, own.settings.label(own.best.row), own.reported(own.best.row)))
    return Table(
        f"Scores on the held-out seeds (IQM, 95% interval), not normalized. Best overall: "
        f"{view.settings.label(view.best.row)}.",
        ("environment", "best overall", "best here", "its score"),
        tuple(rows),
    )


def curves(view: View) -> list[Block]:
    """Learning curves of the best settings, the median one and the default."""
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
    seeds = f"seeds {span(view.best.report_seeds)}"
    if view.best.held_out and count > 1:
        seeds += f", not those on which they were chosen ({span(view.best.tune_seeds)})"
    band = "with its 95% interval" if len(view.report_seeds) > 1 else "one seed, so there is no interval"
    return [
        title,
        Picture(
            "curves",
            report_figures.draw_curves(steps, drawn, CONFIDENCE),
            f"Learning curves of {len(drawn)} settings: "
            + "; ".join(f"{label} ends at {number(last(values))}" for label, values in drawn),
            f"Mean return of the episodes that ended in each slice of training: IQM over {seeds}, {band}.",
        ),
    ]


def names_that_matter(view: View) -> list[Block]:
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
    effects = [sensitivity.marginals(settings, name) for name in names]
    points = [(settings.columns[name], view.center) if name in drawn else None for name in names]
    highest = [
        f"{name} {text(effect[name].values[int(np.nanargmax(effect['mean'].values))])}"
        for name, effect in zip(names, effects, strict=True)
    ]
    blocks.append(
        Picture(
            "marginals",
            report_figures.draw_marginals(effects, points, view.score),
            "Score over the values of each name. Highest mean at: " + ", ".join(highest),
            "IQM over all seeds, averaged over the other names (circles), and of the best setting with that value "
            "(squares), each with its 95% interval over seeds; the most important name first."
            + (" Gray: each setting." if drawn else ""),
        )
    )
    return blocks + _pairs(view)


def _pairs(view: View) -> list[Block]:
    settings, shares = view.settings, view.shares
    first, pair = np.nan_to_num(shares["first_order"].values), np.nan_to_num(shares["pair"].values)
    pairs = sorted(
        itertools.combinations(range(len(settings.factors)), 2),
        key=lambda ij: -(first[ij[0]] + first[ij[1]] + pair[ij]),
    )[:_NUM_PAIRS]
    if not pairs:
        return []
    chosen = [(settings.factors[i], settings.factors[j]) for i, j in pairs]
    joined = listed([f"{a.label} and {b.label}" for a, b in chosen])
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


def all_settings(view: View) -> list[Block]:
    """Every setting in parallel coordinates, the best ones in a table, all of them as CSV."""
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
                f"Parallel coordinates of {len(settings)} settings over {listed(list(settings.names))}.",
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
            number(best.tune_scores[row]),
            f"{best.wins[row]:.0%}",
            f"{int(settings.diverged[row].sum())}",
        )
        for row in rows
    )
    blocks.append(
        Table(
            f"The {len(top)} best of {len(settings):,} settings, ranked on the tuning seeds"
            + (f" ({span(best.tune_seeds)})" if best.held_out else "")
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


def algorithms(view: View) -> list[Block]:
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
        (name, chosen[name], *(estimate((values,), of, few) for of in aggregates.values()))
        for name, values in scores.items()
    )
    profiles = []
    for name, values in scores.items():
        center = statistics.performance_profile(values, _THRESHOLDS)
        low, high = statistics.stratified_bootstrap((values,), lambda x: statistics.performance_profile(x, _THRESHOLDS))
        profiles.append((name, center, low, high))
    pairs = tuple(
        (x, y, estimate((scores[x], scores[y]), statistics.probability_of_improvement, few))
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
            f"Performance profiles of {listed(list(scores))}.",
            "Share of runs above each normalized score, with pointwise 95% intervals; higher is better.",
        ),
    ]
    if pairs:
        blocks.append(Table("Probability of improvement P(X > Y), with 95% intervals.", ("X", "Y", "P(X > Y)"), pairs))
    return blocks
