"""Implicit gradients: solvers against dense solves, hypergradients against differences of exact inner solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.meta.implicit import System, conjugate, fixed_point, hypergradient, neumann, stationary

NUM_STATES, NUM_ACTIONS, GAMMA, TAU = 4, 3, 0.7, 0.5
DRAWS = np.random.default_rng(0)
MOVES = DRAWS.dirichlet(np.full(NUM_STATES, 0.5), (NUM_STATES, NUM_ACTIONS))
TRUE = DRAWS.normal(size=(NUM_STATES, NUM_ACTIONS))
LEARNED = DRAWS.normal(size=(NUM_STATES, NUM_ACTIONS))
START = DRAWS.dirichlet(np.ones(NUM_STATES))


def dense(symmetric):
    root = DRAWS.normal(size=(5, 5))
    matrix = root @ root.T / 5 + 0.5 * np.eye(5) if symmetric else np.eye(5) + 0.2 * root
    return matrix, DRAWS.normal(size=5)


def system(matrix, target):
    """M and b over a tree of two leaves."""
    split = lambda x: {"a": x[:2], "b": x[2:].reshape(3, 1)}
    join = lambda tree: jnp.concatenate([tree["a"], tree["b"].ravel()])
    return System(lambda v: split(matrix.T @ join(v)), lambda v: split(matrix @ join(v)), split(target)), join


@pytest.mark.parametrize("symmetric", [True, False])
def test_solvers_are_the_dense_solve(symmetric):
    matrix, target = dense(symmetric)
    step = 1.0 / np.linalg.norm(matrix, 2)
    solvers = (conjugate(5, symmetric=symmetric), neumann(400, step), neumann(3, step))

    @jax.jit
    def solve(matrix, target):
        given, join = system(matrix, target)
        return [join(solver(given)) for solver in solvers]

    exact = np.linalg.solve(matrix.T, target)
    few = sum(np.linalg.matrix_power(np.eye(5) - step * matrix.T, j) @ target for j in range(3)) * step
    for found, wanted in zip(solve(matrix, target), (exact, exact, few), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    assert abs(few - exact).max() > 0.05


def soft_optimal(reward, gamma):
    """Q* of the entropy-regularized problem in float64, by value iteration."""
    value = np.zeros(NUM_STATES)
    for _ in range(400):
        q = reward + gamma * MOVES @ value
        value = TAU * np.log(np.exp(q / TAU).sum(-1))
    return q


def exact_return(q, reward=TRUE, gamma=GAMMA):
    policy = np.exp(q / TAU) / np.exp(q / TAU).sum(-1, keepdims=True)
    matrix = np.eye(NUM_STATES) - gamma * np.einsum("sa,sat->st", policy, MOVES)
    return START @ np.linalg.solve(matrix, (policy * reward).sum(-1))


def finite_differences(learned=LEARNED):
    """dL/dr and dL/dγ, L being the negative true return of the policy that is optimal for a reward and a discount."""
    loss = lambda reward, gamma: -exact_return(soft_optimal(reward, gamma))
    nudge, by_reward = 1e-5, np.zeros_like(learned)
    for index in np.ndindex(learned.shape):
        step = np.zeros_like(learned)
        step[index] = nudge
        by_reward[index] = (loss(learned + step, GAMMA) - loss(learned - step, GAMMA)) / (2 * nudge)
    by_gamma = (loss(learned, GAMMA + nudge) - loss(learned, GAMMA - nudge)) / (2 * nudge)
    return by_reward, by_gamma


def policy_return(logits, reward, gamma, entropy_coef=0.0):
    """The same for `jax.grad`; 64 steps of it, by squaring, since 0.7^64 is nothing."""
    policy, moves = jax.nn.softmax(logits), jnp.asarray(MOVES, jnp.float32)
    value = jnp.sum(policy * (reward - entropy_coef * jax.nn.log_softmax(logits)), -1)
    power = gamma * jnp.einsum("sa,sat->st", policy, moves)
    for _ in range(6):
        value, power = value + power @ value, power @ power
    return jnp.asarray(START, jnp.float32) @ value


META = {"reward": jnp.asarray(LEARNED, jnp.float32), "gamma": jnp.float32(GAMMA)}


def outer(logits, meta):
    del meta
    return -policy_return(logits, jnp.asarray(TRUE, jnp.float32), GAMMA)


def inner_loss(logits, meta):
    return -policy_return(logits, meta["reward"], meta["gamma"], TAU)


def soft_backup(q, meta):
    value = TAU * jax.nn.logsumexp(q / TAU, axis=-1)
    return meta["reward"] + meta["gamma"] * jnp.asarray(MOVES, jnp.float32) @ value


def test_the_stationary_point_of_a_policy_gradient():
    """A direction of the logits of each state changes nothing: the Hessian is singular, and it does not matter."""
    logits = jnp.asarray(soft_optimal(LEARNED, GAMMA) / TAU, jnp.float32)
    solvers = (conjugate(12), neumann(600, 1.5), neumann(50, 1.5))
    run = lambda x, meta: [hypergradient(outer, stationary(inner_loss), x, meta, solver) for solver in solvers]
    by_reward, by_gamma = finite_differences()
    assert abs(by_reward).max() > 0.05
    for (value, found), share in zip(jax.jit(run)(logits, META), (3e-3, 3e-3, 0.1), strict=True):
        np.testing.assert_allclose(value, -exact_return(soft_optimal(LEARNED, GAMMA)), rtol=1e-4)
        np.testing.assert_allclose(found["reward"], by_reward, atol=share * abs(by_reward).max())
        np.testing.assert_allclose(found["gamma"], by_gamma, rtol=share)


def test_the_fixed_point_of_value_iteration_and_its_map_over_problems():
    """The same derivative through another equation, of two problems at once."""
    play = lambda q, meta: outer(q / TAU, meta)
    run = lambda q, meta: hypergradient(play, fixed_point(soft_backup), q, meta, neumann(60, 1.0))[1]
    learned = [LEARNED, LEARNED + 0.3 * TRUE]
    q = jnp.asarray(np.stack([soft_optimal(reward, GAMMA) for reward in learned]), jnp.float32)
    meta = {"reward": jnp.asarray(np.stack(learned), jnp.float32), "gamma": jnp.full(2, GAMMA, jnp.float32)}
    found = jax.jit(jax.vmap(run))(q, meta)
    for i, reward in enumerate(learned):
        by_reward, by_gamma = finite_differences(reward)
        np.testing.assert_allclose(found["reward"][i], by_reward, atol=2e-3 * abs(by_reward).max())
        np.testing.assert_allclose(found["gamma"][i], by_gamma, rtol=2e-3)


def test_damping_is_added_to_the_matrix():
    inner = lambda theta, phi: 0.5 * 3.0 * theta**2 - phi * theta
    value, slope = hypergradient(lambda theta, phi: theta, stationary(inner), 1.0, 3.0, conjugate(1), damping=1.0)
    np.testing.assert_allclose([value, slope], [1.0, 0.25], rtol=1e-6)


def test_counts_are_checked():
    with pytest.raises(ValueError, match="num_terms must be"):
        neumann(0, 1.0)
    with pytest.raises(ValueError, match="num_steps must be"):
        conjugate(0)
