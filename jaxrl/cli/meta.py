"""`jaxrl meta-train`, and `jaxrl resume` of such a run."""

import argparse
import dataclasses
import math
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from jaxrl import checkpoint, fit, memory, programs, runs
from jaxrl.cli import devices, rules
from jaxrl.cli.folders import new_folder
from jaxrl.cli.meta_record import record_of
from jaxrl.cli.meta_search import Search, env_params_of, inner_of, search_of
from jaxrl.cli.progress import clock, counted, short
from jaxrl.meta import regularized_evolution
from jaxrl.objectives.files import RuleSpec, read_rule, save_rule
from jaxrl.ops import expressions
from jaxrl.progress import Progress
from jaxrl.runs import Run

# Programs of the last population that get a file.
_NUM_PROGRAMS = 5


def meta_train(options: argparse.Namespace) -> None:
    """Begins a search.

    Raises:
      ValueError: an argument is wrong, the memory does not suffice, or the folder holds a run already. No folder is
        left behind.
      StorageError: something cannot be written.
    """
    devices.use_all_cores(options.devices or 1)
    console = Console(highlight=False)
    if options.out:
        runs.check_new(options.out)
    record, start = record_of(options, console)
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
    start = next(iter(rules.from_record(run.record, run.path)), None)
    search = search_of(run.record, start.params if start else None)
    _print_plan(console, run.record, search)
    _run(console, run, search, None, resume=True)


def _print_plan(console: Console, record: dict[str, Any], search: Search) -> None:
    about, member, per_step = record["meta"], search.member, record["meta"].get("children")
    low, high = about["life"]
    generations = record["iterations"] * search.generations
    learners = (per_step or about["population"]) * about["num_seeds"]
    held_out = record["iterations"] * about["num_held_out"]
    steps = record["iterations"] * search.algorithm.env_steps
    weights = jax.tree.leaves(getattr(search.hparams.inner, search.leaf))
    size = f"{len(weights[0]):,} nodes" if per_step else f"{sum(leaf.size for leaf in weights):,} weights"
    lives = counted(high, "iteration") if low == high else f"{low:,} to {counted(high, 'iteration')}"
    where = "levels of " if about["tasks"] else ""
    who = f"{per_step or about['population']:,} {'programs' if per_step else 'candidates'}"
    lines = (
        f"{about['kind']} ({size}, from {about['start']}) on {where}{record['env']}, seed {record['seed']}",
        f"{counted(generations, 'generation')} of {who} x {counted(about['num_seeds'], 'learner')} = "
        f"{generations * learners:,}, and {held_out:,} held-out ones in {counted(record['iterations'], 'look')}",
        *([f"population {about['population']:,}, tournaments of {about['tournament']:,}"] if per_step else []),
        f"a learner is {record['algorithm']} for {lives} of {member.env_steps:,} steps; {short(steps)} "
        f"steps in all{' besides those of evaluation' if about['fitness'] == 'evaluation' else ''}",
        f"devices: {record['layout'][0]}; learners at a time on each: {record['layout'][1] or 'all'}",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _run(console: Console, run: Run, search: Search, limit: float | None, resume: bool) -> None:
    """Searches in the run's folder; writes rule.npz at each improvement, rule-last.npz and a picture at the end."""
    console.print(f"folder {run.path}", soft_wrap=True, markup=False)
    template = programs.state_template(search.algorithm, jax.random.key(0), search.hparams)
    began = time.monotonic()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    best = _caught_up(run, search, template) if resume else -math.inf

    def tell(progress: Progress) -> None:
        nonlocal best
        last = _look(run, search, progress.iteration)
        held_out, improved = last["held_out/fitness"], last["held_out/fitness"] > best
        say(
            f"generation {progress.iteration * search.generations:,}: held out {held_out:.4g}"
            f"{' *' if improved else ''}, {_of_population(last)}, {clock(progress.eta_seconds)} left"
        )
        if improved:
            best = held_out
            state, _ = checkpoint.load(run.checkpoints, progress.iteration, template)
            spec = _save(run, search, state, progress.iteration, last, run.path / "rule.npz")
            if formula := spec.provenance.get("formula"):
                say(f"  {formula}")
        if limit is not None and time.monotonic() - began > limit and progress.iteration < progress.total_iterations:
            console.print(f"the time limit of {limit:.0f} s is reached")
            signal.raise_signal(signal.SIGTERM)

    result = fit.fit(
        search.algorithm,
        search.hparams,
        run=run,
        seed=run.record["seed"],
        total_iterations=run.record["iterations"],
        segment=search.segment,
        # So that each look at the held-out learners has its state.
        checkpoint_seconds=0.0,
        resume=resume,
        on_segment=tell,
        on_message=lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True),
    )
    if result.iteration:
        last = _look(run, search, result.iteration)
        _save(run, search, result.state, result.iteration, last, run.path / "rule-last.npz")
        if isinstance(result.state, regularized_evolution.State):
            for line in _save_population(run, search, result.state, result.iteration):
                say(line)
        _draw(console, run)
    if math.isfinite(best):
        say(f"best held out {best:.4g}: {run.path / 'rule.npz'}")
        if _stood_still(run):
            say(
                "all candidates did alike at every look, so nothing moved the search: give longer lives (--life), a "
                "larger --sigma, or a task on which learners differ."
            )
    elif result.iteration:
        say(
            "no held-out figure is a finite number, so there is no rule.npz: no episode ended within a learner's life "
            "(give a longer --life), or the learners diverged."
        )
    if result.stopped is not None:
        say(f"stopped and saved; continue with: jaxrl resume {shlex.quote(str(run.path))}")


def _of_population(last: dict[str, float]) -> str:
    """For people."""
    if "search/num_new" in last:
        return (
            f"best {last['fitness/best']:.4g}, population {last['fitness/mean']:.4g}, known "
            f"{last['search/share_known']:.2f}"
        )
    return f"population {last['fitness/mean']:.4g}, ties {last['fitness/tie_rate']:.2f}, SNR {last['strategy/snr']:.2f}"


def _look(run: Run, search: Search, iteration: int) -> dict[str, float]:
    """Metrics of the look after so many iterations; empty if there are none."""
    rows = run.metrics()
    if "step" not in rows:
        return {}
    at = rows["step"].values == iteration * search.algorithm.env_steps
    return {str(name): float(rows[name].values[at].ravel()[-1]) for name in rows} if at.any() else {}


def _stood_still(run: Run) -> bool:
    """Whether all candidates of a strategy did alike at every look."""
    rows = run.metrics()
    return "fitness/tie_rate" in rows and bool((rows["fitness/tie_rate"].values == 1.0).all())


def _caught_up(run: Run, search: Search, template: Any) -> float:
    """Writes the rule of the newest look if a kill came between its checkpoint and its file; the best figure now."""
    with run.lock():
        best, saved = _best(run), checkpoint.load_latest(run.checkpoints, template)
        last = _look(run, search, saved[1]) if saved else {}
        if not saved or not last.get("held_out/fitness", -math.inf) > best:
            return best
        _save(run, search, saved[0], saved[1], last, run.path / "rule.npz")
        return last["held_out/fitness"]


def _best(run: Run) -> float:
    """The held-out figure of the rule in the folder."""
    path = run.path / "rule.npz"
    found = read_rule(path).spec.provenance.get("held_out") if path.exists() else None
    return -math.inf if found is None else float(found)


def _save(run: Run, search: Search, state: Any, iteration: int, last: dict[str, float], path: Path) -> RuleSpec:
    """Writes the rule of a look, and says what the file says."""
    params = search.found(state)
    figures = {name: last[f"held_out/{key}"] for name, key in _FIGURES.items() if f"held_out/{key}" in last}
    return _write(run, search, params, iteration, figures, path)


_FIGURES = {"held_out": "fitness", "held_out_std": "std"}


def _write(run: Run, search: Search, params: PyTree, iteration: int, figures: dict[str, float], path: Path) -> RuleSpec:
    record, about = run.record, run.record["meta"]
    low, high = about["life"]
    params = jax.device_get(params)
    provenance = {
        "env": record["env"],
        "env_options": record["env_options"],
        "env_params": env_params_of(search.member, search.hparams.inner),
        "tasks": about["tasks"],
        "generations": iteration * search.generations,
        "seed": record["seed"],
        "start": about["start"],
        "horizon": {"iterations": [low, high], "env_steps": [n * search.member.env_steps for n in (low, high)]},
        "fitness": about["fitness"],
        "sampled": about["sampled"],
        **figures,
        "num_held_out": about["num_held_out"],
        "inner": inner_of(search.member, search.hparams.inner, search.leaf),
        **({"formula": expressions.describe(params)} if isinstance(params, expressions.Program) else {}),
    }
    spec = dataclasses.replace(search.spec, provenance=provenance)
    save_rule(path, spec, params, replace=True)
    return spec


def _save_population(run: Run, search: Search, state: regularized_evolution.State, iteration: int) -> list[str]:
    """Writes the best programs of the population that differ in what they compute, and lists them."""
    prints = np.asarray(jax.jit(jax.vmap(expressions.fingerprint))(state.genomes))
    fitness = np.asarray(state.fitness, np.float64)
    chosen: dict[tuple[int, ...], int] = {}
    for member in np.argsort(-fitness, kind="stable"):
        if np.isfinite(fitness[member]):
            chosen.setdefault(tuple(prints[member].tolist()), int(member))
    lines, best = [], [*chosen.values()][:_NUM_PROGRAMS]
    for place, member in enumerate(best, 1):
        program = jax.tree.map(lambda x, member=member: np.asarray(x)[member], state.genomes)
        figures = {"population_fitness": float(fitness[member])}
        _write(run, search, program, iteration, figures, run.path / f"population-{place}.npz")
        lines.append(f"{fitness[member]:.4g}  {expressions.describe(program)}")
    for place in range(len(best) + 1, _NUM_PROGRAMS + 1):
        (run.path / f"population-{place}.npz").unlink(missing_ok=True)
    return ["the best of the population (population-*.npz, a line each, not held out):", *lines] if lines else []


def _draw(console: Console, run: Run) -> None:
    # Loading matplotlib takes a second.
    from jaxrl.analysis.rule_figures import plot_generations

    try:
        plot_generations([run], run.path / "generations.png")
    except (ValueError, OSError) as error:
        console.print(f"generations.png was not drawn: {error}", style="yellow", soft_wrap=True, markup=False)
