"""Three claims on learning values, each an argument of DQN: the batch's size, mapped values, a chain of iterations.

    .venv/bin/python experiments/value-ablations/run.py --part batch      --tiny to try it
    .venv/bin/python experiments/value-ablations/run.py --part batch-layer-norm
    .venv/bin/python experiments/value-ablations/run.py --part mapping
    .venv/bin/python experiments/value-ablations/run.py --part chain

batch     Obando-Ceron et al. 2023 (arXiv:2310.03882): smaller batches from replay are better, with as many updates
          as before. Here with quantiles and steps of 1 and 3; `batch-layer-norm` has LayerNorm in the network.
mapping   Fatemi and Tavakoli 2022 (arXiv:2203.07171): values learned through a logarithm, in channels by the sign of
          the reward, against plain ones.
chain     Vincent et al. 2024 (arXiv:2403.02107, i-QN): several Bellman iterations learned at once, with the same
          period of the target and of the window.

All arms of a part have the same settings but for the one. Seeds are members of one program.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from experiments import ablations
from jaxrl import values
from jaxrl.algorithms import dqn
from jaxrl.analysis.spans import span_returns
from jaxrl.networks.q_network import QNetworkConfig

HERE = Path(__file__).parent
TASKS = {"gymnax/CartPole-v1": 150_000, "gymnax/Acrobot-v1": 150_000, "gymnax/Breakout-MinAtar": 100_000}
PERIOD = 200
NETWORK = QNetworkConfig(hidden=(64, 64))
# name: (fields of the config, head, hyperparameters)
Arm = tuple[dict[str, Any], values.ValueHead, dict[str, float]]


def _batches(network: QNetworkConfig) -> dict[str, Arm]:
    return {
        f"batch {size}, n = {n}": ({"batch_size": size, "n_step": n, "network": network}, values.quantile(32), {})
        for n in (1, 3)
        for size in (8, 32, 128)
    }


PARTS: dict[str, dict[str, Arm]] = {
    "batch": _batches(NETWORK),
    "batch-layer-norm": _batches(dataclasses.replace(NETWORK, layer_norm=True)),
    "mapping": {
        "plain": ({}, values.scalar(), {}),
        "logarithm": ({}, values.mapped("log"), {}),
        "logarithm, then linear": ({}, values.mapped(), {}),
    },
    "chain": {
        "no chain": ({}, values.scalar(), {"target_period": PERIOD}),
        "2 links": ({"num_links": 2}, values.scalar(), {"target_period": PERIOD}),
        "4 links": ({"num_links": 4}, values.scalar(), {"target_period": PERIOD}),
    },
}


def curves(arm: Arm, task: str, total: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes that ended in each of the equal parts of training, [seeds, points]."""
    changes, head, rates = arm
    config = dqn.Config(
        num_envs=8,
        num_updates=2,
        num_rounds=25,
        **{"network": NETWORK, "batch_size": 32, "num_warmup_steps": 128, **changes},
    )
    agent = dqn.dqn(jaxrl.make_env(task), head=head, backup=values.double(), config=config)
    hparams = agent.hyperparams(learning_rate=5e-4, horizon=float(total), max_grad_norm=10.0, **rates)
    num_steps = max(1, total // agent.env_steps // ablations.NUM_SPANS) * ablations.NUM_SPANS
    train = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))
    _, metrics = train(jax.random.split(jax.random.key(0), num_seeds), hparams)
    return span_returns(metrics, ablations.NUM_SPANS)


if __name__ == "__main__":
    ablations.main(__doc__, HERE, PARTS, TASKS, curves, num_seeds=10, tiny=4_000, form=".1f")
