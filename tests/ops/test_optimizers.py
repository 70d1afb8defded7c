"""The optimizers that are not optax's own, against NumPy in float64 and against what they are made of."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl.acting import separate
from jaxrl.ops.optimizers import adam, gradient_transport, iterate

HPARAMS = types.SimpleNamespace(max_grad_norm=0.5)
RATE = 0.3


def run(transform, params, gradient_at, num_steps):
    """Parameters and states of all updates, the first ones included."""
    states, points = [transform.init(params)], [params]
    for _ in range(num_steps):
        updates, state = transform.update(gradient_at(points[-1], len(states) - 1), states[-1], points[-1])
        points.append(optax.apply_updates(points[-1], updates))
        states.append(state)
    return points, states


@pytest.mark.parametrize("eta_0, p, q", [(1.0, 0.8, 1.0), (0.7, 0.5, 0.3), (1.0, 0.0, 1.0)])
def test_gradient_transport_is_the_recursion(eta_0, p, q):
    """In the form of the paper: the iterate moves, the point ahead of it is taken from the last two iterates."""
    gradients = np.random.default_rng(0).normal(size=(6, 5))
    start = np.linspace(-1.0, 1.0, 5)
    theta, before, direction, ahead, want = start, start, None, [], []
    for t, gradient in enumerate(gradients):
        eta, rate = eta_0 * (2 / (t + 2)) ** p, RATE * (2 / (t + 2)) ** q
        ahead.append(theta + (1 - eta) / eta * (theta - before))
        direction = gradient if t == 0 else (1 - eta) * direction + eta * gradient
        before, theta = theta, theta - rate * direction / np.linalg.norm(direction)
        want.append(theta)

    split = lambda x: {"a": jnp.float32(x[:2]), "b": jnp.float32(x[2:].reshape(1, 3))}
    transform = gradient_transport(eta_0, p, q)(HPARAMS, jnp.float32(RATE))
    points, states = run(transform, split(start), lambda _, t: split(gradients[t]), len(gradients))
    joined = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    np.testing.assert_allclose([joined(x) for x in points[:-1]], ahead, atol=2e-6)
    np.testing.assert_allclose([joined(iterate(*x)) for x in zip(states[1:], points[1:], strict=True)], want, atol=2e-6)


def test_of_a_quadratic_the_direction_is_the_gradient_at_the_iterate():
    """What the transport is for: old gradients count as if they had been taken at the newest iterate."""
    curvature = jnp.float32([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.2]])
    transform = gradient_transport()(HPARAMS, jnp.float32(RATE))
    _, states = run(transform, jnp.float32([1.0, -1.0, 2.0]), lambda x, _: curvature @ x, 8)
    for old, new in itertools.pairwise(states):
        np.testing.assert_allclose(new.direction, curvature @ old.iterate, atol=1e-5)
        np.testing.assert_allclose(
            jnp.linalg.norm(new.iterate - old.iterate), RATE * 2 / (int(old.num_updates) + 2), rtol=1e-4
        )


def test_a_zero_gradient_moves_nothing():
    transform = gradient_transport()(HPARAMS, jnp.float32(RATE))
    points, _ = run(transform, jnp.ones(2), lambda x, _: jnp.zeros_like(x), 3)
    np.testing.assert_array_equal(points[-1], jnp.ones(2))


def test_the_rate_is_data():
    def last(rate):
        return run(gradient_transport()(HPARAMS, rate), jnp.ones(2), lambda x, _: x, 3)[0][-1]

    rates = jnp.float32([0.1, 0.2])
    np.testing.assert_allclose(jax.jit(jax.vmap(last))(rates), [last(rate) for rate in rates], rtol=1e-6)


@jax.numpy_dtype_promotion("standard")  # which optax's Adam needs
def test_separate_parts_move_as_they_would_alone():
    params = {"params": {"actor": {"kernel": jnp.ones(3)}, "critic": {"kernel": jnp.ones(2)}, "value": jnp.zeros(1)}}
    slope = jax.tree.map(lambda x: 3.0 + x, params)
    both = separate(gradient_transport(), adam, 0.01)(HPARAMS, jnp.float32(RATE))
    points, states = run(both, params, lambda _, t: jax.tree.map(lambda x: x + t, slope), 3)
    only = lambda tree, names: {name: tree["params"][name] for name in names}

    def alone(transform, *names):
        return run(transform, only(params, names), lambda _, t: jax.tree.map(lambda x: x + t, only(slope, names)), 3)

    policy, policy_states = alone(gradient_transport()(HPARAMS, jnp.float32(RATE)), "actor")
    value, _ = alone(adam(HPARAMS, jnp.float32(0.01)), "critic", "value")
    jax.tree.map(np.testing.assert_array_equal, points[-1]["params"], policy[-1] | value[-1])
    theta = iterate(states[-1], points[-1])["params"]
    jax.tree.map(np.testing.assert_array_equal, theta, policy_states[-1].iterate | value[-1])
    assert not np.allclose(theta["actor"]["kernel"], points[-1]["params"]["actor"]["kernel"], atol=1e-3)


def test_messages():
    with pytest.raises(ValueError, match="initial_momentum = 0"):
        gradient_transport(0.0)
    with pytest.raises(ValueError, match="rate_exponent = -1"):
        gradient_transport(rate_exponent=-1.0)
    with pytest.raises(ValueError, match="value_rate = 0"):
        separate(adam, value_rate=0.0)
