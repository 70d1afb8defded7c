"""Where else the numbers of a run go: JSON lines, TensorBoard, Weights & Biases; one stream a seed."""

import importlib
import json
import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.checkpoint import write_file
from jaxrl.runs import plain


class Sink(NamedTuple):
    """A receiver of one line of numbers a segment and seed.

    Attributes:
      start: `(step, num_seeds)`: called once before the first line; whatever was written after `step` is void, since
        the run is resumed there.
      write: `(step, seed, scalars)`.
      close: called once at the end, also after an error.
    """

    start: Callable[[float, int], None]
    write: Callable[[float, int, dict[str, float]], None]
    close: Callable[[], None]


def jsonl(path: Path | str) -> Sink:
    """One JSON object a line: step, seed, then the numbers; what is not finite is null."""
    path = Path(path)
    files: list[Any] = []

    def start(step: float, num_seeds: int) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_file(path, b"".join(kept))
        files.append(path.open("ab"))

    def write(step: float, seed: int, scalars: dict[str, float]) -> None:
        files[0].write(json.dumps(plain({"step": step, "seed": seed, **scalars})).encode() + b"\n")
        files[0].flush()

    def close() -> None:
        for file in files:
            os.fsync(file.fileno())
            file.close()
        files.clear()

    return Sink(start, write, close)


def tensorboard(path: Path | str) -> Sink:
    """TensorBoard event files, one folder `seed_<k>` a seed; what is not finite is left out.

    Raises:
      ValueError: tensorboardX is not installed.
    """
    tensorboardx = _package("tensorboardX", "tensorboard")
    writers: list[Any] = []

    def start(step: float, num_seeds: int) -> None:
        # Purging tells TensorBoard to drop what an earlier process wrote from this step on.
        purge = int(step) + 1 if step else None
        for seed in range(num_seeds):
            folder = str(Path(path) / f"seed_{seed}")
            # Event files are named by the second, which a resumed run may share with the one before.
            suffix = f".{uuid.uuid4().hex[:8]}"
            writers.append(tensorboardx.SummaryWriter(folder, purge_step=purge, filename_suffix=suffix))

    def write(step: float, seed: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):
                writers[seed].add_scalar(name, value, int(step))

    def close() -> None:
        for writer in writers:
            writer.close()
        writers.clear()

    return Sink(start, write, close)


def wandb(project: str, path: Path | str, mode: str = "offline", config: dict[str, Any] | None = None) -> Sink:
    """Weights & Biases, one run a seed, grouped by the name of the run's folder.

    Args:
      project: the project's name.
      path: the run's folder; its name is the group, and offline files go there.
      mode: `offline` (sent later with `wandb sync`), `online` or `disabled`.
      config: shown with each run.

    Raises:
      ValueError: wandb is not installed, or the mode is unknown.
    """
    package = _package("wandb", "wandb")
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"The mode of the wandb sink must be offline, online or disabled; got {mode!r}.")
    group = Path(path).resolve().name
    runs: list[Any] = []

    def start(step: float, num_seeds: int) -> None:
        for seed in range(num_seeds):
            runs.append(
                package.init(
                    project=project,
                    group=group,
                    name=f"{group}-seed_{seed}",
                    id=f"{group}-seed_{seed}",
                    resume="allow" if mode == "online" else None,
                    dir=str(path),
                    mode=mode,
                    config={**(config or {}), "seed": seed},
                    reinit="create_new",
                )
            )

    def write(step: float, seed: int, scalars: dict[str, float]) -> None:
        runs[seed].log(scalars, step=int(step))

    def close() -> None:
        for run in runs:
            run.finish()
        runs.clear()

    return Sink(start, write, close)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'The {extra} sink needs the package {name}, which is not installed: pip install "jaxrl[{extra}]"'
        ) from error


def _step_of(line: bytes) -> float:
    """The step of a whole line; infinite for one that a kill cut short."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
