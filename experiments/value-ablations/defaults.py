"""What DQN's first transitions and the clipping of gradients do on CartPole, for docs/value-based.md.

    .venv/bin/python experiments/value-ablations/defaults.py      --tiny to try it

Arms: the defaults, the sizes of purejaxrl's DQN, an eighth of the defaults' random transitions, and that with gradients
clipped to a global norm of 10 (the defaults before). Seeds are members of one program.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from experiments import ablations
from jaxrl.algorithms import dqn
from jaxrl.analysis.spans import span_returns

HERE = Path(__file__).parent
TASKS = {"gymnax/CartPole-v1": 500_000}
# name: (fields of the config, hyperparameters)
Arm = tuple[dict[str, Any], dict[str, float]]
PARTS: dict[str, dict[str, Arm]] = {
    "defaults": {
        "defaults": ({}, {}),
        "purejaxrl's sizes": ({"num_envs": 10, "capacity": 10_000, "num_warmup_steps": 1_000}, {}),
        "1,024 random transitions": ({"num_warmup_steps": 128}, {}),
        "1,024, clipped": ({"num_warmup_steps": 128}, {"max_grad_norm": 10.0}),
    }
}


def curves(arm: Arm, task: str, total: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes that ended in each of the equal parts of training, [seeds, points]."""
    changes, coefficients = arm
    agent = dqn.dqn(jaxrl.make_env(task), config=dqn.Config(**changes))
    num_steps = max(1, total // agent.env_steps // ablations.NUM_SPANS) * ablations.NUM_SPANS
    hparams = agent.hyperparams(horizon=float(total), **coefficients)
    train = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))
    _, metrics = train(jax.random.split(jax.random.key(0), num_seeds), hparams)
    return span_returns(metrics, ablations.NUM_SPANS)


if __name__ == "__main__":
    ablations.main(__doc__, HERE, PARTS, TASKS, curves, num_seeds=10, tiny=16_000, form=".1f")
