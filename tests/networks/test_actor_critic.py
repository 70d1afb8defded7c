"""A network applied to one observation, to a step of a batch and to a whole rollout says the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks.actor_critic import actor_critic, apply_one, apply_step, init_params, successor_value

NUM_STEPS, NUM_ENVS = 4, 3


@pytest.fixture(params=["none", "gru", "s5"])
def setting(request):
    net = actor_critic(
        spaces.Box(-1.0, 1.0, (5,)), spaces.Discrete(2), hidden=(8,), memory=request.param, memory_size=4
    )
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
    next_obs = jax.random.normal(jax.random.key(7), obs.shape)
    values = successor_value(net, params, next_obs, stacked)
    for t in range(NUM_STEPS):
        expected, _ = apply_step(net, params, next_obs[t], memories[t], jnp.zeros(NUM_ENVS, bool))
        np.testing.assert_allclose(values[t], expected.value, atol=1e-5)
