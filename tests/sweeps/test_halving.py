"""Successive halving finds what the whole sweep finds, with members that do what they do there."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from sweeps import toys

from jaxrl import runs, sweeps
from jaxrl.meta.layout import Layout
from jaxrl.ops import trees
from jaxrl.sweeps import halving
from jaxrl.sweeps.halving import Rung, make_rungs, successive_halving
from jaxrl.sweeps.plan import make_plan
from jaxrl.types import memoize

# Four rates and two targets in each of two configs, of 4 * 2 and 4 * 3 steps an iteration.
SPACE = {"learning_rate": [0.02, 0.1, 0.4, 1.2], "objective.target": [0.0, 2.0], "config.num_weights": [2, 3]}
ARGUMENTS = {"num_seeds": 2, "total_steps": 240, "min_steps": 60, "eta": 2, "layout": Layout(1, None)}


def halved(over=SPACE, **changes):
    return successive_halving(toys.descent, "probe/Policy", over, **(ARGUMENTS | changes))


@pytest.fixture(scope="module")
def data():
    return halved()


@pytest.fixture(scope="module")
def whole():
    """The whole sweep with a point each iteration, by config."""
    names = [{**SPACE, "config.num_weights": [num]} for num in (2, 3)]
    return [
        sweeps.sweep(
            toys.descent, "probe/Policy", over, 2, total_steps=240, eval_episodes=0, num_points=240 // steps
        ).squeeze(("algorithm", "env", "config.num_weights"))
        for over, steps in zip(names, (8, 12), strict=True)
    ]


def expected_score(whole, setting, first, last):
    """Mean return in the last quarter of the iterations from `first` to `last` environment steps, by seed."""
    steps = 4 * int(setting["config.num_weights"])
    start, stop = -(-first // steps), -(-last // steps)
    point = {name: float(setting[name]) for name in ("learning_rate", "objective.target")}
    curve = whole[int(setting["config.num_weights"]) - 2]["return"].sel(point)
    return curve.isel(step=slice(stop - -(-(stop - start) // 4), stop)).mean("step").values


def test_every_member_does_what_it_does_in_the_whole_sweep(data, whole):
    """Equal to 1e-5 relative, since sums of a narrower program may be in another order."""
    edges = [0, 60, 120, 240]
    assert data["steps"].values.tolist() == edges[1:]
    for rung in range(3):
        for index in range(16):
            got = data["score"].isel(rung=rung, setting=index)
            if rung == 0 or bool(data["survived"].isel(rung=rung - 1, setting=index)):
                want = expected_score(whole, data.isel(setting=index), *edges[rung : rung + 2])
                np.testing.assert_allclose(got, want, rtol=1e-5)
            else:
                assert np.isnan(got).all()


def test_each_rung_keeps_the_best_of_all_configs(data):
    alive = np.arange(16)
    for rung, number in enumerate([8, 4, 1]):
        score = data["score"].isel(rung=rung).mean("seed").values[alive]
        alive = np.sort(alive[np.argsort(-score, kind="stable")[:number]])
        np.testing.assert_array_equal(np.flatnonzero(data["survived"].isel(rung=rung)), alive)
    assert data.attrs["best_setting"] == alive[0]
    # Settings of both configs are in the first rung's half: they compete.
    assert set(data["config.num_weights"].values[data["survived"].isel(rung=0).values]) == {2, 3}
    best = data.isel(setting=data.attrs["best_setting"])
    assert json.loads(data.attrs["best"]) == {name: best[name].item() for name in SPACE}


def test_steps_are_counted(data):
    spent = {60: 0, 120: 0, 240: 0}
    lost = [data["survived"].isel(rung=rung).values for rung in (0, 1)]
    for index, weights in enumerate(data["config.num_weights"].values):
        steps = 60 if not lost[0][index] else 120 if not lost[1][index] else 240
        # Rounded up to whole iterations of 8 or 12 steps.
        assert data["env_steps"].values[index] == -(-steps // (4 * weights)) * 4 * weights
        spent[steps] += 1
    assert spent == {60: 8, 120: 4, 240: 4}
    assert data.attrs["env_steps"] == 2 * data["env_steps"].sum()
    assert data.attrs["full_env_steps"] == 16 * 2 * 240
    assert data.attrs["env_steps"] / data.attrs["full_env_steps"] < 0.52


def test_lanes_are_freed(monkeypatch):
    """Programs have the width of what is left, and the widths that a layout in chunks needs are not much above it."""
    widths = []
    begun = halving._begun

    def watch(plan, training, batch):
        widths.append((training.group.config["num_weights"], training.group.width, batch.stop - batch.start))
        return begun(plan, training, batch)

    monkeypatch.setattr(halving, "_begun", watch)
    data = halved(layout=Layout(1, 4))
    survivors = [16] + [int(data["survived"].isel(rung=rung).sum()) for rung in (0, 1)]
    for rung, number in enumerate(survivors):
        here = widths[:2] if rung == 0 else widths[2:4] if rung == 1 else widths[4:]
        assert sum(size for _, _, size in here) == 2 * number
        assert sum(width for _, width, _ in here) - 2 * number <= 2 * len(here)


@pytest.mark.parametrize("changes", [{"max_batch": 5}, {"layout": Layout(1, 3)}])
def test_batches_and_chunks_change_nothing(data, changes):
    other = halved(**changes)
    np.testing.assert_array_equal(other["survived"], data["survived"])
    np.testing.assert_allclose(other["score"], data["score"], rtol=1e-5)
    assert other.attrs == data.attrs


def test_members_that_diverge_are_left_behind():
    data = halved({"learning_rate": [1e5, 0.1, 0.2, 1e6]}, total_steps=480, min_steps=240)
    np.testing.assert_array_equal(data["diverged"].values.any(1), [True, False, False, True])
    np.testing.assert_array_equal(data["survived"].values[0], [False, True, True, False])
    with pytest.raises(ValueError, match=r"No setting has a finite score for all of its seeds after 240 steps"):
        halved({"learning_rate": [1e5, 1e6]}, total_steps=480, min_steps=240)


def test_a_setting_without_a_score_is_not_kept_for_want_of_others():
    """Half of four would be two, but only one is finite: no other takes a place."""
    data = halved({"learning_rate": [1e5, 0.1, 1e5 + 1, 1e6]}, total_steps=480, min_steps=240)
    np.testing.assert_array_equal(data["survived"].values, [[False, True, False, False]] * 2)


def test_the_score_falls_back_to_what_is_known():
    sums, counts = (
        np.array([[4.0, 2.0, 0.0], [0, 6, 0], [0, 0, 0], [0, 9, 0]]),
        np.array([[2, 1, 0], [0, 2, 0], [0, 0, 0], [0, 3, 0]]),
    )
    np.testing.assert_array_equal(halving._score(sums, counts), [2.0, 3.0, np.nan])


def test_progress_and_result_can_be_kept():
    seen = []
    data = halved({"learning_rate": [0.1, 0.2]}, on_progress=seen.append)
    assert seen[-1].env_steps == data.attrs["env_steps"] == seen[-1].total_env_steps
    assert [progress.rung for progress in seen] == sorted(progress.rung for progress in seen)
    assert seen[-1].rungs == (Rung(60, 2), Rung(240, 1))
    again = runs.from_netcdf(runs.to_netcdf(data))
    np.testing.assert_array_equal(again["score"], data["score"])
    assert again.attrs["best"] == data.attrs["best"]


@struct.dataclass
class PlayerHyperparams:
    learning_rate: jax.Array
    env: Any


@memoize
def player(env, config=toys.descent().config):  # noqa: B008 (what the planner reads)
    """The toy as a policy: its action is the mean of its weights."""
    inner = toys.descent(env, config)

    def hyperparams(**changes):
        default = PlayerHyperparams(jnp.float32(0.1), env.default_params())
        return trees.with_changes(default, changes, {"learning_rate": (0.0, 1e6)})

    def with_env(function):
        return lambda first, hparams: function(
            first,
            inner.hyperparams(objective=toys.Objective(jnp.float32(0.3))).replace(learning_rate=hparams.learning_rate),
        )

    def act(state, memory, obs, key):
        return jnp.clip(jnp.mean(state.params)[None], -1, 1), memory

    return inner._replace(
        init=with_env(inner.init), step=with_env(inner.step), act=act, hyperparams=hyperparams, env=env
    )


def test_the_evaluation_is_that_of_the_sweep():
    """For the members that trained to the end: the same states in the same episodes; each has a cue of its own."""
    over = {"learning_rate": [0.01, 0.1, 0.4]}
    arguments = {"total_steps": 72, "eval_episodes": 3, "layout": Layout(1, None)}
    data = successive_halving(player, "probe/ContinuousObservation", over, 2, min_steps=24, eta=2, **arguments)
    score = sweeps.sweep(player, "probe/ContinuousObservation", over, 2, num_points=1, **arguments)["score"].squeeze()
    trained = data["survived"].values[0]
    assert trained.sum() == 1
    assert len(np.unique(score)) == 6
    np.testing.assert_allclose(data["evaluation"].values[trained], score.values[trained], rtol=1e-5)
    assert np.isnan(data["evaluation"].values[~trained]).all()


# In a process of its own, since the number of devices is fixed when jax starts.
_DEVICES = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 4)
from sweeps import test_halving
from jaxrl.meta.layout import Layout
report = []
for layout in (Layout(1, None), Layout(4, 2)):
    data = test_halving.halved(layout=layout)
    report.append({"score": data["score"].values.tolist(), "survived": data["survived"].values.tolist()})
print("REPORT" + json.dumps(report))
"""


def test_four_devices_give_what_one_gives():
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, four = json.loads(done.stdout.rpartition("REPORT")[2])
    assert one["survived"] == four["survived"]
    np.testing.assert_allclose(np.asarray(four["score"]), np.asarray(one["score"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("num", "total", "least", "eta", "rungs"),
    [
        (27, 90, 10, 3, [(10, 27), (30, 9), (90, 3)]),
        (5, 90, 10, 3, [(10, 5), (90, 1)]),
        (16, 100, 30, 2, [(50, 16), (100, 8)]),
        (16, 100, 60, 2, [(100, 16)]),
        (1, 100, 10, 3, [(100, 1)]),
        (9, 243, 1, 3, [(1, 9), (3, 3), (243, 1)]),
        (8, 1000, 999, 4, [(1000, 8)]),
    ],
)
def test_rungs(num, total, least, eta, rungs):
    assert make_rungs(num, total, least, eta) == tuple(Rung(*rung) for rung in rungs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 1}, "eta must be at least 2; got eta = 1"),
        ({"min_steps": 0}, "min_steps must be at least one iteration, 12 steps; got min_steps = 0"),
        ({"min_steps": 241}, "at most total_steps; got min_steps = 241, total_steps = 240"),
        ({"min_steps": 11}, "min_steps must be at least one iteration, 12 steps; got min_steps = 11"),
        ({"over": {"rate": [0.1]}}, "No hyperparameter is called 'rate'"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        halved(**changes)


def test_several_environments_and_no_returns_are_refused():
    with pytest.raises(ValueError, match=r"cannot be ranked together; got \['probe/Credit', 'probe/Policy'\]"):
        successive_halving(toys.descent, ["probe/Policy", "probe/Credit"], SPACE, **ARGUMENTS)

    def silent(env, config=toys.descent().config):  # noqa: B008 (what the planner reads)
        agent = toys.descent(env, config)

        def step(state, hparams):
            state, metrics = agent.step(state, hparams)
            return state, {"loss/value": metrics["loss/value"]}

        return agent._replace(step=step)

    with pytest.raises(ValueError, match=r"ranked by returns; silent has only \['loss/value'\]"):
        successive_halving(silent, "probe/Policy", {"learning_rate": [0.1, 0.2]}, **ARGUMENTS)


@pytest.mark.parametrize("layout", [Layout(1, None), Layout(1, 1), Layout(1, 16), Layout(2, 3), Layout(4, None)])
@pytest.mark.parametrize("width", [7, 24, 1000])
def test_packed_groups_hold_their_members_in_parts_no_larger_than_before(layout, width):
    group = make_plan(
        toys.descent, "probe/Policy", sweeps.space({"learning_rate": jnp.linspace(0.1, 0.5, 9).tolist()}),
        num_seeds=3, total_steps=24,
    ).groups[0]  # fmt: skip
    object.__setattr__(group, "layout", layout)
    object.__setattr__(group, "width", width)
    packed = halving.packed(group)
    devices, chunk = packed.layout
    assert devices <= layout.num_devices
    assert layout.chunk is None or 1 <= chunk <= layout.chunk
    assert packed.width % (devices * (chunk or 1)) == 0
    assert sum(batch.stop - batch.start for batch in packed.batches) == 27
    # What is filled up is less than a member a chunk and device, and the width grows by no more than that.
    num_chunks = packed.width // (devices * (chunk or packed.width // devices))
    assert packed.width < min(width, 27) + devices * num_chunks
    assert halving.packed(group, 5).width >= 5


@pytest.mark.slow
def test_the_study_gives_its_table(tmp_path):
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, root / "scripts" / "search_study.py", "--budget", "tiny", "--out", tmp_path / "search.csv"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = Counter((row["study"], row["method"]) for row in rows)
    assert counts == dict.fromkeys(STUDY, 2)
    steps = {row["method"]: int(row["env_steps"]) for row in rows}
    assert steps["pbt"] == steps["random search"]
    assert steps["halving"] < steps["whole grid"]
    assert all(-500 <= float(row["score"]) < 0 for row in rows)
    assert all(method in done.stdout for _, method in STUDY)


STUDY = [("pbt", "random search"), ("pbt", "pbt"), ("halving", "whole grid"), ("halving", "halving")]
