"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347).

One step of the algorithm, with its shapes:

    collect        T steps in B environments                                     [T, B]
    estimate       policy, value and log-probability of all of them at once      [T, B]
                   advantages and value targets                                  [T, B]
    update         num_epochs times: shuffle into M minibatches                  [M, N/M]
      each           one optimizer step on
                     objective + value_coef * value loss - entropy_coef * entropy

A feedforward network shuffles single transitions (N = T*B); a recurrent one whole environments, so that a minibatch
is [T, B/M] with the memory that each environment had when the rollout began.

The three policies of Hilton et al. (2022, arXiv:2110.00641) are apart: the one that learns, the *behavior* policy that
acted, and the *proximal* policy that the update should stay close to. In plain PPO the last two are one.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, diagnostics, rollout, validation
from jaxrl.estimators import gae
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import Output, apply_one, apply_step, init_params, successor_value
from jaxrl.networks.update_rules import UpdateInputs, UpdateRule, initial_weights, training_share, unit_activity
from jaxrl.objectives import clip
from jaxrl.ops import averages, minibatches, reward_scaling, schedules, statistics, trees
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.surrogate import Sample, surrogate_loss
from jaxrl.types import (
    Action,
    Algorithm,
    Env,
    Estimator,
    Key,
    Memory,
    Metrics,
    Objective,
    Observation,
    ReturnInputs,
    memoize,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_epochs: passes over the rollout per iteration.
      num_minibatches: parts that each pass splits it into, M.
      proximal: the policy that an update stays close to: the one that acted (`behavior`), the one that began the
        iteration (`recent`, another one only with `actor_lag`), or an average of all that were (`ewma`: PPO-EWMA).
      actor_lag: iterations by which the policy that acts is older than the one that learns, as in a distributed actor.
      normalize_advantage: over each minibatch, over the whole batch, over recent iterations (`ewma`), or none.
      stop_at_target_kl: whether an iteration stops learning once the policy has moved by more than `target_kl`.
      clip_value: whether the value may move only by `value_clip` from where it was in the rollout.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers and memory.
      diagnostics: further metrics: gradient_noise, dormant, effective_rank, churn, kl, staleness.
    """

    num_envs: int = 4
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 4
    proximal: Literal["behavior", "recent", "ewma"] = "behavior"
    actor_lag: int = 0
    normalize_advantage: Literal["minibatch", "batch", "ewma", "none"] = "minibatch"
    stop_at_target_kl: bool = False
    clip_value: bool = True
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    normalize_observations: bool = False
    normalize_rewards: bool = False
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    diagnostics: tuple[str, ...] = ()


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      objective: coefficients of a written objective or weights of a learned one.
      estimator: coefficients of the estimator of advantages.
      optimizer: weights of a learned optimizer, or ().
      env: parameters of the environment.
      learning_rate: of the optimizer, at the beginning.
      gamma: discount factor.
      gae_lambda: λ of the estimator of advantages.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss.
      value_clip: how far the value may move in one iteration, if `clip_value`.
      max_grad_norm: gradients of a greater global norm are scaled down to it.
      target_kl: KL divergence of a minibatch from which on the iteration's updates are dropped, if
        `stop_at_target_kl`.
      proximal_decay: decay of the average of parameters at every optimizer step, if `proximal` is `ewma`.
      advantage_decay: decay of the advantages' moments at every iteration, if `normalize_advantage` is `ewma`.
      horizon: environment steps over which progress goes from 0 to 1; infinite: no schedule.
    """

    objective: PyTree
    estimator: PyTree
    optimizer: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    gae_lambda: Float[Array, ""]
    entropy_coef: Float[Array, ""]
    value_coef: Float[Array, ""]
    value_clip: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    target_kl: Float[Array, ""]
    proximal_decay: Float[Array, ""]
    advantage_decay: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters, and those of the objective in the collection `objective` if it has any.
      opt_state: the optimizer's state.
      proximal: the average of parameters, or ().
      lagged_params: those of the last `actor_lag` iterations, oldest first, leaves [actor_lag, ...], or ().
      advantage_moments: averaged moments of the advantages, or ().
      actor: environments in progress.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted returns and their running moments, or ().
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    proximal: PyTree
    lagged_params: PyTree
    advantage_moments: PyTree
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    num_steps: Int[Array, ""]


@memoize
def ppo(
    env: Env,
    network: ActorCritic | None = None,
    objective: Objective = clip(),  # noqa: B008 (memoized record)
    estimator: Estimator = gae(),  # noqa: B008
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds PPO for an environment, a network and an objective.

    Args:
      env: the environment to learn in.
      network: policy and value; None builds `config.network` for the environment's spaces.
      objective: the policy's loss; its parameters are `hparams.objective`, so a learned one takes the same slot.
      estimator: makes advantages and value targets of a rollout.
      optimizer: makes the gradient transformation from the hyperparameters and the present learning rate; a learned one
        (`jaxrl.networks.update_rules`) has its weights in `hparams.optimizer`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: counts that are not positive, a rollout that does not split evenly into minibatches, an unknown
        choice, heads that the objective needs and the network lacks, a `config.network` of another class, `vtrace` for
        an older policy with an objective that weights by the ratio too, or `separate` for a network whose policy
        and value share a core.

    Example:
      >>> import jaxrl
      >>> agent = ppo(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=8))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams(learning_rate=1e-3))
      >>> metrics["loss/value"].shape
      (2,)
    """
    validation.layers("ppo", config.network, NetworkConfig)
    net = acting.network_for(env, network, config.network, separate=isinstance(optimizer, acting.Separate))
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("ppo", config, ("num_envs", "num_steps", "num_epochs", "num_minibatches"))
    validation.choices("ppo", config)
    validation.heads("ppo", objective, net.heads)
    validation.estimator("ppo", estimator, config.num_envs)
    reset.validate(config.num_envs)
    minibatches.validate(config.num_steps, config.num_envs, config.num_minibatches, net.recurrent)
    if config.actor_lag < 0 or (config.proximal == "recent" and not config.actor_lag):
        raise ValueError(
            "ppo: actor_lag must not be negative, and proximal = 'recent' needs an actor_lag of at least 1 (without "
            f"one it is 'behavior'); got actor_lag = {config.actor_lag}, proximal = {config.proximal!r}."
        )
    if config.actor_lag and estimator.weighted and objective.weighted:
        raise ValueError(
            f"ppo: with an actor_lag the estimator {estimator.name!r} puts the weight π/μ into the advantage, and the "
            f"objective must not put it in again; got the objective {objective.name!r} with actor_lag = "
            f"{config.actor_lag}. Use policy_gradient, awr or vmpo with vtrace, or gae with this objective."
        )
    noise_parts = diagnostics.num_parts(config, net.recurrent)
    diagnostics.validate("ppo", config.diagnostics, net, noise_parts, config.actor_lag)
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision
    rule = optimizer if isinstance(optimizer, UpdateRule) else None

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"objective": objective.init(jax.random.key(0)), "estimator": estimator.init()}
        nested["optimizer"] = initial_weights(optimizer, jax.random.key(0))
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def see(state: State, obs: Observation) -> Observation:
        return statistics.normalize(state.observation_statistics, obs) if config.normalize_observations else obs

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        with jax.default_matmul_precision(precision):
            params = acting.with_variables(init_params(net, key_params, one), objective)
        if rule:
            key, key_rule = jax.random.split(key)
            opt_state = rule.start(hparams, params, key_rule)
        else:
            opt_state = optimizer(hparams, hparams.learning_rate).init(params)
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            proximal=averages.start_average(params, 1.0) if config.proximal == "ewma" else (),
            lagged_params=jax.tree.map(lambda x: jnp.stack([x] * config.actor_lag), params) if config.actor_lag else (),
            advantage_moments=averages.start_average(averages.moments(jnp.zeros(())), 0.0)
            if config.normalize_advantage == "ewma"
            else (),
            actor=actor,
            observation_statistics=statistics.init_statistics(one) if config.normalize_observations else (),
            reward_scale=reward_scaling.init_scale(config.num_envs) if config.normalize_rewards else (),
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        keys = jax.random.split(state.key, 2 + config.num_epochs)
        key, key_collect, keys_epoch = keys[0], keys[1], keys[2:]
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        transform = optimizer(hparams, hparams.learning_rate * schedules.SCHEDULES[config.schedule](progress))

        # --- Collect ---------------------------------------------------------------------------------------------
        lagged = state.lagged_params
        acting_params = jax.tree.map(lambda x: x[0], lagged) if config.actor_lag else state.params

        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, acting_params, see(state, obs), memory, start)

        actor, batch, metrics = acting.collect(
            key_collect,
            env,
            hparams.env,
            state.actor,
            look,
            config.num_steps,
            reset,
            keep_log_prob=config.actor_lag > 0,
        )

        # --- Estimate --------------------------------------------------------------------------------------------
        obs, next_obs = see(state, batch.obs), see(state, batch.next_obs)
        output, _ = net.apply(state.params, obs, state.actor.memory, batch.start)
        log_prob = output.policy.log_prob(batch.action)
        next_value = successor_value(net, state.params, next_obs, batch.memory)
        reward, reward_scale = batch.reward, state.reward_scale
        if config.normalize_rewards:
            reward, reward_scale = reward_scaling.scale_rewards(reward_scale, reward, batch.ended, hparams.gamma)
        advantage, target = estimator.estimate(
            hparams.estimator,
            ReturnInputs(
                reward=reward,
                value=output.value,
                next_value=next_value,
                terminated=batch.terminated,
                truncated=batch.truncated,
                log_ratio=log_prob - batch.extras if config.actor_lag else jnp.zeros_like(log_prob),
                gamma=hparams.gamma,
                trace_lambda=hparams.gae_lambda,
            ),
        )
        advantage_moments = state.advantage_moments
        if config.normalize_advantage == "batch":
            advantage = statistics.standardize(advantage)
        elif config.normalize_advantage == "ewma":
            advantage_moments = averages.update_average(
                advantage_moments, averages.moments(advantage), hparams.advantage_decay
            )
            advantage = averages.standardize_by(advantage_moments, advantage)
        proximal_policy, proximal_log_prob = output.policy, log_prob
        if config.actor_lag and config.proximal == "behavior":
            acted, _ = net.apply(acting_params, obs, state.actor.memory, batch.start)
            proximal_policy, proximal_log_prob = acted.policy, batch.extras
        samples = Sample(
            obs=obs,
            action=batch.action,
            start=batch.start,
            behavior_log_prob=batch.extras if config.actor_lag else None,
            log_prob=proximal_log_prob,
            policy=proximal_policy,
            value=output.value if config.clip_value else None,
            advantage=advantage,
            target=target,
        )
        metrics["value/explained_variance"] = statistics.explained_variance(output.value, samples.target)

        # --- Update ----------------------------------------------------------------------------------------------
        def loss(params: PyTree, sample: Sample, memory: Memory) -> tuple[Array, Metrics]:
            output, _ = net.apply(params, sample.obs, memory, sample.start)
            return surrogate_loss(
                output,
                acting.variables_of(params),
                sample,
                objective,
                hparams,
                progress,
                standardize=config.normalize_advantage == "minibatch",
                clip_value=config.clip_value,
            )

        def gradient_of(params: PyTree, proximal: PyTree, minibatch: tuple[Sample, Memory]) -> tuple[PyTree, Metrics]:
            sample, memory = minibatch
            if config.proximal == "ewma":
                near, _ = net.apply(proximal.mean, sample.obs, memory, sample.start)
                behavior = sample.log_prob if sample.behavior_log_prob is None else sample.behavior_log_prob
                sample = dataclasses.replace(
                    sample,
                    behavior_log_prob=behavior,
                    policy=near.policy,
                    log_prob=near.policy.log_prob(sample.action),
                )
            return jax.grad(loss, has_aux=True)(params, sample, memory)

        def seen_by_rule(epoch: Array, params: PyTree, sample: Sample, memory: Memory) -> UpdateInputs:
            passed = training_share(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon, batch_size)
            return UpdateInputs(passed, epoch, unit_activity(net, params, sample.obs, memory, sample.start))

        def update(epoch: Array | None, carry: Any, minibatch: tuple[Sample, Memory]) -> tuple[Any, Metrics]:
            params, opt_state, proximal, stopped = carry
            gradient, info = gradient_of(params, proximal, minibatch)
            more: Any = {} if epoch is None else {"inputs": seen_by_rule(epoch, params, *minibatch)}
            updates, new_opt_state = transform.update(gradient, opt_state, params, **more)
            learned = (optax.apply_updates(params, updates), new_opt_state)
            if config.proximal == "ewma":
                learned = (*learned, averages.update_average(proximal, learned[0], hparams.proximal_decay))
            else:
                learned = (*learned, proximal)
            info["gradient/norm"] = optax.tree.norm(gradient)
            if config.stop_at_target_kl:
                # A mask, not a condition: under vmap a condition would run both branches anyway.
                stopped = stopped | (info["policy/kl"] > hparams.target_kl)
                learned = trees.where(stopped, (params, opt_state, proximal), learned)
                info["update/share_applied"] = 1.0 - stopped.astype(jnp.float32)
            return (*learned, stopped), info

        def shuffled(key: Key, parts: int = config.num_minibatches) -> tuple[Sample, Memory]:
            return minibatches.shuffled(key, samples, state.actor.memory, parts, net.recurrent)

        def epoch(carry: Any, row: tuple[Key, Array | None]) -> tuple[Any, Metrics]:
            return jax.lax.scan(functools.partial(update, row[1]), carry, shuffled(row[0]))

        carry = (state.params, state.opt_state, state.proximal, jnp.bool_(False))
        shares = jnp.linspace(0.0, 1.0, config.num_epochs) if rule else None
        (params, opt_state, proximal, _), info = jax.lax.scan(epoch, carry, (keys_epoch, shares))
        metrics |= jax.tree.map(jnp.mean, info)
        inputs = (obs, state.actor.memory, batch.start)
        metrics |= diagnostics.measure(config.diagnostics, net, inputs, output.policy, params, acting_params)
        if "gradient_noise" in config.diagnostics:
            first = lambda part: gradient_of(state.params, state.proximal, part)[0]
            apart = lambda key: shuffled(key, noise_parts)
            metrics |= diagnostics.gradient_noise(state.key, first, apart, batch_size)

        seen = state.observation_statistics
        if config.normalize_observations:
            # After the update, so that the ratio is 1 in the first epoch.
            seen = statistics.update_statistics(seen, batch.obs, 2)
        if config.actor_lag:
            lagged = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), lagged, state.params)
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            proximal=proximal,
            lagged_params=lagged,
            advantage_moments=advantage_moments,
            actor=actor,
            observation_statistics=seen,
            reward_scale=reward_scale,
            num_steps=state.num_steps + 1,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output, memory = apply_one(net, state.params, see(state, obs), memory)
        return acting.choose(env, output, key), memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="ppo", env=env, config=config
    )


_LEAVES = {
    "learning_rate": Leaf(2.5e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "gae_lambda": Leaf(0.95, 0.0, 1.0),
    "entropy_coef": Leaf(0.01),
    "value_coef": Leaf(0.5, 0.0),
    "value_clip": Leaf(0.2, 0.0),
    "max_grad_norm": Leaf(0.5, 1e-12),
    "target_kl": Leaf(0.02, 0.0, needs=("stop_at_target_kl", True)),
    "proximal_decay": Leaf(0.9, 0.0, 1.0, needs=("proximal", "ewma")),
    "advantage_decay": Leaf(0.9, 0.0, 1.0, needs=("normalize_advantage", "ewma")),
    "horizon": Leaf(math.inf, 1.0),
}
