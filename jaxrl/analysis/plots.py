"""Figures of runs, written without a display."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxrl.analysis import curves, statistics
from jaxrl.analysis.style import COLORS, DASHES, tidy
from jaxrl.names import distinct
from jaxrl.runs import Run

# More lines than this hide the band.
_MAX_SEED_LINES = 16


@dataclasses.dataclass(frozen=True)
class _Curve:
    label: str
    env: str
    training: xarray.DataArray
    evaluation: xarray.DataArray | None


def plot_curves(runs: Sequence[Run], path: Path | str, num_points: int = 100, confidence: float = 0.95) -> Path:
    """Draws the learning curves of one or several runs, one panel an environment.

    A line is the mean over seeds of the mean return of the episodes that ended in each slice of training; the band is
    its percentile bootstrap interval over seeds. One run alone also shows its seeds as thin lines and its evaluations
    as points with their intervals.

    Args:
      runs: the runs, in the order of the legend.
      path: the file; its suffix tells the format (png, pdf, svg).
      num_points: slices of each curve.
      confidence: of the intervals.

    Returns:
      The path.

    Raises:
      ValueError: there is no run, a run has no metrics yet, or the format is unknown.
    """
    if not runs:
        raise ValueError("plot_curves needs at least one run.")
    path = Path(path)
    allowed = set(Figure().canvas.get_supported_filetypes())
    if path.suffix.lstrip(".") not in allowed:
        raise ValueError(f"{path} must end in one of {', '.join(sorted(allowed))}.")
    drawn = [_curve(run, label, num_points) for run, label in zip(runs, _labels(runs), strict=True)]
    envs = list(dict.fromkeys(curve.env for curve in drawn))
    num_columns = min(len(envs), 3)
    num_rows = math.ceil(len(envs) / num_columns)
    figure = Figure(figsize=(1.0 + 6.0 * num_columns, 4.2 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, env in zip(panels, envs, strict=False):
        inside = [curve for curve in drawn if curve.env == env]
        for index, curve in enumerate(inside):
            _draw(panel, curve, index, len(inside) == 1, confidence)
        panel.set_title(f"{inside[0].label} on {env}" if len(inside) == 1 else env)
        panel.set_xlabel("environment steps of each seed")
        panel.set_ylabel("undiscounted episode return")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(panel)
        panel.margins(x=0.01)
        panel.legend(frameon=False, fontsize="small", loc="best")
    for panel in panels[len(envs) :]:
        panel.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _curve(run: Run, label: str, num_points: int) -> _Curve:
    metrics = run.metrics()
    if not metrics:
        raise ValueError(f"{run.path} has no metrics yet: train it for at least one segment.")
    evaluations = run.evaluations()
    return _Curve(
        label=label,
        env=str(run.record.get("env", "unknown environment")),
        training=curves.learning_curve(metrics, num_points),
        evaluation=curves.evaluation_curve(evaluations) if evaluations else None,
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """The algorithm's name for one run, else the names of the folders."""
    if len(runs) == 1:
        return [str(runs[0].record.get("algorithm", runs[0].path.name))]
    return distinct([run.path for run in runs])


def _draw(panel: Any, curve: _Curve, index: int, alone: bool, confidence: float) -> None:
    color, dash = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    values = curve.training.transpose("step", "seed")
    step, num_seeds = values["step"].values, values.sizes["seed"]
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    interval = f", {confidence:.0%} interval" if num_seeds > 1 else ""
    name = f"training: mean of {seeds}{interval}" if alone else f"{curve.label} ({seeds}{interval})"
    panel.plot(step, statistics.mean(values.values), color=color, linestyle=dash, linewidth=1.8, label=name, zorder=3)
    low, high = statistics.bootstrap_interval(values.values, statistics.mean, confidence)
    panel.fill_between(step, low, high, color=color, alpha=0.22, linewidth=0, zorder=2)
    if not alone:
        return
    if 1 < num_seeds <= _MAX_SEED_LINES:
        panel.plot(step, values.values, color=color, alpha=0.25, linewidth=0.7, zorder=1)
    if curve.evaluation is None:
        return
    played = curve.evaluation.transpose("step", "seed")
    center = statistics.mean(played.values)
    low, high = statistics.bootstrap_interval(played.values, statistics.mean, confidence)
    known = np.isfinite(center)
    bars = np.nan_to_num(np.stack([center - low, high - center]))
    panel.errorbar(
        played["step"].values[known],
        center[known],
        bars[:, known],
        color=COLORS[1],
        fmt="o",
        markersize=5,
        capsize=3,
        linewidth=1.2,
        label=f"evaluation, greedy: mean of {seeds}{interval}",
        zorder=4,
    )
