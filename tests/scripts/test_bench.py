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

bench = load("bench")
TINY = ppo.Config(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, network=NetworkConfig(hidden=(4,)))


def test_a_case_counts_its_steps(monkeypatch):
    case = bench.Case("probe/Credit", num_seeds=3, total_steps=17, config=TINY, hparams=(("gamma", 0.5),))
    monkeypatch.setattr(bench, "timed", lambda *arguments: bench.Timing(2.0, [0.25, 0.5, 9.0], 100))
    row = bench.measure(case, repeats=3)
    assert row["case"] == "ppo probe/Credit x3"
    assert (row["steps_per_seed"], row["compile_seconds"], row["program_bytes"]) == (16, 2.0, 100)
    assert (row["run_seconds"], row["steps_per_second"]) == (0.5, 3 * 16 / 0.5)
    assert row["share_of_env_alone"] == round(row["steps_per_second"] / row["env_alone_steps_per_second"], 4)
    _, hparams, num_steps = bench.build(case)
    assert (num_steps, float(hparams.horizon), float(hparams.gamma)) == (2, 16.0, 0.5)


def test_timing_is_of_the_compiled_function():
    timing = bench.timed(jnp.sort, (jnp.arange(1000.0),), 2)
    assert len(timing.runs) == 2
    assert timing.program_bytes >= 2 * 4 * 1000
    assert timing.seconds < timing.compile_seconds


@pytest.mark.parametrize("suite", ["cpu", "gpu", "smoke"])
def test_every_case_can_be_built(suite):
    for case in bench.cases(suite):
        if case.env.startswith("gymnax/"):
            agent, _, num_steps = bench.build(case)
            assert num_steps * agent.env_steps <= case.total_steps < (num_steps + 1) * agent.env_steps, case.name


def test_layouts_have_a_row_for_each_chunk(monkeypatch):
    monkeypatch.setattr(bench, "BREAKOUT", {**bench.CARTPOLE, "config": TINY})
    monkeypatch.setattr(bench, "CARTPOLE", {"env": "probe/Credit", "config": TINY})
    monkeypatch.setattr(bench, "timed", lambda *arguments: bench.Timing(2.0, [0.5], 100))
    rows = list(bench.measure_layouts("Credit", repeats=1, shrink=128))
    assert [row["chunk"] for row in rows if row["num_devices"] == 1] == [1, 2, 4, 8, 16, 32, 64]
    assert sum(row["chosen"] for row in rows) == 1
    assert all(row["steps_per_second"] == 64 * 128 / 0.5 for row in rows)


def test_resets_have_a_row_for_each_mode(monkeypatch):
    monkeypatch.setattr(bench, "RESET_ENVS", ("probe/Credit", "probe/Memory"))
    rows = list(bench.measure_resets("Credit", repeats=1, num_envs=4, num_steps=3))
    assert [row["case"].partition(" ")[2] for row in rows] == ["fresh", "pooled 4", "cached 64"]
    assert all(row["steps_per_seed"] == 12 and row["steps_per_second"] > 0 for row in rows)


def test_algorithms_have_a_row_for_one_member_and_for_many(monkeypatch):
    """In the first task that an algorithm takes; SAC has no discrete actions."""
    tiny = {
        "a2c": {"num_envs": 2, "num_steps": 2, "network": NetworkConfig(hidden=(4,))},
        "sac": {"num_rounds": 2, "batch_size": 4, "capacity": 16, "num_warmup_steps": 4},
    }
    make = jaxrl.make
    monkeypatch.setattr(bench, "ALGORITHMS", ["a2c", "sac"])
    monkeypatch.setattr(bench.jaxrl, "make", lambda name, env: make(name, env, **tiny[name]))
    rows = [*bench.measure_algorithms("a2c", 1, 1e-9), *bench.measure_algorithms("sac x1 ", 1, 1e-9)]
    names = ["a2c gymnax/CartPole-v1 x1", "a2c gymnax/CartPole-v1 x64", "sac gymnax/Pendulum-v1 x1"]
    assert [row["case"] for row in rows] == names
    assert [row["steps_per_seed"] for row in rows] == [4, 4, 2]
    assert rows[0]["state_bytes_per_member"] == rows[1]["state_bytes_per_member"]


def test_discovery_has_a_row_for_each_size(monkeypatch):
    monkeypatch.setattr(bench, "timed", lambda *arguments: bench.Timing(2.0, [0.5], 100))
    config = lpg.Config(num_envs=2, num_steps=3, tabular=True, optimizer="sgd")
    rows = list(bench.measure_discovery("", 1, 4, num_generations=2, num_updates=5, config=config, widths=(4, 3)))
    assert [row["case"] for row in rows] == ["lpg es grids/Small gru 4", "lpg es grids/Small gru 3"]
    assert all((row["steps_per_generation"], row["steps_per_second"]) == (120, 480) for row in rows)


@pytest.mark.suites
@pytest.mark.skipif(not installed("navix"), reason="navix is not installed")
def test_resets_of_mazes():
    mazes = [name for name in bench.RESET_ENVS if name.startswith("navix/")]
    assert set(mazes) <= set(list_envs("navix"))
    # navix broadcasts silently.
    with jax.numpy_rank_promotion("allow"):
        rows = list(bench.measure_resets(mazes[0], repeats=1, num_envs=4, num_steps=3))
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
