"""Policy gradients from one transition at a time: the parts of AVG, and SAC without its replay.

    .venv/bin/python experiments/incremental/run.py   about 10 minutes on 2 busy cores; --tiny to see that it works

Claim tried: Vasan et al. 2024 (arXiv:2411.15370), sections 3 and 4: without replay, batches and target networks
incremental SAC fails, and AVG learns if observations, penultimate features and TD errors are normalized. Every arm gets
the same grid of rates and entropy coefficients, all settings side by side in one program; its best setting (by the mean
over the seeds) is then run again with seeds that it was not chosen by.
"""

import argparse
import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.algorithms import avg, sac
from jaxrl.analysis import style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
from jaxrl.meta.layout import choose_layout
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.streaming import StreamingConfig
from jaxrl.ops.members import over_members

TASKS = {"gymnax/Pendulum-v1": 0.97, "gymnax/Reacher-misc": 0.97}
GRID = {
    "policy_learning_rate": (1e-4, 3e-4, 1e-3),
    "critic_learning_rate": (3e-4, 1e-3, 3e-3),
    "entropy": (0.02, 0.1, 0.5),
}
HIDDEN = (32, 32)
NUM_SPANS = 20


def incremental(scale_errors: bool = True, unit_features: bool = True, normalize_observations: bool = True) -> Any:
    """AVG with or without its parts."""
    network = StreamingConfig(hidden=HIDDEN, initializer="orthogonal", layer_norm=False, unit_features=unit_features)
    config = avg.Config(
        network=network, scale_errors=scale_errors, normalize_observations=normalize_observations, num_steps=500
    )
    return lambda env: (avg.avg(env, config), "entropy_coef")


def last_transition(env: jaxrl.Env) -> tuple[jaxrl.Algorithm, str]:
    """SAC whose replay holds the latest transition only: batches of 1, with its target network."""
    config = sac.Config(
        batch_size=1,
        capacity=1,
        num_warmup_steps=1,
        learn_temperature=False,
        num_rounds=500,
        network=ControlConfig(hidden=HIDDEN, critic_hidden=HIDDEN),
    )
    return sac.sac(env, config=config), "initial_temperature"


ARMS: dict[str, Callable[[jaxrl.Env], tuple[jaxrl.Algorithm, str]]] = {
    "AVG": incremental(),
    "errors not scaled": incremental(scale_errors=False),
    "features not normalized": incremental(unit_features=False),
    "observations not normalized": incremental(normalize_observations=False),
    "none of the three": incremental(False, False, False),
    "SAC, latest transition": last_transition,
}


def curves(
    agent: jaxrl.Algorithm, entropy: str, gamma: float, settings: list[dict[str, float]], keys: jax.Array, steps: int
) -> np.ndarray:
    """Mean return of the episodes that ended in each twentieth of training, [settings, seeds, `NUM_SPANS`].

    A member whose parameters are no longer finite has the worst return of the others.
    """
    pairs = list(itertools.product(settings, range(len(keys))))
    leaves = {
        entropy if name == "entropy" else name: jnp.array([setting[name] for setting, _ in pairs]) for name in GRID
    }
    hparams = agent.hyperparams(gamma=gamma, **leaves)
    axes = dataclasses.replace(jax.tree.map(lambda _: None, hparams), **dict.fromkeys(leaves, 0))
    num_iterations = steps // agent.env_steps

    def one(key: jax.Array, hparams: Any) -> dict[str, jax.Array]:
        metrics = jaxrl.train(agent, num_iterations)(key, hparams)[1]
        return {name: metrics[name] for name in ("episode/return_sum", "episode/count")}

    layout = choose_layout(agent, agent.hyperparams(), len(pairs))
    run = over_members(one, (0, axes), *layout)
    returns = span_returns(jax.jit(run)(jnp.tile(keys, len(settings)), hparams), NUM_SPANS, "nan")
    returns = np.where(np.isfinite(returns), returns, np.nanmin(np.where(np.isfinite(returns), returns, np.nan)))
    return returns.reshape(len(settings), len(keys), -1)


def main() -> None:
    """Runs all tasks and arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/incremental/figure.png"))
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--search-seeds", type=int, default=3, help="that settings are chosen by")
    parser.add_argument("--seeds", type=int, default=10, help="other ones, for the figures")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--tiny", action="store_true", help="few transitions of few settings")
    arguments = parser.parse_args()
    # One device a core: members are spread over them.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    settings = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    num_search, num_seeds, num_steps = arguments.search_seeds, arguments.seeds, arguments.steps
    if arguments.tiny:
        settings, num_search, num_seeds, num_steps = settings[:2], 1, 2, 10_000
    keys_search = jax.random.split(jax.random.key(0), num_search)
    keys_figure = jax.random.split(jax.random.key(1), num_seeds)
    figure, panels = plt.subplots(
        1, len(arguments.tasks), figsize=(4.6 * len(arguments.tasks), 3.2), squeeze=False, layout="constrained"
    )
    print("| task | arm | return, last quarter | good settings | policy, critic, entropy | seconds |")
    print("|---|---|---|---|---|---|")
    for panel, task in zip(panels[0], arguments.tasks, strict=True):
        gamma = TASKS.get(task, 0.97)
        rows = {}
        for i, (arm, build) in enumerate(ARMS.items()):
            begin = time.perf_counter()
            agent, entropy = build(jaxrl.make_env(task))
            searched = curves(agent, entropy, gamma, settings, keys_search, num_steps)[..., -5:].mean(-1).mean(-1)
            best = settings[int(searched.argmax())]
            found = curves(agent, entropy, gamma, [best], keys_figure, num_steps)[0]
            rows[arm] = searched, best, found, time.perf_counter() - begin
            draw_spans(panel, found, num_steps, index=i, label=arm)
        # A tenth of what lies between the best and the worst setting of all arms.
        every = np.concatenate([row[0] for row in rows.values()])
        near = every.max() - 0.1 * (every.max() - every.min())
        for arm, (searched, best, found, seconds) in rows.items():
            share = f"{int((searched >= near).sum())} of {len(settings)}"
            chosen = ", ".join(f"{value:g}" for value in best.values())
            row = [task, arm, tables.interval(found[:, -5:].mean(-1), ".0f"), share, chosen, f"{seconds:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)
        panel.set(title=task.split("/")[1], xlabel="transitions")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
