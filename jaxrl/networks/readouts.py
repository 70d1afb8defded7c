"""One vector of an observation: a table read by gather, or a network with one head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrl import spaces
from jaxrl.networks import tables
from jaxrl.networks.initializers import initialize, orthogonal
from jaxrl.networks.torsos import MLP, Encoder, activation_function
from jaxrl.types import Key, Observation, memoize


class Readout(NamedTuple):
    """A function of observations.

    Attributes:
      init: `(key) -> params`.
      read: `(params, obs [...]) -> [..., size]`.
    """

    init: Callable[[Key], PyTree]
    read: Callable[[PyTree, Observation], Array]


class _Network(nn.Module):
    space: spaces.Space
    size: int
    hidden: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: Observation) -> Array:
        features = Encoder(self.space, activation=self.activation, name="encoder")(obs)
        features = MLP(self.hidden, self.activation, name="torso")(features)
        return nn.Dense(self.size, kernel_init=orthogonal(0.01), name="head")(features)


@memoize
def readout(
    space: spaces.Space,
    size: int,
    tabular: bool = False,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
) -> Readout:
    """Makes a function of observations.

    Args:
      space: of observations.
      size: of the vector.
      tabular: whether it is a table of states, zeros at first; otherwise a network whose head is small at first.
      hidden: widths of the network's dense layers.
      activation: of the network.

    Returns:
      The function.

    Raises:
      ValueError: a table is asked for and observations do not name a state, or the activation is unknown.

    Example:
      >>> import jax
      >>> table = readout(spaces.Discrete(5), 3, tabular=True)
      >>> table.read(table.init(jax.random.key(0)), jnp.array([0, 4])).tolist()
      [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    if tabular:
        num_states = tables.num_states("readout", space)

        def zeros(key: Key) -> PyTree:
            del key
            return {"kernel": jnp.zeros((num_states, size))}

        return Readout(zeros, lambda params, obs: params["kernel"][tables.state_of(space, obs)])
    activation_function(activation)
    network = _Network(space, size, hidden, activation)

    def init(key: Key) -> PyTree:
        return initialize(network, key, spaces.zeros(space))

    def read(params: PyTree, obs: Observation) -> Any:
        return network.apply(params, obs)

    return Readout(init, read)
