"""Does mirror descent need a trust region that is enforced? On-policy MDPO beside PPO and TRPO.

    .venv/bin/python experiments/mirror-descent/run.py   about 6 minutes on 2 busy cores; --tiny to see that it works

Claims tried: Tomar et al. 2022 (arXiv:2005.09814), sections 4.1 and 6: on-policy MDPO is at least as good as TRPO and
PPO, several gradient steps an iteration are needed, and a constraint as TRPO's is not.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl import objectives
from jaxrl.algorithms import ppo, trpo
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns

# Task: discount. The steps of a Pendulum matter for a second or two, those of the others for the whole episode.
TASKS = {"gymnax/Pendulum-v1": 0.95, "gymnax/MountainCarContinuous-v0": 0.99, "gymnax/Acrobot-v1": 0.99}
NUM_POINTS = 25
ROLLOUT = {"num_envs": 8, "num_steps": 256, "normalize_observations": True, "normalize_rewards": True}


def first_order(objective: Any, num_epochs: int = 10) -> Callable[[jaxrl.Env], jaxrl.Algorithm]:
    """PPO's program with another objective; everything else is the same in all arms."""
    config = ppo.Config(**ROLLOUT, num_epochs=num_epochs, num_minibatches=16, clip_value=False)
    return lambda env: ppo.ppo(env, config=config, objective=objective)


ARMS: dict[str, Callable[[jaxrl.Env], jaxrl.Algorithm]] = {
    "mdpo": first_order(objectives.mdpo()),
    "mdpo, one pass": first_order(objectives.mdpo(), num_epochs=1),
    "mdpo, no divergence": first_order(objectives.mdpo(step_size=1e9)),
    "ppo": first_order(objectives.clip()),
    "trpo": lambda env: trpo.trpo(env, config=trpo.Config(**ROLLOUT)),
}


def run(task: str, gamma: float, arm: str, num_seeds: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Trains all seeds at once.

    Args:
      task: of the environment.
      gamma: discount.
      arm: of `ARMS`.
      num_seeds: how many.
      num_steps: environment steps of each.

    Returns:
      The mean return of episodes that ended in each of `NUM_POINTS` spans of training, or in the last one before it
      in which any did, [seeds, points]; and that of 64 greedy episodes of the final policy, [seeds].
    """
    agent = ARMS[arm](jaxrl.make_env(task))
    iterations = max(num_steps // agent.env_steps, NUM_POINTS)
    settings = {"learning_rate": 3e-4, "gamma": gamma}
    if arm != "trpo":
        settings |= {"entropy_coef": 0.0, "horizon": float(iterations * agent.env_steps)}
    hparams = agent.hyperparams(**settings)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, iterations), (0, None)))(keys, hparams)
    evaluate = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64), (0, 0, None)))
    episodes = evaluate(jax.random.split(jax.random.key(1), num_seeds), states, hparams.env)
    return span_returns(metrics, NUM_POINTS), np.asarray(episodes.mean_return)


def main() -> None:
    """Runs all tasks and arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/mirror-descent/figure.png"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--tiny", action="store_true", help="the fewest iterations of two members")
    arguments = parser.parse_args()
    num_seeds, num_steps = (2, 0) if arguments.tiny else (arguments.seeds, arguments.steps)
    figure, panels = plt.subplots(
        1, len(arguments.tasks), figsize=(3.6 * len(arguments.tasks), 2.8), squeeze=False, layout="constrained"
    )
    print("| task | arm | greedy return at the end | return while training, last 4% | P(beats ppo) | seconds |")
    print("|---|---|---|---|---|---|")
    for panel, task in zip(panels[0], arguments.tasks, strict=True):
        results = {}
        for i, arm in enumerate(ARMS):
            begin = time.perf_counter()
            curve, final = run(task, TASKS.get(task, 0.99), arm, num_seeds, num_steps)
            results[arm] = curve, final, time.perf_counter() - begin
            draw_spans(panel, curve, num_steps, statistics.iqm, i, arm)
        for arm, (curve, final, seconds) in results.items():
            better = float(statistics.probability_of_improvement(final, results["ppo"][1]))
            row = [
                task,
                arm,
                tables.interval(final, ".1f", statistics.iqm),
                tables.interval(curve[:, -1], ".1f", statistics.iqm),
                f"{better:.2f}",
                f"{seconds:.0f}",
            ]
            print("| " + " | ".join(row) + " |", flush=True)
        panel.set(title=task.split("/")[1], xlabel="environment steps")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
