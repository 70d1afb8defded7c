"""A learner of a few lines that compiles at once, and runs of it in processes of their own that can be killed."""

import functools
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import checkpoint, fit, runs
from jaxrl.evaluation import Episodes
from jaxrl.meta.population import population
from jaxrl.ops import trees
from jaxrl.types import Algorithm, memoize

TOTAL, SEGMENT = 20, 3


@struct.dataclass
class Hyperparams:
    learning_rate: jax.Array
    target: jax.Array


@struct.dataclass
class State:
    key: jax.Array
    params: dict
    num_steps: jax.Array


@memoize
def noisy_descent() -> Algorithm:
    def hyperparams(**changes):
        default = trees.as_arrays(Hyperparams(learning_rate=0.1, target=1.0))
        return trees.with_changes(default, changes, {})

    def init(key, hparams):
        key, key_params = jax.random.split(key)
        return State(key, {"w": jax.random.normal(key_params, (3,)), "b": jnp.zeros(2)}, jnp.int32(0))

    def step(state, hparams):
        key, key_noise = jax.random.split(state.key)
        noise = 0.1 * jax.random.normal(key_noise, (3,))
        loss, gradient = jax.value_and_grad(lambda p: jnp.sum((p["w"] - hparams.target) ** 2) + jnp.sum(p["b"] ** 2))(
            state.params
        )
        params = jax.tree.map(lambda p, g: p - hparams.learning_rate * g, state.params, gradient)
        params = {**params, "w": params["w"] + noise}
        count = (state.num_steps % 2 == 0).astype(jnp.float32)
        metrics = {"loss/value": loss, "episode/return_sum": -count * loss, "episode/count": count}
        return State(key, params, state.num_steps + 1), metrics

    return Algorithm(
        init=init, step=step, act=lambda state, memory, obs, key: (obs, memory), hyperparams=hyperparams, env_steps=8
    )


def play(key, state, hparams):
    """Two episodes a member; they depend on the key and the state."""
    returns = -jnp.sum(state.params["w"] ** 2, axis=-1)[..., None] + jax.random.normal(key, (2,))
    return Episodes(returns=returns, lengths=jnp.full(returns.shape, 5), finished=jnp.full(returns.shape, True))


def algorithm_of(members: int | None) -> Algorithm:
    return population(noisy_descent(), members) if members else noisy_descent()


def train(path: Path, members=None, *, resume=False, total=TOTAL, checkpoint_seconds=0.0, on_segment=None, **settings):
    """`fit` of the toy in a run folder, with an evaluation plan."""
    algorithm = algorithm_of(members)
    hparams = settings.pop("hparams", None) or algorithm.hyperparams()
    run = runs.Run.open(path) if resume and (path / "run.json").exists() else runs.Run.create(path, runs.describe())
    return fit.fit(
        algorithm,
        hparams,
        run=run,
        seed=settings.pop("seed", 3),
        total_iterations=total,
        segment=settings.pop("segment", SEGMENT),
        num_seeds=members,
        evaluation=fit.EvaluationPlan(3, jax.vmap(play, (None, 0, None)) if members else play),
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
        on_segment=on_segment or (lambda progress: None),
        **settings,
    )


def process(path: str, members: int | None, die_at: int | None, pause: float) -> None:
    """Entry of a process: begins or continues the run, and kills itself before its `die_at`-th storage call."""
    jax.config.update("jax_compilation_cache_dir", str(Path(path).parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if die_at is not None:
        _die_before(die_at)

    def on_message(line: str) -> None:
        with open(f"{path}.messages", "a") as file:
            file.write(line + "\n")

    train(
        Path(path),
        members,
        resume=(Path(path) / "run.json").exists(),
        on_segment=lambda progress: time.sleep(pause),
        on_message=on_message,
    )


def _die_before(count: int) -> None:
    calls = 0

    def dying(function):
        @functools.wraps(function)
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, dying(getattr(os, name)))
    checkpoint.ocp.PyTreeCheckpointer.save = dying(checkpoint.ocp.PyTreeCheckpointer.save)
