"""The conditioning tasks: trials as their docstring says, and values that solve the Bellman equation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

from jaxrl.envs import conditioning
from jaxrl.envs.conditioning import ConditioningState

GAMMA = 0.8
SMALL = {"isi": (2, 4), "iti": (3, 5)}


@pytest.mark.parametrize("name", conditioning.names())
def test_laws(name):
    env = conditioning.make(name, **SMALL)
    laws.check_all(env, laws.trace(env, 20), deterministic=False)


def play(env, num_steps, seed=0):
    params = env.default_params()

    def body(state, key):
        state, step = env.step(key, state, jnp.int32(0), params)
        return state, (state, step.obs, step.reward, step.ended)

    state, first = jax.jit(env.reset)(jax.random.key(seed), params)
    _, (states, obs, reward, ended) = jax.jit(
        lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), num_steps))
    )(state)
    return state, np.asarray(first), states, *(np.asarray(x) for x in (obs, reward, ended))


@pytest.mark.parametrize(
    "name, num_bits, num_on, share", [("TracePatterning", 6, 3, 0.5), ("TraceConditioning", 1, 1, 1.0)]
)
def test_trials(name, num_bits, num_on, share):
    env = conditioning.make(name, **SMALL)
    valid = np.asarray(env.default_params().valid)
    index = {on: i for i, on in enumerate(itertools.combinations(range(num_bits), num_on))}
    _, first, _, obs, reward, ended = play(env, 4000)
    assert not ended.any()
    obs, reward = np.concatenate([first[None], obs]), np.concatenate([[0.0], reward])
    np.testing.assert_array_equal(obs[:, num_bits], reward)
    shown = np.flatnonzero(obs[:, :num_bits].any(axis=1))
    assert shown[0] == 0
    waits, gaps, came, patterns = set(), set(), [], set()
    for start, end in itertools.pairwise(shown):
        on = tuple(np.flatnonzero(obs[start, :num_bits]).tolist())
        patterns.add(on)
        us = np.flatnonzero(reward[start:end])
        assert len(us) == valid[index[on]], "the US follows the valid patterns alone, once"
        came.append(len(us))
        if len(us):
            waits.add(int(us[0]))
            gaps.add(int(end - start - us[0]))
    assert waits == {2, 3, 4}
    assert gaps == {4, 5, 6}, "the next pattern comes ITI + 1 steps after the US"
    assert patterns == set(index)
    assert abs(np.mean(came) - share) < 0.08
    noise = obs[:, num_bits + 1 :].mean(axis=0)
    np.testing.assert_allclose(noise, 0.1 / np.arange(1, len(noise) + 1), atol=0.02)


def trials(p):
    """All (probability, isi, iti, valid)."""
    for isi, iti, valid in itertools.product(range(2, 5), range(3, 6), (False, True)):
        yield (p if valid else 1 - p) / 9, isi, iti, valid


def solved(p):
    """Values by iterating the Bellman equation, {(until_us, remaining, elapsed, valid): V}."""
    states = {(isi - t, isi + iti - t, t, valid): 0.0 for _, isi, iti, valid in trials(p) for t in range(isi + iti + 1)}
    for _ in range(400):
        fresh = sum(odds * states[isi, isi + iti, 0, valid] for odds, isi, iti, valid in trials(p))
        states = {
            (u, r, t, valid): GAMMA * fresh
            if r == 0
            else float(u == 1 and valid) + GAMMA * states[u - 1, r - 1, t + 1, valid]
            for (u, r, t, valid) in states
        }
    return states


def as_states(rows):
    return ConditioningState(*(jnp.array(column) for column in zip(*rows, strict=True)))


def test_expected_return_and_best_prediction_are_exact():
    params = conditioning.make("TracePatterning", num_valid=7, **SMALL).default_params()
    values = solved(7 / 20)
    at = as_states(values)
    evaluate = lambda f: np.asarray(jax.jit(jax.vmap(lambda s: f(s, params, jnp.float32(GAMMA))))(at))
    np.testing.assert_allclose(evaluate(conditioning.expected_return), list(values.values()), atol=1e-6)
    # What has been seen: the pattern, how long ago, and when the US came if it has.
    groups = {}
    for odds, isi, iti, valid in trials(0.5):
        for t in range(isi + iti + 1):
            key = (valid, t, isi if valid and t >= isi else None)
            groups.setdefault(key, []).append((odds, (isi - t, isi + iti - t, t, valid)))
    best = {}
    for members in groups.values():
        mean = np.average([values[state] for _, state in members], weights=[odds for odds, _ in members])
        best.update({state: mean for _, state in members})
    np.testing.assert_allclose(evaluate(conditioning.best_prediction), [best[state] for state in values], atol=1e-6)


def test_expected_return_is_the_mean_of_the_discounted_rewards():
    env = conditioning.make("TracePatterning", **SMALL)
    _, _, states, _, reward, _ = play(env, 20_000)
    value = jax.jit(jax.vmap(lambda s: conditioning.expected_return(s, env.default_params(), jnp.float32(GAMMA))))(
        states
    )
    total, returns = 0.0, np.zeros(len(reward))
    for t in reversed(range(len(reward) - 1)):
        total = reward[t + 1] + GAMMA * total
        returns[t] = total
    error = (np.asarray(value) - returns)[:-50]
    assert abs(error.mean()) < 0.02 < 0.1 * returns.mean()
    assert np.square(error).mean() < 0.3 * returns.var(), "the rest is the chance of later trials"


def test_which_patterns_are_valid_is_a_leaf():
    one, other = (conditioning.make("TracePatterning", seed=seed).default_params().valid for seed in (0, 1))
    assert one.sum() == other.sum() == 10
    assert (np.asarray(one) != np.asarray(other)).any()


@pytest.mark.parametrize(
    "options, rule",
    [
        ({"isi": (5, 4)}, r"isi must be \(least, greatest\)"),
        ({"iti": (1, 1000)}, r"iti must be \(least, greatest\)"),
        ({"isi": (0, 4)}, "the first of isi must be a whole number"),
        ({"num_valid": 21}, "num_valid must be from 0 to 20"),
    ],
)
def test_wrong_options(options, rule):
    with pytest.raises(ValueError, match=rule):
        conditioning.make("TracePatterning", **options)
