"""The effective horizon against tasks known by hand, and tables against the environments that they are of."""

import itertools

import jax
import numpy as np
import pytest
from analysis.hand_made import misleading

import jaxrl
from jaxrl.analysis import finite_mdps
from jaxrl.analysis.effective_horizon import effective_horizon
from jaxrl.analysis.finite_mdps import FiniteMDP, combination_lock
from jaxrl.envs import chains, grids


@pytest.mark.parametrize("length, num_actions", [(4, 2), (3, 3)])
def test_a_lock_needs_no_lookahead_but_small_differences(length, num_actions):
    """At the first step Q^k is A^(k - T) along the path and 0 elsewhere, so H_k = k + 2 (T - k)."""
    found = effective_horizon(combination_lock(length, num_actions))
    assert found.least_k == 1
    np.testing.assert_allclose(found.gaps, [float(num_actions) ** (k - length) for k in range(1, length + 1)])
    np.testing.assert_allclose(found.by_k, [k + 2 * (length - k) for k in range(1, length + 1)])
    assert found.value == pytest.approx(length)
    assert found.best_k == length
    assert found.random_return == pytest.approx(num_actions**-length)
    assert found.optimal_return == 1.0


def test_lookahead_is_needed_where_the_random_policy_is_misled():
    found = effective_horizon(misleading(3))
    assert (found.least_k, found.by_k[0]) == (2, np.inf)
    assert found.gaps[0] == pytest.approx(0.4 - 1 / 3)
    # With k = 2 the differences are 1 - 0.4 and 1 - 0, and returns are within [0, 1].
    assert found.gaps[1] == pytest.approx(0.6)
    assert found.value == pytest.approx(2 - 2 * np.log(0.6) / np.log(3))
    assert found.greedy_returns == pytest.approx((0.4, 1.0))
    assert effective_horizon(misleading(2)).least_k == 1


def test_a_tie_counts_against_a_task():
    """Greedy policies are all of them: one that breaks the tie badly is enough."""
    mdp = misleading(2)
    mdp.rewards[0, 1] = 0.5
    found = effective_horizon(mdp)
    assert found.least_k == 2
    assert found.greedy_returns[0] == pytest.approx(0.5)


def test_states_that_cannot_be_reached_do_not_count():
    one = effective_horizon(misleading(3))
    wider = finite_mdps.padded(misleading(3), 6)
    wider.rewards[4, 0] = 1e-3  # a small difference where nobody comes
    assert effective_horizon(wider) == one


def test_greedy_returns_are_those_of_the_worst_greedy_policy():
    """Against all deterministic policies of a random task, one by one."""
    draws = np.random.default_rng(0)
    transitions = draws.dirichlet(np.full(3, 0.5), size=(3, 2))
    mdp = FiniteMDP(transitions, draws.normal(size=(3, 2)), np.array([0.5, 0.5, 0.0]), 2)
    every = [np.array(a).reshape(2, 3) for a in itertools.product(range(2), repeat=6)]
    returns = {a.tobytes(): finite_mdps.policy_return(mdp, a) for a in every}
    found = effective_horizon(mdp)
    assert found.optimal_return == pytest.approx(max(returns.values()))
    last = mdp.rewards
    first = {
        1: last + transitions @ last.mean(1),
        2: last + transitions @ last.max(1),
    }
    for k, values in first.items():
        greedy = np.stack([values.argmax(1), last.argmax(1)])
        assert found.greedy_returns[k - 1] == pytest.approx(returns[greedy.tobytes()])


def test_tables_of_a_grid_have_its_best_return():
    level = jaxrl.make_env("grids/Small", side=(3, 3), num_walls=1, num_objects=(2, 2), steps=(6, 6)).default_params()
    found = effective_horizon(finite_mdps.of_grid(level), max_k=1)
    assert found.optimal_return == pytest.approx(float(jax.jit(grids.optimal_return)(level)), rel=1e-5)


def test_walking_through_an_environment_gives_its_tables():
    env = jaxrl.make_env("grids/Sparse", side=(3, 3), steps=(4, 4))
    walked = finite_mdps.of_env(env)
    one, other = effective_horizon(walked), effective_horizon(finite_mdps.of_grid(env.default_params()))
    assert walked.transitions.shape[0] > 9  # the time is a part of its states
    assert one.by_k == pytest.approx(other.by_k)
    assert one.greedy_returns == pytest.approx(other.greedy_returns)
    with pytest.raises(ValueError, match="is not deterministic"):
        finite_mdps.of_env(jaxrl.make_env("chains/Short", length=(2, 2)))


def test_tables_of_a_chain():
    params = chains.levels("LongNoisy", (4, 4))(jax.random.key(1))
    mdp = finite_mdps.of_chain(params)
    found = effective_horizon(mdp)
    # The first action alone decides: Q^1 is 1 or -1, of returns within [-1, 1].
    assert (found.value, found.optimal_return, found.random_return) == (1.0, 1.0, 0.0)
    right = int(params.right)
    actions = np.zeros((4, len(mdp.start)), int)
    actions[0, 0], actions[0, 1] = right, 1 - right
    assert finite_mdps.policy_return(mdp, actions) == 1.0


def test_messages():
    with pytest.raises(ValueError, match="max_k must be at least 1"):
        effective_horizon(combination_lock(2), 0)
    with pytest.raises(ValueError, match="must sum to 1"):
        effective_horizon(FiniteMDP(np.ones((2, 2, 2)), np.zeros((2, 2)), np.eye(2)[0], 1))
    with pytest.raises(ValueError, match="at least two actions"):
        effective_horizon(FiniteMDP(np.ones((1, 1, 1)), np.zeros((1, 1)), np.ones(1), 1))
    with pytest.raises(ValueError, match="needs discrete actions and a time limit"):
        finite_mdps.of_env(jaxrl.make_env("continuing/Line"))
    with pytest.raises(ValueError, match="more than max_states = 2"):
        finite_mdps.of_env(jaxrl.make_env("grids/Sparse", side=(3, 3), steps=(4, 4)), max_states=2)
