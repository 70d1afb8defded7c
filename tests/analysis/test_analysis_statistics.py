"""Statistics over seeds against SciPy's, and what they promise of missing values."""

import numpy as np
import pytest
import scipy.stats

from jaxrl.analysis import statistics


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 8, 11, 100])
def test_iqm_is_scipys_trimmed_mean(num):
    values = np.random.default_rng(num).standard_normal((3, num)) ** 3
    np.testing.assert_allclose(statistics.iqm(values), scipy.stats.trim_mean(values, 0.25, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(statistics.iqm(values, axis=0), scipy.stats.trim_mean(values, 0.25), rtol=1e-12)


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.median, statistics.iqm])
def test_unknown_values_are_left_out(statistic):
    values = np.random.default_rng(0).standard_normal(9)
    with_gaps = np.concatenate([[np.nan], values, [np.nan]])
    np.testing.assert_allclose(statistic(with_gaps), statistic(values), rtol=1e-12)
    assert np.isnan(statistic([np.nan, np.nan]))


@pytest.mark.parametrize("ours, scipys", [
    (statistics.mean, np.mean),
    (statistics.median, np.median),
    (statistics.iqm, lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis)),
])  # fmt: skip
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_bootstrap_interval_is_scipys(ours, scipys, confidence):
    values = np.random.default_rng(1).exponential(size=20)
    low, high = statistics.bootstrap_interval(values, ours, confidence, num_resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), scipys, confidence_level=confidence, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    # Both are Monte Carlo: the bounds of 20,000 draws are known to about 1% of the width.
    width = theirs.high - theirs.low
    np.testing.assert_allclose([low, high], theirs, atol=0.04 * width, rtol=0)


def test_bootstrap_interval_is_the_same_again_and_by_row():
    values = np.random.default_rng(3).standard_normal((4, 6))
    low, high = statistics.bootstrap_interval(values)
    again = statistics.bootstrap_interval(values)
    np.testing.assert_array_equal([low, high], again)
    np.testing.assert_array_equal(statistics.bootstrap_interval(values[2]), [low[2], high[2]])
    assert np.all(low < statistics.iqm(values))
    assert np.all(statistics.iqm(values) < high)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    draws = np.random.default_rng(4).standard_normal((1000, 30))
    low, high = statistics.bootstrap_interval(draws, statistics.mean, 0.9, num_resamples=500)
    assert 0.84 < np.mean((low <= 0) & (high >= 0)) < 0.93


def test_one_known_seed_has_no_interval():
    low, high = statistics.bootstrap_interval([[1.0, np.nan], [1.0, 3.0]])
    np.testing.assert_array_equal(np.isnan([low, high]), [[True, False]] * 2)


def test_stratified_bootstrap_keeps_each_tasks_share():
    # Tasks far apart without spread within: any draw across tasks would give a wide interval.
    apart = np.array([[0.0] * 5, [10.0] * 5, [20.0] * 5])
    assert statistics.stratified_bootstrap_interval(apart, statistics.mean) == (10.0, 10.0)


def test_stratified_bootstrap_has_the_variance_of_independent_tasks():
    values = np.random.default_rng(5).standard_normal((4, 12)) + np.arange(4)[:, None]
    low, high = statistics.stratified_bootstrap_interval(values, statistics.mean, num_resamples=20_000)
    # Of the mean of independent means: the variances add up.
    deviation = np.sqrt(np.sum(values.var(1) / 12)) / 4
    assert values.mean() - low == pytest.approx(1.96 * deviation, rel=0.05)
    assert high - values.mean() == pytest.approx(1.96 * deviation, rel=0.05)


def test_stratified_bootstrap_takes_tasks_with_fewer_seeds():
    low, high = statistics.stratified_bootstrap_interval([[1.0, np.nan, np.nan], [2.0, 3.0, 4.0]], statistics.mean)
    assert 1.75 <= low < high <= 3.25


@pytest.mark.parametrize("call, message", [
    (lambda: statistics.bootstrap_interval([1.0], confidence=1.0), r"confidence must be between 0 and 1.*= 1.0"),
    (lambda: statistics.bootstrap_interval([1.0], num_resamples=0), r"num_resamples at least 1.*= 0"),
    (lambda: statistics.bootstrap_interval([]), r"at least one value.*\(0,\)"),
    (lambda: statistics.stratified_bootstrap_interval([1.0]), r"2 axes.*\(1,\)"),
    (lambda: statistics.stratified_bootstrap_interval(np.ones((1, 1, 1))), r"\[tasks, seeds\].*\(1, 1, 1\)"),
    (lambda: statistics.stratified_bootstrap_interval([[np.nan], [1.0]]), r"index \[0\] have none"),
])  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
