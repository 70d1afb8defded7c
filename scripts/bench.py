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
random actions (the limit that training cannot exceed) with the share of it that training reaches.

On a machine without network, with packages in a folder of wheels:

    python -m pip install --no-index --no-deps --target /tmp/site WHEELS/*.whl
    PYTHONPATH=/tmp/site:. python scripts/bench.py --suite gpu --out gpu.csv
"""

import argparse
import csv
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrl
from jaxrl import buffers, rollout, spaces, strategies
from jaxrl.algorithms import lpg, ppo
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.envs import grids
from jaxrl.envs.registry import installed
from jaxrl.meta.layout import choose_layout
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.members import over_members


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


def cases(suite: str) -> list[Case]:
    if suite == "cpu":
        return [
            Case(num_seeds=1, total_steps=500_000, **CARTPOLE),
            Case(num_seeds=16, total_steps=100_000, **CARTPOLE),
            Case(num_seeds=1, total_steps=500_000, **BREAKOUT),
            Case(num_seeds=16, total_steps=100_000, **BREAKOUT),
            Case(num_seeds=1, total_steps=204_800, **HOPPER),
            Case(num_seeds=1, total_steps=204_800, **CACHED_HOPPER),
            Case(num_seeds=16, total_steps=20_480, **HOPPER),
            Case(num_seeds=16, total_steps=20_480, **CACHED_HOPPER),
        ]
    if suite == "gpu":
        return [
            Case(num_seeds=1, total_steps=500_000, **CARTPOLE),
            Case(num_seeds=16, total_steps=500_000, **CARTPOLE),
            Case(num_seeds=2048, total_steps=500_000, **CARTPOLE),
            Case(num_seeds=1, total_steps=1_000_000, **BREAKOUT),
            Case(num_seeds=16, total_steps=1_000_000, **BREAKOUT),
            Case(num_seeds=256, total_steps=1_000_000, **BREAKOUT),
            Case(num_seeds=1, total_steps=2_000_000, **HOPPER),
            Case(num_seeds=16, total_steps=1_000_000, **HOPPER),
        ]
    return [
        Case(num_seeds=2, total_steps=4_096, **CARTPOLE),
        Case(num_seeds=1, total_steps=2_048, **SMALL_HOPPER),
    ]


class Timing(NamedTuple):
    """Seconds to compile, seconds of each run, and bytes of the compiled program."""

    compile_seconds: float
    runs: list[float]
    program_bytes: int

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)


def timed(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> Timing:
    started = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        runs.append(time.perf_counter() - started)
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


def build(case: Case) -> tuple[jaxrl.Algorithm, Any, int]:
    """The algorithm, its hyperparameters, and the iterations that fit into the case's steps."""
    agent = ppo.ppo(jaxrl.make_env(case.env), config=case.config)
    num_steps = max(1, case.total_steps // agent.env_steps)
    return agent, agent.hyperparams(horizon=num_steps * agent.env_steps, **dict(case.hparams)), num_steps


def measure(case: Case, repeats: int) -> dict[str, Any]:
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


def measure_layouts(only: str, repeats: int, shrink: int = 1) -> Iterator[dict[str, Any]]:
    """The same members over one device and over all, in chunks of several sizes."""
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


ACROBOT = {**CARTPOLE, "env": "gymnax/Acrobot-v1"}
NUM_SLICES = 50


def measure_curves(only: str) -> Iterator[dict[str, Any]]:
    """One row a seed: the return of evaluation episodes at the end, and of the episodes that ended in each slice."""
    for settings, total_steps in ((CARTPOLE, 500_000), (ACROBOT, 500_000), (BREAKOUT, 1_000_000)):
        case = Case(num_seeds=10, total_steps=total_steps, **settings)
        if only not in case.name:
            continue
        agent, hparams, num_steps = build(case)
        keys = jax.random.split(jax.random.key(0), case.num_seeds)
        states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
        ends = [round(i * num_steps / NUM_SLICES) for i in range(NUM_SLICES + 1)]
        total, count = (
            jnp.stack([metrics[f"episode/{name}"][:, a:b].sum(1) for a, b in itertools.pairwise(ends)], 1)
            for name in ("return_sum", "count")
        )
        final = {}
        for sampled in (True, False):
            play = jax.vmap(jaxrl.evaluate(agent, 32, sampled=sampled), (0, 0, None))
            episodes = jax.jit(play)(jax.random.split(jax.random.key(1), case.num_seeds), states, hparams.env)
            final["sampled" if sampled else "greedy"] = episodes.mean_return
        for seed in range(case.num_seeds):
            yield {
                "case": case.name.strip(),
                "seed": seed,
                "steps": num_steps * agent.env_steps,
                **{f"final_{name}": round(float(values[seed]), 3) for name, values in final.items()},
                **{f"slice_{i}": round(float(total[seed, i] / count[seed, i]), 3) for i in range(NUM_SLICES)},
            }


RESET_ENVS = (
    "gymnax/CartPole-v1",
    "gymnax/Breakout-MinAtar",
    "brax/ant",
    "navix/Navix-FourRooms-v0",
    "navix/Navix-SimpleCrossingS11N5-v0",
)
"""The last two are mazes: rooms with gaps drawn at random, and walls that only a winding way leads through."""


def measure_resets(only: str, repeats: int, num_envs: int = 64, num_steps: int = 200) -> Iterator[dict[str, Any]]:
    for name in RESET_ENVS:
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


def replay_rounds(kind: str, capacity: int, num_envs: int, batch_size: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    """An empty buffer, and one round: a row is added, a batch drawn, and given priorities if there are any."""
    zero = jnp.float32(0.0)
    obs, no = jnp.zeros(4), jnp.bool_(False)
    if not kind.startswith("flashbax"):
        make = buffers.prioritized if kind == "prioritized" else buffers.uniform
        buffer = make(capacity, num_envs, batch_size)
        params, item = buffer.hyperparams(), buffers.Experience(obs, jnp.int32(0), zero, no, no, obs)
        row = jax.tree.map(lambda x: jnp.zeros((1, num_envs, *x.shape), x.dtype), item)

        def round_(state: Any, key: Any) -> tuple[Any, Any]:
            state = buffer.add(params, state, row)
            drawn = buffer.sample(params, state, buffer.noise(key), zero)
            batch = buffers.n_step(state.items, drawn.index, 1, jnp.float32(0.99))
            priorities = buffer.update(params, state.priorities, drawn.index, drawn.weight)
            return dataclasses.replace(state, priorities=priorities), jnp.sum(batch.next_obs) + jnp.sum(drawn.weight)

        return buffer.init(item), round_
    import flashbax

    sizes = {"max_length": capacity, "min_length": 2, "sample_batch_size": batch_size, "add_batch_size": num_envs}
    if kind == "flashbax uniform":
        other = flashbax.make_flat_buffer(**sizes)
    else:
        other = flashbax.make_prioritised_flat_buffer(**sizes, priority_exponent=0.6, device=jax.default_backend())
    # It pairs an observation with the one stored next, so that it keeps half as much.
    stored = {"obs": obs, "action": jnp.int32(0), "reward": zero, "done": no}
    rows = jax.tree.map(lambda x: jnp.zeros((num_envs, *x.shape), x.dtype), stored)

    def other_round(state: Any, key: Any) -> tuple[Any, Any]:
        state = other.add(state, rows)
        drawn = other.sample(state, key)
        total = jnp.sum(drawn.experience.second["obs"])
        if kind == "flashbax uniform":
            return state, total
        return other.set_priorities(state, drawn.indices, jnp.ones(batch_size)), total + jnp.sum(drawn.probabilities)

    return other.add(other.init(stored), rows), other_round


def measure_replay(only: str, repeats: int, num_rounds: int = 1000) -> Iterator[dict[str, Any]]:
    kinds = ["uniform", "prioritized"]
    if importlib.util.find_spec("flashbax"):
        kinds += ["flashbax uniform", "flashbax prioritized"]
    for kind, capacity, members in itertools.product(kinds, (10_000, 1_000_000), (1, 4)):
        if only not in f"{kind} {capacity}":
            continue
        start, round_ = replay_rounds(kind, capacity, num_envs=10, batch_size=128)
        run = lambda state, key, round_=round_: jax.lax.scan(round_, state, jax.random.split(key, num_rounds))
        state, keys = start, jax.random.key(0)
        if members > 1:
            run = jax.vmap(run)
            state = jax.tree.map(lambda x: jnp.stack([x] * members), start)
            keys = jax.random.split(keys, members)
        began = time.perf_counter()
        compiled = jax.jit(run, donate_argnums=0).lower(state, keys).compile()
        compile_seconds, seconds = time.perf_counter() - began, []
        # The first run is not counted: it touches memory that has only been promised.
        for _ in range(repeats + 1):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, keys))
            seconds.append(time.perf_counter() - began)
        yield {
            "case": f"{kind} {capacity}",
            "num_seeds": members,
            "compile_seconds": round(compile_seconds, 2),
            "microseconds_per_round": round(statistics.median(seconds[1:]) / num_rounds / members * 1e6, 1),
        }


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


def measure_algorithms(
    only: str, repeats: int, seconds: float = 2.0, longest_step: float = 20.0
) -> Iterator[dict[str, Any]]:
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

        def once(states: Any, num_steps: int, compiled: Any = compiled, hparams: Any = hparams) -> tuple[Any, float]:
            began = time.perf_counter()
            states = jax.block_until_ready(compiled(states, hparams, jnp.int32(num_steps)))
            return states, time.perf_counter() - began

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


TABLE = lpg.Config(num_envs=64, num_steps=20, tabular=True, optimizer="sgd")


def measure_discovery(
    only: str,
    repeats: int,
    num_candidates: int = 32,
    num_generations: int = 2,
    num_updates: int = 50,
    config: lpg.Config = TABLE,
    widths: tuple[int, ...] = (256, 32),
) -> Iterator[dict[str, Any]]:
    """Generations of LPG by evolution strategies on grids/Small: each candidate teaches a table for a whole life.

    One held-out learner of each program is in the seconds and not in the steps.
    """
    for hidden in widths:
        name = f"lpg es grids/Small gru {hidden}"
        if only not in name:
            continue
        agent = lpg.lpg(grids.make("Small"), rules.lpg(hidden=hidden, num_bins=8, core="gru"), config)
        hparams = agent.hyperparams()
        devices, chunk = choose_layout(agent, hparams, num_candidates)
        search = strategies.open_es(num_candidates, strategies.pairwise)
        outer = jaxrl.evolve(
            agent,
            search,
            num_steps=num_updates,
            num_generations=num_generations,
            num_held_out=devices,
            num_episodes=config.num_envs,
            sampled=True,
            common_keys="pairs",
            tasks=grids.levels("Small"),
            num_devices=devices,
            chunk=chunk,
        )
        hparams = outer.hyperparams(
            learning_rate=40.0,
            prediction_learning_rate=4.0,
            strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999),
        )
        timing = timed(jaxrl.train(outer, 1), (jax.random.key(0), hparams), repeats)
        steps = num_generations * num_candidates * num_updates * agent.env_steps
        yield {
            "case": name,
            "num_seeds": num_candidates,
            "num_devices": devices,
            "chunk": chunk,
            "steps_per_generation": steps // num_generations,
            "compile_seconds": round(timing.compile_seconds, 2),
            "run_seconds": round(timing.seconds, 3),
            "steps_per_second": round(steps / timing.seconds),
            "program_bytes": timing.program_bytes,
        }


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """The CPU's model where Linux tells it, otherwise its architecture."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", information.read_text(), re.MULTILINE) if information.exists() else []
    return models[0] if models else platform.machine()


def machine() -> dict[str, Any]:
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
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


SUITES = ("cpu", "gpu", "layouts", "resets", "algorithms", "replay", "discovery", "curves", "smoke")


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
    if arguments.suite == "resets":
        results: Iterator[dict[str, Any]] = measure_resets(arguments.only, arguments.repeats)
    elif arguments.suite == "replay":
        results = measure_replay(arguments.only, arguments.repeats)
    elif arguments.suite == "algorithms":
        results = measure_algorithms(arguments.only, arguments.repeats)
    elif arguments.suite == "layouts":
        results = measure_layouts(arguments.only, arguments.repeats)
    elif arguments.suite == "discovery":
        results = measure_discovery(arguments.only, arguments.repeats)
    elif arguments.suite == "curves":
        results = measure_curves(arguments.only)
    else:
        chosen = [case for case in cases(arguments.suite) if arguments.only in case.name]
        results = (measure(case, arguments.repeats) for case in chosen)
    for row in results:
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
