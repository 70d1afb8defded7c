"""Estimators against sums by hand, enumerated expectations and rlax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import estimators
from jaxrl.types import ReturnInputs

GAMMA = 0.9
T = 6


def column(x):
    return jnp.asarray(np.asarray(x)[:, None])


def rollout(trace_lambda=1.0, terminated=(), truncated=(), log_ratio=None):
    """One environment; flags are the rows at which an episode ended."""
    rows = np.arange(T)
    value = np.sin(np.arange(T + 1.0)).astype(np.float32)
    ratio = np.zeros(T) if log_ratio is None else log_ratio
    return ReturnInputs(
        reward=column(np.cos(rows).astype(np.float32)),
        value=column(value[:-1]),
        next_value=column(value[1:]),
        terminated=column(np.isin(rows, terminated)),
        truncated=column(np.isin(rows, truncated)),
        log_ratio=column(np.asarray(ratio, np.float32)),
        gamma=jnp.float32(GAMMA),
        trace_lambda=jnp.float32(trace_lambda),
    )


def estimate(estimator, inputs):
    return estimator.estimate(estimator.init(), inputs)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def returns_by_hand(x, last):
    """Discounted sums of each row up to row `last`, then what stands for the rest."""
    total = np.where(x.terminated[last, 0], 0.0, x.next_value[last, 0])
    totals = []
    for t in range(last, -1, -1):
        total = float(x.reward[t, 0]) + GAMMA * total
        totals.append(total)
    return np.array(totals[::-1])


@pytest.mark.parametrize("flags", [{}, {"terminated": [2]}, {"truncated": [2]}, {"terminated": [2], "truncated": [2]}])
def test_returns_end_with_the_episode_and_go_on_in_the_value_where_it_was_cut(flags):
    x = rollout(**flags)
    advantage, target = estimate(estimators.monte_carlo(), x)
    last = 2 if flags else T - 1
    close(target[: last + 1, 0], returns_by_hand(x, last))
    close(advantage, target - x.value)
    # λ = 1: the estimator of PPO is this one
    for actual, expected in zip(estimate(estimators.gae(), x), (advantage, target), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("name", ["gae", "vtrace", "monte_carlo"])
def test_flags_matter_only_up_to_their_row(name):
    """The rows after an ended episode are those of another one: they neither see it nor are seen by it."""
    estimator = getattr(estimators, name)()
    plain, _ = estimate(estimator, rollout(0.8))
    for flags in ({"terminated": [2]}, {"truncated": [2]}):
        x = rollout(0.8, **flags)
        advantage, _ = estimate(estimator, x)
        close(advantage[3:], plain[3:])
        later = x.replace(reward=x.reward.at[3:].add(7.0), value=x.value.at[3:].add(2.0))
        close(estimate(estimator, later)[0][:3], advantage[:3])
    assert estimate(estimator, rollout(0.8, terminated=[2]))[0][2, 0] == pytest.approx(
        float(np.cos(2.0) - np.sin(2.0)), abs=1e-5
    )
    assert estimate(estimator, rollout(0.8, truncated=[2]))[0][2, 0] == pytest.approx(
        float(np.cos(2.0) + GAMMA * np.sin(3.0) - np.sin(2.0)), abs=1e-5
    )


def test_the_target_of_gae_is_the_lambda_return_and_its_advantage_the_rest():
    x = rollout(0.0)
    advantage, target = estimate(estimators.gae(), x)
    close(target, x.reward + GAMMA * x.next_value)
    close(advantage, target - x.value)


def test_lambda_is_not_read_by_monte_carlo():
    for actual, expected in zip(
        estimate(estimators.monte_carlo(), rollout(0.0)), estimate(estimators.monte_carlo(), rollout(1.0)), strict=True
    ):
        close(actual, expected)


def test_baselines_of_monte_carlo():
    one = rollout(terminated=[2])
    x = jax.tree.map(
        lambda a: jnp.concatenate([a, -a[::-1], 2 * a], axis=1) if a.dtype == jnp.float32 and a.ndim else a, one
    )
    x = x.replace(terminated=jnp.tile(one.terminated, (1, 3)), truncated=jnp.tile(one.truncated, (1, 3)))
    _, target = estimate(estimators.monte_carlo("none"), x)
    close(estimate(estimators.monte_carlo("none"), x)[0], target)
    close(estimate(estimators.monte_carlo("value"), x)[0], target - x.value)
    advantage, other = estimate(estimators.monte_carlo("leave_one_out"), x)
    close(other, target)
    g = np.asarray(target)
    close(advantage[:, 1], g[:, 1] - (g[:, 0] + g[:, 2]) / 2)
    close(np.sum(advantage, axis=1), np.zeros(T), 1e-4)


def test_leave_one_out_is_an_unbiased_baseline():
    """The expected gradient over every joint action of three bandits is that of the expected reward, exactly."""
    theta, arm_reward, num_envs = 0.3, np.array([1.0, -0.5]), 3
    p = np.array([1 / (1 + np.exp(theta)), 1 / (1 + np.exp(-theta))])
    score = np.array([-p[1], 1 - p[1]])  # of log p(arm) by theta
    estimator = estimators.monte_carlo("leave_one_out")
    expected = np.sum(p * score * arm_reward)
    gradient = 0.0
    for arms in itertools.product((0, 1), repeat=num_envs):
        chosen = np.array(arms)
        zeros = jnp.zeros((1, num_envs))
        x = ReturnInputs(
            reward=jnp.asarray(arm_reward[chosen][None], jnp.float32),
            value=zeros,
            next_value=zeros,
            terminated=jnp.ones((1, num_envs), bool),
            truncated=jnp.zeros((1, num_envs), bool),
            log_ratio=zeros,
            gamma=jnp.float32(1.0),
            trace_lambda=jnp.float32(1.0),
        )
        advantage, _ = estimate(estimator, x)
        gradient += np.prod(p[chosen]) * np.mean(np.asarray(advantage)[0] * score[chosen])
    assert gradient == pytest.approx(expected, abs=1e-6)


def test_environments_that_an_estimator_needs():
    assert estimators.monte_carlo("leave_one_out").min_envs == 2
    others = (estimators.monte_carlo(), estimators.monte_carlo("none"), estimators.gae(), estimators.vtrace())
    assert [x.min_envs for x in others] == [1, 1, 1, 1]


@pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("flags", [{}, {"terminated": [2]}, {"truncated": [2]}])
def test_vtrace_of_the_policy_that_acted_has_the_targets_of_gae(flags, trace_lambda):
    x = rollout(trace_lambda, **flags)
    close(estimate(estimators.vtrace(), x)[1], estimate(estimators.gae(), x)[1])


@pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("flags", [{}, {"terminated": [2]}, {"truncated": [2]}])
def test_vtrace_of_the_policy_that_acted_has_the_advantages_of_gae(flags, trace_lambda):
    x = rollout(trace_lambda, **flags)
    close(estimate(estimators.vtrace(), x)[0], estimate(estimators.gae(), x)[0])


# rlax 0.1.9, vtrace_td_error_and_advantage, for γ = 0.9, an episode that terminates at row 2 and these log-ratios.
LOG_RATIO = 0.8 * np.sin(2 * np.arange(T) + 1)
RLAX_TARGET = {
    (1.0, 1.0): [1.7242836, 0.80475956, 0.29384136, -1.9942756, -1.1158702, -0.5135852],
    (0.8, 1.3): [2.3823574, 0.97735494, 0.29384136, -2.6951623, -1.4239931, -0.5135852],
}
RLAX_ADVANTAGE = {
    (1.0, 1.0): [1.7242836, -0.036711454, -0.61545604, -2.1353958, -0.35906774, 0.4453391],
    (0.8, 1.3): [2.4117081, 0.082923159, -0.61545604, -2.9803956, -0.57099748, 0.44533911],
}


@pytest.mark.parametrize("trace_lambda, clip_rho", RLAX_TARGET)
def test_vtrace_equals_rlax(trace_lambda, clip_rho):
    x = rollout(trace_lambda, terminated=[2], log_ratio=LOG_RATIO)
    advantage, target = estimate(estimators.vtrace(clip_rho), x)
    close(target[:, 0], RLAX_TARGET[trace_lambda, clip_rho])
    close(advantage[:, 0], RLAX_ADVANTAGE[trace_lambda, clip_rho])


def test_the_bounds_of_vtrace_are_data():
    estimator = estimators.vtrace(2.0, 0.5)
    params = estimator.init()
    assert jax.tree.map(float, params) == estimators.VTrace(clip_rho=2.0, clip_c=0.5)
    many = jax.tree.map(lambda x: x * jnp.array([1.0, 0.3]), params)
    x = rollout(log_ratio=LOG_RATIO)
    both = jax.vmap(lambda p: estimator.estimate(p, x)[1])(many)
    close(both[0], estimator.estimate(params, x)[1])
    assert np.max(np.abs(both[0] - both[1])) > 0.01


@pytest.mark.parametrize(
    "factory, message",
    [
        (lambda: estimators.vtrace(clip_rho=0.0), "0 < clip_c <= clip_rho; got clip_c = 1.0, clip_rho = 0.0"),
        (lambda: estimators.vtrace(1.0, 2.0), "0 < clip_c <= clip_rho; got clip_c = 2.0, clip_rho = 1.0"),
        (lambda: estimators.vtrace(1.0, 0.0), "0 < clip_c <= clip_rho; got clip_c = 0.0, clip_rho = 1.0"),
        (lambda: estimators.monte_carlo("mean"), "baseline must be one of .*leave_one_out.*; got baseline = 'mean'"),
    ],
)
def test_arguments_out_of_range_are_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()
