"""Two claims on the critics of off-policy control, each an argument of SAC or TD3: CrossQ and the annealed operator.

    .venv/bin/python experiments/control-ablations/run.py --part crossq      --tiny to try it
    .venv/bin/python experiments/control-ablations/run.py --part annealed

crossq     Bhatt et al. 2024 (arXiv:1902.05605): critics with batch normalization need no target network, and at one
           update a step learn from as few steps as REDQ and DroQ do at twenty. Beside it each of its parts alone.
annealed   Omura et al. 2025 (arXiv:2506.05968): targets that begin near the greatest value of all actions and end at
           the policy's own learn faster, whatever the beginning.

All arms of a part have the same sizes and seeds; an arm differs by what its row in PARTS says.
"""

import argparse
import dataclasses
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
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns

HERE = Path(__file__).parent
TASKS = {"gymnax/Pendulum-v1": 8_000, "brax/inverted_double_pendulum": 15_000}
NUM_SPANS, NUM_ROUNDS = 20, 120
SIZES: dict[str, Any] = {"num_rounds": NUM_ROUNDS, "batch_size": 128, "capacity": 65_536}
HIDDEN, WIDE = (64, 64), (256, 256)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A registered algorithm with what is changed in it.

    Attributes:
      algorithm: as `jaxrl list algorithms` has it.
      config: changed fields of the config.
      network: changed fields of its network.
      hparams: changed hyperparameters.
      tasks: where it is run; others would take too long.
    """

    algorithm: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    hparams: dict[str, float] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(TASKS)


PARTS: dict[str, dict[str, Arm]] = {
    "crossq": {
        "SAC": Arm("sac"),
        "SAC, CrossQ's optimizer": Arm("crossq", {"target": True}, {"norm": "none"}),
        "CrossQ without normalization": Arm("crossq", network={"norm": "none"}),
        "CrossQ": Arm("crossq"),
        "CrossQ, wide critics": Arm("crossq", network={"critic_hidden": WIDE}),
        "DroQ, 20 updates a step": Arm("droq", tasks=("gymnax/Pendulum-v1",)),
    },
    "annealed": {
        "SAC": Arm("sac"),
        "annealed SAC, 0.7": Arm("annealed_sac", hparams={"expectile": 0.7}),
        "annealed SAC, 0.9": Arm("annealed_sac", hparams={"expectile": 0.9}),
        "annealed SAC, 0.97": Arm("annealed_sac", hparams={"expectile": 0.97}),
        "TD3": Arm("td3"),
        "annealed TD3, 0.9": Arm("annealed_td3", hparams={"expectile": 0.9}),
    },
}


def build(arm: Arm, task: str) -> jaxrl.Algorithm:
    """The agent of an arm, all layers of one width but where the arm says otherwise."""
    default = ALGORITHMS[arm.algorithm].default_config.network
    network = dataclasses.replace(default, **{"hidden": HIDDEN, "critic_hidden": HIDDEN, **arm.network})
    return jaxrl.make(arm.algorithm, jaxrl.make_env(task), network=network, **{**SIZES, **arm.config})


def curves(arm: Arm, task: str, num_steps: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes that ended in each span of training, [seeds, spans]."""
    agent = build(arm, task)
    iterations = max(2, num_steps // agent.env_steps)
    rates = {f"{part}_learning_rate": 1e-3 for part in ("policy", "critic", "temperature")}
    known = {field.name for field in dataclasses.fields(agent.hyperparams())}
    given = {**rates, "horizon": float(iterations * agent.env_steps), **arm.hparams}
    hparams = agent.hyperparams(**{name: value for name, value in given.items() if name in known})

    def one(key: jax.Array) -> dict[str, jax.Array]:
        _, metrics = jaxrl.train(agent, iterations)(key, hparams)
        return {name: metrics[name] for name in ("episode/return_sum", "episode/count")}

    metrics = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), num_seeds))
    return span_returns(metrics, NUM_SPANS)


def report(part: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Prints the table and draws the figure."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    print(tables.head("task", "arm", "while training, IQM [95%]", "last fifth, IQM [95%]", "seconds"))
    for panel, task in zip(panels[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            curve = np.asarray(row["curve"])
            whole, last = np.nanmean(curve, axis=1), np.nanmean(curve[:, -NUM_SPANS // 5 :], axis=1)
            cells = (tables.interval(x, ".0f", statistics.iqm) for x in (whole, last))
            print(tables.row(task.partition("/")[2], row["arm"], *cells, row["seconds"]))
            index = list(PARTS[part]).index(row["arm"])
            draw_spans(panel, curve, row["num_steps"], statistics.iqm, index, row["arm"])
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
    parser.add_argument("--part", choices=PARTS, default="crossq")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the part's .json and .png")
    parser.add_argument("--tiny", action="store_true", help="two iterations of two seeds on one task")
    arguments = parser.parse_args()
    tasks = arguments.tasks[:1] if arguments.tiny else arguments.tasks
    path = arguments.out / f"{arguments.part}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        num_steps, num_seeds = (0, 2) if arguments.tiny else (TASKS[task], arguments.seeds)
        for name, arm in PARTS[arguments.part].items():
            if task not in arm.tasks or any((row["task"], row["arm"]) == (task, name) for row in rows):
                continue
            began = time.perf_counter()
            curve = curves(arm, task, num_steps, num_seeds).tolist()
            seconds = round(time.perf_counter() - began)
            rows.append({"task": task, "arm": name, "num_steps": num_steps, "curve": curve, "seconds": seconds})
            path.write_text(json.dumps(rows) + "\n")
            print(f"{task} {name}: {seconds} s", flush=True)
    report(arguments.part, rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
