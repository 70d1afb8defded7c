"""SQIRL: shallow Q-iteration after random exploration (Laidlaw et al. 2024, arXiv:2312.08369).

One step of the algorithm settles what is done at one time step i of the T of an episode, and goes on to the next one.
With its shapes:

    collect     an episode in each of B environments: π_0 … π_{i-1}, from time i on random actions     [T, B]
    evaluate    Q^1: regression of the random policy's returns                                         [N]
    iterate     Q^j for j = 2 … k: regression of r + γ max Q^{j-1}(s')                                 [N, k-1]
    fix         π_i = greedy for Q^k; it is a copy of the network, and stays                           [T, ...]

So exploring is random and no more, and learning is regression within the distribution of the data. Tasks that are
k-QVI-solvable (`jaxrl.analysis.effective_horizon`) are solved so with enough episodes. After T steps all over again,
with more data behind the network and every π_t of the last pass in use until it is replaced.

Q^1 … Q^k are k outputs of one network, which goes on from one step to the next, regressed at the same time on the
episodes of this step (their code does so, keeping older episodes too). As the paper's algorithm box has it, Q^j is
learned at time i + k - j alone; `pooled` learns all of them at all times from i on, as their code does.

Episodes that end before T are padded with nothing; what is after T does not count, nor does a truncation's successor.
The paper's text was not at hand; its authors' code was read.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, validation, values
from jaxrl.networks.initializers import initialize
from jaxrl.networks.q_network import QNetworkConfig, q_network
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_RESET = rollout.Reset()


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: episodes of one step of the algorithm, B.
      num_steps: time steps of an episode, T, for each of which there is a policy.
      depth: k; 1 is greedy for the random policy's Q.
      num_updates: gradient steps of one step of the algorithm.
      batch_size: transitions of a gradient step for each of the k regressions, N.
      pooled: whether a regression uses the transitions of all times from i on, instead of one.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: its layers; neither noise nor memory is for it.
    """

    num_envs: int = 64
    num_steps: int = 32
    depth: int = 1
    num_updates: int = 100
    batch_size: int = 128
    pooled: bool = True
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: QNetworkConfig = dataclasses.field(default_factory=lambda: QNetworkConfig(hidden=(64, 64)))


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      learning_rate: of the optimizer.
      gamma: discount factor.
      epsilon: share of random actions where a policy is fixed already, while collecting; the paper has none.
      max_grad_norm: gradients of a greater global norm are scaled down to it.
    """

    env: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    epsilon: Float[Array, ""]
    max_grad_norm: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: of the network that is regressed.
      opt_state: the optimizer's state.
      policies: parameters of π_0 … π_{T-1}, leaves [T, ...]; those not yet fixed are the present `params`.
      actor: the environments as the last step left them.
      epsilon: share of random actions of sampled acting.
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    policies: PyTree
    actor: rollout.ActorState
    epsilon: Float[Array, ""]
    num_steps: Int[Array, ""]


@memoize
def sqirl(env: Env, optimizer: Optimizer = adam, config: Config = Config()) -> Algorithm:
    """Builds SQIRL for an environment with discrete actions.

    Acting needs to know the time: its memory is the number of steps since the episode began.

    Args:
      env: the environment to learn in.
      optimizer: makes the gradient transformation from the hyperparameters and the learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. After `config.num_steps` steps there
      is a policy for every time.

    Raises:
      ValueError: actions are not discrete, a count is not positive, the depth is greater than T, a choice is unknown,
        or the network is random or has a memory.

    Example:
      >>> import jaxrl
      >>> config = Config(num_envs=16, num_steps=1, batch_size=32, network=QNetworkConfig(hidden=(8,)))
      >>> agent = sqirl(jaxrl.make_env("probe/Policy"), config=config)
      >>> hparams = agent.hyperparams(learning_rate=1e-2)
      >>> state, _ = jax.jit(jaxrl.train(agent, num_steps=1))(jax.random.key(0), hparams)
      >>> episodes = jaxrl.evaluate(agent, 8)(jax.random.key(1), state, hparams.env)
      >>> float(episodes.mean_return)  # the best
      1.0
    """
    validation.counts("sqirl", config, ("num_envs", "num_steps", "depth", "num_updates", "batch_size"))
    validation.choices("sqirl", config)
    validation.layers("sqirl", config.network, QNetworkConfig)
    if config.depth > config.num_steps:
        raise ValueError(
            "sqirl: depth must be at most num_steps, beyond which it changes nothing; got "
            f"depth = {config.depth}, num_steps = {config.num_steps}."
        )
    net = q_network(env.observation_space, env.action_space, config.depth, config=config.network)
    if net.stochastic or net.recurrent:
        raise ValueError(
            f"sqirl: the network must be neither random nor recurrent; got noisy = {config.network.noisy} and "
            f"memory = {config.network.memory!r}."
        )
    depth, horizon, num_envs = config.depth, config.num_steps, config.num_envs
    precision = config.matmul_precision
    times, columns = np.arange(horizon), np.arange(depth)

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def values_of(params: PyTree, obs: Observation) -> Float[Array, "... k A"]:
        """Q^1 … Q^k of all actions."""
        outputs: Array = jnp.moveaxis(net.apply(params, obs).values, -1, 0)  # type: ignore[union-attr]
        return jnp.stack([values.legal_only(outputs[j], obs) for j in range(depth)], axis=-2)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, num_envs, (), _RESET)
        with jax.default_matmul_precision(precision):
            params = initialize(net, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(
            key=key,
            params=params,
            opt_state=optimizer(hparams, hparams.learning_rate).init(params),
            policies=jax.tree.map(lambda x: jnp.repeat(x[None], horizon, axis=0), params),
            actor=actor,
            # A copy: the state is donated, the hyperparameters are not.
            epsilon=jnp.copy(hparams.epsilon),
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_start, key_noise, key_collect, key_draw = jax.random.split(state.key, 5)
        now = state.num_steps % horizon
        transform = optimizer(hparams, hparams.learning_rate)

        # --- Collect -------------------------------------------------------------------------------------------------
        def policy(draw: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            noise, time, params = draw
            epsilon = jnp.where(time < now, hparams.epsilon, 1.0)
            action = values.epsilon_greedy(noise, values_of(params, obs)[..., -1, :], epsilon)
            return action, action, memory, ()

        actor = rollout.start(key_start, env, hparams.env, num_envs, (), _RESET)
        noise = jax.random.uniform(key_noise, (horizon, num_envs, 2))
        draws = (noise, jnp.asarray(times), state.policies)
        actor, batch, _ = rollout.collect(key_collect, env, hparams.env, actor, policy, draws, _RESET)
        ended = batch.ended.astype(jnp.int32)
        # What comes after an episode's end is another one, in which the time would be wrong.
        running = jnp.cumsum(ended, axis=0) - ended == 0

        # --- Estimate ------------------------------------------------------------------------------------------------
        reward = jnp.where(running, batch.reward, 0.0)

        def discounted(later: Array, paid: Array) -> tuple[Array, Array]:
            total = paid + hparams.gamma * later
            return total, total

        returns = jax.lax.scan(discounted, jnp.zeros(num_envs), reward, reverse=True)[1]
        # What Q^j is learned from, j = 1 … k: [k, T B].
        wanted = jnp.minimum(now + depth - 1 - columns, horizon - 1)[:, None] == times[None]
        usable = running[None] & (jnp.broadcast_to(times >= now, wanted.shape) if config.pooled else wanted)[:, :, None]
        counted = jnp.cumsum(usable.reshape((depth, -1)).astype(jnp.int32), axis=1)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (batch.obs, batch.next_obs, batch.action))
        over = batch.ended | (jnp.asarray(times) == horizon - 1)[:, None]
        rows = (*flat, reward.reshape(-1), over.reshape(-1), returns.reshape(-1))

        # --- Update --------------------------------------------------------------------------------------------------
        def update(carry: tuple[PyTree, Any], noise: Float[Array, "k N"]) -> tuple[tuple[PyTree, Any], Metrics]:
            params, opt_state = carry
            total = counted[:, -1]
            rank = jnp.floor(noise * total[:, None].astype(jnp.float32)).astype(jnp.int32)
            index = jax.vmap(lambda sums, k: jnp.searchsorted(sums, k, side="right"))(counted, rank)
            obs, next_obs, action, paid, over, gain = jax.tree.map(lambda x: x[index], rows)
            goal = gain[:1]
            if depth > 1:
                # Q^{j-1} at the successors of the rows that Q^j is learned from.
                following = jax.tree.map(lambda x: x[1:], next_obs)
                ahead = jnp.max(values_of(params, following)[columns[:-1], :, columns[:-1]], axis=-1)
                bootstrapped = paid[1:] + hparams.gamma * jnp.where(over[1:], 0.0, ahead)
                goal = jax.lax.stop_gradient(jnp.concatenate([goal, bootstrapped]))
            weight = jnp.broadcast_to((total > 0).astype(jnp.float32)[:, None], goal.shape)

            def loss(params: PyTree) -> tuple[Array, Array]:
                every = net.apply(params, obs).values  # type: ignore[union-attr]
                taken = jnp.take_along_axis(every, action[..., None, None], axis=-2)[:, :, 0]
                found = taken[columns, :, columns]
                return 0.5 * jnp.mean(weight * jnp.square(goal - found)), jnp.mean(found)

            (value_loss, mean), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = transform.update(gradient, opt_state, params)
            info = {"loss/value": value_loss, "value/mean": mean, "gradient/norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), info

        noise = jax.random.uniform(key_draw, (config.num_updates, depth, config.batch_size))
        (params, opt_state), info = jax.lax.scan(update, (state.params, state.opt_state), noise)
        fixed = (times == now) | ((times > now) & (state.num_steps < horizon))
        finished = jnp.any(batch.ended, axis=0)
        metrics = jax.tree.map(jnp.mean, info) | {
            "episode/return_sum": jnp.sum(jnp.where(finished, jnp.sum(reward, axis=0), 0.0)),
            "episode/length_sum": jnp.sum(jnp.where(finished, jnp.sum(running, axis=0), 0).astype(jnp.float32)),
            "episode/count": jnp.sum(finished.astype(jnp.float32)),
        }
        pick = lambda old, new: jnp.where(fixed.reshape((-1,) + (1,) * new.ndim), new[None], old)
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            policies=jax.tree.map(pick, state.policies, params),
            actor=actor,
            epsilon=jnp.copy(hparams.epsilon),
            num_steps=state.num_steps + 1,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        time = jnp.minimum(memory, horizon - 1)
        with jax.default_matmul_precision(precision):
            value = values_of(jax.tree.map(lambda x: x[time], state.policies), obs)[..., -1, :]
        if key is None:
            return jnp.argmax(value, axis=-1).astype(jnp.int32), memory + 1
        return values.epsilon_greedy(jax.random.uniform(key, (2,)), value, state.epsilon), memory + 1

    return Algorithm(
        init,
        step,
        act,
        hyperparams,
        lambda: jnp.zeros((), jnp.int32),
        env_steps=num_envs * horizon,
        name="sqirl",
        env=env,
        config=config,
    )


_LEAVES = {
    "learning_rate": Leaf(1e-3, 0.0),
    "gamma": Leaf(1.0, 0.0, 1.0),
    "epsilon": Leaf(0.0, 0.0, 1.0),
    "max_grad_norm": Leaf(10.0, 1e-12),
}
