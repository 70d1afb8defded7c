"""What a probe is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import spaces


@struct.dataclass
class Params:
    """Parameters of most probes.

    Attributes:
      reward: what all rewards are multiplied by.
    """

    reward: Float[Array, ""]


@struct.dataclass
class ProbeState:
    """State of every probe.

    Attributes:
      time: steps since the reset.
      cue: what the reset drew, () if nothing; in `Credit`, after the first step, what that led to.
    """

    time: Int[Array, ""]
    cue: PyTree


def leaf(value: float) -> Any:
    """A parameter's default."""
    # NumPy, since a factory may run while something is being traced.
    return np.asarray(value, np.int32 if isinstance(value, int) else np.float32)


class Rules(NamedTuple):
    """What makes one probe; `state` is the one before the action, except in `observe`."""

    horizon: Callable[[Any], Any]  # (params) -> steps of an episode
    observe: Callable[[ProbeState, Any], Any]  # (state, params)
    reward: Callable[[ProbeState, Any, Any], Any]  # (state, action, params), without the leaf
    params: Any = Params(leaf(1.0))
    observation_space: spaces.Space = spaces.box(-1.0, 1.0, (1,))
    action_space: spaces.Space = spaces.Discrete(2)
    draw: Callable[[jax.Array], Any] = lambda key: ()
    follow: Callable[[ProbeState, Any], Any] = lambda state, action: state.cue  # the next cue
    truncates: bool = False
    info: Callable[[ProbeState, Any], dict[str, Any]] = lambda state, action: {}


def steps(num_steps: int) -> Callable[[Any], int]:
    """Episodes of a fixed length."""
    return lambda params: num_steps


def sign(key: jax.Array) -> Array:
    """-1 or 1 at random."""
    return jax.random.rademacher(key, (), jnp.float32)


def as_sign(action: Any) -> Array:
    """Action 0 as -1, action 1 as 1."""
    return 2.0 * action - 1.0
