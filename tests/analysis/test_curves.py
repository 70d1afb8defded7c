"""Learning curves and the figures made of them."""

import numpy as np
import pytest
import xarray

from jaxrl.analysis import curves, plots
from jaxrl.runs import Run, segment_dataset


def metrics_of(num: int, seeds: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(num)
    count = generator.integers(0, 4, (num, seeds)).astype(np.float32)
    level = np.linspace(0, 100, num)[:, None] + 10 * generator.standard_normal((num, seeds))
    return {"episode/return_sum": (count * level).astype(np.float32), "episode/count": count}


def test_a_point_is_the_mean_over_the_episodes_of_its_slice():
    metrics = metrics_of(12)
    curve = curves.learning_curve(segment_dataset(metrics, 0, 10), num_points=3)
    assert curve.dims == ("step", "seed")
    np.testing.assert_array_equal(curve["step"], [40.0, 80.0, 120.0])
    total, count = (metrics[name].reshape(3, 4, 3).sum(1) for name in metrics)
    np.testing.assert_allclose(curve, total / count, rtol=1e-6)


def test_more_points_than_rows_gives_the_rows_and_nan_where_no_episode_ended():
    metrics = metrics_of(5)
    curve = curves.learning_curve(segment_dataset(metrics, 0, 10), num_points=50)
    np.testing.assert_array_equal(np.isnan(curve), metrics["episode/count"] == 0)
    assert np.isnan(curve).any()


def test_unfinished_episodes_do_not_enter_the_evaluation():
    data = {"returns": [[[1.0, 5.0], [2.0, 4.0]]], "finished": [[[1, 0], [0, 0]]]}
    dataset = xarray.Dataset({name: (("step", "seed", "episode"), np.array(v)) for name, v in data.items()})
    np.testing.assert_array_equal(curves.evaluation_curve(dataset), [[1.0, np.nan]])


def test_curve_errors():
    with pytest.raises(ValueError, match=r"needs the metrics \['episode/count'\]"):
        curves.learning_curve(xarray.Dataset({"episode/return_sum": ("step", [1.0])}))
    with pytest.raises(ValueError, match="5 rows, 0 points"):
        curves.learning_curve(segment_dataset(metrics_of(5), 0, 10), num_points=0)


def make_run(path, env="gymnax/CartPole-v1", num=30, seeds=3, evaluated=True) -> Run:
    run = Run.create(path, {"algorithm": "ppo", "env": env})
    run.write_segment(0, segment_dataset(metrics_of(num, seeds), 0, 512))
    if evaluated:
        shape = (seeds, 4)
        fields = {"returns": np.full(shape, 50.0), "finished": np.ones(shape, bool)}
        data = {name: (("seed", "episode"), values) for name, values in fields.items()}
        run.write_evaluation(num, xarray.Dataset(data, attrs={"env_steps": num * 512.0}))
    return run


def drawn_by(monkeypatch, runs, path):
    """The figure behind a plot."""
    figures = []
    save = plots.Figure.savefig

    def keep(figure, *arguments, **keywords):
        figures.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(plots.Figure, "savefig", keep)
    plots.plot_curves(runs, path)
    return figures[0]


def test_one_run_shows_its_seeds_its_evaluation_and_units(tmp_path, monkeypatch):
    figure = drawn_by(monkeypatch, [make_run(tmp_path / "a")], tmp_path / "a" / "curves.png")
    (panel,) = figure.axes
    assert panel.get_title() == "ppo on gymnax/CartPole-v1"
    assert "steps" in panel.get_xlabel()
    assert "return" in panel.get_ylabel()
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["training: mean of 3 seeds, 95% interval", "evaluation, greedy: mean of 3 seeds, 95% interval"]
    assert (tmp_path / "a" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_several_runs_share_the_panel_of_their_environment(tmp_path, monkeypatch):
    runs = [
        make_run(tmp_path / "x" / "a"),
        make_run(tmp_path / "y" / "a", seeds=1, evaluated=False),
        make_run(tmp_path / "b", env="gymnax/Pendulum-v1"),
    ]
    figure = drawn_by(monkeypatch, runs, tmp_path / "all.svg")
    assert [panel.get_title() for panel in figure.axes] == [
        "gymnax/CartPole-v1",
        f"{tmp_path.name}/b on gymnax/Pendulum-v1",
    ]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["x/a (3 seeds, 95% interval)", "y/a (1 seed)"]
    colors = {line.get_color() for line in figure.axes[0].get_lines()}
    assert len(colors) == 2


def test_plot_errors(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        plots.plot_curves([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.xyz must end in one of .*png"):
        plots.plot_curves([make_run(tmp_path / "a")], tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="no metrics yet"):
        plots.plot_curves([Run.create(tmp_path / "empty", {})], tmp_path / "a.png")
