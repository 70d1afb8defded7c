"""Does a policy gradient on marginal gains (SubPO) cover more than one on a reward of the state alone?

    .venv/bin/python experiments/submodular/run.py   about 2 CPU minutes; --tiny to see that it works

Claim tried: Prajapat et al. 2023 (arXiv:2307.13372). On grids so small that the best walk can be enumerated. Every
agent is `subpo`; the baseline gets the leaf env.modular = 1 and is otherwise the same program, same seeds, same steps.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.analysis import statistics, style, tables
from jaxrl.networks import NetworkConfig
from jaxrl.types import Algorithm, Env

NUM_STEPS, NUM_ENVS = 10, 32
NUM_POINTS = 10
SLIPS = (0.0, 0.2)
# Task: options.
TASKS = {
    "Cells": {"size": (5, 5)},
    "Items": {"size": (5, 5), "items": ((5, 2), (5, 2), (4, 3), (4, 2)), "seed": 1},
    "Information": {"size": (5, 5), "num_known": 5},
}
# Name: (what the policy sees, γ, env.modular).
ARMS = {
    "SubPO": ("position", 1.0, 0.0),
    "SubPO, history seen": ("history", 1.0, 0.0),
    "SubPO, γ = 0": ("position", 0.0, 0.0),
    "modular": ("position", 1.0, 1.0),
    "modular, history seen": ("history", 1.0, 1.0),
}
RULES = ("best", "greedy", "modular", "uniform")
MOVES = ((0, 0), (0, 1), (-1, 0), (0, -1), (1, 0))


def set_function(name: str, env: Env, size: tuple[int, int]) -> Callable[[int], float]:
    """F of a set of cells, bit c of a number for cell c, from its definition."""
    task = jax.tree.map(np.asarray, env.default_params().task)
    num_cells = size[0] * size[1]
    where = np.stack(np.divmod(np.arange(num_cells), size[1]), -1)
    near = np.abs(where[:, None] - where).sum(-1) <= 1

    @functools.cache
    def value(cells: int) -> float:
        chosen = [c for c in range(num_cells) if cells >> c & 1]
        if name == "Cells":
            return float(near[chosen].any(0).sum())
        if name == "Items":
            kinds = task.kind[chosen]
            return float(sum(min((kinds == k).sum(), n) for k, n in enumerate(task.needed)))
        block = task.covariance[np.ix_(chosen, chosen)].astype(np.float64)
        return float(0.5 * np.linalg.slogdet(np.eye(len(chosen)) + block / task.noise)[1])

    return value


def exact(name: str, env: Env, size: tuple[int, int], slip: float) -> dict[str, float]:
    """F(visited) - F(first cell) of policies that are known, by dynamic programming over (time, cell, visited cells).

    `best`: of all that see the history. `greedy`: a move of the greatest gain in the next step. `modular`: one that is
    best for the modular reward. `uniform`: any. Where several moves are as good, one of them at random.
    """
    value = set_function(name, env, size)

    def move(cell: int, action: int) -> int:
        row, column = cell // size[1] + MOVES[action][0], cell % size[1] + MOVES[action][1]
        return min(max(row, 0), size[0] - 1) * size[1] + min(max(column, 0), size[1] - 1)

    neighbors = [[move(cell, action) for action in range(len(MOVES))] for cell in range(size[0] * size[1])]

    @functools.cache
    def modular(left: int, cell: int) -> float:
        """The best sum of modular rewards to come after entering a cell, its own reward included."""
        own = value(1 << cell)
        if not left:
            return own
        after = [modular(left - 1, c) for c in neighbors[cell]]
        return own + slip * sum(after) / len(after) + (1 - slip) * max(after)

    def solve(rule: str) -> float:
        @functools.cache
        def future(left: int, cell: int, visited: int) -> float:
            if not left:
                return 0.0
            after = neighbors[cell]
            gains = [value(visited | 1 << c) - value(visited) for c in after]
            worth = [g + future(left - 1, c, visited | 1 << c) for g, c in zip(gains, after, strict=True)]
            scores = {
                "best": worth,
                "greedy": gains,
                "modular": [modular(left - 1, c) for c in after],
                "uniform": [0.0] * len(after),
            }[rule]
            chosen = [w for w, score in zip(worth, scores, strict=True) if score > max(scores) - 1e-6]
            return slip * sum(worth) / len(worth) + (1 - slip) * sum(chosen) / len(chosen)

        return future(NUM_STEPS, 0, 1)

    return {rule: solve(rule) for rule in RULES}


def agent_for(name: str, observe: str) -> tuple[Algorithm, Env]:
    """SubPO for one task."""
    env = jaxrl.make_env(f"coverage/{name}", max_episode_steps=NUM_STEPS, observe=observe, **TASKS[name])
    network = NetworkConfig(hidden=(32, 32))
    return jaxrl.make("subpo", env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, network=network), env


def learn(name: str, observe: str, settings: np.ndarray, num_seeds: int, iterations: int, rate: float) -> np.ndarray:
    """Trains all settings and seeds at once.

    Args:
      name: of the task.
      observe: what the policy sees.
      settings: γ, modular and slip, [settings, 3].
      num_seeds: of each setting.
      iterations: of training.
      rate: learning rate.

    Returns:
      F(visited) - F(first cell), the mean over 64 episodes of the mode, after each of `NUM_POINTS` parts of training:
      [settings, seeds, points].
    """
    agent, env = agent_for(name, observe)
    evaluate = jaxrl.evaluate(agent, 64)

    def one(key: jax.Array, setting: jax.Array) -> jax.Array:
        gamma, modular, slip = setting
        truth = env.default_params().replace(slip=slip)
        hparams = agent.hyperparams(env=truth.replace(modular=modular), gamma=gamma, learning_rate=rate)
        key_run, key_evaluate = jax.random.split(key)

        def part(state, key):
            state, _ = jax.lax.scan(lambda s, _: agent.step(s, hparams), state, None, iterations // NUM_POINTS)
            return state, evaluate(key, state, truth).mean_return

        keys = jax.random.split(key_evaluate, NUM_POINTS)
        return jax.lax.scan(part, agent.init(key_run, hparams), keys)[1]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(keys, jnp.asarray(settings)))


def main() -> None:
    """Runs all tasks and arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/submodular/figure.png"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tiny", action="store_true", help="few iterations of two seeds")
    arguments = parser.parse_args()
    num_seeds, iterations = (2, 20) if arguments.tiny else (arguments.seeds, arguments.iterations)
    figure, panels = plt.subplots(
        len(SLIPS), len(arguments.tasks), figsize=(3.4 * len(arguments.tasks), 4.6), squeeze=False, sharex=True
    )
    episodes = (np.arange(NUM_POINTS) + 1) / NUM_POINTS * iterations * NUM_ENVS
    header = ["task", "slip", *(f"exact: {rule}" for rule in RULES), *ARMS]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for column, name in enumerate(arguments.tasks):
        began = time.perf_counter()
        curves = {}
        for observe in ("position", "history"):
            arms = [arm for arm, (sees, _, _) in ARMS.items() if sees == observe]
            settings = np.array([(*ARMS[arm][1:], slip) for arm in arms for slip in SLIPS], np.float32)
            got = learn(name, observe, settings, num_seeds, iterations, arguments.rate)
            curves |= dict(zip(((arm, slip) for arm in arms for slip in SLIPS), got, strict=True))
        for row, slip in enumerate(SLIPS):
            env = agent_for(name, "position")[1]
            bound = exact(name, env, TASKS[name]["size"], slip)
            cells = [tables.interval(curves[arm, slip][:, -1]) for arm in ARMS]
            values = " | ".join([f"{bound[rule]:.2f}" for rule in RULES] + cells)
            print(f"| {name} | {slip} | {values} |", flush=True)
            panel = panels[row, column]
            for i, arm in enumerate(ARMS):
                curve = curves[arm, slip].T / bound["best"]
                low, high = statistics.bootstrap_interval(curve, statistics.mean)
                panel.plot(episodes, curve.mean(-1), color=style.COLORS[i], linestyle=style.DASHES[i % 4], label=arm)
                panel.fill_between(episodes, low, high, color=style.COLORS[i], alpha=0.2, linewidth=0)
            panel.axhline(bound["greedy"] / bound["best"], color="0.5", linewidth=0.8)
            panel.set(title=f"{name}, slip {slip}", ylim=(0, 1.03))
            style.tidy(panel)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    for panel in panels[-1]:
        panel.set_xlabel("training episodes")
    for panel in panels[:, 0]:
        panel.set_ylabel("share of the best F")
    panels[0, -1].legend(frameon=False, fontsize=7, loc="center right")
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
