"""The color bars of drifts: where they end, what they say of values beyond, and that nothing stands on a heat map."""

import jax
import jax.numpy as jnp
import pytest

from jaxrl.analysis.drift_figures import plot_drifts
from jaxrl.objectives import clip, drift_objective


def bars_of(drawn, path, *objectives):
    """The color bars of f and df/dr."""
    plot_drifts([(one.name, one, one.init(jax.random.key(0))) for one in objectives], path)
    panels = drawn[-1].axes
    return [mesh.colorbar for panel in panels for mesh in panel.collections if getattr(mesh, "colorbar", None)]


def drift(of):
    return drift_objective("drift", lambda key: (), lambda params, x, advantage, progress: of(x, advantage))


def test_values_beyond_the_colors_have_an_arrow(tmp_path, drawn):
    value, slope = bars_of(drawn, tmp_path / "ppo.png", clip())
    assert 1.0 < value.vmax < 2.4
    assert [value.extend, slope.extend] == ["max", "both"]
    # The arrow is of all drifts, not of the last.
    still = drift(lambda x, a: jnp.zeros_like(x))
    assert [bar.extend for bar in bars_of(drawn, tmp_path / "two.png", clip(), still)] == ["max", "both"]
    # f = -x² is below 0, where the colors begin.
    assert bars_of(drawn, tmp_path / "negative.png", drift(lambda x, a: -jnp.square(x)))[0].extend == "min"


@pytest.mark.parametrize(
    "of, ends",
    [
        (lambda x, a: jnp.zeros_like(x), (1.0, 1.0)),
        # Rounding is no drift.
        (lambda x, a: 1e-7 * jnp.square(x), (1.0, 1.0)),
        # More than 98 of 100 points are 0.
        (lambda x, a: jnp.where((x > 0.6) & (a > 2.9), 0.5, 0.0), (0.5, 1.0)),
    ],
)
def test_a_drift_that_is_zero_has_a_bar_of_a_sensible_range(tmp_path, drawn, of, ends):
    bars = bars_of(drawn, tmp_path / "zero.png", drift(of))
    assert [bar.vmax for bar in bars] == pytest.approx(ends)
    assert [bar.vmin for bar in bars] == pytest.approx([0.0, -ends[1]])
    assert [bar.extend for bar in bars] == ["neither", "neither"]


def test_the_ticks_of_a_small_drift_have_no_common_factor(tmp_path, drawn):
    bars = bars_of(drawn, tmp_path / "small.png", drift(lambda x, a: 1e-4 * jnp.square(x)))
    assert all(bar.vmax < 1e-3 for bar in bars)
    assert [bar.ax.yaxis.get_offset_text().get_text() for bar in bars] == ["", ""]
    assert any("e" in tick.get_text() for tick in bars[0].ax.get_yticklabels())
