import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import struct

from jaxrl import checkpoint, fit, programs, runs, sinks
from jaxrl.checkpoint import StorageError
from jaxrl.envs import make_env
from jaxrl.evaluation import time_limit
from jaxrl.meta.population import population
from jaxrl.training import train
from jaxrl.types import Algorithm

# Forked from a process that has imported everything already, so that a run to be killed starts at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["toy"])
MEMBERS = [None, 3]


def snapshot(path, members=None):
    """Everything of a run but times: digests of the final state, all bytes of all metrics, results of the seeds."""
    template = jax.eval_shape(
        lambda: toy.algorithm_of(members).init(jax.random.key(0), toy.noisy_descent().hyperparams())
    )
    last = checkpoint.iterations(path / "checkpoints")[-1]
    state, info = checkpoint.load(path / "checkpoints", last, template)
    files = [*(path / "metrics").iterdir(), *(path / "evaluations").iterdir(), path / "log.jsonl"]
    results = json.loads((path / "results.json").read_text())
    return {
        "iteration": last,
        "state": checkpoint.digests(state),
        "files": {str(file.relative_to(path)): file.read_bytes() for file in files},
        "seeds": results["seeds"],
        "best": (results["best_return"], checkpoint.best_iteration(path / "checkpoints")),
        "returns": info["returns"],
    }


@pytest.fixture(scope="module")
def whole_of(tmp_path_factory):
    """Gives a folder with a run that nothing interrupts, in a process of its own, its members and its snapshot."""

    @functools.cache
    def of(members):
        root = tmp_path_factory.mktemp("whole")
        assert start(root / "run", members).wait() == 0
        return root, members, snapshot(root / "run", members)

    return of


@pytest.fixture(params=MEMBERS, ids=["one", "population"])
def whole(request, whole_of):
    return whole_of(request.param)


@pytest.fixture
def whole_population(whole_of):
    return whole_of(3)


class Child:
    def __init__(self, path, members, die_at=None, pause=0.0):
        self.process = PROCESSES.Process(target=toy.process, args=(str(path), members, die_at, pause))
        self.process.start()

    def wait(self):
        self.process.join(60)
        return self.process.exitcode


def start(path, members, **settings):
    return Child(path, members, **settings)


def messages(path):
    file = Path(f"{path}.messages")
    return file.read_text() if file.exists() else ""


def test_the_whole_run_is_all_there(whole):
    root, members, expected = whole
    assert expected["iteration"] == toy.TOTAL
    run = runs.Run.open(root / "run")
    assert dict(run.metrics().sizes) == {"step": toy.TOTAL, "seed": members or 1}
    assert run.evaluations()["step"].values.tolist() == [72, 120, 160]
    assert len((root / "run" / "log.jsonl").read_text().splitlines()) == 7 * (members or 1)
    assert messages(root / "run") == ""


def until_done(path, members, deaths):
    """Starts the run again and again, each time with one more way to die; gives the exit codes."""
    codes = []
    for deadline in deaths:
        codes.append(start(path, members, die_at=deadline).wait())
        if codes[-1] == 0:
            return codes
    return [*codes, start(path, members).wait()]


def test_killed_inside_writes_and_resumed_is_the_same_run(whole):
    root, members, expected = whole
    path = root / "killed"
    draw = random.Random(5)
    codes = until_done(path, members, [draw.randrange(30, 90) for _ in range(4)])
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 3
    assert snapshot(path, members) == expected


@pytest.mark.slow
def test_killed_at_storage_calls_all_over_the_run_and_resumed_is_the_same_run(whole):
    root, members, expected = whole
    for deadline in range(1, 1000, 41):
        path = root / f"killed-{deadline}"
        codes = until_done(path, members, [deadline])
        assert snapshot(path, members) == expected, deadline
        if codes == [0]:
            return
    pytest.fail("the run never outlived its deadline")


def test_killed_from_outside_and_resumed_is_the_same_run(whole):
    root, members, expected = whole
    path = root / "killed-outside"
    draw = random.Random(7)
    kills = 0
    for attempt in range(3):
        child = start(path, members, pause=0.05)
        limit = time.monotonic() + 30
        if attempt % 2:
            wait_for(path / "checkpoints", limit)
            time.sleep(draw.uniform(0.0, 0.3))
        else:
            # Inside of a write: as soon as there is a temporary folder.
            while time.monotonic() < limit and child.process.is_alive() and not temporary(path / "checkpoints"):
                pass
        child.process.kill()
        kills += child.wait() == -signal.SIGKILL
    assert start(path, members).wait() == 0
    assert kills >= 2
    assert snapshot(path, members) == expected


def wait_for(path, limit):
    while time.monotonic() < limit and not path.exists():
        time.sleep(0.001)


def temporary(folder):
    with contextlib.suppress(OSError):
        return any(".tmp-" in name for name in os.listdir(folder))
    return False


def test_sigterm_saves_and_exits_well(whole_population):
    root, members, expected = whole_population
    path = root / "terminated"
    child = start(path, members, pause=0.2)
    wait_for(path / "metrics", time.monotonic() + 30)
    child.process.terminate()
    assert child.wait() == 0
    results = json.loads((path / "results.json").read_text())
    assert not results["finished"]
    assert 0 < results["iteration"] < toy.TOTAL
    assert checkpoint.iterations(path / "checkpoints")[-1] == results["iteration"]
    assert "SIGTERM" in messages(path)
    assert start(path, members).wait() == 0
    assert snapshot(path, members) == expected


def test_a_damaged_checkpoint_is_told_and_the_one_before_used(whole_population):
    root, members, expected = whole_population
    path = root / "damaged"
    start(path, members, die_at=250).wait()
    checkpoints = path / "checkpoints"
    before, newest = checkpoint.iterations(checkpoints)[-2:]
    file = max(
        (file for file in (checkpoints / str(newest)).rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    file.write_bytes(file.read_bytes()[:-7])
    assert start(path, members).wait() == 0
    assert f"{newest} is damaged: {file.relative_to(checkpoints / str(newest))}" in messages(path)
    assert "one before is used" in messages(path)
    assert before < newest
    assert any(entry.name.startswith(f"{newest}.damaged") for entry in checkpoints.iterdir())
    assert snapshot(path, members) == expected


def test_a_run_without_a_whole_checkpoint_begins_again(whole_population):
    root, members, expected = whole_population
    path = root / "early"
    assert start(path, members, die_at=12).wait() == -signal.SIGKILL
    assert checkpoint.iterations(path / "checkpoints") == []
    assert start(path, members).wait() == 0
    assert "starts from the beginning" in messages(path)
    assert snapshot(path, members) == expected


def quiet(line):
    # The source may be edited while the tests run.
    assert "source_digest" in line or "git_revision" in line, f"unexpected message: {line}"


@pytest.mark.parametrize("members", MEMBERS)
def test_a_larger_total_continues_the_same_numbers(tmp_path, members):
    toy.train(tmp_path / "long", members, total=20, on_message=quiet)
    toy.train(tmp_path / "short", members, total=10, on_message=quiet)
    result = toy.train(tmp_path / "short", members, total=20, resume=True, on_message=quiet)
    assert result.iteration == 20
    long, short = snapshot(tmp_path / "long", members), snapshot(tmp_path / "short", members)
    assert short["state"] == long["state"]
    metrics = [runs.Run.open(tmp_path / name).metrics() for name in ("long", "short")]
    assert metrics[0].identical(metrics[1])
    with pytest.raises(ValueError, match="done 20 iterations already"):
        toy.train(tmp_path / "short", members, total=10, resume=True)


@pytest.mark.parametrize("members", MEMBERS)
def test_fit_equals_train(members):
    algorithm = toy.algorithm_of(members)
    hparams = algorithm.hyperparams()
    result = fit.fit(algorithm, hparams, seed=5, total_iterations=7, segment=3, num_seeds=members)
    key_train, _ = jax.random.split(jax.random.key(5))
    state, _ = jax.jit(train(algorithm, 7))(key_train, hparams)
    for got, expected in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_seed_matters_and_members_differ(tmp_path):
    states = [toy.train(tmp_path / name, 3, seed=seed).state for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    digests = [checkpoint.digests(state) for state in states]
    assert digests[0] == digests[1]
    assert digests[0]["state.params.w"] != digests[2]["state.params.w"]
    assert len(np.unique(np.asarray(states[0].params["w"][:, 0]))) == 3


def test_resuming_with_other_hyperparameters_or_versions_is_told(tmp_path):
    run = toy.train(tmp_path / "run", total=6) and runs.Run.open(tmp_path / "run")
    run.change(environment={**run.record["environment"], "device": "other"})
    told = []
    hparams = toy.noisy_descent().hyperparams(learning_rate=0.2)
    toy.train(tmp_path / "run", total=9, resume=True, hparams=hparams, on_message=told.append)
    assert any("device: other then, cpu now" in line for line in told)
    assert "Hyperparameters changed since the checkpoint: learning_rate." in told


def test_a_diverged_member_is_reported_and_leaves_the_others_untouched(tmp_path):
    algorithm = population(toy.noisy_descent(), 3, mapped=("learning_rate",))
    told, runs_of = [], {}
    for name, rates in {"good": [0.1, 0.1, 0.2], "bad": [0.1, 1e15, 0.2]}.items():
        run = runs.Run.create(tmp_path / name, {})
        hparams = algorithm.hyperparams(learning_rate=jnp.array(rates))
        runs_of[name] = fit.fit(
            algorithm, hparams, run=run, seed=0, total_iterations=9, segment=3, num_seeds=3, on_message=told.append
        )
    metrics = runs.Run.open(tmp_path / "bad").metrics()
    first = int(np.argmax(~np.isfinite(metrics["loss/value"].sel(seed=1).values)))
    (line,) = told
    assert line == f"Seed 1 diverged: not finite after {8 * (first + 1)} steps. The other seeds are not affected."
    results = json.loads((tmp_path / "bad" / "results.json").read_text())
    assert [row["diverged"] for row in results["seeds"]] == [None, 8 * (first + 1), None]
    assert not np.isfinite(runs_of["bad"].state.params["w"][1]).any()
    for member in (0, 2):
        for bad, good in zip(*(jax.tree.leaves(runs_of[name].state.params) for name in ("bad", "good")), strict=True):
            np.testing.assert_array_equal(bad[member], good[member])
        other = runs.Run.open(tmp_path / "good").metrics()
        assert metrics.sel(seed=member).identical(other.sel(seed=member))


def test_divergence_of_parameters_alone_is_seen_and_remembered(tmp_path):
    def step(state, hparams):
        state, metrics = toy.noisy_descent().step(state, hparams)
        bad = jnp.where(state.num_steps == 5, jnp.nan, state.params["b"])
        return state.replace(params={**state.params, "b": bad}), {
            "value/explained_variance": -jnp.inf * metrics["loss/value"]
        }

    algorithm = toy.noisy_descent()._replace(step=step)
    run = runs.Run.create(tmp_path, runs.describe())
    told = []
    settings = {"run": run, "seed": 0, "segment": 2, "on_message": told.append}
    fit.fit(algorithm, algorithm.hyperparams(), total_iterations=6, **settings)
    result = fit.fit(algorithm, algorithm.hyperparams(), total_iterations=8, resume=True, **settings)
    assert len(told) == 1
    assert result.results["seeds"][0]["diverged"] == 6 * 8


def test_a_full_disk_ends_in_a_clear_error_and_can_be_resumed(tmp_path, monkeypatch):
    save = checkpoint.ocp.PyTreeCheckpointer.save
    calls = []

    def full(self, *arguments, **keywords):
        calls.append(None)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return save(self, *arguments, **keywords)

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "save", full)
    with pytest.raises(StorageError, match=r"Could not write checkpoint .*No space left.*kept: \[6, 9\]"):
        toy.train(tmp_path / "run")
    assert checkpoint.iterations(tmp_path / "run" / "checkpoints") == [6, 9]
    toy.train(tmp_path / "run", resume=True, on_message=quiet)
    monkeypatch.undo()
    toy.train(tmp_path / "whole")
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")


def test_progress_and_best(tmp_path):
    seen = []
    result = toy.train(tmp_path / "run", 3, on_segment=seen.append)
    assert [progress.iteration for progress in seen] == [3, 6, 9, 12, 15, 18, 20]
    assert [progress.evaluation is not None for progress in seen] == [False, False, True, False, True, False, True]
    assert seen[-1].env_steps == 160
    assert seen[-1].eta_seconds == 0
    assert seen[0].interval[0] < seen[0].mean_return < seen[0].interval[1]
    assert seen[0].compile_seconds > 0
    metrics = runs.Run.open(tmp_path / "run").metrics().isel(step=slice(0, 3)).sum("step")
    np.testing.assert_allclose(seen[0].returns, metrics["episode/return_sum"] / metrics["episode/count"], rtol=1e-6)
    means = {progress.iteration: progress.evaluation.mean() for progress in seen if progress.evaluation is not None}
    assert checkpoint.best_iteration(tmp_path / "run" / "checkpoints") == max(means, key=means.get)
    assert result.results["best_return"] == pytest.approx(max(means.values()))


def test_one_compilation_serves_segments_of_all_lengths(tmp_path):
    before = programs._advance._cache_size()
    traces = 0
    inner = toy.noisy_descent().step

    def step(state, hparams):
        nonlocal traces
        traces += 1
        return inner(state, hparams)

    algorithm = toy.noisy_descent()._replace(step=step)
    fit.fit(algorithm, algorithm.hyperparams(), seed=0, total_iterations=10, segment=4)
    assert traces == 1
    assert programs._advance._cache_size() == before


def test_sinks_get_one_line_a_segment_and_seed_and_are_closed_after_an_error(tmp_path):
    log = []
    sink = sinks.Sink(
        lambda step, num_seeds: log.append(("start", step, num_seeds)),
        lambda step, seed, scalars: log.append((step, seed, scalars)),
        lambda: log.append("closed"),
    )

    def fail(progress):
        raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        toy.train(tmp_path / "run", 3, extra_sinks=[sink], on_segment=fail)
    assert log[0] == ("start", 0.0, 3)
    assert [(step, seed) for step, seed, _ in log[1:4]] == [(24.0, 0), (24.0, 1), (24.0, 2)]
    assert log[-1] == "closed"
    metrics = runs.Run.open(tmp_path / "run").metrics().sel(seed=1)
    assert log[2][2]["episode/count"] == metrics["episode/count"].sum()
    assert log[2][2]["loss/value"] == pytest.approx(float(metrics["loss/value"].mean()))


def test_arguments_are_checked(tmp_path):
    algorithm = toy.noisy_descent()
    settings = {"seed": 0, "total_iterations": 4, "segment": 2}
    with pytest.raises(ValueError, match="segment = 0"):
        fit.fit(algorithm, algorithm.hyperparams(), **settings | {"segment": 0})
    with pytest.raises(ValueError, match="run = None"):
        fit.fit(algorithm, algorithm.hyperparams(), **settings, resume=True)
    with pytest.raises(ValueError, match=r"there are 2 members"):
        fit.fit(toy.algorithm_of(3), algorithm.hyperparams(), **settings, num_seeds=2)
    toy.train(tmp_path / "run", total=6)
    run = runs.Run.open(tmp_path / "run")
    with pytest.raises(ValueError, match="resume it"):
        fit.fit(algorithm, algorithm.hyperparams(), run=run, **settings)


def test_results_hold_the_last_return_that_is_known(tmp_path):
    algorithm = toy.algorithm_of(3)
    run = runs.Run.create(tmp_path, {})
    # With one iteration a segment, every second segment, the last included, ends no episode.
    settings = {"run": run, "seed": 0, "num_seeds": 3, "checkpoint_seconds": float("inf")}
    result = fit.fit(algorithm, algorithm.hyperparams(), total_iterations=6, segment=1, **settings)
    table = result.results["seeds"]
    expected = run.metrics()["episode/return_sum"].isel(step=4).values
    assert [row["training_return"] for row in table] == pytest.approx(expected.tolist())
    assert [row["return"] for row in table] == [row["training_return"] for row in table]
    assert [row["evaluation_return"] for row in table] == [None] * 3
    assert checkpoint.best_iteration(run.checkpoints) is None
    evaluated = toy.train(tmp_path / "evaluated", 3).results["seeds"]
    last = runs.Run.open(tmp_path / "evaluated").evaluations()["returns"].isel(step=-1).mean("episode").values
    assert [row["return"] for row in evaluated] == pytest.approx(last.tolist())


def test_play_episodes_equals_a_loop_over_members_and_their_environments():
    env = make_env("gymnax/CartPole-v1")

    @struct.dataclass
    class Hyperparams:
        env: Any

    def act(state, memory, obs, key):
        return (obs @ state > 0).astype(jnp.int32), memory

    member = Algorithm(
        init=lambda key, hparams: jax.random.normal(key, (4,)),
        step=lambda state, hparams: (state, {}),
        act=act,
        hyperparams=lambda: Hyperparams(env=env.default_params()),
        env=env,
    )
    gravity = jnp.array([9.8, 2.0])
    hparams = Hyperparams(env=env.default_params().replace(gravity=gravity))
    states, key = jax.random.normal(jax.random.key(1), (2, 4)), jax.random.key(2)
    together = jax.jit(fit.play_episodes(member, 3, num_seeds=2))(key, states, hparams)
    alone = jax.jit(fit.play_episodes(member, 3))
    for index, (state, key_member) in enumerate(zip(states, jax.random.split(key, 2), strict=True)):
        expected = alone(key_member, state, Hyperparams(env=env.default_params().replace(gravity=gravity[index])))
        np.testing.assert_array_equal(together.lengths[index], expected.lengths)
    assert (together.lengths[0] != together.lengths[1]).any()


def test_the_time_limit_is_the_greatest_that_there_is():
    env = make_env("gymnax/CartPole-v1")
    params = env.default_params()
    assert time_limit(env, params) == env.max_episode_steps == 500
    assert time_limit(env, params.replace(max_steps_in_episode=jnp.asarray([7, 900]))) == 900
    assert time_limit(env, params.replace(max_steps_in_episode=jnp.int32(7))) == 500
    assert time_limit(env._replace(max_episode_steps=None), {"gravity": 9.8}) == time_limit(None, ()) == 10_000
