"""Does an agent that sees its stock maximize the CVaR of its return (Pires et al. 2025, arXiv:2501.13028)?

    .venv/bin/python experiments/risk/run.py    --tiny to try it

DQN with quantiles on two small tasks of chance. Three arms, of which only what greedy means differs: the mean; the CVaR
of what is still to come; and the shortfall of stock plus return, trained from a range of first stocks, of which the
agent's own quantiles choose one for the evaluation. Beside them stand the best CVaR and the CVaR of the policy with the
best mean, both exact, by dynamic programming over states and stocks.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from jaxrl import values, wrappers
from jaxrl.algorithms import dqn
from jaxrl.analysis import finite_mdps, statistics
from jaxrl.analysis.finite_mdps import FiniteMDP
from jaxrl.networks.q_network import QNetworkConfig, q_network
from jaxrl.ops import trees

HERE = Path(__file__).parent
NUM_QUANTILES, NUM_EPISODES = 32, 2_000
UNIT, KAPPA = 10.0, 0.01
"""Agents earn a tenth of what is printed, so that the stock is of the size of other inputs; κ is small beside returns,
since the quantiles of a wide Huber loss are not those of the return."""


def bets() -> FiniteMDP:
    """Six bets: one for sure, or three with probability .75 and a loss of one otherwise, paid with the next bet."""
    first, sure, won, lost = range(4)
    transitions = np.zeros((4, 2, 4))
    transitions[:, 0, sure] = 1.0
    transitions[:, 1, won], transitions[:, 1, lost] = 0.75, 0.25
    rewards = np.zeros((4, 2))
    rewards[sure], rewards[won], rewards[lost] = 1.0, 3.0, -1.0
    return FiniteMDP(transitions, rewards, np.eye(4)[first], 7)


def cliff(width: int = 5, height: int = 3, slip: float = 0.1) -> FiniteMDP:
    """A walk to the far corner along a cliff: one a step, ten for a fall, which ends it; some moves go astray."""
    cells = width * height
    moves = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    after = np.zeros((cells, 4, cells))
    for cell in range(cells):
        for action, move in enumerate(moves):
            row, column = np.clip(np.add(divmod(cell, width), move), 0, [height - 1, width - 1])
            after[cell, action, row * width + column] = 1.0
    after = (1.0 - slip) * after + slip * after.mean(axis=1, keepdims=True)
    start, goal = (height - 1) * width, height * width - 1
    transitions = np.zeros((cells + 1, 4, cells + 1))
    transitions[:cells, :, :cells] = after
    rewards = np.full((cells + 1, 4), -1.0)
    # Beyond the edge, what is paid is paid on leaving it.
    for cell in range(start + 1, goal + 1):
        transitions[cell] = np.eye(cells + 1)[-1]
        rewards[cell] = 0.0 if cell == goal else -10.0
    transitions[-1], rewards[-1] = np.eye(cells + 1)[-1], 0.0
    return FiniteMDP(transitions, rewards, np.eye(cells + 1)[start], 16)


# Each task with the level of CVaR, and the first stocks trained from: minus the returns where the worst share may end.
TASKS = {"bets": (bets(), 0.25, (-12, 8)), "cliff": (cliff(), 0.1, (0, 26))}
ARMS: dict[str, tuple[Callable[[float], values.Functional], bool]] = {
    "mean": (lambda level: values.functionals.mean(), False),
    "CVaR of the return to go": (values.cvar, False),
    "shortfall of stock and return": (lambda level: values.shortfall(), True),
}
"""What is maximized at each level, and whether the stock is seen."""


def exact(mdp: FiniteMDP, level: float, stocks: tuple[int, int]) -> dict[str, float]:
    """The best CVaR, and mean and CVaR of a policy with the best mean; rewards are whole numbers."""
    actions = range(mdp.rewards.shape[1])

    @functools.cache
    def missing(time: int, state: int, stock: int) -> float:
        if time == mdp.horizon:
            return min(stock, 0.0)
        return max(
            sum(
                p * missing(time + 1, int(s), stock + round(mdp.rewards[state, a]))
                for s, p in enumerate(mdp.transitions[state, a])
                if p > 0.0
            )
            for a in actions
        )

    start = int(mdp.start.argmax())
    best = max(missing(0, start, c) / level - c for c in range(stocks[0], stocks[1] + 1))
    value, policy = np.zeros(len(mdp.start)), []
    for _ in range(mdp.horizon):
        q = mdp.rewards + mdp.transitions @ value
        policy.append(q.argmax(1))
        value = q.max(1)
    returns: dict[tuple[int, int], float] = {(start, 0): 1.0}
    for action in policy[::-1]:
        following: dict[tuple[int, int], float] = {}
        for (state, gathered), p in returns.items():
            paid = gathered + round(mdp.rewards[state, action[state]])
            for s, q in enumerate(mdp.transitions[state, action[state]]):
                if q > 0.0:
                    following[s, paid] = following.get((s, paid), 0.0) + p * q
        returns = following
    points, probs = (np.array(x, np.float32) for x in zip(*((g, p) for (_, g), p in returns.items()), strict=True))
    functional = values.cvar(level)
    risk = float(functional.value(functional.init(), jnp.asarray(points), jnp.asarray(probs)))
    return {"best CVaR": best, "best mean": float(value[start]), "CVaR of the best mean": risk}


def run(
    mdp: FiniteMDP, arm: str, level: float, between: tuple[int, int], num_seeds: int, num_steps: int, episodes: int
) -> np.ndarray:
    """Returns of episodes after training, [seeds, episodes]."""
    make, augmented = ARMS[arm]
    num_states, num_actions = mdp.rewards.shape
    low, high = (stock / UNIT for stock in between)
    plain = finite_mdps.environment(num_states, num_actions, mdp.horizon)
    env = wrappers.observe_stock(plain, 1.0, low, high) if augmented else plain
    config = dqn.Config(
        num_envs=16,
        num_steps=1,
        num_rounds=100,
        batch_size=64,
        capacity=32_768,
        num_warmup_steps=128,
        network=QNetworkConfig(hidden=(64, 64)),
    )
    head = values.maximizing(make(level), values.quantile(NUM_QUANTILES, KAPPA))
    agent = dqn.dqn(env, head=head, config=config)
    total = max(1, num_steps // agent.env_steps)
    tables = trees.as_arrays(dataclasses.replace(mdp, rewards=mdp.rewards / UNIT))
    params = env.default_params().replace(inner=tables) if augmented else tables
    hparams = agent.hyperparams(
        env=params,
        gamma=1.0,
        learning_rate=5e-4,
        target_period=100,
        max_grad_norm=10.0,
        horizon=float(total * agent.env_steps),
    )
    net = q_network(env.observation_space, env.action_space, head.size, config=config.network)

    def one(key: jax.Array) -> jax.Array:
        key_train, key_play = jax.random.split(key)
        state, _ = jaxrl.train(agent, total)(key_train, hparams)
        playing = hparams.env
        if augmented:
            stocks = jnp.linspace(low, high, 2 * (between[1] - between[0]) + 1)
            first = plain.reset(key_play, tables)[1]
            obs = {"observation": jnp.broadcast_to(first, (stocks.size, first.size)), "stock": stocks}
            output: Any = net.apply(state.params, obs)
            action = jnp.argmax(head.mean(hparams.head, output), axis=-1)
            points = jnp.take_along_axis(output.values, action[:, None, None], axis=1)[:, 0]
            chosen, _ = values.best_stock(points, jnp.full_like(points, 1.0 / NUM_QUANTILES), stocks, level)
            playing = playing.replace(low=chosen, high=chosen)
        return jaxrl.evaluate(agent, episodes)(key_play, state, playing).returns

    return UNIT * np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_seeds)), np.float64)


def worst_share(returns: np.ndarray, level: float) -> np.ndarray:
    """CVaR of the last axis."""
    ordered = np.sort(returns, axis=-1)
    return ordered[..., : max(1, round(level * ordered.shape[-1]))].mean(-1)


def main() -> None:
    """Runs all arms and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=float, default=200_000)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners, written nowhere")
    arguments = parser.parse_args()
    seeds, steps, episodes = arguments.seeds, int(arguments.steps), NUM_EPISODES
    if arguments.tiny:
        seeds, steps, episodes = 2, 1_600, 50
    results: dict[str, Any] = {}
    print("| task | arm | mean return | CVaR | seconds |\n|---|---|---|---|---|")
    for task, (mdp, level, between) in TASKS.items():
        known = exact(mdp, level, between)
        results[task] = {"exact": known}
        print(f"| {task} | exact: best mean | {known['best mean']:.2f} | {known['CVaR of the best mean']:.2f} | |")
        print(f"| {task} | exact: best CVaR | | {known['best CVaR']:.2f} | |", flush=True)
        for arm in ARMS:
            begin = time.perf_counter()
            returns = run(mdp, arm, level, between, seeds, steps, episodes)
            cells = []
            for column in (returns.mean(-1), worst_share(returns, level)):
                low, high = statistics.bootstrap_interval(column, statistics.mean)
                cells.append(f"{column.mean():.2f} [{low:.2f}, {high:.2f}]")
            results[task][arm] = {"mean": returns.mean(-1).tolist(), "cvar": worst_share(returns, level).tolist()}
            print(f"| {task} | {arm} | {' | '.join(cells)} | {time.perf_counter() - begin:.0f} |", flush=True)
    if not arguments.tiny:
        (arguments.out / "results.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
