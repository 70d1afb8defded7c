"""Relative entropy pathwise policy optimization (Voelcker et al. 2025, arXiv:2507.11019).

One step of the algorithm, with its shapes:

    collect        T steps in B environments                                     [T, B]
    estimate       k actions of the present policy at every successor, Q of them and their log-probability
                   maximum-entropy λ-returns as targets of Q                     [T, B]
    update         num_epochs times: shuffle into M minibatches                  [M, N/M]
      each           critic   cross-entropy of Q's bins with the target's histogram
                              + auxiliary_coef * squared error of the forecast of the successor's features and reward
                     policy   where KL(old, new) is below the bound: α log π(a|s) - Q(s, a), a drawn from π so that the
                              gradient goes through a; elsewhere: β KL(old, new)
                     α        up while the entropy is below its target, else down
                     β        up while the KL divergence is above its bound, else down

With a memory (`CriticConfig.memory`), which policy and critic each have, minibatches are of whole environments.

The old policy is the one that acted. Nothing is kept from earlier rollouts: no replay buffer, no target network.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.critics import (
    CriticConfig,
    CriticOutput,
    action_critic,
    apply_step,
    init_params,
    squashed_actor,
)
from jaxrl.ops import bins, losses, minibatches, returns, reward_scaling, schedules, statistics, trees
from jaxrl.ops.distributions import TanhGaussian
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_epochs: passes over the rollout per iteration.
      num_minibatches: parts that each pass splits it into, M.
      critic: how Q is learned: as a histogram that a normal density makes (`hl_gauss`) or the two nearest bins
        (`two_hot`), or as one number by squared error (`scalar`).
      num_bins: K, of the histogram.
      num_action_samples: k, actions over which the value of a successor is averaged.
      self_prediction: whether the critic's features also learn to forecast the next ones and the reward.
      constraint: what holds the policy near the old one. `clipped`: a sample whose KL divergence is above the bound
        gives only β KL. `penalty`: every sample has β KL added. `none`: nothing does.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      normalize_observations: whether the networks see observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: layers and memory of policy and critic.
    """

    num_envs: int = 1024
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 128
    critic: Literal["hl_gauss", "two_hot", "scalar"] = "hl_gauss"
    num_bins: int = 151
    num_action_samples: int = 1
    self_prediction: bool = True
    constraint: Literal["clipped", "penalty", "none"] = "clipped"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    normalize_observations: bool = True
    normalize_rewards: bool = False
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: CriticConfig = dataclasses.field(default_factory=CriticConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      learning_rate: of both optimizers, at the beginning.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each network's by itself.
      gamma: discount factor.
      trace_lambda: λ of the returns.
      reward_scale: what rewards are multiplied by.
      value_min: center of the lowest bin, in units of scaled rewards. Targets beyond the ends are cut there: see the
        metric `value/share_outside`.
      value_max: center of the highest bin.
      bin_sigma: standard deviation of a target's density in widths of a bin, if `hl_gauss`.
      auxiliary_coef: weight of the forecast's loss, if `self_prediction`.
      initial_temperature: α at the beginning.
      target_entropy: entropy that α aims at, in nats for each entry of the action, whose range is -1 to 1.
      initial_kl_coef: β at the beginning.
      kl_bound: KL divergence from the old policy up to which a sample may climb Q.
      min_std: added to the standard deviation before squashing.
      horizon: environment steps over which progress goes from 0 to 1; infinite: no schedule.
    """

    env: PyTree
    learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    gamma: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    reward_scale: Float[Array, ""]
    value_min: Float[Array, ""]
    value_max: Float[Array, ""]
    bin_sigma: Float[Array, ""]
    auxiliary_coef: Float[Array, ""]
    initial_temperature: Float[Array, ""]
    target_entropy: Float[Array, ""]
    initial_kl_coef: Float[Array, ""]
    kl_bound: Float[Array, ""]
    min_std: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class Policy:
    """What the policy's optimizer moves.

    Attributes:
      network: parameters of the network.
      log_temperature: log α, the price of entropy.
      log_kl_coef: log β, the price of the KL divergence.
    """

    network: PyTree
    log_temperature: Float[Array, ""]
    log_kl_coef: Float[Array, ""]


@struct.dataclass
class Networks:
    """One thing for the policy, one for the critic."""

    policy: Any
    critic: Any


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: a `Policy` and the critic's parameters.
      opt_state: states of the two optimizers.
      actor: environments in progress.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted returns and their running moments, or ().
      min_std: the hyperparameter, for `act`.
      num_steps: iterations done.
    """

    key: Key
    params: Networks
    opt_state: Networks
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    min_std: Float[Array, ""]
    num_steps: Int[Array, ""]


@struct.dataclass
class _Sample:
    """A transition as the update sees it; leaves [T, B, ...], then [N/M, ...].

    `target` is the λ-return, `old` the policy that acted, `next_features` the critic's, of the successor, and `goes_on`
    is 0 where the step terminated.
    """

    obs: Observation
    start: Array
    action: Array
    reward: Array
    target: Array
    old: TanhGaussian
    next_features: Array
    goes_on: Array


@memoize
def reppo(env: Env, config: Config = Config()) -> Algorithm:
    """Builds REPPO for an environment with bounded continuous actions.

    Args:
      env: the environment to learn in; its actions are a `Box` with finite bounds.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: counts that are not positive, a rollout that does not split evenly into minibatches, an unknown
        choice, actions that are no bounded `Box`, or a network of another kind.

    Example:
      >>> import jaxrl
      >>> layers = CriticConfig(actor_hidden=(16,), features=(16,), head_hidden=(16,))
      >>> config = Config(num_envs=4, num_steps=16, num_minibatches=2, network=layers)
      >>> agent = reppo(jaxrl.make_env("gymnax/Pendulum-v1"), config)
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams(value_min=-100.0, value_max=0.0))
      >>> metrics["loss/critic"].shape
      (2,)
    """
    space = _validate(env, config)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(config.num_envs)
    size, histogram = spaces.size(space), config.critic != "scalar"
    actor_net = squashed_actor(env.observation_space, space, config.network)
    num_outputs = config.num_bins if histogram else 1
    critic_net = action_critic(env.observation_space, num_outputs, config.network, config.self_prediction)
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        hparams = build(Hyperparams, _LEAVES, config, changes, env=env.default_params())
        ends = hparams.value_min, hparams.value_max
        if not any(isinstance(end, Tracer) for end in ends) and not bool(jnp.all(ends[0] < ends[1])):
            raise ValueError(f"value_min must be below value_max; got value_min = {ends[0]}, value_max = {ends[1]}.")
        return hparams

    def optimizer(hparams: Hyperparams, learning_rate: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),  # type: ignore[arg-type]
            optax.adam(learning_rate),
        )

    def see(state: State, obs: Observation) -> Observation:
        return statistics.normalize(state.observation_statistics, obs) if config.normalize_observations else obs

    recurrent = actor_net.recurrent

    def initial_memory(batch_shape: tuple[int, ...] = ()) -> Memory:
        if not recurrent:
            return ()
        return Networks(actor_net.initial_memory(batch_shape), critic_net.initial_memory(batch_shape))

    def of_both(memory: Memory) -> Networks:
        """The memories of policy and critic, each () without one."""
        return memory if recurrent else Networks((), ())

    def squashed(outputs: tuple[Array, Array], min_std: Float[Array, ""]) -> TanhGaussian:
        mean, log_std = outputs
        floor = jnp.broadcast_to(jnp.log(min_std), log_std.shape)
        return TanhGaussian(mean, jnp.logaddexp(log_std, floor))

    def policy_at(
        params: PyTree, obs: Observation, memory: Networks, start: Array, min_std: Float[Array, ""]
    ) -> TanhGaussian:
        """The policy at observations [N, ...], or of rollouts [T, b, ...] with a memory before them."""
        outputs, _ = actor_net.apply(params, obs, memory.policy, start)  # type: ignore[misc]
        return squashed(outputs, min_std)

    def critic_at(params: PyTree, obs: Observation, memory: Networks, start: Array, action: Array) -> CriticOutput:
        """The same of the critic."""
        return critic_net.apply(params, obs, memory.critic, start, action)[0]  # type: ignore[return-value]

    def centers_of(hparams: Hyperparams) -> Float[Array, " K"]:
        return bins.bin_centers(hparams.value_min, hparams.value_max, config.num_bins)

    def encode(target: Array, hparams: Hyperparams) -> Float[Array, "... K"]:
        if config.critic == "two_hot":
            return bins.two_hot(target, centers_of(hparams))
        return bins.hl_gauss(target, centers_of(hparams), hparams.bin_sigma)

    def value_of(output: CriticOutput, hparams: Hyperparams) -> Float[Array, "..."]:
        return bins.expected_value(output.output, centers_of(hparams)) if histogram else output.output[..., 0]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_actor = jax.random.split(key, 4)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, initial_memory((config.num_envs,)), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        # All of a histogram's weight at 0, so that Q begins there.
        offset = (encode(jnp.float32(0.0), hparams),) if histogram else ()
        with jax.default_matmul_precision(precision):
            params = Networks(
                policy=Policy(
                    network=init_params(actor_net, key_policy, one),
                    log_temperature=jnp.log(hparams.initial_temperature),
                    log_kl_coef=jnp.log(hparams.initial_kl_coef),
                ),
                critic=init_params(critic_net, key_critic, one, jnp.zeros(size), *offset),
            )
        transform = optimizer(hparams, hparams.learning_rate)
        return State(
            key=key,
            params=params,
            opt_state=Networks(transform.init(params.policy), transform.init(params.critic)),
            actor=actor,
            observation_statistics=statistics.init_statistics(one) if config.normalize_observations else (),
            reward_scale=reward_scaling.init_scale(config.num_envs) if config.normalize_rewards else (),
            # A copy, so that the state can be donated while the hyperparameters stay.
            min_std=jnp.copy(hparams.min_std),
            num_steps=jnp.int32(0),
        )

    def estimate(
        key: Key, state: State, batch: rollout.Transition, hparams: Hyperparams
    ) -> tuple[_Sample, PyTree, Array]:
        """Samples for the update, the next reward scale, and the share of targets outside of the bins."""
        obs, next_obs = see(state, batch.obs), see(state, batch.next_obs)
        reward, reward_scale = batch.reward, state.reward_scale
        if config.normalize_rewards:
            reward, reward_scale = reward_scaling.scale_rewards(reward_scale, reward, batch.ended, hparams.gamma)
        reward = hparams.reward_scale * reward
        # Successors do not follow one another: each is seen with what was remembered at its predecessor.
        flat_obs, remembered = trees.flatten_time((next_obs, of_both(batch.memory)))
        never = jnp.zeros(batch_size, bool)
        outputs, _ = apply_step(actor_net, state.params.policy.network, flat_obs, remembered.policy, never)
        next_policy = squashed(outputs, hparams.min_std)

        def look_ahead(key: Key) -> PyTree:
            action, log_prob = next_policy.sample_and_log_prob(key)
            output, _ = apply_step(critic_net, state.params.critic, flat_obs, remembered.critic, never, action)
            found = value_of(output, hparams), log_prob, output.features
            return jax.tree.map(lambda x: x.reshape((*reward.shape, *x.shape[1:])), found)

        keys = jax.random.split(key, config.num_action_samples)
        next_value, next_log_prob, next_features = look_ahead(keys[0])
        if config.num_action_samples > 1:
            values, log_probs, _ = jax.lax.map(look_ahead, keys[1:])
            next_value = (next_value + jnp.sum(values, 0)) / config.num_action_samples
            next_log_prob = (next_log_prob + jnp.sum(log_probs, 0)) / config.num_action_samples
        # The entropy at the successor belongs to this step's reward, so that every λ counts it once.
        bonus = -jnp.exp(state.params.policy.log_temperature) * next_log_prob
        soft_reward = reward + hparams.gamma * jnp.where(batch.terminated, 0.0, bonus)
        target = returns.lambda_returns(
            soft_reward, next_value, batch.terminated, batch.truncated, hparams.gamma, hparams.trace_lambda
        )
        samples = _Sample(
            obs=obs,
            start=batch.start,
            action=batch.action,
            reward=reward,
            target=target,
            old=policy_at(state.params.policy.network, obs, of_both(state.actor.memory), batch.start, hparams.min_std),
            next_features=next_features,
            goes_on=1.0 - batch.terminated.astype(jnp.float32),
        )
        outside = (target < hparams.value_min) | (target > hparams.value_max)
        return samples, reward_scale, jnp.mean(outside.astype(jnp.float32))

    def critic_loss(params: PyTree, sample: _Sample, memory: Networks, hparams: Hyperparams) -> tuple[Array, Metrics]:
        output = critic_at(params, sample.obs, memory, sample.start, sample.action)
        value = value_of(output, hparams)
        if histogram:
            loss = jnp.mean(bins.cross_entropy(output.output, encode(sample.target, hparams)))
        else:
            loss = jnp.mean(jnp.square(value - sample.target))
        info = {
            "loss/critic": loss,
            "value/mean": jnp.mean(value),
            "value/target": jnp.mean(sample.target),
            "value/explained_variance": statistics.explained_variance(value, sample.target),
        }
        if config.self_prediction:
            feature_error = jnp.sum(jnp.square(output.forecast - sample.next_features), axis=-1)
            error = (feature_error + jnp.square(output.reward - sample.reward)) / (output.forecast.shape[-1] + 1)
            auxiliary = jnp.mean(sample.goes_on * error)
            info["loss/auxiliary"] = auxiliary
            loss = loss + hparams.auxiliary_coef * auxiliary
        return loss, info

    def policy_loss(
        params: Policy, critic_params: PyTree, sample: _Sample, memory: Networks, key: Key, hparams: Hyperparams
    ) -> tuple[Array, Metrics]:
        policy = policy_at(params.network, sample.obs, memory, sample.start, hparams.min_std)
        action, log_prob = policy.sample_and_log_prob(key)
        value = value_of(critic_at(critic_params, sample.obs, memory, sample.start, action), hparams)
        kl = sample.old.kl(policy)
        temperature, kl_coef = jnp.exp(params.log_temperature), jnp.exp(params.log_kl_coef)
        loss = losses.relative_entropy_loss(
            log_prob,
            value,
            kl,
            *jax.lax.stop_gradient((temperature, kl_coef)),
            hparams.kl_bound,
            config.constraint,
        )
        entropy_room = jnp.mean(-log_prob) - size * hparams.target_entropy
        kl_room = hparams.kl_bound - jnp.mean(kl)
        info = {
            "loss/policy": loss,
            "policy/entropy": -jnp.mean(log_prob),
            "policy/kl": jnp.mean(kl),
            "policy/share_within_bound": jnp.mean((kl < hparams.kl_bound).astype(jnp.float32)),
            "policy/temperature": temperature,
            "policy/kl_coef": kl_coef,
        }
        prices = losses.price_loss(temperature, entropy_room) + losses.price_loss(kl_coef, kl_room)
        return loss + prices, info

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        keys = jax.random.split(state.key, 4 + config.num_epochs)
        key, key_noise, key_collect, key_next, keys_epoch = keys[0], keys[1], keys[2], keys[3], keys[4:]
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        transform = optimizer(hparams, hparams.learning_rate * schedules.SCHEDULES[config.schedule](progress))

        # --- Collect ---------------------------------------------------------------------------------------------
        def behave(noise: Array, obs: Observation, memory: Any, start: Array) -> tuple[Any, Any, Memory, Any]:
            obs, networks, before = see(state, obs), state.params, of_both(memory)
            outputs, of_policy = apply_step(actor_net, networks.policy.network, obs, before.policy, start)
            action = squashed(outputs, hparams.min_std).sample_from(noise)
            # Of the critic only what it remembers is used; the rest is not computed.
            _, of_critic = apply_step(critic_net, networks.critic, obs, before.critic, start, action)
            return action, to_env_action(space, action), Networks(of_policy, of_critic) if recurrent else (), ()

        noise = jax.random.normal(key_noise, (config.num_steps, config.num_envs, size))
        actor, batch, metrics = rollout.collect(key_collect, env, hparams.env, state.actor, behave, noise, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        samples, reward_scale, metrics["value/share_outside"] = estimate(key_next, state, batch, hparams)

        # --- Update ----------------------------------------------------------------------------------------------
        def update(carry: tuple[Networks, Networks], row: tuple[_Sample, Any, Key]) -> tuple[Any, Metrics]:
            (params, opt_state), (sample, memory, key) = carry, row
            memory = of_both(memory)
            gradient, info = jax.grad(critic_loss, has_aux=True)(params.critic, sample, memory, hparams)
            info["gradient/critic_norm"] = optax.tree.norm(gradient)
            updates, critic_opt_state = transform.update(gradient, opt_state.critic, params.critic)
            critic = optax.apply_updates(params.critic, updates)
            given = sample, memory, key, hparams
            gradient, policy_info = jax.grad(policy_loss, has_aux=True)(params.policy, critic, *given)
            info |= policy_info | {"gradient/policy_norm": optax.tree.norm(gradient)}
            updates, policy_opt_state = transform.update(gradient, opt_state.policy, params.policy)
            policy = optax.apply_updates(params.policy, updates)
            return (Networks(policy, critic), Networks(policy_opt_state, critic_opt_state)), info

        def epoch(carry: Any, key: Key) -> tuple[Any, Metrics]:
            key_shuffle, key_actions = jax.random.split(key)
            given = samples, state.actor.memory, config.num_minibatches, recurrent
            parts = minibatches.shuffled(key_shuffle, *given)
            return jax.lax.scan(update, carry, (*parts, jax.random.split(key_actions, config.num_minibatches)))

        (params, opt_state), info = jax.lax.scan(epoch, (state.params, state.opt_state), keys_epoch)
        metrics |= jax.tree.map(jnp.mean, info)

        seen = state.observation_statistics
        if config.normalize_observations:
            # After the update, so that the KL divergence is 0 in the first minibatch.
            seen = statistics.update_statistics(seen, batch.obs, 2)
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            actor=actor,
            observation_statistics=seen,
            reward_scale=reward_scale,
            min_std=hparams.min_std,
            num_steps=state.num_steps + 1,
        ), metrics

    def act(state: State, memory: Any, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        one, before = jax.tree.map(lambda x: x[None], (see(state, obs), of_both(memory).policy))
        with jax.default_matmul_precision(precision):
            found = apply_step(actor_net, state.params.policy.network, one, before, jnp.zeros(1, bool))
        outputs, after = jax.tree.map(lambda x: x[0], found)
        policy = squashed(outputs, state.min_std)
        # What the critic remembers is not read here.
        action = to_env_action(space, policy.mode() if key is None else policy.sample(key))
        return action, dataclasses.replace(memory, policy=after) if recurrent else ()

    return Algorithm(
        init, step, act, hyperparams, initial_memory, env_steps=batch_size, name="reppo", env=env, config=config
    )


def _validate(env: Env, config: Config) -> spaces.Box:
    """Raises a ValueError for what the factory names; returns the space of actions."""
    space = env.action_space
    if not (isinstance(space, spaces.Box) and space.bounded):
        raise ValueError(
            f"reppo: actions must be a Box with finite bounds, since the gradient of Q goes through them; {env.name!r} "
            f"has {space}. Use ppo."
        )
    validation.layers("reppo", config.network, CriticConfig)
    validation.counts(
        "reppo",
        config,
        ("num_envs", "num_steps", "num_epochs", "num_minibatches", "num_bins", "num_action_samples"),
    )
    validation.choices("reppo", config)
    recurrent = config.network.memory != "none"
    minibatches.validate(config.num_steps, config.num_envs, config.num_minibatches, recurrent)
    return space


_LEAVES = {
    "learning_rate": Leaf(3e-4, 0.0),
    "max_grad_norm": Leaf(0.5, 1e-12),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "trace_lambda": Leaf(0.95, 0.0, 1.0),
    "reward_scale": Leaf(1.0, 1e-12),
    "value_min": Leaf(-100.0),
    "value_max": Leaf(100.0),
    "bin_sigma": Leaf(0.75, 1e-3, needs=("critic", "hl_gauss")),
    "auxiliary_coef": Leaf(1.0, 0.0, needs=("self_prediction", True)),
    "initial_temperature": Leaf(0.01, 1e-12),
    "target_entropy": Leaf(-0.5),
    "initial_kl_coef": Leaf(0.01, 1e-12),
    "kl_bound": Leaf(0.1, 0.0),
    "min_std": Leaf(0.1, 0.0),
    "horizon": Leaf(math.inf, 1.0),
}
