"""Pictures of rules: the numbers behind them against ones written out, and that files come into being."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import lpg
from jaxrl.analysis import rule_figures
from jaxrl.analysis.drift_figures import drift_grid
from jaxrl.analysis.rule_figures import Schedule, TargetSample
from jaxrl.objectives import drift_objective, rules
from jaxrl.objectives.rules import Rule, Targets
from jaxrl.runs import Run, segment_dataset

STRATEGY = (
    "held_out/fitness",
    "held_out/std",
    "fitness/mean",
    "fitness/tie_rate",
    "strategy/snr",
    "strategy/half_cosine",
)
PROGRAMS = ("held_out/fitness", "fitness/mean", "fitness/best", "search/share_known")
GROWING = drift_objective("growing", lambda key: (), lambda p, x, a, passed: passed * jnp.square(x))


def test_a_drift_at_a_moment_is_the_drift_with_that_progress():
    # Whatever progress it is given.
    fixed = drift_grid(rule_figures.at_progress(GROWING, 0.5), (), 5, 0.7)
    np.testing.assert_allclose(fixed[2], np.broadcast_to(0.5 * fixed[0] ** 2, (5, 5)), atol=1e-6)


@pytest.mark.slow
def test_a_drift_over_progress_is_drawn(tmp_path):
    checks = rule_figures.plot_drift_over_progress(GROWING, (), tmp_path / "progress.png", (0.0, 1.0), num=11)
    assert [check.hold for check in checks] == [True, True]
    assert (tmp_path / "progress.png").stat().st_size > 5000


def test_regression_against_numpy():
    generator = np.random.default_rng(0)
    x = generator.normal(size=50)
    y = 0.3 * x + generator.normal(size=50)
    slope, intercept, share = rule_figures.regression(x, y)
    np.testing.assert_allclose([slope, intercept], np.polyfit(x, y, 1), rtol=1e-10)
    assert share == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert np.isnan(rule_figures.regression(np.ones(3), np.arange(3.0))[0])


def test_what_a_prediction_explains_is_left_out():
    generator = np.random.default_rng(0)
    prediction = generator.dirichlet(np.ones(4), size=(2, 5, 3))
    explained = prediction @ np.array([1.0, -2.0, 0.5, 4.0]) + 7.0
    np.testing.assert_allclose(rule_figures._unexplained(explained, prediction), 0.0, atol=1e-9)
    left = rule_figures._unexplained(explained + generator.normal(size=explained.shape), prediction)
    assert 0.3 < left.std() < 1.5
    # What is left has nothing to do with the prediction.
    np.testing.assert_allclose(np.einsum("ntb,ntbm->nm", left, prediction), 0.0, atol=1e-9)


@pytest.mark.slow
def test_outcomes_are_discounted_returns_within_episodes():
    """A rule whose π̂ is the reward, on a chain: its last step pays, so the outcome of a step is a power of γ."""
    even = lambda inputs: jnp.broadcast_to(jnp.log(0.5), inputs.prediction.shape)
    paid = Rule(lambda key: (), lambda params, inputs: Targets(inputs.reward, even(inputs)), 2, "paid")
    config = lpg.Config(num_envs=2, num_steps=12, tabular=True, optimizer="sgd")
    make = lambda rule: lpg.lpg(jaxrl.make_env("chains/Short", length=(5, 5)), rule, config)
    sample = rule_figures.sample_targets(make, paid, num_iterations=1, num_learners=2)
    hparams = make(paid).hyperparams(gamma=0.5)
    found = sample(jax.random.key(0), hparams)
    target, outcome = (x.reshape(2, 12, 2) for x in (found.target, found.outcome))
    np.testing.assert_array_equal(np.abs(target[:, [4, 9]]), 1.0)
    for t in range(10):
        paid_at = 4 if t < 5 else 9
        np.testing.assert_allclose(outcome[:, t], target[:, paid_at] * 0.5 ** (paid_at - t))
    # The third episode is cut by the rollout.
    np.testing.assert_array_equal(outcome[:, 10:], 0.0)


@pytest.mark.slow
def test_schedules_are_those_of_lives_of_their_length():
    """Entropy is that of the table; a rule that sees progress shows whose life it is."""
    even = lambda inputs: jnp.broadcast_to(jnp.log(0.5), inputs.prediction.shape)
    passed = Rule(
        lambda key: (),
        lambda params, inputs: Targets(jnp.broadcast_to(inputs.progress, inputs.reward.shape), even(inputs)),
        2,
        "passed",
    )
    config = lpg.Config(num_envs=1, num_steps=2, tabular=True, optimizer="sgd")
    agent = lpg.lpg(jaxrl.make_env("chains/Short", length=(5, 5)), passed, config)
    found = rule_figures.schedules(agent, (2, 4), num_learners=2)(
        jax.random.key(0), agent.hyperparams(learning_rate=0.0)
    )
    assert [one.life for one in found] == [2, 4]
    for one in found:
        np.testing.assert_allclose(one.scale, np.arange(one.life) / one.life, atol=1e-6)
        np.testing.assert_allclose(one.entropy, np.log(2.0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"lives must be lengths of at least 1; got lives = \(\)"):
        rule_figures.schedules(agent, ())


def test_pictures_of_rules(tmp_path):
    generator = np.random.default_rng(0)
    outcome = generator.normal(size=300)
    sample = TargetSample(2.0 * outcome + 0.1 * generator.normal(size=300), outcome, generator.normal(size=300))
    ((by_return, by_advantage),) = rule_figures.plot_targets([("LPG", sample)], tmp_path / "targets.png")
    assert by_return > 0.98
    assert by_advantage < 0.1
    schedule = Schedule(5, np.linspace(1.6, 0.2, 5), np.ones(5))
    rule_figures.plot_schedules([("TA-LPG", [schedule, schedule._replace(life=5)])], tmp_path / "schedules.png")
    for name in ("targets", "schedules"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_horizons_have_one_legend_and_lives_of_one_iteration_are_seen(tmp_path, drawn):
    one, few, many = (Schedule(n, np.linspace(1.6, 0.2, n), np.ones(n)) for n in (1, 3, 20))
    rows = [("LPG", [one, few, many]), ("TA-LPG", [few, many])]
    rule_figures.plot_schedules(rows, tmp_path / "schedules.png")
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["N = 1", "N = 3", "N = 20"]
    assert all(panel.get_legend() is None for panel in figure.axes)
    box = legend.get_window_extent()
    assert not any(box.overlaps(panel.get_window_extent()) for panel in figure.axes)
    for panel in figure.axes:
        markers = [line.get_marker() for line in panel.get_lines()]
        assert markers == ["o", "o", "None"][-len(markers) :]
    # A length has one color in both rows.
    first, second = ([line.get_color() for line in figure.axes[row].get_lines()] for row in (0, 2))
    assert first[1:] == second


def search(path, looks, names):
    """A run of a search whose metrics go up."""
    run = Run.create(path, {"meta": {"held_out_every": 1}})
    run.write_segment(0, segment_dataset({name: np.linspace(0.1, 0.9, looks) for name in names}, 0, 10))
    return run


def lines_of(figure):
    """Those with data; the others are levels."""
    lines = [line for panel in figure.axes for line in panel.get_lines()]
    return [line for line in lines if list(np.ravel(line.get_xdata())) != [0, 1]]


@pytest.mark.parametrize("names", [STRATEGY, PROGRAMS])
def test_few_looks_have_markers_and_whole_generations(tmp_path, drawn, names):
    for looks in (1, 2, 3, 12, 13):
        rule_figures.plot_generations([search(tmp_path / str(looks), looks, names)], tmp_path / "generations.png")
        lines = lines_of(drawn[-1])
        assert len(lines) == len(names) - (names is STRATEGY)
        markers = {(line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(markers) == len({line.get_linestyle() for line in lines})
        assert all((marker in ("o", "s")) == (looks <= 12) for _, marker in markers)
        for panel in drawn[-1].axes:
            low, high = panel.get_xlim()
            ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
            assert ticks
            np.testing.assert_array_equal(ticks, np.round(ticks))


def test_the_deviation_of_one_look_is_seen(tmp_path, drawn):
    rule_figures.plot_generations([search(tmp_path / "run", 1, STRATEGY)], tmp_path / "generations.png")
    (bar,) = drawn[0].axes[0].collections
    np.testing.assert_allclose(bar.get_segments(), [[[1.0, 0.0], [1.0, 0.2]]], atol=1e-12)


def test_searches_in_folders_of_one_name_are_told_apart(tmp_path, drawn):
    runs = [search(tmp_path / parent / "lpo", 2, STRATEGY) for parent in ("a", "b")]
    rule_figures.plot_generations(runs, tmp_path / "generations.png")
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["a/lpo", "b/lpo"]


def test_generations_of_several_searches(tmp_path):
    names = ("held_out/fitness", "held_out/std", "fitness/mean", "fitness/tie_rate", "strategy/snr")
    runs = []
    for number in range(2):
        run = Run.create(tmp_path / f"search-{number}", {"meta": {"held_out_every": 5}})
        rows = {name: np.linspace(0.1, 0.9, 4) for name in (*names, "strategy/half_cosine")}
        run.write_segment(0, segment_dataset(rows, 0, 10))
        runs.append(run)
    rule_figures.plot_generations(runs, tmp_path / "generations.png")
    assert (tmp_path / "generations.png").stat().st_size > 5000
    empty = Run.create(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="has no generations"):
        rule_figures.plot_generations([empty], tmp_path / "none.png")


@pytest.mark.slow
def test_targets_of_a_written_rule_are_the_advantages_that_it_is_made_of():
    """With λ = γ = 1 and predictions that stay even, π̂ of A2C is the return to the end of the episode or rollout."""
    config = lpg.Config(num_envs=4, num_steps=12, tabular=True, optimizer="sgd")
    make, rule = (
        lambda rule: lpg.lpg(jaxrl.make_env("chains/Short", length=(5, 5)), rule, config),
        rules.a2c(5, -1.0, 1.0, False),
    )
    sample = rule_figures.sample_targets(make, rule, num_iterations=2, num_learners=4)
    hparams = make(rule).hyperparams(gamma=1.0, prediction_learning_rate=0.0)
    exact = hparams.replace(objective=hparams.objective.replace(trace_lambda=jnp.float32(1.0)))
    found = sample(jax.random.key(0), exact)
    np.testing.assert_allclose(found.target, found.outcome, atol=1e-5)
    assert np.abs(found.target).max() == pytest.approx(1.0, abs=1e-5)
    for n, x in enumerate((found.outcome, found.advantage)):
        slope, _, share = rule_figures.regression(x, found.target)
        assert slope == pytest.approx(1.0, abs=0.01), n
        assert share > 0.9, n


def test_generations_of_programs(tmp_path):
    names = ("held_out/fitness", "fitness/mean", "fitness/best", "search/num_new", "search/share_known")
    run = Run.create(tmp_path / "programs", {"meta": {"held_out_every": 2}})
    run.write_segment(0, segment_dataset({name: np.linspace(0.1, 0.9, 4) for name in names}, 0, 10))
    rule_figures.plot_generations([run], tmp_path / "generations.png")
    assert (tmp_path / "generations.png").stat().st_size > 5000
    other = Run.create(tmp_path / "strategy", {})
    other.write_segment(0, segment_dataset({"held_out/fitness": np.ones(2)}, 0, 10))
    with pytest.raises(ValueError, match="are drawn apart"):
        rule_figures.plot_generations([run, other], tmp_path / "both.png")
