"""The rewards so far as a part of the observation, for what is maximized of a return other than its mean."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


@struct.dataclass
class StockParams:
    """Parameters of `observe_stock`.

    Attributes:
      gamma: the discount factor that the agent learns with.
      low: least stock that an episode begins with.
      high: greatest.
      inner: parameters of the wrapped environment.
    """

    gamma: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    inner: EnvParams


@struct.dataclass
class StockState:
    """State of `observe_stock`.

    Attributes:
      stock: c.
      inner: state of the wrapped environment.
    """

    stock: Float[Array, ""]
    inner: EnvState


@memoize
def observe_stock(env: Env, gamma: float = 1.0, low: float = 0.0, high: float = 0.0) -> Env:
    """Shows the stock: a first amount and the rewards since, as much as they are worth now.

        c_0 uniform in [low, high],   c_{t+1} = (c_t + r_{t+1}) / γ

    so that γ^t (c_t + what is still to come) is c_0 plus the whole return (Pires et al. 2025, arXiv:2501.13028; Bäuerle
    and Ott 2011). An agent that is to act well from every first stock trains with a range of them; `low` = `high` fixes
    it. What is made of the stock, a head of `jaxrl.values.maximizing` says. Rewards stay as they are: networks see the
    stock in their unit, so scale them (`scale_reward`, below this wrapper) until it is of the size of other inputs.

    Args:
      env: any environment. Observations with an action_mask keep it.
      gamma: default of γ, which must be the agent's; above 0.
      low: default of the least first stock.
      high: default of the greatest.

    Returns:
      The environment with observations `{"observation": ..., "stock": []}`, `StockParams` and `StockState`.

    Raises:
      ValueError: a number is out of its range, or the environment shows a stock already.

    Example:
      >>> from jaxrl.envs import make_env
      >>> env = observe_stock(make_env("probe/Termination"), low=2.0, high=2.0)
      >>> state, obs = env.reset(jax.random.key(0), env.default_params())
      >>> state, result = env.step(jax.random.key(0), state, jnp.int32(0), env.default_params())
      >>> obs["stock"].item(), result.obs["stock"].item()
      (2.0, 3.0)
    """
    if not 0.0 < gamma <= 1.0 or not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            "observe_stock: gamma must be above 0 and at most 1, and low and high finite, in this order; got "
            f"gamma = {gamma}, low = {low}, high = {high}."
        )
    space = env.observation_space
    named = isinstance(space, spaces.Dict) and "action_mask" in space.names
    if isinstance(space, spaces.Dict) and "stock" in space.names:
        raise ValueError(f"observe_stock: observations must not have a stock yet; {env.name!r} has {space}.")
    amount = spaces.box(-jnp.inf, jnp.inf, ())
    parts = space.spaces if isinstance(space, spaces.Dict) and named else (("observation", space),)

    def observe(obs: Observation, amount: Array) -> Observation:
        return {**(obs if named else {"observation": obs}), "stock": amount}

    def default_params() -> StockParams:
        return StockParams(jnp.float32(gamma), jnp.float32(low), jnp.float32(high), env.default_params())

    def reset(key: Key, params: StockParams) -> tuple[StockState, Observation]:
        key, key_stock = jax.random.split(key)
        inner, obs = env.reset(key, params.inner)
        first = params.low + (params.high - params.low) * jax.random.uniform(key_stock)
        return StockState(first, inner), observe(obs, first)

    def step(key: Key, state: StockState, action: Action, params: StockParams) -> tuple[StockState, EnvStep]:
        inner, result = env.step(key, state.inner, action, params.inner)
        now = (state.stock + result.reward) / params.gamma
        return StockState(now, inner), dataclasses.replace(result, obs=observe(result.obs, now))

    return env._replace(
        name=f"{env.name}|observe_stock({gamma:g}, {low:g}, {high:g})",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.Dict((*parts, ("stock", amount))),
    )
