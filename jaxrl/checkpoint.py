"""Checkpoints that survive a kill at any moment: written aside, fsynced, renamed, and verified leaf by leaf on loading.

A checkpoint is the folder `<directory>/<iteration>` with

    arrays/         the leaves of the state as host arrays, by dotted path, written by orbax
    manifest.json   iteration, info of the caller, shape, dtype and digest of each leaf, size and digest of each file

It comes into being under a temporary name and gets its own by one rename, so that it is there as a whole or not at all.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrl.ops import trees

Tree = TypeVar("Tree")
_SCHEMA = 1
_hash = functools.partial(hashlib.blake2b, digest_size=16)


class StorageError(RuntimeError):
    """Something could not be written or read; the message says what, why, and that older content is kept."""


class CheckpointError(StorageError):
    """A checkpoint could not be written, or is missing or damaged."""


def save(
    directory: Path | str,
    iteration: int,
    state: Any,
    info: dict[str, Any] | None = None,
    keep_last: int = 2,
    best: bool = False,
) -> Path:
    """Writes one checkpoint, then removes those that are no longer wanted.

    Args:
      directory: the folder of all checkpoints; made if it is not there.
      iteration: names the checkpoint; one of the same iteration is replaced.
      state: any pytree of arrays, typed random keys included. It is copied to the host and may be donated afterwards.
      info: anything that JSON can hold, given back by `load`.
      keep_last: how many of the newest are kept, besides the best.
      best: whether this is the best so far; otherwise the best stays what it was.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: it could not be written, for instance because the disk is full. What was there is kept.
      ValueError: `keep_last` is not positive or `iteration` is negative.
    """
    if keep_last < 1 or iteration < 0:
        raise ValueError(
            "keep_last must be at least 1 and iteration at least 0; "
            f"got keep_last = {keep_last}, iteration = {iteration}."
        )
    directory = Path(directory)
    arrays, leaves = _to_host(state)
    target = directory / str(iteration)
    temporary = directory / f"{iteration}.tmp-{uuid.uuid4().hex[:8]}"
    # With what orbax and the file system add to each leaf and file, generously.
    num_bytes = sum(array.nbytes for array in arrays.values()) * 21 // 20 + 2048 * len(arrays) + 65536
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        body = {
            "schema": _SCHEMA,
            "iteration": iteration,
            "best": iteration if best else _best_before(directory, iteration),
            "info": info or {},
            "leaves": leaves,
        }
        temporary.mkdir()
        _reserve(temporary / "reserved", num_bytes)
        # Orbax refuses arrays without elements; the manifest alone restores those.
        stored = {name: array for name, array in arrays.items() if array.size}
        if stored:
            _orbax().save((temporary / "arrays").absolute(), stored)
        body["files"] = {name: _digest_of_file(temporary / name) for name in _files(temporary)}
        manifest = {**body, "digest": _digest(_canonical(body))}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _fsync_tree(temporary)
        if target.exists():
            target.rename(directory / f"{iteration}.tmp-old-{uuid.uuid4().hex[:8]}")
        temporary.rename(target)
        _fsync(directory)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            write_failed(f"checkpoint {target}", directory, error, num_bytes)
            + f" Checkpoints kept: {iterations(directory) or 'none'}."
        ) from error
    _prune(directory, keep_last)
    return target


def iterations(directory: Path | str) -> list[int]:
    """Iterations of all checkpoints in a folder, whole or damaged, oldest first."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir())


def best_iteration(directory: Path | str) -> int | None:
    """Iteration of the best checkpoint, or None if none was called the best or it is gone."""
    present = iterations(directory)
    best = _best_before(Path(directory), math.inf)
    return best if best in present else None


def load(directory: Path | str, iteration: int, template: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads one checkpoint and verifies the digest of every leaf.

    Args:
      directory: the folder of all checkpoints.
      iteration: which one.
      template: a state, or its `jax.eval_shape`, whose structure, shapes and dtypes the checkpoint must have.

    Returns:
      The state, in new strongly typed buffers on the default device that may be donated, and the caller's info.

    Raises:
      CheckpointError: the checkpoint is missing, truncated or damaged.
      ValueError: it is whole, but of another state than the template; the message names the leaves.
    """
    path = Path(directory) / str(iteration)
    manifest = _read_manifest(path)
    leaves = manifest["leaves"]
    # Before orbax reads: of a damaged file it would print pages, or read zeros for what is missing.
    for name, digest in manifest["files"].items():
        _check_file(path, name, digest)
    _check_template(path, leaves, _describe(template))
    names = [name for name, leaf in leaves.items() if math.prod(leaf["shape"])]
    restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    try:
        arrays = _orbax().restore((path / "arrays").absolute(), restore_args=restore_args) if names else {}
    except Exception as error:
        raise CheckpointError(f"Checkpoint {path} is damaged: orbax cannot read it ({_first_line(error)}).") from error

    def restored(name: str, leaf: dict[str, Any], like: Any) -> jax.Array:
        array = arrays.get(name, np.zeros(leaf["shape"], leaf["dtype"]))
        if _digest_of_array(array) != leaf["digest"]:
            raise CheckpointError(f"Checkpoint {path} is damaged: leaf {name} is not what was saved.")
        # A copy, since a donated buffer must not be one that NumPy owns.
        copy = jnp.array(array, copy=True)
        return jax.random.wrap_key_data(copy, impl=like.dtype) if "key" in leaf else copy

    expected, structure = jax.tree.flatten(template)
    values = [restored(name, leaf, like) for (name, leaf), like in zip(leaves.items(), expected, strict=True)]
    return jax.tree.unflatten(structure, values), manifest["info"]


def load_latest(
    directory: Path | str, template: Tree, on_damage: Callable[[int, str], None] = lambda iteration, reason: None
) -> tuple[Tree, int, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole.

    Args:
      directory: the folder of all checkpoints.
      template: as for `load`.
      on_damage: called with iteration and reason for each newer one that is damaged.

    Returns:
      `(state, iteration, info)`, or None if there is no whole checkpoint.

    Raises:
      ValueError: the newest whole checkpoint is of another state than the template.
    """
    for iteration in reversed(iterations(directory)):
        try:
            state, info = load(directory, iteration, template)
        except CheckpointError as error:
            on_damage(iteration, str(error))
            continue
        return state, iteration, info
    return None


def set_aside(directory: Path | str, iteration: int) -> None:
    """Renames a damaged checkpoint to `<iteration>.damaged-…`, so that it no longer counts as one."""
    path = Path(directory) / str(iteration)
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f"{iteration}.damaged-{uuid.uuid4().hex[:8]}"))


def digests(state: Any) -> dict[str, str]:
    """Digest of each leaf by dotted path: equal exactly if shape, dtype and every bit are."""
    return {name: leaf["digest"] for name, leaf in _to_host(state)[1].items()}


def write_file(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all: aside, fsynced, renamed.

    Raises:
      StorageError: it could not be written; what was there is kept.
    """
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(write_failed(str(path), path.parent, error, len(content))) from error


def write_failed(what: str, folder: Path, error: Exception, num_bytes: int) -> str:
    """The message for a write that failed: what, why, bytes needed and free, and what to do."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    return (
        f"Could not write {what}: {reason}. It needs about {num_bytes:,} bytes; {free:,} bytes are free in "
        f"{folder}. What was there before is kept: free some space, then resume."
    )


def _orbax() -> ocp.Checkpointer:
    """Orbax for this process alone: of several, only the one that was called writes and reads."""
    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _to_host(state: Any) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    leaves = _describe(state)
    raw = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if trees.is_key(leaf) else leaf, state)
    arrays = dict(zip(leaves, (np.asarray(array) for array in jax.device_get(jax.tree.leaves(raw))), strict=True))
    for name, array in arrays.items():
        leaves[name] |= {"shape": list(array.shape), "dtype": str(array.dtype), "digest": _digest_of_array(array)}
    return arrays, leaves


def _describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape, dtype and, of keys, implementation of each leaf by dotted path that begins with `state`."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in trees.named_leaves({"state": tree}).items():
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        found[name] = {"shape": list(data.shape), "dtype": str(data.dtype)}
        if is_key:
            found[name]["key"] = leaf.dtype.name
    if len(found) != len(jax.tree.leaves(tree)):
        raise ValueError("Two leaves of the state have one dotted path: rename a field or key that contains a dot.")
    return found


def _check_template(path: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    def show(leaf: dict[str, Any] | None) -> str:
        return f"{leaf.get('key', '')}{leaf['dtype']}{tuple(leaf['shape'])}" if leaf else "no such leaf"

    wrong = [
        f"{name}: saved {show(saved.get(name))}, expected {show(expected.get(name))}"
        for name in {**saved, **expected}
        if show(saved.get(name)) != show(expected.get(name))
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"Checkpoint {path} is of another state: {'; '.join(wrong[:5])}{more}. "
            "Build the algorithm with the environment and config that the run was made with."
        )
    if list(saved) != list(expected):
        raise ValueError(f"Checkpoint {path} is of another state: its leaves come in another order.")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        digest = manifest.pop("digest")
        whole = digest == _digest(_canonical(manifest))
    except FileNotFoundError as error:
        kept = iterations(path.parent)
        raise CheckpointError(f"There is no whole checkpoint {path}: no manifest.json. Checkpoints: {kept}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Checkpoint {path} is damaged: manifest.json is not readable ({_first_line(error)})."
        ) from error
    if not whole:
        raise CheckpointError(f"Checkpoint {path} is damaged: manifest.json is not what was saved.")
    if manifest["schema"] > _SCHEMA:
        raise ValueError(f"Checkpoint {path} was written by a newer jaxrl (schema {manifest['schema']} > {_SCHEMA}).")
    return manifest


def _files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.stat().st_size}:{hashlib.file_digest(file, _hash).hexdigest()}"


def _check_file(path: Path, name: str, digest: str) -> None:
    try:
        found = _digest_of_file(path / name)
    except FileNotFoundError as error:
        raise CheckpointError(f"Checkpoint {path} is damaged: {name} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path} is damaged: {name} cannot be read ({error}).") from error
    if found != digest:
        sizes = found.split(":")[0], digest.split(":")[0]
        how = "has other content than was saved" if sizes[0] == sizes[1] else "has {} of {} bytes".format(*sizes)
        raise CheckpointError(f"Checkpoint {path} is damaged: {name} {how}.")


def _best_before(directory: Path, iteration: float) -> int | None:
    for earlier in reversed([i for i in iterations(directory) if i < iteration]):
        with contextlib.suppress(CheckpointError):
            return _read_manifest(directory / str(earlier))["best"]
    return None


def _prune(directory: Path, keep_last: int) -> None:
    present = iterations(directory)
    kept = set(present[-keep_last:])
    # The best that each kept one knows of: if the newest gets damaged, the one before still finds its best.
    kept |= {_best_before(directory, iteration + 1) for iteration in present[-keep_last:]}
    for iteration in present:
        if iteration not in kept:
            # Renamed first: a kill halfway through the removal must not leave something that looks like a checkpoint.
            with contextlib.suppress(OSError):
                (directory / str(iteration)).rename(directory / f"{iteration}.tmp-removed-{uuid.uuid4().hex[:8]}")
    _remove_leftovers(directory)


def _remove_leftovers(directory: Path) -> None:
    for entry in directory.iterdir():
        if re.fullmatch(r"\d+\.tmp-.*", entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _reserve(file: Path, num_bytes: int) -> None:
    """Finds out whether there is room, since orbax meets a full disk with pages of tracebacks."""
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, num_bytes)
    file.unlink()


def _fsync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> str:
    return _hash(content).hexdigest()


def _digest_of_array(array: np.ndarray) -> str:
    digest = _hash(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"[:400].rstrip(".")
