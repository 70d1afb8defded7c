"""Normalizers of agents that learn from each transition as it comes: moments that change with every one of them.

Moments of observations, and of the discounted return, by which rewards are divided; either may be () and is then left
out. After a transition the moments count its successor, and where an episode ended the first observation of the next.

Source: Elsayed et al. 2024, arXiv:2410.14606, section 3.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl.ops import reward_scaling, statistics
from jaxrl.types import Observation

See = Callable[[Any, Observation], Observation]
"""`(moments, obs) -> obs` as the network has it."""


def start(obs: Observation, observations: bool, rewards: bool) -> tuple[PyTree, PyTree]:
    """Moments that count the first observation.

    Args:
      obs: it, no leading axes.
      observations: whether observations are normalized.
      rewards: whether rewards are.

    Returns:
      The moments of observations and those of the discounted return, each () where it is left out.
    """
    seen = statistics.update_statistics(statistics.init_statistics(obs), obs, 0) if observations else ()
    return seen, reward_scaling.init_scale(1) if rewards else ()


def see(seen: PyTree, obs: Observation) -> Observation:
    """An observation less its mean, by its deviation; as it is where moments are ()."""
    return obs if isinstance(seen, tuple) else statistics.normalize_in_stream(seen, obs)


def observe(
    seen: PyTree, next_obs: Observation, after: Observation, ended: Bool[Array, ""], see: See = see
) -> tuple[Observation, PyTree]:
    """Counts what a transition led to.

    Args:
      seen: moments of observations so far, or ().
      next_obs: the successor, no leading axes.
      after: what the environment shows then, leaves [1, ...]: the successor, or the next episode's first observation.
      ended: whether the episode is over.
      see: how observations are normalized.

    Returns:
      The successor as the network has it, by moments that count it; and the moments, which count also the first
      observation of the next episode, if one begins.
    """
    if isinstance(seen, tuple):
        return see(seen, next_obs), seen
    first = jax.tree.map(lambda x: x[0], after)
    of_successor, seen = statistics.update_with_transition(seen, next_obs, first, ended)
    return see(of_successor, next_obs), seen


def scale(
    moments: PyTree, reward: Float[Array, ""], ended: Bool[Array, ""], gamma: Float[Array, ""]
) -> tuple[Float[Array, ""], PyTree]:
    """A reward by the deviation of the discounted return, and the moments that count it; as it is where these are ().

    >>> import jax.numpy as jnp
    >>> scale((), jnp.float32(3.0), jnp.bool_(False), jnp.float32(0.9))[1]
    ()
    """
    return (
        (reward, moments)
        if isinstance(moments, tuple)
        else reward_scaling.scale_in_stream(moments, reward, ended, gamma)
    )
