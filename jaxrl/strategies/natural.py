"""Natural evolution strategies (Wierstra et al. 2014, Journal of Machine Learning Research 15): SNES and xNES."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxrl.ops.leaves import Leaf, build
from jaxrl.strategies import common
from jaxrl.strategies.common import State
from jaxrl.strategies.covariance import eigh, solve
from jaxrl.strategies.shaping import by_rank
from jaxrl.types import Hyperparams, Key, Strategy, memoize


@struct.dataclass
class SNES:
    """Hyperparameters of `snes`.

    Attributes:
      sigma: standard deviations at the beginning.
      learning_rate: of the mean.
      sigma_rate: of the standard deviations, in units of the paper's default.
    """

    sigma: Float[Array, ""]
    learning_rate: Float[Array, ""]
    sigma_rate: Float[Array, ""]


@struct.dataclass
class XNES:
    """Hyperparameters of `xnes`.

    Attributes:
      sigma: the scale at the beginning.
      learning_rate: of the mean.
      sigma_rate: of the scale, in units of the paper's default.
      shape_rate: of the shape, in units of the paper's default.
    """

    sigma: Float[Array, ""]
    learning_rate: Float[Array, ""]
    sigma_rate: Float[Array, ""]
    shape_rate: Float[Array, ""]


_SNES = {"sigma": Leaf(0.1, 1e-12), "learning_rate": Leaf(1.0, 0.0), "sigma_rate": Leaf(1.0, 0.0)}
_XNES = {**_SNES, "shape_rate": Leaf(1.0, 0.0)}


@struct.dataclass
class Scale:
    """What xNES adapts: candidates are μ + σ B z.

    Attributes:
      sigma: σ.
      shape: B, of determinant 1.
    """

    sigma: Float[Array, ""]
    shape: Float[Array, "n n"]


def utilities(population_size: int) -> np.ndarray:
    """Weights of the candidates, best first; they sum to zero (table 1 of the paper).

    Example:
      >>> [round(u, 2) for u in utilities(4).tolist()]
      [0.48, 0.02, -0.25, -0.25]
    """
    rank = np.arange(1, population_size + 1)
    weight = np.maximum(0.0, np.log(population_size / 2 + 1) - np.log(rank))
    return (weight / weight.sum() - 1 / population_size).astype(np.float32)


@memoize
def snes(population_size: int) -> Strategy:
    """Separable natural evolution strategy (Wierstra et al. 2014, algorithm 6).

        x_i = μ + σ ⊙ z_i,   μ ← μ + η_μ σ ⊙ Σ u_i z_i,   σ ← σ ⊙ exp( η_σ/2 Σ u_i (z_i² - 1) )

    with utilities u by rank and η_σ = (3 + ln n) / (5 √n), times `sigma_rate`.

    Args:
      population_size: P; 4 + 3 ln n is the paper's choice.

    Returns:
      The strategy; its hyperparameters are a `SNES`.

    Raises:
      ValueError: P is less than 2.

    Example:
      >>> snes(8).hyperparams().learning_rate.item()
      1.0
    """

    def hyperparams(**changes: Any) -> SNES:
        return build(SNES, _SNES, None, changes)

    def start(mean: Float[Array, " n"], hparams: Hyperparams) -> Float[Array, " n"]:
        return jnp.broadcast_to(hparams.sigma, mean.shape)

    def perturb(key: Key, state: State, hparams: Hyperparams) -> Float[Array, "P n"]:
        del hparams
        return state.own[None] * common.normal(key, population_size, state.own.size, pairs=False)

    def update(state: State, moved: Float[Array, "P n"], fitness: Float[Array, " P"], hparams: SNES) -> tuple[Any, ...]:
        sigma, weights = state.own, by_rank(fitness, jnp.asarray(utilities(population_size)))
        rate = hparams.sigma_rate * (3 + np.log(sigma.size)) / (5 * np.sqrt(sigma.size))
        gain = weights @ (jnp.square(moved / sigma[None]) - 1.0)
        return sigma * jnp.exp(0.5 * rate * gain), hparams.learning_rate * (weights @ moved), weights, jnp.mean(sigma)

    return common.build("snes", population_size, False, hyperparams, start, perturb, update)


@memoize
def xnes(population_size: int) -> Strategy:
    """Exponential natural evolution strategy (Glasmachers et al. 2010; Wierstra et al. 2014, algorithm 5).

        x_i = μ + σ B z_i,   G = Σ u_i (z_i z_iᵀ - I),   g_σ = tr G / n
        μ ← μ + η_μ σ B Σ u_i z_i,   σ ← σ exp(η_σ/2 g_σ),   B ← B exp( η_B/2 (G - g_σ I) )

    exp is that of matrices, η_σ = η_B = (9 + 3 ln n) / (5 n √n), times `sigma_rate` and `shape_rate`. It takes O(n³) a
    generation.

    Args:
      population_size: P; 4 + 3 ln n is the paper's choice.

    Returns:
      The strategy; its hyperparameters are an `XNES`.

    Raises:
      ValueError: P is less than 2.

    Example:
      >>> xnes(8).name
      'xnes'
    """

    def hyperparams(**changes: Any) -> XNES:
        return build(XNES, _XNES, None, changes)

    def start(mean: Float[Array, " n"], hparams: Hyperparams) -> Scale:
        return Scale(jnp.copy(hparams.sigma), jnp.eye(mean.size))

    def perturb(key: Key, state: State, hparams: Hyperparams) -> Float[Array, "P n"]:
        del hparams
        scale = state.own
        return scale.sigma * common.normal(key, population_size, len(scale.shape), pairs=False) @ scale.shape.T

    def update(state: State, moved: Float[Array, "P n"], fitness: Float[Array, " P"], hparams: XNES) -> tuple[Any, ...]:
        scale, num = state.own, len(state.own.shape)
        weights = by_rank(fitness, jnp.asarray(utilities(population_size)))
        z = solve(scale.shape, moved.T / scale.sigma).T
        gradient = (z * weights[:, None]).T @ z - jnp.sum(weights) * jnp.eye(num)
        gain = jnp.trace(gradient) / num
        rate = (9 + 3 * np.log(num)) / (5 * num * np.sqrt(num))
        values, vectors = eigh(gradient - gain * jnp.eye(num))
        shape = scale.shape @ (vectors * jnp.exp(0.5 * rate * hparams.shape_rate * values)[None]) @ vectors.T
        sigma = scale.sigma * jnp.exp(0.5 * rate * hparams.sigma_rate * gain)
        spread = scale.sigma * jnp.linalg.norm(scale.shape) / jnp.sqrt(float(num))
        return Scale(sigma, shape), hparams.learning_rate * (weights @ moved), weights, spread

    return common.build("xnes", population_size, False, hyperparams, start, perturb, update)
