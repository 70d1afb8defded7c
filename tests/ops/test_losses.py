"""Losses and a natural-gradient step against a few lines of NumPy in float64: values, and gradients by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import ppo
from jaxrl.networks.actor_critic import Output
from jaxrl.objectives import clip
from jaxrl.ops import losses, trust_region
from jaxrl.ops.distributions import Categorical
from jaxrl.surrogate import Sample, surrogate_loss

pytestmark = pytest.mark.quick

N, A = 24, 3
RNG = np.random.default_rng(0)


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def by_differences(function, x, step=1e-6):
    """The gradient of a function of one float64 array."""
    x, gradient = np.array(x, np.float64), np.zeros(np.shape(x))
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def agree(ours, theirs, *given):
    """The value to 1e-5, and the gradient by the first argument to 1e-4, which differences in float64 make."""
    given = tuple(np.asarray(x, np.float64) for x in given)
    value, gradient = jax.value_and_grad(ours)(*(jnp.asarray(x, jnp.float32) for x in given))
    np.testing.assert_allclose(value, theirs(*given), rtol=1e-5, atol=1e-6)
    expected = by_differences(lambda x: theirs(x, *given[1:]), given[0])
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_behavior_loss_of_props():
    log_prob, target = RNG.normal(-1.0, 0.6, (2, N))
    kl, kept = RNG.uniform(0.0, 0.2, N), (RNG.uniform(size=N) < 0.7).astype(float)

    def theirs(log_prob, target, kl, kept):
        ratio = np.exp(log_prob - target)
        terms = np.where(ratio > 0.7, ratio, 0.7)
        return (terms[kept > 0].sum() + 0.4 * kl[kept > 0].sum()) / kept.sum()

    agree(lambda *given: losses.behavior_loss(*given, 0.3, 0.4)[0], theirs, log_prob, target, kl, kept)
    agree(
        lambda kl: losses.behavior_loss(log_prob, target, kl, kept, 0.3, 0.4)[0],
        lambda kl: theirs(log_prob, target, kl, kept),
        kl,
    )
    _, mean, share = losses.behavior_loss(*map(jnp.asarray, (log_prob, target, kl, kept)), 0.3, 0.4)
    assert mean == pytest.approx(kl[kept > 0].mean(), rel=1e-5)
    assert share == pytest.approx((np.exp(log_prob - target)[kept > 0] < 0.7).mean(), rel=1e-5)
    assert 0 < share < 1


@pytest.mark.parametrize("constraint", ["clipped", "penalty", "none"])
@pytest.mark.parametrize("by", range(3))
def test_the_policy_loss_of_reppo(constraint, by):
    """By log-probabilities, values and divergences in turn; some of the states are outside of the bound."""
    log_prob, value, kl = RNG.normal(-1.0, 0.6, N), RNG.normal(0.0, 2.0, N), RNG.uniform(0.0, 0.2, N)
    assert 0 < (kl < 0.1).sum() < N

    def theirs(log_prob, value, kl):
        total = 0.0
        for p, q, d in zip(log_prob, value, kl, strict=True):
            climb, hold = 0.3 * p - q, 0.8 * d
            total += {"clipped": climb if d < 0.1 else hold, "penalty": climb + hold, "none": climb}[constraint]
        return total / N

    given = [log_prob, value, kl]
    if constraint == "none" and by == 2:
        return
    order = [by, *(i for i in range(3) if i != by)]
    back = np.argsort(order)
    agree(
        lambda *x: losses.relative_entropy_loss(*(x[i] for i in back), 0.3, 0.8, 0.1, constraint),
        lambda *x: theirs(*(x[i] for i in back)),
        *(given[i] for i in order),
    )


def test_prices_rise_where_there_is_no_room():
    slope = jax.grad(lambda log_price, room: losses.price_loss(jnp.exp(log_price), room), argnums=(0, 1))
    assert slope(jnp.log(0.5), jnp.float32(-2.0)) == (-1.0, 0.0)
    assert slope(jnp.log(0.5), jnp.float32(2.0)) == (1.0, 0.0)


def test_the_soft_target_of_avg():
    reward, next_value, next_log_prob = RNG.normal(size=(3, N))
    terminated = RNG.uniform(size=N) < 0.4
    got = losses.soft_target(*map(jnp.float32, (reward, next_value, next_log_prob)), jnp.asarray(terminated), 0.9, 0.2)
    expected = [
        r + (0.0 if end else 0.9 * (q - 0.2 * p))
        for r, q, p, end in zip(reward, next_value, next_log_prob, terminated, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_critic_loss_of_hnpg():
    value, target = RNG.normal(size=(2, N))
    played, paid = RNG.normal(size=(2, N // 2))
    theirs = lambda value, target: ((value - target) ** 2).mean() + 0.3 * ((played - paid) ** 2).mean()
    agree(lambda value, target: losses.hybrid_loss(value, target, played, paid, 0.3)[0], theirs, value, target)
    theirs = lambda played, paid: ((value - target) ** 2).mean() + 0.3 * ((played - paid) ** 2).mean()
    agree(lambda played, paid: losses.hybrid_loss(value, target, played, paid, 0.3)[0], theirs, played, paid)


@pytest.mark.parametrize("by", ["logits", "value"])
def test_the_whole_loss_of_ppo(by):
    """Clipped surrogate on standardized advantages, clipped value loss and entropy (arXiv:1707.06347, eq. 7 and 9)."""
    logits, old_logits = RNG.normal(size=(2, N, A))
    value, old_value, target, advantage = RNG.normal(size=(4, N))
    action = RNG.integers(0, A, N)
    hparams = ppo.ppo(jaxrl.make_env("probe/Credit")).hyperparams(value_coef=0.7, entropy_coef=0.05, value_clip=0.3)
    sample = Sample(
        obs=(),
        action=jnp.asarray(action),
        log_prob=Categorical(jnp.float32(old_logits)).log_prob(jnp.asarray(action)),
        policy=Categorical(jnp.float32(old_logits)),
        advantage=jnp.float32(advantage),
        target=jnp.float32(target),
        value=jnp.float32(old_value),
    )

    def ours(logits, value):
        output = Output(Categorical(logits), value, {})
        options = {"standardize": True, "clip_value": True}
        return surrogate_loss(output, (), sample, clip(), hparams, jnp.float32(0.0), **options)[0]

    def theirs(logits, value):
        probs, old = softmax(logits), softmax(old_logits)[np.arange(N), action]
        ratio = probs[np.arange(N), action] / old
        gain = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        surrogate = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain).mean()
        near = old_value + np.clip(value - old_value, -0.3, 0.3)
        value_loss = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
        entropy = -(probs * np.log(probs)).sum(-1).mean()
        return -surrogate + 0.7 * value_loss - 0.05 * entropy

    if by == "logits":
        agree(ours, theirs, logits, value)
    else:
        agree(lambda value, logits: ours(logits, value), lambda value, logits: theirs(logits, value), value, logits)


def test_the_step_of_trpo_with_the_fisher_matrix_written_out():
    """A linear softmax policy: F is the mean of x xᵀ ⊗ (diag p - p pᵀ), inverted as a matrix (arXiv:1502.05477, C)."""
    x, weights = RNG.normal(size=(N, 4)), RNG.normal(size=(4, A)) * 0.3
    action, advantage = RNG.integers(0, A, N), RNG.normal(size=N)
    max_kl, damping = 0.02, 0.1

    old = Categorical(jnp.float32(x @ weights))
    old_log_prob = old.log_prob(jnp.asarray(action))

    def surrogate_and_kl(weights):
        new = Categorical(jnp.float32(x) @ weights)
        ratio = jnp.exp(new.log_prob(jnp.asarray(action)) - old_log_prob)
        return jnp.mean(ratio * jnp.float32(advantage)), jnp.mean(old.kl(new))

    region = trust_region.Region(jnp.float32(max_kl), jnp.float32(damping), jnp.float32(0.5))
    after, info = trust_region.step(surrogate_and_kl, jnp.float32(weights), region, 50, 0)

    probs = softmax(x @ weights)
    score = np.eye(A)[action] - probs
    gradient = np.einsum("nd,na,n->da", x, score, advantage).ravel() / N
    curved = [np.kron(np.outer(row, row), np.diag(p) - np.outer(p, p)) for row, p in zip(x, probs, strict=True)]
    fisher = np.mean(curved, axis=0) + damping * np.eye(4 * A)
    direction = np.linalg.solve(fisher, gradient)
    expected = weights.ravel() + np.sqrt(2 * max_kl / (direction @ fisher @ direction)) * direction
    np.testing.assert_allclose(np.ravel(after), expected, rtol=1e-4, atol=1e-5)
    assert info["gradient/norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    new = softmax(x @ expected.reshape(4, A))
    assert info["policy/kl"] == pytest.approx((probs * np.log(probs / new)).sum(-1).mean(), rel=1e-3)
