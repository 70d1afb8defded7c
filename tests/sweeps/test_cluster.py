"""A sweep on a real Ray cluster of this machine: whole though a worker is killed, bit for bit that of one process."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import xarray
from sweeps import toys

from jaxrl import sweeps
from jaxrl.checkpoint import StorageError
from jaxrl.cli import main
from jaxrl.memory import OutOfMemoryError
from jaxrl.meta.layout import Layout
from jaxrl.sweeps import cluster, execution, results
from jaxrl.sweeps.plan import make_plan

TESTS = Path(__file__).parent.parent
WORKERS, ONE, DEFAULT = 3, Layout(1, None), toys.Config()
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@dataclasses.dataclass(frozen=True, eq=False)
class SmallWorkers(execution.Sweep):
    """In another process than the one that made it, more than one member does not fit."""

    maker: int = 0

    def is_whole(self, batch):
        if os.getpid() != self.maker and batch.stop - batch.start > 1:
            raise OutOfMemoryError(f"{batch.stop - batch.start} members are too large")
        return super().is_whole(batch)


def opened(folder, over=toys.SPACE, layout=ONE, algorithm=toys.descent, total_steps=4800, **changes):
    """The toys' sweep, but longer; 6 batches of 4 members."""
    counts = {name: toys.ARGUMENTS[name] for name in ("num_seeds", "num_points", "max_batch")} | changes
    plan = make_plan(algorithm, "probe/Policy", sweeps.space(over), total_steps=total_steps, layout=layout, **counts)
    return execution.open_sweep(folder, plan, 0)


def contents(made):
    """Every file of the results but for times, versions and the machine."""
    results.write_results(made)
    paths = sorted(path for path in made.path.rglob("*.nc") if path.name != "results.nc")
    found = {str(path.relative_to(made.path)): path.read_bytes() for path in paths}
    return found, results.read_results(made.path).drop_attrs()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    made = opened(tmp_path_factory.mktemp("local") / "sweep")
    assert execution.run_sweep(made) is None
    return contents(made)


@pytest.fixture(scope="module")
def ray():
    """A cluster of three workers, that the tests share."""
    module = pytest.importorskip("ray", reason="needs the extra `ray`")
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=os.pathsep.join(map(str, [TESTS, TESTS / "sweeps"])))
    module.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield module
    module.shutdown()
    os.environ.clear()
    os.environ.update(before)


def workers():
    """Processes that compute a batch now, among this one's descendants."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue

    def is_ours(process):
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return [process for process, title in titles.items() if title.startswith("ray::_run_batch") and is_ours(process)]


def same(got, want):
    assert got[0].keys() == want[0].keys()
    assert [name for name in want[0] if got[0][name] != want[0][name]] == []
    xarray.testing.assert_identical(got[1], want[1])


def test_whole_though_a_worker_is_killed(ray, local, tmp_path):
    made, lines, killed, seen = opened(tmp_path / "sweep"), [], [], []

    def kill_once(progress):
        seen.append(progress)
        if not killed and progress.members.iteration < progress.members.total_iterations // 2:
            killed.extend(workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    stopped = cluster.run_on_ray(
        made, num_workers=WORKERS, checkpoint_seconds=0.0, on_progress=kill_once, on_message=lines.append
    )
    assert stopped is None
    assert len(killed) == 1
    assert sum("has lost its worker and goes on in another from its checkpoint" in line for line in lines) == 1
    same(contents(made), local)
    assert seen[-1].env_steps <= seen[-1].total_env_steps
    assert seen[-1].num_batches == 6
    assert len({progress.batch for progress in seen}) > 3
    assert cluster.run_on_ray(made, on_progress=lambda progress: pytest.fail("nothing is left to do")) is None


def test_a_batch_that_does_not_fit_a_worker_is_halved_until_it_does(ray, local, tmp_path):
    lines, space = [], {"learning_rate": [0.1, 0.3]}
    made = opened(tmp_path / "sweep", space)
    small = SmallWorkers(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})
    small = dataclasses.replace(small, maker=os.getpid())
    assert cluster.run_on_ray(small, on_message=lines.append) is None
    assert [batch.stop - batch.start for batch in made.batches()] == [1, 1, 1, 1]
    assert sum("did not fit" in line for line in lines) == 3
    alone = opened(tmp_path / "alone", space, max_batch=1)
    execution.run_sweep(alone)
    xarray.testing.assert_allclose(contents(made)[1], contents(alone)[1], rtol=1e-5)


def test_a_signal_to_the_driver_saves_what_is_in_progress(ray, tmp_path):
    made, seen = opened(tmp_path / "sweep", total_steps=480_000), []

    def terminate(progress):
        seen.append(progress)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = cluster.run_on_ray(made, num_workers=2, checkpoint_seconds=600.0, on_progress=terminate)
    assert stopped == signal.SIGTERM
    assert workers() == []
    begun = [batch for batch in made.batches() if made.folder(batch).exists()]
    assert 0 < len(begun) <= 2
    for batch in begun:
        assert not made.is_whole(batch)
        assert list((made.folder(batch) / "checkpoints").glob("*/manifest.json"))


def test_what_no_machine_has_room_for_is_refused(ray, tmp_path):
    made = opened(tmp_path / "sweep", layout=Layout(WORKERS + 1, 1))
    with pytest.raises(ValueError, match="num_devices = 4, but no machine of the cluster has more than 3 CPUs"):
        cluster.run_on_ray(made)


def test_what_cannot_be_sent_is_refused(ray, tmp_path):
    lock = threading.Lock()

    def locked(env=None, config=DEFAULT):
        agent = toys.descent(env, config)
        return agent._replace(init=lambda key, hparams: (lock, agent.init(key, hparams))[1])

    made = opened(tmp_path / "sweep", {"learning_rate": [0.1]}, algorithm=locked)
    with pytest.raises(ValueError, match=r"cannot be sent to Ray's workers \(TypeError: .*lock.*by name"):
        cluster.run_on_ray(made)


def test_an_error_in_a_worker_is_an_error_here(ray, tmp_path):
    made = opened(tmp_path / "sweep", {"learning_rate": [0.1]})
    made.folder(made.batches()[0]).mkdir(parents=True)
    (made.folder(made.batches()[0]) / "run.json").write_text("{")
    with pytest.raises(StorageError, match=r"run.json is damaged"):
        cluster.run_on_ray(made)


def test_the_example_of_the_docs_runs(ray, tmp_path):
    example = re.findall(
        r"^```py\n(.*?)^```", (TESTS.parent / "docs/clusters.md").read_text(), re.MULTILINE | re.DOTALL
    )[0]
    changes = {
        "gymnax/CartPole-v1": "probe/Policy",
        "/shared": str(tmp_path),
        "log(1e-4, 1e-2, 64)": "log(1e-4, 1e-2, 2)",
        '"num_seeds": 16': '"num_seeds": 2',
        "500_000": "512",
        '"max_batch": 64': '"max_batch": 2',
        "Layout(2, 16)": "Layout(2, 1)",
    }
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    names = {}
    exec(example, names)
    assert names["data"]["score"].notnull().all()
    assert len(names["made"].batches()) == 2


def test_an_address_where_nothing_listens_is_refused_at_once():
    unconnected = types.SimpleNamespace(is_initialized=lambda: False)
    connected = cluster._connected(unconnected, "localhost:1", None)
    with pytest.raises(ValueError, match=r"no Ray cluster at 'localhost:1' \(.*refused.*ray start --head"), connected:
        pass


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs Ray, which is not installed: pip install 'jaxrl\[ray\]'"):
        cluster.run_on_ray(opened(tmp_path / "sweep"))


def test_the_command_takes_one_way_of_sharing(tmp_path, capsys):
    command = ["sweep", "ppo", "probe/Policy", "--over", "gamma=0.9,0.99", "--out", str(tmp_path / "sweep"), "--ray"]
    assert main([*command, "--shard", "0/2"]) == 2
    assert "--ray shares out the batches itself: leave out --shard" in capsys.readouterr().err


def test_the_command_starts_a_cluster_of_its_own(tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    fixed = ["config.num_envs=2", "config.num_steps=8"]
    arguments = [
        *("sweep", "ppo", "probe/Policy", *fixed, "--over", "learning_rate=1e-3,1e-2", "gamma=0.9,0.99"),
        *("--num-seeds", "1", "--total-steps", "64", "--eval-episodes", "1", "--points", "2"),
        *("--devices", "1", "--max-batch", "2"),
    ]
    for name, more in (("ray", ["--ray"]), ("alone", [])):
        done = subprocess.run(
            [sys.executable, "-m", "jaxrl", *arguments, "--out", str(tmp_path / name), *more],
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 members in" in done.stdout
    got, want = results.read_results(tmp_path / "ray"), results.read_results(tmp_path / "alone")
    xarray.testing.assert_identical(got.drop_attrs(), want.drop_attrs())
