"""`jaxrl meta-test`: learned rules beside written ones and chance, on the same seeds with the same inner settings."""

import argparse
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl import config_fields
from jaxrl.algorithms import ppo
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.analysis import statistics
from jaxrl.checkpoint import write_file
from jaxrl.cli import build, devices, meta, overrides, rules
from jaxrl.cli.folders import new_folder
from jaxrl.cli.progress import clock, number
from jaxrl.envs import grids
from jaxrl.evaluation import time_limit
from jaxrl.meta import trials
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.names import CONFIG, unknown
from jaxrl.networks import NetworkConfig
from jaxrl.objectives.files import KINDS, RuleFile, RuleSpec, read_rule
from jaxrl.types import Algorithm, Env

RANDOM, WRITTEN, LEARNED, EXACT = "random", "hand-made", "learned", "exact"
_ALIASES = {"ppo": "clip", "a2c": "policy_gradient"}
_DEFAULT = ("ppo", "a2c", "random")
# Children of the user's seed: other keys than those of a search with the same one.
_TEST = 0x7E57


class Arm(NamedTuple):
    """One row of the table in one environment.

    Attributes:
      name: for people.
      group: random, hand-made or learned.
      algorithm: the learner.
      hparams: of it.
      trained: what a learned rule was trained on, for people.
      settings: how it differs from the common inner settings, for people.
    """

    name: str
    group: str
    algorithm: Algorithm
    hparams: Any
    trained: str = ""
    settings: str = ""


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
      env: name.
      iterations: of the life; 0 where nothing is learned.
      env_steps: of the life.
      arm: the row's name.
      group: random, hand-made, learned, or exact.
      trained: as `Arm.trained`.
      scores: one a seed.
    """

    env: str
    iterations: int
    env_steps: int
    arm: str
    group: str
    trained: str
    scores: np.ndarray

    @property
    def interval(self) -> tuple[float, float, float]:
        """Interquartile mean with its 95% bootstrap interval over seeds."""
        low, high = statistics.bootstrap_interval(self.scores)
        return float(statistics.iqm(self.scores)), float(low), float(high)


def meta_test(options: argparse.Namespace) -> None:
    """Tries rules and baselines and writes the table.

    Raises:
      ValueError: a rule, a name or a value is wrong, or a rule cannot act in an environment.
      StorageError: a rule's file is damaged, or something cannot be written.
    """
    devices.use_all_cores(options.devices or 1)
    console = Console(highlight=False)
    found = [(path, read_rule(path)) for path in options.rules]
    family = _family(found)
    first = found[0][1].spec.provenance
    baselines = _baselines(options.baselines, family)
    lives = options.life or _trained_life(options.rules[0], found[0][1])
    sampled = options.actions == "sampled" if options.actions else bool(first.get("sampled", family == "sequence"))
    own, common = _assignments(options.assignments, baselines)
    envs = _environments(options.envs.split(","), options.env_option)
    # All rows are built before the first is computed, so that a wrong name costs nothing.
    plan = [(name, env, extra, _arms(name, env, found, baselines, common, own)) for name, env, extra in envs]
    path = options.out or new_folder(f"meta-test-{found[0][1].spec.kind}")
    if any((path / name).exists() for name in ("table.md", "table.csv", "scores.csv")):
        raise ValueError(f"{path} already holds a table: name another folder.")
    notes = list(_notes(found, lives, sampled, options))
    for line in notes:
        console.print(line, soft_wrap=True, markup=False)
    began = time.monotonic()
    rows: list[Row] = []
    for name, env, extra, arms in plan:
        rows += _tried(name, env, extra, arms, lives, sampled, options)
        console.print(f"{name}: {clock(time.monotonic() - began)}", soft_wrap=True, markup=False)
    settings = {f"{arm.name}: {arm.settings}": None for *_, arms in plan for arm in arms if arm.settings}
    _write(path, rows, [*notes, *settings])
    console.print()
    console.print(_table(rows))
    console.print(f"folder {path}", soft_wrap=True, markup=False)


def _family(found: list[tuple[Path, RuleFile]]) -> str:
    families = {rule.spec.family: path for path, rule in found}
    if len(families) > 1:
        raise ValueError(
            f"{families['drift']} is a drift for ppo and {families['sequence']} a rule over rollouts for lpg, whose "
            "agents differ: test them apart."
        )
    return next(iter(families))


def _environments(names: list[str], texts: list[str]) -> list[tuple[str, Env, dict[str, Any]]]:
    """Each with its options: those of all, and those that its name stands before."""
    for text in texts:
        owner, colon, _ = text.partition("=")[0].rpartition(":")
        if colon and owner not in names:
            raise ValueError(f"--env-option {text} is for {owner}, which is not among --envs: {', '.join(names)}.")
    found = []
    for name in names:
        own = [text.removeprefix(f"{name}:") for text in texts]
        found.append((name, *build.find_env(name, [text for text in own if ":" not in text.partition("=")[0]])))
    return found


def _baselines(text: str | None, family: str) -> tuple[str, ...]:
    written = [name for name, kind in KINDS.items() if not kind.is_learned and kind.family == family]
    known = [*dict.fromkeys((*_DEFAULT, *written))]
    names = tuple(text.split(",")) if text else _DEFAULT
    for name in names:
        if name not in known:
            raise ValueError(unknown(name, known, kind="baseline"))
    return tuple(dict.fromkeys(names))


def _trained_life(path: Path, rule: RuleFile) -> tuple[int, ...]:
    horizon = rule.spec.provenance.get("horizon")
    if not horizon:
        raise ValueError(f"{path} does not say what horizon it was trained for: give --life, in iterations.")
    return (int(horizon["iterations"][-1]),)


def _assignments(texts: Iterable[str], baselines: tuple[str, ...]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Those of each baseline, and those of all."""
    own: dict[str, dict[str, str]] = {name: {} for name in baselines}
    common: dict[str, str] = {}
    for name, value in overrides.parse_assignments(texts).items():
        first, _, rest = name.partition(".")
        if first in own and rest:
            own[first][rest] = value
        else:
            common[name] = value
    return own, common


def _arms(
    name: str,
    env: Env,
    found: list[tuple[Path, RuleFile]],
    baselines: tuple[str, ...],
    common: dict[str, str],
    own: dict[str, dict[str, str]],
) -> list[Arm]:
    """All rows of one environment: random, written, learned."""
    family = found[0][1].spec.family
    inner = found[0][1].spec.provenance.get("inner") or {}
    algorithm = meta.AGENTS[family]
    base, rates = meta.inner_defaults(env, algorithm)
    changed = {field: str(value) for field, value in rates.items()}
    if inner:
        recorded = overrides.config_from_json(type(base), inner["config"])
        # Tables where states are numbered, networks elsewhere, with the rates of their kind.
        if getattr(recorded, "tabular", False) == getattr(base, "tabular", False):
            base, changed = recorded, dict(inner["hyperparams"])

    def built(spec: RuleSpec, params: Any, more: dict[str, str], start: Any = base) -> tuple[Algorithm, Any]:
        given = {**common, **more}
        config = overrides.with_config_changes(start, overrides.config_changes(given))
        member = meta.member_of(env, algorithm, dataclasses.asdict(config), spec)
        return member, _hyperparams(member, {**changed, **overrides.hyperparameter_changes(given)}, params)

    def written(baseline: str) -> Arm:
        more = own[baseline]
        settings = ", ".join(f"{field}={value}" for field, value in more.items())
        if family == "drift":
            kind, start = _ALIASES.get(baseline, baseline), base
            if baseline == "a2c":
                start = dataclasses.replace(base, num_epochs=1, num_minibatches=1, clip_value=False)
                settings = ", ".join(filter(None, ("one epoch, one minibatch", settings)))
            return Arm(baseline, WRITTEN, *built(RuleSpec(kind), None, more, start), settings=settings)
        if baseline == "ppo":
            member, hparams = _ppo_beside(env, base, common, more)
            rate = f"learning_rate={float(hparams.learning_rate):.3g}"
            others = [f"{field}={value}" for field, value in more.items() if field != "learning_rate"]
            return Arm("ppo", WRITTEN, member, hparams, settings=", ".join(("rates of its own", rate, *others)))
        bins = {rule.rule.num_bins for _, rule in found}
        return Arm(baseline, WRITTEN, *built(RuleSpec("a2c", {"num_bins": max(bins)}), None, more), settings=settings)

    chance = trials.random_policy(env)
    arms = [Arm(RANDOM, RANDOM, chance, chance.hyperparams())] if RANDOM in baselines else []
    try:
        arms += [written(baseline) for baseline in baselines if baseline != RANDOM]
        arms += [
            Arm(label, LEARNED, *built(rule.spec, rule.params, {}), trained=_trained(rule))
            for label, (_, rule) in zip(_labels([path for path, _ in found]), found, strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"In {name}: {error}") from error
    return arms


def _hyperparams(member: Algorithm, texts: dict[str, str], params: Any) -> Any:
    others = config_fields.fields(member.config, CONFIG)
    changes = overrides.with_hyperparameter_changes(member.hyperparams(), texts, others)
    return member.hyperparams(**({} if params is None else {"objective": params}), **changes)


def _ppo_beside(env: Env, config: Any, common: dict[str, str], more: dict[str, str]) -> tuple[Algorithm, Any]:
    """PPO with the rollouts and networks of an agent of a rule over sequences, but with rates of its own."""
    sizes = overrides.with_config_changes(config, overrides.config_changes(common))
    network = NetworkConfig(hidden=() if sizes.tabular else sizes.hidden)
    own = ppo.Config(num_envs=sizes.num_envs, num_steps=sizes.num_steps, network=network)
    own = overrides.with_config_changes(own, overrides.config_changes(more))
    member = ALGORITHMS["ppo"].factory(env, config=own)
    return member, _hyperparams(member, overrides.hyperparameter_changes(more), None)


def _labels(paths: list[Path]) -> list[str]:
    """The files' names, with their folders where those alone tell them apart."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems) and stems != ["rule"]:
        return stems
    return [f"{path.resolve().parent.name}/{path.stem}" for path in paths]


def _trained(rule: RuleFile) -> str:
    about, kind = rule.spec.provenance, rule.spec.kind
    if not about.get("horizon"):
        return kind
    low, high = about["horizon"]["iterations"]
    lives = f"{high}" if low == high else f"{low} to {high}"
    return f"{kind}, {'levels of ' if about.get('tasks') else ''}{about.get('env')}, {lives} iterations"


def _notes(
    found: list[tuple[Path, RuleFile]], lives: tuple[int, ...], sampled: bool, options: argparse.Namespace
) -> Iterable[str]:
    yield (
        f"{options.num_seeds} seeds, lives of {', '.join(f'{n:,}' for n in lives)} iterations, "
        f"{options.eval_episodes} episodes after each with {'sampled' if sampled else 'greedy'} actions, "
        f"seed {options.seed}"
    )
    settings = [rule.spec.provenance.get("inner") for _, rule in found]
    if any(each != settings[0] for each in settings[1:]):
        yield f"inner settings are those of {found[0][0]}; others of these rules were trained with other ones"


def _tried(
    name: str,
    env: Env,
    extra: dict[str, Any],
    arms: list[Arm],
    lives: tuple[int, ...],
    sampled: bool,
    options: argparse.Namespace,
) -> list[Row]:
    """All rows of one environment, on the same keys and levels."""
    tasks = rules.tasks_of(name, **extra)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), _TEST), options.num_seeds)
    rows: list[Row] = []
    for arm in arms:
        member, is_random = arm.algorithm, arm.group == RANDOM
        if options.devices or options.chunk:
            layout = Layout(options.devices or 1, options.chunk)
        elif is_random:
            layout = Layout()
        else:
            layout = choose_layout(member, arm.hparams, options.num_seeds)
        run: Callable[..., Any] = jax.jit(
            trials.trial(
                member,
                options.eval_episodes,
                time_limit(env, arm.hparams.env),
                sampled or is_random,
                tasks,
                *layout,
            )
        )
        for life in (0,) if is_random else lives:
            scores = np.asarray(run(keys, arm.hparams, jnp.int32(life)), np.float64)
            rows.append(Row(name, life, life * member.env_steps, arm.name, arm.group, arm.trained, scores))
    if tasks is not None and name.startswith("grids/"):
        best = jax.jit(jax.vmap(lambda key: grids.optimal_return(tasks(key))))(trials.task_keys(keys))
        rows.append(Row(name, 0, 0, "best possible", EXACT, "", np.asarray(best, np.float64)))
    return rows


def _cells(row: Row) -> list[str]:
    center, low, high = row.interval
    life = f"{row.iterations:,} ({row.env_steps:,} steps)" if row.iterations else "–"
    return [row.env, life, row.arm, row.group, f"{number(center)} [{number(low)}, {number(high)}]", row.trained or "–"]


_TITLES = ("env", "tested at", "rule", "kind", "IQM [95%]", "trained on")


def _table(rows: list[Row]) -> Table:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for title in _TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), style="bold" if row.group == LEARNED else None)
    return table


def _write(path: Path, rows: list[Row], notes: list[str]) -> None:
    """table.md for people, table.csv a line a row, scores.csv a line a seed."""
    lines = ["| " + " | ".join(_TITLES) + " |", "|" + "---|" * len(_TITLES)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    write_file(path / "table.md", ("\n".join([*(f"{note}.\n" for note in notes), *lines]) + "\n").encode())
    names = ("env", "iterations", "env_steps", "rule", "kind", "trained")
    summaries, singles = [], []
    for row in rows:
        about = [row.env, row.iterations, row.env_steps, row.arm, row.group, row.trained]
        summaries.append([*about, *row.interval, float(statistics.mean(row.scores)), len(row.scores)])
        singles += [[*about, seed, float(score)] for seed, score in enumerate(row.scores)]
    write_file(path / "table.csv", _csv([*names, "iqm", "low", "high", "mean", "num_seeds"], summaries))
    write_file(path / "scores.csv", _csv([*names, "seed", "score"], singles))


def _csv(titles: list[str], rows: list[list[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([titles, *rows])
    return buffer.getvalue().encode()
