"""Draws the curves and the drifts that run.py has left.

.venv/bin/python experiments/evolved-drift/plot.py
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl import objectives
from jaxrl.analysis import style
from jaxrl.analysis.drift_figures import plot_drifts
from jaxrl.objectives.learned import LPO

HERE = Path(__file__).parent
STARTS = {"LPO from nothing": objectives.lpo(), "LPO from PPO": objectives.lpo(start="ppo")}
TASK = "gymnax/CartPole-v1"


def main() -> None:
    """Writes curves.png and drifts.png, and prints the constraint checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="of results.json and weights.npz")
    folder = parser.parse_args().folder
    results = json.loads((folder / "results.json").read_text())
    weights = np.load(folder / "weights.npz")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for i, (name, curves) in enumerate(results["curves"].items()):
        generation = (1 + np.arange(len(curves["held_out/fitness"]))) * results["generations_a_round"]
        color, label = style.COLORS[i], name.partition("/")[0]
        left.plot(generation, curves["held_out/fitness"], color=color, label=label)
        left.plot(generation, curves["fitness/mean"], color=color, linestyle=":", linewidth=1)
        right.plot(generation, curves["strategy/snr"], color=color, label=label)
    for i, name in enumerate(("no drift", "PPO", "DPO")):
        mean = float(np.mean(results["tests"][TASK][name]["training"]))
        left.axhline(mean, color="gray", linestyle=style.DASHES[i], linewidth=1, label=f"{name}, test")
    right.axhline(1.0, color="gray", linewidth=1, linestyle=":")
    left.set(xlabel="generation", ylabel="return while training", title="mean, held out (dotted: the population)")
    right.set(xlabel="generation", ylabel="signal to noise", title="of the gradient's estimate")
    for panel in (left, right):
        style.tidy(panel)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(folder / "curves.png", dpi=110)

    written = {"PPO": objectives.clip(), "DPO": objectives.dpo()}
    drifts = [(name, objective, objective.init(jax.random.key(0))) for name, objective in written.items()]
    for name in results["curves"]:
        params = LPO(*(jnp.asarray(weights[f"{name}/{part}"]) for part in ("hidden", "output")))
        start = name.partition("/")[0]
        drifts.append((start, STARTS[start], params))
    for (name, _, _), check in zip(drifts, plot_drifts(drifts, folder / "drifts.png"), strict=True):
        print(name, check)


if __name__ == "__main__":
    main()
