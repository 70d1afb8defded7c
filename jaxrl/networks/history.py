"""A recurrent core in front of networks that look at one thing at a time: what it says stands for the observation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces
from jaxrl.networks.initializers import initialize
from jaxrl.networks.recurrent import CORES, initial_memory
from jaxrl.networks.torsos import Encoder
from jaxrl.types import Key, Memory, Observation


class History(nn.Module):
    """An encoder and a recurrent core.

    Attributes:
      observation_space: space of one observation.
      memory: gru, lstm or s5.
      size: width of the core, H.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
      activation: of the CNN.
    """

    observation_space: spaces.Space
    memory: str = "gru"
    size: int = 64
    convolve: bool = True
    activation: str = "relu"

    @property
    def features_space(self) -> spaces.Box:
        """Space of what stands for an observation."""
        return spaces.box(-float("inf"), float("inf"), (self.size,))

    def initial_memory(self, batch_shape: Sequence[int] = ()) -> Memory:
        """Memory at the start of an episode, leaves [*batch_shape, ...]."""
        return initial_memory(self.memory, self.size, batch_shape)

    @nn.compact
    def __call__(
        self, obs: Observation, memory: Memory, start: Bool[Array, "T B"]
    ) -> tuple[Float[Array, "T B H"], Memory]:
        """Looks at observations.

        Args:
          obs: leaves [T, B, ...].
          memory: before the first of them, leaves [B, ...].
          start: whether they are the first of an episode.

        Returns:
          What is known at each, and the memory after the last.
        """
        x = Encoder(self.observation_space, self.convolve, self.activation, name="encoder")(obs)
        memory, x = CORES[self.memory](self.size, name="core")(memory, x, start)
        return x, memory


def init_params(net: History, key: Key, obs: Observation) -> PyTree:
    """Draws the parameters; of the observation only shapes matter."""
    one = jax.tree.map(lambda x: x[None, None], obs)
    return initialize(net, key, one, net.initial_memory((1,)), jnp.zeros((1, 1), bool))


def apply_step(
    net: History, params: PyTree, obs: Observation, memory: Memory, start: Bool[Array, " B"]
) -> tuple[Float[Array, "B H"], Memory]:
    """Looks at one observation of each of B environments.

    Args:
      net: the module.
      params: its parameters.
      obs: leaves [B, ...].
      memory: before them, leaves [B, ...].
      start: whether they are the first of an episode.

    Returns:
      What is known at each, and the memory after them.
    """
    features, memory = net.apply(params, jax.tree.map(lambda x: x[None], obs), memory, start[None])  # type: ignore[misc]
    return features[0], memory


def apply_with_successors(
    net: History,
    params: PyTree,
    obs: Observation,
    next_obs: Observation,
    memory: Memory,
    start: Bool[Array, "T B"],
) -> tuple[Float[Array, "T B H"], Float[Array, "T B H"]]:
    """Looks at transitions: at each observation, and at its true successor with what was remembered at it.

    Args:
      net: the module.
      params: its parameters.
      obs: leaves [T, B, ...].
      next_obs: of the same shapes; where an episode ended, the state that it ended in.
      memory: before the first, leaves [B, ...].
      start: whether `obs` is the first of an episode.

    Returns:
      What is known at observations and at successors.

    Example:
      >>> net = History(spaces.box(-1.0, 1.0, (3,)), size=4)
      >>> obs, start = jnp.ones((5, 2, 3)), jnp.zeros((5, 2), bool)
      >>> params = init_params(net, jax.random.key(0), obs[0, 0])
      >>> now, after = apply_with_successors(net, params, obs, obs, net.initial_memory((2,)), start)
      >>> bool(jnp.allclose(now[1:], after[:-1]))
      True
    """

    def step(memory: Memory, row: Any) -> tuple[Memory, tuple[Array, Array]]:
        obs, next_obs, start = row
        features, memory = apply_step(net, params, obs, memory, start)
        return memory, (features, apply_step(net, params, next_obs, memory, jnp.zeros_like(start))[0])

    return jax.lax.scan(step, memory, (obs, next_obs, start))[1]
