"""Operations on whole pytrees."""

import dataclasses
import difflib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

Tree = TypeVar("Tree")


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_arrays(tree: Tree) -> Tree:
    """Turns every leaf into a strongly typed array: Python and NumPy floats to float32, integers to int32.

    Weakly typed leaves would make `jit` compile a second time and change the dtype of what they touch.

    >>> as_arrays({"rate": 0.5})["rate"].weak_type
    False
    """

    def convert(leaf: Any) -> Any:
        if is_key(leaf):
            return leaf
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        return jax.lax.convert_element_type(leaf, jax.dtypes.canonicalize_dtype(dtype))

    return jax.tree.map(convert, tree)


def where(predicate: Bool[Array, "..."], if_true: Tree, if_false: Tree) -> Tree:
    """Selects whole trees by a predicate whose axes lead those of every leaf.

    Args:
      predicate: booleans, shape [...].
      if_true: leaves [..., *rest].
      if_false: leaves [..., *rest].

    Returns:
      A tree of the same structure.
    """

    def select(a: Any, b: Any) -> Any:
        extra = a.ndim - predicate.ndim
        return jnp.where(predicate.reshape(predicate.shape + (1,) * extra), a, b)

    return jax.tree.map(select, if_true, if_false)


def flatten_time(tree: Tree) -> Tree:
    """Merges the two leading axes: leaves [T, B, ...] to [T*B, ...]."""
    return jax.tree.map(lambda x: x.reshape((x.shape[0] * x.shape[1], *x.shape[2:])), tree)


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves, arrays or `ShapeDtypeStruct`s (a random key counts its raw words)."""

    def leaf_bytes(leaf: Any) -> int:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize

    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as people write it: `objective.clip`, `params.Dense_0.kernel`, `layers.0`."""

    def part(entry: Any) -> str:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        return str(entry)

    return ".".join(part(entry) for entry in path)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves by dotted path, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def replace_leaf(tree: Tree, name: str, value: Any) -> Tree:
    """Replaces the leaf at a dotted path.

    Raises:
      KeyError: no leaf has that path.
    """
    if name not in named_leaves(tree):
        raise KeyError(name)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: value if path_name(path) == name else leaf, tree)


def replace_leaves(tree: Tree, values: dict[str, Any]) -> Tree:
    """Replaces several leaves, each at its dotted path.

    Raises:
      KeyError: no leaf has such a path.

    >>> replace_leaves({"a": 1, "b": {"c": 2}}, {"b.c": 3})
    {'a': 1, 'b': {'c': 3}}
    """
    for name, value in values.items():
        tree = replace_leaf(tree, name, value)
    return tree


def with_changes(record: Tree, changes: dict[str, Any], ranges: dict[str, tuple[float, float]]) -> Tree:
    """Replaces fields of a record of hyperparameters, each converted to the dtype that the default has.

    Args:
      record: a `flax.struct.dataclass` of strongly typed arrays and nested records.
      changes: new values by field name: numbers, sequences or arrays (leading axes may be added, for vmapping), or
        whole records for nested fields.
      ranges: inclusive bounds by field name, checked on concrete values.

    Returns:
      The new record, strongly typed.

    Raises:
      ValueError: a name is no field, or a value is outside of its range.
    """
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for name, value in changes.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"No hyperparameter is called {name!r}; there are {sorted(fields)}.{hint}")
        default = fields[name]
        if not dataclasses.is_dataclass(default) and hasattr(default, "dtype"):
            value = jnp.asarray(value, default.dtype)
            low, high = ranges.get(name, (-np.inf, np.inf))
            if not isinstance(value, Tracer) and not bool(jnp.all((value >= low) & (value <= high))):
                raise ValueError(f"{name} must be from {low} to {high}; got {name} = {value}.")
        fields[name] = value
    return as_arrays(type(record)(**fields))
