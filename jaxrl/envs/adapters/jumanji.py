"""Jumanji 1.1 (https://github.com/instadeepai/jumanji): combinatorial problems, puzzles and games for one agent.

Jumanji's environments end their time limit with discount 0, as if the state were terminal. The adapter lifts the limit
inside of the environment, so that each end that is left is a true one, and counts the limit itself. An action of
several integers whose mask is over their combinations (Tetris, BinPack) becomes one integer with a flat mask.
"""

import copy
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

jumanji = _common.load("jumanji")
specs = _common.load("jumanji.specs")

# Several agents, or (JobShop) several machines with a mask each.
_MANY_AGENTS = frozenset({
    "Cleaner-v0", "Connector-v3", "JobShop-v0", "LevelBasedForaging-v0", "MMST-v0", "MultiCVRP-v0",
    "RobotWarehouse-v0", "SearchAndRescue-v0",
})  # fmt: skip
# Downloads its levels when it is made.
_NEEDS_NETWORK = frozenset({"Sokoban-v0"})
_NO_LIMIT = 2**30
# Real observations leave the declared bounds: before the first city there is none, and after the last step the
# counter has the value of the limit itself.
_WIDER = {"position": (-1, 0), "step_count": (0, 1)}


def names() -> tuple[str, ...]:
    """All environments of Jumanji for one agent that work offline."""
    left_out = _MANY_AGENTS | _NEEDS_NETWORK
    # Jumanji keeps them in a set, whose order changes from process to process.
    return tuple(sorted(name for name in jumanji.registered_environments() if name not in left_out))


@memoize
def make(name: str, **options: Any) -> Env:
    """Wraps one Jumanji environment.

    Args:
      name: Jumanji's own name, `Snake-v1` for instance.
      **options: arguments of Jumanji's constructor (static), `time_limit=100` for instance.

    Returns:
      The environment. Observations are dicts; the one with the legal actions is `action_mask`, shape [A].

    Example:
      >>> make("Snake-v1").action_space
      Discrete(n=4)
    """
    with _common.quiet():
        original = jumanji.make(name, **options)
        limit = getattr(original, "time_limit", None)
        obs_spec, action_spec = original.observation_spec, original.action_spec
    wrapped = copy.copy(original)
    if limit is not None:
        wrapped.time_limit = _NO_LIMIT
    nvec = tuple(np.asarray(action_spec.num_values).ravel().tolist())
    mask_like = getattr(jax.eval_shape(wrapped.reset, jax.random.key(0))[1].observation, "action_mask", None)
    flat = len(nvec) > 1 and mask_like is not None and mask_like.shape == nvec

    def default_params() -> Any:
        return () if limit is None else trees.as_arrays(_common.TimeLimit(limit))

    def observe(observation: Any) -> Any:
        obs = _as_dict(observation)
        if flat:
            obs["action_mask"] = obs["action_mask"].reshape(-1)
        return obs

    def reset(key: jax.Array, params: Any) -> tuple[_common.CountedState, Any]:
        del params
        state, timestep = wrapped.reset(key)
        return _common.CountedState(trees.as_arrays(state), jnp.zeros((), jnp.int32)), trees.as_arrays(
            observe(timestep.observation)
        )

    def step(key: jax.Array, state: Any, action: Any, params: Any) -> tuple[_common.CountedState, EnvStep]:
        inner = _replace(state.inner, key=key) if hasattr(state.inner, "key") else state.inner
        if flat:
            action = jnp.stack(jnp.unravel_index(action, nvec))
        inner, timestep = wrapped.step(inner, action)
        num_steps = state.num_steps + 1
        return _common.CountedState(_common.cast_like(inner, state.inner), num_steps), EnvStep(
            obs=_common.cast_like(observe(timestep.observation), obs_like),
            reward=jnp.asarray(timestep.reward, jnp.float32),
            terminated=timestep.last() & (timestep.discount == 0),
            truncated=jnp.zeros((), bool) if limit is None else num_steps >= params.max_episode_steps,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    if len(nvec) == 1:
        action_space = spaces.Discrete(nvec[0])
    else:
        action_space = spaces.Discrete(math.prod(nvec)) if flat else spaces.MultiDiscrete(nvec)
    return Env(
        name=f"jumanji/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=_space(obs_spec, obs_like),
        action_space=action_space,
        max_episode_steps=limit,
    )


def _fields(value: Any) -> tuple[str, ...]:
    """Names of the parts of a named tuple or dataclass; none for an array."""
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    return getattr(value, "_fields", ())


def _as_dict(value: Any) -> Any:
    return {name: _as_dict(getattr(value, name)) for name in _fields(value)} or value


def _replace(value: Any, **changes: Any) -> Any:
    return value._replace(**changes) if hasattr(value, "_replace") else dataclasses.replace(value, **changes)


def _space(spec: Any, like: Any, name: str = "") -> spaces.Space:
    """Translates a spec; what `reset` really gives (`like`) overrules the declared shape and dtype."""
    if isinstance(like, dict):
        return spaces.Dict(tuple((part, _space(spec[part], leaf, part)) for part, leaf in like.items()))
    if not isinstance(spec, specs.BoundedArray):
        return _common.unbounded(like)
    lower, higher = _WIDER.get(name, (0, 0)) if isinstance(spec, specs.DiscreteArray) else (0, 0)
    low, high = np.asarray(spec.minimum, np.float64) + lower, np.asarray(spec.maximum, np.float64) + higher
    # The flat mask has the entries of the declared one in another shape.
    low, high = (bound.reshape(like.shape) if bound.size > 1 else bound for bound in (low, high))
    return spaces.box(low, high, like.shape, like.dtype)
