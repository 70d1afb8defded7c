"""Where the time of one algorithm's iteration goes, operation by operation, on the default device.

    scripts/profile.py gymnax/CartPole-v1 --num-seeds 16 --num-steps 10

Prints the operations with the most time per iteration, how often each ran, and where in the code it comes from. On a
CPU the tracer slows small operations down, so read the counts and the order, not the microseconds.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import sys
import tempfile
from typing import Any

import jax

import jaxrl
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.training import advance_jit


def trace(compiled: Any, state: Any, hparams: Any) -> list[dict[str, Any]]:
    """Events of one run of a compiled `advance`."""
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level, options.python_tracer_level = 3, 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        jax.block_until_ready(compiled(state, hparams))
        jax.profiler.stop_trace()
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            return json.load(file)["traceEvents"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="ppo")
    parser.add_argument("--num-seeds", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=40)
    arguments = parser.parse_args()

    member = ALGORITHMS[arguments.algorithm].factory(jaxrl.make_env(arguments.env))
    algorithm = jaxrl.population(member, arguments.num_seeds) if arguments.num_seeds > 1 else member
    hparams = algorithm.hyperparams()
    state = jax.jit(algorithm.init)(jax.random.key(0), hparams)
    compiled = advance_jit.lower(algorithm, state, hparams, arguments.num_steps).compile()
    state, _ = jax.block_until_ready(compiled(state, hparams))
    program = compiled.as_text() or ""

    total: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for event in trace(compiled, state, hparams):
        if event.get("ph") == "X" and not event["name"].startswith(("end:", "ThunkExecutor")):
            total[event["name"]] += event["dur"]
            count[event["name"]] += 1
    for name, microseconds in total.most_common(arguments.rows):
        found = re.search(rf'%?{re.escape(name)} = .*?op_name="([^"]*)"', program)
        place = found[1][-90:] if found else ""
        per_step, times = microseconds / arguments.num_steps, count[name] / arguments.num_steps
        print(f"{per_step:10.1f} us x{times:7.1f}  {name:32.32}  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
