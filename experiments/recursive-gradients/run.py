"""Do recursive estimates of the gradient need fewer steps than the policy gradient?

    .venv/bin/python experiments/recursive-gradients/run.py   about 7 CPU minutes; --tiny to see that it works

Claim tried: Fatkhullin et al. 2023 (arXiv:2302.01734). All arms have the same network, environment steps per iteration
and grid of step sizes. Each takes its best step size on seeds of its own, and is then judged on others.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl import acting, estimators, objectives
from jaxrl.algorithms import harpg, ppo
from jaxrl.analysis import statistics, style, tables
from jaxrl.networks import NetworkConfig
from jaxrl.ops import optimizers

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
NUM_ENVS, NUM_STEPS, NUM_ITERATIONS = 10, 200, 100
NUM_POINTS, NUM_EPISODES = 10, 16
GAMMA = 0.99
NETWORK = NetworkConfig(hidden=(32, 32))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
      name: for people.
      make: from an environment to an algorithm and changes to its hyperparameters.
      rate: the hyperparameter that the grid is of.
      behind: whether the parameters run ahead of an iterate, which is then judged too.
    """

    name: str
    make: Callable[[jaxrl.Env], tuple[jaxrl.Algorithm, dict[str, float]]]
    rate: str = "step_size"
    behind: bool = False


def of_file(num_hessian_envs: int, normalize: bool, **hparams: float) -> Callable[..., Any]:
    """An arm of `jaxrl/algorithms/harpg.py`: fresh episodes in every iteration."""

    def make(env: jaxrl.Env) -> tuple[jaxrl.Algorithm, dict[str, float]]:
        config = harpg.Config(NUM_ENVS - num_hessian_envs, num_hessian_envs, NUM_STEPS, normalize, network=NETWORK)
        return harpg.harpg(env, config=config), hparams

    return make


def of_step(optimizer: optimizers.Optimizer, normalize: Literal["batch", "none"] = "none") -> Callable[..., Any]:
    """An arm of PPO's step with one update: rollouts that go on from where the last one ended."""

    def make(env: jaxrl.Env) -> tuple[jaxrl.Algorithm, dict[str, float]]:
        config = ppo.Config(
            num_envs=NUM_ENVS,
            num_steps=NUM_STEPS,
            num_epochs=1,
            num_minibatches=1,
            clip_value=False,
            normalize_advantage=normalize,
            schedule="constant",
            network=NETWORK,
        )
        parts = {"objective": objectives.policy_gradient(), "estimator": estimators.monte_carlo("value")}
        return ppo.ppo(env, config=config, optimizer=optimizer, **parts), {"entropy_coef": 0.0}

    return make


ARMS = (
    Arm("PG", of_file(0, False, momentum_exponent=0.0)),
    Arm("HARPG", of_file(5, False)),
    Arm("N-PG", of_file(0, True, momentum_exponent=0.0)),
    Arm("N-PG, momentum", of_file(0, True)),
    Arm("N-HARPG", of_file(5, True)),
    Arm("N-HARPG, a fifth for h", of_file(2, True)),
    Arm(
        "N-PG, rollouts go on",
        of_step(acting.separate(optimizers.gradient_transport(momentum_exponent=0.0))),
        "learning_rate",
    ),
    Arm("N-PG-IGT", of_step(acting.separate(optimizers.gradient_transport())), "learning_rate", True),
    Arm("REINFORCE, Adam", of_step(optimizers.adam, "batch"), "learning_rate"),
)


def program(arm: Arm, num_iterations: int) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """A function that trains members, each of a seed and a step size, in one program.

    Args:
      arm: the method.
      num_iterations: of `NUM_ENVS * NUM_STEPS` environment steps each.

    Returns:
      `(seeds, rates) -> rows`: `return`: of the policy that acts, sampled; `iterate`: that of the iterate behind it;
      [points, members].
    """
    env = jaxrl.make_env("gymnax/CartPole-v1")
    agent, changes = arm.make(env)
    # The authors' limit, so that a rollout from a fresh reset holds whole episodes.
    limit = env.default_params().replace(max_steps_in_episode=jnp.int32(NUM_STEPS))
    base = agent.hyperparams(env=limit, gamma=GAMMA, **changes)
    play = jaxrl.evaluate(agent, NUM_EPISODES, NUM_STEPS, sampled=True)

    def member(key: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        key_train, key_play = jax.random.split(key)
        hparams = dataclasses.replace(base, **{arm.rate: rate})

        def segment(state: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            iterations = num_iterations // NUM_POINTS
            state, _ = jax.lax.scan(lambda s, _: agent.step(s, hparams), state, None, iterations)
            row = {"return": play(key, state, hparams.env).returns.mean()}
            if arm.behind:
                theta = dataclasses.replace(state, params=optimizers.iterate(state.opt_state, state.params))
                row["iterate"] = play(key, theta, hparams.env).returns.mean()
            return state, row

        return jax.lax.scan(segment, agent.init(key_train, hparams), jax.random.split(key_play, NUM_POINTS))[1]

    members = jax.jit(jax.vmap(member))

    def run(seeds: np.ndarray, rates: np.ndarray) -> dict[str, np.ndarray]:
        rows = members(jax.vmap(jax.random.key)(jnp.asarray(seeds)), jnp.asarray(rates, jnp.float32))
        return {name: np.asarray(x, np.float64).T for name, x in rows.items()}

    return run


def main() -> None:
    """Runs all arms, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/recursive-gradients/figure.png"))
    parser.add_argument("--tuning-seeds", type=int, default=4, help="for each step size; as many members are judged")
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    tuning, num_iterations = (1, NUM_POINTS) if arguments.tiny else (arguments.tuning_seeds, NUM_ITERATIONS)
    num_members = tuning * len(RATES)
    figure, panel = plt.subplots(figsize=(8.6, 4.2))
    print(
        "| arm | step size | mean over training [95%] | at the end [95%] | "
        + " | ".join(f"{rate:g}" for rate in RATES)
        + " | CPU seconds |\n|"
        + "---|" * (len(RATES) + 5)
    )
    steps = (np.arange(NUM_POINTS) + 1) * num_iterations // NUM_POINTS * NUM_ENVS * NUM_STEPS
    for i, arm in enumerate(ARMS):
        begin = time.process_time()
        run = program(arm, num_iterations)
        # Both calls have as many members, so that it is compiled once.
        trials = run(num_members + np.tile(np.arange(tuning), len(RATES)), np.repeat(RATES, tuning))["return"]
        tried = statistics.iqm(trials.mean(0).reshape(len(RATES), tuning))
        best = int(np.argmax(tried))
        rows = run(np.arange(num_members), np.full(num_members, RATES[best]))
        seconds = time.process_time() - begin
        for kind, values in rows.items():
            of_actor = kind == "return"
            cells = [f"{x:.0f}" if of_actor else "" for x in tried]
            name = arm.name if of_actor else f"{arm.name}, iterate"
            returns = [tables.interval(x, ".1f", statistics.iqm) for x in (values.mean(0), values[-1])]
            print(
                tables.row(name, f"{RATES[best]:g}", *returns, *cells, f"{seconds:.0f}" if of_actor else ""), flush=True
            )
        # Seven colors, then again with another dash.
        look = {"color": style.COLORS[i % len(style.COLORS)], "linestyle": style.DASHES[i // len(style.COLORS)]}
        low, high = statistics.bootstrap_interval(rows["return"])
        panel.plot(steps, statistics.iqm(rows["return"]), **look, label=arm.name)
        panel.fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
    panel.set(
        title="CartPole, at most 200 steps", xlabel="environment steps", ylabel="return of the sampled policy, IQM"
    )
    style.tidy(panel)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
