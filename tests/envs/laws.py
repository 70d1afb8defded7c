"""The laws of `Env`, checked on one environment; `tests/envs/test_suites.py` runs them over every suite."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env

LIMIT_LEAVES = ("max_episode_steps", "max_steps_in_episode", "max_timesteps", "max_steps", "time_limit")

# Which key of the episode and which of the actions each lane has. Lanes 3-6 play the actions of lane 0 under other
# keys; the last one is lane 0 under a short time limit.
EPISODES = (0, 1, 2, 3, 4, 5, 6, 0)
ACTIONS = (0, 1, 2, 0, 0, 0, 0, 0)
NUM_LANES = len(EPISODES)
SHORT_LIMIT = 3


@dataclasses.dataclass
class Trace:
    """Episodes of one environment played past their end, on the host; leaves [lane, time, ...]."""

    params: Any
    keys: Any
    first_obs: Any
    obs: Any
    action: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    state: Any


def limit_leaf(params: Any) -> str | None:
    """Dotted name of the leaf that holds the time limit."""
    return next((n for n in trees.named_leaves(params) if n.rpartition(".")[2] in LIMIT_LEAVES), None)


def legal_action(env: Env, obs: Any, key: jax.Array) -> Any:
    """A uniformly random action, a legal one where the observation tells."""
    if isinstance(obs, dict) and "action_mask" in obs:
        mask = obs["action_mask"]
        assert mask.shape == (env.action_space.n,), "a mask has one entry for each discrete action"
        # After the end nothing may be legal; then anything goes.
        return jax.random.categorical(key, jnp.where(mask | ~mask.any(), 0.0, -jnp.inf)).astype(jnp.int32)
    return spaces.sample(env.action_space, key)


def play(env: Env, num_steps: int, keys: Any, params: Any) -> tuple[Any, ...]:
    """One lane: `keys` are those of the episode and of the actions."""
    key_env, key_actions = keys
    key_reset, key_steps = jax.random.split(key_env)
    state, first_obs = env.reset(key_reset, params)

    def body(carry: Any, index: jax.Array) -> Any:
        state, obs = carry
        action = legal_action(env, obs, jax.random.fold_in(key_actions, index))
        state, step = env.step(jax.random.fold_in(key_steps, index), state, action, params)
        return (state, step.obs), (step.obs, action, step.reward, step.terminated, step.truncated)

    (state, _), out = jax.lax.scan(body, (state, first_obs), jnp.arange(num_steps))
    return first_obs, *out, state


def trace(env: Env, num_steps: int = 8, seed: int = 0) -> Trace:
    """Plays `NUM_LANES` episodes with keys and parameters batched, in one compiled program."""
    key_env, key_actions = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(key_env, NUM_LANES)[jnp.array(EPISODES)]
    action_keys = jax.random.split(key_actions, NUM_LANES)[jnp.array(ACTIONS)]
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * NUM_LANES), env.default_params())
    name = limit_leaf(params)
    if name is not None:
        limits = trees.named_leaves(params)[name]
        params = trees.replace_leaf(params, name, limits.at[-1].set(SHORT_LIMIT))
    played = jax.jit(jax.vmap(lambda k, p: play(env, num_steps, k, p)))((keys, action_keys), params)
    first_obs, obs, action, reward, terminated, truncated, state = played
    to_host = lambda tree: jax.tree.map(np.asarray, tree)
    return Trace(
        params, (keys, action_keys), *map(to_host, (first_obs, obs, action, reward, terminated, truncated)), state
    )


def alive(t: Trace) -> np.ndarray:
    """Whether the episode was still running when the step was taken, [lane, time]."""
    return alive_steps(t.terminated | t.truncated)


def alive_steps(ended: np.ndarray) -> np.ndarray:
    """Whether no step before this one ended the episode, [lane, time]."""
    so_far = np.logical_or.accumulate(ended, axis=1)
    return np.concatenate([np.ones_like(so_far[:, :1]), ~so_far[:, :-1]], axis=1)


def check_types(env: Env) -> None:
    """State, observation, reward and flags have one type, from `reset` and from `step`, without weak types."""
    params = env.default_params()
    for name, leaf in trees.named_leaves(params).items():
        assert not getattr(leaf, "weak_type", True), f"{env.name}: parameter {name} is {leaf!r}"
    key = jax.random.key(0)
    state, obs = jax.eval_shape(env.reset, key, params)
    action = jax.eval_shape(lambda: spaces.sample(env.action_space, key))
    after, step = jax.eval_shape(env.step, key, state, action, params)
    assert jax.tree.structure(state) == jax.tree.structure(after), f"{env.name}: the state's tree changes"
    for name, before in trees.named_leaves(state).items():
        now = trees.named_leaves(after)[name]
        assert _type(before) == _type(now), f"{env.name}: state {name}: {_type(before)} becomes {_type(now)}"
        assert not before.weak_type, f"{env.name}: state {name} is weakly typed"
    like = jax.eval_shape(lambda: spaces.zeros(env.observation_space))
    for where, found in (("reset", obs), ("step", step.obs)):
        assert jax.tree.structure(found) == jax.tree.structure(like), f"{env.name}: tree of obs after {where}"
        for name, expected in trees.named_leaves(like).items():
            leaf = trees.named_leaves(found)[name]
            assert (*_type(expected)[:2], False) == _type(leaf), f"{env.name}: obs {name} after {where} is {leaf}"
    assert _type(step.reward) == ((), jnp.float32, False), f"{env.name}: reward is {step.reward}"
    for flag in (step.terminated, step.truncated):
        assert _type(flag) == ((), jnp.bool_, False), f"{env.name}: a flag is {flag}"


def check_no_callback(env: Env) -> None:
    """Nothing in `reset` and `step` leaves the device."""
    key, params = jax.random.key(0), env.default_params()
    state, _ = jax.eval_shape(env.reset, key, params)
    action = jax.eval_shape(lambda: spaces.sample(env.action_space, key))
    for function, arguments in ((env.reset, (key, params)), (env.step, (key, state, action, params))):
        assert "callback" not in str(jax.make_jaxpr(function)(*arguments)), f"{env.name}: calls back to the host"


def check_bounds(env: Env, t: Trace) -> None:
    """Every observation of a running episode, the last one included, lies in the observation space."""
    running = alive(t)
    steps = jax.tree.map(lambda leaf: leaf[running], t.obs)
    for where, batch in (("reset", t.first_obs), ("step", steps)):
        for name, space, values in _parts(env.observation_space, batch):
            low, high = _limits(space)
            slack = 1e-5 * (1 + np.abs(values.astype(np.float64)))
            outside = (values < low - slack) | (values > high + slack) | (values != values)
            assert not outside.any(), (
                f"{env.name}: obs{name} after {where} leaves {space}: {values[outside][:5]}"
                f" at {np.argwhere(outside)[:5].tolist()}"
            )


def check_time_limit(env: Env, t: Trace, fixed_horizon: bool = False) -> None:
    """Truncation comes at the limit, not before, and stays: nothing sets the clock back.

    Under `fixed_horizon` the limit belongs to the task, and its end must be reported as terminal instead.
    """
    name = limit_leaf(t.params)
    if name is None:
        assert not t.truncated.any(), f"{env.name}: truncates without a time limit"
        return
    limits = np.asarray(trees.named_leaves(t.params)[name]).astype(int)
    if fixed_horizon:
        assert not t.truncated.any(), f"{env.name}: truncates although its horizon is fixed"
        assert t.terminated[-1, SHORT_LIMIT - 1 :].all(), f"{env.name}: the end of the horizon is not terminal"
        return
    # The last lane is the first one but for its limit, so until then the same states must be terminal.
    until = slice(None, SHORT_LIMIT)
    same = np.array_equal(t.terminated[-1, until], t.terminated[0, until])
    assert same, f"{env.name}: reaching the limit changes what is terminal"
    number = np.arange(1, t.reward.shape[1] + 1)
    running = alive(t)
    for lane, limit in enumerate(limits):
        wrong = running[lane] & ~t.terminated[lane] & (t.truncated[lane] != (number >= limit))
        assert not wrong.any(), f"{env.name}: lane {lane}, limit {limit}: truncated at {number[t.truncated[lane]][:3]}"
        if (running[lane] & (number == limit)).any():
            ended = (t.terminated[lane] | t.truncated[lane])[number >= limit]
            assert ended.all(), f"{env.name}: lane {lane} runs on after its limit: something resets"


def check_limit_is_told(env: Env, t: Trace) -> None:
    """What the record says of the limit is what its parameters say by default, if they say it."""
    name = limit_leaf(t.params)
    if name is not None and "|" not in env.name:  # a wrapper may count other steps than the one inside
        limit = int(np.asarray(trees.named_leaves(t.params)[name])[0])
        assert limit == env.max_episode_steps, f"{env.name}: max_episode_steps is not that of the parameters"


def check_keys(env: Env, t: Trace, deterministic: bool) -> None:
    """Another key gives another episode under the same actions, unless the environment is deterministic.

    The last states count too, but for the keys in them: a difference may be out of sight for a while.
    """
    last = [np.asarray(leaf) for leaf in jax.tree.leaves(t.state) if not trees.is_key(leaf)]
    same = all(
        np.array_equal(leaf[0], leaf[lane], equal_nan=leaf.dtype.kind == "f")
        for leaf in [*jax.tree.leaves((t.first_obs, t.obs, t.reward, t.terminated)), *last]
        for lane in (3, 4, 5, 6)
    )
    assert same == deterministic, f"{env.name}: {'no ' if same else 'a '}difference between keys"


def check_loop(env: Env, t: Trace, num_steps: int = 2, tolerance: float = 1e-4) -> None:
    """The vmapped lanes are what a Python loop over keys and parameters gives."""
    single = jax.jit(lambda keys, params: play(env, num_steps, keys, params)[:-1])
    for lane in (0, 1, NUM_LANES - 1):
        keys = jax.tree.map(lambda leaf: leaf[lane], t.keys)
        first_obs, *looped = single(keys, jax.tree.map(lambda leaf: leaf[lane], t.params))
        batched = (t.obs, t.action, t.reward, t.terminated, t.truncated)
        got = (first_obs, looped)
        want = (
            jax.tree.map(lambda leaf: leaf[lane], t.first_obs),
            jax.tree.map(lambda leaf: leaf[lane, :num_steps], list(batched)),
        )
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=f"{env.name}: lane {lane}")


def check_all(env: Env, t: Trace, *, deterministic: bool, fixed_horizon: bool = False, tolerance: float = 1e-5) -> None:
    """All laws."""
    check_limit_is_told(env, t)
    check_types(env)
    check_no_callback(env)
    check_bounds(env, t)
    check_time_limit(env, t, fixed_horizon)
    check_keys(env, t, deterministic)
    check_loop(env, t, tolerance=tolerance)


def _type(leaf: Any) -> tuple[Any, Any, bool]:
    return leaf.shape, leaf.dtype, bool(getattr(leaf, "weak_type", False))


def _parts(space: spaces.Space, values: Any, name: str = "") -> list[tuple[str, Any, np.ndarray]]:
    if isinstance(space, spaces.Dict):
        return [part for key, sub in space.spaces for part in _parts(sub, values[key], f"{name}.{key}")]
    return [(name, space, np.asarray(values))]


def _limits(space: Any) -> tuple[Any, Any]:
    if isinstance(space, spaces.Discrete):
        return 0, space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return 0, np.asarray(space.nvec) - 1
    return space.low_array, space.high_array
