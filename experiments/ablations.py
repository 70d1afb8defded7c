"""What experiments share that train arms of several tasks and draw their returns while training."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans

NUM_SPANS = 20
"""Of training, of which the returns are kept."""


def main(
    description: str | None,
    folder: Path,
    parts: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, int],
    curves: Callable[[Any, str, int, int], np.ndarray],
    *,
    num_seeds: int,
    tiny: int,
    form: str,
    runs_on: Callable[[Any, str], bool] = lambda arm, task: True,
    labels: tuple[str, str] = ("environment steps", "return while training"),
) -> None:
    """Runs what has not been run of a part, prints its table and draws its figure.

    Args:
      description: for `--help`.
      folder: of a part's .json and .png, unless `--out` names another.
      parts: the arms of each part, by names.
      tasks: environment steps of each.
      curves: `(arm, task, num_steps, num_seeds) -> mean returns of episodes by spans, [seeds, spans]`.
      num_seeds: without `--seeds`.
      tiny: environment steps with `--tiny`, which keeps nothing.
      form: of the numbers in the table.
      runs_on: `(arm, task) -> whether it is run there`.
      labels: of what the spans are parts of, and of what is drawn over them.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=parts, default=next(iter(parts)))
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--seeds", type=int, default=num_seeds)
    parser.add_argument("--out", type=Path, default=folder, help="folder of the part's .json and .png")
    parser.add_argument("--tiny", action="store_true", help="few steps of two seeds on one task, kept nowhere")
    options = parser.parse_args()
    if options.tiny:
        with tempfile.TemporaryDirectory() as out:
            few = {options.tasks[0]: tiny}
            _run(options.part, parts[options.part], few, curves, 2, Path(out), form, runs_on, labels)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = {task: tasks[task] for task in options.tasks}
    _run(options.part, parts[options.part], chosen, curves, options.seeds, options.out, form, runs_on, labels)


def _run(
    part: str,
    arms: Mapping[str, Any],
    tasks: Mapping[str, int],
    curves: Callable[[Any, str, int, int], np.ndarray],
    num_seeds: int,
    out: Path,
    form: str,
    runs_on: Callable[[Any, str], bool],
    labels: tuple[str, str],
) -> None:
    path = out / f"{part}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    there = {(row["task"], row["arm"]): (row["num_steps"], len(row["curve"])) for row in rows}
    for task, num_steps in tasks.items():
        for name, arm in arms.items():
            size = there.get((task, name))
            if not runs_on(arm, task) or size == (num_steps, num_seeds):
                continue
            if size:
                raise SystemExit(
                    f"{path} has {name} on {task} with {size[1]} seeds of {size[0]} steps: name another --out."
                )
            began = time.perf_counter()
            curve = curves(arm, task, num_steps, num_seeds).tolist()
            seconds = round(time.perf_counter() - began)
            rows.append({"task": task, "arm": name, "num_steps": num_steps, "curve": curve, "seconds": seconds})
            path.write_text(json.dumps(rows) + "\n")
            print(f"{task} {name}: {seconds} s", flush=True)
    report(list(arms), rows, path.with_suffix(".png"), form, labels)


def report(arms: list[str], rows: list[dict[str, Any]], path: Path, form: str, labels: tuple[str, str]) -> None:
    """Prints the table of all rows and draws the figure.

    Args:
      arms: their names, which the colors follow.
      rows: one an arm and task.
      path: of the figure.
      form: of the numbers in the table.
      labels: of the axes.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    print(tables.head("task", "arm", f"{labels[1]}, IQM [95%]", "last fifth, IQM [95%]", "seconds"))
    for panel, task in zip(panels[0], tasks, strict=True):
        for row in sorted((row for row in rows if row["task"] == task), key=lambda row: arms.index(row["arm"])):
            curve = np.asarray(row["curve"])
            # Before the first episode has ended there is no return.
            averages = np.nanmean(curve, axis=1), np.nanmean(curve[:, -NUM_SPANS // 5 :], axis=1)
            cells = (tables.interval(x, form, statistics.iqm) for x in averages)
            print(tables.row(task.partition("/")[2] or task, row["arm"], *cells, row["seconds"]))
            draw_spans(panel, curve, row["num_steps"], statistics.iqm, arms.index(row["arm"]), row["arm"])
        panel.set(title=task.partition("/")[2] or task, xlabel=labels[0])
        panel.locator_params(axis="x", nbins=4)
        style.tidy(panel)
    panels[0, 0].set_ylabel(f"{labels[1]}, IQM")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, 2 * len(tasks)), frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)
