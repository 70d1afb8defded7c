"""Does evolution find a learning rule, from nothing, that learns on grid worlds it has not seen?

    .venv/bin/python experiments/learned-policy-gradient/run.py              LPG; again to go on after a kill
    .venv/bin/python experiments/learned-policy-gradient/run.py --rule ta_lpg
    .venv/bin/python experiments/learned-policy-gradient/run.py --test       the table, of the rules that are there
    .venv/bin/python experiments/learned-policy-gradient/plot.py             the figure

--tiny for each to see that it works. Claims tried, at a small size: Oh et al. 2020 (arXiv:2007.08794), that a rule
which begins without any notion of a value or of a policy gradient can be found; Jackson et al. 2024, that one which
sees how much of the agent's life has passed does better over different lengths of life.
"""

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import searches
from jaxrl import strategies
from jaxrl.algorithms import lpg
from jaxrl.analysis import tables
from jaxrl.envs import grids
from jaxrl.meta import trials
from jaxrl.meta.evolve import evolve
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.types import Algorithm

jax.config.update("jax_num_cpu_devices", 2)

HERE = Path(__file__).parent
WORLDS = {"side": (6, 6), "num_objects": (2, 2), "num_walls": 0}
NUM_EPISODES = 16
CONFIG = lpg.Config(num_envs=16, num_steps=20, tabular=True, optimizer="sgd")
RATES = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}
RULES = {
    "lpg": rules.lpg(hidden=32, num_bins=8, core="gru"),
    "ta_lpg": rules.lpg(hidden=32, num_bins=8, core="gru", progress=True),
}
LIVES = {"lpg": (50, 50), "ta_lpg": (10, 100)}
HORIZONS = (10, 25, 50, 100, 200)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
      candidates: of a generation.
      generations: between two looks at the held-out levels.
      rounds: of so many generations.
      held_out: levels.
      levels: of the test.
      horizons: lengths of life in the test, in updates.
      chunk: learners that run together on a core.
    """

    candidates: int = 64
    generations: int = 10
    rounds: int = 24
    held_out: int = 128
    levels: int = 256
    horizons: tuple[int, ...] = HORIZONS
    chunk: int = 32


TINY = Size(candidates=4, generations=1, rounds=2, held_out=4, levels=4, horizons=(2, 50), chunk=2)


def agent_of(rule: rules.Rule) -> Algorithm:
    """The inner learner: tables under a rule."""
    return lpg.lpg(grids.make("Small", **WORLDS), rule, CONFIG)


@functools.cache
def lifetimes(least: int, greatest: int) -> Any:
    """Draws log-uniform lengths of life, in updates."""

    def draw(key: jax.Array) -> jax.Array:
        length = jnp.exp(jax.random.uniform(key, minval=math.log(least), maxval=math.log(greatest)))
        return jnp.round(length).astype(jnp.int32)

    return draw


def evolving(name: str, size: Size) -> tuple[Algorithm, Any]:
    """The search and its hyperparameters."""
    search = strategies.open_es(size.candidates, strategies.pairwise)
    least, greatest = LIVES[name]
    agents = evolve(
        agent_of(RULES[name]),
        search,
        "objective",
        num_steps=greatest,
        num_generations=size.generations,
        num_held_out=size.held_out,
        num_episodes=NUM_EPISODES,
        sampled=True,
        common_keys="pairs",
        tasks=grids.levels("Small", **WORLDS),
        lifetimes=None if least == greatest else lifetimes(least, greatest),
        num_devices=2,
        chunk=size.chunk,
    )
    return agents, agents.hyperparams(
        strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999), **RATES
    )


def evolved(folder: Path, path: Path, name: str, seed: int, size: Size) -> None:
    """Runs a search in a folder of its own, or goes on with it, and keeps its weights and its curves."""
    agents, hparams = evolving(name, size)
    told = "held out {held_out/fitness:.3f}, population {fitness/mean:.3f}, ties {fitness/tie_rate:.2f}, "
    told += "SNR {strategy/snr:.2f}"
    state, metrics = searches.evolved(agents, hparams, path, f"{name} {seed}", seed, size, told, rule=name)
    curves = ("held_out/fitness", "held_out/std", "fitness/mean", "fitness/tie_rate", "strategy/snr")
    searches.keep(folder, f"{name}-{seed}", state.values, metrics, curves, size.generations)


def tested(folder: Path, size: Size) -> None:
    """Random, written and learned rows on levels that no search has seen; writes results.json."""
    draw, keys = grids.levels("Small", **WORLDS), jax.random.split(jax.random.key(54321), size.levels)

    def tester(agent: Algorithm) -> Callable[[Any, int], np.ndarray]:
        run = jax.jit(trials.trial(agent, 64, sampled=True, tasks=draw, num_devices=2, chunk=size.chunk))
        return lambda hparams, num_updates: np.asarray(run(keys, hparams, jnp.int32(num_updates)), np.float64)

    as_rule = agent_of(rules.a2c(8, -5.0, 5.0))
    random = tester(as_rule)(as_rule.hyperparams(), 0)
    arms: dict[str, tuple[Algorithm, Any]] = {
        "A2C": searches.a2c_beside(grids.make("Small", **WORLDS), CONFIG, RATES),
        "A2C as a rule": (as_rule, as_rule.hyperparams(**RATES)),
    }
    for file in sorted(folder.glob("*lpg-*.npz")):
        agent, weights = agent_of(RULES[file.stem.rpartition("-")[0]]), np.load(file)
        values = {name: jnp.asarray(weights[name]) for name in weights.files}
        arms[file.stem] = (agent, trees.replace_leaves(agent.hyperparams(**RATES), values))
    best = jax.jit(jax.vmap(lambda key: grids.optimal_return(draw(key))))(trials.task_keys(keys))
    best = np.asarray(best, np.float64)
    results: dict[str, Any] = {"horizons": size.horizons, "best": best.tolist(), "random": random.tolist(), "arms": {}}
    print(f"mean best return {best.mean():.3f}, of a random policy {random.mean():.3f}\n")
    print(tables.head("rule", "updates", "return [95%]", "share of the best"))
    for name, (agent, hparams) in arms.items():
        results["arms"][name], run = {}, tester(agent)
        for horizon in size.horizons:
            found = run(hparams, horizon)
            results["arms"][name][str(horizon)] = found.tolist()
            share = f"{found.mean() / best.mean():.2f}"
            print(tables.row(name, horizon, tables.interval(found, ".3f"), share), flush=True)
    (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    """Evolves or tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/learned-policy-gradient"), help="folder of the runs")
    parser.add_argument("--rule", choices=tuple(RULES), default="lpg")
    parser.add_argument("--seed", type=int, default=0)
    options, size = searches.parsed(parser, HERE, Size(), TINY)
    with searches.timed():
        if options.test:
            tested(options.out, size)
        else:
            path = options.runs / f"{options.rule}-{options.seed}"
            evolved(options.out, path, options.rule, options.seed, size)


if __name__ == "__main__":
    main()
