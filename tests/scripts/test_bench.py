"""Every suite of the benchmark gives its figures; the sizes here are tiny, and the figures mean nothing."""

import csv
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from loading import SCRIPTS, load

import jaxrl
from jaxrl.algorithms import lpg, ppo
from jaxrl.envs import list_envs
from jaxrl.envs.registry import installed
from jaxrl.networks import NetworkConfig

bench, pages = load("bench"), load("pages")
shared, training, layouts, resets, algorithms, discovery = (
    load(f"bench_{name}") for name in ("shared", "training", "layouts", "resets", "algorithms", "discovery")
)
TINY = ppo.Config(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, network=NetworkConfig(hidden=(4,)))


def test_a_case_counts_its_steps(monkeypatch):
    case = shared.Case("probe/Credit", num_seeds=3, total_steps=17, config=TINY, hparams=(("gamma", 0.5),))
    monkeypatch.setattr(training, "timed", lambda *arguments: shared.Timing(2.0, [0.25, 0.5, 9.0], 100))
    row = training.measure_case(case, repeats=3)
    assert row["case"] == "ppo probe/Credit x3"
    assert (row["steps_per_seed"], row["compile_seconds"], row["program_bytes"]) == (16, 2.0, 100)
    assert (row["run_seconds"], row["steps_per_second"]) == (0.5, 3 * 16 / 0.5)
    assert row["share_of_env_alone"] == round(row["steps_per_second"] / row["env_alone_steps_per_second"], 4)
    _, hparams, num_steps = shared.build(case)
    assert (num_steps, float(hparams.horizon), float(hparams.gamma)) == (2, 16.0, 0.5)


def test_timing_is_of_the_compiled_function():
    timing = shared.timed(jnp.sort, (jnp.arange(1000.0),), 2)
    assert len(timing.runs) == 2
    assert timing.program_bytes >= 2 * 4 * 1000
    assert timing.seconds < timing.compile_seconds


@pytest.mark.parametrize("suite", training.CASES)
def test_every_case_can_be_built(suite):
    for case in training.CASES[suite]:
        if case.env.startswith("gymnax/"):
            agent, _, num_steps = shared.build(case)
            assert num_steps * agent.env_steps <= case.total_steps < (num_steps + 1) * agent.env_steps, case.name


def test_layouts_have_a_row_for_each_chunk(monkeypatch):
    monkeypatch.setattr(layouts, "BREAKOUT", {**shared.CARTPOLE, "config": TINY})
    monkeypatch.setattr(layouts, "CARTPOLE", {"env": "probe/Credit", "config": TINY})
    monkeypatch.setattr(layouts, "timed", lambda *arguments: shared.Timing(2.0, [0.5], 100))
    rows = list(layouts.measure("Credit", repeats=1, shrink=128))
    assert [row["chunk"] for row in rows if row["num_devices"] == 1] == [1, 2, 4, 8, 16, 32, 64]
    assert sum(row["chosen"] for row in rows) == 1
    assert all(row["steps_per_second"] == 64 * 128 / 0.5 for row in rows)


def test_resets_have_a_row_for_each_mode(monkeypatch):
    monkeypatch.setattr(resets, "ENVS", ("probe/Credit", "probe/Memory"))
    rows = list(resets.measure("Credit", repeats=1, num_envs=4, num_steps=3))
    assert [row["case"].partition(" ")[2] for row in rows] == ["fresh", "pooled 4", "cached 64"]
    assert all(row["steps_per_seed"] == 12 and row["steps_per_second"] > 0 for row in rows)


def test_algorithms_have_a_row_for_one_member_and_for_many(monkeypatch):
    """In the first task that an algorithm takes; SAC has no discrete actions."""
    tiny = {
        "a2c": {"num_envs": 2, "num_steps": 2, "network": NetworkConfig(hidden=(4,))},
        "sac": {"num_rounds": 2, "batch_size": 4, "capacity": 16, "num_warmup_steps": 4},
    }
    make = jaxrl.make
    monkeypatch.setattr(algorithms, "ALGORITHMS", ["a2c", "sac"])
    monkeypatch.setattr(algorithms.jaxrl, "make", lambda name, env: make(name, env, **tiny[name]))
    rows = [*algorithms.measure("a2c", 1, 1e-9), *algorithms.measure("sac x1 ", 1, 1e-9)]
    names = ["a2c gymnax/CartPole-v1 x1", "a2c gymnax/CartPole-v1 x64", "sac gymnax/Pendulum-v1 x1"]
    assert [row["case"] for row in rows] == names
    assert [row["steps_per_seed"] for row in rows] == [4, 4, 2]
    assert rows[0]["state_bytes_per_member"] == rows[1]["state_bytes_per_member"]


def test_discovery_has_a_row_for_each_size(monkeypatch):
    monkeypatch.setattr(discovery, "timed", lambda *arguments: shared.Timing(2.0, [0.5], 100))
    config = lpg.Config(num_envs=2, num_steps=3, tabular=True, optimizer="sgd")
    rows = list(discovery.measure("", 1, 4, num_generations=2, num_updates=5, config=config, widths=(4, 3)))
    assert [row["case"] for row in rows] == ["lpg es grids/Small gru 4", "lpg es grids/Small gru 3"]
    assert all((row["steps_per_generation"], row["steps_per_second"]) == (120, 480) for row in rows)


@pytest.mark.parametrize(
    "told, expected",
    [(("0123456789", False), "0123456"), (("0123456789", True), "0123456+"), ((None, None), "unknown")],
)
def test_each_row_carries_the_revision(told, expected, tmp_path, monkeypatch):
    found = dict(zip(("git_revision", "git_modified"), told, strict=True))
    monkeypatch.setattr(shared.runs, "environment", lambda: found)
    monkeypatch.setitem(bench.SUITES, "replay", lambda only, repeats: iter([{"case": "a"}, {"case": "b", "size": 3}]))
    # They would last for the tests that follow.
    monkeypatch.setattr(bench.jax.config, "update", lambda name, value: None)
    out = tmp_path / "bench.csv"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--suite", "replay", "--out", str(out)])
    assert bench.main() == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["git_revision"]) for row in rows] == [("a", expected), ("b", expected)]


def test_the_page_of_speeds_says_of_which_revisions():
    rows = [{"git_revision": name} for name in ("e84b6a2", "0123456+", "e84b6a2")]
    assert pages.revisions(rows[:1]) == "`e84b6a2`"
    assert pages.revisions(rows) == "`e84b6a2` (2 of 3 rows), `0123456+` (1 of 3 rows)"
    with (SCRIPTS.parent / "docs" / "speed.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert f"jaxrl at {pages.revisions(measured)})" in " ".join(pages.speed_page().split())


@pytest.mark.suites
@pytest.mark.skipif(not installed("navix"), reason="navix is not installed")
def test_resets_of_mazes():
    mazes = [name for name in resets.ENVS if name.startswith("navix/")]
    assert set(mazes) <= set(list_envs("navix"))
    # navix broadcasts silently.
    with jax.numpy_rank_promotion("allow"):
        rows = list(resets.measure(mazes[0], repeats=1, num_envs=4, num_steps=3))
    assert [row["case"] for row in rows] == [f"{mazes[0]} {mode}" for mode in ("fresh", "pooled 4", "cached 64")]


@pytest.mark.slow
def test_smoke_suite_writes_a_row_a_case(tmp_path):
    out = tmp_path / "bench.csv"
    command = [sys.executable, SCRIPTS / "bench.py", "--suite", "smoke", "--only", "CartPole", "--repeats", "1"]
    subprocess.run([*command, "--out", out], check=True, timeout=280)
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "ppo gymnax/CartPole-v1 x2"
    assert float(row["compile_seconds"]) > 0
    assert row["jax"]
    assert row["git_revision"] == shared.revision()
