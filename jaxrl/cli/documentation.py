"""What docstrings say of fields, so that the command line's help states nothing twice."""

import inspect
import re


def attributes(record: type) -> dict[str, str]:
    """The descriptions in the `Attributes:` section of a class's docstring (Google style), by name, on one line each.

    Example:
      >>> from jaxrl.types import EnvStep
      >>> attributes(EnvStep)["reward"]
      'the reward of this transition, float32.'
    """
    lines = inspect.cleandoc(record.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    name, indent, inside = "", 0, False
    for line in lines:
        if line.strip() == "Attributes:":
            inside = True
            continue
        if not inside or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            break
        entry = re.match(r"\s+(\w+)(?: \([^)]*\))?:\s*(.*)", line)
        if entry and (not name or depth <= indent):
            name, indent = entry[1], depth
            found[name] = entry[2]
        elif name:
            found[name] += " " + line.strip()
    return found
