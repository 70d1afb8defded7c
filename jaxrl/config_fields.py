"""Fields of a frozen dataclass (`Config`), nested ones by dotted path: which there are, and other values for them.

Needs no jax.
"""

import dataclasses
import numbers
import types
import typing
from typing import Any, Literal, NamedTuple, TypeVar

from jaxrl.names import CONFIG

Record = TypeVar("Record")


class Field(NamedTuple):
    """One field of a config.

    Attributes:
      kind: its type annotation.
      value: that the config has.
    """

    kind: Any
    value: Any


def fields(config: Any, prefix: str = "") -> dict[str, Field]:
    """All fields by dotted path; one that is a dataclass itself stands for its own fields.

    Args:
      config: an instance of a dataclass.
      prefix: put before every path.

    Example:
      >>> from jaxrl.algorithms.ppo import Config
      >>> fields(Config(), "config.")["config.num_envs"].kind
      <class 'int'>
    """
    found: dict[str, Field] = {}
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= fields(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = Field(hints[field.name], value)
    return found


def replaced(config: Record, name: str, value: Any) -> Record:
    """The config with another value of one field.

    Args:
      config: an instance of a frozen dataclass.
      name: of the field, by dotted path.
      value: of the type that the field's annotation names; a list does for a tuple.

    Raises:
      ValueError: the value is of another type.

    Example:
      >>> from jaxrl.algorithms.ppo import Config
      >>> replaced(Config(), "num_envs", 7).num_envs
      7
    """
    kind = fields(config)[name].kind
    value = _as_tuples(value)
    if not _fits(value, kind):
        raise ValueError(f"{CONFIG}{name} must be {describe_type(kind)}; got {value!r}.")
    return _replaced(config, name.split("."), value)


def describe_type(kind: Any) -> str:
    """A type annotation in words.

    >>> describe_type(tuple[int, ...])
    'integers separated by commas'
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "none"}
    if kind in words:
        return words[kind]
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        plural = {int: "integers", float: "numbers", str: "texts", bool: "true or false"}
        return f"{plural.get(arguments[0], describe_type(arguments[0]))} separated by commas"
    if origin is tuple:
        return f"{len(arguments)} values separated by commas"
    return f"a {getattr(kind, '__name__', str(kind))}"


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; of types that no command line can give, everything is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple and isinstance(value, tuple):
        kinds = (arguments[0],) * len(value) if arguments[1:] == (Ellipsis,) else arguments
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        return isinstance(value, int if kind is int else numbers.Real) and not isinstance(value, bool)
    basic = {bool: bool, str: str, tuple: tuple, type(None): type(None)}.get(origin or kind)
    return basic is None or type(value) is basic


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    value = _replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: value})
