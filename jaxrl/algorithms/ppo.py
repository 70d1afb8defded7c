"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347).

One step of the algorithm, with its shapes:

    collect        T steps in B environments                                     [T, B]
    estimate       policy, value and log-probability of all of them at once      [T, B]
                   generalized advantages and value targets                      [T, B]
    update         num_epochs times: shuffle into M minibatches                  [M, N/M]
      each           one optimizer step on
                     objective + value_coef * value loss - entropy_coef * entropy

A feedforward network shuffles single transitions (N = T*B); a recurrent one whole environments, so that a minibatch
is [T, B/M] with the memory that each environment had when the rollout began.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, validation
from jaxrl.networks import ActorCritic, NetworkConfig, actor_critic
from jaxrl.networks.actor_critic import Output, apply_one, apply_step, init_params, successor_value, to_env_action
from jaxrl.objectives import clip
from jaxrl.ops import losses, minibatches, returns, reward_scaling, schedules, statistics, trees
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Objective, Observation, PolicyInputs, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_epochs: passes over the rollout per iteration.
      num_minibatches: parts that each pass splits it into, M.
      normalize_advantage: over each minibatch, over the whole batch, or none.
      stop_at_target_kl: whether an iteration stops learning once the policy has moved by more than `target_kl`.
      clip_value: whether the value may move only by `value_clip` from where it was in the rollout.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers and memory.
    """

    num_envs: int = 4
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 4
    normalize_advantage: Literal["minibatch", "batch", "none"] = "minibatch"
    stop_at_target_kl: bool = False
    clip_value: bool = True
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    normalize_observations: bool = False
    normalize_rewards: bool = False
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      objective: coefficients of a written objective or weights of a learned one.
      env: parameters of the environment.
      learning_rate: of the optimizer, at the beginning.
      gamma: discount factor.
      gae_lambda: λ of the generalized advantage estimate.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss.
      value_clip: how far the value may move in one iteration, if `clip_value`.
      max_grad_norm: gradients of a greater global norm are scaled down to it.
      target_kl: KL divergence of a minibatch from which on the iteration's updates are dropped, if
        `stop_at_target_kl`.
      horizon: environment steps over which progress goes from 0 to 1; infinite: no schedule.
    """

    objective: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    gae_lambda: Float[Array, ""]
    entropy_coef: Float[Array, ""]
    value_coef: Float[Array, ""]
    value_clip: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    target_kl: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters.
      opt_state: the optimizer's state.
      actor: environments in progress.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted returns and their running moments, or ().
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    num_steps: Int[Array, ""]


@struct.dataclass
class _Sample:
    """A transition as the update sees it; leaves [T, B, ...], then [N/M, ...] or [T, B/M, ...]."""

    obs: Observation
    action: Action
    start: Array
    log_prob: Array
    policy: Any
    value: Array
    advantage: Array
    target: Array


@memoize
def ppo(
    env: Env,
    network: ActorCritic | None = None,
    objective: Objective = clip(),  # noqa: B008 (memoized record)
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds PPO for an environment, a network and an objective.

    Args:
      env: the environment to learn in.
      network: policy and value; None builds `config.network` for the environment's spaces.
      objective: the policy's loss; its parameters are `hparams.objective`, so a learned one takes the same slot.
      optimizer: makes the gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: counts that are not positive, a rollout that does not split evenly into minibatches, an unknown
        choice, or heads that the objective needs and the network lacks.

    Example:
      >>> import jaxrl
      >>> agent = ppo(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=8))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams(learning_rate=1e-3))
      >>> metrics["loss/value"].shape
      (2,)
    """
    if network is not None and config.network != NetworkConfig():
        raise ValueError(f"Pass a network or set config.network, not both; got {network} and {config.network}.")
    net = network or actor_critic(env.observation_space, env.action_space, **dataclasses.asdict(config.network))
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("ppo", config, ("num_envs", "num_steps", "num_epochs", "num_minibatches"))
    validation.choices("ppo", config)
    validation.heads("ppo", objective, net.heads)
    reset.validate(config.num_envs)
    minibatches.validate(config.num_steps, config.num_envs, config.num_minibatches, net.recurrent)
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        scalars = {name: jnp.float32(value) for name, value in _DEFAULTS.items()}
        defaults = Hyperparams(objective.init(jax.random.key(0)), env.default_params(), **scalars)
        if "target_kl" in changes and not config.stop_at_target_kl:
            raise ValueError(
                f"target_kl = {changes['target_kl']} has no effect while config.stop_at_target_kl = False; "
                "set Config(stop_at_target_kl=True)."
            )
        return trees.with_changes(defaults, changes, _RANGES)

    def see(state: State, obs: Observation) -> Observation:
        return statistics.normalize(state.observation_statistics, obs) if config.normalize_observations else obs

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        with jax.default_matmul_precision(precision):
            params = init_params(net, key_params, one)
        return State(
            key=key,
            params=params,
            opt_state=optimizer(hparams, hparams.learning_rate).init(params),
            actor=actor,
            observation_statistics=statistics.init_statistics(one) if config.normalize_observations else (),
            reward_scale=reward_scaling.init_scale(config.num_envs) if config.normalize_rewards else (),
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        keys = jax.random.split(state.key, 3 + config.num_epochs)
        key, key_noise, key_collect, keys_epoch = keys[0], keys[1], keys[2], keys[3:]
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        transform = optimizer(hparams, hparams.learning_rate * schedules.SCHEDULES[config.schedule](progress))

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, state.params, see(state, obs), memory, start)

        def policy(noise: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            output, memory = look(obs, memory, start)
            action = output.policy.sample_from(noise)
            return action, to_env_action(env.action_space, action), memory, ()

        # The noise of all steps in one draw: inside the loop over time it would cost more than the network.
        shapes, _ = jax.eval_shape(look, state.actor.obs, state.actor.memory, state.actor.start)
        noise = jax.vmap(shapes.policy.noise)(jax.random.split(key_noise, config.num_steps))

        actor, batch, metrics = rollout.collect(key_collect, env, hparams.env, state.actor, policy, noise, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        obs, next_obs = see(state, batch.obs), see(state, batch.next_obs)
        output, _ = net.apply(state.params, obs, state.actor.memory, batch.start)
        next_value = successor_value(net, state.params, next_obs, batch.memory)
        reward, reward_scale = batch.reward, state.reward_scale
        if config.normalize_rewards:
            reward, reward_scale = reward_scaling.scale_rewards(reward_scale, reward, batch.ended, hparams.gamma)
        advantage = returns.gae(
            reward, output.value, next_value, batch.terminated, batch.truncated, hparams.gamma, hparams.gae_lambda
        )
        samples = _Sample(
            obs=obs,
            action=batch.action,
            start=batch.start,
            log_prob=output.policy.log_prob(batch.action),
            policy=output.policy,
            value=output.value,
            advantage=statistics.standardize(advantage) if config.normalize_advantage == "batch" else advantage,
            target=advantage + output.value,
        )
        metrics["value/explained_variance"] = statistics.explained_variance(output.value, samples.target)

        # --- Update ----------------------------------------------------------------------------------------------
        def loss(params: PyTree, sample: _Sample, memory: Memory) -> tuple[Array, Metrics]:
            output, _ = net.apply(params, sample.obs, memory, sample.start)
            return _loss(output, sample, objective, hparams, config, progress)

        def update(carry: Any, minibatch: tuple[_Sample, Memory]) -> tuple[Any, Metrics]:
            params, opt_state, stopped = carry
            gradient, info = jax.grad(loss, has_aux=True)(params, *minibatch)
            updates, new_opt_state = transform.update(gradient, opt_state, params)
            learned = (optax.apply_updates(params, updates), new_opt_state)
            info["gradient/norm"] = optax.tree.norm(gradient)
            if config.stop_at_target_kl:
                # A mask, not a condition: under vmap a condition would run both branches anyway.
                stopped = stopped | (info["policy/kl"] > hparams.target_kl)
                learned = trees.where(stopped, (params, opt_state), learned)
                info["update/share_applied"] = 1.0 - stopped.astype(jnp.float32)
            return (*learned, stopped), info

        def epoch(carry: Any, key: Key) -> tuple[Any, Metrics]:
            parts = minibatches.shuffled(key, samples, state.actor.memory, config.num_minibatches, net.recurrent)
            return jax.lax.scan(update, carry, parts)

        carry = (state.params, state.opt_state, jnp.bool_(False))
        (params, opt_state, _), info = jax.lax.scan(epoch, carry, keys_epoch)
        metrics |= jax.tree.map(jnp.mean, info)

        seen = state.observation_statistics
        if config.normalize_observations:
            # After the update, so that the ratio is 1 in the first epoch.
            seen = statistics.update_statistics(seen, batch.obs, 2)
        return State(key, params, opt_state, actor, seen, reward_scale, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output, memory = apply_one(net, state.params, see(state, obs), memory)
        action = output.policy.mode() if key is None else output.policy.sample(key)
        return to_env_action(env.action_space, action), memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="ppo", env=env, config=config
    )


def _loss(
    output: Output, sample: _Sample, objective: Objective, hparams: Hyperparams, config: Config, progress: Array
) -> tuple[Array, Metrics]:
    """The loss of one minibatch and its metrics."""
    log_prob = output.policy.log_prob(sample.action)
    entropy = output.policy.entropy()
    advantage = (
        statistics.standardize(sample.advantage) if config.normalize_advantage == "minibatch" else sample.advantage
    )
    inputs = PolicyInputs(
        log_prob=log_prob,
        behavior_log_prob=sample.log_prob,
        proximal_log_prob=sample.log_prob,
        policy=output.policy,
        proximal_policy=sample.policy,
        advantage=advantage,
        entropy=entropy,
        progress=progress,
    )
    policy_loss, metrics = objective.loss(hparams.objective, inputs)
    if config.clip_value:
        value_loss = losses.clipped_value_loss(output.value, sample.target, sample.value, hparams.value_clip)
    else:
        value_loss = losses.value_loss(output.value, sample.target)
    mean_entropy = jnp.mean(entropy)
    metrics |= {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "policy/entropy": mean_entropy,
        "policy/kl": losses.approximate_kl(log_prob, sample.log_prob),
    }
    return policy_loss + hparams.value_coef * value_loss - hparams.entropy_coef * mean_entropy, metrics


_LEAVES = {
    # name: (default, least, greatest)
    "learning_rate": (2.5e-4, 0.0, math.inf),
    "gamma": (0.99, 0.0, 1.0),
    "gae_lambda": (0.95, 0.0, 1.0),
    "entropy_coef": (0.01, -math.inf, math.inf),
    "value_coef": (0.5, 0.0, math.inf),
    "value_clip": (0.2, 0.0, math.inf),
    "max_grad_norm": (0.5, 1e-12, math.inf),
    "target_kl": (0.02, 0.0, math.inf),
    "horizon": (math.inf, 1.0, math.inf),
}
_DEFAULTS = {name: default for name, (default, _, _) in _LEAVES.items()}
_RANGES = {name: (least, greatest) for name, (_, least, greatest) in _LEAVES.items()}
