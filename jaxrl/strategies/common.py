"""What all strategies share: the state, trees as vectors, and what is measured of a generation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxrl.ops import trees
from jaxrl.strategies import shaping
from jaxrl.types import Hyperparams, Key, Metrics, Strategy

# Of norms and deviations that divide.
TINY = 1e-12


@struct.dataclass
class State:
    """State of a strategy.

    Attributes:
      key: the candidates of a generation follow from it and the generation's number.
      mean: center of the search, a tree.
      own: what the strategy adapts besides it.
      num_generations: told so far.
    """

    key: Key
    mean: PyTree
    own: PyTree
    num_generations: Int[Array, ""]


def build(
    name: str,
    population_size: int,
    pairs: bool,
    hyperparams: Callable[..., Hyperparams],
    start: Callable[[Float[Array, " n"], Hyperparams], PyTree],
    perturb: Callable[[Key, State, Hyperparams], Float[Array, "P n"]],
    update: Callable[[State, Float[Array, "P n"], Float[Array, " P"], Hyperparams], tuple[Any, ...]],
) -> Strategy:
    """Makes a strategy of functions of vectors.

    Args:
      name: of the strategy.
      population_size: P, at least 2, and even with `pairs`.
      pairs: whether candidates i and i + P/2 are antithetic.
      hyperparams: makes the record.
      start: `(mean, hparams) -> own`.
      perturb: what is added to the mean.
      update: `(state, perturbations, fitness, hparams) -> (own, step of the mean, weights, sigma)`; the weights are
        those that the candidates have in the step, sigma is the standard deviation of a coordinate, on average.

    Raises:
      ValueError: P is too small, or odd with pairs.
    """
    if population_size < 2 or (pairs and population_size % 2):
        rule = "an even number of at least 2, since its candidates are antithetic pairs" if pairs else "at least 2"
        raise ValueError(f"{name}: population_size must be {rule}; got population_size = {population_size}.")

    def init(key: Key, mean: PyTree, hparams: Hyperparams) -> State:
        mean = jax.tree.map(jnp.copy, trees.as_arrays(mean))
        return State(key, mean, start(ravel_pytree(mean)[0], hparams), jnp.int32(0))

    def ask(state: State, hparams: Hyperparams) -> PyTree:
        center, unravel = ravel_pytree(state.mean)
        with jax.default_matmul_precision("float32"):
            moved = perturb(jax.random.fold_in(state.key, state.num_generations), state, hparams)
        return jax.vmap(unravel)(center[None] + moved)

    def tell(
        state: State, candidates: PyTree, fitness: Float[Array, " P"], hparams: Hyperparams
    ) -> tuple[State, Metrics]:
        center, unravel = ravel_pytree(state.mean)
        moved = jax.vmap(lambda tree: ravel_pytree(tree)[0])(candidates) - center[None]
        with jax.default_matmul_precision("float32"):
            own, step, weights, sigma = update(state, moved, fitness, hparams)
        metrics = {
            **fitness_metrics(fitness, pairs),
            **quality(weights, moved, pairs),
            "strategy/sigma": sigma,
            "strategy/step": jnp.linalg.norm(step),
        }
        return State(state.key, unravel(center + step), own, state.num_generations + 1), metrics

    return Strategy(init, ask, tell, lambda state: state.mean, hyperparams, population_size, pairs, name)


def normal(key: Key, population_size: int, num: int, pairs: bool) -> Float[Array, "P n"]:
    """Standard normal numbers; with pairs, the second half is the first one's negative."""
    if not pairs:
        return jax.random.normal(key, (population_size, num))
    half = jax.random.normal(key, (population_size // 2, num))
    return jnp.concatenate([half, -half])


def fitness_metrics(fitness: Float[Array, " P"], pairs: bool) -> Metrics:
    """Mean, deviation and best of what is finite, how many are not, and the share of ties."""
    sound = jnp.isfinite(fitness)
    count = jnp.sum(sound)
    mean = jnp.sum(jnp.where(sound, fitness, 0.0)) / count
    square = jnp.sum(jnp.where(sound, jnp.square(fitness - mean), 0.0)) / count
    return {
        "fitness/mean": mean,
        "fitness/std": jnp.sqrt(square),
        "fitness/best": jnp.max(shaping.lowered(fitness)),
        "fitness/num_not_finite": (len(fitness) - count).astype(jnp.float32),
        "fitness/tie_rate": jnp.mean(shaping.is_tied(fitness, pairs).astype(jnp.float32)),
    }


def quality(weights: Float[Array, " P"], moved: Float[Array, "P n"], pairs: bool) -> Metrics:
    """How much of a generation's estimate is signal.

    The estimate is the mean over m terms w_i z_i, one a candidate, or one a pair. Of a single term nothing is known:
    both are NaN.

    - `strategy/snr`: its squared norm by the trace of its covariance, as the terms give it. It is about 1 where there
      is nothing but noise.
    - `strategy/half_cosine`: between the estimates of every other term and of the rest; 0 on average if all is noise.

    Args:
      weights: of the candidates.
      moved: their perturbations.
      pairs: whether i and i + P/2 are antithetic.
    """
    terms = weights[:, None] * moved
    if pairs:
        plus, minus = jnp.split(terms, 2)
        terms = plus + minus
    num = len(terms)
    if num < 2:
        return dict.fromkeys(("strategy/snr", "strategy/half_cosine"), jnp.float32(jnp.nan))
    mean = jnp.mean(terms, axis=0)
    variance = jnp.sum(jnp.square(terms - mean[None])) / ((num - 1) * num)
    one, other = jnp.sum(terms[::2], axis=0), jnp.sum(terms[1::2], axis=0)
    norms = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return {
        "strategy/snr": jnp.sum(jnp.square(mean)) / jnp.maximum(variance, TINY**2),
        "strategy/half_cosine": jnp.sum(one * other) / jnp.maximum(norms, TINY**2),
    }
