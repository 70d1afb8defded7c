"""Histograms of scalars against a few lines of NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.ops import bins

LOW, HIGH, NUM_BINS = -2.0, 3.0, 21
WIDTH = (HIGH - LOW) / (NUM_BINS - 1)
# Inside, on a center, between, on the ends and beyond them.
VALUES = np.array([[-5.0, LOW, -1.9, -0.3], [0.0, 0.25, HIGH, 7.0]])


def centers():
    return bins.bin_centers(LOW, HIGH, NUM_BINS)


def reference_two_hot(value):
    """By the index of the bin to the left."""
    position = (np.clip(value, LOW, HIGH) - LOW) / WIDTH
    left = min(int(np.floor(position + 1e-12)), NUM_BINS - 2)
    probs = np.zeros(NUM_BINS)
    probs[left] = left + 1 - position
    probs[left + 1] = position - left
    return probs


def reference_hl_gauss(value, ratio):
    edges = np.linspace(LOW - WIDTH / 2, HIGH + WIDTH / 2, NUM_BINS + 1)
    mass = np.diff(stats.norm(np.clip(value, LOW, HIGH), ratio * WIDTH).cdf(edges))
    return mass / mass.sum()


def over_values(reference):
    return np.array([[reference(value) for value in row] for row in VALUES])


def test_centers():
    np.testing.assert_allclose(centers(), np.linspace(LOW, HIGH, NUM_BINS), atol=1e-6)
    with pytest.raises(ValueError, match="num_bins must be at least 2"):
        bins.bin_centers(0.0, 1.0, 1)


def test_two_hot():
    probs = bins.two_hot(jnp.float32(VALUES), centers())
    np.testing.assert_allclose(probs, over_values(reference_two_hot), atol=1e-5)
    np.testing.assert_allclose(probs @ np.asarray(centers()), np.clip(VALUES, LOW, HIGH), atol=1e-5)


@pytest.mark.parametrize("ratio", [0.4, 0.75, 2.0])
def test_hl_gauss(ratio):
    probs = bins.hl_gauss(jnp.float32(VALUES), centers(), ratio)
    np.testing.assert_allclose(probs, over_values(lambda value: reference_hl_gauss(value, ratio)), atol=1e-5)


def test_hl_gauss_keeps_the_mean_away_from_the_ends():
    values = np.linspace(-1.0, 2.0, 13, dtype=np.float32)
    mean = np.asarray(bins.hl_gauss(jnp.asarray(values), centers()), np.float64) @ np.asarray(centers(), np.float64)
    np.testing.assert_allclose(mean, values, atol=2e-3)


def test_project_is_the_algorithm_of_the_paper():
    """Bellemare et al. 2017, algorithm 1: each atom's weight goes to the floor and the ceiling of its position."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(NUM_BINS), size=3)
    reward, discount = np.array([0.7, -3.0, 0.0]), np.array([0.9, 0.9, 0.0])
    atoms = reward[:, None] + discount[:, None] * np.linspace(LOW, HIGH, NUM_BINS)
    expected = np.zeros((3, NUM_BINS))
    for row in range(3):
        for atom, weight in zip(atoms[row], probs[row], strict=True):
            expected[row] += weight * reference_two_hot(atom)
    got = bins.project(jnp.float32(atoms), jnp.float32(probs), centers())
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_value_and_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(2, 4, NUM_BINS))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    value = bins.expected_value(jnp.float32(logits), centers())
    np.testing.assert_allclose(value, softmax @ np.linspace(LOW, HIGH, NUM_BINS), atol=1e-5)
    target = over_values(reference_two_hot)
    loss = bins.cross_entropy(jnp.float32(logits), jnp.float32(target))
    np.testing.assert_allclose(loss, -(target * np.log(softmax)).sum(-1), atol=1e-5)


def test_the_ends_may_be_mapped():
    """Members of a population may have supports of their own."""
    ends = jnp.float32([1.0, 4.0])

    def encode(high):
        return bins.hl_gauss(jnp.float32(0.5), bins.bin_centers(-high, high, 9))

    together = jax.vmap(encode)(ends)
    np.testing.assert_allclose(together, jnp.stack([encode(end) for end in ends]), atol=1e-6)
