"""Streaming TD(λ) prediction with columnar-constructive networks (Javed et al. 2023, arXiv:2302.05326).

One stream, no batch, no replay, no backpropagation through time: the memory is a set of recurrent columns, each with
its exact gradient (`jaxrl.networks.columnar`). What is predicted is the discounted sum of the rewards under a fixed
policy. One step of the algorithm is `num_steps` transitions, each learned from as it comes, with its shapes:

    act          a from the policy that is evaluated                                      []
    predict      v = w · f + b, f the normalized features of the columns that are there   []
    error        δ = r + γ v' - v, v' of the successor with the same weights              []
    trace        z ← γλ z + ∇v: f and 1 for the head, w/σ Dh for the columns that learn   [S d], [d 4 I+2]
    update       columns by α δ z, the head by α/(features there) δ z                     the same
    carry on     columns see the successor; sensitivities follow; perhaps a stage begins  [S d], [d 4 I+2]

Which stage learns follows from the count of transitions. A stage begins with sensitivities, trace and optimizer as new.

Checked against the authors' code (see `jaxrl.networks.columnar`), not against the paper's text: TD(λ) with accumulating
traces, the order above, RMSProp whose mean square starts at 1, the head's smaller step, weights of zero at first. There
the δ of a transition takes v as it was predicted, before the last update; here v and v' have the same weights.
Episodes, which the authors' streams do not have, cut trace and columns as elsewhere in jaxrl.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.networks import columnar
from jaxrl.networks.columnar import ColumnarConfig
from jaxrl.ops import traces, trees
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_steps: transitions of one step of the algorithm, each with an update of its own.
      columns: stages and columns.
      optimizer: rmsprop, obgd, adaptive_obgd, adam or sgd (see `rmsprop` and `jaxrl.ops.traces`), of columns and head.
      reset: where new episodes start: fresh or cached (see `jaxrl.rollout.Reset`).
      reset_size: states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
    """

    num_steps: int = 512
    columns: ColumnarConfig = dataclasses.field(default_factory=ColumnarConfig)
    optimizer: Literal["rmsprop", "obgd", "adaptive_obgd", "adam", "sgd"] = "rmsprop"
    reset: Literal["fresh", "cached"] = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      columns: length of a stage and normalization, see `columnar.Rates`.
      learning_rate: step size of the columns; that of the head is divided by the number of features.
      trace_lambda: λ of the trace.
      gamma: discount factor.
      beta2: decay of the second moment, if the optimizer is rmsprop, adaptive_obgd or adam.
      kappa: how much the step size is bounded, if the optimizer is obgd or adaptive_obgd.
    """

    env: PyTree
    columns: columnar.Rates
    learning_rate: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    gamma: Float[Array, ""]
    beta2: Float[Array, ""]
    kappa: Float[Array, ""]


@struct.dataclass
class Parts:
    """Of parameters, of traces or of optimizer states: the columns' part (but for parameters of those that learn) and
    the head's."""

    columns: PyTree
    head: PyTree


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the kernel of all columns, [S, d, 4, I + 2], and the head's kernel [S, d] and bias.
      trace: z.
      opt_state: the optimizers' memory, () for ObGD.
      actor: the environment in progress, B = 1.
      columns: the columns' memory after the present observation.
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: Parts
    trace: Parts
    opt_state: Parts
    actor: rollout.ActorState
    columns: columnar.Carry
    num_steps: Int[Array, ""]


@memoize
def ccn(env: Env, config: Config = Config(), policy: acting.FixedPolicy | None = None) -> Algorithm:
    """Builds a streaming predictor of the discounted sum of an environment's rewards.

    Args:
      env: the environment; what is predicted is its reward, from its observations.
      config: shapes and structure.
      policy: what acts, a pure function; None takes uniformly random actions (the only one, if there is one).

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. `loss/return_error` is the mean
      squared difference of a prediction and the discounted rewards that followed, bootstrapped at the end of the step.

    Raises:
      ValueError: a count is not positive, or a choice is unknown.

    Example:
      >>> import jaxrl
      >>> agent = ccn(jaxrl.make_env("conditioning/TracePatterning"), Config(num_steps=4))
      >>> run = jax.jit(jaxrl.train(agent, num_steps=2))
      >>> state, metrics = run(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/return_error"].shape
      (2,)
    """
    validation.counts("ccn", config, ("num_steps",))
    validation.choices("ccn", config)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(1)
    encode = functools.partial(columnar.encode, env.observation_space)
    net = columnar.columnar(columnar.num_inputs(env.observation_space), config.columns)
    optimizer = rmsprop() if config.optimizer == "rmsprop" else traces.OPTIMIZERS[config.optimizer]
    choose = acting.fixed_policy(env.action_space, policy)
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), columns=columnar.rates())

    def predict(head: PyTree, features: Float[Array, "S d"]) -> Float[Array, ""]:
        return jnp.sum(head["kernel"] * features) + head["bias"]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, 1, (), reset)
        kernel = net.init(key_params)
        head = {"kernel": jnp.zeros(kernel.shape[:2], jnp.float32), "bias": jnp.float32(0.0)}
        x = encode(jax.tree.map(lambda leaf: leaf[0], actor.obs))
        first = net.advance(kernel, net.initial_carry(), x, jnp.int32(0), jnp.bool_(True), hparams.columns)
        return State(
            key=key,
            params=Parts({"kernel": kernel}, head),
            trace=Parts(jnp.zeros_like(kernel[0]), traces.zeros(head)),
            opt_state=Parts(optimizer.init(kernel[0]), optimizer.init(head)),
            actor=actor,
            columns=first,
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Key, Array], hparams: Hyperparams) -> tuple[State, tuple[Metrics, Any]]:
        """One transition."""
        key, key_action, index = row
        kernel, head, stage = state.params.columns["kernel"], state.params.head, state.columns.stage

        # --- Collect ---------------------------------------------------------------------------------------------
        def act_once(key: Key, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            action = jax.vmap(choose)(key[None], obs)
            return action, action, memory, ()

        actor, step, metrics = rollout.collect_one(key, env, hparams.env, state.actor, act_once, key_action, reset)

        # --- Estimate --------------------------------------------------------------------------------------------
        features = net.features(state.columns)
        value = predict(head, features)
        going_on = jnp.bool_(False)
        seen = net.advance(kernel, state.columns, encode(step.next_obs), stage, going_on, hparams.columns)
        next_value = predict(head, net.features(seen))
        delta = step.reward + hparams.gamma * jnp.where(step.terminated, 0.0, next_value) - value
        gradient = Parts(
            net.pull_back(state.columns, head["kernel"]),
            {"kernel": features, "bias": jnp.float32(1.0)},
        )

        # --- Update ----------------------------------------------------------------------------------------------
        decay = traces.decay(hparams.gamma, hparams.trace_lambda, step.start)
        trace = traces.accumulate(state.trace, gradient, decay)

        def update(params: PyTree, opt_state: PyTree, trace: PyTree, rate: Array) -> tuple[PyTree, PyTree, Array]:
            return optimizer.update(params, opt_state, trace, delta, rate, hparams.kappa, hparams.beta2)

        rate, num_there = hparams.learning_rate, (stage + 1) * config.columns.columns_per_stage
        learned, columns_opt, size = update(kernel[stage], state.opt_state.columns, trace.columns, rate)
        head, head_opt, _ = update(head, state.opt_state.head, trace.head, rate / num_there)
        kernel = kernel.at[stage].set(learned)

        # --- Carry on --------------------------------------------------------------------------------------------
        time = state.num_steps.astype(jnp.float32) * config.num_steps + index
        next_stage = net.stage_at(time + 1.0, hparams.columns.steps_per_stage)
        x = encode(jax.tree.map(lambda leaf: leaf[0], actor.obs))
        columns = net.advance(kernel, state.columns, x, next_stage, step.ended, hparams.columns)
        begins = next_stage != stage
        new = (jnp.zeros_like(learned), optimizer.init(jnp.zeros_like(learned)))
        columns_trace, columns_opt = trees.where(begins, new, (trace.columns, columns_opt))
        metrics |= {
            "loss/td_error": jnp.abs(delta),
            "value/mean": value,
            "update/step_size": size,
            "columns/stage": stage.astype(jnp.float32),
        }
        state = dataclasses.replace(
            state,
            params=Parts({"kernel": kernel}, head),
            trace=Parts(columns_trace, trace.head),
            opt_state=Parts(columns_opt, head_opt),
            actor=actor,
            columns=columns,
        )
        return state, (metrics, (value, step.reward, next_value, step.terminated, step.truncated))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_actions = jax.random.split(state.key, 3)
        rows = (
            jax.random.split(key_steps, config.num_steps),
            jax.random.split(key_actions, config.num_steps),
            jnp.arange(config.num_steps, dtype=jnp.float32),
        )
        with jax.default_matmul_precision(precision):
            state, (metrics, outcome) = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        metrics["loss/return_error"] = acting.return_error(*outcome, gamma=hparams.gamma)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return choose(key, obs), memory

    return Algorithm(init, step, act, hyperparams, env_steps=config.num_steps, name="ccn", env=env, config=config)


def rmsprop(epsilon: float = 1e-8) -> traces.TraceOptimizer:
    """RMSProp along a trace, v ← β₂ v + (1 - β₂) (δz)², θ ← θ + lr δ z / (√v + ε), with v = 1 at first.

    The start at 1 makes the first steps those of plain gradient ascent; it wears off after about 1/(1 - β₂) steps.
    Source: the authors' code.

    Args:
      epsilon: ε, outside the root.

    >>> optimizer, one = rmsprop(), jnp.float32(1.0)
    >>> params, square, _ = optimizer.update(one, optimizer.init(one), one, jnp.float32(2.0), 0.5, 0.0, 0.5)
    >>> float(square), round(float(params), 4)
    (2.5, 1.6325)
    """

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(jnp.ones_like, params)

    def update(
        params: PyTree, square: PyTree, trace: PyTree, delta: Array, learning_rate: Array, kappa: Array, beta2: Array
    ) -> tuple[PyTree, PyTree, Array]:
        square = jax.tree.map(lambda v, z: beta2 * v + (1.0 - beta2) * jnp.square(delta * z), square, trace)
        moved = jax.tree.map(
            lambda p, z, v: p + learning_rate * delta * z / (jnp.sqrt(v) + epsilon), params, trace, square
        )
        return moved, square, jnp.asarray(learning_rate, jnp.float32)

    return traces.TraceOptimizer(init, update)


_LEAVES = {
    "learning_rate": Leaf(1e-3, 0.0),
    "trace_lambda": Leaf(0.99, 0.0, 1.0),
    "gamma": Leaf(0.9, 0.0, 1.0),
    "beta2": Leaf(0.9999, 0.0, 1.0),
    "kappa": Leaf(2.0, 0.0),
}
