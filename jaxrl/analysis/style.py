"""What all figures share."""

from typing import Any

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart with every kind of color vision, and by the dashes below in print."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))
COLORMAP = "viridis_r"
"""Dark is high, so that what is good stands out on white."""


def tidy(panel: Any) -> None:
    """A light grid and no box."""
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
