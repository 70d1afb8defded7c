"""What the commands' parsers are made of: types of arguments, and options that several of them have."""

import argparse
import difflib
import functools
from typing import Any, NoReturn


class UsageError(ValueError):
    """The arguments of a command are wrong."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of leaving the program."""
        raise UsageError(f"{message}; `{self.prog} --help` explains.")


new_parser = functools.partial(
    Parser,
    allow_abbrev=False,
    add_help=False,
    formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28),
)


def count(text: str) -> int:
    """Reads a positive integer; `5e5` and `500_000` are such."""
    number = count_or_zero(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return number


def count_or_zero(text: str) -> int:
    """Reads an integer that is not negative; `5e5` and `500_000` are such."""
    try:
        number = float(text)
        if number < 0 or number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    return int(text) if text.strip().replace("_", "").isdigit() else int(number)


def positive(text: str) -> float:
    """Reads a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def probability(text: str) -> float:
    """Reads a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return number


def seconds(text: str) -> float:
    """Reads a duration in seconds that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Reads positive integers with commas between."""
    return tuple(count(part) for part in text.split(","))


def share(text: str) -> tuple[int, int]:
    """Reads `i/n` with 0 <= i < n."""
    index, _, number = text.partition("/")
    if not index.isdigit() or not number.isdigit() or not int(index) < int(number):
        raise argparse.ArgumentTypeError(f"must be I/N with 0 <= I < N, for instance 0/4; got {text!r}")
    return int(index), int(number)


def life(text: str) -> tuple[int, int]:
    """Reads a positive integer, or a range of them `a:b`."""
    low, _, high = text.partition(":")
    found = count(low), count(high or low)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must be N or A:B with A <= B, got {text!r}")
    return found


def add_common(parser: argparse.ArgumentParser) -> None:
    """What `train` and `resume` share."""
    parser.add_argument("--no-plot", action="store_true", help="do not draw curves.png at the end")
    parser.add_argument(
        "--checkpoint-seconds",
        type=seconds,
        default=30.0,
        metavar="S",
        help="a checkpoint is written when so much time has passed, and after each evaluation (default 30)",
    )
    add_help(parser)


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    """The option `--time-limit`."""
    parser.add_argument(
        "--time-limit", type=seconds, metavar="S", help="stop after so many seconds, with all saved (default: none)"
    )


def add_layout(parser: argparse.ArgumentParser) -> None:
    """How learners are laid out on the machine."""
    parser.add_argument(
        "--devices", type=count, metavar="N", help="devices that share the learners (default: all; 1 with --chunk)"
    )
    parser.add_argument("--chunk", type=count, metavar="N", help="learners at a time on a device (default: chosen)")


def add_env_option(parser: argparse.ArgumentParser) -> None:
    """Options of environments' constructors."""
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="static option of the environments' constructors, for instance backend=mjx or side=6,6; may be repeated",
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The options that take a rule; the folder gets a copy of its file."""
    parser.add_argument(
        "--objective",
        metavar="NAME|FILE",
        help="in place of the algorithm's own: a written one (clip, dpo, spo, kl_penalty, mdpo, ...), or the file of a "
        "learned rule (rule.npz; disco_103.npz for disco)",
    )
    parser.add_argument(
        "--optimizer", metavar="FILE", help="learned one for ppo: rule.npz, or a vector of OPEN's authors (FILE.npy)"
    )
    parser.add_argument(
        "--head",
        metavar="NAME|FILE",
        help="loss of dqn's values: scalar, dqn_reg, dqn_clipped, or the file of a program (rule.npz)",
    )


def add_help(parser: argparse.ArgumentParser) -> None:
    """The option `--help`, which `jaxrl.cli.arguments.parse` looks for itself."""
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")


def nearest_option(parser: argparse.ArgumentParser, text: str) -> str | None:
    """The option that a misspelled one is closest to."""
    options: list[Any] = [option for action in parser._actions for option in action.option_strings]
    return next(iter(difflib.get_close_matches(text.partition("=")[0], options, n=1)), None)
