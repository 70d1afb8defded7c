"""Time limits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from jaxrl import spaces, validation
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize
from jaxrl.wrappers._masks import observed, with_observed


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
    validation.count("time_limit", "max_episode_steps", max_episode_steps)

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
    space = observed(env.observation_space)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"observe_time_left: observations must be vectors of floats; {env.name!r} has {space}. "
            "Apply flatten_observation first (before it, one_hot_observation to integers)."
        )
    low, high = np.append(space.low_array, 0.0), np.append(space.high_array, 1.0)
    extended = spaces.box(low, high, low.shape, space.dtype)

    def extend(obs: Observation, num_steps: Array) -> Observation:
        left = jnp.maximum(0.0, 1.0 - num_steps / limit).astype(space.dtype)
        return with_observed(obs, jnp.append(observed(obs), left))

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
        observation_space=with_observed(env.observation_space, extended),
    )
