"""What a task is, and the resets that several share.

A task's functions see `mjx.Data`, whose body positions lag `qpos` by a substep (see `physics`). The entries, in
`planar`, `floating` and `tabletop`, are what gymnasium 1.3's `*_v5.py` say of reset, observation, reward and end.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxrl.types import Key

Numbers = Mapping[str, Any]
Options = Mapping[str, Any]
POSITIONS: Options = {"exclude_current_positions_from_observation": True}
END: Options = {"terminate_when_unhealthy": True}
Outcome = tuple[Array, Bool[Array, ""] | bool, dict[str, Array]]


class Scene(NamedTuple):
    """What a task asks of its model.

    Attributes:
      model: the host's `MjModel`.
      dt: seconds between two actions.
      qpos: positions at the start, without noise.
      qvel: velocities at the start.
    """

    model: Any
    dt: float
    qpos: np.ndarray
    qvel: np.ndarray


class Task(NamedTuple):
    """One task.

    Attributes:
      xml: file name among gymnasium's MuJoCo assets.
      frame_skip: substeps for each action.
      observe: `(data, scene, numbers, options) -> observation`.
      judge: `(data, before, action, scene, numbers, options) -> (reward, terminated, info)`; `before` is what
        `track` gave one action earlier.
      reset: `(key, scene, numbers) -> (qpos, qvel)`.
      numbers: gymnasium's numeric arguments with their defaults.
      options: gymnasium's structural arguments with their defaults.
      track: `(data, scene, options) -> position` of which the reward takes the speed; None if it takes none.
      max_episode_steps: gymnasium's time limit.
      full_reset: whether the first observation has forces in it.
      contact_forces: whether `cfrc_ext` is needed.
    """

    xml: str
    frame_skip: int
    observe: Callable[..., Array]
    judge: Callable[..., Outcome]
    reset: Callable[[Key, Scene, Numbers], tuple[Array, Array]]
    numbers: Numbers
    options: Options = MappingProxyType({})
    track: Callable[..., Array] | None = None
    max_episode_steps: int = 1000
    full_reset: bool = False
    contact_forces: bool = False


def uniform(key: Key, like: np.ndarray, scale: Any) -> Array:
    """`like` plus noise between -scale and scale."""
    return jnp.asarray(like) + jax.random.uniform(key, like.shape, minval=-scale, maxval=scale)


def reset_uniform(key: Key, scene: Scene, numbers: Numbers) -> tuple[Array, Array]:
    """Uniform noise on positions and velocities."""
    key_qpos, key_qvel = jax.random.split(key)
    scale = numbers["reset_noise_scale"]
    return uniform(key_qpos, scene.qpos, scale), uniform(key_qvel, scene.qvel, scale)


def reset_normal(key: Key, scene: Scene, numbers: Numbers) -> tuple[Array, Array]:
    """Uniform noise on positions, normal noise on velocities."""
    key_qpos, key_qvel = jax.random.split(key)
    scale = numbers["reset_noise_scale"]
    return uniform(key_qpos, scene.qpos, scale), jnp.asarray(scene.qvel) + scale * jax.random.normal(
        key_qvel, scene.qvel.shape
    )


def proprioception(data: Any, options: Options, num_excluded: int) -> list[Array]:
    """Positions, without the first ones if `POSITIONS` says so, and velocities."""
    skip = num_excluded if options["exclude_current_positions_from_observation"] else 0
    return [data.qpos[skip:], data.qvel]


def within(value: Array, bounds: Array) -> Bool[Array, "..."]:
    """Whether entries lie strictly between two bounds."""
    return (bounds[0] < value) & (value < bounds[1])


def control_cost(action: Array, numbers: Numbers) -> Array:
    """What an action costs by its size, before the model limits it."""
    return numbers["ctrl_cost_weight"] * jnp.sum(action**2)
