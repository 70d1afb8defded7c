"""Does PPO-EWMA learn alike at every batch size, where PPO does not (Hilton et al. 2022, arXiv:2110.00641)?

    .venv/bin/python experiments/batch-size-invariance/run.py                 --tiny to try it
    .venv/bin/python experiments/batch-size-invariance/run.py --part small

The number of environments, 64, is divided by c = 1, 4, 16; in the part `small`, which was fixed after the first had
shown 64 to be too many, by 4, 8, 16, 32, from another key, and with a rate that falls to 0 on CartPole. For each c the
rate of Adam is divided by √c, the center of mass of the average of policies, 1/(1-β) - 1, is multiplied by c, and the
advantages' moments are averaged over c iterations (β = 1 - 1/c): with PPO-EWMA the curves over environment steps should
coincide. PPO gets the rate alone; what it stays close to is the last iteration's policy, which is c times younger. All
pairs of curves are compared.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import jaxrl
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics

HERE = Path(__file__).parent
TASKS = {
    "gymnax/CartPole-v1": (400_000, {"learning_rate": 2.5e-3}, {}),
    "gymnax/Pendulum-v1": (
        800_000,
        {"learning_rate": 2e-3, "gamma": 0.95},
        {"normalize_observations": True, "normalize_rewards": True},
    ),
}
NUM_ENVS, NUM_STEPS, NUM_MINIBATCHES, NUM_POINTS = 64, 32, 8, 20
# name: (divisors, seed of the key, schedules of the rate by task)
PARTS: dict[str, tuple[tuple[int, ...], int, dict[str, str]]] = {
    "whole": ((1, 4, 16), 0, {}),
    "small": ((4, 8, 16, 32), 1, {"gymnax/CartPole-v1": "linear"}),
}
DECAY = 8 / 9
"""β of the average of policies at c = 1: its center of mass is the 8 optimizer steps of one iteration."""


def agent(env: jaxrl.Env, algorithm: str, divisor: int, rates: dict, options: dict) -> tuple[jaxrl.Algorithm, dict]:
    """The algorithm at one batch size, and its hyperparameters."""
    ewma = algorithm == "ppo_ewma"
    config = ppo.Config(
        num_envs=NUM_ENVS // divisor,
        num_steps=NUM_STEPS,
        num_epochs=1,
        num_minibatches=NUM_MINIBATCHES,
        proximal="ewma" if ewma else "behavior",
        normalize_advantage="ewma" if ewma else "batch",
        clip_value=False,
        **{"schedule": "constant", **options},
    )
    hparams = {**rates, "learning_rate": rates["learning_rate"] / divisor**0.5}
    if ewma:
        mass = divisor * (1 / (1 - DECAY) - 1)
        hparams |= {"proximal_decay": 1 - 1 / (mass + 1), "advantage_decay": 1 - 1 / divisor}
    return jaxrl.ppo(env, config=config), hparams


def curve(part: str, task: str, algorithm: str, divisor: int, num_seeds: int, share: float) -> np.ndarray:
    """Mean training return in each of NUM_POINTS equal parts of the run, [seeds, points]."""
    _, seed, schedules = PARTS[part]
    total, rates, options = TASKS[task]
    rates = {**rates, "horizon": float(share * total)}
    options = {**options, "schedule": schedules.get(task, "constant")}
    member, changes = agent(jaxrl.make_env(task), algorithm, divisor, rates, options)
    num_steps = max(NUM_POINTS, int(share * total) // member.env_steps)
    num_steps -= num_steps % NUM_POINTS
    train = jax.jit(jax.vmap(jaxrl.train(member, num_steps), (0, None)))
    _, metrics = train(jax.random.split(jax.random.key(seed), num_seeds), member.hyperparams(**changes))
    parts = {
        name: np.asarray(metrics[f"episode/{name}"]).reshape(num_seeds, NUM_POINTS, -1).sum(-1)
        for name in ("return_sum", "count")
    }
    return parts["return_sum"] / np.maximum(parts["count"], 1)


def compare(curves: dict[int, np.ndarray]) -> dict[str, dict]:
    """Each pair of batch sizes: mean distance of the mean curves, and the paired difference of the whole run's mean."""
    found = {}
    for one, other in itertools.combinations(curves, 2):
        gap = np.abs(curves[other].mean(0) - curves[one].mean(0)).mean()
        paired = curves[other].mean(1) - curves[one].mean(1)
        low, high = statistics.bootstrap_interval(paired, statistics.mean)
        found[f"c = {one} and {other}"] = {
            "mean_gap_between_curves": round(float(gap), 2),
            "difference_of_mean_return": [round(float(x), 2) for x in (paired.mean(), low, high)],
        }
    return found


def main() -> None:
    """Runs all curves of a part and writes its results and figure beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="whole")
    parser.add_argument("--tiny", action="store_true", help="few steps of few seeds, written nowhere")
    arguments = parser.parse_args()
    num_seeds, share = (2, 0.05) if arguments.tiny else (10, 1.0)
    results: dict[str, dict] = {}
    figure, axes = plt.subplots(len(TASKS), 2, figsize=(9, 3.2 * len(TASKS)), sharey="row", squeeze=False)
    for row, task in zip(axes, TASKS, strict=True):
        for axis, algorithm in zip(row, ("ppo", "ppo_ewma"), strict=True):
            curves = {}
            for c in PARTS[arguments.part][0]:
                curves[c] = curve(arguments.part, task, algorithm, c, num_seeds, share)
                low, high = statistics.bootstrap_interval(curves[c].T, statistics.mean)
                steps = (np.arange(NUM_POINTS) + 1) * TASKS[task][0] / NUM_POINTS
                axis.plot(steps, curves[c].mean(0), label=f"{NUM_ENVS // c} environments (c = {c})")
                axis.fill_between(steps, low, high, alpha=0.2)
            axis.set_title(f"{algorithm}, {task.split('/')[1]}", fontsize=10)
            axis.set_xlabel("environment steps")
            axis.grid(alpha=0.3)
            means = {f"c = {c}": round(float(values.mean()), 2) for c, values in curves.items()}
            results[f"{task} {algorithm}"] = {"mean_return": means, **compare(curves)}
            for name, value in results[f"{task} {algorithm}"].items():
                print(task, algorithm, name, value, flush=True)
        row[0].set_ylabel("return while training")
        row[0].legend(fontsize=8)
    figure.tight_layout()
    if not arguments.tiny:
        stem = {"whole": ("figure", "results"), "small": ("small", "small")}[arguments.part]
        figure.savefig(HERE / f"{stem[0]}.png", dpi=110)
        (HERE / f"{stem[1]}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
