"""Spaces from texts and to texts: axes of a command line, tables, JSON, descriptions."""

import csv
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxrl.sweeps.conditions import NAME, as_text
from jaxrl.sweeps.spaces import (
    Axis,
    Cell,
    Distribution,
    Grid,
    Space,
    check_names,
    choice,
    grid,
    integers,
    linear,
    log,
    plain_value,
    uniform,
)

_CALL = re.compile(r"([^\W\d]\w*)\s*\((.*)\)", re.DOTALL)
Read = Callable[[str, str], Any]
"""`(name, text) -> value`; raises ValueError where the text is no value of that name."""


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
                check_names(names)
            elif len(cells) != len(names):
                raise ValueError(f"there are {len(cells)} cells under {len(names)} names.")
            else:
                texts = zip(names, map(str.strip, cells), strict=True)
                rows.append(tuple(plain_value(read(name, text)) if text else Cell.DEFAULT for name, text in texts))
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
        if not equals or not all(map(NAME.fullmatch, names)):
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

    >>> from jaxrl.sweeps.spaces import space
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
        drawn = "one of " + as_text(law.values)[1:-1] if law.values else f"{kind} from {law.low} to {law.high}"
        lines.append(f"{name}: {drawn}, {space.num_samples} samples ({space.method}){rules.get(name, '')}")
    return lines + ([f"only where {space.where}"] if space.where else [])


def _describe_rows(axis: Axis) -> str:
    num, shown = len(axis.rows), [as_text(row[0] if len(axis.names) == 1 else row) for row in axis.rows]
    if axis.dim == "setting":
        return f"{num} rows of {', '.join(axis.names)}"
    if axis.scale:
        return f"{num} values from {shown[0]} to {shown[-1]} ({axis.scale})"
    return ", ".join(shown) if num <= 8 else f"{num} values: {', '.join(shown[:3])}, …, {shown[-1]}"


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
            fits = isinstance(plain_value(read(name, repr(value))), (int, float))
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
