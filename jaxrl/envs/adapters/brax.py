"""brax 0.14 (https://github.com/google/brax): continuous control on four physics backends.

brax's environments are taken without their wrappers: no auto-reset, no action repeat. Their time limit of 1000 steps is
counted here and truncates; `State.done` is what terminates. Swimmer runs on no backend of brax 0.14.2.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

envs = _common.load("brax.envs")
State = envs.State

BACKENDS = ("spring", "positional", "generalized", "mjx")
_MAX_EPISODE_STEPS = 1000
_BROKEN = frozenset({"swimmer", "fast"})


def names() -> tuple[str, ...]:
    """All environments of brax that work."""
    return tuple(name for name in envs._envs if name not in _BROKEN)


@memoize
def make(name: str, backend: str = "spring", **options: Any) -> Env:
    """Wraps one brax environment.

    Args:
      name: brax's own name, `ant` for instance.
      backend: physics pipeline: `spring` (fastest), `positional`, `generalized` or `mjx` (MuJoCo's dynamics).
      **options: arguments of brax's constructor (static: weights of reward terms, ranges, noise of resets).

    Returns:
      The environment; under the default parameters its physics is brax's own.

    Raises:
      ValueError: brax has no such backend.

    Example:
      >>> make("inverted_pendulum").action_space
      Box(low=-1.0, high=1.0, shape=(1,), dtype_name='float32')
    """
    if backend not in BACKENDS:
        raise ValueError(f"brax: backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    with _common.quiet():
        wrapped = envs.get_environment(name, backend=backend, **options)

    def default_params() -> _common.PhysicsParams:
        return _common.default_physics(_MAX_EPISODE_STEPS)

    def reset(key: jax.Array, params: _common.PhysicsParams) -> tuple[_common.CountedState, jax.Array]:
        state = _with_physics(wrapped, params).reset(key)
        inner = trees.as_arrays(state.pipeline_state)
        return _common.CountedState(inner, jnp.zeros((), jnp.int32)), trees.as_arrays(state.obs)

    def step(
        key: jax.Array, state: _common.CountedState, action: jax.Array, params: _common.PhysicsParams
    ) -> tuple[_common.CountedState, EnvStep]:
        del key  # brax's dynamics draw nothing
        zero = jnp.zeros(())
        # Reward and metrics of the step before are overwritten by every environment; pusher and reacher never
        # write `done`, so it must come in as zero.
        after = _with_physics(wrapped, params).step(State(state.inner, obs_like, zero, zero), action)
        num_steps = state.num_steps + 1
        return _common.CountedState(_common.cast_like(after.pipeline_state, state.inner), num_steps), EnvStep(
            obs=_common.cast_like(after.obs, obs_like),
            reward=jnp.asarray(after.reward, jnp.float32),
            terminated=jnp.asarray(after.done, bool),
            truncated=num_steps >= params.max_episode_steps,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    return Env(
        name=f"brax/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=_common.unbounded(obs_like),
        action_space=spaces.box(-1.0, 1.0, (wrapped.action_size,)),
        max_episode_steps=_MAX_EPISODE_STEPS,
    )


def _with_physics(wrapped: Any, params: _common.PhysicsParams) -> Any:
    """A shallow copy of the environment whose system has the scaled parameters."""
    system, mass = wrapped.sys, params.mass_scale
    # The mjx pipeline reads MuJoCo's fields, the others brax's own.
    scaled = _common.scaled_fields(system, params) | {
        "gravity": system.gravity * params.gravity_scale,
        "link.inertia.mass": system.link.inertia.mass * mass,
        "link.inertia.i": system.link.inertia.i * mass,
        "link.invweight": system.link.invweight / mass,
        "dof.invweight": system.dof.invweight / mass,
        "actuator.gear": system.actuator.gear * params.gear_scale,
    }
    changed = copy.copy(wrapped)
    changed.sys = system.tree_replace(scaled)
    return changed
