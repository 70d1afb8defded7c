"""Does evolution over expression graphs find a loss of Q-learning, and is DQNReg better than DQN's loss?

    .venv/bin/python experiments/evolved-losses/run.py --compare   written losses and a found one, CartPole and Acrobot
    .venv/bin/python experiments/evolved-losses/run.py --evolve    a search on CartPole; --start td begins at DQN's loss

--tiny for each to see that it works. Claims tried, at a small size: Co-Reyes et al. 2021 (arXiv:2101.03958), that a
search from nothing finds the TD error, that one from DQN's loss improves it, and that DQNReg matches or beats DQN.
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
from jaxrl import values
from jaxrl.algorithms import dqn
from jaxrl.analysis import statistics
from jaxrl.meta.regularized_evolution import programs, regularized_evolution
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.ops import expressions
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm

HERE = Path(__file__).parent
TASKS = ("gymnax/CartPole-v1", "gymnax/Acrobot-v1")
SIZES = {"num_envs": 4, "num_rounds": 64, "batch_size": 64, "num_warmup_steps": 128}
CONFIG = dqn.Config(network=QNetworkConfig(hidden=(64, 64)), **SIZES)
HPARAMS = {"learning_rate": 1e-3, "target_period": 100.0, "epsilon_end": 0.05, "max_grad_norm": 10.0}
NUM_NODES, NUM_SEEDS = 10, 3
# What `--evolve --start td` found: DQN's loss, times e^Q(s, a).
FOUND = ("multiply", expressions.TD, ("exp", ("select", "q", "action")))
HEADS = {
    "DQN": values.scalar(),
    "DQNReg": values.dqn_reg(),
    "DQNClipped": values.dqn_clipped(),
    "found": values.graph(FOUND, NUM_NODES),
}
STARTS = {"nothing": None, "td": expressions.TD}


def agent_of(task: str, head: values.ValueHead) -> Algorithm:
    """Q-learning with a loss; all else is the same for all losses."""
    return dqn.dqn(jaxrl.make_env(task), head=head, config=CONFIG)


def compared(num_seeds: int, num_steps: int) -> dict[str, Any]:
    """Each loss on each task: mean return of all episodes of training, and of 16 greedy ones after it."""
    results: dict[str, Any] = {}
    for task in TASKS:
        print(
            f"\n{task}\n| loss | return while training [95%] | after training [95%] | mean value |\n|---|---|---|---|"
        )
        for name, head in HEADS.items():
            agent = agent_of(task, head)
            play, iterations = jaxrl.evaluate(agent, 16), max(1, num_steps // agent.env_steps)
            hparams = agent.hyperparams(horizon=float(num_steps), **HPARAMS)

            def one(key: jax.Array, agent: Any = agent, play: Any = play, hparams: Any = hparams, n: int = iterations):
                key_train, key_play = jax.random.split(key)
                state, metrics = jaxrl.train(agent, n)(key_train, hparams)
                training = jnp.sum(metrics["episode/return_sum"]) / jnp.sum(metrics["episode/count"])
                return training, play(key_play, state, hparams.env).mean_return, metrics["value/mean"][-1]

            got = jax.jit(over_members(one, (0,), chunk=1))(jax.random.split(jax.random.key(12345), num_seeds))
            columns = [np.asarray(x, np.float64) for x in got]
            results[f"{task}/{name}"] = [column.tolist() for column in columns]
            cells = []
            for column in columns[:2]:
                low, high = statistics.bootstrap_interval(column, statistics.mean)
                cells.append(f"{column.mean():.1f} [{low:.1f}, {high:.1f}]")
            print(f"| {name} | {' | '.join(cells)} | {columns[2].mean():.1f} |", flush=True)
    return results


def evolved(start: str, sizes: dict[str, Any], rounds: int, iterations: int) -> dict[str, Any]:
    """A search on CartPole; fitness is the mean return of the episodes of training, over NUM_SEEDS learners."""
    first = expressions.TD if STARTS[start] is None else STARTS[start]
    agent = agent_of(TASKS[0], values.graph(first, NUM_NODES))
    genomes = programs(NUM_NODES, STARTS[start])
    search = regularized_evolution(agent, genomes, num_steps=iterations, chunk=4, num_seeds=NUM_SEEDS, **sizes)
    hparams = search.hyperparams(**HPARAMS)
    state, curve = jax.jit(search.init)(jax.random.key(0), hparams), []
    begin = time.perf_counter()
    for done in range(rounds):
        state, metrics = jaxrl.advance(search, state, hparams, 1)
        curve.append({name: float(value[0]) for name, value in metrics.items()})
        if done % 10 == 0 or done == rounds - 1:
            now = curve[-1]
            print(
                f"  {int(state.num_trained)} trained in {time.perf_counter() - begin:.0f} s: best "
                f"{now['fitness/best']:.1f}, held out {now['held_out/fitness']:.1f}, known "
                f"{now['search/share_known']:.2f}: {expressions.describe(state.best)}",
                flush=True,
            )
    order = np.argsort(-np.asarray(state.fitness))[:5]
    top = [expressions.describe(jax.tree.map(lambda x, i=i: x[i], state.genomes)) for i in order]
    return {"curve": curve, "best": expressions.describe(state.best), "population": top}


def main() -> None:
    """Runs one of the two, writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="written losses beside one another")
    parser.add_argument("--evolve", action="store_true", help="search")
    parser.add_argument("--start", choices=STARTS, default="nothing", help="of the search")
    parser.add_argument("--steps", type=float, default=5e4, help="environment steps of the comparison")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60, help="of eight losses each")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    arguments = parser.parse_args()
    if arguments.compare == arguments.evolve:
        parser.error("pass --compare or --evolve")
    seeds, steps, rounds, iterations = arguments.seeds, int(arguments.steps), arguments.rounds, 40
    sizes: dict[str, Any] = {"population_size": 100, "tournament_size": 10, "num_children": 8, "num_proposals": 64}
    if arguments.tiny:
        seeds, steps, rounds, iterations = 2, 512, 2, 2
        sizes = {"population_size": 8, "tournament_size": 2, "num_children": 4, "num_proposals": 8}
    results = compared(seeds, steps) if arguments.compare else evolved(arguments.start, sizes, rounds, iterations)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "comparison" if arguments.compare else f"evolution_{arguments.start}"
    (arguments.out / f"{name}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
