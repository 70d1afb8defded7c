"""A sweep equals the loop over its members, survives a kill, and comes back as labelled arrays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from sweeps import toys

import jaxrl
from jaxrl import fit, sweeps
from jaxrl.algorithms import ppo
from jaxrl.memory import OutOfMemoryError
from jaxrl.meta.layout import Layout
from jaxrl.sweeps import execution, results
from jaxrl.sweeps.plan import Batch, make_plan

TESTS = Path(__file__).parent.parent


def sweep(over=toys.SPACE, **arguments):
    defaults = {**toys.ARGUMENTS, "layout": Layout(1, None)}
    return sweeps.sweep(toys.descent, "probe/Policy", over, **(defaults | arguments))


@pytest.fixture(scope="module")
def whole():
    return sweep()


def trained(row, seed, num_weights=3, total_steps=240):
    """One member by `jaxrl.train`: losses by iteration."""
    agent = toys.descent(config=toys.Config(num_weights=num_weights))
    hparams = agent.hyperparams(
        learning_rate=row["learning_rate"], objective=toys.Objective(jnp.float32(row["objective.target"]))
    )
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
    _, metrics = jaxrl.train(agent, total_steps // agent.env_steps)(key, hparams)
    return np.asarray(metrics["loss/value"])


def test_every_member_is_what_it_is_alone(whole):
    """Equal to 1e-5 relative: sums of a vmapped program may be in another order."""
    for rate in toys.SPACE["learning_rate"]:
        for num_weights in toys.SPACE["config.num_weights"]:
            for target in toys.SPACE["objective.target"]:
                for seed in range(2):
                    row = {"learning_rate": rate, "objective.target": target}
                    losses = trained(row, seed, num_weights)
                    want = [part.mean() for part in np.split(losses, 5)] if len(losses) % 5 == 0 else None
                    got = whole["loss/value"].sel(row | {"config.num_weights": num_weights, "seed": seed}).squeeze()
                    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_members_of_ppo_with_swept_environment_and_objective():
    """The same for a real algorithm, over leaves of the optimizer, the environment and the objective: 1e-3 absolute,
    since 3 iterations of 16 updates amplify the order of sums."""
    config = ppo.Config(num_envs=2, num_steps=16)
    over = sweeps.space({("env.gravity", "objective.clip"): [(5.0, 0.1), (15.0, 0.3)], "learning_rate": [1e-3, 1e-2]})
    fixed = {"config.num_envs": 2, "config.num_steps": 16}
    data = sweeps.sweep(
        "ppo", "gymnax/CartPole-v1", over, 2, total_steps=96, fixed=fixed, num_points=3, eval_episodes=2
    )
    agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"), config=config)
    default = agent.hyperparams()
    train = jax.jit(jaxrl.train(agent, 3))
    for index, (gravity, clip) in enumerate([(5.0, 0.1), (15.0, 0.3)]):
        for rate in (1e-3, 1e-2):
            hparams = agent.hyperparams(
                learning_rate=rate,
                horizon=96,
                env=default.env.replace(gravity=jnp.float32(gravity)),
                objective=default.objective.replace(clip=jnp.float32(clip)),
            )
            key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 1))
            _, metrics = train(key, hparams)
            got = data.isel({"env.gravity+objective.clip": index, "seed": 1}).sel(learning_rate=rate).squeeze()
            for name in ("loss/policy", "loss/value", "episode/return_sum", "gradient/norm"):
                np.testing.assert_allclose(got[name], metrics[name], rtol=1e-3, atol=1e-3)
    assert data["score"].shape == (1, 1, 2, 2, 2)
    assert np.isfinite(data["score"]).all()
    assert data["env.gravity"].values.tolist() == [5.0, 15.0]


def test_labels(whole):
    assert whole["loss/value"].dims == (
        *("algorithm", "env", "learning_rate", "config.num_weights", "objective.target"),
        *("seed", "step"),
    )
    assert whole["learning_rate"].values.tolist() == [0.1, 0.3, 0.5]
    assert whole["step"].values.tolist() == [48.0, 96.0, 144.0, 192.0, 240.0]
    assert whole["diverged_at"].isnull().all()
    mean = whole["return"].sel(learning_rate=0.3).mean(["seed", "config.num_weights"])
    assert mean.dims == ("algorithm", "env", "objective.target", "step")
    np.testing.assert_allclose(whole["return"], -whole["loss/value"], rtol=1e-5)


def test_samples_conditions_and_what_is_left_out():
    over = sweeps.space(
        {"learning_rate": sweeps.log(1e-2, 1.0), "config.loud": [False, True], "objective.target": [0.0, 1.0]},
        num_samples=4,
        where="not (config.loud and objective.target == 0)",
    )
    data = sweep(over)
    assert data["learning_rate"].dims == ("sample",)
    assert data["config.loud"].values.tolist() == ["false", "true"]
    left_out = data["return"].sel({"config.loud": "true", "objective.target": 0.0})
    assert left_out.isnull().all()
    assert data["return"].sel({"config.loud": "true", "objective.target": 1.0}).notnull().all()


def test_a_diverged_member_is_marked_and_leaves_the_others_alone():
    lines = []
    data = sweep({"learning_rate": [0.1, 1e5, 0.3]}, total_steps=480, on_message=lines.append)
    at = data["diverged_at"].squeeze()
    assert np.isfinite(at.sel(learning_rate=1e5)).all()
    assert at.sel(learning_rate=[0.1, 0.3]).isnull().all()
    assert data["return"].sel(learning_rate=[0.1, 0.3]).notnull().all()
    assert any("learning_rate = 100000.0), seed 0 diverged" in line for line in lines)


def test_of_padding_nothing_is_said():
    lines, over, layout = [], {"learning_rate": [0.1, 0.3, 1e5]}, Layout(1, 2)
    made = make_plan(toys.descent, "probe/Policy", sweeps.space(over), num_seeds=1, total_steps=480, layout=layout)
    assert (made.groups[0].width, made.batches[-1]) == (2, Batch(0, 2, 3))
    sweep(over, num_seeds=1, total_steps=480, layout=layout, max_batch=None, on_message=lines.append)
    (line,) = lines
    assert "(learning_rate = 100000.0), seed 0 diverged: not finite after" in line


def contents(folder):
    """Every file of the results but for times, versions and the machine."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.suffix in (".nc", ".csv") and path.name != "results.nc":
            found[str(path.relative_to(folder))] = path.read_bytes()
    found["results"] = results.read_results(folder).drop_attrs().to_dict()
    return found


def process(folder, kill_after):
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps.toys", str(folder), str(kill_after)],
        cwd=TESTS,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    running = process(folder, 0)
    _, errors = running.communicate(timeout=250)
    assert running.returncode == 0, errors[-2000:]
    return contents(folder)


@pytest.mark.parametrize("kills", [(7, 40), pytest.param((23, 61, 90), marks=pytest.mark.slow)])
def test_killed_and_continued_is_as_if_never_killed(uninterrupted, tmp_path, kills):
    """SIGKILL before the k-th write or between two segments; then on, until it is whole."""
    folder = tmp_path / "sweep"
    for kill_after in kills:
        running = process(folder, kill_after)
        running.communicate(timeout=250)
        assert running.returncode == -signal.SIGKILL
        assert not (folder / "results.nc").exists()
    running = process(folder, 0)
    _, errors = running.communicate(timeout=250)
    assert running.returncode == 0, errors[-2000:]
    got = contents(folder)
    assert sorted(got) == sorted(uninterrupted)
    for name, content in uninterrupted.items():
        assert str(got[name]) == str(content), name


def test_what_is_whole_is_not_computed_again(tmp_path, monkeypatch, whole):
    folder, calls = tmp_path / "sweep", []
    first = sweep(folder=folder)
    xarray.testing.assert_equal(first.drop_attrs(), whole.drop_attrs())
    monkeypatch.setattr(fit, "fit", lambda *a, **k: calls.append(a))
    again = sweep(folder=folder)
    assert not calls
    xarray.testing.assert_identical(again, first)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, monkeypatch, whole):
    original, widths, lines = fit.fit, [], []

    def small_device(algorithm, hparams, **options):
        widths.append(options["num_seeds"])
        if options["num_seeds"] > 1:
            raise OutOfMemoryError("too large")
        return original(algorithm, hparams, **options)

    monkeypatch.setattr(fit, "fit", small_device)
    data = sweep(folder=tmp_path / "sweep", on_message=lines.append)
    assert widths[:3] == [4, 2, 1]
    assert any("did not fit" in line for line in lines)
    xarray.testing.assert_allclose(data.drop_attrs(), whole.drop_attrs(), rtol=1e-5)
    monkeypatch.setattr(fit, "fit", lambda *a, **k: pytest.fail("nothing is left to do"))
    xarray.testing.assert_identical(sweep(folder=tmp_path / "sweep"), data)


def test_one_member_that_does_not_fit_is_an_error(monkeypatch):
    def no_device(algorithm, hparams, **options):
        raise OutOfMemoryError("too large")

    monkeypatch.setattr(fit, "fit", no_device)
    with pytest.raises(OutOfMemoryError, match="too large"):
        sweep()


def test_layout_and_batches_do_not_change_the_results(whole):
    for arguments in ({"max_batch": 24}, {"max_batch": 3}, {"layout": Layout(1, 2)}):
        xarray.testing.assert_allclose(sweep(**arguments).drop_attrs(), whole.drop_attrs(), rtol=1e-5)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    sweep({"learning_rate": [0.1]}, folder=tmp_path / "sweep")
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds another sweep \(space: .*name another folder"):
        sweep({"learning_rate": [0.2]}, folder=tmp_path / "sweep")
    with pytest.raises(ValueError, match=r"holds another sweep \(num_seeds: 2 there, 3 here\)"):
        sweep({"learning_rate": [0.1]}, num_seeds=3, folder=tmp_path / "sweep")
    assert before == {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else than a sweep"):
        sweep({"learning_rate": [0.1]}, folder=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_shares_cover_everything_once(tmp_path):
    plan = make_plan(
        toys.descent,
        "probe/Policy",
        sweeps.space(toys.SPACE),
        num_seeds=2,
        total_steps=24,
        max_batch=4,
        layout=Layout(1),
    )
    made = execution.open_sweep(tmp_path / "sweep", plan, 0)
    shares = [made.batches((index, 4)) for index in range(4)]
    assert sorted(batch for share in shares for batch in share) == sorted(made.batches())
    assert all(shares)
    with pytest.raises(ValueError, match="0 <= i < n; got 4/4"):
        execution.run_sweep(made, shard=(4, 4))


def test_the_command_sweeps_in_shares_at_the_same_time_and_resumes(tmp_path):
    """Three processes on one folder, one of them killed; then `jaxrl resume` finishes what is left."""
    fixed = ["config.num_envs=2", "config.num_steps=8"]
    arguments = [
        *("sweep", "ppo", "probe/Policy", *fixed, "--over", "learning_rate=1e-3,1e-2,3e-2", "gamma=0.9,0.99"),
        *("--num-seeds", "1", "--total-steps", "160", "--eval-episodes", "1", "--points", "5", "--devices", "1"),
    ]

    def start(*more):
        command = [sys.executable, "-m", "jaxrl", *arguments, *more]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    folder = tmp_path / "shared"
    running = [start("--out", str(folder), "--shard", f"{index}/3") for index in range(3)]
    deadline = time.monotonic() + 200
    while not (folder / "sweep.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running[1].kill()
    for index, each in enumerate(running):
        _, errors = each.communicate(timeout=250)
        assert each.returncode == (0 if index != 1 else -signal.SIGKILL), errors
    assert len(json.loads((folder / "sweep.json").read_text())["groups"]) == 1
    done = subprocess.run(
        [sys.executable, "-m", "jaxrl", "resume", str(folder)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    alone = start("--out", str(tmp_path / "alone"), "--max-batch", "2")
    _, errors = alone.communicate(timeout=250)
    assert alone.returncode == 0, errors
    got, want = results.read_results(folder), results.read_results(tmp_path / "alone")
    xarray.testing.assert_identical(got.drop_attrs(), want.drop_attrs())
