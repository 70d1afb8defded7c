"""The streaming agents: each transition does what the formulas say, the probes are learned, and real tasks are.

5 seeds; settings are the algorithms' defaults but for what is named.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import avg, stream_ac, stream_q, stream_td
from jaxrl.networks.streaming import StreamingConfig, policy_outputs, streaming_network

NUM_SEEDS = 5
GAMMA, LAMBDA = 0.8, 0.7
RAW = {"normalize_observations": False, "normalize_rewards": False, "network": StreamingConfig(hidden=(16, 16))}
AVG_LAYERS = {"initializer": "orthogonal", "layer_norm": False, "unit_features": True}


# --- One transition at a time ----------------------------------------------------------------------------------------


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def transitions(agent, hparams, probe, num=12):
    """States before and after single steps; then obs, next_obs, first, terminated, ended. Episodes last 3 steps."""
    step = jax.jit(agent.step)
    state = agent.init(jax.random.key(0), hparams)
    for t in range(num):
        time = t % 3
        terminates = probe == "Termination"
        next_obs = (np.eye(3)[time + 1] if time < 2 else np.zeros(3)) if terminates else np.zeros(1)
        after, _ = step(state, hparams)
        yield state, after, state.actor.obs[0], jnp.float32(next_obs), time == 0, terminates and time == 2, time == 2
        state = after


def three_steps(probe):
    option = {"Truncation": "max_episode_steps", "Termination": "num_steps"}[probe]
    return jaxrl.make_env(f"probe/{probe}", **{option: 3})


def moved(params, trace, delta, rate, kappa):
    return flat(params) + rate * delta * trace / max(1.0, rate * kappa * max(1.0, abs(delta)) * np.abs(trace).sum())


@pytest.mark.parametrize("probe", ["Termination", "Truncation"])
@pytest.mark.parametrize("target, cut", [("q", "before"), ("q", "after"), ("sarsa", "before")])
def test_a_transition_of_stream_q(probe, target, cut):
    env = three_steps(probe)
    agent = stream_q.stream_q(env, stream_q.Config(num_steps=1, target=target, cut=cut, **RAW))
    rates = {"learning_rate": 0.05, "kappa": 2.0}
    hparams = agent.hyperparams(gamma=GAMMA, trace_lambda=LAMBDA, epsilon_start=0.7, epsilon_end=0.7, **rates)
    net = streaming_network(env.observation_space, (("value", env.action_space.n),), RAW["network"])
    values = jax.jit(lambda params, obs: net.apply(params, obs)["value"])
    gradients = jax.jit(jax.jacobian(values))
    was_greedy, num_random = True, 0
    for before, after, obs, next_obs, first, terminated, _ in transitions(agent, hparams, probe):
        value, next_value = values(before.params, obs), values(before.params, next_obs)
        jacobian = gradients(before.params, obs)
        found = []
        for action in range(env.action_space.n):
            greedy = action == int(jnp.argmax(value))
            forget = first or (target == "q" and not (greedy if cut == "before" else was_greedy))
            trace = flat(jax.tree.map(lambda x, action=action: x[action], jacobian))
            trace += 0.0 if forget else GAMMA * LAMBDA * flat(before.trace)
            if np.allclose(trace, flat(after.trace), atol=1e-4):
                found.append((action, greedy, trace))
        ((action, greedy, trace),) = found
        if target == "sarsa" and not first:
            assert action == before.next_action[0], "what was bootstrapped from must be what is done"
        bootstrap = next_value[after.next_action[0]] if target == "sarsa" else jnp.max(next_value)
        delta = float(1.0 + GAMMA * (not terminated) * bootstrap - value[action])
        np.testing.assert_allclose(flat(after.params), moved(before.params, trace, delta, 0.05, 2.0), atol=1e-5)
        was_greedy, num_random = greedy, num_random + (not greedy)
    assert 0 < num_random < 12, "both kinds of action must have come"


@pytest.mark.parametrize("probe", ["Termination", "Truncation"])
def test_a_transition_of_stream_ac(probe):
    env = three_steps(probe)
    agent = stream_ac.stream_ac(env, stream_ac.Config(num_steps=1, **RAW))
    hparams = agent.hyperparams(gamma=GAMMA, trace_lambda=LAMBDA, learning_rate=0.05, entropy_coef=0.1)
    value_net = streaming_network(env.observation_space, (("value", 1),), RAW["network"])
    policy_net = streaming_network(env.observation_space, policy_outputs(env.action_space), RAW["network"])
    value_of = jax.jit(lambda params, obs: value_net.apply(params, obs)["value"][0])

    def scores(params, obs, sign):
        log_probs = jax.nn.log_softmax(policy_net.apply(params, obs)["policy"])
        return log_probs - 0.1 * sign * jnp.sum(jnp.exp(log_probs) * log_probs)

    for before, after, obs, next_obs, first, terminated, _ in transitions(agent, hparams, probe):
        value, next_value = (float(value_of(before.params.value, x)) for x in (obs, next_obs))
        delta = 1.0 + GAMMA * (not terminated) * next_value - value
        decay = 0.0 if first else GAMMA * LAMBDA
        trace = decay * flat(before.trace.value) + flat(jax.grad(value_of)(before.params.value, obs))
        np.testing.assert_allclose(flat(after.trace.value), trace, atol=1e-4)
        expected = moved(before.params.value, trace, delta, 0.05, 2.0)
        np.testing.assert_allclose(flat(after.params.value), expected, atol=1e-5)
        jacobian = jax.jacobian(scores)(before.params.policy, obs, np.sign(delta))
        candidates = [
            decay * flat(before.trace.policy) + flat(jax.tree.map(lambda x, action=action: x[action], jacobian))
            for action in range(env.action_space.n)
        ]
        (trace,) = [one for one in candidates if np.allclose(one, flat(after.trace.policy), atol=1e-4)]
        expected = moved(before.params.policy, trace, delta, 0.05, 3.0)
        np.testing.assert_allclose(flat(after.params.policy), expected, atol=1e-5)


@pytest.mark.parametrize("probe", ["Termination", "Truncation"])
def test_a_transition_of_stream_td(probe):
    env = three_steps(probe)
    agent = stream_td.stream_td(env, stream_td.Config(num_steps=1, **RAW))
    hparams = agent.hyperparams(gamma=GAMMA, trace_lambda=LAMBDA, learning_rate=0.05, kappa=3.0)
    net = streaming_network(env.observation_space, (("value", 1),), RAW["network"])
    value_of = jax.jit(lambda params, obs: net.apply(params, obs)["value"][0])
    for before, after, obs, next_obs, first, terminated, _ in transitions(agent, hparams, probe):
        value, next_value = (float(value_of(before.params, x)) for x in (obs, next_obs))
        delta = 1.0 + GAMMA * (not terminated) * next_value - value
        trace = (0.0 if first else GAMMA * LAMBDA) * flat(before.trace) + flat(jax.grad(value_of)(before.params, obs))
        np.testing.assert_allclose(flat(after.trace), trace, atol=1e-4)
        np.testing.assert_allclose(flat(after.params), moved(before.params, trace, delta, 0.05, 3.0), atol=1e-5)


def test_a_policy_given_is_the_one_that_is_evaluated():
    """The probe pays 1 for the better of two actions, which the uniform policy takes half of the time."""
    env = jaxrl.make_env("probe/Policy")

    def value(policy):
        agent = stream_td.stream_td(env, stream_td.Config(num_steps=500, **RAW), policy)
        hparams = agent.hyperparams(learning_rate=0.1)
        _, metrics = jax.jit(jaxrl.train(agent, 4))(jax.random.key(0), hparams)
        return float(metrics["value/mean"][-1])

    means = [value(lambda key, obs, action=action: jnp.int32(action)) for action in range(2)]
    uniform = value(None)
    assert max(means) - min(means) > 0.9
    assert abs(uniform - np.mean(means)) < 0.2


def test_cached_resets_start_from_as_many_states_as_asked_for():
    env = jaxrl.make_env("gymnax/CartPole-v1")
    for size in (1, 3):
        agent = stream_q.stream_q(env, stream_q.Config(num_steps=1, reset="cached", reset_size=size, **RAW))
        hparams = agent.hyperparams()
        step = jax.jit(agent.step)
        state = agent.init(jax.random.key(0), hparams)
        starts = set()
        for _ in range(200):
            state, _ = step(state, hparams)
            if state.actor.start[0]:
                starts.add(tuple(np.asarray(state.actor.obs[0]).tolist()))
        assert len(starts) == size


@pytest.mark.parametrize(
    "build, env, rule",
    [
        (stream_q.stream_q, "gymnax/Pendulum-v1", "actions must be Discrete"),
        (avg.avg, "gymnax/CartPole-v1", "actions must be a Box with finite bounds"),
    ],
)
def test_wrong_actions(build, env, rule):
    with pytest.raises(ValueError, match=rule):
        build(jaxrl.make_env(env))


def test_wrong_choices():
    env = jaxrl.make_env("probe/Credit")
    with pytest.raises(ValueError, match="optimizer must be one of obgd"):
        stream_q.stream_q(env, stream_q.Config(optimizer="rmsprop"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        stream_ac.stream_ac(env, stream_ac.Config(num_steps=0))
    with pytest.raises(ValueError, match="needs reset_size"):
        stream_ac.stream_ac(env, stream_ac.Config(reset="cached"))


# --- Learning --------------------------------------------------------------------------------------------------------


def learn(agent, total_steps, **hparams):
    """Trains 5 seeds; final states, metrics and hyperparameters."""
    hparams = agent.hyperparams(**hparams)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    run = jax.jit(jax.vmap(jaxrl.train(agent, total_steps // agent.env_steps), (0, None)))
    states, metrics = run(keys, hparams)
    return states, metrics, hparams


def returns(agent, states, hparams, num_episodes=32, sampled=False):
    """Mean return of each seed."""
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes, sampled=sampled), (0, 0, None)))
    return np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)


def late_returns(metrics):
    """Mean return of the episodes that ended in the last quarter of training, of each seed."""
    total, count = (np.asarray(metrics[f"episode/{name}"]) for name in ("return_sum", "count"))
    last = slice(-(total.shape[1] // 4), None)
    return total[:, last].sum(1) / np.maximum(count[:, last].sum(1), 1)


CRITIC = {
    "Truncation": ([[0.0]], [1 / (1 - GAMMA)]),
    "Termination": (np.eye(5), [sum(GAMMA**i for i in range(5 - k)) for k in range(5)]),
}


@pytest.mark.parametrize("module", [stream_ac, stream_td], ids=lambda module: module.__name__.rpartition("_")[2])
@pytest.mark.parametrize("probe", CRITIC)
def test_critic(probe, module):
    """A bootstrap cut at the time limit would give at most 3.36 instead of 5."""
    env = jaxrl.make_env(f"probe/{probe}")
    build = stream_ac.stream_ac if module is stream_ac else stream_td.stream_td
    agent = build(env, module.Config(num_steps=500, **RAW))
    states, _, _ = learn(agent, 5_000, gamma=GAMMA)
    net = streaming_network(env.observation_space, (("value", 1),), RAW["network"])
    observations, expected = CRITIC[probe]
    got = jax.vmap(lambda params: net.apply(params, jnp.float32(observations))["value"][:, 0])(
        states.params.value if module is stream_ac else states.params
    )
    np.testing.assert_allclose(got, np.tile(expected, (NUM_SEEDS, 1)), atol=0.02)


POLICY: dict[str, tuple[Any, str, int, dict[str, float], float]] = {
    "q": (stream_q.Config(num_steps=500, **RAW), "Credit", 5_000, {"horizon": 5e3, "epsilon_fraction": 0.5}, 0.99),
    "sarsa": (
        stream_q.Config(num_steps=500, target="sarsa", **RAW),
        "Credit",
        5_000,
        {"horizon": 5e3, "epsilon_fraction": 0.5},
        0.99,
    ),
    "ac": (stream_ac.Config(num_steps=500, **RAW), "Credit", 5_000, {}, 0.99),
    # The best policy blind to the observation has -1/12.
    "ac-continuous": (stream_ac.Config(num_steps=500, **RAW), "ContinuousObservation", 10_000, {}, -0.01),
    "avg": (
        avg.Config(num_steps=500, network=StreamingConfig((32, 32), **AVG_LAYERS)),
        "ContinuousObservation",
        10_000,
        {"policy_learning_rate": 1e-3, "critic_learning_rate": 3e-3, "entropy_coef": 0.02},
        -0.01,
    ),
}
FACTORIES = {stream_q.Config: stream_q.stream_q, stream_ac.Config: stream_ac.stream_ac, avg.Config: avg.avg}


@pytest.mark.parametrize("name", POLICY)
def test_policy(name):
    config, probe, total_steps, hparams, threshold = POLICY[name]
    agent = FACTORIES[type(config)](jaxrl.make_env(f"probe/{probe}"), config)
    states, _, hparams = learn(agent, total_steps, **hparams)
    got = returns(agent, states, hparams, 64)
    assert (got >= threshold).all(), got


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and what counts as learned: of the returns late in training, the seeds' median and each but `num_lost`."""

    env: str
    total_steps: int
    median: float
    worst: float
    config: Any
    hparams: tuple = ()
    num_lost: int = 0


TASKS = {
    "q-cartpole": Task("gymnax/CartPole-v1", 100_000, 450, 250, stream_q.Config()),
    # Of 60 seeds of two keys the least has 348, the median 490.
    "ac-cartpole": Task("gymnax/CartPole-v1", 60_000, 450, 300, stream_ac.Config()),
    # A seed that has not met the goal when exploration ends stays near -500. With 20% of exploration two of the five
    # here, and none of twenty from another key, of which the worst has -132.
    "q-acrobot": Task("gymnax/Acrobot-v1", 200_000, -130, -200, stream_q.Config(), (("epsilon_fraction", 0.2),), 2),
    "sarsa-acrobot": Task(
        "gymnax/Acrobot-v1", 200_000, -130, -200, stream_q.Config(target="sarsa"), (("epsilon_fraction", 0.2),)
    ),
    "ac-pendulum": Task("gymnax/Pendulum-v1", 200_000, -350, -500, stream_ac.Config(network=StreamingConfig((64, 64)))),
    # A random policy has -1200.
    "avg-pendulum": Task(
        "gymnax/Pendulum-v1",
        150_000,
        -450,
        -600,
        avg.Config(network=StreamingConfig((32, 32), **AVG_LAYERS)),
        (("policy_learning_rate", 1e-4), ("critic_learning_rate", 1e-3), ("entropy_coef", 0.5), ("gamma", 0.97)),
    ),
    # The first eighth of training, mostly at random, has 0.9.
    "q-breakout": Task(
        "gymnax/Breakout-MinAtar",
        300_000,
        5.5,
        4.5,
        stream_q.Config(network=StreamingConfig((128,))),
        (("epsilon_fraction", 0.2),),
    ),
}


def check(task, late):
    assert np.median(late) >= task.median, late
    assert np.sort(late)[task.num_lost] >= task.worst, late


def run_task(task, **changes):
    config = dataclasses.replace(task.config, **changes)
    agent = FACTORIES[type(config)](jaxrl.make_env(task.env), config)
    horizon = {"horizon": float(task.total_steps)} if isinstance(config, stream_q.Config) else {}
    _, metrics, _ = learn(agent, task.total_steps, **horizon, **dict(task.hparams))
    return late_returns(metrics)


@pytest.mark.parametrize("name", ["q-cartpole", pytest.param("ac-cartpole", marks=pytest.mark.slow)])
def test_cartpole(name):
    check(TASKS[name], run_task(TASKS[name]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in TASKS if "cartpole" not in name])
def test_task(name):
    late = run_task(TASKS[name])
    print(name, np.round(late, 2))
    check(TASKS[name], late)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, changes", [("q-cartpole", {"optimizer": "sgd"}), ("ac-cartpole", {"optimizer": "sgd"})])
def test_the_bound_is_what_makes_it_learn(name, changes):
    """The same steps without the bound of ObGD diverge."""
    late = run_task(TASKS[name], **changes)
    assert not (late > 100).any(), late
