"""Records as tables of two columns, for the last line of a notebook's cell."""

import html
from collections.abc import Iterable
from typing import Any

_MAX_TEXT = 200


def html_table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A small HTML table: a title, then a row for each name and value.

    Args:
      title: in the heading.
      rows: names and values; a value is shown by its `str`, shortened to 200 characters.

    Returns:
      The table, everything in it escaped.

    Example:
      >>> html_table("ppo", [("seeds", 8)])
      '<table><thead><tr><th colspan="2">ppo</th></tr></thead><tbody><tr><td>seeds</td><td>8</td></tr></tbody></table>'
    """
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_short(value))}</td></tr>" for name, value in rows
    )
    heading = f'<thead><tr><th colspan="2">{html.escape(title)}</th></tr></thead>'
    return f"<table>{heading}<tbody>{cells}</tbody></table>"


def shape_or_value(leaf: Any) -> str:
    """A number as it is, a larger array by type and shape.

    Example:
      >>> import numpy as np
      >>> shape_or_value(0.5), shape_or_value(np.zeros((3, 2), np.float32))
      ('0.5', 'float32[3,2]')
    """
    if shape := getattr(leaf, "shape", ()):
        return f"{leaf.dtype}[{','.join(map(str, shape))}]"
    try:
        return f"{leaf.item() if hasattr(leaf, 'item') else leaf:g}"
    except (TypeError, ValueError, NotImplementedError):  # a text or a random key
        return str(getattr(leaf, "dtype", leaf))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
