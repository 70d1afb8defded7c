"""Draws the searches and what their rules do over a life, and compares level by level.

.venv/bin/python experiments/temporal-awareness/plot.py
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl.analysis import style, tables

HERE = Path(__file__).parent


def main() -> None:
    """Draws figure.png and prints differences by level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of what run.py has left")
    folder = parser.parse_args().out
    results = json.loads((folder / "results.json").read_text())
    figure, (searches, lengths, entropies, scales) = plt.subplots(1, 4, figsize=(13.5, 3.8), layout="constrained")
    kinds = sorted({name.rpartition("-")[0] for name in results["arms"]})
    longest = max(results["frozen"])
    for name, arm in results["arms"].items():
        kind, _, seed = name.rpartition("-")
        look = {
            "color": style.COLORS[kinds.index(kind)],
            "linestyle": style.DASHES[int(seed) % len(style.DASHES)],
            "label": kind if seed == "0" else None,
        }
        if kind != "start":
            curve = json.loads((folder / f"{name}.json").read_text())
            millions = np.arange(len(curve["returns"])) * curve["transitions_a_round"] / 1e6
            searches.plot(millions, curve["returns"], **look)
        returns = arm["returns"]["true"]
        lengths.plot(results["horizons"], [np.mean(returns[str(n)]) for n in results["horizons"]], marker=".", **look)
        (schedule,) = (s for s in arm["schedules"] if s["life"] == longest)
        share = np.arange(1, longest + 1) / longest
        entropies.plot(share, schedule["entropy"], **look)
        scales.plot(share, schedule["scale"], **look)
        for horizon in map(str, results["frozen"]):
            for still in ("0", "0.5", "1"):
                loss = np.array(returns[horizon]) - np.array(arm["returns"][still][horizon])
                print(f"{name}, {horizon} updates, true progress less {still}: {tables.interval(loss, '+.3f')}")
    searches.set(xlabel="million transitions", ylabel="share of the best, held out", title="searches")
    lengths.set(
        xlabel="updates of the life", ylabel="share of the best after it", title="lengths of life", xscale="log"
    )
    lengths.set_xticks(results["horizons"], [str(n) for n in results["horizons"]])
    lengths.minorticks_off()
    entropies.set(xlabel="share of the life", ylabel="nats", title=f"policy's entropy, {longest} updates")
    scales.set(xlabel="share of the life", ylabel="√ mean π̂²", title=f"scale of the target, {longest} updates")
    for panel in (searches, lengths, entropies, scales):
        style.tidy(panel)
    figure.legend(
        *lengths.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8
    )
    figure.savefig(folder / "figure.png", dpi=110)


if __name__ == "__main__":
    main()
