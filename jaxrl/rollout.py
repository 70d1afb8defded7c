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


Policy = Callable[[Any, Observation, Memory, Bool[Array, " B"]], tuple[Any, Any, Memory, Any]]
"""`(draw, obs [B], memory [B], start [B]) -> (action, env_action, memory, extras)`; `draw` is one step's randomness."""

_BYTES_AHEAD = 8 * 2**20
"""Initial states are computed ahead of the loop over time up to this size; drawn inside, the random numbers alone can
take longer than the environment's step."""


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
    draws: PyTree,
    reset: Reset,
) -> tuple[ActorState, Transition, Metrics]:
    """Steps B environments T times with a policy; where an episode ends, the next one starts.

    Args:
      key: a random key.
      env: the environment.
      env_params: its parameters, shared by all copies.
      actor: from `start` or the last `collect`.
      policy: see `Policy`.
      draws: the policy's randomness, leaves [T, ...]: a key for each step, or better the noise itself, drawn at once.
      reset: where new episodes start.

    Returns:
      The actor's next state; the transitions, leaves [T, B, ...]; and sums over the episodes that ended in this
      rollout: `episode/return_sum` (raw rewards), `episode/length_sum` and `episode/count`, so that an episode in
      progress never enters a mean.
    """
    num_envs, num_steps = actor.start.shape[0], jax.tree.leaves(draws)[0].shape[0]

    def step(actor: ActorState, row: tuple[Any, Array, Any]) -> tuple[ActorState, Any]:
        draw, key_env, offered = row
        action, env_action, memory, extras = policy(draw, actor.obs, actor.memory, actor.start)
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
        initial = _initial(offered, actor.cache, ended, reset)
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

    def steps(actor: ActorState, block: tuple[Any, Array, Array]) -> tuple[ActorState, Any]:
        draw, key_env, key_reset = block
        if reset.mode == "cached":
            offered = jax.vmap(lambda key: jax.random.randint(key, (num_envs,), 0, reset.size))(key_reset[:, 0])
        else:
            offered = jax.vmap(jax.vmap(env.reset, (0, None)), (0, None))(key_reset, env_params)
        return jax.lax.scan(step, actor, (draw, key_env, offered))

    num_resets = {"fresh": num_envs, "pooled": reset.size, "cached": 1}[reset.mode]
    keys = jax.random.split(key, (num_steps, num_envs + num_resets))
    length = num_steps if reset.mode == "cached" else _block_length(actor, num_steps, num_resets)
    blocks = jax.tree.map(
        lambda x: x.reshape((num_steps // length, length, *x.shape[1:])),
        (draws, keys[:, :num_envs], keys[:, num_envs:]),
    )
    actor, stacked = jax.lax.scan(steps, actor, blocks)
    transitions, returns, lengths = trees.flatten_time(stacked)
    ended = transitions.ended
    metrics = {
        "episode/return_sum": jnp.sum(jnp.where(ended, returns, 0.0)),
        "episode/length_sum": jnp.sum(jnp.where(ended, lengths, 0).astype(jnp.float32)),
        "episode/count": jnp.sum(ended.astype(jnp.float32)),
    }
    return actor, transitions, metrics


def _block_length(actor: ActorState, num_steps: int, num_resets: int) -> int:
    """Steps whose initial states are computed together: the largest divisor of T that keeps them small."""
    num_envs = actor.start.shape[0]
    one_step = trees.num_bytes((actor.env_state, actor.obs)) * num_resets // num_envs
    fitting = [n for n in range(1, num_steps + 1) if num_steps % n == 0 and n * one_step <= _BYTES_AHEAD]
    return max(fitting, default=1)


def _initial(offered: Any, cache: PyTree, ended: Bool[Array, " B"], reset: Reset) -> tuple[EnvState, Observation]:
    """Initial (state, obs) for every environment, leaves [B, ...], of which those that ended will be used."""
    if reset.mode == "cached":
        return jax.tree.map(lambda leaf: leaf[offered], cache)
    if reset.mode == "pooled":
        rank = jnp.cumsum(ended.astype(jnp.int32)) - 1
        return jax.tree.map(lambda leaf: leaf[rank % reset.size], offered)
    return offered


def collect_one(
    key: Key, env: Env, env_params: EnvParams, actor: ActorState, policy: Policy, draw: PyTree, reset: Reset
) -> tuple[ActorState, Transition, Metrics]:
    """Steps one environment once, for agents that learn from each transition as it comes.

    Args:
      key: a random key.
      env: the environment.
      env_params: its parameters.
      actor: of one environment, B = 1.
      policy: see `Policy`; it sees B = 1.
      draw: the policy's randomness for this step.
      reset: where a new episode starts.

    Returns:
      As `collect`, but the transition's leaves have no leading axes.
    """
    draws = jax.tree.map(lambda x: x[None], draw)
    actor, transitions, metrics = collect(key, env, env_params, actor, policy, draws, reset)
    return actor, jax.tree.map(lambda x: x[0, 0], transitions), metrics


def summarize(metrics: Metrics) -> Metrics:
    """Metrics of many single steps, [T], as those of one rollout: sums of what counts episodes, means of the rest."""
    return {name: jnp.sum(x) if name.startswith("episode/") else jnp.mean(x) for name, x in metrics.items()}
