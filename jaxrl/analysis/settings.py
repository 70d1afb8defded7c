"""The labelled dataset of a sweep as rows, one a setting.

Dimensions of such a dataset: `algorithm`, `env`, one for each swept axis (or `sample`, `setting`, with the swept names
as coordinates along it), `seed`, `step`. Variables: `score` (..., seed), the mean return of the final evaluation;
`return` (..., seed, step), the training return; `diverged_at` (..., seed), env steps; metrics. A setting that was left
out of the sweep is NaN everywhere. A run alone is a dataset with the dimensions seed and step.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray

from jaxrl.analysis import curves

# Dimensions that say no swept name.
_FIXED = ("env", "seed", "step", "episode")
_UNNAMED = ("sample", "setting")


@dataclasses.dataclass(frozen=True)
class Factor:
    """What varies by itself: a swept name, or several that were zipped.

    Attributes:
      names: the swept names.
      dim: the dimension that it lies along.
      sampled: whether its values were drawn or listed together with those of other factors, not as a grid.
    """

    names: tuple[str, ...]
    dim: str
    sampled: bool

    @property
    def label(self) -> str:
        """The names, joined."""
        return " & ".join(self.names)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a sweep that was run; S settings, E environments, N seeds.

    Attributes:
      columns: values of each swept name, by name, S each; `algorithm` is a name where several were swept.
      factors: what varies by itself.
      dims: dimensions of the grid and their sizes.
      cells: the place of each setting in the grid, [S, dims].
      envs: names of the environments.
      seeds: labels of the seeds.
      scores: by member, [S, E, N]; NaN where unknown. A diverged member has the lowest score that any member of the
        dataset has in its environment.
      diverged: whether a member diverged, [S, E, N].
      ran: whether a member was run at all, [S, E, N].
      score_name: what the score is, in words.
      algorithm: the one algorithm, or "" where several were swept or none is named.
    """

    columns: dict[str, list[Any]]
    factors: tuple[Factor, ...]
    dims: dict[str, int]
    cells: np.ndarray
    envs: tuple[str, ...]
    seeds: tuple[Any, ...]
    scores: np.ndarray
    diverged: np.ndarray
    ran: np.ndarray
    score_name: str
    algorithm: str

    @property
    def names(self) -> tuple[str, ...]:
        """The swept names."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return len(self.cells)

    def values(self, row: int) -> dict[str, Any]:
        """The swept values of one setting, by name."""
        return {name: column[row] for name, column in self.columns.items()}

    def label(self, row: int, without: tuple[str, ...] = ()) -> str:
        """One setting in words, some names left out."""
        parts = (f"{name} = {text(value)}" for name, value in self.values(row).items() if name not in without)
        return ", ".join(parts) or "the one setting"

    def along(self, factor: Factor) -> list[Any]:
        """Each setting's value of a factor; of zipped names, their values in words."""
        columns = [self.columns[name] for name in factor.names]
        return columns[0] if len(columns) == 1 else [", ".join(map(text, row)) for row in zip(*columns, strict=True)]

    def take(self, rows: Sequence[int]) -> "Settings":
        """Some of the settings; diverged members keep the lowest score of all."""
        parts = {name: getattr(self, name)[list(rows)] for name in ("cells", "scores", "diverged", "ran")}
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, **parts)

    def is_grid(self) -> bool:
        """Whether the settings are all cells of a grid, each with a known score in each environment."""
        whole = len(self) == math.prod(self.dims.values()) and not any(factor.sampled for factor in self.factors)
        return whole and not np.isnan(self.scores).all(-1).any()


def settings_of(dataset: xarray.Dataset, split_algorithms: bool | None = None) -> Settings:
    """Flattens the settings of a sweep into rows.

    The score is `score`; without it the mean of `return` over the last tenth of the steps.

    Args:
      dataset: of a sweep, or of one run.
      split_algorithms: whether `algorithm` counts as a swept name; None: where there are several.

    Raises:
      ValueError: no score can be had from the dataset, or nothing in it was run.

    Example:
      >>> score = xarray.DataArray([[1.0, 3.0], [5.0, 7.0]], {"rate": [0.1, 0.2]}, ("rate", "seed"))
      >>> settings_of(xarray.Dataset({"score": score})).label(1)
      'rate = 0.2'
    """
    score, score_name = _score(dataset)
    score = _with_dims(score.astype(np.float64), dataset)
    several = score.sizes["algorithm"] > 1 if split_algorithms is None else split_algorithms
    grid = [str(dim) for dim in score.dims if dim not in _FIXED and (dim != "algorithm" or several)]
    order = (*grid, "env", "seed") if several else ("algorithm", *grid, "env", "seed")
    if not several and score.sizes["algorithm"] > 1:
        raise ValueError(
            f"There are {score.sizes['algorithm']} algorithms: choose one with dataset.sel(algorithm=...)."
        )
    dims = {name: score.sizes[name] for name in grid}

    def flat(array: xarray.DataArray) -> np.ndarray:
        return _spread(array, score, order).reshape(-1, score.sizes["env"], score.sizes["seed"])

    scores = flat(score)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    ran, diverged = ~np.isnan(scores), np.zeros(scores.shape, bool)
    for name, array in dataset.data_vars.items():
        if "seed" in array.dims or "step" in array.dims:
            known = array.notnull().any([dim for dim in array.dims if dim not in score.dims])
            ran |= flat(known)
            diverged |= flat(known) if name == "diverged_at" else False
    scores = np.where(diverged, worst(scores)[:, None], scores)
    rows = np.flatnonzero(ran.any((1, 2)))
    if not len(rows):
        raise ValueError("The dataset holds no member that was run: every variable is NaN.")
    cells = np.stack(np.unravel_index(rows, tuple(dims.values())), -1) if dims else np.zeros((1, 0), int)
    factors, columns = _factors(score, dims, cells)
    labels = [text(value) for value in np.atleast_1d(score["algorithm"].values)]
    return Settings(
        columns=columns,
        factors=factors,
        dims=dims,
        cells=cells,
        envs=tuple(str(value) for value in score["env"].values),
        seeds=tuple(_plain(value) for value in score["seed"].values),
        scores=scores[rows],
        diverged=diverged[rows],
        ran=ran[rows],
        score_name=score_name,
        algorithm="" if several else labels[0],
    )


def returns_of(dataset: xarray.Dataset, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Training returns of the same rows as `settings`.

    From the step at which a member diverged on, it has the lowest return that any member has in its environment.

    Returns:
      Env steps of a member, [T], and returns, [S, E, N, T]; without returns T is 0.
    """
    returns = _returns(dataset)
    if returns is None:
        return np.zeros(0), np.zeros((*settings.scores.shape, 0))
    returns = _with_dims(returns.astype(np.float64), dataset)
    order = (*settings.dims, *(dim for dim in ("algorithm", "env", "seed") if dim not in settings.dims))
    rows = np.ravel_multi_index(tuple(settings.cells.T), tuple(settings.dims.values())) if settings.dims else [0]

    def flat(array: xarray.DataArray, *last: str) -> np.ndarray:
        values = _spread(array, returns, (*order, *last))
        return values.reshape(-1, *settings.scores.shape[1:], *values.shape[len(order) :])[np.asarray(rows)]

    values, steps = flat(returns, "step"), returns["step"].values.astype(np.float64)
    if "diverged_at" in dataset:
        lowest = worst(values.swapaxes(2, 3).reshape(len(values), values.shape[1], -1))
        values = np.where(steps >= flat(dataset["diverged_at"])[..., None], lowest[:, None, None], values)
    return steps, values


def worst(scores: np.ndarray) -> np.ndarray:
    """The lowest known score in each environment, [S, E, N] to [E]; NaN where nothing is known."""
    lowest = np.where(np.isnan(scores), np.inf, scores).min((0, 2))
    return np.where(np.isinf(lowest), np.nan, lowest)


def record_of(dataset: xarray.Dataset) -> dict[str, Any]:
    """The record of how a dataset was made; empty if it has none.

    Raises:
      ValueError: the attribute `record` is not the JSON of an object.
    """
    content = dataset.attrs.get("record", "{}")
    try:
        record = json.loads(content) if isinstance(content, str) else dict(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"The dataset's attribute `record` is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"The dataset's attribute `record` must be a JSON object; got {type(record).__name__}.")
    return record


def default_row(settings: Settings, record: Mapping[str, Any]) -> int | None:
    """The setting whose swept values all are the defaults.

    Defaults are looked up in the record: in `defaults` by swept name, else among `hyperparams` and `config` (whose
    names begin with `config.`). None if a default is not recorded or was not among the settings.
    """
    known = flat_record({"config": record.get("config") or {}})
    known |= flat_record(record.get("hyperparams") or {}) | flat_record(record.get("defaults") or {})
    names = [name for name in settings.names if name != "algorithm"]
    if len(names) < len(settings.names) or not names or any(name not in known for name in names):
        return None
    rows = (row for row in range(len(settings)) if all(same(settings.columns[n][row], known[n]) for n in names))
    return next(rows, None)


def flat_record(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flat_record(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def same(a: Any, b: Any) -> bool:
    """Whether two swept values are equal, numbers up to float32's precision."""
    if is_number(a) and is_number(b):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0.0)) or a == b
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(itertools.starmap(same, zip(a, b, strict=True)))
    return text(a) == text(b)


def is_number(value: Any) -> bool:
    """Whether a value is a number and not a truth value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def text(value: Any) -> str:
    """A swept value as people write it: four significant digits."""
    value = _plain(value)
    if isinstance(value, list):
        value = tuple(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0 else value


def _score(dataset: xarray.Dataset) -> tuple[xarray.DataArray, str]:
    if "score" in dataset:
        return dataset["score"], "mean return of the final evaluation"
    returns = _returns(dataset)
    if returns is None:
        raise ValueError(
            "The dataset must have `score`, `return`, or `episode/return_sum` with `episode/count`; "
            f"it has {sorted(map(str, dataset.data_vars))}."
        )
    last = max(1, returns.sizes["step"] // 10)
    return returns.isel(step=slice(-last, None)).mean("step"), "mean training return over the last tenth of the steps"


def _returns(dataset: xarray.Dataset) -> xarray.DataArray | None:
    if "return" in dataset:
        return dataset["return"]
    if "episode/return_sum" in dataset and "episode/count" in dataset and dataset.sizes["step"]:
        return curves.learning_curve(dataset)
    return None


def _with_dims(array: xarray.DataArray, dataset: xarray.Dataset) -> xarray.DataArray:
    """Adds the dimensions that a single run, or one chosen with `sel`, does not have."""
    record = record_of(dataset)
    for dim, entry in (("seed", "seed"), ("env", "env"), ("algorithm", "algorithm")):
        if dim not in array.dims:
            label = dataset[dim].item() if dim in dataset.coords and not dataset[dim].ndim else record.get(entry, "")
            array = array.drop_vars(dim, errors="ignore").expand_dims({dim: [label if dim == "seed" else text(label)]})
        elif dim not in array.coords:
            array = array.assign_coords({dim: np.arange(array.sizes[dim])})
    return array


def _spread(array: xarray.DataArray, like: xarray.DataArray, order: tuple[str, ...]) -> np.ndarray:
    """An array's values along the dimensions of `order`, repeated along those that it does not have."""
    # By position: labels say nothing new, and outer joins on them would be slow.
    sizes = {dim: like.sizes[dim] for dim in order if dim not in array.dims}
    return array.variable.set_dims({**sizes, **dict(array.sizes)}).transpose(*order).values


def _factors(
    score: xarray.DataArray, dims: dict[str, int], cells: np.ndarray
) -> tuple[tuple[Factor, ...], dict[str, list[Any]]]:
    factors: list[Factor] = []
    columns: dict[str, list[Any]] = {}
    for index, dim in enumerate(dims):
        along = {str(name): coord.values for name, coord in score.coords.items() if coord.dims == (dim,)}
        others = [name for name in along if name != dim]
        if dim in _UNNAMED and others:
            along.pop(dim, None)
            factors += [Factor((name,), dim, sampled=True) for name in others]
        else:
            # The numbers of a zipped axis that is named after its parts are no values.
            if any(name in dim for name in others):
                along.pop(dim, None)
            along = along or {dim: np.arange(dims[dim])}
            factors.append(Factor(tuple(along), dim, sampled=dim in _UNNAMED))
        for name, values in along.items():
            columns[name] = [_plain(values[cell]) for cell in cells[:, index]]
    return tuple(factors), columns
