"""A sweep on a Ray cluster: each batch is a task, and all of them share the sweep's folder.

Ray decides where a batch runs and starts it again when its worker is gone; the folder keeps what the batch has done. So
a lost worker costs the time since the last checkpoint, and the results are those of `jaxrl.sweeps.execution.run_sweep`.
"""

import collections
import contextlib
import dataclasses
import importlib
import pickle
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxrl import fit, runs
from jaxrl.memory import OutOfMemoryError
from jaxrl.sweeps import execution
from jaxrl.sweeps.execution import Sweep, SweepProgress
from jaxrl.sweeps.plan import Batch

LOCAL = "local"
# How often a batch may lose its worker.
_MAX_RETRIES = 10
_POLL_SECONDS = 0.2
# Settings of jax that may change results or speed, as the environment variables that a worker starts with.
_SETTINGS = (
    *("jax_platforms", "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"),
    *("jax_threefry_partitionable", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"),
)


class _Outcome(NamedTuple):
    """How a batch's task ended: whole, stopped by a signal, or `reason` says why it does not fit."""

    stopped: int | None = None
    reason: str | None = None


def run_on_ray(
    sweep: Sweep,
    *,
    address: str | None = None,
    num_workers: int | None = None,
    keep_states: bool = False,
    checkpoint_seconds: float = 60.0,
    on_progress: Callable[[SweepProgress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> int | None:
    """Computes every batch that is not whole, each as a task on Ray.

    A task has as many CPUs or GPUs as its batch's layout has devices. A batch whose worker dies is
    started again from its newest checkpoint, at most 10 times; one that does not fit is split in two. The folder must
    be the same one for all workers.

    Args:
      sweep: from `execution.open_sweep`. It is sent to the workers with all functions in it; what they take from
        modules, the workers must be able to import.
      address: of a cluster, `host:port`, or `auto` for the one that this machine is part of; None starts one on this
        machine, and stops it in the end. Where Ray is initialized already, that cluster is used.
      num_workers: batches that run at the same time; None: as many as the cluster has room for. A cluster that is
        started here then has as many CPUs as they want, whatever the machine has.
      keep_states: whether the members' last states stay in the folder.
      checkpoint_seconds: how often the state of each batch in progress is saved.
      on_progress: called when news of a batch comes; `steps_per_second` is that of all running batches together, and
        the counts are those of the whole sweep.
      on_message: called with each line for people.

    Returns:
      The number of the signal that ended it early, or None. The batches in progress were saved.

    Raises:
      ValueError: Ray is not installed, there is no cluster at the address, the sweep cannot be sent, or no machine of
        the cluster has enough devices.
      OutOfMemoryError: not even one member fits.
      StorageError: something cannot be written; what is there is kept.
      RuntimeError: a batch has lost too many workers.
    """
    ray = _ray()
    sweep = dataclasses.replace(sweep, path=sweep.path.resolve())
    for line in runs.differences(sweep.record):
        on_message(f"Not as when the sweep was made, so its numbers may differ: {line}.")
    watch = _Watch(sweep, on_progress, on_message)
    todo = collections.deque(batch for batch in sweep.batches() if batch not in watch.whole)
    if not todo:
        return None
    num_devices = max(group.layout.num_devices for group in sweep.plan.groups)
    kind = "CPU" if jax.default_backend() == "cpu" else "GPU"
    try:
        content = ray.cloudpickle.dumps(sweep)
    except Exception as error:
        raise ValueError(
            f"The sweep cannot be sent to Ray's workers ({type(error).__name__}: {error}): give algorithms and "
            "environments by name, or make them with functions of a module that the workers can import."
        ) from error

    with _connected(ray, address, num_workers and num_workers * num_devices), fit.signals(on_message) as stop:
        _check_room(ray, kind, num_devices)
        board = _board(ray)
        sent = ray.put(content)
        task = ray.remote(_run_batch)
        options = {"max_retries": _MAX_RETRIES, "runtime_env": {"env_vars": _environment(num_devices)}}
        pending: dict[Any, Batch] = {}
        try:
            while pending or (todo and not stop):
                while todo and not stop and len(pending) < (num_workers or len(todo) + len(pending)):
                    batch = todo.popleft()
                    wanted = sweep.plan.groups[batch.group].layout.num_devices
                    options |= {"num_cpus": wanted} if kind == "CPU" else {"num_cpus": 1, "num_gpus": wanted}
                    reference = task.options(**options).remote(sent, batch, board, checkpoint_seconds, keep_states)
                    pending[reference] = batch
                if stop:
                    board.stop.remote()
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_SECONDS)
                watch.read(ray.get(board.read.remote()))
                for reference in ready:
                    batch = pending.pop(reference)
                    outcome = _outcome(ray, reference, batch)
                    watch.running.pop(batch, None)
                    if outcome.reason is not None:
                        todo += execution.halved(sweep, batch, OutOfMemoryError(outcome.reason), on_message)
                        watch.num_batches += 1
                    elif sweep.is_whole(batch):
                        watch.whole.add(batch)
                    else:
                        todo.append(batch)
        finally:
            if pending:
                board.stop.remote()
        watch.read(ray.get(board.read.remote()))
    return stop[0] if stop else None


def _run_batch(content: bytes, batch: Batch, board: Any, checkpoint_seconds: float, keep_states: bool) -> _Outcome:
    """A task, in a process of its own."""
    ray = _ray()
    sweep: Sweep = ray.cloudpickle.loads(content)

    is_stopping = False

    def send(item: Any) -> None:
        # As bytes, so that the board's process need not import jax.
        nonlocal is_stopping
        if not is_stopping and ray.get(board.tell.remote(ray.cloudpickle.dumps((batch, item)))):
            is_stopping = True
            # As every signal does, it ends `fit` after the segment, with the state saved.
            signal.raise_signal(signal.SIGTERM)

    if ray.get(board.is_stopping.remote()):
        return _Outcome(stopped=signal.SIGTERM)
    ray.get(board.tell.remote(ray.cloudpickle.dumps((batch, None))))
    try:
        stopped = execution.run_batch(
            sweep,
            batch,
            checkpoint_seconds,
            keep_states,
            send,
            execution.renaming(sweep, batch, send),
        )
    except OutOfMemoryError as error:
        return _Outcome(reason=str(error))
    return _Outcome(stopped=stopped)


def _board(ray: Any) -> Any:
    """An actor that workers tell their news, and that tells them to stop."""

    # Not a class of the module, which its process would have to import, and jax with it.
    class Board:
        def __init__(self) -> None:
            self.news: list[bytes] = []
            self.stopping = False

        def tell(self, item: bytes) -> bool:
            self.news.append(item)
            return self.stopping

        def read(self) -> list[bytes]:
            news, self.news = self.news, []
            return news

        def stop(self) -> None:
            self.stopping = True

        def is_stopping(self) -> bool:
            return self.stopping

    return ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


class _Watch:
    """Hands on what the workers tell."""

    def __init__(self, sweep: Sweep, on_progress: Callable[[SweepProgress], None], on_message: Callable[[str], None]):
        batches = sweep.batches()
        self.num_batches, self.whole = len(batches), {batch for batch in batches if sweep.is_whole(batch)}
        self.running: dict[Batch, fit.Progress | None] = {}
        self._sweep, self._on_progress, self._on_message = sweep, on_progress, on_message
        self._began, self._steps_before = time.perf_counter(), self._steps_whole()

    def read(self, news: list[bytes]) -> None:
        """Takes what has come; each batch's newest progress alone is told."""
        told: dict[Batch, fit.Progress] = {}
        for batch, item in map(pickle.loads, news):
            if isinstance(item, str):
                self._on_message(item)
            elif item is None and batch in self.running:
                self._on_message(f"Batch {batch.name} has lost its worker and goes on in another from its checkpoint.")
            else:
                self.running[batch] = item
                told |= {batch: item} if item else {}
        for batch, progress in told.items():
            self._on_progress(self._progress(batch, progress))

    def _steps_whole(self) -> int:
        return sum(self._sweep.plan.env_steps_of(batch) for batch in self.whole)

    def _progress(self, batch: Batch, progress: fit.Progress) -> SweepProgress:
        under_way = {each: news for each, news in self.running.items() if news and each not in self.whole}
        steps = self._steps_whole()
        steps += sum(news.env_steps * (each.stop - each.start) for each, news in under_way.items())
        seconds, total = time.perf_counter() - self._began, self._sweep.plan.env_steps
        return SweepProgress(
            env_steps=steps,
            total_env_steps=total,
            batch=batch,
            num_batches=self.num_batches,
            num_whole=len(self.whole),
            steps_per_second=sum(news.steps_per_second for news in under_way.values()),
            seconds=seconds,
            eta_seconds=seconds * (total - steps) / max(steps - self._steps_before, 1),
            members=progress,
        )


def _outcome(ray: Any, reference: Any, batch: Batch) -> _Outcome:
    errors = ray.exceptions
    try:
        return ray.get(reference)
    except errors.RayTaskError as error:
        raise (error.cause or error) from error
    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
        raise RuntimeError(
            f"Batch {batch.name} has lost its worker {_MAX_RETRIES + 1} times, perhaps for want of memory on the "
            "machine: look at Ray's logs, or plan smaller batches (max_batch). The same call goes on with what is left."
        ) from error


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, num_cpus: int | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    is_local = address in (None, LOCAL)
    options = {"include_dashboard": False, "num_cpus": num_cpus} if is_local else {}
    try:
        if address and ":" in address:
            # Ray itself would try for minutes, and end the process.
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10.0).close()
        with warnings.catch_warnings():
            # Of what Ray always does: it starts programs from one that has threads.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address=address or LOCAL, log_to_driver=False, logging_level="error", **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or name no address "
            "to start one on this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, kind: str, num_devices: int) -> None:
    """Refuses a batch that no machine of the cluster could ever take; Ray would let it wait."""
    most = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < num_devices:
        raise ValueError(
            f"A batch is spread over num_devices = {num_devices}, but no machine of the cluster has more than "
            f"{most:g} {kind}s: plan the sweep with a layout of fewer devices (`--devices`)."
        )


def _environment(num_devices: int) -> dict[str, str]:
    """Environment variables of the workers: their jax is set up as this process's is."""
    values = {name: jax.config.values.get(name) for name in _SETTINGS}
    values["jax_num_cpu_devices"] = num_devices
    return {name.upper(): str(value) for name, value in values.items() if value is not None}


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "A sweep on a cluster needs Ray, which is not installed: pip install 'jaxrl[ray]' on every machine."
        ) from error
