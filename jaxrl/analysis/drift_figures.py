"""Pictures of policy objectives as drifts, and the check that a drift is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxrl.analysis import style
from jaxrl.objectives.learned import drift_of
from jaxrl.types import Objective

_LOG_RATIO = float(np.log(2.0))
_ADVANTAGE = 3.0
# A drift is computed as the difference of two losses.
_ROUNDING = 1e-5


class Constraints(NamedTuple):
    """How far a drift is from the three rules of mirror learning; all are 0 for a proper one.

    Attributes:
      value: greatest |f| at ratio 1.
      slope: greatest |df/dr| at ratio 1.
      negative: greatest -f over the grid, at least 0.
    """

    value: float
    slope: float
    negative: float

    @property
    def hold(self) -> bool:
        """Whether value and slope at ratio 1 are exactly 0, and f is nowhere less than 0 beyond rounding."""
        return self.value == 0.0 and self.slope == 0.0 and self.negative <= _ROUNDING


def drift_grid(
    objective: Objective, params: PyTree, num: int = 101, progress: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A drift and its derivative by the ratio on a grid.

    Args:
      objective: of single samples; see `jaxrl.objectives.learned.drift_of`.
      params: its coefficients or weights.
      num: points on each axis; odd, so that ratio 1 and advantage 0 are among them.
      progress: share of training that has passed.

    Returns:
      log r from -log 2 to log 2, [num]; A from -3 to 3, [num]; f and df/dr, [num, num], first axis A.

    Raises:
      ValueError: `num` is even or less than 3.

    Example:
      >>> from jaxrl.objectives import clip
      >>> log_ratio, advantage, f, slope = drift_grid(clip(), clip().init(jax.random.key(0)), 5)
      >>> f.shape, float(f[2].max())
      ((5, 5), 0.0)
    """
    if num < 3 or num % 2 == 0:
        raise ValueError(f"drift_grid: num must be odd and at least 3; got num = {num}.")
    log_ratio, advantage = np.linspace(-1, 1, num) * _LOG_RATIO, np.linspace(-1, 1, num) * _ADVANTAGE
    rows, columns = (jnp.asarray(x.ravel(), jnp.float32) for x in np.meshgrid(log_ratio, advantage))

    def of(x: jax.Array) -> jax.Array:
        return drift_of(objective, params, x, columns, progress)

    value, by_log_ratio = jax.jvp(of, (rows,), (jnp.ones_like(rows),))
    slope = by_log_ratio / jnp.exp(rows)
    square = lambda x: np.asarray(x, np.float64).reshape(num, num)
    return log_ratio, advantage, square(value), square(slope)


def check_drift(objective: Objective, params: PyTree, num: int = 101, progress: float = 0.0) -> Constraints:
    """Whether an objective's drift keeps the rules f >= 0, f = 0 and df/dr = 0 at ratio 1, on a grid.

    Args:
      objective: as for `drift_grid`.
      params: its coefficients or weights.
      num: points on each axis.
      progress: share of training that has passed.

    Example:
      >>> from jaxrl.objectives import dpo, policy_gradient
      >>> check_drift(dpo(), dpo().init(jax.random.key(0)), 11).hold
      True
    """
    _, _, value, slope = drift_grid(objective, params, num, progress)
    middle = num // 2
    return Constraints(
        float(np.abs(value[:, middle]).max()), float(np.abs(slope[:, middle]).max()), float(max(0.0, -value.min()))
    )


def plot_drifts(
    drifts: Sequence[tuple[str, Objective, PyTree]], path: Path | str, num: int = 101, progress: float = 0.0
) -> list[Constraints]:
    """Heat maps of drifts, above, and of their derivatives by the ratio, below, each with its constraint check.

    Args:
      drifts: title, objective and its coefficients or weights.
      path: of the picture.
      num: points on each axis.
      progress: share of training that has passed.

    Returns:
      The checks, in order.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grids = [drift_grid(objective, params, num, progress) for _, objective, params in drifts]
    checks = [check_drift(objective, params, num, progress) for _, objective, params in drifts]
    figure, panels = plt.subplots(
        2, len(drifts), figsize=(2.6 * len(drifts) + 0.8, 5.0), squeeze=False, sharex=True, sharey=True
    )
    values = [np.stack([grid[i] for grid in grids]) for i in (2, 3)]
    bounds = [_bound(of_all) for of_all in values]
    for column, ((title, _, _), grid, check) in enumerate(zip(drifts, grids, checks, strict=True)):
        ratio, advantage = np.exp(grid[0]), grid[1]
        looks = ({"cmap": style.COLORMAP, "vmin": 0.0, "vmax": bounds[0]}, {"cmap": "RdBu_r", "vmin": -bounds[1]})
        for row, look in enumerate(looks):
            panel = panels[row, column]
            drawn = panel.pcolormesh(ratio, advantage, grid[2 + row], **{"vmax": bounds[1], **look}, rasterized=True)
            panel.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
            if column == len(drifts) - 1:
                figure.colorbar(
                    drawn,
                    ax=panels[row],
                    label=("drift f", "slope df/dr")[row],
                    shrink=0.9,
                    extend=_beyond(values[row], *drawn.get_clim()),
                    # A factor common to all ticks would stand on the heat map's corner.
                    format="{x:.3g}",
                )
        rule = (
            "f(1) = f'(1) = 0, f ≥ 0"
            if check.hold
            else f"broken: {check.value:.1g}, {check.slope:.1g}, {check.negative:.1g}"
        )
        panels[0, column].set_title(f"{title}\n{rule}", fontsize=8)
        panels[1, column].set_xlabel("ratio r")
    for panel in panels[:, 0]:
        panel.set_ylabel("advantage A")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return checks


def _bound(values: np.ndarray) -> float:
    """Where colors end."""
    # Outliers at the edges of one drift shall not make the others white.
    sizes = np.abs(values)
    for bound in (np.percentile(sizes, 98), sizes.max()):
        if bound > _ROUNDING:
            return float(bound)
    return 1.0


def _beyond(values: np.ndarray, low: float, high: float) -> str:
    """The ends of a color bar that get an arrow."""
    below, above = values.min() < low - _ROUNDING, values.max() > high + _ROUNDING
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[int(below), int(above)]
