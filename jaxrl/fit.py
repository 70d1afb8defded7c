"""The host loop over compiled segments: metrics to disk, evaluations, checkpoints, signals, divergence, time left.

Resuming is bit-identical to never having stopped, also with a larger total: a segment ends at the next multiple of its
length, or with the last iteration, whatever came before, and one compiled program computes segments of every length.

Of several processes (`jax.distributed`) the first writes, holds the lock and speaks; see `jaxrl.processes`.
"""

import collections
import concurrent.futures
import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import xarray

from jaxrl import checkpoint, memory, processes, runs, sinks
from jaxrl.evaluation import Episodes, evaluate
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.runs import Run
from jaxrl.sinks import Sink
from jaxrl.types import Algorithm, Hyperparams, Key, Metrics, State, memoize

# What must be finite in every iteration. Others may not be: explained variance is not where nothing varies.
_FINITE_GROUPS = ("loss/", "gradient/")


class EvaluationPlan(NamedTuple):
    """When and how to evaluate.

    Attributes:
      num_evaluations: spread evenly over the segments, the last at the end.
      play: `(key, state, hparams) -> Episodes` with leaves [E], or [P, E] for a population; see `play_episodes`.
    """

    num_evaluations: int
    play: Callable[[Key, State, Hyperparams], Episodes]


class Progress(NamedTuple):
    """What is known after a segment.

    Attributes:
      iteration: done so far.
      total_iterations: of the whole run.
      env_steps: transitions so far of each member.
      steps_per_second: transitions of all members per second of training, without compilation.
      returns: mean return of the episodes that ended in this segment, NaN where none did, [P].
      mean_return: over the members whose return is known; NaN if there are none.
      interval: 95% confidence interval of that mean (Student's t over members); NaN with fewer than two.
      evaluation: mean return of each member if there was an evaluation now, [P].
      seconds: since the run began, over all its processes.
      compile_seconds: thereof for compilation.
      eta_seconds: expected until the end.
      diverged: transitions of the member at which it was seen to diverge, by member.
    """

    iteration: int
    total_iterations: int
    env_steps: int
    steps_per_second: float
    returns: np.ndarray
    mean_return: float
    interval: tuple[float, float]
    evaluation: np.ndarray | None
    seconds: float
    compile_seconds: float
    eta_seconds: float
    diverged: dict[int, int]


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
    key_train, key_evaluation = _split(key)
    template = _template(algorithm, key_train, hparams)

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
            programs = prepare(algorithm, key, hparams, segment, num_seeds, evaluation)
        info["compile_seconds"] += time.perf_counter() - compiling
        info["bytes"] = memory.compiled_bytes(programs.advance)
        state, iteration = saved[:2] if saved else (_call(programs.init, key_train, hparams), 0)
        state, hparams, _ = _placed(programs.advance, state, hparams, jnp.int32(0))
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
                done = programs.advance(state, hparams, _placed_number(programs.advance, iteration - first))
                state, metrics = jax.block_until_ready(done)
            info["train_seconds"] += time.perf_counter() - started

            metrics = jax.device_get(processes.fetch(metrics))
            bad = np.broadcast_to(processes.fetch(_not_finite(state, num_seeds)), members)
            episodes = played = None
            if evaluation and _is_due(evaluation.num_evaluations, iteration, segment, total_iterations):
                episodes = _call(programs.play, _fold_in(key_evaluation, iteration), state, hparams)
                episodes = jax.device_get(processes.fetch(episodes))
            with processes.together():
                metrics = _by_member(metrics, iteration - first, members)
                _note_divergence(info, metrics, bad, first, steps, on_message)
                returns = _segment_returns(metrics, members)
                info["returns"] = np.where(np.isnan(returns), info["returns"], returns).tolist()
                if run:
                    run.write_segment(first, runs.segment_dataset(metrics, first, steps, rows_per_segment))
                if episodes:
                    played = _mean_of_finished(episodes, members)
                    info["evaluation"] = played.tolist()
                    if run:
                        run.write_evaluation(iteration, _evaluation_dataset(episodes, members, iteration * steps))
                _feed(outlets, metrics, played, float(iteration * steps))

            now = time.perf_counter()
            info["seconds"], told_time = info["seconds"] + now - told_time, now
            due = processes.any_of(bool(stop) or played is not None or now - saved_time >= checkpoint_seconds)
            due = keeps and (save_final if iteration == total_iterations else due)
            whole = processes.fetch(state) if due else None
            with processes.together():
                if due:
                    is_best = _note_best(info, played if evaluation else returns)
                    if run:
                        checkpoint.save(run.checkpoints, iteration, whole, info, keep_last, is_best)
                    saved_at, saved_time = iteration, time.perf_counter()
                on_segment(_progress(info, returns, played, iteration, total_iterations, algorithm.env_steps, members))

        due = keeps and iteration != saved_at and (save_final or iteration < total_iterations)
        whole = processes.fetch(state) if due else None
        with processes.together():
            if run and due:
                checkpoint.save(run.checkpoints, iteration, whole, info, keep_last)
            results = _results(info, iteration, total_iterations, algorithm.env_steps, members)
            if run:
                run.write_results(results)
        stopped = _signal(stop, on_message)
    return Result(state, iteration, stopped or None, results)


@memoize
def play_episodes(
    member: Algorithm,
    num_episodes: int,
    sampled: bool = False,
    max_steps: int | None = None,
    num_seeds: int | None = None,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Callable[[Key, State, Hyperparams], Episodes]:
    """Evaluation of one learner or of each member of a population, for an `EvaluationPlan`.

    Args:
      member: the algorithm of one member.
      num_episodes: E, for each member.
      sampled: as for `evaluate`.
      max_steps: as for `evaluate`.
      num_seeds: P if the state is that of a population.
      num_devices: as for the population.
      chunk: as for the population.

    Returns:
      `(key, state, hparams) -> Episodes`; the environment's parameters are `hparams.env`, of which a leaf with one more
      axis than the member's default has one value a member.
    """
    play = evaluate(member, num_episodes, max_steps, sampled)
    if num_seeds is None:
        return lambda key, state, hparams: play(key, state, hparams.env)
    axes = lambda env: jax.tree.map(lambda leaf, one: 0 if leaf.ndim > one.ndim else None, env, default)
    default = member.hyperparams().env

    def play_all(key: Key, state: State, hparams: Hyperparams) -> Episodes:
        keys = key if key.ndim else jax.random.split(key, num_seeds)
        return over_members(play, (0, 0, axes(hparams.env)), num_devices, chunk)(keys, state, hparams.env)

    return play_all


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


@functools.partial(jax.jit, static_argnames=("algorithm", "capacity"), donate_argnames=("state",))
def _advance(
    algorithm: Algorithm, state: State, hparams: Hyperparams, num_steps: jax.Array, capacity: int
) -> tuple[State, Metrics]:
    """`training.advance` by a number of steps that is data, at most `capacity`: one program for all segments."""
    # An inner jit is traced once, though both `eval_shape` and the loop use it.
    step = jax.jit(algorithm.step, inline=True)
    rows = jax.tree.map(lambda m: jnp.zeros((capacity, *m.shape), m.dtype), jax.eval_shape(step, state, hparams)[1])

    def body(index: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = step(carry[0], hparams)
        return state, jax.tree.map(lambda all_rows, row: all_rows.at[index].set(row), carry[1], metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, rows))


@functools.partial(jax.jit, static_argnames="algorithm")
def _init(algorithm: Algorithm, key: Key, hparams: Hyperparams) -> State:
    return trees.as_arrays(algorithm.init(key, hparams))


def _template(algorithm: Algorithm, key: Key, hparams: Hyperparams) -> State:
    return jax.eval_shape(functools.partial(_init, algorithm), key, hparams)


class Programs(NamedTuple):
    """What `fit` runs, compiled.

    Attributes:
      init: `(key, hparams) -> state`.
      advance: `(state, hparams, number of iterations) -> (state, metrics)`; the state is donated.
      play: `(key, state, hparams) -> Episodes`, or None without an evaluation.
    """

    init: Any
    advance: Any
    play: Any


def prepare(
    algorithm: Algorithm,
    key: Key,
    hparams: Hyperparams,
    segment: int,
    num_seeds: int | None = None,
    evaluation: EvaluationPlan | None = None,
) -> Programs:
    """Compiles what `fit` needs, side by side, or finds it among what this process has compiled before.

    May be called in a thread, so that one run is compiled while another one trains.

    Args:
      algorithm: as for `fit`.
      key: of shape [], or [P].
      hparams: as for `fit`; only shapes matter.
      segment: as for `fit`.
      num_seeds: as for `fit`.
      evaluation: as for `fit`.

    Raises:
      OutOfMemoryError: the memory that there is does not suffice; the message names what to lower.
    """
    hparams = trees.as_arrays(hparams)
    key, _ = _split(key)
    template = _template(algorithm, key, hparams)

    def check_estimate(traced: Any) -> None:
        num_devices = memory.num_devices(traced.jaxpr.jaxpr)
        if processes.is_several() and num_devices != jax.device_count():
            raise ValueError(
                f"Of {jax.process_count()} processes each must have its part of the program, but it is spread over "
                f"num_devices = {num_devices} of {jax.device_count()} devices: "
                f"population(..., num_devices={jax.device_count()}) is spread over all."
            )
        needed = memory.estimate_of_trace(traced, template)
        have = _available(num_devices)
        memory.check(needed.total, have, algorithm, num_seeds, memory.describe(needed))

    with memory.explained(algorithm, num_seeds):
        # Tracing holds Python's lock, compiling does not.
        advance = _compiled(_advance, (algorithm,), (template, hparams, jnp.int32(segment)), (segment,), check_estimate)
        init = _compiled(_init, (algorithm,), (key, hparams))
        play = evaluation and _compiled(_play, (evaluation.play,), (key, template, hparams))
        programs = Programs(init.result(), advance.result(), play and play.result())
    have = _available(len(programs.advance.input_shardings[0][2].device_set))
    memory.check(memory.compiled_bytes(programs.advance) or 0, have, algorithm, num_seeds, "as compiled")
    return programs


@functools.partial(jax.jit, static_argnames="play")
def _play(
    play: Callable[[Key, State, Hyperparams], Episodes], key: Key, state: State, hparams: Hyperparams
) -> Episodes:
    return play(key, state, hparams)


def _available(num_devices: int) -> int | None:
    """Bytes free for all devices of all processes; on CPUs each process is taken to have a machine of its own."""
    have = memory.available(num_devices)
    return have * jax.process_count() if have is not None and jax.default_backend() == "cpu" else have


_MAX_PROGRAMS = 24
_programs: collections.OrderedDict[Any, "concurrent.futures.Future[Any]"] = collections.OrderedDict()
_programs_lock = threading.Lock()
_compilers = concurrent.futures.ThreadPoolExecutor(2, "compile")


def _compiled(
    function: Any,
    statics: tuple[Any, ...],
    arguments: tuple[Any, ...],
    trailing: tuple[Any, ...] = (),
    check: Callable[[Any], None] = lambda traced: None,
) -> "concurrent.futures.Future[Any]":
    """Traces now, checks what was traced, and compiles in the background; once for equal arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    name = (function, statics, structure, shapes, trailing)
    with _programs_lock:
        if name not in _programs:
            traced = function.trace(*statics, *arguments, *trailing)
            check(traced)
            _programs[name] = _compilers.submit(lambda: traced.lower().compile())
            _programs[name].add_done_callback(lambda done: done.exception() and _programs.pop(name, None))
        while len(_programs) > _MAX_PROGRAMS:
            _programs.popitem(last=False)
        _programs.move_to_end(name)
        return _programs[name]


def _placed(program: Any, *arguments: Any) -> tuple[Any, ...]:
    """Arguments where the program wants them: spread over devices if it is."""
    return processes.place(arguments, program.input_shardings[0])


def _call(program: Any, *arguments: Any) -> Any:
    return program(*_placed(program, *arguments))


def _placed_number(program: Any, number: int) -> jax.Array:
    return processes.place(jnp.int32(number), program.input_shardings[0][2])


def _split(key: Key) -> tuple[Key, Key]:
    """Keys of training and evaluation, shape [] or [P] as the key's."""
    pairs = jax.random.split(key) if not key.ndim else jax.vmap(jax.random.split, out_axes=1)(key)
    return pairs[0], pairs[1]


def _fold_in(key: Key, number: int) -> Key:
    return jax.random.fold_in(key, number) if not key.ndim else jax.vmap(jax.random.fold_in, (0, None))(key, number)


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


def _by_member(metrics: dict[str, Any], num: int, members: int) -> dict[str, np.ndarray]:
    """The first `num` rows of metrics as [num, P]; what has no member axis is the same for all."""
    if not metrics:
        raise ValueError("fit needs an algorithm whose step gives at least one metric; this one gives none.")
    shaped = {}
    for name, values in metrics.items():
        flat = values[:num].reshape(num, -1)
        if flat.shape[1] not in (1, members):
            raise ValueError(
                "Metrics must be one number a step and member; "
                f"{name} has shape {values.shape[1:]} a step, there are {members} members."
            )
        shaped[name] = np.broadcast_to(flat, (num, members))
    return shaped


@functools.partial(jax.jit, static_argnames="num_seeds")
def _not_finite(state: State, num_seeds: int | None) -> jax.Array:
    """Whether parameters hold NaN or infinity, [P], or [] for one: leaves below a `params`, else all of the state."""
    leaves = {
        name: leaf for name, leaf in trees.named_leaves(state).items() if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    chosen = [leaf for name, leaf in leaves.items() if "params" in name.split(".")] or list(leaves.values())
    bad = jnp.zeros(() if num_seeds is None else (num_seeds,), bool)
    for leaf in chosen:
        mapped = num_seeds is not None and leaf.ndim > 0 and leaf.shape[0] == num_seeds
        bad = bad | jnp.any(~jnp.isfinite(leaf), axis=tuple(range(int(mapped), leaf.ndim)))
    return bad


def _note_divergence(
    info: dict[str, Any],
    metrics: dict[str, np.ndarray],
    bad_params: np.ndarray,
    first: int,
    steps: int,
    on_message: Callable[[str], None],
) -> None:
    """Records the transitions after which each member's losses, gradients or parameters were first not finite."""
    watched = [values for name, values in metrics.items() if name.startswith(_FINITE_GROUPS)]
    num = len(next(iter(metrics.values())))
    bad = np.any([~np.isfinite(values) for values in watched], axis=0) if watched else np.zeros((num, 1), bool)
    bad = np.broadcast_to(bad, (num, len(bad_params))).copy()
    bad[-1] |= bad_params
    for member in np.flatnonzero(bad.any(axis=0)):
        if str(member) not in info["diverged"]:
            at = (first + int(np.argmax(bad[:, member])) + 1) * steps
            info["diverged"][str(member)] = at
            on_message(f"Seed {member} diverged: not finite after {at:,} steps. The other seeds are not affected.")


def _segment_returns(metrics: dict[str, np.ndarray], members: int) -> np.ndarray:
    """Mean return of the episodes that ended, NaN where none did, [P]."""
    if not {"episode/return_sum", "episode/count"} <= set(metrics):
        return np.full(members, np.nan)
    count = metrics["episode/count"].sum(axis=0, dtype=np.float64)
    total = metrics["episode/return_sum"].sum(axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full(members, np.nan), where=count > 0)


def _mean_of_finished(episodes: Episodes, members: int) -> np.ndarray:
    finished = np.reshape(episodes.finished, (members, -1))
    total = np.where(finished, np.reshape(episodes.returns, (members, -1)), 0.0).sum(axis=1, dtype=np.float64)
    return np.divide(total, finished.sum(axis=1), out=np.full(members, np.nan), where=finished.any(axis=1))


def _evaluation_dataset(episodes: Episodes, members: int, env_steps: int) -> xarray.Dataset:
    fields = {name: getattr(episodes, name) for name in ("returns", "lengths", "finished")}
    return xarray.Dataset(
        {name: (("seed", "episode"), np.reshape(values, (members, -1))) for name, values in fields.items()},
        {"seed": np.arange(members, dtype=np.int32)},
        {"env_steps": float(env_steps)},
    )


def _feed(outlets: Sequence[Sink], metrics: dict[str, np.ndarray], played: np.ndarray | None, step: float) -> None:
    """Writes one line a member: sums and means over the segment, and the returns."""
    scalars = {
        name: (values.sum if runs.is_summed(name) else values.mean)(axis=0, dtype=np.float64)
        for name, values in metrics.items()
    }
    members = len(next(iter(scalars.values())))
    scalars["episode/return"] = _segment_returns(metrics, members)
    if played is not None:
        scalars["evaluation/return"] = played
    for sink in outlets:
        for member in range(members):
            sink.write(step, member, {name: float(values[member]) for name, values in scalars.items()})


def _note_best(info: dict[str, Any], returns: np.ndarray | None) -> bool:
    """Whether the mean over members is the highest so far; then it is recorded."""
    mean = math.nan if returns is None else _mean_and_interval(returns)[0]
    is_best = not math.isnan(mean) and (info["best_return"] is None or mean > info["best_return"])
    if is_best:
        info["best_return"] = mean
    return is_best


def _mean_and_interval(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else math.nan
    if len(known) < 2:
        return mean, (math.nan, math.nan)
    half = float(scipy.special.stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / math.sqrt(len(known)))
    return mean, (mean - half, mean + half)


def _progress(
    info: dict[str, Any],
    returns: np.ndarray,
    played: np.ndarray | None,
    iteration: int,
    total_iterations: int,
    env_steps: int,
    members: int,
) -> Progress:
    mean, interval = _mean_and_interval(returns)
    seconds_per_iteration = (info["seconds"] - info["compile_seconds"]) / iteration
    return Progress(
        iteration=iteration,
        total_iterations=total_iterations,
        env_steps=iteration * env_steps // members,
        steps_per_second=iteration * env_steps / info["train_seconds"],
        returns=returns,
        mean_return=mean,
        interval=interval,
        evaluation=played,
        seconds=info["seconds"],
        compile_seconds=info["compile_seconds"],
        eta_seconds=(total_iterations - iteration) * seconds_per_iteration,
        diverged={int(member): at for member, at in info["diverged"].items()},
    )


def _results(
    info: dict[str, Any], iteration: int, total_iterations: int, env_steps: int, members: int
) -> dict[str, Any]:
    """The table at the end: one row a seed, and what the run took."""
    evaluated = info["evaluation"]
    table = [
        {
            "seed": member,
            "return": (evaluated or info["returns"])[member],
            "training_return": info["returns"][member],
            "evaluation_return": evaluated[member] if evaluated else None,
            "diverged": info["diverged"].get(str(member)),
        }
        for member in range(members)
    ]
    return {
        "finished": iteration == total_iterations,
        "iteration": iteration,
        "env_steps": iteration * env_steps // members,
        "seeds": table,
        "best_return": info["best_return"],
        "seconds": info["seconds"],
        "train_seconds": info["train_seconds"],
        "compile_seconds": info["compile_seconds"],
        "steps_per_second": iteration * env_steps / info["train_seconds"] if info["train_seconds"] else None,
        "program_bytes": info["bytes"],
    }
