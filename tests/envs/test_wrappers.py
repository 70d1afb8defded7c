"""Wrappers keep the laws of `Env` and do what a hand-computed example says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws
from flax import struct

from jaxrl import spaces, wrappers
from jaxrl.envs import make_env
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

KEY = jax.random.key(0)


@struct.dataclass
class EchoParams:
    end: jax.Array
    start: jax.Array


@memoize
def echo(action_space: spaces.Space, kind: str = "vector") -> Env:
    """Rewards are the actions as executed; observations count the steps; terminates after `end` steps."""

    def observe(count):
        vector = jnp.stack([count, -count]).astype(jnp.float32)
        return {
            "vector": vector,
            "integer": count,
            "integers": jnp.stack([count % 2, count % 3]),
            "nested": {"a": {"x": vector, "n": count}, "b": count[None, None].astype(jnp.uint8)},
            "scalar": vector[0],
        }[kind]

    def reset(key, params):
        return params.start, observe(params.start)

    def step(key, state, action, params):
        count = state + 1
        return count, EnvStep(
            obs=observe(count),
            reward=jnp.sum(jnp.asarray(action)).astype(jnp.float32),
            terminated=count >= params.end,
            truncated=jnp.zeros((), bool),
            info={"count": count},
        )

    vector = spaces.box((0.0, -50.0), (50.0, 0.0), (2,))
    integer = spaces.Discrete(51)
    nested = spaces.Dict((("x", vector), ("n", integer)))
    space = {
        "vector": vector,
        "integer": integer,
        "integers": spaces.MultiDiscrete((2, 3)),
        "nested": spaces.Dict((("a", nested), ("b", spaces.box(0, 255, (1, 1), jnp.uint8)))),
        "scalar": spaces.box(0.0, 50.0, ()),
    }[kind]
    return Env(
        name=f"test/Echo-{kind}",
        reset=reset,
        step=step,
        default_params=lambda: EchoParams(jnp.int32(5), jnp.int32(0)),
        observation_space=space,
        action_space=action_space,
    )


ONE = spaces.box(-np.inf, np.inf, (1,))
UNEQUAL = spaces.box((-1.0, 0.0), (3.0, 10.0), (2,))
MASKED = make_env("probe/ActionMask")
CARTPOLE = make_env("gymnax/CartPole-v1")
PENDULUM = make_env("gymnax/Pendulum-v1")
BREAKOUT = make_env("gymnax/Breakout-MinAtar")
GRAVITY = wrappers.uniform_leaves((("gravity", 5.0, 15.0), ("force_mag", 2.0, 3.0)))


def run(env, actions, params=None, key=KEY):
    """Plays the actions: the states, first obs, and the steps, each stacked over time."""
    params = env.default_params() if params is None else params
    key_reset, key_steps = jax.random.split(key)
    state, obs = env.reset(key_reset, params)

    def body(state, x):
        state, step = env.step(x[1], state, x[0], params)
        return state, (state, step)

    actions = jnp.asarray(actions)
    states, steps = jax.lax.scan(body, state, (actions, jax.random.split(key_steps, len(actions))))[1]
    return states, obs, steps


# Wrapped environment, whether it is deterministic, and how many lanes of a trace reach a time limit.
LAWFUL = [
    (wrappers.time_limit(CARTPOLE, 6), False, laws.NUM_LANES),
    (wrappers.rescale_action(echo(UNEQUAL)), True, 0),
    (wrappers.clip_action(echo(UNEQUAL)), True, 0),
    (wrappers.frame_stack(BREAKOUT, 2), False, 1),
    (wrappers.frame_stack(MASKED, 2), False, 0),
    (wrappers.action_repeat(make_env("probe/Memory"), 2), False, 0),
    (wrappers.flatten_observation(make_env("probe/DictObservation")), False, 0),
    (wrappers.flatten_observation(MASKED), False, 0),
    (wrappers.one_hot_observation(echo(ONE, "nested")), True, 0),
    (wrappers.sticky_actions(CARTPOLE), False, 1),
    (wrappers.scale_reward(CARTPOLE, 2), False, 1),
    (wrappers.observe_time_left(MASKED), False, 0),
    (wrappers.randomize_params(CARTPOLE, GRAVITY), False, 1),
    (
        wrappers.frame_stack(
            wrappers.observe_time_left(
                wrappers.sticky_actions(wrappers.randomize_params(wrappers.time_limit(CARTPOLE, 6), GRAVITY), 0.5)
            ),
            2,
        ),
        False,
        laws.NUM_LANES,
    ),
]


@pytest.mark.parametrize("env, deterministic, reached", LAWFUL, ids=[env.name for env, _, _ in LAWFUL])
def test_laws(env, deterministic, reached):
    t = laws.trace(env)
    laws.check_all(env, t, deterministic=deterministic)
    assert t.truncated.any() == (reached > 0)


def test_equal_arguments_give_the_same_record():
    assert wrappers.frame_stack(CARTPOLE, 3) is wrappers.frame_stack(CARTPOLE, 3)
    again = wrappers.uniform_leaves((("gravity", 5, 15), ("force_mag", 2, 3)))
    assert wrappers.randomize_params(CARTPOLE, again) is wrappers.randomize_params(CARTPOLE, GRAVITY)
    assert LAWFUL[-1][0].name == (
        "gymnax/CartPole-v1|time_limit(6)|randomize_params(gravity:5:15,force_mag:2:3)|sticky_actions(0.5)"
        "|observe_time_left|frame_stack(2)"
    )


def test_time_limit_is_a_leaf_and_truncates():
    env = wrappers.time_limit(echo(ONE), 3)
    assert env.default_params().max_episode_steps.item() == 3

    def flags(limit):
        _, _, steps = run(env, jnp.zeros((6, 1)), dataclasses.replace(env.default_params(), max_episode_steps=limit))
        return steps.terminated, steps.truncated

    terminated, truncated = jax.vmap(flags)(jnp.array([1, 3, 5, 9]))
    number = np.arange(1, 7)
    np.testing.assert_array_equal(terminated, np.broadcast_to(number >= 5, (4, 6)))
    np.testing.assert_array_equal(truncated, number >= np.array([[1], [3], [5], [9]]))


@pytest.mark.parametrize("inner, limit, expected", [(None, 7, 7), (5, 7, 5), (5, 3, 3)])
def test_time_limit_keeps_the_smaller(inner, limit, expected):
    env = make_env("probe/Truncation", max_episode_steps=inner) if inner else echo(ONE)
    env = wrappers.time_limit(env, limit)
    assert env.max_episode_steps == expected
    ended = run(env, jnp.zeros((8, 1)) if inner is None else jnp.zeros(8, jnp.int32))[2].truncated
    assert int(ended.argmax()) + 1 == expected


def test_rescale_action_maps_the_ends_to_the_bounds():
    env = wrappers.rescale_action(echo(UNEQUAL))
    assert env.action_space == spaces.box(-1.0, 1.0, (2,))
    actions = jnp.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -0.5]])
    # low + (a + 1)/2 (high - low): [-1, 0], [3, 10], [1, 5], [2, 2.5]; the reward sums both.
    np.testing.assert_array_equal(run(env, actions)[2].reward, [-1.0, 13.0, 6.0, 4.5])


def test_rescale_action_on_pendulum():
    _, _, scaled = run(wrappers.rescale_action(PENDULUM), jnp.array([[-1.0], [0.25], [1.0]]))
    _, _, raw = run(PENDULUM, jnp.array([[-2.0], [0.5], [2.0]]))
    np.testing.assert_allclose(scaled.obs, raw.obs, rtol=1e-6)
    np.testing.assert_allclose(scaled.reward, raw.reward, rtol=1e-6)


def test_clip_action():
    env = wrappers.clip_action(echo(UNEQUAL))
    actions = jnp.array([[-5.0, -5.0], [5.0, 50.0], [2.0, 3.0]])
    np.testing.assert_array_equal(run(env, actions)[2].reward, [-1.0, 13.0, 5.0])
    half = wrappers.clip_action(echo(spaces.box(0.0, np.inf, (1,))))
    np.testing.assert_array_equal(run(half, jnp.array([[-5.0], [1e6]]))[2].reward, [0.0, 1e6])


def test_frame_stack_of_vectors():
    env = wrappers.frame_stack(echo(ONE), 3)
    params = dataclasses.replace(env.default_params(), start=jnp.int32(7))
    _, first, steps = run(env, jnp.zeros((4, 1)), params)
    np.testing.assert_array_equal(first, [7, -7, 7, -7, 7, -7])
    np.testing.assert_array_equal(
        steps.obs,
        [[7, -7, 7, -7, 8, -8], [7, -7, 8, -8, 9, -9], [8, -8, 9, -9, 10, -10], [9, -9, 10, -10, 11, -11]],
    )
    np.testing.assert_array_equal(env.observation_space.low_array, [0, -50, 0, -50, 0, -50])
    np.testing.assert_array_equal(env.observation_space.high_array, [50, 0, 50, 0, 50, 0])


def test_frame_stack_of_images():
    actions = jnp.array([0, 1, 2, 1])
    _, first, steps = run(wrappers.frame_stack(BREAKOUT, 2), actions)
    _, raw_first, raw = run(BREAKOUT, actions)
    frames = jnp.concatenate([raw_first[None], raw.obs])
    assert (frames[0] != frames[1]).any()
    np.testing.assert_array_equal(first, jnp.concatenate([raw_first, raw_first], -1))
    np.testing.assert_array_equal(steps.obs, jnp.concatenate([frames[:-1], frames[1:]], -1))


def test_frame_stack_leaves_the_mask():
    env = wrappers.frame_stack(MASKED, 2)
    assert env.observation_space["action_mask"] == MASKED.observation_space["action_mask"]
    _, first, _ = run(env, jnp.zeros(1, jnp.int32))
    _, raw, _ = run(MASKED, jnp.zeros(1, jnp.int32))
    assert first["observation"].shape == (2,)
    np.testing.assert_array_equal(first["action_mask"], raw["action_mask"])


def test_action_repeat_sums_and_stops_at_the_end():
    env = wrappers.action_repeat(echo(ONE), 3)
    states, _, steps = run(env, jnp.array([[1.0], [10.0], [100.0]]))
    # The episode ends after 5 inner steps: the second action is executed twice, the third once.
    np.testing.assert_array_equal(steps.reward, [3.0, 20.0, 100.0])
    np.testing.assert_array_equal(states, [3, 5, 6])
    np.testing.assert_array_equal(steps.obs[:, 0], [3, 5, 6])
    np.testing.assert_array_equal(steps.info["count"], [3, 5, 6])
    np.testing.assert_array_equal(steps.terminated, [False, True, True])


def test_action_repeat_stops_at_truncation():
    env = wrappers.action_repeat(wrappers.time_limit(echo(ONE), 4), 3)
    assert env.max_episode_steps == 2
    states, _, steps = run(env, jnp.ones((2, 1)))
    np.testing.assert_array_equal(steps.reward, [3.0, 1.0])
    np.testing.assert_array_equal(states.num_steps, [3, 4])
    np.testing.assert_array_equal(steps.truncated, [False, True])
    assert not steps.terminated.any()
    assert wrappers.action_repeat(echo(ONE), 3).max_episode_steps is None


def test_action_repeat_gives_every_repetition_its_key():
    base = echo(ONE)

    def noisy(key, state, action, params):
        state, step = base.step(key, state, action, params)
        return state, dataclasses.replace(step, reward=jax.random.normal(key))

    env = wrappers.action_repeat(base._replace(step=noisy), 2)
    _, _, steps = run(env, jnp.ones((1, 1)))
    key = jax.random.split(jax.random.split(KEY)[1], 1)[0]
    np.testing.assert_allclose(steps.reward[0], sum(jax.random.normal(k) for k in jax.random.split(key, 2)), rtol=1e-6)


def test_flatten_observation():
    env = make_env("probe/DictObservation")
    _, raw, _ = run(env, jnp.zeros(1, jnp.int32))
    _, flat, _ = run(wrappers.flatten_observation(env), jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(flat, np.concatenate([raw["vector"], np.ravel(raw["image"])]))
    space = wrappers.flatten_observation(env).observation_space
    np.testing.assert_array_equal(space.low_array, [-1.0] * 2 + [0.0] * 16)
    _, scalar, _ = run(wrappers.flatten_observation(echo(ONE, "scalar")), jnp.zeros((1, 1)))
    assert scalar.shape == (1,)


def test_flatten_observation_keeps_the_mask():
    parts = (("a", spaces.box(0, 1, (2,))), ("action_mask", spaces.box(0, 1, (4,), jnp.bool_)), *_C)
    env = MASKED._replace(
        reset=lambda key, params: (
            MASKED.reset(key, params)[0],
            {"c": jnp.full((1, 1), 3.0), "a": jnp.array([1.0, 2.0]), "action_mask": jnp.ones(4, bool)},
        ),
        observation_space=spaces.Dict(parts),
    )
    flat = wrappers.flatten_observation(env)
    obs = flat.reset(KEY, flat.default_params())[1]
    np.testing.assert_array_equal(obs["observation"], [1.0, 2.0, 3.0])  # in the space's order
    np.testing.assert_array_equal(obs["action_mask"], np.ones(4, bool))
    assert flat.observation_space.names == ("observation", "action_mask")
    assert flat.observation_space["observation"].shape == (3,)


_C = (("c", spaces.box(0, 1, (1, 1))),)


def test_one_hot_observation():
    _, first, steps = run(wrappers.one_hot_observation(echo(ONE, "integer")), jnp.zeros((2, 1)))
    np.testing.assert_array_equal(jnp.stack([first, *steps.obs]), np.eye(51)[:3])
    _, _, steps = run(wrappers.one_hot_observation(echo(ONE, "integers")), jnp.zeros((2, 1)))
    np.testing.assert_array_equal(steps.obs, [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    env = wrappers.flatten_observation(wrappers.one_hot_observation(echo(ONE, "nested")))
    _, _, steps = run(env, jnp.zeros((3, 1)))
    np.testing.assert_array_equal(steps.obs[2], [3, -3, *np.eye(51)[3], 3])


def executed(probability, key=KEY, num=200):
    """Actions 1, 2, 3, … and those executed in their place."""
    env = wrappers.sticky_actions(echo(ONE), 0.25)
    params = dataclasses.replace(env.default_params(), probability=jnp.float32(probability))
    actions = jnp.arange(1.0, num + 1)
    _, _, steps = run(env, actions[:, None], params, key)
    return np.asarray(actions), steps.reward


def test_sticky_actions():
    actions, out = executed(0.0)
    np.testing.assert_array_equal(out, actions)
    _, out = executed(1.0)
    np.testing.assert_array_equal(out, 1.0)  # the first is executed, then always repeated
    _, out = executed(0.3)
    out = np.asarray(out)
    repeated = out[1:] == out[:-1]
    np.testing.assert_array_equal(out[1:][~repeated], actions[1:][~repeated])
    assert 0.2 < repeated.mean() < 0.4
    # Twice in a row: what is repeated is the action executed last, not the one chosen last.
    assert (repeated[1:] & repeated[:-1]).any()


def test_sticky_probability_is_swept():
    shares = jax.vmap(lambda p: jnp.mean(jnp.diff(executed(p)[1]) == 0))(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(shares, [0.0, 0.5, 1.0], atol=0.15)


def test_scale_reward():
    env = wrappers.scale_reward(echo(ONE), 0.5)
    np.testing.assert_array_equal(run(env, jnp.array([[2.0], [-6.0]]))[2].reward, [1.0, -3.0])
    params = dataclasses.replace(env.default_params(), scale=jnp.float32(-2.0))
    np.testing.assert_array_equal(run(env, jnp.array([[2.0], [-6.0]]), params)[2].reward, [-4.0, 12.0])


def test_observe_time_left():
    env = wrappers.observe_time_left(wrappers.time_limit(echo(ONE), 4))
    _, first, steps = run(env, jnp.zeros((6, 1)))
    np.testing.assert_array_equal(first, [0, 0, 1])
    np.testing.assert_array_equal(steps.obs[:, 2], [0.75, 0.5, 0.25, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(steps.obs[:, 0], np.arange(1, 7))
    np.testing.assert_array_equal(env.observation_space.low_array, [0, -50, 0])
    np.testing.assert_array_equal(env.observation_space.high_array, [50, 0, 1])


def test_randomize_params_draws_at_reset_and_uses_it_in_steps():
    env = wrappers.randomize_params(CARTPOLE, GRAVITY)
    nominal = CARTPOLE.default_params()
    keys = jax.random.split(KEY, 64)
    states, obs = jax.vmap(env.reset, (0, None))(keys, nominal)
    for name, low, high in GRAVITY.ranges:
        drawn = trees.named_leaves(states.params)[name]
        assert drawn.min() >= low
        assert drawn.max() <= high
        assert jnp.ptp(drawn) > 0.8 * (high - low)
        assert abs(drawn.mean() - (low + high) / 2) < 0.1 * (high - low)
    assert abs(np.corrcoef(states.params.gravity, states.params.force_mag)[0, 1]) < 0.5
    np.testing.assert_array_equal(states.params.masscart, np.ones(64))
    assert jnp.ptp(obs[:, 0]) > 0.01  # the reset itself is still random

    one = jax.tree.map(lambda leaf: leaf[0], states)
    after, step = env.step(KEY, one, jnp.int32(1), nominal)
    _, expected = CARTPOLE.step(KEY, one.inner, jnp.int32(1), one.params)
    _, other = CARTPOLE.step(KEY, one.inner, jnp.int32(1), nominal)
    np.testing.assert_array_equal(step.obs, expected.obs)
    assert (step.obs != other.obs).any()
    assert after.params.gravity == one.params.gravity


def test_randomize_params_starts_from_the_given_parameters():
    env = wrappers.randomize_params(CARTPOLE, GRAVITY)
    given = dataclasses.replace(CARTPOLE.default_params(), length=jnp.float32(0.75))
    assert env.reset(KEY, given)[0].params.length == 0.75


def test_randomize_params_resets_with_what_it_drew():
    env = wrappers.randomize_params(echo(ONE), wrappers.uniform_leaves((("start", 1, 40),)))
    states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 8), env.default_params())
    np.testing.assert_array_equal(states.inner, states.params.start)
    np.testing.assert_array_equal(obs[:, 0], states.params.start)


def test_uniform_leaves_of_integers_and_inner_leaves():
    sample = wrappers.uniform_leaves((("end", 2, 4),))
    env = wrappers.randomize_params(wrappers.scale_reward(echo(ONE), 1.0), sample)
    states, _ = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 64), env.default_params())
    assert states.params.inner.end.dtype == jnp.int32
    assert set(np.asarray(states.params.inner.end)) == {2, 3, 4}


def half(key, params):
    return jax.tree.map(lambda leaf: leaf / 2, params)


def pair(key, params):
    return params, params


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: wrappers.time_limit(CARTPOLE, 0), "time_limit: max_episode_steps must be a whole.* = 0"),
        (lambda: wrappers.frame_stack(CARTPOLE, 1.5), r"frame_stack: num must be a whole number.* = 1\.5"),
        (lambda: wrappers.action_repeat(CARTPOLE, -1), "action_repeat: num must be a whole number.* = -1"),
        (lambda: wrappers.rescale_action(CARTPOLE), r"rescale_action: .*CartPole-v1' has Discrete\(n=2\).*Leave"),
        (lambda: wrappers.rescale_action(echo(ONE)), "rescale_action: .*finite bounds.*Echo.*inf.*clip_action"),
        (lambda: wrappers.clip_action(CARTPOLE), r"clip_action: .*CartPole-v1' has Discrete\(n=2\).*Leave"),
        (lambda: wrappers.clip_action(echo(ONE)), "clip_action: .*finite bound.*Echo.*inf.*Leave"),
        (lambda: wrappers.frame_stack(echo(ONE, "integer"), 2), r"frame_stack: .*Discrete\(n=51\).*one_hot"),
        (lambda: wrappers.frame_stack(echo(ONE, "scalar"), 2), r"frame_stack: .*shape=\(\).*flatten_observation"),
        (lambda: wrappers.flatten_observation(echo(ONE, "nested")), r"Discrete\(n=51\) at a\.n\. Apply one_hot"),
        (lambda: wrappers.flatten_observation(echo(ONE, "integers")), r"nvec=\(2, 3\)\)\. Apply one_hot"),
        (lambda: wrappers.one_hot_observation(CARTPOLE), "one_hot_observation: .*CartPole-v1' has Box.*Leave"),
        (lambda: wrappers.sticky_actions(CARTPOLE, 1.5), "sticky_actions: probability must be from 0 to 1.* = 1.5"),
        (lambda: wrappers.scale_reward(CARTPOLE, float("nan")), "scale_reward: scale must be finite.* = nan"),
        (lambda: wrappers.observe_time_left(echo(ONE)), "observe_time_left: .*= None. Apply time_limit first"),
        (lambda: wrappers.observe_time_left(BREAKOUT), "observe_time_left: .*vectors of floats.*flatten"),
        (lambda: wrappers.uniform_leaves(()), r"at least one leaf, and each once; got \[\]"),
        (lambda: wrappers.uniform_leaves((("a", 0, 1), ("a", 0, 2))), r"each once; got \['a', 'a'\]"),
        (lambda: wrappers.uniform_leaves((("a", 2, 1),)), r"in order; 'a' was given low = 2\.0, high = 1\.0"),
        (
            lambda: wrappers.randomize_params(CARTPOLE, wrappers.uniform_leaves((("gravty", 1, 2),))),
            "no leaf 'gravty'. Nearest: gravity",
        ),
        (
            lambda: wrappers.randomize_params(CARTPOLE, wrappers.uniform_leaves((("zzz", 1, 2),))),
            "no leaf 'zzz'. There are: .*masscart",
        ),
        (
            lambda: wrappers.randomize_params(echo(ONE), wrappers.uniform_leaves((("end", 1.5, 3),))),
            r"bounds of an integer must be whole numbers; 'end' is int32.*1\.5",
        ),
        (
            lambda: wrappers.randomize_params(
                wrappers.scale_reward(wrappers.scale_reward(wrappers.sticky_actions(CARTPOLE), 2), 3),
                wrappers.uniform_leaves((("inner.scal", 1, 2),)),
            ),
            "Nearest: .*inner.scale",
        ),
        (
            lambda: wrappers.randomize_params(
                PENDULUM._replace(default_params=lambda: {"a": {"g": jnp.ones(())}, "b": {"g": jnp.ones(())}}),
                wrappers.uniform_leaves((("g", 1, 2),)),
            ),
            r"'g' must name one leaf of the parameters; it names a\.g, b\.g\. Give the whole path",
        ),
        (lambda: wrappers.randomize_params(echo(ONE), half), r"it makes end float32\[\] from int32\[\]"),
        (lambda: wrappers.randomize_params(CARTPOLE, pair), "parameters of the type that it is given; of 'gymnax"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
