"""MuJoCo Playground 0.2 (https://github.com/google-deepmind/mujoco_playground): dm_control's suite on MJX.

Only `dm_control_suite`: the robots clone a repository of models when they are loaded. Playground's own default physics,
Warp, needs CUDA, so `impl="jax"` is set. The suite's time limit of 1000 is counted here and truncates; `done`, which is
raised by numbers that are not finite, terminates.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

dm_control_suite = _common.load("mujoco_playground").dm_control_suite


def names() -> tuple[str, ...]:
    """All environments of the dm_control suite."""
    return tuple(dm_control_suite.ALL_ENVS)


@memoize
def make(name: str, **options: Any) -> Env:
    """Wraps one environment of the dm_control suite.

    Args:
      name: Playground's own name, `CartpoleBalance` for instance.
      **options: entries of Playground's configuration (static), `ctrl_dt=0.02` for instance.

    Returns:
      The environment; under the default parameters its physics is Playground's own.

    Raises:
      ValueError: the option asks for pixels, which only Warp renders, or is not in the configuration.

    Example:
      >>> make("CartpoleBalance").action_space
      Box(low=-1.0, high=1.0, shape=(1,), dtype_name='float32')
    """
    known = dm_control_suite.get_default_config(name)
    unknown = sorted(set(options) - set(known))
    if unknown or options.get("vision"):
        raise ValueError(
            f"playground/{name}: options must be entries of the configuration other than vision, which needs Warp; "
            f"got {options}. Entries: {', '.join(sorted(known))}."
        )
    with _common.quiet():
        wrapped = dm_control_suite.load(name, config_overrides={"impl": "jax", **options})
        limit = int(wrapped._config.episode_length)
        action_repeat = int(wrapped._config.action_repeat)

    def default_params() -> _common.PhysicsParams:
        return _common.default_physics(limit)

    def reset(key: jax.Array, params: _common.PhysicsParams) -> tuple[_common.CountedState, jax.Array]:
        inner = trees.as_arrays(_with_physics(wrapped, params).reset(key))
        return _common.CountedState(inner, jnp.zeros((), jnp.int32)), inner.obs

    def step(
        key: jax.Array, state: _common.CountedState, action: jax.Array, params: _common.PhysicsParams
    ) -> tuple[_common.CountedState, EnvStep]:
        # What an environment draws after `reset` comes from a key in its `info`.
        inner = state.inner.replace(info={**state.inner.info, "rng": key} if "rng" in state.inner.info else {})
        changed = _with_physics(wrapped, params)
        reward = jnp.zeros(())
        for _ in range(action_repeat):
            # Playground writes into the dicts of the state that it is given.
            inner = changed.step(jax.tree.map(lambda leaf: leaf, inner), action)
            reward += inner.reward
        inner = _common.cast_like(inner, state.inner)
        num_steps = state.num_steps + 1
        return _common.CountedState(inner, num_steps), EnvStep(
            obs=inner.obs,
            reward=reward.astype(jnp.float32),
            terminated=inner.done.astype(bool),
            truncated=num_steps * action_repeat >= params.max_episode_steps,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    return Env(
        name=f"playground/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=_common.unbounded(obs_like),
        action_space=spaces.box(-1.0, 1.0, (wrapped.action_size,)),
        max_episode_steps=limit,
    )


def _with_physics(wrapped: Any, params: _common.PhysicsParams) -> Any:
    """A shallow copy of the environment whose model has the scaled parameters."""
    changed = copy.copy(wrapped)
    changed._mjx_model = wrapped.mjx_model.tree_replace(_common.scaled_fields(wrapped.mjx_model, params))
    return changed
