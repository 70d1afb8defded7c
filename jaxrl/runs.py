"""The folder of a run: what was run, metrics and evaluations as labelled arrays, checkpoints, results.

    run.json                what was run, with which versions, where; later changes are appended to "changes"
    metrics/<first>.nc      one netCDF file a segment, named by its first iteration; dimensions step, seed
    evaluations/<iter>.nc   returns, lengths, finished; dimensions seed, episode
    checkpoints/<iter>/     see `jaxrl.checkpoint`
    log.jsonl               one line a segment and seed
    results.json            written at the end

Every file is written as a whole or not at all, so the folder can be read while training goes on.
"""

import base64
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

import jaxrl
from jaxrl.checkpoint import StorageError, write_file
from jaxrl.display import html_table
from jaxrl.ops import trees
from jaxrl.types import Hyperparams

SCHEMA = 1
_PACKAGES = ("jaxrl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "gymnax", "brax", "mujoco", "mujoco-mjx")
# Leaves with more elements than this (datasets, weights) are recorded by their digest.
_MAX_RECORDED = 4096


def check_folder(path: Path) -> None:
    """Refuses the name of a file for a folder that is to be made.

    Raises:
      ValueError: there is a file of this name, or of that of a folder above it.
    """
    for part in (path, *path.parents):
        if (part.exists() or part.is_symlink()) and not part.is_dir():
            raise ValueError(f"{path} cannot be made, since {part} is a file or leads nowhere: name another one.")


def check_new(path: Path) -> None:
    """Refuses a folder for a new run.

    Raises:
      ValueError: it holds a run already, or it or one above it is a file.
    """
    check_folder(path)
    if (path / "run.json").exists():
        raise ValueError(f"{path} already holds a run: name another folder, or continue it with `jaxrl resume {path}`.")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
      path: the folder.
      record: what run.json holds.
    """

    path: Path
    record: dict[str, Any]

    @classmethod
    def create(cls, path: Path | str, record: dict[str, Any]) -> "Run":
        """Makes the folder of a new run.

        Args:
          path: a folder that is not there yet or holds no run.
          record: anything that JSON can hold; `describe` makes the usual one. Schema and time are added.

        Raises:
          ValueError: the folder already holds a run, or is a file; nothing is touched.
          StorageError: it cannot be written.
        """
        path = Path(path)
        check_new(path)
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run = cls(path, {"schema": SCHEMA, "created": created, **record, "changes": []})
        run._write_record()
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Opens the folder of a run.

        Raises:
          ValueError: it is not the folder of a run, or a newer jaxrl made it.
          StorageError: its run.json is damaged.
        """
        path = Path(path)
        try:
            record = json.loads((path / "run.json").read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{path} is not the folder of a run: it has no run.json.") from error
        except (OSError, ValueError) as error:
            raise StorageError(f"{path / 'run.json'} is damaged: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
            raise StorageError(f"{path / 'run.json'} is damaged: it has no schema number.")
        if record["schema"] > SCHEMA:
            raise ValueError(f"{path} was made by a newer jaxrl (schema {record['schema']} > {SCHEMA}): update jaxrl.")
        return cls(path, record)

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in self._facts()[:4])
        return f"Run({str(self.path)!r}, {facts})"

    def _repr_html_(self) -> str:
        table = html_table(f"run {self.path}", self._facts())
        curves = self.path / "curves.png"
        if not curves.is_file():
            return table
        picture = base64.b64encode(curves.read_bytes()).decode()
        return f'{table}<img alt="learning curves" width="480" src="data:image/png;base64,{picture}">'

    def _facts(self) -> list[tuple[str, Any]]:
        """What there is to say in a line each, the most important first."""
        record, results = self.record, self.results()
        told = record.get("environment", {})
        facts = [(name, record[name]) for name in ("algorithm", "env") if name in record]
        if "num_seeds" in record:
            facts.append(("seeds", record["num_seeds"]))
        done = results.get("env_steps")
        wanted = record.get("total_steps")
        state = "finished" if results.get("finished") else "not finished"
        if wanted is not None:
            state += f", {wanted:,} steps each" if done is None else f", {done:,} of {wanted:,} steps each"
        facts.append(("state", state))
        returns = [seed.get("evaluation_return") for seed in results.get("seeds", ())]
        if any(value is not None for value in returns):
            facts.append(("evaluation, by seed", ", ".join("-" if x is None else f"{x:.4g}" for x in returns)))
        if "steps_per_second" in results:
            facts.append(("steps/s in training", f"{results['steps_per_second']:,.0f}"))
        facts += [(name, told[name]) for name in ("device", "git_revision") if told.get(name)]
        versions = told.get("versions", {})
        facts.append(
            ("versions", ", ".join(f"{name} {versions[name]}" for name in ("jaxrl", "jax") if name in versions))
        )
        return [*facts, ("created", record.get("created", ""))]

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def change(self, **entries: Any) -> "Run":
        """Sets entries of the record, and appends them with the time to its list of changes."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        before = {name: self.record.get(name) for name in entries}
        changes = [*self.record["changes"], {"time": time, "before": before, "after": entries}]
        run = dataclasses.replace(self, record={**self.record, **entries, "changes": changes})
        run._write_record()
        return run

    def write_segment(self, first: int, dataset: xarray.Dataset) -> None:
        """Writes the metrics of the iterations from `first`; a file of the same name is replaced."""
        write_file(self.path / "metrics" / f"{first:06d}.nc", to_netcdf(dataset))

    def write_evaluation(self, iteration: int, dataset: xarray.Dataset) -> None:
        """Writes the outcome of the evaluation after `iteration` iterations."""
        write_file(self.path / "evaluations" / f"{iteration:06d}.nc", to_netcdf(dataset))

    def metrics(self) -> xarray.Dataset:
        """Metrics of all segments so far, dimensions (step, seed); without segments an empty dataset.

        A file whose iterations an earlier-beginning one holds already is left out: it is a leftover of a shorter plan.
        """
        parts: list[xarray.Dataset] = []
        covered = 0.0
        for part in _read_all(self.path / "metrics"):
            if part.attrs["first_iteration"] >= covered:
                parts.append(part)
                covered = part.attrs["last_iteration"]
        return xarray.concat(parts, "step", combine_attrs="drop", data_vars="all") if parts else xarray.Dataset()

    def evaluations(self) -> xarray.Dataset:
        """All evaluations so far, dimensions (step, seed, episode); without any an empty dataset."""
        parts = [part.expand_dims(step=[part.attrs["env_steps"]]) for part in _read_all(self.path / "evaluations")]
        return xarray.concat(parts, "step", combine_attrs="drop", data_vars="all") if parts else xarray.Dataset()

    def results(self) -> dict[str, Any]:
        """What results.json holds; empty before the end of training, or if it cannot be read."""
        try:
            return json.loads((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return {}

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json; numbers that are not finite become null."""
        write_file(self.path / "results.json", json.dumps(plain(results), indent=1).encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, so that no second process trains in it; a process that dies lets go of it.

        Raises:
          StorageError: another process holds it.
        """
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(f"Another process is training in {self.path}: wait for it or stop it.") from error
            # What a process that was killed inside a write has left; nobody else is writing now.
            for folder in (self.path, self.path / "metrics", self.path / "evaluations"):
                for leftover in folder.glob(".*.tmp-*"):
                    leftover.unlink(missing_ok=True)
            yield

    def _write_record(self) -> None:
        write_file(self.path / "run.json", json.dumps(self.record, indent=1).encode())


def describe(**entries: Any) -> dict[str, Any]:
    """The record of a new run: the caller's entries, the versions, the machine, the source and the command.

    Args:
      **entries: algorithm, env, env_options, config, hyperparams (from `hyperparams_to_json`), seed, num_seeds,
        total_steps, iterations, segment, evaluation: whatever makes the run again.
    """
    return {**plain(entries), "environment": environment(), "command": sys.argv}


def environment() -> dict[str, Any]:
    """Versions, machine, precision and source: what a run's numbers may depend on besides its arguments."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    package = Path(jaxrl.__file__).parent
    source = hashlib.blake2b(digest_size=16)
    for file in sorted(package.rglob("*.py")):
        source.update(str(file.relative_to(package)).encode() + file.read_bytes())
    revision, modified = _git(package)
    return {
        "versions": versions,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "platform": platform.platform(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "x64": bool(jax.config.values["jax_enable_x64"]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_revision": revision,
        "git_modified": modified,
        "source_digest": source.hexdigest(),
    }


def differences(record: dict[str, Any]) -> list[str]:
    """What of versions, machine, precision and source differs from when the run was made, one line each."""
    if "environment" not in record:
        return []
    then, now = _flat(record["environment"]), _flat(environment())
    names = [name for name in {**then, **now} if name not in ("git_modified", "platform")]
    return [f"{name}: {then.get(name)} then, {now.get(name)} now" for name in names if then.get(name) != now.get(name)]


def hyperparams_to_json(hparams: Hyperparams) -> dict[str, Any]:
    """Leaves by dotted path as numbers and lists that give back every bit; great ones as shape, dtype and digest."""

    def encode(leaf: Any) -> Any:
        array = np.asarray(leaf)
        if array.size > _MAX_RECORDED:
            return {"shape": list(array.shape), "dtype": str(array.dtype), "digest": _array_digest(array)}
        return _encode(array.astype(np.float64) if array.dtype.kind not in "biuf" else array)

    return {name: encode(leaf) for name, leaf in trees.named_leaves(hparams).items()}


def hyperparams_from_json(values: dict[str, Any], template: Hyperparams) -> Hyperparams:
    """Puts recorded values into a record of the same names, each with the dtype that the template has.

    What an older jaxrl did not have yet keeps the template's value.

    Raises:
      ValueError: a name is unknown, or a great leaf of the template is not the recorded one.
    """
    surplus = set(values) - set(trees.named_leaves(template))
    if surplus:
        raise ValueError(
            f"The hyperparameters recorded differ from those of this jaxrl, which has no {sorted(surplus)}."
        )

    def decode(path: tuple[Any, ...], leaf: Any) -> Any:
        if trees.path_name(path) not in values:
            return leaf
        value = values[trees.path_name(path)]
        if isinstance(value, dict):
            if _array_digest(np.asarray(leaf)) != value["digest"]:
                raise ValueError(f"The hyperparameter {trees.path_name(path)} is not the one that was recorded.")
            return leaf
        return jnp.asarray(_decode(value), leaf.dtype)

    return jax.tree_util.tree_map_with_path(decode, template)


def segment_dataset(
    metrics: dict[str, np.ndarray], first: int, env_steps: int, rows: int | None = None
) -> xarray.Dataset:
    """Labels the metrics of one segment.

    Args:
      metrics: by name, [iterations] or [iterations, P].
      first: iterations done before the segment.
      env_steps: transitions of one iteration and member.
      rows: at most so many rows are kept, each of neighboring iterations: `..._sum` and `.../count` are summed, others
        averaged. None keeps every iteration.

    Returns:
      Variables with dimensions (step, seed); `step` is the number of transitions of a member when the row ends.
    """
    num = len(next(iter(metrics.values())))
    starts = np.unique(np.linspace(0, num, min(rows or num, num) + 1).astype(int))
    ends, starts = starts[1:], starts[:-1]

    def reduce(name: str, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values).reshape(num, -1)
        if len(starts) == num:
            return values
        sums = np.add.reduceat(values.astype(np.float64), starts, axis=0)
        is_sum = is_summed(name)
        return (sums if is_sum else sums / (ends - starts)[:, None]).astype(
            values.dtype if is_sum or values.dtype.kind == "f" else np.float32
        )

    data = {name: (("step", "seed"), reduce(name, values)) for name, values in sorted(metrics.items())}
    num_seeds = next(iter(data.values()))[1].shape[1]
    return xarray.Dataset(
        data,
        # Beyond 2^31 an int32 would overflow, and netCDF 3 has no int64.
        {"step": (first + ends).astype(np.float64) * env_steps, "seed": np.arange(num_seeds, dtype=np.int32)},
        {"first_iteration": float(first), "last_iteration": float(first + num)},
    )


def is_summed(name: str) -> bool:
    """Whether a metric aggregates by its sum (`..._sum`, `.../count`) and not by its mean."""
    return name.endswith(("_sum", "/count"))


def plain(value: Any) -> Any:
    """Turns arrays, NumPy numbers, tuples and paths into what JSON holds; numbers that are not finite into None."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _encode(array: np.ndarray) -> Any:
    if array.ndim:
        return [_encode(part) for part in array]
    value = array.item()
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _decode(value: Any) -> Any:
    return [_decode(part) for part in value] if isinstance(value, list) else float(value) if value in _WORDS else value


_WORDS = ("inf", "-inf", "nan")


def _array_digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def to_netcdf(dataset: xarray.Dataset) -> bytes:
    """The content of a netCDF 3 file, which has no slash in names, no bool, no unsigned or 64-bit integers."""

    def allowed(values: np.ndarray) -> np.ndarray:
        if values.dtype == np.bool_:
            return values.astype(np.int8)
        if values.dtype.kind in "iu" and values.dtype not in (np.int8, np.int16, np.int32):
            return values.astype(np.float64)
        return values if values.dtype in (np.float64,) or values.dtype.kind == "i" else values.astype(np.float32)

    encoded = dataset.map(lambda array: array.copy(data=allowed(array.values)), keep_attrs=True)
    encoded = encoded.rename({name: str(name).replace("/", ":") for name in dataset.data_vars})
    return bytes(encoded.to_netcdf(engine="scipy"))


def from_netcdf(content: bytes) -> xarray.Dataset:
    """What `to_netcdf` was given, with integers and booleans as it had to write them.

    Raises:
      ValueError, TypeError, KeyError: it is damaged.
    """
    data = xarray.load_dataset(content, engine="scipy")
    return data.rename({name: str(name).replace(":", "/") for name in data.data_vars})


def _read_all(folder: Path) -> Iterator[xarray.Dataset]:
    for path in sorted(folder.glob("*.nc"), key=lambda path: int(path.stem)):
        try:
            part = from_netcdf(path.read_bytes())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path} is damaged: {error}. `jaxrl resume` does not need it; remove it.") from error
        yield part


def _git(package: Path) -> tuple[str | None, bool | None]:
    """Revision and whether there are changes of the source tree that the package is in, if it is tracked by git."""

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        run("ls-files", "--error-unmatch", "__init__.py")
        return run("rev-parse", "HEAD"), bool(run("status", "--porcelain", "--untracked-files=no", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
