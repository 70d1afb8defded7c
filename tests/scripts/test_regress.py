"""The guard against regressions finds each kind of them, and nothing where nothing changed."""

import copy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from loading import SCRIPTS, load

bench, regress = load("bench"), load("regress")

PLACE = dict.fromkeys(regress.PLACE, "here")
BEFORE = [
    {
        "case": "a",
        "steps_per_second": 1000.0,
        "compile_seconds": 10.0,
        "program_bytes": 1e6,
        "equations": 100.0,
        **PLACE,
    },
    {"case": "learning", "mean_return": 300.0, "standard_error": 10.0, **PLACE},
]


def after(case: int, **changes):
    rows = copy.deepcopy(BEFORE)
    rows[case] |= changes
    return rows


@pytest.mark.parametrize(
    "case, measure, worse, fine",
    [
        (0, "steps_per_second", 840.0, 860.0),
        (0, "steps_per_second", float("nan"), 2000.0),
        (0, "compile_seconds", 11.6, 11.4),
        (0, "program_bytes", 1.03e6, 1.01e6),
        (0, "equations", 103.0, 101.0),
        (1, "mean_return", 269.0, 271.0),
        (1, "mean_return", float("nan"), 400.0),
    ],
)
def test_each_kind_is_found(case, measure, worse, fine):
    assert regress.compare(BEFORE, after(case, **{measure: fine}), 0.15) == []
    ((name, found, recorded, now, _),) = regress.compare(BEFORE, after(case, **{measure: worse}), 0.15)
    assert (name, found, recorded) == (BEFORE[case]["case"], measure, BEFORE[case][measure])
    assert now is worse


def test_times_are_compared_on_the_same_machine_only():
    slow = after(0, steps_per_second=1.0, compile_seconds=99.0, jax="another")
    assert regress.compare(BEFORE, slow, 0.15) == []
    assert regress.moved(BEFORE[0], slow[0]) == ["jax here then, another now"]
    large = after(0, equations=200.0, jax="another")
    assert len(regress.compare(BEFORE, large, 0.15)) == 1


def test_seeds_that_all_agree_leave_room_for_one_percent():
    before = [{**BEFORE[1], "standard_error": 0.0}]
    assert regress.compare(before, [{**before[0], "mean_return": 298.0}], 0.15) == []
    assert len(regress.compare(before, [{**before[0], "mean_return": 296.0}], 0.15)) == 1


def test_equations_of_inner_programs_count():
    def body(carry, x):
        return carry + 1.0, jnp.sin(x) * 2.0

    def scanned(x):
        return jax.lax.scan(body, 0.0, x)[1]

    def branched(x):
        return jax.lax.cond(True, lambda x: x + 1.0, lambda x: (x + 1.0) * 2.0, x)

    assert regress.num_equations(jax.make_jaxpr(scanned)(jnp.ones(3))) == 4
    flat = regress.num_equations(jax.make_jaxpr(lambda x: x + 1.0)(1.0))
    assert regress.num_equations(jax.make_jaxpr(branched)(1.0)) >= flat + 3


@pytest.mark.parametrize("content", [None, "", "case,steps\na,1\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, content, capsys):
    path = tmp_path / "before.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        regress.main(["check", "--against", str(path)])
    assert stopped.value.code == 2
    assert "scripts/regress.py record" in capsys.readouterr().err


@pytest.fixture
def recorded(tmp_path):
    """A file as `record` writes it."""
    path = tmp_path / "before.csv"
    bench.write(path, [{**row, "budget": 2048, "git_revision": "0123e45"} for row in BEFORE])
    return path


def test_check_says_what_got_worse(recorded, monkeypatch, capsys):
    monkeypatch.setattr(regress, "measured", lambda budget: after(0, equations=150.0, program_bytes=2e6))
    assert regress.main(["check", "--against", str(recorded)]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["case", "measure", "recorded", "now", "passes"]
    assert lines[1:] == [
        ["a", "program_bytes", "1000000.0", "2000000.0", "at", "most", "1020000"],
        ["a", "equations", "100.0", "150.0", "at", "most", "102"],
    ]


def test_check_passes_where_nothing_changed(recorded, monkeypatch, capsys):
    budgets = []
    monkeypatch.setattr(regress, "measured", lambda budget: budgets.append(budget) or after(0))
    assert regress.main(["check", "--against", str(recorded)]) == 0
    assert capsys.readouterr().out == f"Nothing got worse than in {recorded}.\n"
    assert budgets == [2048]


def test_check_tells_of_another_machine_and_of_other_cases(recorded, monkeypatch, capsys):
    monkeypatch.setattr(regress, "measured", lambda budget: [{**row, "jax": "another"} for row in after(0)])
    assert regress.main(["check", "--against", str(recorded)]) == 0
    assert "Recorded elsewhere (jax here then, another now): times are not compared." in capsys.readouterr().out
    monkeypatch.setattr(regress, "measured", lambda budget: after(0)[:1])
    with pytest.raises(SystemExit):
        regress.main(["check", "--against", str(recorded)])
    assert "differ in the cases learning: record it again" in capsys.readouterr().err


@pytest.mark.slow
def test_record_measures_every_case(tmp_path):
    path = tmp_path / "before.csv"
    subprocess.run(
        [sys.executable, SCRIPTS / "regress.py", "record", "--out", path, "--budget", "2048"], check=True, timeout=280
    )
    *timed, learning = regress.read(path)
    assert [row["case"] for row in timed] == [
        "ppo gymnax/CartPole-v1 x1",
        "ppo gymnax/CartPole-v1 x8",
        "ppo gymnax/Breakout-MinAtar x1",
        "env alone gymnax/CartPole-v1",
    ]
    for row in timed:
        assert all(row[name] > 0 for name in ("steps_per_second", "compile_seconds", "program_bytes", "equations"))
    assert timed[1]["program_bytes"] > timed[0]["program_bytes"]
    assert learning["mean_return"] > 5
    assert regress.compare([*timed, learning], [*timed, learning], 0.0) == []
