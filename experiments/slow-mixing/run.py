"""Does MAC do without knowing how slowly an environment mixes, and does it win where rewards are sparse?

    .venv/bin/python experiments/slow-mixing/run.py   about 1 minute of CPU; --tiny to see that it works

Claim tried: Suttle et al. 2023 (arXiv:2301.12083). The environment is a walk of which one parameter slows mixing down
and changes neither the optimum nor any policy's average reward, which is known exactly. All arms are one actor-critic
with AdaGrad step sizes and see equally many transitions; they differ in the lengths of an update's trajectories.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.algorithms import mac
from jaxrl.analysis import statistics, style
from jaxrl.envs import continuing

NUM_STATES = 6
LEVELS = (3, 6)
MOTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
REWARDS = {"dense": False, "sparse": True}
ARMS = {
    **{f"MAC, T_max = {2**level}": mac.Config(max_level=level) for level in LEVELS},
    **{f"length {2**level}": mac.Config(max_level=level, lengths="fixed") for level in (0, max(LEVELS))},
}
"""The name of each arm, and its structure."""


def relaxation_time(motion: float) -> float:
    """1 / (1 - λ₂) of the walk under a uniform policy, in steps."""
    params = continuing.line(NUM_STATES, motion=motion).default_params()
    values = np.sort(np.abs(np.linalg.eigvals(continuing.transitions(params, jnp.full(NUM_STATES, 0.5)))))
    return float(1.0 / (1.0 - values[-2]))


def run(config: mac.Config, num_steps: int, num_points: int, num_seeds: int) -> np.ndarray:
    """Trains one arm on all tasks, at all rates, in one program.

    Args:
      config: of the arm.
      num_steps: transitions.
      num_points: measurements, evenly spaced.
      num_seeds: how many.

    Returns:
      The policy's exact average reward: 0 is the uniform policy's, 1 the best one's; [rewards, motions, rates, points,
      seeds].
    """
    env = continuing.line(NUM_STATES)
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=())
    agent = mac.mac(env, net, dataclasses.replace(config, num_steps=num_steps // num_points))
    cells = jnp.eye(NUM_STATES)

    def member(key: jax.Array, rate: jax.Array, task: Any) -> jax.Array:
        hparams = agent.hyperparams(policy_rate=rate, value_rate=rate, reward_rate=rate, env=task)
        low, high = (continuing.average_reward(task, jnp.full(NUM_STATES, p)) for p in (0.5, 1.0))

        def measure(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = agent.step(state, hparams)[0]
            right = jnp.exp(net.apply(state.params, cells)[0].policy.log_probs()[:, 1])
            return state, (continuing.average_reward(task, right) - low) / (high - low)

        return jax.lax.scan(measure, agent.init(key, hparams), None, num_points)[1]

    tasks = [
        continuing.line(NUM_STATES, motion=motion, sparse=sparse).default_params()
        for sparse in REWARDS.values()
        for motion in MOTIONS
    ]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows).reshape(len(REWARDS), len(MOTIONS), *rows[0].shape), *tasks)
    over = jax.vmap(member, (0, None, None), -1)
    for axes in ((None, 0, None), (None, None, 0), (None, None, 0)):
        over = jax.vmap(over, axes)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    return np.asarray(jax.jit(over)(keys, jnp.float32(RATES), stacked), np.float64)


def interval(values: np.ndarray) -> str:
    """IQM of [seeds] and its 95% bootstrap interval."""
    low, high = statistics.bootstrap_interval(values, statistics.iqm)
    return f"{statistics.iqm(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Runs all arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/slow-mixing/figure.png"))
    parser.add_argument("--seeds", type=int, default=40, help="of the measurement; as many again choose the rates")
    parser.add_argument("--steps", type=int, default=32_000)
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    num_seeds = 2 if arguments.tiny else arguments.seeds
    num_steps, num_points = (128, 2) if arguments.tiny else (arguments.steps, 20)
    times = [relaxation_time(motion) for motion in MOTIONS]
    figure, panels = plt.subplots(2, len(REWARDS), figsize=(4 * len(REWARDS), 6), squeeze=False, sharex=True)
    print(
        "| rewards | relaxation time, steps | arm | rate chosen at the fastest mixing | while training, IQM [95%] | "
        "at the end, IQM [95%] | rate chosen for this task | while training, IQM [95%] | CPU seconds |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for color, dash, (name, config) in zip(style.COLORS, style.DASHES, ARMS.items(), strict=False):
        begin = time.process_time()
        scores = run(config, num_steps, num_points, 2 * num_seeds)
        seconds = time.process_time() - begin
        choosing, measured = np.split(scores, 2, axis=-1)
        # [rewards, motions]: the best rate by the mean while training, on seeds of its own.
        best = statistics.iqm(choosing.mean(-2)).argmax(-1)
        for i, rewards in enumerate(REWARDS):
            for panel, rates in ((panels[0, i], np.repeat(best[i, 0], len(MOTIONS))), (panels[1, i], best[i])):
                chosen = measured[i, np.arange(len(MOTIONS)), rates].mean(-2)
                low, high = statistics.bootstrap_interval(chosen, statistics.iqm)
                panel.plot(times, statistics.iqm(chosen), color=color, linestyle=dash, marker="o", label=name)
                panel.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)
            for j, relaxation in enumerate(times):
                blind, known = measured[i, j, best[i, 0]], measured[i, j, best[i, j]]
                print(
                    f"| {rewards} | {relaxation:.0f} | {name} | {RATES[best[i, 0]]:g} | {interval(blind.mean(0))} | "
                    f"{interval(blind[-1])} | {RATES[best[i, j]]:g} | {interval(known.mean(0))} | {seconds:.0f} |",
                    flush=True,
                )
    for i, rewards in enumerate(REWARDS):
        panels[0, i].set_title(f"{rewards} rewards")
        panels[1, i].set_xlabel("relaxation time of the uniform policy, steps")
    for row, choice in zip(panels, ("rate chosen at the fastest mixing", "rate chosen for each task"), strict=True):
        row[0].set_ylabel(f"share of the optimum\n{choice}", fontsize=9)
        for panel in row:
            panel.set(xscale="log", ylim=(-0.1, 1.05))
            style.tidy(panel)
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
