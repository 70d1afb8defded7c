"""Which values each swept name takes; `jaxrl.sweeps.settings` lists what follows from it.

A name is a leaf of the hyperparameters by dotted path (`learning_rate`, `objective.clip`, `env.gravity`) or a field of
the config (`config.num_envs`). A grid is a dimension of the result under its own name; zipped names share one dimension
called `learning_rate+gamma`, each name a coordinate along it; everything drawn shares the dimension `sample`; a table's
rows are the dimension `setting`. Grids and samples are multiplied: every grid point gets the same samples. The
arithmetic is decimal and the draws use raw bits, so equal arguments give equal settings on every machine.
"""

import dataclasses
import decimal
import enum
import functools
import graphlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from jaxrl.names import hint
from jaxrl.sweeps.conditions import NAME, Condition, as_text

MAX_CELLS = 1_000_000
_RESERVED = ("algorithm", "env", "seed", "step", "sample", "setting")
_DECIMAL = decimal.Context(prec=40)


class Cell(enum.Enum):
    """What a cell of a table holds instead of a value."""

    DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Listed values, at least one, no two equal.

    Attributes:
      values: Python values; for zipped names rows, one value a name.
      scale: "linear" or "log" if the values are evenly spaced, for descriptions.
    """

    values: tuple[Any, ...]
    scale: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _distinct(self.values, "a grid"))


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Values to draw from.

    Attributes:
      kind: "uniform", "log" (uniform in the logarithm), "integers" (both ends included) or "choice".
      low: lower end of a range.
      high: upper end of a range.
      values: what "choice" draws from, with equal probability.
    """

    kind: Literal["uniform", "log", "integers", "choice"]
    low: Any = None
    high: Any = None
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "choice":
            object.__setattr__(self, "values", _distinct(self.values, "a choice"))
        else:
            low, high = _range(self.kind, self.low, self.high)
            object.__setattr__(self, "low", low)
            object.__setattr__(self, "high", high)

    def quantile(self, u: float) -> Any:
        """The value below which the share u of the draws lies; 0 <= u < 1."""
        if not 0 <= u < 1:
            raise ValueError(f"u must be at least 0 and below 1; got {u}.")
        if self.kind == "choice":
            return self.values[int(Fraction(u) * len(self.values))]
        if self.kind == "integers":
            return self.low + int(Fraction(u) * (self.high - self.low + 1))
        return _between(self.low, self.high, Fraction(u), self.kind == "log")


def grid(*values: Any) -> Grid:
    """Listed values.

    >>> grid(0.9, 0.95).values
    (0.9, 0.95)
    """
    return Grid(values)


def linear(low: float, high: float, num: int) -> Grid:
    """`num` >= 2 evenly spaced values with both ends; integers if both ends are and every value is whole.

    >>> linear(0.0, 0.3, 4).values
    (0.0, 0.1, 0.2, 0.3)
    """
    return _ladder("linear", low, high, num)


def log(low: float, high: float, num: int | None = None) -> Grid | Distribution:
    """`num` >= 2 geometrically spaced values with both ends; without `num` the log-uniform distribution.

    >>> log(1e-4, 1e-2, 3).values
    (0.0001, 0.001, 0.01)
    >>> log(1e-4, 1e-2).quantile(0.5)
    0.001
    """
    return Distribution("log", low, high) if num is None else _ladder("log", low, high, num)


def uniform(low: float, high: float) -> Distribution:
    """Uniform between two numbers.

    >>> uniform(0.1, 0.3).quantile(0.5)
    0.2
    """
    return Distribution("uniform", low, high)


def integers(low: int, high: int) -> Distribution:
    """Integers with equal probability, both ends included.

    >>> [integers(1, 3).quantile(u) for u in (0.0, 0.4, 0.99)]
    [1, 2, 3]
    """
    return Distribution("integers", low, high)


def choice(*values: Any) -> Distribution:
    """One of the values with equal probability.

    >>> choice("linear", "constant").quantile(0.7)
    'constant'
    """
    return Distribution("choice", values=values)


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of listed rows: of one name, of zipped names, or of a table.

    Attributes:
      dim: name of the dimension.
      names: swept names.
      rows: one value a name; `Cell.DEFAULT` where the default stays.
      scale: as in `Grid`.
    """

    dim: str
    names: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    scale: str = ""


@dataclasses.dataclass(frozen=True)
class Space:
    """What is swept; made by `space` or `texts.from_table`.

    Attributes:
      axes: listed values.
      sampled: drawn names and their distributions.
      num_samples: draws, if anything is drawn.
      method: "sobol" or "random".
      seed: of the draws.
      where: settings for which this is false are left out.
      conditions: pairs of a name and the rule under which it is swept.
    """

    axes: tuple[Axis, ...] = ()
    sampled: tuple[tuple[str, Distribution], ...] = ()
    num_samples: int = 0
    method: Literal["sobol", "random"] = "sobol"
    seed: int = 0
    where: str | None = None
    conditions: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_space(self)

    @property
    def names(self) -> tuple[str, ...]:
        """All swept names: those of the grids, then those that are drawn."""
        return (*(name for axis in self.axes for name in axis.names), *(name for name, _ in self.sampled))


def space(
    over: Mapping[Any, Grid | Distribution | Sequence[Any]],
    *,
    num_samples: int = 0,
    method: Literal["sobol", "random"] = "sobol",
    seed: int = 0,
    where: str | None = None,
    conditions: Mapping[str, str] | None = None,
) -> Space:
    """Describes what is swept.

    Args:
      over: by name a grid, a distribution, or a sequence of values; by tuple of names (zipped) a sequence of rows. With
        nothing in it the space is one setting: the defaults.
      num_samples: how often everything with a distribution is drawn; 0 if nothing has one.
      method: "sobol", points that fill the space evenly (Sobol 1967, shifted modulo 1 by the seed), or "random". With
        either the first draws stay when `num_samples` grows.
      seed: of the draws.
      where: a `Condition`; settings for which it is false are left out.
      conditions: by swept name a `Condition` under which it is swept; elsewhere it keeps its default.

    Raises:
      ValueError: an axis is empty or repeats a value, a name comes twice or is reserved, `num_samples` and the
        distributions do not agree, a condition is no condition.

    Example:
      >>> space({"gamma": [0.9, 0.99], "learning_rate": log(1e-4, 1e-2)}, num_samples=8).names
      ('gamma', 'learning_rate')
    """
    check_names([name for key in over for name in ((key or [key]) if isinstance(key, tuple) else [key])])
    axes = tuple(_axis(name, values) for name, values in over.items() if not isinstance(values, Distribution))
    sampled = tuple((name, values) for name, values in over.items() if isinstance(values, Distribution))
    if zipped := [name for name, _ in sampled if not isinstance(name, str)]:
        raise ValueError(f"{','.join(zipped[0])} are zipped and take listed rows, not a distribution: name them apart.")
    return Space(axes, sampled, num_samples, method, seed, where, tuple((conditions or {}).items()))


def plain_value(value: Any) -> Any:
    """NumPy's and JAX's numbers, arrays and lists as Python values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return tuple(map(plain_value, value))
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("A value must not be NaN.")
    if value is None or isinstance(value, (bool, int, float, str, Cell)):
        return value
    raise ValueError(f"A value must be a number, a text, true, false, none or a tuple of these; got {value!r}.")


def _distinct(values: Iterable[Any], what: str) -> tuple[Any, ...]:
    values = tuple(map(plain_value, values))
    if not values:
        raise ValueError(f"{what} needs at least one value.".capitalize())
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(
            f"The values of {what} must differ; {as_text(twice[0])} comes twice. A value that is a tuple needs "
            "parentheses, as in (64,64),(256,256)."
        )
    return values


def _range(kind: str, low: Any, high: Any) -> tuple[Any, Any]:
    low, high = plain_value(low), plain_value(high)
    call = f"{kind}({low}, {high})"
    whole = kind == "integers"
    if any(isinstance(end, bool) or not isinstance(end, int if whole else (int, float)) for end in (low, high)):
        raise ValueError(f"The ends of {call} must be {'integers' if whole else 'numbers'}.")
    if not all(abs(end) <= sys.float_info.max for end in (low, high)):
        raise ValueError(f"The ends of {call} must be finite.")
    if low >= high:
        raise ValueError(f"{call} must go from low to high: the first end must be smaller. For one value list it.")
    if kind == "log" and low <= 0:
        raise ValueError(
            f"{call} must lie above zero, where logarithms are: raise the lower end or use linear/uniform."
        )
    return low, high


def _ladder(kind: str, low: Any, high: Any, num: int) -> Grid:
    low, high = _range(kind, low, high)
    if isinstance(num, bool) or not isinstance(num, int) or not 2 <= num <= MAX_CELLS:
        raise ValueError(
            f"num of {kind}({low}, {high}, num) must be an integer from 2 (both ends are included) to "
            f"{MAX_CELLS:,}; got {num!r}. For one value list it."
        )
    values = (low, *(_between(low, high, Fraction(i, num - 1), kind == "log") for i in range(1, num - 1)), high)
    whole = isinstance(low, int) and isinstance(high, int) and all(value == int(value) for value in values)
    return Grid(tuple(map(int if whole else float, values)), kind)


@functools.cache
def _ends(low: Any, high: Any, in_log: bool) -> tuple[decimal.Decimal, decimal.Decimal]:
    ends = decimal.Decimal(repr(low)), decimal.Decimal(repr(high))
    return (ends[0].ln(_DECIMAL), ends[1].ln(_DECIMAL)) if in_log else ends


def _between(low: Any, high: Any, share: Fraction, in_log: bool) -> float:
    # Decimal logarithms are correctly rounded everywhere, and log(1e-4, 1e-2, 3) has 0.001 and not its neighbor.
    start, end = _ends(low, high, in_log)
    with decimal.localcontext(_DECIMAL):
        value = start + (end - start) * share.numerator / share.denominator
        return min(max(float(value.exp() if in_log else value), float(low)), float(high))


def _axis(key: Any, given: Any) -> Axis:
    names = (key,) if isinstance(key, str) else key
    try:
        if isinstance(given, (str, Mapping)) or not (isinstance(given, (Grid, Sequence)) or np.ndim(given)):
            raise ValueError(f"The values must be a list, a grid or a distribution; got {given!r}.")
        listed = given if isinstance(given, Grid) else Grid(tuple(given))
        if isinstance(key, str):
            return Axis(key, names, tuple((value,) for value in listed.values), listed.scale)
        for row in listed.values:
            if not isinstance(row, tuple) or len(row) != len(names):
                raise ValueError(f"Each row must have {len(names)} values, one a name; got {as_text(row)}.")
        return Axis("+".join(names), names, listed.values)
    except ValueError as error:
        raise ValueError(f"{','.join(map(str, names))}: {error}") from None


def check_names(names: Sequence[Any]) -> None:
    """Checks that names can be swept.

    Raises:
      ValueError: one is no name, is reserved, or comes twice.
    """
    for name, count in Counter(names).items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name; names are dotted, as learning_rate or config.num_envs.")
        if name in _RESERVED:
            raise ValueError(f"{name!r} cannot be swept: it is a dimension of every result ({', '.join(_RESERVED)}).")
        if count > 1:
            raise ValueError(f"{name} is given twice: a name can be in one axis only.")


def _check_space(space: Space) -> None:
    check_names(space.names)
    num, seed, drawn = space.num_samples, space.seed, [name for name, _ in space.sampled]
    for label, number in (("num_samples", num), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{label} must be an integer of at least 0; got {number!r}.")
    if space.method not in ("sobol", "random"):
        raise ValueError(f"method must be 'sobol' or 'random'; got {space.method!r}.")
    if drawn and not num:
        raise ValueError(f"{', '.join(drawn)} has a distribution: say how many samples, for instance num_samples=32.")
    if num and not drawn:
        raise ValueError(
            f"num_samples = {num}, but every axis is listed, so nothing is drawn: give a name a distribution such as "
            "uniform(low, high), or leave num_samples out."
        )
    if space.where is not None:
        Condition(space.where)
    for name, _ in space.conditions:
        if name not in space.names:
            raise ValueError(f"{name} has a condition but is not swept. {hint(name, space.names)}")
    ordered_conditions(space)


def ordered_conditions(space: Space) -> dict[str, Condition]:
    """Conditions such that each comes after those of the names that it reads."""
    rules = {name: Condition(text) for name, text in space.conditions}
    graph = {name: [other for other in rule.names if other in rules] for name, rule in rules.items()}
    try:
        return {name: rules[name] for name in graphlib.TopologicalSorter(graph).static_order()}
    except graphlib.CycleError as error:
        raise ValueError(
            f"The conditions of {', '.join(sorted(set(error.args[1])))} depend on themselves: whether a name is swept "
            "cannot follow from its own value. Use `where` to leave settings out."
        ) from None
