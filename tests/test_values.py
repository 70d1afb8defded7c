"""The critic's parts against formulas written out in float64: heads with backups, acting, synchronizing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl import values
from jaxrl.networks.q_network import QOutput
from jaxrl.values import ILLEGAL, BackupInputs, Target
from jaxrl.values.scalars import signed_hyperbolic, signed_parabolic

N, A, K = 6, 3, 5
DRAWS = np.random.default_rng(0)
REWARD, DISCOUNT = DRAWS.normal(size=N), np.where(np.arange(N) == 2, 0.0, 0.9)
VALUES, NEXT = DRAWS.normal(size=(N, K)) * 2, DRAWS.normal(size=(N, A, K)) * 2
FRACTIONS = DRAWS.uniform(size=(N, K))
ONLINE, FROZEN, NOW = DRAWS.normal(size=(3, N, A))
ACTION = DRAWS.integers(0, A, N)
BACKUPS = {
    "maximum": values.maximum(),
    "double": values.double(),
    "expected": values.expected(0.3),
    "soft": values.soft(0.5),
    "munchausen": values.munchausen(0.8, 0.5, -0.6),
    "annealed": values.annealed(values.maximum(), values.munchausen(0.8, 0.5, -0.6), 0.5),
}
PROGRESS = 0.15
MEANS = [name for name in BACKUPS if name != "annealed"]
"""Backups that heads of distributions are tested with: of mixtures of shifts only the mean is exact."""


def policy(name):
    """Probabilities, shifts and bonuses that the papers write."""
    best = lambda q: np.eye(A)[q.argmax(1)]
    log_probs = scipy.special.log_softmax(FROZEN / 0.5, 1)
    taken = 0.5 * scipy.special.log_softmax(NOW / 0.5, 1)[np.arange(N), ACTION]
    none = np.zeros((N, A)), np.zeros(N)
    mixed = 0.7 * best(FROZEN) + 0.3 * np.exp(log_probs)
    return {
        "annealed": (
            mixed,
            0.3 * np.exp(log_probs) * -0.5 * log_probs / mixed,
            0.3 * 0.8 * np.clip(taken, -0.6, 0.0),
        ),
        "maximum": (best(FROZEN), *none),
        "double": (best(ONLINE), *none),
        "expected": (0.1 + 0.7 * best(FROZEN), *none),
        "soft": (np.exp(log_probs), -0.5 * log_probs, np.zeros(N)),
        "munchausen": (np.exp(log_probs), -0.5 * log_probs, 0.8 * np.clip(taken, -0.6, 0.0)),
    }[name]


def target_of(name, following, **fields):
    backup = BACKUPS[name]
    inputs = BackupInputs(*(jnp.float32(x) for x in (ONLINE, FROZEN, NOW)), jnp.asarray(ACTION), jnp.float32(PROGRESS))
    weight, shift, bonus = backup.choose(backup.init(), inputs)
    reward = jnp.float32(REWARD) + (0.0 if bonus is None else bonus)
    output = QOutput(jnp.float32(following), **fields)
    return Target(reward, jnp.float32(DISCOUNT), output, weight, shift, backup.greedy)


def learned(head, outputs, target, fractions=()):
    """Losses, surprises, and the gradient of the sum of losses."""
    output = QOutput(jnp.float32(outputs), fractions)

    def total(x):
        losses, surprise = head.loss(head.init(), dataclasses.replace(output, values=x), target)
        return losses.sum(), (losses, surprise)

    gradient, (losses, surprise) = jax.grad(total, has_aux=True)(output.values)
    return losses, surprise, gradient


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def huber(u, kappa):
    return np.where(np.abs(u) <= kappa, 0.5 * u**2, kappa * (np.abs(u) - 0.5 * kappa))


@pytest.mark.parametrize("name", BACKUPS)
def test_scalar(name):
    weight, shift, bonus = policy(name)
    goal = REWARD + bonus + DISCOUNT * (weight * (NEXT[..., 0] + shift)).sum(1)
    error = goal - VALUES[:, 0]
    for loss, expected, slope in (
        ("square", 0.5 * error**2, -error),
        ("huber", huber(error, 0.7), -np.clip(error, -0.7, 0.7)),
    ):
        found = learned(values.scalar(loss, kappa=0.7), VALUES[:, :1], target_of(name, NEXT[..., :1]))
        close(found[0], expected)
        close(found[1], np.abs(error))
        close(found[2][:, 0], slope)


def test_signed_hyperbolic():
    x = np.linspace(-300.0, 300.0, 61)
    forward = np.sign(x) * (np.sqrt(np.abs(x) + 1.0) - 1.0) + 1e-3 * x
    close(signed_hyperbolic(jnp.float32(x)), forward)
    # Float32 cannot tell the inverse better than that.
    close(signed_parabolic(jnp.float32(forward)), x, 2e-3)
    head = values.scalar("square", "signed_hyperbolic")
    inverse = np.float64(signed_parabolic(jnp.float32(NEXT[..., 0])))
    goal = REWARD + DISCOUNT * (policy("maximum")[0] * inverse).sum(1)
    squashed = np.sign(goal) * (np.sqrt(np.abs(goal) + 1.0) - 1.0) + 1e-3 * goal
    found = learned(head, VALUES[:, :1], target_of("maximum", NEXT[..., :1]))
    close(found[1], np.abs(squashed - VALUES[:, 0]))


def goals(name, following):
    weight, shift, bonus = policy(name)
    return REWARD + bonus + DISCOUNT * (weight * (following + shift)).sum(1)


@pytest.mark.parametrize("name", ["maximum", "munchausen"])
def test_logistic(name):
    low, high = -0.5, 0.5
    goal = goals(name, low + (high - low) * scipy.special.expit(NEXT[..., 0]))
    share = np.clip((goal - low) / (high - low), 0.0, 1.0)
    assert (share == 0).any() or (share == 1).any(), "some targets are out of bounds"
    probs = scipy.special.expit(VALUES[:, 0])
    found = learned(values.logistic(low, high), VALUES[:, :1], target_of(name, NEXT[..., :1]))
    close(found[0], -share * np.log(probs) - (1 - share) * np.log(1 - probs))
    close(found[1], np.abs(goal - low - (high - low) * probs))
    close(found[2][:, 0], probs - share)


@pytest.mark.parametrize("scale", [False, True])
def test_generalized_gaussian(scale):
    """SciPy's own density, and its slope by differences in float64."""
    num = 3 if scale else 2
    goal = goals("soft", NEXT[..., 0])

    def nll(outputs):
        positive = np.log1p(np.exp(outputs[:, 1:])) + 1e-3
        width = positive[:, 1] if scale else 1.0
        return -scipy.stats.gennorm.logpdf(goal, positive[:, 0], outputs[:, 0], width) - np.log(2)

    outputs = VALUES[:, :num]
    found = learned(values.generalized_gaussian(scale), outputs, target_of("soft", NEXT[..., :num]))
    close(found[0], nll(outputs))
    close(found[1], np.abs(goal - outputs[:, 0]))
    for i in range(num):
        step = 1e-6 * np.eye(num)[i]
        close(found[2][:, i], (nll(outputs + step) - nll(outputs - step)) / 2e-6)
    product = learned(values.generalized_gaussian(scale, "product"), outputs, target_of("soft", NEXT[..., :num]))[0]
    shape, width = np.log1p(np.exp(outputs[:, 1])) + 1e-3, np.log1p(np.exp(outputs[:, -1])) + 1e-3 if scale else 1.0
    size = np.abs(goal - outputs[:, 0]) / width
    close(product, shape * size - np.log(shape) + np.log(width) + scipy.special.gammaln(1 / shape))


def test_a_certain_value_has_a_finite_slope():
    head = values.generalized_gaussian()
    target = Target(jnp.ones(1), jnp.zeros(1), QOutput(jnp.zeros((1, 1, 2))), jnp.ones((1, 1)), None, greedy=True)
    assert np.isfinite(learned(head, [[1.0, -1.0]], target)[2]).all()


@pytest.mark.parametrize("mapping", ["log", "loglin"])
@pytest.mark.parametrize("name", ["double", "munchausen"])
def test_mapped(name, mapping):
    scale, least, greatest, share = 0.5, 0.02, 2.5, 0.3
    weight, shift, bonus = policy(name)
    forward = lambda q: scale * (np.log(q) if mapping == "log" or q <= 1 else q - 1)
    back = np.vectorize(lambda x: np.exp(x / scale) if mapping == "log" or x <= 0 else x / scale + 1)
    found = learned(
        values.mapped(mapping, scale, least, greatest, share), VALUES[:, :2], target_of(name, NEXT[..., :2])
    )
    for n in range(N):
        reward = REWARD[n] + bonus[n] + DISCOUNT[n] * (weight[n] * shift[n]).sum()
        loss, errors = 0.0, []
        for channel, part in enumerate((max(reward, 0.0), max(-reward, 0.0))):
            following = np.clip((weight[n] * back(NEXT[n, :, channel])).sum(), 0.0, greatest)
            now = np.clip(back(VALUES[n, channel]), 0.0, greatest)
            errors.append(part + DISCOUNT[n] * following - now)
            goal = max(now + share * errors[-1], least)
            loss += huber(forward(goal) - VALUES[n, channel], 1.0)
            close(found[2][n, channel], -np.clip(forward(goal) - VALUES[n, channel], -1.0, 1.0))
        close(found[0][n], loss)
        close(found[1][n], np.abs(errors[0] - errors[1]))
    head = values.mapped(mapping, scale)
    close(head.mean(head.init(), QOutput(jnp.float32(NEXT[..., :2]))), back(NEXT[..., 0]) - back(NEXT[..., 1]))


def projected(atoms, probs, points):
    """Bellemare et al. 2017, algorithm 1, an atom at a time."""
    result = np.zeros(len(points))
    for atom, prob in zip(atoms, probs, strict=True):
        at = (np.clip(atom, points[0], points[-1]) - points[0]) / (points[1] - points[0])
        low = min(int(np.floor(at)), len(points) - 2)
        result[low] += prob * (low + 1 - at)
        result[low + 1] += prob * (at - low)
    return result


@pytest.mark.parametrize("name", MEANS)
def test_categorical(name):
    head = values.categorical(K, low=-2.0, high=2.0)
    points = np.linspace(-2.0, 2.0, K)
    weight, shift, bonus = policy(name)
    probs = scipy.special.softmax(NEXT, -1)
    found = learned(head, VALUES, target_of(name, NEXT))
    for n in range(N):
        goal = np.zeros(K)
        for a in range(A):
            atoms = REWARD[n] + bonus[n] + DISCOUNT[n] * (points + shift[n, a])
            goal += weight[n, a] * projected(atoms, probs[n, a], points)
        log_probs = scipy.special.log_softmax(VALUES[n])
        close(found[0][n], -goal @ log_probs)
        close(found[1][n], goal @ (np.log(np.maximum(goal, 1e-300)) - log_probs))
        close(found[2][n], np.exp(log_probs) - goal)
    close(head.mean(head.init(), QOutput(jnp.float32(NEXT))), probs @ points)


@pytest.mark.parametrize("projection", ["two_hot", "hl_gauss"])
def test_histograms_of_the_mean(projection):
    head = values.categorical(41, projection, low=-8.0, high=8.0)
    points, following = np.linspace(-8.0, 8.0, 41), DRAWS.normal(size=(N, A, 41))
    weight, shift, bonus = policy("soft")
    mean = scipy.special.softmax(following, -1) @ points
    goal = REWARD + bonus + DISCOUNT * (weight * (mean + shift)).sum(1)
    # At the loss's minimum the gradient is 0: there the histogram is the target's, and its mean the target.
    probs = np.stack([projected([g], [1.0], points) for g in goal])
    if projection == "hl_gauss":
        edges = np.append(points - 0.2, 8.2)
        cumulative = scipy.special.erf((edges[None] - goal[:, None]) / (np.sqrt(2.0) * 0.75 * 0.4))
        probs = np.diff(cumulative) / np.diff(cumulative).sum(1, keepdims=True)
    gradient = learned(head, np.zeros((N, 41)), target_of("soft", following))[2]
    close(gradient, 1 / 41 - probs)
    close(probs @ points, goal, 1e-3)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", MEANS)
def test_quantiles(name, implicit):
    kappa, num_next = 0.7, K
    head = values.implicit_quantile(K, num_next, kappa=kappa) if implicit else values.quantile(K, kappa)
    fractions = FRACTIONS if implicit else np.tile((2 * np.arange(K) + 1) / (2 * K), (N, 1))
    weight, shift, bonus = policy(name)
    found = learned(head, VALUES, target_of(name, NEXT), jnp.float32(FRACTIONS) if implicit else ())
    for n in range(N):
        loss = 0.0
        for i in range(K):
            for a in range(A):
                u = REWARD[n] + bonus[n] + DISCOUNT[n] * (NEXT[n, a] + shift[n, a]) - VALUES[n, i]
                each = np.abs(fractions[n, i] - (u < 0)) * huber(u, kappa) / kappa
                loss += weight[n, a] * each.mean()
        close(found[0][n], loss)
        goal = REWARD[n] + bonus[n] + DISCOUNT[n] * (weight[n] * (NEXT[n].mean(1) + shift[n])).sum()
        close(found[1][n], np.abs(goal - VALUES[n].mean()))


def test_a_quantile_is_where_the_gradient_vanishes():
    """The minimizer of the loss at τ is the τ-quantile of the target: a sign or a transposition would move it."""
    head = values.quantile(4, kappa=1e-3)
    samples = np.sort(DRAWS.normal(size=401))
    target = Target(
        jnp.zeros(1), jnp.ones(1), QOutput(jnp.float32(samples)[None, None]), jnp.ones((1, 1)), None, greedy=True
    )
    quantiles = np.quantile(samples, [0.125, 0.375, 0.625, 0.875])[None]
    assert np.abs(learned(head, quantiles, target)[2]).max() < 5e-3
    assert np.abs(learned(head, quantiles[:, ::-1], target)[2]).max() > 0.2


def test_illegal_actions_are_neither_valued_nor_chosen():
    masked = jnp.float32(np.where(np.arange(A) == 0, ILLEGAL, FROZEN))
    inputs = BackupInputs(masked, masked, masked, jnp.full(N, 1), jnp.float32(PROGRESS))
    for backup in BACKUPS.values():
        weight, shift, bonus = backup.choose(backup.init(), inputs)
        assert float(jnp.abs(weight[:, 0]).max()) == 0.0
        close(jnp.sum(weight, 1), np.ones(N))
        assert all(np.isfinite(x).all() for x in (shift, bonus) if x is not None)
    noise = jax.random.uniform(jax.random.key(0), (4000, 2))
    chosen = values.epsilon_greedy(
        noise, jnp.broadcast_to(jnp.float32([ILLEGAL, 1.0, 2.0, 0.0]), (4000, 4)), jnp.float32(0.6)
    )
    close(np.bincount(chosen, minlength=4) / 4000, [0.0, 0.2, 0.6, 0.2], 0.03)


def test_synchronize():
    target, age, seen = jnp.float32(0.0), jnp.int32(0), []
    for update in range(1, 8):
        target, age = values.synchronize(target, jnp.float32(update), age, jnp.float32(3.0), jnp.float32(1.0))
        seen.append(float(target))
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    target, _ = values.synchronize(target, jnp.float32(10.0), jnp.int32(0), jnp.float32(1.0), jnp.float32(0.25))
    close(target, 0.75 * 6 + 0.25 * 10)


def test_annealed_begins_with_one_and_ends_with_the_other():
    for progress, name in ((0.0, "maximum"), (0.5, "munchausen"), (0.9, "munchausen")):
        inputs = BackupInputs(
            *(jnp.float32(x) for x in (ONLINE, FROZEN, NOW)), jnp.asarray(ACTION), jnp.float32(progress)
        )
        backup = BACKUPS["annealed"]
        weight, shift, bonus = backup.choose(backup.init(), inputs)
        expected = policy(name)
        close(weight, expected[0])
        close(weight * shift, expected[0] * expected[1])
        close(bonus, expected[2])


@pytest.mark.parametrize("period, sync_period", [(6, 2), (5, 2), (4, 9)])
def test_synchronize_chain(period, sync_period):
    """As the authors' code says it, with lists."""
    links, targets = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]
    state = jnp.float32(targets), jnp.float32(links), jnp.int32(0)
    for update in range(1, 14):
        links = [link + 0.5 * (k + 1) * update for k, link in enumerate(links)]
        age = (update - 1) % period + 1
        if age == period:
            targets, links = list(links), [*links[1:], links[-1]]
        elif age % sync_period == 0:
            targets[1:] = links[:-1]
        params = state[1] + 0.5 * jnp.arange(1.0, 4.0) * update
        state = values.synchronize_chain(
            state[0], params, state[2], jnp.float32(period), jnp.float32(sync_period), jnp.float32(1.0)
        )
        close(state[0], targets)
        close(state[1], links)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: values.scalar("log"), "loss must be one of square, huber"),
        (lambda: values.scalar(transform="log"), "transform must be one of"),
        (lambda: values.categorical(1), "at least 2 bins"),
        (lambda: values.categorical(low=1.0, high=1.0), "low < high"),
        (lambda: values.categorical(projection="c52"), "projection must be one of"),
        (lambda: values.logistic(1.0, 1.0), "low < high"),
        (lambda: values.generalized_gaussian(error="sum"), "error must be one of power, product"),
        (lambda: values.mapped("exp"), "mapping must be one of log, loglin"),
        (lambda: values.mapped(least=0.0), "0 < least < greatest"),
        (lambda: values.annealed(values.maximum(), values.soft(), 0.0), "fraction must be positive"),
        (lambda: values.quantile(0), "num_quantiles must be a whole number"),
        (lambda: values.implicit_quantile(8, 0), "num_target must be a whole number"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
