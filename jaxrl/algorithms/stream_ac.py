"""Stream AC(λ) (Elsayed et al. 2024, arXiv:2410.14606, algorithm 4), for discrete and continuous actions.

One environment, no batch, no replay, no target network. One step of the algorithm is `num_steps` transitions; each is
learned from as it comes and forgotten, with its shapes:

    act          a ~ π(·|s)                                                              []
    observe      r, s'; the running moments of observations and rewards                  [], [D]
    error        δ = r + γ V(s') - V(s)                                                  []
    traces       z_V ← γλ z_V + ∇V(s)                                                    like the value's parameters
                 z_π ← γλ z_π + ∇(log π(a|s) + c H(π(·|s)) sign δ)                       like the policy's
    update       both move by α δ z, each α bounded by its own trace's norm

The value's half alone is stream TD(λ). Mapped over members, thousands of such learners run side by side.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, validation
from jaxrl.networks.actor_critic import check_mask, to_env_action
from jaxrl.networks.initializers import initialize
from jaxrl.networks.streaming import StreamingConfig, policy_distribution, policy_outputs, streaming_network
from jaxrl.ops import streams, traces
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_steps: transitions of one step of the algorithm, each with an update of its own.
      optimizer: obgd, adaptive_obgd, adam or sgd (see `jaxrl.ops.traces`), of policy and value.
      normalize_observations: whether the networks see observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh or cached (see `jaxrl.rollout.Reset`).
      reset_size: states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: layers of policy and value, each with its own.
    """

    num_steps: int = 512
    optimizer: traces.OptimizerName = "obgd"
    normalize_observations: bool = True
    normalize_rewards: bool = True
    reset: Literal["fresh", "cached"] = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: StreamingConfig = dataclasses.field(default_factory=StreamingConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      learning_rate: greatest step size of policy and value.
      kappa_policy: how much the policy's step size is bounded (ObGD).
      kappa_value: how much the value's is.
      trace_lambda: λ of both traces.
      gamma: discount factor.
      entropy_coef: weight of the entropy in the policy's trace.
      beta2: decay of the second moment, if the optimizer is adaptive_obgd or adam.
    """

    env: PyTree
    learning_rate: Float[Array, ""]
    kappa_policy: Float[Array, ""]
    kappa_value: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    gamma: Float[Array, ""]
    entropy_coef: Float[Array, ""]
    beta2: Float[Array, ""]


@struct.dataclass
class Networks:
    """The policy's part and the value's: of parameters, of traces or of optimizer states."""

    policy: PyTree
    value: PyTree


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the networks' parameters.
      trace: z, like the parameters.
      opt_state: the optimizers' memory, () for ObGD.
      actor: the environment in progress, B = 1.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted return and its running moments, or ().
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: Networks
    trace: Networks
    opt_state: Networks
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    num_steps: Int[Array, ""]


@memoize
def stream_ac(env: Env, config: Config = Config()) -> Algorithm:
    """Builds stream AC(λ) for an environment.

    Args:
      env: the environment to learn in; actions are `Discrete`, `MultiDiscrete` or a `Box`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: there is no policy over the actions or their mask is of others, a count is not positive, a choice is
        unknown, or `config.network` is of another class.

    Example:
      >>> import jaxrl
      >>> agent = stream_ac(jaxrl.make_env("gymnax/Pendulum-v1"), Config(num_steps=4))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/td_error"].shape
      (2,)
    """
    space = env.action_space
    validation.counts("stream_ac", config, ("num_steps",))
    validation.choices("stream_ac", config)
    validation.layers("stream_ac", config.network, StreamingConfig)
    check_mask(env.observation_space, space)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(1)
    policy_net = streaming_network(env.observation_space, policy_outputs(space), config.network)
    value_net = streaming_network(env.observation_space, (("value", 1),), config.network)
    optimizer = traces.OPTIMIZERS[config.optimizer]
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def policy_at(params: PyTree, obs: Observation) -> Any:
        mask = obs.get("action_mask") if isinstance(obs, dict) else None
        return policy_distribution(space, policy_net.apply(params, obs), mask)  # type: ignore[arg-type]

    def value_at(params: PyTree, obs: Observation) -> Float[Array, "..."]:
        return value_net.apply(params, obs)["value"][..., 0]  # type: ignore[index]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_value, key_actor = jax.random.split(key, 4)
        actor = rollout.start(key_actor, env, hparams.env, 1, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        params = Networks(initialize(policy_net, key_policy, one), initialize(value_net, key_value, one))
        seen, scale = streams.start(one, config.normalize_observations, config.normalize_rewards)
        return State(
            key=key,
            params=params,
            trace=traces.zeros(params),
            opt_state=Networks(optimizer.init(params.policy), optimizer.init(params.value)),
            actor=actor,
            observation_statistics=seen,
            reward_scale=scale,
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Any], hparams: Hyperparams) -> tuple[State, Metrics]:
        """One transition."""
        key, noise = row

        # --- Collect ---------------------------------------------------------------------------------------------
        def policy(noise: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            action = policy_at(state.params.policy, streams.see(state.observation_statistics, obs)).sample_from(noise)
            return action, to_env_action(space, action), memory, ()

        actor, step, metrics = rollout.collect_one(key, env, hparams.env, state.actor, policy, noise, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        # With the batch axis of one that acting has, so that the policy is evaluated there once.
        obs = streams.see(state.observation_statistics, state.actor.obs)
        next_obs, seen = streams.observe(state.observation_statistics, step.next_obs, actor.obs, step.ended)
        reward, scale = streams.scale(state.reward_scale, step.reward, step.ended, hparams.gamma)

        value, value_gradient = jax.value_and_grad(lambda params: value_at(params, obs)[0])(state.params.value)
        next_value = value_at(state.params.value, next_obs)
        delta = reward + hparams.gamma * jnp.where(step.terminated, 0.0, next_value) - value

        def score(params: PyTree) -> tuple[Array, Array]:
            distribution = policy_at(params, obs)
            entropy = distribution.entropy()[0]
            log_prob = distribution.log_prob(step.action[None])[0]
            return log_prob + hparams.entropy_coef * entropy * jnp.sign(delta), entropy

        policy_gradient, entropy = jax.grad(score, has_aux=True)(state.params.policy)

        # --- Update ----------------------------------------------------------------------------------------------
        decay = traces.decay(hparams.gamma, hparams.trace_lambda, step.start)
        trace = traces.accumulate(state.trace, Networks(policy_gradient, value_gradient), decay)

        def update(name: str, kappa: Array) -> tuple[PyTree, PyTree, Array]:
            parts = (getattr(tree, name) for tree in (state.params, state.opt_state, trace))
            return optimizer.update(*parts, delta, hparams.learning_rate, kappa, hparams.beta2)

        policy_params, policy_opt_state, policy_size = update("policy", hparams.kappa_policy)
        value_params, value_opt_state, value_size = update("value", hparams.kappa_value)
        metrics |= {
            "loss/td_error": jnp.abs(delta),
            "policy/entropy": entropy,
            "value/mean": value,
            "update/policy_step_size": policy_size,
            "update/value_step_size": value_size,
        }
        state = dataclasses.replace(
            state,
            params=Networks(policy_params, value_params),
            trace=trace,
            opt_state=Networks(policy_opt_state, value_opt_state),
            actor=actor,
            observation_statistics=seen,
            reward_scale=scale,
        )
        return state, metrics

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_noise = jax.random.split(state.key, 3)
        # All noise in one draw: inside the loop over time it would cost more than the network.
        shapes = jax.eval_shape(policy_at, state.params.policy, state.actor.obs)
        noise = jax.vmap(shapes.noise)(jax.random.split(key_noise, config.num_steps))
        rows = (jax.random.split(key_steps, config.num_steps), noise)
        with jax.default_matmul_precision(precision):
            state, metrics = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = policy_at(state.params.policy, streams.see(state.observation_statistics, obs))
        return to_env_action(space, policy.mode() if key is None else policy.sample(key)), memory

    return Algorithm(init, step, act, hyperparams, env_steps=config.num_steps, name="stream_ac", env=env, config=config)


_LEAVES = {
    "learning_rate": Leaf(1.0, 0.0),
    "kappa_policy": Leaf(3.0, 0.0),
    "kappa_value": Leaf(2.0, 0.0),
    "trace_lambda": Leaf(0.8, 0.0, 1.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "entropy_coef": Leaf(0.01),
    "beta2": Leaf(0.999, 0.0, 1.0),
}
