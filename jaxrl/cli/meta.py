"""`jaxrl meta-train`, and `jaxrl resume` of such a run."""

import argparse
import dataclasses
import functools
import math
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from rich.console import Console

from jaxrl import checkpoint, config_fields, fit, memory, programs, runs, spaces, strategies
from jaxrl.algorithms import lpg
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.cli import build, devices, overrides, rules
from jaxrl.cli.folders import new_folder
from jaxrl.cli.progress import clock, short
from jaxrl.envs import make_env
from jaxrl.evaluation import time_limit
from jaxrl.meta import evolve, imitation
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.names import CONFIG
from jaxrl.objectives import rules as written_rules
from jaxrl.objectives.files import KINDS, RuleSpec, from_bytes, read_rule, save_rule, to_bytes
from jaxrl.ops import trees
from jaxrl.progress import Progress
from jaxrl.runs import Run
from jaxrl.types import Algorithm, Env, Key, memoize

AGENTS = {"drift": "ppo", "sequence": "lpg"}
TABLES = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}
"""Rates of an agent of tables: Jackson et al. 2023, whose agents descend by plain gradients of bounded norm."""


class Search(NamedTuple):
    """A search that a record describes.

    Attributes:
      spec: of the rule.
      member: the inner algorithm.
      algorithm: that evolves its rule.
      hparams: of the search.
    """

    spec: RuleSpec
    member: Algorithm
    algorithm: Algorithm
    hparams: evolve.Hyperparams


def meta_train(options: argparse.Namespace) -> None:
    """Begins a search.

    Raises:
      ValueError: an argument is wrong, the memory does not suffice, or the folder holds a run already. No folder is
        left behind.
      StorageError: something cannot be written.
    """
    devices.use_all_cores(options.devices or 1)
    console = Console(highlight=False)
    record, start = _record(options, console)
    search = search_of(record, start.params if start else None)
    _print_plan(console, record, search)
    if options.plan:
        needed = memory.estimate(search.algorithm, search.hparams, 1)
        console.print(f"about {memory.readable(needed.total)}: {memory.describe(needed)}", soft_wrap=True)
        return
    path = options.out or new_folder(f"meta-train-{options.kind}-{record['env']}")
    existed = path.exists()
    run = Run.create(path, runs.describe(**record))
    try:
        if start:
            start.keep(path)
        _run(console, run, search, options.time_limit, resume=False)
    except BaseException:
        # The folder can be used again.
        if not (path / "metrics").exists() and not existed:
            shutil.rmtree(path, ignore_errors=True)
        raise


def resume(console: Console, run: Run, options: argparse.Namespace) -> None:
    """Goes on with a search.

    Raises:
      ValueError: options do not apply to a search, or this jaxrl lacks something of it.
      StorageError: something cannot be read or written.
    """
    if options.total_steps or options.assignments:
        raise ValueError(f"{run.path} is a run of `jaxrl meta-train`, which goes on as it began: start a new one.")
    devices.use_all_cores(run.record["layout"][0])
    start = rules.from_record(run.record.get("objective"), run.path)
    search = search_of(run.record, start.params if start else None)
    _print_plan(console, run.record, search)
    _run(console, run, search, None, resume=True)


def search_of(record: dict[str, Any], start: PyTree | None) -> Search:
    """Builds what a record says.

    Args:
      record: of the run.
      start: weights at which the search begins; None: the rule's own.

    Raises:
      ValueError: this jaxrl lacks something of it.
    """
    about = record["meta"]
    spec = RuleSpec(about["kind"], about["arguments"])
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in record["env_options"].items()}
    env = make_env(record["env"], **options)
    member = member_of(env, record["algorithm"], record["config"], spec)
    template = member.hyperparams(**({} if start is None else {"objective": start}))
    inner = runs.hyperparams_from_json(record["hyperparams"], template)
    low, high = about["life"]
    search = strategies.open_es(about["population"], getattr(strategies, about["shaping"]))
    algorithm = evolve.evolve(
        member,
        search,
        "objective",
        num_steps=high,
        num_generations=about["held_out_every"],
        num_seeds=about["num_seeds"],
        num_held_out=about["num_held_out"],
        fitness=about["fitness"],
        num_episodes=about["num_episodes"],
        max_episode_steps=time_limit(env, inner.env),
        sampled=about["sampled"],
        common_keys="pairs" if about["tasks"] else "all",
        tasks=rules.tasks_of(record["env"], **options) if about["tasks"] else None,
        lifetimes=None if low == high else lifetimes(low, high),
        num_devices=record["layout"][0],
        chunk=record["layout"][1],
    )
    own = search.hyperparams(
        sigma=about["sigma"],
        learning_rate=about["meta_rate"],
        sigma_decay=about["decay"],
        learning_rate_decay=about["decay"],
    )
    return Search(spec, member, algorithm, evolve.Hyperparams(trees.as_arrays(inner), own))


def member_of(env: Env, algorithm: str, config: dict[str, Any], spec: RuleSpec) -> Algorithm:
    """The inner learner.

    Args:
      env: that it learns in.
      algorithm: ppo or lpg.
      config: as a record has it.
      spec: of its rule.

    Raises:
      ValueError: the rule cannot act in the environment, or the config does not fit.
    """
    entry = ALGORITHMS[algorithm]
    made = overrides.config_from_json(entry.config, config)
    return rules.factory_of(algorithm, entry, rules.Chosen(spec))(env, config=made)


def inner_defaults(env: Env, algorithm: str) -> tuple[Any, dict[str, float]]:
    """Config and rates of an inner learner, before the user changes them: tables where states are numbered."""
    if algorithm == "lpg" and isinstance(env.observation_space, spaces.Discrete):
        return lpg.Config(tabular=True, optimizer="sgd"), TABLES
    return ALGORITHMS[algorithm].default_config, {}


@memoize
def lifetimes(low: int, high: int) -> Callable[[Key], Array]:
    """Draws log-uniform lengths of life, in iterations."""

    def draw(key: Key) -> Array:
        length = jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high)))
        return jnp.round(length).astype(jnp.int32)

    return draw


def inner_of(member: Algorithm, hparams: Any) -> dict[str, Any]:
    """Settings of an inner learner for a rule's provenance: its config, and as text what is not the default."""
    defaults, changed = trees.named_leaves(member.hyperparams()), {}
    for name, leaf in trees.named_leaves(hparams).items():
        value = np.asarray(leaf)
        if name.partition(".")[0] in ("env", "objective", "horizon") or value.ndim or value == defaults[name]:
            continue
        # The shortest text that gives this number again in its own precision.
        changed[name] = str(value[()]) if value.dtype.kind == "f" else str(value.item())
    return {"algorithm": member.name, "config": dataclasses.asdict(member.config), "hyperparams": changed}


def _record(options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], rules.Chosen | None]:
    """What makes the search again, and the weights that it begins at if those are in a file."""
    family = KINDS[options.kind].family
    algorithm, is_drift = AGENTS[family], family == "drift"
    env, env_options = build.find_env(options.env or options.tasks, options.env_option)
    tasks = rules.tasks_of(options.tasks, **env_options) if options.tasks else None
    if options.tasks and tasks is None:
        raise ValueError(f"{options.tasks} has no levels to draw: use --env, or tasks of grids/* or chains/*.")
    arguments = {
        name: overrides.parse_option(text) for name, text in overrides.parse_assignments(options.rule_option).items()
    }
    start_name = options.start or ("zero" if is_drift else "random")
    names = ("zero", "ppo") if is_drift else ("random", "a2c")
    start = None
    if start_name.endswith(".npz"):
        start = rules.from_file(Path(start_name))
        if start.spec.kind != options.kind or arguments:
            raise ValueError(
                f"--start {start_name} is of kind {start.spec.kind} with the sizes of its own: it begins a search of "
                "that kind, without --rule-option."
            )
        arguments = dict(start.spec.arguments)
    elif start_name not in names:
        raise ValueError(f"--start must be one of {', '.join(names)} or a file FILE.npz; got {start_name!r}.")
    elif start_name == "ppo":
        arguments["start"] = "ppo"
    spec = RuleSpec(options.kind, arguments)
    spec.build()

    assignments = overrides.parse_assignments(options.assignments)
    entry = ALGORITHMS[algorithm]
    base, rates = inner_defaults(env, algorithm)
    top_level = [field.name for field in dataclasses.fields(entry.hyperparams)]
    config = overrides.with_config_changes(base, overrides.config_changes(assignments), top_level)
    member = member_of(env, algorithm, dataclasses.asdict(config), spec)
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
        changed["objective"] = start.params
    inner = member.hyperparams(**changed)
    population = options.population or (64 if tasks else 32)
    if population % 2:
        raise ValueError(f"--population must be even, since candidates come in pairs; got {population}.")
    num_learners = population * options.num_seeds
    if options.devices or options.chunk:
        layout = Layout(options.devices or 1, options.chunk)
    else:
        layout = choose_layout(member, inner, num_learners)
    return {
        "algorithm": algorithm,
        "env": options.env or options.tasks,
        "env_options": env_options,
        "config": dataclasses.asdict(config),
        "hyperparams": runs.hyperparams_to_json(inner),
        "seed": options.seed,
        "iterations": math.ceil(options.generations / options.held_out_every),
        "layout": list(layout),
        **({"objective": start.record} if start else {}),
        "meta": {
            "kind": options.kind,
            "arguments": arguments,
            "tasks": bool(options.tasks),
            "start": start_name,
            "life": [low, high],
            "population": population,
            "held_out_every": options.held_out_every,
            "num_seeds": options.num_seeds,
            "num_held_out": options.held_out or (64 if tasks else 16),
            "fitness": options.fitness or ("training" if is_drift else "evaluation"),
            "num_episodes": options.eval_episodes,
            "sampled": not is_drift,
            "sigma": options.sigma,
            "meta_rate": options.meta_rate,
            "decay": options.decay,
            "shaping": options.shaping or ("centered_rank" if is_drift else "pairwise"),
        },
    }, start


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


def _print_plan(console: Console, record: dict[str, Any], search: Search) -> None:
    about, member = record["meta"], search.member
    low, high = about["life"]
    generations = record["iterations"] * about["held_out_every"]
    learners = about["population"] * about["num_seeds"]
    held_out = record["iterations"] * about["num_held_out"]
    steps = record["iterations"] * search.algorithm.env_steps
    weights = sum(leaf.size for leaf in jax.tree.leaves(search.hparams.inner.objective))
    lives = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    where = "levels of " if about["tasks"] else ""
    lines = (
        f"{about['kind']} ({weights:,} weights, from {about['start']}) on {where}{record['env']}, "
        f"seed {record['seed']}",
        f"{generations:,} generations of {about['population']:,} candidates x {about['num_seeds']} learners = "
        f"{generations * learners:,}, and {held_out:,} held-out ones in {record['iterations']:,} looks",
        f"a learner is {record['algorithm']} for {lives} iterations of {member.env_steps:,} steps; {short(steps)} "
        f"steps in all{' besides those of evaluation' if about['fitness'] == 'evaluation' else ''}",
        f"devices: {record['layout'][0]}; learners at a time on each: {record['layout'][1] or 'all'}",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _run(console: Console, run: Run, search: Search, limit: float | None, resume: bool) -> None:
    """Evolves in the run's folder; writes rule.npz at each improvement, rule-last.npz and a picture at the end."""
    console.print(f"folder {run.path}", soft_wrap=True, markup=False)
    every = run.record["meta"]["held_out_every"]
    template = programs.state_template(search.algorithm, jax.random.key(0), search.hparams)
    began = time.monotonic()
    best = _best(run)

    def tell(progress: Progress) -> None:
        nonlocal best
        last = _last(run)
        held_out, improved = last["held_out/fitness"], last["held_out/fitness"] > best
        if improved:
            best = held_out
            state, _ = checkpoint.load(run.checkpoints, progress.iteration, template)
            _save(run, search, state, progress.iteration, last, run.path / "rule.npz")
        console.print(
            f"generation {progress.iteration * every:,}: held out {held_out:.4g}{' *' if improved else ''}, population "
            f"{last['fitness/mean']:.4g}, ties {last['fitness/tie_rate']:.2f}, SNR {last['strategy/snr']:.2f}, "
            f"{clock(progress.eta_seconds)} left",
            soft_wrap=True,
            markup=False,
        )
        if limit is not None and time.monotonic() - began > limit and progress.iteration < progress.total_iterations:
            console.print(f"the time limit of {limit:.0f} s is reached")
            signal.raise_signal(signal.SIGTERM)

    result = fit.fit(
        search.algorithm,
        search.hparams,
        run=run,
        seed=run.record["seed"],
        total_iterations=run.record["iterations"],
        segment=1,
        # So that each look at the held-out learners has its state.
        checkpoint_seconds=0.0,
        resume=resume,
        on_segment=tell,
        on_message=lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True),
    )
    if result.iteration:
        last = _last(run)
        _save(run, search, result.state, result.iteration, last, run.path / "rule-last.npz")
        _draw(console, run)
    console.print(
        f"best held out {best:.4g}: {run.path / 'rule.npz'}" if math.isfinite(best) else f"folder {run.path}",
        soft_wrap=True,
        markup=False,
    )
    if result.stopped is not None:
        console.print(
            f"stopped and saved; continue with: jaxrl resume {shlex.quote(str(run.path))}", soft_wrap=True, markup=False
        )


def _last(run: Run) -> dict[str, float]:
    """Metrics of the newest look."""
    rows = run.metrics()
    return {str(name): float(rows[name].values.ravel()[-1]) for name in rows}


def _best(run: Run) -> float:
    """The held-out figure of the rule in the folder: a kill between a look and its file costs no improvement."""
    path = run.path / "rule.npz"
    found = read_rule(path).spec.provenance.get("held_out") if path.exists() else None
    return -math.inf if found is None else float(found)


def _save(run: Run, search: Search, state: Any, iteration: int, last: dict[str, float], path: Path) -> None:
    record, about = run.record, run.record["meta"]
    low, high = about["life"]
    provenance = {
        "env": record["env"],
        "env_options": record["env_options"],
        "tasks": about["tasks"],
        "generations": iteration * about["held_out_every"],
        "seed": record["seed"],
        "start": about["start"],
        "horizon": {"iterations": [low, high], "env_steps": [n * search.member.env_steps for n in (low, high)]},
        "fitness": about["fitness"],
        "sampled": about["sampled"],
        "held_out": last["held_out/fitness"],
        "held_out_std": last["held_out/std"],
        "num_held_out": about["num_held_out"],
        "inner": inner_of(search.member, search.hparams.inner),
    }
    values = {name: jnp.asarray(value) for name, value in state.values.items()}
    params = trees.replace_leaves(search.hparams.inner, values).objective
    save_rule(path, dataclasses.replace(search.spec, provenance=provenance), jax.device_get(params), replace=True)


def _draw(console: Console, run: Run) -> None:
    # Loading matplotlib takes a second.
    from jaxrl.analysis.rule_figures import plot_generations

    try:
        plot_generations([run], run.path / "generations.png")
    except (ValueError, OSError) as error:
        console.print(f"generations.png was not drawn: {error}", style="yellow", soft_wrap=True, markup=False)
