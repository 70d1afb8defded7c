"""Coarse-to-fine Q-network, CQN: continuous actions by values alone (Seo et al. 2024, arXiv:2407.07787).

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments: zoom in, add noise, take the cell's center      [T, B, A]
    store          in a ring, drawn from uniformly                                            [L, B]
    update         num_updates times
      draw         N transitions over n steps                                                 [N]
      zoom         the next action by the critic: at each level the best bin of each entry    [N, A]
      target       Φ(r + γ Z'_l(s', that bin)) of each level l and entry, C51's projection    [N, l, A, K]
      loss         cross-entropy of the bins of the stored action; one optimizer step         [N, l, A, K]
      target       parameters are averaged

The critic (`jaxrl.networks.coarse`) values the entries of an action apart from each other. There is no policy network.
With `length` S above 1 it values S actions in a row, S A entries, each with the same return from the first on: CQN-AS
(Seo and Abbeel 2024, arXiv:2411.12155). Every step then chooses S actions and takes the mean of what the last S choices
mean for now (`jaxrl.chunks.blend`), with noise and off the grid.
Demonstrations, with which the paper starts its robots, are not here. The buffer begins with `num_warmup_steps` random
steps of each environment, made by `init`; they count neither in `env_steps` nor in progress.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import chunks, replaying, rollout, spaces
from jaxrl.buffers import NStep
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.networks.coarse import CoarseConfig, cell_of, center_of, coarse_critic, path_of, zoom
from jaxrl.networks.initializers import initialize
from jaxrl.ops import bins, trees
from jaxrl.ops.bins import Support
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam_with
from jaxrl.replaying import Learner, State
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: updates of the critic in a round.
      num_rounds: rounds of one step of the algorithm; only batches random numbers and metrics.
      batch_size: transitions of an update, N.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target, n.
      length: actions in a row that the critic values, S.
      normalize_observations: whether the critic sees observations by their running statistics; replay keeps them raw.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: levels, bins and layers of the critic.
    """

    num_envs: int = 1
    num_steps: int = 2
    num_updates: int = 1
    num_rounds: int = 60
    batch_size: int = 256
    capacity: int = 131_072
    num_warmup_steps: int = 1024
    n_step: int = 3
    length: int = 1
    normalize_observations: bool = False
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: CoarseConfig = dataclasses.field(default_factory=CoarseConfig)

    @property
    def policy_delay(self) -> int:
        """Updates after which a frame with a policy would update it; here there is none."""
        return self.num_updates


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      support: ends of the return's histogram (`jaxrl.ops.bins.Support`): give it the range of your returns.
      critic_learning_rate: of the optimizer, at the beginning.
      gamma: discount factor.
      tau: how far the target parameters move after each update.
      noise_start: deviation of the noise on actions taken at the beginning; actions range from -1 to 1.
      noise_end: the same at the end of the decay.
      noise_fraction: share of `horizon` over which it falls linearly.
      ensemble_gain: how much more older choices of the present action weigh, if there are several (`chunks.blend`).
      max_grad_norm: gradients of a greater global norm are scaled down to it.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    support: Support
    critic_learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]
    noise_start: Float[Array, ""]
    noise_end: Float[Array, ""]
    noise_fraction: Float[Array, ""]
    ensemble_gain: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class Acting:
    """What acting reads of the hyperparameters.

    Attributes:
      support: ends of the return's histogram.
      noise: present deviation of the noise.
      gain: of older choices, () where there are none.
    """

    support: Support
    noise: Float[Array, ""]
    gain: PyTree


_PARTS = ("critic",)


@memoize
def cqn(
    env: Env,
    optimizer: Optimizer = adam_with(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds the coarse-to-fine Q-network for an environment with bounded continuous actions.

    Args:
      env: the environment to learn in; its actions are a `Box` with finite bounds.
      optimizer: makes a gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `jaxrl.replaying.State`.

    Raises:
      ValueError: a count is not positive, a choice is unknown, the capacity or the warm-up does not fit, or what
        `coarse_critic` raises. (`hyperparams`:) a gain is set where every action is chosen once.

    Example:
      >>> import jaxrl
      >>> small = CoarseConfig(num_atoms=5, num_features=4, hidden=(8,))
      >>> config = Config(num_rounds=4, batch_size=8, capacity=64, num_warmup_steps=8, network=small)
      >>> agent = cqn(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, num_steps=3), jax.random.key(1), agent.hyperparams())
      >>> agent.env_steps, metrics["loss/critic"].shape, state.buffer.items.action.shape
      (8, (3,), (64, 1, 1))
    """
    frame = replaying.frame("cqn", env, config)
    net = coarse_critic(env.observation_space, env.action_space, config.network, config.length)
    size, precision, plan = spaces.size(env.action_space), config.matmul_precision, frame.plan
    # What decides between bins of equal value: a number for each level and entry of all actions.
    ties = (config.network.num_levels, config.length * size)

    def hyperparams(**changes: Any) -> Hyperparams:
        if "ensemble_gain" in changes and config.length == 1:
            raise ValueError(
                f"ensemble_gain = {changes['ensemble_gain']} has no effect while config.length = 1; set "
                "Config(length=2) or more."
            )
        support = Support(jnp.float32(0.0), jnp.float32(200.0))
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), support=support)

    def evaluate(params: PyTree, obs: Observation, center: Array, level: Array) -> Float[Array, "*batch l A B K"]:
        return net.apply({"params": params}, obs, center, level)  # type: ignore[return-value]

    def best(
        params: PyTree, support: Support, obs: Observation, draw: Array | None, *batch: int
    ) -> Int[Array, "*batch A"]:
        """The cell that the critic zooms in on."""
        centers = _atoms(support, config.network)

        def values_of(center: Array, level: int) -> Array:
            logits = evaluate(params, obs, center[..., None, :], jnp.array([level]))
            return bins.expected_value(logits[..., 0, :, :, :], centers)

        return zoom(values_of, (*batch, config.length * size), config.network, draw)

    def memory_of(*batch: int) -> Memory:
        return chunks.no_plans(config.length, size, *batch) if config.length > 1 else ()

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_critic, key_world = jax.random.split(key, 3)
        world = frame.start(key_world, hparams.env, memory_of(config.num_envs))
        one, center = jax.tree.map(lambda x: x[0], world.normalized(world.actor.obs)), jnp.zeros((1, ties[1]))
        params = {"critic": initialize(net, key_critic, one, center, jnp.array([0]))["params"]}
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, 1.0)
        opt_state = {"critic": transforms["critic"].init(params["critic"])}
        learner = Learner(params, opt_state, jax.tree.map(jnp.copy, params["critic"]), {})
        return State(key, learner, *world, _acting(hparams, config, jnp.float32(0.0)), jnp.int32(0))

    def explored(cell: Array, memory: Memory, noise: Array, acting: Acting) -> tuple[Float[Array, "*batch A"], Memory]:
        """The center of the cell that a noisy action lies in; of several in a row the noisy mean of all choices."""
        num_cells = config.network.num_bins**config.network.num_levels
        action = center_of(cell, num_cells)
        if config.length == 1:
            return center_of(cell_of(action + acting.noise * noise, config.network), num_cells), memory
        chunk = action.reshape((*action.shape[:-1], config.length, size))
        action, memory = chunks.blend(memory, chunk, acting.gain)
        return jnp.clip(action + acting.noise * noise, -1.0, 1.0), memory

    def critic_update(
        learner: Learner, draw: Array, batch: NStep, hparams: Hyperparams, factor: Array
    ) -> tuple[Learner, Metrics]:
        levels, centers = jnp.arange(config.network.num_levels), _atoms(hparams.support, config.network)

        # --- Estimate ------------------------------------------------------------------------------------------------
        cell = best(learner.params["critic"], hparams.support, batch.next_obs, draw, config.batch_size)
        taken, center = path_of(cell, config.network)
        following = _of_bin(evaluate(learner.target_params, batch.next_obs, center, levels), taken)
        target = projected(batch, jax.nn.softmax(following), centers)

        # --- Update --------------------------------------------------------------------------------------------------
        def loss(params: PyTree) -> tuple[Array, Array]:
            taken, center = path_of(cell_of(batch.action, config.network), config.network)
            logits = _of_bin(evaluate(params, batch.obs, center, levels), taken)
            return jnp.mean(bins.cross_entropy(logits, target)), jnp.mean(bins.expected_value(logits, centers))

        (total, value), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params["critic"])
        transforms = replaying.optimizers(optimizer, hparams, _PARTS, factor)
        learner = replaying.descend(learner, "critic", gradient, transforms)
        frozen = replaying.follow(learner.target_params, learner.params["critic"], hparams.tau)
        return dataclasses.replace(learner, target_params=frozen), {
            "loss/critic": total,
            "value/mean": value,
            "value/target": jnp.mean(jnp.sum(target * jnp.broadcast_to(centers, target.shape), axis=-1)),
            "gradient/critic_norm": optax.tree.norm(gradient),
        }

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_noise, key_replay, key_tie, key_next = jax.random.split(state.key, 6)
        factor = frame.factor(state.num_steps, hparams.horizon)
        acting = _acting(hparams, config, frame.progress(state.num_steps, hparams.horizon))

        def behave(learner: Learner, draw: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Array, Memory]:
            noise, tie = draw
            cell = best(learner.params["critic"], hparams.support, obs, tie, config.num_envs)
            return explored(cell, trees.where(start, memory_of(config.num_envs), memory), noise, acting)

        draws = replaying.Draws(
            collect=(
                jax.random.normal(key_noise, (*frame.acting_shape, size)),
                jax.random.uniform(key_tie, (*frame.acting_shape, *ties)),
            ),
            critic=jax.random.uniform(key_next, (*plan.updates_shape, config.batch_size, *ties)),
            policy=None,
        )
        (learner, world), metrics = frame.run(
            (key_collect, key_replay),
            state.learner,
            state.world,
            hparams.env,
            hparams.gamma,
            draws,
            behave,
            lambda learner, row, batch: critic_update(learner, row, batch, hparams, factor),
            lambda learner, row, obs: (learner, {}),
        )
        return State(key, learner, *world, acting, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        key_tie, key_noise = (None, None) if key is None else jax.random.split(key)
        tie = None if key_tie is None else jax.random.uniform(key_tie, ties)
        with jax.default_matmul_precision(precision):
            cell = best(state.learner.params["critic"], state.acting.support, state.world.normalized(obs), tie)
        noise = jnp.zeros(size) if key_noise is None else jax.random.normal(key_noise, (size,))
        action, memory = explored(cell, memory, noise, state.acting)
        return to_env_action(env.action_space, action), memory

    return Algorithm(
        init,
        step,
        act,
        hyperparams,
        initial_memory=memory_of,
        env_steps=frame.env_steps,
        name="cqn",
        env=env,
        config=config,
    )


def projected(batch: NStep, probs: Float[Array, "N L A K"], centers: Float[Array, " K"]) -> Float[Array, "N L A K"]:
    """The distribution of r + γ Z on the atoms, for each level and entry (arXiv:1707.06887, algorithm 1).

    Args:
      batch: the transitions.
      probs: of Z, that of the bin that the next action has at that level.
      centers: the atoms.
    """
    full = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], centers.shape[0]))
    returns = full(batch.reward) + full(batch.discount) * jnp.broadcast_to(centers, full(batch.reward).shape)
    return jnp.einsum("nlaj,njk->nlak", probs, bins.two_hot(returns, centers))


def _of_bin(logits: Float[Array, "N L A B K"], index: Int[Array, "N L A"]) -> Float[Array, "N L A K"]:
    """Those of one bin."""
    return jnp.take_along_axis(logits, index[..., None, None], axis=-2)[..., 0, :]


def _atoms(support: Support, config: CoarseConfig) -> Float[Array, " K"]:
    return bins.bin_centers(support.low, support.high, config.num_atoms)


def _acting(hparams: Hyperparams, config: Config, progress: Float[Array, ""]) -> Acting:
    """Copies, since the state is donated and the hyperparameters are not."""
    passed = jnp.minimum(progress / hparams.noise_fraction, 1.0)
    noise = hparams.noise_start + (hparams.noise_end - hparams.noise_start) * passed
    gain = jnp.copy(hparams.ensemble_gain) if config.length > 1 else ()
    return Acting(jax.tree.map(jnp.copy, hparams.support), noise, gain)


_LEAVES = {
    "critic_learning_rate": Leaf(1e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "tau": Leaf(0.02, 0.0, 1.0),
    "noise_start": Leaf(1.0, 0.0),
    "noise_end": Leaf(0.1, 0.0),
    "noise_fraction": Leaf(0.1, 1e-9, 1.0),
    "ensemble_gain": Leaf(0.01),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
