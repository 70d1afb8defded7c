"""Does a dataset help an on-policy method where exploring alone finds nothing?

    .venv/bin/python experiments/hybrid-policy-gradient/run.py    --tiny to try it

Zhou et al. 2023 (arXiv:2311.08384, HNPG, figure 2): on combination locks with continuous actions, a natural policy
gradient whose critic and whose step also look at a dataset finds the code; TRPO alone does not. The dataset is theirs:
NUM_EPISODES episodes of the code with an action drawn at random with probability 1/H, so that about a third end well.
The smaller sizes are this script's: horizons, and one network for all time steps instead of one for each.

arms    hnpg           with the dataset
        hnpg alone     without it: the same on-policy method
        trpo           of this framework with its defaults: a value function instead of a critic of actions, advantages
                       standardized
        rewards of 0   hnpg whose dataset pays nothing, to see whether it matters what it tells of rewards
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from experiments import ablations
from jaxrl import datasets
from jaxrl.buffers import BufferState, Experience
from jaxrl.envs import locks

HERE = Path(__file__).parent
TASKS = {"horizon 5": 150_000, "horizon 10": 300_000}
NUM_EPISODES = 50_000
SIZES = {"num_envs": 16, "num_steps": 64}
PARTS: dict[str, dict[str, Any]] = {
    "locks": {
        "hnpg": ("hnpg", "dataset"),
        "hnpg alone": ("hnpg", None),
        "hnpg, rewards of 0": ("hnpg", "unpaid"),
        "trpo": ("trpo", None),
    }
}


def lock(task: str) -> Any:
    """The environment of a task."""
    return jaxrl.make_env("locks/Continuous", horizon=int(task.split()[1]))


@functools.cache
def collected(task: str) -> BufferState:
    """Episodes of the right action, at each step with probability 1/H one drawn uniformly; prints how many end well."""
    env = lock(task)
    params, num_actions = env.default_params(), env.action_space.shape[0]
    horizon = env.max_episode_steps

    def episode(key: jax.Array) -> Experience:
        def step(carry: Any, key: jax.Array) -> tuple[Any, Experience]:
            state, obs = carry
            key_choice, key_action, key_step = jax.random.split(key, 3)
            right = jax.nn.one_hot(locks.right_action(params, state), num_actions)
            action = jax.random.uniform(key_action, (num_actions,))
            action = jnp.where(jax.random.bernoulli(key_choice, 1.0 / horizon), action, right)
            after, told = env.step(key_step, state, action, params)
            # As agents have actions: between -1 and 1.
            row = Experience(obs, 2.0 * action - 1.0, told.reward, told.terminated, told.truncated, told.obs)
            return (after, told.obs), row

        key_reset, key_steps = jax.random.split(key)
        return jax.lax.scan(step, env.reset(key_reset, params), jax.random.split(key_steps, horizon))[1]

    rows = jax.jit(jax.vmap(episode, out_axes=1))(jax.random.split(jax.random.key(3), NUM_EPISODES))
    share = float(jnp.mean(rows.reward[-1] == 1.0))
    print(f"{task}: {share:.3f} of the dataset's episodes end well", flush=True)
    return datasets.dataset(rows)


def curves(arm: tuple[str, str | None], task: str, num_steps: int, num_seeds: int) -> np.ndarray:
    """Mean return of the episodes of each of equal parts of training, [seeds, spans]."""
    name, data = arm
    agent = jaxrl.make(name, lock(task), **SIZES, **({"hybrid": True} if data else {}))
    hparams = agent.hyperparams(gamma=1.0, gae_lambda=0.97)
    if data:
        replay = collected(task)
        if data == "unpaid":
            items = dataclasses.replace(replay.items, reward=jnp.zeros_like(replay.items.reward))
            replay = dataclasses.replace(replay, items=items)
        hparams = hparams.replace(replay=replay)
    length = num_steps // agent.env_steps // ablations.NUM_SPANS * ablations.NUM_SPANS
    keys = jax.random.split(jax.random.key(2), num_seeds)
    _, metrics = jax.jit(jax.vmap(jaxrl.train(agent, length), (0, None)))(keys, hparams)
    sums, counts = (
        np.asarray(metrics[f"episode/{x}"]).reshape(num_seeds, ablations.NUM_SPANS, -1).sum(-1)
        for x in ("return_sum", "count")
    )
    return sums / counts


if __name__ == "__main__":
    ablations.main(__doc__, HERE, PARTS, TASKS, curves, num_seeds=5, tiny=20 * 1024, form=".3f")
