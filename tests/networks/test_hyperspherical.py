"""Layers on unit spheres: policy and critics against NumPy in float64, lengths at the beginning and after updates."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import td3
from jaxrl.networks.control import ControlConfig, coefficients, control_networks, evaluate
from jaxrl.networks.initializers import initialize
from jaxrl.ops import reward_scaling, trees
from jaxrl.ops.optimizers import adam_with, on_spheres

OBS, ACTIONS = spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,))
N, M, WIDTH = 16, 2, 8
CONFIG = ControlConfig(hidden=(WIDTH,), critic_hidden=(WIDTH, WIDTH), num_bins=5, block="hyperspherical")
POLICY, CRITIC = control_networks(OBS, ACTIONS, config=CONFIG)
DRAWS = np.random.default_rng(0)
OBSERVED, ACTED = DRAWS.normal(size=(N, 3)), DRAWS.uniform(-1, 1, size=(N, 2))


def variables(key):
    return {
        "policy": POLICY.init(key, jnp.zeros(3))["params"],
        "critic": CRITIC.init(key, jnp.zeros(3), jnp.zeros(2))["params"],
    }


def lengths(params):
    """Of the weights into each unit, of all layers that have them."""
    found = {path: leaf for path, leaf in trees.named_leaves(params).items() if "HyperDense" in path}
    return {path: np.linalg.norm(np.float64(leaf), axis=1) for path, leaf in found.items()}


def unit(x, axis=-1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def drawn():
    """Parameters none of which is at its beginning, weights of length 1."""
    shapes = jax.eval_shape(variables, jax.random.key(0))
    made = {path: DRAWS.uniform(-1, 1, leaf.shape) for path, leaf in trees.named_leaves(shapes).items()}
    made = [unit(leaf, 1) if "HyperDense" in path else leaf for path, leaf in made.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), [jnp.float32(leaf) for leaf in made])


def features(params, x, m, num_blocks):
    """Of member m, as in the authors' code: a parameter p of a scaler stands for p · start / scale."""
    tower = trees.named_leaves(jax.tree.map(np.float64, params["tower"]["HyperTower_0"]))
    weights = lambda i: tower[f"HyperDense_{i}.kernel"][m]
    scaler = lambda i: tower[f"Scaler_{i}.scaler"][m]
    x = unit(np.concatenate([x, np.full((len(x), 1), 3.0)], axis=1))
    x = unit(scaler(0) * (x @ weights(0)))
    for block in range(num_blocks):
        y = np.maximum(scaler(1 + 2 * block) * (x @ weights(1 + 2 * block)), 0.0) + 1e-8
        y = unit(y @ weights(2 + 2 * block))
        alpha = scaler(2 + 2 * block) * (1 / (num_blocks + 1)) * np.sqrt(WIDTH)
        x = unit(x + alpha * (y - x))
    return x


def head(params, x, m):
    params = jax.tree.map(np.float64, params)
    x = params["Scaler_0"]["scaler"][m] * (x @ params["HyperDense_0"]["kernel"][m])
    return x @ params["HyperDense_1"]["kernel"][m] + params["bias"][m]


def test_policy_and_critics_are_the_formulas():
    params = drawn()
    apply = jax.jit(
        lambda params, obs, action: (
            evaluate(POLICY, params["policy"], {}, obs)[0],
            evaluate(CRITIC, params["critic"], {}, obs, action, coefficients(CONFIG))[0],
        )
    )
    (mean, log_std), values = apply(params, jnp.float32(OBSERVED), jnp.float32(ACTED))
    close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    seen = features(params["policy"], OBSERVED, 0, 1)
    close(mean, head(params["policy"]["mean"], seen, 0))
    raw = head(params["policy"]["log_std"], seen, 0)
    close(log_std, -10.0 + 6.0 * (1.0 + np.tanh(raw)))
    for m in range(M):
        seen = features(params["critic"], np.concatenate([OBSERVED, ACTED], axis=1), m, 2)
        close(values[m], head(params["critic"]["value"], seen, m))


def test_lengths_at_the_beginning():
    """As agents make them. Members begin apart, with orthogonal weights, and the factors are those of the paper."""
    one = CRITIC.clone(config=dataclasses.replace(CONFIG, critic_hidden=(WIDTH,)))
    start = jax.jit(lambda key: initialize(one, key, jnp.zeros(3), jnp.zeros(2))["params"])(jax.random.key(0))
    for path, length in lengths(start).items():
        np.testing.assert_allclose(length, 1.0, rtol=1e-5, err_msg=path)
    assert len(lengths(start)) == 3 + 2
    tower = start["tower"]["HyperTower_0"]
    wide = np.float64(tower["HyperDense_2"]["kernel"])
    assert wide.shape == (M, 4 * WIDTH, WIDTH)
    np.testing.assert_allclose(
        np.einsum("mdf,mdg->mfg", wide, wide), np.broadcast_to(np.eye(WIDTH), (M, WIDTH, WIDTH)), atol=1e-5
    )
    assert not np.allclose(wide[0], wide[1])
    begin = {name: float(tower[name]["scaler"][0, 0]) for name in ("Scaler_0", "Scaler_1", "Scaler_2")}
    expected = {"Scaler_0": (2 / WIDTH) ** 0.5, "Scaler_1": (2 / WIDTH) ** 0.5 / 2, "Scaler_2": WIDTH**-0.5}
    assert begin == pytest.approx(expected)


@jax.numpy_dtype_promotion("standard")  # which optax's Adam needs
def test_updates_stay_on_the_spheres():
    """One update is Adam's, then projected; after ten the lengths are 1, where Adam alone leaves them."""
    hparams, rate, start = types.SimpleNamespace(max_grad_norm=1e9), jnp.float32(0.1), drawn()["critic"]["value"]
    slope = jax.tree.map(lambda x: jnp.float32(DRAWS.normal(size=x.shape)), start)

    def moved(optimizer):
        transform = optimizer(hparams, rate)

        def body(carry, _):
            params, state = carry
            updates, state = transform.update(slope, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(body, (start, transform.init(start)), None, 10)[1]

    free, held = jax.jit(lambda: (moved(adam_with()), moved(on_spheres(adam_with()))))()
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    first = trees.named_leaves(at(held, 0))
    for path, leaf in trees.named_leaves(at(free, 0)).items():
        expected = unit(np.float64(leaf), 1) if "HyperDense" in path else leaf
        np.testing.assert_allclose(first[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)
    assert len(lengths(at(held, 9))) == 2
    assert max(abs(length - 1).max() for length in lengths(at(free, 9)).values()) > 0.1
    for path, length in lengths(at(held, 9)).items():
        np.testing.assert_allclose(length, 1.0, rtol=1e-6, err_msg=path)


def test_returns_are_scaled_to_a_bound():
    """Rollout after rollout against a loop in float64 over all of them."""
    rewards, ended = DRAWS.normal(size=(3, 8, 2)) * 3 - 1, DRAWS.uniform(size=(3, 8, 2)) < 0.2
    scale, running, seen = reward_scaling.init_return_scale(2), np.zeros(2), []
    for rows, ends in zip(rewards, ended, strict=True):
        scale = reward_scaling.observe_returns(scale, jnp.float32(rows), jnp.asarray(ends), jnp.float32(0.9))
        for row, end in zip(rows, ends, strict=True):
            running = 0.9 * running + row
            seen.append(running)
            running = np.where(end, 0.0, running)
        greatest, deviation = np.abs(seen).max(), np.std(seen)
        for bound in (0.5 * greatest / deviation, 2 * greatest / deviation):
            divisor = reward_scaling.return_divisor(scale, jnp.float32(bound))
            np.testing.assert_allclose(divisor, max(deviation, greatest / bound), rtol=1e-5)
        assert greatest / float(reward_scaling.return_divisor(scale, 0.5)) <= 0.5 + 1e-6


def test_messages():
    with pytest.raises(ValueError, match="hyperspherical blocks have a normalization of their own"):
        control_networks(OBS, ACTIONS, config=dataclasses.replace(CONFIG, norm="layer"))
    with pytest.raises(ValueError, match=r"and one width; got .* critic_hidden = \(8, 4\)"):
        control_networks(OBS, ACTIONS, config=dataclasses.replace(CONFIG, critic_hidden=(8, 4)))
    config = td3.Config(regularizer="beer", network=dataclasses.replace(CONFIG, num_bins=0))
    with pytest.raises(ValueError, match="td3: a regularizer needs features that a value is linear in"):
        td3.td3(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
    pendulum = jaxrl.make("simba_v2", jaxrl.make_env("gymnax/Pendulum-v1"))
    assert float(pendulum.hyperparams().network.support.high) == 5.0
    plain = jaxrl.make("simba_v2", jaxrl.make_env("gymnax/Pendulum-v1"), normalize_rewards=False)
    assert float(plain.hyperparams().network.support.high) == 250.0
    with pytest.raises(ValueError, match=r"return_bound = 2\.0 has no effect"):
        plain.hyperparams(return_bound=2.0)
