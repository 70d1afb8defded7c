"""Learning from sequences: which rows are learned, and what a network with memory remembers at each of them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, PyTree

from jaxrl.networks.q_network import QNetwork, QOutput, memories
from jaxrl.ops import trees
from jaxrl.types import Key, Memory, Observation


@struct.dataclass
class Sequences:
    """N windows of W rows, of which those after the burn-in are learned.

    Attributes:
      obs: leaves [W, N, ...].
      start: whether an observation is the first of its episode, [W, N].
      memory: what acting remembered before the first row, leaves [N, ...].
    """

    obs: Observation
    start: Bool[Array, "W N"]
    memory: Memory


@struct.dataclass
class Recall:
    """What a network remembers of M = length · N learned rows, in the order of time; () without memory.

    Attributes:
      first: before the first learned row of each sequence, leaves [N, ...].
      before: before each row, leaves [M, ...].
      after: after the last row of each row's target, leaves [M, ...].
    """

    first: Memory
    before: Memory
    after: Memory


def learned_rows(index: Int[Array, " N"], num_rows: int, num_envs: int, burn_in: int, length: int) -> Int[Array, " M"]:
    """The entries of a buffer of L rows that windows from `index` on learn, row after row.

    >>> learned_rows(jnp.array([2, 5]), num_rows=4, num_envs=2, burn_in=1, length=2).tolist()
    [4, 7, 6, 1]
    """
    rows = ((index // num_envs)[None] + burn_in + jnp.arange(length)[:, None]) % num_rows
    return (rows * num_envs + jnp.broadcast_to((index % num_envs)[None], rows.shape)).ravel()


def recall(
    net: QNetwork, params: PyTree, sequences: Sequences | None, num_steps: Int[Array, " M"], burn_in: int
) -> Recall:
    """Goes through the sequences with a network's own parameters, from the memory that was stored.

    Args:
      net: the network.
      params: its parameters.
      sequences: the windows; None without memory.
      num_steps: of each learned row's target, from 1 to n.
      burn_in: rows before the first that is learned.

    Returns:
      The memories, forgotten at each start of an episode by what reads them with `Sequences.start`.
    """
    if sequences is None:
        return Recall((), (), ())
    states = memories(net, params, sequences.obs, sequences.memory, sequences.start)
    num = sequences.start.shape[1]
    position = jnp.arange(num_steps.size)
    row, column = burn_in + position // num, position % num
    at = lambda row: jax.tree.map(lambda x: x[row, column], states)
    return Recall(jax.tree.map(lambda x: x[burn_in], states), at(row), at(row + num_steps))


def evaluate_rows(
    net: QNetwork,
    params: PyTree,
    sequences: Sequences,
    memory: Memory,
    burn_in: int,
    length: int,
    key: Key | None,
    num: int,
) -> QOutput:
    """The outputs at the learned rows, [M, ...], by one pass through time.

    Args:
      net: a recurrent network.
      params: its parameters.
      sequences: the windows.
      memory: before the first learned row, leaves [N, ...].
      burn_in: rows before that.
      length: learned rows.
      key: as the network takes it.
      num: of fractions, as the network takes it.
    """
    rows = lambda x: x[burn_in : burn_in + length]
    output: Any = net.apply(params, jax.tree.map(rows, sequences.obs), key, num, memory, rows(sequences.start))
    return trees.flatten_time(output.replace(memory=()))


def starts_of(sequences: Sequences | None, burn_in: int, length: int) -> Any:
    """Whether each learned row is the first of its episode, [M]; None without memory."""
    return None if sequences is None else sequences.start[burn_in : burn_in + length].ravel()
