"""PROPS: what its buffer holds, that its sampling error is below on-policy sampling's, and that it learns. 5 seeds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import props
from jaxrl.networks import NetworkConfig
from jaxrl.ops.sampling import pair_counts, sampling_error

NUM_SEEDS = 5
GAMMA = 0.8
TINY = props.Config(
    num_envs=2,
    num_steps=4,
    num_rollouts=2,
    num_behavior_updates=2,
    num_behavior_minibatches=2,
    num_minibatches=2,
    network=NetworkConfig(hidden=(8,)),
)


def seeds():
    return jax.random.split(jax.random.key(0), NUM_SEEDS)


# --- The buffer ------------------------------------------------------------------------------------------------------


def test_kept_rows_are_those_that_the_next_update_of_the_target_will_see():
    """Against a list from which whole rollouts are dropped."""
    num_rollouts, num_steps = 3, 4
    for done in range(8):
        for now in range(num_steps + 1):
            expected = np.zeros((num_rollouts, num_steps), bool)
            for rollout in range(max(done - num_rollouts + 1, 0), done):
                expected[rollout % num_rollouts] = True
            expected[done % num_rollouts, :now] = True
            np.testing.assert_array_equal(props._kept(jnp.int32(done), now, num_rollouts, num_steps), expected)


def test_a_step_replaces_the_oldest_rollout_and_no_other():
    """Termination shows the step of the episode, so what is stored must be a run of the clock."""
    env = jaxrl.make_env("probe/Termination", num_steps=3)
    agent = props.props(env, config=TINY)
    step = jax.jit(agent.step)
    hparams = agent.hyperparams(behavior_learning_rate=0.0)
    state = agent.init(jax.random.key(0), hparams)
    for iteration in range(4):
        after, _ = step(state, hparams)
        slot, clock = iteration % 2, (np.arange(4) + 4 * iteration) % 3
        before, buffer = (jax.tree.map(np.asarray, s.buffer) for s in (state, after))
        np.testing.assert_array_equal(buffer.obs[slot].argmax(-1), np.tile(clock[:, None], 2))
        np.testing.assert_array_equal(buffer.terminated[slot], np.tile(clock[:, None] == 2, 2))
        np.testing.assert_array_equal(buffer.next_obs[slot].sum(-1), np.tile(clock[:, None] < 2, 2))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(buffer), strict=True):
            np.testing.assert_array_equal(old[1 - slot], new[1 - slot])
        for acted, target in zip(jax.tree.leaves(after.behavior_params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_array_equal(acted, target, err_msg="without a learning rate the target policy acts")
        state = after


# --- Sampling error --------------------------------------------------------------------------------------------------


def test_sampling_error_is_the_mean_log_ratio_of_the_likeliest_policy():
    rng = np.random.default_rng(0)
    state, action = rng.integers(5, size=200), rng.integers(3, size=200)
    weight = rng.integers(2, size=200).astype(np.float32)
    log_probs = np.log(rng.dirichlet(np.ones(3), size=5)).astype(np.float32)
    counts = np.zeros((5, 3))
    np.add.at(counts, (state, action), weight)
    likeliest = counts / counts.sum(1, keepdims=True)
    terms = np.log(likeliest[state, action]) - log_probs[state, action]
    found = pair_counts(jnp.asarray(state), jnp.asarray(action), jnp.asarray(weight), 5, 3)
    np.testing.assert_array_equal(found, counts)
    expected = (weight * terms).sum() / weight.sum()
    np.testing.assert_allclose(sampling_error(found, jnp.asarray(log_probs)), expected, rtol=1e-5)


def errors(config, num_steps, **hparams):
    """Exact and fitted errors on FrozenLake's 16 states, [seeds, 2, num_steps]: PROPS and on-policy sampling."""
    env = jaxrl.make_env("gymnax/FrozenLake-misc", is_slippery=False)
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=(32,))
    agent = props.props(env, net, config=config)

    def run(key, rate):
        values = agent.hyperparams(behavior_target_kl=0.1, **hparams)
        values = dataclasses.replace(values, behavior_learning_rate=rate)

        def body(state, _):
            after, metrics = agent.step(state, values)
            filled = jnp.arange(config.num_rollouts) < after.num_steps
            weight = jnp.broadcast_to(filled[:, None, None], after.buffer.reward.shape).astype(jnp.float32)
            counts = pair_counts(after.buffer.obs, after.buffer.action, weight, 16, 4)
            log_probs = net.apply(state.params, jnp.arange(16))[0].policy.log_probs()
            return after, (sampling_error(counts, log_probs), metrics.get("sampling/error", 0.0))

        return jax.lax.scan(body, agent.init(key, values), None, num_steps)[1]

    rates = jnp.float32([1e-2, 0.0])
    exact, fitted = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(seeds(), rates)
    return np.asarray(exact), np.asarray(fitted)


GRID = props.Config(num_envs=4, num_steps=64, num_behavior_minibatches=4)


@pytest.mark.parametrize("learning_rate", [0.0, 1e-3], ids=["fixed target", "learning target"])
def test_the_sampling_error_is_below_on_policy_sampling(learning_rate):
    """With the sign of the behavior's update flipped the ratio is above 1, without any update it is 1.

    On-policy the error is near (A - 1) S / 2n, here 3 * 11 / 1024.
    """
    exact, _ = errors(GRID, 12, learning_rate=learning_rate)
    mean = exact[:, :, 2:].mean((0, 2))
    assert 0.025 < mean[1] < 0.045, mean
    assert mean[0] < 0.85 * mean[1], mean
    assert (exact[:, 0, 2:].mean(-1) < exact[:, 1, 2:].mean(-1)).all(), exact


@pytest.mark.slow
def test_the_fitted_sampling_error_is_near_the_exact_one():
    """The network's likeliest policy cannot be likelier than the table's."""
    config = dataclasses.replace(GRID, num_error_epochs=300)
    exact, fitted = errors(config, 3, learning_rate=0.0, error_learning_rate=1e-2)
    assert (fitted < exact + 1e-5).all()
    assert (fitted > 0.9 * exact).all(), fitted / exact


# --- Learning --------------------------------------------------------------------------------------------------------


def learn(name, num_steps, config, **hparams):
    agent = props.props(jaxrl.make_env(name), config=config)
    hparams = agent.hyperparams(**hparams)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(seeds(), hparams)
    return agent, states, hparams


def returns(agent, states, hparams, num_episodes):
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes), (0, 0, None)))
    episodes = run(jax.random.split(jax.random.key(1), NUM_SEEDS), states, hparams.env)
    assert episodes.finished.all()
    return np.asarray(episodes.mean_return)


PROBE = props.Config(
    num_envs=16,
    num_steps=16,
    num_behavior_updates=4,
    num_behavior_minibatches=2,
    network=NetworkConfig(hidden=(16,)),
)
probe = functools.partial(learn, config=PROBE, gamma=GAMMA, learning_rate=1e-2, value_coef=1.0, target_kl=0.1)


def test_credit():
    agent, states, hparams = probe("probe/Credit", 40)
    assert returns(agent, states, hparams, 64).min() >= 0.95


def test_truncation():
    """The value is 5; taken for termination, time limits would give at most 3.36."""
    agent, states, _ = probe("probe/Truncation", 60)
    assert agent.env
    net = jaxrl.actor_critic(agent.env.observation_space, agent.env.action_space, hidden=(16,))
    values = jax.vmap(lambda params: net.apply(params, jnp.zeros(1))[0].value)(states.params)
    np.testing.assert_allclose(values, 1 / (1 - GAMMA), atol=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cartpole():
    config = props.Config(
        num_envs=16,
        num_steps=32,
        num_behavior_updates=4,
        schedule="linear",
        network=NetworkConfig(hidden=(32, 32)),
    )
    learned = learn("gymnax/CartPole-v1", 300, config, learning_rate=2e-3, horizon=300.0 * 512)
    found = returns(*learned, 32)
    print(found)
    assert np.median(found) >= 495, found
    assert found.min() >= 450, found


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_behavior_updates": 3}, "num_steps must be divisible by num_behavior_updates"),
        ({"num_minibatches": 5}, "must be divisible by num_minibatches"),
        ({"num_behavior_minibatches": 5}, "must be divisible by num_behavior_minibatches"),
        ({"num_error_epochs": -1}, "num_error_epochs must not be negative"),
        ({"num_rollouts": 0}, "num_rollouts must be a whole number of at least 1"),
        ({"network": NetworkConfig(memory="gru"), "num_minibatches": 8}, "num_rollouts \\* num_envs = 4 rows must be"),
    ],
)
def test_what_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        props.props(jaxrl.make_env("probe/Credit"), config=dataclasses.replace(TINY, **changes))
