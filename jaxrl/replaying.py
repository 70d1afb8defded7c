"""What agents that learn from replay share: the random warm-up, and in which order they collect and update.

There are U updates of the critic in a round and one of the policy after every D of them (the *delay*); one of U and D
divides the other:

    D ≥ U    block = D / U rounds of (collect, U critic updates), then the policy's
    D < U    block = one round: collect, then U / D groups of (D critic updates, the policy's)

So an update that is not due is not in the program, and nothing is conditional.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.buffers import Buffer, BufferState, Experience
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.types import Env, EnvParams, Key, Memory, Metrics, Observation

Learner = TypeVar("Learner", bound=Any)
Tree = TypeVar("Tree")


class Order(NamedTuple):
    """How rounds, critic updates and policy updates follow each other.

    Attributes:
      num_blocks: of one step of the algorithm.
      num_rounds: of one block; above 1 only if `num_groups` is 1.
      num_groups: policy updates of a block.
      num_updates: critic updates of a round in each group.
    """

    num_blocks: int
    num_rounds: int
    num_groups: int
    num_updates: int

    @property
    def num_policy_updates(self) -> int:
        """Of one step of the algorithm."""
        return self.num_blocks * self.num_groups

    @property
    def updates_shape(self) -> tuple[int, int]:
        """(rounds, critic updates of each) of one step of the algorithm."""
        return self.num_blocks * self.num_rounds, self.num_groups * self.num_updates


@struct.dataclass
class Rows:
    """What is drawn ahead of the loops: R rounds, U critic updates in each, P policy updates.

    Attributes:
      collect: leaves [R, ...].
      critic: leaves [R, U, ...].
      policy: leaves [P, ...].
    """

    collect: PyTree
    critic: PyTree
    policy: PyTree


def order(owner: str, num_rounds: int, num_updates: int, policy_delay: int) -> Order:
    """The order for these counts.

    Args:
      owner: the algorithm, for messages.
      num_rounds: of one step of the algorithm.
      num_updates: critic updates of a round, U.
      policy_delay: critic updates for one of the policy, D.

    Raises:
      ValueError: neither U divides D nor D divides U, or the rounds are not whole blocks.

    >>> order("td3", 6, 1, 2)
    Order(num_blocks=3, num_rounds=2, num_groups=1, num_updates=1)
    >>> order("sac", 6, 4, 2)
    Order(num_blocks=6, num_rounds=1, num_groups=2, num_updates=2)
    """
    rounds, groups = max(1, policy_delay // num_updates), max(1, num_updates // policy_delay)
    if rounds * num_updates != groups * policy_delay or num_rounds % rounds:
        raise ValueError(
            f"{owner}: of num_updates and policy_delay one must divide the other, and num_rounds must be a multiple of "
            f"policy_delay / num_updates; got num_updates = {num_updates}, policy_delay = {policy_delay}, "
            f"num_rounds = {num_rounds}."
        )
    return Order(num_rounds // rounds, rounds, groups, num_updates // groups)


def alternate(
    order: Order,
    carry: tuple[Any, Any, BufferState],
    rows: Rows,
    collect: Callable[[Any, Any, BufferState, Any], tuple[Any, BufferState, Metrics]],
    critic: Callable[[Any, Any, BufferState], tuple[Any, Metrics]],
    policy: Callable[[Any, Any, BufferState], tuple[Any, Metrics]],
) -> tuple[tuple[Any, Any, BufferState], Metrics]:
    """One step of the algorithm: rounds of collecting and updating.

    Args:
      order: from `order`.
      carry: the learner, the environments in progress, and the replay.
      rows: randomness.
      collect: `(learner, actor, replay, row) -> (actor, replay, metrics)`.
      critic: `(learner, row, replay) -> (learner, metrics)`.
      policy: the same for the policy's update.

    Returns:
      The carry, and metrics with leading axes of rounds and updates.
    """

    def group(learner: Any, rows: tuple[Any, Any], replay: BufferState) -> tuple[Any, Metrics]:
        learner, info = jax.lax.scan(lambda learner, row: critic(learner, row, replay), learner, rows[0])
        learner, more = policy(learner, rows[1], replay)
        return learner, jax.tree.map(jnp.mean, info) | more

    def round_(carry: Any, row: tuple[Any, Any], update: Callable[..., Any]) -> tuple[Any, Metrics]:
        learner, actor, replay = carry
        actor, replay, metrics = collect(learner, actor, replay, row[0])
        learner, info = jax.lax.scan(lambda learner, row: update(learner, row, replay), learner, row[1])
        return (learner, actor, replay), metrics | jax.tree.map(jnp.mean, info)

    def block(carry: Any, row: tuple[Any, Any, Any]) -> tuple[Any, Metrics]:
        collect_rows, critic_rows, policy_rows = row
        if order.num_rounds == 1:
            first = lambda tree: jax.tree.map(lambda x: x[0], tree)
            return round_(carry, (first(collect_rows), (first(critic_rows), policy_rows)), group)
        once = lambda tree: jax.tree.map(lambda x: x[:, 0], tree)
        carry, metrics = jax.lax.scan(
            lambda carry, row: round_(carry, row, critic), carry, (collect_rows, once(critic_rows))
        )
        learner, actor, replay = carry
        learner, more = policy(learner, jax.tree.map(lambda x: x[0], policy_rows), replay)
        return (learner, actor, replay), metrics | more

    def split(tree: PyTree, num_axes: int, *axes: int) -> PyTree:
        return jax.tree.map(lambda x: x.reshape((*axes, *x.shape[num_axes:])), tree)

    blocks = (
        split(rows.collect, 1, order.num_blocks, order.num_rounds),
        split(rows.critic, 2, order.num_blocks, order.num_rounds, order.num_groups, order.num_updates),
        split(rows.policy, 1, order.num_blocks, order.num_groups),
    )
    return jax.lax.scan(block, carry, blocks)


def last_of_each(order: Order, draws: PyTree) -> PyTree:
    """Of what is drawn for critic updates, leaves [R, U, ...], that of the last before each policy update, [P, ...]."""

    def last(x: Array) -> Array:
        return x.reshape((order.num_policy_updates, -1, *x.shape[2:]))[:, -1]

    return jax.tree.map(last, draws)


def descend(learner: Learner, part: str, gradient: PyTree, transform: optax.GradientTransformation) -> Learner:
    """One optimizer step of one part of a learner.

    Args:
      learner: a dataclass with records `params` and `opt_state`.
      part: the field of both.
      gradient: of the loss.
      transform: the optimizer.

    Returns:
      The learner with that part's parameters and optimizer state replaced.
    """
    before = getattr(learner.params, part)
    updates, opt_state = transform.update(gradient, getattr(learner.opt_state, part), before)
    params = dataclasses.replace(learner.params, **{part: optax.apply_updates(before, updates)})
    opt_states = dataclasses.replace(learner.opt_state, **{part: opt_state})
    return dataclasses.replace(learner, params=params, opt_state=opt_states)


def follow(target: Tree, params: Tree, tau: Float[Array, ""] | float) -> Tree:
    """Polyak averaging, (1 - τ) θ' + τ θ (Lillicrap et al. 2015, arXiv:1509.02971, algorithm 1).

    Args:
      target: θ'.
      params: θ.
      tau: τ.

    >>> follow(jnp.float32(0.0), jnp.float32(4.0), 0.25).item()
    1.0
    """
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, params)


def experience(batch: rollout.Transition) -> Experience:
    """What of a rollout is stored."""
    return Experience(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(Experience)})


def warm_up(
    key: Key,
    env: Env,
    env_params: EnvParams,
    actor: rollout.ActorState,
    buffer: Buffer,
    num_steps: int,
    reset: rollout.Reset,
) -> tuple[rollout.ActorState, BufferState]:
    """Fills a buffer with steps whose actions are uniform in the bounds.

    Args:
      key: a random key.
      env: with actions that are a bounded `Box`.
      env_params: its parameters.
      actor: B environments.
      buffer: an empty one is made.
      num_steps: of each environment.
      reset: where new episodes start.

    Returns:
      The environments after it, and the buffer; actions are stored between -1 and 1, flat.
    """
    key_action, key_collect = jax.random.split(key)

    def policy(action: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
        return action, to_env_action(env.action_space, action), memory, ()

    shape = (num_steps, len(actor.start), spaces.size(env.action_space))
    actions = jax.random.uniform(key_action, shape, jnp.float32, -1.0, 1.0)
    actor, batch, _ = rollout.collect(key_collect, env, env_params, actor, policy, actions, reset)
    rows = experience(batch)
    params = buffer.hyperparams()
    return actor, buffer.add(params, buffer.init(jax.tree.map(lambda x: x[0, 0], rows)), rows)


def check_config(owner: str, config: Any) -> None:
    """Checks the counts and choices of a config of an agent with replay.

    Args:
      owner: the algorithm, for messages.
      config: with num_envs, num_steps, num_updates, num_rounds, policy_delay, batch_size, capacity, num_warmup_steps
        and n_step.

    Raises:
      ValueError: a count is not positive, a choice unknown, or rows would be split at the buffer's end.
    """
    names = "num_envs num_steps num_updates num_rounds policy_delay batch_size capacity num_warmup_steps n_step"
    validation.counts(owner, config, names.split())
    validation.choices(owner, config)
    num_rows = config.capacity // config.num_envs
    added = (config.num_steps, config.num_warmup_steps)
    if config.capacity % config.num_envs or any(num_rows % num for num in added):
        raise ValueError(
            f"{owner}: capacity must be a multiple of num_envs, and capacity / num_envs one of num_steps and of "
            f"num_warmup_steps, so that no rows are split at the buffer's end; got capacity = {config.capacity}, "
            f"num_envs = {config.num_envs}, num_steps = {config.num_steps}, "
            f"num_warmup_steps = {config.num_warmup_steps}."
        )
    if config.num_warmup_steps % config.num_steps or config.num_warmup_steps < config.n_step:
        raise ValueError(
            f"{owner}: num_warmup_steps must be a multiple of num_steps and at least n_step, so that there is "
            f"something to draw; got num_warmup_steps = {config.num_warmup_steps}, num_steps = {config.num_steps}, "
            f"n_step = {config.n_step}."
        )
