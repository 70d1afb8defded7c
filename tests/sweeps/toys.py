"""A learner of a few lines with a config, and a sweep of it in a process of its own that can be killed."""

import dataclasses
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.ops import trees
from jaxrl.types import Algorithm, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    num_weights: int = 3
    loud: bool = False


@struct.dataclass
class Objective:
    target: jax.Array


@struct.dataclass
class Hyperparams:
    learning_rate: jax.Array
    objective: Objective
    offsets: jax.Array
    horizon: jax.Array


@struct.dataclass
class State:
    key: jax.Array
    params: jax.Array
    num_steps: jax.Array


@memoize
def descent(env=None, config: Config = Config()) -> Algorithm:
    """Noisy gradient descent towards `objective.target`; a rate above 2 diverges."""

    def hyperparams(**changes):
        default = Hyperparams(0.1, Objective(1.0), jnp.zeros(2), jnp.inf)
        return trees.with_changes(trees.as_arrays(default), changes, {"learning_rate": (0.0, 1e6)})

    def init(key, hparams):
        key, key_params = jax.random.split(key)
        return State(key, jax.random.normal(key_params, (config.num_weights,)), jnp.int32(0))

    def step(state, hparams):
        key, key_noise = jax.random.split(state.key)
        wanted = hparams.objective.target + jnp.sum(hparams.offsets)
        error = state.params - wanted
        noise = 0.01 * jax.random.normal(key_noise, error.shape)
        loss = jnp.mean(error**2)
        metrics = {"loss/value": loss, "episode/return_sum": -2 * loss, "episode/count": jnp.float32(2)}
        return State(key, state.params - hparams.learning_rate * error + noise, state.num_steps + 1), metrics

    return Algorithm(
        init=init,
        step=step,
        act=lambda state, memory, obs, key: (obs, memory),
        hyperparams=hyperparams,
        env_steps=4 * config.num_weights,
        name="descent",
        config=config,
    )


SPACE = {"learning_rate": [0.1, 0.3, 0.5], "config.num_weights": [2, 3], "objective.target": [0.0, 2.0]}
ARGUMENTS = {"num_seeds": 2, "total_steps": 240, "eval_episodes": 0, "num_points": 5, "max_batch": 4}


def main(folder: str, kill_after: float) -> None:
    """Runs the sweep; kills this process after so many calls of os.replace, os.fsync or segments, if not 0."""
    from jaxrl import sweeps

    left = [int(kill_after)]

    def count(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    if kill_after:
        for name in ("replace", "fsync"):
            original = getattr(os, name)
            setattr(os, name, lambda *a, original=original, **k: (count(), original(*a, **k))[1])
    sweeps.sweep(descent, "probe/Policy", SPACE, folder=folder, checkpoint_seconds=0.0, on_progress=count, **ARGUMENTS)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
