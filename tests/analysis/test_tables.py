"""Lines of Markdown tables as experiments print them, and what is refused."""

import numpy as np
import pytest

from jaxrl.analysis import statistics, tables

VALUES = np.random.default_rng(0).normal(5.0, 3.0, 9)


def test_the_lines_of_a_table():
    assert tables.head("task", "return", "seconds") == "| task | return | seconds |\n|---|---|---|"
    # Cells without text keep their place; numbers are written as Python writes them.
    assert tables.row("hopper", "", 7) == "| hopper |  | 7 |"


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.iqm])
@pytest.mark.parametrize("form", [".0f", "+.3f"])
def test_an_interval_is_that_of_the_bootstrap(statistic, form):
    low, high = statistics.bootstrap_interval(VALUES, statistic)
    center = format(float(statistic(VALUES)), form)
    assert tables.interval(VALUES, form, statistic) == f"{center} [{format(low, form)}, {format(high, form)}]"
    assert low < statistic(VALUES) < high


def test_an_interval_leaves_out_what_is_not_known():
    assert tables.interval([2.0, np.nan, 2.0]) == "2.00 [2.00, 2.00]"
    assert tables.interval([2.0, np.nan]) == "2.00 [nan, nan]", "one seed says nothing of others"


@pytest.mark.parametrize(
    "values, message", [(1.0, r"\[seeds\].*\(\)"), (np.ones((2, 3)), r"\(2, 3\)"), ([], "one val")]
)
def test_other_shapes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        tables.interval(values)
