"""Weighted log-probabilities against rlax and float64, and what every written objective promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import batches
from objectives.batches import ADVANTAGE, LOGITS, PROXIMAL_LOGITS, kl, taken

from jaxrl.objectives import VMPO, Multipliers, awr, clip, dpo, kl_penalty, mdpo, policy_gradient, spo, vmpo

OBJECTIVES = {x.name: x for x in (awr(), clip(), dpo(), kl_penalty(), mdpo(), policy_gradient(), spo(), vmpo())}


def run(objective, logits=LOGITS, **changes):
    inputs = batches.batch(logits, variables=objective.variables(), behavior=batches.BEHAVIOR_LOGITS)
    return objective.loss(objective.init(jax.random.key(0)), inputs.replace(**changes))


def test_policy_gradient_equals_rlax():
    """rlax 0.1.9, policy_gradient_loss, on this batch."""
    assert batches.loss(policy_gradient(), batches.batch()) == pytest.approx(0.55277324, abs=1e-6)


def test_awr_equals_its_formula():
    weight = np.minimum(np.exp(ADVANTAGE / 0.5), 8.0)
    loss, metrics = run(awr(temperature=0.5, max_weight=8.0))
    assert loss == pytest.approx(-np.mean(weight * taken(LOGITS)), abs=1e-5)
    assert metrics["policy/weight"] == pytest.approx(np.mean(weight), abs=1e-5)
    assert metrics["policy/clip_fraction"] == pytest.approx(np.mean(weight == 8.0))
    assert 0 < np.mean(weight == 8.0) < 1


def test_awr_stays_finite_for_any_advantage():
    inputs = batches.batch().replace(advantage=jnp.linspace(-1e6, 1e6, batches.N))
    loss = lambda params, log_prob: awr().loss(params, inputs.replace(log_prob=log_prob))[0]
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(awr().init(jax.random.key(0)), inputs.log_prob)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradients)))
    assert np.min(gradients[1]) == pytest.approx(-20.0 / batches.N, rel=1e-5)


# The figures of rlax 0.1.9, vmpo_loss, on this batch, with multipliers softplus(variable) + 1e-8:
# the loss, its gradient by the logits of the first sample, by η's and by α's variable.
RLAX_VMPO = [
    ((0.01, 0.01, 1.0, 5.0), 3.021405, [-0.21690255, 0.07482797, 0.14207457], -0.10536591, -0.034539748),
    ((0.1, 0.003, 0.7, 0.2), 3.1848564, [-0.15582885, 0.07407524, 0.08175361], -0.13029064, -0.00757235),
]


@pytest.mark.parametrize("arguments, loss, by_logits, by_eta, by_alpha", RLAX_VMPO)
def test_vmpo_equals_rlax(arguments, loss, by_logits, by_eta, by_alpha):
    objective = vmpo(*arguments)

    def ours(logits, variables):
        return batches.loss(objective, batches.batch(logits, variables=variables))

    value, (logits, variables) = jax.value_and_grad(ours, argnums=(0, 1))(
        jnp.asarray(LOGITS, jnp.float32), objective.variables()
    )
    assert value == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(logits[0], by_logits, atol=1e-6)
    assert variables.eta == pytest.approx(by_eta, abs=1e-6)
    assert variables.alpha == pytest.approx(by_alpha, abs=1e-6)


def vmpo_parts(eta, chosen, advantage=ADVANTAGE):
    """ψ on the chosen samples, and its divergence from equal weights."""
    weight = np.where(chosen, np.exp(advantage / eta), 0.0)
    weight /= weight.sum()
    return weight, np.sum(weight[chosen] * np.log(weight[chosen] * chosen.sum()))


def test_vmpo_takes_the_better_half_and_what_ties_with_it():
    """Three of seven by count, four with the tie; rlax 0.1.9 gives 4.107619."""
    advantage, log_prob = np.array([1.0, 2.0, 2.0, 0.0, -1.0, 3.0, 2.0]), -np.arange(1.0, 8.0) / 3
    inputs = batches.samples(np.ones(7), advantage).replace(log_prob=jnp.asarray(log_prob, jnp.float32))
    objective = vmpo(initial_alpha=1.0)
    params = VMPO(epsilon_eta=jnp.float32(0.1), epsilon_alpha=jnp.float32(0.0))
    loss, _ = objective.loss(params, inputs.replace(variables=objective.variables()))
    chosen = advantage >= 2.0
    weight, _ = vmpo_parts(1.0, chosen, advantage)
    expected = -np.sum(weight * log_prob) + 0.1 + np.log(np.mean(np.exp(advantage[chosen])))
    assert expected == pytest.approx(4.107619, abs=1e-5)
    assert loss == pytest.approx(expected, abs=1e-5)


def test_vmpo_temperature_rests_where_the_weights_diverge_by_epsilon_eta():
    objective = vmpo(epsilon_eta=0.05, initial_eta=0.8)
    gradient = jax.grad(lambda v: run(objective, variables=v)[0])(objective.variables())
    _, divergence = vmpo_parts(0.8, np.argsort(np.argsort(ADVANTAGE)) >= batches.N // 2)
    slope_of_softplus = 1 - np.exp(-0.8)
    assert gradient.eta == pytest.approx((0.05 - divergence) * slope_of_softplus, abs=1e-5)


def test_vmpo_multiplier_rises_if_and_only_if_the_policy_moved_too_far():
    moved = np.mean(kl(PROXIMAL_LOGITS, LOGITS))
    for epsilon in (0.5 * moved, 2 * moved):
        objective = vmpo(epsilon_alpha=float(epsilon), initial_alpha=0.7)
        gradient = jax.grad(lambda v: run(objective, variables=v)[0])(objective.variables())
        assert gradient.alpha == pytest.approx((epsilon - moved) * (1 - np.exp(-0.7)), abs=1e-6)


def test_vmpo_constraint_holds_the_policy_with_the_multiplier_as_its_weight():
    """The part of the gradient that α brings is α ∇KL, and none of it comes through α or ε."""
    gradients = [
        jax.grad(lambda x: run(vmpo(initial_alpha=alpha), x)[0])(jnp.asarray(LOGITS, jnp.float32))
        for alpha in (1.0, 3.0)
    ]
    x = batches.batch()
    divergence = lambda logits: jnp.mean(x.proximal_policy.kl(batches.batch(logits).policy))
    expected = 2.0 * jax.grad(divergence)(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(gradients[1] - gradients[0], expected, atol=1e-6)


@pytest.mark.parametrize("value", [1e-3, 1.0, 5.0, 200.0])
def test_vmpo_variables_begin_at_the_given_values(value):
    _, metrics = run(vmpo(initial_eta=value, initial_alpha=value))
    assert metrics["policy/temperature"] == pytest.approx(value, rel=1e-4)
    assert metrics["policy/multiplier"] == pytest.approx(value, rel=1e-4)


def test_vmpo_multipliers_stay_positive_wherever_training_takes_them():
    for x in (-1e3, 1e3):
        loss, metrics = run(vmpo(), variables=Multipliers(eta=jnp.float32(x), alpha=jnp.float32(x)))
        assert np.isfinite(loss)
        assert metrics["policy/temperature"] > 0
        assert metrics["policy/multiplier"] > 0


def test_vmpo_metrics():
    _, metrics = run(vmpo(epsilon_eta=0.05, initial_eta=0.8))
    assert metrics["policy/penalty"] == pytest.approx(np.mean(kl(PROXIMAL_LOGITS, LOGITS)), abs=1e-6)
    best = np.sort(ADVANTAGE)[batches.N // 2 :]
    expected = 0.8 * (0.05 + np.log(np.mean(np.exp(best / 0.8))))
    assert metrics["loss/temperature"] == pytest.approx(expected, abs=1e-5)


def test_vmpo_of_one_sample_is_its_log_probability():
    inputs = jax.tree.map(lambda x: x[:1] if x.ndim else x, batches.batch(proximal=LOGITS))
    objective = vmpo(epsilon_eta=0.1, epsilon_alpha=1e-6)
    loss = batches.loss(objective, inputs.replace(variables=objective.variables()))
    assert loss == pytest.approx(-taken(LOGITS)[0] + ADVANTAGE[0] + 0.1, abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_params_and_variables_are_strong_float32_scalars(name):
    objective = OBJECTIVES[name]
    for leaf in jax.tree.leaves((objective.init(jax.random.key(0)), objective.variables())):
        assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), jnp.float32, False)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "policy_gradient"])
def test_every_coefficient_may_be_swept_and_matters(name):
    objective = OBJECTIVES[name]
    params = objective.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    for i in range(len(leaves)):
        scales = jnp.array([1.0, 0.1, 3.0])
        many = structure.unflatten([jnp.where(j == i, scales, 1.0) * leaf for j, leaf in enumerate(leaves)])
        inputs = batches.batch(variables=objective.variables())
        losses = jax.vmap(lambda p: objective.loss(p, inputs)[0])(many)
        alone = [objective.loss(jax.tree.map(lambda x: x[j], many), inputs)[0] for j in range(3)]
        np.testing.assert_allclose(losses, alone, rtol=1e-5, atol=1e-6)
        assert len(np.unique(np.round(losses, 5))) > 1, f"coefficient {i} of {name} changes nothing"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_axes_of_a_recurrent_minibatch_change_nothing(name):
    objective = OBJECTIVES[name]
    inputs = batches.batch(variables=objective.variables(), behavior=batches.BEHAVIOR_LOGITS)
    folded = jax.tree.map(lambda x: x.reshape(4, 3, *x.shape[1:]) if x.ndim else x, inputs)
    flat, metrics = objective.loss(objective.init(jax.random.key(0)), inputs)
    loss, folded_metrics = objective.loss(objective.init(jax.random.key(0)), folded)
    assert loss.shape == ()
    assert loss == pytest.approx(float(flat), rel=1e-5)
    for metric, value in metrics.items():
        assert value.shape == folded_metrics[metric].shape == ()
        assert folded_metrics[metric] == pytest.approx(float(value), rel=1e-5, abs=1e-6)


def test_equal_arguments_give_the_same_record():
    assert spo() is spo(epsilon=0.2)
    assert vmpo(0.01) is vmpo()
    assert awr(2.0) is not awr()


@pytest.mark.parametrize(
    "factory, message",
    [
        (lambda: awr(temperature=0.0), "must be positive; got temperature = 0.0, max_weight = 20.0"),
        (lambda: awr(max_weight=-1.0), "must be positive; got temperature = 1.0, max_weight = -1.0"),
        (lambda: vmpo(epsilon_eta=0.0), "must be positive; got epsilon_eta = 0.0"),
        (lambda: vmpo(epsilon_alpha=-0.1), "epsilon_alpha = -0.1"),
        (lambda: vmpo(initial_eta=0.0), "initial_eta = 0.0"),
        (lambda: vmpo(initial_alpha=0.0), "initial_alpha = 0.0"),
    ],
)
def test_coefficients_out_of_range_are_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()
