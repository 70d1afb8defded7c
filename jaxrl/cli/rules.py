"""`--objective`: a written objective by name, or a rule from a file; and environments that are tasks."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jaxrl.algorithms.registry import ALGORITHMS, Entry
from jaxrl.checkpoint import write_file
from jaxrl.envs.registry import SUITES
from jaxrl.names import unknown
from jaxrl.objectives.files import KINDS, RuleFile, RuleSpec, read_rule
from jaxrl.types import Algorithm, Env, Key, memoize

COPY = "objective.npz"
"""The rule's file in the folder of a run or sweep."""

_SLOTS = {"drift": "objective", "sequence": "rule"}


class Chosen(NamedTuple):
    """An objective that takes the place of an algorithm's own.

    Attributes:
      spec: what it is.
      params: weights from a file; None: the factory's defaults.
      digest: of the file's rule; None without a file.
      content: of the file; None without one.
    """

    spec: RuleSpec
    params: PyTree = None
    digest: str | None = None
    content: bytes | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"kind": self.spec.kind, "arguments": dict(self.spec.arguments), "digest": self.digest}

    @property
    def name(self) -> str:
        """For people."""
        return self.spec.kind if self.digest is None else f"{self.spec.kind} {self.digest[:8]}"

    def keep(self, folder: Path) -> None:
        """Copies the file into a folder, so that the run goes on where the original has moved."""
        if self.content is not None:
            write_file(folder / COPY, self.content)


def find(text: str) -> Chosen:
    """The objective of a name or of a file.

    Raises:
      ValueError: the name is unknown, or is one of weights; the file is missing or no rule.
      StorageError: the file is damaged.
    """
    if text.endswith(".npz") or "/" in text:
        return from_file(Path(text))
    written = [name for name, kind in KINDS.items() if not kind.is_learned]
    if text not in KINDS:
        raise ValueError(f"{unknown(text, written, kind='objective')} A learned one is a file, FILE.npz.")
    if KINDS[text].is_learned:
        raise ValueError(f"{text} is learned: give the file of its weights, FILE.npz, that `jaxrl meta-train` writes.")
    return Chosen(RuleSpec(text))


def from_file(path: Path) -> Chosen:
    """The rule of a file.

    Raises:
      ValueError: the file is missing or no rule.
      StorageError: the file is damaged.
    """
    return of_rule(read_rule(path))


def of_rule(found: RuleFile) -> Chosen:
    """The rule of a file that was read."""
    return Chosen(found.spec, found.params, found.digest, found.content)


def from_record(record: dict[str, Any] | None, folder: Path) -> Chosen | None:
    """The objective that a run or sweep was made with, from its own copy of the file.

    Args:
      record: `Chosen.record`, or None.
      folder: of the run or sweep.

    Raises:
      ValueError: the copy is missing or is another rule.
      StorageError: the copy is damaged.
    """
    if record is None:
        return None
    if record["digest"] is None:
        return Chosen(RuleSpec(record["kind"], record["arguments"]))
    chosen = from_file(folder / COPY)
    if chosen.digest != record["digest"]:
        raise ValueError(f"{folder / COPY} is not the rule that {folder} was made with.")
    return chosen


def factory_of(name: str, entry: Entry, chosen: Chosen | None) -> Callable[..., Algorithm]:
    """The algorithm's factory `(env, config=…)`, with the objective in it.

    Raises:
      ValueError: the algorithm takes no such objective.
    """
    if chosen is None:
        return entry.factory
    slot = _SLOTS[chosen.spec.family]
    if slot not in inspect.signature(entry.factory).parameters:
        able = [other for other, each in ALGORITHMS.items() if slot in inspect.signature(each.factory).parameters]
        what = "a rule over sequences" if slot == "rule" else "an objective of samples"
        raise ValueError(f"{chosen.spec.kind} is {what}, which {name} does not take: take one of {', '.join(able)}.")
    built = chosen.spec.build()

    @memoize
    def make(env: Env, config: Any = entry.default_config) -> Algorithm:
        algorithm = entry.factory(env, config=config, **{slot: built})
        if chosen.params is None:
            return algorithm

        def with_weights(**changes: Any) -> Any:
            return algorithm.hyperparams(**{"objective": chosen.params, **changes})

        return algorithm._replace(hyperparams=with_weights)

    return make


def tasks_of(name: str, **options: Any) -> Callable[[Key], Any] | None:
    """How the levels of an environment are drawn, `(key) -> parameters`; None if it has no levels.

    Args:
      name: `suite/Name`.
      **options: of the environment's constructor.
    """
    suite, _, short = name.partition("/")
    if suite not in SUITES:
        return None
    levels = getattr(importlib.import_module(SUITES[suite].module), "levels", None)
    return levels and levels(short, **{key: value for key, value in options.items() if key != "observe"})
