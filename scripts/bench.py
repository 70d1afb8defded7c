"""Times jaxrl and writes a CSV with machine and versions.

    scripts/bench.py --suite cpu                     PPO on CartPole, Breakout and hopper for 1 and 16 seeds
    scripts/bench.py --suite layouts                 members over devices and in chunks, CartPole and Breakout
    scripts/bench.py --suite resets                  what fresh, pooled and cached resets cost
    scripts/bench.py --suite algorithms              every algorithm by name with its defaults, 1 and 64 members
    scripts/bench.py --suite replay                  replay buffers, beside flashbax if it is installed
    scripts/bench.py --suite discovery               LPG by evolution strategies, GRUs of 256 and 32 units
    scripts/bench.py --suite curves                  learning curves of 10 seeds, for docs/benchmarks.md
    scripts/bench.py --suite gpu                     every GPU measurement, under 8 minutes on one GPU
    scripts/bench.py --suite smoke                   tiny sizes, to see that it works

Seeds are laid out over the cores as `jaxrl train` and the sweeps do it (`jaxrl.meta.layout`); `--cores 1` gives one
device, as in a program that only calls `jax.vmap`.

Each row: seconds to compile (lowering included, no persistent cache), seconds of one run (median of `--repeats`),
environment steps per second over all seeds, bytes of the compiled program, and the same environments stepped alone with
random actions (the limit that training cannot exceed) with the share of it that training reaches. Then the machine, the
versions, and the commit that jaxrl is at, with "+" if its files were changed since.

Each suite is a file: bench_training.py has cpu, gpu and smoke, the others are named after theirs.

On a machine without network, with packages in a folder of wheels:

    python -m pip install --no-index --no-deps --target /tmp/site WHEELS/*.whl
    PYTHONPATH=/tmp/site:. python scripts/bench.py --suite gpu --out gpu.csv
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bench_algorithms
import bench_curves
import bench_discovery
import bench_layouts
import bench_replay
import bench_resets
import bench_training
import jax
from bench_shared import Row, machine, write

SUITES: dict[str, Callable[[str, int], Iterator[Row]]] = {
    "cpu": functools.partial(bench_training.measure, "cpu"),
    "gpu": functools.partial(bench_training.measure, "gpu"),
    "layouts": bench_layouts.measure,
    "resets": bench_resets.measure,
    "algorithms": bench_algorithms.measure,
    "replay": bench_replay.measure,
    "discovery": bench_discovery.measure,
    "curves": lambda only, repeats: bench_curves.measure(only),
    "smoke": functools.partial(bench_training.measure, "smoke"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="smoke")
    parser.add_argument("--only", default="", help="measure only cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU devices (default: one a core)")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds after which no new case is begun")
    parser.add_argument("--out", type=Path, default=Path("bench.csv"))
    arguments = parser.parse_args()

    # Compiling is measured too, so nothing compiled before may be used.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_num_cpu_devices", arguments.cores)
    began, here, rows = time.perf_counter(), machine(), []
    for row in SUITES[arguments.suite](arguments.only, arguments.repeats):
        rows.append({**row, **here})
        print("  ".join(f"{name}={value}" for name, value in row.items() if "slice" not in name), flush=True)
        # Written after each case, so that a stop loses nothing.
        write(arguments.out, rows)
        if arguments.suite == "gpu" and time.perf_counter() - began > arguments.budget:
            print("The budget is spent; the remaining cases are left out.", file=sys.stderr)
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
