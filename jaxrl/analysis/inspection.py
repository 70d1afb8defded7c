"""Looking inside of what has been learned: where a function of the observation comes from, and how members differ."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrl.types import Observation


class Components(NamedTuple):
    """Principal components of P rows.

    Attributes:
      scores: coordinates of the rows, [P, k].
      axes: the directions, orthonormal rows, [k, D].
      share: of the variance that lies along each, [k]; zeros if there is none.
    """

    scores: np.ndarray
    axes: np.ndarray
    share: np.ndarray


def principal_components(rows: np.ndarray | Array, num: int = 2) -> Components:
    """The directions in which rows differ most, by the singular value decomposition of the centered rows.

        X - mean = U S Vᵀ,   scores = U S,   share_i = S_i² / Σ_j S_j²

    Members of a population are better described by what they do (the policy's output on the same observations) than by
    their weights: units of a network may be permuted without changing it.

    Args:
      rows: [P, ...]; what follows the first axis is flattened to D.
      num: k.

    Returns:
      The components; each axis points to where its entry of greatest magnitude is positive.

    Raises:
      ValueError: `num` is not between 1 and min(P, D).

    Example:
      >>> line = principal_components(np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), 1)
      >>> line.scores[:, 0].round(3).tolist(), float(line.share[0].round(3))
      ([-2.236, 0.0, 2.236], 1.0)
    """
    flat = np.asarray(rows, np.float64)
    flat = flat.reshape(len(flat), -1)
    if not 1 <= num <= min(flat.shape):
        raise ValueError(
            f"principal_components: num must be between 1 and min(P, D) = {min(flat.shape)}; got num = {num}."
        )
    left, size, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    sign = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    total = np.square(size).sum()
    share = np.square(size) / total if total else np.zeros_like(size)
    return Components((left * size * sign)[:, :num], (axes * sign[:, None])[:num], share[:num])


def saliency(function: Callable[[Observation], Float[Array, ""]]) -> Callable[[Observation], Observation]:
    """How much a number that is computed from an observation reacts to each of its entries: |∂f/∂obs|.

    (Simonyan et al. 2013, arXiv:1312.6034, section 3.) It is local: a saturated unit hides what made it so.

    Args:
      function: `(obs) -> scalar` of one observation, a value or the log-probability of an action for instance.

    Returns:
      `(obs) -> |gradient|` of the observation's shape; it may be vmapped and jitted.

    Example:
      >>> saliency(lambda obs: 3.0 * obs[0] - obs[1])(jnp.array([1.0, 2.0])).tolist()
      [3.0, 1.0]
    """
    return lambda obs: jax.tree.map(jnp.abs, jax.grad(function)(obs))
