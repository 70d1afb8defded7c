"""The effective horizon: how much lookahead over the random policy a finite task needs, computed exactly.

Laidlaw et al. 2024 (arXiv:2312.08369). With T time steps, A actions and Q of the uniformly random policy,

    Q^1 = Q of the random policy,   Q^{k+1}_t(s, a) = r(s, a) + E max_a' Q^k_{t+1}(s', a')

a task is *k-QVI-solvable* if every policy that is greedy for Q^k, however it breaks ties, has the optimal return. The
k-gap Δ_k is the least difference between the greatest value of Q^k in a state and the greatest of an action that is not
greedy, over all states that can be reached, and

    H_k = k + log_A(1 / Δ_k²)  if the task is k-QVI-solvable, otherwise ∞;     H = min_k H_k

bounds the samples that SQIRL (`jaxrl.algorithms.sqirl`) needs: A^H, up to polynomial factors. Returns are taken to be
in [0, 1]: gaps are divided by the range of returns that are possible.

Everything is dynamic programming in float64 over the tables of a `FiniteMDP` (`jaxrl.analysis.finite_mdps`, which makes
them of environments). The paper's text was not at hand: solvability was compared with its authors' code, the gap and H
are the paper's as known.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxrl.analysis.finite_mdps import FiniteMDP, tables

_TIE = 1e-9
"""Values closer than that, relative to the range of returns, are equal."""


class EffectiveHorizon(NamedTuple):
    """What `effective_horizon` finds; lists begin with k = 1.

    Attributes:
      value: H, infinite if no k up to the greatest one tried solves the task.
      best_k: the k that H belongs to, or None.
      least_k: the least k for which the task is k-QVI-solvable, or None.
      by_k: H_k.
      gaps: Δ_k, with returns in [0, 1].
      greedy_returns: the worst return of a policy that is greedy for Q^k.
      random_return: of the random policy.
      optimal_return: the greatest.
    """

    value: float
    best_k: int | None
    least_k: int | None
    by_k: tuple[float, ...]
    gaps: tuple[float, ...]
    greedy_returns: tuple[float, ...]
    random_return: float
    optimal_return: float


def effective_horizon(mdp: FiniteMDP, max_k: int | None = None) -> EffectiveHorizon:
    """Computes H and all that it is made of.

    Args:
      mdp: the task; at least two actions.
      max_k: the greatest k tried; None: T, from which on nothing changes.

    Returns:
      See `EffectiveHorizon`.

    Raises:
      ValueError: tables do not fit together, or `max_k` is not positive.

    Example:
      >>> from jaxrl.analysis.finite_mdps import combination_lock
      >>> lock = combination_lock(4)  # the random policy's Q is greatest along the path, but by little
      >>> found = effective_horizon(lock)
      >>> found.least_k, found.by_k[0], found.value
      (1, 7.0, 4.0)
    """
    transitions, rewards, start = tables(mdp)
    horizon, num_actions = mdp.horizon, rewards.shape[1]
    max_k = horizon if max_k is None else max_k
    if max_k < 1:
        raise ValueError(f"effective_horizon: max_k must be at least 1; got max_k = {max_k}.")
    low, high = _extremes(mdp)
    scale = max(high - low, 1e-300)
    tie = _TIE * scale
    best, random = (_values(mdp, np.max), _values(mdp, np.mean))
    reachable = _reachable(transitions, np.greater(start, 0.0), [np.ones_like(rewards, bool)] * horizon)
    by_k, gaps, returns = [], [], []
    values = random
    for k in range(1, max_k + 1):
        greatest = values.max(axis=2, keepdims=True)
        greedy = values >= greatest - tie
        visited = _reachable(transitions, np.greater(start, 0.0), list(greedy))
        mistaken = greedy & (best < best.max(axis=2, keepdims=True) - tie)
        solvable = not (mistaken & visited[:, :, None]).any()
        apart = np.where(greedy | ~reachable[:, :, None], np.inf, greatest - values)
        gap = float(apart.min()) / scale
        gaps.append(gap)
        # Where all actions are alike everywhere there is nothing to tell apart.
        cost = 0.0 if np.isinf(gap) else -2.0 * np.log(gap) / np.log(num_actions)
        by_k.append(float(k + cost) if solvable else np.inf)
        returns.append(float(start @ _worst(mdp, greedy)))
        following = np.concatenate([values[1:].max(axis=2), np.zeros((1, len(start)))])
        values = rewards + np.einsum("san,tn->tsa", transitions, following)
    solved = [k for k, one in enumerate(by_k, 1) if np.isfinite(one)]
    value = min(by_k)
    return EffectiveHorizon(
        value=value,
        best_k=by_k.index(value) + 1 if solved else None,
        least_k=solved[0] if solved else None,
        by_k=tuple(by_k),
        gaps=tuple(gaps),
        greedy_returns=tuple(returns),
        random_return=float(start @ random[0].mean(axis=1)),
        optimal_return=float(start @ best[0].max(axis=1)),
    )


def _values(mdp: FiniteMDP, over_actions: Any) -> np.ndarray:
    """Q of the policy whose value is `over_actions` of Q, [T, S, A]."""
    transitions, rewards, start = tables(mdp)
    values, value = [], np.zeros(len(start))
    for _ in range(mdp.horizon):
        values.append(rewards + transitions @ value)
        value = over_actions(values[-1], axis=1)
    return np.stack(values[::-1])


def _extremes(mdp: FiniteMDP) -> tuple[float, float]:
    """The least and the greatest sum of (expected) rewards along any path."""
    transitions, rewards, start = tables(mdp)
    ends = []
    for pick, outside in ((np.min, np.inf), (np.max, -np.inf)):
        value = np.zeros(len(start))
        for _ in range(mdp.horizon):
            value = pick(rewards + pick(np.where(transitions > 0.0, value, outside), axis=2), axis=1)
        ends.append(float(pick(np.where(np.greater(start, 0.0), value, outside))))
    return ends[0], ends[1]


def _reachable(transitions: np.ndarray, start: np.ndarray, allowed: list[np.ndarray]) -> np.ndarray:
    """States that can be reached at each time by actions that are allowed, [T, S]."""
    now, reached = np.asarray(start), []
    for actions in allowed:
        reached.append(now)
        now = np.any((transitions > 0.0) & (actions & now[:, None])[:, :, None], axis=(0, 1))
    return np.stack(reached)


def _worst(mdp: FiniteMDP, allowed: np.ndarray) -> np.ndarray:
    """The least value at time 0 of a policy that takes only actions that are allowed, [S]."""
    transitions, rewards, start = tables(mdp)
    value = np.zeros(len(start))
    for actions in allowed[::-1]:
        value = np.where(actions, rewards + transitions @ value, np.inf).min(axis=1)
    return value
