"""Draws the curves that `run.py` wrote: .venv/bin/python experiments/columnar/plot.py"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl.analysis import statistics, style


def main() -> None:
    """Learning curves of the columns beside those of truncated backpropagation, with 95% intervals over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("experiments/columnar/results.json"))
    parser.add_argument("--out", type=Path, default=Path("experiments/columnar/figure.png"))
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for panel, title, truncated in zip(panels, ("columns", "truncated backpropagation"), (False, True), strict=True):
        names = [name for name in results["arms"] if name.startswith("T-BPTT") == truncated]
        for name, color, dash in zip(names, style.COLORS, (style.DASHES * 2), strict=False):
            arm = results["arms"][name]
            curves = 1e3 * np.asarray(arm["curves"][arm["best"]])
            low, high = statistics.bootstrap_interval(curves.T, statistics.mean)
            steps = 1e-3 * (np.arange(curves.shape[1]) + 0.5) * results["steps"] / curves.shape[1]
            panel.plot(steps, statistics.mean(curves.T), color=color, linestyle=dash, label=name)
            panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        for bound in ("perfect memory", "no memory"):
            error = 1e3 * results["bounds"][bound]
            panel.axhline(error, color="0.6", linewidth=0.8)
            panel.annotate(bound, (1.0, error), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
        panel.set(title=title, xlabel="thousand transitions", ylim=(0, 1.15e3 * results["bounds"]["a constant"]))
        panel.legend(frameon=False, fontsize=7, loc="lower left")
        style.tidy(panel)
    panels[0].set_ylabel("squared error of predictions, thousandths")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
