"""Does evolution find a drift where one is needed, and how does it compare with PPO's and DPO's?

    .venv/bin/python experiments/evolved-drift/run.py   about 6 minutes of CPU; --tiny to see that it works

Claim tried: Lu et al. 2022 (arXiv:2210.05639), at a small size. All arms have the same inner loop, whose ten epochs on
256 transitions at a high learning rate ruin a policy without a drift. The figures come from plot.py.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from jaxrl import objectives, strategies
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.objectives.learned import LPO
from jaxrl.ops.members import over_members
from jaxrl.types import Objective

jax.config.update("jax_num_cpu_devices", 2)

HERE = Path(__file__).parent
TASKS = ("gymnax/CartPole-v1", "gymnax/Acrobot-v1")
ITERATIONS = 40
LEARNING_RATE = 1e-2
SIGMA, META_RATE = 0.1, 0.05
LEARNED = {"LPO from nothing": objectives.lpo(), "LPO from PPO": objectives.lpo(start="ppo")}
WRITTEN = {"no drift": objectives.lpo(), "PPO": objectives.clip(), "DPO": objectives.dpo()}


def agent_of(task: str, objective: Objective) -> Any:
    """The inner learner; 10 240 transitions are its life."""
    config = ppo.Config(
        num_envs=2,
        num_steps=128,
        num_epochs=10,
        num_minibatches=4,
        schedule="constant",
        clip_value=False,
        network=NetworkConfig(hidden=(32, 32)),
    )
    return jaxrl.ppo(jaxrl.make_env(task), objective=objective, config=config)


def evolved(
    objective: Objective, seed: int, candidates: int, generations: int, rounds: int, iterations: int
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Evolves an objective's weights on the first task; fitness is the mean return while training.

    Returns:
      The mean's weights by path, and each metric, a number a round.
    """
    search = strategies.open_es(candidates)
    agents = evolve(
        agent_of(TASKS[0], objective),
        search,
        num_steps=iterations,
        num_generations=generations,
        num_held_out=8,
        fitness="training",
        num_devices=2,
        chunk=8,
    )
    own = search.hyperparams(sigma=SIGMA, learning_rate=META_RATE)
    hparams = agents.hyperparams(learning_rate=LEARNING_RATE, strategy=own)
    state = jax.jit(agents.init)(jax.random.key(seed), hparams)
    rows: list[dict[str, float]] = []
    for done in range(rounds):
        begin = time.perf_counter()
        state, metrics = jaxrl.advance(agents, state, hparams, 1)
        rows.append(
            {name: float(value[0]) for name, value in metrics.items()} | {"seconds": time.perf_counter() - begin}
        )
        if done % 2 == 0 or done == rounds - 1:
            print(
                f"  generation {(done + 1) * generations}: held out {rows[-1]['held_out/fitness']:.1f}, population "
                f"{rows[-1]['fitness/mean']:.1f}, SNR {rows[-1]['strategy/snr']:.2f}, {rows[-1]['seconds']:.1f} s",
                flush=True,
            )
    curves = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: np.asarray(value) for name, value in state.values.items()}, curves


def tested(task: str, objective: Objective, params: Any, num_seeds: int, iterations: int) -> dict[str, list[float]]:
    """Fresh learners on keys that no evolution has seen.

    Returns:
      `training`: mean return of all episodes of training; `final`: of 16 greedy episodes after it; `kl`: mean
      divergence of the updates; each [seeds].
    """
    agent = agent_of(task, objective)
    play = jaxrl.evaluate(agent, 16)

    def one(key: jax.Array, params: Any) -> dict[str, jax.Array]:
        key_train, key_play = jax.random.split(key)
        hparams = agent.hyperparams(learning_rate=LEARNING_RATE, horizon=float(iterations * agent.env_steps))
        hparams = hparams.replace(objective=params)
        state, metrics = jaxrl.train(agent, iterations)(key_train, hparams)
        return {
            "training": jnp.sum(metrics["episode/return_sum"]) / jnp.sum(metrics["episode/count"]),
            "final": jnp.mean(play(key_play, state, hparams.env).returns),
            "kl": jnp.mean(metrics["policy/kl"]),
        }

    keys = jax.random.split(jax.random.key(12345), num_seeds)
    got = jax.jit(over_members(one, (0, None), 2, min(12, num_seeds // 2)))(keys, params)
    return {name: np.asarray(value, np.float64).tolist() for name, value in got.items()}


def row(name: str, seed: str, result: dict[str, list[float]]) -> str:
    """Means over seeds with 95% bootstrap intervals."""
    cells = []
    for part in ("training", "final"):
        values = np.asarray(result[part])
        low, high = statistics.bootstrap_interval(values, statistics.mean)
        cells.append(f"{values.mean():.1f} [{low:.1f}, {high:.1f}]")
    return f"| {name} | {seed} | {' | '.join(cells)} | {np.mean(result['kl']):.3f} |"


def main() -> None:
    """Evolves, tests all arms, writes results.json and weights.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and weights.npz")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12, help="of two generations each")
    parser.add_argument("--runs", type=int, default=2, help="evolutions of each kind")
    parser.add_argument("--seeds", type=int, default=24, help="in the test")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    arguments = parser.parse_args()
    candidates, rounds, runs, seeds = arguments.candidates, arguments.rounds, arguments.runs, arguments.seeds
    iterations = ITERATIONS
    if arguments.tiny:
        candidates, rounds, runs, seeds, iterations = 8, 1, 1, 2, 2
    results: dict[str, Any] = {"curves": {}, "tests": {}, "generations_a_round": 2}
    weights: dict[str, np.ndarray] = {}
    begin, began = time.process_time(), time.perf_counter()
    for name, objective in LEARNED.items():
        for seed in range(runs):
            print(f"{name}, evolution {seed}", flush=True)
            values, curves = evolved(objective, seed, candidates, 2, rounds, iterations)
            results["curves"][f"{name}/{seed}"] = curves
            weights |= {f"{name}/{seed}/{path.rpartition('.')[2]}": value for path, value in values.items()}
    for task in TASKS:
        print(
            f"\n{task}\n| drift | evolution | return while training [95%] | after training [95%] | mean KL |\n"
            "|---|---|---|---|---|"
        )
        tests: dict[str, Any] = {}
        for name, objective in WRITTEN.items():
            tests[name] = tested(task, objective, objective.init(jax.random.key(0)), seeds, iterations)
            print(row(name, "–", tests[name]), flush=True)
        for name, objective in LEARNED.items():
            for seed in range(runs):
                params = LPO(*(jnp.asarray(weights[f"{name}/{seed}/{part}"]) for part in ("hidden", "output")))
                tests[f"{name}/{seed}"] = tested(task, objective, params, seeds, iterations)
                print(row(name, str(seed), tests[f"{name}/{seed}"]), flush=True)
        results["tests"][task] = tests
    results["cpu_seconds"], results["seconds"] = time.process_time() - begin, time.perf_counter() - began
    print(f"\n{results['seconds']:.0f} s, of CPU time {results['cpu_seconds']:.0f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results))
    np.savez_compressed(arguments.out / "weights.npz", **weights)


if __name__ == "__main__":
    main()
