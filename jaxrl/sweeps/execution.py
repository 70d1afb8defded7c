"""Runs a planned sweep in a folder that survives a kill, and reads it as one labelled array.

    sweep.json              what is swept, the groups with their layouts, versions, machine
    batches/<batch>/        the folder of one batch, a run as `jaxrl.runs` has it; `split.json` if it did not fit and
                            two of half its size take its place
    results.nc              the whole sweep, written at the end

A batch is whole when its results.json says so, and is never computed again.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import fit, runs
from jaxrl.checkpoint import StorageError, write_file
from jaxrl.memory import OutOfMemoryError
from jaxrl.meta.layout import Layout
from jaxrl.ops import trees
from jaxrl.runs import Run
from jaxrl.sweeps.plan import Batch, Group, Plan, fitted, width_of
from jaxrl.sweeps.spaces import to_json

SCHEMA = 1
# Of evaluation episodes in environments without a time limit of their own.
_MAX_STEPS = 10_000


class SweepProgress(NamedTuple):
    """What is known while a sweep runs.

    Attributes:
      env_steps: transitions done, of all members, by this process and before it.
      total_env_steps: of the whole sweep.
      batch: that is being trained.
      num_batches: of this process's share, and how many of them are whole.
      num_whole: see `num_batches`.
      steps_per_second: of the batch, all its members together.
      seconds: since this process began.
      eta_seconds: expected until this process's share is done; NaN before anything was measured.
      members: progress of the batch's members.
    """

    env_steps: int
    total_env_steps: int
    batch: Batch
    num_batches: int
    num_whole: int
    steps_per_second: float
    seconds: float
    eta_seconds: float
    members: fit.Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep in its folder.

    Attributes:
      path: the folder.
      plan: with the layouts that the folder records.
      record: what sweep.json holds.
      eval_episodes: of each member at the end; 0 for none.
    """

    path: Path
    plan: Plan
    record: dict[str, Any]
    eval_episodes: int

    def folder(self, batch: Batch) -> Path:
        """Of one batch."""
        return self.path / "batches" / batch.name

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch, or those that took its place because it did not fit."""
        if not (self.folder(batch) / "split.json").exists():
            yield batch
            return
        for half in batch.halves(self.plan.groups[batch.group].layout.multiple):
            yield from self.parts(half)

    def batches(self, shard: tuple[int, int] = (0, 1)) -> list[Batch]:
        """All batches of the i-th of n shares, split ones in their parts."""
        index, count = shard
        return [part for batch in self.plan.batches[index::count] for part in self.parts(batch)]

    def is_whole(self, batch: Batch) -> bool:
        """Whether the batch is done."""
        try:
            return bool(json.loads((self.folder(batch) / "results.json").read_text())["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def open_sweep(path: Path | str, plan: Plan, eval_episodes: int, **entries: Any) -> Sweep:
    """Makes the folder of a sweep, or finds it with the same sweep in it. Processes may do so at the same time.

    Args:
      path: the folder.
      plan: of the sweep; a folder that is there already tells the layouts and widths that its batches were made with.
      eval_episodes: of each member at the end.
      **entries: for sweep.json: what makes the sweep again.

    Raises:
      ValueError: the folder holds another sweep, or something else.
      StorageError: it cannot be read or written.
    """
    path = Path(path)
    record = _record(plan, eval_episodes, entries)
    if path.exists() and not (path / "sweep.json").exists() and any(p.name != ".lock" for p in path.iterdir()):
        raise ValueError(f"{path} holds something else than a sweep: name another folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with open(path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / "sweep.json").exists():
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                about = {"created": now, "environment": runs.environment(), "command": sys.argv}
                write_file(path / "sweep.json", json.dumps({**record, **about}, indent=1).encode())
                _write_settings(path, plan)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    there = read_record(path)
    if changed := [name for name in record["sweep"] if record["sweep"][name] != there["sweep"].get(name)]:
        lines = [f"{name}: {there['sweep'].get(name)} there, {record['sweep'][name]} here" for name in changed]
        raise ValueError(f"{path} holds another sweep ({'; '.join(lines)}): name another folder.")
    groups = [
        dataclasses.replace(group, layout=Layout(*kept["layout"]), width=kept["width"])
        for group, kept in zip(plan.groups, there["groups"], strict=True)
    ]
    return Sweep(path, dataclasses.replace(plan, groups=tuple(groups)), there, eval_episodes)


def read_record(path: Path | str) -> dict[str, Any]:
    """What sweep.json holds.

    Raises:
      ValueError: the folder is not that of a sweep, or a newer jaxrl made it.
      StorageError: sweep.json is damaged.
    """
    try:
        record = json.loads((Path(path) / "sweep.json").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} is not the folder of a sweep: it has no sweep.json.") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{Path(path) / 'sweep.json'} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise StorageError(f"{Path(path) / 'sweep.json'} is damaged: it has no schema number.")
    if record["schema"] > SCHEMA:
        raise ValueError(f"{path} was made by a newer jaxrl (schema {record['schema']} > {SCHEMA}): update jaxrl.")
    return record


def run_sweep(
    sweep: Sweep,
    *,
    shard: tuple[int, int] = (0, 1),
    checkpoint_seconds: float = 60.0,
    keep_states: bool = False,
    on_progress: Callable[[SweepProgress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> int | None:
    """Computes every batch of a share that is not whole; the next program compiles while one runs.

    Args:
      sweep: from `open_sweep`.
      shard: (i, n): every n-th batch from the i-th on, so that n processes share a sweep.
      checkpoint_seconds: how often the state of the batch in progress is saved, so that a kill costs no more.
      keep_states: whether the members' last states stay in the folder.
      on_progress: called after each segment.
      on_message: called with each line for people.

    Returns:
      The number of the signal that ended it early, or None.

    Raises:
      OutOfMemoryError: not even one member fits.
      StorageError: something cannot be written; what is there is kept.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be i/n with 0 <= i < n; got {index}/{count}.")
    for line in runs.differences(sweep.record):
        on_message(f"Not as when the sweep was made, so its numbers may differ: {line}.")
    began, rates = time.perf_counter(), _Rates()
    todo = sweep.batches(shard)
    num_whole = sum(map(sweep.is_whole, todo))
    todo = [batch for batch in todo if not sweep.is_whole(batch)]
    steps_whole = sum(_steps(sweep.plan.groups[b.group], b) for b in sweep.batches() if sweep.is_whole(b))
    while todo:
        batch = todo[0]
        ahead = _Ahead(sweep, next((later for later in todo if later.group != batch.group), None))

        def report(progress: fit.Progress) -> None:
            ahead.start()
            rates.add(sweep, batch, progress)
            on_progress(
                SweepProgress(
                    env_steps=steps_whole + progress.env_steps * (batch.stop - batch.start),
                    total_env_steps=sweep.plan.env_steps,
                    batch=batch,
                    num_batches=num_whole + len(todo),
                    num_whole=num_whole,
                    steps_per_second=progress.steps_per_second,
                    seconds=time.perf_counter() - began,
                    eta_seconds=rates.eta(sweep, todo, progress),
                    members=progress,
                )
            )

        def tell(line: str) -> None:
            on_message(_with_members(sweep, batch, line))

        try:
            stopped = run_batch(sweep, batch, checkpoint_seconds, keep_states, report, tell)
        except OutOfMemoryError as error:
            todo = _split(sweep, batch, error, on_message) + todo[1:]
            continue
        finally:
            ahead.join()
        if stopped is not None:
            return stopped
        num_whole, todo = num_whole + 1, todo[1:]
        steps_whole += _steps(sweep.plan.groups[batch.group], batch)
    return None


def run_batch(
    sweep: Sweep,
    batch: Batch,
    checkpoint_seconds: float = 60.0,
    keep_states: bool = False,
    on_segment: Callable[[fit.Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> int | None:
    """Computes one batch, from its newest checkpoint if it has one; nothing if it is whole.

    Returns:
      The number of the signal that ended it early, or None.

    Raises:
      OutOfMemoryError: it does not fit.
      StorageError: something cannot be written, or another process computes this batch.
    """
    if sweep.is_whole(batch):
        return None
    group, width = sweep.plan.groups[batch.group], width_of(sweep.plan.groups[batch.group], batch)
    folder = sweep.folder(batch)
    if (folder / "run.json").exists():
        run = Run.open(folder)
    else:
        run = Run.create(folder, {"sweep_batch": list(batch), "width": width, "algorithm": group.algorithm})
    programs = _programs(sweep, batch)
    result = fit.fit(
        programs.algorithm,
        programs.hparams,
        seed=programs.keys,
        total_iterations=group.iterations,
        segment=group.segment,
        num_seeds=width,
        run=run,
        evaluation=programs.evaluation,
        log=False,
        checkpoint_seconds=checkpoint_seconds,
        keep_last=1,
        save_final=keep_states,
        rows_per_segment=_rows_per_segment(group, sweep.plan.num_points),
        resume=bool(fit.checkpoint.iterations(run.checkpoints)),
        on_segment=on_segment,
        on_message=on_message,
    )
    if result.stopped is None and not keep_states:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    # A signal in the last segment comes when nothing is left to do, for this batch.
    return result.stopped


class _Batch(NamedTuple):
    algorithm: Any
    hparams: Any
    keys: jax.Array
    evaluation: fit.EvaluationPlan | None


def _programs(sweep: Sweep, batch: Batch) -> _Batch:
    """What `fit` and `fit.prepare` take for a batch."""
    group = sweep.plan.groups[batch.group]
    width = width_of(group, batch)
    layout = fitted(group.layout, width)
    evaluation = None
    if sweep.eval_episodes and group.member.env:
        play = fit.play_episodes(
            group.member,
            sweep.eval_episodes,
            max_steps=_max_steps(group),
            num_seeds=width,
            num_devices=layout.num_devices,
            chunk=layout.chunk,
        )
        evaluation = fit.EvaluationPlan(1, play)
    keys = group.keys(batch, width, sweep.plan.seed)
    return _Batch(group.population(width), group.hyperparams(batch, width), keys, evaluation)


class _Ahead:
    """Compiles a batch of another group in a thread, once started; errors come up when the batch itself is run."""

    def __init__(self, sweep: Sweep, batch: Batch | None):
        self._sweep, self._batch = sweep, batch
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None and self._batch is not None:
            self._thread = threading.Thread(target=self._compile, args=(self._batch,), daemon=True)
            self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _compile(self, batch: Batch) -> None:
        with contextlib.suppress(Exception):
            group, programs = self._sweep.plan.groups[batch.group], _programs(self._sweep, batch)
            segment = min(group.segment, group.iterations)
            width = width_of(group, batch)
            fit.prepare(programs.algorithm, programs.keys, programs.hparams, segment, width, programs.evaluation)


class _Rates:
    """Seconds that a member's transition takes, by group as far as measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, sweep: Sweep, batch: Batch, progress: fit.Progress) -> None:
        width = width_of(sweep.plan.groups[batch.group], batch)
        self._seconds[batch.group] = (progress.seconds / progress.env_steps) / width

    def eta(self, sweep: Sweep, todo: list[Batch], progress: fit.Progress) -> float:
        mean = sum(self._seconds.values()) / len(self._seconds)
        later = sum(
            self._seconds.get(batch.group, mean) * _steps(sweep.plan.groups[batch.group], batch) for batch in todo[1:]
        )
        return progress.eta_seconds + later


def _split(sweep: Sweep, batch: Batch, error: Exception, on_message: Callable[[str], None]) -> list[Batch]:
    """Replaces a batch that does not fit by two of half its size."""
    if batch.stop - batch.start < 2:
        raise error
    write_file(sweep.folder(batch) / "split.json", json.dumps({"reason": str(error)}).encode())
    for name in ("metrics", "evaluations", "checkpoints"):
        shutil.rmtree(sweep.folder(batch) / name, ignore_errors=True)
    parts = list(sweep.parts(batch))
    on_message(
        f"{batch.stop - batch.start:,} members did not fit; trying {len(parts)} batches of half as many. {error}"
    )
    return parts


def _with_members(sweep: Sweep, batch: Batch, line: str) -> str:
    """Names settings where `fit` says seeds: its members are places in a batch."""
    first, _, rest = line.partition(" ")
    number, _, what = rest.partition(" ")
    if first != "Seed" or not number.isdigit():
        return line
    group, lane = sweep.plan.groups[batch.group], batch.start + int(number)
    if lane >= batch.stop:
        return f"Padding {what}"
    setting, seed = divmod(lane, group.num_seeds)
    row = sweep.plan.pairs[group.algorithm, group.env].rows[group.settings[setting]]
    shown = ", ".join(f"{name} = {value}" for name, value in row.items())
    what = what.replace("The other seeds are", "The others are")
    return f"{group.algorithm} on {group.env} ({shown}), seed {seed} {what}"


def _rows_per_segment(group: Group, num_points: int) -> int:
    """Rows that each segment's metrics are reduced to, so that there are at least `num_points` of them."""
    num_segments = math.ceil(group.iterations / group.segment)
    last = group.iterations - (num_segments - 1) * group.segment
    rows = math.ceil(num_points / num_segments)
    while (num_segments - 1) * min(rows, group.segment) + min(rows, last) < num_points:
        rows += 1
    return rows


def _max_steps(group: Group) -> int:
    """After how many steps an evaluation episode counts as unfinished: the greatest time limit that is swept."""
    values = {f"env.{name}": leaf for name, leaf in trees.named_leaves(group.member.hyperparams().env).items()}
    values |= group.values
    limits = [int(np.max(leaf)) for name, leaf in values.items() if "max" in name and "steps" in name]
    return max([group.member.env.max_episode_steps or 0, *limits]) or _MAX_STEPS if group.member.env else _MAX_STEPS


def _steps(group: Group, batch: Batch) -> int:
    return (batch.stop - batch.start) * group.iterations * group.member.env_steps


def _record(plan: Plan, eval_episodes: int, entries: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {
            "algorithm": group.algorithm,
            "env": group.env,
            "config": runs.plain(group.config),
            "members": group.num_members,
            "iterations": group.iterations,
            "layout": list(group.layout),
            "width": group.width,
        }
        for group in plan.groups
    ]
    pairs = [list(pair) for pair in plan.pairs]
    what = {
        "pairs": pairs,
        "space": to_json(plan.space),
        "fixed": plan.fixed,
        "num_seeds": plan.num_seeds,
        "seed": plan.seed,
        "total_steps": plan.total_steps,
        "num_points": plan.num_points,
        "eval_episodes": eval_episodes,
        **entries,
    }
    # As it will be read again: tuples are lists.
    return json.loads(
        json.dumps(
            {
                "schema": SCHEMA,
                "sweep": runs.plain(what),
                "defaults": {name: value for name, value in runs.plain(plan.defaults).items() if value is not None},
                "groups": groups,
            }
        )
    )


def _write_settings(path: Path, plan: Plan) -> None:
    """settings.csv, for people and for spreadsheets: one row a setting."""
    names = plan.space.names
    lines = [",".join(["algorithm", "env", "setting", *names])]
    for (algorithm, env), settings in plan.pairs.items():
        for index, row in enumerate(settings.rows):
            cells = [str(row.get(name, "")) for name in names]
            quoted = [f'"{cell}"' if "," in cell else cell for cell in cells]
            lines.append(",".join([algorithm, env, str(index), *quoted]))
    write_file(path / "settings.csv", ("\n".join(lines) + "\n").encode())
