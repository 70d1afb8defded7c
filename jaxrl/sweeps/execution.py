"""Runs a planned sweep in its folder: batch by batch, from checkpoints, halved where the memory does not suffice."""

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl import checkpoint, fit, runs
from jaxrl.memory import OutOfMemoryError
from jaxrl.runs import Run
from jaxrl.sweeps.folders import Sweep, open_sweep, read_record
from jaxrl.sweeps.plan import Batch, Group, width_of

__all__ = ["Sweep", "SweepProgress", "halved", "open_sweep", "read_record", "renaming", "run_batch", "run_sweep"]


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
    steps_whole = sum(sweep.plan.env_steps_of(b) for b in sweep.batches() if sweep.is_whole(b))
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

        try:
            told = renaming(sweep, batch, on_message)
            stopped = run_batch(sweep, batch, checkpoint_seconds, keep_states, report, told)
        except OutOfMemoryError as error:
            todo = halved(sweep, batch, error, on_message) + todo[1:]
            continue
        finally:
            ahead.join()
        if stopped is not None:
            return stopped
        num_whole, todo = num_whole + 1, todo[1:]
        steps_whole += sweep.plan.env_steps_of(batch)
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
        resume=bool(checkpoint.iterations(run.checkpoints)),
        on_segment=on_segment,
        on_message=on_message,
    )
    if result.stopped is None and not keep_states:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    # A signal in the last segment comes when nothing is left to do, for this batch.
    return result.stopped


def halved(sweep: Sweep, batch: Batch, error: OutOfMemoryError, on_message: Callable[[str], None]) -> list[Batch]:
    """What takes the place of a batch that does not fit.

    Args:
      sweep: to which it belongs.
      batch: that does not fit.
      error: that says so.
      on_message: called with a line for people.

    Returns:
      Two batches of half its size.

    Raises:
      OutOfMemoryError: it has one member only.
    """
    if batch.stop - batch.start < 2:
        raise error
    parts = sweep.split(batch, str(error))
    on_message(
        f"{batch.stop - batch.start:,} members did not fit; trying {len(parts)} batches of half as many. {error}"
    )
    return parts


def renaming(sweep: Sweep, batch: Batch, on_message: Callable[[str], None]) -> Callable[[str], None]:
    """Names settings where `fit` says seeds, which are places in a batch; of places that only pad it nothing is said.

    Args:
      sweep: to which the batch belongs.
      batch: that `fit` trains.
      on_message: called with the lines.

    Returns:
      `on_message` for `fit`.
    """
    group = sweep.plan.groups[batch.group]

    def tell(line: str) -> None:
        first, _, rest = line.partition(" ")
        number, _, what = rest.partition(" ")
        if first != "Seed" or not number.isdigit():
            on_message(line)
            return
        lane = batch.start + int(number)
        if lane >= batch.stop:
            return
        setting, seed = divmod(lane, group.num_seeds)
        row = sweep.plan.pairs[group.algorithm, group.env].rows[group.settings[setting]]
        shown = ", ".join(f"{name} = {value}" for name, value in row.items())
        what = what.replace("The other seeds are", "The others are")
        on_message(f"{group.algorithm} on {group.env} ({shown}), seed {seed} {what}")

    return tell


class _Batch(NamedTuple):
    algorithm: Any
    hparams: Any
    keys: jax.Array
    evaluation: fit.EvaluationPlan | None


def _programs(sweep: Sweep, batch: Batch) -> _Batch:
    """What `fit` and `fit.prepare` take for a batch."""
    group = sweep.plan.groups[batch.group]
    width = width_of(group, batch)
    evaluation = None
    if sweep.eval_episodes and group.member.env:
        evaluation = fit.EvaluationPlan(1, group.play(width, sweep.eval_episodes))
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
        later = sum(self._seconds.get(batch.group, mean) * sweep.plan.env_steps_of(batch) for batch in todo[1:])
        return progress.eta_seconds + later


def _rows_per_segment(group: Group, num_points: int) -> int:
    """Rows that each segment's metrics are reduced to, so that there are at least `num_points` of them."""
    num_segments = math.ceil(group.iterations / group.segment)
    last = group.iterations - (num_segments - 1) * group.segment
    rows = math.ceil(num_points / num_segments)
    while (num_segments - 1) * min(rows, group.segment) + min(rows, last) < num_points:
        rows += 1
    return rows
