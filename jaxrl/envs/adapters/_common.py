"""What several adapters share: silence at import, fixed types, a time limit where the suite's state has none."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, PyTree

from jaxrl import spaces
from jaxrl.ops import trees


@struct.dataclass
class CountedState:
    """A suite's state with the number of steps that the episode has taken.

    Attributes:
      inner: the suite's own state.
      num_steps: steps since `reset`, int32.
    """

    inner: Any
    num_steps: Int[Array, ""]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows what a third-party package prints or warns of while it is imported or constructed."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Gives every leaf the dtype of its counterpart, strongly typed.

    Suites often start an episode with other dtypes than they go on with; what `reset` gives counts.

    Args:
      tree: what a step returned.
      like: arrays or `ShapeDtypeStruct`s of the same structure.

    Returns:
      A tree with the structure of `like`.

    Raises:
      ValueError: the structures differ.
    """

    def cast(leaf: Any, model: Any) -> Any:
        return leaf if trees.is_key(leaf) else jax.lax.convert_element_type(leaf, model.dtype)

    leaves = jax.tree.leaves(tree)
    structure = jax.tree.structure(like)
    if len(leaves) != structure.num_leaves:
        raise ValueError(f"cast_like: {len(leaves)} leaves do not fit the structure {structure}.")
    return structure.unflatten(map(cast, leaves, structure.flatten_up_to(like)))


def unbounded(like: PyTree) -> spaces.Space:
    """The space of observations without declared bounds; a dict gives a `Dict`, integers their dtype's range.

    Args:
      like: an observation, or its `ShapeDtypeStruct`s: one array or a (nested) dict of arrays.
    """
    if isinstance(like, dict):
        return spaces.Dict(tuple((name, unbounded(leaf)) for name, leaf in like.items()))
    if like.dtype == jnp.bool_:
        return spaces.box(0, 1, like.shape, like.dtype)
    if jnp.issubdtype(like.dtype, jnp.integer):
        limits = jnp.iinfo(like.dtype)
        return spaces.box(limits.min, limits.max, like.shape, like.dtype)
    return spaces.box(-jnp.inf, jnp.inf, like.shape, like.dtype)
