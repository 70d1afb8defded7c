"""What a run tells: metrics by member, divergence, the line after a segment and the table at the end."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import xarray

from jaxrl import runs
from jaxrl.evaluation import Episodes
from jaxrl.ops import trees
from jaxrl.sinks import Sink
from jaxrl.types import State

# What must be finite in every iteration. Others may not be: explained variance is not where nothing varies.
_FINITE_GROUPS = ("loss/", "gradient/")


class Progress(NamedTuple):
    """What is known after a segment.

    Attributes:
      iteration: done so far.
      total_iterations: of the whole run.
      env_steps: transitions so far of each member.
      steps_per_second: transitions of all members per second of training, without compilation.
      returns: mean return of the episodes that ended in this segment, NaN where none did, [P].
      mean_return: over the members whose return is known; NaN if there are none.
      interval: 95% confidence interval of that mean (Student's t over members); NaN with fewer than two.
      evaluation: mean return of each member if there was an evaluation now, [P].
      seconds: since the run began, over all its processes.
      compile_seconds: thereof for compilation.
      eta_seconds: expected until the end.
      diverged: transitions of the member at which it was seen to diverge, by member.
    """

    iteration: int
    total_iterations: int
    env_steps: int
    steps_per_second: float
    returns: np.ndarray
    mean_return: float
    interval: tuple[float, float]
    evaluation: np.ndarray | None
    seconds: float
    compile_seconds: float
    eta_seconds: float
    diverged: dict[int, int]


def by_member(metrics: dict[str, Any], num: int, members: int) -> dict[str, np.ndarray]:
    """The first `num` rows of metrics as [num, P]; what has no member axis is the same for all."""
    if not metrics:
        raise ValueError("fit needs an algorithm whose step gives at least one metric; this one gives none.")
    shaped = {}
    for name, values in metrics.items():
        flat = values[:num].reshape(num, -1)
        if flat.shape[1] not in (1, members):
            raise ValueError(
                "Metrics must be one number a step and member; "
                f"{name} has shape {values.shape[1:]} a step, there are {members} members."
            )
        shaped[name] = np.broadcast_to(flat, (num, members))
    return shaped


@functools.partial(jax.jit, static_argnames="num_seeds")
def not_finite(state: State, num_seeds: int | None) -> jax.Array:
    """Whether parameters hold NaN or infinity, [P], or [] for one: leaves below a `params`, else all of the state."""
    leaves = {
        name: leaf for name, leaf in trees.named_leaves(state).items() if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    chosen = [leaf for name, leaf in leaves.items() if "params" in name.split(".")] or list(leaves.values())
    bad = jnp.zeros(() if num_seeds is None else (num_seeds,), bool)
    for leaf in chosen:
        mapped = num_seeds is not None and leaf.ndim > 0 and leaf.shape[0] == num_seeds
        bad = bad | jnp.any(~jnp.isfinite(leaf), axis=tuple(range(int(mapped), leaf.ndim)))
    return bad


def note_divergence(
    info: dict[str, Any],
    metrics: dict[str, np.ndarray],
    bad_params: np.ndarray,
    first: int,
    steps: int,
    on_message: Callable[[str], None],
) -> None:
    """Records the transitions after which each member's losses, gradients or parameters were first not finite."""
    watched = [values for name, values in metrics.items() if name.startswith(_FINITE_GROUPS)]
    num = len(next(iter(metrics.values())))
    bad = np.any([~np.isfinite(values) for values in watched], axis=0) if watched else np.zeros((num, 1), bool)
    bad = np.broadcast_to(bad, (num, len(bad_params))).copy()
    bad[-1] |= bad_params
    for member in np.flatnonzero(bad.any(axis=0)):
        if str(member) not in info["diverged"]:
            at = (first + int(np.argmax(bad[:, member])) + 1) * steps
            info["diverged"][str(member)] = at
            on_message(f"Seed {member} diverged: not finite after {at:,} steps. The other seeds are not affected.")


def segment_returns(metrics: dict[str, np.ndarray], members: int) -> np.ndarray:
    """Mean return of the episodes that ended, NaN where none did, [P]."""
    if not {"episode/return_sum", "episode/count"} <= set(metrics):
        return np.full(members, np.nan)
    count = metrics["episode/count"].sum(axis=0, dtype=np.float64)
    total = metrics["episode/return_sum"].sum(axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full(members, np.nan), where=count > 0)


def episodes_dataset(episodes: Episodes, members: int, env_steps: int) -> xarray.Dataset:
    """Episodes as a run's folder keeps them: dimensions (seed, episode).

    Args:
      episodes: leaves [E], or [P, E] for a population.
      members: P, 1 for a single learner.
      env_steps: transitions of each member when they were played.
    """
    fields = {name: getattr(episodes, name) for name in ("returns", "lengths", "finished")}
    return xarray.Dataset(
        {name: (("seed", "episode"), np.reshape(values, (members, -1))) for name, values in fields.items()},
        {"seed": np.arange(members, dtype=np.int32)},
        {"env_steps": float(env_steps)},
    )


def feed(outlets: Sequence[Sink], metrics: dict[str, np.ndarray], played: np.ndarray | None, step: float) -> None:
    """Writes one line a member: sums and means over the segment, and the returns."""
    scalars = {
        name: (values.sum if runs.is_summed(name) else values.mean)(axis=0, dtype=np.float64)
        for name, values in metrics.items()
    }
    members = len(next(iter(scalars.values())))
    scalars["episode/return"] = segment_returns(metrics, members)
    if played is not None:
        scalars["evaluation/return"] = played
    for sink in outlets:
        for member in range(members):
            sink.write(step, member, {name: float(values[member]) for name, values in scalars.items()})


def note_best(info: dict[str, Any], returns: np.ndarray | None) -> bool:
    """Whether the mean over members is the highest so far; then it is recorded."""
    mean = math.nan if returns is None else _mean_and_interval(returns)[0]
    is_best = not math.isnan(mean) and (info["best_return"] is None or mean > info["best_return"])
    if is_best:
        info["best_return"] = mean
    return is_best


def _mean_and_interval(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean of the finite values and its 95% confidence interval (Student's t); NaN where too few are known."""
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else math.nan
    if len(known) < 2:
        return mean, (math.nan, math.nan)
    half = float(scipy.special.stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / math.sqrt(len(known)))
    return mean, (mean - half, mean + half)


def progress_after(
    info: dict[str, Any],
    returns: np.ndarray,
    played: np.ndarray | None,
    iteration: int,
    total_iterations: int,
    env_steps: int,
    members: int,
) -> Progress:
    """What is known after the segment that ends at `iteration`."""
    mean, interval = _mean_and_interval(returns)
    seconds_per_iteration = (info["seconds"] - info["compile_seconds"]) / iteration
    return Progress(
        iteration=iteration,
        total_iterations=total_iterations,
        env_steps=iteration * env_steps // members,
        steps_per_second=iteration * env_steps / info["train_seconds"],
        returns=returns,
        mean_return=mean,
        interval=interval,
        evaluation=played,
        seconds=info["seconds"],
        compile_seconds=info["compile_seconds"],
        eta_seconds=(total_iterations - iteration) * seconds_per_iteration,
        diverged={int(member): at for member, at in info["diverged"].items()},
    )


def results_table(
    info: dict[str, Any], iteration: int, total_iterations: int, env_steps: int, members: int
) -> dict[str, Any]:
    """The table at the end: one row a seed, and what the run took."""
    evaluated = info["evaluation"]
    table = [
        {
            "seed": member,
            "return": (evaluated or info["returns"])[member],
            "training_return": info["returns"][member],
            "evaluation_return": evaluated[member] if evaluated else None,
            "diverged": info["diverged"].get(str(member)),
        }
        for member in range(members)
    ]
    return {
        "finished": iteration == total_iterations,
        "iteration": iteration,
        "env_steps": iteration * env_steps // members,
        "seeds": table,
        "best_return": info["best_return"],
        "seconds": info["seconds"],
        "train_seconds": info["train_seconds"],
        "compile_seconds": info["compile_seconds"],
        "steps_per_second": iteration * env_steps / info["train_seconds"] if info["train_seconds"] else None,
        "program_bytes": info["bytes"],
    }
