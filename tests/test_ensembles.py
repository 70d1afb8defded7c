"""Aggregates of an ensemble and its losses, against formulas written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import ensembles
from jaxrl.buffers import NStep
from jaxrl.ensembles import Atoms
from jaxrl.networks.members import Coefficients
from jaxrl.ops.bins import Support

M, N, K, KAPPA = 4, 6, 5, 0.7
DRAWS = np.random.default_rng(0)
ATOMS = DRAWS.normal(size=(M, N, K)) * 2
TARGET = DRAWS.normal(size=(N, 7)) * 2
MEANS = Coefficients((), (), (), ())
QUANTILES = Coefficients((), (), jnp.float32(KAPPA), ())
HISTOGRAMS = Coefficients((), (), (), Support(jnp.float32(-3.0), jnp.float32(1.0)))
BINS = np.linspace(-3.0, 1.0, K)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def pooled(drop):
    """Kuznetsov et al. 2020: of each successor the atoms of all critics, sorted, without the greatest."""
    return [sorted(ATOMS[:, n].ravel().tolist())[: M * K - drop * M] for n in range(N)]


@pytest.mark.parametrize(
    "aggregate, target, climbed",
    [
        (ensembles.minimum(), ATOMS.min(0), ATOMS.mean(2).min(0)),
        (ensembles.minimum("mean"), ATOMS.min(0), ATOMS.mean((0, 2))),
        (ensembles.minimum("first"), ATOMS.min(0), ATOMS[0].mean(1)),
        (ensembles.mean(), ATOMS.mean(0), ATOMS.mean((0, 2))),
        (ensembles.truncated(2), pooled(2), ATOMS.mean((0, 2))),
        (ensembles.truncated(0), pooled(0), ATOMS.mean((0, 2))),
    ],
    ids=lambda x: x.name if isinstance(x, ensembles.Aggregate) else "",
)
def test_targets_and_what_is_climbed(aggregate, target, climbed):
    aggregate.check(M, K)
    assert aggregate.draw(jax.random.key(0), M, 3) == ()
    close(aggregate.target(Atoms(jnp.float32(ATOMS))).points, target)
    close(aggregate.climb(ensembles.means(jnp.float32(ATOMS), MEANS)), climbed)


def test_subset_draws_every_pair_equally_often():
    """Chen et al. 2021, algorithm 1: distinct members, uniformly. Of a share the deviation is 0.004."""
    index = np.asarray(ensembles.subset(2).draw(jax.random.key(0), M, 100, 100)).reshape(-1, 2)
    pairs, counts = np.unique(np.sort(index, axis=1), axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    np.testing.assert_allclose(counts / len(index), 1 / 6, atol=0.02)


def test_subset_is_the_least_of_those_drawn():
    aggregate = ensembles.subset(2)
    params = {"params": {"encoder": jnp.zeros(3), "value": jnp.float32(ATOMS)}, "count": jnp.int32(7)}
    chosen = ensembles.pick(params, jnp.array([3, 1]))
    assert chosen["params"]["encoder"].shape == (3,)
    assert chosen["count"] == 7
    close(aggregate.target(Atoms(chosen["params"]["value"])).points, np.minimum(ATOMS[3], ATOMS[1]))
    close(aggregate.climb(jnp.float32(ATOMS.mean(2))), ATOMS.mean((0, 2)))


def test_bootstrap():
    reward, discount = DRAWS.normal(size=N), np.where(np.arange(N) == 2, 0.0, 0.9)
    batch = NStep(obs=(), action=(), reward=jnp.float32(reward), discount=jnp.float32(discount), next_obs=(), length=())  # type: ignore[arg-type]
    close(ensembles.bootstrap(batch, Atoms(jnp.float32(TARGET))).points, reward[:, None] + discount[:, None] * TARGET)


WEIGHT = DRAWS.uniform(0.2, 1.0, size=N)


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_expectile_loss_with_weights(tau):
    """Omura et al. 2025: values below their target count τ, those above it 1 - τ; at ½ it is the squared loss."""
    error = TARGET[:, :1] - ATOMS[:, :, :1]
    expected = (WEIGHT[:, None] * np.where(error > 0, tau, 1 - tau) * error**2).mean((1, 2))
    arguments = jnp.float32(ATOMS[:, :, :1]), Atoms(jnp.float32(TARGET[:, :1])), MEANS, jnp.float32(WEIGHT)
    found = ensembles.loss(*arguments, jnp.float32(tau))
    close(found, expected)
    if tau == 0.5:
        np.testing.assert_array_equal(found, ensembles.loss(*arguments))


@pytest.mark.parametrize("params", [MEANS, QUANTILES, HISTOGRAMS], ids=["mean", "quantiles", "categorical"])
def test_a_weighted_loss_is_the_weighted_mean_of_those_of_each_transition(params):
    size, probs = (1, ()) if params is MEANS else (K, ())
    if params is HISTOGRAMS:
        probs = jnp.full((N, K), 1 / K)
    target = Atoms(jnp.float32(TARGET[:, :size]), probs)
    values = jnp.float32(ATOMS[:, :, :size])
    one = lambda n: jax.tree.map(lambda x: x[n : n + 1], target)
    alone = [ensembles.loss(values[:, n : n + 1], one(n), params) for n in range(N)]
    close(ensembles.loss(values, target, params, jnp.float32(WEIGHT)), (np.stack(alone, 1) * WEIGHT).mean(1))


def test_errors_are_those_of_the_means():
    found = ensembles.errors(jnp.float32(ATOMS), Atoms(jnp.float32(TARGET)), QUANTILES)
    close(found, np.abs(TARGET.mean(1) - ATOMS.mean(2)).mean(0))


def features_of(draws=DRAWS):
    """Of (s, a) and of its successor, which are much alike, a last layer, rewards and discounts."""
    features = draws.normal(size=(M, N, 5))
    following = features + 0.3 * draws.normal(size=features.shape)
    return features, following, draws.normal(size=(M, 5, 1)), np.where(np.arange(N) == 2, 0.0, 0.9)


def excess_of(features, frozen, following, kernel, reward, discount):
    """He et al. 2024, as the authors' code computes it; of a transition that terminated 0."""
    norm = lambda x: np.linalg.norm(x, axis=-1)
    gamma = np.where(discount > 0, discount, 1.0)
    inner = norm(features) ** 2 + gamma**2 * norm(following) ** 2 - reward**2 / norm(kernel[..., 0])[:, None] ** 2
    bound = 0.5 / gamma * inner / (norm(features) * norm(frozen))
    cosine = (features * frozen).sum(-1) / (norm(features) * norm(frozen))
    return np.where(discount > 0, np.maximum(cosine - bound, 0.0), 0.0), cosine, bound


def rewarded(reward, discount):
    parts = dict.fromkeys(("obs", "action", "next_obs", "length"), ())
    return NStep(**parts, reward=jnp.float32(reward), discount=jnp.float32(discount))  # type: ignore[arg-type]


def test_excess_of_representations_and_its_gradient():
    """Part of the pairs exceed the bound. The bound is a constant: the gradient is that of the cosine alone."""
    features, following, kernel, discount = features_of()
    frozen = following + 0.1 * DRAWS.normal(size=following.shape)
    reward = 4.0 * DRAWS.normal(size=N)
    expected, _, bound = excess_of(features, frozen, following, kernel, reward, discount)
    assert 0.2 < (expected > 0).mean() < 0.8
    batch, parts = rewarded(reward, discount), [jnp.float32(x) for x in (frozen, following, kernel)]
    total = lambda x: ensembles.representation_excess(x, *parts, batch)
    close(total(jnp.float32(features)), expected.mean(1))
    direction = DRAWS.normal(size=features.shape)

    def moved(step):
        cosine = excess_of(features + step * direction, frozen, following, kernel, reward, discount)[1]
        return np.where(expected > 0, cosine - bound, 0.0).mean(1).sum()

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    _, found = jax.jvp(lambda x: total(x).sum(), (jnp.float32(features),), (jnp.float32(direction),))
    np.testing.assert_allclose(found, slope, rtol=1e-3)


def test_where_the_bellman_equation_holds_nothing_exceeds_the_bound():
    """r = w (f - γ f') for every member: the bound is Cauchy and Schwarz's."""
    features, following, kernel, discount = features_of(np.random.default_rng(1))
    for m in range(M):
        reward = ((features[m] - discount[:, None] * following[m]) @ kernel[m])[:, 0]
        one = [jnp.float32(x[[m]]) for x in (features, following, following, kernel)]
        assert ensembles.representation_excess(*one, rewarded(reward, discount)).item() < 1e-6


def test_squared_loss():
    def total(values):
        return ensembles.loss(values, Atoms(jnp.float32(TARGET[:, :1])), MEANS).sum()

    values = jnp.float32(ATOMS[:, :, :1])
    error = TARGET[:, :1] - ATOMS[:, :, :1]
    close(ensembles.loss(values, Atoms(jnp.float32(TARGET[:, :1])), MEANS), 0.5 * (error**2).mean((1, 2)))
    close(jax.grad(total)(values), -error / N)


def test_quantile_loss():
    """A pair at a time; of the gradient, the slope of each."""
    expected, slope = np.zeros(M), np.zeros((M, N, K))
    for m, n, k in np.ndindex(M, N, K):
        fraction = (2 * k + 1) / (2 * K)
        for y in TARGET[n]:
            u = y - ATOMS[m, n, k]
            size = 0.5 * u**2 if abs(u) <= KAPPA else KAPPA * (abs(u) - 0.5 * KAPPA)
            weight = abs(fraction - (u < 0)) / KAPPA / (N * K * len(TARGET[n]))
            expected[m] += weight * size
            slope[m, n, k] -= weight * np.clip(u, -KAPPA, KAPPA)

    def total(values):
        losses = ensembles.loss(values, Atoms(jnp.float32(TARGET)), Coefficients((), (), jnp.float32(KAPPA), ()))
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(jnp.float32(ATOMS))
    close(losses, expected)
    close(gradient, slope)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_histograms():
    """Outputs are logits; the target is the histogram of the member with the least mean, or the mixture of all."""
    probs = softmax(ATOMS)
    means = probs @ BINS
    atoms = ensembles.returns_of(jnp.float32(ATOMS), HISTOGRAMS)
    close(atoms.points, np.broadcast_to(BINS, ATOMS.shape))
    close(atoms.probs, probs)
    close(ensembles.means(jnp.float32(ATOMS), HISTOGRAMS), means)
    least = ensembles.minimum().target(atoms)
    close(least.probs, probs[means.argmin(0), np.arange(N)])
    close(least.mean(), means.min(0).mean())
    mixture = ensembles.mean().target(atoms)
    close(mixture.probs, probs.mean(0))
    close(mixture.points, np.broadcast_to(BINS, (N, K)))


def test_loss_of_histograms():
    """Bellemare et al. 2017, algorithm 1, an atom at a time; some fall beyond the ends."""
    weights = softmax(TARGET)
    projected = np.zeros((N, K))
    for n, j in np.ndindex(TARGET.shape):
        position = (np.clip(TARGET[n, j], -3.0, 1.0) + 3.0) / (4.0 / (K - 1))
        low, high = int(np.floor(position)), int(np.ceil(position))
        if low == high:
            projected[n, low] += weights[n, j]
        else:
            projected[n, low] += weights[n, j] * (high - position)
            projected[n, high] += weights[n, j] * (position - low)
    target = Atoms(jnp.float32(TARGET), jnp.float32(weights))
    expected = -(projected * np.log(softmax(ATOMS))).sum(2).mean(1)
    close(ensembles.loss(jnp.float32(ATOMS), target, HISTOGRAMS), expected)


def test_messages():
    with pytest.raises(ValueError, match="climb must be one of minimum, mean, first"):
        ensembles.minimum("last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be at most num_critics"):
        ensembles.subset(3).check(2, 1)
    with pytest.raises(ValueError, match="size must be a whole number"):
        ensembles.subset(0)
    with pytest.raises(ValueError, match="set num_quantiles in the network"):
        ensembles.truncated(1).check(5, 1)
    with pytest.raises(ValueError, match="must not be negative"):
        ensembles.truncated(-1)
