"""Stream Q(λ) and stream SARSA(λ) (Elsayed et al. 2024, arXiv:2410.14606, algorithms 5 and 6).

One environment, no batch, no replay, no target network. One step of the algorithm is `num_steps` transitions; each is
learned from as it comes and forgotten, with its shapes:

    act          ε-greedy in Q(s, ·)                                             []
    observe      r, s'; the running moments of observations and rewards          [], [D]
    error        δ = r + γ b - Q(s, a),  b = max Q(s', ·) or Q(s', a')           []
    trace        z ← γλ z + ∇Q(s, a), cut by an action that was not greedy       like the parameters
    update       θ ← θ + α δ z, α bounded by the trace's norm                    like the parameters

With `columns` the agent remembers: recurrent features of the stream stand beside the observation, and their weights are
learned along the same trace, by gradients that are carried forward (`jaxrl.networks.columnar`, Javed et al. 2023).

Mapped over members, thousands of such learners run side by side.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.networks.columnar import ColumnarConfig, columnar_memory
from jaxrl.networks.initializers import initialize
from jaxrl.networks.streaming import StreamingConfig, streaming_network
from jaxrl.ops import streams, traces
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize
from jaxrl.values import epsilon_greedy, legal_only


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_steps: transitions of one step of the algorithm, each with an update of its own.
      target: q bootstraps from the best action of the successor, sarsa from the one that will be taken.
      cut: with q, whether an action that was not greedy cuts the trace before its own update, as in Watkins' Q(λ), or
        after it, as the authors' code does.
      optimizer: obgd, adaptive_obgd, adam or sgd (see `jaxrl.ops.traces`).
      normalize_observations: whether the network sees observations less their running mean, by their deviation.
      normalize_rewards: whether rewards are divided by the running deviation of the discounted return.
      reset: where new episodes start: fresh or cached (see `jaxrl.rollout.Reset`).
      reset_size: states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: its layers.
      columns: recurrent features that the network sees beside the observation; None: it sees the observation alone.
    """

    num_steps: int = 512
    target: Literal["q", "sarsa"] = "q"
    cut: Literal["before", "after"] = "before"
    optimizer: traces.OptimizerName = "obgd"
    normalize_observations: bool = True
    normalize_rewards: bool = True
    reset: Literal["fresh", "cached"] = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: StreamingConfig = dataclasses.field(default_factory=StreamingConfig)
    columns: ColumnarConfig | None = None


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      columns: length of a stage and normalization (`columnar.Rates`), or ().
      learning_rate: greatest step size.
      kappa: how much the step size is bounded (ObGD).
      trace_lambda: λ of the trace.
      gamma: discount factor.
      epsilon_start: share of random actions at the beginning.
      epsilon_end: share of random actions at the end of the decay.
      epsilon_fraction: share of `horizon` over which it decays linearly.
      horizon: environment steps of the run.
      beta2: decay of the second moment, if the optimizer is adaptive_obgd or adam.
    """

    env: PyTree
    columns: PyTree
    learning_rate: Float[Array, ""]
    kappa: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    gamma: Float[Array, ""]
    epsilon_start: Float[Array, ""]
    epsilon_end: Float[Array, ""]
    epsilon_fraction: Float[Array, ""]
    horizon: Float[Array, ""]
    beta2: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters, and those of the columns in the collection `columns`.
      trace: z, like the parameters.
      cut: whether z is forgotten before the next gradient joins it.
      opt_state: the optimizer's memory, () for ObGD.
      actor: the environment in progress, B = 1.
      columns: the columns' memory after the present observation, or ().
      next_action: the action to take next, [1], where the episode goes on (sarsa); otherwise ().
      observation_statistics: running moments of observations, or ().
      reward_scale: discounted return and its running moments, or ().
      epsilon: present share of random actions.
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: PyTree
    trace: PyTree
    cut: Bool[Array, ""]
    opt_state: PyTree
    actor: rollout.ActorState
    columns: PyTree
    next_action: PyTree
    observation_statistics: PyTree
    reward_scale: PyTree
    epsilon: Float[Array, ""]
    num_steps: Int[Array, ""]


@memoize
def stream_q(env: Env, config: Config = Config()) -> Algorithm:
    """Builds stream Q(λ) or stream SARSA(λ) for an environment with discrete actions.

    Args:
      env: the environment to learn in.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: actions are not discrete, a count is not positive, a choice is unknown, or `config.network` is of
        another class.

    Example:
      >>> import jaxrl
      >>> agent = stream_q(jaxrl.make_env("gymnax/CartPole-v1"), Config(num_steps=4))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/td_error"].shape
      (2,)
    """
    space = env.action_space
    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"stream_q: actions must be Discrete; {env.name!r} has {space}. Use stream_ac or avg.")
    validation.counts("stream_q", config, ("num_steps",))
    validation.choices("stream_q", config)
    validation.layers("stream_q", config.network, StreamingConfig)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(1)
    net = streaming_network(env.observation_space, (("value", space.n),), config.network)
    memory_net = columnar_memory(env.observation_space, config.columns)
    optimizer = traces.OPTIMIZERS[config.optimizer]
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), columns=memory_net.rates())

    def values(params: PyTree, obs: Observation, features: Float[Array, "... F"]) -> Float[Array, "... A"]:
        return legal_only(net.apply(params, obs, features)["value"], obs)  # type: ignore[index]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, 1, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        key_columns = key_params
        if config.columns is not None:
            key_params, key_columns = jax.random.split(key_params)
        params = initialize(net, key_params, one, jnp.zeros(memory_net.num_features))
        params = {**params, "columns": memory_net.init(key_columns)}
        start = (memory_net.initial_carry(), one, jnp.int32(0), jnp.bool_(True), hparams.columns)
        seen, scale = streams.start(one, config.normalize_observations, config.normalize_rewards)
        return State(
            key=key,
            params=params,
            trace=traces.zeros(params),
            cut=jnp.bool_(True),
            opt_state=optimizer.init(params),
            actor=actor,
            columns=memory_net.advance(params["columns"], *start),
            next_action=jnp.zeros(1, jnp.int32) if config.target == "sarsa" else (),
            observation_statistics=seen,
            reward_scale=scale,
            epsilon=jnp.copy(hparams.epsilon_start),  # the state is donated, the hyperparameters are not
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Array, Array], hparams: Hyperparams) -> tuple[State, Metrics]:
        """One transition."""
        key, noise, index = row
        time = state.num_steps.astype(jnp.float32) * config.num_steps + index
        progress = jnp.minimum(time / (hparams.epsilon_fraction * hparams.horizon), 1.0)
        epsilon = hparams.epsilon_start + (hparams.epsilon_end - hparams.epsilon_start) * progress
        features = memory_net.features(state.columns)

        # --- Collect ---------------------------------------------------------------------------------------------
        def policy(noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            value = values(state.params, streams.see(state.observation_statistics, obs), features[None])
            action = epsilon_greedy(noise, value, epsilon)
            if config.target == "sarsa":
                action = jnp.where(start, action, state.next_action)
            return action, action, memory, action == jnp.argmax(value, -1)

        actor, step, metrics = rollout.collect_one(key, env, hparams.env, state.actor, policy, noise[:1], reset)
        greedy = step.extras

        # --- Estimate --------------------------------------------------------------------------------------------
        # With the batch axis of one that acting has, so that the network is evaluated there once.
        obs = streams.see(state.observation_statistics, state.actor.obs)
        next_obs, seen = streams.observe(state.observation_statistics, step.next_obs, actor.obs, step.ended)
        reward, scale = streams.scale(state.reward_scale, step.reward, step.ended, hparams.gamma)

        stage = memory_net.stage_at(time, hparams.columns)
        going_on = (step.next_obs, stage, jnp.bool_(False), hparams.columns)
        remembered = memory_net.advance(state.params["columns"], state.columns, *going_on)
        next_features = memory_net.features(remembered)
        next_values = values(state.params, next_obs, next_features)
        next_action = ()
        if config.target == "sarsa":
            next_action = epsilon_greedy(noise[1:], next_values[None], epsilon)
            bootstrap = next_values[next_action[0]]
        else:
            bootstrap = jnp.max(next_values)
        value, (gradient, cotangent) = jax.value_and_grad(
            lambda params, features: values(params, obs, features[None])[0, step.action], (0, 1)
        )(state.params, features)
        gradient["columns"] = memory_net.pull_back(state.columns, cotangent)
        delta = reward + hparams.gamma * jnp.where(step.terminated, 0.0, bootstrap) - value

        # --- Update ----------------------------------------------------------------------------------------------
        off_policy = ~greedy if config.target == "q" else jnp.bool_(False)
        cut = state.cut | off_policy if config.cut == "before" else state.cut
        trace = traces.accumulate(state.trace, gradient, traces.decay(hparams.gamma, hparams.trace_lambda, cut))
        params, opt_state, size = optimizer.update(
            state.params, state.opt_state, trace, delta, hparams.learning_rate, hparams.kappa, hparams.beta2
        )
        params["columns"] = memory_net.learning(state.columns, params["columns"], state.params["columns"])
        following = (jax.tree.map(lambda x: x[0], actor.obs), memory_net.stage_at(time + 1.0, hparams.columns))
        columns = memory_net.advance(params["columns"], state.columns, *following, step.ended, hparams.columns)
        trace["columns"] = memory_net.learning(columns, trace["columns"], traces.zeros(trace["columns"]))
        metrics |= {
            "loss/td_error": jnp.abs(delta),
            "value/mean": value,
            "update/step_size": size,
            "policy/share_greedy": greedy.astype(jnp.float32),
        }
        state = dataclasses.replace(
            state,
            params=params,
            trace=trace,
            cut=step.ended | off_policy if config.cut == "after" else step.ended,
            opt_state=opt_state,
            actor=actor,
            columns=columns,
            next_action=next_action,
            observation_statistics=seen,
            reward_scale=scale,
            epsilon=epsilon,
        )
        return state, metrics

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_noise = jax.random.split(state.key, 3)
        rows = (
            jax.random.split(key_steps, config.num_steps),
            # All noise in one draw: inside the loop over time it would cost more than the network.
            jax.random.uniform(key_noise, (config.num_steps, 2, 2)),
            jnp.arange(config.num_steps, dtype=jnp.float32),
        )
        with jax.default_matmul_precision(precision):
            state, metrics = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            memory, features = memory_net.recall(state.params["columns"], state.columns, memory, obs)
            value = values(state.params, streams.see(state.observation_statistics, obs), features)
        if key is None:
            return jnp.argmax(value, -1).astype(jnp.int32), memory
        return epsilon_greedy(jax.random.uniform(key, (2,)), value, state.epsilon), memory

    return Algorithm(
        init,
        step,
        act,
        hyperparams,
        initial_memory=memory_net.initial_memory,
        env_steps=config.num_steps,
        name="stream_q",
        env=env,
        config=config,
    )


_LEAVES = {
    "learning_rate": Leaf(1.0, 0.0),
    "kappa": Leaf(2.0, 0.0),
    "trace_lambda": Leaf(0.8, 0.0, 1.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "epsilon_start": Leaf(1.0, 0.0, 1.0),
    "epsilon_end": Leaf(0.01, 0.0, 1.0),
    "epsilon_fraction": Leaf(0.05, 1e-9, 1.0),
    "horizon": Leaf(500_000.0, 1.0),
    "beta2": Leaf(0.999, 0.0, 1.0),
}
