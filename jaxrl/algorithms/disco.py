"""An agent that learns by Disco103, an update rule found by meta-learning (Oh et al. 2025, Nature).

The agent has a policy π and predictions y(s), z(s, a), p(s, a) and q(s, a), all categorical. One step, with shapes:

    collect        T steps in B environments                                                        [T, B]
    estimate       Retrace of q, advantages; the rule reads the rollout backward: π̂, ŷ, ẑ          [T, B], [T, B, ·]
    update         one optimizer step on
                     KL(π̂‖π) + KL(ŷ‖y) + KL(ẑ‖z_a) + KL(sg π(s')‖p_a) (1 - terminated) + 0.2 CE(q_a, Retrace)
                   a copy of the agent follows slowly, and the rule's own memory takes one step

The rule's weights are `hparams.objective`; those of `jaxrl.objectives.disco_file.weights` are the published ones,
without which nothing is learned. The paper learns from a replay buffer too (90% of a batch); here all data are new.
Actions are discrete.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import acting, rollout, spaces, validation
from jaxrl.networks import Output
from jaxrl.networks.action_model import ActionModel
from jaxrl.networks.initializers import initialize
from jaxrl.networks.torsos import activation_function
from jaxrl.objectives import disco as rules
from jaxrl.objectives.disco import Predictions, Rule
from jaxrl.ops.distributions import Categorical
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      hidden: widths of the torso's dense layers.
      model_size: units of the model of what an action leads to.
      model_hidden: width of the layer of heads on it.
      num_bins: of action values.
      activation: of the network.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
    """

    num_envs: int = 64
    num_steps: int = 29
    hidden: tuple[int, ...] = (512, 512)
    model_size: int = 128
    model_hidden: int = 128
    num_bins: int = 601
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "relu"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      objective: weights of the rule.
      env: parameters of the environment.
      learning_rate: of Adam.
      max_update: elements of Adam's direction of a greater size are cut to it.
      policy_coef: weight of KL(π̂‖π).
      y_coef: of KL(ŷ‖y).
      z_coef: of KL(ẑ‖z).
      next_policy_coef: of the prediction of the next policy.
      value_coef: of the action values' cross-entropy.
      gamma: discount of action values.
      trace_lambda: λ of Retrace.
      target_decay: what the slow copy keeps of itself.
    """

    objective: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    max_update: Float[Array, ""]
    policy_coef: Float[Array, ""]
    y_coef: Float[Array, ""]
    z_coef: Float[Array, ""]
    next_policy_coef: Float[Array, ""]
    value_coef: Float[Array, ""]
    gamma: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    target_decay: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: of the network.
      target_params: of the slow copy.
      opt_state: of the optimizer.
      actor: environments in progress.
      memory: the rule's, over the agent's life.
      moments: of advantages.
    """

    key: Key
    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    actor: rollout.ActorState
    memory: PyTree
    moments: rules.Moments


@memoize
def disco(
    env: Env,
    update_rule: Rule = rules.rule(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds an agent that learns by Disco103.

    Args:
      env: the environment to learn in; its actions are discrete.
      update_rule: gives π̂, ŷ and ẑ; its weights are `hparams.objective`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics: `policy/entropy` before the
      update, in nats, and of each part of the loss the mean over the rollout, `loss/policy`, `loss/y`, `loss/z`,
      `loss/next_policy`, `loss/value`.

    Raises:
      ValueError: a count is not positive, or actions are not discrete or may be illegal.

    Example:
      >>> import jaxrl
      >>> small = rules.rule(prediction_size=5, hidden=4, memory=3)
      >>> agent = disco(jaxrl.make_env("probe/Credit"), small, Config(num_envs=2, num_steps=3, hidden=(8,), num_bins=9))
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, 2), jax.random.key(0), agent.hyperparams())
      >>> metrics["loss/policy"].shape, state.memory[0].shape
      ((2,), (3,))
    """
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("disco", config, ("num_envs", "num_steps", "model_size", "model_hidden"))
    validation.choices("disco", config)
    reset.validate(config.num_envs)
    activation_function(config.activation)
    if config.num_bins < 2:
        raise ValueError(f"disco: num_bins must be at least 2; got num_bins = {config.num_bins}.")
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"disco: actions must be discrete; {env.name!r} has {env.action_space}.")
    validation.unmasked("disco", env)
    num_actions, batch_size = env.action_space.n, config.num_envs * config.num_steps
    precision = config.matmul_precision
    network = ActionModel(
        space=env.observation_space,
        num_actions=num_actions,
        state_heads=(("policy", num_actions), ("y", update_rule.prediction_size)),
        action_heads=(("z", update_rule.prediction_size), ("next_policy", num_actions), ("q", config.num_bins)),
        hidden=config.hidden,
        model_size=config.model_size,
        model_hidden=config.model_hidden,
        activation=config.activation,
    )

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"objective": update_rule.init(jax.random.key(0)), "env": env.default_params()}
        return build(Hyperparams, _LEAVES, config, changes, **nested)

    def read(params: PyTree, obs: Observation) -> Predictions:
        return Predictions(**network.apply(params, obs))  # type: ignore[arg-type]

    def transform(hparams: Hyperparams) -> optax.GradientTransformation:
        # A root of exactly zero has no derivative, which a gradient through the update would need.
        return optax.chain(
            optax.scale_by_adam(eps_root=1e-16),
            optax.clip(hparams.max_update),  # type: ignore[arg-type]
            optax.scale(-hparams.learning_rate),  # type: ignore[arg-type]
        )

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_actor, key_params = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, (), reset)
        params = initialize(network, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=transform(hparams).init(params),
            actor=actor,
            memory=jax.tree.map(jnp.copy, update_rule.initial_memory()),
            moments=rules.initial_moments(),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect = jax.random.split(state.key)

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            logits = network.apply(state.params, obs)["policy"]  # type: ignore[index]
            return Output(Categorical(logits), jnp.zeros(logits.shape[:-1]), {}), memory

        actor, batch, metrics = acting.collect(
            key_collect, env, hparams.env, state.actor, look, config.num_steps, reset
        )

        # --- Estimate --------------------------------------------------------------------------------------------
        here = read(state.params, batch.obs)
        sequence = rules.Sequence(
            action=batch.action,
            reward=batch.reward,
            terminated=batch.terminated,
            truncated=batch.truncated & ~batch.terminated,
            behavior=here.policy,
            here=here,
            there=read(state.params, batch.next_obs),
            target_here=read(state.target_params, batch.obs),
            target_there=read(state.target_params, batch.next_obs),
        )
        estimates, moments = rules.estimate(sequence, state.moments, hparams.gamma, hparams.trace_lambda)
        targets, memory = update_rule.targets(hparams.objective, sequence, estimates, state.memory)
        target_params = optax.incremental_update(state.params, state.target_params, 1.0 - hparams.target_decay)

        # --- Update ----------------------------------------------------------------------------------------------
        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            parts = rules.losses(
                targets, read(params, batch.obs), sequence.there, batch.action, batch.terminated, estimates.target
            )
            means = {name: jnp.mean(part) for name, part in parts.items()}
            return sum((getattr(hparams, f"{name}_coef") * x for name, x in means.items()), jnp.zeros(())), means

        grads, means = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = transform(hparams).update(grads, state.opt_state)
        metrics |= {f"loss/{name}": mean for name, mean in means.items()}
        metrics["policy/entropy"] = jnp.mean(Categorical(here.policy).entropy())
        params: PyTree = optax.apply_updates(state.params, updates)
        return State(key, params, target_params, opt_state, actor, memory, moments), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = Categorical(network.apply(state.params, obs)["policy"])  # type: ignore[index]
        return policy.mode() if key is None else policy.sample(key), memory

    return Algorithm(init, step, act, hyperparams, env_steps=batch_size, name="disco", env=env, config=config)


_LEAVES = {
    "learning_rate": Leaf(3e-4, 0.0),
    "max_update": Leaf(1.0, 0.0),
    "policy_coef": Leaf(1.0, 0.0),
    "y_coef": Leaf(1.0, 0.0),
    "z_coef": Leaf(1.0, 0.0),
    "next_policy_coef": Leaf(1.0, 0.0),
    "value_coef": Leaf(0.2, 0.0),
    "gamma": Leaf(0.997, 0.0, 1.0),
    "trace_lambda": Leaf(0.95, 0.0, 1.0),
    "target_decay": Leaf(0.9, 0.0, 1.0),
}
