"""Draws the generations, the regret of levels and the scores on test levels that run.py has left.

.venv/bin/python experiments/algorithmic-regret/plot.py
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl.analysis import style

HERE = Path(__file__).parent
COLORS = {"random": style.COLORS[0], "regret": style.COLORS[1]}


def main() -> None:
    """Writes figure.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="of results.json and the curves")
    folder = parser.parse_args().folder
    results = json.loads((folder / "results.json").read_text())
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    for arm, color in COLORS.items():
        for n, file in enumerate(sorted(folder.glob(f"{arm}-*.json"))):
            record = json.loads(file.read_text())
            curves, label = record["curves"], f"levels by {arm}" if arm == "regret" else "random levels"
            generation = (1 + np.arange(len(curves["held_out/fitness"]))) * record["generations"]
            left.plot(generation, curves["held_out/fitness"], color=color, label=None if n else label)
            if arm == "regret":
                for dashes, which in zip(style.DASHES, ("replayed", "new"), strict=False):
                    name = None if n else f"{which} levels"
                    middle.plot(
                        generation, curves[f"curriculum/score_{which}"], color=color, linestyle=dashes, label=name
                    )
        if arm in results["scores"]:
            scores = np.sort(np.asarray(results["scores"][arm]), axis=1)
            share = (0.5 + np.arange(scores.shape[1])) / scores.shape[1]
            for row in scores:
                right.plot(share, row, color=color, linewidth=1)
    left.set(xlabel="generation", ylabel="return after training", title="mean, held-out levels")
    middle.set(xlabel="generation", ylabel="algorithmic regret", title="levels that are met")
    right.set(xlabel="share of test levels", ylabel="gain by that of A2C", title="test levels, worst first")
    right.set_ylim(-1.0, 2.0)
    right.axvline(0.25, color="gray", linewidth=0.8)
    for panel in (left, middle, right):
        style.tidy(panel)
    for panel in (left, middle):
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=110)


if __name__ == "__main__":
    main()
