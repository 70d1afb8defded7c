"""Returns by spans of training against loops, and the errors of what does not fit."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxrl.analysis import spans, statistics

ITERATIONS, SEEDS = 23, 4


@pytest.fixture(scope="module")
def metrics() -> dict[str, np.ndarray]:
    """Few episodes, none at all in the first and the middle iterations; float32 as training gives them."""
    generator = np.random.default_rng(0)
    count = generator.integers(0, 3, (SEEDS, ITERATIONS)) * (generator.random((SEEDS, ITERATIONS)) < 0.5)
    count[0, :9] = count[1, 8:16] = 0
    total = count * generator.normal(50.0, 20.0, (SEEDS, ITERATIONS))
    return {"episode/return_sum": total.astype(np.float32), "episode/count": count.astype(np.float32)}


def by_loops(metrics, num_spans, carry):
    """The same span by span: lengths differ by one, the longer first."""
    total, count = metrics["episode/return_sum"], metrics["episode/count"]
    lengths = [ITERATIONS // num_spans + (i < ITERATIONS % num_spans) for i in range(num_spans)]
    rows = []
    for seed in range(SEEDS):
        start, row = 0, []
        for length in lengths:
            part = slice(start, start + length)
            before = row[-1] if row and carry else np.nan
            num = count[seed, part].sum()
            row.append(total[seed, part].sum() / num if num else before)
            start += length
        rows.append(row)
    return np.asarray(rows)


@pytest.mark.parametrize("num_spans", [1, 5, 23, 40])
@pytest.mark.parametrize("gaps", ["last", "nan"])
def test_spans_equal_loops_bit_for_bit(metrics, num_spans, gaps):
    found = spans.span_returns(metrics, num_spans, gaps)
    np.testing.assert_array_equal(found, by_loops(metrics, num_spans, gaps == "last"))
    # further leading axes, of settings for instance, change nothing
    stacked = {name: np.stack([values, values[::-1]]) for name, values in metrics.items()}
    np.testing.assert_array_equal(spans.span_returns(stacked, num_spans, gaps), np.stack([found, found[::-1]]))


def test_gaps_are_there_to_be_filled(metrics):
    with_nan, filled = (spans.span_returns(metrics, 8, gaps) for gaps in ("nan", "last"))
    for returns in (with_nan, filled):
        assert np.isnan(returns[0, :2]).all()
    assert np.isnan(with_nan[1, 3:5]).all()
    assert (filled[1, 3:5] == filled[1, 2]).all()


def test_a_return_that_is_not_finite_stays(metrics):
    broken = {**metrics, "episode/return_sum": np.where(metrics["episode/count"] > 0, np.nan, 0.0)}
    assert np.isnan(spans.span_returns(broken, 3)).all()


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.iqm])
def test_drawing_has_the_statistic_within_its_interval(metrics, statistic):
    returns = spans.span_returns(metrics, 5)[1:]
    panel = Figure().subplots()
    spans.draw_spans(panel, returns, 1000, statistic, index=9, label="arm")
    steps, drawn = np.asarray(panel.lines[0].get_xydata()).T
    np.testing.assert_allclose(steps, [100.0, 300.0, 500.0, 700.0, 900.0])
    np.testing.assert_allclose(drawn, [statistic(returns[:, i]) for i in range(5)])
    band = np.asarray(panel.collections[0].get_paths()[0].vertices)
    for step, value in zip(steps, drawn, strict=True):
        heights = band[band[:, 0] == step, 1]
        assert heights.min() < value < heights.max()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"episode/count": None}, (3,), r"needs the metrics \['episode/count'\]"),
        ({"episode/count": np.ones(3)}, (3,), r"must have one shape.*got \(4, 23\) and \(3,\)"),
        ({"episode/count": np.ones(()), "episode/return_sum": np.ones(())}, (3,), r"must have one shape"),
        ({}, (0,), "num_spans must be at least 1; got num_spans = 0"),
        ({}, (3, "zero"), "gaps must be last or nan; got gaps = 'zero'"),
    ],
)
def test_errors_of_spans(metrics, changes, arguments, message):
    given = {name: values for name, values in {**metrics, **changes}.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        spans.span_returns(given, *arguments)


def test_errors_of_drawing():
    with pytest.raises(ValueError, match=r"returns must be \[members, spans\]; got shape \(3,\)"):
        spans.draw_spans(Figure().subplots(), np.ones(3), 10)
