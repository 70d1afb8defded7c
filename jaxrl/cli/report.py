"""`jaxrl report` and `jaxrl compare`."""

import argparse
from pathlib import Path

from jaxrl.analysis import comparison, report
from jaxrl.names import distinct
from jaxrl.sweeps import results


def write(options: argparse.Namespace) -> None:
    """Makes a page of sweeps and runs, as HTML or Markdown by the file's suffix, and prints its name.

    Raises:
      ValueError: a folder holds no results, or the suffix is unknown.
      StorageError: something cannot be read or written.
    """
    out = options.out or (options.dirs[0] / "report.html" if len(options.dirs) == 1 else Path("report.html"))
    if out.suffix not in (".html", ".md"):
        raise ValueError(f"--out must end in .html or .md; got {out}.")
    data = list(zip(distinct(options.dirs), map(results.read_any, options.dirs), strict=True))
    print((report.write_report if out.suffix == ".html" else report.write_markdown)(data, out))


def compare(options: argparse.Namespace) -> None:
    """Says what differs between two runs or sweeps, and whether their scores and curves do.

    Raises:
      ValueError: a folder holds no results, or nothing is comparable.
      StorageError: something cannot be read.
    """
    first, second = (results.read_any(path) for path in (options.first, options.second))
    labels = distinct([options.first, options.second])
    print("\n".join(comparison.compare_runs(first, second, (labels[0], labels[1])).lines()))
