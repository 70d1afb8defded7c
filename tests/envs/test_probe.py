"""Every probe is worth what its docstring says: all action sequences of small episodes are played out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

from jaxrl import spaces
from jaxrl.envs import make_env, probe

GAMMA = 0.9
NUM_KEYS = 64
DETERMINISTIC = {"Constant", "Discounting", "Policy", "Truncation", "Termination", "ContinuousPolicy"}


@functools.cache
def played(name, num_steps):
    """Plays every sequence of actions on many keys.

    Returns:
      Sequences [S, T, ...], first obs [K, ...], and (obs, reward, terminated, truncated, info) [S, K, T, ...].
    """
    env = probe.make(name)
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        choices = range(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        choices = list(itertools.product(*map(range, space.nvec)))
    else:
        choices = [[a] for a in np.linspace(-1, 1, 9, dtype=np.float32)]
    sequences = jnp.asarray(list(itertools.product(choices, repeat=num_steps)), space.dtype)

    def play(sequence, key):
        state, first = env.reset(key, env.default_params())

        def body(state, action):
            state, step = env.step(jax.random.key(0), state, action, env.default_params())
            return state, (step.obs, step.reward, step.terminated, step.truncated, step.info)

        return first, jax.lax.scan(body, state, sequence)[1]

    keys = jax.random.split(jax.random.key(3), NUM_KEYS)
    first, out = jax.jit(jax.vmap(jax.vmap(play, (None, 0)), (0, None)))(sequences, keys)
    to_host = functools.partial(jax.tree.map, np.asarray)
    return np.asarray(sequences), jax.tree.map(lambda leaf: np.asarray(leaf[0]), first), *to_host(out)


def returns_to_go(reward):
    """Discounted sums of rewards to the end, [..., T]."""
    out = np.zeros_like(reward)
    after = np.zeros(reward.shape[:-1])
    for t in reversed(range(reward.shape[-1])):
        after = out[..., t] = reward[..., t] + GAMMA * after
    return out


def matches(x, action):
    return np.where((x > 0) == (action == 1), 1.0, -1.0)


@pytest.mark.parametrize("name", probe.names())
def test_laws(name):
    env = probe.make(name)
    t = laws.trace(env)
    laws.check_all(env, t, deterministic=name in DETERMINISTIC)
    assert t.truncated.any() == (name == "Truncation")


@pytest.mark.parametrize("name", probe.names())
def test_episodes_end_where_declared(name):
    env = probe.make(name)
    horizon = env.max_episode_steps
    _, _, _, _, terminated, truncated, _ = played(name, horizon)
    ended = terminated | truncated
    assert not ended[..., :-1].any()
    assert ended[..., -1].all()
    assert truncated.any() == (name == "Truncation")


@pytest.mark.parametrize("name", probe.names())
def test_reward_leaf_multiplies(name):
    env = probe.make(name)
    action = jnp.ones(env.action_space.shape, env.action_space.dtype)

    def rewards(key, params):
        state, _ = env.reset(key, params)
        out = []
        for _ in range(env.max_episode_steps):
            state, step = env.step(key, state, action, params)
            out.append(step.reward)
        return jnp.stack(out)

    params = env.default_params()
    keys = jax.random.split(jax.random.key(1), 8)
    one, three = (
        jax.vmap(rewards, (0, None))(keys, params.replace(reward=scale * params.reward)) for scale in (1.0, 3.0)
    )
    assert jnp.abs(one).sum() > 0
    np.testing.assert_allclose(three, 3.0 * one, rtol=1e-6)


def test_constant():
    _, _, _, reward, terminated, _, _ = played("Constant", 1)
    assert (reward == 1.0).all()
    assert terminated.all()


def test_observation():
    _, first, _, reward, _, _, _ = played("Observation", 1)
    assert set(first.ravel()) == {-1.0, 1.0}
    np.testing.assert_array_equal(reward[..., 0], np.broadcast_to(first[:, 0], reward.shape[:-1]))


def test_discounting():
    _, first, obs, reward, _, _, _ = played("Discounting", 2)
    assert (first == 0.0).all()
    assert (obs[:, :, 0] == 1.0).all()
    np.testing.assert_allclose(returns_to_go(reward), np.broadcast_to([GAMMA, 1.0], reward.shape), rtol=1e-6)


def test_policy():
    sequences, first, _, reward, _, _, _ = played("Policy", 1)
    assert (first == 0.0).all()
    np.testing.assert_array_equal(reward[..., 0], np.broadcast_to([[-1.0], [1.0]], reward.shape[:-1]))
    np.testing.assert_array_equal(sequences, [[0], [1]])


def test_policy_observation():
    sequences, first, _, reward, _, _, _ = played("PolicyObservation", 1)
    np.testing.assert_array_equal(reward[..., 0], matches(first.T, sequences))
    assert abs(reward.mean(1)).max() < 0.5  # neither action is good for all


def test_credit():
    sequences, first, obs, reward, _, _, _ = played("Credit", 2)
    outcome = matches(first[None, :, 0], sequences[:, :1])
    np.testing.assert_array_equal(first[:, 1], 0.0)
    np.testing.assert_array_equal(obs[:, :, 0], np.stack([outcome, np.ones_like(outcome)], -1))
    value = returns_to_go(reward)
    np.testing.assert_allclose(value[..., 0], GAMMA * outcome, rtol=1e-6)
    np.testing.assert_allclose(value[..., 1], outcome, rtol=1e-6)
    np.testing.assert_allclose(value[..., 0].max(0), GAMMA, rtol=1e-6)


def bootstrapped_value(reward, stops):
    """Fixed point of one-step targets where all observations look the same."""
    return reward.mean() / (1 - GAMMA * (1 - stops.mean()))


def test_truncation():
    _, first, obs, reward, terminated, truncated, _ = played("Truncation", 5)
    assert (obs == first[0]).all()
    np.testing.assert_allclose(bootstrapped_value(reward, terminated), 1 / (1 - GAMMA), rtol=1e-6)
    wrong = bootstrapped_value(reward, terminated | truncated)
    np.testing.assert_allclose(wrong, 1 / (1 - GAMMA * 4 / 5), rtol=1e-6)
    assert wrong < 5 < 1 / (1 - GAMMA)


def test_termination():
    _, first, obs, reward, _, _, _ = played("Termination", 5)
    seen = np.concatenate([np.broadcast_to(first[:, None], (*obs.shape[:2], 1, 5)), obs], 2)
    np.testing.assert_array_equal(seen, np.broadcast_to(np.eye(6, 5), seen.shape))
    expected = [(1 - GAMMA ** (5 - k)) / (1 - GAMMA) for k in range(5)]
    np.testing.assert_allclose(returns_to_go(reward), np.broadcast_to(expected, reward.shape), rtol=1e-5)


def test_memory():
    sequences, first, obs, reward, _, _, _ = played("Memory", 4)
    assert set(first[:, 0]) == {-1.0, 1.0}
    np.testing.assert_array_equal(first[:, 1], 0.0)
    np.testing.assert_array_equal(obs[:, :, :3], np.broadcast_to([[0, 0], [0, 0], [0, 1]], (*obs.shape[:2], 3, 2)))
    correct = matches(first[None, :, 0], sequences[:, 3:])
    expected = correct[..., None] * GAMMA ** np.array([3, 2, 1, 0])
    np.testing.assert_allclose(returns_to_go(reward), expected, rtol=1e-5)


def test_memory_length_is_swept():
    env = probe.make("Memory")

    def steps_until_end(length):
        params = env.default_params().replace(length=length)
        state, _ = env.reset(jax.random.key(0), params)

        def body(state, _):
            state, step = env.step(jax.random.key(0), state, jnp.int32(1), params)
            return state, (step.terminated, step.reward)

        terminated, reward = jax.lax.scan(body, state, None, length=8)[1]
        return jnp.argmax(terminated) + 1, jnp.abs(reward)

    steps, paid = jax.vmap(steps_until_end)(jnp.array([1, 3, 6]))
    np.testing.assert_array_equal(steps, [2, 4, 7])
    np.testing.assert_array_equal(paid, np.eye(8)[[1, 3, 6]])
    assert probe.make("Memory", length=6).max_episode_steps == 7


def test_continuous_policy():
    sequences, _, _, reward, _, _, _ = played("ContinuousPolicy", 1)
    expected = -((sequences[:, 0] - 0.5) ** 2)
    np.testing.assert_allclose(reward[..., 0], np.broadcast_to(expected, reward.shape[:-1]), atol=1e-6)
    assert sequences[reward[:, 0, 0].argmax()] == 0.5


def test_continuous_target_is_swept():
    env = probe.make("ContinuousPolicy")

    def reward(target):
        params = env.default_params().replace(target=target)
        state, _ = env.reset(jax.random.key(0), params)
        return env.step(jax.random.key(0), state, jnp.array([0.25]), params)[1].reward

    np.testing.assert_allclose(jax.vmap(reward)(jnp.array([0.25, -0.75])), [0.0, -1.0])


def test_continuous_observation():
    sequences, first, _, reward, _, _, _ = played("ContinuousObservation", 1)
    assert np.ptp(first) > 0.5
    np.testing.assert_allclose(reward[..., 0], -((sequences[:, 0] - first.T) ** 2), atol=1e-6)
    mean = reward[..., 0].mean(1)
    assert sequences[mean.argmax()] == 0.0
    assert abs(mean.max() + 1 / 12) < 0.04


def test_multi_discrete_policy():
    sequences, first, _, reward, _, _, _ = played("MultiDiscretePolicy", 1)
    best = sequences[reward[..., 0].argmax(0), 0]
    np.testing.assert_array_equal(best, np.where(first > 0, [1, 2], [0, 0]))
    np.testing.assert_array_equal(reward.max(0), 2.0)
    np.testing.assert_allclose(reward.mean(0), 1 / 2 + 1 / 3, rtol=1e-6)


def test_dict_observation():
    sequences, first, _, reward, _, _, _ = played("DictObservation", 1)
    x, image = first["vector"][:, 0], first["image"][..., 0]
    np.testing.assert_array_equal(first["vector"][:, 1], -x)
    right = image[:, 0, 3]
    np.testing.assert_array_equal(image[..., 2:], np.broadcast_to(right[:, None, None], (NUM_KEYS, 4, 2)))
    np.testing.assert_array_equal(image[..., :2], np.broadcast_to(1 - right[:, None, None], (NUM_KEYS, 4, 2)))
    np.testing.assert_array_equal(sequences[reward[..., 0].argmax(0), 0], 2 * (x > 0) + right)
    np.testing.assert_array_equal(np.sort(reward[..., 0], 0), np.broadcast_to([[-1], [0], [0], [1]], (4, NUM_KEYS)))
    assert len({(a, b) for a, b in zip(x, right, strict=True)}) == 4


def test_action_mask():
    _, first, _, reward, _, _, info = played("ActionMask", 1)
    legal = first["action_mask"]
    assert legal[:, 0].all()
    assert 0.25 < legal[:, 1:].mean() < 0.75
    assert (first["observation"] == 0.0).all()
    np.testing.assert_array_equal(info["illegal"][..., 0], ~legal.T)
    expected = np.where(legal.T, np.arange(4)[:, None] / 3, -1.0)
    np.testing.assert_allclose(reward[..., 0], expected, rtol=1e-6)
    best = np.array([3 - row[::-1].argmax() for row in legal]) / 3
    np.testing.assert_allclose(reward[..., 0].max(0), best, rtol=1e-6)
    assert abs(best.mean() - 17 / 24) < 0.15


def test_registry_and_memo():
    assert make_env("probe/Truncation", max_episode_steps=7) is probe.make("Truncation", max_episode_steps=7)
    env = probe.make("Truncation", max_episode_steps=7)
    assert env.max_episode_steps == env.default_params().max_episode_steps.item() == 7
    assert probe.make("Termination", num_steps=3).observation_space.shape == (3,)
    assert probe.make("ContinuousPolicy", target=-0.25).default_params().target.item() == -0.25


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("Truncation", {"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1; got.* = 0"),
        ("Termination", {"num_steps": 2.5}, "num_steps must be a whole number.* 2.5"),
        ("Memory", {"length": True}, "length must be a whole number.* True"),
        ("ContinuousPolicy", {"target": 1.5}, "from -1 to 1; got target = 1.5"),
        ("Constant", {"length": 2}, "does not take these options: .*length"),
    ],
)
def test_wrong_options(name, options, words):
    with pytest.raises(ValueError, match=words):
        make_env(f"probe/{name}", **options)


def test_made_while_tracing_keeps_no_tracer():
    def outer(x):
        env = probe.make("Memory", length=11)
        return x + env.default_params().reward

    assert jax.jit(outer)(1.0) == 2.0
    assert probe.make("Memory", length=11).default_params().length.item() == 11
