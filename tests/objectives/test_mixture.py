"""PMOE's loss against NumPy on a fixed minibatch, and where its gradients go."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl.objectives import clip, kl_penalty
from jaxrl.objectives.mixture import pmoe
from jaxrl.ops.distributions import GaussianMixture

N, K, D = 8, 3, 2
KEYS = jax.random.split(jax.random.key(0), 6)


def mixture(key, spread=1.0):
    key_logits, key_mean = jax.random.split(key)
    logits = jax.random.normal(key_logits, (N, K))
    return GaussianMixture(logits, spread * jax.random.normal(key_mean, (N, K, D)), jnp.full((N, K, D), -0.3))


def inputs(policy, component_advantage):
    proximal = mixture(KEYS[1])
    action = proximal.sample(KEYS[2])
    log_prob = proximal.log_prob(action)
    return types.SimpleNamespace(
        log_prob=policy.log_prob(action),
        behavior_log_prob=log_prob,
        proximal_log_prob=log_prob,
        policy=policy,
        proximal_policy=proximal,
        advantage=jnp.sin(jnp.arange(N, dtype=jnp.float32)),
        entropy=policy.entropy(),
        progress=jnp.float32(0.0),
        variables=(),
        action=action,
        heads={"component_advantage": component_advantage},
    )


def test_loss_equals_numpy():
    policy, advantages = mixture(KEYS[0]), jax.random.normal(KEYS[3], (N, K))
    batch = inputs(policy, advantages)
    objective = pmoe(K, router_coef=0.5, component_coef=0.25)
    loss, metrics = objective.loss(objective.init(KEYS[4]), batch)
    weight = scipy.special.softmax(np.asarray(policy.logits, np.float64), axis=-1)
    action, std = np.float64(batch.action)[:, None], np.exp(np.float64(policy.log_std))
    joint = weight * scipy.stats.norm.pdf(action, np.float64(policy.mean), std).prod(-1)
    share = joint / joint.sum(-1, keepdims=True)
    a, each = np.float64(batch.advantage), np.float64(advantages)
    ratio = joint.sum(-1) / np.exp(np.float64(batch.proximal_log_prob))
    surrogate = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    router = ((weight - np.eye(K)[each.argmax(-1)]) ** 2).mean()
    component = (share * (each - a[:, None]) ** 2).sum(-1).mean()
    np.testing.assert_allclose(metrics["loss/router"], router, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/component"], component, rtol=1e-5)
    np.testing.assert_allclose(loss, surrogate + 0.5 * router + 0.25 * component, rtol=1e-5)
    assert metrics.keys() > {"policy/clip_fraction", "policy/router_entropy"}


def test_router_moves_to_the_best_component_and_advantages_to_those_of_their_actions():
    policy = mixture(KEYS[0])
    advantages = jnp.broadcast_to(jnp.array([0.0, 2.0, 1.0]), (N, K))
    objective = pmoe(K)

    def extra(policy, advantages):
        """What is added to the surrogate."""
        batch = inputs(policy, advantages)
        whole, _ = objective.loss(objective.init(KEYS[4]), batch)
        return whole - clip().loss(clip().init(KEYS[4]), batch)[0]

    of_policy, of_advantages = jax.jit(jax.grad(extra, argnums=(0, 1)))(policy, advantages)
    assert np.all(of_policy.logits[:, 1] < 0)  # descent raises it
    np.testing.assert_allclose(of_policy.logits.sum(-1), 0.0, atol=1e-6)
    # the components themselves learn from the surrogate alone, however their advantages are found
    np.testing.assert_allclose(of_policy.mean, 0.0, atol=1e-6)
    np.testing.assert_allclose(of_policy.log_std, 0.0, atol=1e-6)
    wanted = np.sign(np.asarray(advantages) - np.sin(np.arange(N))[:, None])
    np.testing.assert_array_equal(np.sign(of_advantages), wanted)


def test_another_loss_of_the_policy():
    objective = pmoe(K, kl_penalty(), router_coef=0.0, component_coef=0.0)
    batch = inputs(mixture(KEYS[0]), jnp.zeros((N, K)))
    expected, _ = kl_penalty().loss(kl_penalty().init(KEYS[4]), batch)
    np.testing.assert_allclose(objective.loss(objective.init(KEYS[4]), batch)[0], expected, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_components must be at least 2; got num_components = 1"):
        pmoe(1)
    with pytest.raises(ValueError, match="must not be negative; got router_coef = -1"):
        pmoe(router_coef=-1)
