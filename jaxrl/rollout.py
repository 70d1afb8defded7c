"""Collecting experience: the only place that steps and resets environments in training."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl.ops import trees
from jaxrl.types import Env, EnvParams, EnvState, Key, Memory, Metrics, Observation

ResetMode = Literal["fresh", "pooled", "cached"]


@dataclasses.dataclass(frozen=True)
class Reset:
    """Where the initial states of new episodes come from.

    `fresh`: every environment computes a reset at every step, used where an episode ended. Every episode starts from
      an independent draw of the environment's initial distribution. Cost: B resets a step.
    `pooled`: `size` resets a step (1 ≤ size ≤ B); the i-th environment that ends takes the (i mod size)-th. Every
      initial state is a draw of the initial distribution, but when more than `size` environments end at one step some
      of them share theirs. Cost: `size` resets a step.
    `cached`: `size` resets when training starts, and none afterwards; an episode starts from one of these states,
      drawn uniformly. Only `size` initial states are ever seen. Cost: a gather a step, and the memory of `size` states.

    Attributes:
      mode: one of the three.
      size: as above; ignored by `fresh`.
    """

    mode: ResetMode = "fresh"
    size: int = 0

    def validate(self, num_envs: int) -> None:
        """Raises a ValueError if mode or size cannot serve `num_envs` environments."""
        if self.mode not in ("fresh", "pooled", "cached"):
            raise ValueError(f"reset must be fresh, pooled or cached; got reset = {self.mode!r}.")
        if self.mode != "fresh" and self.size < 1:
            raise ValueError(f"reset = {self.mode!r} needs reset_size of at least 1; got reset_size = {self.size}.")
        if self.mode == "pooled" and self.size > num_envs:
            raise ValueError(
                f"reset = 'pooled' computes reset_size resets a step, at most one an environment; got "
                f"reset_size = {self.size} for num_envs = {num_envs}. Use reset = 'fresh' for one each."
            )


@struct.dataclass
class ActorState:
    """What collecting carries from one rollout to the next; B environments.

    Attributes:
      env_state: states of the environments, leaves [B, ...].
      obs: current observations, leaves [B, ...].
      memory: the policy's memory before `obs`, leaves [B, ...].
      start: whether `obs` is the first of an episode, [B].
      episode_return: undiscounted raw return so far, [B].
      episode_length: steps so far, [B].
      cache: initial (state, obs), leaves [size, ...], for cached resets; otherwise ().
    """

    env_state: EnvState
    obs: Observation
    memory: Memory
    start: Bool[Array, " B"]
    episode_return: Float[Array, " B"]
    episode_length: Int[Array, " B"]
    cache: PyTree


@struct.dataclass
class Transition:
    """One step of B environments; a rollout has leaves [T, B, ...].

    Attributes:
      obs: observation acted on.
      action: the policy's own action (before clipping to the environment's bounds).
      reward: raw reward.
      terminated: see `EnvStep`.
      truncated: see `EnvStep`.
      next_obs: true successor observation, also where the episode ended.
      start: whether `obs` is the first of an episode.
      memory: the policy's memory after `obs` (to value `next_obs` with), () without memory.
      extras: what the policy returned besides.
    """

    obs: Observation
    action: Any
    reward: Float[Array, "T B"]
    terminated: Bool[Array, "T B"]
    truncated: Bool[Array, "T B"]
    next_obs: Observation
    start: Bool[Array, "T B"]
    memory: Memory
    extras: Any

    @property
    def ended(self) -> Bool[Array, "T B"]:
        """Whether the episode was over after this transition."""
        return self.terminated | self.truncated


Policy = Callable[[Key, Observation, Memory, Bool[Array, " B"]], tuple[Any, Any, Memory, Any]]
"""`(key, obs [B], memory [B], start [B]) -> (action, env_action, memory, extras)`."""


def start(key: Key, env: Env, env_params: EnvParams, num_envs: int, memory: Memory, reset: Reset) -> ActorState:
    """Starts `num_envs` episodes.

    Args:
      key: a random key.
      env: the environment.
      env_params: its parameters, shared by all copies.
      num_envs: B.
      memory: initial memory of the policy, leaves [B, ...].
      reset: where later episodes start.

    Returns:
      The state to give to `collect`.
    """
    key_reset, key_cache = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, num_envs), env_params)
    cache = ()
    if reset.mode == "cached":
        cache = jax.vmap(env.reset, (0, None))(jax.random.split(key_cache, reset.size), env_params)
    return ActorState(
        env_state=env_state,
        obs=obs,
        memory=memory,
        start=jnp.ones(num_envs, bool),
        episode_return=jnp.zeros(num_envs, jnp.float32),
        episode_length=jnp.zeros(num_envs, jnp.int32),
        cache=cache,
    )


def collect(
    key: Key,
    env: Env,
    env_params: EnvParams,
    actor: ActorState,
    policy: Policy,
    num_steps: int,
    reset: Reset,
) -> tuple[ActorState, Transition, Metrics]:
    """Steps B environments `num_steps` times with a policy; where an episode ends, the next one starts.

    Args:
      key: a random key.
      env: the environment.
      env_params: its parameters, shared by all copies.
      actor: from `start` or the last `collect`.
      policy: see `Policy`.
      num_steps: T.
      reset: where new episodes start.

    Returns:
      The actor's next state; the transitions, leaves [T, B, ...]; and sums over the episodes that ended in this
      rollout: `episode/return_sum` (raw rewards), `episode/length_sum` and `episode/count`, so that an episode in
      progress never enters a mean.
    """
    num_envs = actor.start.shape[0]
    num_resets = {"fresh": num_envs, "pooled": reset.size, "cached": 1}[reset.mode]

    def step(actor: ActorState, keys: tuple[Array, Array, Array]) -> tuple[ActorState, Any]:
        key_policy, key_env, key_reset = keys
        action, env_action, memory, extras = policy(key_policy, actor.obs, actor.memory, actor.start)
        env_state, result = jax.vmap(env.step, (0, 0, 0, None))(key_env, actor.env_state, env_action, env_params)
        ended = result.ended
        episode_return = actor.episode_return + result.reward
        episode_length = actor.episode_length + 1
        transition = Transition(
            obs=actor.obs,
            action=action,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            next_obs=result.obs,
            start=actor.start,
            memory=memory,
            extras=extras,
        )
        initial = _initial(key_reset, env, env_params, actor.cache, ended, reset)
        env_state, obs = trees.where(ended, initial, (env_state, result.obs))
        actor = dataclasses.replace(
            actor,
            env_state=env_state,
            obs=obs,
            memory=memory,
            start=ended,
            episode_return=jnp.where(ended, 0.0, episode_return),
            episode_length=jnp.where(ended, 0, episode_length),
        )
        return actor, (transition, episode_return, episode_length)

    # All keys are derived in three batched calls here rather than in many small ones inside the loop.
    key_policy, key_env, key_reset = jax.random.split(key, 3)
    keys = (
        jax.random.split(key_policy, num_steps),
        jax.random.split(key_env, (num_steps, num_envs)),
        jax.random.split(key_reset, (num_steps, num_resets)),
    )
    actor, (transitions, returns, lengths) = jax.lax.scan(step, actor, keys)
    ended = transitions.ended
    metrics = {
        "episode/return_sum": jnp.sum(jnp.where(ended, returns, 0.0)),
        "episode/length_sum": jnp.sum(jnp.where(ended, lengths, 0).astype(jnp.float32)),
        "episode/count": jnp.sum(ended.astype(jnp.float32)),
    }
    return actor, transitions, metrics


def _initial(
    keys: Array,
    env: Env,
    env_params: EnvParams,
    cache: PyTree,
    ended: Bool[Array, " B"],
    reset: Reset,
) -> tuple[EnvState, Observation]:
    """Initial (state, obs) for every environment, leaves [B, ...], of which those that ended will be used."""
    if reset.mode == "cached":
        index = jax.random.randint(keys[0], ended.shape, 0, reset.size)
        return jax.tree.map(lambda leaf: leaf[index], cache)
    initial = jax.vmap(env.reset, (0, None))(keys, env_params)
    if reset.mode == "pooled":
        rank = jnp.cumsum(ended.astype(jnp.int32)) - 1
        initial = jax.tree.map(lambda leaf: leaf[rank % reset.size], initial)
    return initial
