"""PPO with every policy head on the probes, whose best returns are known exactly, over 5 seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import objectives, spaces
from jaxrl.algorithms import ppo
from jaxrl.types import Env, EnvStep

NUM_SEEDS = 5


def learn(env, num_steps, network, objective=objectives.clip(), **hparams):  # noqa: B008 (memoized record)
    """Trains 5 seeds; returns the agent, the network, the final states and the hyperparameters."""
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=(16,), **network)
    config = ppo.Config(num_envs=16, num_steps=16, num_epochs=4, num_minibatches=4)
    agent = ppo.ppo(env, network=net, objective=objective, config=config)
    defaults = {"learning_rate": 3e-3, "horizon": num_steps * agent.env_steps, "value_coef": 1.0}
    hparams = agent.hyperparams(**{**defaults, **hparams})
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    return agent, net, states, hparams


def greedy_returns(agent, states, hparams, num_episodes=64):
    """Mean return of each seed."""
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes), (0, 0, None)))
    return np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)


HEADS = {
    # (probe, its options): (iterations, network, least return)
    "mixture": ("ContinuousPolicy", {}, 160, {"policy": "mixture", "num_components": 3}, -0.02),
    "mixture of the observation": ("ContinuousObservation", {}, 160, {"policy": "mixture"}, -0.02),
    "deviation of the observation": ("ContinuousObservation", {}, 160, {"state_std": True}, -0.02),
    "bang-bang": ("ContinuousPolicy", {"target": 1.0}, 40, {"policy": "bang_bang"}, 0.0),
    # The best of two values is the sign of x, -7/12; whoever is blind to x has at most -13/12.
    "bang-bang of the observation": ("ContinuousObservation", {}, 160, {"policy": "bang_bang"}, -0.7),
    # The best of three values is 0, -1/12.
    "bang-off-bang": ("ContinuousObservation", {}, 60, {"policy": "bang_off_bang"}, -0.12),
    "autoregressive": ("MultiDiscretePolicy", {}, 60, {"policy": "autoregressive"}, 1.95),
    "weight normalization": ("PolicyObservation", {}, 40, {"weight_norm": True}, 1.0),
}


QUICK = ("mixture", "bang-bang", "autoregressive")


@pytest.mark.parametrize("head", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in HEADS])
def test_head_learns(head):
    probe, options, num_steps, network, threshold = HEADS[head]
    env = jaxrl.make_env(f"probe/{probe}", **options)
    agent, _, states, hparams = learn(env, num_steps, network)
    got = greedy_returns(agent, states, hparams)
    assert (got >= threshold).all(), got


def agreement() -> Env:
    """One step of two coins; 1 if they agree."""

    def step(key, state, action, params):
        reward = (action[0] == action[1]).astype(jnp.float32)
        return state, EnvStep(jnp.zeros(1), reward, jnp.bool_(True), jnp.bool_(False))

    return Env(
        name="test/Agreement",
        reset=lambda key, params: (jnp.int32(0), jnp.zeros(1)),
        step=step,
        default_params=tuple,
        observation_space=spaces.Box(-1.0, 1.0, (1,)),
        action_space=spaces.MultiDiscrete((2, 2)),
        max_episode_steps=1,
    )


@pytest.mark.parametrize("policy", ["autoregressive", "gaussian"])
def test_only_autoregressive_coins_agree_at_random(policy):
    """With a bonus for entropy the best policy flips one coin and copies it: reward 1 and entropy log 2.

    Independent coins that agree are no longer flipped.
    """
    _, net, states, _ = learn(agreement(), 60, {"policy": policy}, entropy_coef=0.3, gamma=0.9)
    found = jax.vmap(lambda params: net.apply(params, jnp.zeros(1))[0].policy)(states.params)
    draws = np.asarray(jax.jit(jax.vmap(found.sample))(jax.random.split(jax.random.key(1), 1000)))
    agree, heads = np.mean(draws[..., 0] == draws[..., 1], axis=0), np.mean(draws[..., 0], axis=0)
    both = (agree > 0.9) & (heads > 0.25) & (heads < 0.75)
    assert (both == (policy == "autoregressive")).all(), (agree, heads)


def test_pmoe_trains_its_router_and_learns():
    """`pmoe` reads the network's head and the actions through PPO."""
    objective = objectives.pmoe(3)
    network = {"policy": "mixture", "num_components": 3, "heads": objective.heads}
    agent, _, states, hparams = learn(jaxrl.make_env("probe/ContinuousObservation"), 160, network, objective)
    got = greedy_returns(agent, states, hparams)
    assert (got >= -0.02).all(), got
