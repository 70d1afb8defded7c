# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. A first run, and what is in the state
#
# A population of PPO agents learns CartPole in one compiled program. Then we look at what such a program takes and
# gives: hyperparameters, state and metrics are trees of arrays, and nothing is hidden anywhere else.
#
# On two CPU cores this takes about half a minute. The same cells run on a GPU unchanged, with room for more seeds.

# %% tags=["parameters"]
num_seeds = 8
num_iterations = 150  # of 512 environment steps each

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.ops import trees

# %% [markdown]
# An environment and an algorithm are records of pure functions. The algorithm's `config` fixes shapes and structure;
# another value is another program.

# %%
env = jaxrl.make_env("gymnax/CartPole-v1")
agent = jaxrl.ppo(env)
agent

# %% [markdown]
# ## Hyperparameters are data
#
# Whatever may vary without compiling again is a leaf of one record: rates, coefficients of the objective, parameters of
# the environment.

# %%
hparams = agent.hyperparams(learning_rate=1e-3)
{name: float(leaf) for name, leaf in trees.named_leaves(hparams).items() if leaf.ndim == 0}

# %% [markdown]
# ## Training is a function
#
# `train` gives a pure function of a key and the hyperparameters. `vmap` over keys is a population.

# %%
train = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations), in_axes=(0, None)))
keys = jax.random.split(jax.random.key(0), num_seeds)
states, metrics = train(keys, hparams)
jax.tree.map(jnp.shape, metrics)

# %% [markdown]
# Metrics are sums and counts, so that episodes which are not finished never enter a mean.

# %%
window = max(num_iterations // 15, 1)
smooth = lambda x: x[:, : num_iterations // window * window].reshape(num_seeds, -1, window).sum(-1)
returns = smooth(metrics["episode/return_sum"]) / smooth(metrics["episode/count"])
steps = agent.env_steps * window * (1 + jnp.arange(returns.shape[1]))

figure, panel = plt.subplots(figsize=(7, 4))
panel.plot(steps, returns.T, color="#0072B2", alpha=0.3, linewidth=0.8)
panel.plot(steps, returns.mean(0), color="#0072B2", label=f"mean of {num_seeds} seeds; thin: each seed")
panel.set_xlabel("environment steps of each seed")
panel.set_ylabel("undiscounted episode return")
panel.legend(frameon=False)

# %% [markdown]
# ## What is in the state
#
# All that a step changes: parameters, the optimizer's moments, the environments in progress, the key that every later
# draw comes from. Saving this tree saves the run. The first axis is the seed.

# %%
{name: (leaf.shape, str(leaf.dtype)) for name, leaf in trees.named_leaves(states).items()}

# %% [markdown]
# ## Evaluation
#
# It has a key of its own, takes the mode of the policy, and counts finished episodes only.

# %%
evaluate = jax.jit(jax.vmap(jaxrl.evaluate(agent, num_episodes=16), in_axes=(0, 0, None)))
episodes = evaluate(jax.random.split(jax.random.key(1), num_seeds), states, hparams.env)
episodes.mean_return

# %% [markdown]
# ## Watching it
#
# `fit` is the loop of the host: it compiles a segment, runs it again and again, and looks at the metrics in between.
# `LiveCurve` draws then; nothing is called from inside of the program. With `run=` it would write a folder that
# `jaxrl resume` continues, bit for bit.

# %%
from jaxrl.analysis.live import LiveCurve
from jaxrl.fit import fit

population = jaxrl.population(agent, num_seeds)
result = fit(
    population,
    population.hyperparams(learning_rate=1e-3),
    seed=1,
    num_seeds=num_seeds,
    total_iterations=num_iterations,
    segment=max(num_iterations // 10, 1),
    on_segment=LiveCurve("PPO on CartPole"),
)
result.iteration
