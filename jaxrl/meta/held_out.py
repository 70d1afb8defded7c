"""How good hyperparameters are, by fresh learners that train with them on keys that never change."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrl.levels.lives import Learner
from jaxrl.ops.members import over_members
from jaxrl.types import Key, Metrics


def held_out(
    learner: Learner, num_learners: int, num_devices: int = 1, chunk: int | None = None
) -> Callable[[Key, PyTree, PyTree], tuple[Any, Metrics, Metrics]]:
    """Trains learners that share everything but their keys.

    Args:
      learner: one life.
      num_learners: H; it need not be divisible by what follows.
      num_devices: as for `population`.
      chunk: learners that run together on a device; None: all.

    Returns:
      `(key, values, hparams) -> (state of the first learner, metrics, sums over episodes [H])`. Metrics:
      `held_out/fitness`, the mean over learners of which it is finite, `held_out/std`, and `held_out/num_not_finite`.

    Example:
      >>> life = lambda key, values, hparams: (key, values * jax.random.uniform(key), {"episode/count": jnp.ones(())})
      >>> _, metrics, episodes = held_out(life, 3)(jax.random.key(0), jnp.float32(0.0), None)
      >>> metrics["held_out/fitness"].item(), episodes["episode/count"].shape
      (0.0, (3,))
    """
    num_lanes, padded_chunk = _padded(num_learners, num_devices, chunk)
    train_all = over_members(learner, (0, None, None), num_devices, padded_chunk)

    def play(key: Key, values: PyTree, hparams: PyTree) -> tuple[Any, Metrics, Metrics]:
        keys = jax.random.split(key, num_learners)[jnp.arange(num_lanes) % num_learners]
        agents, scores, episodes = jax.tree.map(lambda x: x[:num_learners], train_all(keys, values, hparams))
        sound = jnp.isfinite(scores)
        mean = jnp.sum(jnp.where(sound, scores, 0.0)) / jnp.sum(sound)
        square = jnp.sum(jnp.where(sound, jnp.square(scores - mean), 0.0)) / jnp.sum(sound)
        metrics = {
            "held_out/fitness": mean,
            "held_out/std": jnp.sqrt(square),
            "held_out/num_not_finite": jnp.sum(~sound).astype(jnp.float32),
        }
        return jax.tree.map(lambda x: x[0], agents), metrics, episodes

    return play


def _padded(num_learners: int, num_devices: int, chunk: int | None) -> tuple[int, int | None]:
    """Lanes and chunk for learners that need not divide: all devices of a program take part in each of its maps."""
    each = math.ceil(num_learners / num_devices)
    if chunk is None or chunk >= each:
        return each * num_devices, None
    return each * num_devices, max(n for n in range(1, chunk + 1) if each % n == 0)
