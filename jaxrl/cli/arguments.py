"""What each command takes, and what it calls. Imports nothing heavy: neither jax nor an environment."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrl._version import __version__
from jaxrl.cli import meta_parsers, run_parsers
from jaxrl.cli.options import UsageError, nearest_option


class Command(NamedTuple):
    """What is to be run.

    Attributes:
      module: below `jaxrl.cli`.
      function: of that module, called with the options.
      options: the arguments; `assignments` holds the `name=value` texts.
    """

    module: str
    function: str
    options: argparse.Namespace


class _Spec(NamedTuple):
    summary: str
    module: str
    function: str
    parser: Callable[[], argparse.ArgumentParser]


COMMANDS: dict[str, _Spec] = {
    "train": _Spec(
        "train an algorithm in an environment, several seeds at once", "train", "train", run_parsers.train_parser
    ),
    "sweep": _Spec("train a grid or sample of settings in few programs", "sweep", "sweep", run_parsers.sweep_parser),
    "resume": _Spec("continue a run or a sweep, or make a run longer", "train", "resume", run_parsers.resume_parser),
    "meta-train": _Spec(
        "evolve a learned objective, optimizer or loss", "meta", "meta_train", meta_parsers.meta_train_parser
    ),
    "meta-test": _Spec(
        "compare rules with written ones on other tasks", "rule_table", "meta_test", meta_parsers.meta_test_parser
    ),
    "evaluate": _Spec("play episodes with a trained run", "evaluate", "evaluate", run_parsers.evaluate_parser),
    "plot": _Spec(
        "draw learning curves of runs, generations of searches, or a rule", "plot", "plot", run_parsers.plot_parser
    ),
    "report": _Spec("make a page of a sweep or of several", "report", "write", run_parsers.report_parser),
    "compare": _Spec(
        "say whether two runs or sweeps differ, and in what", "report", "compare", run_parsers.compare_parser
    ),
    "list": _Spec("list algorithms or environments", "lists", "list_names", run_parsers.list_parser),
}


def parse(argv: Sequence[str]) -> Command | None:
    """Turns arguments into a command, or prints the help that they ask for.

    Returns:
      The command; None if there is nothing more to do.

    Raises:
      UsageError: an argument is unknown, missing or malformed.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return None
    if name in ("-V", "--version", "version"):
        print(f"jaxrl {__version__}")
        return None
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `jaxrl {near[0]}`?" if near else f"there are {', '.join(COMMANDS)}."
        raise UsageError(f"no command is called {name!r}; {hint}")
    spec = COMMANDS[name]
    parser = spec.parser()
    if {"-h", "--help"} & set(rest):
        words = [word for word in rest if not word.startswith("-") and "=" not in word]
        if name == "train" and words:
            options = argparse.Namespace(algorithm=words[0], env=next(iter(words[1:]), None), parser=parser)
            return Command("help", "algorithm_help", options)
        parser.print_help()
        return None
    options, extras = parser.parse_known_args(rest)
    takes_assignments = name in ("train", "resume", "sweep", "meta-train", "meta-test")
    options.assignments = [text for text in extras if takes_assignments and "=" in text and not text.startswith("-")]
    if strange := [text for text in extras if text not in options.assignments]:
        near = nearest_option(parser, strange[0])
        parser.error(f"unknown argument {strange[0]!r}" + (f" (did you mean {near}?)" if near else ""))
    return Command(spec.module, spec.function, options)


def _overview() -> str:
    lines = [
        f"jaxrl {__version__}: functional reinforcement-learning research in JAX",
        "",
        "usage: jaxrl COMMAND ...",
        "",
        "commands:",
        *(f"  {name:<10} {spec.summary}" for name, spec in COMMANDS.items()),
        "",
        "start with:",
        "  jaxrl train ppo gymnax/CartPole-v1",
        "",
        "`jaxrl COMMAND --help` explains a command, `jaxrl train ALGORITHM --help` every setting of an",
        "algorithm. JAXRL_DEBUG=1 shows tracebacks; JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs.",
    ]
    return "\n".join(lines)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()
