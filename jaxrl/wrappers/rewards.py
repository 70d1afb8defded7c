"""What is done with rewards before they are paid."""

import dataclasses
import math

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


@struct.dataclass
class ScaledParams:
    """Parameters of `scale_reward`.

    Attributes:
      scale: what rewards are multiplied by.
      inner: parameters of the wrapped environment.
    """

    scale: Float[Array, ""]
    inner: EnvParams


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
