"""Trust region policy optimization and the natural policy gradient (Schulman et al. 2015, arXiv:1502.05477).

One step of the algorithm, with its shapes:

    collect        T steps in B environments                                     [T, B]
    estimate       policy, value and log-probability of all of them at once      [T, B]
                   advantages and value targets                                  [T, B]
    policy         g = ∇ E[π/π_old A];  x ≈ F⁻¹ g by conjugate gradients         like the parameters
                   θ ← θ + α √(2 δ / xᵀFx) x, α halved (say) until the surrogate grows and the KL is at most δ
    values         num_epochs times: shuffle into M minibatches, Adam on the value loss

Without the line search (α = 1) it is the natural policy gradient with a normalized step (Kakade 2001; Rajeswaran et al.
2017, arXiv:1703.02660, eq. 5). The policy step moves every parameter that the policy reads; the value steps only those
that it does not, so they never change the policy.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, diagnostics, rollout, validation
from jaxrl.estimators import gae
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import (
    Output,
    apply_one,
    apply_step,
    init_params,
    only_value_reads,
    successor_value,
)
from jaxrl.ops import losses, minibatches, reward_scaling, statistics, trust_region
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Estimator, Key, Memory, Metrics, Observation, ReturnInputs, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_cg_steps: conjugate-gradient iterations at most.
      line_search: whether the step is shortened until it helps and keeps to the trust region (TRPO), or taken whole
        (natural policy gradient).
      num_backtracks: times that the step is shortened at most; after that nothing is changed.
      num_epochs: passes of the value function over the rollout.
      num_minibatches: parts that each pass splits it into, M.
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers and memory.
      diagnostics: further metrics: gradient_noise (of the policy), dormant, effective_rank, churn, kl.
    """

    num_envs: int = 8
    num_steps: int = 256
    num_cg_steps: int = 10
    line_search: bool = True
    num_backtracks: int = 10
    num_epochs: int = 10
    num_minibatches: int = 16
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
      estimator: coefficients of the estimator of advantages.
      env: parameters of the environment.
      max_kl: δ, the trust region's size in nats: the mean KL divergence from the old policy to the new one.
      damping: added to the diagonal of the Fisher matrix.
      backtrack_factor: by which the line search shortens the step, if `line_search`.
      learning_rate: of the value function's Adam.
      max_grad_norm: greatest global norm of the value function's gradient.
      gamma: discount factor.
      gae_lambda: λ of the estimator of advantages.
    """

    estimator: PyTree
    env: PyTree
    max_kl: Float[Array, ""]
    damping: Float[Array, ""]
    backtrack_factor: Float[Array, ""]
    learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    gamma: Float[Array, ""]
    gae_lambda: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters.
      opt_state: the state of the value function's optimizer.
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


@memoize
def trpo(
    env: Env,
    network: ActorCritic | None = None,
    estimator: Estimator = gae(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds TRPO, or the natural policy gradient with `Config(line_search=False)`.

    Args:
      env: the environment to learn in.
      network: policy and value; None builds `config.network` for the environment's spaces.
      estimator: makes advantages and value targets of a rollout.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics `policy/kl` (of the step
      taken), `policy/step` (α; 0 where the line search gave up) and `policy/improvement` of the surrogate.

    Raises:
      ValueError: counts that are not positive, or a rollout that does not split evenly into minibatches.

    Example:
      >>> import jaxrl
      >>> agent = trpo(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=4, num_steps=32))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> bool((metrics["policy/kl"] <= 0.0101).all())
      True
    """
    validation.layers("trpo", config.network, NetworkConfig)
    net = acting.network_for(env, network, config.network)
    reset = rollout.Reset(config.reset, config.reset_size)
    counted = ("num_envs", "num_steps", "num_cg_steps", "num_backtracks", "num_epochs", "num_minibatches")
    validation.counts("trpo", config, counted)
    validation.choices("trpo", config)
    validation.estimator("trpo", estimator, config.num_envs)
    reset.validate(config.num_envs)
    minibatches.validate(config.num_steps, config.num_envs, config.num_minibatches, net.recurrent)
    noise_parts = diagnostics.num_parts(config, net.recurrent)
    diagnostics.validate("trpo", config.diagnostics, net, noise_parts)
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, estimator=estimator.init(), env=env.default_params())

    def see(state: State, obs: Observation) -> Observation:
        return statistics.normalize(state.observation_statistics, obs) if config.normalize_observations else obs

    def optimizer(hparams: Hyperparams) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),  # type: ignore[arg-type]
            optax.adam(hparams.learning_rate, eps=1e-5),
        )

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
            opt_state=optimizer(hparams).init(params),
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

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, state.params, see(state, obs), memory, start)

        actor, batch, metrics = acting.collect(
            key_collect, env, hparams.env, state.actor, look, config.num_steps, reset
        )

        # --- Estimate --------------------------------------------------------------------------------------------
        obs, next_obs = see(state, batch.obs), see(state, batch.next_obs)
        memory = state.actor.memory
        old, _ = net.apply(state.params, obs, memory, batch.start)
        old_log_prob = old.policy.log_prob(batch.action)
        reward, reward_scale = batch.reward, state.reward_scale
        if config.normalize_rewards:
            reward, reward_scale = reward_scaling.scale_rewards(reward_scale, reward, batch.ended, hparams.gamma)
        advantage, target = estimator.estimate(
            hparams.estimator,
            ReturnInputs(
                reward=reward,
                value=old.value,
                next_value=successor_value(net, state.params, next_obs, batch.memory),
                terminated=batch.terminated,
                truncated=batch.truncated,
                log_ratio=jnp.zeros_like(reward),
                gamma=hparams.gamma,
                trace_lambda=hparams.gae_lambda,
            ),
        )
        advantage = statistics.standardize(advantage)
        metrics["value/explained_variance"] = statistics.explained_variance(old.value, target)

        # --- Update the policy -----------------------------------------------------------------------------------
        def surrogate_and_kl(params: PyTree) -> tuple[Array, Array]:
            new, _ = net.apply(params, obs, memory, batch.start)
            ratio = jnp.exp(new.policy.log_prob(batch.action) - old_log_prob)
            return jnp.mean(ratio * advantage), jnp.mean(old.policy.kl(new.policy))

        region = trust_region.Region(hparams.max_kl, hparams.damping, hparams.backtrack_factor)
        num_backtracks = config.num_backtracks if config.line_search else 0
        params, info = trust_region.step(surrogate_and_kl, state.params, region, config.num_cg_steps, num_backtracks)
        metrics |= info | {"policy/entropy": jnp.mean(old.policy.entropy())}

        # --- Update the values -----------------------------------------------------------------------------------
        transform = optimizer(hparams)

        def update(carry: Any, minibatch: Any) -> tuple[Any, Array]:
            params, opt_state = carry
            (obs, start, target), memory = minibatch

            def loss(params: PyTree) -> Array:
                return losses.value_loss(net.apply(params, obs, memory, start)[0].value, target)

            value_loss, gradient = jax.value_and_grad(loss)(params)
            gradient = _only_values(gradient)
            updates, opt_state = transform.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value_loss

        def epoch(carry: Any, key: Key) -> tuple[Any, Array]:
            samples = (obs, batch.start, target)
            parts = minibatches.shuffled(key, samples, memory, config.num_minibatches, net.recurrent)
            return jax.lax.scan(update, carry, parts)

        (params, opt_state), value_loss = jax.lax.scan(epoch, (params, state.opt_state), keys_epoch)
        metrics["loss/value"] = jnp.mean(value_loss)
        metrics |= diagnostics.measure(config.diagnostics, net, (obs, memory, batch.start), old.policy, params)
        if "gradient_noise" in config.diagnostics:
            samples = (obs, batch.start, batch.action, advantage)

            def gain(params: PyTree, part: Any) -> Array:
                # At the old policy its gradient is the surrogate's.
                (obs, start, action, advantage), memory = part
                return jnp.mean(net.apply(params, obs, memory, start)[0].policy.log_prob(action) * advantage)

            shuffled = lambda key: minibatches.shuffled(key, samples, memory, noise_parts, net.recurrent)
            first = lambda part: jax.grad(gain)(state.params, part)
            metrics |= diagnostics.gradient_noise(state.key, first, shuffled, batch_size)

        seen = state.observation_statistics
        if config.normalize_observations:
            seen = statistics.update_statistics(seen, batch.obs, 2)
        return State(key, params, opt_state, actor, seen, reward_scale, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output, memory = apply_one(net, state.params, see(state, obs), memory)
        return acting.choose(env, output, key), memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="trpo", env=env, config=config
    )


def _only_values(gradient: PyTree) -> PyTree:
    """The gradient with zeros for every parameter that the policy reads too."""

    def keep(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf if only_value_reads(path) else leaf * 0.0

    return jax.tree_util.tree_map_with_path(keep, gradient)


_LEAVES = {
    "max_kl": Leaf(0.01, 1e-12),
    "damping": Leaf(0.1, 0.0),
    "backtrack_factor": Leaf(0.8, 0.0, 1.0, needs=("line_search", True)),
    "learning_rate": Leaf(1e-3, 0.0),
    "max_grad_norm": Leaf(0.5, 1e-12),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "gae_lambda": Leaf(0.95, 0.0, 1.0),
}
