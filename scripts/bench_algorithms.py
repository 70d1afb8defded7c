"""Suite algorithms: every algorithm by name with its defaults, for 1 and 64 members; docs/speed.md shows it."""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from bench_shared import Row, clocked

import jaxrl
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.ops import trees

TASKS = ("gymnax/CartPole-v1", "gymnax/Pendulum-v1", "coverage/Cells")
"""The first in which an algorithm can act is the one that it is measured in."""


def _first_task(name: str) -> tuple[str, jaxrl.Algorithm | None]:
    reasons = []
    for task in TASKS:
        try:
            return task, jaxrl.make(name, jaxrl.make_env(task))
        except ValueError as error:
            reasons.append(str(error))
    print(f"{name}: left out: {reasons[-1]}", file=sys.stderr)
    return "", None


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure(only: str, repeats: int, seconds: float = 2.0, longest_step: float = 20.0) -> Iterator[Row]:
    """Algorithms and variants as `jaxrl train` makes them, for 1 and 64 members that run together on one device.

    The 64 are left out where one step of theirs would take over `longest_step` seconds, or their states over a third of
    the memory, going by what one member was seen to take.
    """
    seen: dict[str, tuple[float, int]] = {}
    for name, num_members in itertools.product(ALGORITHMS, (1, 64)):
        if only not in f"{name} x{num_members} ":
            continue
        step_seconds, num_bytes = (num_members * figure for figure in seen.get(name, (0.0, 0)))
        if step_seconds > longest_step or num_bytes > memory() / 3:
            reason = f"a step would take some {step_seconds:.0f} s, the states {num_bytes / 1e9:.1f} GB"
            print(f"{name} x{num_members}: left out: {reason}", file=sys.stderr, flush=True)
            continue
        task, agent = _first_task(name)
        if agent is None:
            continue
        hparams, keys = agent.hyperparams(), jax.random.split(jax.random.key(0), num_members)

        def run(states: Any, hparams: Any, num_steps: Any, agent: jaxrl.Algorithm = agent) -> Any:
            step = jax.vmap(lambda state, hparams: agent.step(state, hparams)[0], (0, None))
            return jax.lax.fori_loop(0, num_steps, lambda _, states: step(states, hparams), states)

        began = time.perf_counter()
        init = jax.jit(jax.vmap(agent.init, (0, None))).lower(keys, hparams).compile()
        states = init(keys, hparams)
        compiled = jax.jit(run, donate_argnums=0).lower(states, hparams, 1).compile()
        compile_seconds = time.perf_counter() - began
        once = lambda states, num_steps: clocked(compiled, states, hparams, jnp.int32(num_steps))
        # The first run is not counted: it touches memory that has only been promised.
        states, _ = once(states, 1)
        states, one = once(states, 1)
        seen[name] = (one / num_members, trees.num_bytes(states) // num_members)
        num_steps, runs = max(1, round(seconds / one)), []
        for _ in range(repeats):
            states, taken = once(states, num_steps)
            runs.append(taken)
        run_seconds, analysis = statistics.median(runs), compiled.memory_analysis()
        yield {
            "case": f"{name} {task} x{num_members}",
            "num_seeds": num_members,
            "steps_per_seed": num_steps * agent.env_steps,
            "compile_seconds": round(compile_seconds, 2),
            "run_seconds": round(run_seconds, 3),
            "steps_per_second": round(num_steps * agent.env_steps * num_members / run_seconds),
            "state_bytes_per_member": trees.num_bytes(states) // num_members,
            "temporary_bytes_per_member": analysis.temp_size_in_bytes // num_members if analysis else 0,
        }
