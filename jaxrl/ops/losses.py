"""Losses and divergences that several algorithms report or minimize; all are means over a batch."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def value_loss(value: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Half the mean squared error, E[(V - G)²] / 2.

    >>> float(value_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    1.0
    """
    return 0.5 * jnp.mean(jnp.square(value - target))


def clipped_value_loss(
    value: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    old_value: Float[Array, "*batch"],
    clip: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The value loss without gain from moving by more than `clip` away from where the value was.

        E[max((V - G)², (V_old + clip(V - V_old, ±clip) - G)²)] / 2

    Source: Engstrom et al. 2020, arXiv:2005.12729, the code-level optimization called value function clipping.

    Args:
      value: V, being learned.
      target: G.
      old_value: V_old, when the data was collected.
      clip: how far it may move.

    >>> float(clipped_value_loss(jnp.array([1.0]), jnp.array([1.0]), jnp.array([0.0]), 0.5))
    0.125
    """
    error = jnp.square(value - target)
    moved = jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.mean(jnp.maximum(error, jnp.square(old_value + moved - target)))


def approximate_kl(log_prob: Float[Array, "*batch"], old_log_prob: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Estimates KL(old ‖ new) from samples of the old policy: E[(r - 1) - log r] with r = new / old; never negative.

    Source: Schulman 2020, Approximating KL divergence (joschu.net/blog/kl-approx.html), estimator k3.

    >>> float(approximate_kl(jnp.zeros(3), jnp.zeros(3)))
    0.0
    """
    log_ratio = log_prob - old_log_prob
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio)


def weighted_mean(x: Float[Array, "*batch"], weight: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Σ w x / max(Σ w, 1), so 0 without weight.

    >>> float(weighted_mean(jnp.array([1.0, 5.0]), jnp.array([1.0, 0.0])))
    1.0
    """
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def behavior_loss(
    log_prob: Float[Array, "*batch"],
    target_log_prob: Float[Array, "*batch"],
    kl: Float[Array, "*batch"],
    kept: Float[Array, "*batch"],
    clip: Float[Array, ""] | float,
    kl_coef: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """What a behavior policy minimizes to take the actions that the data has too few of.

        E[max(r, clip(r, 1 - ε, 1 + ε))] + λ E[KL(π_θ ‖ π_φ)],   r = π_φ(a|s) / π_θ(a|s)

    Source: PROPS, Corrado and Hanna 2023, arXiv:2311.08290, eq. 4 and 5 of version 1.

    Args:
      log_prob: log π_φ(a|s), being learned.
      target_log_prob: log π_θ(a|s).
      kl: KL(π_θ ‖ π_φ) in the same states.
      kept: 1 where a sample counts, 0 elsewhere.
      clip: ε.
      kl_coef: λ.

    Returns:
      The loss, the mean divergence, and the share of samples below 1 - ε, whose first term has no gradient.

    >>> log_prob, zero, one = jnp.log(jnp.array([0.5, 2.0])), jnp.zeros(2), jnp.ones(2)
    >>> loss, _, share = behavior_loss(log_prob, zero, zero, one, 0.3, 0.1)
    >>> round(float(loss), 3), float(share)
    (1.35, 0.5)
    """
    ratio = jnp.exp(log_prob - target_log_prob)
    bounded = jnp.maximum(ratio, jnp.clip(ratio, 1.0 - clip, 1.0 + clip))
    divergence = weighted_mean(kl, kept)
    share = weighted_mean((ratio < 1.0 - clip).astype(jnp.float32), kept)
    return weighted_mean(bounded, kept) + kl_coef * divergence, divergence, share


def relative_entropy_loss(
    log_prob: Float[Array, "*batch"],
    value: Float[Array, "*batch"],
    kl: Float[Array, "*batch"],
    temperature: Float[Array, ""] | float,
    kl_coef: Float[Array, ""] | float,
    kl_bound: Float[Array, ""] | float,
    constraint: Literal["clipped", "penalty", "none"],
) -> Float[Array, ""]:
    """What REPPO's policy minimizes, at given prices of entropy and divergence.

        clipped   E[ α log π(a|s) - Q(s, a)  where KL < δ,   β KL elsewhere ]
        penalty   E[ α log π(a|s) - Q(s, a) + β KL ]
        none      E[ α log π(a|s) - Q(s, a) ]

    Source: Voelcker et al. 2025, arXiv:2507.11019, the policy's loss.

    Args:
      log_prob: log π(a|s) of actions drawn from the policy, through which the gradient goes.
      value: Q(s, a) of these.
      kl: the divergence between the policy that acted and the one that learns, of each state.
      temperature: α.
      kl_coef: β.
      kl_bound: δ.
      constraint: which of the three.

    >>> zero, one = jnp.zeros(2), jnp.ones(2)
    >>> float(relative_entropy_loss(zero, one, jnp.array([0.0, 0.5]), 0.1, 2.0, 0.1, "clipped"))
    0.0
    """
    climb, hold = temperature * log_prob - value, kl_coef * kl
    if constraint == "clipped":
        return jnp.mean(jnp.where(kl < kl_bound, climb, hold))
    return jnp.mean(climb + hold if constraint == "penalty" else climb)


def price_loss(price: Float[Array, ""], room: Float[Array, ""]) -> Float[Array, ""]:
    """What the price of a constraint minimizes: it falls while there is room to spare, and rises while there is not.

    Args:
      price: α or β, not negative, being learned.
      room: how far the constraint is from being broken; negative where it is. Its gradient is stopped.
    """
    return price * jax.lax.stop_gradient(room)


def soft_target(
    reward: Float[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    next_log_prob: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    gamma: Float[Array, ""] | float,
    entropy_coef: Float[Array, ""] | float,
) -> Float[Array, "*batch"]:
    """r + γ (1 - terminated) (Q(s', a') - c log π(a'|s')), what a soft action value learns.

    Source: Haarnoja et al. 2018, arXiv:1801.01290, eq. 2 and 3.

    >>> soft_target(jnp.array(1.0), jnp.array(2.0), jnp.array(-2.5), jnp.array(False), 0.5, 0.2).item()
    2.25
    """
    return reward + gamma * jnp.where(terminated, 0.0, next_value - entropy_coef * next_log_prob)


def hybrid_loss(
    value: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    played_value: Float[Array, "*played"],
    played_return: Float[Array, "*played"],
    online_weight: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """A critic's loss on a dataset and on what was played.

        mean (Q(s, a) - r - γ Q'(s', a'))² + λ mean (Q(s, a) - y)²

    Source: Zhou et al. 2023, arXiv:2311.08384, eq. 1.

    Args:
      value: Q of the dataset's transitions.
      target: r + γ Q'(s', a') of these.
      played_value: Q of transitions of a rollout.
      played_return: y, their Monte Carlo returns.
      online_weight: λ.

    Returns:
      The loss, and its two means: the dataset's, and the rollout's without λ.
    """
    offline, online = jnp.mean(jnp.square(value - target)), jnp.mean(jnp.square(played_value - played_return))
    return offline + online_weight * online, offline, online
