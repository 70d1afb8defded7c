"""Principal components and saliency against what they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.analysis.inspection import principal_components, saliency


def test_components_are_those_of_the_covariance():
    rows = np.random.default_rng(0).standard_normal((20, 6)) @ np.diag([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    found = principal_components(rows.reshape(20, 2, 3), 3)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    np.testing.assert_allclose(found.share, values[::-1][:3] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.axes @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(found.scores, (rows - rows.mean(0)) @ found.axes.T, atol=1e-9)
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in found.axes)


def test_rows_that_are_equal_have_no_direction():
    found = principal_components(np.ones((3, 4)), 2)
    np.testing.assert_array_equal(found.share, 0.0)
    np.testing.assert_allclose(found.scores, 0.0, atol=1e-12)


@pytest.mark.parametrize("num", [0, 4])
def test_the_number_must_fit(num):
    with pytest.raises(ValueError, match=r"between 1 and min\(P, D\) = 3"):
        principal_components(np.zeros((3, 5)), num)


def test_saliency_is_the_size_of_the_gradient_and_maps():
    function = lambda obs: -2.0 * obs["a"][0] ** 2 + jnp.sum(obs["b"])
    obs = {"a": jnp.array([[3.0], [-1.0]]), "b": jnp.zeros((2, 2))}
    found = jax.vmap(saliency(function))(obs)
    np.testing.assert_allclose(found["a"], [[12.0], [4.0]])
    np.testing.assert_allclose(found["b"], np.ones((2, 2)))
