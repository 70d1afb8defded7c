"""The host loop over compiled segments: metrics to disk, evaluations, checkpoints, signals, divergence, time left.

Resuming is bit-identical to never having stopped, also with a larger total: a segment ends at the next multiple of its
length, or with the last iteration, whatever came before, and one compiled program computes segments of every length.

Of several processes (`jax.distributed`) the first writes, holds the lock and speaks; see `jaxrl.processes`.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import checkpoint, memory, processes, programs, progress, runs, sinks
from jaxrl.evaluation import EvaluationPlan, mean_of_finished, play_episodes
from jaxrl.ops import trees
from jaxrl.programs import prepare
from jaxrl.progress import Progress
from jaxrl.runs import Run
from jaxrl.sinks import Sink
from jaxrl.types import Algorithm, Hyperparams, Key, State

__all__ = ["EvaluationPlan", "Progress", "Result", "fit", "play_episodes", "prepare", "signals"]


class Result(NamedTuple):
    """What `fit` gives back.

    Attributes:
      state: the algorithm's state at the end.
      iteration: iterations done.
      stopped: number of the signal that ended the run early, or None.
      results: as written to results.json.
    """

    state: State
    iteration: int
    stopped: int | None
    results: dict[str, Any]


def fit(
    algorithm: Algorithm,
    hparams: Hyperparams,
    *,
    seed: int | Key,
    total_iterations: int,
    segment: int,
    num_seeds: int | None = None,
    run: Run | None = None,
    evaluation: EvaluationPlan | None = None,
    log: bool = True,
    extra_sinks: Sequence[Sink] = (),
    checkpoint_seconds: float = 30.0,
    keep_last: int = 2,
    save_final: bool = True,
    rows_per_segment: int | None = None,
    resume: bool = False,
    on_segment: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> Result:
    """Trains in segments and keeps the run's folder.

    In a program of several processes all call it with the same arguments, and the algorithm is a population that is
    spread over all of `jax.devices()`. The first process alone uses `run`, `log`, `extra_sinks` and `on_message`, and
    needs the folder; a signal to any of them stops all after the same segment.

    Args:
      algorithm: one learner or a population.
      hparams: its hyperparameters.
      seed: all randomness of training and evaluation follows from it: a number, or for a population keys of shape
        [P], so that what a member does depends on its own key and not on its place.
      total_iterations: calls of `algorithm.step`.
      segment: iterations between two looks of the host.
      num_seeds: members P if the algorithm is a population: its state and metrics have a leading axis [P].
      run: where to write; None writes nothing. Of several processes only the first must have it.
      evaluation: None never evaluates.
      log: whether the folder gets a log.jsonl, a line a segment and member.
      extra_sinks: besides it; they are closed at the end.
      checkpoint_seconds: a checkpoint is written when so much time has passed, after each evaluation, on SIGTERM and
        SIGINT, and at the end. The best has the highest mean return over members, of evaluations if there are any.
      keep_last: checkpoints kept besides the best.
      save_final: whether the last state is saved when the run is whole.
      rows_per_segment: rows that the metrics of a segment are reduced to, see `runs.segment_dataset`.
      resume: whether to continue from the newest whole checkpoint of `run`.
      on_segment: called after each segment, in every process.
      on_message: called with each line for people: divergence, damage, changed versions, signals.

    Returns:
      The outcome. After a signal the state has been saved and `stopped` is set.

    Raises:
      ValueError: arguments do not fit together, or `run` has checkpoints and `resume` is false.
      OutOfMemoryError: a ValueError too: the memory does not suffice, before compiling or while running.
      StorageError: something cannot be written; what was there is kept.
      RuntimeError: another of several processes failed.
    """
    if total_iterations < 1 or segment < 1:
        raise ValueError(
            "total_iterations and segment must be at least 1; "
            f"got total_iterations = {total_iterations}, segment = {segment}."
        )
    if not processes.is_first():
        run, log, extra_sinks, on_message = None, False, (), lambda line: None
    if resume and run is None and processes.is_first():
        raise ValueError("resume = True needs the run that is to be continued; got run = None.")
    began = time.perf_counter()
    hparams = trees.as_arrays(hparams)
    segment = min(segment, total_iterations)
    members, steps = num_seeds or 1, algorithm.env_steps // (num_seeds or 1)
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
    key_train, key_evaluation = programs.split_key(key)
    template = programs.state_template(algorithm, key_train, hparams)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals(on_message))
        with processes.together():
            if run:
                stack.enter_context(run.lock())
            saved = _load(run, template, hparams, total_iterations, resume, on_message)
        saved, keeps = _from_first(saved, template), processes.any_of(run is not None)
        info = saved[2] if saved else _new_info(members, hparams)
        compiling = time.perf_counter()
        with processes.together():
            compiled = prepare(algorithm, key, hparams, segment, num_seeds, evaluation)
        info["compile_seconds"] += time.perf_counter() - compiling
        info["bytes"] = memory.compiled_bytes(compiled.advance)
        state, iteration = saved[:2] if saved else (programs.call(compiled.init, key_train, hparams), 0)
        state, hparams, _ = programs.placed(compiled.advance, state, hparams, jnp.int32(0))
        outlets = [*([sinks.jsonl(run.path / "log.jsonl")] if run and log else []), *extra_sinks]
        with processes.together():
            for sink in outlets:
                stack.callback(sink.close)
                sink.start(float(iteration * steps), members)
        saved_at, saved_time, told_time = iteration, time.perf_counter(), began

        while iteration < total_iterations and not _signal(stop, on_message):
            first, iteration = iteration, min((iteration // segment + 1) * segment, total_iterations)
            started = time.perf_counter()
            with memory.explained(algorithm, num_seeds):
                done = compiled.advance(state, hparams, programs.placed_number(compiled.advance, iteration - first))
                state, metrics = jax.block_until_ready(done)
            info["train_seconds"] += time.perf_counter() - started

            metrics = jax.device_get(processes.fetch(metrics))
            bad = np.broadcast_to(processes.fetch(progress.not_finite(state, num_seeds)), members)
            episodes = played = None
            if evaluation and _is_due(evaluation.num_evaluations, iteration, segment, total_iterations):
                episodes = programs.call(
                    compiled.play, programs.evaluation_key(key_evaluation, iteration), state, hparams
                )
                episodes = jax.device_get(processes.fetch(episodes))
            with processes.together():
                metrics = progress.by_member(metrics, iteration - first, members)
                progress.note_divergence(info, metrics, bad, first, steps, on_message)
                returns = progress.segment_returns(metrics, members)
                info["returns"] = np.where(np.isnan(returns), info["returns"], returns).tolist()
                if run:
                    run.write_segment(first, runs.segment_dataset(metrics, first, steps, rows_per_segment))
                if episodes:
                    played = mean_of_finished(episodes, members)
                    info["evaluation"] = played.tolist()
                    if run:
                        run.write_evaluation(iteration, progress.episodes_dataset(episodes, members, iteration * steps))
                progress.feed(outlets, metrics, played, float(iteration * steps))

            now = time.perf_counter()
            info["seconds"], told_time = info["seconds"] + now - told_time, now
            due = processes.any_of(bool(stop) or played is not None or now - saved_time >= checkpoint_seconds)
            due = keeps and (save_final if iteration == total_iterations else due)
            whole = processes.fetch(state) if due else None
            with processes.together():
                if due:
                    is_best = progress.note_best(info, played if evaluation else returns)
                    if run:
                        checkpoint.save(run.checkpoints, iteration, whole, info, keep_last, is_best)
                    saved_at, saved_time = iteration, time.perf_counter()
                on_segment(
                    progress.progress_after(
                        info, returns, played, iteration, total_iterations, algorithm.env_steps, members
                    )
                )

        due = keeps and iteration != saved_at and (save_final or iteration < total_iterations)
        whole = processes.fetch(state) if due else None
        with processes.together():
            if run and due:
                checkpoint.save(run.checkpoints, iteration, whole, info, keep_last)
            results = progress.results_table(info, iteration, total_iterations, algorithm.env_steps, members)
            if run:
                run.write_results(results)
        stopped = _signal(stop, on_message)
    return Result(state, iteration, stopped or None, results)


def _load(
    run: Run | None,
    template: State,
    hparams: Hyperparams,
    total_iterations: int,
    resume: bool,
    on_message: Callable[[str], None],
) -> tuple[State, int, dict[str, Any]] | None:
    """State, iteration and info to continue from; None to begin."""
    if run is None:
        return None
    if not resume:
        if present := checkpoint.iterations(run.checkpoints):
            raise ValueError(f"{run.path} has checkpoints of iterations {present}: resume it, or name another folder.")
        return None

    def damaged(iteration: int, reason: str) -> None:
        on_message(f"{reason} The one before is used.")
        checkpoint.set_aside(run.checkpoints, iteration)

    for line in runs.differences(run.record):
        on_message(f"Not as when the run was made, so its numbers may differ: {line}.")
    saved = checkpoint.load_latest(run.checkpoints, template, damaged)
    if saved is None:
        on_message(f"{run.path} has no whole checkpoint: training starts from the beginning.")
        return None
    state, iteration, info = saved
    if iteration > total_iterations:
        raise ValueError(
            f"{run.path} has done {iteration} iterations already, more than total_iterations = {total_iterations}."
        )
    now = checkpoint.digests(hparams)
    if changed := [name for name in now if now[name] != info["hparams"].get(name)]:
        on_message(f"Hyperparameters changed since the checkpoint: {', '.join(changed).replace('state.', '')}.")
        info["hparams"] = now
    return state, iteration, info


def _from_first(
    saved: tuple[State, int, dict[str, Any]] | None, template: State
) -> tuple[State, int, dict[str, Any]] | None:
    """What the first process has loaded, in every process."""
    if not processes.is_several():
        return saved
    rest = processes.from_first(saved and saved[1:])
    if rest is None:
        return None
    likes, structure = jax.tree.flatten(template)
    leaves = jax.tree.leaves(saved[0]) if saved else [None] * len(likes)

    def shared(leaf: Any, like: Any) -> Any:
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        data = processes.from_first(leaf if leaf is None else np.asarray(jax.random.key_data(leaf) if is_key else leaf))
        return jax.random.wrap_key_data(jnp.asarray(data), impl=like.dtype) if is_key else data

    return (jax.tree.unflatten(structure, map(shared, leaves, likes)), *rest)


def _new_info(members: int, hparams: Hyperparams) -> dict[str, Any]:
    """What a checkpoint carries besides the state."""
    return {
        "seconds": 0.0,
        "train_seconds": 0.0,
        "compile_seconds": 0.0,
        "returns": [math.nan] * members,
        "evaluation": None,
        "best_return": None,
        "diverged": {},
        "hparams": checkpoint.digests(hparams),
    }


@contextlib.contextmanager
def signals(on_message: Callable[[str], None]) -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of dying; a second SIGINT interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        on_message(f"{signal.Signals(number).name}: the segment in flight is finished and the state saved.")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(stop: list[int], on_message: Callable[[str], None]) -> int:
    """The signal that any process has received, 0 if none; the same number in all."""
    number = processes.greatest(stop[0] if stop else 0)
    if number and not stop:
        on_message(f"{signal.Signals(number).name} to another process: all stop here, and the state is saved.")
        stop.append(number)
    return number


def _is_due(num_evaluations: int, iteration: int, segment: int, total_iterations: int) -> bool:
    """Whether an evaluation falls due with the segment that ends at `iteration`."""
    segments, index = math.ceil(total_iterations / segment), math.ceil(iteration / segment)
    return index * num_evaluations // segments > (index - 1) * num_evaluations // segments
