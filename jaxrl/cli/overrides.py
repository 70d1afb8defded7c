"""`name=value` from a command line onto a `Config` and a record of hyperparameters, with errors for people.

A bare name is a leaf of the hyperparameters by dotted path (`learning_rate=1e-3`, `objective.clip=0.1`,
`env.gravity=9.0`); `config.<field>` is a field of the config (`config.num_envs=16`).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxrl import config_fields
from jaxrl.config_fields import describe_type
from jaxrl.names import CONFIG, unknown
from jaxrl.ops import trees

Record = TypeVar("Record")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """Splits `name=value` texts.

    Raises:
      ValueError: a text has no `=` or no name, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(f"{text!r} is not of the form name=value, for instance learning_rate=1e-3.")
        if name in found:
            raise ValueError(f"{name} is given twice: {found[name]} and {value}.")
        found[name] = value
    return found


def config_changes(assignments: dict[str, str]) -> dict[str, str]:
    """Those that name fields of the config, without the prefix."""
    return {name.removeprefix(CONFIG): value for name, value in assignments.items() if name.startswith(CONFIG)}


def hyperparameter_changes(assignments: dict[str, str]) -> dict[str, str]:
    """Those that name leaves of the hyperparameters."""
    return {name: value for name, value in assignments.items() if not name.startswith(CONFIG)}


def with_config_changes(config: Record, changes: dict[str, str], others: Iterable[str] = ()) -> Record:
    """Replaces fields of a frozen dataclass, each read as its annotation says.

    Args:
      config: the dataclass; a field that is a dataclass itself is reached by a dotted path.
      changes: new values as text, by field name.
      others: names outside of the config to offer where a field is unknown.

    Returns:
      A new dataclass.

    Raises:
      ValueError: a name is no field (the message offers the nearest), or a value is not of the field's type.
    """
    known = config_fields.fields(config)
    for name, text in changes.items():
        if name not in known:
            raise ValueError(unknown(CONFIG + name, [CONFIG + field for field in known], others))
        config = config_fields.replaced(config, name, parse_value(CONFIG + name, text, known[name].kind))
    return config


def with_hyperparameter_changes(hparams: Any, changes: dict[str, str], others: Iterable[str] = ()) -> dict[str, Any]:
    """Reads values for leaves of a record of hyperparameters.

    Args:
      hparams: the defaults.
      changes: new values as text, by dotted path.
      others: names outside of the record to offer where a leaf is unknown.

    Returns:
      Changes by field of the record, for `Algorithm.hyperparams(**changes)`, which checks their ranges.

    Raises:
      ValueError: a name is no leaf (the message offers the nearest), or a value does not fit the leaf's dtype or shape.
    """
    leaves = trees.named_leaves(hparams)
    fields: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in leaves:
            raise ValueError(unknown(name, list(leaves), others))
        field, _, rest = name.partition(".")
        value = parse_leaf(name, text, leaves[name])
        fields[field] = trees.replace_leaf(fields.get(field, getattr(hparams, field)), rest, value) if rest else value
    return fields


def parse_value(name: str, text: str, kind: Any) -> Any:
    """Reads a text as a type annotation says: bool, int, float, str, Literal, Optional, unions and tuples of these.

    Integers may be written `5e5` and `500_000`, tuples `64,64` or `(64, 64)`.

    Raises:
      ValueError: the text is not of that type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(name, text, arguments)
    if origin is Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise ValueError(f"{name} must be {describe_type(kind)}; got {text!r}.")
    if origin is tuple or kind is tuple:
        return _parse_tuple(name, text, arguments)
    if kind is type(None):
        if text.lower() == "none":
            return None
    elif kind is bool:
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
    elif kind is int:
        return parse_int(name, text)
    elif kind is float:
        return parse_float(name, text)
    elif kind is str:
        return text
    else:
        raise ValueError(f"{name} is {describe_type(kind)}, which a command line cannot give: set it from Python.")
    raise ValueError(f"{name} must be {describe_type(kind)}; got {text!r}.")


def parse_int(name: str, text: str) -> int:
    """Reads an integer; `5e5` and `500_000` are such.

    Raises:
      ValueError: the text is not an integer.
    """
    try:
        return int(text, 0)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{name} must be an integer; got {text!r}.")
    return int(number)


def parse_float(name: str, text: str) -> float:
    """Reads a number; `inf` is one, NaN is not.

    Raises:
      ValueError: the text is not a number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name} must be a number; got {text!r}.")
    return number


def parse_leaf(name: str, text: str, leaf: Any) -> Any:
    """Reads the value of one leaf: a scalar, or `a,b,c` for an array, with the leaf's shape and dtype.

    Raises:
      ValueError: the text does not fit.
    """
    if trees.is_key(leaf):
        raise ValueError(f"{name} is a random key, which a command line cannot give: it follows from --seed.")
    dtype, shape = np.dtype(leaf.dtype), tuple(np.shape(leaf))
    kind = bool if dtype == np.bool_ else int if jnp.issubdtype(dtype, jnp.integer) else float
    if not shape and "," in text:
        raise ValueError(f"{name} must be one {'number' if kind is float else describe_type(kind)}; got {text!r}.")
    parts = [parse_value(name, part, kind) for part in (_split(text) if shape else [text])]
    if kind is int and (bad := [part for part in parts if not np.iinfo(dtype).min <= part <= np.iinfo(dtype).max]):
        raise ValueError(f"{name} is of dtype {dtype}, which cannot hold {bad[0]}.")
    if len(parts) not in (1, math.prod(shape)):
        raise ValueError(f"{name} has shape {shape}: give 1 or {math.prod(shape)} values; got {len(parts)}.")
    full = np.broadcast_to(np.asarray(parts), (math.prod(shape),)) if len(parts) == 1 else np.asarray(parts)
    return jnp.asarray(full.reshape(shape), leaf.dtype)


def parse_option(text: str) -> Any:
    """Reads an environment's option, whose type nothing declares: a bool, a number, None, a tuple, else a string."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    return tuple(parse_option(part) for part in _split(text)) if "," in text else text


def config_from_json(kind: type[Record], values: dict[str, Any]) -> Record:
    """Makes a config again from what run.json holds, where tuples have become lists.

    Raises:
      ValueError: it has a field that this jaxrl's config does not have.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if strange := sorted(set(values) - fields):
        raise ValueError(f"The run's config has fields that this jaxrl does not know: {', '.join(strange)}.")

    def decode(hint: Any, value: Any) -> Any:
        if isinstance(value, dict) and dataclasses.is_dataclass(hint):
            return config_from_json(hint, value)  # type: ignore[arg-type]
        return tuple(decode(None, part) for part in value) if isinstance(value, list) else value

    return kind(**{name: decode(hints[name], value) for name, value in values.items()})


def _parse_union(name: str, text: str, kinds: tuple[Any, ...]) -> Any:
    # Text last: it takes everything.
    for kind in sorted(kinds, key=lambda kind: kind is str):
        try:
            return parse_value(name, text, kind)
        except ValueError:
            continue
    raise ValueError(f"{name} must be {' or '.join(map(describe_type, kinds))}; got {text!r}.")


def _parse_tuple(name: str, text: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = _split(text)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(parse_value(name, part, arguments[0]) for part in parts)
    kinds = arguments or (str,) * len(parts)
    if len(parts) != len(kinds):
        raise ValueError(f"{name} must be {len(kinds)} values separated by commas; got {text!r}.")
    return tuple(parse_value(name, part, kind) for part, kind in zip(parts, kinds, strict=True))


def _split(text: str) -> list[str]:
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    return [part.strip() for part in inner.split(",") if part.strip()]
