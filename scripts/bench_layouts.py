"""Suite layouts: the same members over one device and over all, in chunks of several sizes."""

import itertools
from collections.abc import Iterator

import jax
from bench_shared import BREAKOUT, CARTPOLE, Case, Row, build, timed

import jaxrl
from jaxrl.meta.layout import choose_layout
from jaxrl.ops.members import over_members


def measure(only: str, repeats: int, shrink: int = 1) -> Iterator[Row]:
    for settings, num_seeds, total_steps in ((CARTPOLE, 64, 16_384), (BREAKOUT, 8, 65_536)):
        case = Case(num_seeds=num_seeds, total_steps=total_steps // shrink, **settings)
        if only not in case.name:
            continue
        agent, hparams, num_steps = build(case)
        chosen = choose_layout(agent, hparams, num_seeds)
        keys = jax.random.split(jax.random.key(0), num_seeds)
        for num_devices, chunk in itertools.product(sorted({1, jax.device_count()}), (1, 2, 4, 8, 16, 32, 64)):
            if num_seeds % num_devices or chunk > num_seeds // num_devices:
                continue
            run = over_members(jaxrl.train(agent, num_steps), (0, None), num_devices, chunk)
            timing = timed(run, (keys, hparams), repeats)
            yield {
                "case": f"{case.name}on {num_devices}, {chunk} at a time",
                "num_seeds": num_seeds,
                "num_devices": num_devices,
                "chunk": chunk,
                "chosen": (num_devices, chunk) == tuple(chosen),
                "compile_seconds": round(timing.compile_seconds, 2),
                "run_seconds": round(timing.seconds, 3),
                "steps_per_second": round(num_steps * agent.env_steps * num_seeds / timing.seconds),
                "program_bytes": timing.program_bytes,
            }
