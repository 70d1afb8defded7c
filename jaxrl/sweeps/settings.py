"""The settings of a space: every point of it, those that are equal or left out merged, and the draws."""

import dataclasses
import hashlib
import itertools
import math
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

from jaxrl.names import hint
from jaxrl.sweeps.conditions import Condition
from jaxrl.sweeps.spaces import MAX_CELLS, Axis, Cell, Space, ordered_conditions, plain_value


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a space.

    Attributes:
      rows: each setting that has to be computed, once: value by name, without names that keep their default.
      cells: index into `rows` for each point of the space, -1 where it is left out; int32, one axis a dimension.
      dims: names of the axes of `cells`.
      coords: by swept name its dimension and its values along it (None for an unknown default).
      names: all swept names.
    """

    rows: tuple[dict[str, Any], ...]
    cells: np.ndarray
    dims: tuple[str, ...]
    coords: dict[str, tuple[str, list[Any]]]
    names: tuple[str, ...]


def num_cells(space: Space) -> int:
    """Points of the space: the product of its dimensions, left-out ones included."""
    return math.prod(size for _, size in _sizes(space))


def expand(space: Space, defaults: Mapping[str, Any] | None = None) -> Settings:
    """Lists the settings of a space.

    Args:
      space: what is swept.
      defaults: values by name of what is not swept, or not everywhere; conditions may read them, and a setting that
        says a default equals one that leaves it.

    Raises:
      ValueError: there are more than `MAX_CELLS` points, a condition reads an unknown name, or `where` leaves nothing.

    Example:
      >>> from jaxrl.sweeps.spaces import space
      >>> expand(space({"a": [1, 2], "b": [3, 4]}, where="a + b < 6")).cells.tolist()
      [[0, 1], [2, -1]]
    """
    _check_size(space)
    defaults = {} if defaults is None else defaults
    where = [Condition(space.where)] if space.where else []
    conditions = ordered_conditions(space)
    rules = [*where, *conditions.values()]
    _check_known(space, defaults, rules)
    given = {name: _plain(defaults[name]) for name in _names(space, rules) if name in defaults}
    drawn = [Axis("sample", tuple(dict(space.sampled)), _draw(space))] if space.sampled else []
    axes = (*space.axes, *drawn)
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    cells: list[int] = []
    for combination in itertools.product(*(axis.rows for axis in axes)):
        values = zip(space.names, itertools.chain.from_iterable(combination), strict=True)
        row = {name: value for name, value in values if value is not Cell.DEFAULT}
        for name, condition in conditions.items():
            if name in row and not condition.holds(ChainMap(row, given)):
                del row[name]
        if all(rule.holds(ChainMap(row, given)) for rule in where):
            # repr tells 1 from 1.0 and from true.
            key = repr([row.get(name, given.get(name, Cell.DEFAULT)) for name in space.names])
            cells.append(found.setdefault(key, (len(found), row))[0])
        else:
            cells.append(-1)
    if not found:
        raise ValueError(f"No setting of the space fulfills where = {space.where!r}: loosen it or widen the axes.")
    coords = {
        name: (axis.dim, [given.get(name) if value is Cell.DEFAULT else value for value in column])
        for axis in axes
        for name, column in zip(axis.names, zip(*axis.rows, strict=True), strict=True)
    }
    array = np.array(cells, np.int32).reshape([len(axis.rows) for axis in axes])
    rows = tuple(row for _, row in found.values())
    return Settings(rows, array, tuple(axis.dim for axis in axes), coords, space.names)


def _plain(default: Any) -> Any:
    """A default for conditions; what is no plain value stays as it is."""
    try:
        return plain_value(default)
    except ValueError:
        return default


def _check_known(space: Space, defaults: Mapping[str, Any], rules: Iterable[Condition]) -> None:
    columns = ((axis.names[i], column) for axis in space.axes for i, column in enumerate(zip(*axis.rows, strict=True)))
    partly = {name for name, column in columns if Cell.DEFAULT in column} | dict(space.conditions).keys()
    for name, rule in ((name, source.text) for source in rules for name in source.names if name not in defaults):
        if name not in space.names:
            near = hint(name, [*space.names, *defaults])
            raise ValueError(f"{name} in {rule!r} is neither swept nor a known default (a text needs quotes). {near}")
        if name in partly:
            raise ValueError(f"{name} in {rule!r} is not swept everywhere, so its default must be given.")


def _names(space: Space, rules: Iterable[Condition]) -> set[str]:
    return {*space.names, *(name for rule in rules for name in rule.names)}


def _sizes(space: Space) -> list[tuple[str, int]]:
    sizes = [(axis.dim, len(axis.rows)) for axis in space.axes]
    return sizes + ([("sample", space.num_samples)] if space.sampled else [])


def _check_size(space: Space) -> None:
    if (total := num_cells(space)) > MAX_CELLS:
        sizes = _sizes(space)
        largest = max(sizes, key=lambda item: item[1])[0]
        factors = " x ".join(f"{dim} {size:,}" for dim, size in sizes)
        remedy = "num_samples" if largest == "sample" else f"the number of values of {largest}"
        raise ValueError(
            f"The space has {total:,} settings ({factors}), more than {MAX_CELLS:,}: lower {remedy}, or draw samples "
            "in place of a grid."
        )


def _draw(space: Space) -> tuple[tuple[Any, ...], ...]:
    num, sampled = space.num_samples, space.sampled
    if space.method == "random":
        shares = [_uniforms(space.seed, name, num) for name, _ in sampled]
    else:
        # A power of two is what SciPy draws without a warning; the first points are the same.
        points = qmc.Sobol(len(sampled), scramble=False).random_base2((num - 1).bit_length())[:num].T
        shares = [
            (part + _uniforms(space.seed, name, 1)) % 1.0 for part, (name, _) in zip(points, sampled, strict=True)
        ]
    columns = [map(law.quantile, part.tolist()) for part, (_, law) in zip(shares, sampled, strict=True)]
    return tuple(zip(*columns, strict=True))


def _uniforms(seed: int, name: str, num: int) -> np.ndarray:
    """Numbers in [0, 1) of a stream of the name's own, [num]."""
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), "<u4").tolist()
    # NumPy promises that raw bits stay the same in all versions, not that its distributions do.
    raw = np.random.PCG64(np.random.SeedSequence([seed, *words])).random_raw(num)
    return (raw >> np.uint64(11)) * 2.0**-53
