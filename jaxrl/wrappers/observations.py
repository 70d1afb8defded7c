"""What is done with observations before they are shown."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jaxrl import spaces, validation
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize
from jaxrl.wrappers._masks import observed, with_observed


@struct.dataclass
class StackedState:
    """State of `frame_stack`.

    Attributes:
      frames: the stacked observation, the oldest first on the last axis.
      inner: state of the wrapped environment.
    """

    frames: Array
    inner: EnvState


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
    validation.count("frame_stack", "num", num)
    space = observed(env.observation_space)
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
        frames = jnp.tile(observed(obs), tile)
        return StackedState(frames, inner), with_observed(obs, frames)

    def step(key: Key, state: StackedState, action: Action, params: EnvParams) -> tuple[StackedState, EnvStep]:
        inner, result = env.step(key, state.inner, action, params)
        frames = jnp.concatenate([state.frames[..., size:], observed(result.obs)], -1)
        return StackedState(frames, inner), dataclasses.replace(result, obs=with_observed(result.obs, frames))

    return env._replace(
        name=f"{env.name}|frame_stack({num})",
        reset=reset,
        step=step,
        observation_space=with_observed(env.observation_space, stacked),
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
