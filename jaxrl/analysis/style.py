"""What all figures share."""

from typing import Any

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart with every kind of color vision, and by the dashes below in print."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))
COLORMAP = "viridis_r"
"""Dark is high, so that what is good stands out on white."""

# With more points than this a line is seen without markers.
_MAX_MARKED = 12


def tidy(panel: Any) -> None:
    """A light grid and no box."""
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def line(panel: Any, x: np.ndarray, y: np.ndarray, linestyle: Any = "-", **look: Any) -> Any:
    """Draws a line, with a marker at each point where there are few: a single point has no line.

    Markers are disks on solid lines, rings on dotted ones, and open squares on the others.

    Args:
      panel: to draw in.
      x: [n].
      y: [n]; what is not finite is no point.
      linestyle: as `matplotlib.axes.Axes.plot` takes it.
      **look: likewise.

    Returns:
      The line.
    """
    if np.count_nonzero(np.isfinite(y)) <= _MAX_MARKED:
        look |= {"marker": "o" if linestyle in ("-", ":") else "s", "markersize": 4}
        if linestyle != "-":
            look["markerfacecolor"] = "white"
    return panel.plot(x, y, linestyle=linestyle, **look)[0]


def count_axis(panel: Any, name: str) -> None:
    """Labels the x axis, whose ticks are whole numbers."""
    panel.set_xlabel(name)
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
