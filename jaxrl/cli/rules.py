"""`--objective`, `--optimizer`, `--head`: a written part by name, or a rule in a file; and environments with levels."""

import argparse
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jaxrl.algorithms.registry import ALGORITHMS, Entry
from jaxrl.checkpoint import write_file
from jaxrl.envs import make_env
from jaxrl.envs.registry import SUITES
from jaxrl.names import unknown
from jaxrl.objectives.files import FAMILIES, KINDS, RuleFile, RuleSpec, read_rule
from jaxrl.objectives.kinds import Family
from jaxrl.types import Algorithm, Env, Key, memoize

OPTIONS = ("objective", "optimizer", "head")
"""Options that take a rule: each is the leaf that holds its weights."""

SUFFIXES = (".npz", ".npy")


class Chosen(NamedTuple):
    """A rule that takes the place of an algorithm's own part.

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
    def family(self) -> Family:
        """Where it goes."""
        return FAMILIES[self.spec.family]

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"kind": self.spec.kind, "arguments": dict(self.spec.arguments), "digest": self.digest}

    @property
    def name(self) -> str:
        """For people."""
        return self.spec.kind if self.digest is None else f"{self.spec.kind} {self.digest[:8]}"

    def keep(self, folder: Path) -> list[Path]:
        """Copies the file into a folder, so that the run goes on where the original has moved.

        Returns:
          What was written: nothing where the copy is there already.

        Raises:
          ValueError: another file has its name.
        """
        path = folder / f"{self.family.leaf}.npz"
        if self.content is None or (path.exists() and path.read_bytes() == self.content):
            return []
        if path.exists():
            raise ValueError(f"{path} is there already and is another file: choose another --out, or move it away.")
        write_file(path, self.content)
        return [path]


def is_file(text: str) -> bool:
    """Whether an argument names a file, and no written part."""
    return text.endswith(SUFFIXES) or "/" in text


def find(text: str, option: str = "objective") -> Chosen:
    """The rule of a name or of a file.

    Args:
      text: of the option.
      option: one of `OPTIONS`.

    Raises:
      ValueError: the name is unknown, or is one of weights; the file is missing, no rule, or one for another option.
      StorageError: the file is damaged.
    """
    if not text:
        raise ValueError(f"--{option} is empty: give a name or a file, or leave it out.")
    if is_file(text):
        chosen = from_file(Path(text))
    elif text in KINDS and KINDS[text].is_learned:
        source = "their authors' disco_103.npz" if text == "disco" else "FILE.npz, that `jaxrl meta-train` writes"
        raise ValueError(f"{text} is learned: give the file of its weights, {source}.")
    elif text in KINDS:
        chosen = Chosen(RuleSpec(text))
    else:
        written = [name for name in KINDS if not KINDS[name].is_learned and _leaf(name) == option]
        if not written:
            raise ValueError(f"--{option} takes the file of a learned one, FILE.npz; got {text!r}.")
        raise ValueError(f"{unknown(text, written, kind=option)} A learned one is a file, FILE.npz.")
    if chosen.family.leaf != option:
        raise ValueError(f"{text} is {chosen.family.what}, no {option}: give it as --{chosen.family.leaf} {text}.")
    return chosen


def _leaf(kind: str) -> str:
    return FAMILIES[KINDS[kind].family].leaf


def of_options(options: argparse.Namespace) -> tuple[Chosen, ...]:
    """The rules that a command line names, one for each option at most.

    Raises:
      ValueError, StorageError: as for `find`.
    """
    given = {option: getattr(options, option, None) for option in OPTIONS}
    return tuple(find(text, option) for option, text in given.items() if text is not None)


def check_effect(chosen: Sequence[Chosen], names: Iterable[str]) -> None:
    """Refuses hyperparameters that the rules make idle.

    Raises:
      ValueError: a learning rate is set or swept beside a learned optimizer.
    """
    if "learning_rate" in names and any(each.spec.family == "optimizer" for each in chosen):
        raise ValueError(
            "learning_rate has no effect with a learned optimizer, whose rule says how far a step goes: leave one of "
            "them out."
        )


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


def records(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What the record of a run or sweep says of its rules, by option."""
    return {each.family.leaf: each.record for each in chosen}


def from_record(record: Mapping[str, Any], folder: Path) -> tuple[Chosen, ...]:
    """The rules that a run or sweep was made with, from its own copies of their files.

    Args:
      record: that has what `records` gave.
      folder: of the run or sweep.

    Raises:
      ValueError: a copy is missing or is another rule.
      StorageError: a copy is damaged.
    """
    return tuple(_from_record(record[option], folder / f"{option}.npz") for option in OPTIONS if record.get(option))


def _from_record(record: dict[str, Any], path: Path) -> Chosen:
    if record["digest"] is None:
        return Chosen(RuleSpec(record["kind"], record["arguments"]))
    if not path.exists():
        raise ValueError(f"{path} is missing: copy the {record['kind']} of digest {record['digest'][:8]} there again.")
    chosen = from_file(path)
    if chosen.digest != record["digest"]:
        raise ValueError(f"{path} is not the rule that {path.parent} was made with.")
    return chosen


def factory_of(name: str, entry: Entry, chosen: Sequence[Chosen]) -> Callable[..., Algorithm]:
    """The algorithm's factory `(env, config=…)`, with the rules in it.

    Raises:
      ValueError: the algorithm takes no such rule.
    """
    if not chosen:
        return entry.factory
    for each in chosen:
        if not _takes(entry, each.family):
            able = [other for other, its in ALGORITHMS.items() if _takes(its, each.family) and _builds(its, each)]
            raise ValueError(
                f"{each.spec.kind} is {each.family.what}, which {name} does not take: take one of {', '.join(able)}."
            )
    parts = {each.family.slot: each.spec.build() for each in chosen}
    weights = {each.family.leaf: each.params for each in chosen if each.params is not None}

    @memoize
    def make(env: Env, config: Any = entry.default_config) -> Algorithm:
        algorithm = entry.factory(env, config=config, **parts)
        if not weights:
            return algorithm
        return algorithm._replace(hyperparams=lambda **changes: algorithm.hyperparams(**{**weights, **changes}))

    return make


def _takes(entry: Entry, family: Family) -> bool:
    fields = [field.name for field in dataclasses.fields(entry.hyperparams)]
    return family.slot in inspect.signature(entry.factory).parameters and family.leaf in fields


def _builds(entry: Entry, chosen: Chosen) -> bool:
    """Whether an algorithm that has the slot can do with what is in it, in an environment that all can do with."""
    part = {chosen.family.slot: chosen.spec.build()}
    try:
        entry.factory(make_env("probe/Credit"), config=entry.default_config, **part)
    except ValueError:
        return False
    return True


def is_missing(name: str, chosen: Sequence[Chosen]) -> bool:
    """Whether an algorithm is to learn by a rule whose weights nobody has given."""
    learned = (FAMILIES["sequence"], FAMILIES["disco"])
    return not chosen and any(_takes(ALGORITHMS[name], family) for family in learned)


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
