import json
import sys

import pytest

from jaxrl import sinks

LINES = [(8.0, 0, {"loss/x": 1.0}), (8.0, 1, {"loss/x": float("nan")}), (16.0, 0, {"loss/x": 3.0})]


def feed(sink, lines, start=0.0):
    sink.start(start, 2)
    for line in lines:
        sink.write(*line)
    sink.close()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_one_line_a_seed(tmp_path):
    feed(sinks.jsonl(tmp_path / "log.jsonl"), LINES)
    assert read(tmp_path / "log.jsonl") == [
        {"step": 8.0, "seed": 0, "loss/x": 1.0},
        {"step": 8.0, "seed": 1, "loss/x": None},
        {"step": 16.0, "seed": 0, "loss/x": 3.0},
    ]


def test_jsonl_forgets_what_is_computed_again(tmp_path):
    path = tmp_path / "log.jsonl"
    feed(sinks.jsonl(path), LINES)
    whole = path.read_bytes()
    # A kill cut the last line short, and the run resumes at step 8.
    path.write_bytes(whole + b'{"step": 16.0, "se')
    feed(sinks.jsonl(path), LINES[2:], start=8.0)
    assert path.read_bytes() == whole


def test_jsonl_can_be_read_while_it_is_written(tmp_path):
    sink = sinks.jsonl(tmp_path / "log.jsonl")
    sink.start(0.0, 1)
    sink.write(*LINES[0])
    assert len(read(tmp_path / "log.jsonl")) == 1
    sink.close()


def test_tensorboard_has_one_folder_a_seed(tmp_path):
    pytest.importorskip("tensorboardX")
    feed(sinks.tensorboard(tmp_path), LINES)
    feed(sinks.tensorboard(tmp_path), LINES[2:], start=8.0)
    files = {folder.name: sorted(folder.iterdir()) for folder in tmp_path.iterdir()}
    assert {name: len(found) for name, found in files.items()} == {"seed_0": 2, "seed_1": 2}
    counts = {name: sum(file.read_bytes().count(b"loss/x") for file in found) for name, found in files.items()}
    # NaN is left out; step 16 was written by both processes, and the purge event of the second voids the first's.
    assert counts == {"seed_0": 3, "seed_1": 0}


def test_wandb_offline_has_one_run_a_seed(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "my-run"
    folder.mkdir()
    feed(sinks.wandb("project", folder, config={"rate": 0.1}), LINES)
    names = sorted(path.name.rsplit("-", 2)[-2:] for path in (folder / "wandb").glob("offline-run-*"))
    assert names == [["run", "seed_0"], ["run", "seed_1"]]
    with pytest.raises(ValueError, match="offline, online or disabled"):
        sinks.wandb("project", folder, mode="on")


@pytest.mark.parametrize(
    "make, extra", [(sinks.tensorboard, "tensorboard"), (lambda path: sinks.wandb("p", path), "wandb")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, make, extra):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=rf'pip install "jaxrl\[{extra}\]"'):
        make(tmp_path)
