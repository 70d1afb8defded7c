"""Model-based representations for Q-learning, MR.Q (Fujimoto et al. 2025, arXiv:2501.16142).

One step of the algorithm is one period of the targets, R = `num_rounds`, U = `num_updates`, with shapes:

    targets        copies of encoder, policy and critics; the scale of the rewards, mean |r| in replay
    encoder        R U times
      draw         N windows of H rows                                                       [H, N]
      unroll       the model from z_s of the first row with the actions of all rows          [H, N]
      loss         next z_s against the target encoder's, the reward's histogram, the end    [H, N]
    then R times
      collect      T steps in B environments: policy and noise                               [T, B]
      store        in a ring, by priority (LAP)                                              [L, B]
      value        U times
        draw       N transitions over n steps                                                [N]
        target     (r + γ scale' min_m Q'_m(s', π'(s') + clipped noise)) / scale             [N]
        loss       Huber, of each of M critics on z_sa, which does not learn from it         [M, N]
        priority   max(|greatest error of the critics|, 1)^α                                 [N]
        policy     -mean_m Q_m(s, π(s)) + c (actions before squashing)²                      [N]

Continuous actions are squashed by tanh, discrete ones are one-hot: relaxed by the Gumbel softmax for the gradient, the
greatest entry after noise for acting and for targets. Windows end where their episode does; a truncation is
bootstrapped from its true successor. The buffer begins with `num_warmup_steps` random steps of each environment, which
`init` makes; they count neither in `env_steps` nor in progress.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import buffers, replaying, rollout, spaces, validation, values
from jaxrl.buffers import BufferState, Experience, NStep
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.initializers import initialize
from jaxrl.networks.latent import LatentConfig, Windows, before_end, latent_networks, model_losses, symexp_bins
from jaxrl.ops import schedules
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam_with
from jaxrl.replaying import Learner
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_LEAST_SCALE = 1e-8


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: updates of value and policy in a round, U.
      num_rounds: rounds from one copy of the targets to the next, R; before them R U updates of the encoder.
      batch_size: transitions or windows of an update, N.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target of the value, n.
      length: rows that the model is unrolled over, H.
      prioritized: whether replay is by priority.
      schedule: how the learning rates fall with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: sizes of the networks.
    """

    num_envs: int = 1
    num_steps: int = 1
    num_updates: int = 1
    num_rounds: int = 250
    batch_size: int = 256
    capacity: int = 131_072
    num_warmup_steps: int = 8192
    n_step: int = 3
    length: int = 5
    prioritized: bool = True
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: LatentConfig = dataclasses.field(default_factory=LatentConfig)

    @property
    def policy_delay(self) -> int:
        """Updates of the critics for one of the policy."""
        return 1


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      replay: coefficients of priorities (`buffers.Coefficients`), or (); α = 0.4, and without importance weights.
      encoder_learning_rate: of the encoder's optimizer, at the beginning.
      value_learning_rate: of the critics'.
      policy_learning_rate: of the policy's.
      gamma: discount factor.
      dynamics_weight: of the error of the next z_s in the encoder's loss.
      reward_weight: of the reward's cross-entropy.
      termination_weight: of the squared error of the end, as soon as replay has seen one.
      reward_low: the least bin of the reward is at symexp of it.
      reward_high: the greatest bin, likewise.
      exploration_noise: deviation of the noise on actions taken; half of it on discrete ones, here and in the next two.
      policy_noise: deviation of the noise on the target policy's actions.
      noise_clip: bound of that noise.
      gumbel_temperature: of the relaxation of discrete actions.
      least_priority: errors below it count as much.
      pre_activation_weight: c, of the squares of actions before squashing.
      max_grad_norm: of the critics; a gradient of a greater global norm is scaled down to it.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    replay: PyTree
    encoder_learning_rate: Float[Array, ""]
    value_learning_rate: Float[Array, ""]
    policy_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    dynamics_weight: Float[Array, ""]
    reward_weight: Float[Array, ""]
    termination_weight: Float[Array, ""]
    reward_low: Float[Array, ""]
    reward_high: Float[Array, ""]
    exploration_noise: Float[Array, ""]
    policy_noise: Float[Array, ""]
    noise_clip: Float[Array, ""]
    gumbel_temperature: Float[Array, ""]
    least_priority: Float[Array, ""]
    pre_activation_weight: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run. Targets are not in it: each step begins with their copy.

    Attributes:
      key: the random key that every later draw comes from.
      learner: parameters of encoder, policy and value, and their optimizers' states.
      actor: environments in progress.
      buffer: replay.
      reward_scale: what rewards were divided by in the last period.
      acting: deviation of the noise and temperature, which acting reads.
      num_steps: steps of the algorithm done.
    """

    key: Key
    learner: Learner
    actor: rollout.ActorState
    buffer: BufferState
    reward_scale: Float[Array, ""]
    acting: tuple[Float[Array, ""], Float[Array, ""]]
    num_steps: Int[Array, ""]

    @property
    def params(self) -> dict[str, PyTree]:
        """The learner's parameters."""
        return self.learner.params


@struct.dataclass
class _Period:
    """What stays the same from one copy of the targets to the next."""

    target: dict[str, PyTree]
    target_scale: Float[Array, ""]
    scale: Float[Array, ""]
    any_end: Float[Array, ""]
    progress: Float[Array, ""]
    hparams: Hyperparams


_PARTS = ("encoder", "policy", "value")


@memoize
def mrq(
    env: Env,
    optimizer: Optimizer = adam_with(weight_decay=1e-4),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds MR.Q for an environment with discrete or bounded continuous actions.

    Args:
      env: the environment to learn in.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: a count is not positive, a choice is unknown, the capacity or the warm-up does not fit, actions may
        be illegal, or what `latent_networks` raises.

    Example:
      >>> import jaxrl
      >>> config = Config(num_rounds=4, batch_size=8, capacity=64, num_warmup_steps=8)
      >>> agent = mrq(jaxrl.make_env("gymnax/CartPole-v1"), config=config)
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, num_steps=3), jax.random.key(1), agent.hyperparams())
      >>> agent.env_steps, metrics["loss/encoder"].shape, state.buffer.items.action.shape
      (4, (3,), (64, 1))
    """
    replaying.check_config("mrq", config)
    validation.unmasked("mrq", env)
    nets = latent_networks(env.observation_space, env.action_space, config.network)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(config.num_envs)
    buffer = _buffer(config)
    discrete, size = isinstance(env.action_space, spaces.Discrete), nets.policy.num_actions
    precision, unit = config.matmul_precision, 0.5 if discrete else 1.0
    env_steps = config.num_envs * config.num_steps * config.num_rounds

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), replay=buffer.hyperparams())

    def features_of(params: dict[str, PyTree], obs: Observation) -> Float[Array, "*batch S"]:
        return nets.encoder.apply({"params": params["encoder"]}, obs, method="state")  # type: ignore[return-value]

    def values_of(params: dict[str, PyTree], features: Array, action: Array) -> Float[Array, "M N"]:
        pair = nets.encoder.apply({"params": params["encoder"]}, features, action, method="pair")
        return nets.value.apply({"params": params["value"]}, pair)  # type: ignore[return-value]

    def policy_of(
        params: dict[str, PyTree], features: Array, gumbel: Array | None, temperature: Array
    ) -> tuple[Array, Array]:
        """The action, relaxed if it is discrete, and what it was before it was squashed."""
        raw = nets.policy.apply({"params": params["policy"]}, features)
        assert isinstance(raw, jax.Array)
        return (jnp.tanh(raw) if gumbel is None else jax.nn.softmax((raw + gumbel) / temperature)), raw

    def as_input(action: Array) -> Float[Array, "... A"]:
        return jax.nn.one_hot(action, size) if discrete else action

    def drawn_noise(key: Key, *axes: int) -> tuple[Array | None, Array]:
        """Of the Gumbel softmax, if there is one, and of actions."""
        key_gumbel, key_normal = jax.random.split(key)
        gumbel = jax.random.gumbel(key_gumbel, (*axes, size)) if discrete else None
        return gumbel, jax.random.normal(key_normal, (*axes, size))

    def chosen(action: Array) -> Array:
        """What is stored of a noisy action."""
        return jnp.argmax(action, axis=-1).astype(jnp.int32) if discrete else jnp.clip(action, -1.0, 1.0)

    def collect(
        key: Key, noise: PyTree, params: dict[str, PyTree], actor: rollout.ActorState, hparams: Hyperparams
    ) -> tuple[rollout.ActorState, Experience, Metrics]:
        def behave(draw: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            gumbel, normal = draw
            action, _ = policy_of(params, features_of(params, obs), gumbel, hparams.gumbel_temperature)
            action = chosen(action + unit * hparams.exploration_noise * normal)
            return action, to_env_action(env.action_space, action), memory, ()

        actor, batch, metrics = rollout.collect(key, env, hparams.env, actor, behave, noise, reset)
        return actor, replaying.experience(batch), metrics

    def transforms(hparams: Hyperparams, factor: Array | float) -> dict[str, optax.GradientTransformation]:
        """Gradients of the critics alone are clipped."""
        free = hparams.replace(max_grad_norm=jnp.float32(1e9))  # type: ignore[attr-defined]
        made = replaying.optimizers(optimizer, free, _PARTS, factor)
        return made | replaying.optimizers(optimizer, hparams, ("value",), factor)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_encoder, key_policy, key_value, key_actor, key_warmup = jax.random.split(key, 6)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, (), reset)
        actor, batch = replaying.warm_up(key_warmup, env, hparams.env, actor, config.num_warmup_steps, reset)
        rows = replaying.experience(batch)
        one, sizes = jax.tree.map(lambda x: x[0], actor.obs), config.network
        params = {
            "encoder": initialize(nets.encoder, key_encoder, one, jnp.zeros(size))["params"],
            "policy": initialize(nets.policy, key_policy, jnp.zeros(sizes.num_state_features))["params"],
            "value": initialize(nets.value, key_value, jnp.zeros((1, sizes.num_pair_features)))["params"],
        }
        made = transforms(hparams, 1.0)
        return State(
            key=key,
            learner=Learner(params, {name: made[name].init(params[name]) for name in _PARTS}, (), {}),
            actor=actor,
            buffer=buffers.extend(buffer, hparams.replay, buffer.init(jax.tree.map(lambda x: x[0, 0], rows)), rows),
            reward_scale=jnp.float32(1.0),
            acting=_acting(hparams),
            num_steps=jnp.int32(0),
        )

    def encoder_update(learner: Learner, bits: Array, replay: BufferState, period: _Period) -> tuple[Learner, Metrics]:
        hparams = period.hparams
        centers = symexp_bins(hparams.reward_low, hparams.reward_high, config.network.num_bins)
        index = buffer.sample(hparams.replay, replay, bits, period.progress).index
        rows = buffers.windows(dataclasses.replace(replay.items, obs=()), index, config.length)
        windows = Windows(
            obs=jax.tree.map(lambda x: x[0], buffers.windows(replay.items.obs, index, 1)),
            action=as_input(rows.action),
            reward=rows.reward,
            terminated=rows.terminated,
            features=features_of(period.target, rows.next_obs),
            whole=before_end(rows.terminated | rows.truncated),
        )

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            dynamics, reward, termination = model_losses(nets.encoder, params, windows, centers)
            total = (
                hparams.dynamics_weight * dynamics
                + hparams.reward_weight * reward
                + hparams.termination_weight * period.any_end * termination
            )
            return total, {
                "loss/encoder": total,
                "loss/dynamics": dynamics,
                "loss/reward": reward,
                "loss/termination": termination,
            }

        gradient, info = jax.grad(loss, has_aux=True)(learner.params["encoder"])
        made = transforms(hparams, _factor(config, period.progress))
        return replaying.descend(learner, "encoder", gradient, made), info

    def value_update(
        learner: Learner, draw: Any, batch: NStep, weight: Array, period: _Period
    ) -> tuple[Learner, Array, Metrics]:
        """The critics', then the policy's; and the errors that priorities come from."""
        (gumbel, normal), gumbel_now = draw
        hparams, made = period.hparams, transforms(period.hparams, _factor(config, period.progress))

        # --- Value ---------------------------------------------------------------------------------------------------
        features = features_of(period.target, batch.next_obs)
        action, _ = policy_of(period.target, features, gumbel, hparams.gumbel_temperature)
        bound = unit * hparams.noise_clip
        action = as_input(chosen(action + jnp.clip(unit * hparams.policy_noise * normal, -bound, bound)))
        following = jnp.min(values_of(period.target, features, action), axis=0)
        target = (batch.reward + batch.discount * period.target_scale * following) / period.scale
        features = features_of(learner.params, batch.obs)

        def value_loss(params: PyTree) -> tuple[Array, Array]:
            value = values_of({**learner.params, "value": params}, features, as_input(batch.action))
            error = value - jnp.broadcast_to(target, value.shape)
            weights = jnp.broadcast_to(weight, value.shape)
            return jnp.mean(weights * values.huber(error, jnp.float32(1.0))), error

        (loss, error), gradient = jax.value_and_grad(value_loss, has_aux=True)(learner.params["value"])
        learner = replaying.descend(learner, "value", gradient, made)

        # --- Policy --------------------------------------------------------------------------------------------------
        def policy_loss(params: PyTree) -> Array:
            action, raw = policy_of({"policy": params}, features, gumbel_now, hparams.gumbel_temperature)
            value = values_of(learner.params, features, action)
            return -jnp.mean(value) + hparams.pre_activation_weight * jnp.mean(jnp.square(raw))

        climbed, policy_gradient = jax.value_and_grad(policy_loss)(learner.params["policy"])
        info = {
            "loss/value": loss,
            "loss/policy": climbed,
            "value/mean": period.scale * jnp.mean(error + jnp.broadcast_to(target, error.shape)),
            "value/target": period.scale * jnp.mean(target),
            "gradient/value_norm": optax.tree.norm(gradient),
            "gradient/policy_norm": optax.tree.norm(policy_gradient),
        }
        surprise = jnp.maximum(jnp.max(jnp.abs(error), axis=0), hparams.least_priority)
        return replaying.descend(learner, "policy", policy_gradient, made), surprise, info

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_model, key_collect, key_noise, key_replay, key_next, key_now = jax.random.split(state.key, 7)
        num_rounds, shape = config.num_rounds, (config.num_rounds, config.num_updates, config.batch_size)
        period = _Period(
            target=state.learner.params,
            target_scale=state.reward_scale,
            scale=reward_scale(state.buffer),
            any_end=jnp.any(state.buffer.items.terminated).astype(jnp.float32),
            progress=schedules.progress(state.num_steps.astype(jnp.float32) * env_steps, hparams.horizon),
            hparams=hparams,
        )

        # --- Encoder -------------------------------------------------------------------------------------------------
        learner, model_metrics = jax.lax.scan(
            lambda learner, bits: encoder_update(learner, bits, state.buffer, period),
            state.learner,
            buffer.noise(key_model, num_rounds * config.num_updates),
        )

        # --- Rounds --------------------------------------------------------------------------------------------------
        rows = (
            jax.random.split(key_collect, num_rounds),
            drawn_noise(key_noise, num_rounds, config.num_steps, config.num_envs),
            buffer.noise(key_replay, num_rounds, config.num_updates),
            (drawn_noise(key_next, *shape), jax.random.gumbel(key_now, (*shape, size)) if discrete else None),
        )

        def update(carry: tuple[Learner, PyTree], row: Any, replay: BufferState) -> tuple[Any, Metrics]:
            (learner, priorities), (bits, draw) = carry, row
            replay = dataclasses.replace(replay, priorities=priorities)
            sample = buffer.sample(hparams.replay, replay, bits, period.progress)
            batch = buffers.n_step(replay.items, sample.index, config.n_step, hparams.gamma)
            learner, surprise, info = value_update(learner, draw, batch, sample.weight, period)
            return (learner, buffer.update(hparams.replay, priorities, sample.index, surprise)), info

        def round_(carry: Any, row: Any) -> tuple[Any, Metrics]:
            learner, actor, replay = carry
            key_collect, noise, bits, draws = row
            actor, experience, metrics = collect(key_collect, noise, learner.params, actor, hparams)
            replay = buffer.add(hparams.replay, replay, experience)
            (learner, priorities), info = jax.lax.scan(
                lambda carry, row: update(carry, row, replay), (learner, replay.priorities), (bits, draws)
            )
            replay = dataclasses.replace(replay, priorities=priorities)
            return (learner, actor, replay), metrics | jax.tree.map(jnp.mean, info)

        (learner, actor, replay), metrics = jax.lax.scan(round_, (learner, state.actor, state.buffer), rows)
        metrics = rollout.summarize(metrics) | jax.tree.map(jnp.mean, model_metrics)
        after = State(key, learner, actor, replay, period.scale, _acting(hparams), state.num_steps + 1)
        return after, metrics | {"reward/scale": period.scale}

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        scale, temperature = state.acting
        with jax.default_matmul_precision(precision):
            features = features_of(state.params, obs)
            if key is None:
                action = policy_of(state.params, features, jnp.zeros(size) if discrete else None, temperature)[0]
            else:
                gumbel, normal = drawn_noise(key)
                action = policy_of(state.params, features, gumbel, temperature)[0] + unit * scale * normal
        return to_env_action(env.action_space, chosen(action)), memory

    return Algorithm(init, step, act, hyperparams, env_steps=env_steps, name="mrq", env=env, config=config)


def reward_scale(replay: BufferState) -> Float[Array, ""]:
    """Mean |r| of what a buffer holds, at least 1e-8."""
    rewards = replay.items.reward
    # Rows that have not been written are 0.
    count = jnp.maximum(replay.filled, 1).astype(jnp.float32) * rewards.shape[1]
    return jnp.maximum(jnp.sum(jnp.abs(rewards)) / count, _LEAST_SCALE)


def _factor(config: Config, progress: Float[Array, ""]) -> Float[Array, ""]:
    return schedules.SCHEDULES[config.schedule](progress)


def _acting(hparams: Hyperparams) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Copies, since the state is donated and the hyperparameters are not."""
    return jnp.copy(hparams.exploration_noise), jnp.copy(hparams.gumbel_temperature)


def _buffer(config: Config) -> buffers.Buffer:
    window = max(config.n_step, config.length)
    sizes = (config.capacity, config.num_envs, config.batch_size, window)
    if not config.prioritized:
        return buffers.uniform(*sizes)
    return buffers.prioritized(*sizes, alpha=0.4, beta=0.0, beta_end=0.0)


_LEAVES = {
    "encoder_learning_rate": Leaf(1e-4, 0.0),
    "value_learning_rate": Leaf(3e-4, 0.0),
    "policy_learning_rate": Leaf(3e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "dynamics_weight": Leaf(1.0, 0.0),
    "reward_weight": Leaf(0.1, 0.0),
    "termination_weight": Leaf(0.1, 0.0),
    "reward_low": Leaf(-10.0),
    "reward_high": Leaf(10.0),
    "exploration_noise": Leaf(0.2, 0.0),
    "policy_noise": Leaf(0.2, 0.0),
    "noise_clip": Leaf(0.3, 0.0),
    "gumbel_temperature": Leaf(10.0, 1e-6),
    "least_priority": Leaf(1.0, 0.0, needs=("prioritized", True)),
    "pre_activation_weight": Leaf(1e-5, 0.0),
    "max_grad_norm": Leaf(20.0, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
