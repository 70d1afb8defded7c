"""Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207, algorithm 1).

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments with sampled actions                [T, B]
    store          in a ring, drawn from uniformly                               [L, B]
    critic         num_updates times
      draw         N transitions over n steps                                    [N]
      target       y = r + γ Σ_a π(a|s') (min of Q'_m(s', a) - α log π(a|s'))    [N]
      loss         of each of M critics at the action taken; one optimizer step  [M, N]
      target       averaged
    policy         after every `policy_delay` updates of the critics
      loss         Σ_a π(a|s) (α log π(a|s) - min of Q_m(s, a))                  [N]
      α            up while the entropy is below its target, else down

Expectations over actions are sums, where `sac` draws one action. The buffer begins with `num_warmup_steps` random steps
of each environment, made by `init`; they count neither in `env_steps` nor in progress.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import ensembles, replaying, rollout, validation
from jaxrl.buffers import NStep
from jaxrl.ensembles import Aggregate, Atoms
from jaxrl.networks.control import ControlConfig, ControlNetworks, coefficients, evaluate, networks_for
from jaxrl.networks.initializers import initialize
from jaxrl.ops.distributions import Categorical
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.replaying import Learner, State
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_PARTS = ("policy", "critic", "temperature")


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: updates of the critics in a round.
      policy_delay: updates of the critics for one of the policy and the temperature.
      num_rounds: rounds of one step of the algorithm; only batches random numbers and metrics.
      batch_size: transitions of an update, N.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target, n.
      normalize_observations: whether networks see observations by their running statistics; replay keeps them raw.
      schedule: how the learning rates fall with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default networks' layers.
    """

    num_envs: int = 1
    num_steps: int = 1
    num_updates: int = 1
    policy_delay: int = 1
    num_rounds: int = 120
    batch_size: int = 64
    capacity: int = 131_072
    num_warmup_steps: int = 1024
    n_step: int = 1
    normalize_observations: bool = False
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
      network: coefficients of the networks (`jaxrl.networks.members.Coefficients`).
      policy_learning_rate: of the policy's optimizer, at the beginning.
      critic_learning_rate: of the critics'.
      temperature_learning_rate: of that of log α.
      gamma: discount factor.
      tau: how far the target parameters move after each update of the critics.
      initial_temperature: α at the beginning.
      target_entropy: entropy that α aims at, as a share of the greatest, log A.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each network's by itself.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    network: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    temperature_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]
    initial_temperature: Float[Array, ""]
    target_entropy: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@memoize
def discrete_sac(
    env: Env,
    network: ControlNetworks | None = None,
    aggregate: Aggregate = ensembles.minimum(),  # noqa: B008 (memoized record)
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds soft actor-critic for an environment with discrete actions.

    Args:
      env: the environment to learn in; its actions are `Discrete`.
      network: policy and critics; None builds `config.network` for the environment's spaces.
      aggregate: how the values of the critics become one, for the target as for the policy.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `jaxrl.replaying.State`, whose parameter
      `temperature` is log α.

    Raises:
      ValueError: actions are not discrete or may be illegal, a count is not positive, a choice is unknown, the
        capacity, the warm-up or the delay does not fit, critics are to learn distributions or are normalized by the
        batch, or the ensemble does not fit the aggregate.

    Example:
      >>> import jaxrl
      >>> sizes = {"batch_size": 8, "capacity": 64, "num_warmup_steps": 8}
      >>> config = Config(num_rounds=4, network=ControlConfig(hidden=(16,)), **sizes)
      >>> agent = discrete_sac(jaxrl.make_env("gymnax/CartPole-v1"), config=config)
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, num_steps=3), jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/critic"].shape, state.params["temperature"].shape
      ((3,), ())
    """
    frame = replaying.frame("discrete_sac", env, config)
    validation.unmasked("discrete_sac", env)
    policy_net, critic_net = networks_for("discrete_sac", env, network, False, config.network, discrete=True)
    if critic_net.config.norm == "batch":
        raise ValueError("discrete_sac: batch normalization cannot go with a target network; got norm = 'batch'.")
    aggregate.check(critic_net.num_members, 0)
    num_actions, precision, plan = critic_net.num_actions, config.matmul_precision, frame.plan
    greatest_entropy = jnp.log(jnp.float32(num_actions))

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"network": coefficients(critic_net.config)}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def policy_at(params: PyTree, obs: Observation) -> Categorical:
        (logits, _), _ = evaluate(policy_net, params, {}, obs)
        return Categorical(logits)

    def combined(params: PyTree, obs: Observation, hparams: Hyperparams, chosen: Any, key: Any) -> Array:
        """The aggregate's value of each action, [N, A]."""
        net = critic_net
        if aggregate.num_chosen:
            net, params = net.clone(num_members=aggregate.num_chosen), ensembles.pick(params, chosen)
        output, _ = evaluate(net, params, {}, obs, None, hparams.network, key)
        return aggregate.target(Atoms(output)).points

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_world = jax.random.split(key, 4)
        world = frame.start(key_world, hparams.env)
        one = jax.tree.map(lambda x: x[0], world.normalized(world.actor.obs))
        params = {
            "policy": initialize(policy_net, key_policy, one)["params"],
            "critic": initialize(critic_net, key_critic, one)["params"],
            "temperature": jnp.log(hparams.initial_temperature),
        }
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, 1.0)
        opt_state = {name: transforms[name].init(params[name]) for name in _PARTS}
        learner = Learner(params, opt_state, jax.tree.map(jnp.copy, params["critic"]), {})
        return State(key, learner, *world, (), jnp.int32(0))

    def critic_update(
        learner: Learner, row: Any, batch: NStep, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        chosen, key = row
        key_now, key_next = (None, None) if key is None else jax.random.split(key)
        policy = policy_at(learner.params["policy"], batch.next_obs)
        following = combined(learner.target_params, batch.next_obs, hparams, chosen, key_next)
        value = soft_value(policy, following, jnp.exp(learner.params["temperature"]))
        target = ensembles.bootstrap(batch, Atoms(value[:, None]))

        def loss(params: PyTree) -> tuple[Array, Array]:
            output, _ = evaluate(critic_net, params, {}, batch.obs, None, hparams.network, key_now)
            taken = jnp.broadcast_to(batch.action[None, :, None], (critic_net.num_members, config.batch_size, 1))
            now = jnp.take_along_axis(output, taken, axis=-1)
            return jnp.sum(ensembles.loss(now, target, hparams.network)), jnp.mean(now)

        (total, mean), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["critic"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        learner = replaying.descend(learner, "critic", gradient, transforms)
        frozen = replaying.follow(learner.target_params, learner.params["critic"], hparams.tau)
        return dataclasses.replace(learner, target_params=frozen), {
            "loss/critic": total / critic_net.num_members,
            "value/mean": mean,
            "value/target": target.mean(),
            "gradient/critic_norm": optax.tree.norm(gradient),
        }

    def policy_update(
        learner: Learner, row: Any, obs: Observation, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        chosen, key = row
        temperature = jnp.exp(learner.params["temperature"])
        value = combined(learner.params["critic"], obs, hparams, chosen, key)

        def loss(params: PyTree) -> tuple[Array, Array]:
            policy = policy_at(params, obs)
            return -jnp.mean(soft_value(policy, value, temperature)), jnp.mean(policy.entropy())

        (total, entropy), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["policy"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        learner = replaying.descend(learner, "policy", gradient, transforms)
        # The gradient of α (H(π) - H) by log α, arXiv:1910.07207, eq. 11.
        slope = temperature * (entropy - hparams.target_entropy * greatest_entropy)
        return replaying.descend(learner, "temperature", slope, transforms), {
            "loss/policy": total,
            "policy/entropy": entropy,
            "policy/temperature": temperature,
            "gradient/policy_norm": optax.tree.norm(gradient),
        }

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_chosen, key_drop = jax.random.split(state.key, 6)
        factor = frame.factor(state.num_steps, hparams.horizon)
        key_critic, key_policy = jax.random.split(key_chosen)
        drops = replaying.dropout_keys(key_drop, critic_net.stochastic, plan)
        num_members, num = critic_net.num_members, plan.num_policy_updates
        draws = replaying.Draws(
            collect=jax.random.split(key_noise, frame.acting_shape[:2]),
            critic=(aggregate.draw(key_critic, num_members, *plan.updates_shape), drops[0]),
            policy=(aggregate.draw(key_policy, num_members, num), drops[1]),
        )
        (learner, world), metrics = frame.run(
            (key_collect, key_replay),
            state.learner,
            state.world,
            hparams.env,
            hparams.gamma,
            draws,
            lambda learner, key, obs, memory, start: (policy_at(learner.params["policy"], obs).sample(key), memory),
            lambda learner, row, batch: critic_update(learner, row, batch, hparams, factor),
            lambda learner, row, obs: policy_update(learner, row, obs, hparams, factor),
        )
        return State(key, learner, *world, (), state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = policy_at(state.learner.params["policy"], state.world.normalized(obs))
        return policy.mode() if key is None else policy.sample(key), memory

    return Algorithm(
        init, step, act, hyperparams, env_steps=frame.env_steps, name="discrete_sac", env=env, config=config
    )


def soft_value(policy: Categorical, value: Float[Array, "N A"], temperature: Float[Array, ""]) -> Float[Array, " N"]:
    """Σ_a π(a|s) (Q(s, a) - α log π(a|s)) (arXiv:1910.07207, eq. 10).

    >>> uniform = Categorical(jnp.zeros((1, 2)))
    >>> soft_value(uniform, jnp.array([[1.0, 3.0]]), jnp.float32(0.0)).tolist()
    [2.0]
    """
    return jnp.sum(policy.probs() * value, axis=-1) + temperature * policy.entropy()


_LEAVES = {
    "policy_learning_rate": Leaf(3e-4, 0.0),
    "critic_learning_rate": Leaf(3e-4, 0.0),
    "temperature_learning_rate": Leaf(3e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "tau": Leaf(0.005, 0.0, 1.0),
    "initial_temperature": Leaf(1.0, 1e-12),
    "target_entropy": Leaf(0.98, 0.0, 1.0),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
