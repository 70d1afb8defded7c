"""`jaxrl plot`."""

import argparse
from pathlib import Path

from jaxrl.analysis.plots import plot_curves
from jaxrl.cli.folders import open_run


def plot(options: argparse.Namespace) -> None:
    """Draws the learning curves of runs and prints the file's name.

    Raises:
      ValueError: a folder holds no run or no metrics yet, or the file's format is unknown.
    """
    runs = [open_run(path) for path in options.dirs]
    default = runs[0].path / "curves.png" if len(runs) == 1 else Path("curves.png")
    print(plot_curves(runs, options.out or default, options.points))
