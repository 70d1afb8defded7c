"""Networks of off-policy control against the formulas written out: towers, dropout, renormalization, joint moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import ensembles, spaces
from jaxrl.networks import members
from jaxrl.networks.control import ControlConfig, coefficients, control_networks, evaluate
from jaxrl.networks.members import Coefficients, Renormalization

OBS, ACTIONS = spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,))
N, M = 16, 3
DRAWS = np.random.default_rng(0)
OBSERVED, ACTED = DRAWS.normal(size=(N, 3)), DRAWS.uniform(-1, 1, size=(N, 2))
INPUTS = np.concatenate([OBSERVED, ACTED], axis=1)


def nets(**changes):
    return control_networks(OBS, ACTIONS, config=ControlConfig(hidden=(8, 8), num_critics=M, **changes))


def variables(module, *inputs):
    """Parameters and moments, none of them at its neutral value."""
    made = jax.jit(module.init)(jax.random.key(0), *inputs)
    leaves, structure = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(1), len(leaves))

    def shaken(x, key):
        return x if x.dtype == jnp.int32 else x + 0.2 * jax.random.uniform(key, x.shape)

    made = jax.tree.unflatten(structure, [shaken(x, key) for x, key in zip(leaves, keys, strict=True)])
    return made.pop("params"), made


def weights(tree):
    return jax.tree.map(np.float64, tree)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def tower(params, x, m, norm="none"):
    """Member m, without batch normalization."""
    for i in range(2):
        layer = params["tower"][f"Dense_{i}"]
        x = x @ layer["kernel"][m] + layer["bias"][m]
        if norm == "layer":
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
            scale = params["tower"][f"LayerNorm_{i}"]
            x = x * scale["scale"][m] + scale["bias"][m]
        x = np.maximum(x, 0.0)
    return x


def test_residual_blocks():
    """Lee et al. 2025, figure 4, each member by itself."""
    critic = nets(block="residual", num_bins=4).critic
    params, _ = variables(critic, jnp.zeros(3), jnp.zeros(2))
    found, _ = evaluate(critic, params, {}, jnp.float32(OBSERVED), jnp.float32(ACTED))
    layers, params = weights(params)["tower"], weights(params)
    dense = lambda i, x, m: x @ layers[f"Dense_{i}"]["kernel"][m] + layers[f"Dense_{i}"]["bias"][m]

    def normalized(i, x, m):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * layers[f"LayerNorm_{i}"]["scale"][m] + layers[f"LayerNorm_{i}"]["bias"][m]

    assert layers["Dense_1"]["kernel"].shape == (M, 8, 32)
    for m in range(M):
        x = dense(0, INPUTS, m)
        for i in range(2):
            x = x + dense(2 * i + 2, np.maximum(dense(2 * i + 1, normalized(i, x, m), m), 0.0), m)
        x = normalized(2, x, m)
        close(found[m], x @ params["value"]["kernel"][m] + params["value"]["bias"][m])


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_members_are_networks_of_their_own(norm):
    critic = nets(norm=norm, num_quantiles=4).critic
    params, rest = variables(critic, jnp.zeros(3), jnp.zeros(2))
    assert rest == {}
    exact = weights(params)
    expected = [
        tower(exact, INPUTS, m, norm) @ exact["value"]["kernel"][m] + exact["value"]["bias"][m] for m in range(M)
    ]
    found, _ = evaluate(critic, params, {}, jnp.float32(OBSERVED), jnp.float32(ACTED))
    close(found, expected)
    some = critic.clone(num_members=2)
    index = jnp.array([2, 0])
    found, _ = evaluate(some, ensembles.pick(params, index), {}, jnp.float32(OBSERVED), jnp.float32(ACTED))
    close(found, [expected[2], expected[0]])
    # Leading axes are free.
    found, _ = evaluate(critic, params, {}, jnp.float32(OBSERVED).reshape(4, 4, 3), jnp.float32(ACTED).reshape(4, 4, 2))
    close(found, np.reshape(expected, (M, 4, 4, 4)))


def test_policy():
    policy = nets().policy
    params, _ = variables(policy, jnp.zeros(3))
    exact = weights(params)
    (mean, log_std), _ = evaluate(policy, params, {}, jnp.float32(OBSERVED))
    features = tower(exact, OBSERVED, 0)
    close(mean, features @ exact["mean"]["kernel"][0] + exact["mean"]["bias"][0])
    close(log_std, features @ exact["log_std"]["kernel"][0] + exact["log_std"]["bias"][0])


def test_members_start_apart_with_the_variance_of_their_inputs():
    critic = control_networks(OBS, ACTIONS, config=ControlConfig(hidden=(400, 200), num_critics=M)).critic
    kernel = np.asarray(
        jax.jit(critic.init)(jax.random.key(0), jnp.zeros(3), jnp.zeros(2))["params"]["tower"]["Dense_1"]["kernel"]
    )
    np.testing.assert_allclose(kernel.std((1, 2)), 400**-0.5, rtol=0.02)
    assert abs(np.corrcoef(kernel.reshape(M, -1))[0, 1]) < 0.02


def test_dropout_is_in_training_only():
    """Half of the units of each layer go, others count twice; without a key none does."""
    critic = nets(dropout=True).critic
    params, _ = variables(critic, jnp.zeros(3), jnp.zeros(2))
    rate = Coefficients(jnp.float32(0.5), (), (), ())
    inputs = jnp.float32(OBSERVED), jnp.float32(ACTED), rate
    without, _ = evaluate(critic, params, {}, *inputs, None)
    exact = weights(params)
    close(without[0], tower(exact, INPUTS, 0) @ exact["value"]["kernel"][0] + exact["value"]["bias"][0])
    first, again, other = (evaluate(critic, params, {}, *inputs, jax.random.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, without)
    dropped = members.drop(jnp.ones((100, 100)), jnp.float32(0.25), jax.random.key(0))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / 0.75], rtol=1e-6)
    # The standard error of the share is 0.0043.
    np.testing.assert_allclose(jnp.mean(dropped == 0.0), 0.25, atol=0.02)


MEAN, VARIANCE, SCALE, SHIFT = DRAWS.normal(size=(4, M, 5))
BATCH = DRAWS.normal(size=(M, N, 5)) * 3 + 1
NUMBERS = Renormalization(*map(jnp.float32, (0.9, 10.0, 1.5, 0.4)))


@pytest.mark.parametrize("num_updates, train", [(9, True), (10, True), (10, False)])
def test_renormalization(num_updates, train):
    """Ioffe 2017, algorithm 1: r and d from the tenth update on; both bounds are reached by some units."""
    variance = np.abs(VARIANCE) * 9
    stats = {"mean": MEAN, "variance": variance, "num_updates": num_updates}
    stats = {name: jnp.asarray(x, jnp.int32 if name == "num_updates" else jnp.float32) for name, x in stats.items()}
    given = {"params": {"scale": jnp.float32(SCALE), "bias": jnp.float32(SHIFT)}, "batch_stats": stats}

    def total(x):
        y, after = members.Renorm().apply(given, x, NUMBERS, train, mutable=["batch_stats"])
        return jnp.sum(y * jnp.float32(WEIGHT)), (y, after["batch_stats"])

    gradient, (found, after) = jax.jit(jax.grad(total, has_aux=True))(jnp.float32(BATCH))
    mean, deviation = BATCH.mean(1), np.sqrt(BATCH.var(1) + 1e-3)
    ratio, offset = np.ones_like(mean), np.zeros_like(mean)
    if num_updates >= 10:
        ratio = np.clip(deviation / np.sqrt(variance + 1e-3), 1 / 1.5, 1.5)
        offset = np.clip((mean - MEAN) / np.sqrt(variance + 1e-3), -0.4, 0.4)
        assert len({*np.round(ratio, 6).ravel()} & {1.5, round(1 / 1.5, 6)}) == 2
        assert {-0.4, 0.4} <= {*np.round(offset, 6).ravel()}
    if not train:
        mean, deviation, ratio, offset = MEAN, np.sqrt(variance + 1e-3), np.ones_like(mean), np.zeros_like(mean)
    full = lambda x: np.broadcast_to(x[:, None], BATCH.shape)
    centered = (BATCH - full(mean)) / full(deviation)
    close(found, (centered * full(ratio) + full(offset)) * full(SCALE) + full(SHIFT))
    slope = WEIGHT * full(SCALE * ratio / deviation)
    if train:
        # Through the batch's moments too; r and d are constants. Of σ the derivative has ε in it.
        along = (slope * centered).mean(1)
        slope = slope - full(slope.mean(1)) - centered * full(along)
        close(after["mean"], 0.9 * MEAN + 0.1 * mean)
        close(after["variance"], 0.9 * variance + 0.1 * BATCH.var(1))
    assert after["num_updates"] == num_updates + train
    close(gradient, slope, 1e-4)


WEIGHT = DRAWS.normal(size=BATCH.shape)


def test_one_forward_pass_sees_both_halves():
    """CrossQ: the moments are those of both ends of transitions together, and only training moves them."""
    critic = nets(norm="batch").critic
    params, moments = variables(critic, jnp.zeros(3), jnp.zeros(2))
    numbers = coefficients(critic.config)
    obs, action = jnp.float32(OBSERVED), jnp.float32(ACTED)
    ends = jnp.concatenate([obs, 5.0 - obs]), jnp.concatenate([action, action])
    both, after = evaluate(critic, params, moments, *ends, numbers, None, True)
    before = np.float64(moments["batch_stats"]["tower"]["Renorm_0"]["mean"])
    found = np.float64(after["batch_stats"]["tower"]["Renorm_0"]["mean"])
    joined = np.concatenate([np.concatenate(ends, axis=1)]).mean(0)
    close(found, 0.99 * before + 0.01 * np.broadcast_to(joined, before.shape))
    alone, _ = evaluate(critic, params, moments, obs, action, numbers, None, True)
    assert not np.allclose(both[:, :N], alone, atol=1e-2)
    acting, unchanged = evaluate(critic, params, moments, obs, action, numbers)
    assert not np.allclose(acting, alone, atol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, unchanged, moments)


def test_messages():
    with pytest.raises(ValueError, match="actions must be Discrete or a Box with finite bounds"):
        control_networks(OBS, spaces.box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match="critics of discrete actions learn means only"):
        control_networks(OBS, spaces.Discrete(2), config=ControlConfig(num_quantiles=5))
    with pytest.raises(ValueError, match="at least 2 bins and excludes quantiles"):
        nets(num_bins=5, num_quantiles=5)
    with pytest.raises(ValueError, match="and one width"):
        nets(block="residual", critic_hidden=(8, 4))
    with pytest.raises(ValueError, match="norm must be one of none, layer, batch"):
        nets(norm="group")
    with pytest.raises(ValueError, match="widths must be positive"):
        nets(critic_hidden=(0,))
    with pytest.raises(ValueError, match="num_critics must be a whole number"):
        control_networks(OBS, ACTIONS, config=ControlConfig(num_critics=0))
