"""Suite discovery: generations of LPG by evolution strategies on grids/Small."""

from collections.abc import Iterator

import jax
from bench_shared import Row, timed

import jaxrl
from jaxrl import strategies
from jaxrl.algorithms import lpg
from jaxrl.envs import grids
from jaxrl.meta.layout import choose_layout
from jaxrl.objectives import rules

TABLE = lpg.Config(num_envs=64, num_steps=20, tabular=True, optimizer="sgd")


def measure(
    only: str,
    repeats: int,
    num_candidates: int = 32,
    num_generations: int = 2,
    num_updates: int = 50,
    config: lpg.Config = TABLE,
    widths: tuple[int, ...] = (256, 32),
) -> Iterator[Row]:
    """One row a size of the learned rule: each candidate teaches a table for a whole life.

    One held-out learner of each program is in the seconds and not in the steps.
    """
    for hidden in widths:
        name = f"lpg es grids/Small gru {hidden}"
        if only not in name:
            continue
        agent = lpg.lpg(grids.make("Small"), rules.lpg(hidden=hidden, num_bins=8, core="gru"), config)
        hparams = agent.hyperparams()
        devices, chunk = choose_layout(agent, hparams, num_candidates)
        search = strategies.open_es(num_candidates, strategies.pairwise)
        outer = jaxrl.evolve(
            agent,
            search,
            num_steps=num_updates,
            num_generations=num_generations,
            num_held_out=devices,
            num_episodes=config.num_envs,
            sampled=True,
            common_keys="pairs",
            tasks=grids.levels("Small"),
            num_devices=devices,
            chunk=chunk,
        )
        hparams = outer.hyperparams(
            learning_rate=40.0,
            prediction_learning_rate=4.0,
            strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999),
        )
        timing = timed(jaxrl.train(outer, 1), (jax.random.key(0), hparams), repeats)
        steps = num_generations * num_candidates * num_updates * agent.env_steps
        yield {
            "case": name,
            "num_seeds": num_candidates,
            "num_devices": devices,
            "chunk": chunk,
            "steps_per_generation": steps // num_generations,
            "compile_seconds": round(timing.compile_seconds, 2),
            "run_seconds": round(timing.seconds, 3),
            "steps_per_second": round(steps / timing.seconds),
            "program_bytes": timing.program_bytes,
        }
