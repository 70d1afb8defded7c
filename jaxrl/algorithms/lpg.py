"""An agent that learns by a rule over sequences, such as LPG (Oh et al. 2020, arXiv:2007.08794).

The agent has a policy π and a prediction y, a distribution over m bins, apart from each other. One step, with shapes:

    collect        T steps in B environments                                     [T, B]
    estimate       the rule reads the rollout backward: π̂ and ŷ of each step     [T, B], [T, B, m]
    update         one optimizer step of each on
                     -E[ π̂ log π(a|s) ]   and   prediction_coef E[ KL(y(s) ‖ ŷ) ]

What to predict and how to bootstrap is the rule's affair: y(s') is among its inputs, and ŷ is what y moves to. The
rule's weights are `hparams.objective`, for `jaxrl.evolve` or a gradient through `step` to find: nothing in a step stops
the derivative by them.

Agents are tables, read by gather, or networks; actions are discrete.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, spaces, validation
from jaxrl.networks import Output, orthogonal, tables
from jaxrl.networks.initializers import initialize
from jaxrl.networks.torsos import MLP, Encoder, activation_function
from jaxrl.objectives import rules
from jaxrl.objectives.rules import Rule, RuleInputs
from jaxrl.ops import schedules
from jaxrl.ops.distributions import Categorical
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      tabular: whether policy and prediction are tables of states, of zeros at first; otherwise they are networks.
      hidden: widths of the networks' dense layers.
      activation: of the networks.
      optimizer: stochastic gradient descent or Adam, each behind clipping of the gradient's norm.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
    """

    num_envs: int = 64
    num_steps: int = 20
    tabular: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "tanh"
    optimizer: Literal["sgd", "adam"] = "adam"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      objective: weights of the rule.
      env: parameters of the environment.
      learning_rate: of the policy.
      prediction_learning_rate: of the prediction.
      prediction_coef: weight of the prediction's loss.
      max_grad_norm: gradients of a greater norm are scaled down to it, those of policy and prediction apart.
      gamma: discount factor; the rule sees it.
      horizon: environment steps of the agent's life; only a rule with progress sees it.
    """

    objective: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    prediction_learning_rate: Float[Array, ""]
    prediction_coef: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    gamma: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: {"policy": ..., "prediction": ...}, of each a table {"kernel": [S, ...]} or a network's parameters.
      opt_state: the optimizers' states, likewise.
      actor: environments in progress.
      num_steps: iterations done.
    """

    key: Key
    params: dict[str, PyTree]
    opt_state: dict[str, optax.OptState]
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


class _Network(nn.Module):
    """One vector of an observation."""

    space: spaces.Space
    hidden: tuple[int, ...]
    activation: str
    size: int

    @nn.compact
    def __call__(self, obs: Observation) -> Array:
        features = Encoder(self.space, activation=self.activation, name="encoder")(obs)
        features = MLP(self.hidden, self.activation, name="torso")(features)
        return nn.Dense(self.size, kernel_init=orthogonal(0.01), name="head")(features)


@memoize
def lpg(
    env: Env,
    rule: Rule = rules.lpg(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds an agent that learns by a rule over sequences.

    Args:
      env: the environment to learn in; its actions are discrete.
      rule: gives π̂ and ŷ; its weights are `hparams.objective`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics: `policy/entropy` and
      `prediction/entropy` after the update, in nats; `rule/policy_square`, the mean of π̂², and
      `rule/prediction_square`, that of Σ ŷ²; `rule/gain`, the mean of π̂ log π, which the update raises, and
      `prediction/kl`, that of KL(y ‖ ŷ), which it lowers.

    Raises:
      ValueError: a count is not positive, actions are not discrete or may be illegal, or a table is asked for
        and observations do not name a state.

    Example:
      >>> import jaxrl
      >>> rule = rules.lpg(hidden=4, num_bins=3)
      >>> agent = lpg(jaxrl.make_env("chains/Short"), rule, Config(num_envs=2, tabular=True, optimizer="sgd"))
      >>> state, metrics = jax.jit(jaxrl.train(agent, 2))(jax.random.key(0), agent.hyperparams(learning_rate=40.0))
      >>> state.params["policy"]["kernel"].shape, metrics["prediction/kl"].shape
      ((62, 2), (2,))
    """
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("lpg", config, ("num_envs", "num_steps"))
    validation.choices("lpg", config)
    reset.validate(config.num_envs)
    activation_function(config.activation)
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"lpg: actions must be discrete, since the rule reads π(a|s); {env.name!r} has {env.action_space}."
        )
    validation.unmasked("lpg", env)
    sizes = {"policy": env.action_space.n, "prediction": rule.num_bins}
    num_states = tables.num_states(f"lpg in {env.name}", env.observation_space) if config.tabular else 0
    batch_size, precision = config.num_envs * config.num_steps, config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"objective": rule.init(jax.random.key(0)), "env": env.default_params()}
        return build(Hyperparams, _LEAVES, config, changes, **nested)

    def read(params: dict[str, PyTree], name: str, obs: Observation) -> Array:
        return _read(env, config, sizes[name], params[name], obs)

    def transforms(hparams: Hyperparams) -> dict[str, optax.GradientTransformation]:
        rates = {"policy": hparams.learning_rate, "prediction": hparams.prediction_learning_rate}
        # A root of exactly zero has no derivative, which a gradient through the update would need.
        scale = optax.scale_by_adam(eps=1e-5, eps_root=1e-12) if config.optimizer == "adam" else optax.identity()
        return {
            name: optax.chain(optax.clip_by_global_norm(hparams.max_grad_norm), scale, optax.scale(-rate))  # type: ignore[arg-type]
            for name, rate in rates.items()
        }

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_actor, *keys = jax.random.split(key, 2 + len(sizes))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)

        def begin(key: Key, name: str) -> PyTree:
            if config.tabular:
                return {"kernel": jnp.zeros((num_states, sizes[name]), jnp.float32)}
            return initialize(_network(env, config, sizes[name]), key, one)

        with jax.default_matmul_precision(precision):
            params = {name: begin(key, name) for name, key in zip(sizes, keys, strict=True)}
        return State(
            key=key,
            params=params,
            opt_state={name: transform.init(params[name]) for name, transform in transforms(hparams).items()},
            actor=actor,
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect = jax.random.split(state.key)

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            logits = read(state.params, "policy", obs)
            return Output(Categorical(logits), jnp.zeros(logits.shape[:-1]), {}), memory

        actor, batch, metrics = acting.collect(
            key_collect, env, hparams.env, state.actor, look, config.num_steps, reset
        )

        # --- Estimate --------------------------------------------------------------------------------------------
        def log_prob(params: PyTree) -> Array:
            return Categorical(read(params, "policy", batch.obs)).log_prob(batch.action)

        def log_prediction(params: PyTree, obs: Observation) -> Array:
            return jax.nn.log_softmax(read(params, "prediction", obs))

        num_updates = hparams.horizon / batch_size
        targets = rule.targets(
            hparams.objective,
            RuleInputs(
                reward=batch.reward,
                terminated=batch.terminated,
                ended=batch.ended,
                probability=jnp.exp(log_prob(state.params)),
                prediction=jnp.exp(log_prediction(state.params, batch.obs)),
                next_prediction=jnp.exp(log_prediction(state.params, batch.next_obs)),
                gamma=hparams.gamma,
                progress=schedules.progress(state.num_steps.astype(jnp.float32), num_updates),
                log_horizon=jnp.where(jnp.isfinite(num_updates), jnp.log(num_updates), 0.0),
            ),
        )

        # --- Update ----------------------------------------------------------------------------------------------
        def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            gain, kl = rules.agent_losses(targets, log_prob(params), log_prediction(params, batch.obs))
            return gain + hparams.prediction_coef * kl, (gain, kl)

        grads, (negative_gain, kl) = jax.grad(loss, has_aux=True)(state.params)
        params, opt_state = {}, {}
        for name, transform in transforms(hparams).items():
            updates, opt_state[name] = transform.update(grads[name], state.opt_state[name])
            params[name] = optax.apply_updates(state.params[name], updates)
        metrics |= {
            "rule/gain": -negative_gain,
            "rule/policy_square": jnp.mean(jnp.square(targets.policy)),
            "rule/prediction_square": jnp.mean(jnp.sum(jnp.exp(2.0 * targets.prediction), axis=-1)),
            "prediction/kl": kl,
            **{f"{name}/entropy": jnp.mean(Categorical(read(params, name, batch.obs)).entropy()) for name in sizes},
        }
        return State(key, params, opt_state, actor, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = Categorical(read(state.params, "policy", obs))
        return policy.mode() if key is None else policy.sample(key), memory

    return Algorithm(init, step, act, hyperparams, env_steps=batch_size, name="lpg", env=env, config=config)


@memoize
def policy(env: Env, config: Config = Config()) -> Callable[[State, Observation], Categorical]:
    """π of a learner's state, for what looks at it from outside, such as `jaxrl.meta.meta_gradient`.

    Args:
      env: as for `lpg`.
      config: as for `lpg`.

    Returns:
      `(state, obs [...]) -> distribution [...]`.

    Example:
      >>> import jaxrl
      >>> env, config = jaxrl.make_env("chains/Short"), Config(num_envs=2, tabular=True)
      >>> agent = lpg(env, rules.a2c(3), config)
      >>> state = agent.init(jax.random.key(0), agent.hyperparams())
      >>> policy(env, config)(state, jnp.arange(5)).probs().shape
      (5, 2)
    """
    size = env.action_space.n  # type: ignore[union-attr]
    return lambda state, obs: Categorical(_read(env, config, size, state.params["policy"], obs))


def _network(env: Env, config: Config, size: int) -> _Network:
    return _Network(env.observation_space, config.hidden, config.activation, size)


def _read(env: Env, config: Config, size: int, params: PyTree, obs: Observation) -> Array:
    """Logits, from a table or a network."""
    if config.tabular:
        return params["kernel"][tables.state_of(env.observation_space, obs)]
    return _network(env, config, size).apply(params, obs)  # type: ignore[return-value]


_LEAVES = {
    "learning_rate": Leaf(5e-4, 0.0),
    "prediction_learning_rate": Leaf(5e-4, 0.0),
    "prediction_coef": Leaf(0.5, 0.0),
    "max_grad_norm": Leaf(0.5, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "horizon": Leaf(float("inf"), 1.0),
}
