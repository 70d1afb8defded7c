"""A learning curve that grows while training runs, for notebooks.

Nothing is called from inside the compiled program: the host looks between segments, and draws then.
"""

import io
import math
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxrl.analysis.style import COLORS, tidy
from jaxrl.progress import Progress


class LiveCurve:
    """Draws the mean return of the episodes that ended in each segment, as `fit`'s `on_segment`.

    In a notebook the picture is shown once and replaced after each segment. Elsewhere nothing is shown, and `figure`
    holds the same picture.

    Args:
      title: above the picture.
      show: called with the figure and whether it is the first time; None: the notebook's display, if there is one.

    Attributes:
      figure: the picture so far.

    Example:
      >>> import jaxrl
      >>> from jaxrl.fit import fit
      >>> agent, curve = jaxrl.ppo(jaxrl.make_env("probe/Credit")), LiveCurve("PPO")
      >>> _ = fit(agent, agent.hyperparams(), seed=0, total_iterations=4, segment=2, on_segment=curve)
      >>> curve.figure.axes[0].get_title(), len(curve.steps)
      ('PPO', 2)
    """

    def __init__(self, title: str = "", show: Callable[[Figure, bool], None] | None = None):
        self.figure = Figure(figsize=(7.0, 3.8), layout="constrained")
        self.steps: list[int] = []
        self._title, self._show = title, show or _notebook()
        self._means: list[float] = []
        self._intervals: list[tuple[float, float]] = []
        self._evaluations: list[tuple[int, float]] = []

    def __call__(self, progress: Progress) -> None:
        """Adds a segment and draws."""
        self.steps.append(progress.env_steps)
        self._means.append(progress.mean_return)
        self._intervals.append(progress.interval)
        if progress.evaluation is not None:
            known = [float(value) for value in progress.evaluation if math.isfinite(value)]
            if known:
                self._evaluations.append((progress.env_steps, sum(known) / len(known)))
        self._draw(progress)
        if self._show:
            self._show(self.figure, len(self.steps) == 1)

    def _draw(self, progress: Progress) -> None:
        self.figure.clear()
        panel = self.figure.subplots()
        low, high = zip(*self._intervals, strict=True)
        panel.plot(self.steps, self._means, color=COLORS[0], marker="o", markersize=3, label="training: mean of seeds")
        panel.fill_between(self.steps, low, high, color=COLORS[0], alpha=0.22, linewidth=0, label="95% interval")
        if self._evaluations:
            panel.plot(*zip(*self._evaluations, strict=True), "s", color=COLORS[1], markersize=5, label="evaluation")
        panel.set_xlim(0, progress.env_steps / progress.iteration * progress.total_iterations)
        panel.set_xlabel("environment steps of each seed")
        panel.set_ylabel("undiscounted episode return")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_title(self._title)
        speed = EngFormatter(places=0, sep="")(progress.steps_per_second)
        panel.set_title(f"{speed} steps/s, {progress.eta_seconds:.0f} s left", loc="right", fontsize="small")
        panel.legend(frameon=False, fontsize="small", loc="upper left")
        tidy(panel)


def _notebook() -> Callable[[Figure, bool], None] | None:
    """Shows and replaces a figure in the cell that runs; None outside of a notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    handles: list[Any] = []

    def show(figure: Figure, first: bool) -> None:
        # As bytes: a figure that pyplot did not make has no picture in a notebook without its inline backend.
        content = io.BytesIO()
        figure.savefig(content, dpi=110)
        picture = Image(content.getvalue(), format="png")
        if first:
            handles[:] = [display(picture, display_id=True)]
        else:
            handles[0].update(picture)

    return show
