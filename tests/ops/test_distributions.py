"""Distributions against numpyro, numerical integrals and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest

from jaxrl.ops import distributions

B, A, D = 5, 4, 3
LOW, HIGH = (-2.0, 0.0, 1.0), (-1.0, 3.0, 1.5)
KEYS = jax.random.split(jax.random.key(0), 8)


def categorical(key):
    return distributions.Categorical(2.0 * jax.random.normal(key, (B, A)))


def masked(key):
    mask = jnp.ones((B, A), bool).at[:, 1].set(False).at[0].set(jnp.arange(A) == 2)
    return distributions.masked_categorical(2.0 * jax.random.normal(key, (B, A)), mask)


def multi_categorical(key):
    return distributions.MultiCategorical((categorical(key).logits, jax.random.normal(key, (B, 2))))


def gaussian(key):
    key_mean, key_std = jax.random.split(key)
    mean, log_std = jax.random.normal(key_mean, (B, D)), 0.5 * jax.random.normal(key_std, (B, D))
    return distributions.Gaussian(mean, log_std)


def tanh_gaussian(key):
    base = gaussian(key)
    return distributions.TanhGaussian(base.mean, base.log_std, LOW, HIGH)


MAKERS = [categorical, masked, multi_categorical, gaussian, tanh_gaussian]


def in_numpyro(distribution):
    """The same in numpyro; of a masked one the legal part, of several parts a list."""
    if isinstance(distribution, distributions.Categorical):
        return [npd.Categorical(logits=distribution.logits)]
    if isinstance(distribution, distributions.MultiCategorical):
        return [npd.Categorical(logits=logits) for logits in distribution.logits]
    base = npd.Normal(distribution.mean, jnp.exp(distribution.log_std)).to_event(1)
    if isinstance(distribution, distributions.Gaussian):
        return [base]
    low, high = jnp.asarray(LOW), jnp.asarray(HIGH)
    squash = npd.transforms.ComposeTransform(
        [
            npd.transforms.AffineTransform(jnp.zeros(D), 2.0 * jnp.ones(D)),
            npd.transforms.SigmoidTransform(),
            npd.transforms.AffineTransform(low, high - low),
        ]
    )
    return [npd.TransformedDistribution(base, squash)]


def loose():
    return jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")


def numpyro_sum(compute, *args):
    dtypes, ranks = loose()
    with dtypes, ranks:
        return sum(compute(*part) for part in zip(*args, strict=True))


def numpyro_kl(d, other):
    """numpyro has none of two categoricals, so it is summed over all actions."""
    if not hasattr(d, "logits"):
        return npd.kl_divergence(d, other)
    actions = jnp.arange(d.logits.shape[-1])[:, None]
    log_p, log_q = (np.asarray(x.log_prob(actions), np.float64) for x in (d, other))
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=0)


def parts(x, distribution):
    if isinstance(distribution, distributions.MultiCategorical):
        return [x[..., i] for i in range(x.shape[-1])]
    return [x]


def draw(distribution, num_draws, key=KEYS[7]):
    return jax.jit(jax.vmap(lambda d, key: d.sample(key), in_axes=(None, 0)))(
        distribution, jax.random.split(key, num_draws)
    )


@pytest.mark.parametrize("make", MAKERS)
def test_log_prob_equals_numpyro(make):
    distribution = make(KEYS[0])
    x = distribution.sample(KEYS[1])
    expected = numpyro_sum(lambda d, x: d.log_prob(x), in_numpyro(distribution), parts(x, distribution))
    np.testing.assert_allclose(distribution.log_prob(x), expected, rtol=1e-4, atol=1e-4)
    again, log_prob = distribution.sample_and_log_prob(KEYS[1])
    np.testing.assert_allclose(again, x, rtol=1e-6)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [categorical, masked, multi_categorical, gaussian])
def test_entropy_equals_numpyro(make):
    distribution = make(KEYS[0])
    expected = numpyro_sum(lambda d: d.entropy(), in_numpyro(distribution))
    np.testing.assert_allclose(distribution.entropy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_kl_equals_numpyro(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])
    bases = (distribution, other)
    if make is tanh_gaussian:
        bases = (distribution.base(), other.base())
    expected = numpyro_sum(numpyro_kl, *map(in_numpyro, bases))
    np.testing.assert_allclose(distribution.kl(other), expected, rtol=1e-5, atol=1e-5)
    assert np.all(distribution.kl(other)[1:] > 0.01)
    np.testing.assert_allclose(distribution.kl(distribution), 0.0, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_draws_have_the_moments(make):
    distribution = make(KEYS[0])
    x = np.asarray(draw(distribution, 20_000), np.float64)
    if make in (gaussian, tanh_gaussian):
        if make is tanh_gaussian:
            unit = (x - np.mean((LOW, HIGH), 0)) / (np.subtract(HIGH, LOW) / 2)
            x = np.arctanh(np.clip(unit, -1 + 1e-7, 1 - 1e-7))
        std = np.exp(distribution.log_std)
        for probability, z in [(0.158655, -1), (0.5, 0), (0.841345, 1)]:
            quantile = (np.quantile(x, probability, axis=0) - distribution.mean) / std
            np.testing.assert_allclose(quantile, z, atol=0.05)
        return
    logits = distribution.logits if make is multi_categorical else (distribution.logits,)
    for values, part in zip(parts(x, distribution), logits, strict=True):
        frequency = np.stack([(values == a).mean(0) for a in range(part.shape[-1])], -1)
        probability = np.asarray(jax.nn.softmax(part))
        error = np.sqrt(probability * (1 - probability) / len(x))
        assert np.all(np.abs(frequency - probability) <= 5 * error)


@pytest.mark.parametrize("make", MAKERS)
def test_entropy_is_the_mean_surprise_of_draws(make):
    distribution = make(KEYS[0])
    _, log_prob = jax.jit(jax.vmap(distribution.sample_and_log_prob))(jax.random.split(KEYS[2], 40_000))
    error = np.asarray(log_prob).std(0) / np.sqrt(len(log_prob))
    assert np.all(np.abs(distribution.entropy() + np.mean(log_prob, 0)) <= 5 * error + 1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_kl_is_the_mean_log_ratio_of_draws(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])

    def log_ratio(key):
        x = distribution.sample(key)
        return distribution.log_prob(x) - other.log_prob(x)

    ratios = np.asarray(jax.jit(jax.vmap(log_ratio))(jax.random.split(KEYS[2], 40_000)))
    error = ratios.std(0) / np.sqrt(len(ratios))
    assert np.all(np.abs(distribution.kl(other) - ratios.mean(0)) <= 5 * error + 1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_types_and_shapes(make):
    distribution, other = make(KEYS[0]), make(KEYS[1])
    x, log_prob = distribution.sample_and_log_prob(KEYS[2])
    event = {categorical: (), masked: (), multi_categorical: (2,)}.get(make, (D,))
    for value in (x, distribution.sample(KEYS[2]), distribution.mode()):
        assert value.shape == (B, *event)
        assert value.dtype == (jnp.float32 if event == (D,) else jnp.int32)
    for value in (log_prob, distribution.log_prob(x), distribution.entropy(), distribution.kl(other)):
        assert value.shape == (B,)
        assert value.dtype == jnp.float32
        assert not value.weak_type


@pytest.mark.parametrize("make", MAKERS)
def test_maps_and_stacks(make):
    """A rollout stacks distributions along time; a minibatch takes rows of them."""
    distribution = make(KEYS[0])
    x = distribution.sample(KEYS[1])
    _, stacked = jax.lax.scan(lambda carry, _: (carry, distribution), 0, length=2)
    rows = jax.tree.map(lambda leaf: leaf[1, 2:], stacked)
    np.testing.assert_allclose(rows.log_prob(x[2:]), distribution.log_prob(x)[2:], rtol=1e-5, atol=1e-6)
    twice = jnp.stack([x, x])
    np.testing.assert_allclose(stacked.log_prob(twice)[1], distribution.log_prob(x), rtol=1e-5, atol=1e-6)
    one_by_one = jax.vmap(lambda d, x: (d.log_prob(x), d.entropy(), d.kl(d), d.mode()))(distribution, x)
    batch = distribution.log_prob(x), distribution.entropy(), distribution.kl(distribution), distribution.mode()
    for actual, expected in zip(one_by_one, batch, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_gradients_are_finite(make, scale):
    distribution = jax.tree.map(lambda leaf: jnp.where(leaf < -1e8, leaf, scale * leaf), make(KEYS[0]))
    if make in (gaussian, tanh_gaussian):
        distribution = distribution.replace(log_std=jnp.clip(distribution.log_std, -10.0, 4.0))
    other = make(KEYS[1])
    x = distribution.sample(KEYS[2])

    def terms(d):
        drawn, log_prob = d.sample_and_log_prob(KEYS[3])
        drawn = jnp.sum(drawn, -1) if drawn.ndim == 2 and drawn.dtype == jnp.float32 else jnp.zeros(B)
        return jnp.stack([d.log_prob(x), d.entropy(), d.kl(other), other.kl(d), log_prob, drawn])

    assert np.all(np.isfinite(jax.jit(terms)(distribution)))
    jacobian = jax.jit(jax.jacrev(terms))(distribution)
    for leaf in jax.tree.leaves(jacobian):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_mode_of_categoricals_is_the_most_probable():
    np.testing.assert_array_equal(distributions.Categorical(jnp.array([0.0, 3.0, 1.0])).mode(), 1)
    both = distributions.MultiCategorical((jnp.array([[0.0, 3.0, 1.0]]), jnp.array([[2.0, 0.0]])))
    np.testing.assert_array_equal(both.mode(), [[1, 0]])


def test_mode_of_tanh_gaussian_is_the_median():
    distribution = tanh_gaussian(KEYS[0])
    below = np.mean(np.asarray(draw(distribution, 10_000)) < np.asarray(distribution.mode()), axis=0)
    np.testing.assert_allclose(below, 0.5, atol=0.025)


# Masks


def test_illegal_actions_have_no_probability_and_are_never_drawn():
    logits = jnp.array([[9.0, 0.0, 9.0, 1.0, 9.0]])
    mask = jnp.array([[False, True, False, True, False]])
    distribution = distributions.masked_categorical(logits, mask)
    np.testing.assert_array_equal(distribution.probs()[~mask], 0.0)
    np.testing.assert_allclose(distribution.probs()[mask], jax.nn.softmax(jnp.array([0.0, 1.0])), rtol=1e-6)
    assert set(np.unique(draw(distribution, 5000))) == {1, 3}
    assert int(distribution.mode()[0]) == 3


@pytest.mark.parametrize("legal", [0, 1, 2])
def test_single_legal_action(legal):
    mask = jnp.arange(3) == legal
    distribution = distributions.masked_categorical(jnp.array([5.0, -3.0, 0.0]), mask)
    assert set(np.unique(draw(distribution, 100))) == {legal}
    np.testing.assert_array_equal(distribution.log_prob(jnp.int32(legal)), 0.0)
    np.testing.assert_array_equal(distribution.entropy(), 0.0)


def test_mask_without_legal_action_gives_uniform():
    distribution = distributions.masked_categorical(jnp.array([5.0, -3.0, 0.0]), jnp.zeros(3, bool))
    np.testing.assert_allclose(distribution.probs(), 1 / 3, rtol=1e-6)
    assert set(np.unique(draw(distribution, 200))) == {0, 1, 2}


def test_masks_of_other_dtypes():
    logits = jnp.array([0.5, 1.0, 2.0])
    expected = distributions.masked_categorical(logits, jnp.array([True, False, True]))
    for dtype in (jnp.int8, jnp.float32):
        actual = distributions.masked_categorical(logits, jnp.array([1, 0, 1], dtype))
        np.testing.assert_array_equal(actual.logits, expected.logits)


def test_no_gradient_reaches_illegal_logits():
    mask = jnp.array([True, False, True])

    def terms(logits):
        d = distributions.masked_categorical(logits, mask)
        return d.entropy() + d.log_prob(jnp.int32(0)) + d.kl(distributions.masked_categorical(-logits, mask))

    gradient = jax.grad(terms)(jnp.array([0.3, 50.0, -1.0]))
    assert gradient[1] == 0
    assert np.all(gradient[np.array([0, 2])] != 0)


@pytest.mark.parametrize("num_actions", [2, 7, 300])
def test_sampling_inverts_the_distribution_function_at_its_steps(monkeypatch, num_actions):
    """Uniform numbers exactly at the steps, where rounding could yield an action of probability zero."""
    key_logits, key_mask = jax.random.split(KEYS[4])
    mask = jax.random.bernoulli(key_mask, 0.5, (num_actions,)).at[0].set(False).at[-1].set(False)
    mask = mask.at[num_actions // 2].set(True)
    logits = distributions.masked_categorical(3.0 * jax.random.normal(key_logits, (num_actions,)), mask).logits
    cumulative = jnp.cumsum(jax.nn.softmax(logits))
    steps = jnp.concatenate([jnp.nextafter(cumulative, -1.0), cumulative, jnp.nextafter(cumulative, 2.0)])
    largest = np.float32(1 - 2**-23)
    uniform = jnp.append(jnp.clip(steps, 0.0, largest), jnp.array([0.0, largest]))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: uniform[:, None])
    drawn = distributions.Categorical(jnp.broadcast_to(logits, (len(uniform), num_actions))).sample(KEYS[5])
    assert np.all(np.asarray(mask)[drawn])
    expected = np.searchsorted(np.asarray(cumulative), np.asarray(uniform) * float(cumulative[-1]), side="right")
    order = np.flatnonzero(mask)
    rank = np.searchsorted(order, drawn)
    assert np.all(np.abs(rank - np.searchsorted(order, np.minimum(expected, order[-1]))) <= 1)


def test_rounding_of_the_distribution_function_draws_no_illegal_action(monkeypatch):
    """A sum may grow at an action of weight zero, where it is computed in parallel; here it grows by a lot."""
    mask = jnp.array([False, True, False, True, False])
    logits = jnp.broadcast_to(distributions.masked_categorical(jnp.zeros(5), mask).logits, (101, 5))
    cumsum = jnp.cumsum
    monkeypatch.setattr(jnp, "cumsum", lambda x, axis: cumsum(x, axis=axis) + jnp.where(x == 0, 0.1, 0.0))
    uniform = jnp.linspace(0.0, 1 - 2**-23, 101)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: uniform[:, None])
    assert set(np.unique(distributions.Categorical(logits).sample(KEYS[5]))) == {1, 3}


# Squashing


def numerical_entropy(mean, std, half_range):
    """Trapezoid rule in float64, far finer than the Gaussian is wide."""
    z = np.linspace(-10, 10, 20_001)
    weight = np.exp(-(z**2) / 2)
    u = mean + std * z
    slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))
    return 0.5 * np.log(2 * np.pi * np.e * std**2) + weight @ slope / weight.sum() + np.log(half_range)


def test_entropy_of_tanh_gaussian_is_within_its_bound():
    means, log_stds = np.meshgrid(np.linspace(-6, 6, 9), np.linspace(-5, 3, 9))
    distribution = distributions.TanhGaussian(
        jnp.asarray(means.reshape(-1, 1), jnp.float32), jnp.asarray(log_stds.reshape(-1, 1), jnp.float32), 0.0, 5.0
    )
    expected = [numerical_entropy(m, np.exp(s), 2.5) for m, s in zip(means.ravel(), log_stds.ravel(), strict=True)]
    # 2e-5, and the rounding of float32 in differences of numbers as large as log_std and the slope
    np.testing.assert_allclose(distribution.entropy(), expected, atol=2e-5, rtol=1e-6)


def test_gradient_of_entropy_of_tanh_gaussian():
    def entropy(mean, log_std):
        return distributions.TanhGaussian(mean[None], log_std[None], -1.0, 1.0).entropy()

    for mean, log_std in [(0.0, -1.0), (1.3, 0.2), (-4.0, 1.5)]:
        actual = jax.grad(entropy, argnums=(0, 1))(jnp.float32(mean), jnp.float32(log_std))
        h = 1e-4
        expected = [
            (numerical_entropy(mean + h, np.exp(log_std), 1) - numerical_entropy(mean - h, np.exp(log_std), 1)),
            (numerical_entropy(mean, np.exp(log_std + h), 1) - numerical_entropy(mean, np.exp(log_std - h), 1)),
        ]
        np.testing.assert_allclose(actual, np.asarray(expected) / (2 * h), atol=5e-4)


def test_density_of_tanh_gaussian_integrates_to_one():
    x = np.linspace(-2.0, 4.0, 20_002)[1:-1]
    distribution = distributions.TanhGaussian(jnp.full((len(x), 1), 0.4), jnp.full((len(x), 1), -0.3), -2.0, 4.0)
    density = np.exp(np.asarray(distribution.log_prob(jnp.asarray(x[:, None], jnp.float32)), np.float64))
    assert abs(np.trapezoid(density, x) - 1) < 1e-3


def test_tanh_gaussian_at_and_beyond_its_bounds():
    distribution = distributions.TanhGaussian(jnp.zeros((5, 1)), jnp.zeros((5, 1)), -2.0, 4.0)

    log_prob = jax.jit(distribution.log_prob)
    x = jnp.array([[-2.1], [-2.0], [1.0], [4.0], [4.1]])
    value = log_prob(x)
    assert np.all(np.isfinite(value))
    np.testing.assert_allclose(value[0], value[1])
    np.testing.assert_allclose(value[3], value[4])
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(log_prob(x)))(x)))
    saturated = distributions.TanhGaussian(jnp.full((1, 1), 60.0), jnp.zeros((1, 1)), -2.0, 4.0)
    drawn, surprise = saturated.sample_and_log_prob(KEYS[0])
    np.testing.assert_array_equal(drawn, 4.0)
    assert np.isfinite(surprise)
    # the slope of tanh at 60 and the entropy pull the mean back, however far it went
    gradient = jax.grad(lambda mean: jnp.sum(saturated.replace(mean=mean).sample_and_log_prob(KEYS[0])[1]))
    np.testing.assert_allclose(gradient(saturated.mean), 2.0, rtol=1e-5)
    gradient = jax.grad(lambda mean: jnp.sum(saturated.replace(mean=mean).entropy()))
    np.testing.assert_allclose(gradient(saturated.mean), -2.0, rtol=1e-5)


def test_draws_and_modes_lie_within_bounds():
    distribution = distributions.TanhGaussian(10.0 * gaussian(KEYS[0]).mean, jnp.ones((B, D)), LOW, HIGH)
    x = np.asarray(draw(distribution, 500))
    assert np.all((x >= np.float32(LOW)) & (x <= np.float32(HIGH)))
    mode = np.asarray(distribution.mode())
    assert np.all((mode >= np.float32(LOW)) & (mode <= np.float32(HIGH)))
    assert np.all(x.max((0, 1)) > 0.95 * np.array(HIGH) + 0.05 * np.array(LOW))


def test_bounds_given_as_arrays_are_structure():
    mean = jnp.zeros((B, D))
    of_arrays = distributions.TanhGaussian(mean, mean, np.float32(LOW), jnp.asarray(HIGH))
    of_tuples = distributions.TanhGaussian(mean, mean, LOW, HIGH)
    assert jax.tree.structure(of_arrays) == jax.tree.structure(of_tuples)
    assert len(jax.tree.leaves(of_arrays)) == 2
    np.testing.assert_array_equal(of_arrays.mode(), of_tuples.mode())
    of_numbers = distributions.TanhGaussian(mean, mean, -1, np.float32(1))
    assert jax.tree.structure(of_numbers) == jax.tree.structure(distributions.TanhGaussian(mean, mean))


@pytest.mark.parametrize("make", [gaussian, tanh_gaussian])
def test_one_log_std_for_the_whole_batch(make):
    distribution = make(KEYS[0])
    row = distribution.log_std[0]
    short = distribution.replace(log_std=row)
    full = distribution.replace(log_std=jnp.broadcast_to(row, (B, D)))
    x = full.sample(KEYS[1])
    np.testing.assert_array_equal(short.sample(KEYS[1]), x)
    np.testing.assert_array_equal(short.log_prob(x), full.log_prob(x))
    np.testing.assert_array_equal(short.entropy(), full.entropy())
    np.testing.assert_array_equal(short.kl(distribution), full.kl(distribution))


def test_kl_of_nearly_equal_gaussians_keeps_its_digits():
    step = float(np.float32(1e-4))
    distribution = distributions.Gaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    other = distributions.Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1), step))
    np.testing.assert_allclose(distribution.kl(other), step + np.expm1(-2 * step) / 2, rtol=1e-2)
