"""Three claims on learning values, each an argument of DQN: the batch's size, mapped values, a chain of iterations.

    .venv/bin/python experiments/value-ablations/run.py --part batch      --tiny to try it
    .venv/bin/python experiments/value-ablations/run.py --part mapping
    .venv/bin/python experiments/value-ablations/run.py --part chain

batch     Obando-Ceron et al. 2023 (arXiv:2310.03882): smaller batches from replay are better, with as many updates
          as before. Here with quantiles and steps of 1 and 3.
mapping   Fatemi and Tavakoli 2022 (arXiv:2203.07171): values learned through a logarithm, in channels by the sign of
          the reward, against plain ones.
chain     Vincent et al. 2024 (arXiv:2403.02107, i-QN): several Bellman iterations learned at once, with the same
          period of the target and of the window.

All arms of a part have the same settings but for the one. Seeds are members of one program.
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
TASKS = {"gymnax/CartPole-v1": 150_000, "gymnax/Acrobot-v1": 150_000, "gymnax/Breakout-MinAtar": 100_000}
NUM_POINTS, PERIOD = 20, 200
# name: (fields of the config, head, hyperparameters)
Arm = tuple[dict[str, Any], values.ValueHead, dict[str, float]]
PARTS: dict[str, dict[str, Arm]] = {
    "batch": {
        f"batch {size}, n = {n}": ({"batch_size": size, "n_step": n}, values.quantile(32), {})
        for n in (1, 3)
        for size in (8, 32, 128)
    },
    "mapping": {
        "plain": ({}, values.scalar(), {}),
        "logarithm": ({}, values.mapped("log"), {}),
        "logarithm, then linear": ({}, values.mapped(), {}),
    },
    "chain": {
        "no chain": ({}, values.scalar(), {"target_period": PERIOD}),
        "2 links": ({"num_links": 2}, values.scalar(), {"target_period": PERIOD}),
        "4 links": ({"num_links": 4}, values.scalar(), {"target_period": PERIOD}),
    },
}


def curves(task: str, arm: Arm, total: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes that ended in each of the equal parts of training, [seeds, points]."""
    changes, head, rates = arm
    config = dqn.Config(
        num_envs=8,
        num_updates=2,
        num_rounds=25,
        network=QNetworkConfig(hidden=(64, 64)),
        **{"batch_size": 32, **changes},
    )
    agent = dqn.dqn(jaxrl.make_env(task), head=head, backup=values.double(), config=config)
    num_steps = max(1, total // agent.env_steps // NUM_POINTS) * NUM_POINTS
    hparams = agent.hyperparams(learning_rate=5e-4, horizon=float(total), **rates)
    train = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))
    _, metrics = train(jax.random.split(jax.random.key(0), num_seeds), hparams)
    parts = {
        name: np.asarray(metrics[f"episode/{name}"], np.float64).reshape(num_seeds, NUM_POINTS, -1).sum(-1)
        for name in ("return_sum", "count")
    }
    ended = parts["count"] > 0
    return np.divide(parts["return_sum"], parts["count"], out=np.full(ended.shape, np.nan), where=ended)


def main() -> None:
    """Runs one part, prints its table, draws its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="batch")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners, written nowhere")
    arguments = parser.parse_args()
    num_seeds = 2 if arguments.tiny else arguments.seeds
    tasks, arms = arguments.tasks, list(PARTS[arguments.part].items())
    if arguments.tiny:
        tasks, arms = tasks[:1], arms[:2]
    results: dict[str, Any] = {}
    figure, panels = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 3.2), squeeze=False)
    print("| task | arm | while training, IQM [95%] | last fifth, IQM [95%] | seconds |\n|---|---|---|---|---|")
    for panel, task in zip(panels[0], tasks, strict=True):
        total = 4_000 if arguments.tiny else TASKS[task]
        steps = (np.arange(NUM_POINTS) + 1) * total / NUM_POINTS
        for i, (name, arm) in enumerate(arms):
            begin = time.perf_counter()
            found = curves(task, arm, total, num_seeds)
            seconds = time.perf_counter() - begin
            cells = []
            for column in (statistics.mean(found), statistics.mean(found[:, -NUM_POINTS // 5 :])):
                low, high = statistics.bootstrap_interval(column, statistics.iqm)
                cells.append(f"{statistics.iqm(column):.1f} [{low:.1f}, {high:.1f}]")
            results[f"{task} {name}"] = found.tolist()
            print(f"| {task} | {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
            panel.plot(steps, statistics.iqm(found.T), color=style.COLORS[i], label=name)
        panel.set(title=task.partition("/")[2], xlabel="environment steps")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training, IQM")
    panels[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    if not arguments.tiny:
        figure.savefig(arguments.out / f"{arguments.part}.png", dpi=100)
        (arguments.out / f"{arguments.part}.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
