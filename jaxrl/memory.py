"""How much memory a run will take, found out before it is compiled, and how much there is."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from jaxrl.ops import trees
from jaxrl.training import advance_jit
from jaxrl.types import Algorithm, Hyperparams

# Fields of a Config that scale memory, where an algorithm has them.
_KNOBS = ("num_envs", "num_steps", "buffer_size", "batch_size", "reset_size")


class OutOfMemoryError(ValueError):
    """A program does not fit into the memory that there is."""


class Estimate(NamedTuple):
    """Bytes that training takes on the device.

    Attributes:
      state: of the algorithm's state, held all the time.
      metrics: of one segment's metrics.
      step: of one iteration's arrays, at most, besides the state: what is alive at once if nothing is fused.
    """

    state: int
    metrics: int
    step: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self)


def estimate(algorithm: Algorithm, hparams: Hyperparams, num_steps: int) -> Estimate:
    """Estimates what `advance` takes, by tracing; nothing is compiled or allocated.

    Args:
      algorithm: what is trained, populations included.
      hparams: its hyperparameters.
      num_steps: iterations of one segment.

    Returns:
      Bytes. PPO's compiled programs for CartPole on a CPU take 0.7 to 1.2 times as much, by layout; `compiled_bytes`
      says it exactly.
    """
    state = jax.eval_shape(algorithm.init, jax.random.key(0), hparams)
    return estimate_of_trace(advance_jit.trace(algorithm, state, hparams, num_steps), state)


def estimate_of_trace(traced: Any, state: Any) -> Estimate:
    """The same for a traced program that takes the state, donated, and gives `(state, metrics)`.

    Args:
      traced: from `jitted.trace(...)`; lowering and compiling it does not trace again.
      state: the state or its shapes.
    """
    state_bytes = trees.num_bytes(state)
    metrics = sum(trees.num_bytes(leaf) for leaf in jax.tree.leaves(traced.out_info[1]))
    # The state is donated: what goes in is where what comes out is put.
    return Estimate(state_bytes, metrics, max(_peak(traced.jaxpr.jaxpr) - 2 * state_bytes - metrics, 0))


def compiled_bytes(compiled: Any) -> int | None:
    """Bytes that a compiled program takes: arguments, results and temporaries, less what donation shares.

    Returns:
      None where the backend does not tell.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    devices = {device for leaf in jax.tree.leaves(compiled.output_shardings) for device in leaf.device_set}
    # What the backend tells is one device's share.
    return len(devices) * (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def available(num_devices: int = 1) -> int | None:
    """Bytes that are free on the first devices together; on a CPU what the system or the process's group has left.

    Returns:
      None where nothing tells.
    """
    stats = [device.memory_stats() for device in jax.local_devices()[:num_devices]]
    if all(each and "bytes_limit" in each for each in stats):
        return num_devices * min(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats)
    found = [_group_limit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")]
    found += [
        _group_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
    ]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((value for value in found if value is not None), default=None)


def check(needed: int, have: int | None, algorithm: Algorithm, num_seeds: int | None, parts: str = "") -> None:
    """Refuses a run that cannot fit.

    Args:
      needed: bytes that it takes at least.
      have: bytes that there are; None: unknown, nothing is refused.
      algorithm: its `config` tells the knobs.
      num_seeds: members of the population, if it is one.
      parts: what the bytes are for.

    Raises:
      OutOfMemoryError: it does not fit; the message names the numbers and what to lower.
    """
    if have is None or needed <= have:
        return
    raise OutOfMemoryError(
        f"The run would take about {readable(needed)}{f' ({parts})' if parts else ''}, but {readable(have)} are free "
        f"on {jax.devices()[0].device_kind}. Lower {knobs(algorithm, num_seeds)}."
    )


@contextlib.contextmanager
def explained(algorithm: Algorithm, num_seeds: int | None) -> Iterator[None]:
    """Turns a device's running out of memory into an error that names what to lower.

    Raises:
      OutOfMemoryError: the device ran out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(
            f"{jax.devices()[0].device_kind} ran out of memory: {str(error).splitlines()[0]} "
            f"Lower {knobs(algorithm, num_seeds)}."
        ) from error


def knobs(algorithm: Algorithm, num_seeds: int | None) -> str:
    """Names and values of what scales a run's memory: `num_seeds (now 8), config.num_envs (now 4)`."""
    fields = (
        {field.name for field in dataclasses.fields(algorithm.config)}
        if dataclasses.is_dataclass(algorithm.config)
        else set()
    )
    values = {"num_seeds": num_seeds} if num_seeds else {}
    values |= {f"config.{name}": getattr(algorithm.config, name) for name in _KNOBS if name in fields}
    return ", ".join(f"{name} (now {value})" for name, value in values.items()) or "the sizes in its config"


def describe(parts: Estimate) -> str:
    """The estimate in words: `state 1.2 GiB, one iteration 3.4 GiB, metrics of a segment 5.6 MiB`."""
    return (
        f"state {readable(parts.state)}, one iteration {readable(parts.step)}, "
        f"metrics of a segment {readable(parts.metrics)}"
    )


def num_devices(jaxpr: Jaxpr) -> int:
    """Over how many devices a traced program is spread by `shard_map`."""
    own = [equation.params["mesh"].size for equation in jaxpr.eqns if equation.primitive.name == "shard_map"]
    inner = [num_devices(sub) for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params)]
    return max([1, *own, *inner])


def _peak(jaxpr: Jaxpr) -> int:
    """Most bytes alive at once when the equations run in order, each array until its last use."""
    last_use = {}
    for index, equation in enumerate(jaxpr.eqns):
        last_use |= {var: index for var in equation.invars if not isinstance(var, Literal)}
    last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}
    sizes = {var: _bytes(var) for var in [*jaxpr.constvars, *jaxpr.invars]}
    alive = sum(sizes.values())
    peak = alive
    for index, equation in enumerate(jaxpr.eqns):
        inner = 0
        copies = equation.params["mesh"].size if equation.primitive.name == "shard_map" else 1
        for sub in jaxprs_in_params(equation.params):
            # What the inner program is given is counted outside.
            inner = max(inner, copies * (_peak(sub) - sum(_bytes(var) for var in sub.invars)))
        for var in equation.outvars:
            sizes[var] = _bytes(var)
            alive += sizes[var]
        peak = max(peak, alive + max(inner, 0))
        for var in [*equation.invars, *equation.outvars]:
            if not isinstance(var, Literal) and last_use.get(var, -1) <= index:
                alive -= sizes.pop(var, 0)
    return peak


def _bytes(var: Any) -> int:
    return trees.num_bytes(var.aval) if hasattr(var.aval, "shape") else 0


def _group_limit(limit: str, usage: str) -> int | None:
    try:
        return int(Path(limit).read_text()) - int(Path(usage).read_text())
    except (OSError, ValueError):
        return None


def readable(num_bytes: float) -> str:
    """Bytes for people: `1.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} GiB"
