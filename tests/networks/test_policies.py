"""Every policy of the actor-critic: it builds, says the right thing of its space, and refuses what it cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks.actor_critic import actor_critic, apply_one, init_params, to_env_action
from jaxrl.networks.torsos import MLP
from jaxrl.ops import distributions

OBSERVATION = spaces.Box(-1.0, 1.0, (5,))
BOX = spaces.Box((-1.0, 0.0), (3.0, 0.5), (2,))
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,))
PARTS = spaces.MultiDiscrete((2, 3, 2))

POLICIES = {
    "gaussian": (BOX, {}, distributions.Gaussian),
    "tanh_gaussian": (BOX, {}, distributions.TanhGaussian),
    "mixture": (BOX, {"num_components": 3}, distributions.GaussianMixture),
    "bang_bang": (BOX, {}, distributions.BangBang),
    "bang_off_bang": (BOX, {}, distributions.BangBang),
    "autoregressive": (PARTS, {}, distributions.AutoregressiveCategorical),
}


def build(action_space, observation_space=OBSERVATION, **options):
    net = actor_critic(observation_space, action_space, **{"hidden": (8,), **options})
    return net, init_params(net, jax.random.key(0), spaces.zeros(observation_space))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_policy_is_over_the_action_space(policy, memory):
    space, options, kind = POLICIES[policy]
    net, params = build(space, policy=policy, memory=memory, memory_size=4, **options)
    obs = jax.random.normal(jax.random.key(1), (5,))
    output, _ = apply_one(net, params, obs, net.initial_memory())
    assert isinstance(output.policy, kind)
    for action in (output.policy.sample(jax.random.key(2)), output.policy.mode()):
        assert spaces.contains(space, to_env_action(space, action))
    # every leaf has the batch's axes, as stacking and shuffling a rollout need
    if memory == "none":
        batch = net.apply(params, jnp.stack([obs] * 7))[0].policy
        for one, seven in zip(jax.tree.leaves(output.policy), jax.tree.leaves(batch), strict=True):
            assert seven.shape == (7, *one.shape)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_nearly_uniform_or_normal_at_first(policy):
    space, options, _ = POLICIES[policy]
    net, params = build(space, policy=policy, **options)
    entropy = net.apply(params, jnp.zeros(5))[0].policy.entropy()
    normal = 2 * 0.5 * np.log(2 * np.pi * np.e)
    expected = {"bang_bang": 2 * np.log(2), "bang_off_bang": 2 * np.log(3), "autoregressive": np.log(12)}
    if policy != "tanh_gaussian":
        np.testing.assert_allclose(entropy, expected.get(policy, normal), rtol=1e-3)


def test_bang_bang_actions_are_the_bounds():
    net, params = build(BOX, policy="bang_bang")
    policy = net.apply(params, jnp.zeros(5))[0].policy
    actions = to_env_action(BOX, jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 100)))
    for i in range(2):
        assert set(np.unique(actions[:, i])) == {BOX.low_array[i], BOX.high_array[i]}


def test_bang_bang_has_one_logit_for_each_entry():
    _, params = build(BOX, policy="bang_bang")
    assert params["params"]["policy"]["bias"].shape == (2,)


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian", "mixture"])
def test_standard_deviation_of_the_state(policy):
    for state_std in (False, True):
        net, params = build(BOX, policy=policy, state_std=state_std)
        params = jax.tree.map(lambda x: x + 0.1, params)
        log_std = net.apply(params, jax.random.normal(jax.random.key(1), (2, 5)))[0].policy.log_std
        assert (float(jnp.max(jnp.abs(log_std[0] - log_std[1]))) > 1e-3) == state_std


@pytest.mark.parametrize("policy", ["gaussian", "autoregressive"])
@pytest.mark.parametrize("shape", [(7,), (1, 7)])
def test_mask_of_several_parts(policy, shape):
    observation_space = spaces.Dict((("x", OBSERVATION), ("action_mask", spaces.box(0, 1, shape, jnp.bool_))))
    net, params = build(PARTS, observation_space, policy=policy)
    mask = jnp.array([[True, True, False, True, True, True, False]] * 4).reshape(4, *shape)
    draws = net.apply(params, {"x": jnp.ones((4, 5)), "action_mask": mask})[0].policy
    drawn = np.asarray(jax.vmap(draws.sample)(jax.random.split(jax.random.key(0), 200))).reshape(-1, 3)
    assert [set(drawn[:, i]) for i in range(3)] == [{0, 1}, {1, 2}, {0}]


ERRORS = [
    ({"policy": "beta"}, BOX, "policy must be one of gaussian, tanh_gaussian, mixture, .*; got policy = 'beta'"),
    ({"policy": "tanh_gaussian"}, UNBOUNDED, "'tanh_gaussian' needs a Box of actions with finite bounds"),
    ({"policy": "bang_bang"}, UNBOUNDED, "'bang_bang' needs a Box of actions with finite bounds"),
    ({"policy": "bang_off_bang"}, PARTS, "'bang_off_bang' needs a Box of actions with finite bounds"),
    ({"policy": "mixture"}, spaces.Discrete(3), "'mixture' needs a Box of actions; got Discrete"),
    ({"policy": "autoregressive"}, BOX, "'autoregressive' needs a MultiDiscrete of at least two parts"),
    ({"policy": "autoregressive"}, spaces.MultiDiscrete((4,)), "at least two parts; got MultiDiscrete"),
    ({"policy": "autoregressive"}, spaces.MultiDiscrete((70, 70)), "at most 4096; got nvec = .* 4900 combinations"),
    ({"num_components": 0, "policy": "mixture"}, BOX, "at least 1; got num_components = 0"),
    ({"num_components": 2}, BOX, "policy = 'mixture' only; got num_components = 2 with policy = 'gaussian'"),
    ({"state_std": True, "policy": "bang_bang"}, BOX, "state_std needs a policy with a standard deviation"),
    ({"state_std": True}, PARTS, "state_std needs a policy with a standard deviation"),
    ({}, spaces.Dict((("a", BOX),)), "no head for a Dict of actions"),
]


@pytest.mark.parametrize(("options", "space", "message"), ERRORS)
def test_what_does_not_fit_is_refused(options, space, message):
    with pytest.raises(ValueError, match=message):
        actor_critic(OBSERVATION, space, **options)


@pytest.mark.parametrize(("space", "message"), [(PARTS, "7 entries, the parts' masks"), (spaces.Discrete(4), "4 entr")])
def test_mask_of_another_size_is_refused(space, message):
    observation_space = spaces.Dict((("x", OBSERVATION), ("action_mask", spaces.box(0, 1, (5,), jnp.bool_))))
    with pytest.raises(ValueError, match=message):
        actor_critic(observation_space, space)


# Weight normalization


def test_weight_norm_is_length_times_direction():
    mlp = MLP((4, 3), "relu", weight_norm=True)
    x = jax.random.normal(jax.random.key(1), (6, 5))
    variables = mlp.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), variables)
    expected = np.asarray(x)
    for i in range(2):
        layer = params["params"][f"Dense_{i}"]
        (length,) = params["params"][f"WeightNorm_{i}"].values()
        kernel = np.asarray(layer["kernel"])
        kernel = kernel * (np.asarray(length) / np.linalg.norm(kernel, axis=0))
        expected = np.maximum(expected @ kernel + np.asarray(layer["bias"]), 0)
    np.testing.assert_allclose(mlp.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_weight_norm_starts_at_the_lengths_of_narrowing_layers():
    x = jax.random.normal(jax.random.key(1), (6, 8))
    plain = MLP((4, 3)).init(jax.random.key(0), x)["params"]
    normed = MLP((4, 3), weight_norm=True).init(jax.random.key(0), x)["params"]
    for i in range(2):
        length = np.linalg.norm(plain[f"Dense_{i}"]["kernel"], axis=0)
        (scale,) = normed[f"WeightNorm_{i}"].values()
        np.testing.assert_allclose(scale, length, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(normed[f"Dense_{i}"]["kernel"], axis=0), length, rtol=1e-5)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_weight_norm_of_an_actor_critic(memory):
    net, params = build(BOX, weight_norm=True, memory=memory, memory_size=4)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    assert sum("scale" in name for name in names) == (1 if memory == "gru" else 2)
    output, _ = apply_one(net, params, jnp.ones(5), net.initial_memory())
    assert np.isfinite(output.value)
