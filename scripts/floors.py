"""What the gradient steps of DQN and SAC cost by themselves: no environment, no replay, no exploration.

    scripts/floors.py                  on all cores, as JAX uses them

A training loop of one learner that takes as many gradient steps on such networks can hardly be faster on the same
machine and version of JAX, so the figures tell how much a faster loop could gain. DQN: 120-84-2 with ReLU, batches of
128, one step for ten environment steps, as purejaxrl's `dqn.py`. SAC: two critics and a policy of 64-64 with ReLU,
batches of 256, one step for an environment step. Adam; the batches are there before.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from bench_shared import clocked
from jax import random

NUM_STEPS, NUM_BATCHES, REPEATS = 1000, 16, 5
Update = Callable[[Any, Any], Any]


class MLP(nn.Module):
    """A stack of dense layers with ReLU between them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


def outputs(network: nn.Module, params: Any, x: Any) -> Any:
    """Of a network without mutable state."""
    return network.apply(params, x)


def dqn(key: Any) -> tuple[Any, Any, Update]:
    """A learner, its batches [NUM_BATCHES, 128, ...], and one update."""
    network, optimizer = MLP((120, 84, 2)), optax.adam(2.5e-4)
    params = network.init(key, jnp.zeros((1, 4)))
    obs, following = random.normal(key, (2, NUM_BATCHES, 128, 4))
    action = random.randint(key, (NUM_BATCHES, 128), 0, 2)

    def update(carry: Any, batch: Any) -> Any:
        params, target, opt_state = carry
        obs, following, action = batch
        wanted = 1.0 + 0.99 * jnp.max(outputs(network, target, following), axis=-1)

        def loss(params: Any) -> Any:
            chosen = jnp.take_along_axis(outputs(network, params, obs), action[:, None], 1)
            return jnp.mean(jnp.square(chosen[:, 0] - wanted))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), target, opt_state

    return (params, jax.tree.map(jnp.copy, params), optimizer.init(params)), (obs, following, action), update


def sac(key: Any) -> tuple[Any, Any, Update]:
    """A learner, its batches [NUM_BATCHES, 256, ...], and one update; noise is among the batches."""
    actor, critic, optimizer = MLP((64, 64, 2)), MLP((64, 64, 1)), optax.adam(3e-4)
    actor_params = actor.init(key, jnp.zeros((1, 3)))
    critic_params = jax.vmap(lambda key: critic.init(key, jnp.zeros((1, 4))))(random.split(key))
    obs, following = random.normal(key, (2, NUM_BATCHES, 256, 3))
    action, noise, noise_next = random.normal(key, (3, NUM_BATCHES, 256, 1))

    def sample(params: Any, obs: Any, noise: Any) -> tuple[Any, Any]:
        mean, log_std = jnp.split(outputs(actor, params, obs), 2, axis=-1)
        log_std = jnp.clip(log_std, -20.0, 2.0)
        raw = mean + jnp.exp(log_std) * noise
        log_prob = -0.5 * jnp.square(noise) - log_std - 0.9189385 - 2.0 * (0.6931472 - raw - nn.softplus(-2.0 * raw))
        return jnp.tanh(raw), jnp.sum(log_prob, axis=-1)

    def values(params: Any, obs: Any, action: Any) -> Any:
        joint = jnp.concatenate([obs, action], axis=-1)
        return jax.vmap(lambda params: outputs(critic, params, joint)[:, 0])(params)

    def update(carry: Any, batch: Any) -> Any:
        actor_params, critics, targets, actor_state, critic_state = carry
        obs, action, following, noise, noise_next = batch
        next_action, next_log_prob = sample(actor_params, following, noise_next)
        wanted = 1.0 + 0.99 * (jnp.min(values(targets, following, next_action), axis=0) - 0.2 * next_log_prob)
        gradient = jax.grad(lambda params: jnp.mean(jnp.square(values(params, obs, action) - wanted)))(critics)
        updates, critic_state = optimizer.update(gradient, critic_state)
        critics = optax.apply_updates(critics, updates)

        def loss(params: Any) -> Any:
            chosen, log_prob = sample(params, obs, noise)
            return jnp.mean(0.2 * log_prob - jnp.min(values(critics, obs, chosen), axis=0))

        updates, actor_state = optimizer.update(jax.grad(loss)(actor_params), actor_state)
        actor_params = optax.apply_updates(actor_params, updates)
        targets = optax.incremental_update(critics, targets, 0.005)
        return actor_params, critics, targets, actor_state, critic_state

    state = (optimizer.init(actor_params), optimizer.init(critic_params))
    targets = jax.tree.map(jnp.copy, critic_params)
    batches = (obs, action, following, noise, noise_next)
    return (actor_params, critic_params, targets, *state), batches, update


def milliseconds(make: Callable[[Any], tuple[Any, Any, Update]], num_members: int) -> float:
    """Of one update of all members, by the median of REPEATS runs."""

    def run(key: Any) -> Any:
        carry, batches, update = make(key)
        pick = lambda step: jax.tree.map(lambda x: x[step % NUM_BATCHES], batches)
        return jax.lax.fori_loop(0, NUM_STEPS, lambda step, carry: update(carry, pick(step)), carry)

    keys = random.split(random.key(0), num_members)
    # One member without an axis of members, as a program for one has it.
    whole = jax.jit(jax.vmap(run) if num_members > 1 else lambda keys: run(keys[0])).lower(keys).compile()
    jax.block_until_ready(whole(keys))
    return statistics.median(clocked(whole, keys)[1] for _ in range(REPEATS)) / NUM_STEPS * 1e3


def main() -> int:
    for make, per_update in ((dqn, 10), (sac, 1)):
        for num_members in (1, 8):
            taken = milliseconds(make, num_members)
            bound = per_update * num_members / taken * 1e3
            print(f"{make.__name__} x{num_members}: {taken:.3f} ms an update; alone that is {bound:,.0f} steps/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
