"""Do larger batches help an ensemble that learns offline?

    .venv/bin/python experiments/offline-batch-size/run.py    --tiny to try it

Nikulin et al. 2022 (arXiv:2211.11092, LB-SAC): SAC with an ensemble of critics, learned from a dataset, gets along with
a smaller ensemble and less time where its batches are large and its rates grow with the root of the batch's size.
The opposite of what Obando-Ceron et al. 2023 find online (experiments/value-ablations, part batch).

Two datasets of Pendulum, both made by one online SAC, which the script trains first:

replay    the last 8,192 transitions of its training, all but the 256 first
narrow    as many of its policy afterwards, with sampled actions

All seeds learn from the same datasets, for as many updates. SAC's policy climbs the least critic of all, as in SAC-N.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from experiments import ablations
from jaxrl import datasets
from jaxrl.algorithms import sac
from jaxrl.buffers import BufferState
from jaxrl.networks.control import ControlConfig

HERE = Path(__file__).parent
TASKS = {"Pendulum/replay": 8_000, "Pendulum/narrow": 8_000}
NUM_TRANSITIONS = 8_192
RATE, BATCH = 3e-4, 256
"""A batch of this size has this rate."""
PARTS: dict[str, dict[str, tuple[int, int, float]]] = {
    "batch": {
        # critics, batch, rate
        **{
            f"{num} critics, batch {size}": (num, size, RATE * (size / BATCH) ** 0.5)
            for num in (2, 6)
            for size in (32, 128, 512)
        },
        "2 critics, batch 512, rate of 128": (2, 512, RATE * (128 / BATCH) ** 0.5),
        "2 critics, batch 32, rate of 512": (2, 32, RATE * (512 / BATCH) ** 0.5),
    }
}
HIDDEN = (64, 64)


def rates(rate: float) -> dict[str, float]:
    """One learning rate for all parts of SAC."""
    return {f"{part}_learning_rate": rate for part in ("policy", "critic", "temperature")}


@functools.cache
def collected() -> dict[str, BufferState]:
    """The datasets by names; prints the greedy return of the policy that ended both."""
    config = sac.Config(
        num_rounds=128,
        batch_size=128,
        capacity=NUM_TRANSITIONS,
        num_warmup_steps=256,
        network=ControlConfig(hidden=HIDDEN),
    )
    agent = sac.sac(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
    learning, still = (agent.hyperparams(**rates(rate)) for rate in (1e-3, 0.0))
    num_steps = NUM_TRANSITIONS // agent.env_steps
    state, _ = jaxrl.advance(agent, agent.init(jax.random.key(0), learning), learning, num_steps)
    replay = datasets.dataset(state.buffer)
    told = jax.jit(jaxrl.evaluate(agent, 64))(jax.random.key(1), state, learning.env)
    print(f"greedy return of the policy that the datasets end with: {float(told.mean_return):.1f}", flush=True)
    # With rates of 0 the policy stays, and after a whole ring of it the buffer holds nothing else.
    state, _ = jaxrl.advance(agent, state, still, num_steps)
    return {"Pendulum/replay": replay, "Pendulum/narrow": datasets.dataset(state.buffer)}


def curves(arm: tuple[int, int, float], task: str, num_updates: int, num_seeds: int) -> np.ndarray:
    """Mean return of 16 greedy episodes after each of equal parts of the updates, [seeds, points]."""
    num_critics, batch_size, rate = arm
    config = sac.Config(
        offline=True,
        num_rounds=num_updates // ablations.NUM_SPANS,
        batch_size=batch_size,
        network=ControlConfig(hidden=HIDDEN, num_critics=num_critics),
    )
    agent = sac.sac(jaxrl.make_env("gymnax/Pendulum-v1"), config=config)
    hparams = agent.hyperparams(replay=collected()[task], **rates(rate))
    play = jaxrl.evaluate(agent, 16)

    def learn(key: jax.Array) -> jax.Array:
        def look(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = agent.step(state, hparams)[0]
            return state, play(key_play, state, hparams.env).mean_return

        key_init, key_play = jax.random.split(key)
        return jax.lax.scan(look, agent.init(key_init, hparams), None, length=ablations.NUM_SPANS)[1]

    return np.asarray(jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(2), num_seeds)))


if __name__ == "__main__":
    labels = ("updates", "greedy return over training")
    ablations.main(__doc__, HERE, PARTS, TASKS, curves, num_seeds=5, tiny=200, form=".0f", labels=labels)
