"""Trials of learning rules: fresh learners on tasks that no search has seen, after lives of any length."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import spaces
from jaxrl.evaluation import evaluate
from jaxrl.meta.evolve import Tasks
from jaxrl.ops.members import over_members
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

Trial = Callable[[Key, Any, Int[Array, ""]], Float[Array, " S"]]
"""`(keys [S], hparams, iterations) -> mean return after them [S]`."""


@memoize
def trial(
    algorithm: Algorithm,
    num_episodes: int,
    max_episode_steps: int | None = None,
    sampled: bool = False,
    tasks: Tasks | None = None,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Trial:
    """What fresh learners reach after a life of so many iterations.

    How long a life is, is data: one program serves all lengths. Where the hyperparameters have a `horizon`, it is the
    life's. Two algorithms that are tried on the same keys meet the same tasks.

    Args:
      algorithm: the learner.
      num_episodes: of each learner's evaluation after its life.
      max_episode_steps: as for `jaxrl.evaluate`.
      sampled: as for `jaxrl.evaluate`.
      tasks: draws the environment's parameters of each learner; None: all have those of the hyperparameters.
      num_devices: as for `jaxrl.population`.
      chunk: as for `jaxrl.population`.

    Returns:
      The trial, to be compiled by the caller. 0 iterations are the agent before it has learned.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"))
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> jax.eval_shape(trial(agent, 4), keys, agent.hyperparams(), jnp.int32(2)).shape
      (3,)
    """
    play = evaluate(algorithm, num_episodes, max_episode_steps, sampled)

    def one(key: Key, hparams: Any, num_iterations: Int[Array, ""]) -> Float[Array, ""]:
        key_task, key_train, key_play = jax.random.split(key, 3)
        own = hparams
        if hasattr(own, "horizon"):
            own = own.replace(horizon=jnp.maximum(num_iterations, 1).astype(jnp.float32) * algorithm.env_steps)
        if tasks is not None:
            own = own.replace(env=tasks(key_task))
        state = algorithm.init(key_train, own)
        state = jax.lax.fori_loop(0, num_iterations, lambda _, state: algorithm.step(state, own)[0], state)
        return play(key_play, state, own.env).mean_return

    return over_members(one, (0, None, None), num_devices, chunk)


def task_keys(keys: Key) -> Key:
    """The keys from which the tasks of a trial with these keys are drawn, [S]."""
    return jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)


@struct.dataclass
class RandomHyperparams:
    """Hyperparameters of `random_policy`.

    Attributes:
      env: parameters of the environment.
    """

    env: PyTree


@memoize
def random_policy(env: Env) -> Algorithm:
    """Draws actions uniformly and learns nothing: the lowest row of a table.

    Args:
      env: to act in.

    Returns:
      The algorithm; evaluate it with `sampled=True`.

    Example:
      >>> import jaxrl
      >>> agent = random_policy(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> agent.act((), (), None, jax.random.key(0))[0].shape
      ()
    """

    def hyperparams(**changes: Any) -> RandomHyperparams:
        return RandomHyperparams(**{"env": env.default_params(), **changes})

    def init(key: Key, hparams: RandomHyperparams) -> tuple[()]:
        del key, hparams
        return ()

    def step(state: tuple[()], hparams: RandomHyperparams) -> tuple[tuple[()], Metrics]:
        del hparams
        return state, {}

    def act(state: tuple[()], memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        del state, obs
        if key is None:
            raise ValueError("random_policy has no mode: evaluate it with sampled = True.")
        return spaces.sample(env.action_space, key), memory

    return Algorithm(init, step, act, hyperparams, name="random", env=env)
