"""Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): all settings train a little, the best train on.

Rungs are those of a bracket of Hyperband (Li et al. 2018, arXiv:1603.06560): of n settings, rung j of 0 to J trains
floor(n / eta^j) to total_steps / eta^(J - j) steps. What a rung keeps moves into a smaller population, another compiled
program, so that the lanes of the others are free.

This is the synchronous form. ASHA (Li et al. 2020, arXiv:1810.05934) promotes without waiting for the whole rung, so
that no machine idles while another one is slow; it pays with promotions that the whole rung would not have made. The
members of one program step together and none is slow, so inside one machine there is nothing to gain for that price.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from jaxrl import runs
from jaxrl.evaluation import mean_of_finished
from jaxrl.meta.layout import Layout
from jaxrl.programs import evaluation_key, prepare, split_key
from jaxrl.progress import not_finite
from jaxrl.sweeps import results
from jaxrl.sweeps.plan import Batch, Group, Plan, make_plan
from jaxrl.sweeps.spaces import Space, space
from jaxrl.types import Hyperparams, Key, State

# Of a rung's new iterations; the last part tells the score.
_PARTS = 4


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
    num_cuts, rungs = 0, []
    while min_steps * eta ** (num_cuts + 1) <= total_steps:
        num_cuts += 1
    while not rungs or rungs[-1].steps < total_steps:
        left = max(1, num_settings // eta ** len(rungs))
        steps = -(-total_steps // eta ** (num_cuts - len(rungs)))
        rungs.append(Rung(total_steps if left == 1 else steps, left))
    return tuple(rungs)


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
    quarter of the iterations that the rung adds; in all of them where none ended then; the score before where none
    ended at all. A setting with a member that has no score yet, or is not finite, is not kept. Settings of all
    algorithms and configs are ranked together; each of their programs is narrowed on its own.

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
      Dimensions (rung, setting, seed). Variables:
      `score` (rung, setting, seed), NaN where a member did not train or has none;
      `survived` (rung, setting), whether the rung kept it; the last rung keeps the best;
      `env_steps` (setting), spent by each of its members;
      `diverged` (setting, seed), whether its parameters were not finite;
      `evaluation` (setting, seed), mean return of the evaluation, NaN where there was none.
      Swept names are coordinates along `setting`, `steps` is one along `rung`. Attributes: `best_setting`, its index;
      `best`, its values as JSON; `env_steps` and `full_env_steps`, of this search and of the whole sweep.

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
    if (least := max(group.member.env_steps for group in plan.groups)) > min_steps:
        raise ValueError(f"min_steps must be at least one iteration, {least} steps; got min_steps = {min_steps}.")
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
    """What is known of all settings; those of all algorithms are numbered through."""

    def __init__(self, plan: Plan, rungs: tuple[Rung, ...]):
        self.plan, self.rungs = plan, rungs
        sizes = [len(settings.rows) for settings in plan.pairs.values()]
        self._offsets = dict(zip(plan.pairs, np.cumsum([0, *sizes]).tolist(), strict=False))
        self.score = np.full((len(rungs), sum(sizes), plan.num_seeds), np.nan, np.float32)
        self.survived = np.zeros((len(rungs), sum(sizes)), bool)
        self.env_steps = np.zeros(sum(sizes))
        self.diverged = np.zeros((sum(sizes), plan.num_seeds), bool)
        self.evaluation = np.full((sum(sizes), plan.num_seeds), np.nan, np.float32)
        self.env_steps_done = 0
        self._began = time.perf_counter()

    def progress(self, rung: int) -> HalvingProgress:
        edges = [0, *(each.steps for each in self.rungs)]
        total = sum(r.num_settings * (r.steps - edge) for r, edge in zip(self.rungs, edges, strict=False))
        seconds = time.perf_counter() - self._began
        return HalvingProgress(rung, self.rungs, self.env_steps_done, total * self.plan.num_seeds, seconds)

    def write(
        self, rung: int, group: Group, score: np.ndarray, bad: np.ndarray, evaluation: np.ndarray, env_steps: int
    ) -> None:
        """Takes what a group's members, [settings, seeds], have got to in a rung."""
        rows = np.asarray(group.settings) + self.offset(group)
        before = self.score[rung - 1, rows] if rung else np.nan
        self.score[rung, rows] = np.where(np.isnan(score), before, score)
        self.diverged[rows], self.evaluation[rows], self.env_steps[rows] = bad, evaluation, env_steps

    def offset(self, group: Group) -> int:
        """Number of the first setting of the group's pair."""
        return self._offsets[group.algorithm, group.env]

    def best(self, rung: int, number: int) -> set[int]:
        """Marks and gives the settings that the rung keeps; of equal ones the first."""
        score = np.where(np.isnan(self.score[rung]) | self.diverged, -np.inf, self.score[rung]).mean(axis=1)
        kept = [place for place in np.argsort(-score, kind="stable")[:number].tolist() if np.isfinite(score[place])]
        if not kept:
            raise ValueError(
                f"No setting has a finite score for all of its seeds after {self.rungs[rung].steps:,} steps, so there "
                "is nothing to rank: raise min_steps so that episodes end, or narrow the space if its members diverge."
            )
        self.survived[rung, kept] = True
        return set(kept)

    def dataset(self) -> xarray.Dataset:
        rows = [(algorithm, row) for (algorithm, _), given in self.plan.pairs.items() for row in given.rows]
        best = int(np.argmax(self.survived[-1]))
        variables: dict[str, Any] = {
            "score": (("rung", "setting", "seed"), self.score),
            "survived": (("rung", "setting"), self.survived),
            "env_steps": ("setting", self.env_steps),
            "diverged": (("setting", "seed"), self.diverged),
            "evaluation": (("setting", "seed"), self.evaluation),
        }
        coords: dict[str, Any] = {
            "rung": np.arange(len(self.rungs), dtype=np.int32),
            "setting": np.arange(len(rows), dtype=np.int32),
            "seed": np.arange(self.plan.num_seeds, dtype=np.int32),
            "steps": ("rung", np.asarray([rung.steps for rung in self.rungs], np.float64)),
            "algorithm": ("setting", [algorithm for algorithm, _ in rows]),
        }
        for name in {name: None for _, row in rows for name in row}:
            coords[name] = ("setting", results.labels([row.get(name) for _, row in rows]))
        attributes = {
            "env": self.plan.groups[0].env,
            "best_setting": best,
            "best": json.dumps(runs.plain(rows[best][1])),
            "env_steps": float(self.env_steps_done),
            "full_env_steps": float(self.plan.env_steps),
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
    steps = group.member.env_steps
    first, last = (-(-edge // steps) for edge in (0, *(each.steps for each in table.rungs))[rung : rung + 2])
    is_evaluated = eval_episodes and group.member.env and rung == len(table.rungs) - 1
    states, found = [], []
    for batch in group.batches:
        size, lanes = batch.stop - batch.start, _begun(plan, training, batch)
        state, sums, counts = lanes.state, [], []
        for start in range(first, last, group.segment):
            num = min(group.segment, last - start)
            state, metrics = lanes.advance(state, lanes.hparams, jax.device_put(jnp.int32(num), lanes.scalar))
            if not {"episode/return_sum", "episode/count"} <= set(metrics):
                raise ValueError(f"Settings are ranked by returns; {group.algorithm} has only {sorted(metrics)}.")
            sums.append(np.asarray(metrics["episode/return_sum"])[:num, :size])
            counts.append(np.asarray(metrics["episode/count"])[:num, :size])
            table.env_steps_done += num * size * steps
            on_progress(table.progress(rung))
        found.append(
            [
                _score(np.concatenate(sums), np.concatenate(counts)),
                np.asarray(not_finite(state, group.width))[:size],
                _evaluated(group, lanes, state, eval_episodes)[:size] if is_evaluated else np.full(size, np.nan),
            ]
        )
        state = jax.tree.map(lambda x: x[:size], state)
        states.append(state if len(group.batches) == 1 else jax.device_put(state, jax.devices("cpu")[0]))
    score, bad, evaluation = (np.concatenate(parts).reshape(-1, plan.num_seeds) for parts in zip(*found, strict=True))
    table.write(rung, group, score, bad, evaluation, last * steps)
    return _Training(group, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states))


class _Lanes(NamedTuple):
    """A batch about to train: its compiled program and what that takes."""

    advance: Any
    state: State
    hparams: Hyperparams
    scalar: Any
    key_evaluation: Key


def _begun(plan: Plan, training: _Training, batch: Batch) -> _Lanes:
    """Places a batch's members into a program of their group's width; the last one also fills what is left of it."""
    group, width = training.group, training.group.width
    agents, hparams = group.population(width), group.hyperparams(batch, width)
    keys = group.keys(batch, width, plan.seed)
    # As `fit` does it, so that a member is the same as in a sweep.
    key_train, key_evaluation = split_key(keys)
    programs = prepare(agents, keys, hparams, group.segment, width)
    if training.state is None:
        state = programs.init(*jax.device_put((key_train, hparams), programs.init.input_shardings[0]))
    else:
        lanes = np.minimum(np.arange(batch.start, batch.start + width), batch.stop - 1)
        state = jax.tree.map(lambda x: x[lanes], training.state)
    *places, scalar = programs.advance.input_shardings[0]
    state, hparams = jax.device_put((state, hparams), tuple(places))
    return _Lanes(programs.advance, state, hparams, scalar, key_evaluation)


def _score(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that ended in the last part of the rows, or in any, [members]; NaN if none did."""
    score = np.full(sums.shape[1], np.nan)
    for first in (0, len(sums) - -(-len(sums) // _PARTS)):
        count = counts[first:].sum(axis=0, dtype=np.float64)
        score = np.divide(sums[first:].sum(axis=0, dtype=np.float64), count, out=score, where=count > 0)
    return score


def _evaluated(group: Group, lanes: _Lanes, state: State, num_episodes: int) -> np.ndarray:
    """Mean return of each member in episodes of its own, those that a sweep would play, [width]."""
    play = group.play(group.width, num_episodes)
    keys = evaluation_key(lanes.key_evaluation, group.iterations)
    return mean_of_finished(jax.device_get(jax.jit(play)(keys, state, lanes.hparams)), group.width)


def _narrowed(training: _Training, offset: int, kept: set[int]) -> _Training:
    """The members of the settings that are kept, as a group of fewer lanes."""
    group = training.group
    chosen = [place for place, setting in enumerate(group.settings) if setting + offset in kept]
    lanes = (np.asarray(chosen, int)[:, None] * group.num_seeds + np.arange(group.num_seeds)).ravel()
    smaller = dataclasses.replace(
        group,
        settings=tuple(group.settings[place] for place in chosen),
        values={name: column[chosen] for name, column in group.values.items()},
    )
    if not chosen:
        return _Training(smaller, None)
    return _Training(packed(smaller), jax.tree.map(lambda x: x[lanes], training.state))


def packed(group: Group, count: int | None = None) -> Group:
    """The group in the least width that holds its members, cut into parts no larger than those of its layout.

    Args:
      group: with the layout and the greatest width that there may be.
      count: lanes that there must be; None: its members in batches of equal width.
    """
    devices, chunk = group.layout
    num_batches = 1 if count else -(-group.num_members // group.width)
    count = count or group.num_members
    devices = min(devices, count)
    each = -(-count // (num_batches * devices))
    if chunk is not None:
        num_chunks = -(-each // chunk)
        chunk = -(-each // num_chunks)
        each = num_chunks * chunk
    return dataclasses.replace(group, layout=Layout(devices, chunk), width=devices * each)
