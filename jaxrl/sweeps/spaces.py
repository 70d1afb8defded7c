"""Which values each swept name takes, and the settings that follow from it.

A name is a leaf of the hyperparameters by dotted path (`learning_rate`, `objective.clip`, `env.gravity`) or a field of
the config (`config.num_envs`). A grid is a dimension of the result under its own name; zipped names share one dimension
called `learning_rate+gamma`, each name a coordinate along it; everything drawn shares the dimension `sample`; a table's
rows are the dimension `setting`. Grids and samples are multiplied: every grid point gets the same samples. The
arithmetic is decimal and the draws use raw bits, so equal arguments give equal settings on every machine.
"""

import ast
import csv
import dataclasses
import decimal
import difflib
import enum
import functools
import graphlib
import hashlib
import itertools
import math
import operator
import re
import sys
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import qmc

MAX_CELLS = 1_000_000
_RESERVED = ("algorithm", "env", "seed", "step", "sample", "setting")
_NAME = re.compile(r"[^\W\d]\w*(\.\w+)*")
_CALL = re.compile(r"([^\W\d]\w*)\s*\((.*)\)", re.DOTALL)
_MAX_CONDITION = 1000
_DECIMAL = decimal.Context(prec=40)
Read = Callable[[str, str], Any]
"""`(name, text) -> value`; raises ValueError where the text is no value of that name."""


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
class Condition:
    """A rule over names: comparisons, `and`, `or`, `not`, `in`, + - * / // % **, numbers, texts, tuples, dotted names.

    >>> Condition("config.num_envs * config.num_steps <= 8192").holds({"config.num_envs": 64, "config.num_steps": 128})
    True

    Raises:
      ValueError: the text is not such a rule.
    """

    text: str

    def __post_init__(self) -> None:
        _compile(self.text)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the rule reads."""
        return _compile(self.text)[1]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the rule holds for values by name.

        Raises:
          ValueError: a name has no value, the values do not fit the rule, or it is neither true nor false.
        """
        if absent := [name for name in self.names if name not in values]:
            raise ValueError(f"{absent[0]} in {self.text!r} has no value. {_near(absent[0], values)}")
        try:
            return _boolean(_compile(self.text)[0](values))
        except (TypeError, ValueError, ArithmeticError) as error:
            shown = ", ".join(f"{name} = {_text(values[name])}" for name in self.names)
            raise ValueError(f"The condition {self.text!r} cannot be decided for {shown}: {error}") from None


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
    """What is swept; made by `space` or `from_table`.

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
    _check_names([name for key in over for name in ((key or [key]) if isinstance(key, tuple) else [key])])
    axes = tuple(_axis(name, values) for name, values in over.items() if not isinstance(values, Distribution))
    sampled = tuple((name, values) for name, values in over.items() if isinstance(values, Distribution))
    if zipped := [name for name, _ in sampled if not isinstance(name, str)]:
        raise ValueError(f"{','.join(zipped[0])} are zipped and take listed rows, not a distribution: name them apart.")
    return Space(axes, sampled, num_samples, method, seed, where, tuple((conditions or {}).items()))


def from_table(source: str | Path | Iterable[str], read: Read) -> Space:
    """Reads the settings of a CSV table: a header of names, one setting a row; an empty cell keeps the default.

    Equal rows are one setting that is computed once.

    Args:
      source: path of a file, or its lines.
      read: `(name, text) -> value`.

    Raises:
      ValueError: there is no such file, no row, or a line does not fit; the message names the line.

    Example:
      >>> from_table(["learning_rate,gamma", "0.01,", "0.001,0.9"], lambda name, text: float(text)).axes[0].rows[1]
      (0.001, 0.9)
    """
    place = str(source) if isinstance(source, (str, Path)) else "the table"
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_text(encoding="utf-8-sig").splitlines(keepends=True)
        except OSError as error:
            raise ValueError(f"The table {source} cannot be read: {error.strerror}.") from error
    reader = csv.reader(source, skipinitialspace=True, strict=True)
    names: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = []
    try:
        for cells in filter(None, reader):
            if not names:
                names = tuple(cell.strip() for cell in cells)
                _check_names(names)
            elif len(cells) != len(names):
                raise ValueError(f"there are {len(cells)} cells under {len(names)} names.")
            else:
                texts = zip(names, map(str.strip, cells), strict=True)
                rows.append(tuple(_value(read(name, text)) if text else Cell.DEFAULT for name, text in texts))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Line {reader.line_num} of {place}: {error}") from error
    if not rows:
        raise ValueError(f"{place} needs a header of names and at least one row.")
    return Space((Axis("setting", names, tuple(rows)),))


def parse(texts: Iterable[str], read: Read) -> tuple[dict[Any, Grid | Distribution], dict[str, str]]:
    """Reads axes from a command line, for `space`.

    `learning_rate=log(1e-4,1e-2,8)`, `gamma=0.9,0.99`, `config.network.hidden=(64,64),(256,256)`, zipped names
    `learning_rate,gamma=(1e-3,0.99),(1e-4,0.999)`, a condition `value_clip=0.1,0.3 if config.clip_value == true`.
    Functions: grid, linear, log, uniform, integers, choice.

    Args:
      texts: one axis each.
      read: `(name, text) -> value`; also of the numbers that linear and log make, so that each gets its name's type.

    Returns:
      `over` and `conditions` of `space`.

    Raises:
      ValueError: a text has another form, a function is unknown, a value cannot be read, or a name comes twice.

    Example:
      >>> parse(["gamma=0.9,0.99", "learning_rate=log(1e-4,1e-2)"], lambda name, text: float(text))[0]["gamma"]
      Grid(values=(0.9, 0.99), scale='')
    """
    over: dict[Any, Grid | Distribution] = {}
    conditions: dict[str, str] = {}
    seen: dict[str, str] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        names = tuple(name.strip() for name in left.split(","))
        values, *condition = re.split(r"\s+if\s+", right.strip(), maxsplit=1)
        if not equals or not all(map(_NAME.fullmatch, names)):
            raise ValueError(f"{text!r} is not of the form name=values, for instance learning_rate=1e-4,1e-3.")
        if twice := [name for name in names if name in seen]:
            raise ValueError(f"{twice[0]} is given twice: {seen[twice[0]]} and {text}.")
        seen |= dict.fromkeys(names, text)
        try:
            over[names if "," in left else left.strip()] = _read_values(names, values, read)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
        conditions |= dict.fromkeys(names, condition[0]) if condition else {}
    return over, conditions


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
      >>> expand(space({"a": [1, 2], "b": [3, 4]}, where="a + b < 6")).cells.tolist()
      [[0, 1], [2, -1]]
    """
    _check_size(space)
    defaults = {} if defaults is None else defaults
    where = [Condition(space.where)] if space.where else []
    conditions = _ordered(space)
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


def to_json(space: Space) -> dict[str, Any]:
    """What JSON can hold of a space; `from_json` gives it back, tuples, integers and infinities included."""
    axes = [{**vars(axis), "names": list(axis.names), "rows": list(map(_encode, axis.rows))} for axis in space.axes]
    sampled = [{"name": name, **vars(law), "values": list(map(_encode, law.values))} for name, law in space.sampled]
    return {**vars(space), "axes": axes, "sampled": sampled, "conditions": dict(space.conditions)}


def from_json(record: Mapping[str, Any]) -> Space:
    """Makes a space again from what `to_json` gave."""

    def decode(part: Mapping[str, Any], field: str) -> dict[str, Any]:
        return {**part, field: tuple(map(_decode, part[field]))}

    axes = tuple(Axis(**{**decode(axis, "rows"), "names": tuple(axis["names"])}) for axis in record["axes"])
    laws = [decode(law, "values") for law in record["sampled"]]
    sampled = tuple((law.pop("name"), Distribution(**law)) for law in laws)
    conditions = tuple(record["conditions"].items())
    return Space(**{**record, "axes": axes, "sampled": sampled, "conditions": conditions})


def describe(space: Space) -> list[str]:
    """One line for each axis and drawn name, and one for `where`.

    >>> describe(space({"learning_rate": log(1e-4, 1e-2, 8)}))
    ['learning_rate: 8 values from 0.0001 to 0.01 (log)']
    """
    rules = {name: f" if {rule}" for name, rule in space.conditions}
    lines = [
        f"{axis.dim}: {_describe_rows(axis)}" + "".join({rules.get(n, ""): 0 for n in axis.names})
        for axis in space.axes
    ]
    for name, law in space.sampled:
        kind = "log-uniform" if law.kind == "log" else law.kind
        drawn = "one of " + _text(law.values)[1:-1] if law.values else f"{kind} from {law.low} to {law.high}"
        lines.append(f"{name}: {drawn}, {space.num_samples} samples ({space.method}){rules.get(name, '')}")
    return lines + ([f"only where {space.where}"] if space.where else [])


def _describe_rows(axis: Axis) -> str:
    num, shown = len(axis.rows), [_text(row[0] if len(axis.names) == 1 else row) for row in axis.rows]
    if axis.dim == "setting":
        return f"{num} rows of {', '.join(axis.names)}"
    if axis.scale:
        return f"{num} values from {shown[0]} to {shown[-1]} ({axis.scale})"
    return ", ".join(shown) if num <= 8 else f"{num} values: {', '.join(shown[:3])}, …, {shown[-1]}"


def _text(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    near += [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2] and other not in near]
    return f"Did you mean {' or '.join(near[:4])}?" if near else f"There are {', '.join(known[:30]) or 'none'}."


def _value(value: Any) -> Any:
    """NumPy's and JAX's numbers, arrays and lists as Python values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return tuple(map(_value, value))
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("A value must not be NaN.")
    if value is None or isinstance(value, (bool, int, float, str, Cell)):
        return value
    raise ValueError(f"A value must be a number, a text, true, false, none or a tuple of these; got {value!r}.")


def _plain(default: Any) -> Any:
    """A default for conditions; what is no plain value stays as it is."""
    try:
        return _value(default)
    except ValueError:
        return default


def _distinct(values: Iterable[Any], what: str) -> tuple[Any, ...]:
    values = tuple(map(_value, values))
    if not values:
        raise ValueError(f"{what} needs at least one value.".capitalize())
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(
            f"The values of {what} must differ; {_text(twice[0])} comes twice. A value that is a tuple needs "
            "parentheses, as in (64,64),(256,256)."
        )
    return values


def _range(kind: str, low: Any, high: Any) -> tuple[Any, Any]:
    low, high = _value(low), _value(high)
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
                raise ValueError(f"Each row must have {len(names)} values, one a name; got {_text(row)}.")
        return Axis("+".join(names), names, listed.values)
    except ValueError as error:
        raise ValueError(f"{','.join(map(str, names))}: {error}") from None


def _check_names(names: Sequence[Any]) -> None:
    for name, count in Counter(names).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name; names are dotted, as learning_rate or config.num_envs.")
        if name in _RESERVED:
            raise ValueError(f"{name!r} cannot be swept: it is a dimension of every result ({', '.join(_RESERVED)}).")
        if count > 1:
            raise ValueError(f"{name} is given twice: a name can be in one axis only.")


def _check_space(space: Space) -> None:
    _check_names(space.names)
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
            raise ValueError(f"{name} has a condition but is not swept. {_near(name, space.names)}")
    _ordered(space)


def _ordered(space: Space) -> dict[str, Condition]:
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


def _check_known(space: Space, defaults: Mapping[str, Any], rules: Iterable[Condition]) -> None:
    columns = ((axis.names[i], column) for axis in space.axes for i, column in enumerate(zip(*axis.rows, strict=True)))
    partly = {name for name, column in columns if Cell.DEFAULT in column} | dict(space.conditions).keys()
    for name, rule in ((name, source.text) for source in rules for name in source.names if name not in defaults):
        if name not in space.names:
            near = _near(name, [*space.names, *defaults])
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


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_encode(part) for part in value]}
    if isinstance(value, Cell):
        return {"cell": value.value}
    return {"float": str(value)} if isinstance(value, float) and math.isinf(value) else value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return tuple(map(_decode, content)) if kind == "tuple" else Cell(content) if kind == "cell" else float(content)


def _split(text: str) -> list[str]:
    """Parts between the commas that no parenthesis encloses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            break
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    if depth or not all(parts):
        raise ValueError(f"{text!r} has {'unbalanced parentheses' if depth else 'an empty value'}.")
    return parts


def _read_values(names: tuple[str, ...], text: str, read: Read) -> Grid | Distribution:
    items, call = _split(text), _CALL.fullmatch(text)
    if len(names) == 1:
        if call and len(items) == 1:
            return _read_call(names[0], call[1], call[2], read)
        return Grid(tuple(read(names[0], item) for item in items))
    rows = [_split(item[1:-1]) if item.startswith("(") and item.endswith(")") else [item] for item in items]
    for item, row in zip(items, rows, strict=True):
        if len(row) != len(names):
            raise ValueError(f"Zipped names take rows of {len(names)} values in parentheses; got {item}.")
    return Grid(tuple(tuple(map(read, names, row)) for row in rows))


_FUNCTIONS: dict[str, tuple[Callable[..., Any], str, range]] = {
    "linear": (linear, "low, high, num", range(3, 4)),
    "log": (log, "low, high and perhaps num", range(2, 4)),
    "uniform": (uniform, "low, high", range(2, 3)),
    "integers": (integers, "low, high", range(2, 3)),
}


def _read_call(name: str, function: str, inside: str, read: Read) -> Grid | Distribution:
    if function in ("grid", "choice"):
        values = [read(name, text) for text in _split(inside)]
        return grid(*values) if function == "grid" else choice(*values)
    if function not in _FUNCTIONS:
        known = ("grid", "choice", *_FUNCTIONS)
        near = difflib.get_close_matches(function, known, 1, cutoff=0.4)
        raise ValueError(
            f"No function is called {function!r}"
            + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}.")
        )
    make, usage, counts = _FUNCTIONS[function]
    texts = _split(inside)
    if len(texts) not in counts:
        raise ValueError(f"{function} takes {usage}; got {len(texts)} values.")
    made = make(*map(_number, texts))
    if isinstance(made, Grid):
        return Grid(tuple(read(name, repr(value)) for value in made.values), made.scale)
    # What lies between the ends tells whether a fraction is a value of that name.
    for value in (made.low, made.high, made.quantile(1 / math.pi)):
        try:
            fits = isinstance(_value(read(name, repr(value))), (int, float))
        except ValueError as error:
            raise ValueError(f"{error} {function} draws {value}: use integers(low, high) or choice(...).") from None
        if not fits:
            raise ValueError(f"{function} draws numbers, which {name} does not take: list its values.")
    return made


def _number(text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{text!r} must be a number.")


Rule = Callable[[Mapping[str, Any]], Any]
_WORDS = {"true": True, "false": False, "none": None}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    # math.pow overflows where ** would compute for ever.
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: math.pow,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


@functools.cache
def _compile(text: str) -> tuple[Rule, tuple[str, ...]]:
    """A condition as a function of the values by name, and the names that it reads."""
    if len(text) > _MAX_CONDITION:
        raise ValueError(f"A condition may have {_MAX_CONDITION} characters; got {len(text)}.")
    if re.search(r"(?<![<>=!])=(?!=)", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        raise ValueError(f"The condition {text!r} has a single =: write == to compare.")
    names: dict[str, None] = {}
    try:
        return _build(ast.parse(text.strip(), mode="eval").body, names), tuple(names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"The condition {text!r} cannot be read: {reason}.") from None


def _build(node: ast.expr, names: dict[str, None]) -> Rule:
    match node:
        case ast.Constant(value=value) if value is None or type(value) in (bool, int, float, str):
            return lambda values: value
        case ast.Name() | ast.Attribute() if _NAME.fullmatch(name := ast.unparse(node)):
            if name.lower() in _WORDS:
                return lambda values: _WORDS[name.lower()]
            names[name] = None
            return lambda values: values[name]
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            parts = [_build(element, names) for element in elements]
            return lambda values: tuple(part(values) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            part = _build(inner, names)
            return lambda values: not _boolean(part(values))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            part = _build(inner, names)
            return lambda values: -_numeric(part(values))
        case ast.BoolOp(op=op, values=elements):
            parts = [_build(element, names) for element in elements]
            combine = all if isinstance(op, ast.And) else any
            return lambda values: combine(_boolean(part(values)) for part in parts)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first, second, apply = _build(left, names), _build(right, names), _OPERATORS[type(op)]
            return lambda values: apply(_numeric(first(values)), _numeric(second(values)))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            parts = [_build(element, names) for element in (left, *others)]
            tests = [_OPERATORS[type(op)] for op in ops]
            return lambda values: all(
                test(first(values), second(values))
                for test, (first, second) in zip(tests, itertools.pairwise(parts), strict=True)
            )
    raise ValueError(
        f"{ast.unparse(node)} is not among what it may hold: comparisons, and, or, not, in, + - * / // % **, numbers, "
        "texts in quotes, true, false, none, tuples, names"
    )


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_text(value)} is neither true nor false; compare it with something.")
    return value


def _numeric(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_text(value)} is not a number.")
    return value
