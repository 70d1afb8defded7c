"""What a person sees while a run trains, on a terminal and without one."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from jaxrl.cli import progress
from jaxrl.fit import Progress


def at(iteration: int, total: int = 100, **changes) -> Progress:
    known = Progress(
        iteration=iteration,
        total_iterations=total,
        env_steps=iteration * 5120,
        steps_per_second=123_456.0,
        returns=np.array([200.0, 220.0]),
        mean_return=210.0,
        interval=(180.0, 240.0),
        evaluation=None,
        seconds=float(iteration),
        compile_seconds=1.0,
        eta_seconds=float(total - iteration),
        diverged={},
    )
    return known._replace(**changes)


def shown(terminal: bool, body) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    display = progress.Display(console, 512_000, 2)
    with display.live():
        body(display)
    return console.file.getvalue()


def test_a_terminal_shows_the_compilation_and_then_a_bar_of_one_line():
    def body(display):
        display._bar.refresh()
        display.sink().start(0.0, 2)
        display.message("Seed 1 diverged: [not] finite.")
        display.segment(at(50))
        display._bar.refresh()

    out = shown(True, body)
    before, after = out.split("compiled in", 1)
    assert "compiling" in before
    assert "training" not in before
    assert "Seed 1 diverged: [not] finite.\n" in after
    last = next(line for line in reversed(after.splitlines()) if "training" in line)
    assert "256k/512k steps  123k/s  return 210 [180, 240]" in last
    assert last.rstrip().endswith("0:50 left")
    assert len(last.split("\x1b[2K")[-1]) <= 80
    assert last.split("training")[1].lstrip("━╸╺ ").startswith("256k")


def test_a_long_line_stays_one_line():
    def body(display):
        display.sink().start(0.0, 2)
        display.segment(at(50, mean_return=-1234.5, interval=(-2345.6, -123.46), eta_seconds=12_345.0))
        display._bar.refresh()

    lines = [line for line in shown(True, body).splitlines() if "training" in line]
    assert lines[-1].rstrip().endswith("256k/512k steps  123k/s  return -1,234 [-2,346, -123.5] 3:25:45 left")


def test_without_a_terminal_lines_are_few_and_whole():
    def body(display):
        display.sink().start(0.0, 2)
        for iteration in range(1, 101):
            display.segment(at(iteration, evaluation=np.array([1.0, 3.0]) if iteration == 7 else None))

    lines = shown(False, body).splitlines()
    assert lines[0] == "compiling …"
    assert lines[1].startswith("compiled in ")
    assert " 25,600 steps   5%  123k steps/s  return 210 [180, 240]  1:35 left" in lines
    assert " 35,840 steps   7%  123k steps/s  return 210 [180, 240]  evaluation 2  1:33 left" in lines
    assert lines[-1] == "512,000 steps 100%  123k steps/s  return 210 [180, 240]"
    assert 20 <= len(lines) <= 24


def test_unknown_returns_and_divergence():
    def body(display):
        display.segment(at(100, mean_return=math.nan, interval=(math.nan, math.nan), diverged={1: 5120}))

    assert shown(False, body).splitlines()[-1] == "512,000 steps 100%  123k steps/s  return –  1 diverged"


def results(num_seeds: int, **changes) -> dict:
    rows = [
        {"seed": k, "training_return": 10.0 * k, "evaluation_return": None, "diverged": None} for k in range(num_seeds)
    ]
    rows[-1] |= changes
    return {"seeds": rows}


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_the_table_has_the_columns_that_are_known():
    text = rendered(progress.final_table(results(4)))
    assert "evaluation" not in text
    assert "diverged" not in text
    assert "mean  15 [" in " ".join(text.split()).replace("mean 15", "mean  15")
    text = rendered(progress.final_table(results(4, training_return=None, evaluation_return=5.0, diverged=51200)))
    assert "evaluation return" in text
    assert "after 51,200 steps" in text
    assert "–" in text


@pytest.mark.parametrize("num_seeds, num_rows", [(1, 2), (8, 11), (100, 3)])
def test_the_table_lists_few_seeds_only(num_seeds, num_rows):
    assert (
        len([line for line in rendered(progress.final_table(results(num_seeds))).splitlines() if line.strip()])
        == num_rows
    )


@pytest.mark.parametrize("value, text", [
    (7.0, "0:07"), (754.0, "12:34"), (3723.0, "1:02:03"), (math.inf, "0:00"),
])  # fmt: skip
def test_clock(value, text):
    assert progress.clock(value) == text


@pytest.mark.parametrize("value, text", [
    (999, "999"), (999.9, "1k"), (12_345, "12.3k"), (4e6, "4M"), (999_999, "1M"), (2.5e9, "2.5G"),
])  # fmt: skip
def test_short(value, text):
    assert progress.short(value) == text


@pytest.mark.parametrize("value, text", [
    (None, "–"), (math.nan, "–"), (0.0, "0"), (0.12345, "0.1235"), (-12.0, "-12"), (12345.6, "12,346"),
])  # fmt: skip
def test_number(value, text):
    assert progress.number(value) == text
