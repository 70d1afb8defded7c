"""Twin delayed deep deterministic policy gradient, TD3 (Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1).

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments: π(s) + noise, clipped              [T, B]
    store          in a ring, drawn from uniformly                               [L, B]
    critic         num_updates times
      draw         N transitions over n steps                                    [N]
      target       y = r + γ aggregate of Q'_m(s', π'(s') + clipped noise)       [N, J]
      loss         of each of M critics; one optimizer step                      [M, N, K]
    policy         after every `policy_delay` updates of the critics
      loss         -Q_1(s, π(s))                                                 [N]
      targets      policy and critics, averaged

The buffer begins with `num_warmup_steps` random steps of each environment, made by `init`; they count neither in
`env_steps` nor in progress. All random numbers of a step but dropout's are drawn before the loops.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import buffers, ensembles, replaying, rollout, spaces
from jaxrl.buffers import BufferState
from jaxrl.ensembles import Aggregate
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.control import ControlConfig, ControlNetworks, coefficients, evaluate, networks_for
from jaxrl.networks.initializers import initialize
from jaxrl.ops import schedules
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: updates of the critics in a round.
      policy_delay: updates of the critics for one of the policy and of the targets.
      num_rounds: rounds of one step of the algorithm; only batches random numbers and metrics.
      batch_size: transitions of an update, N.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps` that divides capacity / num_envs.
      n_step: rows of a target, n.
      schedule: how the learning rates fall with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default networks' layers.
    """

    num_envs: int = 1
    num_steps: int = 1
    num_updates: int = 1
    policy_delay: int = 2
    num_rounds: int = 120
    batch_size: int = 256
    capacity: int = 131_072
    num_warmup_steps: int = 1024
    n_step: int = 1
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: ControlConfig = dataclasses.field(default_factory=ControlConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      network: coefficients of the networks (`jaxrl.networks.control.Coefficients`).
      policy_learning_rate: of the policy's optimizer, at the beginning.
      critic_learning_rate: of the critics'.
      gamma: discount factor.
      tau: how far the target parameters move at each update of the policy.
      exploration_noise: deviation of the noise on actions taken; actions range from -1 to 1.
      policy_noise: deviation of the noise on the target policy's actions.
      noise_clip: bound of that noise.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each network's by itself.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    network: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]
    exploration_noise: Float[Array, ""]
    policy_noise: Float[Array, ""]
    noise_clip: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class Parts:
    """One thing for the policy, one for the critics."""

    policy: PyTree
    critic: PyTree


@struct.dataclass
class Learner:
    """What an update changes.

    Attributes:
      params: parameters.
      opt_state: states of the two optimizers.
      target_params: averages of the parameters.
    """

    params: Parts
    opt_state: Parts
    target_params: Parts


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      learner: parameters and all that their updates change.
      actor: environments in progress.
      buffer: replay; actions between -1 and 1, flat.
      exploration_noise: the hyperparameter, for `act`.
      num_steps: steps of the algorithm done.
    """

    key: Key
    learner: Learner
    actor: rollout.ActorState
    buffer: BufferState
    exploration_noise: Float[Array, ""]
    num_steps: Int[Array, ""]

    @property
    def params(self) -> Parts:
        """The learner's parameters."""
        return self.learner.params


@memoize
def td3(
    env: Env,
    network: ControlNetworks | None = None,
    aggregate: Aggregate = ensembles.minimum(climb="first"),  # noqa: B008 (memoized record)
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds TD3 for an environment with bounded continuous actions.

    Args:
      env: the environment to learn in; its actions are a `Box` with finite bounds.
      network: policy and critics; None builds `config.network` for the environment's spaces.
      aggregate: how the critics make a target, and what the policy climbs.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: actions are no bounded `Box`, a count is not positive, a choice is unknown, the capacity, the warm-up
        or the delay does not fit, there is batch normalization, or the ensemble does not fit the aggregate.

    Example:
      >>> import jaxrl
      >>> small = ControlConfig(hidden=(16,))
      >>> config = Config(num_rounds=4, batch_size=8, capacity=64, num_warmup_steps=8, network=small)
      >>> agent = td3(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=3))(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/critic"].shape, int(state.buffer.filled)
      ((3,), 20)
    """
    replaying.check_config("td3", config)
    plan = replaying.order("td3", config.num_rounds, config.num_updates, config.policy_delay)
    policy_net, critic_net = networks_for("td3", env, network, False, config.network)
    if critic_net.config.norm == "batch":
        raise ValueError("td3: batch normalization cannot go with target networks; got norm = 'batch': use crossq.")
    aggregate.check(critic_net.num_members, critic_net.num_outputs)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(config.num_envs)
    buffer = buffers.uniform(config.capacity, config.num_envs, config.batch_size, config.n_step)
    space, size = env.action_space, spaces.size(env.action_space)
    batch_size = config.num_envs * config.num_steps * config.num_rounds
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"network": coefficients(critic_net.config)}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def optimizers(hparams: Hyperparams, factor: Float[Array, ""] | float) -> dict[str, optax.GradientTransformation]:
        """Of each of the `Parts`, with its learning rate times a factor."""
        names = [field.name for field in dataclasses.fields(Parts)]
        return {name: optimizer(hparams, factor * getattr(hparams, f"{name}_learning_rate")) for name in names}

    def policy_at(params: PyTree, obs: Observation) -> Float[Array, "... A"]:
        (raw, _), _ = evaluate(policy_net, params, {}, obs)
        return jnp.tanh(raw)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_actor, key_warmup = jax.random.split(key, 5)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        params = Parts(
            policy=initialize(policy_net, key_policy, one)["params"],
            critic=initialize(critic_net, key_critic, one, jnp.zeros(size))["params"],
        )
        actor, replay = replaying.warm_up(key_warmup, env, hparams.env, actor, buffer, config.num_warmup_steps, reset)
        transforms = optimizers(hparams, 1.0)
        opt_state = Parts(*(transforms[name].init(getattr(params, name)) for name in transforms))
        learner = Learner(params, opt_state, jax.tree.map(jnp.copy, params))
        # A copy, so that the state can be donated while the hyperparameters stay.
        return State(key, learner, actor, replay, jnp.copy(hparams.exploration_noise), jnp.int32(0))

    def critic_update(
        learner: Learner, row: Any, replay: BufferState, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        bits, noise, chosen, key = row
        key_now, key_next = (None, None) if key is None else jax.random.split(key)
        index = buffer.sample((), replay, bits, jnp.float32(0.0)).index
        batch = buffers.n_step(replay.items, index, config.n_step, hparams.gamma)
        next_action = smoothed(
            policy_at(learner.target_params.policy, batch.next_obs), noise, hparams.policy_noise, hparams.noise_clip
        )
        net, frozen = critic_net, learner.target_params.critic
        if aggregate.num_chosen:
            net, frozen = net.clone(num_members=aggregate.num_chosen), ensembles.pick(frozen, chosen)
        following, _ = evaluate(net, frozen, {}, batch.next_obs, next_action, hparams.network, key_next)
        target = ensembles.bootstrap(batch, aggregate.target(following))

        def loss(params: PyTree) -> tuple[Array, Array]:
            now, _ = evaluate(critic_net, params, {}, batch.obs, batch.action, hparams.network, key_now)
            return jnp.sum(ensembles.loss(now, target, hparams.network.kappa)), jnp.mean(now)

        (total, value), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params.critic)
        return replaying.descend(learner, "critic", gradient, optimizers(hparams, factor)["critic"]), {
            "loss/critic": total / critic_net.num_members,
            "value/mean": value,
            "value/target": jnp.mean(target),
            "gradient/critic_norm": optax.tree.norm(gradient),
        }

    def policy_update(
        learner: Learner, row: Any, replay: BufferState, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        bits, key = row
        index = buffer.sample((), replay, bits, jnp.float32(0.0)).index
        obs = jax.tree.map(lambda x: x[0], buffers.windows(replay.items.obs, index, 1))
        net = critic_net.clone(num_members=aggregate.num_climbed or critic_net.num_members)
        critic = ensembles.pick(learner.params.critic, slice(aggregate.num_climbed))

        def loss(params: PyTree) -> Array:
            value, _ = evaluate(net, critic, {}, obs, policy_at(params, obs), hparams.network, key)
            return -jnp.mean(aggregate.climb(value))

        total, gradient = jax.value_and_grad(loss)(learner.params.policy)
        learner = replaying.descend(learner, "policy", gradient, optimizers(hparams, factor)["policy"])
        frozen = replaying.follow(learner.target_params, learner.params, hparams.tau)
        return dataclasses.replace(learner, target_params=frozen), {
            "loss/policy": total,
            "gradient/policy_norm": optax.tree.norm(gradient),
        }

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_next, key_chosen, key_drop = jax.random.split(state.key, 7)
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        factor = schedules.SCHEDULES[config.schedule](progress)
        shape = plan.updates_shape
        bits = buffer.noise(key_replay, *shape)
        drops = (None, None)
        if critic_net.stochastic:
            key_critic, key_policy = jax.random.split(key_drop)
            drops = jax.random.split(key_critic, shape), jax.random.split(key_policy, plan.num_policy_updates)
        rows = replaying.Rows(
            collect=(
                jax.random.split(key_collect, config.num_rounds),
                jax.random.normal(key_noise, (config.num_rounds, config.num_steps, config.num_envs, size)),
            ),
            critic=(
                bits,
                jax.random.normal(key_next, (*shape, config.batch_size, size)),
                aggregate.draw(key_chosen, critic_net.num_members, *shape),
                drops[0],
            ),
            policy=(replaying.last_of_each(plan, bits), drops[1]),
        )

        def collect(learner: Learner, actor: Any, replay: BufferState, row: Any) -> tuple[Any, BufferState, Metrics]:
            def behave(noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
                action = explored(policy_at(learner.params.policy, obs), noise, hparams.exploration_noise)
                return action, to_env_action(space, action), memory, ()

            key_steps, noise = row
            actor, batch, metrics = rollout.collect(key_steps, env, hparams.env, actor, behave, noise, reset)
            return actor, buffer.add((), replay, replaying.experience(batch)), metrics

        (learner, actor, replay), metrics = replaying.alternate(
            plan,
            (state.learner, state.actor, state.buffer),
            rows,
            collect,
            lambda learner, row, replay: critic_update(learner, row, replay, hparams, factor),
            lambda learner, row, replay: policy_update(learner, row, replay, hparams, factor),
        )
        noise_now = jnp.copy(hparams.exploration_noise)
        return State(key, learner, actor, replay, noise_now, state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            action = policy_at(state.learner.params.policy, obs)
        if key is not None:
            action = explored(action, jax.random.normal(key, action.shape), state.exploration_noise)
        return to_env_action(space, action), memory

    return Algorithm(init, step, act, hyperparams, env_steps=batch_size, name="td3", env=env, config=config)


def explored(action: Float[Array, "*b A"], noise: Float[Array, "*b A"], scale: Float[Array, ""]) -> Array:
    """The action with noise of a deviation, clipped to the bounds -1 and 1.

    >>> explored(jnp.array([0.5]), jnp.array([2.0]), jnp.float32(0.125)).tolist()
    [0.75]
    """
    return jnp.clip(action + scale * noise, -1.0, 1.0)


def smoothed(
    action: Float[Array, "*b A"], noise: Float[Array, "*b A"], scale: Float[Array, ""], bound: Float[Array, ""]
) -> Array:
    """Target policy smoothing: clip(a + clip(ε, ±c), -1, 1), ε of a deviation (arXiv:1802.09477, eq. 14).

    >>> smoothed(jnp.array([0.0]), jnp.array([2.0]), jnp.float32(1.0), jnp.float32(0.5)).tolist()
    [0.5]
    """
    return jnp.clip(action + jnp.clip(scale * noise, -bound, bound), -1.0, 1.0)


_LEAVES = {
    "policy_learning_rate": Leaf(3e-4, 0.0),
    "critic_learning_rate": Leaf(3e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "tau": Leaf(0.005, 0.0, 1.0),
    "exploration_noise": Leaf(0.1, 0.0),
    "policy_noise": Leaf(0.2, 0.0),
    "noise_clip": Leaf(0.5, 0.0),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
