"""Does the disagreement of two projections find what random actions do not (Zanger et al. 2024, arXiv:2306.07124)?

    .venv/bin/python experiments/projection-ensembles/run.py    --tiny to try it

DeepSea of bsuite: a treasure at the end of a dive of N right moves, each of which costs a little. Random actions
find it once in 2^N episodes. DQN with random actions that decay; the ensemble without its bonus, with the same random
actions; and the ensemble with its bonus and without random actions. All have one target period, rate and replay.
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
from jaxrl.analysis import statistics, style
from jaxrl.networks.q_network import QNetworkConfig

HERE = Path(__file__).parent
SIZES, EPISODES, NUM_POINTS = (6, 10, 14), 2_000, 20
PRIOR, NUM_ATOMS = 3.0, 21
RANDOM = {"epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_fraction": 0.3}
NEVER = {"epsilon_start": 0.0, "epsilon_end": 0.0}
ARMS: dict[str, tuple[values.ValueHead, dict[str, Any], dict[str, float]]] = {
    "DQN": (values.scalar(), {}, RANDOM),
    "ensemble without bonus": (
        values.projection_ensemble(NUM_ATOMS, beta=0.0),
        {"num_members": 2, "prior": PRIOR},
        RANDOM,
    ),
    "ensemble with bonus": (
        values.projection_ensemble(NUM_ATOMS, beta=1.0),
        {"num_members": 2, "prior": PRIOR},
        NEVER,
    ),
}


def found(arm: str, size: int, episodes: int, num_seeds: int) -> np.ndarray:
    """Share of episodes of training that end at the treasure, in each part of it, [seeds, points]."""
    head, network, rates = ARMS[arm]
    config = dqn.Config(
        num_envs=4,
        num_rounds=size,
        num_updates=2,
        batch_size=64,
        capacity=32_768,
        network=QNetworkConfig(hidden=(50, 50), **network),
    )
    agent = dqn.dqn(
        jaxrl.make_env("gymnax/DeepSea-bsuite", size=size), head=head, backup=values.double(), config=config
    )
    num_steps = max(1, episodes * size // agent.env_steps // NUM_POINTS) * NUM_POINTS
    hparams = agent.hyperparams(
        learning_rate=5e-4, gamma=0.99, target_period=100, horizon=float(num_steps * agent.env_steps), **rates
    )
    train = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))
    _, metrics = train(jax.random.split(jax.random.key(0), num_seeds), hparams)
    total, count = (
        np.asarray(metrics[f"episode/{name}"], np.float64).reshape(num_seeds, NUM_POINTS, -1).sum(-1)
        for name in ("return_sum", "count")
    )
    # A dive costs .01 in all, so nothing but treasures brings a mean return above 0.
    return np.clip(total / np.maximum(count, 1.0), 0.0, 1.0)


def main() -> None:
    """Runs all arms, prints the table, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="few episodes of few learners, written nowhere")
    arguments = parser.parse_args()
    seeds, episodes, sizes = arguments.seeds, arguments.episodes, SIZES
    if arguments.tiny:
        seeds, episodes, sizes = 2, 80, SIZES[:1]
    results: dict[str, Any] = {}
    figure, panels = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3), sharey=True, squeeze=False)
    print(
        "| size | arm | mean return while training, IQM [95%] | seeds that learn it | seconds |\n|---|---|---|---|---|"
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        points = (np.arange(NUM_POINTS) + 1) * episodes / NUM_POINTS
        for color, arm in zip(style.COLORS, ARMS, strict=False):
            begin = time.perf_counter()
            curves = found(arm, size, episodes, seeds)
            low, high = statistics.bootstrap_interval(curves.mean(1), statistics.iqm)
            learned = int((curves[:, -NUM_POINTS // 5 :].mean(1) > 0.5).sum())
            print(
                f"| {size} | {arm} | {statistics.iqm(curves.mean(1)):.2f} [{low:.2f}, {high:.2f}] | "
                f"{learned} of {seeds} | {time.perf_counter() - begin:.0f} |",
                flush=True,
            )
            results[f"{size} {arm}"] = curves.tolist()
            panel.plot(points, statistics.iqm(curves.T), color=color, label=arm)
        panel.set(title=f"DeepSea, N = {size}", xlabel="episodes")
        style.tidy(panel)
    panels[0, 0].set_ylabel("mean return, IQM")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    if not arguments.tiny:
        figure.savefig(arguments.out / "figure.png", dpi=100)
        (arguments.out / "results.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
