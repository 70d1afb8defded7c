"""REPPO: its targets, its two prices, its bound, and that it learns. 5 seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import reppo
from jaxrl.networks import NetworkConfig
from jaxrl.networks.critics import CriticConfig, action_critic, apply_step, squashed_actor
from jaxrl.ops import bins
from jaxrl.ops.distributions import TanhGaussian

NUM_SEEDS = 5
GAMMA, LAMBDA, TEMPERATURE = 0.8, 0.7, 0.3
SMALL = CriticConfig(actor_hidden=(32,), features=(32,), head_hidden=(32,))
QUICK = reppo.Config(
    num_envs=16,
    num_steps=16,
    num_minibatches=4,
    num_bins=51,
    normalize_observations=False,
    network=SMALL,
)


def three_steps(probe):
    """A probe of episodes of 3 steps that pay 1 each, with an action that nothing depends on."""
    option = {"Truncation": "max_episode_steps", "Termination": "num_steps"}[probe]
    env = jaxrl.make_env(f"probe/{probe}", **{option: 3})

    def step(key, state, action, params):
        return env.step(key, state, jnp.int32(0), params)

    return env._replace(step=step, action_space=spaces.box(-1.0, 1.0, (2,)))


def train(agent, num_steps, **hparams):
    hparams = agent.hyperparams(**hparams)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    return states, jax.tree.map(np.asarray, metrics), hparams


# --- The parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe, num_action_samples", [("Termination", 1), ("Truncation", 4)])
def test_targets_are_maximum_entropy_lambda_returns(probe, num_action_samples):
    """A two-hot critic begins with Q = 0 everywhere, so the targets are sums of rewards and entropies.

    With Q = 0: G_t = 1 + γ [not terminated] α H_{t+1} + γ λ [not ended] G_{t+1}.
    """
    config = dataclasses.replace(
        QUICK, num_envs=1024, num_steps=8, num_epochs=1, critic="two_hot", num_action_samples=num_action_samples
    )
    env = three_steps(probe)
    agent = reppo.reppo(env, config)
    hparams = agent.hyperparams(
        learning_rate=0.0, gamma=GAMMA, trace_lambda=LAMBDA, initial_temperature=TEMPERATURE, reward_scale=2.0
    )
    state = jax.jit(agent.init)(jax.random.key(0), hparams)
    _, metrics = jax.jit(agent.step)(state, hparams)
    actor = squashed_actor(env.observation_space, env.action_space, SMALL)

    def entropy(obs):
        (mean, log_std), _ = actor.apply(state.params.policy.network, jnp.float32(obs))
        return float(TanhGaussian(mean, jnp.logaddexp(log_std, jnp.log(0.1))).entropy())

    targets, later = [], 0.0
    for t in reversed(range(8)):
        time = t % 3
        terminated = probe == "Termination" and time == 2
        next_obs = (np.eye(3)[min(time + 1, 2)]) if probe == "Termination" else np.zeros(1)
        bonus = 0.0 if terminated else GAMMA * TEMPERATURE * entropy(next_obs)
        later = 2.0 + bonus + (0.0 if time == 2 else GAMMA * LAMBDA * later)
        targets.append(later)
    # The mean of 8192 draws and more, whose standard error is 0.006; a bonus too many or too few is 0.05 and more.
    np.testing.assert_allclose(metrics["value/target"], np.mean(targets), atol=0.02)


@pytest.mark.parametrize(
    "probe, critic",
    [
        ("Termination", "hl_gauss"),
        pytest.param("Termination", "two_hot", marks=pytest.mark.slow),
        pytest.param("Truncation", "hl_gauss", marks=pytest.mark.slow),
        ("Truncation", "scalar"),
    ],
)
def test_critic(probe, critic):
    """With entropy for free the value is that of the rewards alone.

    A bootstrap cut at the time limit would give at most 2.44 instead of 5, one at the end of the episode 5 everywhere.
    """
    env = three_steps(probe)
    agent = reppo.reppo(env, dataclasses.replace(QUICK, critic=critic))
    rates = {"learning_rate": 3e-3, "gamma": GAMMA, "initial_temperature": 1e-9}
    states, _, _ = train(agent, 60, value_min=-2.0, value_max=8.0, **rates)
    net = action_critic(env.observation_space, 1 if critic == "scalar" else 51, SMALL)
    obs = jnp.eye(3) if probe == "Termination" else jnp.zeros((1, 1))
    value = lambda params: apply_step(net, params, obs, (), None, jnp.zeros((len(obs), 2)))[0].output
    output = jax.vmap(value)(states.params.critic)
    got = output[..., 0] if critic == "scalar" else bins.expected_value(output, bins.bin_centers(-2.0, 8.0, 51))
    expected = [1 + GAMMA + GAMMA**2, 1 + GAMMA, 1.0] if probe == "Termination" else [1 / (1 - GAMMA)]
    np.testing.assert_allclose(got, np.tile(expected, (NUM_SEEDS, 1)), atol=0.15)


def test_prices_follow_their_constraints():
    agent = reppo.reppo(jaxrl.make_env("gymnax/Pendulum-v1"), dataclasses.replace(QUICK, num_steps=4))

    def prices(**hparams):
        states, _, _ = train(agent, 3, initial_temperature=0.1, initial_kl_coef=0.1, **hparams)
        policy = states.params.policy
        return np.exp(np.asarray(policy.log_temperature)), np.exp(np.asarray(policy.log_kl_coef))

    temperature, kl_coef = prices(target_entropy=5.0, kl_bound=0.0)
    assert (np.stack([temperature, kl_coef]) > 0.1001).all(), (temperature, kl_coef)
    temperature, kl_coef = prices(target_entropy=-9.0, kl_bound=9.0)
    assert (np.stack([temperature, kl_coef]) < 0.0999).all(), (temperature, kl_coef)


@pytest.mark.slow
def test_the_bound_holds_the_policy():
    """In units of the bound, 0.02: with it the last epochs stay near 1, without it they leave by far."""

    def divergence(constraint):
        agent = reppo.reppo(
            jaxrl.make_env("probe/ContinuousObservation"), dataclasses.replace(QUICK, constraint=constraint)
        )
        hparams = {"learning_rate": 3e-3, "kl_bound": 0.02, "value_min": -2.0, "value_max": 1.0}
        _, metrics, _ = train(agent, 20, initial_kl_coef=1.0, **hparams)
        return metrics["policy/kl"][:, 5:].mean(1)

    held, free = divergence("clipped"), divergence("none")
    assert (held < 0.04).all(), held
    assert (free > 2 * held).all(), (held, free)


@pytest.mark.slow
def test_features_learn_to_forecast():
    """Pendulum's successor follows from state and action, so the error falls to a small part of what it was."""
    agent = reppo.reppo(jaxrl.make_env("gymnax/Pendulum-v1"), QUICK)
    _, metrics, _ = train(agent, 15, value_min=-100.0, value_max=10.0, learning_rate=1e-3, reward_scale=0.1)
    error = metrics["loss/auxiliary"]
    assert (error[:, -1] < 0.5 * error[:, 0]).all(), error[:, [0, -1]]


def test_what_cannot_be_built_says_why():
    pendulum = jaxrl.make_env("gymnax/Pendulum-v1")
    with pytest.raises(ValueError, match="actions must be a Box with finite bounds"):
        reppo.reppo(jaxrl.make_env("gymnax/CartPole-v1"))
    with pytest.raises(ValueError, match="network must be a CriticConfig"):
        reppo.reppo(pendulum, reppo.Config(network=NetworkConfig(memory="gru")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole environments are shuffled, so num_envs must be divisible"):
        reppo.reppo(pendulum, dataclasses.replace(QUICK, num_minibatches=3, network=CriticConfig(memory="gru")))
    with pytest.raises(ValueError, match="memory must be none or one of"):
        reppo.reppo(pendulum, reppo.Config(network=CriticConfig(memory="tape")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divisible by num_minibatches"):
        reppo.reppo(pendulum, reppo.Config(num_envs=3, num_steps=5))
    with pytest.raises(ValueError, match="critic must be one of hl_gauss"):
        reppo.reppo(pendulum, reppo.Config(critic="c51"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one in features"):
        reppo.reppo(pendulum, reppo.Config(network=CriticConfig(features=())))
    with pytest.raises(ValueError, match="value_min must be below value_max"):
        reppo.reppo(pendulum, QUICK).hyperparams(value_min=5.0, value_max=5.0)
    with pytest.raises(ValueError, match="has no effect"):
        reppo.reppo(pendulum, dataclasses.replace(QUICK, critic="scalar")).hyperparams(bin_sigma=0.5)


# --- Learning --------------------------------------------------------------------------------------------------------


def returns(agent, states, hparams, num_episodes=64):
    """Mean greedy return of each seed."""
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes), (0, 0, None)))
    return np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)


@pytest.mark.parametrize("probe", [pytest.param("ContinuousPolicy", marks=pytest.mark.slow), "ContinuousObservation"])
def test_policy(probe):
    """The best policy has 0; of ContinuousObservation the best one that is blind has -1/12."""
    agent = reppo.reppo(jaxrl.make_env(f"probe/{probe}"), QUICK)
    states, _, hparams = train(agent, 60, learning_rate=3e-3, value_min=-2.5, value_max=0.5, target_entropy=-2.0)
    got = returns(agent, states, hparams)
    assert (got >= -0.02).all(), got


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and what counts as learned: `median` of the seeds' mean greedy returns, and `worst` for each of them."""

    env: str
    total_steps: int
    median: float
    worst: float
    config: reppo.Config
    hparams: tuple = ()


MEDIUM = CriticConfig(actor_hidden=(64, 64), features=(64, 64), head_hidden=(64,))
TASKS = {
    # A random policy has -1200.
    "pendulum": Task(
        "gymnax/Pendulum-v1",
        150_000,
        -160,
        -200,
        reppo.Config(num_envs=16, num_steps=64, num_minibatches=16, network=MEDIUM),
        (("learning_rate", 1e-3), ("reward_scale", 0.1), ("value_min", -100.0), ("value_max", 10.0)),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    task = TASKS[name]
    agent = reppo.reppo(jaxrl.make_env(task.env), task.config)
    states, _, hparams = train(agent, task.total_steps // agent.env_steps, **dict(task.hparams))
    got = returns(agent, states, hparams, 16)
    print(name, np.round(got, 1))
    assert np.median(got) >= task.median, got
    assert got.min() >= task.worst, got
