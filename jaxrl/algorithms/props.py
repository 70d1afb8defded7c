"""Proximal robust on-policy sampling, PROPS (Corrado and Hanna 2023, arXiv:2311.08290).

PPO learns from the last b rollouts as if the present policy π_θ, the *target* policy, had drawn them all. A *behavior*
policy π_φ acts, and is trained to make that true: it takes the actions that the buffer has too few of.

One step of the algorithm, with its shapes:

    J times
      behavior     φ ← θ, then num_behavior_epochs times: shuffle what is left in the buffer, one optimizer step on
                   E[max(r, clip(r, 1-ε, 1+ε))] + λ E[KL(π_θ ‖ π_φ)],  r = π_φ(a|s) / π_θ(a|s)     [T, b B]
      collect      T/J steps in B environments with π_φ, into the buffer                         [T/J, B]
    estimate       policy, value and log-probability of the whole buffer under θ                 [T, b B]
                   advantages and value targets                                                  [T, b B]
    update         θ by PPO: num_epochs times shuffle into M minibatches                         [M, N/M], N = b T B

With a memory, minibatches are of whole rows of T steps, and each rollout keeps the memory that it began with: that of
the policy which acted, as in recurrent replay (R2D2's stored state).

The data is not weighted by π_θ / π_φ: that it needs no weights is the point. At φ = θ the gradient of the behavior's
loss is E_D[∇ log π_θ] less its mean under π_θ, which is zero, so a step against it takes probability from the actions
that D has too many of. The maximum ends the gain of a sample at r = 1 - ε, and training ends where the mean
KL divergence exceeds δ.

Source: algorithms 1 and 2; the loss is eq. 4 and 5 of version 1. Of the details in which the authors' two programs
differ from each other: the behavior policy is trained before each part of a rollout, so it follows the present θ; it
does not see what will have been overwritten when θ is updated; its optimizer's moments stay when φ ← θ; the penalty is
the divergence itself.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.estimators import gae
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import Output, apply_one, apply_step, init_params, memories_of, successor_value
from jaxrl.objectives import clip
from jaxrl.ops import losses, minibatches, reward_scaling, schedules, statistics, trees
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import adam
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
      num_rollouts: rollouts that the buffer holds and each iteration learns from, b. Before it is full, the rollouts
        that it has are repeated.
      num_behavior_updates: times per iteration that the behavior policy is trained, J; divides T.
      num_behavior_epochs: passes over the buffer each time.
      num_behavior_minibatches: parts that each of these passes splits it into.
      num_epochs: passes of the target policy over the buffer per iteration.
      num_minibatches: parts that each of these passes splits it into, M.
      num_error_epochs: steps of gradient ascent that fit the buffer's likeliest policy, for the metric
        `sampling/error`; 0: no such metric.
      schedule: how the target's learning rate falls with progress: constant, linear or cosine.
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers.
    """

    num_envs: int = 4
    num_steps: int = 128
    num_rollouts: int = 2
    num_behavior_updates: int = 8
    num_behavior_epochs: int = 4
    num_behavior_minibatches: int = 4
    num_epochs: int = 4
    num_minibatches: int = 8
    num_error_epochs: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
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
      objective: coefficients of the target policy's objective.
      estimator: coefficients of the estimator of advantages.
      env: parameters of the environment.
      learning_rate: of the target's optimizer, at the beginning.
      gamma: discount factor.
      gae_lambda: λ of the estimator of advantages.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss.
      max_grad_norm: gradients of a greater global norm are scaled down to it, the target's and the behavior's.
      target_kl: KL divergence of a minibatch from which on the iteration's further updates of θ are dropped.
      behavior_learning_rate: of the behavior's optimizer; 0: the target policy itself acts, on-policy sampling.
      behavior_clip: ε, how far the probability of a sampled action may fall, as a share of the target's.
      behavior_kl_coef: λ, weight of the behavior's divergence from the target.
      behavior_target_kl: δ, the divergence from which on further updates of φ are dropped until the next φ ← θ.
      error_learning_rate: of the fit of the likeliest policy, if `num_error_epochs`.
      horizon: environment steps over which progress goes from 0 to 1; infinite: no schedule.
    """

    objective: PyTree
    estimator: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    gae_lambda: Float[Array, ""]
    entropy_coef: Float[Array, ""]
    value_coef: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    target_kl: Float[Array, ""]
    behavior_learning_rate: Float[Array, ""]
    behavior_clip: Float[Array, ""]
    behavior_kl_coef: Float[Array, ""]
    behavior_target_kl: Float[Array, ""]
    error_learning_rate: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class Stored:
    """What the buffer keeps of transitions; leaves [b, T, B, ...]. Rewards are as scaled when they came.

    Attributes: as of `jaxrl.rollout.Transition`, but for
      memory: the network's before each rollout, leaves [b, B, ...].
    """

    obs: Observation
    action: Any
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: Observation
    start: Array
    memory: Memory


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: θ, the target policy's and the value function's parameters, and those of
        the objective if it has any.
      opt_state: the state of their optimizer.
      behavior_params: φ, with which the last part of the last rollout was drawn; of the same structure as θ.
      behavior_opt_state: the state of their optimizer.
      buffer: the last rollouts; that of iteration i is in slot i mod b.
      actor: environments in progress.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted returns and their running moments, or ().
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    behavior_params: PyTree
    behavior_opt_state: optax.OptState
    buffer: Stored
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    num_steps: Int[Array, ""]


@struct.dataclass
class _Choice:
    """An action as the behavior policy sees it, with the target policy there; leaves [T, b B, ...], then [n, ...].

    `kept` is 1 where the sample counts and 0 elsewhere.
    """

    obs: Observation
    action: Action
    start: Array
    log_prob: Array
    policy: Any
    kept: Array


@memoize
def props(
    env: Env,
    network: ActorCritic | None = None,
    objective: Objective = clip(),  # noqa: B008 (memoized record)
    estimator: Estimator = gae(),  # noqa: B008
    config: Config = Config(),
) -> Algorithm:
    """Builds PROPS on top of PPO.

    With `behavior_learning_rate=0` it is PPO on the same buffer with on-policy sampling, the authors' PPO-Buffer, and
    with `Config(num_rollouts=1)` besides it is PPO.

    Args:
      env: the environment to learn in.
      network: policy and value; None builds `config.network` for the environment's spaces.
      objective: the target policy's loss; its parameters are `hparams.objective`.
      estimator: makes advantages and value targets of a rollout; it is told that the target policy acted.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics `behavior/kl`,
      `behavior/clip_fraction` (samples at the bound 1 - ε) and `behavior/share_applied` (of its updates); and
      `sampling/error` if `num_error_epochs`: the mean of log π_D(a|s) - log π_θ(a|s) over the buffer just before θ is
      updated, π_D being the network fitted to it from θ on by maximum likelihood. `jaxrl.ops.sampling` has the exact
      one for finitely many states.

    Raises:
      ValueError: counts that are not positive, a buffer that does not split evenly, an unknown choice, heads that the
        objective needs and the network lacks.

    Example:
      >>> import jaxrl
      >>> agent = props(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=2, num_steps=16))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> state.buffer.reward.shape
      (2, 16, 2)
    """
    validation.layers("props", config.network, NetworkConfig)
    net = acting.network_for(env, network, config.network)
    reset = rollout.Reset(config.reset, config.reset_size)
    _validate(net, objective, estimator, config)
    reset.validate(config.num_envs)
    num_rollouts, part = config.num_rollouts, config.num_steps // config.num_behavior_updates
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"objective": objective.init(jax.random.key(0)), "estimator": estimator.init()}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def see(state: State, obs: Observation) -> Observation:
        return statistics.normalize(state.observation_statistics, obs) if config.normalize_observations else obs

    def collect(
        key: Key, state: State, actor: rollout.ActorState, params: PyTree, hparams: Hyperparams
    ) -> tuple[rollout.ActorState, rollout.Transition, Metrics]:
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, params, see(state, obs), memory, start)

        return acting.collect(key, env, hparams.env, actor, look, part, reset)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        with jax.default_matmul_precision(precision):
            params = acting.with_variables(init_params(net, key_params, one), objective)
        state = State(
            key=key,
            params=params,
            opt_state=adam(hparams, hparams.learning_rate).init(params),
            # Copies, so that the state can be donated.
            behavior_params=jax.tree.map(jnp.copy, params),
            behavior_opt_state=adam(hparams, hparams.behavior_learning_rate).init(params),
            buffer=(),  # type: ignore[arg-type]
            actor=actor,
            observation_statistics=statistics.init_statistics(one) if config.normalize_observations else (),
            reward_scale=reward_scaling.init_scale(config.num_envs) if config.normalize_rewards else (),
            num_steps=jnp.int32(0),
        )
        _, batch, _ = jax.eval_shape(lambda state: collect(state.key, state, actor, params, hparams), state)
        shape = (num_rollouts, config.num_steps)
        buffer = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[1:]), x.dtype), _stored(batch, batch.reward))
        memory = net.initial_memory((num_rollouts, config.num_envs))
        return dataclasses.replace(state, buffer=dataclasses.replace(buffer, memory=memory))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_behavior, key_update = jax.random.split(state.key, 4)
        keys_collect = jax.random.split(key_collect, config.num_behavior_updates)
        keys_behavior = jax.random.split(key_behavior, (config.num_behavior_updates, config.num_behavior_epochs))
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        transform = adam(hparams, hparams.learning_rate * schedules.SCHEDULES[config.schedule](progress))
        slot = state.num_steps % num_rollouts

        def choices(buffer: Stored, num_parts: Array | int) -> tuple[_Choice, Memory]:
            kept = _kept(state.num_steps, num_parts * part, num_rollouts, config.num_steps)
            kept = jnp.broadcast_to(kept[..., None], buffer.reward.shape).astype(jnp.float32)
            data, kept = _side_by_side(buffer), jnp.swapaxes(kept, 0, 1).reshape(config.num_steps, -1)
            obs = see(state, data.obs)
            policy = net.apply(state.params, obs, data.memory, data.start)[0].policy  # type: ignore[index]
            choice = _Choice(obs, data.action, data.start, policy.log_prob(data.action), policy, kept)
            return choice, data.memory

        # --- Collect ---------------------------------------------------------------------------------------------
        def collect_part(carry: Any, row: tuple[Array, Key, Array]) -> tuple[Any, tuple[Metrics, Metrics]]:
            _, opt_state, buffer, actor, reward_scale = carry
            index, key_collect, keys_epoch = row
            params, opt_state, info = _adapt(
                net, state.params, opt_state, *choices(buffer, index), keys_epoch, hparams, config
            )
            actor, batch, metrics = collect(key_collect, state, actor, params, hparams)
            reward = batch.reward
            if config.normalize_rewards:
                reward, reward_scale = reward_scaling.scale_rewards(reward_scale, reward, batch.ended, hparams.gamma)

            def write(old: Array, new: Array) -> Array:
                return jax.lax.dynamic_update_slice(old, new[None], (slot, index * part) + (0,) * (old.ndim - 2))

            rows = jax.tree.map(write, dataclasses.replace(buffer, memory=()), _stored(batch, reward))
            buffer = dataclasses.replace(rows, memory=buffer.memory)
            return (params, opt_state, buffer, actor, reward_scale), (metrics, info)

        begun = jax.tree.map(lambda old, new: old.at[slot].set(new), state.buffer.memory, state.actor.memory)
        buffer = dataclasses.replace(state.buffer, memory=begun)
        carry = (state.behavior_params, state.behavior_opt_state, buffer, state.actor, state.reward_scale)
        rows = (jnp.arange(config.num_behavior_updates), keys_collect, keys_behavior)
        carry, (metrics, info) = jax.lax.scan(collect_part, carry, rows)
        behavior_params, behavior_opt_state, buffer, actor, reward_scale = carry
        metrics = jax.tree.map(jnp.sum, metrics) | jax.tree.map(jnp.mean, info)
        if config.num_error_epochs:
            data = choices(buffer, config.num_behavior_updates)
            metrics["sampling/error"] = _fitted_error(net, state.params, *data, hparams, config.num_error_epochs)

        # --- Estimate --------------------------------------------------------------------------------------------
        filled = jnp.minimum(state.num_steps + 1, num_rollouts)
        data = _side_by_side(jax.tree.map(lambda x: x[jnp.arange(num_rollouts) % filled], buffer))
        data = dataclasses.replace(data, obs=see(state, data.obs), next_obs=see(state, data.next_obs))
        samples, value = _estimate(net, state.params, data, estimator, hparams, num_rollouts)
        metrics["value/explained_variance"] = statistics.explained_variance(value, samples.target)

        # --- Update ----------------------------------------------------------------------------------------------
        def loss(params: PyTree, sample: Sample, memory: Memory) -> tuple[Array, Metrics]:
            output, _ = net.apply(params, sample.obs, memory, sample.start)  # type: ignore[misc]
            variables = acting.variables_of(params)
            return surrogate_loss(
                output, variables, sample, objective, hparams, progress, standardize=True, clip_value=False
            )

        def update(carry: Any, minibatch: tuple[Sample, Memory]) -> tuple[Any, Metrics]:
            params, opt_state, stopped = carry
            gradient, info = jax.grad(loss, has_aux=True)(params, *minibatch)
            updates, new_opt_state = transform.update(gradient, opt_state, params)
            # A mask, not a condition: under vmap a condition would run both branches anyway.
            stopped = stopped | (info["policy/kl"] > hparams.target_kl)
            learned = (optax.apply_updates(params, updates), new_opt_state)
            params, opt_state = trees.where(stopped, (params, opt_state), learned)
            info |= {
                "gradient/norm": optax.tree.norm(gradient),
                "update/share_applied": 1.0 - stopped.astype(jnp.float32),
            }
            return (params, opt_state, stopped), info

        def epoch(carry: Any, key: Key) -> tuple[Any, Metrics]:
            parts = minibatches.shuffled(key, samples, data.memory, config.num_minibatches, net.recurrent)
            return jax.lax.scan(update, carry, parts)

        carry = (state.params, state.opt_state, jnp.bool_(False))
        (params, opt_state, _), info = jax.lax.scan(epoch, carry, jax.random.split(key_update, config.num_epochs))
        metrics |= jax.tree.map(jnp.mean, info)

        seen = state.observation_statistics
        if config.normalize_observations:
            # After the update, so that the ratio is 1 in the first epoch.
            seen = statistics.update_statistics(seen, jax.tree.map(lambda x: x[slot], buffer.obs), 2)
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            behavior_params=behavior_params,
            behavior_opt_state=behavior_opt_state,
            buffer=buffer,
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
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="props", env=env, config=config
    )


def _validate(net: ActorCritic, objective: Objective, estimator: Estimator, config: Config) -> None:
    """Raises the factory's errors."""
    counted = [field.name for field in dataclasses.fields(config) if field.name.startswith("num_")]
    validation.counts("props", config, [name for name in counted if name != "num_error_epochs"])
    validation.choices("props", config)
    validation.heads("props", objective, net.heads)
    validation.estimator("props", estimator, config.num_envs)
    if config.num_error_epochs < 0:
        raise ValueError(
            "props: num_error_epochs must not be negative (0 leaves the metric out); got num_error_epochs = "
            f"{config.num_error_epochs}."
        )
    if config.num_steps % config.num_behavior_updates:
        raise ValueError(
            "props: num_steps must be divisible by num_behavior_updates; got num_steps = "
            f"{config.num_steps}, num_behavior_updates = {config.num_behavior_updates}."
        )
    for name in ("num_minibatches", "num_behavior_minibatches"):
        rows = config.num_rollouts * config.num_envs
        size = rows if net.recurrent else rows * config.num_steps
        if size % getattr(config, name):
            what = "num_rollouts * num_envs" + ("" if net.recurrent else " * num_steps")
            raise ValueError(
                f"props: the buffer's {what} = {size} {'rows' if net.recurrent else 'transitions'} must be divisible "
                f"by {name}; got {name} = {getattr(config, name)}."
            )


def _stored(batch: rollout.Transition, reward: Array) -> Stored:
    ends = batch.terminated, batch.truncated
    return Stored(batch.obs, batch.action, reward, *ends, batch.next_obs, batch.start, memory=())


def _side_by_side(buffer: Stored) -> Stored:
    """Rollouts as columns of one: leaves [T, b B, ...], of the memory [b B, ...]."""
    column = lambda x: jnp.swapaxes(x, 0, 1).reshape((x.shape[1], -1, *x.shape[3:]))
    rows = jax.tree.map(column, dataclasses.replace(buffer, memory=()))
    return dataclasses.replace(rows, memory=trees.flatten_time(buffer.memory))


def _kept(
    num_rollouts_done: Array, num_steps_done: Array | int, num_rollouts: int, num_steps: int
) -> Bool[Array, "b T"]:
    """Which rows of the buffer hold data that will still be there when θ is next updated.

    Args:
      num_rollouts_done: before this rollout.
      num_steps_done: of this rollout.
      num_rollouts: b.
      num_steps: T.
    """
    slot = jnp.arange(num_rollouts)[:, None]
    present = slot == num_rollouts_done % num_rollouts
    return jnp.where(present, jnp.arange(num_steps) < num_steps_done, slot < num_rollouts_done)


def _adapt(
    net: ActorCritic,
    target: PyTree,
    opt_state: optax.OptState,
    choices: _Choice,
    memory: Memory,
    keys: Key,
    hparams: Hyperparams,
    config: Config,
) -> tuple[PyTree, optax.OptState, Metrics]:
    """Algorithm 2: trains a behavior policy from the target policy on; one key for each epoch."""
    transform = adam(hparams, hparams.behavior_learning_rate)

    def loss(params: PyTree, sample: _Choice, memory: Memory) -> tuple[Array, Metrics]:
        policy = net.apply(params, sample.obs, memory, sample.start)[0].policy  # type: ignore[index]
        total, kl, share = losses.behavior_loss(
            policy.log_prob(sample.action),
            sample.log_prob,
            sample.policy.kl(policy),
            sample.kept,
            hparams.behavior_clip,
            hparams.behavior_kl_coef,
        )
        return total, {"behavior/kl": kl, "behavior/clip_fraction": share}

    def update(carry: Any, minibatch: tuple[_Choice, Memory]) -> tuple[Any, Metrics]:
        (params, opt_state, stopped), (sample, _) = carry, minibatch
        gradient, info = jax.grad(loss, has_aux=True)(params, *minibatch)
        updates, new_opt_state = transform.update(gradient, opt_state, params)
        stopped = stopped | (info["behavior/kl"] > hparams.behavior_target_kl)
        # Without data the optimizer's momentum alone would move φ.
        skipped = stopped | ~jnp.any(sample.kept > 0)
        learned = (optax.apply_updates(params, updates), new_opt_state)
        params, opt_state = trees.where(skipped, (params, opt_state), learned)
        info["behavior/share_applied"] = 1.0 - skipped.astype(jnp.float32)
        return (params, opt_state, stopped), info

    def epoch(carry: Any, key: Key) -> tuple[Any, Metrics]:
        parts = minibatches.shuffled(key, choices, memory, config.num_behavior_minibatches, net.recurrent)
        return jax.lax.scan(update, carry, parts)

    (params, opt_state, _), info = jax.lax.scan(epoch, (target, opt_state, jnp.bool_(False)), keys)
    return params, opt_state, info


def _fitted_error(
    net: ActorCritic, target: PyTree, choices: _Choice, memory: Memory, hparams: Hyperparams, num_steps: int
) -> Float[Array, ""]:
    """The mean of log π_D - log π_θ over the data, π_D fitted from θ on by `num_steps` steps on all of it."""
    transform = adam(hparams, hparams.error_learning_rate)

    def excess(params: PyTree) -> Array:
        policy = net.apply(params, choices.obs, memory, choices.start)[0].policy  # type: ignore[index]
        return losses.weighted_mean(policy.log_prob(choices.action) - choices.log_prob, choices.kept)

    def fit(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state = carry
        gradient = jax.grad(lambda params: -excess(params))(params)
        updates, opt_state = transform.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (fitted, _), _ = jax.lax.scan(fit, (target, transform.init(target)), None, num_steps)
    return excess(fitted)


def _estimate(
    net: ActorCritic, params: PyTree, data: Stored, estimator: Estimator, hparams: Hyperparams, num_rollouts: int
) -> tuple[Sample, Array]:
    """Every transition of the buffer as the target policy sees it now, and its value, [T, b B]."""
    output, _ = net.apply(params, data.obs, data.memory, data.start)  # type: ignore[misc]
    memories = memories_of(net, params, data.obs, data.memory, data.start)
    next_value = successor_value(net, params, data.next_obs, memories)

    def estimate(reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array) -> Any:
        inputs = ReturnInputs(
            reward=reward,
            value=value,
            next_value=next_value,
            terminated=terminated,
            truncated=truncated,
            log_ratio=jnp.zeros_like(value),
            gamma=hparams.gamma,
            trace_lambda=hparams.gae_lambda,
        )
        return estimator.estimate(hparams.estimator, inputs)

    # Each rollout by itself: an estimator may compare environments with each other.
    inputs = (data.reward, output.value, next_value, data.terminated, data.truncated)
    apart = [x.reshape((x.shape[0], num_rollouts, -1)) for x in inputs]
    estimates = jax.vmap(estimate, in_axes=1, out_axes=1)(*apart)
    advantage, target = (x.reshape(output.value.shape) for x in estimates)
    log_prob = output.policy.log_prob(data.action)
    sample = Sample(data.obs, data.action, log_prob, output.policy, advantage, target, start=data.start)
    return sample, output.value


_LEAVES = {
    "learning_rate": Leaf(1e-3, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "gae_lambda": Leaf(0.95, 0.0, 1.0),
    "entropy_coef": Leaf(0.01),
    "value_coef": Leaf(0.5, 0.0),
    "max_grad_norm": Leaf(0.5, 1e-12),
    "target_kl": Leaf(0.03, 0.0),
    "behavior_learning_rate": Leaf(1e-3, 0.0),
    "behavior_clip": Leaf(0.3, 0.0, 1.0),
    "behavior_kl_coef": Leaf(0.1, 0.0),
    "behavior_target_kl": Leaf(0.03, 0.0),
    "error_learning_rate": Leaf(1e-3, 0.0),
    "horizon": Leaf(math.inf, 1.0),
}
