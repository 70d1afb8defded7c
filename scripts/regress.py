"""Finds out whether a change made training slower, slower to compile, larger or worse at learning.

    scripts/regress.py record --out before.csv       measures a small fixed set; minutes on two cores
    scripts/regress.py check --against before.csv    measures again; exits 1 with a table of what got worse

What is measured: PPO on CartPole with 1 and 8 seeds and on Breakout with 64 environments (steps per second, best of
three runs; seconds to compile; bytes of the compiled program; equations of one step), CartPole stepped alone with
random actions (the same), and the return that 5 seeds of CartPole reach.

What counts as worse: speed or seconds to compile by more than the tolerance (compiling also by more than half a
second); bytes or equations by more than 2%; a mean return more than 3 standard errors over seeds (and more than 1%)
below the recorded one. Times are compared on the same machine and versions only, and mean nothing on a busy machine.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_shared as bench
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

import jaxrl
from jaxrl import rollout, runs

REPEATS = 3
NUM_LEARNERS = 5
EXACT = 0.02
PLACE = ("device", "num_cpus", "processor", "python", "jax", "jaxlib", "flax")
"""What must be the same for times to compare."""


def num_equations(jaxpr: Any) -> int:
    """Equations of a traced program with those of the programs inside, each counted once however often it runs."""
    inner = (
        leaf for equation in jaxpr.eqns for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=_nested)
    )
    return len(jaxpr.eqns) + sum(num_equations(leaf) for leaf in inner if _nested(leaf))


def _nested(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def row(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], transitions: int) -> dict[str, Any]:
    timing = bench.timed(function, arguments, REPEATS)
    return {
        "case": name,
        "steps_per_second": round(transitions / min(timing.runs)),
        "compile_seconds": round(timing.compile_seconds, 2),
        "program_bytes": timing.program_bytes,
    }


def measure(budget: int) -> Iterator[dict[str, Any]]:
    """One row a case, of `budget` environment steps a seed."""
    for settings, num_seeds in ((bench.CARTPOLE, 1), (bench.CARTPOLE, 8), (bench.BREAKOUT, 1)):
        case = bench.Case(num_seeds=num_seeds, total_steps=budget, **settings)
        agent, hparams, num_steps = bench.build(case)
        keys = jax.random.split(jax.random.key(0), num_seeds)
        state = jax.eval_shape(agent.init, keys[0], hparams)
        equations = num_equations(jax.make_jaxpr(agent.step)(state, hparams))
        train = jax.vmap(jaxrl.train(agent, num_steps), (0, None))
        result = row(case.name.strip(), train, (keys, hparams), num_steps * agent.env_steps * num_seeds)
        yield {**result, "equations": equations}

    num_envs, num_steps = 64, max(1, budget // 64)
    alone = bench.step_alone(jaxrl.make_env(bench.CARTPOLE["env"]), 1, num_envs, num_steps, rollout.Reset())
    result = row("env alone gymnax/CartPole-v1", alone, (jax.random.key(1),), num_envs * num_steps)
    yield {**result, "equations": num_equations(jax.make_jaxpr(alone)(jax.random.key(1)))}

    case = bench.Case(num_seeds=NUM_LEARNERS, total_steps=budget, **bench.CARTPOLE)
    agent, hparams, num_steps = bench.build(case)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(
        jax.random.split(jax.random.key(2), NUM_LEARNERS), hparams
    )
    play = jax.vmap(jaxrl.evaluate(agent, 32, sampled=True), (0, 0, None))
    episodes = jax.jit(play)(jax.random.split(jax.random.key(3), NUM_LEARNERS), states, hparams.env)
    returns = [float(value) for value in episodes.mean_return]
    yield {
        "case": "learning gymnax/CartPole-v1",
        "mean_return": round(statistics.mean(returns), 3),
        "standard_error": round(statistics.stdev(returns) / math.sqrt(NUM_LEARNERS), 3),
    }


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]], tolerance: float) -> list[tuple[Any, ...]]:
    """What got worse: (case, measure, recorded, now, what would still pass); times only on the same machine."""
    here = {found["case"]: found for found in after}
    worse = []
    for then in before:
        now = here[then["case"]]
        most = {name: then[name] * (1 + EXACT) for name in ("program_bytes", "equations") if name in then}
        least = {}
        if "mean_return" in then:
            mean = then["mean_return"]
            least["mean_return"] = mean - max(3 * then["standard_error"], 0.01 * abs(mean))
        elif not moved(then, now):
            seconds = then["compile_seconds"]
            most["compile_seconds"] = max(seconds * (1 + tolerance), seconds + 0.5)
            least["steps_per_second"] = then["steps_per_second"] * (1 - tolerance)
        # Not the opposite comparison: what is not a number is worse than any number.
        failed = {name: f"at most {bound:.7g}" for name, bound in most.items() if not now[name] <= bound}
        failed |= {name: f"at least {bound:.7g}" for name, bound in least.items() if not now[name] >= bound}
        worse += [(then["case"], name, then[name], now[name], passes) for name, passes in failed.items()]
    return worse


def moved(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of machine and versions differs."""
    return [f"{name} {then[name]} then, {now[name]} now" for name in PLACE if str(then[name]) != str(now[name])]


def read(path: Path) -> list[dict[str, Any]]:
    def number(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    if not path.exists():
        raise ValueError(f"There is no {path}: make it with `scripts/regress.py record --out {path}`.")
    with path.open(newline="") as file:
        rows = [
            {name: text if name in PLACE else number(text) for name, text in found.items() if text}
            for found in csv.DictReader(file)
        ]
    if not rows or any(name not in found for found in rows for name in ("case", "budget", *PLACE)):
        raise ValueError(f"{path} was not made by `scripts/regress.py record`, or is empty: record it again.")
    return rows


def measured(budget: int) -> list[dict[str, Any]]:
    # Compiling is measured too, so nothing compiled before may be used.
    jax.config.update("jax_enable_compilation_cache", False)
    place = {"budget": budget, **bench.machine(), "git_revision": runs.environment()["git_revision"]}
    rows = []
    for found in measure(budget):
        print("  ".join(f"{name}={value}" for name, value in found.items()), flush=True)
        rows.append({**found, **place})
    return rows


def check(path: Path, tolerance: float) -> int:
    before = read(path)
    after = measured(int(before[0]["budget"]))
    if lost := sorted({found["case"] for found in before} ^ {found["case"] for found in after}):
        raise ValueError(f"{path} and this script differ in the cases {', '.join(lost)}: record it again.")
    if differences := moved(before[0], after[0]):
        print(f"Recorded elsewhere ({'; '.join(differences)}): times are not compared.")
    worse = compare(before, after, tolerance)
    if not worse:
        print(f"Nothing got worse than in {path}.")
        return 0
    table = [("case", "measure", "recorded", "now", "passes"), *(tuple(map(str, line)) for line in worse)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="measure and write a CSV")
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--budget", type=int, default=200_000, help="environment steps of each case and seed")
    checking = commands.add_parser("check", help="measure again, with the recorded budget, and compare")
    checking.add_argument("--against", type=Path, required=True)
    checking.add_argument("--tolerance", type=float, default=0.15, help="share by which times may get worse")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "check":
            return check(arguments.against, arguments.tolerance)
        bench.write(arguments.out, measured(arguments.budget))
        return 0
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
