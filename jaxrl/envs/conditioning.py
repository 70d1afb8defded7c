"""Animal-learning predictions: after a stimulus comes another one, later, or does not; there is nothing to decide.

Trials follow each other without an end. A trial shows a pattern, the conditioned stimulus (CS), for one step. If the
pattern is one of the valid ones, the unconditioned stimulus (US) is seen ISI steps after it, for one step. The next
pattern comes ITI + 1 steps after the time of the US, whether it came or not. ISI (between the stimuli) and ITI (between
the trials) are uniform integers, and further inputs are noise. The reward is the US seen, so that the value function is
the discounted prediction of the US; the pattern has long gone when the US comes, so a predictor needs memory.

=================  =================================================================================================
name               pattern
=================  =================================================================================================
TracePatterning    3 of 6 bits; 10 of the 20 patterns are valid, drawn by the option `seed`. 5 distractors: the j-th is
                   on with probability 1 / 10 j
TraceConditioning  the same one at each trial, always followed by the US; no distractors
=================  =================================================================================================

Source: the authors' code of Javed et al. 2023 (arXiv:2302.05326; repository Columnar-Constructive-Networks of
khurramjaved96, commit ade18a5), whose experiment has the intervals that are the defaults here, and γ = 0.9. The task is
one of Rafiee et al. 2023 ("From eye-blinks to state construction", doi 10.1177/10597123221085039). Neither paper's
text has been checked.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl import spaces, validation
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

__all__ = ["ConditioningState", "Params", "best_prediction", "expected_return", "make", "names"]

_LONGEST_ISI = 256

# Name: (bits of the pattern, bits that are on, valid patterns, distractors).
_TASKS = {"TracePatterning": (6, 3, 10, 5), "TraceConditioning": (1, 1, 1, 0)}


@struct.dataclass
class Params:
    """Parameters of both tasks.

    Attributes:
      isi_min: least number of steps from the CS to the US.
      isi_max: greatest.
      iti_min: least number of steps from the US to the one before the next CS.
      iti_max: greatest.
      distractor_rate: the j-th distractor is on with this probability divided by j.
      valid: which patterns are followed by the US, in the order of `itertools.combinations`.
    """

    isi_min: Int[Array, ""]
    isi_max: Int[Array, ""]
    iti_min: Int[Array, ""]
    iti_max: Int[Array, ""]
    distractor_rate: Float[Array, ""]
    valid: Bool[Array, " patterns"]


@struct.dataclass
class ConditioningState:
    """State of both tasks.

    Attributes:
      until_us: steps until the US or its time; 0 or less from then on.
      remaining: steps of this trial still to come.
      elapsed: steps since the CS.
      valid: whether the US comes in this trial.
    """

    until_us: Int[Array, ""]
    remaining: Int[Array, ""]
    elapsed: Int[Array, ""]
    valid: Bool[Array, ""]


def names() -> tuple[str, ...]:
    """All tasks."""
    return tuple(_TASKS)


@memoize
def make(
    name: str,
    isi: tuple[int, int] = (24, 36),
    iti: tuple[int, int] = (80, 120),
    num_valid: int | None = None,
    seed: int = 0,
) -> Env:
    """Makes one task.

    Args:
      name: one of `names()`.
      isi: default of the leaves `isi_min` and `isi_max`.
      iti: default of the leaves `iti_min` and `iti_max`.
      num_valid: how many patterns are valid; None takes the task's own number.
      seed: which ones are; they are a leaf.

    Returns:
      The environment: observations [bits, US, distractors], one action, no end.

    Raises:
      ValueError: an interval is empty, not positive or too long, or there are not so many patterns.

    Example:
      >>> make("TracePatterning").observation_space.shape
      (12,)
    """
    num_bits, num_on, default_valid, num_distractors = _TASKS[name]
    owner = f"conditioning/{name}"
    for option, (least, greatest) in (("isi", isi), ("iti", iti)):
        validation.count(owner, f"the first of {option}", least)
        if not least <= greatest <= _LONGEST_ISI:
            raise ValueError(
                f"{owner}: {option} must be (least, greatest) with least <= greatest <= {_LONGEST_ISI}; got "
                f"{option} = {(least, greatest)}."
            )
    on = itertools.combinations(range(num_bits), num_on)
    patterns = np.array([np.isin(np.arange(num_bits), bits) for bits in on], np.float32)
    num_valid = default_valid if num_valid is None else num_valid
    if not 0 <= num_valid <= len(patterns):
        raise ValueError(f"{owner}: num_valid must be from 0 to {len(patterns)}; got num_valid = {num_valid}.")

    def default_params() -> Params:
        valid = np.random.default_rng(seed).permutation(len(patterns)) < num_valid
        leaf: Any = np.asarray  # NumPy, since a factory may run while something is being traced
        return trees.as_arrays(
            Params(
                isi_min=leaf(isi[0], np.int32),
                isi_max=leaf(isi[1], np.int32),
                iti_min=leaf(iti[0], np.int32),
                iti_max=leaf(iti[1], np.int32),
                distractor_rate=leaf(0.1, np.float32),
                valid=leaf(valid),
            )
        )

    def observe(key: jax.Array, pattern: Array, us: Array, params: Params) -> Array:
        rates = params.distractor_rate / jnp.arange(1.0, num_distractors + 1.0)
        noise = jax.random.uniform(key, (num_distractors,)) < rates
        return jnp.concatenate([pattern, us[None].astype(jnp.float32), noise.astype(jnp.float32)])

    def trial(key: jax.Array, params: Params) -> tuple[ConditioningState, Array]:
        key_isi, key_iti, key_pattern = jax.random.split(key, 3)
        until_us = jax.random.randint(key_isi, (), params.isi_min, params.isi_max + 1)
        pause = jax.random.randint(key_iti, (), params.iti_min, params.iti_max + 1)
        index = jax.random.randint(key_pattern, (), 0, len(patterns))
        state = ConditioningState(until_us, until_us + pause, jnp.int32(0), params.valid[index])
        return state, jnp.asarray(patterns)[index]

    def reset(key: jax.Array, params: Params) -> tuple[ConditioningState, Array]:
        key_trial, key_noise = jax.random.split(key)
        state, pattern = trial(key_trial, params)
        return state, observe(key_noise, pattern, jnp.bool_(False), params)

    def step(
        key: jax.Array, state: ConditioningState, action: Array, params: Params
    ) -> tuple[ConditioningState, EnvStep]:
        del action  # nothing to decide
        key_trial, key_noise = jax.random.split(key)
        new = state.remaining == 0
        us = ~new & (state.until_us == 1) & state.valid
        later = ConditioningState(state.until_us - 1, state.remaining - 1, state.elapsed + 1, state.valid)
        first, pattern = trial(key_trial, params)
        after = trees.where(new, first, later)
        return after, EnvStep(
            obs=observe(key_noise, jnp.where(new, pattern, 0.0), us, params),
            reward=us.astype(jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
        )

    return Env(
        name=owner,
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(0.0, 1.0, (num_bits + 1 + num_distractors,)),
        action_space=spaces.Discrete(1),
        max_episode_steps=None,
    )


def expected_return(state: ConditioningState, params: Params, gamma: Array) -> Float[Array, ""]:
    """E[Σ_k γ^{k-1} r_{t+k} | state]: exact, and with hindsight, since the state knows when the US will come.

    γ^{until_us - 1} if the US is still to come, and γ^{remaining + 1} W for the trials after this one, where W is the
    value of a trial of which nothing is known yet: W = p E[γ^{ISI-1}] / (1 - E[γ^ISI] E[γ^{ITI+1}]), p the share of
    valid patterns. The authors' target is the first term.

    Args:
      state: of the environment.
      params: of the environment.
      gamma: discount, below 1.
    """
    to_come = state.valid & (state.until_us > 0)
    this = jnp.where(to_come, gamma ** (state.until_us - 1.0), 0.0)
    return this + gamma ** (state.remaining + 1.0) * _fresh_trial(params, gamma)


def best_prediction(state: ConditioningState, params: Params, gamma: Array) -> Float[Array, ""]:
    """E[Σ_k γ^{k-1} r_{t+k} | all observations so far]: what a predictor with perfect memory would say.

    It knows which patterns are valid, how long ago the CS was and whether the US has come, and weights all intervals
    that are still possible. Its mean squared distance to `expected_return` is the least that any predictor can have.

    Args:
      state: of the environment; of what cannot be seen only the posterior is used.
      params: of the environment.
      gamma: discount, below 1.
    """
    isi, iti = (jnp.arange(1, _LONGEST_ISI + 1) for _ in range(2))
    isi_odds = ((isi >= params.isi_min) & (isi <= params.isi_max)).astype(jnp.float32)
    iti_odds = ((iti >= params.iti_min) & (iti <= params.iti_max)).astype(jnp.float32)
    elapsed, since_us = state.elapsed, -state.until_us
    fresh = _fresh_trial(params, gamma)
    # The US is still to come: it will after more than the steps that have passed.
    waits = isi_odds * (isi > elapsed)
    until = jnp.maximum(isi - elapsed, 0).astype(jnp.float32)
    pause = jnp.sum(iti_odds * gamma ** (iti + 1.0)) / jnp.sum(iti_odds)
    coming = _mean(waits, gamma ** (until - 1.0) + gamma**until * pause * fresh)
    # It has come: the pause is at least as long as the steps since then.
    pauses = iti_odds * (iti >= since_us)
    gone = _mean(pauses, gamma ** (jnp.maximum(iti - since_us, 0) + 1.0) * fresh)
    # It will not come: the trial is at least as long as the steps that have passed.
    length = isi[:, None] + iti[None, :]
    odds = isi_odds[:, None] * iti_odds[None, :] * (length >= elapsed)
    without = _mean(odds, gamma ** (jnp.maximum(length - elapsed, 0) + 1.0) * fresh)
    return jnp.where(state.valid, jnp.where(state.until_us > 0, coming, gone), without)


def _mean(odds: Array, values: Array) -> Array:
    """Of the values, under odds that need not sum to one; 0 where nothing is possible."""
    total = jnp.sum(odds)
    return jnp.sum(odds * values) / jnp.where(total > 0, total, 1.0)


def _fresh_trial(params: Params, gamma: Array) -> Array:
    """W of `expected_return`."""

    def mean_power(least: Array, greatest: Array) -> Array:
        """E[γ^n] of a uniform integer n."""
        num = (greatest - least + 1).astype(jnp.float32)
        return gamma ** least.astype(jnp.float32) * (1.0 - gamma**num) / ((1.0 - gamma) * num)

    isi, iti = mean_power(params.isi_min, params.isi_max), mean_power(params.iti_min, params.iti_max)
    return jnp.mean(params.valid.astype(jnp.float32)) * isi / gamma / (1.0 - isi * iti * gamma)
