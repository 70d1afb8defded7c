"""Multi-level Monte Carlo on a Markov reward process, in float64, by enumeration of the levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import multilevel

MAX_LEVEL = 6


def weights(level):
    return np.asarray(multilevel.sample_weight(jnp.arange(2**level), jnp.int32(level)), np.float64)


def by_definition(samples, level, factor):
    """g^0 + factor (g^J - g^(J-1)), or g^0."""
    if level == 0:
        return samples[0]
    return samples[0] + factor * (samples[: 2**level].mean() - samples[: 2 ** (level - 1)].mean())


def expected_samples():
    """E[g_t] of a chain that mixes slowly, from its first state."""
    generator = np.random.default_rng(0)
    matrix = 0.9 * np.eye(5) + 0.1 * generator.dirichlet(np.ones(5), 5)
    reward, at = generator.normal(size=5), np.eye(5)[0]
    expected = np.zeros(2**MAX_LEVEL)
    for t in range(len(expected)):
        expected[t], at = at @ reward, at @ matrix
    return expected


def telescoped(estimate):
    """Σ_J P(J) E[estimate | J]; levels above the greatest give the estimate of level 0."""
    return sum(2.0**-level * estimate(level) for level in range(1, MAX_LEVEL + 1)) + 2.0**-MAX_LEVEL * estimate(0)


@pytest.mark.parametrize("level", range(MAX_LEVEL + 1))
def test_the_weights_are_the_estimate(level):
    samples = np.random.default_rng(1).normal(size=2**level)
    np.testing.assert_allclose(weights(level) @ samples, by_definition(samples, level, 2.0**level), rtol=1e-12)


def test_the_expectation_is_that_of_the_longest_trajectorys_mean():
    expected = expected_samples()
    found = telescoped(lambda level: weights(level) @ expected[: 2**level])
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-12)
    assert abs(expected[0] - expected.mean()) > 0.1, "the chain must not be stationary from the start"


def test_without_the_factor_the_expectation_is_another():
    expected = expected_samples()
    assert abs(telescoped(lambda level: by_definition(expected, level, 1.0)) - expected.mean()) > 0.05


@pytest.mark.parametrize("max_level", [0, 1, 6, 20])
def test_the_expected_length_is_logarithmic(max_level):
    enumerated = sum(2.0**-j * 2**j for j in range(1, max_level + 1)) + 2.0**-max_level
    assert multilevel.expected_length(max_level) == enumerated <= max_level + 1


def test_levels_have_their_probabilities():
    num_draws, max_level = 40_000, 3
    levels = jax.vmap(lambda key: multilevel.draw_level(key, max_level))(jax.random.split(jax.random.key(0), num_draws))
    shares = np.bincount(np.asarray(levels), minlength=max_level + 1) / num_draws
    # Four standard errors of a share of one half.
    np.testing.assert_allclose(shares, [1 / 8, 1 / 2, 1 / 4, 1 / 8], atol=4 * 0.5 / np.sqrt(num_draws))
    assert (jax.vmap(lambda key: multilevel.draw_level(key, 0))(jax.random.split(jax.random.key(0), 10)) == 0).all()
