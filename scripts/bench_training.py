"""Suites cpu, gpu and smoke: PPO on CartPole, Breakout and hopper, beside its environments stepped alone."""

import dataclasses
from collections.abc import Iterator

import jax
from bench_shared import BREAKOUT, CARTPOLE, Case, Row, build, step_alone, timed

import jaxrl
from jaxrl import rollout
from jaxrl.algorithms import ppo
from jaxrl.meta.layout import choose_layout
from jaxrl.networks import NetworkConfig
from jaxrl.ops.members import over_members

HOPPER = {
    "env": "brax/hopper",
    "config": ppo.Config(
        num_envs=2048,
        num_steps=10,
        num_minibatches=32,
        normalize_observations=True,
        normalize_rewards=True,
        network=NetworkConfig(hidden=(256, 256)),
    ),
    "hparams": (("learning_rate", 3e-4), ("entropy_coef", 0.0)),
}
# What brax's own wrapper does, and with it the peers.
CACHED_HOPPER = {**HOPPER, "config": dataclasses.replace(HOPPER["config"], reset="cached", reset_size=2048)}
SMALL_HOPPER = {**HOPPER, "config": dataclasses.replace(HOPPER["config"], num_envs=64, num_steps=32)}

CASES = {
    "cpu": [
        Case(num_seeds=1, total_steps=500_000, **CARTPOLE),
        Case(num_seeds=16, total_steps=100_000, **CARTPOLE),
        Case(num_seeds=1, total_steps=500_000, **BREAKOUT),
        Case(num_seeds=16, total_steps=100_000, **BREAKOUT),
        Case(num_seeds=1, total_steps=204_800, **HOPPER),
        Case(num_seeds=1, total_steps=204_800, **CACHED_HOPPER),
        Case(num_seeds=16, total_steps=20_480, **HOPPER),
        Case(num_seeds=16, total_steps=20_480, **CACHED_HOPPER),
    ],
    "gpu": [
        Case(num_seeds=1, total_steps=500_000, **CARTPOLE),
        Case(num_seeds=16, total_steps=500_000, **CARTPOLE),
        Case(num_seeds=2048, total_steps=500_000, **CARTPOLE),
        Case(num_seeds=1, total_steps=1_000_000, **BREAKOUT),
        Case(num_seeds=16, total_steps=1_000_000, **BREAKOUT),
        Case(num_seeds=256, total_steps=1_000_000, **BREAKOUT),
        Case(num_seeds=1, total_steps=2_000_000, **HOPPER),
        Case(num_seeds=16, total_steps=1_000_000, **HOPPER),
    ],
    "smoke": [
        Case(num_seeds=2, total_steps=4_096, **CARTPOLE),
        Case(num_seeds=1, total_steps=2_048, **SMALL_HOPPER),
    ],
}


def measure_case(case: Case, repeats: int) -> Row:
    agent, hparams, num_steps = build(case)
    env = jaxrl.make_env(case.env)
    keys = jax.random.split(jax.random.key(0), case.num_seeds)
    layout = choose_layout(agent, hparams, case.num_seeds)
    run = over_members(jaxrl.train(agent, num_steps), (0, None), *layout)
    timing = timed(run, (keys, hparams), repeats)
    transitions = num_steps * agent.env_steps * case.num_seeds
    alone_steps = max(case.config.num_steps, min(1_000, 2_000_000 // (case.config.num_envs * case.num_seeds)))
    alone = over_members(step_alone(env, 1, case.config.num_envs, alone_steps, rollout.Reset()), (0,), *layout)
    alone_seconds = timed(alone, (keys,), repeats).seconds
    limit = alone_steps * case.config.num_envs * case.num_seeds / alone_seconds
    return {
        "case": case.name.strip(),
        "num_seeds": case.num_seeds,
        "num_devices": layout.num_devices,
        "chunk": layout.chunk,
        "steps_per_seed": num_steps * agent.env_steps,
        "compile_seconds": round(timing.compile_seconds, 2),
        "run_seconds": round(timing.seconds, 3),
        "steps_per_second": round(transitions / timing.seconds),
        "program_bytes": timing.program_bytes,
        "env_alone_steps_per_second": round(limit),
        "share_of_env_alone": round(transitions / timing.seconds / limit, 4),
    }


def measure(suite: str, only: str, repeats: int) -> Iterator[Row]:
    for case in CASES[suite]:
        if only in case.name:
            yield measure_case(case, repeats)
