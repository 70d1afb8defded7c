"""MR.Q: bins of rewards, an update against formulas in float64, values of probes, what is learned. 5 seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import buffers, spaces
from jaxrl.algorithms import mrq
from jaxrl.networks.latent import LatentConfig, latent_networks, symexp_bins, two_hot

NUM_SEEDS, GAMMA, ALPHA = 5, 0.8, 0.4
TINY = LatentConfig(
    num_state_features=6, num_action_features=4, num_pair_features=5, hidden=8, num_bins=9, num_critics=2
)


def changed(env, continuous):
    """A probe whose episodes a reward that depends on the action cuts short now and then."""

    def step(key, state, action, params):
        after, result = env.step(key, state, jnp.int32(0), params)
        push = action[0] if continuous else action.astype(jnp.float32) - 0.5
        return after, result.replace(reward=result.reward + 3 * push, truncated=result.truncated | (push > 0.6))

    space = spaces.box(-1.0, 1.0, (2,)) if continuous else spaces.Discrete(3)
    return env._replace(step=step, action_space=space)


# --- Bins ------------------------------------------------------------------------------------------------------------


def test_two_hot_of_uneven_bins():
    """The mean is the value, with weight on its two neighbors only; beyond the ends all is on the end."""
    centers = np.sign(np.linspace(-3, 3, 13)) * np.expm1(np.abs(np.linspace(-3, 3, 13)))
    np.testing.assert_allclose(symexp_bins(jnp.float32(-3), jnp.float32(3), 13), centers, rtol=1e-6)
    x = np.concatenate([np.random.default_rng(0).normal(0, 5, 200), centers])
    inside = x[np.abs(x) <= centers[-1]]
    weights = np.float64(two_hot(jnp.float32(inside), jnp.float32(centers)))
    np.testing.assert_allclose(weights @ centers, inside, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    below = np.clip(np.searchsorted(centers, inside, "right"), 1, 12) - 1
    rest = np.array([np.delete(row, [i, i + 1]) for row, i in zip(weights, below, strict=True)])
    assert np.abs(rest).max() < 1e-6
    ends = two_hot(jnp.array([-100.0, 100.0]), jnp.float32(centers))
    np.testing.assert_array_equal(ends, np.eye(13)[[0, 12]])


# --- One update ------------------------------------------------------------------------------------------------------

NUM_DRAWN, NUM_ROWS, LENGTH = 24, 16, 4


def dense(layer, x):
    return x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])


def normal(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def layers(params, x, activation=elu):
    for i in range(2):
        x = activation(normal(dense(params[f"Dense_{i}"], x)))
    return dense(params["Dense_2"], x)


def state_of(encoder, obs):
    return elu(normal(layers(encoder["state_layers"], obs)))


def pair_of(encoder, features, action):
    own = elu(dense(encoder["action_layer"], action))
    return layers(encoder["pair_layers"], np.concatenate([features, own], axis=-1))


def value_of(params, features, action):
    """Q_m, [M, N]."""
    found = []
    for m in range(2):
        member = jax.tree.map(lambda leaf, m=m: np.asarray(leaf)[m], params["value"])
        x = pair_of(params["encoder"], features, action)
        for i in range(3):
            x = elu(normal(dense(member[f"layer_{i}"], x)))
        found.append(dense(member["value"], x)[:, 0])
    return np.stack(found)


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("continuous", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_update_of_mrq(continuous):
    """One of the encoder, then one transition, then one of the critics and one of the policy, and priorities."""
    env = changed(jaxrl.make_env("probe/Termination", num_steps=3), continuous)
    sizes = {"batch_size": NUM_DRAWN, "capacity": NUM_ROWS, "num_warmup_steps": NUM_ROWS, "length": LENGTH}
    agent = mrq.mrq(env, config=mrq.Config(num_rounds=1, n_step=2, network=TINY, **sizes))
    rates = {f"{part}_learning_rate": 1e-2 for part in ("encoder", "value", "policy")}
    weights = {"dynamics_weight": 0.7, "reward_weight": 0.3, "termination_weight": 0.5, "pre_activation_weight": 0.1}
    noises = {"policy_noise": 0.6, "noise_clip": 0.5, "gumbel_temperature": 2.0, "least_priority": 0.05}
    bins = {"reward_low": -2.0, "reward_high": 2.0}
    hparams = agent.hyperparams(gamma=GAMMA, **rates, **weights, **noises, **bins)
    before, step = jax.jit(agent.init)(jax.random.key(0), hparams), jax.jit(agent.step)
    # The second step, so that priorities differ and there is a scale of the last period.
    before, _ = step(before, hparams)
    after, metrics = step(before, hparams)
    old, new = before.params, after.params

    # The order of keys is the one in `_step`.
    _, key_model, _, _, key_replay, key_next, key_now = jax.random.split(before.key, 7)
    buffer = buffers.prioritized(NUM_ROWS, 1, NUM_DRAWN, LENGTH, alpha=ALPHA, beta=0.0, beta_end=0.0)
    replay, progress = hparams.replay, jnp.float32(0.0)
    known = buffer.sample(replay, before.buffer, buffer.noise(key_model, 1)[0], progress)
    newest = int(before.buffer.pointer)
    row = jax.tree.map(lambda x: x[newest][None], after.buffer.items)
    added = buffer.add(replay, before.buffer, row)
    drawn = buffer.sample(replay, added, buffer.noise(key_replay, 1, 1)[0, 0], progress)
    as_input = (lambda a: a) if continuous else (lambda a: np.eye(3)[a.astype(int)])
    table = lambda state: jax.tree.map(lambda x: np.asarray(x)[:, 0].astype(np.float64), state.items)

    # --- Encoder ---
    rows = table(before.buffer)
    now = np.asarray(known.index)
    features, whole = state_of(old["encoder"], rows.obs[now]), np.ones(NUM_DRAWN)
    centers = np.sign(np.linspace(-2, 2, 9)) * np.expm1(np.abs(np.linspace(-2, 2, 9)))
    dynamics, reward_loss, termination, counted = 0.0, 0.0, 0.0, []
    for _ in range(LENGTH):
        output = dense(old["encoder"]["model"], pair_of(old["encoder"], features, as_input(rows.action[now])))
        features = output[:, 1:7]
        dynamics += (((features - state_of(old["encoder"], rows.next_obs[now])) ** 2).mean(1) * whole).mean()
        above = np.clip(np.searchsorted(centers, rows.reward[now], "right"), 1, 8)
        share = (np.clip(rows.reward[now], centers[0], centers[-1]) - centers[above - 1]) / np.diff(centers)[above - 1]
        logs = log_softmax(output[:, 7:])
        n = np.arange(NUM_DRAWN)
        reward_loss -= (((1 - share) * logs[n, above - 1] + share * logs[n, above]) * whole).mean()
        termination += ((output[:, 0] - rows.terminated[now]) ** 2 * whole).mean()
        whole = whole * (1 - np.maximum(rows.terminated, rows.truncated)[now])
        counted.append(whole.mean())
        now = (now + 1) % NUM_ROWS
    assert any(0 < share < 1 for share in counted)
    close(metrics["loss/dynamics"], dynamics)
    close(metrics["loss/reward"], reward_loss)
    close(metrics["loss/termination"], termination)
    close(metrics["loss/encoder"], 0.7 * dynamics + 0.3 * reward_loss + 0.5 * termination)

    # --- Value: the target by networks from before the step, the critics' input by the new encoder ---
    scale = np.abs(rows.reward).mean()
    close(metrics["reward/scale"], scale)
    rows, first = table(added), np.asarray(drawn.index)
    second, ended = (first + 1) % NUM_ROWS, np.maximum(rows.terminated, rows.truncated)
    assert (rows.terminated[first] > 0).any()
    assert (rows.truncated[first] > 0).any()
    last = np.where(ended[first] > 0, first, second)
    reward = rows.reward[first] + np.where(ended[first] > 0, 0, GAMMA * rows.reward[second])
    discount = np.where(rows.terminated[last] > 0, 0, np.where(ended[first] > 0, GAMMA, GAMMA**2))
    key_gumbel, key_normal = jax.random.split(key_next)
    shape, unit = (1, 1, NUM_DRAWN, 2 if continuous else 3), 1.0 if continuous else 0.5
    noise = unit * np.clip(0.6 * np.float64(jax.random.normal(key_normal, shape)), -0.5, 0.5)[0, 0]

    def squashed(raw, key):
        if continuous:
            return np.tanh(raw)
        return np.exp(log_softmax((raw + np.float64(jax.random.gumbel(key, shape))[0, 0]) / 2.0))

    relu = lambda x: np.maximum(x, 0)
    features = state_of(old["encoder"], rows.next_obs[last])
    action = squashed(layers(old["policy"]["Layers_0"], features, relu), key_gumbel) + noise
    action = np.clip(action, -1, 1) if continuous else np.eye(3)[action.argmax(1)]
    following = value_of(old, features, action).min(0)
    target = (reward + discount * float(before.reward_scale) * following) / scale
    assert abs(float(before.reward_scale) - scale) > 1e-3
    features = state_of(new["encoder"], rows.obs[first])
    critics = {"encoder": new["encoder"], "value": old["value"]}
    error = value_of(critics, features, as_input(rows.action[first])) - target
    size = np.abs(error)
    assert (size > 1).any()
    close(metrics["value/target"], scale * target.mean())
    close(metrics["loss/value"], np.where(size <= 1, error**2 / 2, size - 0.5).mean())

    # --- Policy: of the critics as they are now ---
    raw = layers(old["policy"]["Layers_0"], features, relu)
    close(metrics["loss/policy"], -value_of(new, features, squashed(raw, key_now)).mean() + 0.1 * (raw**2).mean())

    # --- Priorities: an entry that was drawn twice, each time with noise of its own, has one of its errors ---
    priority = (np.maximum(size.max(0), 0.05) + 1e-6) ** ALPHA
    stored = np.asarray(after.buffer.priorities.levels[0]).ravel()
    for entry in np.unique(first):
        assert np.abs(priority[first == entry] / stored[entry] - 1).min() < 1e-3


def test_messages():
    pendulum = jaxrl.make_env("gymnax/Pendulum-v1")
    with pytest.raises(ValueError, match="mrq: num_warmup_steps must be a multiple of num_steps and at least the rows"):
        mrq.mrq(pendulum, config=mrq.Config(num_warmup_steps=4))
    with pytest.raises(ValueError, match="the reward needs at least 2 bins"):
        mrq.mrq(pendulum, config=mrq.Config(network=LatentConfig(num_bins=1)))
    with pytest.raises(ValueError, match="latent_networks: hidden must be a whole number"):
        mrq.mrq(pendulum, config=mrq.Config(network=LatentConfig(hidden=0)))
    with pytest.raises(ValueError, match="actions must be Discrete or a Box with finite bounds"):
        latent_networks(spaces.box(-1.0, 1.0, (2,)), spaces.MultiDiscrete((2, 2)))
    with pytest.raises(ValueError, match=r"least_priority = 2\.0 has no effect"):
        mrq.mrq(pendulum, config=mrq.Config(prioritized=False)).hyperparams(least_priority=2.0)


def test_images_go_through_the_convolutions():
    """Of MinAtar's size; shapes alone."""
    nets = latent_networks(spaces.box(0.0, 1.0, (10, 10, 4)), spaces.Discrete(3), TINY)
    inputs = jnp.zeros((5, 10, 10, 4)), jnp.zeros((5, 3))
    prediction, params = jax.eval_shape(nets.encoder.init_with_output, jax.random.key(0), *inputs)
    assert prediction.features.shape == (5, 6)
    assert params["params"]["torso"]["CNN_0"]["Conv_0"]["kernel"].shape == (3, 3, 4, 16)
    assert params["params"]["state_layers"]["kernel"].shape == (128, 6)


# --- Values and learning ---------------------------------------------------------------------------------------------


def train(agent, num_steps, broken=False, **hparams):
    hparams = agent.hyperparams(**hparams)
    if broken:
        # It descends what it should climb; `hyperparams` would refuse the rate.
        hparams = dataclasses.replace(hparams, policy_learning_rate=-hparams.policy_learning_rate)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    return states, hparams


TERMINATION = np.eye(5), [sum(GAMMA**i for i in range(5 - k)) for k in range(5)]
TRUNCATION = [[0.0]], [1 / (1 - GAMMA)]
RATES = dict.fromkeys(("encoder_learning_rate", "value_learning_rate", "policy_learning_rate"), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("probe, expected", [("Termination", TERMINATION), ("Truncation", TRUNCATION)])
def test_values_of_the_probes(probe, expected):
    """A bootstrap cut at the time limit would give at most 3.36 instead of 5, one at the end of the episode 5."""
    env = jaxrl.make_env(f"probe/{probe}")
    network = LatentConfig(16, 4, 16, 16, 9)
    sizes = {"num_envs": 4, "num_steps": 2, "num_updates": 2, "num_rounds": 50, "batch_size": 32}
    config = mrq.Config(**sizes, capacity=512, num_warmup_steps=16, network=network)
    agent = mrq.mrq(env, config=config)
    states, _ = train(agent, 20, **{**RATES, "value_learning_rate": 3e-3}, gamma=GAMMA)
    obs, value = expected
    nets = latent_networks(env.observation_space, env.action_space, network)
    size = nets.policy.num_actions

    def values(params):
        apply = lambda name, *inputs: nets.encoder.apply({"params": params["encoder"]}, *inputs, method=name)
        actions = [jnp.broadcast_to(jnp.eye(size)[a], (len(obs), size)) for a in range(size)]
        pairs = [apply("pair", apply("state", jnp.float32(obs)), action) for action in actions]
        return jnp.stack([nets.value.apply({"params": params["value"]}, pair) for pair in pairs])

    found = np.asarray(jax.vmap(values)(states.params)).mean((1, 2)) * np.asarray(states.reward_scale)[:, None]
    np.testing.assert_allclose(found, np.broadcast_to(np.array(value), found.shape), atol=0.2)


SMALL = LatentConfig(64, 16, 64, 64, 33)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    "name, num_steps, changes, least, most",
    [("Pendulum-v1", 6_000, {}, -250, -800), ("CartPole-v1", 12_000, {"num_envs": 2, "num_rounds": 100}, 250, 100)],
)
def test_learning(name, num_steps, changes, least, most, broken):
    """Rates of 1e-3, batches of 64, layers of 64 units. A random policy has about -1200 and 20.

    The broken version has the policy's rate negative, and a quarter of the steps.
    """
    sizes = {"batch_size": 64, "capacity": 16_384, "num_warmup_steps": 1024, "network": SMALL, **changes}
    agent = jaxrl.make("mrq", jaxrl.make_env(f"gymnax/{name}"), **sizes)
    states, hparams = train(agent, num_steps // (4 if broken else 1) // agent.env_steps, broken, **RATES)
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, 16), (0, 0, None)))
    got = np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)
    print("mrq", name, "broken" if broken else "", np.round(got, 1))
    assert np.mean(got) <= most if broken else np.mean(got) >= least, got
