"""What a program of several processes (`jax.distributed`) needs from its host code; with one process all of it is free.

Every process runs the same Python with the same arguments. Arrays that are spread over the devices of several processes
can be read by none of them alone, so `fetch` and `place` are computed by all together, as are `greatest`, `any_of`,
`together` and `from_first`: each process must call them, in the same order.
"""

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxrl.ops import trees

T = TypeVar("T")
# Sizes are exchanged as 32-bit integers, in two parts.
_BLOCK = 2**30


def is_several() -> bool:
    """Whether this is one of several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to people."""
    return jax.process_index() == 0


def fetch(tree: T) -> T:
    """Makes a tree readable in every process.

    Args:
      tree: arrays, typed random keys included.

    Returns:
      With one process the tree itself. Else leaves that are spread over processes become host arrays (keys: local
      arrays) of the whole, one leaf at a time, so that no device ever holds more than the largest leaf.

    Example:
      >>> fetch({"loss": np.ones(2)})
      {'loss': array([1., 1.])}
    """
    return jax.tree.map(_fetched, tree) if is_several() else tree


def place(tree: T, shardings: Any) -> T:
    """Puts arrays, of which every process has the whole, where a program wants them; spread ones are moved or fetched.

    Args:
      tree: arrays, typed random keys included; the same values in every process.
      shardings: of the same structure; None, for what a program does not read, leaves an array where it is.

    Returns:
      Arrays of the same values. Their buffers may be donated.

    Example:
      >>> place(jnp.ones(2), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
      Array([1., 1.], dtype=float32)
    """
    if not is_several():
        return jax.device_put(tree, shardings)
    leaves, structure = jax.tree.flatten(tree)
    wanted = structure.flatten_up_to(shardings)
    return jax.tree.unflatten(structure, [_placed(*pair) for pair in zip(leaves, wanted, strict=True)])


def greatest(number: int) -> int:
    """The greatest of the processes' numbers, each from 0 to 2^31 - 1.

    Example:
      >>> greatest(15)
      15
    """
    return int(multihost_utils.process_allgather(np.int32(number)).max()) if is_several() else number


def any_of(flag: bool) -> bool:
    """Whether any process says so.

    Example:
      >>> any_of(False)
      False
    """
    return greatest(int(flag)) > 0


def from_first(value: T) -> T:
    """The first process's value, in every process; it must be picklable. The values of the others are ignored.

    Example:
      >>> from_first({"iteration": 3})
      {'iteration': 3}
    """
    if not is_several():
        return value
    content = pickle.dumps(value) if is_first() else b""
    size = greatest(len(content) // _BLOCK) * _BLOCK + greatest(len(content) % _BLOCK)
    # As bytes: summing floats, as a broadcast does, would lose the sign of zero.
    padded = np.zeros(size, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a block in every process; an error in one is an error in all, so that none waits for one that is gone.

    The block itself must not call what all processes compute together.

    Raises:
      RuntimeError: the block failed in another process only.
    """
    if not is_several():
        yield
        return
    try:
        yield
    except Exception:
        any_of(True)
        raise
    if any_of(False):
        raise RuntimeError(
            f"Another of the {jax.process_count()} processes failed; its own message says why. Process "
            f"{jax.process_index()} stops too: start all of them again, with resume, once the cause is mended."
        )


def _fetched(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if trees.is_key(leaf):
        data = multihost_utils.process_allgather(jax.random.key_data(leaf), tiled=True)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    return multihost_utils.process_allgather(leaf, tiled=True)


def _placed(leaf: Any, sharding: Any) -> Any:
    if sharding is None:
        return leaf
    if sharding.is_fully_addressable:
        # A program on one device of each process, all of which compute the same.
        return jax.device_put(_fetched(leaf), sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        is_there = leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        return leaf if is_there else jax.jit(lambda whole: whole, out_shardings=sharding)(leaf)
    whole = leaf if trees.is_key(leaf) else np.asarray(leaf)
    # A copy, since a donated buffer must not be one that NumPy owns.
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: jnp.array(whole[index], copy=True))
