"""The network of value-based agents: shapes, dueling's identity, noise and fractions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks.q_network import NoisyDense, QNetworkConfig, q_network

SEEN, ACTIONS = spaces.box(-1.0, 1.0, (3,)), spaces.Discrete(4)
OBS = jax.random.normal(jax.random.key(9), (5, 3))


def made(num_outputs=1, implicit=False, **config):
    net = q_network(SEEN, ACTIONS, num_outputs, implicit, QNetworkConfig(hidden=(8, 6), **config))
    return net, jax.jit(net.init)(jax.random.key(0), OBS[0])


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(net, params, obs, key=None, num_fractions=1):
    return net.apply(params, obs, key, num_fractions)


@pytest.mark.parametrize(
    "changes", [{}, {"dueling": True}, {"noisy": True}, {"layer_norm": True, "activation": "tanh"}]
)
def test_any_leading_axes_give_the_same_values(changes):
    net, params = made(3, **changes)
    values = apply(net, params, OBS).values
    assert values.shape == (5, 4, 3)
    np.testing.assert_allclose(apply(net, params, OBS[None]).values[0], values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(net, params, OBS[2]).values, values[2], rtol=1e-5, atol=1e-6)


def test_dueling_is_value_plus_centered_advantage():
    net, params = made(2, dueling=True)
    values = apply(net, params, OBS).values
    weights = params["params"]
    x = jax.nn.relu(OBS @ weights["torso"]["Dense_0"]["kernel"])
    hidden = lambda name: jax.nn.relu(x @ weights[f"{name}_hidden"]["kernel"])
    value = hidden("value") @ weights["value"]["kernel"]
    advantage = (hidden("advantage") @ weights["advantage"]["kernel"]).reshape(5, 4, 2)
    expected = value[:, None] + advantage - advantage.mean(1, keepdims=True)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values.mean(1), value, rtol=1e-5, atol=1e-5)


def test_noise_is_factorized_and_has_the_stated_deviation():
    layer = NoisyDense(2)
    params = jax.jit(lambda key: layer.init(key, OBS, None))(jax.random.key(0))
    assert np.allclose(params["params"]["kernel_std"], 0.5 / np.sqrt(3))
    assert float(jnp.abs(params["params"]["kernel"]).max()) <= 1 / np.sqrt(3)
    unit = jnp.eye(3)
    draw = jax.jit(jax.vmap(lambda key: layer.apply(params, jnp.concatenate([jnp.zeros((1, 3)), unit]), key)))
    outputs = np.asarray(draw(jax.random.split(jax.random.key(1), 20_000)))
    biases, weights = outputs[:, :1], outputs[:, 1:] - outputs[:, :1]
    # E f(ε)² = E|ε| = √(2/π), and of a product of two the square of that.
    moment = np.sqrt(2 / np.pi)
    np.testing.assert_allclose(biases.std(0), 0.5 / np.sqrt(3) * np.sqrt(moment) * np.ones((1, 2)), rtol=0.03)
    np.testing.assert_allclose(weights.std(0), 0.5 / np.sqrt(3) * moment * np.ones((3, 2)), rtol=0.03)
    np.testing.assert_allclose(weights.mean(0), params["params"]["kernel"], atol=0.01)
    # A product of rank one: ratios between units do not depend on the input.
    noise = weights - np.asarray(params["params"]["kernel"])
    np.testing.assert_allclose(np.linalg.det(noise[:, :2]), 0.0, atol=1e-4)


def test_a_key_makes_noise_and_no_key_makes_none():
    net, params = made(noisy=True)
    assert net.stochastic
    assert not made()[0].stochastic
    one, again, other = (apply(net, params, OBS, jax.random.key(i)).values for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(apply(net, params, OBS).values, net.apply(params, OBS, None).values)


@pytest.mark.parametrize("dueling", [False, True])
def test_implicit_quantiles_are_functions_of_their_fraction(dueling):
    net, params = made(implicit=True, dueling=dueling)
    output = apply(net, params, OBS, None, 4)
    assert output.values.shape == (5, 4, 4)
    np.testing.assert_allclose(output.fractions[0], [0.125, 0.375, 0.625, 0.875])
    drawn = apply(net, params, OBS, jax.random.key(0), 4)
    assert not np.allclose(drawn.fractions[0], drawn.fractions[1])
    assert float(jnp.std(output.values, axis=-1).min()) > 0
    # Of two fractions the first is the same midpoint as of one.
    np.testing.assert_allclose(apply(net, params, OBS, None, 1).fractions, 0.5 * np.ones((5, 1)))


def test_messages():
    with pytest.raises(ValueError, match="actions must be Discrete"):
        q_network(SEEN, SEEN)
    with pytest.raises(ValueError, match="num_outputs must be a whole number"):
        q_network(SEEN, ACTIONS, 0)
    with pytest.raises(ValueError, match="hidden must be positive widths"):
        q_network(SEEN, ACTIONS, config=QNetworkConfig(hidden=()))
    with pytest.raises(ValueError, match="activation must be one of"):
        q_network(SEEN, ACTIONS, config=QNetworkConfig(activation="step"))
    assert q_network(SEEN, ACTIONS) is q_network(SEEN, ACTIONS)
