"""In which order agents with replay collect and update.

There are U updates of the critic in a round and one of the policy after every D of them (the *delay*); one of U and D
divides the other:

    D ≥ U    block = D / U rounds of (collect, U critic updates), then the policy's
    D < U    block = one round: collect, then U / D groups of (D critic updates, the policy's)

So an update that is not due is not in the program, and nothing is conditional.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrl.types import Metrics


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


class Draws(NamedTuple):
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
    carry: tuple[Any, Any],
    draws: Draws,
    collect: Callable[[Any, Any, Any], tuple[Any, Any, Metrics]],
    critic: Callable[[Any, Any, Any], tuple[Any, Metrics]],
    policy: Callable[[Any, Any, Any], tuple[Any, Metrics]],
) -> tuple[tuple[Any, Any], Metrics]:
    """One step of the algorithm: rounds of collecting and updating.

    Args:
      order: from `order`.
      carry: the learner, and the world that collecting changes.
      draws: randomness.
      collect: `(learner, world, row) -> (learner, world, metrics)`.
      critic: `(learner, row, world) -> (learner, metrics)`.
      policy: the same for the policy's update.

    Returns:
      The carry, and metrics with leading axes of rounds and updates.
    """

    def group(learner: Any, rows: tuple[Any, Any], world: Any) -> tuple[Any, Metrics]:
        learner, info = jax.lax.scan(lambda learner, row: critic(learner, row, world), learner, rows[0])
        learner, more = policy(learner, rows[1], world)
        return learner, jax.tree.map(jnp.mean, info) | more

    def round_(carry: Any, row: tuple[Any, Any], update: Callable[..., Any]) -> tuple[Any, Metrics]:
        learner, world = carry
        learner, world, metrics = collect(learner, world, row[0])
        learner, info = jax.lax.scan(lambda learner, row: update(learner, row, world), learner, row[1])
        return (learner, world), metrics | jax.tree.map(jnp.mean, info)

    def block(carry: Any, row: tuple[Any, Any, Any]) -> tuple[Any, Metrics]:
        collect_rows, critic_rows, policy_rows = row
        if order.num_rounds == 1:
            first = lambda tree: jax.tree.map(lambda x: x[0], tree)
            return round_(carry, (first(collect_rows), (first(critic_rows), policy_rows)), group)
        once = lambda tree: jax.tree.map(lambda x: x[:, 0], tree)
        carry, metrics = jax.lax.scan(
            lambda carry, row: round_(carry, row, critic), carry, (collect_rows, once(critic_rows))
        )
        learner, world = carry
        learner, more = policy(learner, jax.tree.map(lambda x: x[0], policy_rows), world)
        return (learner, world), metrics | more

    def split(tree: PyTree, num_axes: int, *axes: int) -> PyTree:
        return jax.tree.map(lambda x: x.reshape((*axes, *x.shape[num_axes:])), tree)

    blocks = (
        split(draws.collect, 1, order.num_blocks, order.num_rounds),
        split(draws.critic, 2, order.num_blocks, order.num_rounds, order.num_groups, order.num_updates),
        split(draws.policy, 1, order.num_blocks, order.num_groups),
    )
    return jax.lax.scan(block, carry, blocks)


def last_of_each(order: Order, draws: PyTree) -> PyTree:
    """Of what is drawn for critic updates, leaves [R, U, ...], that of the last before each policy update, [P, ...]."""

    def last(x: Array) -> Array:
        return x.reshape((order.num_policy_updates, -1, *x.shape[2:]))[:, -1]

    return jax.tree.map(last, draws)
