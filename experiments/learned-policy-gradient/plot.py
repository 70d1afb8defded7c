"""Draws the generations and the lengths of life that run.py has left.

.venv/bin/python experiments/learned-policy-gradient/plot.py
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


def main() -> None:
    """Writes figure.png."""
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
        left.plot(generation, held_out, color=colors[file.stem], label=file.stem)
        left.plot(generation, ties, color=colors[file.stem], linestyle=":", linewidth=1)
    left.set(xlabel="generation", ylabel="return after training", title="mean, held out (dotted: share of tied pairs)")
    horizons = results["horizons"]
    for name, arm in results["arms"].items():
        returns = [np.mean(arm[str(horizon)]) for horizon in horizons]
        right.plot(horizons, returns, color=colors[name], marker="o", markersize=3, label=name)
    for i, name in enumerate(("best", "random")):
        right.axhline(np.mean(results[name]), color="gray", linestyle=style.DASHES[i], linewidth=1, label=name)
    right.set(xlabel="updates of the agent's life", ylabel="return after it", title="test levels", xscale="log")
    right.set_xticks(horizons, [str(horizon) for horizon in horizons])
    right.minorticks_off()
    for panel in (left, right):
        style.tidy(panel)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=110)


if __name__ == "__main__":
    main()
