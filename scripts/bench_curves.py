"""Suite curves: learning curves of PPO, one row a seed; no time is measured."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from bench_shared import BREAKOUT, CARTPOLE, Case, Row, build

import jaxrl

ACROBOT = {**CARTPOLE, "env": "gymnax/Acrobot-v1"}
NUM_SLICES = 50


def measure(only: str) -> Iterator[Row]:
    """One row a seed: the return of evaluation episodes at the end, and of the episodes that ended in each slice."""
    for settings, total_steps in ((CARTPOLE, 500_000), (ACROBOT, 500_000), (BREAKOUT, 1_000_000)):
        case = Case(num_seeds=10, total_steps=total_steps, **settings)
        if only not in case.name:
            continue
        agent, hparams, num_steps = build(case)
        keys = jax.random.split(jax.random.key(0), case.num_seeds)
        states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
        ends = [round(i * num_steps / NUM_SLICES) for i in range(NUM_SLICES + 1)]
        total, count = (
            jnp.stack([metrics[f"episode/{name}"][:, a:b].sum(1) for a, b in itertools.pairwise(ends)], 1)
            for name in ("return_sum", "count")
        )
        final = {}
        for sampled in (True, False):
            play = jax.vmap(jaxrl.evaluate(agent, 32, sampled=sampled), (0, 0, None))
            episodes = jax.jit(play)(jax.random.split(jax.random.key(1), case.num_seeds), states, hparams.env)
            final["sampled" if sampled else "greedy"] = episodes.mean_return
        for seed in range(case.num_seeds):
            yield {
                "case": case.name.strip(),
                "seed": seed,
                "steps": num_steps * agent.env_steps,
                **{f"final_{name}": round(float(values[seed]), 3) for name, values in final.items()},
                **{f"slice_{i}": round(float(total[seed, i] / count[seed, i]), 3) for i in range(NUM_SLICES)},
            }
