"""Suite replay: rounds of adding to a replay buffer and drawing from it, beside flashbax if it is installed."""

import dataclasses
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from bench_shared import Row, clocked

from jaxrl import buffers

PARTS = ("round", "add", "sample")


def rounds(
    kind: str, part: str, capacity: int, num_envs: int, batch_size: int
) -> tuple[Any, Callable[[Any, Any], Any]]:
    """A buffer with a few rows, and one round: a row is added, a batch drawn, and given priorities if there are any.

    Or only a part of it: `add`, or `sample` with its priorities.
    """
    zero = jnp.float32(0.0)
    obs, no = jnp.zeros(4), jnp.bool_(False)
    if not kind.startswith("flashbax"):
        make = buffers.prioritized if kind == "prioritized" else buffers.uniform
        buffer = make(capacity, num_envs, batch_size)
        params, item = buffer.hyperparams(), buffers.Experience(obs, jnp.int32(0), zero, no, no, obs)
        row = jax.tree.map(lambda x: jnp.zeros((1, num_envs, *x.shape), x.dtype), item)

        def round_(state: Any, key: Any) -> tuple[Any, Any]:
            if part != "sample":
                state = buffer.add(params, state, row)
            if part == "add":
                return state, zero
            drawn = buffer.sample(params, state, buffer.noise(key), zero)
            batch = buffers.n_step(state.items, drawn.index, 1, jnp.float32(0.99))
            priorities = buffer.update(params, state.priorities, drawn.index, drawn.weight)
            return dataclasses.replace(state, priorities=priorities), jnp.sum(batch.next_obs) + jnp.sum(drawn.weight)

        return buffer.add(params, buffer.init(item), row), round_
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
        if part != "sample":
            state = other.add(state, rows)
        if part == "add":
            return state, zero
        drawn = other.sample(state, key)
        total = jnp.sum(drawn.experience.second["obs"])
        if kind == "flashbax uniform":
            return state, total
        return other.set_priorities(state, drawn.indices, jnp.ones(batch_size)), total + jnp.sum(drawn.probabilities)

    return other.add(other.add(other.init(stored), rows), rows), other_round


def measure(only: str, repeats: int, num_rounds: int = 1000) -> Iterator[Row]:
    kinds = ["uniform", "prioritized"]
    if importlib.util.find_spec("flashbax"):
        kinds += ["flashbax uniform", "flashbax prioritized"]
    for kind, part, capacity, members in itertools.product(kinds, PARTS, (10_000, 1_000_000), (1, 4)):
        case = f"{kind} {capacity}" + ("" if part == "round" else f" {part}")
        if only not in case:
            continue
        start, round_ = rounds(kind, part, capacity, num_envs=10, batch_size=128)
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
            (state, _), taken = clocked(compiled, state, keys)
            seconds.append(taken)
        yield {
            "case": case,
            "num_seeds": members,
            "compile_seconds": round(compile_seconds, 2),
            "microseconds_per_round": round(statistics.median(seconds[1:]) / num_rounds / members * 1e6, 1),
        }
