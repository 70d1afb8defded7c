"""Parallelized Q-network: Q(λ) without replay and without a target network (Gallici et al. 2024, arXiv:2407.04811).

One step of the algorithm, with its shapes:

    collect        T steps in B environments, ε-greedily                         [T, B]
    estimate       λ-returns from max Q of the true successors                   [T, B]
    update         num_epochs times: shuffle into M minibatches                  [M, N/M]
      each         one optimizer step on the head's loss; the network is normalized

With a memory minibatches are of whole environments, from the memory that they had when the rollout began. (The authors'
recurrent program begins each update some steps earlier instead, and keeps those steps of the last rollout for that.)

Differences from the authors' code: a truncated episode bootstraps from its true successor, where theirs takes every end
for a termination; the head may be any of `jaxrl.values`, which learns the λ-return as if it were certain.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, validation, values
from jaxrl.networks.q_network import QNetworkConfig, QOutput, apply_one, apply_step, init_params, q_network
from jaxrl.ops import minibatches, returns, schedules, trees
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize
from jaxrl.values import Target, ValueHead


def radam(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al. 2019, arXiv:1908.03265), as the authors use, behind clipping of the global norm.

    Args:
      hparams: its leaf `max_grad_norm` is the greatest norm.
      learning_rate: at present.

    >>> import types
    >>> transform = radam(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    >>> round(float(updates), 3)
    -0.05
    """
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_radam(),
        optax.scale(-learning_rate),  # type: ignore[arg-type]
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_epochs: passes over the rollout.
      num_minibatches: parts that each pass splits it into, M.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: its layers; noise is not for it.
    """

    num_envs: int = 32
    num_steps: int = 64
    num_epochs: int = 4
    num_minibatches: int = 16
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: QNetworkConfig = dataclasses.field(
        default_factory=lambda: QNetworkConfig(hidden=(128, 128), layer_norm=True)
    )


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      head: coefficients of the representation of returns.
      learning_rate: of the optimizer, at the beginning.
      gamma: discount factor.
      trace_lambda: λ of the returns.
      reward_scale: factor of the rewards that are learned from.
      epsilon_start: share of random actions at the beginning.
      epsilon_end: share of random actions at the end of the decay.
      epsilon_fraction: share of `horizon` over which it decays linearly.
      max_grad_norm: gradients of a greater global norm are scaled down to it.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    head: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    trace_lambda: Float[Array, ""]
    reward_scale: Float[Array, ""]
    epsilon_start: Float[Array, ""]
    epsilon_end: Float[Array, ""]
    epsilon_fraction: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters.
      opt_state: the optimizer's state.
      actor: environments in progress.
      head: coefficients of the head, which acting reads.
      epsilon: present share of random actions.
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    actor: rollout.ActorState
    head: PyTree
    epsilon: Float[Array, ""]
    num_steps: Int[Array, ""]


@memoize
def pqn(
    env: Env,
    head: ValueHead = values.scalar(),  # noqa: B008 (memoized record)
    optimizer: Optimizer = radam,
    config: Config = Config(),
) -> Algorithm:
    """Builds PQN for an environment with discrete actions.

    Args:
      env: the environment to learn in.
      head: how returns are represented, of a fixed number of outputs; its coefficients are `hparams.head`.
      optimizer: makes the gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: actions are not discrete, a count is not positive, a rollout does not split evenly into minibatches, a
        choice is unknown, the network or the head is random, or the head reads the values of all actions.

    Example:
      >>> import jaxrl
      >>> agent = pqn(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=4, num_steps=8))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/value"].shape
      (2,)
    """
    validation.counts("pqn", config, ("num_envs", "num_steps", "num_epochs", "num_minibatches"))
    validation.choices("pqn", config)
    validation.layers("pqn", config.network, QNetworkConfig)
    recurrent = config.network.memory != "none"
    minibatches.validate(config.num_steps, config.num_envs, config.num_minibatches, recurrent)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(config.num_envs)
    net = q_network(env.observation_space, env.action_space, head.size, bool(head.fractions), config.network)
    if net.stochastic:
        raise ValueError(
            f"pqn: network and head must not be random; got noisy = {config.network.noisy} and head = {head.name!r}. "
            "Use dqn."
        )
    if head.whole:
        raise ValueError(f"pqn: the head {head.name!r} reads the values of all actions, which only dqn gives: use dqn.")
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), head=head.init())

    def values_of(output: QOutput, coefficients: PyTree, obs: Observation) -> Float[Array, "... A"]:
        return values.legal_only(head.mean(coefficients, output), obs)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        params = init_params(net, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(
            key=key,
            params=params,
            opt_state=optimizer(hparams, hparams.learning_rate).init(params),
            actor=actor,
            # Copies: the state is donated, the hyperparameters are not.
            head=jax.tree.map(jnp.copy, hparams.head),
            epsilon=jnp.copy(hparams.epsilon_start),
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        keys = jax.random.split(state.key, 3 + config.num_epochs)
        key, key_noise, key_collect, keys_epoch = keys[0], keys[1], keys[2], keys[3:]
        progress = schedules.progress(state.num_steps.astype(jnp.float32) * batch_size, hparams.horizon)
        transform = optimizer(hparams, hparams.learning_rate * schedules.SCHEDULES[config.schedule](progress))
        decayed = jnp.minimum(progress / hparams.epsilon_fraction, 1.0)
        epsilon = hparams.epsilon_start + (hparams.epsilon_end - hparams.epsilon_start) * decayed

        # --- Collect -------------------------------------------------------------------------------------------------
        def policy(noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            output = apply_step(net, state.params, obs, memory=memory, start=start)
            action = values.epsilon_greedy(noise, values_of(output, hparams.head, obs), epsilon)
            return action, action, output.memory, ()

        noise = jax.random.uniform(key_noise, (config.num_steps, config.num_envs, 2))
        actor, batch, metrics = rollout.collect(key_collect, env, hparams.env, state.actor, policy, noise, reset)

        # --- Estimate ------------------------------------------------------------------------------------------------
        next_obs, memory = trees.flatten_time((batch.next_obs, batch.memory))
        following = values_of(apply_step(net, state.params, next_obs, memory=memory), hparams.head, next_obs)
        goal = returns.lambda_returns(
            hparams.reward_scale * batch.reward,
            jnp.max(following, axis=-1).reshape(batch.reward.shape),
            batch.terminated,
            batch.truncated,
            hparams.gamma,
            hparams.trace_lambda,
        )

        # --- Update --------------------------------------------------------------------------------------------------
        def loss(
            params: PyTree, sample: tuple[Observation, Array, Array, Array], memory: Memory
        ) -> tuple[Array, Array]:
            obs, start, action, goal = sample
            output: Any = net.apply(params, obs, memory=memory, start=start)
            output = dataclasses.replace(output, memory=())
            if recurrent:
                output, action, goal = trees.flatten_time((output, action, goal))
            taken = jnp.take_along_axis(output.values, action[:, None, None], axis=1)[:, 0]
            # Nothing follows a return: the successor's discount is 0, so its outputs are not read.
            weight = jax.nn.one_hot(action, output.values.shape[1], dtype=jnp.float32)
            frozen = jax.lax.stop_gradient(output)
            target = Target(goal, jnp.zeros_like(goal), frozen, weight, None, greedy=True)
            losses, surprise = head.loss(hparams.head, dataclasses.replace(output, values=taken), target)
            return jnp.mean(losses), jnp.mean(surprise)

        def update(carry: tuple[PyTree, Any], sample: Any) -> tuple[tuple[PyTree, Any], Metrics]:
            params, opt_state = carry
            (value_loss, surprise), gradient = jax.value_and_grad(loss, has_aux=True)(params, *sample)
            updates, opt_state = transform.update(gradient, opt_state, params)
            info = {"loss/value": value_loss, "loss/surprise": surprise, "gradient/norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), info

        def epoch(carry: tuple[PyTree, Any], key: Key) -> tuple[tuple[PyTree, Any], Metrics]:
            samples = (batch.obs, batch.start, batch.action, goal)
            parts = minibatches.shuffled(key, samples, state.actor.memory, config.num_minibatches, recurrent)
            return jax.lax.scan(update, carry, parts)

        (params, opt_state), info = jax.lax.scan(epoch, (state.params, state.opt_state), keys_epoch)
        metrics |= jax.tree.map(jnp.mean, info) | {"value/mean": jnp.mean(goal)}
        return State(
            key=key,
            params=params,
            opt_state=opt_state,
            actor=actor,
            head=jax.tree.map(jnp.copy, hparams.head),
            epsilon=epsilon,
            num_steps=state.num_steps + 1,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output = apply_one(net, state.params, obs, memory=memory)
            value, memory = values_of(output, state.head, obs), output.memory
        if key is None:
            return jnp.argmax(value, axis=-1).astype(jnp.int32), memory
        return values.epsilon_greedy(jax.random.uniform(key, (2,)), value, state.epsilon), memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="pqn", env=env, config=config
    )


_LEAVES = {
    "learning_rate": Leaf(2.5e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "trace_lambda": Leaf(0.95, 0.0, 1.0),
    "reward_scale": Leaf(1.0, 0.0),
    "epsilon_start": Leaf(1.0, 0.0, 1.0),
    "epsilon_end": Leaf(0.05, 0.0, 1.0),
    "epsilon_fraction": Leaf(0.2, 1e-9, 1.0),
    "max_grad_norm": Leaf(10.0, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
}
