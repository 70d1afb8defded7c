"""A sampler that learns from what was tried: Optuna's ask and tell over batches of members.

Each round asks for a batch of trials, trains all of them with all of their seeds in one compiled program, and tells the
scores. Every round has the same width, so nothing is compiled twice.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray

from jaxrl import fit
from jaxrl.evaluation import EvaluationPlan
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.names import CONFIG
from jaxrl.sweeps import results
from jaxrl.sweeps.halving import packed
from jaxrl.sweeps.plan import Batch, Group, by_config, find_envs, find_learners, make_group, make_plan
from jaxrl.sweeps.spaces import Distribution, Space

# Parts of a member's training; the returns of the last tell the score.
_SEGMENTS = 10


class Optimization(NamedTuple):
    """What `optimize` gives back.

    Attributes:
      data: dimensions (trial, seed). Variables: `score` (trial, seed), NaN where no episode ended; `diverged` (trial,
        seed). Names are coordinates along `trial`, so is `round`. Attributes: `best_trial`, its index; `env_steps`, of
        all members together.
      study: Optuna's study, for its plots and importances.
    """

    data: xarray.Dataset
    study: Any


class OptimizationProgress(NamedTuple):
    """What is known after a round.

    Attributes:
      num_trials: done so far.
      total_trials: of all rounds.
      best_score: mean over seeds, of the best trial; -inf if none has one.
      best: its values by name.
    """

    num_trials: int
    total_trials: int
    best_score: float
    best: dict[str, Any]


def optimize(
    algorithm: Any,
    env: Any,
    over: Space | Mapping[str, Distribution],
    *,
    num_trials: int,
    batch_size: int,
    num_seeds: int,
    total_steps: int,
    sampler: Any = None,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    eval_episodes: int = 0,
    layout: Layout | None = None,
    on_progress: Callable[[OptimizationProgress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> Optimization:
    """Searches a space with an Optuna sampler, a batch of trials at a time.

    A trial's score is the mean over its seeds of the mean return of the episodes that ended in the last tenth of the
    training in which any did, or of the evaluation at the end. A trial with a member that has no score or is not finite
    is told as -inf. All trials get the same keys. Values of `config.` make programs of their own; their trials are
    filled up to a power of two, so that each config compiles a few times at most.

    Args:
      algorithm: a name or a factory, as for `sweep`; only one.
      env: a name or an `Env`; only one.
      over: by name a distribution: `log(low, high)`, `uniform`, `integers` or `choice`; or a space of nothing else.
      num_trials: settings that are tried.
      batch_size: of them at once; the sampler learns after each batch.
      num_seeds: members of each trial.
      total_steps: environment steps of each member, rounded up to whole iterations.
      sampler: any of `optuna.samplers`; None: TPE (Bergstra et al. 2011) with a constant liar, so that the trials of a
        batch differ.
      seed: keys and the default sampler's draws follow from it.
      fixed: values of leaves and `config.` fields for all trials.
      eval_episodes: of each member at the end, which then tell the score; 0 for none.
      layout: devices and chunk; None chooses.
      on_progress: called after each round.
      on_message: called with each line for people.

    Returns:
      The trials and the study.

    Raises:
      ValueError: optuna is missing, an argument is wrong, or a name has no distribution; all before anything compiles.
      OutOfMemoryError: a batch does not fit: lower `batch_size`.
      KeyboardInterrupt: a signal came.

    Example:
      >>> from jaxrl.sweeps import log
      >>> sizes = {"num_trials": 4, "batch_size": 2, "num_seeds": 2, "total_steps": 1024}
      >>> found = optimize("ppo", "probe/Policy", {"learning_rate": log(1e-4, 1e-2)}, **sizes)  # doctest: +SKIP
      >>> dict(found.data["score"].sizes)  # doctest: +SKIP
      {'trial': 4, 'seed': 2}
    """
    for name, value in (("num_trials", num_trials), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {name} = {value}.")
    if eval_episodes < 0:
        raise ValueError(f"eval_episodes must be at least 0; got eval_episodes = {eval_episodes}.")
    optuna = _optuna()
    laws = _distributions(over)
    # Checks names, and as many values as a batch has.
    probe = Space(sampled=tuple(laws.items()), num_samples=batch_size, seed=seed)
    plan = make_plan(algorithm, env, probe, num_seeds=num_seeds, total_steps=total_steps, seed=seed, fixed=fixed)
    if len(plan.pairs) > 1:
        raise ValueError(f"optimize takes one algorithm and one environment; got {list(plan.pairs)}.")
    if sampler is None:
        with warnings.catch_warnings():
            # Optuna 4 calls the constant liar experimental, of which no caller of this function can make use.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = {name: _as_optuna(optuna, law) for name, law in laws.items()}
    rounds = _Rounds(algorithm, env, total_steps, num_seeds, seed, dict(fixed or {}), layout, eval_episodes, on_message)
    rows, scores, diverged, numbers, best = [], [], [], [], 0
    while len(rows) < num_trials:
        trials = [study.ask(asked) for _ in range(min(batch_size, num_trials - len(rows)))]
        new = [{name: _value(laws[name], trial.params[name]) for name in laws} for trial in trials]
        score, bad = rounds.train(new, batch_size)
        for trial, told in zip(trials, _told(score, bad), strict=True):
            study.tell(trial, told)
        rows, scores, diverged = rows + new, [*scores, *score], [*diverged, *bad]
        numbers += [len(numbers) // batch_size] * len(new)
        told = _told(np.stack(scores), np.stack(diverged))
        best = int(np.argmax(told))
        on_progress(OptimizationProgress(len(rows), num_trials, float(told[best]), rows[best]))
    data = xarray.Dataset(
        {"score": (("trial", "seed"), np.stack(scores)), "diverged": (("trial", "seed"), np.stack(diverged))},
        {
            "trial": np.arange(len(rows), dtype=np.int32),
            "seed": np.arange(num_seeds, dtype=np.int32),
            "round": ("trial", np.asarray(numbers, np.int32)),
            **{name: ("trial", results.labels([row[name] for row in rows])) for name in laws},
        },
        {"best_trial": best, "env_steps": float(rounds.env_steps)},
    )
    return Optimization(data, study)


@dataclasses.dataclass
class _Rounds:
    """Trains the trials of one round after another."""

    algorithm: Any
    env: Any
    total_steps: int
    num_seeds: int
    seed: int
    fixed: dict[str, Any]
    layout: Layout | None
    eval_episodes: int
    on_message: Callable[[str], None]
    env_steps: int = 0
    _layouts: dict[Any, Layout] = dataclasses.field(default_factory=dict)

    def train(self, rows: list[dict[str, Any]], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores of settings, and whether their members diverged, [settings, seeds]."""
        (learner,), ((label, env),) = find_learners(self.algorithm), find_envs(self.env)
        score = np.full((len(rows), self.num_seeds), np.nan)
        bad = np.zeros((len(rows), self.num_seeds), bool)
        whole = [{**self.fixed, **row} for row in rows]
        several = any(name.startswith(CONFIG) for name in rows[0])
        for config, members in by_config(whole):
            chosen = [whole[index] for index in members]
            group = make_group(learner, label, env, config, chosen, tuple(members), self.total_steps)
            lanes = min(batch_size, 2 ** (len(members) - 1).bit_length()) if several else batch_size
            # Which leaves are mapped follows from the names, not from values that may happen to be equal.
            mapped = tuple(name for name in rows[0] if not name.startswith(CONFIG))
            segment = -(-group.iterations // _SEGMENTS)
            group = dataclasses.replace(group, num_seeds=self.num_seeds, segment=segment, mapped=mapped)
            score[members], bad[members] = self._trained(group, lanes * self.num_seeds)
        return score, bad

    def _trained(self, group: Group, width: int) -> tuple[np.ndarray, np.ndarray]:
        name = (repr(group.config), width)
        if name not in self._layouts:
            hparams = group.member.hyperparams()
            self._layouts[name] = self.layout or choose_layout(group.member, hparams, width, exact=False)
        group = packed(dataclasses.replace(group, layout=self._layouts[name]), width)
        batch = Batch(0, 0, group.num_members)
        evaluation = None
        if self.eval_episodes:
            evaluation = EvaluationPlan(1, group.play(group.width, self.eval_episodes))
        done = fit.fit(
            group.population(group.width),
            group.hyperparams(batch, group.width),
            seed=group.keys(batch, group.width, self.seed),
            total_iterations=group.iterations,
            segment=group.segment,
            num_seeds=group.width,
            evaluation=evaluation,
            # Members have other numbers for people; what diverged is in the result.
            on_message=lambda line: None if line.startswith("Seed ") else self.on_message(line),
        )
        if done.stopped is not None:
            raise KeyboardInterrupt
        self.env_steps += group.num_members * group.iterations * group.member.env_steps
        seeds = done.results["seeds"][: group.num_members]
        score = np.asarray([row["return"] for row in seeds], np.float64)
        bad = np.asarray([row["diverged"] is not None for row in seeds])
        return score.reshape(-1, self.num_seeds), bad.reshape(-1, self.num_seeds)


def _told(score: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Means over seeds, -inf where one has no score or diverged, [trials]."""
    return np.where(np.isfinite(score) & ~diverged, score, -np.inf).mean(axis=1)


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise ValueError(
            'optimize needs the package optuna, which is not installed: pip install "jaxrl[optuna]".'
        ) from error


def _distributions(over: Space | Mapping[str, Distribution]) -> dict[str, Distribution]:
    if isinstance(over, Space):
        if over.axes or over.where or over.conditions:
            raise ValueError(
                "optimize takes a space of distributions alone: no lists, grids, tables, `where` or conditions; a list "
                "is choice(...)."
            )
        return dict(over.sampled)
    for name, law in over.items():
        if not isinstance(law, Distribution):
            raise ValueError(
                f"{name} must have a distribution, such as log(low, high) or choice(...); got {law!r}. A list is "
                "choice(...)."
            )
    if not over:
        raise ValueError("The space must have at least one name with a distribution; got none.")
    return dict(over)


def _as_optuna(optuna: Any, law: Distribution) -> Any:
    if law.kind == "choice":
        return optuna.distributions.CategoricalDistribution(list(map(_label, law.values)))
    if law.kind == "integers":
        return optuna.distributions.IntDistribution(law.low, law.high)
    return optuna.distributions.FloatDistribution(float(law.low), float(law.high), log=law.kind == "log")


def _label(value: Any) -> Any:
    """A choice as Optuna stores it: plain values as they are, others by their text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _value(law: Distribution, given: Any) -> Any:
    if law.kind != "choice":
        return given
    return next(value for value in law.values if type(_label(value)) is type(given) and _label(value) == given)
