"""What is done with actions before they are executed."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxrl import spaces, validation
from jaxrl.ops import trees
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


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
    validation.count("action_repeat", "num", num)

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


def _continuous_actions(wrapper: str, env: Env) -> spaces.Box:
    space = env.action_space
    if not isinstance(space, spaces.Box) or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"{wrapper}: actions must be a Box of floats; {env.name!r} has {space}. Leave the wrapper out."
        )
    return space
