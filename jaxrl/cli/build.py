"""From names on a command line, or in a run's record, to algorithms."""

import argparse
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from jaxrl import checkpoint, config_fields, runs
from jaxrl.algorithms.registry import ALGORITHMS, Entry
from jaxrl.cli import overrides, rules
from jaxrl.diagnosing import diagnose
from jaxrl.envs import make_env
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.meta.population import population
from jaxrl.names import CONFIG, unknown
from jaxrl.ops import trees
from jaxrl.runs import Run
from jaxrl.types import Algorithm, Env, Hyperparams, State

_NEEDED = ("algorithm", "env", "env_options", "config", "hyperparams", "seed", "num_seeds", "total_steps", "segment")


class Built(NamedTuple):
    """A population ready to be trained.

    Attributes:
      member: the algorithm of one seed.
      algorithm: of all seeds.
      hparams: their hyperparameters.
      layout: of the population on the machine.
      chosen: rules that take the place of the algorithm's own parts.
    """

    member: Algorithm
    algorithm: Algorithm
    hparams: Hyperparams
    layout: Layout = Layout()
    chosen: tuple[rules.Chosen, ...] = ()


def find_algorithm(name: str) -> Entry:
    """The registry's entry.

    Raises:
      ValueError: the name is unknown; the message offers the nearest.
    """
    if name not in ALGORITHMS:
        message = unknown(name, ALGORITHMS, kind="algorithm")
        raise ValueError(f"{message} `jaxrl list algorithms` prints all.")
    return ALGORITHMS[name]


def find_env(name: str, options: Iterable[str] = ()) -> tuple[Env, dict[str, Any]]:
    """The environment and its static options.

    Raises:
      ValueError: the name or an option is unknown, or its suite is not installed.
    """
    read = {key: overrides.parse_option(text) for key, text in overrides.parse_assignments(options).items()}
    return make_env(name, **read), read


def from_options(options: argparse.Namespace) -> tuple[Built, dict[str, Any]]:
    """Builds what `jaxrl train` asks for.

    Returns:
      The population, and the part of the run's record that makes it again.

    Raises:
      ValueError: a name or a value is wrong.
    """
    assignments = overrides.parse_assignments(options.assignments)
    entry = find_algorithm(options.algorithm)
    env, env_options = find_env(options.env, options.env_option)
    top_level = [field.name for field in dataclasses.fields(entry.hyperparams)]
    config = overrides.with_config_changes(entry.default_config, overrides.config_changes(assignments), top_level)
    chosen = rules.of_options(options)
    rules.check_effect(chosen, overrides.hyperparameter_changes(assignments))
    member = rules.factory_of(options.algorithm, entry, chosen)(env, config=config)
    if diagnostics := tuple(options.diagnose.split(",")) if options.diagnose is not None else ():
        member = diagnose(member, diagnostics)
    changes = overrides.with_hyperparameter_changes(
        member.hyperparams(), overrides.hyperparameter_changes(assignments), config_fields.fields(config, CONFIG)
    )
    if "horizon" in top_level and "horizon" not in changes:
        changes["horizon"] = float(iterations_of(options.total_steps, member) * member.env_steps)
    hparams = member.hyperparams(**changes)
    record = {
        "algorithm": options.algorithm,
        "env": options.env,
        "env_options": env_options,
        "config": dataclasses.asdict(config),
        "hyperparams": runs.hyperparams_to_json(hparams),
        **rules.records(chosen),
        **({"diagnose": diagnostics} if diagnostics else {}),
    }
    layout = choose_layout(member, hparams, options.num_seeds)
    return Built(member, population(member, options.num_seeds, (), *layout), hparams, layout, chosen), record


def from_record(run: Run) -> Built:
    """Builds again what a run was made with.

    Raises:
      ValueError: the folder was made from Python and does not say enough, or this jaxrl lacks something of it.
    """
    record = run.record
    if "meta" in record:
        raise ValueError(
            f"{run.path} is a run of `jaxrl meta-train`: `jaxrl meta-test {run.path / 'rule.npz'}` tests its rule, "
            f"`jaxrl plot {run.path}` draws its generations."
        )
    if missing := [name for name in _NEEDED if name not in record]:
        raise ValueError(
            f"{run.path} was not made by `jaxrl train`: its run.json lacks {', '.join(missing)}. "
            "Use jaxrl.fit from Python."
        )
    entry = find_algorithm(record["algorithm"])
    # JSON has made lists of tuples.
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in record["env_options"].items()}
    config = overrides.config_from_json(entry.config, record["config"])
    chosen = rules.from_record(record, run.path)
    member = rules.factory_of(record["algorithm"], entry, chosen)(make_env(record["env"], **options), config=config)
    if record.get("diagnose"):
        member = diagnose(member, tuple(record["diagnose"]))
    hparams = runs.hyperparams_from_json(record["hyperparams"], member.hyperparams())
    # Another layout would give other bits.
    layout = layout_of(run)
    return Built(member, population(member, record["num_seeds"], (), *layout), hparams, layout, chosen)


def layout_of(run: Run) -> Layout:
    """The layout that a run was made with."""
    return Layout(*run.record.get("layout", ()))


def iterations_of(total_steps: int, member: Algorithm) -> int:
    """Iterations that it takes until each seed has done at least so many steps."""
    return math.ceil(total_steps / member.env_steps)


def load_state(run: Run, built: Built, which: str) -> tuple[State, int]:
    """Reads a checkpoint.

    Args:
      run: the folder.
      built: from `from_record`.
      which: `latest`, `best` or an iteration.

    Returns:
      The state and the iteration after which it was saved.

    Raises:
      ValueError: there is none.
      StorageError: it is damaged.
    """
    present = checkpoint.iterations(run.checkpoints)
    if not present:
        raise ValueError(f"{run.path} has no checkpoints yet: train it first with `jaxrl resume {run.path}`.")
    best = checkpoint.best_iteration(run.checkpoints)
    choices = {"latest": present[-1], **({"best": best} if best is not None else {}), **{str(i): i for i in present}}
    if which not in choices:
        raise ValueError(f"{run.path} has no checkpoint {which!r}; there are {', '.join(choices)}.")
    template = jax.eval_shape(
        lambda key, hparams: trees.as_arrays(built.algorithm.init(key, hparams)), jax.random.key(0), built.hparams
    )
    return checkpoint.load(run.checkpoints, choices[which], template)[0], choices[which]
