"""Tables of hyperparameters: each scalar leaf with its default, its bounds and what it needs to have an effect."""

import math
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp

from jaxrl.ops import trees

Record = TypeVar("Record")


class Leaf(NamedTuple):
    """One scalar of a record of hyperparameters.

    Attributes:
      default: its value unless changed.
      least: inclusive lower bound.
      greatest: inclusive upper bound.
      needs: (field of the config, value) without which it has no effect; None: it always has one.
    """

    default: float
    least: float = -math.inf
    greatest: float = math.inf
    needs: tuple[str, Any] | None = None


def build(record: type[Record], leaves: dict[str, Leaf], config: Any, changes: dict[str, Any], **nested: Any) -> Record:
    """Makes a record of hyperparameters from a table.

    Args:
      record: a `flax.struct.dataclass`.
      leaves: its scalar fields.
      config: of the algorithm; see `Leaf.needs`.
      changes: values that replace defaults, checked.
      **nested: the other fields' defaults: records and pytrees.

    Raises:
      ValueError: a name is unknown, a value is out of its bounds, or a leaf is set that has no effect under the config.

    Example:
      >>> from flax import struct
      >>> @struct.dataclass
      ... class Rates:
      ...     fast: jnp.ndarray
      >>> build(Rates, {"fast": Leaf(0.5, 0.0, 1.0)}, None, {}).fast.item()
      0.5
    """
    for name in changes:
        if name in leaves and (need := leaves[name].needs) and getattr(config, need[0]) != need[1]:
            raise ValueError(
                f"{name} = {changes[name]} has no effect while config.{need[0]} = {getattr(config, need[0])!r}; "
                f"set {type(config).__name__}({need[0]}={need[1]!r})."
            )
    defaults = record(**nested, **{name: jnp.float32(leaf.default) for name, leaf in leaves.items()})
    ranges = {name: (leaf.least, leaf.greatest) for name, leaf in leaves.items()}
    return trees.with_changes(defaults, changes, ranges)
