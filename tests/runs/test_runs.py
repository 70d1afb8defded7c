import json
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from flax import struct

from jaxrl import runs
from jaxrl.checkpoint import StorageError


def segment(first, num, seeds=2, **settings):
    rows = np.arange(first, first + num, dtype=np.float32)[:, None] + 100 * np.arange(seeds, dtype=np.float32)
    return runs.segment_dataset({"loss/policy": rows, "episode/count": np.ones_like(rows)}, first, 8, **settings)


@pytest.fixture
def run(tmp_path):
    return runs.Run.create(tmp_path / "run", runs.describe(algorithm="toy", seed=3, shape=(1, 2)))


def test_record_is_kept(run):
    opened = runs.Run.open(run.path)
    assert opened.record == run.record
    assert opened.record["algorithm"] == "toy"
    assert opened.record["shape"] == [1, 2]
    changed = opened.change(total_steps=99)
    assert runs.Run.open(run.path).record["total_steps"] == 99
    assert changed.record["changes"][0]["before"] == {"total_steps": None}


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(run):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a run.*jaxrl resume"):
        runs.Run.create(run.path, {})
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "content, error, message",
    [
        (None, ValueError, "not the folder of a run"),
        ('{"schema": 1', StorageError, "damaged"),
        ("[]", StorageError, "damaged"),
        ('{"schema": 999}', ValueError, "newer jaxrl"),
    ],
)
def test_what_is_no_run_is_told(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(error, match=message):
        runs.Run.open(tmp_path)
    with pytest.raises(ValueError, match="not the folder of a run"):
        runs.Run.open(tmp_path / "nothing")


def test_metrics_come_back_as_one_labelled_dataset(run):
    assert not run.metrics().sizes
    run.write_segment(0, segment(0, 3))
    run.write_segment(3, segment(3, 3))
    metrics = run.metrics()
    assert dict(metrics.sizes) == {"step": 6, "seed": 2}
    assert metrics["step"].values.tolist() == [8, 16, 24, 32, 40, 48]
    np.testing.assert_array_equal(metrics["loss/policy"].sel(seed=1), 100 + np.arange(6))
    assert metrics["loss/policy"].dtype == np.float32


def test_a_leftover_of_a_shorter_plan_is_not_read_twice(run):
    run.write_segment(0, segment(0, 4))
    run.write_segment(4, segment(4, 2))
    run.write_segment(6, segment(6, 2))
    run.write_segment(4, segment(4, 4))
    assert run.metrics()["loss/policy"].sel(seed=0).values.tolist() == list(range(8))


def test_steps_beyond_32_bits(run):
    run.write_segment(0, runs.segment_dataset({"loss/x": np.zeros((1, 1), np.float32)}, 2**31, 4096))
    assert run.metrics()["step"].item() == (2**31 + 1) * 4096


def test_types_that_netcdf3_lacks(run):
    data = {"a/flag": np.array([[True]]), "a/big": np.array([[2**40]]), "a/word": np.array([[2**32 - 1]], np.uint32)}
    run.write_segment(0, runs.segment_dataset(data, 0, 1))
    values = {name: array.item() for name, array in run.metrics().data_vars.items()}
    assert values == {"a/flag": 1, "a/big": 2**40, "a/word": 2**32 - 1}


def test_thinning_sums_sums_and_averages_the_rest():
    thin = segment(0, 7, rows=3)
    assert thin["step"].values.tolist() == [16, 32, 56]
    assert thin["episode/count"].sel(seed=1).values.tolist() == [2, 2, 3]
    assert thin["loss/policy"].sel(seed=1).values.tolist() == [100.5, 102.5, 105]
    assert segment(0, 7, rows=9).sizes["step"] == 7


def test_evaluations(run):
    fields = {"returns": (("seed", "episode"), np.arange(6.0).reshape(2, 3))}
    for iteration in (10, 2):
        data = xarray.Dataset(fields, {"seed": [0, 1]}, {"env_steps": iteration * 8.0})
        run.write_evaluation(iteration, data)
    evaluations = run.evaluations()
    assert evaluations["step"].values.tolist() == [16, 80]
    assert evaluations["returns"].dims == ("step", "seed", "episode")


def test_a_damaged_metrics_file_is_named(run):
    run.write_segment(0, segment(0, 3))
    file = run.path / "metrics" / "000000.nc"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(StorageError, match=r"000000\.nc is damaged"):
        run.metrics()


def test_only_one_process_trains_in_a_folder(run):
    with run.lock(), pytest.raises(StorageError, match="Another process"), runs.Run.open(run.path).lock():
        pass
    with run.lock():
        pass


def test_results_have_no_nan(run):
    run.write_results({"return": float("nan"), "table": [np.float32(1.5), jnp.inf]})
    assert json.loads((run.path / "results.json").read_text()) == {"return": None, "table": [1.5, None]}


@struct.dataclass
class Hyperparams:
    rate: jnp.ndarray
    limits: jnp.ndarray
    data: jnp.ndarray
    flag: jnp.ndarray


def test_hyperparameters_survive_json_bit_for_bit():
    hparams = Hyperparams(
        rate=jnp.float32(0.1) / 3, limits=jnp.array([jnp.inf, -jnp.inf]), data=jnp.arange(5000), flag=jnp.array(True)
    )
    text = json.dumps(runs.hyperparams_to_json(hparams), allow_nan=False)
    assert len(text) < 300
    back = runs.hyperparams_from_json(json.loads(text), hparams.replace(rate=jnp.float32(0), limits=jnp.zeros(2)))
    for name in ("rate", "limits", "data", "flag"):
        assert getattr(back, name).dtype == getattr(hparams, name).dtype
        assert np.asarray(getattr(back, name)).tobytes() == np.asarray(getattr(hparams, name)).tobytes()
    with pytest.raises(ValueError, match="data is not the one"):
        runs.hyperparams_from_json(json.loads(text), hparams.replace(data=jnp.zeros(5000)))
    with pytest.raises(ValueError, match=r"which has no \['speed'\]"):
        runs.hyperparams_from_json({"rate": 1.0, "speed": 2.0}, hparams)
    # A record of before a leaf was there.
    older = runs.hyperparams_from_json({"rate": 1.0}, hparams)
    assert older.rate == 1.0
    np.testing.assert_array_equal(older.limits, hparams.limits)


def test_changed_versions_and_source_are_told(run):
    assert runs.differences(run.record) == []
    record = json.loads(json.dumps(run.record))
    record["environment"]["versions"]["jax"] = "0.1"
    record["environment"]["source_digest"] = "0"
    told = runs.differences(record)
    assert [line.split(":")[0] for line in told] == ["versions.jax", "source_digest"]
    assert "0.1 then" in told[0]


def test_git_revision_is_that_of_the_source(tmp_path):
    package = Path(runs.__file__).parent
    command = ["git", "-C", str(package), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert runs.environment()["git_revision"] == (found.stdout.strip() if found.returncode == 0 else None)
    assert runs._git(tmp_path) == (None, None)


def test_what_a_killed_write_left_is_removed_when_training_goes_on(tmp_path):
    run = runs.Run.create(tmp_path / "run", {})
    (run.path / "metrics").mkdir()
    leftovers = [run.path / ".run.json.tmp-00000000", run.path / "metrics" / ".000018.nc.tmp-12345678"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    (run.path / "metrics" / "000000.nc").write_bytes(b"whole")
    with run.lock():
        pass
    assert not any(leftover.exists() for leftover in leftovers)
    assert (run.path / "metrics" / "000000.nc").exists()
    assert (run.path / "run.json").exists()


def test_a_run_shows_itself_in_a_line_and_as_a_table(run):
    run = run.change(env="gymnax/<b>", num_seeds=2, total_steps=2_000)
    assert "not finished, 2,000 steps each" in repr(run)
    run.write_results(
        {
            "finished": True,
            "env_steps": 2_000,
            "seeds": [{"evaluation_return": 1.5}, {"evaluation_return": None}],
        }
    )
    text = repr(run)
    assert text.startswith(f"Run({str(run.path)!r}, algorithm: toy, env: gymnax/<b>, seeds: 2, state: finished")
    table = run._repr_html_()
    assert "gymnax/&lt;b&gt;" in table
    assert "1.5, -" in table
    assert "<img" not in table
    (run.path / "curves.png").write_bytes(b"\x89PNG")
    assert run._repr_html_().endswith('src="data:image/png;base64,iVBORw==">')


def test_a_damaged_results_file_is_no_results(run):
    (run.path / "results.json").write_text("{")
    assert run.results() == {}
