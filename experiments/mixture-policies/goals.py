"""A point among goals that lie on a circle around it: as many equally short ways as there are goals."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl import spaces
from jaxrl.types import Env, EnvStep, Key, memoize

NUM_GOALS, SPEED, NEAR, MAX_STEPS = 8, 0.1, 0.25, 40
# Which goal an episode ended at can be told from its return: no two goals pay the same.
WORTH = {
    "even": tuple(1.0 + 0.001 * i for i in range(NUM_GOALS)),
    "uneven": (1.0, 0.4, 0.7, 0.5, 0.9, 0.3, 0.8, 0.6),
}
_ANGLES = 2.0 * np.pi * np.arange(NUM_GOALS) / NUM_GOALS
PLACES = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1).astype(np.float32)


@struct.dataclass
class Params:
    """What each goal pays, [NUM_GOALS]."""

    worth: Float[Array, " G"]


@struct.dataclass
class State:
    """Where the point is, and for how many steps it has moved."""

    place: Float[Array, "2"]
    num_steps: Int[Array, ""]


@memoize
def goals(name: str) -> Env:
    """The task with the goals' worth of that name; its actions are velocities in the plane, its observation the place.

    An episode terminates within `NEAR` of a goal, which pays its worth, and is truncated without pay after `MAX_STEPS`.
    """

    def reset(key: Key, params: Params) -> tuple[State, Array]:
        place = 0.05 * jax.random.normal(key, (2,))
        return State(place, jnp.int32(0)), place

    def step(key: Key, state: State, action: Array, params: Params) -> tuple[State, EnvStep]:
        del key
        place = jnp.clip(state.place + SPEED * jnp.clip(action, -1.0, 1.0), -1.5, 1.5)
        distance = jnp.linalg.norm(place - PLACES, axis=-1)
        reached = jnp.min(distance) < NEAR
        num_steps = state.num_steps + 1
        return State(place, num_steps), EnvStep(
            obs=place,
            reward=jnp.where(reached, params.worth[jnp.argmin(distance)], 0.0),
            terminated=reached,
            truncated=num_steps >= MAX_STEPS,
        )

    return Env(
        name=f"goals/{name}",
        reset=reset,
        step=step,
        default_params=lambda: Params(jnp.asarray(WORTH[name], jnp.float32)),
        observation_space=spaces.box(-1.5, 1.5, (2,)),
        action_space=spaces.box(-1.0, 1.0, (2,)),
        max_episode_steps=MAX_STEPS,
    )


def num_reached(returns: np.ndarray, name: str) -> np.ndarray:
    """Effective number of goals, exp(entropy of their frequencies), that episodes end at; [..., episodes] to [...].

    NaN where no episode ended at a goal.
    """
    at = np.abs(returns[..., None] - np.asarray(WORTH[name])) < 1e-4
    count = at.sum(-2)
    total = count.sum(-1, keepdims=True)
    share = np.divide(count, total, out=np.full(count.shape, np.nan), where=total > 0)
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1))
