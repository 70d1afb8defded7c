"""A population over several processes is the population of one, survives their death, and stops and fails as one.

The module is the tests and, run as a program, one of the processes.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TESTS = Path(__file__).parent.parent
MEMBERS, DEVICES = 8, 4


def agents(name, num_devices=DEVICES):
    """Population, hyperparameters, and arguments of `fit`."""
    from runs import toy

    import jaxrl
    from jaxrl import fit
    from jaxrl.algorithms import ppo

    if name == "toy":
        agent = jaxrl.population(toy.noisy_descent(), MEMBERS, ("learning_rate",), num_devices)
        hparams = agent.hyperparams(learning_rate=np.linspace(0.05, 0.4, MEMBERS))
        play = jax.vmap(toy.play, (None, 0, None))
        return agent, hparams, {"total_iterations": toy.TOTAL, "segment": 3, "evaluation": fit.EvaluationPlan(3, play)}
    member = jaxrl.ppo(
        jaxrl.make_env("probe/Policy"), config=ppo.Config(num_envs=2, num_steps=8, num_minibatches=2, num_epochs=2)
    )
    agent = jaxrl.population(member, MEMBERS, ("learning_rate", "gamma"), num_devices)
    hparams = agent.hyperparams(
        learning_rate=np.geomspace(1e-4, 1e-2, MEMBERS), gamma=np.linspace(0.9, 0.99, MEMBERS)
    )  # fmt: skip
    play = fit.play_episodes(member, 2, max_steps=20, num_seeds=MEMBERS, num_devices=num_devices)
    return agent, hparams, {"total_iterations": 4, "segment": 2, "evaluation": fit.EvaluationPlan(1, play)}


def train(name, folder, num_devices=DEVICES, **options):
    """Begins or continues a run; only the first process knows of its folder."""
    from jaxrl import fit, processes, runs

    agent, hparams, arguments = agents(name, num_devices)
    there, run = (folder / "run.json").exists(), None
    if processes.is_first():
        run = runs.Run.open(folder) if there else runs.Run.create(folder, runs.describe())
    return fit.fit(
        agent, hparams, seed=3, num_seeds=MEMBERS, run=run, checkpoint_seconds=0.0, **(arguments | options)
    )  # fmt: skip


def main(task, index, count, port, folder, death):
    """One process of `count`."""
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, index)
    assert (jax.process_count(), jax.device_count()) == (count, DEVICES)
    if death:
        from runs import toy

        toy._die_before(death)
    report = agreements(folder) if task == "agree" else whole_runs(task.split(","), folder)
    print("REPORT" + json.dumps(report), flush=True)


def whole_runs(names, folder):
    resume = (folder / names[0] / "run.json").exists()
    return [train(name, folder / name, resume=resume).iteration for name in names]


def agreements(folder):
    from jaxrl import processes
    from jaxrl.checkpoint import StorageError
    from jaxrl.runs import Run

    index = jax.process_index()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("members",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))
    shared = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    keys = jax.random.split(jax.random.key(1), 8)
    tree = {"keys": keys, "rows": np.arange(24.0, dtype=np.float32).reshape(8, 3), "one": jnp.int32(7)}
    placed = processes.place(tree, {"keys": spread, "rows": spread, "one": shared})
    moved = processes.place(placed, {"keys": shared, "rows": shared, "one": shared})
    report = {
        "greatest": processes.greatest(index * 5),
        "any": [processes.any_of(index == 1), processes.any_of(False)],
        "first": processes.from_first({"zero": np.float32(-0.0), "index": index} if index == 0 else None),
        "none": processes.from_first(None if index == 0 else 3),
        "readable": [leaf.is_fully_addressable for leaf in jax.tree.leaves(placed)],
        "fetched": [contents_of(processes.fetch(each)) == contents_of(tree) for each in (placed, moved)],
        "errors": [],
    }
    report["first"] = str(report["first"])

    def failing(action):
        try:
            action()
        except Exception as error:
            report["errors"].append(f"{type(error).__name__}: {error}")

    def fails_in(number):
        with processes.together():
            if index == number:
                raise OSError("no space left")

    def locked():
        if index == 0:
            run = Run.create(folder / "locked", {})
            with run.lock():
                train("toy", folder / "locked")
        else:
            train("toy", folder / "locked")

    failing(lambda: fails_in(1))
    failing(lambda: fails_in(None))
    failing(lambda: train("toy", folder / "narrow", num_devices=1))
    failing(locked)
    assert issubclass(StorageError, RuntimeError)

    lines = []

    def terminate(progress):
        if index == 1 and progress.iteration == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train("toy", folder / "toy", on_segment=terminate, on_message=lines.append)
    report["stopped"] = [stopped.stopped, stopped.iteration, lines]
    resumed = train("toy", folder / "toy", resume=True)
    report["resumed"] = [resumed.stopped, resumed.iteration, resumed.results["seeds"]]
    return report


def contents_of(tree):
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(raw)]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def launch(task, count, folder, death=0):
    """Starts the processes; `death` is the storage call before which the first kills itself."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [sys.executable, "-m", "meta.test_distributed"]
            + [task, str(index), str(count), str(port), str(folder), str(death if index == 0 else 0)],
            cwd=TESTS,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def reports(running):
    """What the processes say in the end; if one fails or hangs all are killed."""
    deadline = time.monotonic() + 200
    try:
        while any(each.poll() is None for each in running) and time.monotonic() < deadline:
            if any(each.poll() not in (None, 0) for each in running):
                time.sleep(5)
                break
            time.sleep(0.05)
    finally:
        for each in running:
            each.kill()
    printed = [each.communicate()[0] for each in running]
    assert [each.returncode for each in running] == [0] * len(running), "\n".join(text[-3000:] for text in printed)
    return [json.loads(text.rpartition("REPORT")[2]) for text in printed]


def contents(folder):
    """Everything of a run but times and versions: digests of the last state, all metrics, evaluations and the log."""
    last = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    manifest = json.loads((folder / "checkpoints" / str(last) / "manifest.json").read_text())
    files = sorted([*(folder / "metrics").iterdir(), *(folder / "evaluations").iterdir(), folder / "log.jsonl"])
    return {
        "iteration": last,
        "state": {name: leaf["digest"] for name, leaf in manifest["leaves"].items()},
        "best": manifest["best"],
        "files": {file.name: file.read_bytes() for file in files},
        "seeds": json.loads((folder / "results.json").read_text())["seeds"],
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with as many devices makes."""
    folder = tmp_path_factory.mktemp("distributed") / "alone"
    assert reports(launch("toy,ppo", 1, folder)) == [[20, 4]]
    return {name: contents(folder / name) for name in ("toy", "ppo")}


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_make_what_one_makes(alone, tmp_path, count):
    """Bit for bit: state, metrics, evaluations and log."""
    assert reports(launch("toy,ppo", count, tmp_path / "run")) == [[20, 4]] * count
    for name in ("toy", "ppo"):
        assert contents(tmp_path / "run" / name) == alone[name]


def test_all_killed_and_continued_is_as_if_never_killed(alone, tmp_path):
    """The first dies inside its writes, the other with it; then both continue."""
    running = launch("toy", 2, tmp_path / "run", death=60)
    assert running[0].wait(200) == -signal.SIGKILL
    running[1].kill()
    for each in running:
        each.communicate()
    done = [int(path.name) for path in (tmp_path / "run/toy/checkpoints").iterdir() if path.name.isdigit()]
    assert 0 < max(done) < 20
    assert reports(launch("toy", 2, tmp_path / "run")) == [[20], [20]]
    assert contents(tmp_path / "run" / "toy") == alone["toy"]


def test_processes_agree_stop_and_fail_together(alone, tmp_path):
    first, second = reports(launch("agree", 2, tmp_path / "run"))
    for report in (first, second):
        assert report["greatest"] == 5
        assert report["any"] == [True, False]
        assert report["first"] == str({"zero": np.float32(-0.0), "index": 0})
        assert report["none"] is None
        assert report["readable"] == [False, False, False]
        assert report["fetched"] == [True, True]
        assert "over num_devices = 1 of 4 devices" in report["errors"][1]
        assert report["stopped"][:2] == [signal.SIGTERM, 6]
        assert report["resumed"][:2] == [None, 20]
    assert len(first["errors"]) == len(second["errors"]) == 3
    assert first["errors"][0].startswith("RuntimeError: Another of the 2 processes failed")
    assert second["errors"][0] == "OSError: no space left"
    assert "StorageError: Another process is training in" in first["errors"][2]
    assert second["errors"][2].startswith("RuntimeError: Another of the 2 processes failed")
    assert first["stopped"][2] == ["SIGTERM to another process: all stop here, and the state is saved."]
    assert second["stopped"][2] == []
    assert contents(tmp_path / "run" / "toy") == alone["toy"]


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path):
    page = (TESTS.parent / "docs" / "clusters.md").read_text()
    example = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    for old, new in {"gymnax/CartPole-v1": "probe/Policy", "=200": "=2", "segment=10": "segment=1", "64": "4"}.items():
        assert old in example
        example = example.replace(old, new)
    setup = "import jax\njax.config.update('jax_num_cpu_devices', 2)\n"
    setup += "jax.config.update('jax_cpu_collectives_implementation', 'gloo')\n"
    (tmp_path / "example.py").write_text(setup + example + "print('REPORT', state.num_steps.shape[0])\n")
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "example.py", str(index), "2", f"localhost:{port}"],
            cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    assert reports(running) == [4, 4]
    assert json.loads((tmp_path / "runs/wide/results.json").read_text())["finished"]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5]), int(sys.argv[6]))
