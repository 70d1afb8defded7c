"""Learning curves out of the metrics of a run."""

import numpy as np
import xarray

_NEEDED = ("episode/return_sum", "episode/count")


def learning_curve(metrics: xarray.Dataset, num_points: int = 100) -> xarray.DataArray:
    """Mean return of the episodes that ended in each of equally long slices of training.

    Sums are divided by counts, so that each episode weighs the same and unfinished ones do not enter.

    Args:
      metrics: as `Run.metrics` gives it: `episode/return_sum` and `episode/count` with dimensions (step, seed).
      num_points: slices; fewer if there are fewer rows.

    Returns:
      Dimensions (step, seed); `step` is the number of transitions of a seed at the end of the slice. NaN where no
      episode ended.

    Raises:
      ValueError: a metric is missing, there are no rows yet, or `num_points` is not positive.

    Example:
      >>> dims, values = ("step", "seed"), [[10.0], [0.0], [30.0], [20.0]]
      >>> rows = {"episode/return_sum": (dims, values), "episode/count": (dims, [[1.0], [0.0], [2.0], [1.0]])}
      >>> learning_curve(xarray.Dataset(rows, {"step": [8.0, 16.0, 24.0, 32.0]}), 2).values.ravel().tolist()
      [10.0, 16.666666666666668]
    """
    if missing := [name for name in _NEEDED if name not in metrics]:
        raise ValueError(f"A learning curve needs the metrics {missing}; there are {sorted(map(str, metrics))}.")
    num_rows = metrics.sizes["step"]
    if num_rows < 1 or num_points < 1:
        raise ValueError(f"There must be at least one row and one point; got {num_rows} rows, {num_points} points.")
    edges = np.unique(np.linspace(0, num_rows, min(num_points, num_rows) + 1).astype(int))
    total, count = (
        np.add.reduceat(metrics[name].transpose("step", ...).values.astype(np.float64), edges[:-1], axis=0)
        for name in _NEEDED
    )
    returns = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    dims = metrics[_NEEDED[0]].transpose("step", ...).dims
    kept = {name: metrics[name].values for name in dims if name != "step" and name in metrics.coords}
    return xarray.DataArray(
        returns, {"step": metrics["step"].values[edges[1:] - 1], **kept}, dims, name="mean episode return"
    )


def evaluation_curve(evaluations: xarray.Dataset) -> xarray.DataArray:
    """Mean return of the finished episodes of each evaluation and seed.

    Args:
      evaluations: as `Run.evaluations` gives it: `returns` and `finished`, dimensions (step, seed, episode).

    Returns:
      Dimensions (step, seed); NaN where no episode finished.
    """
    finished = evaluations["finished"].astype(bool)
    return evaluations["returns"].astype(np.float64).where(finished).mean("episode").rename("mean evaluation return")
