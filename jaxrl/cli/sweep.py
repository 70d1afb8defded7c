"""`jaxrl sweep`, and `jaxrl resume` of a sweep."""

import argparse
import contextlib
import dataclasses
import functools
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from jaxrl import config_fields
from jaxrl.cli import build, devices, overrides, rules
from jaxrl.cli.folders import new_folder
from jaxrl.cli.progress import clock, number, short
from jaxrl.envs import make_env
from jaxrl.meta.layout import Layout
from jaxrl.names import CONFIG, unknown
from jaxrl.ops import trees
from jaxrl.sweeps import cluster, execution, results
from jaxrl.sweeps.execution import Sweep, SweepProgress
from jaxrl.sweeps.plan import Plan, describe_plan, make_plan
from jaxrl.sweeps.spaces import Space, space
from jaxrl.sweeps.texts import describe, from_json, from_table, parse

_LINE_SECONDS = 10.0
_MAX_ROWS = 10
# Characters of a folder's name that say what is in it.
_MAX_NAME = 80


def sweep(options: argparse.Namespace) -> None:
    """Plans a sweep, says the plan, runs it, and prints the best settings.

    Raises:
      ValueError: an argument is wrong, the space is too large or empty, or the folder holds something else.
      StorageError: something cannot be written.
    """
    if options.ray and options.shard[1] > 1:
        raise ValueError("--ray shares out the batches itself: leave out --shard.")
    devices.use_all_cores(options.devices or 1)
    console = Console(highlight=False)
    source = {
        "algorithms": options.algorithms.split(","),
        "environments": options.envs.split(","),
        "env_options": {
            name: overrides.parse_option(text) for name, text in overrides.parse_assignments(options.env_option).items()
        },
    }
    chosen = rules.of_options(options)
    source |= rules.records(chosen)
    read = _reader(source, chosen)
    swept = _space(options, read)
    fixed = {name: read(name, text) for name, text in overrides.parse_assignments(options.assignments).items()}
    rules.check_effect(chosen, (*swept.names, *fixed))
    layout = Layout(options.devices or jax.device_count(), options.chunk) if options.devices or options.chunk else None
    plan = _plan(
        source,
        chosen,
        swept,
        fixed,
        num_seeds=options.num_seeds,
        seed=options.seed,
        total_steps=options.total_steps,
        num_points=options.points,
        max_batch=options.max_batch,
        layout=layout,
        num_shards=options.shard[1],
    )
    for line in [*describe(swept), *describe_plan(plan, _measured(plan, options))]:
        console.print(line, soft_wrap=True, markup=False)
    if options.plan:
        return
    named = "-".join([*source["algorithms"], *source["environments"]])[:_MAX_NAME]
    path = options.out or new_folder(f"sweep-{named}")
    made = execution.open_sweep(path, plan, options.eval_episodes, source=source)
    for rule in chosen:
        rule.keep(path)
    _run(console, made, options)


def resume(options: argparse.Namespace) -> None:
    """Continues a sweep.

    Raises:
      ValueError: it was made from Python with what a command line cannot name, or options do not apply to a sweep.
      StorageError: something cannot be read or written.
    """
    record = execution.read_record(options.dir)["sweep"]
    if options.total_steps or options.assignments:
        raise ValueError(f"{options.dir} is a sweep, whose members cannot change: start a new one with `jaxrl sweep`.")
    if not record.get("source"):
        raise ValueError(
            f"{options.dir} was made from Python: call `jaxrl.sweep` with the same arguments and this folder."
        )
    devices.use_all_cores(max(group["layout"][0] for group in execution.read_record(options.dir)["groups"]))
    plan = _plan(
        record["source"],
        rules.from_record(record["source"], options.dir),
        from_json(record["space"]),
        {name: tuple(value) if isinstance(value, list) else value for name, value in record["fixed"].items()},
        **{name: record[name] for name in ("num_seeds", "seed", "total_steps", "num_points")},
    )
    made = execution.open_sweep(options.dir, plan, record["eval_episodes"], source=record["source"])
    _run(Console(highlight=False), made, options)


def _plan(
    source: dict[str, Any],
    chosen: tuple[rules.Chosen, ...],
    swept: Space,
    fixed: dict[str, Any],
    num_shards: int = 1,
    **counts: Any,
) -> Plan:
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in source["env_options"].items()}
    envs = {name: make_env(name, **options) for name in source["environments"]}
    algorithms = source["algorithms"]
    if chosen:
        algorithms = {name: rules.factory_of(name, build.find_algorithm(name), chosen) for name in algorithms}
    plan = make_plan(algorithms, envs, swept, fixed=fixed, **counts)
    if num_shards > len(plan.batches):
        # At least one batch for each process.
        counts["max_batch"] = max(1, math.ceil(plan.num_members / num_shards))
        plan = make_plan(algorithms, envs, swept, fixed=fixed, **counts)
    return plan


def _run(console: Console, made: Sweep, options: argparse.Namespace) -> None:
    shard = getattr(options, "shard", (0, 1))
    console.print(f"folder {made.path}", soft_wrap=True, markup=False)
    began = time.monotonic()
    address = getattr(options, "ray", None)
    run = (
        functools.partial(cluster.run_on_ray, address=address)
        if address
        else functools.partial(execution.run_sweep, shard=shard)
    )
    with _display(console) as show:
        stopped = run(
            made,
            checkpoint_seconds=options.checkpoint_seconds,
            keep_states=getattr(options, "keep_states", False),
            on_progress=show,
            on_message=lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True),
        )
    if stopped is not None:
        console.print(
            f"stopped by {signal.Signals(stopped).name} and saved; continue with: jaxrl resume "
            f"{shlex.quote(str(made.path))}",
            soft_wrap=True,
            markup=False,
        )
        return
    missing = [batch for batch in made.batches() if not made.is_whole(batch)]
    if missing:
        console.print(f"this share is done; {len(missing)} batches of other shares are not yet", soft_wrap=True)
        return
    data = results.write_results(made)
    console.print(_best(made, data))
    console.print(
        f"{made.plan.num_members:,} members in {clock(time.monotonic() - began)}, folder {made.path}", soft_wrap=True
    )
    console.print(f"`jaxrl report {made.path}` makes a page of it", soft_wrap=True, markup=False)


def _best(made: Sweep, data: Any) -> Table:
    """The settings with the highest mean score of each algorithm and environment, over all seeds."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    names = made.plan.space.names
    for title in ("algorithm", "env", *names):
        table.add_column(title)
    table.add_column("score", justify="right")
    table.add_column("worst seed", justify="right")
    for (algorithm, env), settings in made.plan.pairs.items():
        scores = data["score"] if "score" in data else data["return"].isel(step=-1)
        values = scores.sel(algorithm=algorithm, env=env).values.reshape(-1, made.plan.num_seeds)
        cells = settings.cells.reshape(-1)
        first = {int(cell): place for place, cell in reversed(list(enumerate(cells))) if cell >= 0}
        known = {cell: values[place] for cell, place in first.items() if np.isfinite(values[place]).any()}
        ranked = sorted(known, key=lambda cell: -float(np.nanmean(known[cell])))
        for cell in ranked[:_MAX_ROWS]:
            shown = [str(settings.rows[cell].get(name, "default")) for name in names]
            mean, worst = float(np.nanmean(known[cell])), float(np.nanmin(known[cell]))
            table.add_row(algorithm, env, *shown, number(mean), number(worst))
    return table


@contextlib.contextmanager
def _display(console: Console) -> Iterator[Callable[[SweepProgress], None]]:
    """A bar on a terminal, else a line now and then."""
    told = [-math.inf]

    def line(progress: SweepProgress) -> str:
        left = "" if math.isnan(progress.eta_seconds) else f"  {clock(progress.eta_seconds)} left"
        return (
            f"batch {progress.num_whole + 1}/{progress.num_batches}  "
            f"{short(progress.env_steps)}/{short(progress.total_env_steps)} steps  "
            f"{short(progress.steps_per_second)} steps/s{left}"
        )

    if not console.is_terminal:

        def show_line(progress: SweepProgress) -> None:
            ended = progress.members.iteration == progress.members.total_iterations
            if ended or time.monotonic() - told[0] >= _LINE_SECONDS:
                told[0] = time.monotonic()
                console.print(line(progress), markup=False, soft_wrap=True)

        yield show_line
        return
    with Bar(BarColumn(bar_width=None), TextColumn("{task.description}"), console=console, expand=True) as bar:
        task = bar.add_task("compiling", total=None)

        def show(progress: SweepProgress) -> None:
            bar.update(task, total=progress.total_env_steps, completed=progress.env_steps, description=line(progress))

        yield show


def _measured(plan: Plan, options: argparse.Namespace) -> list[tuple[float, float]] | None:
    """Seconds to compile and to run of each group, measured on one chunk of members, if the plan alone is wanted."""
    if not options.plan:
        return None
    found = []
    for group in plan.groups:
        size = group.layout.chunk or min(group.width, 16)
        one = dataclasses.replace(group, layout=Layout(1, group.layout.chunk), width=size)
        batch = one.batches[0]._replace(stop=min(size, group.num_members))
        agents, hparams = one.population(size), one.hyperparams(batch, size)
        started = time.perf_counter()
        init = jax.jit(agents.init).lower(one.keys(batch, size, 0), hparams).compile()
        step = jax.jit(agents.step).lower(state := init(one.keys(batch, size, 0), hparams), hparams).compile()
        compiling = time.perf_counter() - started
        jax.block_until_ready(step(state, hparams))
        started = time.perf_counter()
        jax.block_until_ready(step(state, hparams))
        each = (time.perf_counter() - started) / size
        found.append((compiling, each * group.num_members * group.iterations / group.layout.num_devices))
    return found


def _space(options: argparse.Namespace, read: Callable[[str, str], Any]) -> Space:
    if options.table:
        if options.over or options.samples:
            raise ValueError("--table lists the settings itself: leave out --over and --samples.")
        return dataclasses.replace(from_table(options.table, read), where=options.where)
    over, conditions = parse(options.over, read)
    return space(
        over,
        num_samples=options.samples,
        method=options.method,
        seed=options.seed,
        where=options.where,
        conditions=conditions,
    )


def _reader(source: dict[str, Any], chosen: tuple[rules.Chosen, ...]) -> Callable[[str, str], Any]:
    """Reads a value as the first algorithm and environment that have the name declare it."""
    kinds: dict[str, Any] = {}
    for algorithm in source["algorithms"]:
        entry = build.find_algorithm(algorithm)
        factory = rules.factory_of(algorithm, entry, chosen)
        for name in source["environments"]:
            leaves = trees.named_leaves(
                factory(make_env(name, **source["env_options"]), config=entry.default_config).hyperparams()
            )
            kinds = {
                **{key: field.kind for key, field in config_fields.fields(entry.default_config, CONFIG).items()},
                **{key: _kind(leaf) for key, leaf in leaves.items()},
            } | kinds

    def read(name: str, text: str) -> Any:
        if name not in kinds:
            raise ValueError(unknown(name, kinds))
        return overrides.parse_value(name, text, kinds[name])

    return read


def _kind(leaf: Any) -> Any:
    kind = bool if leaf.dtype == np.bool_ else int if np.issubdtype(leaf.dtype, np.integer) else float
    return tuple[kind, ...] if np.ndim(leaf) else kind
