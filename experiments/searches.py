"""What experiments share that search for learning rules: A2C beside a rule's agent, searches that go on, options.

`from experiments import searches` finds it because jaxrl is installed in place (-e), which puts the repository on the
path.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
import xarray

import jaxrl
from jaxrl import acting, fit, objectives, runs
from jaxrl.algorithms import lpg, ppo
from jaxrl.networks import NetworkConfig
from jaxrl.types import Algorithm, Env, Key

Size = TypeVar("Size", bound=Any)


def sgd(hparams: Any, learning_rate: Any) -> optax.GradientTransformation:
    """Gradient descent behind clipping of the norm, as the agent of a rule has it."""
    return optax.chain(optax.clip_by_global_norm(hparams.max_grad_norm), optax.scale(-learning_rate))


def a2c_beside(env: Env, config: lpg.Config, rates: Mapping[str, float]) -> tuple[Algorithm, Any]:
    """Advantage actor-critic as it is written, linear in the one-hot state, and its hyperparameters.

    Args:
      env: whose states are numbered.
      config: of the rule's agent, with tables and gradient descent; A2C has its rollouts.
      rates: `learning_rate` and `prediction_learning_rate` of that agent, here of policy and value.
    """
    agent = jaxrl.ppo(
        env,
        objective=objectives.policy_gradient(),
        optimizer=acting.separate(sgd, sgd, rates["prediction_learning_rate"]),
        config=ppo.Config(
            num_envs=config.num_envs,
            num_steps=config.num_steps,
            num_epochs=1,
            num_minibatches=1,
            clip_value=False,
            normalize_advantage="batch",
            schedule="constant",
            network=NetworkConfig(hidden=()),
        ),
    )
    return agent, agent.hyperparams(learning_rate=rates["learning_rate"], entropy_coef=0.01)


def life(agent: Algorithm, key: Key, hparams: Any, num_updates: jax.Array) -> Any:
    """The state of a fresh learner after so many updates; how many is data, so that all lives are one program."""
    state = agent.init(key, hparams)
    return jax.lax.fori_loop(0, num_updates, lambda _, state: agent.step(state, hparams)[0], state)


def evolved(
    agents: Algorithm, hparams: Any, path: Path, label: str, seed: int, size: Any, told: str, **about: Any
) -> tuple[Any, xarray.Dataset]:
    """Runs an evolution in a folder of its own, or goes on with it.

    Args:
      agents: of `jaxrl.meta.evolve`.
      hparams: of it.
      path: the run's folder.
      label: what the printed lines begin with.
      seed: of all randomness.
      size: `rounds` of `generations` each.
      told: what is printed after a round, a template with metrics by name: "ties {fitness/tie_rate:.2f}".
      about: what the run's record says besides.

    Returns:
      The last state and the metrics of all rounds.

    Raises:
      SystemExit: a signal came; the state has been saved.
    """
    exists = (path / "run.json").exists()
    run = runs.Run.open(path) if exists else runs.Run.create(path, runs.describe(seed=seed, **about))

    def tell(progress: fit.Progress) -> None:
        last = {name: float(values.values.ravel()[-1]) for name, values in run.metrics().items()}
        generation = progress.iteration * size.generations
        print(f"{label}, generation {generation}: {told.format_map(last)}, {progress.seconds:.0f} s", flush=True)

    result = fit.fit(
        agents,
        hparams,
        run=run,
        seed=seed,
        total_iterations=size.rounds,
        segment=1,
        checkpoint_seconds=60.0,
        resume=exists,
        on_segment=tell,
    )
    if result.stopped:
        raise SystemExit(f"Stopped by signal {result.stopped}; the same command goes on from here.")
    return result.state, run.metrics()


def keep(
    folder: Path,
    name: str,
    arrays: Mapping[str, Any],
    metrics: xarray.Dataset,
    curves: Iterable[str],
    generations: int,
) -> None:
    """Writes NAME.npz and NAME.json.

    Args:
      folder: of both.
      name: of both.
      arrays: of the .npz, by name.
      metrics: of all rounds.
      curves: which of them the .json holds.
      generations: of a round.
    """
    kept: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez_compressed(folder / f"{name}.npz", **kept)
    found = {key: np.asarray(metrics[key], np.float64).ravel().tolist() for key in curves}
    (folder / f"{name}.json").write_text(json.dumps({"generations": generations, "curves": found}))


def parsed(parser: argparse.ArgumentParser, folder: Path, full: Size, tiny: Size) -> tuple[argparse.Namespace, Size]:
    """The options, with those that all searches have, and how much is computed.

    Args:
      parser: with an experiment's own options; gets --out, --rounds, --test and --tiny.
      folder: the default of --out, which is made.
      full: dataclass with `rounds`.
      tiny: the same with --tiny.
    """
    parser.add_argument("--out", type=Path, default=folder, help="folder of what is written")
    parser.add_argument("--rounds", type=int, help=f"of {full.generations} generations each; otherwise {full.rounds}")
    parser.add_argument("--test", action="store_true", help="the tables, of the rules that are there; no search")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    options = parser.parse_args()
    size = tiny if options.tiny else full
    if options.rounds:
        size = dataclasses.replace(size, rounds=options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    return options, size


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Prints how long what is inside took, if it came to its end."""
    began, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{time.perf_counter() - began:.0f} s, of CPU time {time.process_time() - cpu:.0f} s")
