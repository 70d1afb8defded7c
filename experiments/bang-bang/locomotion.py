"""Bang-bang against Gaussian policies on brax: PPO on hopper, halfcheetah and walker2d.

    .venv/bin/python experiments/bang-bang/locomotion.py --tasks hopper    one task; --tiny to see that it works
    .venv/bin/python experiments/bang-bang/locomotion.py --table           the table and the figure of what has been run

Claims tried: Seyde et al. 2021 (arXiv:2111.02552), that two values for each entry of the action do as well as a
Gaussian in locomotion, and that a trained Gaussian's actions lie at the bounds themselves. Both heads get the same
hyperparameters, seeds and steps.
"""

import argparse
import json
import tempfile
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
from jaxrl import acting
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import Policy
from jaxrl.ops.statistics import normalize

HERE = Path(__file__).parent
TASKS = ("hopper", "halfcheetah", "walker2d")
HEADS: tuple[Policy, ...] = ("gaussian", "bang_bang")
NUM_SPANS, NUM_LOOKS = 25, 20


def share_at_bounds(net: ActorCritic, key: jax.Array, state: Any, obs: jax.Array) -> jax.Array:
    """Share of the entries of drawn actions, and of modes, that are at a bound or beyond it, in states [..., D]."""
    policy = net.apply(state.params, normalize(state.observation_statistics, obs))[0].policy  # type: ignore[index]
    return jnp.stack([jnp.mean(jnp.abs(actions) >= 1.0) for actions in (policy.sample(key), policy.mode())])


def run(task: str, head: Policy, num_seeds: int, num_steps: int, num_episodes: int) -> dict[str, np.ndarray]:
    """Trains all seeds at once.

    Args:
      task: of brax.
      head: of the policy.
      num_seeds: how many.
      num_steps: environment steps of each.
      num_episodes: of each evaluation.

    Returns:
      `num_steps`, environment steps of each seed; `curve`, mean return in each of `NUM_SPANS` spans of training,
      [seeds, spans]; `mode`, mean return of the final policy's modes, [seeds]; `bounds`, shares of its drawn actions
      and of its modes at the bounds, [seeds, 2], in the states that the last `NUM_LOOKS` iterations of training ended
      in.
    """
    config = ppo.Config(
        num_envs=16,
        num_steps=128,
        num_epochs=10,
        num_minibatches=16,
        normalize_observations=True,
        normalize_rewards=True,
        clip_value=False,
        network=NetworkConfig(policy=head),
    )
    env = jaxrl.make_env(f"brax/{task}")
    agent, net = ppo.ppo(env, config=config), acting.network_for(env, None, config.network)
    iterations = max(num_steps // agent.env_steps, 2)
    hparams = agent.hyperparams(learning_rate=3e-4, entropy_coef=0.0, horizon=float(iterations * agent.env_steps))
    play = jaxrl.evaluate(agent, num_episodes)

    def one(key: jax.Array) -> dict[str, Any]:
        key_init, key_mode, key_draws = jax.random.split(key, 3)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state, metrics = agent.step(state, hparams)
            return state, ({name: metrics[name] for name in ("episode/return_sum", "episode/count")}, state.actor.obs)

        state, (metrics, obs) = jax.lax.scan(step, agent.init(key_init, hparams), None, length=iterations)
        return {
            "metrics": metrics,
            "mode": play(key_mode, state, hparams.env).mean_return,
            "bounds": share_at_bounds(net, key_draws, state, obs[-NUM_LOOKS:]),
        }

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_seeds))
    curve = span_returns(found.pop("metrics"), NUM_SPANS)
    num_trained = np.asarray(iterations * agent.env_steps)
    return {"curve": curve, "num_steps": num_trained, **{name: np.asarray(values) for name, values in found.items()}}


def report(rows: list[dict[str, Any]], figure_path: Path) -> None:
    """Prints the table and draws the figure."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 2.8), squeeze=False, layout="constrained")
    titles = ("task", "head", "steps", "return of the mode", "of draws", "P(draws beat the Gaussian's)", "at bounds")
    print(tables.head(*titles, "seconds"))
    for panel, task in zip(panels[0], tasks, strict=True):
        own = [row for row in rows if row["task"] == task]
        for i, row in enumerate(own):
            # Draws are those of training in its last span, where the learning rate is nearly 0.
            draws, gaussian = (np.asarray(each["curve"])[:, -1] for each in (row, own[0]))
            better = float(statistics.probability_of_improvement(draws, gaussian))
            drawn, modes = np.mean(row["bounds"], axis=0)
            cells = [task, row["head"], f"{row['num_steps']:,}", tables.interval(row["mode"], ".0f")]
            cells += [tables.interval(draws, ".0f"), f"{better:.2f}", f"{drawn:.2f}, modes {modes:.2f}"]
            print(tables.row(*cells, row["seconds"]))
            draw_spans(panel, np.asarray(row["curve"]), row["num_steps"], statistics.mean, i, row["head"])
        panel.set(title=f"brax/{task}", xlabel="environment steps")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(figure_path, dpi=90)


def main() -> None:
    """Runs what has not been run, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of locomotion-TASK.json and locomotion.png")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--table", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--tiny", action="store_true", help="two iterations of two seeds, kept elsewhere")
    arguments = parser.parse_args()
    sizes = (2, 0, 2) if arguments.tiny else (arguments.seeds, arguments.steps, 32)
    if arguments.tiny:
        arguments.out = Path(tempfile.mkdtemp())
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in arguments.tasks:
        # A file a task, so that tasks may run side by side.
        path = arguments.out / f"locomotion-{task}.json"
        own = json.loads(path.read_text()) if path.exists() else []
        for head in () if arguments.table else HEADS:
            if head not in [row["head"] for row in own]:
                began = time.perf_counter()
                found = {name: values.tolist() for name, values in run(task, head, *sizes).items()}
                seconds = round(time.perf_counter() - began)
                own.append({"task": task, "head": head, "seconds": seconds, **found})
                path.write_text(json.dumps(own))
        rows += own
    if rows:
        report(rows, arguments.out / "locomotion.png")


if __name__ == "__main__":
    main()
