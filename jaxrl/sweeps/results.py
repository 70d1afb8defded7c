"""A sweep as one labelled array."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from jaxrl import runs
from jaxrl.checkpoint import StorageError, write_file
from jaxrl.runs import Run
from jaxrl.sweeps.folders import Sweep
from jaxrl.sweeps.plan import Batch

_FILE = "results.nc"


def dataset(sweep: Sweep) -> xarray.Dataset:
    """All that a sweep has computed so far; NaN where it has not, and where a setting was left out.

    Returns:
      Dimensions (algorithm, env, each swept axis, seed, step); names that were drawn are coordinates along `sample`,
      those of a table along `setting`. Variables: every metric and `return`, the mean return of the episodes that ended
      in that part of training; `score` (..., seed), the mean return of the evaluation at the end; `diverged_at`
      (..., seed), transitions after which a member was not finite, NaN if it never was. `step` is the share of the
      training times its length: a group's own rows are at most one iteration from it.
    """
    plan = sweep.plan
    per_pair: dict[tuple[str, str], dict[str, np.ndarray]] = {pair: {} for pair in plan.pairs}
    for batch in sweep.batches():
        group = plan.groups[batch.group]
        pair = (group.algorithm, group.env)
        for name, values in _of_batch(sweep, batch).items():
            shape = (len(plan.pairs[pair].rows), plan.num_seeds, *values.shape[1:])
            rows = per_pair[pair].setdefault(name, np.full(shape, np.nan, np.float32))
            lanes = np.arange(batch.start, batch.stop)
            rows[np.asarray(group.settings)[lanes // group.num_seeds], lanes % group.num_seeds] = values
    names = sorted({name for found in per_pair.values() for name in found})
    first = next(iter(plan.pairs.values()))
    algorithms, envs = (list(dict.fromkeys(pair[k] for pair in plan.pairs)) for k in (0, 1))
    dims = ("algorithm", "env", *first.dims, "seed")
    variables = {}
    for name in names:
        tail = ("step",) if name not in ("score", "diverged_at") else ()
        size = (plan.num_points,) if tail else ()
        stacked = np.stack(
            [
                _in_cells(per_pair[pair].get(name), plan.pairs[pair].cells, (plan.num_seeds, *size))
                for pair in plan.pairs
            ]
        )
        shape = (len(algorithms), len(envs), *first.cells.shape, plan.num_seeds, *size)
        variables[name] = ((*dims, *tail), stacked.reshape(shape))
    points = np.arange(1, plan.num_points + 1) / plan.num_points * plan.total_steps
    coords: dict[str, Any] = {
        "algorithm": algorithms,
        "env": envs,
        **{name: (dim, labels(values)) for name, (dim, values) in first.coords.items()},
        "seed": np.arange(plan.num_seeds, dtype=np.int32),
        "step": points,
    }
    return xarray.Dataset(variables, coords, {"record": json.dumps(sweep.record)})


def write_results(sweep: Sweep) -> xarray.Dataset:
    """Writes results.nc and gives what it holds."""
    data = dataset(sweep)
    write_file(sweep.path / _FILE, runs.to_netcdf(data))
    return data


def read_results(path: Path | str) -> xarray.Dataset:
    """Reads the results of a sweep that was finished.

    Args:
      path: its folder.

    Raises:
      ValueError: there are no results.
      StorageError: they are damaged.
    """
    file = Path(path) / _FILE
    if not file.exists():
        raise ValueError(f"{path} has no {_FILE}: the sweep is not finished; `jaxrl resume {path}` continues it.")
    try:
        return runs.from_netcdf(file.read_bytes())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{file} is damaged: {error}. Remove it; `jaxrl resume {path}` writes it again.") from error


def read_any(path: Path | str, num_points: int = 50) -> xarray.Dataset:
    """The results of a sweep's or a run's folder, in the form of `dataset`; a run has only (seed, step).

    Args:
      path: the folder.
      num_points: of a run's curves.

    Raises:
      ValueError: it is neither, or has no results yet.
      StorageError: something is damaged.
    """
    if (Path(path) / "sweep.json").exists():
        return read_results(path)
    run = Run.open(path)
    metrics, evaluations, ended = run.metrics(), run.evaluations(), run.results()
    if not metrics:
        raise ValueError(f"{path} has no metrics yet: train it for at least one segment.")
    num_points = min(num_points, metrics.sizes["step"])
    last = float(metrics["step"].values[-1])
    variables: dict[str, Any] = {name: (("seed", "step"), rows) for name, rows in _on_points(metrics, num_points)}
    if evaluations:
        variables["score"] = (("seed",), _last_score(evaluations))
    elif "return" in variables:
        variables["score"] = (("seed",), variables["return"][1][:, -1])
    if ended:
        variables["diverged_at"] = (("seed",), _diverged(ended["seeds"]))
    coords = {
        "algorithm": str(run.record.get("algorithm", "unknown")),
        "env": str(run.record.get("env", "unknown")),
        "seed": np.arange(metrics.sizes["seed"], dtype=np.int32),
        "step": np.arange(1, num_points + 1) / num_points * last,
    }
    return xarray.Dataset(variables, coords, {"record": json.dumps(run.record)})


def _of_batch(sweep: Sweep, batch: Batch) -> dict[str, np.ndarray]:
    """Variables of the batch's members, padding left out: [members, points] or [members]."""
    folder, num = sweep.folder(batch), batch.stop - batch.start
    if not (folder / "run.json").exists():
        return {}
    run = Run.open(folder)
    found: dict[str, np.ndarray] = {}
    metrics = run.metrics()
    if metrics and sweep.is_whole(batch):
        found |= dict(_on_points(metrics.isel(seed=slice(0, num)), sweep.plan.num_points))
    results = run.results()
    if results:
        found["diverged_at"] = _diverged(results["seeds"][:num])
    evaluations = run.evaluations()
    if evaluations:
        found["score"] = _last_score(evaluations)[:num]
    return found


def _diverged(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([np.nan if row["diverged"] is None else row["diverged"] for row in rows], np.float32)


def _last_score(evaluations: xarray.Dataset) -> np.ndarray:
    """Mean return of the finished episodes of the last evaluation, [members]."""
    last = evaluations.isel(step=-1)
    return last["returns"].where(last["finished"].astype(bool)).mean("episode").values.astype(np.float32)


def _on_points(metrics: xarray.Dataset, num_points: int) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of equal shares of the training: sums are summed, means averaged by the transitions they stand for."""
    rows = metrics.sizes["step"]
    edges = np.linspace(0, rows, num_points + 1).astype(int)[:-1]
    weight = np.diff(metrics["step"].values, prepend=0.0)[:, None]
    arrays = {str(name): metrics[name].transpose("step", "seed").values.astype(np.float64) for name in metrics}
    sums: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        if runs.is_summed(name):
            sums[name] = np.add.reduceat(values, edges, axis=0)
        else:
            sums[name] = np.add.reduceat(values * weight, edges, axis=0) / np.add.reduceat(weight, edges, axis=0)
        yield name, sums[name].T.astype(np.float32)
    if {"episode/return_sum", "episode/count"} <= set(sums):
        count = sums["episode/count"]
        returns = np.divide(sums["episode/return_sum"], count, out=np.full(count.shape, np.nan), where=count > 0)
        yield "return", returns.T.astype(np.float32)


def _in_cells(rows: np.ndarray | None, cells: np.ndarray, tail: tuple[int, ...]) -> np.ndarray:
    if rows is None:
        return np.full((*cells.shape, *tail), np.nan, np.float32)
    missing = np.full((1, *rows.shape[1:]), np.nan, np.float32)
    return np.concatenate([rows, missing])[cells]


def labels(values: list[Any]) -> np.ndarray:
    """Coordinates as netCDF holds them: numbers as they are, everything else as text."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        array = np.asarray(values)
        small = array.dtype.kind == "i" and np.abs(array).max() < 2**31
        return array.astype(np.int32) if small else array.astype(np.float64)
    return np.asarray([_text(value) for value in values])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "default" if value is None else str(value)
