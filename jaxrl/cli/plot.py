"""`jaxrl plot`."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.analysis import optimizer_figures, rule_figures
from jaxrl.analysis.drift_figures import plot_drifts
from jaxrl.analysis.plots import plot_curves
from jaxrl.cli import overrides, rules
from jaxrl.cli.folders import open_run
from jaxrl.envs import make_env
from jaxrl.objectives.files import FAMILIES, RuleFile, read_rule
from jaxrl.ops import expressions
from jaxrl.ops.optimizers import adam
from jaxrl.types import Env, Key

# As the help of --out names them.
_FORMATS = ("png", "pdf", "svg")

# Lengths of life beside that of training, as shares of it.
_LIVES = (0.2, 0.5, 1.0, 2.0)


def plot(options: argparse.Namespace) -> None:
    """Draws the learning curves of runs, the generations of searches, or a rule, and prints the file's name.

    Raises:
      ValueError: a folder holds no run or no metrics yet, the file's format is unknown, or a rule does not say where
        it was trained.
    """
    if options.out is not None and options.out.suffix[1:].lower() not in _FORMATS:
        raise ValueError(f"--out {options.out} must end in one of {', '.join(_FORMATS)}.")
    files = [path for path in options.dirs if path.suffix in rules.SUFFIXES]
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
    draw = {"sequence": _plot_sequence_rule, "optimizer": _plot_optimizer, "drift": _plot_drift}
    if found.spec.family not in draw:
        formula = f": {expressions.describe(found.params)}" if found.spec.kind == "program" else "."
        raise ValueError(f"{path} is {FAMILIES[found.spec.family].what}, of which there is no picture{formula}")
    draw[found.spec.family](path, found, out)


def _plot_drift(path: Path, found: RuleFile, out: Path) -> None:
    del path
    if found.spec.arguments.get("progress") or found.spec.kind.startswith("ta_"):
        checks = rule_figures.plot_drift_over_progress(found.rule, found.params, out)
    else:
        checks = plot_drifts([(found.spec.kind, found.rule, found.params)], out)
    if not all(check.hold for check in checks):
        print("It is not a drift of mirror learning: the picture says what is broken.")
    print(out)


class _Setting(NamedTuple):
    """Where a rule was trained: environment, how its levels are drawn, config, hyperparameters as texts, iterations."""

    env: Env
    tasks: Callable[[Key], Any] | None
    config: Any
    texts: dict[str, str]
    life: int


def _setting(path: Path, found: RuleFile, algorithm: str, module: str) -> _Setting:
    about = found.spec.provenance
    if "inner" not in about or "horizon" not in about:
        raise ValueError(
            f"{path} does not say where it was trained, as files of `jaxrl meta-train` do: draw it with "
            f"jaxrl.analysis.{module} from Python."
        )
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in about["env_options"].items()}
    tasks = rules.tasks_of(about["env"], **options) if about["tasks"] else None
    config = overrides.config_from_json(ALGORITHMS[algorithm].config, about["inner"]["config"])
    life = int(about["horizon"]["iterations"][-1])
    texts = {**about["inner"]["hyperparams"], **about.get("env_params", {})}
    return _Setting(make_env(about["env"], **options), tasks, config, texts, life)


def _plot_optimizer(path: Path, found: RuleFile, out: Path) -> None:
    """Where its steps and Adam's point, dormant units and returns, in the training that it was found for."""
    setting = _setting(path, found, "ppo", "optimizer_figures")
    config = dataclasses.replace(setting.config, diagnostics=("dormant",))
    make = lambda optimizer: ALGORITHMS["ppo"].factory(setting.env, optimizer=optimizer, config=config)
    traces = []
    for optimizer, weights in ((found.rule, {"optimizer": found.params}), (adam, {})):
        agent = make(optimizer)
        changes = overrides.with_hyperparameter_changes(agent.hyperparams(), setting.texts)
        hparams = agent.hyperparams(**{**changes, **weights, "horizon": float(setting.life * agent.env_steps)})
        trace = optimizer_figures.optimizer_trace(make, optimizer, setting.life, tasks=setting.tasks)
        title = found.spec.kind if weights else f"Adam, rate {float(hparams.learning_rate):.3g}"
        traces.append((title, trace(jax.random.key(0), hparams)))
    optimizer_figures.plot_optimizers(traces, out)
    print(out)


def _plot_sequence_rule(path: Path, found: RuleFile, out: Path) -> None:
    """Its targets against returns, and in a second file its entropy and scale over horizons."""
    setting = _setting(path, found, "lpg", "rule_figures")
    make = functools.partial(ALGORITHMS["lpg"].factory, setting.env, config=setting.config)
    agent = make(rule=found.rule)
    changes = overrides.with_hyperparameter_changes(agent.hyperparams(), setting.texts)
    horizon = float(setting.life * agent.env_steps)
    hparams = agent.hyperparams(**{**changes, "objective": found.params, "horizon": horizon})
    sample = rule_figures.sample_targets(
        lambda rule: make(rule=rule), found.rule, num_iterations=min(setting.life, 25), tasks=setting.tasks
    )
    rule_figures.plot_targets([(found.spec.kind, sample(jax.random.key(0), hparams))], out)
    print(out)
    lives = sorted({max(round(share * setting.life), 1) for share in _LIVES})
    measured = rule_figures.schedules(agent, lives, tasks=setting.tasks)(jax.random.key(1), hparams)
    over = out.with_name(f"{out.stem}-horizons{out.suffix}")
    rule_figures.plot_schedules([(found.spec.kind, measured)], over)
    print(over)
