"""Figures of a report, as SVG: dark on white, legible in print and for color-blind readers."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxrl.analysis import statistics
from jaxrl.analysis.settings import is_number, text
from jaxrl.analysis.style import COLORMAP, COLORS, DASHES, tidy

# Inches, such that a page of 1056 pixels shows text at its size.
_WIDTH = 11.0
# Points beyond this are drawn as pixels: the page stays small. Lines as pixels would be larger.
_MAX_VECTOR = 300
MAX_LINES = 1000
_MAX_LABEL = 90
# A positive axis that spans more than this factor may be logarithmic.
_LOG_SPAN = 3.0
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxrl",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "figure.dpi": 72.0,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.0,
    "axes.edgecolor": "#333333",
}


def draw_curves(steps: np.ndarray, curves: Sequence[tuple[str, np.ndarray]], confidence: float) -> bytes:
    """Learning curves: interquartile mean over seeds with its bootstrap interval.

    Args:
      steps: env steps of a member, [T].
      curves: what it is, and returns [N, T].
      confidence: of the intervals.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.9 + 0.22 * len(curves)), layout="constrained")
        panel = figure.subplots()
        for index, (label, values) in enumerate(curves):
            color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            # One point a slice in which an episode ended: gaps would break the line.
            center = statistics.iqm(values.T)
            known = ~np.isnan(center)
            panel.plot(steps[known], center[known], color=color, linestyle=dash, linewidth=1.8, label=_short(label))
            low, high = statistics.bootstrap_interval(values.T, statistics.iqm, confidence)
            sure = known & ~np.isnan(low)
            panel.fill_between(steps[sure], low[sure], high[sure], color=color, alpha=0.2, linewidth=0)
        panel.set_xlabel("environment steps of a member")
        panel.set_ylabel("undiscounted episode return")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.margins(x=0.01)
        tidy(panel)
        figure.legend(loc="outside lower left", frameon=False, ncols=1, handlelength=3.4)
        return _svg(figure)


def draw_importance(shares: xarray.Dataset) -> bytes:
    """Bars of the first-order shares, with the total ones where they are known."""
    first, total = shares["first_order"].values, shares["total"].values
    order = np.argsort(np.nan_to_num(first), kind="stable")
    first, total = first[order], total[order]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.0 + 0.42 * len(order)), layout="constrained")
        panel = figure.subplots()
        place = np.arange(len(order))
        whole = not np.isnan(total).all()
        if whole:
            panel.barh(place, 100 * total, 0.7, color="#BBD9EC", label="with its interactions (total)")
        panel.barh(place, 100 * first, 0.36, color=COLORS[0], label="by itself (first order)")
        for row, (one, all_) in enumerate(zip(first, total, strict=True)):
            if np.isnan(one):
                shown, reach = "unknown", 0.0
            else:
                shown = f"{100 * one:.0f}%" + (f", {100 * all_:.0f}% in total" if whole else "")
                reach = 100 * np.nanmax([one, all_])
            panel.annotate(shown, (reach, row), (5, 0), textcoords="offset points", va="center")
        panel.set_yticks(place, [_short(str(shares["name"].values[i]), 40) for i in order])
        panel.set_xlim(0, 118)
        panel.set_xticks(range(0, 101, 20))
        panel.set_xlabel("share of the variance of the settings' mean scores, %")
        tidy(panel)
        panel.grid(False, axis="y")
        panel.legend(frameon=False, loc="lower right")
        return _svg(figure)


def draw_marginals(
    marginals: Sequence[xarray.Dataset], points: Sequence[tuple[Sequence[Any], np.ndarray] | None], score: str
) -> bytes:
    """One panel a name: the score over its values, with the mean and with the best of the others.

    Args:
      marginals: as `sensitivity.marginals` gives them.
      points: for each, the values and scores of all settings, where they were drawn.
      score: label of the vertical axis.
    """
    num_columns = min(3, len(marginals))
    num_rows = math.ceil(len(marginals) / num_columns)
    width = _WIDTH if num_columns > 1 else 0.6 * _WIDTH
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.5 + 2.9 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
        for panel, curve, drawn in zip(panels.ravel(), marginals, points, strict=False):
            name = str(next(iter(curve.sizes)))
            axis = _Axis(curve[name].values.tolist() if drawn is None else drawn[0])
            if drawn is not None:
                panel.scatter(axis.places(drawn[0]), drawn[1], 9, color="#999999", alpha=0.6, linewidths=0,
                              rasterized=len(drawn[1]) > _MAX_VECTOR)  # fmt: skip
            at = axis.places(curve[name].values.tolist())
            for key, color, mark, dash, label in (
                ("mean", COLORS[0], "o", "-", "mean over the other names"),
                ("best", COLORS[1], "s", DASHES[1], "best of the other names"),
            ):
                center = curve[key].values
                bars = np.nan_to_num(
                    np.abs(np.stack([curve[f"{key}_low"].values, curve[f"{key}_high"].values]) - center)
                )
                line = {"linestyle": dash if axis.ordered else "none", "linewidth": 1.4, "capsize": 3}
                panel.errorbar(at, center, bars, color=color, marker=mark, markersize=4.5, label=label, **line)
            axis.label(panel.xaxis, 6 if num_columns > 1 else 10)
            panel.margins(x=0.08)
            panel.set_title(_short(name, 40))
            tidy(panel)
        for panel in panels[:, 0]:
            panel.set_ylabel(score)
        for panel in panels.ravel()[len(marginals) :]:
            panel.remove()
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=2)
        return _svg(figure)


def draw_heat_maps(pairs: Sequence[tuple[str, Sequence[Any], str, Sequence[Any], np.ndarray]], score: str) -> bytes:
    """One panel a pair of names: the mean score over the other names, as a number and a color.

    Args:
      pairs: name and values down the rows, name and values along the columns, scores [rows, columns].
      score: label of the colors.
    """
    everything = np.concatenate([pair[4].ravel() for pair in pairs])
    scale = Normalize(np.nanmin(everything), np.nanmax(everything))
    tallest = max(len(pair[1]) for pair in pairs)
    width = _WIDTH * (1.0 if len(pairs) > 1 else 0.6)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 1.5 + max(1.6, 0.32 * tallest)), layout="constrained")
        panels = figure.subplots(1, len(pairs), squeeze=False).ravel()
        mesh: Any = None
        for panel, (down, rows, along, columns, values) in zip(panels, pairs, strict=True):
            mesh = panel.pcolormesh(values, cmap=COLORMAP, norm=scale, edgecolors="white", linewidth=0.5)
            # Numbers must fit their cells.
            if len(columns) * len(pairs) <= 24:
                for (row, column), value in np.ndenumerate(values):
                    if not np.isnan(value):
                        color = "black" if _is_light(mesh.to_rgba(value)) else "white"
                        place = (column + 0.5, row + 0.5)
                        panel.text(*place, _number(value), ha="center", va="center", fontsize=8.5, color=color)
            for which, names in ((panel.xaxis, columns), (panel.yaxis, rows)):
                every = max(1, math.ceil(len(names) / 12))
                which.set_ticks(np.arange(len(names))[::every] + 0.5, [_short(text(v), 16) for v in names[::every]])
            panel.tick_params(axis="x", rotation=30 if max(len(text(v)) for v in columns) > 5 else 0)
            panel.set_xlabel(_short(along, 40))
            panel.set_ylabel(_short(down, 40))
        figure.colorbar(mesh, ax=panels.tolist(), label=score, pad=0.01)
        _spread(figure)
        return _svg(figure)


def draw_pairs(pairs: Sequence[tuple[str, Sequence[Any], str, Sequence[Any]]], scores: np.ndarray, score: str) -> bytes:
    """One panel a pair of names: every setting as a point, its score as a color."""
    width = _WIDTH * (1.0 if len(pairs) > 1 else 0.6)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        panels = figure.subplots(1, len(pairs), squeeze=False).ravel()
        order = np.argsort(scores)
        points: Any = None
        for panel, (down, rows, along, columns) in zip(panels, pairs, strict=True):
            x, y = _Axis(columns), _Axis(rows)
            points = panel.scatter(
                x.places(columns)[order], y.places(rows)[order], 26, scores[order], cmap=COLORMAP,
                edgecolors="#555555", linewidths=0.4, rasterized=len(order) > _MAX_VECTOR,
            )  # fmt: skip
            x.label(panel.xaxis, 5)
            y.label(panel.yaxis, 8)
            panel.set_xlabel(_short(along, 40))
            panel.set_ylabel(_short(down, 40))
            tidy(panel)
        figure.colorbar(points, ax=panels.tolist(), label=score, pad=0.01)
        _spread(figure)
        return _svg(figure)


def draw_parallel(columns: Mapping[str, Sequence[Any]], scores: np.ndarray, score: str) -> bytes:
    """Parallel coordinates: one line a setting through its values, ending at its score.

    Of more than 1,000 settings so many are drawn, evenly over the ranking, the best and the worst among them.

    Args:
      columns: values of each setting, by name, [S].
      scores: [S].
      score: label of the last axis and of the colors.
    """
    known = np.flatnonzero(~np.isnan(scores))
    order = known[np.argsort(scores[known])]
    if len(order) > MAX_LINES:
        order = order[np.linspace(0, len(order) - 1, MAX_LINES).round().astype(int)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
        panel = figure.subplots()
        axes = {name: _Axis(values) for name, values in columns.items()} | {
            score: _Axis(scores[known].tolist(), linear=True)
        }
        heights = [axes[name].heights(values) for name, values in columns.items()]
        heights = np.stack([*heights, axes[score].heights(scores)], -1)
        lines = np.stack([np.broadcast_to(np.arange(len(axes)), heights.shape), heights], -1)[order]
        mesh = LineCollection(list(lines), cmap=COLORMAP, linewidths=1.1, alpha=0.75)
        mesh.set_array(scores[order])
        panel.add_collection(mesh)
        for place, axis in enumerate(axes.values()):
            panel.axvline(place, color="#333333", linewidth=0.9, zorder=3)
            for height, shown in axis.marks(7):
                panel.text(place + 0.02, height, _short(shown, 16), fontsize=8.5, va="center", zorder=4,
                           bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8})  # fmt: skip
        panel.set_xticks(range(len(axes)), [_short(name, max(12, 110 // len(axes))) for name in axes])
        panel.set_xlim(-0.05, len(axes) - 1 + 0.25)
        panel.set_ylim(-0.05, 1.05)
        panel.yaxis.set_visible(False)
        panel.spines[:].set_visible(False)
        panel.tick_params(axis="x", length=0)
        return _svg(figure)


def draw_profiles(profiles: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], thresholds: np.ndarray) -> bytes:
    """Performance profiles: for each algorithm its label, profile, lower and upper bounds, [thresholds]."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.7 * _WIDTH, 3.4 + 0.22 * len(profiles)), layout="constrained")
        panel = figure.subplots()
        for index, (label, profile, low, high) in enumerate(profiles):
            color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            panel.plot(thresholds, profile, color=color, linestyle=dash, linewidth=1.8, label=_short(label))
            panel.fill_between(thresholds, low, high, color=color, alpha=0.2, linewidth=0)
        panel.set_xlabel("normalized score τ")
        panel.set_ylabel("share of runs that score above τ")
        panel.set_ylim(-0.02, 1.02)
        panel.margins(x=0.01)
        tidy(panel)
        figure.legend(loc="outside lower left", frameon=False, handlelength=3.4)
        return _svg(figure)


def _unevenness(numbers: np.ndarray) -> float:
    """How far the median of sorted numbers is from the middle of their ends, as a share of their span."""
    return abs(float(np.median(numbers) - (numbers[0] + numbers[-1]) / 2) / float(numbers[-1] - numbers[0]))


class _Axis:
    """Where values lie on an axis: numbers by size (or its logarithm), other things in order."""

    def __init__(self, values: Sequence[Any], linear: bool = False) -> None:
        self.ordered = all(is_number(value) for value in values)
        self.values = sorted(set(values)) if self.ordered else list(dict.fromkeys(map(text, values)))
        ends = (float(self.values[0]), float(self.values[-1])) if self.ordered else (0.0, 0.0)
        wide = self.ordered and not linear and ends[0] > 0 and ends[1] / ends[0] > _LOG_SPAN
        # Logarithmic if the values lie more evenly so: half of them in each half of the axis.
        self.log = wide and _unevenness(np.log(self.values)) < _unevenness(np.asarray(self.values, np.float64))

    def places(self, values: Any) -> np.ndarray:
        """Numbers to draw at."""
        if not self.ordered:
            return np.array([self.values.index(text(value)) for value in values], np.float64)
        numbers = np.asarray(values, np.float64)
        return np.log10(numbers) if self.log else numbers

    def heights(self, values: Any) -> np.ndarray:
        """The same between 0 and 1."""
        ends = self.places(self.values)
        low, high = ends.min(), ends.max()
        return (self.places(values) - low) / (high - low) if high > low else np.full(len(values), 0.5)

    def marks(self, count: int) -> list[tuple[float, str]]:
        """Heights and labels of ticks: the values themselves if they are few."""
        if len(self.values) <= count:
            return list(zip(self.heights(self.values), map(text, self.values), strict=True))
        if not self.ordered:
            kept = self.values[:: math.ceil(len(self.values) / count)]
            return list(zip(self.heights(kept), kept, strict=True))
        low, high = float(self.values[0]), float(self.values[-1])
        if self.log:
            powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            # As many digits of each power of ten as there is room for.
            for digits in ((1, 2, 5), (1, 3), (1,)):
                numbers = np.sort(np.outer(powers, digits).ravel())
                numbers = numbers[(numbers >= low) & (numbers <= high)]
                if len(numbers) <= count:
                    break
            numbers = numbers[:: math.ceil(len(numbers) / count)]
        else:
            numbers = np.asarray(MaxNLocator(min(count, 6)).tick_values(low, high))
            numbers = numbers[(numbers >= low) & (numbers <= high)]
        numbers = numbers if len(numbers) else np.array([low, high])
        return list(zip(self.heights(numbers), map(_number, numbers.tolist()), strict=True))

    def label(self, axis: Any, count: int) -> None:
        """Sets the ticks of a matplotlib axis whose data are places."""
        ends = self.places(self.values)
        low, high = float(ends.min()), float(ends.max())
        marks = self.marks(count)
        shown = [_short(mark, 14) for _, mark in marks]
        axis.set_ticks([low + height * (high - low) for height, _ in marks], shown)
        if axis.axis_name == "x" and sum(map(len, shown)) > 26:
            axis.set_tick_params(rotation=30)


def _spread(figure: Figure) -> None:
    """Room between panels, so that a label does not touch the panel before it."""
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.12)


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The reader's fonts draw the text, not matplotlib's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(content, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return content.getvalue()


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _short(label: str, width: int = _MAX_LABEL) -> str:
    # A label that begins with an underscore would be left out of a legend.
    label = "".join(letter for letter in " ".join(label.split()) if letter.isprintable())
    shown = label if len(label) <= width else f"{label[: width - 1]}…"
    return f"\u200b{shown}" if shown.startswith("_") else shown


def _is_light(color: Any) -> bool:
    red, green, blue = color[:3]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
