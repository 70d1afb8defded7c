"""A fixed minibatch, and the losses of objectives on it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.ops.distributions import Categorical
from jaxrl.types import PolicyInputs

N, A = 12, 3
ACTION = np.arange(N) % A
ADVANTAGE = np.array([1.4, -0.3, 0.8, -1.7, 0.2, 2.1, -0.9, 0.5, -0.1, -2.2, 1.1, 0.6])
LOGITS = np.sin(np.arange(N * A)).reshape(N, A)
PROXIMAL_LOGITS = LOGITS + 0.5 * np.cos(1.7 * np.arange(N * A)).reshape(N, A)
BEHAVIOR_LOGITS = PROXIMAL_LOGITS + 0.3 * np.sin(2.3 * np.arange(N * A)).reshape(N, A)


def log_probs(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def taken(logits):
    return log_probs(logits)[np.arange(N), ACTION]


def kl(logits, other_logits):
    p, q = log_probs(logits), log_probs(other_logits)
    return (np.exp(p) * (p - q)).sum(-1)


def batch(logits=LOGITS, proximal=PROXIMAL_LOGITS, behavior=None, progress=0.0, variables=()):
    """The inputs for the policies with these logits; the policy that acted is the proximal one unless given."""
    logits, proximal = jnp.asarray(logits, jnp.float32), jnp.asarray(proximal, jnp.float32)
    behavior = proximal if behavior is None else jnp.asarray(behavior, jnp.float32)
    policy, action = Categorical(logits), jnp.asarray(ACTION)
    return PolicyInputs(
        log_prob=policy.log_prob(action),
        behavior_log_prob=Categorical(behavior).log_prob(action),
        proximal_log_prob=Categorical(proximal).log_prob(action),
        policy=policy,
        proximal_policy=Categorical(proximal),
        advantage=jnp.asarray(ADVANTAGE, jnp.float32),
        entropy=policy.entropy(),
        progress=jnp.float32(progress),
        variables=variables,
    )


def samples(ratio, advantage, weight=1.0):
    """Inputs of which only the ratio to the proximal policy, the advantage and the weight matter."""
    log_ratio = jnp.log(jnp.asarray(ratio, jnp.float32))
    proximal = jnp.full_like(log_ratio, -1.0)
    policy = Categorical(jnp.zeros((*log_ratio.shape, A)))
    return PolicyInputs(
        log_prob=proximal + log_ratio,
        behavior_log_prob=proximal - jnp.log(jnp.float32(weight)),
        proximal_log_prob=proximal,
        policy=policy,
        proximal_policy=policy,
        advantage=jnp.broadcast_to(jnp.asarray(advantage, jnp.float32), log_ratio.shape),
        entropy=policy.entropy(),
        progress=jnp.float32(0.0),
    )


def loss(objective, inputs):
    return objective.loss(objective.init(jax.random.key(0)), inputs)[0]


def gradient(objective, logits=LOGITS, **kwargs):
    """Of the loss, by the policy's logits."""
    return jax.grad(lambda x: loss(objective, batch(x, **kwargs)))(jnp.asarray(logits, jnp.float32))
