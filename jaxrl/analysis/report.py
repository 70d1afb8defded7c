"""Reports of sweeps: one self-contained page of HTML, or Markdown with its figures beside it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from jaxrl.analysis.report_pages import Block, Heading, Paragraph, Table, Tiles, write_html, write_pages
from jaxrl.analysis.report_parts import algorithms, all_settings, curves, env_table, names_that_matter
from jaxrl.analysis.report_view import View, count_of, listed, number, span
from jaxrl.analysis.settings import flat_record, record_of, settings_of, text

_SURE = "95% interval "
_MAX_VALUE = 200

_DEFINITIONS = (
    ("Score", "Of a member (one setting and one seed): {score}."),
    (
        "Diverged",
        "A member whose losses, gradients or parameters became NaN or infinite. It is not dropped: its score is the "
        "lowest of any member in its environment, and its curve goes on at the lowest return.",
    ),
    ("IQM", "Interquartile mean: of n seeds the lowest and the highest quarter (⌊n/4⌋ each) are dropped."),
    (
        "Interval",
        "95% percentile bootstrap interval: 2,000 times seeds are drawn with replacement, within each task. It tells "
        "what other seeds would have given, not what another task would.",
    ),
    (
        "Tuning and held-out seeds",
        "The best setting is chosen on the first half of the seeds and its score is that on the other half. A maximum "
        "over noisy scores is too high on the seeds that it was found on, not on others.",
    ),
    ("Wins", "Share of bootstrap resamples of the tuning seeds in which a setting is the best; ties are shared out."),
    ("Rank correlation", "Spearman's, of the settings' scores on the tuning seeds and on the held-out seeds."),
    (
        "Importance",
        "Share of the variance of the settings' mean scores. On a full grid by functional ANOVA: first order counts "
        "a name by itself, total its interactions too. Where settings are drawn or listed or some are missing: "
        "first order from bins, less what shuffled scores give, with a permutation p-value.",
    ),
    (
        "Normalized score",
        "Per environment, 0 is the lowest and 1 the highest mean score of a setting in this sweep. Averages over "
        "environments use it.",
    ),
    ("Optimality gap", "Mean of max(1 - normalized score, 0): how far runs fall short of 1; less is better."),
    (
        "Probability of improvement",
        "How probable it is that a run of X scores higher than one of Y in the same environment, averaged over "
        "environments; ties count half.",
    ),
    ("Performance profile", "Share of runs that score above τ, averaged over environments, for every τ."),
)


def write_report(datasets: Sequence[tuple[str, xarray.Dataset]], path: Path | str) -> Path:
    """Writes a report of sweeps, or of runs alone, as one page of HTML that needs nothing else.

    What it says, in this order: a summary, curves of the best settings and of the median one, which names matter and
    how, all settings, algorithms against each other, how the numbers are computed, configuration and machine.

    Args:
      datasets: label and dataset of each sweep (see `jaxrl.analysis.settings`).
      path: the file; one that is there is replaced.

    Returns:
      The path.

    Raises:
      ValueError: there is no dataset, or one holds no score.
      StorageError: the file cannot be written.
    """
    return write_html(_title(datasets), _blocks(datasets), Path(path))


def write_markdown(datasets: Sequence[tuple[str, xarray.Dataset]], path: Path | str) -> Path:
    """Writes the same as `write_report` as Markdown; figures are put into a folder `<stem>_figures` beside it.

    Args:
      datasets: label and dataset of each sweep.
      path: the file; one that is there is replaced.

    Returns:
      The path.

    Raises:
      ValueError: there is no dataset, or one holds no score.
      StorageError: a file cannot be written.
    """
    return write_pages(_title(datasets), _blocks(datasets), Path(path))


def _title(datasets: Sequence[tuple[str, xarray.Dataset]]) -> str:
    if not datasets:
        raise ValueError("A report needs at least one dataset.")
    return f"Report of {datasets[0][0]}" if len(datasets) == 1 else f"Report of {len(datasets)} sweeps"


def _blocks(datasets: Sequence[tuple[str, xarray.Dataset]]) -> list[Block]:
    blocks: list[Block] = []
    for label, dataset in datasets:
        blocks += _sweep(View(dataset, label))
    scores = dict.fromkeys(settings_of(dataset).score_name for _, dataset in datasets)
    rows = tuple((name, meaning.format(score=" or ".join(scores))) for name, meaning in _DEFINITIONS)
    blocks += [
        Heading(2, "How the numbers are computed"),
        Table("After Agarwal et al. 2021 (arXiv:2108.13264) and Hutter et al. 2014.", ("what", "meaning"), rows),
        Heading(2, "Configuration and machine"),
    ]
    for label, dataset in datasets:
        blocks.append(_record(label, dataset))
    return blocks


def _sweep(view: View) -> list[Block]:
    """One sweep: the summary over all environments, then algorithms, then each environment."""
    settings = view.settings
    several = len(settings.envs) > 1
    blocks: list[Block] = [Heading(2, view.label), Paragraph(_summary(view), "lead")]
    if not view.unjudged:
        blocks.append(_tiles(view))
        if "algorithm" in settings.names:
            blocks += algorithms(view)
        if several:
            blocks += [Heading(3, "All environments"), env_table(view), *names_that_matter(view), *all_settings(view)]
    for index, env in enumerate(settings.envs):
        inside = view.dataset.isel(env=[index]) if several else view.dataset
        part = View(inside, f"{view.label}, {env}" if env else view.label)
        if several:
            blocks += [Heading(3, env), Paragraph(_summary(part))]
        if not part.unjudged:
            blocks += [*curves(part), *names_that_matter(part), *all_settings(part)]
    return blocks


def _summary(view: View) -> str:
    settings = view.settings
    members, diverged = int(settings.ran.sum()), int(settings.diverged.sum())
    who = settings.algorithm or ("several algorithms" if "algorithm" in settings.names else "one algorithm")
    where = listed([env or "one environment" for env in settings.envs])
    steps = view.dataset["step"].values if "step" in view.dataset.coords else np.zeros(0)
    length = f", {steps.max():,.0f} env steps each" if steps.size else ""
    sentences = [
        f"{count_of(len(settings), 'setting')} × {count_of(len(settings.seeds), 'seed')}"
        + (f" × {count_of(len(settings.envs), 'environment')}" if len(settings.envs) > 1 else "")
        + f" ({count_of(members, 'member')}) of {who} on {where}{length}.",
        *([view.unjudged] if view.unjudged else _judgement(view)),
    ]
    share = f"{count_of(diverged, 'member')} of {members:,} diverged ({diverged / members:.1%})"
    sentences.append(f"{share} and count as the lowest score." if diverged else "No member diverged.")
    if unknown := int((settings.ran & np.isnan(settings.scores)).sum()):
        sentences.append(f"{count_of(unknown, 'member')} without a score {'is' if unknown == 1 else 'are'} left out.")
    return " ".join(sentences)


def _judgement(view: View) -> list[str]:
    """The best setting, how good and how sure, and the default one."""
    settings, best = view.settings, view.best
    many = len(settings) > 1
    unit = ", normalized," if len(settings.envs) > 1 else ""
    sentences = [f"Best setting: {settings.label(best.row)}."] if many else []
    if best.held_out:
        where = f"the {count_of(len(best.report_seeds), 'held-out seed')} ({span(best.report_seeds)})"
        score = view.reported(best.row, _SURE)
        sentences.append(f"Chosen on seeds {span(best.tune_seeds)}; its IQM{unit} on {where} is {score}.")
    elif len(best.report_seeds) > 1:
        where = f"{count_of(len(best.report_seeds), 'seed')} ({span(best.report_seeds)})"
        sentences.append(f"The IQM{unit} over {where} is {view.reported(best.row, _SURE)}.")
    else:
        high = ", and the score is too high, since it was chosen for it." if many else "."
        sentences.append(f"Its score{unit} is {number(best.score)}. There is one seed only: no interval{high}")
    if many and best.held_out:
        again = f"It wins in {best.wins[best.row]:.0%} of the resamples of the tuning seeds"
        if not math.isnan(best.rank_correlation):
            again += f"; the settings' rank correlation between both sets of seeds is {best.rank_correlation:.2f}"
        sentences.append(again + ".")
    if view.default == best.row:
        sentences.append("It is the default setting.")
    elif view.default is not None:
        score = view.reported(view.default, _SURE)
        sentences.append(f"The default setting ({settings.label(view.default)}) has {score} on the same seeds.")
    return sentences


def _tiles(view: View) -> Tiles:
    settings, best = view.settings, view.best
    entries = [
        (f"{len(settings):,}", "setting" if len(settings) == 1 else "settings"),
        (f"{len(settings.seeds):,}", "seed" if len(settings.seeds) == 1 else "seeds"),
        (f"{int(settings.ran.sum()):,}", "members"),
        (number(best.score, 3), "best setting's score, held-out seeds" if best.held_out else "score"),
    ]
    if view.default is not None:
        entries.append((number(best.report_scores[view.default], 3), "default setting's score"))
    if not math.isnan(best.rank_correlation):
        entries.append((f"{best.rank_correlation:.2f}", "rank correlation across seeds"))
    return Tiles((*entries, (f"{int(settings.diverged.sum()):,}", "diverged members")))


def _record(label: str, dataset: xarray.Dataset) -> Block:
    flat = flat_record(record_of(dataset))
    if not flat:
        return Paragraph(f"{label}: the dataset has no record of how it was made.")
    rows = tuple((name, _cut(value)) for name, value in flat.items())
    return Table(label, ("entry", "value"), rows)


def _cut(value: Any) -> str:
    shown = " ".join(map(text, value)) if isinstance(value, list) else text(value)
    return shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]}…"
