"""Wrappers: functions `Env -> Env`, so that they nest like `optax` transformations.

A wrapper keeps the name of the environment that it wraps and adds its own, `gymnax/CartPole-v1|frame_stack(4)`, so that
run folders tell them apart. Static arguments fix shapes; what may be swept is a leaf of the parameters: a wrapper with
leaves of its own has them in a record with the wrapped environment's parameters as `inner`; one without keeps the
parameters as they are. The same holds for the state. Wrapped environments are pure, may be vmapped over keys and any
leaf, and never reset by themselves, like those that they wrap. Equal arguments give the same record.

An observation `{"observation": ..., "action_mask": ...}` counts as its `observation`: `frame_stack`,
`flatten_observation`, `one_hot_observation` and `observe_time_left` change that and hand the mask on.

There is no wrapper that normalizes observations or rewards. Its statistics would be a part of one environment's state,
while they have to be shared by all environments that learn together, and be frozen in evaluation; so they live in the
algorithm's `State`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


@struct.dataclass
class TimeLimitParams:
    """Parameters of `time_limit`.

    Attributes:
      max_episode_steps: steps until truncation.
      inner: parameters of the wrapped environment.
    """

    max_episode_steps: Int[Array, ""]
    inner: EnvParams


@struct.dataclass
class CountedState:
    """State of `time_limit` and `observe_time_left`.

    Attributes:
      num_steps: steps since the reset.
      inner: state of the wrapped environment.
    """

    num_steps: Int[Array, ""]
    inner: EnvState


@struct.dataclass
class StackedState:
    """State of `frame_stack`.

    Attributes:
      frames: the stacked observation, the oldest first on the last axis.
      inner: state of the wrapped environment.
    """

    frames: Array
    inner: EnvState


@struct.dataclass
class StickyParams:
    """Parameters of `sticky_actions`.

    Attributes:
      probability: of repeating the last action in place of the new one.
      inner: parameters of the wrapped environment.
    """

    probability: Float[Array, ""]
    inner: EnvParams


@struct.dataclass
class StickyState:
    """State of `sticky_actions`.

    Attributes:
      action: the one executed last, zeros before the first.
      started: whether there was one.
      inner: state of the wrapped environment.
    """

    action: Action
    started: Bool[Array, ""]
    inner: EnvState


@struct.dataclass
class ScaledParams:
    """Parameters of `scale_reward`.

    Attributes:
      scale: what rewards are multiplied by.
      inner: parameters of the wrapped environment.
    """

    scale: Float[Array, ""]
    inner: EnvParams


@struct.dataclass
class RandomizedState:
    """State of `randomize_params`.

    Attributes:
      params: what the reset drew: the wrapped environment's parameters in this episode.
      inner: state of the wrapped environment.
    """

    params: EnvParams
    inner: EnvState


@memoize
def time_limit(env: Env, max_episode_steps: int) -> Env:
    """Truncates an episode after a number of steps.

    A limit that the wrapped environment has stays in force, so the smaller of the two counts.

    Args:
      env: any environment.
      max_episode_steps: default of the leaf of that name.

    Returns:
      The environment with `TimeLimitParams` and `CountedState`.

    Raises:
      ValueError: the limit is not a whole number of at least 1.

    Example:
      >>> from jaxrl.envs import make_env
      >>> time_limit(make_env("gymnax/CartPole-v1"), 100).max_episode_steps
      100
    """
    _count("time_limit", "max_episode_steps", max_episode_steps)

    def default_params() -> TimeLimitParams:
        return TimeLimitParams(jnp.asarray(max_episode_steps, jnp.int32), env.default_params())

    def reset(key: Key, params: TimeLimitParams) -> tuple[CountedState, Observation]:
        inner, obs = env.reset(key, params.inner)
        return CountedState(jnp.zeros((), jnp.int32), inner), obs

    def step(key: Key, state: CountedState, action: Action, params: TimeLimitParams) -> tuple[CountedState, EnvStep]:
        inner, result = env.step(key, state.inner, action, params.inner)
        num_steps = state.num_steps + 1
        truncated = result.truncated | (num_steps >= params.max_episode_steps)
        return CountedState(num_steps, inner), dataclasses.replace(result, truncated=truncated)

    return env._replace(
        name=f"{env.name}|time_limit({max_episode_steps})",
        reset=reset,
        step=step,
        default_params=default_params,
        max_episode_steps=min(max_episode_steps, env.max_episode_steps or max_episode_steps),
    )


@memoize
def rescale_action(env: Env) -> Env:
    """Maps actions from [-1, 1] to the bounds of the action space: low + (a + 1)/2 · (high - low), entry by entry.

    Actions beyond [-1, 1] go beyond the bounds; put `clip_action` around this wrapper where the policy has such.

    Args:
      env: an environment with bounded continuous actions.

    Returns:
      The environment with the same action space between -1 and 1; parameters and state are those of `env`.

    Raises:
      ValueError: the action space is not a bounded `Box` of floats.

    Example:
      >>> from jaxrl.envs import make_env
      >>> env = make_env("gymnax/Pendulum-v1")
      >>> env.action_space.high, rescale_action(env).action_space.high
      (2.0, 1.0)
    """
    space = _continuous_actions("rescale_action", env)
    if not space.bounded:
        raise ValueError(
            f"rescale_action: every action needs finite bounds to map [-1, 1] to; {env.name!r} has {space}. "
            "Use actions as they are, or clip_action."
        )
    low, high = space.low_array, space.high_array

    def step(key: Key, state: EnvState, action: Action, params: EnvParams) -> tuple[EnvState, EnvStep]:
        share = (action + 1.0) / 2.0
        # Exact at both ends, which low + share * (high - low) is not.
        return env.step(key, state, (low * (1.0 - share) + high * share).astype(space.dtype), params)

    return env._replace(
        name=f"{env.name}|rescale_action",
        step=step,
        action_space=spaces.box(-1.0, 1.0, space.shape, space.dtype),
    )


@memoize
def clip_action(env: Env) -> Env:
    """Clips actions to the bounds of the action space before they are executed.

    Args:
      env: an environment with continuous actions.

    Returns:
      The environment; its spaces, parameters and state are those of `env`.

    Raises:
      ValueError: the action space is not a `Box` of floats, or has no finite bound.

    Example:
      >>> from jaxrl.envs import make_env
      >>> clip_action(make_env("gymnax/Pendulum-v1")).name
      'gymnax/Pendulum-v1|clip_action'
    """
    space = _continuous_actions("clip_action", env)
    low, high = space.low_array, space.high_array
    largest = np.finfo(np.float32).max / 2
    if not ((np.abs(low) < largest) | (np.abs(high) < largest)).any():
        raise ValueError(
            f"clip_action: there must be a finite bound to clip to; {env.name!r} has {space}. Leave the wrapper out."
        )

    def step(key: Key, state: EnvState, action: Action, params: EnvParams) -> tuple[EnvState, EnvStep]:
        return env.step(key, state, jnp.clip(action, low, high), params)

    return env._replace(name=f"{env.name}|clip_action", step=step)


@memoize
def frame_stack(env: Env, num: int) -> Env:
    """Shows the last `num` observations, stacked on the last axis, the oldest first.

    A vector [D] becomes [num·D], an image [H, W, C] becomes [H, W, num·C]. After a reset the first observation is
    repeated.

    Args:
      env: an environment whose observations are arrays of at least one axis.
      num: observations shown at a time (static).

    Returns:
      The environment with `StackedState`; the parameters are those of `env`.

    Raises:
      ValueError: `num` is not a whole number of at least 1, or observations are of another kind.

    Example:
      >>> from jaxrl.envs import make_env
      >>> frame_stack(make_env("gymnax/Breakout-MinAtar"), 4).observation_space.shape
      (10, 10, 16)
    """
    _count("frame_stack", "num", num)
    space = _observed(env.observation_space)
    if not isinstance(space, spaces.Box) or not space.shape:
        raise ValueError(
            f"frame_stack: observations must be arrays of at least one axis; {env.name!r} has {space}. "
            "Apply flatten_observation first (before it, one_hot_observation to integers)."
        )
    size = space.shape[-1]
    shape = (*space.shape[:-1], num * size)
    tile = (*(1,) * (len(shape) - 1), num)
    stacked = spaces.box(np.tile(space.low_array, tile), np.tile(space.high_array, tile), shape, space.dtype)

    def reset(key: Key, params: EnvParams) -> tuple[StackedState, Observation]:
        inner, obs = env.reset(key, params)
        frames = jnp.tile(_observed(obs), tile)
        return StackedState(frames, inner), _with_observed(obs, frames)

    def step(key: Key, state: StackedState, action: Action, params: EnvParams) -> tuple[StackedState, EnvStep]:
        inner, result = env.step(key, state.inner, action, params)
        frames = jnp.concatenate([state.frames[..., size:], _observed(result.obs)], -1)
        return StackedState(frames, inner), dataclasses.replace(result, obs=_with_observed(result.obs, frames))

    return env._replace(
        name=f"{env.name}|frame_stack({num})",
        reset=reset,
        step=step,
        observation_space=_with_observed(env.observation_space, stacked),
    )


@memoize
def action_repeat(env: Env, num: int) -> Env:
    """Executes each action `num` times, or until the episode ends, and sums the rewards without discount.

    Once the episode has ended within the repetitions nothing more is added: state, observation, flags and `info` are
    those of the step that ended it. All `num` steps are computed in any case.

    Args:
      env: any environment.
      num: repetitions (static).

    Returns:
      The environment; its spaces, parameters and state are those of `env`. Limits in the parameters still count steps
      of `env`; `max_episode_steps` counts actions.

    Raises:
      ValueError: `num` is not a whole number of at least 1.

    Example:
      >>> from jaxrl.envs import make_env
      >>> action_repeat(make_env("gymnax/CartPole-v1"), 4).max_episode_steps
      125
    """
    _count("action_repeat", "num", num)

    def step(key: Key, state: EnvState, action: Action, params: EnvParams) -> tuple[EnvState, EnvStep]:
        def repeat(carry: tuple[EnvState, EnvStep], key_step: Key) -> tuple[tuple[EnvState, EnvStep], None]:
            state, so_far = carry
            next_state, result = env.step(key_step, state, action, params)
            result = trees.as_arrays(dataclasses.replace(result, reward=so_far.reward + result.reward))
            return trees.where(so_far.ended, carry, (next_state, result)), None

        shapes = jax.eval_shape(lambda: env.step(key, state, action, params)[1])
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(repeat, (state, nothing), jax.random.split(key, num))[0]

    limit = env.max_episode_steps
    return env._replace(
        name=f"{env.name}|action_repeat({num})",
        step=step,
        max_episode_steps=None if limit is None else math.ceil(limit / num),
    )


@memoize
def flatten_observation(env: Env) -> Env:
    """Shows observations as one float32 vector: the parts of a `Dict` in its order, each in row-major order.

    Integers are converted, not scaled. A part named `action_mask` is kept beside the vector, which is then named
    `observation`.

    Args:
      env: an environment whose observations are arrays or (nested) dicts of arrays.

    Returns:
      The environment; parameters and state are those of `env`.

    Raises:
      ValueError: an observation is `Discrete` or `MultiDiscrete`.

    Example:
      >>> from jaxrl.envs import make_env
      >>> flatten_observation(make_env("probe/DictObservation")).observation_space.shape
      (18,)
    """
    space = env.observation_space
    mask = None
    if isinstance(space, spaces.Dict) and "action_mask" in space.names:
        mask = space["action_mask"]
        space = spaces.Dict(tuple(part for part in space.spaces if part[0] != "action_mask"))
    parts = _parts(space)
    for path, part in parts:
        if not isinstance(part, spaces.Box):
            raise ValueError(
                f"flatten_observation: every observation must be an array of numbers; {env.name!r} has {part}"
                f"{' at ' + '.'.join(path) if path else ''}. Apply one_hot_observation first."
            )

    def flat(obs: Observation) -> Observation:
        vector = jnp.concatenate([jnp.ravel(_at(obs, path)).astype(jnp.float32) for path, _ in parts])
        return vector if mask is None else {"observation": vector, "action_mask": obs["action_mask"]}

    low = np.concatenate([part.low_array.ravel() for _, part in parts])
    high = np.concatenate([part.high_array.ravel() for _, part in parts])
    vector_space = spaces.box(low, high, low.shape)
    return _map_observation(
        env,
        "flatten_observation",
        flat,
        vector_space if mask is None else spaces.Dict((("observation", vector_space), ("action_mask", mask))),
    )


@memoize
def one_hot_observation(env: Env) -> Env:
    """Shows integers as float32 one-hot vectors: `Discrete(n)` as [n], `MultiDiscrete(nvec)` as [Σ nvec].

    In a `Dict` every part of these kinds is converted and the others are kept.

    Args:
      env: an environment with `Discrete` or `MultiDiscrete` observations.

    Returns:
      The environment; parameters and state are those of `env`.

    Raises:
      ValueError: there is nothing to convert.

    Example:
      >>> from jaxrl import spaces
      >>> from jaxrl.envs import make_env
      >>> env = make_env("probe/Constant")._replace(observation_space=spaces.MultiDiscrete((2, 3)))
      >>> one_hot_observation(env).observation_space.shape
      (5,)
    """

    def convert(space: spaces.Space, obs: Observation) -> Observation:
        if isinstance(space, spaces.Dict):
            return {name: convert(part, obs[name]) for name, part in space.spaces}
        if isinstance(space, spaces.Discrete):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        if isinstance(space, spaces.MultiDiscrete):
            return jnp.concatenate([jax.nn.one_hot(obs[i], n, dtype=jnp.float32) for i, n in enumerate(space.nvec)])
        return obs

    def converted(space: spaces.Space) -> spaces.Space:
        if isinstance(space, spaces.Dict):
            return spaces.Dict(tuple((name, converted(part)) for name, part in space.spaces))
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            sizes = (space.n,) if isinstance(space, spaces.Discrete) else space.nvec
            return spaces.box(0.0, 1.0, (sum(sizes),))
        return space

    space = env.observation_space
    if all(isinstance(part, spaces.Box) for _, part in _parts(space)):
        raise ValueError(
            f"one_hot_observation: an observation must be Discrete or MultiDiscrete; {env.name!r} has {space}. "
            "Leave the wrapper out."
        )
    return _map_observation(env, "one_hot_observation", lambda obs: convert(space, obs), converted(space))


@memoize
def sticky_actions(env: Env, probability: float = 0.25) -> Env:
    """With some probability executes the action executed last in place of the new one.

    A_t = a_t with probability 1 - ς, A_{t-1} with probability ς; the first action of an episode is always executed.
    Machado et al. 2018, Revisiting the Arcade Learning Environment, section 5.2 (https://arxiv.org/abs/1709.06009).

    Args:
      env: any environment.
      probability: default of the leaf ς.

    Returns:
      The environment with `StickyParams` and `StickyState`.

    Raises:
      ValueError: the probability is not from 0 to 1.

    Example:
      >>> from jaxrl.envs import make_env
      >>> sticky_actions(make_env("gymnax/Breakout-MinAtar")).default_params().probability.item()
      0.25
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"sticky_actions: probability must be from 0 to 1; got probability = {probability}.")

    def default_params() -> StickyParams:
        return StickyParams(jnp.asarray(probability, jnp.float32), env.default_params())

    def reset(key: Key, params: StickyParams) -> tuple[StickyState, Observation]:
        inner, obs = env.reset(key, params.inner)
        return StickyState(spaces.zeros(env.action_space), jnp.zeros((), bool), inner), obs

    def step(key: Key, state: StickyState, action: Action, params: StickyParams) -> tuple[StickyState, EnvStep]:
        key_repeat, key_step = jax.random.split(key)
        repeats = state.started & jax.random.bernoulli(key_repeat, params.probability)
        action = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), action, state.action)
        action = trees.where(repeats, state.action, action)
        inner, result = env.step(key_step, state.inner, action, params.inner)
        return StickyState(action, jnp.ones((), bool), inner), result

    return env._replace(
        name=f"{env.name}|sticky_actions({probability:g})", reset=reset, step=step, default_params=default_params
    )


@memoize
def scale_reward(env: Env, scale: float) -> Env:
    """Multiplies rewards by a number; returns that are logged are then scaled too.

    Args:
      env: any environment.
      scale: default of the leaf of that name.

    Returns:
      The environment with `ScaledParams`; the state is that of `env`.

    Raises:
      ValueError: the scale is not finite.

    Example:
      >>> from jaxrl.envs import make_env
      >>> scale_reward(make_env("gymnax/Pendulum-v1"), 0.1).name
      'gymnax/Pendulum-v1|scale_reward(0.1)'
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale_reward: scale must be finite; got scale = {scale}.")

    def default_params() -> ScaledParams:
        return ScaledParams(jnp.asarray(scale, jnp.float32), env.default_params())

    def reset(key: Key, params: ScaledParams) -> tuple[EnvState, Observation]:
        return env.reset(key, params.inner)

    def step(key: Key, state: EnvState, action: Action, params: ScaledParams) -> tuple[EnvState, EnvStep]:
        state, result = env.step(key, state, action, params.inner)
        return state, dataclasses.replace(result, reward=params.scale * result.reward)

    return env._replace(
        name=f"{env.name}|scale_reward({scale:g})", reset=reset, step=step, default_params=default_params
    )


@memoize
def observe_time_left(env: Env) -> Env:
    """Appends the share of the time limit that is left, max(0, 1 - t/limit): 1 after a reset, 0 at the limit.

    It makes a task with a time limit Markov (Pardo et al. 2018, Time Limits in Reinforcement Learning,
    https://arxiv.org/abs/1712.00378). The limit is `env.max_episode_steps`, which is static: a limit swept in the
    parameters does not change it.

    Args:
      env: an environment with a time limit, whose observations are vectors of floats.

    Returns:
      The environment with observations [D + 1] and `CountedState`; the parameters are those of `env`.

    Raises:
      ValueError: there is no time limit, or observations are of another kind.

    Example:
      >>> from jaxrl.envs import make_env
      >>> observe_time_left(make_env("gymnax/CartPole-v1")).observation_space.shape
      (5,)
    """
    limit = env.max_episode_steps
    if limit is None:
        raise ValueError(
            f"observe_time_left: the environment must have a time limit; {env.name!r} has max_episode_steps = None. "
            "Apply time_limit first."
        )
    space = _observed(env.observation_space)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"observe_time_left: observations must be vectors of floats; {env.name!r} has {space}. "
            "Apply flatten_observation first (before it, one_hot_observation to integers)."
        )
    low, high = np.append(space.low_array, 0.0), np.append(space.high_array, 1.0)
    extended = spaces.box(low, high, low.shape, space.dtype)

    def extend(obs: Observation, num_steps: Array) -> Observation:
        left = jnp.maximum(0.0, 1.0 - num_steps / limit).astype(space.dtype)
        return _with_observed(obs, jnp.append(_observed(obs), left))

    def reset(key: Key, params: EnvParams) -> tuple[CountedState, Observation]:
        inner, obs = env.reset(key, params)
        num_steps = jnp.zeros((), jnp.int32)
        return CountedState(num_steps, inner), extend(obs, num_steps)

    def step(key: Key, state: CountedState, action: Action, params: EnvParams) -> tuple[CountedState, EnvStep]:
        inner, result = env.step(key, state.inner, action, params)
        num_steps = state.num_steps + 1
        return CountedState(num_steps, inner), dataclasses.replace(result, obs=extend(result.obs, num_steps))

    return env._replace(
        name=f"{env.name}|observe_time_left",
        reset=reset,
        step=step,
        observation_space=_with_observed(env.observation_space, extended),
    )


@dataclasses.dataclass(frozen=True)
class UniformLeaves:
    """Draws some leaves of parameters uniformly and keeps the others; made by `uniform_leaves`.

    Attributes:
      ranges: (name, low, high) of each leaf drawn.
    """

    ranges: tuple[tuple[str, float, float], ...]

    def __call__(self, key: Key, params: EnvParams) -> EnvParams:
        """Draws: `(key, params) -> params`. Floats from [low, high), integers from low … high.

        Raises:
          ValueError: the parameters have no such leaf, or an integer leaf has bounds that are not whole.
        """
        leaves = trees.named_leaves(params)
        for (name, low, high), key_leaf in zip(self.ranges, jax.random.split(key, len(self.ranges)), strict=True):
            path = _leaf_path(name, leaves)
            leaf = leaves[path]
            if not jnp.issubdtype(leaf.dtype, jnp.integer):
                drawn = jax.random.uniform(key_leaf, leaf.shape, leaf.dtype, low, high)
            elif low == int(low) and high == int(high):
                drawn = jax.random.randint(key_leaf, leaf.shape, int(low), int(high) + 1, leaf.dtype)
            else:
                raise ValueError(
                    f"uniform_leaves: the bounds of an integer must be whole numbers; {name!r} is {leaf.dtype} and "
                    f"was given low = {low}, high = {high}."
                )
            params = trees.replace_leaf(params, path, drawn)
        return params

    def __str__(self) -> str:
        return ",".join(f"{name}:{low:g}:{high:g}" for name, low, high in self.ranges)


def uniform_leaves(ranges: tuple[tuple[str, float, float], ...]) -> UniformLeaves:
    """Makes a sampler for `randomize_params` that draws some leaves uniformly and independently.

    Args:
      ranges: (name, low, high) of each leaf. A name is a leaf's dotted path or the end of one, if that is the only leaf
        that ends so: `gravity` for `inner.gravity`.

    Returns:
      A hashable function `(key, params) -> params`. Called with parameters that lack a leaf it raises a ValueError.

    Raises:
      ValueError: there are no ranges, a leaf is named twice, or bounds are not finite or not in order.

    Example:
      >>> import jax
      >>> from jaxrl.envs import make_env
      >>> sample = uniform_leaves((("gravity", 9.0, 11.0),))
      >>> bool(9 <= sample(jax.random.key(0), make_env("gymnax/CartPole-v1").default_params()).gravity < 11)
      True
    """
    ranges = tuple((str(name), float(low), float(high)) for name, low, high in ranges)
    leaf_names = [name for name, _, _ in ranges]
    if not ranges or len(set(leaf_names)) < len(leaf_names):
        raise ValueError(f"uniform_leaves: needs at least one leaf, and each once; got {leaf_names}.")
    for name, low, high in ranges:
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"uniform_leaves: bounds must be finite and in order; {name!r} was given low = {low}, high = {high}."
            )
    return UniformLeaves(ranges)


@memoize
def randomize_params(env: Env, sample: Callable[[Key, EnvParams], EnvParams]) -> Env:
    """Domain randomization: every reset draws the parameters of its episode, which live in the state.

    Tobin et al. 2017, Domain Randomization for Transferring Deep Neural Networks (https://arxiv.org/abs/1703.06907).

    Args:
      env: any environment.
      sample: `(key, params) -> params`, hashable, given the parameters that `reset` was given: `uniform_leaves(...)`,
        or a function of your own.

    Returns:
      The environment with `RandomizedState`; the parameters are those of `env`, used by `reset` only.

    Raises:
      ValueError: `sample` names leaves that the parameters do not have, or returns another type than it was given.

    Example:
      >>> from jaxrl.envs import make_env
      >>> randomize_params(make_env("gymnax/CartPole-v1"), uniform_leaves((("gravity", 9.0, 11.0),))).name
      'gymnax/CartPole-v1|randomize_params(gravity:9:11)'
    """
    given = jax.eval_shape(env.default_params)
    drawn = jax.eval_shape(sample, jax.random.key(0), given)
    if jax.tree.structure(given) != jax.tree.structure(drawn):
        raise ValueError(
            "randomize_params: sample must return parameters of the type that it is given; of "
            f"{env.name!r} it makes {jax.tree.structure(drawn)} from {jax.tree.structure(given)}."
        )
    for name, before in trees.named_leaves(given).items():
        after = trees.named_leaves(drawn)[name]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                "randomize_params: sample must return parameters of the type that it is given; of "
                f"{env.name!r} it makes {name} {after.dtype}{list(after.shape)} from "
                f"{before.dtype}{list(before.shape)}."
            )

    def reset(key: Key, params: EnvParams) -> tuple[RandomizedState, Observation]:
        key_params, key_reset = jax.random.split(key)
        drawn = trees.as_arrays(sample(key_params, params))
        inner, obs = env.reset(key_reset, drawn)
        return RandomizedState(drawn, inner), obs

    def step(key: Key, state: RandomizedState, action: Action, params: EnvParams) -> tuple[RandomizedState, EnvStep]:
        del params  # only of use to the reset
        inner, result = env.step(key, state.inner, action, state.params)
        return dataclasses.replace(state, inner=inner), result

    label = str(sample) if isinstance(sample, UniformLeaves) else getattr(sample, "__name__", type(sample).__name__)
    return env._replace(name=f"{env.name}|randomize_params({label})", reset=reset, step=step)


def _count(wrapper: str, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{wrapper}: {name} must be a whole number of at least 1; got {name} = {value!r}.")


def _continuous_actions(wrapper: str, env: Env) -> spaces.Box:
    space = env.action_space
    if not isinstance(space, spaces.Box) or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"{wrapper}: actions must be a Box of floats; {env.name!r} has {space}. Leave the wrapper out."
        )
    return space


_MASKED = {"observation", "action_mask"}


def _observed(tree: Any) -> Any:
    """The observation without its mask, or the space of that."""
    if isinstance(tree, spaces.Dict):
        return tree["observation"] if set(tree.names) == _MASKED else tree
    return tree["observation"] if isinstance(tree, dict) and set(tree) == _MASKED else tree


def _with_observed(tree: Any, new: Any) -> Any:
    """Puts `new` where `_observed` takes from."""
    if isinstance(tree, spaces.Dict):
        return spaces.Dict(tuple((name, new if name == "observation" else part) for name, part in tree.spaces))
    return {**tree, "observation": new} if isinstance(tree, dict) else new


def _parts(space: spaces.Space, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """All spaces within nested dicts, with the names that lead to them."""
    if isinstance(space, spaces.Dict):
        return [found for name, part in space.spaces for found in _parts(part, (*path, name))]
    return [(path, space)]


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _map_observation(env: Env, label: str, function: Callable[[Observation], Observation], space: spaces.Space) -> Env:
    def reset(key: Key, params: EnvParams) -> tuple[EnvState, Observation]:
        state, obs = env.reset(key, params)
        return state, function(obs)

    def step(key: Key, state: EnvState, action: Action, params: EnvParams) -> tuple[EnvState, EnvStep]:
        state, result = env.step(key, state, action, params)
        return state, dataclasses.replace(result, obs=function(result.obs))

    return env._replace(name=f"{env.name}|{label}", reset=reset, step=step, observation_space=space)


def _leaf_path(name: str, leaves: dict[str, Any]) -> str:
    if name in leaves:
        return name
    ending = [path for path in leaves if path.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ValueError(
            f"uniform_leaves: {name!r} must name one leaf of the parameters; it names {', '.join(ending)}. "
            "Give the whole path."
        )
    near = difflib.get_close_matches(name, leaves, n=3, cutoff=0.5)
    raise ValueError(
        f"uniform_leaves: the parameters have no leaf {name!r}. "
        + (f"Nearest: {', '.join(near)}." if near else f"There are: {', '.join(leaves)}.")
    )
