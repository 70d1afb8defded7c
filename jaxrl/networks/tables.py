"""Tables instead of networks: a row for each state, read by gather."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl import spaces


def num_states(owner: str, space: spaces.Space) -> int:
    """Rows of a table over an observation space.

    Args:
      owner: what the table belongs to, for the message.
      space: of observations.

    Raises:
      ValueError: an observation is neither an integer nor a vector.

    Example:
      >>> num_states("agent", spaces.Discrete(7))
      7
    """
    if isinstance(space, spaces.Discrete):
        return space.n
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise ValueError(
        f"{owner}: to a table observations must be integers, or vectors of which the greatest entry names the state; "
        f"there is {space}."
    )


def state_of(space: spaces.Space, obs: Any) -> Int[Array, "..."]:
    """The number of the state: an integer observation itself, of a vector its greatest entry.

    Args:
      space: of observations.
      obs: observations with any leading axes.

    Example:
      >>> state_of(spaces.box(0.0, 1.0, (3,)), jnp.array([[0.0, 1.0, 0.0]])).tolist()
      [1]
    """
    return obs if isinstance(space, spaces.Discrete) else jnp.argmax(obs, axis=-1)
