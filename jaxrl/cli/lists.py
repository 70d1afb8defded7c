"""`jaxrl list`."""

import argparse

from jaxrl.cli import arguments
from jaxrl.cli.options import UsageError
from jaxrl.cli.summaries import algorithm_summaries


def list_names(options: argparse.Namespace) -> None:
    """Prints names: for people on a terminal, one a line otherwise.

    Raises:
      ValueError: the suite is unknown or not installed.
    """
    if options.what == "algorithms":
        if options.suite:
            raise UsageError(f"`jaxrl list algorithms` takes no further argument; got {options.suite!r}.")
        summaries = algorithm_summaries()
        width = max(map(len, summaries))
        for name, summary in summaries.items():
            print(f"{name:<{width}} {summary}" if arguments.is_terminal() else name)
        return
    _list_envs(options.suite)


def _list_envs(suite: str | None) -> None:
    # Here and not above: it imports jax, which the list of algorithms does without.
    from jaxrl.envs import registry

    if suite is not None and suite not in registry.SUITES:
        raise UsageError(f"No suite is called {suite!r}; there are {', '.join(registry.SUITES)}.")
    if not arguments.is_terminal():
        print(*registry.list_envs(suite), sep="\n")
        return
    from rich.columns import Columns
    from rich.console import Console

    console = Console(highlight=False)
    for name in [suite] if suite else registry.SUITES:
        entry = registry.SUITES[name]
        if not suite and not registry.installed(name):
            console.print(f'[bold]{name}[/]  {entry.summary}\n  not installed: pip install "jaxrl\\[{entry.extra}]"\n')
            continue
        names = registry.list_envs(name)
        console.print(f"[bold]{name}[/]  {entry.summary} ({len(names)})")
        console.print(Columns([f"  {env}" for env in names], column_first=True), end="\n\n")
