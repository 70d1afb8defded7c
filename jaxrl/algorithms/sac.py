"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905, algorithm 1), and what is a choice of its parts.

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments with sampled actions                [T, B]
    store          in a ring, drawn from uniformly or by priority                [L, B]
    critic         num_updates times
      draw         N transitions over n steps                                    [N]
      target       y = r + γ (aggregate of Q'_m(s', a') - α log π(a'|s'))        [N, J], a' from π
      loss         of each of M critics; one optimizer step                      [M, N, K]
      target       averaged; without a target network Q'_m is Q_m itself, evaluated in the same forward pass
    policy         after every `policy_delay` updates of the critics
      loss         α log π(a|s) - aggregate of Q_m(s, a), a from π               [N]
                   + c (log π(a|s) - log π_k(a|s)), if there is a reference      [N]
      α            up while the entropy is below its target, else down
      reference    π_k is a copy of π, taken every `reference_period` updates

The buffer begins with `num_warmup_steps` random steps of each environment, made by `init`; they count neither in
`env_steps` nor in progress. All random numbers of a step but dropout's are drawn before the loops.

With a reference the step is off-policy mirror descent policy optimization (Tomar et al. 2020, arXiv:2005.09814): c is
1 / t_k, the weight of KL(π ‖ π_k).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import ensembles, replaying, rollout, spaces, values
from jaxrl.buffers import NStep
from jaxrl.ensembles import Aggregate, Atoms
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.control import ControlConfig, ControlNetworks, coefficients, evaluate, networks_for
from jaxrl.networks.initializers import initialize
from jaxrl.ops.distributions import TanhGaussian
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.replaying import Learner, State
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_LOG_STD = (-20.0, 2.0)
_BOUND = 5.0
"""Of returns where rewards are scaled, as in SimbaV2."""


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
      target: whether successors are valued by an average of the critics' parameters, or by themselves.
      reference: what the policy is kept close to: uniform, by its entropy alone, or previous, also by the divergence
        from the policy that it was (MDPO).
      learn_temperature: whether α is learned, or stays as it is at the beginning.
      prioritized: whether replay is by priority.
      offline: whether nothing is collected: draws are from a dataset, `hparams.replay` from `jaxrl.datasets.dataset`,
        and num_envs, num_steps, capacity, num_warmup_steps and reset change nothing of what is learned. Steps are
        then updates of the critics, those of `horizon` too.
      annealed: whether the critics' loss is an expectile one, whose τ falls to ½ (arXiv:2506.05968).
      normalize_observations: whether networks see observations by their running statistics (SimBa, FastTD3); replay
        keeps them raw.
      normalize_rewards: whether rewards drawn are divided so that returns have a bound (SimbaV2, see
        `jaxrl.ops.reward_scaling.return_divisor`); replay keeps them raw.
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
    batch_size: int = 256
    capacity: int = 131_072
    num_warmup_steps: int = 1024
    n_step: int = 1
    target: bool = True
    reference: Literal["uniform", "previous"] = "uniform"
    learn_temperature: bool = True
    prioritized: bool = False
    offline: bool = False
    annealed: bool = False
    normalize_observations: bool = False
    normalize_rewards: bool = False
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
      replay: coefficients of priorities (`jaxrl.buffers.Coefficients`), the dataset if offline, or ().
      policy_learning_rate: of the policy's optimizer, at the beginning.
      critic_learning_rate: of the critics'.
      temperature_learning_rate: of that of log α.
      gamma: discount factor.
      tau: how far the target parameters move after each update of the critics.
      initial_temperature: α at the beginning.
      target_entropy: entropy that α aims at, in nats for each entry of the action, whose range is -1 to 1.
      kl_coef: c, weight of the divergence from the reference.
      reference_period: updates of the policy between two copies to the reference.
      expectile: τ of the critics' loss at the beginning, if annealed.
      expectile_fraction: share of `horizon` over which it falls to ½.
      return_bound: of returns, if rewards are normalized.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each network's by itself.
      horizon: environment steps over which progress goes from 0 to 1; offline updates of the critics.
    """

    env: PyTree
    network: PyTree
    replay: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    temperature_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]
    initial_temperature: Float[Array, ""]
    target_entropy: Float[Array, ""]
    kl_coef: Float[Array, ""]
    reference_period: Float[Array, ""]
    expectile: Float[Array, ""]
    expectile_fraction: Float[Array, ""]
    return_bound: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@memoize
def sac(
    env: Env,
    network: ControlNetworks | None = None,
    aggregate: Aggregate = ensembles.minimum(),  # noqa: B008 (memoized record)
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds soft actor-critic for an environment with bounded continuous actions.

    Args:
      env: the environment to learn in; its actions are a `Box` with finite bounds.
      network: policy and critics; None builds `config.network` for the environment's spaces.
      aggregate: how the critics make a target, and what the policy climbs.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `jaxrl.replaying.State`, whose parameter
      `temperature` is log α, if it is learned, and whose `target_params` hold critic, reference and its age.

    Raises:
      ValueError: actions are no bounded `Box`, a count is not positive, a choice is unknown, the capacity, the warm-up
        or the delay does not fit, batch normalization is to go with a target network or a reference, the ensemble
        does not fit the aggregate, or an expectile loss is to be that of distributions.

    Example:
      >>> import jaxrl
      >>> small = ControlConfig(hidden=(16,))
      >>> config = Config(num_rounds=4, batch_size=8, capacity=64, num_warmup_steps=8, network=small)
      >>> agent = sac(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=3))(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/critic"].shape, int(state.buffer.filled)
      ((3,), 20)
    """
    frame = replaying.frame("sac", env, config)
    policy_net, critic_net = networks_for("sac", env, network, True, config.network)
    if critic_net.config.norm == "batch" and config.target:
        raise ValueError(
            "sac: batch normalization needs the joint forward pass on both ends of a transition, hence no target "
            "network; got norm = 'batch' with target = True: set Config(target=False)."
        )
    if critic_net.config.norm == "batch" and config.reference == "previous":
        raise ValueError(
            "sac: a reference would need the moments of batch normalization that it had; got norm = 'batch' with "
            "reference = 'previous': use another norm, or reference = 'uniform'."
        )
    if config.annealed:
        ensembles.check_means("sac", "annealed", critic_net.config)
    aggregate.check(critic_net.num_members, critic_net.config.num_quantiles)
    parts = ("policy", "critic", "temperature") if config.learn_temperature else ("policy", "critic")
    size, precision, plan = spaces.size(env.action_space), config.matmul_precision, frame.plan

    def hyperparams(**changes: Any) -> Hyperparams:
        layers = critic_net.config
        scaled = (changes.get("return_bound", _BOUND),) if config.normalize_rewards else ()
        network = coefficients(layers, *scaled)
        nested = {"network": network, "replay": frame.buffer.hyperparams()}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def policy_at(learner: Learner, obs: Observation) -> TanhGaussian:
        output, _ = evaluate(policy_net, learner.params["policy"], learner.statistics["policy"], obs)
        return as_policy(output)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_world = jax.random.split(key, 4)
        world = frame.start(key_world, hparams.env, replay=hparams.replay, gamma=hparams.gamma)
        one = jax.tree.map(lambda x: x[0], world.normalized(world.actor.obs))
        policy = dict(initialize(policy_net, key_policy, one))
        critic = dict(initialize(critic_net, key_critic, one, jnp.zeros(size)))
        params = {"policy": policy.pop("params"), "critic": critic.pop("params")}
        if config.learn_temperature:
            params["temperature"] = jnp.log(hparams.initial_temperature)
        transforms = replaying.optimizers(optimizer, hparams, parts, 1.0)
        copies = jax.tree.map(jnp.copy, {"critic": params["critic"]} if config.target else {})
        if config.reference == "previous":
            copies |= {"policy": jax.tree.map(jnp.copy, params["policy"]), "age": jnp.int32(0)}
        learner = Learner(
            params=params,
            opt_state={name: transforms[name].init(params[name]) for name in parts},
            target_params=copies,
            statistics={"policy": policy, "critic": critic},
        )
        return State(key, learner, *world, (), jnp.int32(0))

    def temperature_of(learner: Learner, hparams: Hyperparams) -> Float[Array, ""]:
        return jnp.exp(learner.params["temperature"]) if config.learn_temperature else hparams.initial_temperature

    def critic_update(
        learner: Learner, row: Any, batch: NStep, hparams: Hyperparams, factor: Array, progress: Array
    ) -> tuple[Learner, Metrics, Array]:
        noise, chosen, key = row
        key_now, key_next = (None, None) if key is None else jax.random.split(key)
        temperature, expectile = temperature_of(learner, hparams), None
        if config.annealed:
            expectile = ensembles.annealed_expectile(hparams.expectile, hparams.expectile_fraction, progress)
        next_action, next_log_prob = policy_at(learner, batch.next_obs).sample_and_log_prob_from(noise)

        def evaluated(params: PyTree) -> tuple[Array, Array, PyTree]:
            """Q of the batch, Q of its successors by the members chosen, and the running moments."""
            if config.target:
                net, frozen = critic_net, learner.target_params["critic"]
                if aggregate.num_chosen:
                    net, frozen = net.clone(num_members=aggregate.num_chosen), ensembles.pick(frozen, chosen)
                following, _ = evaluate(net, frozen, {}, batch.next_obs, next_action, hparams.network, key_next)
                now, _ = evaluate(critic_net, params, {}, batch.obs, batch.action, hparams.network, key_now)
                return now, following, learner.statistics["critic"]
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.obs, batch.next_obs)
            actions = jnp.concatenate([batch.action, next_action])
            output, moments = evaluate(
                critic_net, params, learner.statistics["critic"], both, actions, hparams.network, key_now, True
            )
            now, following = jnp.split(output, 2, axis=1)
            return now, following[chosen] if aggregate.num_chosen else following, moments

        def loss(params: PyTree) -> tuple[Array, Any]:
            now, following, moments = evaluated(params)
            returns = aggregate.target(ensembles.returns_of(following, hparams.network))
            target = ensembles.bootstrap(batch, soft_returns(returns, next_log_prob, temperature))
            target = jax.lax.stop_gradient(target)
            losses = ensembles.loss(now, target, hparams.network, batch.weight, expectile)
            errors = ensembles.errors(now, target, hparams.network)
            value = jnp.mean(ensembles.means(now, hparams.network))
            return jnp.sum(losses), (moments, value, target.mean(), errors)

        (total, (moments, value, target, errors)), gradient = jax.value_and_grad(loss, has_aux=True)(
            learner.params["critic"]
        )
        transforms = replaying.optimizers(optimizer, hparams, parts, factor)
        learner = replaying.descend(learner, "critic", gradient, transforms)
        copies = dict(learner.target_params)
        if config.target:
            copies["critic"] = replaying.follow(copies["critic"], learner.params["critic"], hparams.tau)
        moved = {**learner.statistics, "critic": moments}
        info = {
            "loss/critic": total / critic_net.num_members,
            "value/mean": value,
            "value/target": target,
            "gradient/critic_norm": optax.tree.norm(gradient),
        }
        return dataclasses.replace(learner, target_params=copies, statistics=moved), info, errors

    def policy_update(
        learner: Learner, row: Any, obs: Observation, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        noise, key = row
        temperature, copies = temperature_of(learner, hparams), dict(learner.target_params)
        climbed = slice(aggregate.num_climbed)
        net = critic_net.clone(num_members=aggregate.num_climbed or critic_net.num_members)
        critic, moments = (ensembles.pick(x["critic"], climbed) for x in (learner.params, learner.statistics))

        def loss(params: PyTree) -> tuple[Array, Any]:
            output, after = evaluate(policy_net, params, learner.statistics["policy"], obs, hparams.network, True)
            policy = as_policy(output)
            action, log_prob = policy.sample_and_log_prob_from(noise)
            outputs, _ = evaluate(net, critic, moments, obs, action, hparams.network, key)
            value = aggregate.climb(ensembles.means(outputs, hparams.network))
            cost, info = temperature * log_prob - value, {}
            if config.reference == "previous":
                held, _ = evaluate(policy_net, copies["policy"], {}, obs)
                ratio = log_ratio(policy, as_policy(held), noise)
                cost, info = cost + hparams.kl_coef * ratio, {"policy/kl": jnp.mean(ratio)}
            return jnp.mean(cost), (-jnp.mean(log_prob), after, info)

        (total, (entropy, after, info)), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["policy"])
        transforms = replaying.optimizers(optimizer, hparams, parts, factor)
        learner = replaying.descend(learner, "policy", gradient, transforms)
        if config.learn_temperature:
            slope = jax.grad(temperature_loss)(learner.params["temperature"], entropy, size * hparams.target_entropy)
            learner = replaying.descend(learner, "temperature", slope, transforms)
        if config.reference == "previous":
            copies["policy"], copies["age"] = values.synchronize(
                copies["policy"], learner.params["policy"], copies["age"], hparams.reference_period, jnp.float32(1.0)
            )
        moved = {**learner.statistics, "policy": after}
        return dataclasses.replace(learner, target_params=copies, statistics=moved), {
            "loss/policy": total,
            "policy/entropy": entropy,
            "policy/temperature": temperature,
            "gradient/policy_norm": optax.tree.norm(gradient),
            **info,
        }

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_next, key_now, key_chosen, key_drop = jax.random.split(
            state.key, 8
        )
        factor = frame.factor(state.num_steps, hparams.horizon)
        progress = frame.progress(state.num_steps, hparams.horizon)
        shape, num = plan.updates_shape, plan.num_policy_updates
        drops = replaying.dropout_keys(key_drop, critic_net.stochastic, plan)
        draws = replaying.Draws(
            collect=jax.random.normal(key_noise, (*frame.acting_shape, size)),
            critic=(
                jax.random.normal(key_next, (*shape, config.batch_size, size)),
                aggregate.draw(key_chosen, critic_net.num_members, *shape),
                drops[0],
            ),
            policy=(jax.random.normal(key_now, (num, config.batch_size, size)), drops[1]),
        )
        (learner, world), metrics = frame.run(
            (key_collect, key_replay),
            state.learner,
            state.world,
            hparams.env,
            hparams.gamma,
            draws,
            lambda learner, noise, obs, memory, start: (policy_at(learner, obs).sample_from(noise), memory),
            lambda learner, row, batch: critic_update(learner, row, batch, hparams, factor, progress),
            lambda learner, row, obs: policy_update(learner, row, obs, hparams, factor),
            hparams.replay,
            progress,
            hparams.return_bound,
        )
        return State(key, learner, *world, (), state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = policy_at(state.learner, state.world.normalized(obs))
        return to_env_action(env.action_space, policy.mode() if key is None else policy.sample(key)), memory

    return Algorithm(init, step, act, hyperparams, env_steps=frame.env_steps, name="sac", env=env, config=config)


def as_policy(output: tuple[Array, Array]) -> TanhGaussian:
    """The policy that the network's outputs describe, actions between -1 and 1."""
    mean, log_std = output
    return TanhGaussian(mean, jnp.clip(log_std, *_LOG_STD))


def soft_returns(returns: Atoms, log_prob: Float[Array, " N"], temperature: Float[Array, ""]) -> Atoms:
    """Q(s', a') - α log π(a'|s'), of each point if there are several (arXiv:1812.05905, eq. 3).

    >>> soft_returns(Atoms(jnp.ones((1, 1))), jnp.array([2.0]), jnp.float32(0.25)).points.tolist()
    [[0.5]]
    """
    shift = jnp.broadcast_to((temperature * log_prob)[:, None], returns.points.shape)
    return returns._replace(points=returns.points - shift)


def log_ratio(policy: TanhGaussian, reference: TanhGaussian, noise: Float[Array, "N A"]) -> Float[Array, " N"]:
    """log π(a|s) - log π_k(a|s) of the action that the noise gives, whose mean is KL(π ‖ π_k).

    It is that of the Gaussians before squashing, whose slopes cancel (arXiv:2005.09814, section 5).

    >>> zero = jnp.zeros((1, 1))
    >>> log_ratio(TanhGaussian(zero + 1.0, zero), TanhGaussian(zero, zero), zero).tolist()
    [0.5]
    """
    raw = policy.base().sample_from(noise)
    return policy.base().log_prob(raw) - reference.base().log_prob(raw)


def temperature_loss(
    log_temperature: Float[Array, ""], entropy: Float[Array, ""], target: Float[Array, ""]
) -> Float[Array, ""]:
    """α (H(π) - H), whose gradient in log α lowers α while the entropy is above its target (arXiv:1812.05905, eq. 18).

    >>> float(temperature_loss(jnp.float32(0.0), jnp.float32(-3.0), jnp.float32(-1.0)))
    -2.0
    """
    return jnp.exp(log_temperature) * (entropy - target)


_LEAVES = {
    "policy_learning_rate": Leaf(3e-4, 0.0),
    "critic_learning_rate": Leaf(3e-4, 0.0),
    "temperature_learning_rate": Leaf(3e-4, 0.0, needs=("learn_temperature", True)),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "tau": Leaf(0.005, 0.0, 1.0, needs=("target", True)),
    "initial_temperature": Leaf(1.0, 1e-12),
    "target_entropy": Leaf(-1.0, needs=("learn_temperature", True)),
    "kl_coef": Leaf(0.8, 0.0, needs=("reference", "previous")),
    "reference_period": Leaf(1000.0, 1.0, needs=("reference", "previous")),
    "expectile": Leaf(0.9, 0.5, 1.0, needs=("annealed", True)),
    "expectile_fraction": Leaf(1.0, 1e-9, 1.0, needs=("annealed", True)),
    "return_bound": Leaf(_BOUND, 1e-12, needs=("normalize_rewards", True)),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
