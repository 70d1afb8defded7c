"""Evaluation: a fixed number of whole episodes with a key of their own and statistics frozen in the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl.ops import trees
from jaxrl.types import Algorithm, EnvParams, Key, State


@struct.dataclass
class Episodes:
    """Outcome of E evaluation episodes.

    Attributes:
      returns: undiscounted raw return; of an unfinished episode what it had gathered, [E].
      lengths: steps, [E].
      finished: whether the episode ended within the steps allowed, [E].
    """

    returns: Float[Array, " E"]
    lengths: Int[Array, " E"]
    finished: Bool[Array, " E"]

    @property
    def mean_return(self) -> Float[Array, ""]:
        """Mean return of the finished episodes; NaN if none finished."""
        return jnp.sum(jnp.where(self.finished, self.returns, 0.0), -1) / jnp.sum(self.finished, -1)


def evaluate(
    algorithm: Algorithm, num_episodes: int, max_steps: int | None = None, sampled: bool = False
) -> Callable[[Key, State, EnvParams], Episodes]:
    """Plays episodes with a trained state, from fresh resets, without learning.

    Args:
      algorithm: its `act` plays in its `env`.
      num_episodes: E, played side by side.
      max_steps: steps after which an episode counts as unfinished; None takes the environment's time limit.
      sampled: whether actions are sampled from the policy; otherwise the policy's mode is taken.

    Returns:
      A pure function `(key, state, env_params) -> Episodes`.

    Raises:
      ValueError: a count is not positive, or there is no time limit to take.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> hparams = agent.hyperparams()
      >>> state = agent.init(jax.random.key(0), hparams)
      >>> episodes = jax.jit(evaluate(agent, 4))(jax.random.key(1), state, hparams.env)
      >>> bool(episodes.finished.all())
      True
    """
    env = algorithm.env
    if env is None:
        raise ValueError(f"evaluate needs an algorithm with an environment; {algorithm.name!r} has env = None.")
    steps = max_steps or env.max_episode_steps
    if steps is None:
        raise ValueError(f"{env.name!r} has no time limit of its own: pass max_steps to evaluate.")
    if num_episodes < 1 or steps < 1:
        raise ValueError(
            f"num_episodes and max_steps must be at least 1; got num_episodes = {num_episodes}, max_steps = {steps}."
        )

    def run(key: Key, state: State, env_params: EnvParams) -> Episodes:
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, num_episodes), env_params)
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_episodes, *jnp.shape(x))), algorithm.initial_memory())
        episodes = Episodes(
            returns=jnp.zeros(num_episodes, jnp.float32),
            lengths=jnp.zeros(num_episodes, jnp.int32),
            finished=jnp.zeros(num_episodes, bool),
        )

        def unfinished(carry: Any) -> Bool[Array, ""]:
            t, _, _, _, episodes = carry
            return (t < steps) & ~jnp.all(episodes.finished)

        def step(carry: Any) -> Any:
            t, env_state, obs, memory, episodes = carry
            key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, t))
            if sampled:
                keys = jax.random.split(key_act, num_episodes)
                action, memory = jax.vmap(algorithm.act, (None, 0, 0, 0))(state, memory, obs, keys)
            else:
                action, memory = jax.vmap(lambda m, o: algorithm.act(state, m, o, None))(memory, obs)
            keys = jax.random.split(key_env, num_episodes)
            next_state, result = jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, env_params)
            playing = ~episodes.finished
            episodes = Episodes(
                returns=episodes.returns + jnp.where(playing, result.reward, 0.0),
                lengths=episodes.lengths + playing.astype(jnp.int32),
                finished=episodes.finished | result.ended,
            )
            env_state, obs = trees.where(playing, (next_state, result.obs), (env_state, obs))
            return t + 1, env_state, obs, memory, episodes

        return jax.lax.while_loop(unfinished, step, (jnp.int32(0), env_state, obs, memory, episodes))[-1]

    return run
