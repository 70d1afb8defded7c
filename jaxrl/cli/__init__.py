"""The `jaxrl` command: train, resume, evaluate, sweep, meta-train, plot, list and others.

This module and `jaxrl.cli.arguments` import nothing heavy, so that help and wrong arguments answer at once; what a
command does is imported when it is run.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from jaxrl.cli import arguments
from jaxrl.cli.options import UsageError

# Exceptions whose message is meant for people; by name, since importing their modules takes seconds.
_EXPECTED = {"ValueError", "StorageError", "OSError", "UsageError"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit code: 0, also after SIGTERM or SIGINT when the state was saved; 2 after an error, which is one line on
      standard error (with `JAXRL_DEBUG=1` a traceback); 130 when interrupted twice.
    """
    try:
        command = arguments.parse(list(sys.argv[1:] if argv is None else argv))
        if command is not None:
            module = importlib.import_module(f"jaxrl.cli.{command.module}")
            getattr(module, command.function)(command.options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` for instance, has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("jaxrl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("JAXRL_DEBUG", "") not in ("", "0"):
            raise
        print(f"jaxrl: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if _EXPECTED & {kind.__name__ for kind in type(error).__mro__}:
        return text
    return f"{type(error).__name__}: {text} (unexpected: JAXRL_DEBUG=1 shows where)"


__all__ = ["UsageError", "main"]
