"""Rules in files: a learned objective or rule with its weights and where it comes from, in one small `.npz`.

    spec              JSON as bytes: format, kind, arguments, digest, provenance
    weights/<path>    one array a leaf, by dotted path

A file says what it is by the name of a kind (`jaxrl.objectives.kinds`) and that kind's arguments, so that nothing but
data is read: no pickle. Files in which authors publish theirs are read too: OPEN's vectors and Disco103's arrays.
"""

import datetime
import hashlib
import importlib.metadata
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxrl.checkpoint import StorageError, write_file
from jaxrl.names import unknown
from jaxrl.networks.update_rules import open_weights
from jaxrl.objectives import disco_file
from jaxrl.objectives.kinds import FAMILIES, KINDS, RuleSpec, kind_of
from jaxrl.ops import trees
from jaxrl.runs import plain

__all__ = [
    "FAMILIES",
    "FORMAT",
    "KINDS",
    "RuleFile",
    "RuleSpec",
    "from_bytes",
    "load_rule",
    "read_rule",
    "save_rule",
    "to_bytes",
]

FORMAT = 1
_WEIGHTS = "weights/"
_PACKAGES = ("jaxrl", "jax", "flax")
_OPEN_SIZES = {1211: {}, 3571: {"hidden": 32, "memory": 16}}
"""Arguments of the kind `open` by the length of a published vector."""


class RuleFile(NamedTuple):
    """A rule that was read.

    Attributes:
      spec: what it is and where it comes from.
      rule: what the kind builds.
      params: its weights.
      digest: of kind, arguments and weights; equal for equal rules.
      content: of the file.
    """

    spec: RuleSpec
    rule: Any
    params: PyTree
    digest: str
    content: bytes


def save_rule(path: Path | str, spec: RuleSpec, params: PyTree, replace: bool = False) -> Path:
    """Writes a rule as one file, as a whole or not at all.

    A file that is there already is only replaced if it holds the same rule (kind, arguments and weights), or if you
    say so.

    Args:
      path: ends in `.npz`.
      spec: of the rule; versions and time are added to its provenance.
      params: its weights, all finite.
      replace: whether another rule, or any other file, at this path may be overwritten.

    Returns:
      The path.

    Raises:
      ValueError: the kind or an argument is unknown, the weights are not of this kind, they are not finite, or the
        path holds something else.
      StorageError: it cannot be written; what was there is kept.

    Example:
      >>> import jaxrl, tempfile
      >>> spec = RuleSpec("lpo", {"hidden": 4}, {"task": "gymnax/CartPole-v1"})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_rule(f"{folder}/rule.npz", spec, spec.build().init(jax.random.key(0)))
      ...     objective, weights = load_rule(path)
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"), objective=objective)
      >>> agent.hyperparams(objective=weights).objective.hidden.shape
      (8, 4)
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"A rule's file must end in .npz; got {path}.")
    content, digest = _encoded(spec, params)
    if path.exists() and not replace:
        try:
            there = read_rule(path).digest
        except (ValueError, StorageError) as error:
            raise ValueError(
                f"{path} holds something that cannot be read as a rule ({error}): name another file, or pass "
                "replace=True."
            ) from error
        if there != digest:
            raise ValueError(f"{path} holds another rule: name another file, or pass replace=True.")
    write_file(path, content)
    return path


def to_bytes(spec: RuleSpec, params: PyTree) -> bytes:
    """The content of a rule's file; see `save_rule`.

    Raises:
      ValueError: as for `save_rule`.
    """
    return _encoded(spec, params)[0]


def _encoded(spec: RuleSpec, params: PyTree) -> tuple[bytes, str]:
    """Content and digest."""
    leaves = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(params).items()}
    _check_weights("The weights", spec.kind, leaves, _template(spec))
    digest = _digest(spec, leaves)
    versions = {name: _version(name) for name in _PACKAGES}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {
        "format": FORMAT,
        "kind": spec.kind,
        "arguments": plain(dict(spec.arguments)),
        "digest": digest,
        "provenance": plain({"created": now, "versions": versions, **spec.provenance}),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(record, indent=1).encode(), np.uint8)
    members: dict[str, Any] = {"spec": text, **{_WEIGHTS + name: leaf for name, leaf in leaves.items()}}
    np.savez_compressed(buffer, **members)
    return buffer.getvalue(), digest


def load_rule(path: Path | str) -> tuple[Any, PyTree]:
    """Reads a rule, and its weights for the hyperparameters.

    Args:
      path: of a file that `save_rule` has written, or that authors publish: OPEN's `.npy`, Disco103's `.npz`.

    Returns:
      `(rule, weights)`. With weights for `hparams.objective`: an objective for `jaxrl.ppo(env, objective=…)`, one for
      `jaxrl.algorithms.lpg.lpg(env, rule=…)` or `jaxrl.algorithms.disco.disco(env, update_rule=…)`. With
      weights for `hparams.optimizer`: a learned optimizer for `jaxrl.ppo(env, optimizer=…)`. With a program for
      `hparams.head`: a head for `jaxrl.algorithms.dqn.dqn(env, head=…)`.

    Raises:
      ValueError: there is no file, it is no rule, or a newer jaxrl made it.
      StorageError: it is damaged.
    """
    found = read_rule(path)
    return found.rule, found.params


def read_rule(path: Path | str) -> RuleFile:
    """Reads a rule with all that its file says; see `load_rule`.

    Raises:
      ValueError: there is no file, it is no rule, or a newer jaxrl made it.
      StorageError: it is damaged.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    published = _published(path, content)
    return from_bytes(to_bytes(*published)) if published else from_bytes(content, str(path))


def from_bytes(content: bytes, name: str = "The rule") -> RuleFile:
    """What the content of a rule's file says.

    Args:
      content: of the file.
      name: for messages.

    Raises:
      ValueError: it is no rule, or a newer jaxrl made it.
      StorageError: it is damaged.
    """
    if not content.startswith(b"PK"):
        raise ValueError(f"{name} is not a rule's file, which is an .npz that `jaxrl.save_rule` has written.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = {member: archive[member] for member in archive.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(f"{name} is damaged: {error}") from error
    if "spec" not in members:
        raise ValueError(f"{name} is an .npz, but not a rule's: it has no spec. `jaxrl.save_rule` writes rules.")
    try:
        record = json.loads(members.pop("spec").tobytes())
        number, kind, digest = int(record["format"]), str(record["kind"]), record["digest"]
        arguments, provenance = dict(record["arguments"]), dict(record["provenance"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{name} is damaged: its spec cannot be read ({error}).") from error
    if number > FORMAT:
        raise ValueError(f"{name} was made by a newer jaxrl (format {number} > {FORMAT}): update jaxrl.")
    if kind not in KINDS:
        raise ValueError(f"{name}: {unknown(kind, KINDS, kind='kind of rule')} A newer jaxrl may know it.")
    spec = RuleSpec(kind, arguments, provenance)
    leaves = {member.removeprefix(_WEIGHTS): leaf for member, leaf in members.items()}
    template = _template(spec)
    _check_weights(f"The weights in {name}", kind, leaves, template)
    if digest != _digest(spec, leaves):
        raise StorageError(f"{name} is damaged: its weights are not those that were written.")
    ordered = [leaves[path] for path in trees.named_leaves(template)]
    params = trees.as_arrays(jax.tree.unflatten(jax.tree.structure(template), ordered))
    return RuleFile(spec, spec.build(), params, digest, content)


def _published(path: Path, content: bytes) -> tuple[RuleSpec, PyTree] | None:
    """Spec and weights of a file in a form of its authors; None of other files."""
    origin = {"source": path.name}
    if content.startswith(b"\x93NUMPY"):
        try:
            flat = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StorageError(f"{path} is damaged: {error}") from error
        sizes = _OPEN_SIZES.get(flat.size) if flat.ndim == 1 and flat.dtype.kind == "f" else None
        if sizes is None:
            raise ValueError(
                f"{path} is not a published rule: OPEN's are vectors of {' or '.join(map(str, _OPEN_SIZES))} numbers; "
                f"got {flat.dtype}{list(flat.shape)}."
            )
        return RuleSpec("open", sizes, origin), open_weights(flat, **sizes)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if not any(name.startswith("lstm/") for name in names):
        return None
    try:
        return RuleSpec("disco", {}, origin), disco_file.weights(path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(f"{path} is damaged: {error}") from error


def _template(spec: RuleSpec) -> PyTree:
    """Shapes and dtypes of the weights."""
    return jax.eval_shape(spec.init, jax.random.key(0))


def _check_weights(what: str, kind: str, leaves: dict[str, np.ndarray], template: PyTree) -> None:
    expected = trees.named_leaves(template)
    if set(leaves) != set(expected):
        raise ValueError(
            f"{what} are not those of {kind}: they differ in {', '.join(sorted(set(leaves) ^ set(expected)))}."
        )
    for name, leaf in leaves.items():
        wanted = expected[name]
        if leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            raise ValueError(
                f"{what} are not those of {kind}: {name} must be {wanted.dtype}{list(wanted.shape)}; "
                f"got {leaf.dtype}{list(leaf.shape)}."
            )
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            raise ValueError(f"{what} must be finite; {name} is not.")
    if problem := kind_of(kind).problem(leaves):
        raise ValueError(f"{what} are no {kind}: {problem}.")


def _digest(spec: RuleSpec, leaves: dict[str, np.ndarray]) -> str:
    found = hashlib.blake2b(
        json.dumps([spec.kind, plain(dict(spec.arguments))], sort_keys=True).encode(), digest_size=16
    )
    for name in sorted(leaves):
        found.update(name.encode() + np.ascontiguousarray(leaves[name]).tobytes())
    return found.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
