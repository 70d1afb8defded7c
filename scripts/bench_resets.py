"""Suite resets: environments stepped with random actions, with fresh, pooled and cached resets."""

import sys
from collections.abc import Iterator

import jax
from bench_shared import Row, step_alone, timed

import jaxrl
from jaxrl import rollout
from jaxrl.envs.registry import installed

ENVS = (
    "gymnax/CartPole-v1",
    "gymnax/Breakout-MinAtar",
    "brax/ant",
    "navix/Navix-FourRooms-v0",
    "navix/Navix-SimpleCrossingS11N5-v0",
)
"""The last two are mazes: rooms with gaps drawn at random, and walls that only a winding way leads through."""


def measure(only: str, repeats: int, num_envs: int = 64, num_steps: int = 200) -> Iterator[Row]:
    for name in ENVS:
        suite = name.partition("/")[0]
        if only not in name:
            continue
        if not installed(suite):
            print(f"{name}: the suite {suite} is not installed, left out", file=sys.stderr)
            continue
        env = jaxrl.make_env(name)
        for reset in (rollout.Reset("fresh"), rollout.Reset("pooled", 4), rollout.Reset("cached", 64)):
            timing = timed(step_alone(env, 1, num_envs, num_steps, reset), (jax.random.key(0),), repeats)
            yield {
                "case": f"{name} {reset.mode} {reset.size or ''}".strip(),
                "num_seeds": 1,
                "steps_per_seed": num_envs * num_steps,
                "compile_seconds": round(timing.compile_seconds, 2),
                "run_seconds": round(timing.seconds, 4),
                "steps_per_second": round(num_envs * num_steps / timing.seconds),
                "program_bytes": timing.program_bytes,
            }
