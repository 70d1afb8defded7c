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
# # 4. Change the objective, then learn it
#
# A policy objective is a record of two functions: `init` makes its coefficients, `loss` takes them and what a minibatch
# holds. The coefficients live in a leaf of the hyperparameters, so they can be swept, and so can the weights of a
# network in their place be found from outside, here by an evolution strategy.
#
# On two CPU cores this takes a bit over a minute. A GPU would take a larger population of candidates, each with more
# learners, in one generation.

# %% tags=["parameters"]
num_iterations = 40
num_candidates = 16
num_rounds = 8
num_seeds = 8

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxrl
from jaxrl import objectives, strategies
from jaxrl.algorithms.ppo import Config

env = jaxrl.make_env("gymnax/CartPole-v1")

# %% [markdown]
# ## One of your own
#
# PPO's clip is replaced by a bound that is smooth. `softness` is a leaf: four values of it train in one program.


# %%
def init(key):
    return {"softness": jnp.float32(1.0)}


def loss(params, inputs):
    log_ratio = inputs.log_prob - inputs.proximal_log_prob
    gain = params["softness"] * jnp.tanh(log_ratio * inputs.advantage / params["softness"])
    return -gain.mean(), {}


agent = jaxrl.ppo(env, objective=jaxrl.Objective(init, loss, name="soft"))
softness = jnp.array([0.01, 0.1, 1.0, 10.0])
hparams = jax.vmap(lambda value: agent.hyperparams(objective={"softness": value}))(softness)
keys = jax.random.split(jax.random.key(0), num_seeds)
train = jaxrl.train(agent, num_iterations)
_, metrics = jax.jit(jax.vmap(jax.vmap(train, (0, None)), (None, 0)))(keys, hparams)
last = {name: metrics[name][..., -num_iterations // 4 :].sum(-1) for name in ("episode/return_sum", "episode/count")}
returns = last["episode/return_sum"] / last["episode/count"]
{float(value): round(float(mean), 1) for value, mean in zip(softness, returns.mean(1), strict=True)}

# %% [markdown]
# ## A drift that is learned
#
# Mirror learning needs a *drift* that is never negative, and zero with zero slope where the policy has not moved. `lpo`
# is a network for which that holds whatever its weights are. `evolve` takes the agent and gives back an algorithm
# whose step is some generations: candidates for the weights, a fresh learner for each, fitness, a step of the mean.
#
# The inner loop has ten epochs at a high learning rate, where a drift is needed.

# %%
config = Config(num_envs=2, num_epochs=10, schedule="constant", clip_value=False)
learner = jaxrl.ppo(env, objective=objectives.lpo(), config=config)
search = strategies.open_es(num_candidates)
meta = jaxrl.evolve(
    learner, search, "objective", num_steps=num_iterations, num_held_out=num_seeds, fitness="training", chunk=8
)
meta_hparams = meta.hyperparams(learning_rate=1e-2, strategy=search.hyperparams(sigma=0.1, learning_rate=0.05))
state, history = jax.jit(jaxrl.train(meta, num_rounds))(jax.random.key(0), meta_hparams)

figure, panel = plt.subplots(figsize=(7, 4))
rounds = 1 + jnp.arange(num_rounds)
center, spread = history["held_out/fitness"], history["held_out/std"] / jnp.sqrt(num_seeds)
panel.plot(rounds, center, color="#0072B2", label=f"mean of the search, {num_seeds} held-out learners")
panel.fill_between(rounds, center - 2 * spread, center + 2 * spread, color="#0072B2", alpha=0.22, linewidth=0)
panel.plot(rounds, history["fitness/mean"], color="#D55E00", linestyle="--", label="mean of the candidates")
panel.set_xlabel("generation")
panel.set_ylabel("mean return in training")
panel.legend(frameon=False)

# %% [markdown]
# So few generations show the machinery, not a result: the band is two standard errors. `experiments/evolved-drift` is
# the same at a size that says something.
#
# ## What was found
#
# The drift and its derivative by the ratio, beside PPO's, with a check of the three rules on a grid.

# %%
import tempfile
from pathlib import Path

from jaxrl.analysis.drift_figures import plot_drifts
from jaxrl.ops import trees

weights = trees.replace_leaves(meta_hparams.inner, state.values).objective
ppo_clip = objectives.clip()
drifts = [("evolved", objectives.lpo(), weights), ("PPO", ppo_clip, ppo_clip.init(jax.random.key(0)))]
picture = Path(tempfile.mkdtemp()) / "drifts.png"
checks = plot_drifts(drifts, picture)
checks

# %%
plt.figure(figsize=(9, 6))
plt.imshow(plt.imread(picture))
plt.axis("off")

# %% [markdown]
# ## A rule in a file
#
# A rule and its weights are one small file, which says what it is. One line of Python reads it again, and so do `jaxrl
# train ppo … --objective FILE`, `jaxrl meta-test` and `jaxrl plot`.

# %%
path = jaxrl.save_rule(picture.with_name("drift.npz"), jaxrl.RuleSpec("lpo"), weights)
drift, found = jaxrl.load_rule(path)
learner = jaxrl.ppo(env, objective=drift, config=config)
hparams = learner.hyperparams(objective=found, learning_rate=1e-2)
_, metrics = jax.jit(jaxrl.train(learner, num_iterations))(jax.random.key(1), hparams)
path.stat().st_size, float(metrics["episode/return_sum"].sum() / metrics["episode/count"].sum())
