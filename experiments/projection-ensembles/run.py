"""Does the disagreement of two projections find what random actions do not (Zanger et al. 2024, arXiv:2306.07124)?

    .venv/bin/python experiments/projection-ensembles/run.py    --tiny to try it

DeepSea of bsuite: a treasure at the end of a dive of N right moves, each of which costs a little. Random actions
find it once in 2^N episodes. DQN with random actions that decay; the ensemble without its bonus, with the same random
actions; and the ensemble with its bonus and without random actions. All have the paper's table 4: one layer of 512
units, a rate of 5e-4, targets copied every 4 updates, batches of 128, one update a step.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl import values
from jaxrl.algorithms import dqn
from jaxrl.analysis import style, tables
from jaxrl.networks.q_network import QNetworkConfig

HERE = Path(__file__).parent
SIZES, EPISODES, NUM_POINTS = (10, 14), 500, 20
NUM_ATOMS = 21
RANDOM = {"epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_fraction": 0.3}
NEVER = {"epsilon_start": 0.0, "epsilon_end": 0.0}
MEMBERS = {"num_members": 2, "prior": (20.0, 0.0)}
ARMS: dict[str, tuple[values.ValueHead, dict[str, Any], dict[str, float]]] = {
    "DQN": (values.scalar(), {}, RANDOM),
    "ensemble without bonus": (values.projection_ensemble(NUM_ATOMS, beta=0.0), MEMBERS, RANDOM),
    "ensemble with bonus": (values.projection_ensemble(NUM_ATOMS, beta=5.0), MEMBERS, NEVER),
}


def run(arm: str, size: int, episodes: int, num_seeds: int) -> dict[str, Any]:
    """Trains all seeds of an arm.

    Returns:
      `found`, share of the episodes that end at the treasure in each part of training, [seeds][points]; `greedy`,
      return of a greedy episode at the end, [seeds]; `seconds`.
    """
    head, network, rates = ARMS[arm]
    began = time.perf_counter()
    config = dqn.Config(
        num_envs=1,
        num_rounds=size,
        num_updates=1,
        batch_size=128,
        capacity=10_000 // size * size,
        num_warmup_steps=size,
        network=QNetworkConfig(hidden=(512,), **network),
    )
    agent = dqn.dqn(
        jaxrl.make_env("gymnax/DeepSea-bsuite", size=size), head=head, backup=values.double(), config=config
    )
    # A step of the algorithm is one episode.
    hparams = agent.hyperparams(
        learning_rate=5e-4,
        gamma=0.99,
        target_period=4,
        max_grad_norm=10.0,
        horizon=float(episodes * agent.env_steps),
        **rates,
    )
    train = jax.jit(jax.vmap(jaxrl.train(agent, episodes), (0, None)))
    states, metrics = train(jax.random.split(jax.random.key(0), num_seeds), hparams)
    # A dive costs .01 in all, so nothing but the treasure brings a return above 0.
    treasures = np.asarray(metrics["episode/return_sum"]) > 0.5
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 1), (None, 0, None)))
    greedy = play(jax.random.key(1), states, hparams.env).mean_return
    return {
        "found": treasures.reshape(num_seeds, NUM_POINTS, -1).mean(-1).tolist(),
        "greedy": np.asarray(greedy, np.float64).round(4).tolist(),
        "seconds": round(time.perf_counter() - began),
    }


def report(results: dict[str, Any], episodes: int, path: Path) -> None:
    """Prints the table and draws the figure."""
    sizes = [size for size in SIZES if any(key.startswith(f"{size} ") for key in results)]
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(4 * len(sizes), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    points = (np.arange(NUM_POINTS) + 1) * episodes / NUM_POINTS
    print(tables.head("size", "arm", "seeds that found it", "seeds whose greedy policy goes there", "seconds"))
    for panel, size in zip(panels[0], sizes, strict=True):
        for color, arm in zip(style.COLORS, ARMS, strict=False):
            row = results.get(f"{size} {arm}")
            if not row:
                continue
            found, greedy = np.asarray(row["found"]), np.asarray(row["greedy"])
            of = f"of {len(found)}"
            cells = f"{(found.sum(1) > 0).sum()} {of}", f"{(greedy > 0.5).sum()} {of}", row["seconds"]
            print(tables.row(size, arm, *cells))
            panel.plot(points, found.T, color=color, alpha=0.3, linewidth=0.8)
            panel.plot(points, found.mean(0), color=color, label=arm if panel is panels[0, 0] else None)
        panel.set(title=f"DeepSea, N = {size}", xlabel="episodes")
        style.tidy(panel)
    panels[0, 0].set_ylabel("share that ends at the treasure")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Runs what has not been run, prints the table, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and figure.png")
    parser.add_argument("--tiny", action="store_true", help="20 episodes of two seeds, kept nowhere")
    options = parser.parse_args()
    if options.tiny:
        for arm in ARMS:
            print(arm, run(arm, SIZES[0], NUM_POINTS, 2))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if others := {len(row["greedy"]) for row in results.values()} - {options.seeds}:
        raise SystemExit(f"{path} has arms of {others} seeds: name another --out.")
    for size in SIZES:
        for arm in ARMS:
            if f"{size} {arm}" not in results:
                results[f"{size} {arm}"] = run(arm, size, EPISODES, options.seeds)
                path.write_text(json.dumps(results) + "\n")
    report(results, EPISODES, options.out / "figure.png")


if __name__ == "__main__":
    main()
