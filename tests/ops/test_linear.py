"""Conjugate gradients against NumPy's dense solver, alone and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.ops.linear import conjugate_gradient


def system(key, size=6):
    key_matrix, key_target = jax.random.split(key)
    root = jax.random.normal(key_matrix, (size, size))
    return root @ root.T + jnp.eye(size), jax.random.normal(key_target, (size,))


def solve(matrix, target):
    return conjugate_gradient(lambda x: matrix @ x, target, 12)


def test_equals_a_dense_solver():
    matrix, target = system(jax.random.key(0))
    np.testing.assert_allclose(solve(matrix, target), np.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)


def test_vmap_over_the_matrix_equals_the_loop():
    """What jax.scipy.sparse.linalg.cg fails."""
    matrices, targets = jax.vmap(system)(jax.random.split(jax.random.key(1), 4))
    together = jax.jit(jax.vmap(solve))(matrices, targets)
    for i in range(4):
        np.testing.assert_allclose(together[i], np.linalg.solve(matrices[i], targets[i]), rtol=1e-4, atol=1e-5)


def test_few_steps_stop_early_and_zero_stays_zero():
    matrix, target = system(jax.random.key(2))
    one = conjugate_gradient(lambda x: matrix @ x, target, 1)
    expected = (target @ target) / (target @ matrix @ target) * target
    np.testing.assert_allclose(one, expected, rtol=1e-5)
    nothing = conjugate_gradient(lambda x: {"a": matrix @ x["a"]}, {"a": jnp.zeros(6)}, 5)
    np.testing.assert_array_equal(nothing["a"], 0.0)
