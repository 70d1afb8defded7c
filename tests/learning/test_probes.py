"""PPO on the probes: what the critic and the policy must learn is known exactly, over 5 seeds.

A critic's value is compared with the formula in the probe's docstring, a policy with the best return.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import ppo

NUM_SEEDS = 5
GAMMA = 0.8


def learn(name, num_steps, network=None, num_envs=16, rollout=16, **hparams):
    """Trains 5 seeds; returns the network and the final states."""
    env = jaxrl.make_env(name)
    net = jaxrl.actor_critic(env.observation_space, env.action_space, **{"hidden": (16,), **(network or {})})
    config = ppo.Config(num_envs=num_envs, num_steps=rollout, num_epochs=4, num_minibatches=4)
    agent = ppo.ppo(env, network=net, config=config)
    defaults = {"gamma": GAMMA, "learning_rate": 1e-2, "horizon": num_steps * agent.env_steps, "value_coef": 1.0}
    hparams = agent.hyperparams(**{**defaults, **hparams})
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    return agent, net, states, hparams


def values(net, states, observations):
    """Values [seeds, observations]."""
    obs = jnp.asarray(observations, jnp.float32)
    return np.asarray(jax.vmap(lambda params: net.apply(params, obs)[0].value)(states.params))


def returns(agent, states, hparams, num_episodes=64):
    """Mean greedy return of each seed."""
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes), (0, 0, None)))
    return np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)


CRITIC = {
    "Constant": ([[0.0]], [1.0]),
    "Observation": ([[-1.0], [1.0]], [-1.0, 1.0]),
    "Discounting": ([[0.0], [1.0]], [GAMMA, 1.0]),
    "Truncation": ([[0.0]], [1 / (1 - GAMMA)]),
    "Termination": (np.eye(5), [sum(GAMMA**i for i in range(5 - k)) for k in range(5)]),
}


# What the others contain too is left to --slow.
_LATE = (
    "Constant",
    "Observation",
    "Policy",
    "PolicyObservation",
    "ContinuousObservation",
    "DictObservation",
    "MultiDiscretePolicy",
)


def each(table):
    return [pytest.param(name, marks=pytest.mark.slow if name in _LATE else ()) for name in table]


@pytest.mark.parametrize("probe", each(CRITIC))
def test_critic(probe):
    """Truncation is the law's own probe: a bootstrap cut at the limit would give at most 3.36 instead of 5."""
    _, net, states, _ = learn(f"probe/{probe}", 80)
    observations, expected = CRITIC[probe]
    np.testing.assert_allclose(values(net, states, observations), np.tile(expected, (NUM_SEEDS, 1)), atol=0.1)


POLICY = {
    "Policy": (40, {}, 1.0),
    "PolicyObservation": (40, {}, 1.0),
    "Credit": (60, {}, 0.95),
    "Memory": (80, {"memory": "gru", "memory_size": 16}, 0.95),
    "ContinuousPolicy": (160, {}, -0.02),
    "ContinuousObservation": (160, {}, -0.02),
    "MultiDiscretePolicy": (60, {}, 1.95),
    "DictObservation": (160, {}, 0.9),
    # 17/24 is the best; 64 episodes of it deviate by 0.04
    "ActionMask": (60, {}, 0.55),
}


@pytest.mark.parametrize("probe", each(POLICY))
def test_policy(probe):
    num_steps, network, threshold = POLICY[probe]
    agent, _, states, hparams = learn(f"probe/{probe}", num_steps, network, gamma=0.99, learning_rate=3e-3)
    got = returns(agent, states, hparams)
    assert (got >= threshold).all(), got


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lstm", "s5"])
def test_other_memories(memory):
    agent, _, states, hparams = learn(
        "probe/Memory", 80, {"memory": memory, "memory_size": 16}, gamma=0.99, learning_rate=5e-3
    )
    got = returns(agent, states, hparams)
    assert (got >= 0.95).all(), got


@pytest.mark.slow
def test_memory_is_needed_where_it_is_asked_for():
    agent, _, states, hparams = learn("probe/Memory", 40, gamma=0.99)
    assert np.abs(returns(agent, states, hparams, 512)).max() < 0.3
