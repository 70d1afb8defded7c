"""Agents with columns: each transition does what the formulas say, what is frozen stays, and memory is learned.

5 seeds; settings are the defaults but for what is named.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import ccn, stream_q
from jaxrl.envs import conditioning
from jaxrl.networks import columnar
from jaxrl.networks.columnar import ColumnarConfig
from jaxrl.networks.streaming import StreamingConfig, streaming_network
from jaxrl.ops import trees

NUM_SEEDS = 5
GAMMA, LAMBDA, BETA2, RATE = 0.8, 0.7, 0.9, 0.05


# --- One transition at a time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["Termination", "Truncation"])
def test_a_transition(probe):
    """Episodes of 3 steps; the second of two stages begins after 7 transitions."""
    option = {"Truncation": "max_episode_steps", "Termination": "num_steps"}[probe]
    env = jaxrl.make_env(f"probe/{probe}", **{option: 3})
    config = ccn.Config(num_steps=1, columns=ColumnarConfig(2, 2, 1.0))
    agent = ccn.ccn(env, config)
    rates = columnar.rates(steps_per_stage=7.0, decay=0.9)
    hparams = agent.hyperparams(gamma=GAMMA, trace_lambda=LAMBDA, beta2=BETA2, learning_rate=RATE, columns=rates)
    net = columnar.columnar(env.observation_space.shape[0], config.columns)
    state, step = jax.jit(agent.init)(jax.random.key(0), hparams), jax.jit(agent.step)
    advance, features_of, pull_back = (jax.jit(f) for f in (net.advance, net.features, net.pull_back))
    traced, square, head_trace, head_square = 0.0, 1.0, 0.0, 1.0
    for t in range(14):
        after, metrics = step(state, hparams)
        stage = int(t >= 7)
        assert int(state.columns.stage) == stage
        terminates = probe == "Termination"
        next_obs = (np.eye(3)[t % 3 + 1] if t % 3 < 2 else np.zeros(3)) if terminates else np.zeros(1)
        ended = t % 3 == 2
        if t == 7:
            traced, square = 0.0, 1.0
        kernel, head = (
            np.asarray(x, np.float64) for x in (state.params.columns["kernel"], state.params.head["kernel"])
        )
        bias = float(state.params.head["bias"])
        f = np.asarray(features_of(state.columns), np.float64)
        seen = advance(
            state.params.columns["kernel"], state.columns, jnp.float32(next_obs), jnp.int32(stage), False, rates
        )
        value = (head * f).sum() + bias
        next_value = (head * np.asarray(features_of(seen))).sum() + bias
        delta = 1.0 + GAMMA * (not (ended and terminates)) * next_value - value
        decay = 0.0 if t % 3 == 0 else GAMMA * LAMBDA
        traced = decay * traced + np.asarray(pull_back(state.columns, state.params.head["kernel"]), np.float64)
        square = BETA2 * square + (1 - BETA2) * (delta * traced) ** 2
        expected = kernel.copy()
        expected[stage] += RATE * delta * traced / np.sqrt(square)
        np.testing.assert_allclose(after.params.columns["kernel"], expected, atol=1e-5)
        head_trace = decay * head_trace + np.append(f.ravel(), 1.0)
        head_square = BETA2 * head_square + (1 - BETA2) * (delta * head_trace) ** 2
        moved = np.append(head.ravel(), bias) + RATE / (2 * (stage + 1)) * delta * head_trace / np.sqrt(head_square)
        got = np.append(np.ravel(after.params.head["kernel"]), after.params.head["bias"])
        np.testing.assert_allclose(got, moved, atol=1e-5)
        np.testing.assert_allclose(metrics["loss/td_error"], abs(delta), atol=1e-5)
        assert (kernel[1 - stage] == np.asarray(after.params.columns["kernel"])[1 - stage]).all(), "frozen"
        state = after


@pytest.mark.parametrize("optimizer", ["obgd", "adam"])
def test_stream_q_learns_the_newest_stage_alone(optimizer):
    """And along the exact gradient: the trace of the first transition is the value's gradient."""
    env = jaxrl.make_env("probe/Memory")
    raw = {"normalize_observations": False, "normalize_rewards": False, "network": StreamingConfig(hidden=(8,))}
    columns = ColumnarConfig(2, 3, 1.0)
    agent = stream_q.stream_q(env, stream_q.Config(num_steps=1, columns=columns, optimizer=optimizer, **raw))
    hparams = agent.hyperparams(learning_rate=0.01, columns=columnar.rates(steps_per_stage=7.0, decay=0.9))
    state, step = jax.jit(agent.init)(jax.random.key(0), hparams), jax.jit(agent.step)
    net = streaming_network(env.observation_space, (("value", env.action_space.n),), raw["network"])
    memory = columnar.columnar_memory(env.observation_space, columns)

    def values(kernel, obs):
        """Q of the first observation of a stream, through the cells."""
        rows = (obs, jnp.int32(0), jnp.bool_(True), hparams.columns)
        features = memory.features(memory.advance({"kernel": kernel}, memory.initial_carry(), *rows))
        return net.apply(state.params, obs, features)["value"]

    exact = jax.jit(jax.jacobian(values))(state.params["columns"]["kernel"], state.actor.obs[0])
    assert np.abs(exact).max() > 1e-3
    for t in range(14):
        after, _ = step(state, hparams)
        kernel, moved = (np.asarray(s.params["columns"]["kernel"]) for s in (state, after))
        stage = int(t >= 7)
        assert (kernel[1 - stage] == moved[1 - stage]).all()
        trace = np.asarray(after.trace["columns"]["kernel"])
        if t == 0:
            assert any(np.allclose(trace, one, atol=1e-5) for one in exact)
        assert (trace[1 - int(t + 1 >= 7)] == 0).all()
        state = after
    assert (kernel[1] != moved[1]).any()


def test_return_error_is_the_distance_to_the_rewards_that_follow():
    env = conditioning.make("TraceConditioning", isi=(2, 2), iti=(3, 3))
    agent = ccn.ccn(env, ccn.Config(num_steps=40))
    hparams = agent.hyperparams(learning_rate=0.0, gamma=GAMMA)
    _, metrics = jax.jit(jaxrl.train(agent, 1))(jax.random.key(0), hparams)
    # Nothing is learned, so all predictions are 0; the US is seen after steps 2, 8, 14, ...
    reward = np.isin(np.arange(1, 41) % 6, [2]).astype(float)
    returns = np.zeros(41)
    for t in reversed(range(40)):
        returns[t] = reward[t] + GAMMA * returns[t + 1]
    np.testing.assert_allclose(metrics["loss/return_error"][0], np.mean(returns[:40] ** 2), rtol=1e-5)


def test_memory_is_linear_in_the_columns_and_thousands_learn_together():
    env = conditioning.make("TracePatterning")

    def num_bytes(num_stages, width):
        agent = ccn.ccn(env, ccn.Config(num_steps=2, columns=ColumnarConfig(num_stages, width)))
        return trees.num_bytes(jax.eval_shape(agent.init, jax.random.key(0), agent.hyperparams()))

    assert num_bytes(1, 64) - num_bytes(1, 32) == 2 * (num_bytes(1, 32) - num_bytes(1, 16))
    # Kernel, both sensitivities, trace and second moment of 7 columns on 12 inputs, and little else.
    assert 5 * 7 * 4 * 14 * 4 < num_bytes(1, 7) < 5 * 7 * 4 * 14 * 4 + 1200
    # Of 20 columns in stages, 4 have sensitivities, trace and second moment: not five times the kernel, but about two.
    assert num_bytes(5, 4) < 2.2 * 20 * 4 * 30 * 4
    agent = ccn.ccn(env, ccn.Config(num_steps=2))
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, 1), (0, None)))(
        jax.random.split(jax.random.key(0), 2048), agent.hyperparams()
    )
    assert metrics["loss/td_error"].shape == (2048, 1)
    assert trees.num_bytes(states) == 2048 * num_bytes(5, 4)


# --- Learning --------------------------------------------------------------------------------------------------------


def errors(env, config, num_steps, share=0.2, gamma=GAMMA, **hparams):
    """Mean squared distance to the expected return in the last part of training, [seeds]; and the same of 0."""
    agent = ccn.ccn(env, config)
    hparams = agent.hyperparams(gamma=gamma, **hparams)
    params = env.default_params()

    def run(key):
        def body(state, _):
            after, metrics = agent.step(state, hparams)
            target = conditioning.expected_return(
                jax.tree.map(lambda x: x[0], state.actor.env_state), params, jnp.float32(gamma)
            )
            return after, (jnp.square(metrics["value/mean"] - target), target)

        return jax.lax.scan(body, agent.init(key, hparams), None, num_steps)[1]

    error, target = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), NUM_SEEDS))
    late = slice(-int(share * num_steps), None)
    return np.asarray(error)[:, late].mean(1), np.asarray(target)[:, late].var(1)


TASK = {"isi": (4, 6), "iti": (10, 14)}
COLUMNS = ccn.Config(num_steps=1, columns=ColumnarConfig(2, 4, 0.1))
SETTING = {"learning_rate": 1e-3, "beta2": 0.999}


def test_memory_is_learned():
    """Trace conditioning, whose best predictor without memory knows no more than the mean."""
    env = conditioning.make("TraceConditioning", **TASK)
    rates = columnar.rates(steps_per_stage=10_000.0, decay=0.9999)
    error, variance = errors(env, COLUMNS, 20_000, learning_rate=3e-3, beta2=0.999, columns=rates)
    assert (error < 0.1 * variance).all(), error / variance


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_stages, width, threshold", [(1, 7, 0.2), (10, 1, 0.2), (5, 4, 0.1)])
def test_trace_patterning(num_stages, width, threshold):
    """Columnar, constructive and columnar-constructive.

    Of the variance, the best predictor leaves 3.4% and the best one without memory 95%.
    """
    env = conditioning.make("TracePatterning", isi=(6, 10), iti=(15, 25))
    config = ccn.Config(num_steps=1, columns=ColumnarConfig(num_stages, width, 0.1))
    rates = columnar.rates(steps_per_stage=200_000.0 / num_stages, decay=0.9999)
    error, variance = errors(env, config, 200_000, gamma=0.9, columns=rates, **SETTING)
    print(num_stages, width, np.round(error / variance, 3))
    assert np.median(error / variance) < threshold, error / variance


@pytest.mark.parametrize("with_columns", [True, False])
def test_control_with_memory(with_columns):
    """A cue seen once asks for an action later: ±1, and 0 for a policy that has forgotten."""
    env = jaxrl.make_env("probe/Memory")
    columns = ColumnarConfig(1, 8, 0.5) if with_columns else None
    raw = {"normalize_observations": False, "normalize_rewards": False}
    config = stream_q.Config(num_steps=500, columns=columns, network=StreamingConfig(hidden=(16, 16)), **raw)
    agent = stream_q.stream_q(env, config)
    hparams = agent.hyperparams(horizon=20_000, epsilon_fraction=0.5, gamma=0.99)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, 40), (0, None)))(keys, hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64, sampled=False), (0, 0, None)))
    got = np.asarray(play(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)
    assert (got > 0.95).all() if with_columns else (np.abs(got) < 0.5).all(), got
