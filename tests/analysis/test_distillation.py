"""Closed forms of drifts: their evaluation and text, the rules at ratio 1, and a search that finds one of DPO's."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.analysis import distillation
from jaxrl.analysis.distillation import Distilled, Form
from jaxrl.analysis.drift_figures import check_drift, drift_grid
from jaxrl.objectives import dpo

# z - α tanh(z / α) of z = (r - 1) A, α = 2, and of z = A log r, α = 0.6, as DPO is written.
POSITIVE = ("sub", 0, "mul", 2.0, "tanh", "div", 0, 2.0)
NEGATIVE = ("sub", 1, "mul", 0.6, "tanh", "div", 1, 0.6)


def test_dpo_written_as_forms_is_dpo():
    written = Distilled(Form("", POSITIVE, 0.0, 0), Form("", NEGATIVE, 0.0, 0)).objective()
    _, _, value, slope = drift_grid(written, (), 11)
    _, _, expected, expected_slope = drift_grid(dpo(), dpo().init(jax.random.key(0)), 11)
    np.testing.assert_allclose(value, expected, atol=2e-6)
    np.testing.assert_allclose(slope, expected_slope, atol=2e-5)


def test_text_is_the_program():
    assert distillation._text(list(NEGATIVE)) == "(A·log(r) - (0.6 * tanh((A·log(r) / 0.6))))"
    features = distillation._features(np, np.log([0.5, 2.0]), np.array([-1.0, 3.0]))
    np.testing.assert_allclose(features, [[0.5, 3.0], [np.log(2), 3 * np.log(2)], [-0.5, 1.0], np.log([0.5, 2.0])])
    # Divisors near 0 give 1, as in gplearn.
    found = distillation.evaluate(("div", 1.0, 0), jnp.array([[0.5, 1e-4]]), jnp)
    np.testing.assert_array_equal(found, [2.0, 1.0])


@pytest.mark.parametrize(
    ("program", "low", "high"),
    [
        (POSITIVE, 0.0, 1e-5),
        (("mul", 0, 0), 0.0, 0.01),
        ((0,), 2.99, 3.01),
        (("sub", 7.0, 0), 6.99, 7.01),
        (("mul", 0.1, 2), 0.099, 0.101),
    ],
)
def test_broken_rules_are_measured(program, low, high):
    """A square is flat at ratio 1, a ramp has its slope, a constant its height."""
    log_ratio, advantage = np.tile([-1e-3, 0.0, 1e-3], 2), np.repeat([0.1, 3.0], 3)
    values = np.broadcast_to(
        distillation.evaluate(program, distillation._features(np, log_ratio, advantage)), advantage.shape
    )
    assert low <= distillation.breach(values) < high


def test_gplearn_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package gplearn, which is not installed"):
        distillation.distill(dpo(), dpo().init(jax.random.key(0)))


@pytest.mark.slow
def test_dpo_is_distilled():
    pytest.importorskip("gplearn")
    found = distillation.distill(dpo(), dpo().init(jax.random.key(0)), num_inputs=2, population=500, generations=12)
    assert all(form.error < 0.15 for form in found), found
    again = check_drift(found.objective(), ())
    assert again.value <= 0.01
    assert again.slope <= 0.02
    assert again.negative <= 1e-5
    _, _, value, _ = drift_grid(found.objective(), (), 21)
    _, _, expected, _ = drift_grid(dpo(), dpo().init(jax.random.key(0)), 21)
    assert np.sqrt(np.mean((value - expected) ** 2)) < 0.15 * np.sqrt(np.mean(expected**2))
