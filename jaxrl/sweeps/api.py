"""A whole sweep as one call."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray

from jaxrl.meta.layout import Layout
from jaxrl.sweeps import execution, results
from jaxrl.sweeps.execution import SweepProgress
from jaxrl.sweeps.plan import make_plan
from jaxrl.sweeps.spaces import Space, space


def sweep(
    algorithms: Any,
    environments: Any,
    over: Space | Mapping[Any, Any],
    num_seeds: int = 8,
    *,
    total_steps: int = 500_000,
    num_samples: int = 0,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    eval_episodes: int = 16,
    num_points: int = 50,
    max_batch: int | None = None,
    layout: Layout | None = None,
    keep_states: bool = False,
    checkpoint_seconds: float = 60.0,
    on_progress: Callable[[SweepProgress], None] = lambda progress: None,
    on_message: Callable[[str], None] = print,
) -> xarray.Dataset:
    """Trains every setting of a space with several seeds, in as few compiled programs as there are shapes.

    What differs in data (leaves of the hyperparameters, of the environment, of the objective; seeds) is one program;
    what differs in structure (`config.` fields, algorithms, environments) is one program each.

    Args:
      algorithms: a name, a factory `(env, config=...) -> Algorithm`, a mapping of labels to these, or a sequence.
      environments: a name, an `Env`, a mapping of labels to these, or a sequence.
      over: a `space`, or the mapping that makes one: by name a sequence, `grid`, `log`, `uniform` ….
      num_seeds: of each setting; the same keys for all settings.
      total_steps: environment steps of each member, rounded up to whole iterations.
      num_samples: how often everything in `over` with a distribution is drawn.
      seed: all keys and draws follow from it.
      fixed: values of leaves and `config.` fields for all settings.
      folder: where everything is kept. If it holds this sweep, unfinished, it is continued: what was whole is not
        computed again. None keeps nothing but the result.
      eval_episodes: of each member at the end; 0 for none.
      num_points: of each curve.
      max_batch: most members in one batch; None: as many as the memory takes.
      layout: devices and chunk; None chooses.
      keep_states: whether the members' last states stay in the folder.
      checkpoint_seconds: how often the state of the batch in progress is saved.
      on_progress: called after each segment.
      on_message: called with each line for people.

    Returns:
      See `jaxrl.sweeps.results.dataset`.

    Raises:
      ValueError: a name or value is wrong, the space is too large or empty, or the folder holds another sweep; all
        before anything compiles.
      OutOfMemoryError: not even one member fits.
      StorageError: something cannot be read or written.
      KeyboardInterrupt: a signal came; the state was saved.

    Example:
      >>> from jaxrl import sweep
      >>> tiny = {"config.num_envs": 2, "config.num_steps": 8}
      >>> data = sweep("ppo", "probe/Policy", {"gamma": [0.9, 0.99]}, 2, total_steps=32, fixed=tiny, num_points=2)
      >>> dict(data["return"].sizes)
      {'algorithm': 1, 'env': 1, 'gamma': 2, 'seed': 2, 'step': 2}
    """
    if not isinstance(over, Space):
        over = space(over, num_samples=num_samples, seed=seed)
    plan = make_plan(
        algorithms,
        environments,
        over,
        num_seeds=num_seeds,
        total_steps=total_steps,
        seed=seed,
        fixed=fixed,
        num_points=num_points,
        max_batch=max_batch,
        layout=layout,
    )
    with tempfile.TemporaryDirectory(prefix="jaxrl-sweep-") as scratch:
        source = _names(algorithms, environments)
        made = execution.open_sweep(folder or Path(scratch) / "sweep", plan, eval_episodes, source=source)
        stopped = execution.run_sweep(
            made,
            checkpoint_seconds=checkpoint_seconds,
            keep_states=keep_states,
            on_progress=on_progress,
            on_message=on_message,
        )
        if stopped is not None:
            raise KeyboardInterrupt
        return results.write_results(made)


def _names(algorithms: Any, environments: Any) -> dict[str, Any] | None:
    """What the command line can make again: names alone."""
    lists = [[given] if isinstance(given, str) else given for given in (algorithms, environments)]
    if not all(isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given) for given in lists):
        return None
    return {"algorithms": list(lists[0]), "environments": list(lists[1]), "env_options": {}}
