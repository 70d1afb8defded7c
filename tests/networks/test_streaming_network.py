"""The parts of the streaming network: sparse weights, windows, normalization, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks import streaming
from jaxrl.networks.initializers import initialize
from jaxrl.networks.streaming import StreamingConfig, streaming_network
from jaxrl.ops import trees

VECTOR = spaces.box(-1.0, 1.0, (20,))
IMAGE = spaces.box(0.0, 1.0, (10, 10, 4))


def built(space, **config):
    net = streaming_network(space, (("value", 3),), StreamingConfig(**{"hidden": (16, 8), **config}))
    return net, jax.jit(net.init)(jax.random.key(0), jnp.zeros(space.shape))


@pytest.mark.parametrize("fan_in, kept", [(20, 2), (128, 12), (10, 1), (4, 1), (1, 1)])
def test_sparse_weights(fan_in, kept):
    """⌈0.9 fan_in⌉ zeros into each unit, but never all of them."""
    kernel = np.asarray(streaming.sparse(0.9)(jax.random.key(1), (fan_in, 40), jnp.float32))
    assert ((kernel != 0).sum(axis=0) == kept).all()
    assert np.abs(kernel).max() <= 1 / np.sqrt(fan_in)
    if fan_in > kept:
        assert len({tuple(column) for column in (kernel != 0).T}) > 1, "each unit draws its own inputs"


def test_windows_are_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    got = streaming._windows(x, 3, 2) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("space", [VECTOR, IMAGE])
def test_leading_axes_are_free_and_do_not_mix(space):
    net, params = built(space)
    obs = jax.random.normal(jax.random.key(2), (3, 2, *space.shape))
    together = net.apply(params, obs)["value"]
    alone = jnp.stack([jnp.stack([net.apply(params, obs[i, j])["value"] for j in range(2)]) for i in range(3)])
    assert together.shape == (3, 2, 3)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_layer_norm_makes_the_output_blind_to_the_scale_of_the_input():
    obs = jax.random.normal(jax.random.key(2), VECTOR.shape)
    for layer_norm in (True, False):
        net, params = built(VECTOR, layer_norm=layer_norm, initializer="orthogonal")
        same = np.allclose(net.apply(params, 100 * obs)["value"], net.apply(params, 1000 * obs)["value"], rtol=1e-3)
        assert same == layer_norm


def test_unit_features_bound_the_output_by_the_last_weights():
    net, params = built(VECTOR, layer_norm=False, unit_features=True)
    value = net.apply(params, 1e3 * jnp.ones(VECTOR.shape))["value"]
    bound = np.linalg.norm(params["params"]["value"]["kernel"], axis=0)
    assert (np.abs(value) <= bound + 1e-6).all()


def test_weight_norm_starts_as_the_plain_network_and_splits_length_from_direction():
    net, params = built(VECTOR, weight_norm=True)
    plain, _ = built(VECTOR)
    obs = jax.random.normal(jax.random.key(2), VECTOR.shape)
    layers = params["params"]
    assert all("scale" in layer for layer in layers.values())
    without = {"params": {n: {k: v for k, v in layer.items() if k != "scale"} for n, layer in layers.items()}}
    value = net.apply(params, obs)["value"]
    np.testing.assert_allclose(value, plain.apply(without, obs)["value"], atol=1e-6)
    longer = jax.tree_util.tree_map_with_path(lambda path, x: 3 * x if path[-1].key == "kernel" else x, params)
    np.testing.assert_allclose(net.apply(longer, obs)["value"], value, atol=1e-5)


def test_weight_norm_of_orthogonal_weights_is_not_zero():
    """Orthogonal kernels are made after the network was traced once with zeros in their place."""
    net = streaming_network(VECTOR, (("q", 3),), StreamingConfig(initializer="orthogonal", weight_norm=True))
    params = initialize(net, jax.random.key(0), jnp.zeros(VECTOR.shape))
    for path, leaf in trees.named_leaves(params).items():
        if path.endswith("scale"):
            assert (leaf > 0.1).all(), path


@pytest.mark.parametrize(
    "space, size", [(spaces.Discrete(3), ()), (spaces.MultiDiscrete((2, 3)), (2,)), (spaces.box(-1.0, 1.0, (2,)), (2,))]
)
def test_policies_of_all_spaces(space, size):
    net = streaming_network(VECTOR, streaming.policy_outputs(space))
    params = net.init(jax.random.key(0), jnp.zeros(VECTOR.shape))
    policy = streaming.policy_distribution(space, net.apply(params, jnp.ones((4, *VECTOR.shape))))
    action = policy.sample(jax.random.key(1))
    assert action.shape == (4, *size)
    assert np.isfinite(policy.log_prob(action)).all()


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
@pytest.mark.parametrize(
    "space, legal", [(spaces.MultiDiscrete((2, 3)), [{0}, {0, 2}]), (spaces.Discrete(5), [{0, 2, 4}])]
)
def test_illegal_actions_are_not_drawn(space, legal, shape):
    """Of several parts the masks are one after the other, as `actor_critic` takes them."""
    mask = jnp.array([True, False, True, False, True]).reshape(shape)
    logits = jnp.array([0.0, 3.0, 0.0, 3.0, 0.0])
    policy = streaming.policy_distribution(space, {"policy": logits}, mask)
    drawn = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 100))).reshape(100, -1)
    assert [set(column) for column in drawn.T] == legal
    assert all(int(action) in part for action, part in zip(jnp.ravel(policy.mode()), legal, strict=True))


@pytest.mark.parametrize(
    "config, rule",
    [
        ({"sparsity": 1.5}, "sparsity must be from 0 to 1"),
        ({"initializer": "zeros"}, "initializer must be sparse or orthogonal"),
        ({"hidden": ()}, "hidden must be positive widths"),
    ],
)
def test_errors(config, rule):
    with pytest.raises(ValueError, match=rule):
        streaming_network(VECTOR, (("value", 1),), StreamingConfig(**config))


def test_no_policy_over_a_dict_of_actions():
    with pytest.raises(ValueError, match="There is no policy over actions"):
        streaming.policy_outputs(spaces.Dict((("a", spaces.Discrete(2)),)))


def test_the_slope_at_zero_is_that_of_the_negative_side():
    """The first normalized observation is zero, and so are all units then: a slope of 1 there would make the first
    gradient a hundred times the authors' (`jaxrl/algorithms/stream_td.py`)."""
    net = streaming_network(spaces.box(-1.0, 1.0, (3,)), (("value", 1),), StreamingConfig((4,), layer_norm=False))
    params = net.init(jax.random.key(0), jnp.zeros(3))
    gradient = jax.grad(lambda params: net.apply(params, jnp.zeros(3))["value"][0])(params)["params"]
    expected = 0.01 * params["params"]["value"]["kernel"][:, 0]
    np.testing.assert_allclose(gradient["Layer_0"]["bias"], expected, rtol=1e-6)
