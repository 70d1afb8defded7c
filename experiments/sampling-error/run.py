"""Does PROPS lower the sampling error of what PPO learns from, and does that raise its return?

    .venv/bin/python experiments/sampling-error/run.py   about 5 minutes of CPU; --tiny to see that it works

Claim tried: Corrado and Hanna 2023 (arXiv:2311.08290). All arms have the same buffer, hyperparameters, seeds and steps;
only the behavior policy's learning rate differs, and at 0 the target policy acts: on-policy sampling.
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
from jaxrl.algorithms import props
from jaxrl.analysis import statistics, style
from jaxrl.ops.sampling import pair_counts, sampling_error

RATES = (0.0, 1e-3, 3e-3, 1e-2)
ROLLOUTS = (1, 2)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and how it is measured.

    Attributes:
      env: a name.
      options: of the environment.
      learning_rate: of the target policy.
      hidden: widths of the network.
      num_steps: of each of four environments per iteration.
      num_iterations: iterations.
      interval: iterations from one measurement of the error to the next.
      num_states: of an environment whose observation is a state's number: the error is exact; 0: it is fitted.
    """

    env: str
    options: tuple[tuple[str, Any], ...]
    learning_rate: float
    hidden: tuple[int, ...]
    num_steps: int
    num_iterations: int
    interval: int
    num_states: int


_GRID = Task("gymnax/FrozenLake-misc", (("is_slippery", False),), 1e-3, (32,), 64, 50, 1, 16)
TASKS = {
    "grid, fixed random policy": dataclasses.replace(_GRID, learning_rate=0.0),
    "grid, learning": _GRID,
    "CartPole, learning": Task("gymnax/CartPole-v1", (), 1e-3, (32, 32), 128, 80, 5, 0),
}


def run(task: Task, num_rollouts: int, num_seeds: int) -> dict[str, np.ndarray]:
    """Trains all seeds at all rates in one program.

    Args:
      task: what to learn.
      num_rollouts: that the buffer holds.
      num_seeds: how many.

    Returns:
      `error`: of the buffer just before the target policy learns from it; `total` and `count`: sum of the returns and
      number of the episodes that ended since the last measurement; all [rates, measurements, seeds].
    """
    env = jaxrl.make_env(task.env, **dict(task.options))
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=task.hidden)
    config = props.Config(num_steps=task.num_steps, num_rollouts=num_rollouts, num_minibatches=4 * num_rollouts)
    agent = props.props(env, net, config=config)
    fit = props.props(env, net, config=dataclasses.replace(config, num_error_epochs=100))

    def exact(state: Any, after: Any) -> jax.Array:
        filled = (jnp.arange(num_rollouts) < after.num_steps).astype(jnp.float32)
        weight = jnp.broadcast_to(filled[:, None, None], after.buffer.reward.shape)
        log_probs = net.apply(state.params, jnp.arange(task.num_states))[0].policy.log_probs()
        return sampling_error(pair_counts(after.buffer.obs, after.buffer.action, weight, *log_probs.shape), log_probs)

    def member(key: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        hparams = agent.hyperparams(learning_rate=task.learning_rate)
        hparams = dataclasses.replace(hparams, behavior_learning_rate=rate)

        def measure(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
            state, before = jax.lax.scan(lambda s, _: agent.step(s, hparams), state, None, task.interval - 1)
            after, last = (agent if task.num_states else fit).step(state, hparams)
            error = exact(state, after) if task.num_states else last["sampling/error"]
            total, count = (before[name].sum() + last[name] for name in ("episode/return_sum", "episode/count"))
            return after, {"error": error, "total": total, "count": count}

        return jax.lax.scan(measure, agent.init(key, hparams), None, task.num_iterations // task.interval)[1]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    rows = jax.jit(jax.vmap(jax.vmap(member, (0, None)), (None, 0)))(keys, jnp.float32(RATES))
    return {name: np.moveaxis(np.asarray(x, np.float64), 1, -1) for name, x in rows.items()}


def interval(values: np.ndarray, digits: int) -> str:
    """Mean of [seeds] and its 95% bootstrap interval."""
    low, high = statistics.bootstrap_interval(values, statistics.mean)
    return f"{statistics.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    """Runs all tasks, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/sampling-error/figure.png"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    num_seeds = 2 if arguments.tiny else arguments.seeds
    figure, panels = plt.subplots(2, len(arguments.tasks), figsize=(3.6 * len(arguments.tasks), 5), squeeze=False)
    print(
        "| task | rollouts | behavior rate | error, mnats [95%] | of on-policy's [95%] | return while training [95%] | "
        "return above on-policy's [95%] | CPU seconds |\n|---|---|---|---|---|---|---|---|"
    )
    for (top, bottom), name in zip(panels.T, arguments.tasks, strict=True):
        task = TASKS[name]
        if arguments.tiny:
            task = dataclasses.replace(task, num_iterations=4 * task.interval)
        for dash, num_rollouts in zip(style.DASHES, ROLLOUTS, strict=False):
            begin = time.process_time()
            rows = run(task, num_rollouts, num_seeds)
            seconds = time.process_time() - begin
            # Where the buffer was not full yet, the error is another's.
            error = statistics.mean(rows["error"][:, max(ROLLOUTS) :], axis=1)
            score = rows["total"].sum(1) / rows["count"].sum(1)
            curve = np.divide(
                rows["total"], rows["count"], out=np.full(rows["total"].shape, np.nan), where=rows["count"] > 0
            )
            steps = (np.arange(curve.shape[1]) + 1) * task.interval * task.num_steps * 4
            for i, rate in enumerate(RATES):
                print(
                    f"| {name} | {num_rollouts} | {rate:g} | {interval(1e3 * error[i], 2)} | "
                    f"{interval(error[i] / error[0], 3)} | {interval(score[i], 2)} | "
                    f"{interval(score[i] - score[0], 2)} | {seconds:.0f} |",
                    flush=True,
                )
                look = {"color": style.COLORS[i], "linestyle": dash}
                for panel, values in ((top, 1e3 * rows["error"][i]), (bottom, curve[i])):
                    low, high = statistics.bootstrap_interval(values, statistics.mean)
                    panel.plot(steps, statistics.mean(values), **look, label=f"rate {rate:g}, {num_rollouts} rollouts")
                    panel.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        top.set(title=name, ylim=(0, None))
        bottom.set(xlabel="environment steps")
        for panel in (top, bottom):
            style.tidy(panel)
    panels[0, 0].set_ylabel("sampling error, millinats")
    panels[1, 0].set_ylabel("return while training")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    lines, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=len(RATES), frameon=False, fontsize=8)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.tiny:
        figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
