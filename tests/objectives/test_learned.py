"""Learned drifts keep the rules of mirror learning whatever their weights, and hold written ones as special cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import batches

from jaxrl.analysis.drift_figures import check_drift, drift_grid, plot_drifts
from jaxrl.objectives import clip, dpo, lpo, spo
from jaxrl.objectives.learned import drift_inputs, drift_objective, drift_of, ppo_drift

KINDS = {
    "lpo": lpo(16),
    "lpo-ppo": lpo(16, start="ppo"),
    "ta-lpo": lpo(16, progress=True),
    "ta-lpo-ppo": lpo(16, start="ppo", progress=True),
}
each = pytest.mark.parametrize("name", KINDS)


def wild(objective, seed, scale=3.0):
    """Weights far from the beginning."""
    leaves, structure = jax.tree.flatten(objective.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


@functools.cache
def grids(name):
    """f and df/dr for eight draws of weights at two times, [8, 2, A, r]."""
    objective = KINDS[name]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[wild(objective, seed) for seed in range(8)])
    # Beside ratio 1 the two float32 next to nothing: there is a neighborhood without drift.
    line = np.linspace(-0.7, 0.7, 41)
    line[19], line[21] = -1e-8, 1e-8
    log_ratio, advantage = (x.ravel().astype(np.float32) for x in np.meshgrid(line, [-2, -0.5, 0, 1, 3]))

    def of(params, progress):
        f = lambda x: drift_of(objective, params, x, jnp.asarray(advantage), progress)
        return jax.jvp(f, (jnp.asarray(log_ratio),), (jnp.ones(205),))

    run = jax.jit(jax.vmap(jax.vmap(of, (None, 0)), (0, None)))
    return [np.asarray(x).reshape(8, 2, 5, 41) for x in run(stacked, jnp.float32([0.0, 0.7]))]


@each
def test_constraints_hold_for_all_weights(name):
    value, slope = grids(name)
    assert np.all(value[..., 19:22] == 0.0)
    assert np.all(slope[..., 19:22] == 0.0)
    assert value.min() > -1e-5
    assert value.max() > 0.1, "a drift that is nothing anywhere tests nothing"


@each
def test_progress_matters_only_where_it_is_asked_for(name):
    value, _ = grids(name)
    assert np.array_equal(value[:, 0], value[:, 1]) == (not name.startswith("ta"))


def test_against_numpy():
    objective = lpo(4, progress=True)
    params = wild(objective, 3, 0.5)
    inputs = batches.batch(progress=0.25)
    loss, metrics = objective.loss(params, inputs)
    log_r = batches.taken(batches.LOGITS) - batches.taken(batches.PROXIMAL_LOGITS)
    r, a = np.exp(log_r), batches.ADVANTAGE
    of_r = np.stack([1 - r, (1 - r) ** 2, log_r, log_r**2], -1)
    x = np.concatenate([of_r, a[:, None] * of_r], -1)
    x = np.concatenate([x, 0.25 * x], -1)
    net = np.tanh(x @ np.asarray(params.hidden, np.float64)) @ np.asarray(params.output, np.float64)
    f = np.maximum(net[:, 0] - 1e-4, 0.0)
    assert f.max() > 0.1
    np.testing.assert_allclose(loss, -(r * a - f).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/drift"], f.mean(), rtol=1e-4)


def test_ppo_as_a_drift_is_ppo_s_loss():
    as_drift = drift_objective("ppo", lambda key: jnp.float32(0.2), lambda e, log_r, a, _: ppo_drift(log_r, a, e))
    for behavior in (None, batches.BEHAVIOR_LOGITS):
        inputs = batches.batch(behavior=behavior)
        want, got = (
            jax.value_and_grad(lambda x, o=o: batches.loss(o, x), allow_int=True)(inputs) for o in (clip(), as_drift)
        )
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got[1].log_prob, want[1].log_prob, rtol=1e-5, atol=1e-7)


def test_lpo_begins_as_nothing_or_as_ppo():
    inputs = batches.batch()
    weight = batches.loss(drift_objective("none", lambda key: (), lambda p, x, a, t: jnp.zeros_like(x)), inputs)
    np.testing.assert_allclose(batches.loss(lpo(), inputs), weight, rtol=1e-6)
    # Less the dead zone of 1e-4.
    np.testing.assert_allclose(batches.loss(lpo(start="ppo"), inputs), batches.loss(clip(), inputs), atol=1e-4)
    assert abs(float(batches.loss(lpo(start="ppo"), inputs) - weight)) > 1e-3


def test_sizes():
    size = lambda objective: sum(x.size for x in jax.tree.leaves(objective.init(jax.random.key(0))))
    assert size(lpo()) == 1152
    assert size(lpo(progress=True)) == 16 * 128 + 128


def test_inputs_are_exact_near_ratio_one():
    x = np.asarray(drift_inputs(jnp.float32([1e-6]), jnp.float32([2.0])))[0].astype(np.float64)
    np.testing.assert_allclose(x[0], 1 - np.exp(np.float64(np.float32(1e-6))), rtol=1e-6)
    np.testing.assert_allclose(x[4:], 2 * x[:4], rtol=1e-6)


def test_drifts_of_written_objectives():
    log_ratio, advantage = jnp.log(jnp.float32([0.5, 1.0, 1.5, 1.5])), jnp.float32([-1.0, 2.0, 2.0, -2.0])
    of = lambda objective: drift_of(objective, objective.init(jax.random.key(0)), log_ratio, advantage)
    np.testing.assert_allclose(of(clip(0.2)), [0.3, 0.0, 0.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(of(spo(0.2)), [0.25 / 0.4, 0.0, 2 * 0.25 / 0.4, 2 * 0.25 / 0.4], rtol=1e-5)
    np.testing.assert_allclose(of(dpo())[2], 1 - 2 * np.tanh(0.5), rtol=1e-5)


def test_the_check_sees_a_broken_drift():
    def check(drift):
        return check_drift(drift_objective("planted", lambda key: (), lambda p, x, a, t: drift(x, a)), (), 11)

    assert check(lambda x, a: jnp.square(x)).hold
    assert check(lambda x, a: jnp.square(x) + 0.5).value == pytest.approx(0.5, abs=1e-6)
    assert check(lambda x, a: jnp.abs(a) * jax.nn.softplus(x)).slope == pytest.approx(1.5, rel=1e-4)
    assert check(lambda x, a: -jnp.square(x)).negative > 0.4
    assert not check(lambda x, a: -jnp.square(x)).hold


def test_slopes_are_derivatives():
    params = wild(lpo(16), 0, 1.0)
    log_ratio, _, value, slope = drift_grid(lpo(16), params, 201)
    middle = np.diff(value, axis=1) / np.diff(np.exp(log_ratio))
    inner = np.abs(0.5 * (slope[:, 1:] + slope[:, :-1]) - middle)
    assert np.quantile(inner, 0.95) < 0.02 * np.abs(slope).max()


def test_pictures(tmp_path):
    drifts = [(name, make, make.init(jax.random.key(0))) for name, make in {"PPO": clip(), "DPO": dpo()}.items()]
    checks = plot_drifts(drifts, tmp_path / "drifts.png", num=11)
    assert (tmp_path / "drifts.png").stat().st_size > 5000
    assert all(check.hold for check in checks)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: lpo(0), "hidden must be at least 1; got hidden = 0"),
        (lambda: lpo(start="dpo"), "start must be 'zero' or 'ppo'; got start = 'dpo'"),
        (
            lambda: drift_grid(clip(), clip().init(jax.random.key(0)), 10),
            "num must be odd and at least 3; got num = 10",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
