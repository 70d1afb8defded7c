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
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrl
from jaxrl import acting, fit, objectives, runs, strategies
from jaxrl.algorithms import lpg, ppo
from jaxrl.analysis import statistics
from jaxrl.envs import grids
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm

jax.config.update("jax_num_cpu_devices", 2)

HERE = Path(__file__).parent
WORLDS = {"side": (6, 6), "num_objects": (2, 2), "num_walls": 0}
NUM_ENVS, NUM_STEPS, NUM_EPISODES = 16, 20, 16
POLICY_RATE, PREDICTION_RATE = 40.0, 4.0
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
    config = lpg.Config(num_envs=NUM_ENVS, num_steps=NUM_STEPS, tabular=True, optimizer="sgd")
    return lpg.lpg(grids.make("Small", **WORLDS), rule, config)


def sgd(hparams: Any, learning_rate: Any) -> optax.GradientTransformation:
    """Gradient descent behind clipping of the norm, as the rule's agent has it."""
    return optax.chain(optax.clip_by_global_norm(hparams.max_grad_norm), optax.scale(-learning_rate))


def a2c_agent() -> Algorithm:
    """Advantage actor-critic as it is written, linear in the one-hot state, with the same rates and rollouts."""
    config = ppo.Config(
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        num_epochs=1,
        num_minibatches=1,
        clip_value=False,
        normalize_advantage="batch",
        schedule="constant",
        network=NetworkConfig(hidden=()),
    )
    return jaxrl.ppo(
        grids.make("Small", **WORLDS),
        objective=objectives.policy_gradient(),
        optimizer=acting.separate(sgd, sgd, PREDICTION_RATE),
        config=config,
    )


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
        learning_rate=POLICY_RATE,
        prediction_learning_rate=PREDICTION_RATE,
        strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999),
    )


def evolved(folder: Path, path: Path, name: str, seed: int, size: Size) -> None:
    """Runs a search in a folder of its own, or goes on with it, and keeps its weights and its curves."""
    exists = (path / "run.json").exists()
    run = runs.Run.open(path) if exists else runs.Run.create(path, runs.describe(seed=seed, rule=name))
    agents, hparams = evolving(name, size)

    def tell(progress: fit.Progress) -> None:
        rows = run.metrics()
        last = lambda key: float(rows[key].values.ravel()[-1])
        print(
            f"{name} {seed}, generation {progress.iteration * size.generations}: held out "
            f"{last('held_out/fitness'):.3f}, population {last('fitness/mean'):.3f}, "
            f"ties {last('fitness/tie_rate'):.2f}, SNR {last('strategy/snr'):.2f}, {progress.seconds:.0f} s",
            flush=True,
        )

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
    np.savez_compressed(
        folder / f"{name}-{seed}.npz", **{path: np.asarray(value) for path, value in result.state.values.items()}
    )
    curves = run.metrics()
    kept = ("held_out/fitness", "held_out/std", "fitness/mean", "fitness/tie_rate", "strategy/snr")
    curve = {key: np.asarray(curves[key], np.float64).ravel().tolist() for key in kept}
    (folder / f"{name}-{seed}.json").write_text(json.dumps({"generations": size.generations, "curves": curve}))


def tester(agent: Algorithm, size: Size) -> Any:
    """`(hparams, num_updates) -> mean returns` of fresh learners after so many updates, one on each test level."""
    play = jaxrl.evaluate(agent, 64, sampled=True)
    draw = grids.levels("Small", **WORLDS)

    def one(key: jax.Array, num_updates: jax.Array, hparams: Any) -> jax.Array:
        key_level, key_train, key_play = jax.random.split(key, 3)
        horizon = jnp.maximum(num_updates, 1).astype(jnp.float32) * agent.env_steps
        own = hparams.replace(env=draw(key_level), horizon=horizon)
        state = agent.init(key_train, own)
        # How many is data, so that all lengths of life are one program.
        state = jax.lax.fori_loop(0, num_updates, lambda _, state: agent.step(state, own)[0], state)
        return play(key_play, state, own.env).mean_return

    keys = jax.random.split(jax.random.key(54321), size.levels)
    run = jax.jit(over_members(one, (0, None, None), 2, size.chunk))
    return lambda hparams, num_updates: np.asarray(run(keys, jnp.int32(num_updates), hparams), np.float64)


def tested(folder: Path, size: Size) -> None:
    """Random, written and learned rows on levels that no search has seen; writes results.json."""
    plain = {"learning_rate": POLICY_RATE, "prediction_learning_rate": PREDICTION_RATE}
    as_rule = agent_of(rules.a2c(8, -5.0, 5.0))
    random = tester(as_rule, size)(as_rule.hyperparams(), 0)
    arms: dict[str, tuple[Algorithm, Any]] = {
        "A2C": (a2c_agent(), a2c_agent().hyperparams(learning_rate=POLICY_RATE, entropy_coef=0.01)),
        "A2C as a rule": (as_rule, as_rule.hyperparams(**plain)),
    }
    for file in sorted(folder.glob("*lpg-*.npz")):
        agent, weights = agent_of(RULES[file.stem.rpartition("-")[0]]), np.load(file)
        values = {name: jnp.asarray(weights[name]) for name in weights.files}
        arms[file.stem] = (agent, trees.replace_leaves(agent.hyperparams(**plain), values))
    draw = grids.levels("Small", **WORLDS)
    keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(jax.random.split(jax.random.key(54321), size.levels))
    best = np.asarray(jax.jit(jax.vmap(lambda key: grids.optimal_return(draw(key))))(keys), np.float64)
    results: dict[str, Any] = {"horizons": size.horizons, "best": best.tolist(), "random": random.tolist(), "arms": {}}
    print(f"mean best return {best.mean():.3f}, of a random policy {random.mean():.3f}\n")
    print("| rule | updates | return [95%] | share of the best |\n|---|---|---|---|")
    for name, (agent, hparams) in arms.items():
        results["arms"][name], run = {}, tester(agent, size)
        for horizon in size.horizons:
            found = run(hparams, horizon)
            low, high = statistics.bootstrap_interval(found, statistics.mean)
            results["arms"][name][str(horizon)] = found.tolist()
            share = found.mean() / best.mean()
            print(f"| {name} | {horizon} | {found.mean():.3f} [{low:.3f}, {high:.3f}] | {share:.2f} |", flush=True)
    (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    """Evolves or tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of what is written")
    parser.add_argument("--runs", type=Path, default=Path("runs/learned-policy-gradient"), help="folder of the runs")
    parser.add_argument("--rule", choices=tuple(RULES), default="lpg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="of ten generations each")
    parser.add_argument("--test", action="store_true", help="the table, instead of a search")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else Size()
    if arguments.rounds:
        size = dataclasses.replace(size, rounds=arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, cpu = time.perf_counter(), time.process_time()
    if arguments.test:
        tested(arguments.out, size)
    else:
        path = arguments.runs / f"{arguments.rule}-{arguments.seed}"
        evolved(arguments.out, path, arguments.rule, arguments.seed, size)
    print(f"{time.perf_counter() - began:.0f} s, of CPU time {time.process_time() - cpu:.0f} s")


if __name__ == "__main__":
    main()
