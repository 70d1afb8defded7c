"""What the options of `jaxrl meta-train` say, as a record that makes the search again."""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxrl import config_fields, runs
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.cli import build, overrides, rules
from jaxrl.cli.meta_search import OUTER, OWN, Outer, inner_defaults, member_of
from jaxrl.meta import imitation
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.names import CONFIG
from jaxrl.objectives import rules as written_rules
from jaxrl.objectives.files import FAMILIES, KINDS, RuleSpec, from_bytes, to_bytes
from jaxrl.types import Algorithm, Env


def record_of(options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], rules.Chosen | None]:
    """What makes the search again, and the weights that it begins at if those are in a file.

    Args:
      options: of the command.
      console: for what takes a while.

    Raises:
      ValueError: an argument is wrong.
      StorageError: the file where it begins is damaged.
    """
    outer, leaf = OUTER[KINDS[options.kind].family], FAMILIES[KINDS[options.kind].family].leaf
    _check_options(options, outer)
    env, env_options = build.find_env(options.env or options.tasks, options.env_option)
    tasks = rules.tasks_of(options.tasks, **env_options) if options.tasks else None
    if options.tasks and tasks is None:
        raise ValueError(f"{options.tasks} has no levels to draw: use --env, or tasks of grids/* or chains/*.")
    arguments, start_name, start = _start(options, outer)
    spec = RuleSpec(options.kind, arguments)
    spec.build()

    assignments = overrides.parse_assignments(options.assignments)
    rules.check_effect((rules.Chosen(spec),), assignments)
    entry = ALGORITHMS[outer.agent]
    base, rates = inner_defaults(env, outer.agent)
    top_level = [field.name for field in dataclasses.fields(entry.hyperparams)]
    config = overrides.with_config_changes(base, overrides.config_changes(assignments), top_level)
    member = member_of(env, outer.agent, dataclasses.asdict(config), spec)
    changed = overrides.with_hyperparameter_changes(
        member.hyperparams(), overrides.hyperparameter_changes(assignments), config_fields.fields(config, CONFIG)
    )
    if getattr(config, "tabular", False):
        changed = {**rates, **changed}
    low, high = options.life or ((10, 100) if options.kind == "ta_lpg" else (50, 50))
    changed.setdefault("horizon", float(high * member.env_steps))
    if start_name == "a2c" and not options.plan:
        start = _imitated(console, options.seed, env, member, spec, changed, tasks)
    if start:
        changed[leaf] = start.params
    inner = member.hyperparams(**changed)
    settings = _settings(options, outer)
    looks = _looks(options, outer)
    num_learners = settings.get("children", settings["population"]) * options.num_seeds
    if options.devices or options.chunk:
        layout = Layout(options.devices or 1, options.chunk)
    else:
        layout = choose_layout(member, inner, num_learners)
    return {
        "algorithm": outer.agent,
        "env": options.env or options.tasks,
        "env_options": env_options,
        "config": dataclasses.asdict(config),
        "hyperparams": runs.hyperparams_to_json(inner),
        "seed": options.seed,
        "iterations": options.generations // looks,
        "layout": list(layout),
        **({leaf: start.record} if start else {}),
        "meta": {
            "kind": options.kind,
            "arguments": arguments,
            "tasks": bool(options.tasks),
            "start": start_name,
            "life": [low, high],
            "held_out_every": looks,
            "num_seeds": options.num_seeds,
            "num_episodes": options.eval_episodes,
            "sampled": outer.sampled,
            **settings,
        },
    }, start


def _check_options(options: argparse.Namespace, outer: Outer) -> None:
    """Refuses what belongs to the other outer loop."""
    for loop, names in OWN.items():
        given = [name for name in names if getattr(options, name) is not None]
        if loop != outer.loop and given:
            kinds = [name for name, kind in KINDS.items() if kind.is_learned and _loop(kind.family) == loop]
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for {', '.join(kinds)}; {options.kind} is searched in another way: "
                "leave it out."
            )
    if outer.loop == "programs" and options.life and options.life[0] < options.life[1]:
        raise ValueError(f"--life of {options.kind} is one number, since all its learners live equally long.")


def _looks(options: argparse.Namespace, outer: Outer) -> int:
    """Generations from one look at the held-out learners to the next."""
    if outer.loop == "programs":
        # The next generation may have forgotten the best.
        return 1
    looks = options.held_out_every or min(10, options.generations)
    if options.generations % looks:
        raise ValueError(
            "--generations must be a multiple of --held-out-every (10 unless you say otherwise), so that the last one "
            f"is looked at; got --generations {options.generations}, --held-out-every {looks}."
        )
    return looks


def _loop(family: str) -> str | None:
    return OUTER[family].loop if OUTER[family].starts else None


def _start(options: argparse.Namespace, outer: Outer) -> tuple[dict[str, Any], str, rules.Chosen | None]:
    """Arguments of the rule, the name of where it begins, and the file that this is."""
    texts = overrides.parse_assignments(options.rule_option)
    arguments = {name: overrides.parse_option(text) for name, text in texts.items()}
    name = options.start or outer.starts[0]
    if outer.loop == "strategy" and name.endswith(rules.SUFFIXES):
        start = rules.from_file(Path(name))
        if start.spec.kind != options.kind or arguments:
            raise ValueError(
                f"--start {name} is of kind {start.spec.kind} with the sizes of its own: it begins a search of "
                "that kind, without --rule-option."
            )
        return dict(start.spec.arguments), name, start
    if name not in outer.starts:
        files = " or a file FILE.npz" if outer.loop == "strategy" else ""
        raise ValueError(f"--start must be one of {', '.join(outer.starts)}{files}; got {name!r}.")
    if name == "ppo":
        arguments["start"] = "ppo"
    return arguments, name, None


def _settings(options: argparse.Namespace, outer: Outer) -> dict[str, Any]:
    """Those of the outer loop."""
    given = {name: getattr(options, name) for name in outer.defaults}
    found = {name: outer.defaults[name] if value is None else value for name, value in given.items()}
    found["fitness"] = options.fitness or outer.fitness
    if outer.loop == "programs":
        for name in ("tournament", "children"):
            if given[name] is None:
                found[name] = min(found[name], found["population"])
        return found | {"num_held_out": options.held_out or 4}
    if options.tasks and options.population is None:
        found["population"] = 64
    if found["population"] % 2:
        raise ValueError(f"--population must be even, since candidates come in pairs; got {found['population']}.")
    return found | {"num_held_out": options.held_out or (64 if options.tasks else 16)}


def _imitated(
    console: Console, seed: int, env: Env, member: Algorithm, spec: RuleSpec, changed: dict[str, Any], tasks: Any
) -> rules.Chosen:
    """Weights of a rule over sequences that imitates advantage actor-critic, as if they came from a file."""
    entry = ALGORITHMS["lpg"]
    student: Any = spec.build()
    teacher = written_rules.a2c(student.num_bins, standardize=False)
    make = functools.partial(entry.factory, env, config=member.config)
    learn = imitation.imitate(lambda rule: make(rule=rule), student, teacher, tasks=tasks)
    rates = {name: value for name, value in changed.items() if name != "objective"}
    hparams = make(rule=teacher).hyperparams(**rates)
    console.print("imitating a2c, 1,000 updates of 32 agents …")
    params, metrics = jax.jit(learn)(jax.random.fold_in(jax.random.key(seed), 1), hparams)
    error = float(metrics["imitation/policy"][-1])
    console.print(f"its squared error of π̂ is {error:.2f} of a2c's mean square")
    return rules.of_rule(from_bytes(to_bytes(spec, jax.device_get(params))))
