"""Algorithms with a loop of their own learn with a memory what cannot be learned without one. 5 seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import props
from jaxrl.networks import NetworkConfig
from jaxrl.networks.actor_critic import init_params
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.critics import CriticConfig
from jaxrl.networks.q_network import QNetworkConfig

NUM_SEEDS = 5
GRU = NetworkConfig(hidden=(16,), memory="gru", memory_size=16)
VALUES = QNetworkConfig(hidden=(32, 32), layer_norm=True, memory="gru", memory_size=16)
SMALL = ControlConfig(hidden=(16,), num_critics=1, activation="tanh")
LAYERS = CriticConfig(actor_hidden=(32,), features=(32,), head_hidden=(32,), memory="gru", memory_size=16)
# name: (iterations, config, hyperparameters)
# Episodes have 4 steps, of which most rollouts and windows are no multiple: what is to be kept in mind is often on the
# other side of a cut.
SETTINGS = {
    "props": (
        60,
        {
            "num_envs": 16,
            "num_steps": 30,
            "num_behavior_updates": 5,
            "num_minibatches": 4,
            "num_behavior_minibatches": 2,
        },
        {"learning_rate": 3e-3},
    ),
    # With steps of falling length fewer seeds learned: 0.5 or 0.1 at first, exponents of 0.25 or 0.5, 1 to 4 of 5.
    "harpg": (
        300,
        {"num_envs": 64, "num_hessian_envs": 64, "num_steps": 4},
        {"step_size": 0.1, "step_exponent": 0.0, "momentum_exponent": 0.0, "momentum": 0.5},
    ),
    "n_pg_igt": (200, {"num_envs": 32, "num_steps": 15}, {}),
    "mac": (300, {"num_envs": 16, "num_steps": 63, "max_level": 3}, {}),
    "bpg": (80, {"num_envs": 32, "num_steps": 4}, {}),
    "pqn": (
        100,
        {"num_envs": 16, "num_steps": 30, "num_minibatches": 4},
        {"learning_rate": 3e-3, "horizon": 48_000.0, "gamma": 0.9},
    ),
    "trpo": (40, {"num_envs": 16, "num_steps": 30, "num_minibatches": 2}, {}),
    "hnpg": (
        80,
        {
            "num_envs": 16,
            "num_steps": 30,
            "batch_size": 120,
            "num_evaluations": 2,
            "num_updates": 10,
            "length": 6,
            "memory_size": 16,
        },
        {"learning_rate": 3e-3},
    ),
    "reppo": (
        60,
        {"num_envs": 16, "num_steps": 30, "num_minibatches": 4, "num_bins": 51, "normalize_observations": False},
        {"learning_rate": 3e-3, "value_min": -2.0, "value_max": 2.0},
    ),
}


def task(name):
    """`probe/Memory`, for REPPO with the sign of a number as the action."""
    env = jaxrl.make_env("probe/Memory")
    if name != "reppo":
        return env

    def step(key, state, action, params):
        return env.step(key, state, (action[0] > 0.0).astype(jnp.int32), params)

    return env._replace(step=step, action_space=spaces.box(-1.0, 1.0, (1,)))


def learned(name, memory):
    """Mean return of 64 episodes of each seed, at most 1."""
    num_iterations, config, hparams = SETTINGS[name]
    if name == "hnpg":
        config = {**config, "memory": memory, "network": SMALL}
    elif name == "pqn":
        config = {**config, "network": dataclasses.replace(VALUES, memory=memory)}
    else:
        layers = LAYERS if name == "reppo" else dataclasses.replace(GRU, share_core=name != "trpo")
        config = {**config, "network": dataclasses.replace(layers, memory=memory)}
    agent = jaxrl.make(name, task(name), **config)
    hparams = agent.hyperparams(**hparams)
    run = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations), (0, None)))
    states, _ = run(jax.random.split(jax.random.key(0), NUM_SEEDS), hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64), (0, 0, None)))
    return np.asarray(play(jax.random.split(jax.random.key(1), NUM_SEEDS), states, hparams.env).mean_return)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_memory_is_learned_to_be_used(name):
    got = learned(name, "gru")
    print(name, np.round(got, 2))
    assert (got >= 0.95).sum() >= NUM_SEEDS - 1, got


@pytest.mark.slow
@pytest.mark.parametrize("name", ["props", "harpg", "mac", "bpg", "hnpg", "reppo", "pqn"])
def test_without_a_memory_it_cannot_be_known(name):
    assert np.abs(learned(name, "none")).max() < 0.5


def test_what_shares_a_core_is_refused_where_steps_are_separate():
    env = jaxrl.make_env("probe/Memory")
    shared = jaxrl.actor_critic(env.observation_space, env.action_space, memory="gru")
    apart = jaxrl.actor_critic(env.observation_space, env.action_space, memory="gru", share_core=False)
    for name in ("harpg", "mac", "n_pg_igt"):
        with pytest.raises(ValueError, match=r"no parameter in common.*memory = 'gru' and share_core = True"):
            jaxrl.make(name, env, network=shared)
        assert jaxrl.make(name, env, network=apart).initial_memory()[0].shape == (128,)


def test_a_rollout_in_the_buffer_keeps_the_memory_that_it_began_with():
    """PROPS: what the actor remembered just before; the slots stay until they are overwritten."""
    config = {"num_envs": 2, "num_steps": 6, "num_rollouts": 2, "num_behavior_updates": 2}
    parts = {"num_minibatches": 2, "num_behavior_minibatches": 2}
    agent = jaxrl.make("props", jaxrl.make_env("probe/Memory"), network=GRU, **config, **parts)
    hparams = agent.hyperparams()
    first = agent.init(jax.random.key(0), hparams)
    step = jax.jit(agent.step)
    second, _ = step(first, hparams)
    third, _ = step(second, hparams)
    assert float(jnp.abs(second.actor.memory).max()) > 0.0
    np.testing.assert_array_equal(third.buffer.memory[0], jnp.zeros((2, 16)))
    np.testing.assert_array_equal(third.buffer.memory[1], second.actor.memory)
    fourth, _ = step(third, hparams)
    np.testing.assert_array_equal(fourth.buffer.memory[0], third.actor.memory)
    np.testing.assert_array_equal(fourth.buffer.memory[1], second.actor.memory)


def test_rollouts_side_by_side_are_as_alone():
    """PROPS: each rollout of the buffer is run through from its own memory, whatever stands beside it."""
    env = jaxrl.make_env("probe/Memory")
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=(8,), memory="gru", memory_size=4)
    draws = jax.random.split(jax.random.key(0), 4)
    obs, start = jax.random.normal(draws[0], (3, 5, 2, 2)), jax.random.bernoulli(draws[1], 0.2, (3, 5, 2))
    memory, none = jax.random.normal(draws[2], (3, 2, 4)), jnp.zeros((3, 5, 2))
    params = init_params(net, draws[3], obs[0, 0, 0])
    data = props._side_by_side(props.Stored(obs, none, none, none, none, obs, start, memory))
    together, _ = net.apply(params, data.obs, data.memory, data.start)
    for i in range(3):
        alone, _ = net.apply(params, obs[i], memory[i], start[i])
        np.testing.assert_allclose(together.value.reshape((5, 3, 2))[:, i], alone.value, atol=1e-6)


@pytest.mark.parametrize("name", ["mac", "ppo", *(pytest.param(x, marks=pytest.mark.slow) for x in ("reppo", "hnpg"))])
def test_a_fresh_state_can_be_donated(name):
    """No array is in it twice, two cores or not."""
    small = NetworkConfig(hidden=(4,), memory="lstm", memory_size=4, share_core=name != "ppo")
    changes = {
        "hnpg": {"memory": "lstm", "memory_size": 4, "length": 4, "network": SMALL, "batch_size": 8, "num_updates": 1},
        "reppo": {"network": dataclasses.replace(LAYERS, memory="lstm", memory_size=4), "num_minibatches": 2},
        "ppo": {"network": small, "num_minibatches": 2},
        "mac": {"network": small},
    }
    agent = jaxrl.make(name, task(name), num_envs=4, num_steps=8, **changes[name])
    hparams = agent.hyperparams()
    jaxrl.advance(agent, agent.init(jax.random.key(0), hparams), hparams, 1)


@pytest.mark.parametrize("name", ["ppo", "mac", "bpg", "hnpg", "reppo", "pqn"])
def test_without_a_memory_there_is_none(name):
    agent = jaxrl.make(name, task(name))
    assert agent.initial_memory() == ()
    obs = jnp.zeros(agent.env.observation_space.shape)
    action, memory = jax.eval_shape(
        lambda: agent.act(agent.init(jax.random.key(0), agent.hyperparams()), (), obs, None)
    )
    assert memory == ()
    assert action.shape == agent.env.action_space.shape
