"""Twin delayed deep deterministic policy gradient, TD3 (Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1).

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments: π(s) + noise, clipped              [T, B]
    store          in a ring, drawn from uniformly or by priority                [L, B]
    critic         num_updates times
      draw         N transitions over n steps                                    [N]
      target       y = r + γ aggregate of Q'_m(s', π'(s') + clipped noise)       [N, J]
      loss         of each of M critics; one optimizer step                      [M, N, K]
                   + β relu(cos(f, f') - bound) of their features (BEER)         [M, N]
    policy         after every `policy_delay` updates of the critics
      loss         -Q_1(s, π(s))                                                 [N]
      targets      policy and critics, averaged

The buffer begins with `num_warmup_steps` random steps of each environment, made by `init`; they count neither in
`env_steps` nor in progress. All random numbers of a step but dropout's are drawn before the loops.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import ensembles, replaying, rollout, spaces
from jaxrl.buffers import NStep
from jaxrl.ensembles import Aggregate
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.control import (
    ControlConfig,
    ControlNetworks,
    coefficients,
    evaluate,
    evaluate_with_features,
    networks_for,
)
from jaxrl.networks.initializers import initialize
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.replaying import Learner, State
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
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target, n.
      target_policy: whether the target's actions are those of an average of the policies (TD3), or of the present one
        (FastTD3).
      prioritized: whether replay is by priority.
      annealed: whether the critics' loss is an expectile one, whose τ falls to ½ (arXiv:2506.05968).
      regularizer: what is added to the critics' loss: none, or beer, what consecutive features are too much alike
        (`jaxrl.ensembles.representation_excess`).
      exploration: deviation of the noise: constant, or per_episode, drawn anew by each environment (FastTD3).
      normalize_observations: whether networks see observations by their running statistics (SimBa, FastTD3); replay
        keeps them raw.
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
    target_policy: bool = True
    prioritized: bool = False
    annealed: bool = False
    regularizer: Literal["none", "beer"] = "none"
    exploration: Literal["constant", "per_episode"] = "constant"
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
      replay: coefficients of priorities (`jaxrl.buffers.Coefficients`), or ().
      policy_learning_rate: of the policy's optimizer, at the beginning.
      critic_learning_rate: of the critics'.
      gamma: discount factor.
      tau: how far the target parameters move at each update of the policy.
      exploration_noise: deviation of the noise on actions taken; actions range from -1 to 1. The greatest if each
        episode draws its own.
      least_exploration_noise: the least of these.
      policy_noise: deviation of the noise on the target policy's actions.
      noise_clip: bound of that noise.
      expectile: τ of the critics' loss at the beginning, if annealed.
      expectile_fraction: share of `horizon` over which it falls to ½.
      regularizer_coef: β, weight of the regularizer.
      max_grad_norm: gradients of a greater global norm are scaled down to it, each network's by itself.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    network: PyTree
    replay: PyTree
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]
    exploration_noise: Float[Array, ""]
    least_exploration_noise: Float[Array, ""]
    policy_noise: Float[Array, ""]
    noise_clip: Float[Array, ""]
    expectile: Float[Array, ""]
    expectile_fraction: Float[Array, ""]
    regularizer_coef: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


_PARTS = ("policy", "critic")


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
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `jaxrl.replaying.State`.

    Raises:
      ValueError: actions are no bounded `Box`, a count is not positive, a choice is unknown, the capacity, the warm-up
        or the delay does not fit, there is batch normalization, the ensemble does not fit the aggregate, or an
        expectile loss or a regularizer is to go with distributions or a regularizer with random members.

    Example:
      >>> import jaxrl
      >>> small = ControlConfig(hidden=(16,))
      >>> config = Config(num_rounds=4, batch_size=8, capacity=64, num_warmup_steps=8, network=small)
      >>> agent = td3(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=3))(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/critic"].shape, int(state.buffer.filled)
      ((3,), 20)
    """
    frame = replaying.frame("td3", env, config)
    policy_net, critic_net = networks_for("td3", env, network, False, config.network)
    if critic_net.config.norm == "batch":
        raise ValueError("td3: batch normalization cannot go with target networks; got norm = 'batch': use crossq.")
    aggregate.check(critic_net.num_members, critic_net.config.num_quantiles)
    for name, asked in (("annealed", config.annealed), ("a regularizer", config.regularizer != "none")):
        if asked:
            ensembles.check_means("td3", name, critic_net.config)
    if config.regularizer != "none" and aggregate.num_chosen:
        raise ValueError(
            f"td3: a regularizer compares the features of every member with its target's; got regularizer = "
            f"{config.regularizer!r} with aggregate = {aggregate.name}, which looks at some: use another aggregate."
        )
    if config.regularizer != "none" and critic_net.config.block == "hyperspherical":
        raise ValueError(
            f"td3: a regularizer needs features that a value is linear in; got regularizer = {config.regularizer!r} "
            "with block = 'hyperspherical', whose value has a layer more: use plain or residual blocks."
        )
    size, precision, plan = spaces.size(env.action_space), config.matmul_precision, frame.plan
    per_episode = config.exploration == "per_episode"

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"network": coefficients(critic_net.config), "replay": frame.buffer.hyperparams()}
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), **nested)

    def policy_at(params: PyTree, obs: Observation) -> Float[Array, "... A"]:
        (raw, _), _ = evaluate(policy_net, params, {}, obs)
        return jnp.tanh(raw)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_policy, key_critic, key_world, key_scale = jax.random.split(key, 5)
        shares = jax.random.uniform(key_scale, (config.num_envs,)) if per_episode else ()
        world = frame.start(key_world, hparams.env, shares, hparams.replay)
        one = jax.tree.map(lambda x: x[0], world.normalized(world.actor.obs))
        params = {
            "policy": initialize(policy_net, key_policy, one)["params"],
            "critic": initialize(critic_net, key_critic, one, jnp.zeros(size))["params"],
        }
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, 1.0)
        opt_state = {name: transforms[name].init(params[name]) for name in _PARTS}
        followed = params if config.target_policy else {"critic": params["critic"]}
        learner = Learner(params, opt_state, jax.tree.map(jnp.copy, followed), {})
        # A copy, so that the state can be donated while the hyperparameters stay.
        return State(key, learner, *world, jnp.copy(hparams.exploration_noise), jnp.int32(0))

    def behave(
        hparams: Hyperparams, learner: Learner, draw: Any, obs: Observation, memory: Memory, start: Array
    ) -> tuple[Array, Memory]:
        noise, share = draw
        action, scale = policy_at(learner.params["policy"], obs), hparams.exploration_noise
        if per_episode:
            memory = jnp.where(start, share, memory)
            scales = hparams.least_exploration_noise + memory * (scale - hparams.least_exploration_noise)
            scale = jnp.broadcast_to(scales[:, None], noise.shape)
        return explored(action, noise, scale), memory

    def critic_update(
        learner: Learner, row: Any, batch: NStep, hparams: Hyperparams, factor: Array, progress: Array
    ) -> tuple[Learner, Metrics, Array]:
        noise, chosen, key = row
        key_now, key_next = (None, None) if key is None else jax.random.split(key)
        source = learner.target_params if config.target_policy else learner.params
        next_action = smoothed(
            policy_at(source["policy"], batch.next_obs), noise, hparams.policy_noise, hparams.noise_clip
        )
        net, frozen = critic_net, learner.target_params["critic"]
        if aggregate.num_chosen:
            net, frozen = net.clone(num_members=aggregate.num_chosen), ensembles.pick(frozen, chosen)
        following, frozen_features = evaluate_with_features(
            net, frozen, batch.next_obs, next_action, hparams.network, key_next
        )
        returns = aggregate.target(ensembles.returns_of(following, hparams.network))
        target, expectile, ahead = ensembles.bootstrap(batch, returns), None, None
        if config.annealed:
            expectile = ensembles.annealed_expectile(hparams.expectile, hparams.expectile_fraction, progress)
        if config.regularizer == "beer":
            present = policy_at(learner.params["policy"], batch.next_obs)
            _, ahead = evaluate_with_features(
                critic_net, learner.params["critic"], batch.next_obs, present, hparams.network
            )

        def loss(params: PyTree) -> tuple[Array, Any]:
            now, features = evaluate_with_features(
                critic_net, params, batch.obs, batch.action, hparams.network, key_now
            )
            losses, info = ensembles.loss(now, target, hparams.network, batch.weight, expectile), {}
            if ahead is not None:
                kernel = params["value"]["kernel"]
                excess = ensembles.representation_excess(features, frozen_features, ahead, kernel, batch)
                losses = losses + hparams.regularizer_coef * excess
                info = {"loss/regularizer": jnp.mean(excess)}
            info["value/mean"] = jnp.mean(ensembles.means(now, hparams.network))
            return jnp.sum(losses), (info, ensembles.errors(now, target, hparams.network))

        (total, (info, errors)), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["critic"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        info |= {
            "loss/critic": total / critic_net.num_members,
            "value/target": target.mean(),
            "gradient/critic_norm": optax.tree.norm(gradient),
        }
        return replaying.descend(learner, "critic", gradient, transforms), info, errors

    def policy_update(
        learner: Learner, key: Any, obs: Observation, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        net = critic_net.clone(num_members=aggregate.num_climbed or critic_net.num_members)
        critic = ensembles.pick(learner.params["critic"], slice(aggregate.num_climbed))

        def loss(params: PyTree) -> Array:
            values, _ = evaluate(net, critic, {}, obs, policy_at(params, obs), hparams.network, key)
            return -jnp.mean(aggregate.climb(ensembles.means(values, hparams.network)))

        total, gradient = jax.value_and_grad(loss)(learner.params["policy"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        learner = replaying.descend(learner, "policy", gradient, transforms)
        followed = {name: learner.params[name] for name in learner.target_params}
        frozen = replaying.follow(learner.target_params, followed, hparams.tau)
        return dataclasses.replace(learner, target_params=frozen), {
            "loss/policy": total,
            "gradient/policy_norm": optax.tree.norm(gradient),
        }

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_next, key_chosen, key_drop, key_scale = jax.random.split(
            state.key, 8
        )
        factor = frame.factor(state.num_steps, hparams.horizon)
        progress = frame.progress(state.num_steps, hparams.horizon)
        drops = replaying.dropout_keys(key_drop, critic_net.stochastic, plan)
        draws = replaying.Draws(
            collect=(
                jax.random.normal(key_noise, (*frame.acting_shape, size)),
                jax.random.uniform(key_scale, frame.acting_shape) if per_episode else None,
            ),
            critic=(
                jax.random.normal(key_next, (*plan.updates_shape, config.batch_size, size)),
                aggregate.draw(key_chosen, critic_net.num_members, *plan.updates_shape),
                drops[0],
            ),
            policy=drops[1],
        )
        (learner, world), metrics = frame.run(
            (key_collect, key_replay),
            state.learner,
            state.world,
            hparams.env,
            hparams.gamma,
            draws,
            functools.partial(behave, hparams),
            lambda learner, row, batch: critic_update(learner, row, batch, hparams, factor, progress),
            lambda learner, row, obs: policy_update(learner, row, obs, hparams, factor),
            hparams.replay,
            progress,
        )
        return State(key, learner, *world, jnp.copy(hparams.exploration_noise), state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            action = policy_at(state.learner.params["policy"], state.world.normalized(obs))
        if key is not None:
            action = explored(action, jax.random.normal(key, action.shape), state.acting)
        return to_env_action(env.action_space, action), memory

    return Algorithm(init, step, act, hyperparams, env_steps=frame.env_steps, name="td3", env=env, config=config)


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
    "least_exploration_noise": Leaf(0.001, 0.0, needs=("exploration", "per_episode")),
    "policy_noise": Leaf(0.2, 0.0),
    "noise_clip": Leaf(0.5, 0.0),
    "expectile": Leaf(0.9, 0.5, 1.0, needs=("annealed", True)),
    "expectile_fraction": Leaf(1.0, 1e-9, 1.0, needs=("annealed", True)),
    "regularizer_coef": Leaf(5e-4, 0.0, needs=("regularizer", "beer")),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
