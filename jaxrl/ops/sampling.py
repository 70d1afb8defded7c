"""How far the actions of a finite sample are from the policy that they are to stand for."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def pair_counts(
    state: Int[Array, "*batch"],
    action: Int[Array, "*batch"],
    weight: Float[Array, "*batch"],
    num_states: int,
    num_actions: int,
) -> Float[Array, "S A"]:
    """How often each action was taken in each state.

    Args:
      state: 0 … S-1.
      action: 0 … A-1.
      weight: of each pair; 0 leaves it out.
      num_states: S.
      num_actions: A.

    Returns:
      Sums of the weights.

    Example:
      >>> pair_counts(jnp.array([0, 0, 1]), jnp.array([1, 1, 0]), jnp.ones(3), 2, 2).tolist()
      [[0.0, 2.0], [1.0, 0.0]]
    """
    pair = (state * num_actions + action).ravel()
    return jnp.bincount(pair, weight.ravel(), length=num_states * num_actions).reshape(num_states, num_actions)


def sampling_error(counts: Float[Array, "S A"], log_probs: Float[Array, "S A"]) -> Float[Array, ""]:
    """The sampling error of a data set, exact for finitely many states and actions, in nats.

        Σ_s d(s) KL(π_D(·|s) ‖ π(·|s)),   d(s) = n(s) / n,   π_D(a|s) = n(s, a) / n(s)

    π_D is the policy under which the data is likeliest, so this is the mean over the data of log π_D(a|s) - log π(a|s).
    0 if every state's actions were taken in proportion to their probability. Of data that π itself draws, it is about
    (A - 1) S / 2n once n is large (Wilks 1938), with S the states that occur.

    Source: Zhong et al. 2022, arXiv:2111.14552, and Corrado and Hanna 2023, arXiv:2311.08290.

    Args:
      counts: n(s, a), at least one positive.
      log_probs: log π(a|s), -inf only where the count is 0.

    Example:
      >>> half = jnp.log(jnp.full((1, 2), 0.5))
      >>> float(sampling_error(jnp.array([[3.0, 3.0]]), half))
      0.0
      >>> round(float(sampling_error(jnp.array([[4.0, 0.0]]), half)), 4)
      0.6931
    """
    taken = counts > 0
    visits = jnp.sum(counts, axis=1, keepdims=True)
    log_empirical = jnp.log(jnp.where(taken, counts, 1.0)) - jnp.log(jnp.where(visits > 0, visits, 1.0))
    excess = jax.lax.select(taken, log_empirical - log_probs, jnp.zeros_like(counts))
    return jnp.sum(counts * excess) / jnp.sum(counts)
