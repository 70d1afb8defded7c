"""Combination locks that are seen through noise: the end pays, and one wrong action before it is never made good.

Misra et al. (2020, arXiv:1911.05815) as Zhou et al. (2023, arXiv:2311.08384, section 6) have them, whose code was read.
At each of `horizon` time steps an episode is in one of two good states or in the bad one. In each good state of each
time step one of `num_actions` actions, the *code*, leads to a good state of the next one, either of them at random; all
others lead to the bad state, which nothing leaves. The last action pays 1 if it is right; otherwise, in a bad state
always, a small reward at random that leads a learner astray. So the best return is 1, and an agent that never had a
right end sees only the small reward. Continuous actions can be right with a probability just below 1 only.

An observation is the state and the time as indicators with noise, rotated by a Hadamard matrix:

    x = H (onehot(state) ⊕ onehot(time) + ε),  ε Gaussian                   [D], D the next power of 2 ≥ horizon + 4

===========  ===============================================================================================
name         actions
===========  ===============================================================================================
Discrete     the number of one
Continuous   a vector in [0, 1]^num_actions, of which the action is drawn by softmax(vector / temperature)
===========  ===============================================================================================

As in the authors' code the small reward is paid at the last step only. Their vectors of continuous actions have no
bounds, so that the softmax can be made sharper there than here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl import spaces, validation
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, Key, memoize

__all__ = ["LockParams", "LockState", "levels", "make", "names", "right_action"]

_NAMES = ("Discrete", "Continuous")


@struct.dataclass
class LockParams:
    """Parameters of a lock.

    Attributes:
      code: the right action in each good state at each time, [2, H].
      switch: probability of the other good state after a right action; the first state is either with 1/2.
      astray_reward: what a wrong end pays, if it does.
      astray: probability of that.
      noise: standard deviation of the indicators.
      temperature: of the softmax; only read if actions are continuous.
    """

    code: Int[Array, "2 H"]
    switch: Float[Array, ""]
    astray_reward: Float[Array, ""]
    astray: Float[Array, ""]
    noise: Float[Array, ""]
    temperature: Float[Array, ""]


@struct.dataclass
class LockState:
    """State of an episode.

    Attributes:
      time: steps since the reset.
      state: 0 or 1, the good ones, or 2.
    """

    time: Int[Array, ""]
    state: Int[Array, ""]


def names() -> tuple[str, ...]:
    """All kinds of locks."""
    return _NAMES


def right_action(params: LockParams, state: LockState) -> Int[Array, ""]:
    """The code's action at a state; in the bad one, where none is right, that of the first."""
    side = jnp.where(state.state == 1, 1, 0)
    return params.code[side, jnp.minimum(state.time, params.code.shape[1] - 1)]


@memoize
def levels(name: str, horizon: int = 5, num_actions: int = 10) -> Callable[[Key], LockParams]:
    """How locks are drawn: each action of the code anew.

    Args:
      name: one of `names()`.
      horizon: H.
      num_actions: to choose from.

    Returns:
      `(key) -> LockParams`, pure; equal arguments give the same function.

    Example:
      >>> levels("Discrete", 3)(jax.random.key(0)).code.shape
      (2, 3)
    """
    env = make(name, horizon, num_actions)

    def draw(key: Key) -> LockParams:
        return env.default_params().replace(code=jax.random.randint(key, (2, horizon), 0, num_actions))

    return draw


@memoize
def make(name: str, horizon: int = 5, num_actions: int = 10) -> Env:
    """Makes a lock.

    Args:
      name: one of `names()`.
      horizon: H, steps of an episode.
      num_actions: to choose from.

    Returns:
      The environment, with the paper's noise and rewards; the code of its default parameters is a fixed draw.

    Raises:
      ValueError: a count is not positive.

    Example:
      >>> make("Discrete", 5).observation_space.shape, make("Continuous").action_space.shape
      ((16,), (10,))
    """
    validation.count(f"locks/{name}", "horizon", horizon)
    validation.count(f"locks/{name}", "num_actions", num_actions)
    size = 2 ** math.ceil(math.log2(horizon + 4))
    hadamard = scipy.linalg.hadamard(size).astype(np.float32)

    def observation(key: Key, state: LockState, params: LockParams) -> Array:
        noise = params.noise * jax.random.normal(key, (horizon + 3,))
        indicators = jnp.concatenate([noise, jnp.zeros(size - horizon - 3)])
        return jnp.asarray(hadamard) @ indicators.at[state.state].add(1.0).at[3 + state.time].add(1.0)

    def reset(key: Key, params: LockParams) -> tuple[LockState, Array]:
        if params.code.shape != (2, horizon):
            raise ValueError(
                f"locks/{name}: the code must have shape (2, horizon) = (2, {horizon}); got {params.code.shape}: draw "
                f"it with levels({name!r}, {horizon})."
            )
        key_state, key_obs = jax.random.split(key)
        state = LockState(jnp.int32(0), jax.random.bernoulli(key_state).astype(jnp.int32))
        return state, observation(key_obs, state, params)

    def step(key: Key, state: LockState, action: Any, params: LockParams) -> tuple[LockState, EnvStep]:
        key_action, key_switch, key_astray, key_obs = jax.random.split(key, 4)
        if name == "Continuous":
            action = jax.random.categorical(key_action, action / params.temperature)
        right = (state.state < 2) & (action == right_action(params, state))
        at_end = state.time + 1 >= horizon
        switched = jax.random.bernoulli(key_switch, params.switch) & ~at_end
        after = LockState(state.time + 1, jnp.where(right, jnp.where(switched, 1 - state.state, state.state), 2))
        astray = jnp.where(jax.random.bernoulli(key_astray, params.astray), params.astray_reward, 0.0)
        return after, EnvStep(
            obs=observation(key_obs, after, params),
            reward=jnp.where(at_end, jnp.where(right, 1.0, astray), 0.0),
            terminated=at_end,
            truncated=jnp.zeros((), bool),
        )

    def default_params() -> LockParams:
        code = np.random.default_rng(0).integers(0, num_actions, (2, horizon)).astype(np.int32)
        numbers = (np.float32(x) for x in (0.5, 0.1, 0.5, 0.1, 0.1))
        return trees.as_arrays(LockParams(code, *numbers))  # type: ignore[arg-type]

    continuous = spaces.box(0.0, 1.0, (num_actions,))
    return Env(
        name=f"locks/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(-np.inf, np.inf, (size,)),
        action_space=continuous if name == "Continuous" else spaces.Discrete(num_actions),
        max_episode_steps=horizon,
    )
