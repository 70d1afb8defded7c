"""Bang-bang, mixture and autoregressive distributions against SciPy, enumeration, integrals and samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl.ops import distributions

B, D, K = 3, 2, 3
NVEC = (2, 3, 2)
KEYS = jax.random.split(jax.random.key(0), 8)


def bang_bang(key, num_levels=2):
    return distributions.BangBang(jax.random.normal(key, (B, D, num_levels)))


def bang_off_bang(key):
    return bang_bang(key, 3)


def mixture(key, spread=1.5):
    key_logits, key_mean, key_std = jax.random.split(key, 3)
    return distributions.GaussianMixture(
        jax.random.normal(key_logits, (B, K)),
        spread * jax.random.normal(key_mean, (B, K, D)),
        0.5 * jax.random.normal(key_std, (B, K, D)),
    )


def autoregressive(key, nvec=NVEC):
    keys = jax.random.split(key, 2 * len(nvec))
    logits = tuple(jax.random.normal(keys[i], (B, n)) for i, n in enumerate(nvec))
    sizes = [sum(nvec[:i]) for i in range(1, len(nvec))]
    tables = tuple(2.0 * jax.random.normal(keys[-i], (B, size, nvec[i])) for i, size in enumerate(sizes, start=1))
    return distributions.AutoregressiveCategorical(logits, tables)


DISCRETE = [bang_bang, bang_off_bang, autoregressive]
MAKERS = [*DISCRETE, mixture]


def support(distribution):
    """All draws [n, d]."""
    if isinstance(distribution, distributions.BangBang):
        return np.array(
            list(itertools.product(np.linspace(-1, 1, distribution.logits.shape[-1]), repeat=D)), np.float32
        )
    return np.array(list(itertools.product(*(range(n) for n in NVEC))), np.int32)


@jax.jit
def summary(distribution, other, x):
    """All that a loss reads; arguments rather than closures, so that tests share the programs."""
    return distribution.log_prob(x), distribution.entropy(), distribution.kl(other), distribution.mode()


@jax.jit
def sample(distribution, key):
    return distribution.sample(key)


@jax.jit
def sample_many(distribution, keys):
    return jax.vmap(distribution.sample_and_log_prob)(keys)


@jax.jit
def log_prob_of_many(distribution, x):
    return jax.vmap(distribution.log_prob)(x)


def log_probs_of_support(distribution):
    """Log-probabilities [n, B]."""
    points = support(distribution)
    each = np.broadcast_to(points[:, None], (len(points), B, points.shape[1]))
    return np.asarray(log_prob_of_many(distribution, each), np.float64)


def draw(distribution, num_draws=20_000, key=KEYS[7]):
    return np.asarray(sample_many(distribution, jax.random.split(key, num_draws))[0])


def reference_log_prob(d, x):
    """By SciPy and loops, [B]."""
    x = np.asarray(x, np.float64)
    if isinstance(d, distributions.BangBang) and d.logits.shape[-1] == 2:
        probability = scipy.special.expit(np.asarray(d.logits[..., 1] - d.logits[..., 0], np.float64))
        return scipy.stats.bernoulli.logpmf((x + 1) / 2, probability).sum(-1)
    if isinstance(d, distributions.BangBang):
        log_probs = scipy.special.log_softmax(np.asarray(d.logits, np.float64), axis=-1)
        return np.array([sum(log_probs[b, i, int(x[b, i]) + 1] for i in range(D)) for b in range(B)])
    if isinstance(d, distributions.GaussianMixture):
        log_weight = scipy.special.log_softmax(np.asarray(d.logits, np.float64), axis=-1)
        each = scipy.stats.norm.logpdf(x[:, None], np.asarray(d.mean), np.exp(np.asarray(d.log_std))).sum(-1)
        return scipy.special.logsumexp(log_weight + each, axis=-1)
    total = np.zeros(B)
    for b in range(B):
        for i, logits in enumerate(d.logits):
            row = np.asarray(logits[b], np.float64)
            for j in range(i):
                row = row + np.asarray(d.tables[i - 1][b, sum(NVEC[:j]) + int(x[b, j])], np.float64)
            total[b] += scipy.special.log_softmax(row)[int(x[b, i])]
    return total


@pytest.mark.parametrize("make", MAKERS)
def test_log_prob_equals_scipy(make):
    distribution = make(KEYS[0])
    xs, log_probs = sample_many(distribution, jax.random.split(KEYS[1], 5))
    for x, log_prob in zip(xs, log_probs, strict=True):
        expected = reference_log_prob(distribution, x)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(summary(distribution, distribution, x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", DISCRETE)
def test_probabilities_sum_to_one_and_are_the_frequencies(make):
    distribution = make(KEYS[0])
    probability = np.exp(log_probs_of_support(distribution))
    np.testing.assert_allclose(probability.sum(0), 1.0, rtol=1e-5)
    x = draw(distribution)
    frequency = np.stack([(x == point).all(-1).mean(0) for point in support(distribution)])
    assert np.all(np.abs(frequency - probability) <= 5 * np.sqrt(probability * (1 - probability) / len(x)))


def test_density_of_a_mixture_integrates_to_one():
    d = jax.tree.map(lambda leaf: leaf[0], mixture(KEYS[0]))
    axis = np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, D).astype(np.float32)
    density = np.exp(np.asarray(jax.vmap(d.log_prob)(grid), np.float64)).reshape(401, 401)
    assert abs(np.trapezoid(np.trapezoid(density, axis), axis) - 1) < 1e-4


def test_draws_of_a_mixture_have_its_distribution_function():
    """Of both entries together: drawing each entry from a component of its own would fail."""
    d = mixture(KEYS[0])
    x = draw(d)
    weight = scipy.special.softmax(np.asarray(d.logits, np.float64), axis=-1)
    for point in [(0.0, 0.0), (1.0, -0.5), (-1.0, 0.5)]:
        each = scipy.stats.norm.cdf(np.array(point), np.asarray(d.mean), np.exp(np.asarray(d.log_std))).prod(-1)
        expected = (weight * each).sum(-1)
        actual = (x < np.array(point)).all(-1).mean(0)
        assert np.all(np.abs(actual - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(x)))


@pytest.mark.parametrize("make", DISCRETE)
def test_entropy_and_kl_equal_sums_over_all_draws(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])
    log_p, log_q = log_probs_of_support(distribution), log_probs_of_support(other)
    _, entropy, divergence, _ = summary(distribution, other, support(distribution)[:B])
    np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(0), rtol=1e-4)
    np.testing.assert_allclose(divergence, (np.exp(log_p) * (log_p - log_q)).sum(0), rtol=1e-4)


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(0), values.std(0) / np.sqrt(len(values))


def entropy_and_kl_of_draws(distribution, other):
    """Each with its standard error."""
    x, log_prob = sample_many(distribution, jax.random.split(KEYS[2], 20_000))
    return mean_and_error(-log_prob), mean_and_error(log_prob - log_prob_of_many(other, x))


@pytest.mark.parametrize("make", DISCRETE)
def test_entropy_and_kl_are_those_of_draws(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])
    (entropy, entropy_error), (divergence, divergence_error) = entropy_and_kl_of_draws(distribution, other)
    _, actual_entropy, actual_divergence, _ = summary(distribution, other, support(distribution)[:B])
    assert np.all(np.abs(actual_entropy - entropy) <= 5 * entropy_error)
    assert np.all(np.abs(actual_divergence - divergence) <= 5 * divergence_error)


@pytest.mark.parametrize("spread", [0.2, 1.5, 50.0])
def test_bounds_of_a_mixture_hold_of_draws(spread):
    distribution = mixture(KEYS[0], spread)
    other = distribution.replace(
        logits=distribution.logits[:, ::-1], mean=distribution.mean + 0.3, log_std=distribution.log_std * 0.8
    )
    (entropy, entropy_error), (divergence, divergence_error) = entropy_and_kl_of_draws(distribution, other)
    _, lower, upper, _ = summary(distribution, other, distribution.mean[:, 0])
    gap, excess = entropy - np.asarray(lower), np.asarray(upper) - divergence
    assert np.all((gap >= -5 * entropy_error) & (gap <= np.log(K) + 5 * entropy_error))
    assert np.all(excess >= -5 * divergence_error)
    if spread == 50.0:
        # far apart, both are attained
        assert np.all(np.abs(gap) <= 5 * entropy_error)
        assert np.all(np.abs(excess) <= 5 * divergence_error + 1e-4)


@pytest.mark.parametrize("num", [1, 4])
def test_bounds_of_a_mixture_are_attained_by_one_component_and_by_equal_ones(num):
    key_mean, key_std = jax.random.split(KEYS[3])
    mean, log_std = jax.random.normal(key_mean, (B, D)), 0.3 * jax.random.normal(key_std, (B, D))
    gaussian, other = distributions.Gaussian(mean, log_std), distributions.Gaussian(mean + 0.4, log_std - 0.1)

    def of(g):
        copies = [jnp.stack([leaf] * num, axis=1) for leaf in (g.mean, g.log_std)]
        return distributions.GaussianMixture(jnp.broadcast_to(jnp.linspace(0.0, 1.0, num), (B, num)), *copies)

    x = sample(gaussian, KEYS[4])
    actual, expected = summary(of(gaussian), of(other), x), summary(gaussian, other, x)
    for value, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_responsibilities_of_a_mixture():
    d = mixture(KEYS[0])
    x = sample(d, KEYS[1])
    np.testing.assert_allclose(scipy.special.logsumexp(d.joint_log_prob(x), axis=-1), d.log_prob(x), rtol=1e-5)
    far = d.replace(mean=jnp.zeros((B, K, D)) + 100.0 * jnp.arange(K, dtype=jnp.float32)[None, :, None])
    np.testing.assert_array_equal(np.argmax(far.joint_log_prob(far.mean[:, 1]), -1), 1)


@pytest.mark.parametrize("make", MAKERS)
def test_types_and_shapes(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])
    x = sample(distribution, KEYS[2])
    log_prob, entropy, divergence, mode = summary(distribution, other, x)
    discrete = make is autoregressive
    for value in (x, mode):
        assert value.shape == (B, len(NVEC) if discrete else D)
        assert value.dtype == (jnp.int32 if discrete else jnp.float32)
    for value in (log_prob, entropy, divergence):
        assert value.shape == (B,)
        assert value.dtype == jnp.float32
        assert not value.weak_type


@pytest.mark.parametrize("make", MAKERS)
def test_maps_and_stacks(make):
    """A rollout stacks distributions along time; a minibatch takes rows of them."""
    distribution = make(KEYS[0])
    x = sample(distribution, KEYS[1])
    expected = summary(distribution, distribution, x)
    _, stacked = jax.lax.scan(lambda carry, _: (carry, distribution), 0, length=2)
    rows = jax.tree.map(lambda leaf: leaf[1, 2:], stacked)
    of_rows = summary(rows, rows, x[2:])
    of_stack = summary(stacked, stacked, jnp.stack([x, x]))
    one_by_one = jax.jit(jax.vmap(summary))(distribution, distribution, x)
    for i, wanted in enumerate(expected):
        np.testing.assert_allclose(of_rows[i], wanted[2:], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_stack[i][1], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one_by_one[i], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_noise_is_drawn_ahead_from_shapes_alone(make):
    distribution = make(KEYS[0])
    shapes = jax.eval_shape(lambda: distribution)
    keys = jax.random.split(KEYS[1], 2)
    noise = jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(shapes.noise))(keys))
    np.testing.assert_allclose(distribution.sample_from(noise), sample(distribution, keys[1]), rtol=1e-6)


@jax.jit
def values_and_jacobian(distribution, other, x):
    def terms(d):
        return jnp.stack([d.log_prob(x), d.entropy(), d.kl(other), other.kl(d), d.sample_and_log_prob(KEYS[3])[1]])

    return terms(distribution), jax.jacrev(terms)(distribution)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_gradients_are_finite(make, scale):
    distribution = jax.tree.map(lambda leaf: scale * leaf, make(KEYS[0]))
    if make is mixture:
        distribution = distribution.replace(log_std=jnp.clip(distribution.log_std, -10.0, 4.0))
    values, jacobian = values_and_jacobian(distribution, make(KEYS[1]), sample(distribution, KEYS[2]))
    assert np.all(np.isfinite(values))
    for leaf in jax.tree.leaves(jacobian):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_a_draw_of_a_mixture_is_differentiable_in_its_component():
    d = mixture(KEYS[0])
    gradient = jax.jit(jax.grad(lambda mean: jnp.sum(d.replace(mean=mean).sample(KEYS[1]))))(d.mean)
    np.testing.assert_array_equal(np.sort(gradient, axis=1)[:, -1], 1.0)
    np.testing.assert_array_equal(gradient.sum(1), 1.0)


# Modes


def test_mode_is_the_most_probable():
    for make in DISCRETE:
        distribution = make(KEYS[5])
        best = support(distribution)[log_probs_of_support(distribution).argmax(0)]
        np.testing.assert_array_equal(distribution.mode(), best)


def test_mode_of_an_autoregressive_one_need_not_begin_with_the_best_first_part():
    """Part one prefers 0 by 0.6 to 0.4, after which the second is even; after 1 it is certain."""
    d = distributions.AutoregressiveCategorical(
        (jnp.log(jnp.array([0.6, 0.4])), jnp.zeros(2)), (jnp.array([[0.0, 0.0], [0.0, 20.0]]),)
    )
    np.testing.assert_array_equal(d.mode(), [1, 1])


def test_mode_of_a_mixture_is_the_mean_of_the_heaviest():
    d = mixture(KEYS[0])
    np.testing.assert_array_equal(d.mode(), np.asarray(d.mean)[np.arange(B), np.asarray(d.logits).argmax(-1)])


# Edges


def test_bang_bang_takes_only_extremes_and_reads_the_nearest_value():
    assert set(np.unique(draw(bang_bang(KEYS[0])))) == {-1.0, 1.0}
    assert set(np.unique(draw(bang_off_bang(KEYS[0])))) == {-1.0, 0.0, 1.0}
    d = bang_off_bang(KEYS[0])
    near = d.log_prob(jnp.array([[-1.3, 0.4]] * B))
    np.testing.assert_array_equal(near, d.log_prob(jnp.array([[-1.0, 0.0]] * B)))


def test_parts_that_depend_on_one_another_have_less_entropy_than_alone():
    """Two fair coins that always agree."""
    d = distributions.AutoregressiveCategorical((jnp.zeros(2), jnp.zeros(2)), (20.0 * jnp.eye(2),))
    np.testing.assert_allclose(d.entropy(), np.log(2), rtol=1e-4)
    x = draw(d)
    assert np.all(x[:, 0] == x[:, 1])
    assert set(x[:, 0]) == {0, 1}


def test_tables_of_zeros_make_independent_parts():
    d = autoregressive(KEYS[0])
    independent = distributions.MultiCategorical(d.logits)
    d = d.replace(tables=tuple(jnp.zeros_like(table) for table in d.tables))
    other = d.replace(logits=tuple(-logits for logits in d.logits))
    x = sample(d, KEYS[1])
    expected = summary(independent, distributions.MultiCategorical(other.logits), x)
    for actual, wanted in zip(summary(d, other, x), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_an_illegal_part_is_never_drawn_whatever_came_before():
    d = autoregressive(KEYS[0])
    masked = distributions.masked_categorical(d.logits[1], jnp.array([[True, False, True]] * B))
    d = d.replace(logits=(d.logits[0], masked.logits, d.logits[2]))
    assert set(np.unique(draw(d)[..., 1])) == {0, 2}
    probability = np.exp(log_probs_of_support(d))
    np.testing.assert_allclose(probability.sum(0), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(probability[support(d)[:, 1] == 1], 0.0)
    assert np.all(np.isfinite(d.entropy()))


def test_too_many_combinations():
    d = distributions.AutoregressiveCategorical((jnp.zeros(65), jnp.zeros(65)), (jnp.zeros((65, 65)),))
    with pytest.raises(ValueError, match=r"at most 4096; got nvec = \(65, 65\), 4225 combinations"):
        d.entropy()
