"""Returns while training by spans of environment steps, from the metrics that `jaxrl.train` gives: no run folder."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from jaxrl.analysis import statistics, style

_NEEDED = ("episode/return_sum", "episode/count")


def span_returns(metrics: Mapping[str, Any], num_spans: int, gaps: Literal["last", "nan"] = "last") -> np.ndarray:
    """Mean return of the episodes that ended in each of equally long spans of training.

    Sums are divided by counts, Σ return / Σ episodes, so that each episode weighs the same and unfinished ones do not
    enter. A member whose returns are not finite keeps them.

    Args:
      metrics: `episode/return_sum` and `episode/count`, [..., iterations], the last axis in the order of training.
      num_spans: spans. Their lengths differ by one iteration at most, the longer ones first; where there are more spans
        than iterations, the last ones are empty.
      gaps: what stands where no episode ended: the return of the `last` span before it in which one did (otherwise a
        mean over members would be of those whose episodes happen to end there), or `nan`. Before the first episode it
        is NaN either way.

    Returns:
      [..., num_spans].

    Raises:
      ValueError: a metric is missing, shapes differ or have no last axis, `num_spans` is not positive, or `gaps` is
        unknown.

    Example:
      >>> metrics = {"episode/return_sum": np.array([4.0, 6.0, 0.0, 0.0]), "episode/count": np.array([1, 1, 0, 0])}
      >>> span_returns(metrics, 2).tolist(), span_returns(metrics, 2, "nan").tolist()
      ([5.0, 5.0], [5.0, nan])
    """
    if missing := [name for name in _NEEDED if name not in metrics]:
        raise ValueError(f"span_returns needs the metrics {missing}; there are {sorted(metrics)}.")
    given = [np.asarray(metrics[name]) for name in _NEEDED]
    if given[0].shape != given[1].shape or not given[0].ndim:
        raise ValueError(
            f"{' and '.join(_NEEDED)} must have one shape, [..., iterations]; "
            f"got {given[0].shape} and {given[1].shape}."
        )
    if num_spans < 1:
        raise ValueError(f"num_spans must be at least 1; got num_spans = {num_spans}.")
    if gaps not in ("last", "nan"):
        raise ValueError(f"gaps must be last or nan; got gaps = {gaps!r}.")
    total, count = (
        np.stack([part.sum(-1) for part in np.array_split(values, num_spans, axis=-1)], axis=-1) for values in given
    )
    returns = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    if gaps == "nan":
        return returns
    last = np.maximum.accumulate(np.where(count > 0, np.arange(num_spans), 0), axis=-1)
    return np.take_along_axis(returns, last, axis=-1)


def draw_spans(
    panel: Any,
    returns: np.ndarray,
    num_steps: float,
    statistic: Callable[..., np.ndarray] = statistics.mean,
    index: int = 0,
    label: str | None = None,
) -> None:
    """Draws a statistic over members at the middle of each span, with its 95% bootstrap interval.

    Args:
      panel: matplotlib axes.
      returns: [members, spans], as `span_returns` gives them.
      num_steps: environment steps of a member over all spans.
      statistic: over the members, of `jaxrl.analysis.statistics`.
      index: of the color and the dashes.
      label: for the legend.

    Raises:
      ValueError: `returns` has other axes than two.

    Example:
      >>> from matplotlib.figure import Figure
      >>> panel = Figure().subplots()
      >>> draw_spans(panel, np.array([[1.0, 2.0], [3.0, 4.0]]), 100, label="mean")
      >>> panel.lines[0].get_xydata().tolist()
      [[25.0, 2.0], [75.0, 3.0]]
    """
    if np.ndim(returns) != 2:
        raise ValueError(f"draw_spans: returns must be [members, spans]; got shape {np.shape(returns)}.")
    by_span = np.asarray(returns).T
    steps = (np.arange(len(by_span)) + 0.5) / len(by_span) * num_steps
    low, high = statistics.bootstrap_interval(by_span, statistic)
    color, dash = style.COLORS[index % len(style.COLORS)], style.DASHES[index % len(style.DASHES)]
    panel.plot(steps, statistic(by_span), color=color, linestyle=dash, label=label)
    panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
