"""A network applied to one observation, to a step of a batch and to a whole rollout says the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks.actor_critic import (
    actor_critic,
    apply_one,
    apply_step,
    init_params,
    memories_of,
    only_value_reads,
    successor_value,
)

NUM_STEPS, NUM_ENVS = 4, 3


@pytest.fixture(params=[("none", True), ("gru", True), ("s5", True), ("lstm", False)])
def setting(request):
    memory, share = request.param
    options = {"hidden": (8,), "memory": memory, "memory_size": 4, "share_core": share}
    net = actor_critic(spaces.Box(-1.0, 1.0, (5,)), spaces.Discrete(2), **options)
    key_params, key_obs, key_start = jax.random.split(jax.random.key(0), 3)
    obs = jax.random.normal(key_obs, (NUM_STEPS, NUM_ENVS, 5))
    start = jax.random.bernoulli(key_start, 0.3, (NUM_STEPS, NUM_ENVS))
    return net, init_params(net, key_params, obs[0, 0]), obs, start


def test_steps_make_a_rollout(setting):
    net, params, obs, start = setting
    whole, _ = net.apply(params, obs, net.initial_memory((NUM_ENVS,)), start)
    memory = net.initial_memory((NUM_ENVS,))
    for t in range(NUM_STEPS):
        output, memory = apply_step(net, params, obs[t], memory, start[t])
        np.testing.assert_allclose(output.value, whole.value[t], atol=1e-5)
        np.testing.assert_allclose(output.policy.logits, whole.policy.logits[t], atol=1e-5)


def test_one_environment_is_a_batch_of_one(setting):
    net, params, obs, _ = setting
    memory, batch = net.initial_memory(), net.initial_memory((NUM_ENVS,))
    for t in range(NUM_STEPS):
        output, memory = apply_one(net, params, obs[t, 1], memory)
        together, batch = apply_step(net, params, obs[t], batch, jnp.zeros(NUM_ENVS, bool))
        assert output.value.shape == ()
        np.testing.assert_allclose(output.value, together.value[1], atol=1e-5)
        np.testing.assert_allclose(output.policy.logits, together.policy.logits[1], atol=1e-5)
        jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_[1], atol=1e-5), memory, batch)


def test_successors_are_valued_with_the_memory_of_their_own_episode(setting):
    net, params, obs, start = setting
    memory, memories = net.initial_memory((NUM_ENVS,)), []
    for t in range(NUM_STEPS):
        _, memory = apply_step(net, params, obs[t], memory, start[t])
        memories.append(memory)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *memories)
    found = memories_of(net, params, obs, net.initial_memory((NUM_ENVS,)), start)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, stacked)
    next_obs = jax.random.normal(jax.random.key(7), obs.shape)
    values = successor_value(net, params, next_obs, stacked)
    for t in range(NUM_STEPS):
        expected, _ = apply_step(net, params, next_obs[t], memories[t], jnp.zeros(NUM_ENVS, bool))
        np.testing.assert_allclose(values[t], expected.value, atol=1e-5)


def test_only_a_shared_core_is_moved_by_policy_and_value(setting):
    """`only_value_reads` says which parameters the policy's gradient leaves alone, and `separate` whether that is all
    that the value's gradient moves."""
    net, params, obs, start = setting
    memory = net.initial_memory((NUM_ENVS,))

    def moved(read):
        gradient = jax.grad(lambda params: jnp.sum(jnp.sin(read(net.apply(params, obs, memory, start)[0]))))(params)
        return {path: bool(jnp.any(leaf != 0)) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}

    by_value, by_policy = moved(lambda output: output.value), moved(lambda output: output.policy.logits)
    for path in by_value:
        assert by_policy[path] != only_value_reads(path), path
    assert net.separate == (not any(by_value[path] and by_policy[path] for path in by_value))
    assert all(by_value[path] for path in by_value if only_value_reads(path))


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_without_a_critic_there_is_a_policy_alone(memory):
    space = spaces.Box(-1.0, 1.0, (5,)), spaces.Discrete(2)
    both = actor_critic(*space, hidden=(8,), memory=memory, memory_size=4, share_core=False)
    net = actor_critic(*space, hidden=(8,), memory=memory, memory_size=4, critic=False)
    params = init_params(both, jax.random.key(0), jnp.zeros(5))
    own = {name: leaf for name, leaf in params["params"].items() if not name.startswith(("critic", "value"))}
    assert set(init_params(net, jax.random.key(0), jnp.zeros(5))["params"]) == set(own)
    obs = jax.random.normal(jax.random.key(1), (5,))
    alone, after = apply_one(net, {"params": own}, obs, net.initial_memory())
    together, memories = apply_one(both, params, obs, both.initial_memory())
    np.testing.assert_array_equal(alone.policy.logits, together.policy.logits)
    assert alone.value == 0.0
    if memory != "none":
        np.testing.assert_array_equal(after, memories[0])
