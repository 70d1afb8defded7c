"""A projection ensemble's target, losses and bonus against NumPy in float64, and the network that goes with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl import spaces, values
from jaxrl.networks.q_network import QNetworkConfig, QOutput, init_params, q_network
from jaxrl.values import BackupInputs, Target

N, A, J, LOW, HIGH, TOP, KAPPA, BETA = 5, 3, 4, -1.0, 2.0, 1.5, 0.5, 0.7
DRAWS = np.random.default_rng(0)
NOW, NEXT, ONLINE = DRAWS.normal(size=(3, N, A, 4 * J))
REWARD, DISCOUNT = DRAWS.normal(size=N), np.where(np.arange(N) == 2, 0.0, 0.9)
ACTION = DRAWS.integers(0, A, N)
HEAD = values.projection_ensemble(J, LOW, HIGH, TOP, KAPPA, BETA)
CENTERS, BONUS_CENTERS = np.linspace(LOW, HIGH, J), np.linspace(0.0, TOP, J)


def projected(points, probs, centers):
    width = centers[1] - centers[0]
    near = np.clip(1.0 - np.abs(np.clip(points, centers[0], centers[-1])[:, None] - centers) / width, 0.0, None)
    return probs @ near


def mixture(outputs, bonus):
    """Points and probabilities of the mean of two members of one action, [4 J]."""
    logits, quantiles = (outputs[J : 2 * J], outputs[3 * J :]) if bonus else (outputs[:J], outputs[2 * J : 3 * J])
    points = np.concatenate([BONUS_CENTERS if bonus else CENTERS, quantiles])
    return points, np.concatenate([scipy.special.softmax(logits), np.full(J, 1 / J)]) / 2


def bonus_of(outputs):
    other = projected(outputs[2 * J : 3 * J], np.full(J, 1 / J), CENTERS)
    return scipy.stats.wasserstein_distance(CENTERS, CENTERS, scipy.special.softmax(outputs[:J]), other)


def mean_of(outputs, bonus=False):
    points, probs = mixture(outputs, bonus)
    return points @ probs


def over_actions(function, outputs):
    return np.array([[function(one) for one in row] for row in outputs])


def fitted(outputs, bonus, points, probs):
    """Cross-entropy of the histogram and the loss of the quantiles."""
    logits, quantiles = (outputs[J : 2 * J], outputs[3 * J :]) if bonus else (outputs[:J], outputs[2 * J : 3 * J])
    entropy = -projected(points, probs, BONUS_CENTERS if bonus else CENTERS) @ scipy.special.log_softmax(logits)
    total = 0.0
    for i, quantile in enumerate(quantiles):
        error = points - quantile
        size = np.abs(error)
        huber = np.where(size <= KAPPA, 0.5 * error**2, KAPPA * (size - 0.5 * KAPPA)) / KAPPA
        total += probs @ (np.abs((i + 0.5) / J - (error < 0)) * huber)
    return entropy + total


def tempting(outputs):
    return mean_of(outputs) + BETA * (bonus_of(outputs) + mean_of(outputs, bonus=True))


def test_values_and_bonus():
    output = QOutput(jnp.float32(NOW))
    np.testing.assert_allclose(HEAD.mean(HEAD.init(), output), over_actions(mean_of, NOW), atol=1e-5)
    np.testing.assert_allclose(HEAD.explore(HEAD.init(), output), over_actions(tempting, NOW), atol=1e-5)


@pytest.mark.parametrize("name", ["double", "expected"])
def test_losses(name):
    backup = {"double": values.double(), "expected": values.expected(0.3)}[name]
    q, later = over_actions(mean_of, ONLINE), over_actions(mean_of, NEXT)
    inputs = BackupInputs(*(jnp.float32(x) for x in (q, later, later)), jnp.asarray(ACTION))
    weight, shift, _ = backup.choose(backup.init(), inputs)
    following, online = QOutput(jnp.float32(NEXT)), QOutput(jnp.float32(ONLINE))
    target = Target(jnp.float32(REWARD), jnp.float32(DISCOUNT), following, weight, shift, backup.greedy)
    target = dataclasses.replace(target, action=jnp.asarray(ACTION), online_next=online)
    losses, surprise = jax.jit(HEAD.loss)(HEAD.init(), QOutput(jnp.float32(NOW)), target)
    for n in range(N):
        own = NOW[n, ACTION[n]]
        parts = [mixture(NEXT[n, a], bonus=False) for a in range(A)]
        points = REWARD[n] + DISCOUNT[n] * np.concatenate([x for x, _ in parts])
        probs = np.concatenate([w * p for w, (_, p) in zip(np.float64(weight[n]), parts, strict=True)])
        wanted = np.argmax([tempting(x) for x in ONLINE[n]])
        bonus, bonus_probs = mixture(NEXT[n, wanted], bonus=True)
        bonus = DISCOUNT[n] * (bonus_of(ONLINE[n, wanted]) + bonus)
        expected = fitted(own, False, points, probs) + fitted(own, True, bonus, bonus_probs)
        np.testing.assert_allclose(losses[n], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(surprise[n], abs(points @ probs - mean_of(own)), atol=1e-5)


def test_members_are_networks_of_their_own_beside_a_prior_that_stays():
    box, actions = spaces.box(-1.0, 1.0, (3,)), spaces.Discrete(A)
    net = q_network(box, actions, 4, config=QNetworkConfig(hidden=(5,), num_members=2, prior=(3.0, 0.0)))
    obs = jnp.float32(DRAWS.normal(size=(6, 3)))
    params = init_params(net, jax.random.key(0), obs[0])
    found = net.apply(params, obs).values
    assert found.shape == (6, A, 4)
    # Each half is what one network says whose parameters are a slice.
    one = q_network(box, actions, 2, config=QNetworkConfig(hidden=(5,)))
    inner = params["params"]["members"]
    assert set(inner) == {"prior", "advantage", "advantage_hidden"}
    for i in range(2):
        own = jax.tree.map(lambda x, i=i: x[i], inner)
        fixed = one.apply({"params": own["prior"]}, obs).values
        learned = one.apply({"params": {k: v for k, v in own.items() if k != "prior"}}, obs).values
        expected = np.asarray(learned) + np.float32([3.0, 0.0]) * np.asarray(fixed)
        np.testing.assert_allclose(found[..., 2 * i : 2 * i + 2], expected, atol=1e-5)
    gradient = jax.grad(lambda params: jnp.sum(jnp.square(net.apply(params, obs).values)))(params)["params"]["members"]
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradient["prior"]))
    assert all(
        (leaf != 0.0).any(axis=tuple(range(1, leaf.ndim))).all() for leaf in jax.tree.leaves(gradient["advantage"])
    )


def test_messages_of_projection_ensembles():
    with pytest.raises(ValueError, match="needs at least 2 atoms, low < high"):
        values.projection_ensemble(4, 1.0, 1.0)
    target = Target(jnp.zeros(N), jnp.zeros(N), QOutput(jnp.float32(NEXT)), jnp.ones((N, A)))
    with pytest.raises(ValueError, match="dqn gives the values of all actions only"):
        HEAD.loss(HEAD.init(), QOutput(jnp.float32(NOW)), target)
    box, actions = spaces.box(-1.0, 1.0, (3,)), spaces.Discrete(A)
    for config in (
        QNetworkConfig(num_members=3),
        QNetworkConfig(prior=(1.0,), noisy=True),
        QNetworkConfig(num_members=2, prior=(1.0, 2.0, 3.0)),
    ):
        with pytest.raises(ValueError, match="num_members must divide the outputs"):
            q_network(box, actions, 4, config=config)
