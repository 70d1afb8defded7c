"""Maximum a posteriori policy optimization (Abdolmaleki et al. 2018, arXiv:1812.02256).

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments with sampled actions                [T, B]
    store          in a ring, drawn from uniformly                               [L, B]
    critic         num_updates times
      draw         N transitions over n steps                                    [N]
      target       y = r + γ mean over S actions a' ~ π' of Q'(s', a')           [N, J]
                   or Retrace over the n rows of a window                        [n, N]
      loss         of each of M critics; one optimizer step                      [M, N, K]
    policy         after every `policy_delay` updates of the critics
      E-step       weights q_s ∝ exp(Q'(s, a_s) / η) of S actions a_s ~ π'       [S, N]
      M-step       -Σ_s q_s log π(a_s|s), with the KL of mean and of deviation
                   to π' each held by a multiplier of each entry of the action   [N, A]
      duals        one optimizer step of η and the multipliers, which hold
                   KL(q ‖ π') at ε and the two others at ε_μ and ε_σ
      target       π' and Q' are copies, taken every `target_period` updates

The policy is a Gaussian without squashing; actions beyond the bounds are clipped, and held back by a second E-step on
their distance (Abdolmaleki et al. 2020, arXiv:2005.07513). Q' is the aggregate of the target critics. The
buffer begins with `num_warmup_steps` random steps of each environment, which `init` makes.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import ensembles, replaying, rollout, spaces, validation, values
from jaxrl.buffers import Experience, NStep
from jaxrl.ensembles import Aggregate, Atoms
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.control import ControlConfig, ControlNetworks, coefficients, evaluate, networks_for
from jaxrl.networks.initializers import initialize
from jaxrl.ops import returns, trees
from jaxrl.ops.distributions import Gaussian
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.replaying import Learner, State
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_PARTS = ("policy", "critic", "dual")
_LOG_STD = (-10.0, 2.0)
_LEAST = 1e-8


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: updates of the critics in a round.
      policy_delay: updates of the critics for one of the policy.
      num_rounds: rounds of one step of the algorithm; only batches random numbers and metrics.
      batch_size: transitions of an update, N.
      num_actions: actions drawn in each state, S.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target, n.
      returns: what a target makes of them: n_step, the sum without a correction; or retrace, as in the paper, traces
        cut by how much less likely π' is to act like that, for which replay has the log-probabilities of actions.
      penalize_bounds: whether actions beyond the bounds are held back.
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
    batch_size: int = 256
    num_actions: int = 20
    capacity: int = 131_072
    num_warmup_steps: int = 1024
    n_step: int = 5
    returns: Literal["n_step", "retrace"] = "n_step"
    penalize_bounds: bool = True
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
      dual_learning_rate: of that of temperature and multipliers.
      gamma: discount factor.
      trace_lambda: λ of Retrace.
      target_period: updates of the policy between two copies to π' and Q'.
      epsilon: ε, KL of the weights to π'.
      epsilon_mean: ε_μ, KL that the mean may move by, of each entry of the action.
      epsilon_stddev: ε_σ, the same for the deviation.
      epsilon_penalty: ε of the weights that hold actions in the bounds.
      initial_temperature: η = softplus of it, at the beginning, of both E-steps.
      initial_mean_multiplier: the multiplier of the mean's KL is softplus of it.
      initial_stddev_multiplier: the same for the deviation.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each part's by itself.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    network: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    dual_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    target_period: Float[Array, ""]
    epsilon: Float[Array, ""]
    epsilon_mean: Float[Array, ""]
    epsilon_stddev: Float[Array, ""]
    epsilon_penalty: Float[Array, ""]
    initial_temperature: Float[Array, ""]
    initial_mean_multiplier: Float[Array, ""]
    initial_stddev_multiplier: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class Dual:
    """What softplus makes temperatures and multipliers of.

    Attributes:
      temperature: of η.
      penalty: of the temperature of the bounds' E-step, () without it.
      mean: multiplier of the mean's KL, [A].
      stddev: multiplier of the deviation's KL, [A].
    """

    temperature: Float[Array, ""]
    penalty: Float[Array, ""] | tuple[()]
    mean: Float[Array, " A"]
    stddev: Float[Array, " A"]


@memoize
def mpo(
    env: Env,
    network: ControlNetworks | None = None,
    aggregate: Aggregate = ensembles.minimum(),  # noqa: B008 (memoized record)
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds MPO for an environment with bounded continuous actions.

    Args:
      env: the environment to learn in; its actions are a `Box` with finite bounds.
      network: policy and critics; None builds `config.network` for the environment's spaces.
      aggregate: how several critics make a target and the weights.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `jaxrl.replaying.State`, whose parameter
      `dual` is a `Dual` and whose `target_params` hold policy, critic and their age.

    Raises:
      ValueError: actions are no bounded `Box`, a count is not positive, a choice is unknown, the capacity, the warm-up
        or the delay does not fit, there is batch normalization, the ensemble does not fit the aggregate, or Retrace has
        one row only or distributions to learn.

    Example:
      >>> import jaxrl
      >>> sizes = {"batch_size": 8, "num_actions": 3, "capacity": 64, "num_warmup_steps": 8}
      >>> config = Config(num_rounds=4, network=ControlConfig(hidden=(16,)), **sizes)
      >>> agent = mpo(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, num_steps=3), jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/critic"].shape, state.params["dual"].mean.shape
      ((3,), (1,))
    """
    frame = replaying.frame("mpo", env, config)
    validation.counts("mpo", config, ("num_actions",))
    policy_net, critic_net = networks_for("mpo", env, network, True, config.network)
    if critic_net.config.norm == "batch":
        raise ValueError("mpo: batch normalization cannot go with target networks; got norm = 'batch': use crossq.")
    aggregate.check(critic_net.num_members, critic_net.config.num_quantiles)
    retraces = config.returns == "retrace"
    if retraces:
        ensembles.check_means("mpo", "returns = 'retrace'", critic_net.config)
        if config.n_step < 2:
            raise ValueError("mpo: retrace needs n_step of at least 2, rows that traces go over; got n_step = 1.")
    size, precision, plan = spaces.size(env.action_space), config.matmul_precision, frame.plan

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"network": coefficients(critic_net.config)}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def policy_at(params: PyTree, obs: Observation) -> Gaussian:
        (mean, log_std), _ = evaluate(policy_net, params, {}, obs)
        return Gaussian(mean, jnp.clip(log_std, *_LOG_STD))

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_world = jax.random.split(key, 4)
        # Random actions have a density of 1/2 in each entry.
        uniform = jnp.float32(-size * math.log(2.0)) if retraces else ()
        world = frame.start(key_world, hparams.env, extras=uniform)
        one = jax.tree.map(lambda x: x[0], world.normalized(world.actor.obs))
        each = lambda value: jnp.full(size, value)
        params = {
            "policy": initialize(policy_net, key_policy, one)["params"],
            "critic": initialize(critic_net, key_critic, one, jnp.zeros(size))["params"],
            "dual": Dual(
                temperature=jnp.copy(hparams.initial_temperature),
                penalty=jnp.copy(hparams.initial_temperature) if config.penalize_bounds else (),
                mean=each(hparams.initial_mean_multiplier),
                stddev=each(hparams.initial_stddev_multiplier),
            ),
        }
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, 1.0)
        opt_state = {name: transforms[name].init(params[name]) for name in _PARTS}
        frozen = {name: jax.tree.map(jnp.copy, params[name]) for name in ("policy", "critic")}
        return State(key, Learner(params, opt_state, {**frozen, "age": jnp.int32(0)}, {}), *world, (), jnp.int32(0))

    def valued(learner: Learner, obs: Observation, action: Array, chosen: Any, hparams: Hyperparams) -> Atoms:
        """Q' of actions in N states, [N, J]."""
        net, frozen = critic_net, learner.target_params["critic"]
        if aggregate.num_chosen:
            net, frozen = net.clone(num_members=aggregate.num_chosen), ensembles.pick(frozen, chosen)
        output, _ = evaluate(net, frozen, {}, obs, jnp.clip(action, -1.0, 1.0), hparams.network, None)
        return aggregate.target(ensembles.returns_of(output, hparams.network))

    def judged(learner: Learner, obs: Observation, noise: Array, chosen: Any, hparams: Hyperparams) -> Any:
        """π' in N states, S actions of it [S, N, A], and what the target critics make of them, [S N, J]."""
        policy = policy_at(learner.target_params["policy"], obs)
        action = jax.vmap(policy.sample_from)(noise)
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.num_actions, *x.shape)), obs)
        flat = trees.flatten_time((repeated, action))
        return policy, action, valued(learner, *flat, chosen, hparams)

    def behave(learner: Learner, noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, ...]:
        policy = policy_at(learner.params["policy"], obs)
        action = policy.sample_from(noise)
        # Beyond the bounds densities say nothing of the clipped action, so Retrace needs the draw itself.
        return (action, memory, policy.log_prob(action)) if retraces else (jnp.clip(action, -1.0, 1.0), memory)

    def retraced(learner: Learner, rows: Experience, noise: Array, chosen: Any, hparams: Hyperparams) -> Any:
        """Retrace of the first of n rows, [N, 1], by π' and Q'; and the mean factor of the traces, min(1, π' / μ)."""
        *_, following = judged(learner, trees.flatten_time(rows.next_obs), noise, chosen, hparams)
        next_value = jnp.mean(following.means().reshape((config.num_actions, *rows.reward.shape)), axis=0)
        value = valued(learner, *trees.flatten_time((rows.obs, rows.action)), chosen, hparams).means()
        log_ratio = policy_at(learner.target_params["policy"], rows.obs).log_prob(rows.action) - rows.extras
        target = returns.retrace(
            rows.reward,
            value.reshape(rows.reward.shape),
            next_value,
            rows.terminated,
            rows.truncated,
            log_ratio,
            hparams.gamma,
            hparams.trace_lambda,
        )
        ended = rows.terminated | rows.truncated
        same = jnp.cumsum(ended[:-1], axis=0) == 0
        factors = jnp.minimum(1.0, jnp.exp(log_ratio[1:]))
        return Atoms(target[0][:, None]), jnp.sum(factors * same) / jnp.maximum(jnp.sum(same), 1)

    def critic_update(
        learner: Learner, row: Any, batch: NStep | Experience, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        noise, chosen, key = row
        obs, action, info = batch.obs, batch.action, {}
        if isinstance(batch, Experience):
            target, traces = retraced(learner, batch, noise, chosen, hparams)
            obs, action = jax.tree.map(lambda x: x[0], obs), jnp.clip(action[0], -1.0, 1.0)
            info["value/trace"] = traces
        else:
            *_, following = judged(learner, batch.next_obs, noise, chosen, hparams)
            target = ensembles.bootstrap(batch, pooled(following, config.num_actions))

        def loss(params: PyTree) -> tuple[Array, Array]:
            now, _ = evaluate(critic_net, params, {}, obs, action, hparams.network, key)
            losses = ensembles.loss(now, target, hparams.network)
            return jnp.sum(losses), jnp.mean(ensembles.means(now, hparams.network))

        (total, value), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["critic"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        return replaying.descend(learner, "critic", gradient, transforms), info | {
            "loss/critic": total / critic_net.num_members,
            "value/mean": value,
            "value/target": target.mean(),
            "gradient/critic_norm": optax.tree.norm(gradient),
        }

    def policy_update(
        learner: Learner, row: Any, obs: Observation, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        noise, chosen = row
        old, action, returns = judged(learner, obs, noise, chosen, hparams)
        value = returns.means().reshape((config.num_actions, -1))

        def loss(params: tuple[PyTree, Dual]) -> tuple[Array, Metrics]:
            weights, temperature_loss = e_step(value, params[1].temperature, hparams.epsilon)
            if not isinstance(params[1].penalty, tuple):
                beyond = -jnp.linalg.norm(action - jnp.clip(action, -1.0, 1.0), axis=-1)
                held, more = e_step(beyond, params[1].penalty, hparams.epsilon_penalty)
                weights, temperature_loss = weights + held, temperature_loss + more
            m_loss, kl_mean, kl_stddev = m_step(policy_at(params[0], obs), old, action, weights)
            moved, dual_loss = 0.0, temperature_loss
            held_mean = (kl_mean, params[1].mean, hparams.epsilon_mean)
            held_stddev = (kl_stddev, params[1].stddev, hparams.epsilon_stddev)
            for kl, raw, bound in (held_mean, held_stddev):
                multiplier = jax.nn.softplus(raw) + _LEAST
                moved += jnp.sum(jax.lax.stop_gradient(multiplier) * kl)
                dual_loss += jnp.sum(multiplier * (jnp.broadcast_to(bound, kl.shape) - jax.lax.stop_gradient(kl)))
            return m_loss + moved + dual_loss, {
                "loss/policy": m_loss + moved,
                "loss/dual": dual_loss,
                "policy/temperature": jax.nn.softplus(params[1].temperature),
                "policy/kl_mean": jnp.mean(kl_mean),
                "policy/kl_stddev": jnp.mean(kl_stddev),
                "policy/stddev": jnp.mean(jnp.exp(old.log_std)),
            }

        of = (learner.params["policy"], learner.params["dual"])
        (gradient, dual_gradient), info = jax.grad(loss, has_aux=True)(of)
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        learner = replaying.descend(learner, "policy", gradient, transforms)
        learner = replaying.descend(learner, "dual", dual_gradient, transforms)
        names, one = ("policy", "critic"), jnp.float32(1.0)
        old_params, params = ({name: tree[name] for name in names} for tree in (learner.target_params, learner.params))
        frozen, age = values.synchronize(old_params, params, learner.target_params["age"], hparams.target_period, one)
        info["gradient/policy_norm"] = optax.tree.norm(gradient)
        return dataclasses.replace(learner, target_params={**frozen, "age": age}), info

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_next, key_now, key_chosen, key_drop = jax.random.split(
            state.key, 8
        )
        factor = frame.factor(state.num_steps, hparams.horizon)
        shape, num = plan.updates_shape, plan.num_policy_updates
        num_rows = config.n_step if retraces else 1
        key_critic, key_policy = jax.random.split(key_chosen)
        draws = replaying.Draws(
            collect=jax.random.normal(key_noise, (*frame.acting_shape, size)),
            critic=(
                jax.random.split(key_next, shape),
                aggregate.draw(key_critic, critic_net.num_members, *shape),
                replaying.dropout_keys(key_drop, critic_net.stochastic, plan)[0],
            ),
            policy=(jax.random.split(key_now, num), aggregate.draw(key_policy, critic_net.num_members, num)),
        )
        # Noise for S actions in each state is too much to draw for a whole step ahead.
        own = lambda num: (config.num_actions, num * config.batch_size, size)
        at = lambda row, num: (jax.random.normal(row[0], own(num)), *row[1:])
        (learner, world), metrics = frame.run(
            (key_collect, key_replay),
            state.learner,
            state.world,
            hparams.env,
            hparams.gamma,
            draws,
            behave,
            lambda learner, row, batch: critic_update(learner, at(row, num_rows), batch, hparams, factor),
            lambda learner, row, obs: policy_update(learner, at(row, 1), obs, hparams, factor),
        )
        return State(key, learner, *world, (), state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = policy_at(state.learner.params["policy"], state.world.normalized(obs))
        return to_env_action(env.action_space, policy.mode() if key is None else policy.sample(key)), memory

    return Algorithm(init, step, act, hyperparams, env_steps=frame.env_steps, name="mpo", env=env, config=config)


def pooled(returns: Atoms, num_actions: int) -> Atoms:
    """The return of a state from those of S actions drawn there: their mean, or all points of all of them.

    Args:
      returns: of the S actions of each state, [S N, J].
      num_actions: S.

    Returns:
      [N, 1] of means, otherwise [N, S J].

    >>> pooled(Atoms(jnp.array([[1.0], [2.0], [3.0], [6.0]])), 2).points.tolist()
    [[2.0], [4.0]]
    """
    split = jax.tree.map(lambda x: x.reshape((num_actions, -1, x.shape[-1])), returns)
    if split.points.shape[-1] == 1:
        return Atoms(jnp.mean(split.points, axis=0))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape((x.shape[1], -1))
    probs = split.probs if isinstance(split.probs, tuple) else join(split.probs) / num_actions
    return Atoms(join(split.points), probs)


def e_step(
    value: Float[Array, "S N"], raw_temperature: Float[Array, ""], epsilon: Float[Array, ""]
) -> tuple[Float[Array, "S N"], Float[Array, ""]]:
    """Weights of actions, and the dual whose minimum is at KL(q ‖ π') = ε (arXiv:1812.02256, section 4.1).

        q_s = softmax_s(Q_s / η),   g(η) = η ε + η mean_n log mean_s exp(Q_s / η),   η = softplus

    Args:
      value: Q of S actions in N states.
      raw_temperature: softplus of it is η.
      epsilon: ε.

    Returns:
      q, which no gradient goes through, and g.

    >>> weights, _ = e_step(jnp.array([[0.0], [0.0]]), jnp.float32(1.0), jnp.float32(0.1))
    >>> weights.tolist()
    [[0.5], [0.5]]
    """
    temperature = jax.nn.softplus(raw_temperature) + _LEAST
    tempered = jax.lax.stop_gradient(value) / temperature
    log_mean = jax.scipy.special.logsumexp(tempered, axis=0) - jnp.log(jnp.float32(value.shape[0]))
    return jax.lax.stop_gradient(jax.nn.softmax(tempered, axis=0)), temperature * (epsilon + jnp.mean(log_mean))


def m_step(
    policy: Gaussian, old: Gaussian, action: Float[Array, "S N A"], weights: Float[Array, "S N"]
) -> tuple[Float[Array, ""], Float[Array, " A"], Float[Array, " A"]]:
    """The weighted likelihood of actions by mean and deviation apart, and both KLs (arXiv:1812.02256, section 4.2).

    With π_μ of the new mean and the old deviation, π_σ of the old mean and the new deviation:

        L = -E_n Σ_s q_s (log π_μ(a_s) + log π_σ(a_s)),   KL(π' ‖ π_μ),   KL(π' ‖ π_σ)

    Args:
      policy: π in N states.
      old: π'.
      action: a_s, drawn from π'.
      weights: q_s.

    Returns:
      L, and the KLs of each entry of the action, means over states.
    """
    apart = Gaussian(policy.mean, old.log_std), Gaussian(old.mean, policy.log_std)
    log_prob = sum(jax.vmap(each.log_prob)(action) for each in apart)
    entries = lambda x: Gaussian(x.mean[..., None], x.log_std[..., None])
    kl_mean, kl_stddev = (jnp.mean(entries(old).kl(entries(each)), axis=0) for each in apart)
    return -jnp.mean(jnp.sum(weights * log_prob, axis=0)), kl_mean, kl_stddev


_LEAVES = {
    "policy_learning_rate": Leaf(1e-4, 0.0),
    "critic_learning_rate": Leaf(1e-4, 0.0),
    "dual_learning_rate": Leaf(1e-2, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "trace_lambda": Leaf(0.95, 0.0, 1.0, needs=("returns", "retrace")),
    "target_period": Leaf(100.0, 1.0),
    "epsilon": Leaf(0.1, 0.0),
    "epsilon_mean": Leaf(0.0025, 0.0),
    "epsilon_stddev": Leaf(1e-6, 0.0),
    "epsilon_penalty": Leaf(0.001, 0.0, needs=("penalize_bounds", True)),
    "initial_temperature": Leaf(10.0),
    "initial_mean_multiplier": Leaf(10.0),
    "initial_stddev_multiplier": Leaf(1000.0),
    "max_grad_norm": Leaf(40.0, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
