"""Functionals of returns: against NumPy, and dynamic programming with a stock against all policies, one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import values
from jaxrl.networks.q_network import QOutput
from jaxrl.values import functionals

NUM, GAMMA, LEVEL = 40, 0.9, 0.4
DRAWS = np.random.default_rng(0)
# Trees of two steps: two actions with two outcomes each, and after every one of them the same again.
PROBS_1 = DRAWS.dirichlet([1.0, 1.0], (NUM, 2))
REWARDS_1 = DRAWS.normal(size=(NUM, 2, 2))
PROBS_2 = DRAWS.dirichlet([1.0, 1.0], (NUM, 2, 2, 2))
REWARDS_2 = DRAWS.normal(size=(NUM, 2, 2, 2, 2))


def worst_share(points, probs, level):
    total, left = 0.0, level
    for point, prob in sorted(zip(points, probs, strict=True)):
        total += min(prob, left) * point
        left -= min(prob, left)
    return total / level


# Each with the discount that keeps its order, and what it is of one distribution.
FUNCTIONALS = {
    "mean": (functionals.mean(), GAMMA, lambda x, p: p @ x),
    "utility": (values.utility(jnp.tanh), 1.0, lambda x, p: p @ np.tanh(x)),
    "shortfall": (values.shortfall(), GAMMA, lambda x, p: p @ np.minimum(x, 0.0)),
    "homeostatic": (values.homeostatic(0.0), GAMMA, lambda x, p: -p @ np.abs(x)),
    "entropic": (values.entropic(1.5), 1.0, lambda x, p: -np.log(p @ np.exp(-1.5 * x)) / 1.5),
    "cvar": (values.cvar(LEVEL), 1.0, lambda x, p: worst_share(x, p, LEVEL)),
}


def returns_of(first, seconds, gamma):
    """Points and probabilities [NUM, 4] of the return of one policy: its first action, then one for each outcome."""
    outcome = np.arange(2)
    points = REWARDS_1[:, first, :, None] + gamma * REWARDS_2[:, first, outcome, seconds]
    probs = PROBS_1[:, first, :, None] * PROBS_2[:, first, outcome, seconds]
    return points.reshape(NUM, 4), probs.reshape(NUM, 4)


def best_of_all(of_one, stock, gamma):
    """The greatest value of stock + return over all policies, [NUM]."""
    every = []
    for first, *seconds in itertools.product(range(2), repeat=3):
        points, probs = returns_of(first, np.array(seconds), gamma)
        every.append([of_one(stock + x, p) for x, p in zip(points, probs, strict=True)])
    return np.max(every, axis=0)


def plan(functional, stock, gamma):
    """Distributional dynamic programming; stock [NUM]. The return's points and probabilities, [NUM, 4]."""
    value = lambda points, probs: functional.value(functional.init(), jnp.float32(points), jnp.float32(probs))
    after = (stock[:, None, None] + REWARDS_1) / gamma
    second = np.asarray(value(after[..., None, None] + REWARDS_2, PROBS_2)).argmax(-1)[..., None, None]
    points, probs = (np.take_along_axis(x, second, 3)[..., 0, :] for x in (REWARDS_2, PROBS_2))
    points = (REWARDS_1[..., None] + gamma * points).reshape(NUM, 2, 4)
    probs = (PROBS_1[..., None] * probs).reshape(NUM, 2, 4)
    first = np.asarray(value(stock[:, None, None] + points, probs)).argmax(-1)[:, None, None]
    return tuple(np.take_along_axis(x, first, 1)[:, 0] for x in (points, probs))


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_functionals(name):
    functional, _, of_one = FUNCTIONALS[name]
    points, probs = returns_of(0, np.array([0, 1]), 1.0)
    found = functional.value(functional.init(), jnp.float32(points), jnp.float32(probs))
    np.testing.assert_allclose(found, [of_one(x, p) for x, p in zip(points, probs, strict=True)], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name != "cvar"])
def test_planning_with_a_stock_finds_the_best_of_all_policies(name):
    functional, gamma, of_one = FUNCTIONALS[name]
    worse = 0
    for start in (-1.0, 0.5):
        points, probs = plan(functional, np.full(NUM, start), gamma)
        found = [of_one(start + x, p) for x, p in zip(points, probs, strict=True)]
        np.testing.assert_allclose(found, best_of_all(of_one, start, gamma), atol=1e-5)
        other = plan(functionals.mean(), np.full(NUM, start), gamma)
        worse += sum(of_one(start + x, p) < y - 1e-3 for x, p, y in zip(*other, found, strict=True))
    assert worse > 0 or name == "mean"  # what is best for the mean is not for the others


def test_the_best_cvar_comes_from_a_stock_and_not_from_greed():
    of_one = FUNCTIONALS["cvar"][2]
    best = best_of_all(of_one, 0.0, 1.0)
    every = [returns_of(a, np.array(b), 1.0)[0] for a, *b in itertools.product(range(2), repeat=3)]
    stocks = -np.unique(np.concatenate(every, axis=1), axis=1)
    plans = [plan(values.shortfall(), stocks[:, i], 1.0) for i in range(stocks.shape[1])]
    points, probs = (jnp.float32(np.stack(x, 1)) for x in zip(*plans, strict=True))
    choose = jax.vmap(values.best_stock, (0, 0, 0, None))
    stock, found = choose(points, probs, jnp.float32(stocks), jnp.float32(LEVEL))
    np.testing.assert_allclose(found, best, atol=1e-5)
    # The stock that was chosen makes a policy of that CVaR.
    points, probs = plan(values.shortfall(), np.float64(stock), 1.0)
    np.testing.assert_allclose([of_one(x, p) for x, p in zip(points, probs, strict=True)], best, atol=1e-5)
    greedy = plan(values.cvar(LEVEL), np.zeros(NUM), 1.0)
    missed = best - [of_one(x, p) for x, p in zip(*greedy, strict=True)]
    assert missed.min() > -1e-5
    assert missed.max() > 0.01


def test_a_head_adds_the_stock_to_its_returns_and_learns_as_before():
    outputs, stock = jnp.float32(DRAWS.normal(size=(3, 2, 5))), jnp.float32([0.0, 1.0, -2.0])
    for head in (values.quantile(5), values.categorical(5, low=-1.0, high=1.0), values.implicit_quantile()):
        risky = values.maximizing(values.shortfall(), head)
        found = risky.mean(risky.init(), QOutput(outputs, stock=stock))
        points, probs = outputs, np.full(5, 0.2)
        if head.name.startswith("categorical"):
            points, probs = np.linspace(-1.0, 1.0, 5), jax.nn.softmax(outputs)
        shifted = np.minimum(np.asarray(points) + np.asarray(stock)[:, None, None], 0.0)
        np.testing.assert_allclose(found, (np.asarray(probs) * shifted).sum(-1), atol=1e-6)
        assert (risky.loss, risky.size, risky.fractions)[1:] == (head.size, head.fractions)
    head, risky = values.quantile(5), values.maximizing(values.cvar(0.3), values.quantile(5))
    target = values.Target(jnp.ones(3), jnp.full(3, 0.9), QOutput(outputs), jnp.float32([[0.0, 1.0]] * 3))
    taken = QOutput(outputs[:, 0], stock=stock)
    for one, other in zip(head.loss(head.init(), taken, target), risky.loss(risky.init(), taken, target), strict=True):
        np.testing.assert_array_equal(one, other)


def test_messages_of_functionals():
    for head in (values.scalar(), values.categorical(projection="two_hot")):
        with pytest.raises(ValueError, match="learns no distribution"):
            values.maximizing(values.shortfall(), head)
    with pytest.raises(ValueError, match=r"level must be above 0 and at most 1; got level = 0\.0"):
        values.cvar(0.0)
    with pytest.raises(ValueError, match="aversion must not be 0"):
        values.entropic(0.0)
