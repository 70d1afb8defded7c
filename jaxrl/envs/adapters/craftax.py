"""Craftax 1.6 (https://github.com/MichaelTMatthews/Craftax): Crafter and a NetHack-like world.

The classes without auto-reset are used: the others generate a new world at every step, 18 to 49 times the work.
Craftax's `done` mixes death, victory and the time limit; the adapter tells the last one apart.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

craftax_env = _common.load("craftax.craftax_env")

_NAMES = ("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1", "Craftax-Symbolic-v1", "Craftax-Pixels-v1")


def names() -> tuple[str, ...]:
    """All environments of Craftax."""
    return _NAMES


@memoize
def make(name: str, **options: Any) -> Env:
    """Wraps one Craftax environment.

    Args:
      name: Craftax's own name, `Craftax-Symbolic-v1` for instance.
      **options: fields of Craftax's `StaticEnvParams`, `map_size=(32, 32)` for instance.

    Returns:
      The environment; its params are Craftax's own record, each number an array.

    Example:
      >>> make("Craftax-Classic-Symbolic-v1").max_episode_steps
      10000
    """
    with _common.quiet():
        wrapped = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
        wrapped = type(wrapped)(wrapped.default_static_params().replace(**options))
    params = wrapped.default_params

    def default_params() -> Any:
        return trees.as_arrays(params)

    def reset(key: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        obs, state = wrapped.reset_env(key, params)
        return trees.as_arrays(state), trees.as_arrays(obs)

    def step(key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, EnvStep]:
        obs, next_state, reward, _, _ = wrapped.step_env(key, state, action, params)
        next_state = _common.cast_like(next_state, state)
        # Whether the game would be over under a limit that is not reached yet.
        unlimited = params.replace(max_timesteps=next_state.timestep + 1)
        return next_state, EnvStep(
            obs=_common.cast_like(obs, obs_like),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(wrapped.is_terminal(next_state, unlimited), bool),
            truncated=next_state.timestep >= params.max_timesteps,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    declared = wrapped.observation_space(params)
    return Env(
        name=f"craftax/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(declared.low, declared.high, obs_like.shape, obs_like.dtype),
        action_space=spaces.Discrete(wrapped.num_actions),
        max_episode_steps=int(params.max_timesteps),
    )
