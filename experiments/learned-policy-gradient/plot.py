"""Draws the generations and the lengths of life that run.py has left, and compares level by level.

.venv/bin/python experiments/learned-policy-gradient/plot.py
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl.analysis import statistics, style

HERE = Path(__file__).parent
NUM_HELD_OUT = 128


def main() -> None:
    """Writes figure.png and prints differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="of results.json and the curves")
    folder = parser.parse_args().folder
    results = json.loads((folder / "results.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    colors = {name: style.COLORS[i] for i, name in enumerate(results["arms"])}
    for file in sorted(folder.glob("*lpg-*.json")):
        record = json.loads(file.read_text())
        held_out, ties = (record["curves"][name] for name in ("held_out/fitness", "fitness/tie_rate"))
        generation = (1 + np.arange(len(held_out))) * record["generations"]
        # Of 128 held-out levels: twice the standard error of their mean.
        error = 2.0 * np.array(record["curves"]["held_out/std"]) / NUM_HELD_OUT**0.5
        left.plot(generation, held_out, color=colors[file.stem], label=file.stem)
        left.fill_between(generation, held_out - error, held_out + error, color=colors[file.stem], alpha=0.15, lw=0)
        left.plot(generation, ties, color=colors[file.stem], linestyle=":", linewidth=1)
    left.set(
        xlabel="generation", ylabel="return after training", title="held out, ±2 standard errors (dotted: tied pairs)"
    )
    horizons = results["horizons"]
    for name, arm in results["arms"].items():
        returns = [np.mean(arm[str(horizon)]) for horizon in horizons]
        intervals = [
            statistics.bootstrap_interval(np.array(arm[str(horizon)]), statistics.mean) for horizon in horizons
        ]
        right.plot(horizons, returns, color=colors[name], marker="o", markersize=3, label=name)
        right.fill_between(horizons, *zip(*intervals, strict=True), color=colors[name], alpha=0.15, lw=0)
    for i, name in enumerate(("best", "random")):
        right.axhline(np.mean(results[name]), color="gray", linestyle=style.DASHES[i], linewidth=1, label=name)
    right.set(
        xlabel="updates of the agent's life", ylabel="return after it", title="test levels, 95% intervals", xscale="log"
    )
    right.set_xticks(horizons, [str(horizon) for horizon in horizons])
    right.minorticks_off()
    # Level by level, since all arms meet the same ones.
    for name, arm in results["arms"].items():
        for horizon in map(str, horizons):
            gain = np.array(results["arms"]["lpg-0"][horizon]) - np.array(arm[horizon])
            print(
                f"lpg-0 less {name}, {horizon}: {gain.mean():+.3f}, standard error {gain.std() / len(gain) ** 0.5:.3f}"
            )
    for panel in (left, right):
        style.tidy(panel)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=110)


if __name__ == "__main__":
    main()
