"""navix (https://github.com/epignatelli/navix): MiniGrid; version 0.7 on Python 3.11, 4.0 from Python 3.12 on.

The two versions have different time limits (100 and 256 steps in Empty-8x8), so their results do not compare. navix
resets itself on the step after the end; the adapter calls the inner step, which does not, and counts the limit itself.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

navix = _common.load("navix")
StepType = _common.load("navix.environments.environment").StepType


def names() -> tuple[str, ...]:
    """All environments of navix."""
    return tuple(navix.registry())


@memoize
def make(name: str, **options: Any) -> Env:
    """Wraps one navix environment.

    Args:
      name: navix's own name, `Navix-Empty-8x8-v0` for instance.
      **options: arguments of navix's constructor (static), `observation_fn=navix.observations.rgb` for instance.

    Returns:
      The environment. Observations are the suite's integers, one channel each for tile, color and state.

    Example:
      >>> make("Navix-Empty-8x8-v0").action_space
      Discrete(n=7)
    """
    with _common.quiet():
        wrapped = navix.make(name, **options)

    def default_params() -> _common.TimeLimit:
        return trees.as_arrays(_common.TimeLimit(wrapped.max_steps))

    def reset(key: jax.Array, params: _common.TimeLimit) -> tuple[Any, Any]:
        timestep = trees.as_arrays(wrapped.replace(max_steps=params.max_episode_steps).reset(key))
        return timestep, timestep.observation

    def step(key: jax.Array, state: Any, action: Any, params: _common.TimeLimit) -> tuple[Any, EnvStep]:
        limit = params.max_episode_steps
        before = state.replace(state=state.state.replace(key=key))
        after = wrapped.replace(max_steps=limit)._step(before, action)
        after = _common.cast_like(after, state)
        return after, EnvStep(
            obs=after.observation,
            reward=after.reward.astype(jnp.float32),
            terminated=after.step_type == StepType.TERMINATION,
            truncated=after.t >= limit,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    declared = wrapped.observation_space
    # navix 0.7 declares the number of tiles, but its bytes hold colors and negative states too.
    if obs_like.dtype == jnp.uint8:
        observation_space = _common.unbounded(obs_like)
    else:
        observation_space = spaces.box(declared.minimum, declared.maximum, obs_like.shape, obs_like.dtype)
    return Env(
        name=f"navix/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=observation_space,
        action_space=spaces.Discrete(len(wrapped.action_set)),
        max_episode_steps=int(wrapped.max_steps),
    )
