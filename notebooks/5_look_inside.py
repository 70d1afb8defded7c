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
# # 5. Look inside
#
# What has been learned is a tree of arrays, so whatever one wants to see of it is a function of that tree: an episode
# as moving pictures, the value of each situation, what a value reacts to, how the members of a population differ.
#
# On two CPU cores this takes about two minutes, most of it for compiling. A GPU would allow larger populations and let
# the bodies at the end be trained first.

# %% tags=["parameters"]
num_seeds = 8
num_iterations = 120  # of 512 environment steps each
num_moments = 12  # looks at the population while it learns
num_grid_iterations = 150
bodies = ("brax/hopper", "mjx/HalfCheetah-v5")

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxrl
from jaxrl.algorithms.ppo import Config
from jaxrl.analysis.animation import animate, record, trajectory
from jaxrl.analysis.inspection import principal_components, saliency
from jaxrl.analysis.style import COLORMAP, COLORS
from jaxrl.envs import grids

# %% [markdown]
# ## A population, watched
#
# `advance` is a compiled segment; between segments the state is an ordinary tree. Here the policies of all seeds are
# asked what they would do in the same situations. The agent's network is that of `jaxrl.actor_critic` for the two
# spaces.

# %%
env = jaxrl.make_env("gymnax/CartPole-v1")
agent = jaxrl.ppo(env, config=Config(schedule="constant"))
net = jaxrl.actor_critic(env.observation_space, env.action_space)
population = jaxrl.population(agent, num_seeds)
hparams = agent.hyperparams(learning_rate=1e-3)

scale = np.array([2.0, 2.0, 0.2, 2.0])
situations = np.random.default_rng(9).uniform(-scale, scale, (128, 4)).astype(np.float32)
probabilities = jax.jit(jax.vmap(lambda params: jax.nn.softmax(net.apply(params, situations)[0].policy.logits)))

state = jax.jit(population.init)(jax.random.key(0), hparams)
behavior, returns = [probabilities(state.params)], []
for _ in range(num_moments):
    state, metrics = jaxrl.advance(population, state, hparams, num_iterations // num_moments)
    behavior.append(probabilities(state.params))
    returns.append(metrics["episode/return_sum"].sum(0) / metrics["episode/count"].sum(0))
returns = np.array(returns)
returns[-1].round(1)

# %% [markdown]
# ## An episode
#
# `record` is a pure function like `evaluate`, so it is jitted and mapped; `animate` draws on the host. The picture may
# be saved as `.gif` or `.png`.

# %%
best, worst = int(returns[-1].argmax()), int(returns[-1].argmin())
play = jax.jit(record(agent, num_steps=500))
member = lambda seed: jax.tree.map(lambda leaf: leaf[seed], state)
episodes = {seed: play(jax.random.key(1), member(seed), hparams.env) for seed in (best, worst)}
animate(env, episodes[worst], max_frames=100)

# %% [markdown]
# ## What the value function says
#
# The value by angle and angular velocity of the pole, at rest in the middle of the track. The lines are one
# episode of each: where it went, the value has been learned; elsewhere it is a guess.

# %%
angle, velocity = jnp.meshgrid(jnp.linspace(-0.2, 0.2, 60), jnp.linspace(-2.0, 2.0, 60))
corner = jnp.zeros_like(angle)
value = jax.jit(lambda params, obs: net.apply(params, obs)[0].value)
figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True, layout="constrained")
for panel, seed, title in zip(panels, (best, worst), ("best seed", "worst seed"), strict=True):
    surface = value(member(seed).params, jnp.stack([corner, corner, angle, velocity], -1))
    picture = panel.pcolormesh(angle, velocity, surface, cmap=COLORMAP)
    figure.colorbar(picture, ax=panel, label="value: discounted return to come")
    visited = trajectory(episodes[seed]).obs
    panel.plot(visited[:, 2], visited[:, 3], color=COLORS[1], linewidth=0.8, label="an episode")
    panel.set_title(title)
    panel.set_xlabel("angle of the pole, rad")
    panel.set_ylabel("angular velocity, rad/s")
panels[1].set(xlim=(-0.2, 0.2), ylim=(-2.0, 2.0))
_ = panels[1].legend(frameon=False, loc="upper right")

# %% [markdown]
# ## What it reacts to
#
# Saliency is the gradient with respect to the observation. Entries have different units, so each is given in multiples
# of its deviation over the situations above. Each mark is a seed.

# %%
reaction = jax.jit(jax.vmap(lambda params: jax.vmap(saliency(lambda obs: net.apply(params, obs)[0].value))(situations)))
share = np.asarray(reaction(state.params)).mean(1) * situations.std(0)
names = ("position", "velocity", "angle", "angular velocity")
figure, panel = plt.subplots(figsize=(7, 3.5), layout="constrained")
panel.plot(np.arange(4) + np.linspace(-0.15, 0.15, num_seeds)[:, None], share, "o", color=COLORS[0], alpha=0.5)
panel.plot(range(4), share.mean(0), "_", color=COLORS[1], markersize=24, markeredgewidth=2, label="mean of the seeds")
panel.set_xticks(range(4), names)
panel.set_ylabel("change of the value per deviation")
_ = panel.legend(frameon=False)

# %% [markdown]
# ## How the members differ
#
# Principal components of what the policies do, all seeds and moments together. Weights would say less: units of a
# network can be permuted without changing it. All begin at indifference, in one point, and the paths show whether seeds
# end at the same behavior.

# %%
rows = np.stack(behavior)  # [moments + 1, seeds, situations, actions]
components = principal_components(rows.reshape(-1, *rows.shape[2:]), 2)
paths = components.scores.reshape(*rows.shape[:2], 2)
figure, panel = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
panel.plot(paths[..., 0], paths[..., 1], color=COLORS[0], alpha=0.4, linewidth=0.8)
last = panel.scatter(*paths[-1].T, c=returns[-1], cmap=COLORMAP, zorder=3)
figure.colorbar(last, label="training return of the seed at the end")
first, second = components.share
panel.set_xlabel(f"first component ({first:.0%} of the variance)")
_ = panel.set_ylabel(f"second component ({second:.0%})")

# %% [markdown]
# ## A grid world, beside the truth
#
# In the grid worlds the best possible values are known by dynamic programming. Blue is the agent, green pays, orange
# costs.

# %%
world = grids.make("Dense", observe="maps")
walker = jaxrl.ppo(world, config=Config(num_envs=8, num_steps=64, schedule="constant"))
walk_hparams = walker.hyperparams(learning_rate=1e-3, entropy_coef=0.03)
walk_state, _ = jax.jit(jaxrl.train(walker, num_grid_iterations))(jax.random.key(2), walk_hparams)
level = walk_hparams.env
walk = jax.jit(record(walker, num_steps=60, sampled=True))(jax.random.key(3), walk_state, level)
animate(world, walk, level, frames_per_second=8, width=280)

# %% [markdown]
# The agent's values are discounted and those of the dynamic program are not, so compare their order and not their size.
# Both are for the moment in which all objects are there.

# %%
num_cells = level.wall.shape[0]
side = round(num_cells**0.5)
objects = jax.nn.one_hot(level.position, num_cells).ravel()
cells = jnp.concatenate([jnp.eye(num_cells), jnp.tile(objects, (num_cells, 1))], 1)
walk_net = jaxrl.actor_critic(world.observation_space, world.action_space)
learned = walk_net.apply(walk_state.params, cells)[0].value
best_values = jax.jit(grids.optimal_values)(level)[-num_cells:]
figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
titles = ("learned: discounted", "exact: undiscounted, all of an episode")
for panel, values, title in zip(panels, (learned, best_values), titles, strict=True):
    picture = panel.imshow(jnp.where(level.wall, jnp.nan, values).reshape(side, side), cmap=COLORMAP)
    figure.colorbar(picture, ax=panel, label="value")
    panel.set_title(title)
    panel.axis("off")
    for place, reward in zip(level.position, level.reward, strict=True):
        panel.plot(place % side, place // side, "o", color=COLORS[2] if reward > 0 else COLORS[1])

# %% [markdown]
# ## Bodies
#
# Brax and MJX, drawn from their coordinates by MuJoCo's kinematics: no graphics card is needed. The policy is fresh, so
# it falls; to see it run, train it first (on a CPU that takes hours).


# %%
def fall(name, renderer="flat"):
    body = jaxrl.make_env(name)
    mover = jaxrl.ppo(body)
    fresh = jax.jit(mover.init)(jax.random.key(4), mover.hyperparams())
    moves = jax.jit(record(mover, num_steps=60, sampled=True))(jax.random.key(5), fresh, mover.hyperparams().env)
    return animate(body, moves, frames_per_second=20, renderer=renderer)


fall(bodies[0]) if bodies else None

# %% [markdown]
# MuJoCo's own renderer has light and shadow, but needs OpenGL: start the notebook with `MUJOCO_GL=egl` in its
# environment and the second body is drawn by it.

# %%
fall(bodies[1], "mujoco" if "MUJOCO_GL" in os.environ else "flat") if bodies else None
