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
# # 7. Bring your own environment and your own network
#
# Both are arguments. An environment is a record of pure functions, whose numbers are data; a network is anything with
# `init` and `apply` that says what the policy and the value are. So a module of flax's linen, of nnx or of equinox
# serves.
#
# On two CPU cores this takes less than a minute. On a GPU what you bring is compiled with the rest, so it needs no change.

# %% tags=["parameters"]
num_seeds = 4
num_iterations = 80  # of 1024 environment steps each

# %%
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax import nnx, struct

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms.ppo import Config
from jaxrl.analysis.style import COLORS, tidy
from jaxrl.networks.actor_critic import Output
from jaxrl.ops import trees
from jaxrl.ops.distributions import Categorical
from jaxrl.types import EnvStep

# %% [markdown]
# ## An environment
#
# A point is pushed left or right in wind and should stay near a mark that jumps. `reset` and `step` are written for one
# environment; batches are a `vmap`. Three things to keep:
#
# - it never resets itself: `EnvStep.obs` is the true successor;
# - `terminated` is an end of the task and `truncated` a cut from outside; the wrapper `time_limit` does the second;
# - whatever may vary is in `params`, and all shapes and types stay what they are.


# %%
@struct.dataclass
class Params:
    wind: jax.Array
    force: jax.Array


@struct.dataclass
class PointState:
    position: jax.Array
    velocity: jax.Array
    mark: jax.Array


def observe(state):
    return jnp.stack([state.position, state.velocity, state.mark])


def reset(key, params):
    key_position, key_mark = jax.random.split(key)
    position = jax.random.uniform(key_position, minval=-1.0, maxval=1.0)
    state = PointState(position, jnp.zeros(()), jax.random.uniform(key_mark, minval=-1.0, maxval=1.0))
    return state, observe(state)


def step(key, state, action, params):
    key_jump, key_mark = jax.random.split(key)
    push = params.force * (action.astype(jnp.float32) - 1.0) + params.wind
    velocity = 0.9 * state.velocity + 0.1 * push
    mark = jnp.where(
        jax.random.bernoulli(key_jump, 0.05), jax.random.uniform(key_mark, minval=-1.0, maxval=1.0), state.mark
    )
    state = PointState(state.position + 0.1 * velocity, velocity, mark)
    return state, EnvStep(
        obs=observe(state),
        reward=1.0 - jnp.abs(state.position - state.mark),
        terminated=jnp.abs(state.position) > 2.0,
        truncated=jnp.zeros((), bool),
    )


point = jaxrl.Env(
    name="own/Point",
    reset=reset,
    step=step,
    default_params=lambda: Params(wind=jnp.float32(0.0), force=jnp.float32(1.0)),
    observation_space=spaces.box(-jnp.inf, jnp.inf, (3,)),
    action_space=spaces.Discrete(3),
)
point = jaxrl.wrappers.time_limit(point, 100)
point

# %% [markdown]
# Everything works with it as with the others. Its numbers are leaves, so each seed may have its own wind.

# %%
config = Config(num_envs=16, num_steps=64, schedule="constant")
agent = jaxrl.ppo(point, config=config)
winds = jnp.linspace(-0.5, 0.5, num_seeds)
windy = jax.vmap(lambda wind: trees.replace_leaf(agent.hyperparams(learning_rate=1e-3), "env.inner.wind", wind))(winds)
keys = jax.random.split(jax.random.key(0), num_seeds)


def curve_of(agent, hparams):
    """Mean return of the episodes that ended in each of eight stretches of training, [seeds, 8]."""
    _, metrics = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations)))(keys, hparams)
    cut = lambda name: metrics[name].reshape(num_seeds, 8, -1).sum(-1)
    return cut("episode/return_sum") / cut("episode/count")


curves = {"actor_critic (the default)": curve_of(agent, windy)}
curves["actor_critic (the default)"][:, -1].round(1)

# %% [markdown]
# ## A network of linen
#
# Called with observations of any leading axes (and what only a memory needs) it gives an `Output` and the memory `()`.
# Its attributes say that it is not recurrent, has no further outputs, and whose actions it gives. Here the two halves
# share a layer, and the network sees the distance to the mark.


# %%
class Shared(nn.Module):
    action_space: spaces.Space
    hidden: int = 64
    recurrent: bool = False
    heads: tuple[tuple[str, int], ...] = ()

    def initial_memory(self, batch_shape=()):
        return ()

    @nn.compact
    def __call__(self, obs, memory=(), start=None):
        seen = jnp.concatenate([obs, obs[..., 2:] - obs[..., :1]], -1)
        features = nn.silu(nn.Dense(self.hidden)(nn.silu(nn.Dense(self.hidden)(seen))))
        logits = nn.Dense(3, kernel_init=nn.initializers.orthogonal(0.01))(features)
        return Output(Categorical(logits), nn.Dense(1)(features)[..., 0], {}), ()


# %% [markdown]
# The hyperparameters do not depend on the network, so the same ones serve.

# %%
curves["linen, shared layers"] = curve_of(jaxrl.ppo(point, network=Shared(point.action_space), config=config), windy)

# %% [markdown]
# ## A network of nnx
#
# nnx modules hold their parameters. `split` takes them out, so that a frozen record of two functions makes a pair
# `init`, `apply` of any of them. The record is hashable, so equal ones find the same program.


# %%
class Plain(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(3, 64, rngs=rngs)
        self.policy = nnx.Linear(64, 3, rngs=rngs)
        self.value = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, obs):
        features = nnx.tanh(self.body(obs))
        return Output(Categorical(self.policy(features)), self.value(features)[..., 0], {})


@dataclasses.dataclass(frozen=True)
class FromNnx:
    make: Callable[[nnx.Rngs], nnx.Module]
    action_space: spaces.Space
    recurrent: bool = False
    heads: tuple[tuple[str, int], ...] = ()

    def initial_memory(self, batch_shape=()):
        return ()

    def init(self, key, obs):
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(params=key))))

    def apply(self, params, obs, memory=(), start=None):
        graph, state = nnx.split(nnx.eval_shape(lambda: self.make(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(obs), ()


curves["nnx, one layer"] = curve_of(jaxrl.ppo(point, network=FromNnx(Plain, point.action_space), config=config), windy)

# %% [markdown]
# ## A network of equinox
#
# Its modules are trees already: `partition` separates the arrays, which go into a dictionary, as flax has it. Equinox
# does not come with jaxrl (`pip install equinox`); without it this cell says so and does nothing.


# %%
@dataclasses.dataclass(frozen=True)
class FromEquinox:
    make: Callable[[jax.Array], Any]
    action_space: spaces.Space
    recurrent: bool = False
    heads: tuple[tuple[str, int], ...] = ()

    def initial_memory(self, batch_shape=()):
        return ()

    def init(self, key, obs):
        return {"params": eqx.filter(self.make(key), eqx.is_array)}

    def apply(self, params, obs, memory=(), start=None):
        _, rest = eqx.partition(
            eqx.filter_eval_shape(self.make, jax.random.key(0)), lambda leaf: hasattr(leaf, "shape")
        )
        logits, value = jnp.split(eqx.combine(params["params"], rest)(obs), [3], axis=-1)
        return Output(Categorical(logits), value[..., 0], {}), ()


def make_mlp(key):
    mlp = eqx.nn.MLP(3, 4, width_size=64, depth=1, activation=jax.nn.tanh, key=key)
    return Batched(mlp)


try:
    import equinox as eqx
except ImportError:
    print("equinox is not installed")
else:

    class Batched(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, obs):
            flat = jax.vmap(self.mlp)(obs.reshape(-1, obs.shape[-1]))
            return flat.reshape(*obs.shape[:-1], -1)

    curves["equinox, one layer"] = curve_of(
        jaxrl.ppo(point, network=FromEquinox(make_mlp, point.action_space), config=config), windy
    )

# %% [markdown]
# ## All of them

# %%
figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
steps = agent.env_steps * num_iterations // 8 * (1 + jnp.arange(8))
for (label, curve), color in zip(curves.items(), COLORS, strict=False):
    panel.plot(steps, curve.T, color=color, alpha=0.25, linewidth=0.8)
    panel.plot(steps, curve.mean(0), color=color, label=f"{label}: mean of {num_seeds} winds")
panel.set_xlabel("environment steps of each member")
panel.set_ylabel("undiscounted episode return")
panel.legend(frameon=False)
tidy(panel)

# %% [markdown]
# What a component of your own must keep is checked for algorithms by `jaxrl.testing.check_algorithm` (notebook 3): it
# runs your environment and your network too, so a leak of either shows there.
