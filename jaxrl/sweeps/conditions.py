"""Rules over names, as texts: read once, decided for values by name. No text can make them compute without end."""

import ast
import dataclasses
import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl.names import hint

NAME = re.compile(r"[^\W\d]\w*(\.\w+)*")
"""A dotted name."""
_MAX_CONDITION = 1000


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
            raise ValueError(f"{absent[0]} in {self.text!r} has no value. {hint(absent[0], values)}")
        try:
            return _boolean(_compile(self.text)[0](values))
        except (TypeError, ValueError, ArithmeticError) as error:
            shown = ", ".join(f"{name} = {as_text(values[name])}" for name in self.names)
            raise ValueError(f"The condition {self.text!r} cannot be decided for {shown}: {error}") from None


def as_text(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(as_text, value))})"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


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
        case ast.Name() | ast.Attribute() if NAME.fullmatch(name := ast.unparse(node)):
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
        raise ValueError(f"{as_text(value)} is neither true nor false; compare it with something.")
    return value


def _numeric(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{as_text(value)} is not a number.")
    return value
