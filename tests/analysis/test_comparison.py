"""Whether two groups of runs differ: the tests' level, their power, and what is matched with what."""

import numpy as np
import pytest
import scipy.stats
import synthetic
import xarray

from jaxrl.analysis import statistics
from jaxrl.analysis.comparison import compare_runs, config_differences, holm, permutation_test


@pytest.mark.parametrize("aggregate", [statistics.mean, statistics.iqm])
@pytest.mark.parametrize("num_a, num_b", [(5, 5), (4, 6)])
def test_all_relabelings_give_scipys_p_value(num_a, num_b, aggregate):
    generator = np.random.default_rng(num_a)
    a, b = generator.standard_normal(num_a), 0.8 + generator.standard_normal(num_b)

    def difference(x, y, axis):
        return np.abs(aggregate(y, axis=axis) - aggregate(x, axis=axis))

    theirs = scipy.stats.permutation_test(
        (a, b), difference, vectorized=True, n_resamples=np.inf, alternative="greater"
    )
    assert permutation_test([(a, b)], aggregate)[0] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_random_relabelings_come_near_to_all():
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal(8), 0.9 + generator.standard_normal(8)
    exact, smallest = permutation_test([(a, b)], num_permutations=20_000)
    assert smallest >= 2 / 12_870
    drawn, smallest_drawn = permutation_test([(a, b)], num_permutations=10_000)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 10_000))
    assert smallest_drawn == pytest.approx(2 / 12_870)


def test_few_seeds_say_what_they_can_show():
    apart = ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert permutation_test([apart], statistics.mean) == (0.1, 0.1)
    # Several settings are several groups: 20 * 20 relabelings.
    assert permutation_test([apart, apart], statistics.mean) == (2 / 400, 2 / 400)
    assert permutation_test([([1.0], [2.0])])[1] == 1.0
    found = compare_runs(synthetic.run(3), synthetic.run(3, level=900.0), num_permutations=1000)
    assert found.envs[0].smallest_p == 0.1
    assert any("no difference can be found at 5%" in line for line in found.lines())


def level(aggregate, num_seeds, settings, num_repeats=500, **changes):
    """How often the null hypothesis is rejected where it holds, for scores and for curves."""
    generator = np.random.default_rng(7)
    rejected = np.zeros(2)
    for _ in range(num_repeats):
        scores = generator.standard_t(3, (2, settings, num_seeds)) + 5 * generator.standard_normal((1, settings, 1))
        steps = np.arange(1.0, 9.0)
        curves = np.cumsum(generator.standard_normal((2, settings, num_seeds, 8)), -1)
        a, b = (
            xarray.Dataset(
                {"score": (("a", "seed"), scores[side]), "return": (("a", "seed", "step"), curves[side])},
                {"a": np.arange(settings), "step": steps},
            )
            for side in (0, 1)
        )
        found = compare_runs(a, b, aggregate=aggregate, num_permutations=99, num_resamples=2, **changes).envs[0]
        rejected += found.p_value <= 0.05, found.curve_p_value <= 0.05
    return rejected / num_repeats


@pytest.mark.parametrize(
    "aggregate, num_seeds, settings",
    [pytest.param(statistics.iqm, 8, 1, marks=pytest.mark.slow), (statistics.mean, 5, 3)],
)
def test_under_the_null_hypothesis_five_percent_are_rejected(aggregate, num_seeds, settings):
    # Of 500 repeats the share has a standard error of 1%.
    scores, curves = level(aggregate, num_seeds, settings)
    assert scores == pytest.approx(0.05, abs=0.03)
    assert curves == pytest.approx(0.05, abs=0.03)


def test_a_difference_is_found_and_described():
    a, b = synthetic.run(10, level=100.0, seed=1), synthetic.run(10, level=110.0, seed=2)
    found = compare_runs(a, b, names=("runs/a", "runs/b")).envs[0]
    assert found.p_value < 0.01
    assert found.curve_p_value < 0.01
    assert found.interval[0] < 10.0 < found.interval[1]
    assert found.difference == pytest.approx(found.scores[1] - found.scores[0])
    x, y = a["score"].values, b["score"].values
    spread = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    assert found.effect_size == pytest.approx((y.mean() - x.mean()) / spread)
    assert found.improvement[0] == pytest.approx(float(statistics.probability_of_improvement(y, x)))
    assert found.improvement[1] <= found.improvement[0] <= found.improvement[2]
    back = compare_runs(b, a).envs[0]
    assert (back.difference, back.effect_size) == (-found.difference, -found.effect_size)
    assert back.p_value == pytest.approx(found.p_value, abs=0.002)


def test_curves_tell_where_they_part():
    a, b = (synthetic.run(8, num_steps=41, noise=1.0, seed=seed) for seed in (1, 2))
    b["return"] = b["return"] + xarray.where((b.step > 10_000) & (b.step < 15_000), 30.0, 0.0)
    found = compare_runs(a, b).envs[0]
    assert found.p_value > 0.05
    assert found.curve_p_value < 0.01
    assert 10_000 - 600 < found.curve_range[0] <= found.curve_peak <= found.curve_range[1] < 15_000 + 600


def test_curves_of_other_lengths_are_compared_where_both_are_known():
    a, b = synthetic.run(num_steps=20), synthetic.run(num_steps=30, seed=1)
    found = compare_runs(a, b).envs[0]
    assert found.curve_peak <= 20 * 512
    assert np.isnan(compare_runs(a.drop_vars("return"), b).envs[0].curve_p_value)
    assert not any("curves" in line for line in compare_runs(a.drop_vars("return"), b).lines())


def test_runs_that_are_the_same_do_not_differ():
    run = synthetic.run()
    found = compare_runs(run, run).envs[0]
    assert (found.difference, found.effect_size, found.improvement[0]) == (0.0, 0.0, 0.5)
    assert (found.p_value, found.curve_p_value) == (1.0, 1.0)


def test_settings_and_environments_are_matched_by_value():
    a = synthetic.sweep(envs=("x/A", "x/B"), noise=0.0, num_seeds=4)
    b = synthetic.sweep(envs=("x/B", "x/C", "x/A"), noise=0.0, num_seeds=4)
    # In b, B is first and C second: each is 50 higher than the one before.
    b = b.isel(learning_rate=[2, 1])
    b = b.assign_coords(learning_rate=np.float32(b["learning_rate"].values))
    found = compare_runs(a, b, num_permutations=100)
    assert [env.env for env in found.envs] == ["x/A", "x/B"]
    assert [env.difference for env in found.envs] == pytest.approx([100.0, -50.0])
    assert [env.num_settings for env in found.envs] == [4, 4]
    assert found.config[0][:2] == ("swept learning_rate", [1e-4, 1e-3, 1e-2])


def test_p_values_are_corrected_over_environments():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    envs = ("x/A", "x/B", "x/C")
    a, b = (synthetic.sweep({}, envs=envs, effect=lambda _: 0.0, seed=seed) for seed in (1, 2))
    found = compare_runs(a, b)
    assert [env.p_adjusted for env in found.envs] == holm([env.p_value for env in found.envs])
    assert any("after Holm over 3 environments" in line for line in found.lines())


def test_diverged_members_count_as_the_lowest_of_both():
    a = synthetic.sweep({}, effect=lambda _: 0.0, noise=0.1)
    b = synthetic.sweep({}, effect=lambda _: -80.0, noise=0.1)
    a["score"][0, 0, 0], a["diverged_at"][0, 0, 0] = np.nan, 512.0
    found = compare_runs(a, b, aggregate=statistics.mean)
    mean = (5 * 100 + 20) / 6
    assert found.envs[0].scores[0] == pytest.approx(mean, abs=0.5)
    assert found.envs[0].num_diverged == (1, 0)
    assert any("A 1, B 0" in line for line in found.lines())


def test_config_is_compared_entry_by_entry():
    rate = float(np.float32(0.1))
    a = synthetic.run(record={"config": {"depth": 2, "same": 1}, "created": "then", "rate": 0.1, "hidden": [8, 8]})
    b = synthetic.run(record={"config": {"depth": 3, "same": 1}, "created": "now", "rate": rate, "new": "x"})
    assert config_differences(a, b) == [("config.depth", 2, 3), ("hidden", [8, 8], None), ("new", None, "x")]
    lines = compare_runs(a, b, ("left", "right")).lines()
    assert "3 recorded entries differ:" in lines
    assert any(line.split() == ["config.depth", "A", "2", "B", "3"] for line in lines)
    assert lines[0].endswith("left")
    assert "No recorded entries differ." in compare_runs(a, a).lines()
    sweep = synthetic.sweep()
    chosen = [sweep.sel(learning_rate=rate) for rate in (1e-4, 1e-3)]
    assert config_differences(*chosen) == [("chosen learning_rate", 1e-4, 1e-3)]


def test_algorithms_may_differ():
    a = synthetic.sweep({}, effect=lambda _: 0.0, algorithms=("ppo",))
    b = synthetic.sweep({}, effect=lambda _: 0.0, algorithms=("dqn",))
    assert compare_runs(a, b).envs[0].num_settings == 1
    both = synthetic.sweep({}, effect=lambda _: 0.0, algorithms=("ppo", "dqn"))
    assert compare_runs(both, a).envs[0].num_settings == 1
    assert compare_runs(both, both).envs[0].num_settings == 2


PLAIN = {"effect": lambda _: 0.0}


@pytest.mark.parametrize("a, b, message", [
    (synthetic.sweep(envs=("A",)), synthetic.sweep(envs=("B",)), r"No environment is in both: A has A; B has B"),
    (synthetic.sweep({"a": [1]}, **PLAIN), synthetic.sweep({"a": [2]}, **PLAIN), "the values of a never agree"),
    (synthetic.sweep(), synthetic.run(), r"matches several.*swept over learning_rate, clip"),
    (synthetic.run(), synthetic.run().drop_vars("score"), "not the same quantity"),
], ids=["env", "value", "several", "score"])  # fmt: skip
def test_errors(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare_runs(a, b)
