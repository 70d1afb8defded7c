"""`jaxrl plot`."""

import argparse
import functools
from pathlib import Path

import jax

from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.analysis import rule_figures
from jaxrl.analysis.drift_figures import plot_drifts
from jaxrl.analysis.plots import plot_curves
from jaxrl.cli import meta, overrides, rules
from jaxrl.cli.folders import open_run
from jaxrl.envs import make_env
from jaxrl.objectives.files import RuleFile, read_rule

# Lengths of life beside that of training, as shares of it.
_LIVES = (0.2, 0.5, 1.0, 2.0)


def plot(options: argparse.Namespace) -> None:
    """Draws the learning curves of runs, the generations of searches, or a rule, and prints the file's name.

    Raises:
      ValueError: a folder holds no run or no metrics yet, the file's format is unknown, or a rule does not say where
        it was trained.
    """
    files = [path for path in options.dirs if path.suffix == ".npz"]
    if files:
        if len(options.dirs) > 1:
            raise ValueError(f"A rule is drawn by itself: `jaxrl plot {files[0]}`.")
        _plot_rule(files[0], options.out or files[0].with_suffix(".png"))
        return
    runs = [open_run(path) for path in options.dirs]
    is_search = ["meta" in run.record for run in runs]
    if all(is_search):
        out = options.out or (runs[0].path / "generations.png" if len(runs) == 1 else Path("generations.png"))
        rule_figures.plot_generations(runs, out)
        print(out)
        return
    if any(is_search):
        raise ValueError("Searches and ordinary runs are drawn apart: their curves have different axes.")
    default = runs[0].path / "curves.png" if len(runs) == 1 else Path("curves.png")
    print(plot_curves(runs, options.out or default, options.points))


def _plot_rule(path: Path, out: Path) -> None:
    found = read_rule(path)
    if found.spec.family == "sequence":
        _plot_sequence_rule(path, found, out)
        return
    if found.spec.arguments.get("progress") or found.spec.kind.startswith("ta_"):
        checks = rule_figures.plot_drift_over_progress(found.rule, found.params, out)
    else:
        checks = plot_drifts([(found.spec.kind, found.rule, found.params)], out)
    if not all(check.hold for check in checks):
        print("It is not a drift of mirror learning: the picture says what is broken.")
    print(out)


def _plot_sequence_rule(path: Path, found: RuleFile, out: Path) -> None:
    """Its targets against returns, and in a second file its entropy and scale over horizons."""
    about = found.spec.provenance
    if "inner" not in about or "horizon" not in about:
        raise ValueError(
            f"{path} does not say where it was trained, as files of `jaxrl meta-train` do: draw it with "
            "jaxrl.analysis.rule_figures from Python."
        )
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in about["env_options"].items()}
    env = make_env(about["env"], **options)
    tasks = rules.tasks_of(about["env"], **options) if about["tasks"] else None
    entry = ALGORITHMS["lpg"]
    config = overrides.config_from_json(entry.config, about["inner"]["config"])
    make = functools.partial(entry.factory, env, config=config)
    agent = meta.member_of(env, "lpg", about["inner"]["config"], found.spec)
    changes = overrides.with_hyperparameter_changes(agent.hyperparams(), about["inner"]["hyperparams"])
    life = int(about["horizon"]["iterations"][-1])
    hparams = agent.hyperparams(**{**changes, "objective": found.params, "horizon": float(life * agent.env_steps)})
    sample = rule_figures.sample_targets(
        lambda rule: make(rule=rule), found.rule, num_iterations=min(life, 25), tasks=tasks
    )
    rule_figures.plot_targets([(found.spec.kind, sample(jax.random.key(0), hparams))], out)
    print(out)
    lives = sorted({max(round(share * life), 1) for share in _LIVES})
    measured = rule_figures.schedules(agent, lives, tasks=tasks)(jax.random.key(1), hparams)
    over = out.with_name(f"{out.stem}-horizons{out.suffix}")
    rule_figures.plot_schedules([(found.spec.kind, measured)], over)
    print(over)
