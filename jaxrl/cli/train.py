"""`jaxrl train` and `jaxrl resume`."""

import argparse
import dataclasses
import math
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrl import checkpoint, fit, runs, sinks
from jaxrl.cli import build, devices, overrides, progress, rules
from jaxrl.cli.build import Built
from jaxrl.cli.folders import new_folder
from jaxrl.evaluation import time_limit
from jaxrl.runs import Run
from jaxrl.sinks import Sink

# Rows of metrics that are kept of each segment; 50 segments of a long run make 2000 points.
_ROWS_PER_SEGMENT = 40


def train(options: argparse.Namespace) -> None:
    """Trains a new run.

    Raises:
      ValueError: an argument is wrong, the memory does not suffice, or the folder holds a run already. No folder is
        left behind.
      StorageError: something cannot be written.
    """
    devices.use_all_cores()
    console = Console(highlight=False)
    built, record = build.from_options(options)
    iterations = build.iterations_of(options.total_steps, built.member)
    record |= {
        "seed": options.seed,
        "num_seeds": options.num_seeds,
        "total_steps": iterations * built.member.env_steps,
        "iterations": iterations,
        "segment": math.ceil(iterations / options.segments),
        "evaluation": {
            "num_evaluations": options.evaluations,
            "num_episodes": options.eval_episodes,
            "max_steps": time_limit(built.member.env, built.hparams.env) if built.member.env else None,
        },
        "sinks": sorted(set(options.sink)),
        "layout": list(built.layout),
    }
    path = options.out or new_folder(f"{options.algorithm}-{options.env}")
    existed = path.exists()
    extra_sinks = _sinks(record, path)
    run = Run.create(path, runs.describe(**record))
    copies: list[Path] = []
    try:
        for chosen in built.chosen:
            copies += chosen.keep(path)
        _fit(console, run, built, extra_sinks, options, resume=False)
    except BaseException:
        _remove_if_empty(run, existed, copies)
        raise


def resume(options: argparse.Namespace) -> None:
    """Continues a run.

    Raises:
      ValueError: the folder holds no run, or an argument does not fit what it holds.
      StorageError: something cannot be read or written.
    """
    if (options.dir / "sweep.json").exists():
        from jaxrl.cli import sweep

        sweep.resume(options)
        return
    console = Console(highlight=False)
    run = Run.open(options.dir)
    if "meta" in run.record:
        from jaxrl.cli import meta

        meta.resume(console, run, options)
        return
    devices.use_all_cores(build.layout_of(run).num_devices)
    built = build.from_record(run)
    built, changes = _changes(run, built, options)
    total = changes.get("iterations", run.record["iterations"])
    if not changes and _is_complete(run):
        console.print(
            f"{run.path} is complete at {run.record['total_steps']:,} steps; --total-steps N trains it further.",
            soft_wrap=True,
        )
        return
    done = max(checkpoint.iterations(run.checkpoints), default=0)
    if done > total:
        raise ValueError(
            f"{run.path} has done {done * built.member.env_steps:,} steps already, more than "
            f"--total-steps {options.total_steps:,}."
        )
    extra_sinks = _sinks(run.record, run.path)
    if changes:
        run = run.change(**changes)
    _fit(console, run, built, extra_sinks, options, resume=True)


def _changes(run: Run, built: Built, options: argparse.Namespace) -> tuple[Built, dict[str, Any]]:
    """What `jaxrl resume` changes of the record: a new total and hyperparameters."""
    assignments = overrides.parse_assignments(options.assignments)
    if fixed := overrides.config_changes(assignments):
        raise ValueError(
            f"config.{next(iter(fixed))} cannot change in a run, since its state has the shapes of the old value: "
            "start a new one with `jaxrl train`."
        )
    changed = overrides.with_hyperparameter_changes(built.hparams, assignments)
    # Only what changes is given anew: the factory checks it, also against the config.
    checked = built.member.hyperparams(**changed)
    hparams = dataclasses.replace(built.hparams, **{name: getattr(checked, name) for name in changed})
    changes: dict[str, Any] = {}
    if changed:
        changes["hyperparams"] = runs.hyperparams_to_json(hparams)
    iterations = build.iterations_of(options.total_steps or run.record["total_steps"], built.member)
    if iterations != run.record["iterations"]:
        changes |= {"iterations": iterations, "total_steps": iterations * built.member.env_steps}
        _check_horizon(run, hparams, changes["total_steps"], "horizon" in assignments)
    return built._replace(hparams=hparams), changes


def _check_horizon(run: Run, hparams: Any, total_steps: int, is_given: bool) -> None:
    """Refuses to train on with a learning rate that a schedule has brought to its end."""
    schedule = run.record["config"].get("schedule", "constant")
    horizon = float(getattr(hparams, "horizon", math.inf))
    if schedule == "constant" or is_given or total_steps <= horizon:
        return
    raise ValueError(
        f"config.schedule is {schedule} and ends at horizon = {horizon:,.0f} steps, so beyond it the learning rate "
        f"would stay at its end. Say what you want: `horizon={total_steps}` stretches the schedule from now on, "
        f"`horizon={horizon:.0f}` keeps it."
    )


def _fit(
    console: Console, run: Run, built: Built, extra_sinks: list[Sink], options: argparse.Namespace, resume: bool
) -> None:
    record = run.record
    display = progress.Display(console, record["total_steps"], record["num_seeds"])
    _print_plan(console, run, built, options)
    plan, evaluation = None, record["evaluation"]
    if evaluation["num_evaluations"] and built.member.env:
        play = fit.play_episodes(
            built.member,
            evaluation["num_episodes"],
            max_steps=evaluation["max_steps"],
            num_seeds=record["num_seeds"],
            num_devices=built.layout.num_devices,
            chunk=built.layout.chunk,
        )
        plan = fit.EvaluationPlan(evaluation["num_evaluations"], play)
    with display.live():
        result = fit.fit(
            built.algorithm,
            built.hparams,
            seed=record["seed"],
            total_iterations=record["iterations"],
            segment=record["segment"],
            num_seeds=record["num_seeds"],
            run=run,
            evaluation=plan,
            extra_sinks=[display.sink(), *extra_sinks],
            checkpoint_seconds=options.checkpoint_seconds,
            rows_per_segment=_ROWS_PER_SEGMENT,
            resume=resume,
            on_segment=display.segment,
            on_message=display.message,
        )
    _print_end(console, run, result, options)


def _print_plan(console: Console, run: Run, built: Built, options: argparse.Namespace) -> None:
    record, member = run.record, built.member
    sizes = [f"{name} {value}" for name in ("num_envs", "num_steps") if (value := record["config"].get(name))]
    seeds = progress.counted(record["num_seeds"], "seed")
    console.print(
        f"[bold]{record['algorithm']}[/] on [bold]{record['env']}[/]: {seeds} x {record['total_steps']:,} steps, "
        f"seed {record['seed']}",
        soft_wrap=True,
    )
    asked = options.total_steps
    rounded = f"; {asked:,} steps were asked for" if asked and asked < record["total_steps"] else ""
    console.print(
        f"{record['iterations']:,} iterations of {member.env_steps:,} steps"
        f"{' (' + ', '.join(sizes) + ')' if sizes else ''}{rounded}",
        soft_wrap=True,
    )
    for chosen in built.chosen:
        console.print(f"{chosen.family.leaf} {chosen.name}", soft_wrap=True, markup=False)
    if rules.is_missing(record["algorithm"], built.chosen):
        console.print(
            f"{record['algorithm']} without --objective learns by a rule drawn at random, which teaches nothing: give "
            "the file of one.",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"folder {run.path}", soft_wrap=True, markup=False)


def _print_end(console: Console, run: Run, result: fit.Result, options: argparse.Namespace) -> None:
    results = result.results
    if any(row["training_return"] is not None for row in results["seeds"]):
        console.print()
        console.print(progress.final_table(runs.plain(results)))
        console.print()
    if results["steps_per_second"]:
        console.print(
            f"{results['env_steps']:,} steps of each seed in {progress.clock(results['seconds'])} "
            f"({progress.clock(results['compile_seconds'])} of it compiling), "
            f"{progress.short(results['steps_per_second'])} steps/s in training",
            soft_wrap=True,
        )
    drawn = not options.no_plot and result.iteration > 0 and _plot(console, run)
    console.print(f"folder {run.path}" + (f", curves {run.path / 'curves.png'}" if drawn else ""), soft_wrap=True)
    if result.stopped is not None:
        console.print(
            f"stopped by {signal.Signals(result.stopped).name} and saved; continue with: "
            f"jaxrl resume {shlex.quote(str(run.path))}",
            soft_wrap=True,
        )


def _plot(console: Console, run: Run) -> bool:
    # Loading matplotlib takes a second, which nobody should wait for before training.
    from jaxrl.analysis.plots import plot_curves

    try:
        plot_curves([run], run.path / "curves.png")
    except (ValueError, OSError) as error:
        # The run itself is safe.
        console.print(f"curves.png was not drawn: {error}", style="yellow", soft_wrap=True, markup=False)
        return False
    return True


def _sinks(record: dict[str, Any], path: Path) -> list[Sink]:
    made = []
    for name in record.get("sinks", []):
        if name == "tensorboard":
            made.append(sinks.tensorboard(path / "tensorboard"))
        else:
            # Its own summaries would interrupt the bar and repeat the table.
            os.environ.setdefault("WANDB_SILENT", "true")
            project, mode = os.environ.get("WANDB_PROJECT", "jaxrl"), os.environ.get("WANDB_MODE", "offline")
            made.append(sinks.wandb(project, path, mode, {key: record[key] for key in ("algorithm", "env", "config")}))
    return made


def _remove_if_empty(run: Run, existed: bool, copies: list[Path]) -> None:
    """Removes what was written of a run that failed before its first segment, so that the folder can be used again."""
    if (run.path / "metrics").exists() or run.checkpoints.exists():
        return
    if existed:
        for path in (*(run.path / name for name in ("run.json", "log.jsonl", ".lock")), *copies):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(run.path, ignore_errors=True)


def _is_complete(run: Run) -> bool:
    present = checkpoint.iterations(run.checkpoints)
    return bool(present) and present[-1] >= run.record["iterations"] and (run.path / "results.json").exists()
