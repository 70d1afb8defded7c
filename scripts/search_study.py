"""Measures whether searches that reallocate are worth it, on a task in which the hyperparameters matter.

    scripts/search_study.py                          both studies on Acrobot, under 10 minutes on two idle cores
    scripts/search_study.py --study halving          one of them
    scripts/search_study.py --budget tiny            to see that it works; its figures mean nothing

pbt      population-based training against random search at equal environment steps. Both train the same P members from
         the same keys and the same drawn values for the same steps; only one exploits and explores. Of each, the member
         with the best training score at the end plays fresh episodes. Repeats differ in their keys.
halving  successive halving against the whole grid. Both choose a setting: the grid that of the best evaluation,
         halving that of its last rung's best training score. Their evaluations, of the same episodes, are compared.

Every row of the CSV is one repeat of one method (pbt), or one seed of the setting that a method chose (halving).
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats

import jaxrl
from jaxrl import sweeps
from jaxrl.meta.layout import choose_layout
from jaxrl.meta.pbt import Range, pbt
from jaxrl.sweeps.halving import successive_halving

RANGES = {
    "learning_rate": Range(1e-5, 1e-1),
    "entropy_coef": Range(1e-4, 1.0),
    "gae_lambda": Range(0.0, 1.0, "linear"),
    "gamma": Range(0.8, 1.0, "linear"),
    "objective.clip": Range(0.01, 1.0),
}
GRID = {
    "learning_rate": sweeps.log(1e-5, 1e-1, 9),
    "entropy_coef": sweeps.log(1e-3, 1e-1, 3),
}


class Budget(NamedTuple):
    """Sizes of both studies."""

    total_steps: int
    num_repeats: int
    num_members: int
    num_intervals: int
    num_seeds: int
    num_episodes: int


BUDGETS = {
    # In a third of these steps the longest episodes of the classic tasks can end.
    "tiny": Budget(12 * 512, 2, 2, 3, 2, 2),
    "full": Budget(256 * 512, 5, 16, 32, 8, 64),
}


def study_pbt(env: str, budget: Budget) -> Iterator[dict[str, Any]]:
    agent = jaxrl.ppo(jaxrl.make_env(env))
    interval = budget.total_steps // (agent.env_steps * budget.num_intervals)
    layout = choose_layout(agent, agent.hyperparams(), budget.num_members)
    play = jax.jit(jaxrl.evaluate(agent, budget.num_episodes, sampled=True))
    for method, truncation in (("random search", 0.0), ("pbt", 0.2)):
        agents = pbt(agent, budget.num_members, RANGES, interval=interval, truncation=truncation, **layout._asdict())
        hparams = agents.hyperparams()
        train = jax.jit(jaxrl.train(agents, budget.num_intervals))
        for repeat in range(budget.num_repeats):
            key_train, key_play = jax.random.split(jax.random.fold_in(jax.random.key(0), repeat))
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(train(key_train, hparams))
            seconds = time.perf_counter() - started
            score = np.asarray(state.score)
            best = int(np.nanargmax(score))
            member = jax.tree.map(lambda leaf: leaf[best], jax.device_get(state.members))
            values = {name: round(float(metrics[f"pbt/{name}"][-1, best]), 6) for name in RANGES}
            yield {
                "study": "pbt",
                "method": method,
                "repeat": repeat,
                "env_steps": agents.env_steps * budget.num_intervals,
                "score": float(play(key_play, member, hparams.env).mean_return),
                "training_score": float(score[best]),
                "seconds": round(seconds, 1),
                "setting": json.dumps(values),
            }


def study_halving(env: str, budget: Budget) -> Iterator[dict[str, Any]]:
    over = GRID if budget.num_seeds > 2 else {"learning_rate": [1e-4, 1e-3, 1e-2]}
    arguments: dict[str, Any] = {"total_steps": budget.total_steps, "eval_episodes": budget.num_episodes}
    started = time.perf_counter()
    halved = successive_halving(
        "ppo", env, over, budget.num_seeds, min_steps=max(2048, budget.total_steps // 9), eta=3, **arguments
    )
    chosen = halved.isel(setting=halved.attrs["best_setting"])
    middle = time.perf_counter()
    grid = sweeps.sweep("ppo", env, over, budget.num_seeds, num_points=1, **arguments)["score"].squeeze(drop=True)
    best = grid.isel(grid.mean("seed").argmax(...))  # pyright: ignore[reportArgumentType]
    ended = time.perf_counter()
    for method, scores, source, steps, seconds in (
        ("whole grid", best, best, halved.attrs["full_env_steps"], ended - middle),
        ("halving", chosen["evaluation"], chosen, halved.attrs["env_steps"], middle - started),
    ):
        for seed, score in enumerate(scores.values):
            yield {
                "study": "halving",
                "method": method,
                "repeat": seed,
                "env_steps": int(steps),
                "score": float(score),
                "seconds": round(seconds, 1),
                "setting": json.dumps({name: float(source[name]) for name in over}),
            }


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean with its 95% interval of Student's t."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as Markdown, and what follows from them."""
    yield "| study | method | environment steps | score, mean [95% interval] | seconds, compilation included |"
    yield "|---|---|---|---|---|"
    methods: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault((row["study"], row["method"]), []).append(row)
    scores = {name: np.asarray([row["score"] for row in found]) for name, found in methods.items()}
    for (study, method), found in methods.items():
        mean, low, high = mean_and_interval(scores[study, method])
        seconds = np.mean([row["seconds"] for row in found])
        yield f"| {study} | {method} | {found[0]['env_steps']:,} | {mean:.1f} [{low:.1f}, {high:.1f}] | {seconds:.0f} |"
    if ("pbt", "pbt") in scores:
        mean, low, high = mean_and_interval(scores["pbt", "pbt"] - scores["pbt", "random search"])
        yield f"\nPBT less random search, repeat by repeat: {mean:.1f} [{low:.1f}, {high:.1f}]."
    if ("halving", "halving") in scores:
        grid, halved = ("halving", "whole grid"), ("halving", "halving")
        _, low, high = mean_and_interval(scores[grid])
        share = methods[halved][0]["env_steps"] / methods[grid][0]["env_steps"]
        within = "within" if low <= scores[halved].mean() <= high else "outside of"
        yield f"\nHalving's setting is {within} the interval of the grid's best, for {share:.1%} of its steps."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("both", "pbt", "halving"), default="both")
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="full")
    parser.add_argument("--env", default="gymnax/Acrobot-v1")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU devices (default: one a core)")
    parser.add_argument("--out", type=Path, default=Path("search.csv"))
    for name, value in BUDGETS["full"]._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"in place of the budget's (full: {value:,})")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cores)
    changes = {name: value for name in Budget._fields if (value := getattr(arguments, name)) is not None}
    budget = BUDGETS[arguments.budget]._replace(**changes)
    rows: list[dict[str, Any]] = []
    for name, study in (("pbt", study_pbt), ("halving", study_halving)):
        if arguments.study in ("both", name):
            for row in study(arguments.env, budget):
                rows.append(row)
                print(
                    f"{row['study']} {row['method']} {row['repeat']}: {row['score']:.1f} {row['setting']}", flush=True
                )
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    print("\n" + "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
