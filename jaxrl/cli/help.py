"""`jaxrl train ALGORITHM [ENV] --help`: every setting with its default and meaning."""

import argparse
import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from jaxrl.algorithms.registry import Entry
from jaxrl.cli import build
from jaxrl.cli.documentation import attributes
from jaxrl.envs import list_envs, make_env
from jaxrl.names import CONFIG
from jaxrl.ops import trees
from jaxrl.types import Algorithm

Row = tuple[str, str, str]
"""Name, default, meaning."""


def algorithm_help(options: argparse.Namespace) -> None:
    """Prints the settings of an algorithm, and of an environment if one is named.

    Raises:
      ValueError: a name is unknown.
    """
    entry = build.find_algorithm(options.algorithm)
    member = _member(entry, options.env)
    console = Console(highlight=False)
    console.print(f"usage: jaxrl train {options.algorithm} {options.env or 'ENV'} \\[name=value ...] \\[options]\n")
    console.print(f"[bold]{options.algorithm}[/]: {entry.summary}\n")
    rows = list(_hyperparameter_rows(member.hyperparams()))
    rows = [(name, "total steps" if name == "horizon" else default, meaning) for name, default, meaning in rows]
    _print_rows(
        console,
        "Hyperparameters",
        "name=value: data, another value compiles nothing new",
        [row for row in rows if not row[0].startswith("env.")],
    )
    if options.env:
        title = f"parameters of {options.env}, name=value"
        _print_rows(console, "Environment", title, [row for row in rows if row[0].startswith("env.")])
    else:
        console.print(
            f"[bold]Environment[/]  `jaxrl train {options.algorithm} ENV --help` lists its parameters env.*\n"
        )
    _print_rows(
        console, "Config", "config.name=value: structure, another value is another program", _config_rows(entry)
    )
    console.print("[bold]Options[/]")
    # The parser's help without its usage and description.
    print(options.parser.format_help().partition("options:\n")[2].partition("algorithms:\n")[0].rstrip())


def _member(entry: Entry, env: str | None) -> Algorithm:
    if env:
        return entry.factory(build.find_env(env)[0])
    # The defaults of the hyperparameters do not depend on it; any environment that the algorithm takes will do.
    error: ValueError | None = None
    for name in list_envs("probe"):
        try:
            return entry.factory(make_env(name))
        except ValueError as refused:
            error = refused
    raise error or ValueError("there are no environments")


def _hyperparameter_rows(record: Any, prefix: str = "", meaning: str = "") -> Iterator[Row]:
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        # A tree without names for its parts: a learned objective's weights, an environment's own structure.
        for path, leaf in trees.named_leaves(record).items():
            yield f"{prefix}{path}".rstrip("."), _show(leaf), meaning
        return
    documented = attributes(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        nested = not hasattr(value, "dtype")
        text = documented.get(field.name, "" if prefix else meaning)
        yield from _hyperparameter_rows(value, f"{prefix}{field.name}{'.' if nested else ''}", text)


def _config_rows(entry: Entry) -> list[Row]:
    return list(_rows_of_config(entry.default_config))


def _rows_of_config(config: Any, prefix: str = CONFIG) -> Iterator[Row]:
    documented, hints = attributes(type(config)), typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _rows_of_config(value, f"{prefix}{field.name}.")
            continue
        text = documented.get(field.name, "")
        if typing.get_origin(kind) is typing.Literal:
            missing = [str(choice) for choice in typing.get_args(kind) if str(choice) not in text]
            text = f"{text.rstrip('.')} ({' | '.join(map(str, typing.get_args(kind)))})." if missing else text
        yield prefix + field.name, _show(value), text


def _show(value: Any) -> str:
    """A default as one may write it on a command line."""
    if isinstance(value, (bool, type(None))):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_show, value))
    if isinstance(value, (str, int, float)):
        return str(value)
    if trees.is_key(value):
        return "a random key"
    array = np.asarray(value)
    if array.ndim:
        return ",".join(map(_show, array.ravel())) if array.size <= 6 else f"{array.dtype}{list(array.shape)}"
    if array.dtype.kind != "f":
        return _show(array.item())
    # The shortest text that gives this number again in its own precision.
    return str(array[()]).removesuffix(".0")


def _print_rows(console: Console, title: str, note: str, rows: list[Row]) -> None:
    console.print(f"[bold]{title}[/]  {note}")
    names, defaults = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    width = max(console.width - names - defaults - 6, 20)
    for name, default, meaning in rows:
        first, *others = textwrap.wrap(meaning, width) or [""]
        line = Text(f"  {name:<{names}}  ").append(f"{default:>{defaults}}", style="cyan").append(f"  {first}".rstrip())
        console.print(line, no_wrap=True, crop=False)
        for other in others:
            console.print(Text(" " * (names + defaults + 6) + other), no_wrap=True, crop=False)
    console.print()
