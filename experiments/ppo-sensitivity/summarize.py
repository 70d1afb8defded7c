"""Prints the README's tables from the sweep that run.py made.

.venv/bin/python experiments/ppo-sensitivity/summarize.py
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from jaxrl.sweeps.results import read_results


def main() -> None:
    """Prints mean scores by learning rate, and how alike the tasks rank the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/ppo-sensitivity"))
    data = read_results(parser.parse_args().folder)
    scores = data["score"].squeeze().mean("seed").transpose("env", "sample")
    rates, tasks = data["learning_rate"].squeeze().values, [str(env).partition("/")[2] for env in scores.env.values]
    edges = np.geomspace(1e-4, 1e-2, 5)
    print("task | worst | median | best | mean score in each quarter of the learning rates")
    for task, row in zip(tasks, scores.values, strict=True):
        quarters = [row[(rates >= low) & (rates < high)].mean() for low, high in itertools.pairwise(edges)]
        print(task, *np.round([row.min(), np.median(row), row.max(), *quarters], 2), sep=" | ")
    print("\nSpearman's rank correlation of the settings between tasks")
    for task, row in zip(tasks, np.asarray(spearmanr(scores.values, axis=1).statistic), strict=True):
        print(task, *np.round(row, 2), sep=" | ")


if __name__ == "__main__":
    main()
