"""Markdown tables line by line, for programs that print each row as soon as it is known."""

from typing import Any

import numpy as np

from jaxrl.analysis import statistics


def head(*titles: object) -> str:
    """The first two lines of a table.

    Args:
      titles: of the columns, as for `row`.

    Example:
      >>> print(head("task", "return"))
      | task | return |
      |---|---|
    """
    return f"{row(*titles)}\n|{'---|' * len(titles)}"


def row(*cells: object) -> str:
    """A further line of a table.

    Args:
      cells: one a column. Their text is Markdown of one line, in which a `|` would end the cell.

    Example:
      >>> row("Pendulum", "-200.8 [-232.8, -175.1]", 12)
      '| Pendulum | -200.8 [-232.8, -175.1] | 12 |'
    """
    return f"| {' | '.join(map(str, cells))} |"


def interval(values: Any, form: str = ".2f", statistic: statistics.Statistic = statistics.mean) -> str:
    """A statistic over seeds with its 95% bootstrap interval, as the text `center [low, high]`.

    The bounds are `nan` where fewer than two seeds are known.

    Args:
      values: one a seed, [seeds]; NaN where it is not known.
      form: format of each of the three numbers, as `format` takes it.
      statistic: of `jaxrl.analysis.statistics`.

    Raises:
      ValueError: `values` has other axes than one, or no value.

    Example:
      >>> interval([1.0, 2.0, 3.0, 4.0], ".1f")
      '2.5 [1.5, 3.5]'
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"interval: values must be [seeds]; got shape {values.shape}.")
    low, high = statistics.bootstrap_interval(values, statistic)
    return f"{float(statistic(values)):{form}} [{float(low):{form}}, {float(high):{form}}]"
