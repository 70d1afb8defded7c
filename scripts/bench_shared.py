"""What the suites of scripts/bench.py share: PPO's cases, the clock, the record of the machine, the CSV."""

import csv
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrl
from jaxrl import rollout, runs, spaces
from jaxrl.algorithms import ppo
from jaxrl.networks import NetworkConfig

Row = dict[str, Any]
"""A measurement, column by column."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: PPO on an environment, for a number of seeds."""

    env: str
    num_seeds: int
    total_steps: int
    config: ppo.Config
    hparams: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        reset = "" if self.config.reset == "fresh" else f"{self.config.reset} "
        return f"ppo {self.env} {reset}x{self.num_seeds} "


CARTPOLE = {"env": "gymnax/CartPole-v1", "config": ppo.Config()}
BREAKOUT = {
    "env": "gymnax/Breakout-MinAtar",
    "config": ppo.Config(num_envs=64, num_minibatches=8, network=NetworkConfig(activation="relu", convolve=False)),
    "hparams": (("learning_rate", 5e-3),),
}


def build(case: Case) -> tuple[jaxrl.Algorithm, Any, int]:
    """The algorithm, its hyperparameters, and the iterations that fit into the case's steps."""
    agent = ppo.ppo(jaxrl.make_env(case.env), config=case.config)
    num_steps = max(1, case.total_steps // agent.env_steps)
    return agent, agent.hyperparams(horizon=num_steps * agent.env_steps, **dict(case.hparams)), num_steps


class Timing(NamedTuple):
    """Seconds to compile, seconds of each run, and bytes of the compiled program."""

    compile_seconds: float
    runs: list[float]
    program_bytes: int

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)


def clocked(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, once it is there, and the seconds until then."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - began


def timed(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> Timing:
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    runs = []
    for _ in range(repeats):
        # Nothing keeps the result: two at a time may not fit.
        runs.append(clocked(compiled, *arguments)[1])
        if sum(runs) > 90:
            break
    analysis = compiled.memory_analysis()
    size = (
        analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes if analysis else 0
    )
    return Timing(compile_seconds, runs, size)


def step_alone(
    env: jaxrl.Env, num_seeds: int, num_envs: int, num_steps: int, reset: rollout.Reset
) -> Callable[..., Any]:
    """Environments stepped and reset with random actions and no learner: `key -> sums`."""

    def policy(keys: Any, obs: Any, memory: Any, start: Any) -> Any:
        action = jax.vmap(lambda key: spaces.sample(env.action_space, key))(keys)
        return action, action, (), ()

    def one(key: Any) -> Any:
        key_start, key_steps = jax.random.split(key)
        params = env.default_params()
        actor = rollout.start(key_start, env, params, num_envs, (), reset)
        key_steps, key_policy = jax.random.split(key_steps)
        draws = jax.random.split(key_policy, (num_steps, num_envs))
        actor, batch, _ = rollout.collect(key_steps, env, params, actor, policy, draws, reset)
        return jnp.sum(batch.reward), jax.tree.map(jnp.sum, batch.next_obs)

    return lambda key: jax.vmap(one)(jax.random.split(key, num_seeds))


def processor() -> str:
    """The CPU's model where Linux tells it, otherwise its architecture."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", information.read_text(), re.MULTILINE) if information.exists() else []
    return models[0] if models else platform.machine()


def revision() -> str:
    """The commit that jaxrl is at, with "+" if its files were changed since; "unknown" outside git."""
    told = runs.environment()
    if told["git_revision"] is None:
        return "unknown"
    return told["git_revision"][:7] + "+" * told["git_modified"]


def machine() -> Row:
    """What every row carries: when, where, and with which versions it was measured."""
    import flax

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "num_cpus": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "jaxrl": jaxrl.__version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "flax": flax.__version__,
        "git_revision": revision(),
    }


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
