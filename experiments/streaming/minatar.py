"""Streaming on MinAtar: stream Q(λ) beside plain incremental Q and two agents that learn from batches.

    .venv/bin/python experiments/streaming/minatar.py    --tiny to see that it works
    .venv/bin/python experiments/streaming/minatar.py --table    the table and the figure of what has been run

Claim tried: Elsayed et al. 2024 (arXiv:2410.14606), that incremental deep Q-learning fails without their parts and
matches batch methods with them, at equal numbers of transitions. "plain" is the same code without any of the parts: a
semi-gradient step of Adam on each transition. It gets each of `RATES` in short runs with other seeds, and the best one
is reported.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.algorithms import dqn, pqn, stream_q
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.networks.streaming import StreamingConfig

HERE = Path(__file__).parent
GAMES = ("gymnax/Breakout-MinAtar", "gymnax/SpaceInvaders-MinAtar")
RATES = (1e-3, 1e-4, 1e-5)
NUM_SPANS = 20
# As in the authors' script for MinAtar, whose network has one convolution and one dense layer of 128.
LEAVES = {"epsilon_fraction": 0.2, "epsilon_end": 0.01}
DENSE = {"initializer": "orthogonal", "layer_norm": False}
RAW = {"optimizer": "adam", "normalize_observations": False, "normalize_rewards": False}


def streaming(layers: dict[str, Any], fields: dict[str, Any]) -> Callable[[jaxrl.Env], jaxrl.Algorithm]:
    """Stream Q with or without its parts."""
    config = stream_q.Config(num_steps=500, network=StreamingConfig(hidden=(128,), **layers), **fields)
    return lambda env: stream_q.stream_q(env, config)


def batches(env: jaxrl.Env) -> jaxrl.Algorithm:
    """PQN with its defaults, but for an image that is not convolved (as scripts/table.py has it)."""
    return pqn.pqn(env, config=pqn.Config(network=dataclasses.replace(pqn.Config().network, convolve=False)))


def replay(env: jaxrl.Env) -> jaxrl.Algorithm:
    """DQN likewise, with a replay of 100,000 transitions."""
    network = QNetworkConfig(convolve=False)
    return dqn.dqn(env, config=dqn.Config(capacity=100_000, num_warmup_steps=625, network=network))


# name: (agent, hyperparameters)
ARMS: dict[str, tuple[Callable[[jaxrl.Env], jaxrl.Algorithm], dict[str, float]]] = {
    "stream Q": (streaming({}, {}), LEAVES),
    "plain": (streaming(DENSE, RAW), {**LEAVES, "trace_lambda": 0.0}),
    "PQN": (batches, LEAVES),
    "DQN": (replay, {**LEAVES, "max_grad_norm": 10.0}),
    "random": (streaming({}, {}), {"learning_rate": 0.0, "epsilon_end": 1.0}),
}


def iterations_of(agent: jaxrl.Algorithm, num_steps: int) -> int:
    """Steps of the algorithm for so many transitions; two at least."""
    return max(num_steps // agent.env_steps, 2)


def run(
    agent: jaxrl.Algorithm, leaves: dict[str, float], seed: int, num_seeds: int, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Trains seeds one after the other in one program.

    Args:
      agent: to train.
      leaves: hyperparameters.
      seed: of the keys.
      num_seeds: how many.
      num_steps: transitions of each.

    Returns:
      Mean return of the episodes of training in each of `NUM_SPANS` spans, [seeds, spans]; and that of 64 greedy
      episodes of the final policy, [seeds].
    """
    iterations = iterations_of(agent, num_steps)
    hparams = agent.hyperparams(horizon=float(iterations * agent.env_steps), **leaves)
    play = jaxrl.evaluate(agent, 64)

    def one(keys: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        state, metrics = jaxrl.train(agent, iterations)(keys[0], hparams)
        kept = {name: metrics[name] for name in ("episode/return_sum", "episode/count")}
        return kept, play(keys[1], state, hparams.env).mean_return

    keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(seed), num_seeds))
    # A member's parameters and trace stay in the cache; those of all would not.
    metrics, greedy = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return span_returns(metrics, NUM_SPANS), np.asarray(greedy)


def last_quarter(curve: np.ndarray) -> np.ndarray:
    """Mean over the last quarter of the spans, [..., spans] to [...]."""
    return curve[..., -(NUM_SPANS // 4) :].mean(-1)


def played(game: str, arm: str, num_seeds: int, num_steps: int, num_search_steps: int) -> dict[str, Any]:
    """One row of the table: an arm on a game."""
    build, leaves = ARMS[arm]
    agent, began = build(jaxrl.make_env(game)), time.perf_counter()
    by_rate = {}
    if arm == "plain":
        for rate in RATES:
            by_rate[rate] = last_quarter(run(agent, {**leaves, "learning_rate": rate}, 1, 2, num_search_steps)[0])
        leaves = {**leaves, "learning_rate": max(by_rate, key=lambda rate: float(np.nan_to_num(by_rate[rate]).mean()))}
    num_steps = num_search_steps // 4 if arm == "random" else num_steps
    curve, greedy = run(agent, leaves, 0, num_seeds, num_steps)
    return {
        "game": game,
        "arm": arm,
        "num_steps": iterations_of(agent, num_steps) * agent.env_steps,
        "leaves": leaves,
        "curve": curve.tolist(),
        "greedy": greedy.tolist(),
        "search": {str(rate): values.tolist() for rate, values in by_rate.items()},
        "seconds": round(time.perf_counter() - began),
    }


def told(values: np.ndarray, digits: int = 1) -> str:
    """The mean over seeds, and the least and greatest."""
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def report(rows: list[dict[str, Any]], figure_path: Path) -> None:
    """Prints the table and draws the figure."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    figure, panels = plt.subplots(1, len(games), figsize=(4.4 * len(games), 3.0), squeeze=False, layout="constrained")
    titles = ("game", "agent", "transitions", "return while training, last quarter", "greedy at the end", "seconds")
    print(tables.head(*titles))
    for panel, game in zip(panels[0], games, strict=True):
        for i, row in enumerate(row for row in rows if row["game"] == game):
            curve, rate = np.asarray(row["curve"]), row["leaves"].get("learning_rate")
            arm = f"plain, rate {rate:g}" if row["arm"] == "plain" else row["arm"]
            values = (told(last_quarter(curve)), told(np.asarray(row["greedy"])) if row["arm"] != "random" else "")
            print(tables.row(game.split("/")[1], arm, f"{row['num_steps']:,}", *values, row["seconds"]))
            if row["arm"] != "random":
                draw_spans(panel, curve, row["num_steps"], statistics.mean, i, row["arm"])
        panel.set(title=game.split("/")[1], xlabel="transitions")
        style.tidy(panel)
    panels[0, 0].set_ylabel("return while training")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(figure_path, dpi=90)


def main() -> None:
    """Runs what has not been run, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of minatar.json and minatar.png")
    parser.add_argument("--games", nargs="+", default=list(GAMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240_000)
    parser.add_argument("--search-steps", type=int, default=80_000, help="of each rate's runs")
    parser.add_argument("--table", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--tiny", action="store_true", help="two iterations of two seeds, kept elsewhere")
    arguments = parser.parse_args()
    sizes = (arguments.seeds, arguments.steps, arguments.search_steps)
    if arguments.tiny:
        sizes = (2, 0, 0)
    if arguments.tiny:
        arguments.out = Path(tempfile.mkdtemp())
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "minatar.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for game in () if arguments.table else arguments.games:
        for arm in ARMS:
            if not any((row["game"], row["arm"]) == (game, arm) for row in rows):
                rows.append(played(game, arm, *sizes))
                path.write_text(json.dumps(rows))
                print(f"{game} {arm}: {rows[-1]['seconds']} s", flush=True)
    report(rows, arguments.out / "minatar.png")


if __name__ == "__main__":
    main()
