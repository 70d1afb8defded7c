"""Does a published learned optimizer teach PPO here, and does evolution find one from nothing?

    .venv/bin/python experiments/learned-optimizer/run.py --weights breakout_OPEN.npy   the published rule
    .venv/bin/python experiments/learned-optimizer/run.py --evolve                      a rule for CartPole

--tiny for each to see that it works. Claims tried: Goldie et al. 2024 (arXiv:2407.07082), that a rule found by
evolution on Breakout-MinAtar teaches there as well as a tuned Adam; and, at a small size, that one can be found. The
weights are files of the authors' repository (AlexGoldie/rl-learned-optimization, folder pretrained), which is not part
of this one.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from jaxrl import strategies
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.networks.update_rules import open_rule, open_weights
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.ops.optimizers import adam
from jaxrl.types import Algorithm

HERE = Path(__file__).parent
BREAKOUT = ppo.Config(
    num_envs=64,
    num_steps=128,
    num_epochs=4,
    num_minibatches=8,
    network=NetworkConfig(hidden=(64, 64), activation="relu", convolve=False),
)
CARTPOLE = ppo.Config(num_envs=4, num_steps=128, network=NetworkConfig(hidden=(32, 32)))
ADAM_RATES = (1e-3, 3e-3, 1e-2)
SIGMA, META_RATE = 0.3, 0.1


def agent_of(env: str, config: ppo.Config, optimizer: Any) -> Algorithm:
    """PPO with an optimizer."""
    return ppo.ppo(jaxrl.make_env(env), optimizer=optimizer, config=config)


def tested(agent: Algorithm, changes: dict[str, Any], num_seeds: int, iterations: int) -> list[list[float]]:
    """Mean return of the episodes that ended in each tenth of training, of each seed."""
    hparams = agent.hyperparams(horizon=float(iterations * agent.env_steps), **changes)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, metrics = jaxrl.train(agent, iterations)(key, hparams)
        return metrics["episode/return_sum"], metrics["episode/count"]

    sums, counts = jax.jit(over_members(one, (0,), chunk=1))(jax.random.split(jax.random.key(12345), num_seeds))
    parts = [np.array_split(np.asarray(x, np.float64), min(10, iterations), axis=1) for x in (sums, counts)]
    rows = [total.sum(1) / np.maximum(count.sum(1), 1.0) for total, count in zip(*parts, strict=True)]
    return np.stack(rows, axis=1).tolist()


def row(name: str, curves: list[list[float]], seconds: float) -> str:
    """The last tenth, with a 95% bootstrap interval over seeds."""
    last = np.asarray(curves)[:, -1]
    low, high = statistics.bootstrap_interval(last, statistics.mean)
    each = ", ".join(f"{x:.1f}" for x in last)
    return f"| {name} | {last.mean():.1f} [{low:.1f}, {high:.1f}] | {each} | {seconds:.0f} |"


def meta_test(weights: Path, num_seeds: int, iterations: int) -> dict[str, Any]:
    """The published rule and Adam in one harness, on the task that the rule was found on."""
    results = {}
    print("| optimizer | return, last tenth [95%] | of each seed | seconds |\n|---|---|---|---|")
    arms: dict[str, tuple[Any, dict[str, Any]]] = {"OPEN": (open_rule(), {"optimizer": open_weights(weights)})}
    arms |= {f"Adam {rate:g}": (adam, {"learning_rate": rate}) for rate in ADAM_RATES}
    for name, (optimizer, changes) in arms.items():
        begin = time.perf_counter()
        agent = agent_of("gymnax/Breakout-MinAtar", BREAKOUT, optimizer)
        results[name] = tested(agent, changes, num_seeds, iterations)
        print(row(name, results[name], time.perf_counter() - begin), flush=True)
    return results


def evolution(candidates: int, rounds: int, num_seeds: int, iterations: int) -> dict[str, Any]:
    """Evolves the 1211 weights from 0 on CartPole, then tests the mean beside Adam on keys it has not seen."""
    agent, search = agent_of("gymnax/CartPole-v1", CARTPOLE, open_rule()), strategies.open_es(candidates)
    outer = evolve(agent, search, "optimizer", num_steps=iterations, num_generations=2, fitness="training", chunk=8)
    hparams = outer.hyperparams(strategy=search.hyperparams(sigma=SIGMA, learning_rate=META_RATE))
    state, curve = jax.jit(outer.init)(jax.random.key(0), hparams), []
    for done in range(rounds):
        state, metrics = jaxrl.advance(outer, state, hparams, 1)
        curve.append({name: float(value[0]) for name, value in metrics.items()})
        print(
            f"  generation {2 * (done + 1)}: held out {curve[-1]['held_out/fitness']:.1f}, "
            f"SNR {curve[-1]['strategy/snr']:.2f}, ties {curve[-1]['fitness/tie_rate']:.2f}",
            flush=True,
        )
    weights = trees.replace_leaves(agent.hyperparams(), state.values).optimizer
    results: dict[str, Any] = {"curve": curve}
    print("| optimizer | return, last tenth [95%] | of each seed | seconds |\n|---|---|---|---|")
    arms: dict[str, tuple[Any, dict[str, Any]]] = {
        "none (weights 0)": (open_rule(), {}),
        "evolved": (open_rule(), {"optimizer": weights}),
        "Adam 0.0025": (adam, {"learning_rate": 2.5e-3}),
    }
    for name, (optimizer, changes) in arms.items():
        begin = time.perf_counter()
        results[name] = tested(agent_of("gymnax/CartPole-v1", CARTPOLE, optimizer), changes, num_seeds, iterations)
        print(row(name, results[name], time.perf_counter() - begin), flush=True)
    return results


def main() -> None:
    """Runs one of the two, writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a .npy file of the authors, of 1211 numbers")
    parser.add_argument("--evolve", action="store_true", help="find weights instead")
    parser.add_argument("--steps", type=float, default=1e6, help="environment steps of the meta-test")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40, help="of two generations each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    arguments = parser.parse_args()
    if arguments.evolve == (arguments.weights is not None):
        parser.error("pass --evolve, or --weights with a file of the authors")
    candidates, rounds, seeds = arguments.candidates, arguments.rounds, arguments.seeds
    iterations = max(1, int(arguments.steps) // (BREAKOUT.num_envs * BREAKOUT.num_steps))
    if arguments.tiny:
        candidates, rounds, seeds, iterations = 8, 1, 2, 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.evolve:
        results = evolution(candidates, rounds, seeds, 2 if arguments.tiny else 20)
        (arguments.out / "evolution.json").write_text(json.dumps(results))
    else:
        results = meta_test(arguments.weights, seeds, iterations)
        (arguments.out / "meta_test.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
