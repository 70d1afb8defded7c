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
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
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
    return span_returns(metrics, NUM_POINTS)


def report(part: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Prints the table and draws the figure."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    print(tables.head("task", "arm", "while training, IQM [95%]", "last fifth, IQM [95%]", "seconds"))
    for panel, task in zip(panels[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            curve = np.asarray(row["curve"])
            whole, last = statistics.mean(curve), statistics.mean(curve[:, -NUM_POINTS // 5 :])
            cells = (tables.interval(x, ".1f", statistics.iqm) for x in (whole, last))
            print(tables.row(task.partition("/")[2], row["arm"], *cells, row["seconds"]))
            draw_spans(panel, curve, row["num_steps"], statistics.iqm, list(PARTS[part]).index(row["arm"]), row["arm"])
        panel.set(title=task.partition("/")[2], xlabel="environment steps")
        panel.locator_params(axis="x", nbins=4)
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training, IQM")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Runs what has not been run of a part, prints its table and draws its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="batch")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the part's .json and .png")
    parser.add_argument("--tiny", action="store_true", help="few steps of two seeds on one task; name another --out")
    arguments = parser.parse_args()
    tasks = arguments.tasks[:1] if arguments.tiny else arguments.tasks
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.part}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for task in tasks:
        total, num_seeds = (4_000, 2) if arguments.tiny else (TASKS[task], arguments.seeds)
        for name, arm in PARTS[arguments.part].items():
            if any((row["task"], row["arm"]) == (task, name) for row in rows):
                continue
            began = time.perf_counter()
            curve = curves(task, arm, total, num_seeds).tolist()
            seconds = round(time.perf_counter() - began)
            rows.append({"task": task, "arm": name, "num_steps": total, "curve": curve, "seconds": seconds})
            path.write_text(json.dumps(rows) + "\n")
            print(f"{task} {name}: {seconds} s", flush=True)
    report(arguments.part, rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
