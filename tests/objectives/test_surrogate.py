"""Surrogates of the ratio against their formulas in float64, and the shapes that their papers describe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import batches
from objectives.batches import ADVANTAGE, BEHAVIOR_LOGITS, LOGITS, PROXIMAL_LOGITS, kl, log_probs, taken

from jaxrl.objectives import alpha_penalty, clip, dpo, kl_penalty, mdpo, policy_gradient, spo

SURROGATES = {x.name: x for x in (alpha_penalty(), clip(), kl_penalty(), spo(), dpo(), mdpo())}
PROGRESS = 0.25


def relu(x):
    return np.maximum(x, 0.0)


def losses(objective, ratios, advantages, weights=1.0):
    """Of single samples."""
    rows = [jnp.asarray(x, jnp.float32) for x in jnp.broadcast_arrays(ratios, advantages, weights)]
    flat = [x.reshape(-1) for x in rows]
    return jax.vmap(lambda r, a, w: batches.loss(objective, batches.samples(r[None], a, w)))(*flat)


def dpo_drift(r, advantage, alpha=2.0, beta=0.6):
    rise, fall = (r - 1) * advantage, np.log(r) * advantage
    return np.where(
        advantage >= 0, relu(rise - alpha * np.tanh(rise / alpha)), relu(fall - beta * np.tanh(fall / beta))
    )


def clip_drift(r, advantage, epsilon=0.2):
    return relu((r - np.clip(r, 1 - epsilon, 1 + epsilon)) * advantage)


def hellinger(logits, other_logits):
    """Squared, in float64."""
    root, other = (np.exp(log_probs(x) / 2) for x in (logits, other_logits))
    return ((root - other) ** 2).sum(-1) / 2


# Gain of each sample in NumPy, before its weight, and what is subtracted from it beside.
GAIN = {
    "alpha_penalty": lambda r, a: r * a,
    "clip": lambda r, a: np.minimum(r * a, np.clip(r, 0.8, 1.2) * a),
    "kl_penalty": lambda r, a: r * a,
    "spo": lambda r, a: r * a - np.abs(a) * (r - 1) ** 2 / (2 * 0.2),
    "dpo": lambda r, a: r * a - dpo_drift(r, a),
    "mdpo": lambda r, a: r * a,
}
PENALTY = {
    "alpha_penalty": lambda: 4 * hellinger(LOGITS, PROXIMAL_LOGITS),
    "kl_penalty": lambda: kl(PROXIMAL_LOGITS, LOGITS),
    "mdpo": lambda: kl(LOGITS, PROXIMAL_LOGITS) / (1 - PROGRESS),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_loss_equals_its_formula(name):
    r = np.exp(taken(LOGITS) - taken(PROXIMAL_LOGITS))
    weight = np.exp(taken(PROXIMAL_LOGITS) - taken(BEHAVIOR_LOGITS))
    expected = -np.mean(weight * GAIN[name](r, ADVANTAGE) - PENALTY.get(name, lambda: 0.0)())
    actual = batches.loss(SURROGATES[name], batches.batch(behavior=BEHAVIOR_LOGITS, progress=PROGRESS))
    assert actual == pytest.approx(expected, abs=1e-5)


def test_clip_equals_rlax():
    """rlax 0.1.9, clipped_surrogate_pg_loss, on this batch."""
    assert batches.loss(clip(0.2), batches.batch()) == pytest.approx(-0.10082403, abs=1e-6)


def test_clip_is_the_surrogate_less_a_drift():
    r, advantage = (x.reshape(-1) for x in np.meshgrid(np.geomspace(0.2, 5.0, 81), [-2.0, -0.5, 0.0, 1.0]))
    expected = -(r * advantage - clip_drift(r, advantage))
    np.testing.assert_allclose(losses(clip(0.2), r, advantage), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_gradient_where_the_policies_are_one_is_the_policy_gradient(name):
    expected = batches.gradient(policy_gradient())
    actual = batches.gradient(SURROGATES[name], proximal=LOGITS, progress=PROGRESS)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_gradient_there_carries_the_weight_of_the_policy_that_acted(name):
    weight = jnp.asarray(np.exp(taken(LOGITS) - taken(BEHAVIOR_LOGITS)), jnp.float32)

    def weighted(logits):
        x = batches.batch(logits)
        return -jnp.mean(weight * x.advantage * x.log_prob)

    actual = batches.gradient(SURROGATES[name], proximal=LOGITS, behavior=BEHAVIOR_LOGITS)
    expected = jax.grad(weighted)(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def ppo_ewma_loss(log_prob, proximal, behavior, advantage, epsilon=0.2):
    """The authors' form: the ratios in log space, with the log-probability of the policy that acted raised."""
    adjusted = jnp.maximum(behavior, jax.lax.stop_gradient(log_prob) - jnp.log(100.0))
    log_ratio = jnp.clip(log_prob - proximal, jnp.log(1 - epsilon), jnp.log(1 + epsilon))
    plain = -advantage * jnp.exp(log_prob - adjusted)
    clipped = -advantage * jnp.exp(log_ratio + proximal - adjusted)
    return jnp.mean(jnp.maximum(plain, clipped))


def test_the_importance_weight_is_capped_as_by_its_authors():
    grid = np.meshgrid([-0.1, 0.1, 0.7, 6.0], [-6.0, 0.0, 4.0, 5.0, 9.0], [-1.5, 2.0])
    log_ratio, log_weight, advantage = (x.reshape(-1) for x in grid)
    inputs = batches.samples(np.exp(log_ratio), advantage, np.exp(log_weight).astype(np.float32))
    assert np.any(log_ratio + log_weight > np.log(100))

    def ours(log_prob, proximal, behavior, a):
        policies = {"log_prob": log_prob, "proximal_log_prob": proximal, "behavior_log_prob": behavior}
        return batches.loss(clip(0.2), inputs.replace(advantage=a, **policies))

    rows = (inputs.log_prob, inputs.proximal_log_prob, inputs.behavior_log_prob, inputs.advantage)
    actual, expected = (jax.vmap(jax.value_and_grad(f))(*rows) for f in (ours, ppo_ewma_loss))
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.4])
@pytest.mark.parametrize("advantage", [-1.5, 2.0])
def test_spo_is_stationary_at_epsilon_and_leads_back_beyond_it(epsilon, advantage):
    def slope(r):
        return jax.grad(lambda x: batches.loss(spo(epsilon), batches.samples(x, advantage)))(jnp.asarray([r]))[0]

    side = np.sign(advantage)
    assert slope(1 + side * epsilon) == pytest.approx(0.0, abs=1e-5)
    assert side * slope(1 + side * 0.5 * epsilon) < -0.5
    assert side * slope(1 + side * 1.5 * epsilon) > 0.5


def dpo_gain(r, advantage):
    return -np.asarray(losses(dpo(), r, advantage))


def test_the_dpo_drift_is_flat_at_one_and_only_on_the_side_of_the_gain():
    advantage = np.array([-3.0, -0.5, 0.5, 3.0])
    gain_side, other_side = np.where(advantage > 0, 2.5, 0.3), np.where(advantage > 0, 0.3, 2.5)
    assert np.all(advantage * gain_side - dpo_gain(gain_side, advantage) > 0.02)
    for flat in (np.ones(4), other_side):
        np.testing.assert_allclose(dpo_gain(flat, advantage), advantage * flat, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda r, a: losses(dpo(), r[None], a)[0]))(jnp.ones(4), jnp.asarray(advantage))
    np.testing.assert_allclose(slope, -advantage, rtol=1e-5)


def test_the_dpo_gain_saturates_for_good_actions():
    np.testing.assert_allclose(dpo_gain(np.array([50.0, 80.0]), 1.5), 1.5 + 2.0, atol=1e-4)


def test_the_dpo_gain_of_bad_actions_is_greatest_at_a_known_ratio():
    best = {-0.5: 0.405, -1.0: 0.559, -2.0: 0.697, -3.0: 0.764}
    r = np.linspace(0.3, 0.9, 601)
    gain = dpo_gain(r[:, None], np.array(list(best))).reshape(601, -1)
    np.testing.assert_allclose(r[np.argmax(gain, axis=0)], list(best.values()), atol=2e-3)


def test_the_mdpo_divergence_pulls_only_once_the_policy_has_moved():
    weak, strong = mdpo(100.0), mdpo(0.01)
    at_one = [batches.gradient(x, proximal=LOGITS) for x in (weak, strong)]
    np.testing.assert_allclose(at_one[0], at_one[1], atol=1e-5)
    moved = [batches.gradient(x) for x in (weak, strong)]
    assert np.max(np.abs(moved[0] - moved[1])) > 0.1


def test_the_mdpo_step_size_falls_to_zero_with_progress():
    objective = mdpo(2.0)
    params = objective.init(jax.random.key(0))
    steps = [objective.loss(params, batches.batch(progress=x))[1]["policy/step_size"] for x in (0.0, 0.25, 0.99)]
    np.testing.assert_allclose(steps, [2.0, 1.5, 0.02], rtol=1e-5)
    assert np.isfinite(batches.loss(objective, batches.batch(progress=1.0)))


@pytest.mark.parametrize(
    "name, metric, expected",
    [
        ("clip", "policy/clip_fraction", lambda r: np.mean(np.abs(r - 1) > 0.2)),
        ("alpha_penalty", "policy/penalty", lambda r: np.mean(4 * hellinger(LOGITS, PROXIMAL_LOGITS))),
        ("kl_penalty", "policy/penalty", lambda r: np.mean(kl(PROXIMAL_LOGITS, LOGITS))),
        ("spo", "policy/ratio_deviation", lambda r: np.mean(np.abs(r - 1))),
        ("dpo", "policy/drift", lambda r: np.mean(dpo_drift(r, ADVANTAGE))),
        ("mdpo", "policy/penalty", lambda r: np.mean(kl(LOGITS, PROXIMAL_LOGITS))),
    ],
)
def test_metrics(name, metric, expected):
    objective = SURROGATES[name]
    metrics = objective.loss(objective.init(jax.random.key(0)), batches.batch())[1]
    assert metrics[metric] == pytest.approx(expected(np.exp(taken(LOGITS) - taken(PROXIMAL_LOGITS))), abs=1e-6)


@pytest.mark.parametrize("alpha, like", [(0.0, kl_penalty()), (1.0, mdpo())])
def test_the_alpha_penalty_ends_at_those_with_kl(alpha, like):
    inputs = batches.batch(behavior=BEHAVIOR_LOGITS)
    actual, expected = (float(batches.loss(x, inputs)) for x in (alpha_penalty(alpha), like))
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "factory, message",
    [
        (lambda: clip(0.0), "epsilon must be positive; got epsilon = 0.0"),
        (lambda: alpha_penalty(float("inf")), "alpha must be finite and beta not negative; got alpha = inf"),
        (lambda: alpha_penalty(beta=-1.0), "got alpha = 0.5, beta = -1.0"),
        (lambda: kl_penalty(-1.0), "beta must not be negative; got beta = -1.0"),
        (lambda: spo(float("nan")), "epsilon must be positive; got epsilon = nan"),
        (lambda: dpo(alpha=0.0), "alpha and beta must be positive; got alpha = 0.0, beta = 0.6"),
        (lambda: dpo(beta=-1.0), "alpha and beta must be positive; got alpha = 2.0, beta = -1.0"),
        (lambda: mdpo(0.0), "step_size must be positive; got step_size = 0.0"),
    ],
)
def test_coefficients_out_of_range_are_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()
