"""Which names matter and which setting is best, on sweeps whose truth is known."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
import synthetic
import xarray

from jaxrl.analysis import sensitivity, statistics
from jaxrl.analysis.settings import default_row, returns_of, settings_of

GRID = {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0], "c": [0.0, 1.0]}


def exact(effect, num_seeds=2, grid=None):
    """A full grid without noise."""
    return synthetic.sweep(grid or GRID, effect=effect, noise=0.0, num_seeds=num_seeds, num_steps=1)


def test_a_row_is_a_setting_with_the_values_of_every_name():
    dataset = synthetic.sweep(envs=("x/A", "x/B"))
    table = sensitivity.settings_table(dataset)
    assert len(table) == 2 * 3 * 2
    row = table[(table.env == "x/B") & (table["learning_rate"] == 1e-3) & (table["clip"] == 0.2)]
    values = dataset["score"].sel(env="x/B", learning_rate=1e-3, clip=0.2).values.ravel()
    assert row.score.item() == pytest.approx(float(statistics.iqm(values)))
    np.testing.assert_allclose([row.low.item(), row.high.item()], statistics.bootstrap_interval(values))
    assert (row.num_seeds.item(), row.num_diverged.item(), row.algorithm.item()) == (6, 0, "ppo")


def test_blocks_of_rows_change_no_interval(monkeypatch):
    dataset = synthetic.sweep()
    whole = sensitivity.settings_table(dataset)
    monkeypatch.setattr(sensitivity, "_BLOCK", 2)
    np.testing.assert_array_equal(sensitivity.settings_table(dataset)[["low", "high"]], whole[["low", "high"]])


def test_diverged_members_count_as_the_lowest_score_of_their_environment():
    dataset = synthetic.sweep(envs=("x/A", "x/B"), diverged=[(0, 1, 2, 1, 0)])
    settings = settings_of(dataset)
    row = next(i for i in range(len(settings)) if settings.values(i) == {"learning_rate": 1e-2, "clip": 0.2})
    assert settings.scores[row, 1, 0] == np.nanmin(dataset["score"].sel(env="x/B"))
    assert settings.diverged.sum() == 1
    table = sensitivity.settings_table(dataset)
    assert table.num_diverged.tolist().count(1) == 1
    # A number that a diverged member has left behind is no score.
    dataset["score"][0, 1, 2, 1, 0] = 1e6
    assert settings_of(dataset).scores.max() < 1e5


def test_the_curve_of_a_diverged_member_goes_on_at_the_lowest_return():
    dataset = synthetic.sweep(diverged=[(0, 0, 0, 0, 0)], num_steps=10)
    steps, returns = returns_of(dataset, settings_of(dataset))
    after = steps >= float(dataset["diverged_at"][0, 0, 0, 0, 0])
    assert 0 < after.sum() < 10
    assert np.all(returns[0, 0, 0, after] == np.nanmin(dataset["return"]))
    np.testing.assert_array_equal(returns[0, 0, 1], dataset["return"][0, 0, 0, 0, 1])


def test_settings_that_were_left_out_are_no_rows():
    dataset = synthetic.sweep()
    dataset = dataset.where((dataset["learning_rate"] < 5e-3) | (dataset["clip"] < 0.15))
    settings = settings_of(dataset)
    assert len(settings) == 5
    assert not settings.is_grid()
    assert returns_of(dataset, settings)[1].shape == (5, 1, 6, 10)
    assert sensitivity.importance(dataset).attrs["method"] == "binned first-order shares"


def test_zipped_names_are_one_factor():
    dataset = exact(lambda v: v["a"] + v["b"])
    dataset = dataset.assign_coords(size=("a", [8, 16, 32]))
    settings = settings_of(dataset)
    assert settings.names == ("a", "size", "b", "c")
    assert [factor.label for factor in settings.factors] == ["a & size", "b", "c"]
    joint = dataset.rename(a="a+size").assign_coords({"a+size": range(3), "a": ("a+size", [0.0, 1.0, 2.0])})
    joint = joint.assign_coords(size=("a+size", [8, 16, 32]))
    assert set(settings_of(joint).names) == {"a", "size", "b", "c"}


@pytest.mark.parametrize("several", [False, True])
def test_importance_is_the_anova_of_an_additive_effect(several):
    # Variances of the parts: 4 * 2/3, 9 * 1/4, 0.
    envs = ("x/A", "x/B") if several else ("x/A",)
    dataset = synthetic.sweep(GRID, effect=lambda v: 2 * v["a"] + 3 * v["b"], noise=0.0, num_seeds=2, envs=envs)
    shares = sensitivity.importance(dataset)
    parts = np.array([8 / 3, 9 / 4, 0.0])
    np.testing.assert_allclose(shares["first_order"], parts / parts.sum(), atol=1e-9)
    np.testing.assert_allclose(shares["total"], shares["first_order"], atol=1e-9)
    assert np.nanmax(shares["pair"]) < 1e-9
    assert shares.attrs["noise_share"] == pytest.approx(0.0, abs=1e-12)


def test_importance_finds_a_pure_interaction():
    dataset = exact(lambda v: (v["b"] - 0.5) * (v["c"] - 0.5))
    shares = sensitivity.importance(dataset)
    np.testing.assert_allclose(shares["first_order"], 0.0, atol=1e-9)
    np.testing.assert_allclose(shares["total"], [0.0, 1.0, 1.0], atol=1e-9)
    assert shares["pair"].sel(name="b", other="c").item() == pytest.approx(1.0)


def test_importance_adds_up_over_all_subsets():
    values = np.random.default_rng(0).standard_normal((3, 2, 2))
    dataset = exact(lambda v: values[int(v["a"]), int(v["b"]), int(v["c"])])
    shares = sensitivity.importance(dataset)
    pair = shares["pair"].values
    triple = 1 - shares["first_order"].values.sum() - np.nansum(pair) / 2
    for i in range(3):
        total = shares["first_order"].values[i] + np.nansum(pair[i]) + triple
        assert shares["total"].values[i] == pytest.approx(total, abs=1e-9)


def test_noise_share_is_the_variance_of_the_settings_means_that_seeds_give():
    dataset = synthetic.sweep(num_seeds=3, envs=("x/A", "x/B"))
    dataset["score"][0, 0, 0, 0, 0] = np.nan
    alone = dataset.isel(env=[0])["score"].values.reshape(6, 3)
    noise = np.nanvar(alone, 1, ddof=1) / (~np.isnan(alone)).sum(1)
    expected = noise.mean() / np.nanmean(alone, 1).var()
    assert sensitivity.importance(dataset.isel(env=[0])).attrs["noise_share"] == pytest.approx(expected)
    scores = dataset["score"].values[0].reshape(2, 6, 3) / 100
    noise = np.nanvar(scores, 2, ddof=1) / (~np.isnan(scores)).sum(2)
    expected = (noise.sum(0) / 4).mean() / np.nanmean(scores, 2).mean(0).var()
    found = sensitivity.importance(dataset, {"x/A": (0.0, 100.0), "x/B": (0.0, 100.0)})
    assert found.attrs["noise_share"] == pytest.approx(expected)


def test_importance_of_drawn_settings_tells_the_name_that_matters():
    dataset = synthetic.sweep(samples=80, effect=lambda v: 30 * np.log10(v["learning_rate"]))
    shares = sensitivity.importance(dataset)
    assert shares["name"].values.tolist() == ["learning_rate", "clip"]
    assert shares["first_order"].values[0] > 0.8
    assert shares["p_value"].values[0] < 0.01
    assert shares["first_order"].values[1] < 0.15
    assert shares["p_value"].values[1] > 0.05
    assert np.isnan(shares["total"]).all()


def test_importance_of_drawn_names_without_effect_is_zero_on_average():
    found, shares = [], []
    for seed in range(40):
        dataset = synthetic.sweep(samples=30, effect=lambda _: 0.0, num_seeds=2, num_steps=1, seed=seed)
        importance = sensitivity.importance(dataset, num_permutations=200)
        found.append(importance["p_value"].values)
        shares.append(importance["first_order"].values)
    # Not corrected for chance it would be 7/29, since there are 8 bins and 30 settings.
    assert np.mean(shares) < 0.12
    # Under the null p is uniform.
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    assert np.mean(np.array(found) <= 0.1) < 0.25


def test_settings_that_are_all_alike_have_no_importance():
    assert np.isnan(sensitivity.importance(exact(lambda _: 0.0))["first_order"]).all()


def test_marginals_are_means_and_maxima_over_the_other_names():
    dataset = exact(lambda v: 10 * v["a"] * v["b"] + v["c"])
    curve = sensitivity.marginals(dataset, "a")
    np.testing.assert_allclose(curve["mean"], [100.5, 105.5, 110.5])
    np.testing.assert_allclose(curve["best"], [101, 111, 121])
    np.testing.assert_array_equal(curve["num_settings"], [4, 4, 4])
    for name in ("mean", "best"):
        np.testing.assert_allclose(curve[f"{name}_low"], curve[name])
        np.testing.assert_allclose(curve[f"{name}_high"], curve[name])


def test_marginal_intervals_hold_the_truth_and_shrink_with_seeds():
    widths = []
    for num_seeds in (4, 64):
        dataset = synthetic.sweep(num_seeds=num_seeds, num_steps=1)
        curve = sensitivity.marginals(dataset, "learning_rate", aggregate=statistics.mean)
        widths.append(float((curve["mean_high"] - curve["mean_low"]).mean()))
    assert widths[1] < 0.5 * widths[0]
    truth = np.array([100.0, 115.0, 130.0])
    assert np.all((curve["mean_low"] - 0.5 < truth) & (truth < curve["mean_high"] + 0.5))


def test_marginals_bin_drawn_numbers_and_keep_words():
    dataset = synthetic.sweep({"net": ["(64, 64)", "(8,)"]}, samples=40, effect=lambda v: np.log10(v["learning_rate"]))
    curve = sensitivity.marginals(dataset, "learning_rate")
    assert curve.sizes["learning_rate"] == 8
    assert curve["num_settings"].sum() == 80
    assert np.all(np.diff(curve["learning_rate"]) > 0)
    assert sensitivity.marginals(dataset, "net")["net"].values.tolist() == ["(64, 64)", "(8,)"]


def test_environments_are_averaged_on_a_common_scale():
    dataset = synthetic.sweep(envs=("x/A", "x/B"), noise=0.0, num_seeds=2)
    dataset["score"] = dataset["score"] * xarray.DataArray([1.0, 1000.0], dims="env")
    curve = sensitivity.marginals(dataset, "learning_rate")
    np.testing.assert_allclose(curve["mean"], [0.0, 0.5, 1.0], atol=1e-9)
    bounds = {"x/A": (100.0, 200.0), "x/B": (150_000.0, 250_000.0)}
    np.testing.assert_allclose(
        sensitivity.marginals(dataset, "learning_rate", bounds)["mean"], [0, 0.15, 0.3], atol=1e-9
    )


def test_the_best_setting_is_chosen_on_one_half_and_judged_on_the_other():
    dataset = synthetic.sweep(num_seeds=8, noise=0.0)
    score = dataset["score"]
    # On the first half another one has been lucky.
    score[0, 0, 0, 0, :4] = 500.0
    best = sensitivity.best_setting(dataset)
    assert best.values == {"learning_rate": 1e-4, "clip": 0.1}
    assert (best.tune_score, best.score) == (500.0, 100.0)
    assert (best.tune_seeds, best.report_seeds, best.held_out) == ((0, 1, 2, 3), (4, 5, 6, 7), True)
    other = sensitivity.best_setting(dataset, tune_seeds=[4, 5], report_seeds=[6, 7])
    assert other.values["learning_rate"] == 1e-2
    assert other.score == pytest.approx(130.0)


def test_the_held_out_score_is_not_biased_by_the_choice():
    tuned, reported = [], []
    for seed in range(100):
        dataset = synthetic.sweep({"a": list(range(30))}, effect=lambda _: 0.0, num_seeds=6, num_steps=1, seed=seed)
        best = sensitivity.best_setting(dataset, aggregate=statistics.mean, num_resamples=10)
        tuned.append(best.tune_score)
        reported.append(best.score)
    # All are equal in truth: 100, and the mean of three seeds has a deviation of 2.9.
    assert np.mean(reported) == pytest.approx(100.0, abs=3 * 2.9 / 10)
    assert np.mean(tuned) > 104.0


def test_wins_say_how_sure_the_choice_is():
    sure = sensitivity.best_setting(synthetic.sweep(noise=0.1))
    # Two values of clip are alike.
    assert sure.wins.sum() == pytest.approx(1.0)
    assert sure.wins.reshape(3, 2)[2].sum() == pytest.approx(1.0)
    equal = sensitivity.best_setting(exact(lambda _: 0.0))
    np.testing.assert_allclose(equal.wins, 1 / 12)
    assert np.isnan(equal.rank_correlation)


def test_of_equal_aggregates_the_higher_mean_is_taken():
    # The IQM of five seeds leaves out one at each end: at the ceiling only the mean tells who failed.
    score = np.array([[500.0, 500, 500, 500, 0], [500, 500, 500, 500, 400]])
    dataset = xarray.Dataset({"score": (("a", "seed"), np.concatenate([score, score], 1))}, {"a": [1, 2]})
    assert sensitivity.best_setting(dataset).values == {"a": 2}


def test_rank_correlation_is_spearmans():
    x, y = [3.0, 1.0, 2.0, 2.0, np.nan], [30.0, 10.0, 40.0, 20.0, 1.0]
    assert sensitivity.rank_correlation(x, y) == pytest.approx(scipy.stats.spearmanr(x[:4], y[:4]).statistic)
    assert sensitivity.best_setting(synthetic.sweep(noise=0.01)).rank_correlation > 0.8


def test_several_algorithms_are_a_name():
    dataset = synthetic.sweep(algorithms=("ppo", "dqn"), noise=0.1)
    settings = settings_of(dataset)
    assert settings.names == ("algorithm", "learning_rate", "clip")
    assert sensitivity.best_setting(dataset).values["algorithm"] == "dqn"
    assert sensitivity.importance(dataset)["name"].values.tolist() == list(settings.names)


def test_one_seed_or_one_setting_is_enough():
    alone = sensitivity.best_setting(synthetic.sweep(num_seeds=1))
    assert not alone.held_out
    assert np.isnan([alone.low, alone.high, alone.rank_correlation]).all()
    run = synthetic.run()
    assert len(settings_of(run)) == 1
    best = sensitivity.best_setting(run)
    assert best.wins.tolist() == [1.0]
    assert best.report_seeds == (0, 1, 2, 3, 4)
    assert best.score == pytest.approx(float(statistics.iqm(run["score"].values)))
    assert len(sensitivity.settings_table(run)) == 1


def test_score_is_taken_from_the_returns_where_there_was_no_evaluation():
    dataset = synthetic.run(num_steps=20).drop_vars("score")
    settings = settings_of(dataset)
    assert "last tenth" in settings.score_name
    np.testing.assert_allclose(settings.scores[0, 0], dataset["return"][:, -2:].mean("step"))
    rows = {"episode/return_sum": [[2.0], [6.0]], "episode/count": [[1.0], [2.0]]}
    metrics = {name: (("step", "seed"), values) for name, values in rows.items()}
    assert settings_of(xarray.Dataset(metrics, {"step": [1.0, 2.0]})).scores.ravel().tolist() == [3.0]


def test_the_default_setting_is_found_by_the_record():
    settings = settings_of(synthetic.sweep())
    record = {"hyperparams": {"learning_rate": float(np.float32(1e-3)), "clip": 0.2}}
    assert settings.values(default_row(settings, record)) == {"learning_rate": 1e-3, "clip": 0.2}
    assert default_row(settings, {"defaults": {"learning_rate": 5e-4, "clip": 0.2}}) is None
    assert default_row(settings, {}) is None
    shapes = settings_of(synthetic.sweep({"config.hidden": ["(64, 64)", "(8,)"]}, effect=lambda _: 0.0))
    assert default_row(shapes, {"config": {"hidden": [8]}}) == 1


def test_any_order_of_dimensions_gives_the_same_rows():
    dataset = synthetic.sweep(envs=("x/A", "x/B"), algorithms=("p", "q"))
    settings = settings_of(dataset)
    for order in itertools.islice(itertools.permutations(dataset["score"].dims), 0, 120, 37):
        turned = dataset.transpose(*order, "step")
        other = settings_of(turned)
        rows, turned_rows = (
            {json.dumps(s.values(i), sort_keys=True): s.scores[i].tolist() for i in range(len(s))}
            for s in (settings, other)
        )
        assert rows == turned_rows


@pytest.mark.parametrize("call, message", [
    (lambda d: sensitivity.marginals(d, "rate"), r"'rate' was not swept; choose one of learning_rate, clip"),
    (lambda d: sensitivity.best_setting(d, tune_seeds=[99]), r"tune_seeds has \[99\]"),
    (lambda d: sensitivity.best_setting(d, [0, 1], [1, 2]), r"none in common; got \[0, 1\] and \[1, 2\]"),
    (lambda d: sensitivity.best_setting(d, []), r"must each have a seed"),
    (lambda d: sensitivity.best_setting(d.isel(seed=[0, 1]), [0, 1]), r"must each have a seed"),
    (lambda d: sensitivity.importance(d, {"x/B": (0, 1)}), r"no bounds for x/A; bounds are given for x/B"),
    (lambda d: sensitivity.importance(d, {"x/A": (1, 1)}), r"high must be above low"),
    (lambda d: settings_of(d[["loss/value"]]), r"must have `score`, `return`.*it has \['loss/value'\]"),
    (lambda d: settings_of(d.where(False)), r"no member that was run"),
    (lambda d: default_row(settings_of(d.assign_attrs(record="{")), {}), r"`record` is not JSON"),
    (lambda d: sensitivity.best_setting(d.assign(score=d["score"] * np.nan)), r"No setting has a score.*\[0, 1, 2\]"),
])  # fmt: skip
def test_errors(call, message):
    dataset = synthetic.sweep(envs=("x/A",)).isel(algorithm=0, drop=True)
    with pytest.raises(ValueError, match=message):
        call(dataset)
