import os
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import checkpoint


def make_state(scale=1.0):
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "params": {"kernel": scale * jnp.arange(600.0).reshape(20, 30) / 7, "half": jnp.ones(5, jnp.bfloat16) / 3},
        "flags": jnp.array([True, False]),
        "empty": jnp.zeros((0, 4)),
        "count": jnp.int32(7),
        "nested": (jnp.uint8(255), ()),
    }


@pytest.fixture
def two(tmp_path):
    """Checkpoints of iterations 1 and 2 with different content."""
    checkpoint.save(tmp_path, 1, make_state(1.0), {"score": 0.1})
    checkpoint.save(tmp_path, 2, make_state(2.0), {"score": 0.2})
    return tmp_path


def test_round_trip_keeps_every_bit_and_type(two):
    state, info = checkpoint.load(two, 2, jax.eval_shape(lambda: make_state(2.0)))
    assert info == {"score": 0.2}
    assert checkpoint.digests(state) == checkpoint.digests(make_state(2.0))
    assert jax.tree.structure(state) == jax.tree.structure(make_state())
    assert state["key"].dtype == jax.random.key(0).dtype
    assert state["keys"].dtype == jax.random.key(0, impl="rbg").dtype
    assert not any(leaf.weak_type for leaf in jax.tree.leaves({**state, "key": (), "keys": ()}))


def test_restored_state_is_donated_without_compiling_again(two):
    traces = 0

    def step(state):
        nonlocal traces
        traces += 1
        return {**state, "params": jax.tree.map(lambda x: x + 1, state["params"])}

    step = jax.jit(step, donate_argnums=0)
    step(jax.jit(make_state)())
    state, _ = checkpoint.load(two, 2, make_state())
    step(state)
    assert traces == 1
    assert state["params"]["kernel"].is_deleted()


def test_digests_tell_one_bit_apart():
    other = make_state()
    other["params"]["kernel"] = (
        other["params"]["kernel"].at[3, 4].set(jnp.nextafter(other["params"]["kernel"][3, 4], 9))
    )
    different = {
        name for name, digest in checkpoint.digests(make_state()).items() if checkpoint.digests(other)[name] != digest
    }
    assert different == {"state.params.kernel"}


def damaged_copies(root, copy):
    """Every file of checkpoint 2 cut short, flipped at some place or removed, one at a time."""
    files = [path.relative_to(root) for path in sorted((root / "2").rglob("*")) if path.is_file()]
    for file in files:
        for damage in ("truncated", "removed", *range(0, 1000, 250)) if (root / file).stat().st_size else ("removed",):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy)
            content = bytearray((copy / file).read_bytes())
            if damage == "truncated":
                (copy / file).write_bytes(content[: len(content) // 2])
            elif damage == "removed":
                (copy / file).unlink()
            else:
                content[len(content) * damage // 1000] ^= 1 << damage % 8
                (copy / file).write_bytes(content)
            yield file, damage


def test_no_damage_goes_unnoticed(two, tmp_path_factory):
    template, count = jax.eval_shape(make_state), 0
    expected = checkpoint.digests(make_state(1.0))
    for file, damage in damaged_copies(two, copy := tmp_path_factory.mktemp("copy") / "c"):
        reports = []
        state, iteration, info = checkpoint.load_latest(copy, template, lambda i, reason: reports.append((i, reason)))
        assert (iteration, info) == (1, {"score": 0.1}), (file, damage)
        ((damaged, reason),) = reports
        assert damaged == 2
        assert f"{copy / '2'}" in reason
        assert file.name in reason
        count += 1
        if count % 20 == 0:
            assert checkpoint.digests(state) == expected
    assert count > 50


def test_none_whole(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nothing", make_state()) is None
    checkpoint.save(tmp_path, 5, make_state())
    (tmp_path / "5" / "manifest.json").unlink()
    assert checkpoint.load_latest(tmp_path, make_state()) is None
    with pytest.raises(checkpoint.CheckpointError, match="no whole checkpoint"):
        checkpoint.load(tmp_path, 5, make_state())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": jnp.zeros(3, jnp.int32)}, r"state\.count: saved int32\(\), expected int32\(3,\)"),
        ({"flags": jnp.zeros(2)}, r"state\.flags: saved bool\(2,\), expected float32\(2,\)"),
        ({"more": jnp.zeros(2)}, r"state\.more: saved no such leaf, expected float32\(2,\)"),
        ({"key": jax.random.key(0, impl="rbg")}, r"state\.key: saved key<fry>"),
    ],
)
def test_another_template_is_an_error_that_names_the_leaf(two, change, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load_latest(two, make_state() | change)


def test_keeps_the_last_and_the_best(tmp_path):
    for iteration in range(1, 7):
        checkpoint.save(tmp_path, iteration, make_state(), keep_last=2, best=iteration in (1, 3))
    assert checkpoint.iterations(tmp_path) == [3, 5, 6]
    assert checkpoint.best_iteration(tmp_path) == 3
    # The newest is damaged: the one before knows the best as well.
    (tmp_path / "6" / "manifest.json").write_text("{}")
    assert checkpoint.best_iteration(tmp_path) == 3
    checkpoint.set_aside(tmp_path, 6)
    checkpoint.save(tmp_path, 7, make_state(), keep_last=1, best=True)
    assert checkpoint.iterations(tmp_path) == [7]
    assert checkpoint.best_iteration(tmp_path) == 7


def test_a_checkpoint_of_the_same_iteration_is_replaced(two):
    checkpoint.save(two, 2, make_state(5.0))
    state, _ = checkpoint.load(two, 2, make_state())
    assert checkpoint.digests(state) == checkpoint.digests(make_state(5.0))


class Killed(BaseException):
    pass


def test_death_before_any_storage_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    state, template = make_state(2.0), jax.eval_shape(make_state)
    survived = []
    # Killing a process loses nothing that was written, so the test need not wait for the disk.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for deadline in range(1, 100, 3):
        directory = tmp_path / str(deadline)
        checkpoint.save(directory, 1, make_state(1.0), keep_last=1)
        calls = 0

        def dying(function):
            def call(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls == deadline:
                    raise Killed
                return function(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "mkdir", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                checkpoint.save(directory, 2, state, keep_last=1)
                break
            except Killed:
                pass
        damage = []
        loaded, iteration, _ = checkpoint.load_latest(directory, template, lambda *report: damage.append(report))
        assert not damage
        assert checkpoint.digests(loaded) == checkpoint.digests(make_state(float(iteration)))
        survived.append(iteration)
        checkpoint.save(directory, 3, state, keep_last=1)
        assert sorted(entry.name for entry in directory.iterdir()) == ["3"]
    assert len(survived) >= 5
    assert survived == sorted(survived)
    assert set(survived) == {1, 2}


@pytest.fixture(params=["limited file size", "small file system"])
def full_disk(request, tmp_path):
    """A folder in which 20 kB can be written, but not a megabyte."""
    if request.param == "limited file size":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        yield tmp_path
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    else:
        mount = tmp_path / "mount"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        yield mount
        subprocess.run(["umount", str(mount)], check=True)


def test_full_disk_is_told_and_keeps_what_was_there(full_disk, capfd, caplog):
    directory = full_disk / "checkpoints"
    small, large = {"x": jnp.arange(100.0)}, {"x": jnp.asarray(np.random.default_rng(0).random(500_000, np.float32))}
    checkpoint.save(directory, 1, small)
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"checkpoint .*2: (No space left on device|File too large)\. .*about 2,167,584 bytes.*kept: \[1\]",
    ) as caught:
        checkpoint.save(directory, 2, large)
    assert "\n" not in str(caught.value)
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")
    assert [entry.name for entry in directory.iterdir()] == ["1"]
    state, iteration, _ = checkpoint.load_latest(directory, small)
    assert iteration == 1
    assert checkpoint.digests(state) == checkpoint.digests(small)
    file = full_disk / "file"
    checkpoint.write_file(file, b"old")
    with pytest.raises(checkpoint.StorageError, match="Could not write"):
        checkpoint.write_file(file, bytes(1_000_000))
    assert file.read_bytes() == b"old"
    assert sorted(entry.name for entry in full_disk.iterdir()) == ["checkpoints", "file"]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep_last = 0"):
        checkpoint.save(tmp_path, 1, make_state(), keep_last=0)
    with pytest.raises(ValueError, match="one dotted path"):
        checkpoint.save(tmp_path, 1, {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}})
