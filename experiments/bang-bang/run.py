"""Is bang-bang control all that PPO needs? A Bernoulli policy over the extremes against a Gaussian one.

    .venv/bin/python experiments/bang-bang/run.py   about 5 minutes on 2 idle cores; --tiny to see that it works

Claim tried: Seyde et al. 2021 (arXiv:2111.02552). Every head gets the same hyperparameters, seeds and steps.
"""

import argparse
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
from jaxrl.networks import NetworkConfig
from jaxrl.networks.actor_critic import Policy

HEADS: tuple[Policy, ...] = ("gaussian", "bang_bang", "bang_off_bang")
# Task: discount. The steps of a Pendulum matter for a second or two, those of the others for the whole episode.
TASKS = {"gymnax/Pendulum-v1": 0.95, "gymnax/MountainCarContinuous-v0": 0.99, "gymnax/Swimmer-misc": 0.99}
NUM_POINTS = 25


def run(
    task: str, gamma: float, head: Policy, num_seeds: int, num_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trains all seeds at once.

    Args:
      task: of the environment.
      gamma: discount.
      head: of the policy.
      num_seeds: how many.
      num_steps: environment steps of each.

    Returns:
      The mean return of episodes that ended in each of `NUM_POINTS` spans of training, or in the last one before it
      in which any did, [seeds, points]; and that of 64 episodes of the final policy's mode and of its draws, [seeds].
    """
    env = jaxrl.make_env(task)
    config = ppo.Config(
        num_envs=16,
        num_steps=128,
        num_epochs=10,
        normalize_observations=True,
        normalize_rewards=True,
        clip_value=False,
        network=NetworkConfig(policy=head),
    )
    agent = ppo.ppo(env, config=config)
    iterations = max(num_steps // agent.env_steps, 1)
    hparams = agent.hyperparams(
        learning_rate=1e-3, gamma=gamma, entropy_coef=0.0, horizon=float(iterations * agent.env_steps)
    )
    keys = jax.random.split(jax.random.key(0), num_seeds)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, iterations), (0, None)))(keys, hparams)
    finals = []
    for sampled in (False, True):
        evaluate = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64, sampled=sampled), (0, 0, None)))
        episodes = evaluate(jax.random.split(jax.random.key(1), num_seeds), states, hparams.env)
        finals.append(np.asarray(episodes.mean_return))
    return span_returns(metrics, NUM_POINTS), finals[0], finals[1]


def main() -> None:
    """Runs all tasks and heads, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/bang-bang/figure.png"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="any with bounded continuous actions")
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    num_seeds, num_steps = (2, 4096) if arguments.tiny else (arguments.seeds, arguments.steps)
    figure, panels = plt.subplots(1, len(arguments.tasks), figsize=(3.6 * len(arguments.tasks), 2.8), squeeze=False)
    print("| task | head | return of the mode | return of draws | P(mode beats gaussian's) | seconds |")
    print("|---|---|---|---|---|---|")
    for panel, task in zip(panels[0], arguments.tasks, strict=True):
        gaussian = np.zeros(num_seeds)
        for i, head in enumerate(HEADS):
            begin = time.perf_counter()
            curve, final, drawn = run(task, TASKS.get(task, 0.99), head, num_seeds, num_steps)
            gaussian = final if head == "gaussian" else gaussian
            better = float(statistics.probability_of_improvement(final, gaussian))
            returns = [tables.interval(x, ".1f") for x in (final, drawn)]
            seconds = f"{time.perf_counter() - begin:.0f}"
            print(tables.row(task, head, *returns, f"{better:.2f}", seconds), flush=True)
            draw_spans(panel, curve, num_steps, index=i, label=head)
        panel.set(title=task.split("/")[1], xlabel="environment steps")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
