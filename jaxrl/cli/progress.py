"""How a training run looks: a bar on a terminal, plain lines otherwise, and a table at the end."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from jaxrl.analysis import statistics
from jaxrl.fit import Progress
from jaxrl.sinks import Sink

# Without a terminal a line is printed when so much more is done, or so much time has passed.
_LINE_SHARE = 0.05
_LINE_SECONDS = 30.0
# More seeds than this are not listed one by one.
_MAX_ROWS = 20


class Display:
    """Shows a run while it trains.

    Args:
      console: where to.
      total_steps: of each seed.
      num_seeds: for the intervals' meaning.
    """

    def __init__(self, console: Console, total_steps: int, num_seeds: int):
        self.console = console
        self._total_steps, self._num_seeds = total_steps, num_seeds
        self._bar: Bar | None = None
        self._task: Any = None
        self._began = time.monotonic()
        self._told_share, self._told_time = 0.0, self._began

    @contextmanager
    def live(self) -> Iterator["Display"]:
        """Shows the compilation, then the training, until the end of the block."""
        if not self.console.is_terminal:
            self.console.print("compiling …")
            yield self
            return
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            _Clock(table_column=Column(no_wrap=True)),
        )
        with Bar(*columns, console=self.console, expand=True, refresh_per_second=4) as bar:
            self._bar = bar
            self._task = bar.add_task("compiling", total=None, status="", left=None, told=time.monotonic())
            try:
                yield self
            finally:
                self._bar = None

    def sink(self) -> Sink:
        """Hears of the end of compilation: sinks are started right after it."""
        return Sink(self._compiled, lambda step, seed, scalars: None, lambda: None)

    def message(self, line: str) -> None:
        """Prints a line above the bar."""
        self.console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def segment(self, progress: Progress) -> None:
        """Shows what is known after a segment."""
        if self._bar:
            status = "  ".join(
                (
                    f"{short(progress.env_steps)}/{short(self._total_steps)} steps",
                    f"{short(progress.steps_per_second)}/s",
                    f"return {_with_interval(progress.mean_return, progress.interval)}",
                )
            )
            left = progress.eta_seconds
            self._bar.update(self._task, completed=progress.env_steps, status=status, left=left, told=time.monotonic())
            return
        share, now = progress.iteration / progress.total_iterations, time.monotonic()
        is_due = share - self._told_share >= _LINE_SHARE or now - self._told_time >= _LINE_SECONDS
        if is_due or share >= 1 or progress.evaluation is not None:
            self._told_share, self._told_time = share, now
            self.console.print(self._line(progress), markup=False, highlight=False, soft_wrap=True)

    def _compiled(self, step: float, num_seeds: int) -> None:
        took = time.monotonic() - self._began
        if self._bar:
            self._bar.update(
                self._task, description="training", total=self._total_steps, completed=int(step), told=time.monotonic()
            )
        self.console.print(f"compiled in {took:.1f} s", highlight=False)

    def _line(self, progress: Progress) -> str:
        width, share = len(f"{self._total_steps:,}"), progress.iteration / progress.total_iterations
        parts = [
            f"{progress.env_steps:>{width},} steps {share:4.0%}",
            f"{short(progress.steps_per_second)} steps/s",
            f"return {_with_interval(progress.mean_return, progress.interval)}",
        ]
        if progress.evaluation is not None:
            parts.append(f"evaluation {number(float(statistics.mean(progress.evaluation)))}")
        if progress.diverged:
            parts.append(f"{len(progress.diverged)} diverged")
        if progress.iteration < progress.total_iterations:
            parts.append(f"{clock(progress.eta_seconds)} left")
        return "  ".join(parts)


class _Clock(ProgressColumn):
    """Time left, counted down between segments; the time passed while it is not known."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        if left is None:
            return Text(clock(task.elapsed or 0.0))
        return Text(f"{clock(max(left - (time.monotonic() - task.fields['told']), 0.0))} left")


def final_table(results: dict[str, Any]) -> Table:
    """One row a seed and the summaries over seeds: mean and interquartile mean with 95% bootstrap intervals."""
    rows = results["seeds"]
    columns = {"training return": "training_return", "evaluation return": "evaluation_return"}
    columns = {title: key for title, key in columns.items() if any(row[key] is not None for row in rows)}
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("seed")
    for title in columns:
        table.add_column(title, justify="right")
    has_diverged = any(row["diverged"] is not None for row in rows)
    if has_diverged:
        table.add_column("diverged")
    for row in rows if len(rows) <= _MAX_ROWS else [row for row in rows if row["diverged"] is not None][:_MAX_ROWS]:
        at = [f"after {row['diverged']:,} steps" if row["diverged"] is not None else ""] if has_diverged else []
        table.add_row(str(row["seed"]), *(number(row[key]) for key in columns.values()), *at)
    if len(rows) < 2:
        return table
    table.add_section()
    for name, statistic in (("mean", statistics.mean), ("IQM", statistics.iqm)):
        cells = []
        for key in columns.values():
            values = np.array([math.nan if row[key] is None else row[key] for row in rows])
            low, high = statistics.bootstrap_interval(values, statistic)
            cells.append(_with_interval(float(statistic(values)), (float(low), float(high))))
        table.add_row(name, *cells, style="bold")
    return table


def number(value: float | None) -> str:
    """A return for people: four digits, a dash if it is not known."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """A count for people: `12.3k`, `4.5M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def counted(count: int, name: str) -> str:
    """A count with its name: `1 seed`, `2,000 seeds`."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def clock(seconds: float) -> str:
    """A duration: `0:07`, `12:34`, `1:02:03`."""
    whole = round(seconds) if math.isfinite(seconds) else 0
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _with_interval(center: float, interval: tuple[float, float]) -> str:
    if any(math.isnan(bound) for bound in interval):
        return number(center)
    return f"{number(center)} [{number(interval[0])}, {number(interval[1])}]"
