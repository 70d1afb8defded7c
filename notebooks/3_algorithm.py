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

# %%

# %% [markdown]
# # 3. Write an algorithm, and check its laws
#
# An algorithm is a record of pure functions. Here is a small one, actor-critic with generalized advantages, written from
# the pieces that the library's own are written from: `rollout` steps the environments, `ops.returns` has the
# estimators, networks are flax modules. Then `check_algorithm` says whether it keeps the laws that make it vmap, save,
# resume and sweep.
#
# On two CPU cores this takes about half a minute. The same cells run on a GPU, with room for more seeds.

# %% tags=["parameters"]
num_seeds = 8
num_iterations = 400

# %%
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import struct

import jaxrl
from jaxrl import rollout
from jaxrl.ops import returns, trees
from jaxrl.testing import LawError, check_algorithm
from jaxrl.types import memoize

# %% [markdown]
# ## Three records
#
# `Config` is what fixes shapes. `Hyperparams` is data. `State` is all that a step changes.


# %%
@dataclasses.dataclass(frozen=True)
class Config:
    num_envs: int = 16
    num_steps: int = 32
    hidden: int = 32


@struct.dataclass
class Hyperparams:
    env: Any
    learning_rate: jax.Array
    gamma: jax.Array
    gae_lambda: jax.Array
    entropy_coef: jax.Array


@struct.dataclass
class State:
    key: jax.Array
    params: Any
    opt_state: Any
    actor: rollout.ActorState


class Network(nn.Module):
    num_actions: int
    hidden: int

    @nn.compact
    def __call__(self, obs):
        policy, value = (nn.tanh(nn.Dense(self.hidden)(obs)) for _ in range(2))
        return nn.Dense(self.num_actions)(policy), nn.Dense(1)(value)[..., 0]


# %% [markdown]
# ## The algorithm
#
# `init` is the only place where a key enters; `step` splits the one in the state. The optimizer is made anew from the
# hyperparameters in each step, so that a learning rate can be mapped: only its state is kept. `EnvStep.obs` is the true
# successor, so a truncated episode is bootstrapped from where it really was.


# %%
@memoize
def actor_critic(env, config=Config()):
    net = Network(env.action_space.n, config.hidden)
    reset = rollout.Reset("fresh", 0)

    def hyperparams(**changes):
        default = Hyperparams(env.default_params(), learning_rate=3e-3, gamma=0.99, gae_lambda=0.95, entropy_coef=0.01)
        return trees.with_changes(trees.as_arrays(default), changes, {})

    def optimizer(hparams):
        return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(hparams.learning_rate))

    def init(key, hparams):
        key, key_params, key_actor = jax.random.split(key, 3)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, (), reset)
        params = net.init(key_params, actor.obs)
        return State(key, params, optimizer(hparams).init(params), actor)

    def step(state, hparams):
        key, key_env, key_policy = jax.random.split(state.key, 3)

        # --- Collect -----------------------------------------------------------------------------------------------
        def policy(key, obs, memory, start):
            action = jax.random.categorical(key, net.apply(state.params, obs)[0])
            return action, action, memory, ()

        keys = jax.random.split(key_policy, config.num_steps)
        actor, batch, metrics = rollout.collect(key_env, env, hparams.env, state.actor, policy, keys, reset)

        # --- Estimate ----------------------------------------------------------------------------------------------
        value, next_value = (net.apply(state.params, obs)[1] for obs in (batch.obs, batch.next_obs))
        advantage = returns.gae(
            batch.reward, value, next_value, batch.terminated, batch.truncated, hparams.gamma, hparams.gae_lambda
        )

        # --- Update ------------------------------------------------------------------------------------------------
        def loss(params):
            logits, prediction = net.apply(params, batch.obs)
            log_probs = jax.nn.log_softmax(logits)
            taken = jnp.take_along_axis(log_probs, batch.action[..., None], -1)[..., 0]
            entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1).mean()
            error = jnp.square(prediction - (advantage + value)).mean()
            return -(taken * advantage).mean() + 0.5 * error - hparams.entropy_coef * entropy

        value_of_loss, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer(hparams).update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return State(key, params, opt_state, actor), metrics | {"loss/total": value_of_loss}

    def act(state, memory, obs, key):
        logits = net.apply(state.params, obs)[0]
        return jnp.argmax(logits) if key is None else jax.random.categorical(key, logits), memory

    env_steps = config.num_envs * config.num_steps
    return jaxrl.Algorithm(
        init, step, act, hyperparams, env_steps=env_steps, name="actor_critic", env=env, config=config
    )


# %% [markdown]
# ## Its laws
#
# Three programs are compiled for this. `inert` names what need not matter: some of gymnax's parameters do nothing.

# %%
env = jaxrl.make_env("gymnax/CartPole-v1")
small = actor_critic(env, Config(num_envs=4, num_steps=32, hidden=8))
try:
    check_algorithm(small, inert=("env",))
    print("all laws hold")
except LawError as error:
    print(error)

# %% [markdown]
# What is wrong is named. Here the key is used twice, and a time limit's phase is decided by a conditional:


# %%
def careless_step(state, hparams):
    after, metrics = small.step(state, hparams)
    noise = jax.random.normal(state.key, ())  # `step` has split this key already
    params = jax.lax.cond(noise > 3, lambda p: jax.tree.map(jnp.zeros_like, p), lambda p: p, after.params)
    return after.replace(params=params), metrics


try:
    check_algorithm(small._replace(step=careless_step))
except LawError as error:
    print(error)

# %% [markdown]
# ## It learns like any other
#
# Seeds are a `vmap`; `jaxrl.population`, `jaxrl.pbt`, `jaxrl.evolve`, `jaxrl.sweep` and `fit` take it as they take PPO.

# %%
agent = actor_critic(env)
train = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations), in_axes=(0, None)))
states, metrics = train(jax.random.split(jax.random.key(0), num_seeds), agent.hyperparams())

window = max(num_iterations // 20, 1)
total = {
    name: metrics[name][:, : num_iterations // window * window].reshape(num_seeds, -1, window).sum(-1)
    for name in ("episode/return_sum", "episode/count")
}
curve = total["episode/return_sum"] / total["episode/count"]
steps = agent.env_steps * window * (1 + jnp.arange(curve.shape[1]))
figure, panel = plt.subplots(figsize=(7, 4))
panel.plot(steps, curve.T, color="#0072B2", alpha=0.3, linewidth=0.8)
panel.plot(steps, curve.mean(0), color="#0072B2", label=f"mean of {num_seeds} seeds; thin: each seed")
panel.set_xlabel("environment steps of each seed")
panel.set_ylabel("undiscounted episode return")
panel.legend(frameon=False)
