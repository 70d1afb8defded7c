"""Evaluation: a fixed number of whole episodes with a key of their own and statistics frozen in the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm, Env, EnvParams, Hyperparams, Key, State, memoize


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


class EvaluationPlan(NamedTuple):
    """When and how to evaluate.

    Attributes:
      num_evaluations: spread evenly over the segments, the last at the end.
      play: `(key, state, hparams) -> Episodes` with leaves [E], or [P, E] for a population; see `play_episodes`.
    """

    num_evaluations: int
    play: Callable[[Key, State, Hyperparams], Episodes]


# Of episodes in environments without a time limit of their own.
_MAX_STEPS = 10_000


def time_limit(env: Env | None, env_params: EnvParams) -> int:
    """After how many steps an evaluation episode counts as unfinished, where parameters may raise the time limit.

    Args:
      env: the environment, or None if there is none.
      env_params: its parameters. Those with `max` and `steps` in their names are time limits; leaves may have further
        axes, of members or settings.

    Returns:
      The greatest of the environment's own limit and of those among the parameters; 10,000 if there is none.

    Example:
      >>> import jaxrl
      >>> env = jaxrl.make_env("gymnax/CartPole-v1")
      >>> time_limit(env, env.default_params())
      500
    """
    if env is None:
        return _MAX_STEPS
    named = trees.named_leaves(env_params).items()
    limits = [int(np.max(leaf)) for name, leaf in named if "max" in name and "steps" in name]
    return max([env.max_episode_steps or 0, *limits]) or _MAX_STEPS


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


@memoize
def play_episodes(
    member: Algorithm,
    num_episodes: int,
    sampled: bool = False,
    max_steps: int | None = None,
    num_seeds: int | None = None,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Callable[[Key, State, Hyperparams], Episodes]:
    """Evaluation of one learner or of each member of a population, for an `EvaluationPlan`.

    Args:
      member: the algorithm of one member.
      num_episodes: E, for each member.
      sampled: as for `evaluate`.
      max_steps: as for `evaluate`.
      num_seeds: P if the state is that of a population.
      num_devices: as for the population.
      chunk: as for the population.

    Returns:
      `(key, state, hparams) -> Episodes`; the environment's parameters are `hparams.env`, of which a leaf with one more
      axis than the member's default has one value a member.
    """
    play = evaluate(member, num_episodes, max_steps, sampled)
    if num_seeds is None:
        return lambda key, state, hparams: play(key, state, hparams.env)
    axes = lambda env: jax.tree.map(lambda leaf, one: 0 if leaf.ndim > one.ndim else None, env, default)
    default = member.hyperparams().env

    def play_all(key: Key, state: State, hparams: Hyperparams) -> Episodes:
        keys = key if key.ndim else jax.random.split(key, num_seeds)
        return over_members(play, (0, 0, axes(hparams.env)), num_devices, chunk)(keys, state, hparams.env)

    return play_all


def mean_of_finished(episodes: Episodes, members: int) -> np.ndarray:
    """Mean return of each member's finished episodes in float64 on the host; NaN where none finished.

    Args:
      episodes: leaves [E], or [P, E] for a population.
      members: P, 1 for a single learner.

    Returns:
      Shape [P].
    """
    finished = np.reshape(episodes.finished, (members, -1))
    total = np.where(finished, np.reshape(episodes.returns, (members, -1)), 0.0).sum(axis=1, dtype=np.float64)
    return np.divide(total, finished.sum(axis=1), out=np.full(members, np.nan), where=finished.any(axis=1))
