"""The curve that grows while training runs."""

import numpy as np

from jaxrl.analysis.live import LiveCurve
from jaxrl.progress import Progress


def after(iteration, mean, evaluation=None):
    return Progress(
        iteration=iteration,
        total_iterations=10,
        env_steps=64 * iteration,
        steps_per_second=1e5,
        returns=np.array([mean, mean]),
        mean_return=mean,
        interval=(mean - 1.0, mean + 1.0),
        evaluation=evaluation,
        seconds=1.0,
        compile_seconds=0.5,
        eta_seconds=3.0,
        diverged={},
    )


def test_it_shows_what_is_known_and_the_whole_of_training():
    shown = []
    curve = LiveCurve("PPO", lambda figure, first: shown.append((figure, first)))
    curve(after(2, float("nan")))  # no episode has ended yet
    curve(after(4, 5.0, np.array([6.0, float("nan")])))
    assert shown == [(curve.figure, True), (curve.figure, False)]
    (panel,) = curve.figure.axes
    training, evaluation = panel.lines
    np.testing.assert_array_equal(training.get_xydata(), [[128.0, np.nan], [256.0, 5.0]])
    np.testing.assert_array_equal(evaluation.get_xydata(), [[256.0, 6.0]])
    assert panel.get_xlim() == (0.0, 640.0)
    assert panel.get_title() == "PPO"
