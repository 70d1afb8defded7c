"""Covariance matrix adaptation (Hansen 2016, arXiv:1604.00772), with a full and with a diagonal matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxrl.ops.leaves import Leaf, build
from jaxrl.strategies import common
from jaxrl.strategies.common import TINY, State
from jaxrl.strategies.shaping import by_rank
from jaxrl.types import Hyperparams, Key, Strategy, memoize


@struct.dataclass
class CMA:
    """Hyperparameters of `cma_es` and `sep_cma_es`.

    Attributes:
      sigma: standard deviation at the beginning.
      covariance_rate: factor on the learning rates of the covariance matrix.
    """

    sigma: Float[Array, ""]
    covariance_rate: Float[Array, ""]


_CMA = {"sigma": Leaf(0.1, 1e-12), "covariance_rate": Leaf(1.0, 0.0)}

# Eigenvalues of the covariance below this share of the greatest are rounding errors in float32.
_LEAST_EIGENVALUE = 1e-10
_SIGMA_RANGE = (1e-20, 1e8)


@struct.dataclass
class Shape:
    """What CMA-ES adapts: candidates are μ + σ B D z. With a diagonal matrix the n × n arrays are [n], and B is ().

    Attributes:
      sigma: σ.
      covariance: C.
      basis: B, eigenvectors of C in columns.
      scale: D, roots of its eigenvalues.
      path_sigma: path of the steps in units in which they are standard normal.
      path: path of the steps in units of σ.
    """

    sigma: Float[Array, ""]
    covariance: Array
    basis: Any
    scale: Float[Array, " n"]
    path_sigma: Float[Array, " n"]
    path: Float[Array, " n"]


class Rates(NamedTuple):
    """Constants of the method (the tutorial's table 1); `weights` best first."""

    weights: Array
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_path: float
    c_1: Array
    c_mu: Array
    chi: float


@jax.custom_batching.sequential_vmap
def eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues and eigenvectors of a symmetric matrix; under vmap one matrix after the other.

    jaxlib 0.10.2 can sleep forever in batched calls of LAPACK on a machine with two cores.
    """
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    return values, vectors


@jax.custom_batching.sequential_vmap
def solve(matrix: Float[Array, "n n"], columns: Float[Array, "n P"]) -> Float[Array, "n P"]:
    """Solutions of a linear system; under vmap one after the other, as for `eigh`."""
    return jnp.linalg.solve(matrix, columns)


def rates(population_size: int, num: int, covariance_rate: Float[Array, ""], diagonal: bool) -> Rates:
    """Default constants for P candidates of n numbers.

    With a diagonal matrix c_1 and c_μ are (n+2)/3 times greater, at most such that they sum to 1, and no weight is
    negative (Ros and Hansen 2008, section 3).
    """
    raw = np.log((population_size + 1) / 2) - np.log(np.arange(1, population_size + 1))
    num_best = max(1, population_size // 2)
    effective = lambda w: w.sum() ** 2 / max((w**2).sum(), TINY)
    mu_eff, mu_eff_minus = effective(raw[:num_best]), effective(raw[num_best:])
    faster = covariance_rate * ((num + 2) / 3 if diagonal else 1.0)
    c_1 = jnp.minimum(1.0, faster * 2 / ((num + 1.3) ** 2 + mu_eff))
    c_mu = jnp.minimum(1.0 - c_1, faster * 2 * (mu_eff + 1 / mu_eff - 2) / ((num + 2) ** 2 + mu_eff))
    safe = jnp.maximum(c_mu, TINY)
    alpha = jnp.minimum(1.0 + c_1 / safe, 1.0 + 2.0 * mu_eff_minus / (mu_eff + 2.0))
    alpha = jnp.minimum(alpha, (1.0 - c_1 - c_mu) / (num * safe))
    positive, negative = raw[raw >= 0].sum(), max(-raw[raw < 0].sum(), TINY)
    below = jnp.zeros(population_size) if diagonal else alpha * jnp.asarray(raw / negative)
    weights = jnp.where(jnp.asarray(raw >= 0), jnp.asarray(raw / positive), below).astype(jnp.float32)
    c_sigma = (mu_eff + 2) / (num + mu_eff + 5)
    return Rates(
        weights=weights,
        mu_eff=float(mu_eff),
        c_sigma=float(c_sigma),
        d_sigma=float(1 + 2 * max(0.0, np.sqrt((mu_eff - 1) / (num + 1)) - 1) + c_sigma),
        c_path=float((4 + mu_eff / num) / (num + 4 + 2 * mu_eff / num)),
        c_1=c_1,
        c_mu=c_mu,
        chi=float(np.sqrt(num) * (1 - 1 / (4 * num) + 1 / (21 * num**2))),
    )


@memoize
def cma_es(population_size: int) -> Strategy:
    """CMA-ES with the tutorial's defaults, negative weights included (Hansen 2016, arXiv:1604.00772, figure 6).

    It takes O(n³) a generation and n² numbers of memory; for more than a few hundred parameters take `sep_cma_es`.

    Args:
      population_size: P; 4 + 3 ln n is the tutorial's choice.

    Returns:
      The strategy; its hyperparameters are a `CMA`.

    Raises:
      ValueError: P is less than 2.

    Example:
      >>> cma_es(8).hyperparams().covariance_rate.item()
      1.0
    """
    return _cma("cma_es", population_size, diagonal=False)


@memoize
def sep_cma_es(population_size: int) -> Strategy:
    """CMA-ES with a diagonal matrix, in O(n), which learns (n+2)/3 times faster (Ros and Hansen 2008).

    All weights are positive, as in the paper.

    Args:
      population_size: P; 4 + 3 ln n is the tutorial's choice.

    Returns:
      The strategy; its hyperparameters are a `CMA`.

    Raises:
      ValueError: P is less than 2.

    Example:
      >>> sep_cma_es(8).pairs
      False
    """
    return _cma("sep_cma_es", population_size, diagonal=True)


def _cma(name: str, population_size: int, diagonal: bool) -> Strategy:
    def hyperparams(**changes: Any) -> CMA:
        return build(CMA, _CMA, None, changes)

    def start(mean: Float[Array, " n"], hparams: Hyperparams) -> Shape:
        num = mean.size
        return Shape(
            sigma=jnp.copy(hparams.sigma),
            covariance=jnp.ones(num) if diagonal else jnp.eye(num),
            basis=() if diagonal else jnp.eye(num),
            scale=jnp.ones(num),
            path_sigma=jnp.zeros(num),
            path=jnp.zeros(num),
        )

    def to_basis(shape: Shape, rows: Float[Array, "P n"]) -> Float[Array, "P n"]:
        return rows if diagonal else rows @ shape.basis

    def from_basis(shape: Shape, rows: Float[Array, "P n"]) -> Float[Array, "P n"]:
        return rows if diagonal else rows @ shape.basis.T

    def perturb(key: Key, state: State, hparams: Hyperparams) -> Float[Array, "P n"]:
        del hparams
        shape = state.own
        z = common.normal(key, population_size, shape.scale.size, pairs=False)
        return shape.sigma * from_basis(shape, z * shape.scale[None])

    def update(state: State, moved: Float[Array, "P n"], fitness: Float[Array, " P"], hparams: CMA) -> tuple[Any, ...]:
        shape, num = state.own, state.own.scale.size
        rate = rates(population_size, num, hparams.covariance_rate, diagonal)
        weights = by_rank(fitness, rate.weights)
        steps = moved / shape.sigma
        # In the eigenbasis and in units of D the steps are standard normal.
        white = to_basis(shape, steps) / shape.scale[None]
        best = jnp.maximum(weights, 0.0)
        step, white_step = best @ steps, from_basis(shape, (best @ white)[None])[0]

        path_sigma = (1 - rate.c_sigma) * shape.path_sigma
        path_sigma = path_sigma + np.sqrt(rate.c_sigma * (2 - rate.c_sigma) * rate.mu_eff) * white_step
        length = jnp.linalg.norm(path_sigma)
        count = state.num_generations.astype(jnp.float32) + 1.0
        warm = jnp.sqrt(1 - (1 - rate.c_sigma) ** (2 * count))
        going = (length / warm < (1.4 + 2 / (num + 1)) * rate.chi).astype(jnp.float32)
        path = (1 - rate.c_path) * shape.path + going * np.sqrt(rate.c_path * (2 - rate.c_path) * rate.mu_eff) * step

        # Weights below zero are scaled such that C stays positive definite (equation 46).
        lengths = jnp.maximum(jnp.sum(jnp.square(white), axis=1), TINY)
        scaled = weights * jnp.where(weights >= 0, 1.0, num / lengths)
        one = jnp.square(path) if diagonal else jnp.outer(path, path)
        many = scaled @ jnp.square(steps) if diagonal else (steps * scaled[:, None]).T @ steps
        stalled = (1 - going) * rate.c_path * (2 - rate.c_path)
        kept = 1 + rate.c_1 * stalled - rate.c_1 - rate.c_mu * jnp.sum(weights)
        covariance = kept * shape.covariance + rate.c_1 * one + rate.c_mu * many

        values, basis = (covariance, ()) if diagonal else eigh(covariance)
        scale = jnp.sqrt(jnp.maximum(values, _LEAST_EIGENVALUE * jnp.max(values)))
        sigma = shape.sigma * jnp.exp(rate.c_sigma / rate.d_sigma * (length / rate.chi - 1))
        sigma = jnp.clip(sigma, *_SIGMA_RANGE)
        spread = shape.sigma * jnp.linalg.norm(shape.scale) / np.sqrt(num)
        return Shape(sigma, covariance, basis, scale, path_sigma, path), shape.sigma * step, weights, spread

    return common.build(name, population_size, False, hyperparams, start, perturb, update)
