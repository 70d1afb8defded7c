"""Two claims on the critics of off-policy control, each an argument of SAC or TD3: CrossQ and the annealed operator.

    .venv/bin/python experiments/control-ablations/run.py --part crossq      --tiny to try it
    .venv/bin/python experiments/control-ablations/run.py --part annealed

crossq     Bhatt et al. 2024 (arXiv:1902.05605): critics with batch normalization need no target network, and at one
           update a step learn from as few steps as REDQ and DroQ do at twenty. Beside it each of its parts alone.
annealed   Omura et al. 2025 (arXiv:2506.05968): targets that begin near the greatest value of all actions and end at
           the policy's own learn faster, whatever the beginning.

All arms of a part have the same sizes and seeds; an arm differs by what its row in PARTS says.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from experiments import ablations
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.analysis.spans import span_returns

HERE = Path(__file__).parent
TASKS = {"gymnax/Pendulum-v1": 8_000, "brax/inverted_double_pendulum": 15_000}
NUM_ROUNDS = 120
SIZES: dict[str, Any] = {"num_rounds": NUM_ROUNDS, "batch_size": 128, "capacity": 65_536}
HIDDEN, WIDE = (64, 64), (256, 256)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A registered algorithm with what is changed in it.

    Attributes:
      algorithm: as `jaxrl list algorithms` has it.
      config: changed fields of the config.
      network: changed fields of its network.
      hparams: changed hyperparameters.
      tasks: where it is run; others would take too long.
    """

    algorithm: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    hparams: dict[str, float] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(TASKS)


PARTS: dict[str, dict[str, Arm]] = {
    "crossq": {
        "SAC": Arm("sac"),
        "SAC, CrossQ's optimizer": Arm("crossq", {"target": True}, {"norm": "none"}),
        "CrossQ without normalization": Arm("crossq", network={"norm": "none"}),
        "CrossQ": Arm("crossq"),
        "CrossQ, wide critics": Arm("crossq", network={"critic_hidden": WIDE}),
        "DroQ, 20 updates a step": Arm("droq", tasks=("gymnax/Pendulum-v1",)),
    },
    "annealed": {
        "SAC": Arm("sac"),
        "annealed SAC, 0.7": Arm("annealed_sac", hparams={"expectile": 0.7}),
        "annealed SAC, 0.9": Arm("annealed_sac", hparams={"expectile": 0.9}),
        "annealed SAC, 0.97": Arm("annealed_sac", hparams={"expectile": 0.97}),
        "TD3": Arm("td3"),
        "annealed TD3, 0.9": Arm("annealed_td3", hparams={"expectile": 0.9}),
    },
}


def build(arm: Arm, task: str) -> jaxrl.Algorithm:
    """The agent of an arm, all layers of one width but where the arm says otherwise."""
    default = ALGORITHMS[arm.algorithm].default_config.network
    network = dataclasses.replace(default, **{"hidden": HIDDEN, "critic_hidden": HIDDEN, **arm.network})
    return jaxrl.make(arm.algorithm, jaxrl.make_env(task), network=network, **{**SIZES, **arm.config})


def curves(arm: Arm, task: str, num_steps: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes that ended in each span of training, [seeds, spans]."""
    agent = build(arm, task)
    iterations = max(2, num_steps // agent.env_steps)
    rates = {f"{part}_learning_rate": 1e-3 for part in ("policy", "critic", "temperature")}
    known = {field.name for field in dataclasses.fields(agent.hyperparams())}
    given = {**rates, "horizon": float(iterations * agent.env_steps), **arm.hparams}
    hparams = agent.hyperparams(**{name: value for name, value in given.items() if name in known})

    def one(key: jax.Array) -> dict[str, jax.Array]:
        _, metrics = jaxrl.train(agent, iterations)(key, hparams)
        return {name: metrics[name] for name in ("episode/return_sum", "episode/count")}

    metrics = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), num_seeds))
    return span_returns(metrics, ablations.NUM_SPANS)


if __name__ == "__main__":
    runs_on = lambda arm, task: task in arm.tasks
    ablations.main(__doc__, HERE, PARTS, TASKS, curves, num_seeds=5, tiny=240, form=".0f", runs_on=runs_on)
