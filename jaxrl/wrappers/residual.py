"""A policy that is kept as it is, and actions that are added to its own."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import spaces
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


class BasePolicy(NamedTuple):
    """A policy without memory, of which the parameters are data.

    Attributes:
      act: `(params, obs) -> action` in the bounds of the environment's action space, for one environment.
      default_params: `() -> params`, the leaf `base` of the wrapped environment's parameters unless changed.
    """

    act: Callable[[PyTree, Observation], Action]
    default_params: Callable[[], PyTree]


@struct.dataclass
class ResidualParams:
    """Parameters of `residual_action`.

    Attributes:
      base: of the base policy; members of a population may have different ones.
      scale: how far an action of 1 goes, in halves of the action's range.
      inner: parameters of the wrapped environment.
    """

    base: PyTree
    scale: Float[Array, ""]
    inner: EnvParams


@struct.dataclass
class ResidualState:
    """State of `residual_action`.

    Attributes:
      base_action: what the base policy does next, between -1 and 1.
      inner: state of the wrapped environment.
    """

    base_action: Float[Array, "*shape"]
    inner: EnvState


@memoize
def residual_action(env: Env, base: BasePolicy, scale: float = 0.5) -> Env:
    """Adds actions to those of a base policy, which the observation shows.

        executed = clip(b + scale · a, -1, 1) mapped to the bounds,   b = base(obs) mapped from the bounds to [-1, 1]

    An agent then learns what to change of the base policy, and begins near it. Observations are [obs, b]; the base
    policy sees obs alone. Residual policy learning: Silver et al. 2018, arXiv:1812.06298; off-policy: Ankile et al.
    2025, arXiv:2509.19301.

    Args:
      env: an environment with observations of one axis and bounded continuous actions.
      base: the policy that stays as it is.
      scale: default of the leaf of that name.

    Returns:
      The environment with `ResidualParams` and `ResidualState`; actions are between -1 and 1.

    Raises:
      ValueError: the actions are no bounded `Box` of floats, observations no vector, or the scale is not positive.

    Example:
      >>> from jaxrl.envs import make_env
      >>> swing = BasePolicy(lambda gain, obs: jnp.clip(gain * obs[2:], -2.0, 2.0), lambda: jnp.float32(0.5))
      >>> env = residual_action(make_env("gymnax/Pendulum-v1"), swing)
      >>> env.observation_space.shape, env.action_space.high, env.default_params().base.item()
      ((4,), 1.0, 0.5)
    """
    actions, observed = env.action_space, env.observation_space
    if not (isinstance(actions, spaces.Box) and actions.bounded and jnp.issubdtype(actions.dtype, jnp.floating)):
        raise ValueError(
            f"residual_action: actions must be a Box of floats with finite bounds, so that two can be added in units "
            f"of their range; {env.name!r} has {actions}."
        )
    if not isinstance(observed, spaces.Box) or len(observed.shape) != 1:
        raise ValueError(
            f"residual_action: observations must be vectors, to which the base policy's action is appended; "
            f"{env.name!r} has {observed}. Apply flatten_observation first."
        )
    if not scale > 0.0:
        raise ValueError(f"residual_action: scale must be positive; got scale = {scale}.")
    low, high = actions.low_array, actions.high_array

    def shown(params: ResidualParams, inner: EnvState, obs: Observation) -> tuple[ResidualState, Observation]:
        action = jnp.asarray(base.act(params.base, obs)).reshape(actions.shape)
        action = jnp.clip((2.0 * action - high - low) / (high - low), -1.0, 1.0).astype(jnp.float32)
        return ResidualState(action, inner), jnp.concatenate([obs.astype(jnp.float32), action.ravel()])

    def default_params() -> ResidualParams:
        return ResidualParams(base.default_params(), jnp.asarray(scale, jnp.float32), env.default_params())

    def reset(key: Key, params: ResidualParams) -> tuple[ResidualState, Observation]:
        return shown(params, *env.reset(key, params.inner))

    def step(key: Key, state: ResidualState, action: Action, params: ResidualParams) -> tuple[ResidualState, EnvStep]:
        share = (jnp.clip(state.base_action + params.scale * action, -1.0, 1.0) + 1.0) / 2.0
        # Exact at both ends, as in `rescale_action`.
        executed = (low * (1.0 - share) + high * share).astype(actions.dtype)
        inner, result = env.step(key, state.inner, executed, params.inner)
        state, obs = shown(params, inner, result.obs)
        return state, dataclasses.replace(result, obs=obs)

    size = spaces.size(actions)
    least, greatest = np.append(observed.low_array, np.full(size, -1.0)), np.append(observed.high_array, np.ones(size))
    return env._replace(
        name=f"{env.name}|residual_action({scale:g})",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(least, greatest, least.shape),
        action_space=spaces.box(-1.0, 1.0, actions.shape),
    )
