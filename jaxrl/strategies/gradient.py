"""Strategies that estimate the gradient of the expected fitness and follow it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxrl.ops.leaves import Leaf, build
from jaxrl.strategies import common
from jaxrl.strategies.common import TINY, State
from jaxrl.strategies.shaping import Shaping, centered_rank
from jaxrl.types import Hyperparams, Key, Strategy, memoize


@struct.dataclass
class OpenES:
    """Hyperparameters of `open_es`.

    Attributes:
      sigma: standard deviation of the perturbations.
      sigma_decay: factor on it a generation.
      learning_rate: of Adam.
      learning_rate_decay: factor on it a generation.
      beta1: Adam's, of the mean of gradients.
      beta2: Adam's, of their squares.
    """

    sigma: Float[Array, ""]
    sigma_decay: Float[Array, ""]
    learning_rate: Float[Array, ""]
    learning_rate_decay: Float[Array, ""]
    beta1: Float[Array, ""]
    beta2: Float[Array, ""]


_OPEN_ES = {
    "sigma": Leaf(0.03, 1e-12),
    "sigma_decay": Leaf(1.0, 0.0, 1.0),
    "learning_rate": Leaf(0.03, 0.0),
    "learning_rate_decay": Leaf(1.0, 0.0, 1.0),
    "beta1": Leaf(0.9, 0.0, 1.0),
    "beta2": Leaf(0.999, 0.0, 1.0),
}


@memoize
def open_es(population_size: int, shaping: Shaping = centered_rank, rank: int | None = None) -> Strategy:
    """OpenAI's evolution strategy (Salimans et al. 2017, arXiv:1703.03864, algorithm 2), antithetic, with Adam.

        x_i = μ + σ z_i,   z_{i+P/2} = -z_i
        g   = Σ_i w_i z_i / (P σ),   μ ← μ + Adam(g)

    With `rank` the perturbation of every matrix is z = A Bᵀ / √r (EGGROLL, Sarkar et al. 2025, arXiv:2511.16652), whose
    entries have variance 1 too; A and B have r columns of standard normal numbers. Vectors and arrays of other ranks
    are perturbed as without it. The candidates are made in full either way.

    Args:
      population_size: P, even.
      shaping: makes the weights w of the fitness.
      rank: r, of the perturbations of matrices; None: full.

    Returns:
      The strategy; its hyperparameters are an `OpenES`.

    Raises:
      ValueError: P is odd, or `rank` is not positive.

    Example:
      >>> strategy = open_es(8)
      >>> hparams = strategy.hyperparams(sigma=0.1)
      >>> state = strategy.init(jax.random.key(0), {"w": jnp.zeros(3)}, hparams)
      >>> strategy.ask(state, hparams)["w"].shape
      (8, 3)
    """
    if rank is not None and rank < 1:
        raise ValueError(f"open_es: rank must be at least 1, or None for full perturbations; got rank = {rank}.")

    def hyperparams(**changes: Any) -> OpenES:
        return build(OpenES, _OPEN_ES, None, changes)

    def adam(hparams: OpenES) -> optax.GradientTransformation:
        return optax.scale_by_adam(hparams.beta1, hparams.beta2)  # type: ignore[arg-type]

    def sigma_of(state: State, hparams: OpenES) -> Float[Array, ""]:
        return hparams.sigma * hparams.sigma_decay ** state.num_generations.astype(jnp.float32)

    def start(mean: Float[Array, " n"], hparams: OpenES) -> PyTree:
        return adam(hparams).init(mean)

    def perturb(key: Key, state: State, hparams: OpenES) -> Float[Array, "P n"]:
        if rank is None:
            num = ravel_pytree(state.mean)[0].size
            return sigma_of(state, hparams) * common.normal(key, population_size, num, pairs=True)
        draw = lambda key: ravel_pytree(_low_rank(key, state.mean, rank or 1))[0]
        half = jax.vmap(draw)(jax.random.split(key, population_size // 2))
        return sigma_of(state, hparams) * jnp.concatenate([half, -half])

    def update(
        state: State, moved: Float[Array, "P n"], fitness: Float[Array, " P"], hparams: OpenES
    ) -> tuple[Any, ...]:
        weights, sigma = shaping(fitness), sigma_of(state, hparams)
        gradient = weights @ moved / (population_size * sigma**2)
        direction, opt_state = adam(hparams).update(gradient, state.own)
        decayed = hparams.learning_rate * hparams.learning_rate_decay ** state.num_generations.astype(jnp.float32)
        return opt_state, decayed * direction, weights, sigma  # type: ignore[operator]

    return common.build("open_es", population_size, True, hyperparams, start, perturb, update)


def _low_rank(key: Key, tree: PyTree, rank: int) -> PyTree:
    """Perturbations like the leaves: of rank r where they are matrices."""
    leaves, structure = jax.tree.flatten(tree)

    def draw(key: Key, leaf: Array) -> Array:
        if leaf.ndim != 2:
            return jax.random.normal(key, leaf.shape)
        key_left, key_right = jax.random.split(key)
        left = jax.random.normal(key_left, (leaf.shape[0], rank))
        return left @ jax.random.normal(key_right, (rank, leaf.shape[1])) / jnp.sqrt(float(rank))

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])


@struct.dataclass
class PGPE:
    """Hyperparameters of `pgpe`.

    Attributes:
      sigma: standard deviations at the beginning.
      sigma_rate: of their gradient.
      sigma_change: largest share by which one changes a generation.
      learning_rate: length of the step that a gradient alone would give.
      momentum: of the velocity.
      max_speed: of the velocity, in units of the learning rate.
    """

    sigma: Float[Array, ""]
    sigma_rate: Float[Array, ""]
    sigma_change: Float[Array, ""]
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    max_speed: Float[Array, ""]


_PGPE = {
    "sigma": Leaf(0.1, 1e-12),
    "sigma_rate": Leaf(0.1, 0.0),
    "sigma_change": Leaf(0.2, 0.0, 1.0),
    "learning_rate": Leaf(0.01, 0.0),
    "momentum": Leaf(0.9, 0.0, 1.0),
    "max_speed": Leaf(2.0, 0.0),
}


@struct.dataclass
class Speed:
    """What PGPE adapts.

    Attributes:
      sigma: standard deviation of each coordinate.
      velocity: of the mean, in units of the learning rate.
    """

    sigma: Float[Array, " n"]
    velocity: Float[Array, " n"]


@memoize
def pgpe(population_size: int, shaping: Shaping = centered_rank) -> Strategy:
    """Policy gradients with parameter-based exploration (Sehnke et al. 2010), symmetric, with ClipUp.

        d    = σ ⊙ z,   x± = μ ± d
        g_μ  = (1/P) Σ (w⁺ - w⁻) d,   g_σ = (1/P) Σ (w⁺ + w⁻ - 2 mean(w)) (d² - σ²) / σ
        v    ← clip(m v + g_μ / |g_μ|, max_speed),   μ ← μ + learning_rate v
        σ    ← σ + sigma_rate g_σ, by at most the share sigma_change

    ClipUp is Toklu et al. 2020, arXiv:2008.02387, algorithm 1.

    Args:
      population_size: P, even.
      shaping: makes the weights w of the fitness.

    Returns:
      The strategy; its hyperparameters are a `PGPE`.

    Raises:
      ValueError: P is odd.

    Example:
      >>> pgpe(6).hyperparams(sigma=0.5).sigma.item()
      0.5
    """

    def hyperparams(**changes: Any) -> PGPE:
        return build(PGPE, _PGPE, None, changes)

    def start(mean: Float[Array, " n"], hparams: Hyperparams) -> Speed:
        return Speed(jnp.broadcast_to(hparams.sigma, mean.shape), jnp.zeros_like(mean))

    def perturb(key: Key, state: State, hparams: Hyperparams) -> Float[Array, "P n"]:
        del hparams
        return state.own.sigma[None] * common.normal(key, population_size, state.own.sigma.size, pairs=True)

    def update(state: State, moved: Float[Array, "P n"], fitness: Float[Array, " P"], hparams: PGPE) -> tuple[Any, ...]:
        weights, sigma = shaping(fitness), state.own.sigma
        gradient = weights @ moved
        velocity = hparams.momentum * state.own.velocity + gradient / jnp.maximum(jnp.linalg.norm(gradient), TINY)
        velocity = velocity * jnp.minimum(1.0, hparams.max_speed / jnp.maximum(jnp.linalg.norm(velocity), TINY))
        # Both of a pair have the same d², so the sum over all candidates is that over pairs.
        spread = (jnp.square(moved) - jnp.square(sigma)[None]) / sigma[None]
        change = hparams.sigma_rate * (weights - jnp.mean(weights)) @ spread / population_size
        limit = hparams.sigma_change * sigma
        changed = sigma + jnp.clip(change, -limit, limit)
        return Speed(changed, velocity), hparams.learning_rate * velocity, weights, jnp.mean(sigma)

    return common.build("pgpe", population_size, True, hyperparams, start, perturb, update)
