"""`jaxrl evaluate`."""

import argparse

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl import fit
from jaxrl.analysis import statistics
from jaxrl.cli import build, devices
from jaxrl.cli.folders import open_run
from jaxrl.cli.progress import number
from jaxrl.evaluation import time_limit


def evaluate(options: argparse.Namespace) -> None:
    """Plays episodes with each seed of a run and prints their returns.

    Raises:
      ValueError: the folder holds no run that `jaxrl train` made, or not this checkpoint.
      StorageError: the checkpoint is damaged.
    """
    run = open_run(options.dir)
    devices.use_all_cores(build.layout_of(run).num_devices)
    built = build.from_record(run)
    if built.member.env is None:
        raise ValueError(f"{run.path}: {built.member.name} has no environment to play in.")
    state, iteration = build.load_state(run, built, options.checkpoint)
    play = fit.play_episodes(
        built.member,
        options.episodes,
        options.sampled,
        time_limit(built.member.env, built.hparams.env),
        run.record["num_seeds"],
        *built.layout,
    )
    # Training uses the first two children of its key; these episodes are others than those seen there.
    key = jax.random.split(jax.random.key(options.seed), 3)[2]
    episodes = jax.device_get(jax.jit(play)(key, state, built.hparams))
    returns = np.where(episodes.finished, episodes.returns.astype(np.float64), np.nan)
    console = Console(highlight=False)
    console.print(
        f"{run.record['algorithm']} on {run.record['env']} after {iteration * built.member.env_steps:,} steps: "
        f"{options.episodes} episodes of each seed, {'sampled' if options.sampled else 'greedy'} actions",
        soft_wrap=True,
    )
    console.print()
    console.print(_table(returns, np.asarray(episodes.lengths), np.asarray(episodes.finished)))
    means = statistics.mean(returns)
    console.print()
    for name, statistic in (("mean", statistics.mean), ("IQM", statistics.iqm)):
        low, high = (float(bound) for bound in statistics.bootstrap_interval(means, statistic))
        interval = "" if np.isnan(low) else f", 95% interval over seeds {number(low)} to {number(high)}"
        console.print(f"{name} {number(float(statistic(means)))}{interval}")
    if missing := int(np.sum(~episodes.finished)):
        console.print(f"{missing} episodes were not finished and do not count.", style="yellow")


def _table(returns: np.ndarray, lengths: np.ndarray, finished: np.ndarray) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("seed", "mean return", "deviation", "lowest", "highest", "mean length", "finished"):
        table.add_column(title, justify="left" if title == "seed" else "right")
    for seed, (row, length, ended) in enumerate(zip(returns, lengths, finished, strict=True)):
        known = row[ended]
        spread = (known.std(), known.min(), known.max()) if len(known) else (np.nan,) * 3
        mean_length = length[ended].mean() if len(known) else np.nan
        cells = (float(statistics.mean(row)), *map(float, spread), float(mean_length))
        table.add_row(str(seed), *map(number, cells), f"{len(known)}/{len(row)}")
    return table
