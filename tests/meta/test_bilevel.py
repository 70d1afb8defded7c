"""Maximum likelihood through a reward, in closed form; weights of samples by an expert's few."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.meta import likelihood
from jaxrl.meta.guidance import guidance, weighted_inner
from jaxrl.meta.implicit import conjugate, descend, hypergradient, stationary

LAMBDA = 0.6
DATA = np.random.default_rng(0).normal(size=(50, 2)) @ np.array([[1.0, 0.0], [0.7, 0.5]]).T + [1.0, -2.0]
ROOT = np.array([[0.9, 0.2], [-0.3, 0.7]])


def covariance():
    return np.cov(DATA.T, bias=True)


def inner(policy, root):
    return likelihood.reward_loss(policy, root, jnp.asarray(DATA, jnp.float32), LAMBDA)


def outer(policy, root):
    del root
    return likelihood.negative_log_likelihood(policy, jnp.asarray(DATA, jnp.float32))


def outer_by_hand(root):
    """Of the inner optimum, m = mean and Σ = λ/2 U⁻¹."""
    precision = 2 / LAMBDA * root @ root.T
    return 0.5 * (np.trace(precision @ covariance()) - np.log(np.linalg.det(precision)) + 2 * np.log(2 * np.pi))


def test_the_gradient_by_the_reward_is_that_of_the_closed_form():
    lower = np.linalg.cholesky(LAMBDA / 2 * np.linalg.inv(ROOT @ ROOT.T))
    factor = np.tril(lower, -1) + np.diag(np.log(np.diag(lower)))
    optimum = likelihood.Gaussian(jnp.asarray(DATA.mean(0), jnp.float32), jnp.asarray(factor, jnp.float32))
    run = jax.jit(
        lambda x, root: (jax.grad(inner)(x, root), hypergradient(outer, stationary(inner), x, root, conjugate(5)))
    )
    slope, (value, found) = run(optimum, jnp.asarray(ROOT, jnp.float32))
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-4, "the closed form is not stationary"
    np.testing.assert_allclose(value, outer_by_hand(ROOT), rtol=1e-5)
    expected, nudge = np.zeros((2, 2)), 1e-5
    for index in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[index] = nudge
        expected[index] = (outer_by_hand(ROOT + step) - outer_by_hand(ROOT - step)) / (2 * nudge)
    assert abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3 * abs(expected).max())


def test_the_reward_that_is_learned_is_half_lambda_over_the_covariance():
    start = likelihood.standard_normal(2), jnp.eye(2)
    transforms = optax.adam(0.05), optax.adam(0.02)
    run = jax.jit(lambda policy, root: descend(inner, outer, policy, root, transforms, conjugate(5), 5, 800))
    policy, root, losses = run(*start)
    np.testing.assert_allclose(root @ root.T, LAMBDA / 2 * np.linalg.inv(covariance()), rtol=0.03, atol=0.03)
    np.testing.assert_allclose(policy.cholesky() @ policy.cholesky().T, covariance(), rtol=0.05, atol=0.02)
    np.testing.assert_allclose(policy.mean, DATA.mean(0), atol=0.02)
    assert losses[-1] < losses[0] - 0.2


# Two states. In the first the data act badly and the learned value is right, in the second it is the other way round.
STATES = np.array([0, 0, 1, 1])
BEST_BY_VALUE, ACTED = np.array([1.0, 1.0, -1.0, -1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
EXPERT = np.array([1.0, 1.0])


def sample_losses(actions, batch):
    states, acted, best = batch
    return jnp.square(actions[states] - best), jnp.square(actions[states] - acted)


def weigh(logits, batch):
    return 4.0 * jax.nn.sigmoid(logits[batch[0]])


def expert_loss(actions, expert):
    return jnp.mean(jnp.square(actions - expert))


BATCH = STATES, ACTED, BEST_BY_VALUE
INNER = weighted_inner(sample_losses, weigh)


def test_guidance_is_the_derivative_of_the_loss_after_the_step():
    actions, logits, rate, nudge = np.array([0.3, -0.2]), np.array([0.5, -0.4]), 0.2, 1e-2
    value, slope = guidance(INNER, expert_loss, jnp.asarray(actions), jnp.asarray(logits), BATCH, EXPERT, rate)

    def by_hand(logits):
        weight = (4.0 / (1.0 + np.exp(-logits)))[STATES]
        each = 2 * (actions[STATES] - BEST_BY_VALUE) + 2 * weight * (actions[STATES] - ACTED)
        after = actions - rate * np.array([each[s == STATES].sum() / 4 for s in (0, 1)])
        return np.mean((after - EXPERT) ** 2)

    np.testing.assert_allclose(value, by_hand(logits), rtol=1e-5)
    expected = [(by_hand(logits + d) - by_hand(logits - d)) / (2 * nudge) for d in nudge * np.eye(2)]
    np.testing.assert_allclose(slope, expected, rtol=1e-3)


def test_an_expert_holds_to_the_data_where_they_are_good_and_to_the_value_elsewhere():
    def step(carry, _):
        actions, logits = carry
        logits = logits - 5.0 * guidance(INNER, expert_loss, actions, logits, BATCH, EXPERT, 0.2)[1]
        return (actions - 0.2 * jax.grad(INNER)(actions, logits, BATCH), logits), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200)[0])
    actions, logits = run((jnp.zeros(2), jnp.zeros(2)))
    np.testing.assert_allclose(actions, EXPERT, atol=0.5)
    assert logits[0] < -1.0 < 1.0 < logits[1]
    # One weight for all, 2: a compromise between the data and the value in both states.
    fixed = (BEST_BY_VALUE + 2.0 * ACTED)[::2] / 3.0
    assert expert_loss(actions, EXPERT) < 0.2 * expert_loss(fixed, EXPERT)
