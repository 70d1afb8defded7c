"""Does a learned reward undo a misleading auxiliary one? BARFI against the naive sum and shaping by a potential.

    .venv/bin/python experiments/misleading-reward/run.py   14 minutes on 2 busy cores; --tiny to see that it works

Claim tried: Gupta et al. 2023 (arXiv:2310.19007). All methods are one agent with one set of hyperparameters; what
differs is the auxiliary reward and whether the weights of the rewards are learned.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.analysis import statistics, style, tables
from jaxrl.envs import grids
from jaxrl.meta import rewards
from jaxrl.meta.reward_learning import Config, reward_learning
from jaxrl.rollout import Transition

SIDE, STEPS, GAMMA, BONUS = 5, 25, 0.95, 0.3
NUM_CELLS = SIDE * SIDE
START, GOAL = 0, NUM_CELLS - 1
# What the heuristic takes for the goal: a cell two steps from the start, where staying pays; or the goal.
DRAWN_TO = {"misleading": 2, "helpful": GOAL}
METHODS = ("primary", "sum", "shaping", "barfi")


def distance_to(cell: int) -> np.ndarray:
    """Steps from each cell to one."""
    rows, columns = np.divmod(np.arange(NUM_CELLS), SIDE)
    return (np.abs(rows - cell // SIDE) + np.abs(columns - cell % SIDE)).astype(np.float32)


def cell_of(obs: jax.Array) -> jax.Array:
    """The number of the cell, of that of the state."""
    return obs % NUM_CELLS


def auxiliary(method: str, kind: str) -> rewards.Auxiliary:
    """The auxiliary reward of a method: none, the heuristic itself, or its shaping by a potential."""
    near = -BONUS * jnp.asarray(distance_to(DRAWN_TO[kind]))

    def heuristic(batch: Transition) -> jax.Array:
        if kind == "misleading":
            # Paid at the wrong cell in every step.
            return BONUS * (cell_of(batch.next_obs) == DRAWN_TO[kind])
        return near[cell_of(batch.next_obs)] - near[cell_of(batch.obs)]

    def shaping(batch: Transition) -> jax.Array:
        after = jnp.where(batch.terminated, 0.0, near[cell_of(batch.next_obs)])
        return GAMMA * after - near[cell_of(batch.obs)]

    return {"primary": lambda batch: 0.0 * batch.reward, "shaping": shaping}.get(method, heuristic)


def run(method: str, kind: str, num_seeds: int, num_steps: int) -> dict[str, np.ndarray]:
    """Trains all seeds at once.

    Returns:
      Primary return of the episodes of each iteration, [seeds, iterations], and the weights at the end, [seeds, 3].
    """
    goal = ((1.0, 1.0, 0.0),)
    env = grids.make("Sparse", side=(SIDE, SIDE), steps=(STEPS, STEPS), num_objects=(1, 1), objects=goal)
    level = env.default_params().replace(start=jnp.int32(START), position=jnp.array([GOAL], jnp.int32))
    learns = method == "barfi"
    reward = rewards.blend(env, auxiliary(method, kind), discount=GAMMA if learns else None)
    config = Config(num_envs=32, num_steps=STEPS, num_updates=4, num_terms=8, tabular=True)
    agent = reward_learning(env, reward, config=config)
    hparams = agent.hyperparams(
        env=level,
        gamma=GAMMA,
        learning_rate=0.1,
        meta_learning_rate=0.1 if learns else 0.0,
        entropy_coef=0.02,
        decay=0.001,
        series_step=0.5,
    )
    keys = jax.random.split(jax.random.key(0), num_seeds)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    # All episodes end within the rollout, by the goal or by the time limit.
    curve = np.asarray(metrics["episode/return_sum"] / metrics["episode/count"])
    return {"curve": curve, "weights": np.asarray(states.meta["weights"])}


def main() -> None:
    """Runs everything, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/misleading-reward"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--steps", type=int, default=200, help="iterations, of 4 updates of the policy and 1 of the reward"
    )
    parser.add_argument("--tiny", action="store_true", help="few iterations of few seeds, nothing is written")
    arguments = parser.parse_args()
    num_seeds, num_steps = (2, 4) if arguments.tiny else (arguments.seeds, arguments.steps)
    figure, panels = plt.subplots(1, len(DRAWN_TO), figsize=(7.2, 2.8), sharey=True, squeeze=False)
    titles = ("auxiliary reward", "method", "primary return, last tenth", "seeds above 0.9", "iterations to 0.9")
    print(tables.head(*titles, "seconds"))
    results = {}
    for panel, kind in zip(panels[0], DRAWN_TO, strict=True):
        for i, method in enumerate(METHODS):
            begin = time.perf_counter()
            found = run(method, kind, num_seeds, num_steps)
            curve, last = found["curve"], max(num_steps // 10, 1)
            final = curve[:, -last:].mean(-1)
            reached = curve > 0.9
            first = np.where(reached.any(-1), reached.argmax(-1), num_steps)
            median = f"{np.median(first):.0f}" if np.median(first) < num_steps else "never"
            above, seconds = f"{(final > 0.9).sum()} of {num_seeds}", f"{time.perf_counter() - begin:.0f}"
            print(tables.row(kind, method, tables.interval(final), above, median, seconds), flush=True)
            results[f"{kind}/{method}"] = {
                "final": final.round(4).tolist(),
                "first": first.tolist(),
                "weights": found["weights"].round(3).tolist(),
            }
            low, high = statistics.bootstrap_interval(curve.T, statistics.mean)
            steps = np.arange(1, num_steps + 1)
            panel.plot(steps, curve.mean(0), color=style.COLORS[i], linestyle=style.DASHES[i], label=method)
            panel.fill_between(steps, low, high, color=style.COLORS[i], alpha=0.2, linewidth=0)
        panel.set(title=f"{kind} auxiliary reward", xlabel="iterations")
        style.tidy(panel)
        weights = np.array(results[f"{kind}/barfi"]["weights"]).mean(0)
        print(f"Mean weights of barfi under the {kind} reward (bias, primary, auxiliary): {weights.round(2).tolist()}")
    if arguments.tiny:
        return
    panels[0, 0].set_ylabel("primary return")
    panels[0, 1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "figure.png", dpi=90)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
