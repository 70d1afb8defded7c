"""Successive halving: all settings train a little, the best of them train on (Jamieson & Talwalkar 2016, arXiv:1502.07943).

Rungs are those of Hyperband's bracket (Li et al. 2018, arXiv:1603.06560): of n settings, rung j of J trains
floor(n / eta^j) to total_steps / eta^(J - j) steps. What a rung keeps moves into a smaller population, another compiled
program, so that the lanes of the others are free.

This is the synchronous form. ASHA (Li et al. 2020, arXiv:1810.05934) promotes without waiting for the whole rung, so
that no machine idles while another one is slow; it pays with promotions that the whole rung would not have made. Members
of one program step together and none is slow, so inside one machine there is nothing to gain for that price.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from jaxrl import fit, runs
from jaxrl.meta.layout import Layout
from jaxrl.sweeps import execution, results
from jaxrl.sweeps.plan import Batch, Group, Plan, make_plan
from jaxrl.sweeps.space import Space, space
from jaxrl.types import State

# Parts of a rung's new iterations of which the last tells the score.
_WINDOW = 4


class Rung(NamedTuple):
    """One round of training before settings are left behind.

    Attributes:
      steps: environment steps of each member at its end, since the beginning.
      num_settings: that train in it.
    """

    steps: int
    num_settings: int


class HalvingProgress(NamedTuple):
    """What is known while it runs.

    Attributes:
      rung: that trains, from 0 on.
      rungs: all of them.
      env_steps: transitions done, of all members.
      total_env_steps: that it will take, but for the rounding to whole iterations.
      seconds: since it began.
    """

    rung: int
    rungs: tuple[Rung, ...]
    env_steps: int
    total_env_steps: int
    seconds: float


def make_rungs(num_settings: int, total_steps: int, min_steps: int, eta: int = 3) -> tuple[Rung, ...]:
    """The rungs for a number of settings: the last trains to `total_steps`, the first to `min_steps` or more.

    A single setting that is left has nobody to be compared with and trains to the end at once.

    Raises:
      ValueError: a count is not positive, eta is below 2, or min_steps is above total_steps.

    Example:
      >>> make_rungs(27, 90_000, 10_000)
      (Rung(steps=10000, num_settings=27), Rung(steps=30000, num_settings=9), Rung(steps=90000, num_settings=3))
    """
    if num_settings < 1:
        raise ValueError(f"num_settings must be at least 1; got num_settings = {num_settings}.")
    if not 1 <= min_steps <= total_steps:
        raise ValueError(
            "min_steps must be at least 1 and at most total_steps; "
            f"got min_steps = {min_steps}, total_steps = {total_steps}."
        )
    if eta < 2:
        raise ValueError(f"eta must be at least 2; got eta = {eta}.")
    num_cuts = 0
    while min_steps * eta ** (num_cuts + 1) <= total_steps and num_settings // eta**num_cuts > 1:
        num_cuts += 1
    last = [max(1, num_settings // eta**j) for j in range(num_cuts + 1)]
    exponent = math.floor(math.log(total_steps / min_steps, eta) + 1e-9)
    return tuple(
        Rung(total_steps if j == num_cuts else -(-total_steps // eta ** (exponent - j)), last[j])
        for j in range(num_cuts + 1)
    )


def successive_halving(
    algorithms: Any,
    environment: Any,
    over: Space | Mapping[Any, Any],
    num_seeds: int = 8,
    *,
    total_steps: int,
    min_steps: int,
    eta: int = 3,
    num_samples: int = 0,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    eval_episodes: int = 0,
    max_batch: int | None = None,
    layout: Layout | None = None,
    on_progress: Callable[[HalvingProgress], None] = lambda progress: None,
) -> xarray.Dataset:
    """Finds the best setting of a space for a part of the steps that the whole sweep takes.

    A setting's score in a rung is the mean over its seeds of the mean return of the episodes that ended in the last
    quarter of the iterations that the rung adds (in all of them where none ended then; the score before where none ended
    at all). A setting with a member that has no score yet or is not finite ranks last. Settings of all algorithms and
    configs are ranked together; each of their programs is narrowed on its own.

    A member does what it does in `jaxrl.sweeps.sweep` of the same arguments: its key comes from `seed` and the index of
    its seed, and its `horizon`, by which rates fall, is `total_steps` in every rung.

    Args:
      algorithms: as for `sweep`.
      environment: as for `sweep`; only one, since returns of several cannot be ranked together.
      over: as for `sweep`.
      num_seeds: of each setting; a setting keeps or loses all of them.
      total_steps: environment steps of a member that trains to the end.
      min_steps: that every setting gets at least: some episodes must have ended by then.
      eta: a rung keeps one of so many settings.
      num_samples: as for `sweep`.
      seed: as for `sweep`.
      fixed: as for `sweep`.
      eval_episodes: of each member that trained to the end; 0 for none.
      max_batch: most members in a program; None: as many as the memory takes. What is not in training then waits on the
        host.
      layout: devices and chunk in the first rung; None chooses. Later rungs have at most as many.
      on_progress: called after each segment.

    Returns:
      Dimensions (rung, setting, seed). Variables: `score` (rung, setting, seed), NaN where a member did not train or has
      none; `survived` (rung, setting), whether the rung kept it: the last keeps the best; `env_steps` (setting,), spent
      by each of its members; `diverged` (setting, seed), whether its parameters were not finite; `evaluation` (setting,
      seed), mean return of the evaluation. Swept names are coordinates along `setting`, `steps` along `rung`. Attributes:
      `best_setting`, its index; `best`, its values as JSON; `env_steps` and `full_env_steps`, of this search and of the
      whole sweep.

    Raises:
      ValueError: an argument is wrong, before anything compiles; or no setting has a score at the end of a rung.
      OutOfMemoryError: a batch does not fit: lower `max_batch`.

    Example:
      >>> tiny = {"config.num_envs": 2, "config.num_steps": 8, "config.num_minibatches": 2}
      >>> over = {"learning_rate": [1e-4, 1e-3, 1e-2]}
      >>> data = successive_halving("ppo", "probe/Policy", over, 2, total_steps=96, min_steps=32, fixed=tiny)
      >>> data["survived"].sum("setting").values.tolist()
      [1, 1]
    """
    if not isinstance(over, Space):
        over = space(over, num_samples=num_samples, seed=seed)
    plan = make_plan(
        algorithms,
        environment,
        over,
        num_seeds=num_seeds,
        total_steps=total_steps,
        seed=seed,
        fixed=fixed,
        max_batch=max_batch,
        layout=layout,
    )
    if len(environments := {env for _, env in plan.pairs}) > 1:
        raise ValueError(f"Returns of several environments cannot be ranked together; got {sorted(environments)}.")
    rungs = make_rungs(sum(len(settings.rows) for settings in plan.pairs.values()), total_steps, min_steps, eta)
    table = _Table(plan, rungs)
    training = [_Training(group, None) for group in plan.groups]
    for index, rung in enumerate(rungs):
        training = [_trained(plan, each, table, index, eval_episodes, on_progress) for each in training]
        kept = table.best(index, rungs[index + 1].num_settings if index + 1 < len(rungs) else 1)
        if rung is not rungs[-1]:
            training = [_narrowed(each, table.offset(each.group), kept) for each in training]
            training = [each for each in training if each.group.settings]
    return table.dataset()


class _Training(NamedTuple):
    """A group's members in training; leaves [members, ...], None before they began."""

    group: Group
    state: State


class _Table:
    """What is known of all settings; those of all pairs are numbered through."""

    def __init__(self, plan: Plan, rungs: tuple[Rung, ...]):
        self.plan, self.rungs = plan, rungs
        sizes = {pair: len(settings.rows) for pair, settings in plan.pairs.items()}
        self._offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        num = sum(sizes.values())
        self.score = np.full((len(rungs), num, plan.num_seeds), np.nan, np.float32)
        self.survived = np.zeros((len(rungs), num), bool)
        self.env_steps = np.zeros(num)
        self.diverged = np.zeros((num, plan.num_seeds), bool)
        self.evaluation: np.ndarray | None = None
        self.began, self.done = time.perf_counter(), 0
        edges = [0, *(rung.steps for rung in rungs)]
        self.expected = sum(
            rung.num_settings * plan.num_seeds * (edges[i + 1] - edges[i]) for i, rung in enumerate(rungs)
        )

    def offset(self, group: Group) -> int:
        """Number of the first setting of the group's pair."""
        return self._offsets[group.algorithm, group.env]

    def best(self, rung: int, number: int) -> set[int]:
        """Marks and gives the settings that the rung keeps; of equal ones the first."""
        score = np.where(np.isnan(self.score[rung]) | self.diverged, -np.inf, self.score[rung]).mean(axis=1)
        if not np.isfinite(score).any():
            raise ValueError(
                f"No setting has a finite score for all of its seeds after {self.rungs[rung].steps:,} steps, so there is "
                "nothing to rank: raise min_steps so that episodes end, or narrow the space if its members diverge."
            )
        kept = np.argsort(-score, kind="stable")[:number]
        self.survived[rung, kept] = True
        return set(kept.tolist())

    def dataset(self) -> xarray.Dataset:
        plan = self.plan
        rows = [(algorithm, row) for (algorithm, _), given in plan.pairs.items() for row in given.rows]
        best = int(np.argmax(self.survived[-1]))
        variables: dict[str, Any] = {
            "score": (("rung", "setting", "seed"), self.score),
            "survived": (("rung", "setting"), self.survived),
            "env_steps": ("setting", self.env_steps),
            "diverged": (("setting", "seed"), self.diverged),
        }
        if self.evaluation is not None:
            variables["evaluation"] = (("setting", "seed"), self.evaluation)
        names = {name: None for _, row in rows for name in row}
        coords: dict[str, Any] = {
            "rung": np.arange(len(self.rungs), dtype=np.int32),
            "setting": np.arange(len(rows), dtype=np.int32),
            "seed": np.arange(plan.num_seeds, dtype=np.int32),
            "steps": ("rung", np.asarray([rung.steps for rung in self.rungs], np.float64)),
            "algorithm": ("setting", [algorithm for algorithm, _ in rows]),
            **{name: ("setting", results._labels([row.get(name) for _, row in rows])) for name in names},
        }
        attributes = {
            "env": plan.groups[0].env,
            "best_setting": best,
            "best": json.dumps(runs.plain(rows[best][1])),
            "env_steps": float(self.done),
            "full_env_steps": float(plan.env_steps),
        }
        return xarray.Dataset(variables, coords, attributes)


def _trained(
    plan: Plan,
    training: _Training,
    table: _Table,
    rung: int,
    eval_episodes: int,
    on_progress: Callable[[HalvingProgress], None],
) -> _Training:
    """Trains a group to the end of a rung and writes what that tells into the table."""
    group = training.group
    edges = [0] + [min(-(-each.steps // group.member.env_steps), group.iterations) for each in table.rungs]
    first, last = edges[rung], edges[rung + 1]
    parts, found = [], []
    for batch in group.batches:
        state, keys, hparams, programs = _begun(plan, training, batch)
        size, rows = batch.stop - batch.start, []
        while first < last and sum(len(count) for _, count in rows) < last - first:
            num = min(group.segment, last - first - sum(len(count) for _, count in rows))
            state, metrics = programs.advance(state, hparams, _placed(programs.advance, state, hparams, num)[2])
            metrics = jax.device_get(metrics)
            rows.append([metrics[name][:num, :size] for name in ("episode/return_sum", "episode/count")])
            table.done += num * size * group.member.env_steps
            seconds = time.perf_counter() - table.began
            on_progress(HalvingProgress(rung, table.rungs, table.done, table.expected, seconds))
        bad = np.asarray(fit._not_finite(state, group.width))[:size]
        found.append((_score(*map(np.concatenate, zip(*rows, strict=True))) if rows else np.full(size, np.nan), bad))
        if eval_episodes and group.member.env and rung == len(table.rungs) - 1:
            _evaluate(table, group, batch, eval_episodes, keys, state, hparams)
        parts.append(jax.tree.map(lambda x: x[:size], state))
        if len(group.batches) > 1:
            parts[-1] = jax.device_put(parts[-1], jax.devices("cpu")[0])
    settings = np.asarray(group.settings) + table.offset(group)
    score, bad = (np.concatenate(each).reshape(len(settings), -1) for each in zip(*found, strict=True))
    before = table.score[rung - 1, settings] if rung else np.full(score.shape, np.nan)
    table.score[rung, settings] = np.where(np.isnan(score), before, score)
    table.diverged[settings] |= bad
    table.env_steps[settings] = last * group.member.env_steps
    state = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return _Training(group, state)
