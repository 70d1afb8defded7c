"""Does a residual on a poor base policy learn from a reward at the goal alone, where learning from scratch does not?

    .venv/bin/python experiments/residual/run.py    --tiny to see that it works

Claim tried: Ankile et al. 2025 (arXiv:2509.19301): residuals learned off-policy on a base policy that stays as it is
need no more than a sparse reward. The task is MountainCarContinuous with a reward of 1 at the goal and 0 elsewhere, cut
after 200 steps. The base policies are scripted: they push the way the car moves, too weakly. One program trains all
residuals: base policies are leaves of the environment's parameters.
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
from jaxrl import wrappers
from jaxrl.algorithms import td3
from jaxrl.analysis import statistics, style
from jaxrl.networks.control import ControlConfig
from jaxrl.types import Env, EnvParams

GAINS = (0.3, 0.4, 0.5)
"""Force of each base policy, of 1."""
SCALE = 0.5
"""How far a residual goes."""
LIMIT = 200
SCRATCH = "from scratch"


def goal_only(env: Env) -> Env:
    """Rewards are 1 where an episode terminates, which is the goal, and 0 elsewhere."""

    def step(key: Any, state: Any, action: Any, params: EnvParams) -> Any:
        state, result = env.step(key, state, action, params)
        return state, dataclasses.replace(result, reward=result.terminated.astype(jnp.float32))

    return env._replace(name=f"{env.name}|goal_only", step=step)


TASK = goal_only(wrappers.time_limit(jaxrl.make_env("gymnax/MountainCarContinuous-v0"), LIMIT))
PUSH = wrappers.BasePolicy(lambda gain, obs: gain * jnp.tanh(200.0 * obs[1:]), lambda: jnp.float32(GAINS[0]))
RESIDUAL = wrappers.residual_action(TASK, PUSH, SCALE)


def agent_for(env: Env, tiny: bool) -> jaxrl.Algorithm:
    """TD3 with small layers."""
    config = td3.Config(batch_size=128, capacity=32_768, network=ControlConfig(hidden=(64, 64)))
    if tiny:
        config = dataclasses.replace(config, batch_size=8, num_rounds=8, num_warmup_steps=8)
    return td3.td3(env, config=config)


def measure(agent: jaxrl.Algorithm, bases: np.ndarray | None, arguments: argparse.Namespace) -> np.ndarray:
    """Trains one agent on each base policy with each seed, in one program.

    Args:
      agent: of the environment.
      bases: gains of the base policies; None: there is none.
      arguments: of the command line.

    Returns:
      Share of evaluation episodes that reach the goal, greedily, [bases, seeds, points].
    """
    num_steps = arguments.steps // arguments.points // agent.env_steps

    def member(key: jax.Array, gain: jax.Array) -> jax.Array:
        hparams = agent.hyperparams(policy_learning_rate=1e-3, critic_learning_rate=1e-3)
        if bases is not None:
            hparams = hparams.replace(env=hparams.env.replace(base=gain))
        key_init, key_play = jax.random.split(key)

        def segment(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, _ = jax.lax.scan(lambda state, _: (agent.step(state, hparams)[0], None), state, None, num_steps)
            return state, jaxrl.evaluate(agent, arguments.episodes)(key, state, hparams.env).mean_return

        keys = jax.random.split(key_play, arguments.points)
        return jax.lax.scan(segment, agent.init(key_init, hparams), keys)[1]

    keys = jax.random.split(jax.random.key(0), arguments.seeds)
    gains = jnp.zeros(1) if bases is None else jnp.float32(bases)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(member, (0, None)), (None, 0)))(keys, gains))


def success_of_base(gain: float, num_episodes: int) -> float:
    """Share of episodes in which the base policy alone reaches the goal: residuals of 0."""
    params = RESIDUAL.default_params().replace(base=jnp.float32(gain))

    def play(key: jax.Array) -> jax.Array:
        state, _ = RESIDUAL.reset(key, params)

        def body(state: Any, _: None) -> tuple[Any, jax.Array]:
            state, result = RESIDUAL.step(key, state, jnp.zeros(1), params)
            return state, result.terminated

        return jax.lax.scan(body, state, None, LIMIT)[1].any()

    return float(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(1), num_episodes)).mean())


def main() -> None:
    """Trains all arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/residual/figure.png"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8_400, help="transitions after the warm-up")
    parser.add_argument("--points", type=int, default=7, help="measurements of a run")
    parser.add_argument("--episodes", type=int, default=32, help="of a measurement")
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.seeds, arguments.steps, arguments.points, arguments.episodes = 2, 16, 2, 2
    begin = time.process_time()
    learned = measure(agent_for(RESIDUAL, arguments.tiny), np.array(GAINS), arguments)
    scratch = measure(agent_for(TASK, arguments.tiny), None, arguments)
    seconds = time.process_time() - begin
    arms = {f"residual, base of gain {gain:g}": rows for gain, rows in zip(GAINS, learned, strict=True)}
    arms[SCRATCH] = scratch[0]
    steps = np.arange(1, arguments.points + 1) * (arguments.steps // arguments.points)
    half = arguments.points // 2 - 1
    print(f"| arm | base alone | after {steps[half]} steps, mean [95%] | after {steps[-1]}, mean [95%] | its seeds |")
    print("|---|---|---|---|---|")
    figure, panel = plt.subplots(figsize=(6, 3.5))
    for color, dash, (name, rows) in zip(style.COLORS, style.DASHES, arms.items(), strict=False):
        alone = None if name == SCRATCH else success_of_base(GAINS[list(arms).index(name)], 16 * arguments.episodes)
        cells = []
        for point in (half, -1):
            low, high = statistics.bootstrap_interval(rows[:, point], np.mean)
            cells.append(f"{rows[:, point].mean():.2f} [{low:.2f}, {high:.2f}]")
        seeds = ", ".join(f"{value:.2f}" for value in np.sort(rows[:, -1]))
        start = "" if alone is None else f"{alone:.2f}"
        print(f"| {name} | {start} | {cells[0]} | {cells[1]} | {seeds} |")
        panel.plot(steps, rows.mean(0), color=color, linestyle=dash, label=name)
        if alone is not None:
            panel.axhline(alone, color=color, linestyle=":", linewidth=1)
    print(f"{seconds:.0f} CPU seconds")
    panel.set(xlabel="transitions after the warm-up", ylabel="share of episodes at the goal", ylim=(-0.03, 1.03))
    panel.legend(frameon=False, fontsize=8)
    style.tidy(panel)
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
