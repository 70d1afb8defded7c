"""gymnax 1.0 (https://github.com/RobertTLange/gymnax): classic control, MinAtar, bsuite, misc.

gymnax's `step` resets by itself, so the adapter calls `step_env` and adds the time limit, which gymnax 1.0 keeps
in `is_truncated`.
"""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces as gymnax_spaces

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

# The horizon of these is part of the task and seen in the observation, so its end is terminal.
_FIXED_HORIZON = frozenset({"DeepSea-bsuite", "DiscountingChain-bsuite", "BernoulliBandit-misc", "GaussianBandit-misc"})
# Real observations leave the declared bounds: (index, low, high) of the entries that do.
_WIDER = {
    "GaussianBandit-misc": ((0, -jnp.inf, jnp.inf), (3, -1.0, jnp.inf)),
    "MemoryChain-bsuite": ((slice(2, None), -1.0, 1.0),),
    "MetaMaze-misc": ((-2, -jnp.inf, jnp.inf), (-1, -1.0, jnp.inf)),
}
# Downloads MNIST when it is made.
_NEEDS_NETWORK = frozenset({"MNISTBandit-bsuite"})


def names() -> tuple[str, ...]:
    """All environments of gymnax that work offline."""
    return tuple(name for name in gymnax.registered_envs if name not in _NEEDS_NETWORK)


@memoize
def make(name: str, **options: Any) -> Env:
    """Wraps one gymnax environment.

    Args:
      name: gymnax's own name, `CartPole-v1` for instance.
      **options: arguments of gymnax's constructor (static: sizes of grids and the like).

    Returns:
      The environment; its params are gymnax's own record, each number an array.

    Example:
      >>> make("CartPole-v1").max_episode_steps
      500
    """
    wrapped, params = gymnax.make(name, **options)
    fixed_horizon = name in _FIXED_HORIZON

    def default_params() -> Any:
        return trees.as_arrays(params)

    def reset(key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = wrapped.reset_env(key, params)
        return trees.as_arrays(state), trees.as_arrays(obs)

    def step(key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, EnvStep]:
        obs, next_state, reward, terminated, _ = wrapped.step_env(key, state, action, params)
        # gymnax's dtypes may differ between reset and step; what reset gives counts.
        next_state = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), next_state, state)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(wrapped.is_truncated(next_state, params), bool)
        if fixed_horizon:
            terminated, truncated = terminated | truncated, jnp.zeros_like(truncated)
        return next_state, EnvStep(
            obs=jax.tree.map(lambda leaf, like: jnp.asarray(leaf).astype(like.dtype), obs, obs_like),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    return Env(
        name=f"gymnax/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=_space(wrapped.observation_space(params), obs_like, _WIDER.get(name, ())),
        action_space=_space(wrapped.action_space(params)),
        max_episode_steps=int(params.max_steps_in_episode),
    )


def _space(space: Any, like: Any = None, wider: Any = ()) -> spaces.Space:
    """Translates a space; what `reset` really gives (`like`) overrules the declared shape and dtype."""
    if isinstance(space, gymnax_spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, gymnax_spaces.Box):
        shape, dtype = (like.shape, like.dtype) if like is not None else (space.shape, space.dtype)
        low, high = (np.array(np.broadcast_to(bound, shape), np.float64) for bound in (space.low, space.high))
        for index, wider_low, wider_high in wider:
            low[index], high[index] = wider_low, wider_high
        return spaces.box(low, high, shape, dtype)
    raise TypeError(f"No translation for gymnax's space {space!r}.")
