"""Action value gradient, AVG (Vasan et al. 2024, arXiv:2411.15370, algorithm 1).

A soft actor-critic that learns from the latest transition only: one environment, no batch, no replay, no target
network. One step of the algorithm is `num_steps` transitions, with their shapes:

    act          a = tanh of a Gaussian, kept as a function of the policy's parameters   [A]
    observe      r, s'; the running moments of observations                              [], [D]
    error        δ = (r + γ (Q(s', a') - c log π(a'|s')) - Q(s, a)) / σ                  []
    update       the critic down ∇δ², the policy up ∇(Q(s, a) - c log π(a|s))            by Adam each

σ is the running deviation of `jaxrl.ops.error_scaling`. Mapped over members, thousands of such learners run side by
side.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.initializers import initialize
from jaxrl.networks.streaming import StreamingConfig, streaming_network
from jaxrl.ops import error_scaling, losses, statistics, streams
from jaxrl.ops.distributions import TanhGaussian
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_LOG_STD = (-20.0, 2.0)
_NETWORK = StreamingConfig(hidden=(256, 256), initializer="orthogonal", layer_norm=False, unit_features=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_steps: transitions of one step of the algorithm, each with an update of its own.
      normalize_observations: whether the networks see observations less their running mean, by their deviation.
      scale_errors: whether TD errors are divided by their running deviation σ.
      reset: where new episodes start: fresh or cached (see `jaxrl.rollout.Reset`).
      reset_size: states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: layers of policy and critic, each with its own.
    """

    num_steps: int = 512
    normalize_observations: bool = True
    scale_errors: bool = True
    reset: Literal["fresh", "cached"] = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: StreamingConfig = _NETWORK


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      policy_learning_rate: of the policy.
      critic_learning_rate: of the critic.
      beta1: decay of Adam's first moment.
      gamma: discount factor.
      entropy_coef: weight of the policy's log-probability, c.
    """

    env: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    beta1: Float[Array, ""]
    gamma: Float[Array, ""]
    entropy_coef: Float[Array, ""]


@struct.dataclass
class Networks:
    """The policy's part and the critic's: of parameters or of optimizer states."""

    policy: PyTree
    critic: PyTree


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the networks' parameters.
      opt_state: Adam's moments.
      actor: the environment in progress, B = 1.
      observation_statistics: running moments of observations, or ().
      error_scale: running moments of rewards, discounts and returns, or ().
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: Networks
    opt_state: Networks
    actor: rollout.ActorState
    observation_statistics: PyTree
    error_scale: PyTree
    num_steps: Int[Array, ""]


@memoize
def avg(env: Env, config: Config = Config()) -> Algorithm:
    """Builds AVG for an environment with continuous, bounded actions.

    Args:
      env: the environment to learn in.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: actions are no `Box` with finite bounds, a count is not positive, a choice is unknown, or
        `config.network` is of another class.

    Example:
      >>> import jaxrl
      >>> agent = avg(jaxrl.make_env("gymnax/Pendulum-v1"), Config(num_steps=4))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/td_error"].shape
      (2,)
    """
    space = env.action_space
    if not (isinstance(space, spaces.Box) and space.bounded):
        raise ValueError(f"avg: actions must be a Box with finite bounds; {env.name!r} has {space}. Use stream_ac.")
    validation.counts("avg", config, ("num_steps",))
    validation.choices("avg", config)
    validation.layers("avg", config.network, StreamingConfig)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(1)
    size = spaces.size(space)
    policy_net = streaming_network(env.observation_space, (("mean", size), ("log_std", size)), config.network)
    critic_net = streaming_network(env.observation_space, (("value", 1),), config.network)
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def adam(hparams: Hyperparams, learning_rate: Array) -> optax.GradientTransformation:
        return optax.adam(learning_rate, b1=hparams.beta1)  # type: ignore[arg-type]

    def see(seen: PyTree, obs: Observation) -> Observation:
        return statistics.normalize(seen, obs, clip=math.inf) if config.normalize_observations else obs

    def policy_at(params: PyTree, obs: Observation) -> TanhGaussian:
        outputs = policy_net.apply(params, obs)
        return TanhGaussian(outputs["mean"], jnp.clip(outputs["log_std"], *_LOG_STD))  # type: ignore[index]

    def critic_at(params: PyTree, obs: Observation, action: Array) -> Float[Array, ""]:
        return critic_net.apply(params, obs, action)["value"][..., 0]  # type: ignore[index]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_actor = jax.random.split(key, 4)
        actor = rollout.start(key_actor, env, hparams.env, 1, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        params = Networks(
            policy=initialize(policy_net, key_policy, one),
            critic=initialize(critic_net, key_critic, one, jnp.zeros(size)),
        )
        seen, _ = streams.start(one, config.normalize_observations, rewards=False)
        return State(
            key=key,
            params=params,
            opt_state=Networks(
                adam(hparams, hparams.policy_learning_rate).init(params.policy),
                adam(hparams, hparams.critic_learning_rate).init(params.critic),
            ),
            actor=actor,
            observation_statistics=seen,
            error_scale=error_scaling.init_error_scale() if config.scale_errors else (),
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Array], hparams: Hyperparams) -> tuple[State, Metrics]:
        """One transition."""
        key, (noise, next_noise) = row
        params = state.params

        # --- Collect ---------------------------------------------------------------------------------------------
        def policy(noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            action, _ = _draw(policy_at(params.policy, see(state.observation_statistics, obs)), noise[None])
            return action, to_env_action(space, action), memory, ()

        actor, step, metrics = rollout.collect_one(key, env, hparams.env, state.actor, policy, noise, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        seen = state.observation_statistics
        obs = see(seen, step.obs)
        next_obs, seen = streams.observe(seen, step.next_obs, actor.obs, step.ended, see)

        def policy_loss(policy_params: PyTree) -> tuple[Array, Array]:
            # The action taken, as a function of the parameters.
            action, log_prob = _draw(policy_at(policy_params, obs), noise)
            return hparams.entropy_coef * log_prob - critic_at(params.critic, obs, action), log_prob

        policy_gradient, log_prob = jax.grad(policy_loss, has_aux=True)(params.policy)
        next_action, next_log_prob = _draw(policy_at(params.policy, next_obs), next_noise)
        next_value = critic_at(params.critic, next_obs, next_action)
        target = losses.soft_target(
            step.reward, next_value, next_log_prob, step.terminated, hparams.gamma, hparams.entropy_coef
        )
        deviation, scale = jnp.float32(1.0), state.error_scale
        if config.scale_errors:
            soft_reward = step.reward - hparams.entropy_coef * log_prob
            deviation, scale = error_scaling.update_error_scale(
                scale, soft_reward, hparams.gamma, step.terminated, step.ended
            )

        def critic_loss(critic_params: PyTree) -> tuple[Array, Any]:
            value = critic_at(critic_params, obs, step.action)
            delta = (target - value) / deviation
            return jnp.square(delta), (value, delta)

        critic_gradient, (value, delta) = jax.grad(critic_loss, has_aux=True)(params.critic)

        # --- Update ----------------------------------------------------------------------------------------------
        def update(name: str, gradient: PyTree, learning_rate: Array) -> tuple[PyTree, PyTree]:
            before, opt_state = getattr(params, name), getattr(state.opt_state, name)
            updates, opt_state = adam(hparams, learning_rate).update(gradient, opt_state, before)
            return optax.apply_updates(before, updates), opt_state

        policy_params, policy_opt_state = update("policy", policy_gradient, hparams.policy_learning_rate)
        critic_params, critic_opt_state = update("critic", critic_gradient, hparams.critic_learning_rate)
        metrics |= {
            "loss/td_error": jnp.abs(delta),
            "policy/entropy": -log_prob,
            "value/mean": value,
            "value/deviation": deviation,
        }
        state = dataclasses.replace(
            state,
            params=Networks(policy_params, critic_params),
            opt_state=Networks(policy_opt_state, critic_opt_state),
            actor=actor,
            observation_statistics=seen,
            error_scale=scale,
        )
        return state, metrics

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_noise = jax.random.split(state.key, 3)
        rows = (
            jax.random.split(key_steps, config.num_steps),
            # All noise in one draw: inside the loop over time it would cost more than the network.
            jax.random.normal(key_noise, (config.num_steps, 2, size)),
        )
        with jax.default_matmul_precision(precision):
            state, metrics = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = policy_at(state.params.policy, see(state.observation_statistics, obs))
        return to_env_action(space, policy.mode() if key is None else policy.sample(key)), memory

    return Algorithm(init, step, act, hyperparams, env_steps=config.num_steps, name="avg", env=env, config=config)


def _draw(policy: TanhGaussian, noise: Float[Array, "*batch A"]) -> tuple[Array, Float[Array, "*batch"]]:
    """Turns standard normal noise into an action in [-1, 1] and its log-density, both differentiable."""
    base = policy.base()
    raw = base.sample_from(noise)
    log_slope = 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
    return jnp.tanh(raw), base.log_prob(raw) - jnp.sum(log_slope, -1)


_LEAVES = {
    "policy_learning_rate": Leaf(0.0063, 0.0),
    "critic_learning_rate": Leaf(0.0087, 0.0),
    "beta1": Leaf(0.0, 0.0, 1.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "entropy_coef": Leaf(0.07, 0.0),
}
