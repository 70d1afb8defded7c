"""Stream TD(λ): prediction under a fixed policy (Elsayed et al. 2024, arXiv:2410.14606).

One environment, no batch, no replay, no target network. What is predicted is the discounted sum of the rewards. One
step of the algorithm is `num_steps` transitions; each is learned from as it comes and forgotten, with its shapes:

    act          a from the policy that is evaluated                             []
    observe      r, s'; the running moments of observations and rewards          [], [D]
    error        δ = r + γ V(s') - V(s)                                          []
    trace        z ← γλ z + ∇V(s)                                                like the parameters
    update       θ ← θ + α δ z, α bounded by the trace's norm                    like the parameters

It is the value's half of stream AC(λ), with the constants of the authors' program for prediction (stream_td.py of their
repository, which this was run beside). With normalized rewards V is in units of their deviation; the metrics are too.

Mapped over members, thousands of such learners run side by side. `ccn` predicts from recurrent features.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.networks.initializers import initialize
from jaxrl.networks.streaming import StreamingConfig, streaming_network
from jaxrl.ops import streams, traces
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_steps: transitions of one step of the algorithm, each with an update of its own.
      optimizer: obgd, adaptive_obgd, adam or sgd (see `jaxrl.ops.traces`).
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh or cached (see `jaxrl.rollout.Reset`).
      reset_size: states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: its layers.
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
      learning_rate: greatest step size.
      kappa: how much the step size is bounded (ObGD).
      trace_lambda: λ of the trace.
      gamma: discount factor.
      beta2: decay of the second moment, if the optimizer is adaptive_obgd or adam.
    """

    env: PyTree
    learning_rate: Float[Array, ""]
    kappa: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    gamma: Float[Array, ""]
    beta2: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: of the value.
      trace: z, like the parameters.
      opt_state: the optimizer's memory, () for ObGD.
      actor: the environment in progress, B = 1.
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted return and its running moments, or ().
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: PyTree
    trace: PyTree
    opt_state: PyTree
    actor: rollout.ActorState
    observation_statistics: PyTree
    reward_scale: PyTree
    num_steps: Int[Array, ""]


@memoize
def stream_td(env: Env, config: Config = Config(), policy: acting.FixedPolicy | None = None) -> Algorithm:
    """Builds a streaming predictor of the discounted sum of an environment's rewards.

    Args:
      env: the environment; what is predicted is its reward, from its observations.
      config: shapes and structure.
      policy: what acts, a pure function; None takes uniformly random actions (the only one, if there is one).

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. `loss/return_error` is the mean
      squared difference of a prediction and the discounted rewards that followed, bootstrapped at the end of the step.

    Raises:
      ValueError: a count is not positive, a choice is unknown, or `config.network` is of another class.

    Example:
      >>> import jaxrl
      >>> agent = stream_td(jaxrl.make_env("gymnax/CartPole-v1"), Config(num_steps=4))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/return_error"].shape
      (2,)
    """
    validation.counts("stream_td", config, ("num_steps",))
    validation.choices("stream_td", config)
    validation.layers("stream_td", config.network, StreamingConfig)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(1)
    net = streaming_network(env.observation_space, (("value", 1),), config.network)
    optimizer = traces.OPTIMIZERS[config.optimizer]
    choose = acting.fixed_policy(env.action_space, policy)
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def value_at(params: PyTree, obs: Observation) -> Float[Array, ""]:
        return net.apply(params, obs)["value"][0]  # type: ignore[index]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, 1, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        params = initialize(net, key_params, one)
        seen, scale = streams.start(one, config.normalize_observations, config.normalize_rewards)
        return State(
            key=key,
            params=params,
            trace=traces.zeros(params),
            opt_state=optimizer.init(params),
            actor=actor,
            observation_statistics=seen,
            reward_scale=scale,
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Key], hparams: Hyperparams) -> tuple[State, tuple[Metrics, Any]]:
        """One transition."""
        key, key_action = row

        # --- Collect ---------------------------------------------------------------------------------------------
        def act_once(key: Key, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            action = jax.vmap(choose)(key[None], obs)
            return action, action, memory, ()

        actor, step, metrics = rollout.collect_one(key, env, hparams.env, state.actor, act_once, key_action, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        obs = streams.see(state.observation_statistics, step.obs)
        next_obs, seen = streams.observe(state.observation_statistics, step.next_obs, actor.obs, step.ended)
        reward, scale = streams.scale(state.reward_scale, step.reward, step.ended, hparams.gamma)
        value, gradient = jax.value_and_grad(value_at)(state.params, obs)
        next_value = value_at(state.params, next_obs)
        delta = reward + hparams.gamma * jnp.where(step.terminated, 0.0, next_value) - value

        # --- Update ----------------------------------------------------------------------------------------------
        decay = traces.decay(hparams.gamma, hparams.trace_lambda, step.start)
        trace = traces.accumulate(state.trace, gradient, decay)
        params, opt_state, size = optimizer.update(
            state.params, state.opt_state, trace, delta, hparams.learning_rate, hparams.kappa, hparams.beta2
        )
        metrics |= {"loss/td_error": jnp.abs(delta), "value/mean": value, "update/step_size": size}
        state = dataclasses.replace(
            state,
            params=params,
            trace=trace,
            opt_state=opt_state,
            actor=actor,
            observation_statistics=seen,
            reward_scale=scale,
        )
        return state, (metrics, (value, reward, next_value, step.terminated, step.truncated))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_actions = jax.random.split(state.key, 3)
        rows = jax.random.split(key_steps, config.num_steps), jax.random.split(key_actions, config.num_steps)
        with jax.default_matmul_precision(precision):
            state, (metrics, outcome) = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        metrics["loss/return_error"] = acting.return_error(*outcome, gamma=hparams.gamma)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return choose(key, obs), memory

    return Algorithm(init, step, act, hyperparams, env_steps=config.num_steps, name="stream_td", env=env, config=config)


_LEAVES = {
    "learning_rate": Leaf(1.0, 0.0),
    "kappa": Leaf(2.0, 0.0),
    "trace_lambda": Leaf(0.8, 0.0, 1.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "beta2": Leaf(0.999, 0.0, 1.0),
}
