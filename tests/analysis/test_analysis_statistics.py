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


# [tasks, runs]; ties within and between the groups, a negative score, scores above 1.
X = np.array([
    [0.12, 0.48, 0.31, 0.9, 0.27, 0.66],
    [0.55, 0.61, 0.2, 0.61, 0.83, 0.44],
    [1.31, 0.97, 1.75, 1.02, -0.1, 1.4],
])  # fmt: skip
Y = np.array([
    [0.31, 0.15, 0.02, 0.6, 0.27, 0.05],
    [0.41, 0.61, 0.35, 0.29, 0.5, 0.61],
    [0.97, 0.88, 1.2, 1.31, 0.33, 0.64],
])  # fmt: skip
THRESHOLDS = [-0.2, 0.0, 0.25, 0.27, 0.5, 0.61, 1.0, 1.5, 2.0]


def flat(statistic):
    return lambda values: statistic(values.reshape((*values.shape[:-2], -1)))


# name, statistic of [..., tasks, runs], figures for X and Y, interval for X and Y
RLIABLE = [
    ("IQM", flat(statistics.iqm), (0.636, 0.465), ((0.432, 0.796), (0.361, 0.591))),
    ("median", lambda v: statistics.median(statistics.mean(v)), (0.54, 0.46166666666666667),
     ((0.4166666666666667, 0.7), (0.365, 0.5583333333333333))),
    ("mean", flat(statistics.mean), (0.685, 0.5277777777777778),
     ((0.4955416666666669, 0.8483333333333333), (0.4194305555555558, 0.6333333333333333))),
    ("optimality gap", flat(statistics.optimality_gap), (0.39722222222222225, 0.5005555555555555),
     ((0.271652777777778, 0.5483333333333333), (0.4122222222222222, 0.5927777777777778))),
]  # fmt: skip


@pytest.mark.parametrize("statistic, figures, intervals", [row[1:] for row in RLIABLE], ids=[row[0] for row in RLIABLE])
def test_aggregates_and_intervals_are_rliables(statistic, figures, intervals):
    """Figures of rliable 1.2.0 (arch 7.2.0, NumPy 1.26.4, pandas 2.3.3): 20,000 resamples for the intervals."""
    for values, figure, interval in zip((X, Y), figures, intervals, strict=True):
        assert float(statistic(values)) == pytest.approx(figure, rel=1e-12)
        bounds = statistics.stratified_bootstrap((values,), statistic, num_resamples=20_000)
        # Both are Monte Carlo: the bounds of 20,000 draws are known to about 1% of the width.
        np.testing.assert_allclose(bounds, interval, atol=0.04 * (interval[1] - interval[0]), rtol=0)


def test_probability_of_improvement_is_rliables():
    """Figures of rliable 1.2.0, SciPy 1.13; 5,000 resamples for the interval."""
    assert float(statistics.probability_of_improvement(X, Y)) == pytest.approx(0.6944444444444443, rel=1e-12)
    assert float(statistics.probability_of_improvement(Y, X)) == pytest.approx(0.3055555555555556, rel=1e-12)
    bounds = statistics.stratified_bootstrap((X, Y), statistics.probability_of_improvement, num_resamples=5000)
    np.testing.assert_allclose(bounds, (0.50925926, 0.86111111), atol=0.02, rtol=0)


def test_probability_of_improvement_is_mann_whitneys_statistic():
    generator = np.random.default_rng(6)
    x, y = generator.integers(0, 4, 7), generator.integers(0, 4, 5)
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert float(statistics.probability_of_improvement(x, y)) == pytest.approx(u / 35, rel=1e-12)


def test_probability_of_improvement_leaves_out_unknown_runs_but_not_tasks():
    x, y = [[1.0, np.nan], [5.0, 5.0]], [[0.0, 3.0], [5.0, np.nan]]
    assert float(statistics.probability_of_improvement(x, y)) == 0.5
    assert np.isnan(statistics.probability_of_improvement([[np.nan], [1.0]], [[1.0], [1.0]]))


def test_performance_profile_is_rliables():
    """Figures of rliable 1.2.0 (run-score distribution); 5,000 resamples for the interval."""
    profiles = [
        [1.0, 0.9444444444444444, 0.8333333333333334, 0.7777777777777778, 0.6111111111111112, 0.4444444444444444,
         0.2222222222222222, 0.05555555555555555, 0.0],
        [1.0, 1.0, 0.8333333333333334, 0.7777777777777778, 0.4444444444444444, 0.2777777777777778,
         0.1111111111111111, 0.0, 0.0],
    ]  # fmt: skip
    for values, profile in zip((X, Y), profiles, strict=True):
        np.testing.assert_allclose(statistics.performance_profile(values, THRESHOLDS), profile, rtol=1e-12)
    low, high = statistics.stratified_bootstrap((X,), lambda x: statistics.performance_profile(x, THRESHOLDS))
    eighteenths = [
        [18, 15, 12, 11, 7, 5, 2, 0, 0],
        [18, 18, 18, 17, 15, 11, 6, 3, 0],
    ]
    # Scores are shares of 18 runs: a bound may fall on the step beside.
    np.testing.assert_allclose([low, high], np.array(eighteenths) / 18, atol=1.01 / 18, rtol=0)


def test_tasks_with_fewer_runs_weigh_the_same_in_a_profile():
    assert statistics.performance_profile([[0.0, np.nan, np.nan], [1.0, 1.0, 1.0]], [0.5]).tolist() == [0.5]


def test_normalize_puts_each_task_on_its_own_scale():
    scores = statistics.normalize([[0.0, 50.0], [-10.0, 0.0]], [0.0, -10.0], [100.0, 10.0])
    np.testing.assert_allclose(scores, [[0.0, 0.5], [0.0, 0.5]])


@pytest.mark.parametrize("call, message", [
    (lambda: statistics.bootstrap_interval([1.0], confidence=1.0), r"confidence must be between 0 and 1.*= 1.0"),
    (lambda: statistics.bootstrap_interval([1.0], num_resamples=0), r"num_resamples at least 1.*= 0"),
    (lambda: statistics.bootstrap_interval([]), r"at least one value.*\(0,\)"),
    (lambda: statistics.stratified_bootstrap_interval([1.0]), r"2 axes.*\(1,\)"),
    (lambda: statistics.stratified_bootstrap_interval(np.ones((1, 1, 1))), r"\[tasks, seeds\].*\(1, 1, 1\)"),
    (lambda: statistics.stratified_bootstrap_interval([[np.nan], [1.0]]), r"index \[0\] have none"),
    (lambda: statistics.normalize([1.0], 2.0, 2.0), r"above low.*low = 2.0, high = 2.0"),
    (lambda: statistics.probability_of_improvement(np.ones((2, 3)), np.ones((3, 3))), r"same tasks; got 2 and 3"),
])  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
