"""Which of PPO's hyperparameters matter, on five tasks? One program a task.

    .venv/bin/python experiments/ppo-sensitivity/run.py   about 15 minutes on 2 cores; --tiny to see that it works

64 settings are drawn evenly (Sobol) from ranges around the literature's; the same settings and seeds meet every task.
"""

import argparse
import os
from pathlib import Path

import jax

TASKS = (
    "gymnax/CartPole-v1",
    "gymnax/Acrobot-v1",
    "gymnax/Catch-bsuite",
    "gymnax/Pendulum-v1",
    "gymnax/SpaceInvaders-MinAtar",
)


def main() -> None:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ppo-sensitivity"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--tiny", action="store_true", help="few steps of few members")
    arguments = parser.parse_args()
    # One device a core; see docs/sweeps.md.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

    import jaxrl
    from jaxrl.sweeps import log, uniform

    jaxrl.sweep(
        "ppo",
        TASKS[:2] if arguments.tiny else TASKS,
        {
            "learning_rate": log(1e-4, 1e-2),
            "gamma": uniform(0.9, 0.999),
            "gae_lambda": uniform(0.8, 1.0),
            "objective.clip": uniform(0.05, 0.4),
            "entropy_coef": log(1e-4, 1e-1),
            "value_coef": log(0.1, 2.0),
            "max_grad_norm": log(0.1, 10.0),
        },
        num_seeds=2 if arguments.tiny else arguments.seeds,
        num_samples=4 if arguments.tiny else arguments.samples,
        total_steps=2_048 if arguments.tiny else 100_000,
        fixed={
            "config.num_envs": 16,
            "config.num_steps": 64,
            "config.clip_value": False,
            # A CNN on 10 x 10 pixels costs a CPU far more than dense layers.
            "config.network.convolve": False,
        },
        folder=arguments.out,
        on_progress=lambda progress: print(
            f"{progress.batch.name}  {progress.env_steps:,}/{progress.total_env_steps:,} steps  "
            f"{progress.steps_per_second:,.0f} steps/s",
            flush=True,
        ),
    )
    print(f"`jaxrl report {arguments.out}` makes the page")


if __name__ == "__main__":
    main()
