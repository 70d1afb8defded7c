"""Shuffled minibatches of a rollout."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl.ops import trees


def permutation(key: jax.Array, size: int) -> Int[Array, " N"]:
    """A random permutation of 0 … size-1, int32, by sorting random words.

    Two of the 32-bit words tie with probability below size² / 2³³; a tie keeps its order, a bias that no learner sees.
    """
    return jnp.argsort(jax.random.bits(key, (size,))).astype(jnp.int32)


def validate(num_steps: int, num_envs: int, num_minibatches: int, whole_sequences: bool) -> None:
    """Checks that a rollout of T steps in B environments splits evenly; arguments as `shuffled` has them.

    Raises:
      ValueError: it does not.
    """
    if whole_sequences and num_envs % num_minibatches:
        raise ValueError(
            "With a recurrent network whole environments are shuffled, so num_envs must be divisible by "
            f"num_minibatches; got num_envs = {num_envs}, num_minibatches = {num_minibatches}."
        )
    if num_envs * num_steps % num_minibatches:
        raise ValueError(
            f"num_envs * num_steps must be divisible by num_minibatches; got {num_envs} * {num_steps} = "
            f"{num_envs * num_steps} and num_minibatches = {num_minibatches}."
        )


def shuffled(key: jax.Array, samples: Any, memory: Any, num_minibatches: int, whole_sequences: bool) -> tuple[Any, Any]:
    """Shuffles a rollout and splits it into minibatches.

    Args:
      key: a random key.
      samples: leaves [T, B, ...].
      memory: the network's memory when the rollout began, leaves [B, ...].
      num_minibatches: M; divides T*B, or B if sequences stay whole.
      whole_sequences: whether to shuffle environments rather than single transitions.

    Returns:
      (samples, memory): leaves [M, T*B/M, ...] and (), or with whole sequences [M, T, B/M, ...] and [M, B/M, ...].
    """

    def split(x: Array) -> Array:
        return x.reshape((num_minibatches, -1, *x.shape[1:]))

    if not whole_sequences:
        flat = trees.flatten_time(samples)
        order = permutation(key, jax.tree.leaves(flat)[0].shape[0])
        return jax.tree.map(lambda x: split(x[order]), flat), ()
    order = permutation(key, jax.tree.leaves(samples)[0].shape[1])
    parts = jax.tree.map(lambda x: jnp.swapaxes(split(jnp.swapaxes(x, 0, 1)[order]), 1, 2), samples)
    return parts, jax.tree.map(lambda x: split(x[order]), memory)
