"""How the parameters that are bootstrapped from follow those that learn."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def synchronize(
    target: PyTree, params: PyTree, age: Int[Array, ""], period: Float[Array, ""], tau: Float[Array, ""]
) -> tuple[PyTree, Int[Array, ""]]:
    """Moves the parameters that are bootstrapped from towards those that learn, every `period` updates.

        θ' ← (1 - τ) θ' + τ θ

    τ = 1 copies (Mnih et al. 2015); period 1 is Polyak averaging (Lillicrap et al. 2015). Both are data, and there is
    no conditional: between two synchronizations τ is 0.

    Args:
      target: θ'.
      params: θ, after an update.
      age: updates since the last synchronization.
      period: updates between two.
      tau: τ.

    Returns:
      θ' and its age.

    >>> synchronize(jnp.float32(0.0), jnp.float32(4.0), jnp.int32(1), jnp.float32(2.0), jnp.float32(1.0))[0].item()
    4.0
    """
    due = (age + 1).astype(jnp.float32) >= period
    share = jnp.where(due, tau, 0.0)
    moved = jax.tree.map(lambda old, new: (1.0 - share) * old + share * new, target, params)
    return moved, jnp.where(due, 0, age + 1)


def synchronize_chain(
    target: PyTree,
    params: PyTree,
    age: Int[Array, ""],
    period: Float[Array, ""],
    sync_period: Float[Array, ""],
    tau: Float[Array, ""],
) -> tuple[PyTree, PyTree, Int[Array, ""]]:
    """Moves a chain of C targets after the C links that learn (Vincent et al. 2024, arXiv:2403.02107, i-QN).

    Link k learns the Bellman iteration of target k, which stands for link k - 1:

        every `sync_period` updates    target_k ← link_{k-1} for k > 0
        every `period` updates         target_k ← link_k and link_k ← link_{k+1}: the window moves on by one iteration

    The last link stays where it is when the window moves, and goes on from there. As in the authors' code, whose
    optimizer states do not move. With C = 1 it is `synchronize`.

    Args:
      target: C parameters, leaves [C, ...].
      params: of the links, after an update.
      age: updates since the window moved.
      period: updates between two moves.
      sync_period: updates between two synchronizations.
      tau: share of the way that targets move; 1 copies.

    Returns:
      The targets, the links, and the age.

    >>> target, params, _ = synchronize_chain(
    ...     jnp.zeros(3), jnp.arange(1.0, 4.0), jnp.int32(1), jnp.float32(8.0), jnp.float32(2.0), jnp.float32(1.0)
    ... )
    >>> target.tolist(), params.tolist()
    ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    """
    now = (age + 1).astype(jnp.float32)
    due = now >= period
    # Where a multiple of the period, which need not be whole, has been passed.
    synced = jnp.floor(now / sync_period) > jnp.floor(age.astype(jnp.float32) / sync_period)
    share = jnp.where(due | synced, tau, 0.0)

    def moved(old: Array, new: Array) -> Array:
        goal = jnp.where(due, new, jnp.concatenate([old[:1], new[:-1]]))
        return (1.0 - share) * old + share * goal

    def forward(new: Array) -> Array:
        return jnp.where(due, jnp.concatenate([new[1:], new[-1:]]), new)

    return jax.tree.map(moved, target, params), jax.tree.map(forward, params), jnp.where(due, 0, age + 1)
