"""Does the effective horizon predict how many samples PPO and DQN need (Laidlaw et al. 2024, arXiv:2312.08369)?

    .venv/bin/python experiments/effective-horizon/run.py    --tiny to try it

Tasks are tables of eight time steps, of which the effective horizon H is computed exactly: random ones, combination
locks with a bait, and grids. Agents see state and time, one-hot. An agent has solved a task at the first of its
checkpoints at which its greedy policy's exact return is 95% of the way from the random policy's to the best.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import jaxrl
from jaxrl.algorithms import dqn, ppo
from jaxrl.analysis import finite_mdps, statistics, style
from jaxrl.analysis.effective_horizon import effective_horizon
from jaxrl.analysis.finite_mdps import FiniteMDP
from jaxrl.envs import grids
from jaxrl.networks import NetworkConfig
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.ops import trees

HERE = Path(__file__).parent
HORIZON, SOLVED = 8, 0.95
# What H is compared with: its parts, and what a task has anyhow.
PREDICTORS = ("H", "H_1", "least_k", "random_share")


def random_task(draws: np.random.Generator) -> FiniteMDP:
    """Twelve states, three actions, one to three next states of each, one to six pairs that pay."""
    size, num_actions = 12, 3
    branches = draws.integers(1, 4)
    transitions = np.zeros((size, num_actions, size))
    for state in range(size):
        for action in range(num_actions):
            following = draws.choice(size, branches, replace=False)
            transitions[state, action, following] = draws.dirichlet(np.ones(branches))
    rewards = np.zeros(size * num_actions)
    paying = draws.choice(rewards.size, draws.integers(1, 7), replace=False)
    rewards[paying] = draws.uniform(size=paying.size)
    return FiniteMDP(transitions, rewards.reshape(size, num_actions), np.eye(size)[0], HORIZON)


def lock_task(draws: np.random.Generator) -> FiniteMDP:
    """A lock of two to seven steps with three actions, some slips, and a bait: what another first action pays."""
    mdp = finite_mdps.combination_lock(int(draws.integers(2, HORIZON)), 3, float(draws.choice([0.0, 0.1, 0.2])))
    mdp.rewards[0, 1] = draws.choice([0.0, 0.02, 0.1, 0.3])
    return dataclasses.replace(finite_mdps.padded(mdp, HORIZON + 2), horizon=HORIZON)


def grid_task(draws: np.random.Generator) -> FiniteMDP:
    """A grid of side three or four with two walls and one or two objects."""
    levels = grids.levels("Small", side=(3, 4), steps=(HORIZON, HORIZON), num_objects=(1, 2), num_walls=2)
    mdp = finite_mdps.of_grid(jax.jit(levels)(jax.random.key(int(draws.integers(2**31)))), HORIZON)
    return finite_mdps.padded(mdp, 16 * 4 + 1)


FAMILIES: dict[str, Callable[[np.random.Generator], FiniteMDP]] = {
    "random": random_task,
    "locks": lock_task,
    "grids": grid_task,
}


def agents(env: jaxrl.Env) -> dict[str, tuple[jaxrl.Algorithm, dict[str, Any]]]:
    """Both agents with their settings, which no task was looked at for."""
    on_policy = ppo.Config(num_envs=8, num_steps=32, num_epochs=4, network=NetworkConfig(hidden=(64,)))
    sizes = {"num_envs": 8, "num_rounds": 32, "batch_size": 64, "capacity": 8_192, "num_warmup_steps": 128}
    replay = dqn.Config(network=QNetworkConfig(hidden=(64,)), **sizes)
    return {
        "PPO": (jaxrl.ppo(env, config=on_policy), {"learning_rate": 1e-3, "gamma": 1.0}),
        "DQN": (dqn.dqn(env, config=replay), {"learning_rate": 1e-3, "gamma": 1.0, "max_grad_norm": 10.0}),
    }


def curves(env: jaxrl.Env, name: str, tasks: FiniteMDP, num_seeds: int, total: int, num_points: int) -> np.ndarray:
    """The exact return of an agent's greedy policy at each checkpoint, [tasks, seeds, points]."""
    agent, settings = agents(env)[name]
    num_states, num_steps = tasks.rewards.shape[1], max(1, total // agent.env_steps // num_points)
    cells, hours = jnp.eye(num_states), jnp.eye(HORIZON)
    seen = jax.vmap(lambda hour: jax.vmap(lambda cell: jnp.concatenate([cell, hour]))(cells))(hours)

    def returned(state: Any, mdp: FiniteMDP) -> jax.Array:
        actions = jax.vmap(jax.vmap(lambda obs: agent.act(state, (), obs, None)[0]))(seen)
        rows = jnp.arange(num_states)

        def back(value: jax.Array, action: jax.Array) -> tuple[jax.Array, None]:
            return mdp.rewards[rows, action] + mdp.transitions[rows, action] @ value, None

        return mdp.start @ jax.lax.scan(back, jnp.zeros(num_states), actions, reverse=True)[0]

    def one(key: jax.Array, mdp: FiniteMDP) -> jax.Array:
        hparams = agent.hyperparams(**settings, env=mdp, horizon=float(total))

        def point(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = jax.lax.scan(lambda s, _: (agent.step(s, hparams)[0], None), state, None, num_steps)[0]
            return state, returned(state, mdp)

        return jax.lax.scan(point, agent.init(key, hparams), None, num_points)[1]

    every = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
    return np.asarray(every(jax.random.split(jax.random.key(0), num_seeds), tasks), np.float64)


def samples(curve: np.ndarray, found: list[Any], total: int) -> np.ndarray:
    """Steps until solved, median over seeds; twice the budget where it is not, [tasks]."""
    low = np.array([x.random_return for x in found])[:, None, None]
    high = np.array([x.optimal_return for x in found])[:, None, None]
    solved = curve >= low + SOLVED * (high - low) - 1e-6
    step = total / curve.shape[2]
    first = np.where(solved.any(2), step * (solved.argmax(2) + 1), 2.0 * total)
    return np.median(first, axis=1)


def correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's, with a 95% bootstrap interval over tasks."""
    draws = np.random.default_rng(0).integers(0, len(x), (2000, len(x)))
    with np.errstate(all="ignore"):
        many = [stats.spearmanr(x[i], y[i]).statistic for i in draws if len(set(x[i])) > 1 and len(set(y[i])) > 1]
    if len(set(x)) < 2 or len(set(y)) < 2 or not many:
        return "none: all alike"
    low, high = np.percentile(many, [2.5, 97.5])
    return f"{stats.spearmanr(x, y).statistic:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Runs all families, prints the table, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30, help="of each family")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=float, default=40_000, help="budget of one agent on one task")
    parser.add_argument("--points", type=int, default=40, help="checkpoints")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="few steps on few tasks, written nowhere")
    arguments = parser.parse_args()
    num_tasks, num_seeds, total, points = arguments.tasks, arguments.seeds, int(arguments.steps), arguments.points
    if arguments.tiny:
        num_tasks, num_seeds, total, points = 3, 1, 512, 2
    results: dict[str, Any] = {}
    figure, panels = plt.subplots(1, len(FAMILIES), figsize=(4 * len(FAMILIES), 3.4), sharey=True)
    print("| tasks | agent | solved | " + " | ".join(f"Spearman, {name}" for name in PREDICTORS) + " | seconds |")
    print("|---|---|---|" + "---|" * (len(PREDICTORS) + 1))
    for panel, (family, draw) in zip(panels, FAMILIES.items(), strict=True):
        draws = np.random.default_rng(0)
        # Where the random policy is as good as the best there is nothing to learn.
        tasks, found = [], []
        while len(tasks) < num_tasks:
            mdp = draw(draws)
            known = effective_horizon(mdp)
            if known.optimal_return - known.random_return > 1e-3:
                tasks.append(mdp)
                found.append(known)
        horizon = np.array([x.value for x in found])
        predictors = {
            "H": horizon,
            "H_1": np.array([x.by_k[0] for x in found]),
            "least_k": np.array([x.least_k or HORIZON + 1 for x in found], float),
            "random_share": np.array([x.random_return / x.optimal_return for x in found]),
        }
        stacked = trees.as_arrays(jax.tree.map(lambda *x: np.stack(x), *tasks))
        _, num_states, num_actions = stacked.rewards.shape
        env = finite_mdps.environment(num_states, num_actions, HORIZON)
        results[family] = {name: x.tolist() for name, x in predictors.items()}
        for color, agent in zip(style.COLORS, agents(env), strict=False):
            begin = time.perf_counter()
            needed = samples(curves(env, agent, stacked, num_seeds, total, points), found, total)
            seconds = time.perf_counter() - begin
            results[family][agent] = needed.tolist()
            cells = [correlation(np.minimum(x, 1e9), needed) for x in predictors.values()]
            share = f"{int((needed <= total).sum())} of {num_tasks}"
            print(f"| {family} | {agent} | {share} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
            panel.scatter(np.minimum(horizon, 2 * HORIZON), needed, color=color, label=agent, alpha=0.7, s=16)
        panel.set(title=f"{family}: H of {statistics.median(horizon):.1f}", xlabel="effective horizon H", yscale="log")
        style.tidy(panel)
    panels[0].set_ylabel("environment steps until solved")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    if not arguments.tiny:
        figure.savefig(arguments.out / "figure.png", dpi=100)
        (arguments.out / "results.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
