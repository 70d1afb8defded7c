"""Set functions over the cells of a grid: monotone and submodular, so that a cell adds the less the more is known.

    F(c | S) = F(S ∪ {c}) - F(S) ≥ F(c | T) ≥ 0   for S ⊆ T

Each is kept up to date cell by cell in a summary of the set, which says what one more cell adds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

Size = tuple[int, int]


class SetFunction(NamedTuple):
    """F with F(∅) = 0; cells are counted row by row.

    Attributes:
      params: its default parameters, NumPy arrays.
      empty: `(params) -> summary` of the empty set.
      gain: `(summary, cell, params) -> F(cell | set)` of a cell that is not in the set.
      add: `(summary, cell, params) -> summary` of the set with one more cell, which was not in it.
    """

    params: Any
    empty: Callable[[Any], PyTree]
    gain: Callable[[PyTree, Int[Array, ""], Any], Float[Array, ""]]
    add: Callable[[PyTree, Int[Array, ""], Any], PyTree]


@struct.dataclass
class Weights:
    """Parameters of `discs`.

    Attributes:
      weight: what covering each cell is worth.
    """

    weight: Float[Array, " cells"]


@struct.dataclass
class Items:
    """Parameters of `items`.

    Attributes:
      kind: the kind of item that lies in each cell, -1 where there is none.
      needed: how many items of each kind count.
    """

    kind: Int[Array, " cells"]
    needed: Int[Array, " kinds"]


@struct.dataclass
class Field:
    """Parameters of `information`.

    Attributes:
      covariance: of the unknown field, between all cells, before the episode.
      noise: variance of the error of a measurement.
    """

    covariance: Float[Array, "cells cells"]
    noise: Float[Array, ""]


def leaf(value: Any, dtype: Any) -> Any:
    """A parameter's default."""
    # NumPy, since a factory may run while something is being traced.
    return np.asarray(value, dtype)


def discs(size: Size, radius: int, weight: np.ndarray) -> SetFunction:
    """The weight of all cells within some steps of a cell of the set.

        F(S) = Σ_{v ∈ ∪_{c ∈ S} D(c)} weight(v),   D(c) = {v: |v - c|₁ ≤ radius}

    Args:
      size: rows and columns.
      radius: of a disc, in steps.
      weight: default of the leaf, [cells].
    """
    where = positions(size)
    disc = np.abs(where[:, None] - where).sum(-1) <= radius

    def gain(covered: Bool[Array, " cells"], cell: Array, params: Weights) -> Array:
        return jnp.sum(jnp.where(jnp.asarray(disc)[cell] & ~covered, params.weight, 0.0))

    return SetFunction(
        Weights(leaf(weight, np.float32)),
        lambda params: jnp.zeros(len(where), bool),
        gain,
        lambda covered, cell, params: covered | jnp.asarray(disc)[cell],
    )


def items(size: Size, kinds: tuple[tuple[int, int], ...], seed: int) -> SetFunction:
    """The number of items collected, of each kind only as many as are needed.

        F(S) = Σ_k min(|S ∩ G_k|, needed_k),   G_k: the cells with an item of kind k

    Args:
      size: rows and columns.
      kinds: of each kind, how many items there are and how many are needed.
      seed: of the cells in which they lie.
    """
    copies = [count for count, _ in kinds]
    kind = np.full(size[0] * size[1], -1, np.int32)
    cells = np.random.default_rng(seed).permutation(kind.size)[: sum(copies)]
    kind[cells] = np.repeat(np.arange(len(kinds)), copies)

    def gain(collected: Int[Array, " kinds"], cell: Array, params: Items) -> Array:
        k = params.kind[cell]
        return ((k >= 0) & (collected[k] < params.needed[k])).astype(jnp.float32)

    def add(collected: Int[Array, " kinds"], cell: Array, params: Items) -> Array:
        return collected + (jnp.arange(len(kinds)) == params.kind[cell])

    return SetFunction(
        Items(leaf(kind, np.int32), leaf([needed for _, needed in kinds], np.int32)),
        lambda params: jnp.zeros(len(kinds), jnp.int32),
        gain,
        add,
    )


def information(size: Size, lengthscale: float, noise: float, num_known: int, seed: int) -> SetFunction:
    """What one noisy measurement in each cell of the set tells about a Gaussian field, in nats.

        F(S) = I(y_S; f) = ½ log det(I + K_SS / σ²)

    K is the covariance of a field with a Matérn kernel (ν = 5/2, variance 1) after some cells have been measured.

    Args:
      size: rows and columns.
      lengthscale: of the kernel, in cells.
      noise: default of the leaf σ².
      num_known: cells measured before.
      seed: of these cells.
    """
    covariance = _matern(size, lengthscale)
    known = np.random.default_rng(seed).choice(len(covariance), num_known, replace=False)
    seen = covariance[known]
    covariance = covariance - seen.T @ np.linalg.solve(seen[:, known] + noise * np.eye(num_known), seen)

    def gain(covariance: Float[Array, "cells cells"], cell: Array, params: Field) -> Array:
        # Rounding may take a variance that is almost 0 below it.
        return 0.5 * jnp.log1p(jnp.maximum(covariance[cell, cell], 0.0) / params.noise)

    def add(covariance: Float[Array, "cells cells"], cell: Array, params: Field) -> Array:
        row = covariance[cell]
        return covariance - jnp.outer(row, row) / (row[cell] + params.noise)

    return SetFunction(
        Field(leaf(covariance, np.float32), leaf(noise, np.float32)), lambda params: params.covariance, gain, add
    )


def density(size: Size, lengthscale: float, seed: int) -> np.ndarray:
    """A draw of a Gaussian field with a Matérn kernel, less its minimum and by its mean: from 0, 1 on average.

    Args:
      size: rows and columns.
      lengthscale: of the kernel, in cells.
      seed: of the draw.

    Returns:
      Shape [cells].
    """
    covariance = _matern(size, lengthscale) + 1e-6 * np.eye(size[0] * size[1])
    field = np.linalg.cholesky(covariance) @ np.random.default_rng(seed).standard_normal(len(covariance))
    return (field - field.min()) / (field - field.min()).mean()


def positions(size: Size) -> np.ndarray:
    """Row and column of each cell, [cells, 2]."""
    return np.stack(np.divmod(np.arange(size[0] * size[1]), size[1]), axis=-1)


def _matern(size: Size, lengthscale: float) -> np.ndarray:
    """Covariance between all cells, [cells, cells]: (1 + z + z²/3) exp(-z) with z = √5 distance / lengthscale."""
    where = positions(size)
    scaled = np.sqrt(5.0) * np.linalg.norm(where[:, None] - where, axis=-1) / lengthscale
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
