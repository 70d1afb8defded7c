"""`jaxrl meta-test`: learned rules beside written ones and chance, on the same seeds with the same inner settings."""

import argparse
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl.analysis import statistics
from jaxrl.checkpoint import write_file
from jaxrl.cli import build, devices, rules
from jaxrl.cli.folders import new_folder
from jaxrl.cli.meta_search import OUTER
from jaxrl.cli.progress import clock, counted, number
from jaxrl.cli.rule_arms import (
    EXACT,
    LEARNED,
    RANDOM,
    Arm,
    arms_of,
    assignments_of,
    baselines_of,
    check_assignments,
    family_of,
)
from jaxrl.envs import grids
from jaxrl.evaluation import time_limit
from jaxrl.meta import trials
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.objectives.files import RuleFile, read_rule
from jaxrl.runs import check_folder
from jaxrl.types import Env

# Children of the user's seed: other keys than those of a search with the same one.
_TEST = 0x7E57


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
      env: name.
      iterations: of the life; 0 where nothing is learned.
      env_steps: of the life.
      arm: the row's name.
      group: random, hand-made, learned, or exact.
      trained: as `Arm.trained`.
      scores: one a seed.
    """

    env: str
    iterations: int
    env_steps: int
    arm: str
    group: str
    trained: str
    scores: np.ndarray

    @property
    def interval(self) -> tuple[float, float, float]:
        """Interquartile mean with its 95% bootstrap interval over seeds."""
        low, high = statistics.bootstrap_interval(self.scores)
        return float(statistics.iqm(self.scores)), float(low), float(high)


def meta_test(options: argparse.Namespace) -> None:
    """Tries rules and baselines and writes the table.

    Raises:
      ValueError: a rule, a name or a value is wrong, or a rule cannot act in an environment.
      StorageError: a rule's file is damaged, or something cannot be written.
    """
    devices.use_all_cores(options.devices or 1)
    console = Console(highlight=False)
    _check_once("a rule", [path.resolve() for path in options.rules])
    found = [(path, read_rule(path)) for path in options.rules]
    family = family_of(found)
    first = found[0][1].spec.provenance
    baselines = baselines_of(options.baselines, family)
    lives = options.life or _trained_life(options.rules[0], found[0][1])
    sampled = options.actions == "sampled" if options.actions else bool(first.get("sampled", OUTER[family].sampled))
    own, common = assignments_of(options.assignments, baselines)
    check_assignments(own, common, family)
    envs = _environments(options.envs.split(","), options.env_option)
    # All rows are built before the first is computed, so that a wrong name costs nothing.
    plan = [(name, env, extra, arms_of(name, env, found, baselines, common, own)) for name, env, extra in envs]
    path = options.out or new_folder(f"meta-test-{found[0][1].spec.kind}")
    check_folder(path)
    if any((path / name).exists() for name in ("table.md", "table.csv", "scores.csv")):
        raise ValueError(f"{path} already holds a table: name another folder.")
    notes = list(_notes(found, lives, sampled, options))
    for line in notes:
        console.print(line, soft_wrap=True, markup=False)
    began = time.monotonic()
    rows: list[Row] = []
    for name, env, extra, arms in plan:
        rows += _tried(name, env, extra, arms, lives, sampled, options)
        console.print(f"{name}: {clock(time.monotonic() - began)}", soft_wrap=True, markup=False)
    settings = {f"{arm.name}: {arm.settings}": None for *_, arms in plan for arm in arms if arm.settings}
    _write(path, rows, [*notes, *settings])
    console.print()
    # A file or a pipe has no width to fit into.
    console.print(_table(rows), width=None if console.is_terminal else 200)
    for line in settings:
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"folder {path}", soft_wrap=True, markup=False)


def _check_once(what: str, given: Sequence[Any]) -> None:
    for each in given:
        if given.count(each) > 1:
            raise ValueError(f"{what} is given twice, {each}: its rows would be the same.")


def _environments(names: list[str], texts: list[str]) -> list[tuple[str, Env, dict[str, Any]]]:
    """Each with its options: those of all, and those that its name stands before."""
    if "" in names:
        raise ValueError("--envs has an empty name: give suite/Name of each, with one comma between two.")
    _check_once("an environment", names)
    for text in texts:
        owner, colon, _ = text.partition("=")[0].rpartition(":")
        if colon and owner not in names:
            raise ValueError(f"--env-option {text} is for {owner}, which is not among --envs: {', '.join(names)}.")
    found = []
    for name in names:
        own = [text.removeprefix(f"{name}:") for text in texts]
        found.append((name, *build.find_env(name, [text for text in own if ":" not in text.partition("=")[0]])))
    return found


def _trained_life(path: Path, rule: RuleFile) -> tuple[int, ...]:
    horizon = rule.spec.provenance.get("horizon")
    if not horizon:
        raise ValueError(f"{path} does not say what horizon it was trained for: give --life, in iterations.")
    return (int(horizon["iterations"][-1]),)


def _notes(
    found: list[tuple[Path, RuleFile]], lives: tuple[int, ...], sampled: bool, options: argparse.Namespace
) -> Iterable[str]:
    yield (
        f"{counted(options.num_seeds, 'seed')}, lives of {', '.join(f'{n:,}' for n in lives)} iterations, "
        f"{counted(options.eval_episodes, 'episode')} after each with {'sampled' if sampled else 'greedy'} actions, "
        f"seed {options.seed}"
    )
    settings = [rule.spec.provenance.get("inner") for _, rule in found]
    if any(each != settings[0] for each in settings[1:]):
        yield f"inner settings are those of {found[0][0]}; others of these rules were trained with other ones"


def _tried(
    name: str,
    env: Env,
    extra: dict[str, Any],
    arms: list[Arm],
    lives: tuple[int, ...],
    sampled: bool,
    options: argparse.Namespace,
) -> list[Row]:
    """All rows of one environment, on the same keys and levels."""
    tasks = rules.tasks_of(name, **extra)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), _TEST), options.num_seeds)
    rows: list[Row] = []
    for arm in arms:
        member, is_random = arm.algorithm, arm.group == RANDOM
        if options.devices or options.chunk:
            layout = Layout(options.devices or 1, options.chunk)
        elif is_random:
            layout = Layout()
        else:
            layout = choose_layout(member, arm.hparams, options.num_seeds)
        run: Callable[..., Any] = jax.jit(
            trials.trial(
                member,
                options.eval_episodes,
                time_limit(env, arm.hparams.env),
                sampled or is_random,
                tasks,
                *layout,
            )
        )
        for life in (0,) if is_random else lives:
            scores = np.asarray(run(keys, arm.hparams, jnp.int32(life)), np.float64)
            rows.append(Row(name, life, life * member.env_steps, arm.name, arm.group, arm.trained, scores))
    if tasks is not None and name.startswith("grids/"):
        best = jax.jit(jax.vmap(lambda key: grids.optimal_return(tasks(key))))(trials.task_keys(keys))
        rows.append(Row(name, 0, 0, "best possible", EXACT, "", np.asarray(best, np.float64)))
    return rows


def _cells(row: Row) -> list[str]:
    center, low, high = row.interval
    life = f"{row.iterations:,} ({row.env_steps:,} steps)" if row.iterations else "–"
    return [row.env, life, row.arm, row.group, f"{number(center)} [{number(low)}, {number(high)}]", row.trained or "–"]


_TITLES = ("env", "tested at", "rule", "kind", "IQM [95%]", "trained on")


def _table(rows: list[Row]) -> Table:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for title in _TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), style="bold" if row.group == LEARNED else None)
    return table


def _write(path: Path, rows: list[Row], notes: list[str]) -> None:
    """table.md for people, table.csv a line a row, scores.csv a line a seed."""
    lines = ["| " + " | ".join(_TITLES) + " |", "|" + "---|" * len(_TITLES)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    write_file(path / "table.md", ("\n".join([*(f"{note}.\n" for note in notes), *lines]) + "\n").encode())
    names = ("env", "iterations", "env_steps", "rule", "kind", "trained")
    summaries, singles = [], []
    for row in rows:
        about = [row.env, row.iterations, row.env_steps, row.arm, row.group, row.trained]
        summaries.append([*about, *row.interval, float(statistics.mean(row.scores)), len(row.scores)])
        singles += [[*about, seed, float(score)] for seed, score in enumerate(row.scores)]
    write_file(path / "table.csv", _csv([*names, "iqm", "low", "high", "mean", "num_seeds"], summaries))
    write_file(path / "scores.csv", _csv([*names, "seed", "score"], singles))


def _csv(titles: list[str], rows: list[list[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([titles, *rows])
    return buffer.getvalue().encode()
