"""Bayesian quadrature of a policy gradient, against float64 formulas in parameter space and on bandits."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import quadrature

DAMPING, NOISE = 0.05, 0.3
SHARE = {("linear", 1): 0.05, ("linear", 2): 0.01, ("quadratic", 1): 0.05, ("quadratic", 2): 0.25}
"""At most so much of Monte-Carlo's squared error, by reward and model."""


def reference(scores, returns, fisher, noise, model):
    """Means of gradient and natural gradient, and the covariance's trace, with n x n matrices, in float64."""
    num_parameters = len(scores)
    similarity = scores.T @ np.linalg.solve(fisher, scores)
    kernel = np.square(1.0 + similarity) if model == 1 else similarity
    inverse = np.linalg.inv(kernel + noise * np.trace(kernel) / len(returns) * np.eye(len(returns)))
    if model == 1:
        integral = 1.0 + np.diagonal(similarity)
        mean = (scores * returns) @ inverse @ integral
        covariance = (1.0 + num_parameters - integral @ inverse @ integral) * np.eye(num_parameters)
    else:
        mean = scores @ inverse @ returns
        covariance = fisher - scores @ inverse @ scores.T
    return mean, np.linalg.solve(fisher, mean), np.trace(covariance)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("double, tolerance", [(False, 2e-3), (True, 1e-9)])
@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize("num, num_parameters", [(12, 3), (6, 20)])
def test_the_posterior_is_that_of_parameter_space(model, num, num_parameters, double, tolerance):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(num_parameters, num)) * generator.uniform(0.5, 2.0, (num_parameters, 1))
    returns = generator.normal(size=num)
    fisher = scores @ scores.T / num + DAMPING * np.sum(np.square(scores)) / num * np.eye(num_parameters)
    mean, natural, trace = reference(scores, returns, fisher, NOISE, model)
    with jax.enable_x64(double):
        real = jnp.float64 if double else jnp.float32
        gram, target, noise, total = (real(x) for x in (scores.T @ scores, returns, NOISE, np.trace(fisher)))
        inverse, ridge = quadrature.of_scores(gram, real(DAMPING))
        found = quadrature.posterior(gram @ inverse, gram, target, num_parameters, total, noise, model)
        along = np.asarray(found.coefficients), np.asarray(inverse @ found.coefficients)
        ridge, found_trace, prior_trace = float(ridge), float(found.trace), float(found.prior_trace)
    np.testing.assert_allclose(ridge, DAMPING * np.sum(np.square(scores)) / num, rtol=min(tolerance, 1e-5))
    for coefficients, expected in zip(along, (mean, natural), strict=True):
        np.testing.assert_allclose(scores @ coefficients, expected, rtol=tolerance, atol=0.05 * tolerance)
    np.testing.assert_allclose(found_trace, trace, rtol=tolerance)
    assert 0.0 < found_trace < prior_trace


# --- A Gaussian policy on a bandit: a ~ N(0, 1), θ = (mean, standard deviation) = (0, 1) -----------------------------

FISHER = np.diag([1.0, 2.0])
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


def scores_of(actions):
    return np.stack([actions, np.square(actions) - 1.0])


@pytest.mark.parametrize("model", [1, 2])
def test_the_integrals_of_the_kernels_are_those_of_quadrature(model):
    """b, b₀, B and the double integral of model 2, by Gauss and Hermite's rule, exact for these polynomials."""
    nodes, points = scores_of(NODES), scores_of(np.array([-1.3, 0.2, 0.9]))
    inverse = np.linalg.inv(FISHER)
    similarity = lambda x, y: x.T @ inverse @ y
    np.testing.assert_allclose((nodes * NODE_WEIGHTS) @ nodes.T, FISHER, rtol=1e-10, atol=1e-12)
    if model == 1:
        kernel = np.square(1.0 + similarity(nodes, points))
        np.testing.assert_allclose(NODE_WEIGHTS @ kernel, 1.0 + np.diagonal(similarity(points, points)), rtol=1e-10)
        whole = NODE_WEIGHTS @ np.square(1.0 + similarity(nodes, nodes)) @ NODE_WEIGHTS
        np.testing.assert_allclose(whole, 1.0 + len(FISHER), rtol=1e-10)
    else:
        np.testing.assert_allclose((nodes * NODE_WEIGHTS) @ similarity(nodes, points), points, rtol=1e-10, atol=1e-12)
        weighted = nodes * NODE_WEIGHTS
        np.testing.assert_allclose(weighted @ similarity(nodes, nodes) @ weighted.T, FISHER, rtol=1e-10, atol=1e-12)


def errors(num, reward, gradient, model, num_runs=200):
    """Mean squared errors of Monte-Carlo's and of the posterior's mean, over many draws of `num` actions."""

    def one(key):
        actions = jax.random.normal(key, (num,))
        scores, returns = jnp.stack([actions, jnp.square(actions) - 1.0]), reward(actions)
        gram, similarity = scores.T @ scores, scores.T @ (scores / jnp.array([[1.0], [2.0]]))
        found = quadrature.posterior(similarity, gram, returns, 2, jnp.float32(3.0), jnp.float32(1e-3), model)
        estimates = jnp.stack([scores @ returns / num, scores @ found.coefficients])
        return jnp.sum(jnp.square(estimates - jnp.asarray([gradient])), axis=-1)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_runs)).mean(0))


@pytest.mark.parametrize("num", [10, 60])
@pytest.mark.parametrize("name", ["linear", "quadratic"])
def test_on_a_bandit_the_posterior_is_nearer_to_the_gradient_than_monte_carlo(num, name):
    """E[r ∇log π] is (1, 0) for r = a and (0, 2) for r = a²; G is known, as it is for such a policy."""
    reward, gradient = {"linear": (lambda a: a, (1.0, 0.0)), "quadratic": (jnp.square, (0.0, 2.0))}[name]
    for model in (1, 2):
        monte_carlo, bayesian = errors(num, reward, gradient, model)
        assert bayesian < SHARE[name, model] * monte_carlo, (model, bayesian / monte_carlo)


@pytest.mark.parametrize("num, num_parameters", [(12, 3), (6, 20)])
def test_with_the_scores_own_fisher_matrix_model_2_is_monte_carlo(num, num_parameters):
    generator = np.random.default_rng(0)
    scores, returns = generator.normal(size=(num_parameters, num)), generator.normal(size=num)
    gram, target = float32(scores.T @ scores, returns)
    inverse, _ = quadrature.of_scores(gram, jnp.float32(1e-3))
    found = quadrature.posterior(gram @ inverse, gram, target, num_parameters, gram[0, 0], jnp.float32(1e-3), 2)
    mean = scores @ returns / num
    np.testing.assert_allclose(scores @ np.asarray(found.coefficients), mean, atol=0.03 * np.abs(mean).max())


@pytest.mark.slow
def test_a_batch_of_posteriors_does_not_hang():
    """Batched LAPACK calls have deadlocked here (jaxlib 0.10.2, QR); Cholesky's must not, in a process of its own."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "from jaxrl.ops import quadrature\n"
        "def one(key):\n"
        "    scores = jax.random.normal(key, (80, 64))\n"
        "    gram = scores.T @ scores\n"
        "    kernel = gram @ quadrature.of_scores(gram, jnp.float32(0.01))[0]\n"
        "    rest = scores[0], 80, jnp.float32(80.0), jnp.float32(0.1)\n"
        "    return [quadrature.posterior(kernel, gram, *rest, model).trace for model in (1, 2)]\n"
        "for num in (2, 16, 64):\n"
        "    jax.block_until_ready(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num)))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
