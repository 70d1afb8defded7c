"""α-divergences against sums and integrals in float64, and against KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import distributions
from jaxrl.ops.distributions import alpha_divergence

B, A = 5, 4
ALPHAS = [-1.0, 0.0, 0.3, 0.5, 0.9995, 1.0, 2.0]
KEYS = jax.random.split(jax.random.key(0), 8)


def logits(key, *shape):
    return jax.random.normal(key, (B, *shape))


def autoregressive(key):
    first, second, table = jax.random.split(key, 3)
    return distributions.AutoregressiveCategorical((logits(first, 2), logits(second, 3)), (logits(table, 2, 3),))


DISCRETE = {
    "categorical": lambda key: distributions.Categorical(logits(key, A)),
    "masked": lambda key: distributions.masked_categorical(logits(key, A), jnp.arange(A) != 1),
    "multi": lambda key: distributions.MultiCategorical((logits(key, A), logits(jax.random.split(key)[0], 3))),
    "bang_bang": lambda key: distributions.BangBang(logits(key, 2, 3)),
    "autoregressive": autoregressive,
}


def gaussian(key):
    key_mean, key_std = jax.random.split(key)
    mean, log_std = logits(key_mean, 2), 0.3 * jax.random.normal(key_std, (2,))
    return distributions.Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))


def table(distribution):
    """Log-probabilities [B, number of joint actions] in float64."""
    if isinstance(distribution, distributions.AutoregressiveCategorical):
        return table(distribution.joint())
    if isinstance(distribution, distributions.Categorical):
        rows = np.asarray(distribution.logits, np.float64)
        rows = rows - rows.max(-1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    if isinstance(distribution, distributions.MultiCategorical):
        parts = [table(part) for part in distribution.parts()]
    else:
        parts = [table(distributions.Categorical(distribution.logits[:, i])) for i in range(2)]
    return (parts[0][:, :, None] + parts[1][:, None]).reshape(B, -1)


def expected(log_p, log_q, alpha, axis=-1, cell=1.0):
    """E_q[f_α(p/q)], with the limits of f_α."""
    legal = np.exp(log_q) > 0
    log_ratio = np.where(legal, log_p - log_q, 0.0)
    if alpha == 0:
        f = np.exp(log_ratio) - 1 - log_ratio
    elif alpha == 1:
        f = np.exp(log_ratio) * log_ratio - np.exp(log_ratio) + 1
    else:
        f = (np.exp(alpha * log_ratio) - 1 - alpha * (np.exp(log_ratio) - 1)) / (alpha * (alpha - 1))
    return (np.exp(log_q) * f).sum(axis) * cell


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_the_sum_over_all_actions(make):
    p, q = make(KEYS[0]), make(KEYS[1])
    actual = jax.jit(jax.vmap(alpha_divergence, (None, None, 0)))(p, q, jnp.asarray(ALPHAS))
    for row, alpha in zip(actual, ALPHAS, strict=True):
        np.testing.assert_allclose(row, expected(table(p), table(q), alpha), rtol=2e-3, atol=2e-5)


def test_the_integral_over_gaussians():
    p, q = gaussian(KEYS[0]), gaussian(KEYS[1])
    u = np.linspace(-14.0, 14.0, 701)
    grid = np.stack(np.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)

    def log_density(x):
        mean, log_std = (np.asarray(part, np.float64)[:, None] for part in (x.mean, x.log_std))
        z = (grid - mean) / np.exp(log_std)
        return (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)

    for alpha in (0.0, 0.3, 0.5, 0.8, 1.0):
        wanted = expected(log_density(p), log_density(q), alpha, cell=(u[1] - u[0]) ** 2)
        np.testing.assert_allclose(alpha_divergence(p, q, jnp.float32(alpha)), wanted, rtol=1e-4, atol=1e-6)


def test_a_squashed_gaussian_has_the_divergence_of_its_base():
    bases = gaussian(KEYS[0]), gaussian(KEYS[1])
    p, q = (distributions.TanhGaussian(x.mean, x.log_std, -2.0, 3.0) for x in bases)
    np.testing.assert_allclose(alpha_divergence(p, q, jnp.float32(0.4)), alpha_divergence(*bases, jnp.float32(0.4)))


@pytest.mark.parametrize("make", [*DISCRETE.values(), gaussian], ids=[*DISCRETE, "gaussian"])
def test_it_is_a_drift(make):
    """It is 0 and flat where the policies are one, and positive elsewhere: what mirror learning asks of a drift."""
    p, q = make(KEYS[0]), make(KEYS[1])

    def rows(p):
        total = lambda p, alpha: jnp.sum(alpha_divergence(p, q, alpha))
        return jax.vmap(jax.value_and_grad(total), (None, 0))(p, jnp.asarray([0.0, 0.3, 1.0]))

    away, _ = rows(p)
    there, slope = rows(q)
    assert np.all(np.asarray(away) > 0.1)
    np.testing.assert_allclose(there, 0.0, atol=1e-5)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0.0, atol=1e-5), slope)


def test_its_derivative_by_alpha_is_finite_everywhere():
    p, q = DISCRETE["categorical"](KEYS[0]), DISCRETE["categorical"](KEYS[1])
    slope = jax.vmap(jax.grad(lambda alpha: jnp.mean(alpha_divergence(p, q, alpha))))(jnp.linspace(-1.0, 2.0, 31))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("alpha", [-1.0, 2.0])
def test_an_integral_beyond_all_numbers_is_finite_and_has_no_gradient(alpha):
    narrow, wide = (distributions.Gaussian(jnp.full(2, x), jnp.full(2, s)) for x, s in ((0.1, -0.4), (0.0, 0.3)))
    p, q = (wide, narrow) if alpha > 0 else (narrow, wide)
    far = [distributions.Categorical(jnp.array(x)) for x in ([0.0, 200.0], [200.0, 0.0])]
    for pair in ((p, q), far):
        value, slope = jax.value_and_grad(alpha_divergence)(*pair, jnp.float32(alpha))
        assert np.isfinite(value)
        assert value > 1e10
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize("log_std", [-10.0, 2.0])
def test_no_deviation_is_too_small(log_std):
    p = distributions.Gaussian(jnp.zeros(2), jnp.full(2, log_std))
    q = distributions.Gaussian(jnp.full(2, 0.3 * np.exp(log_std), jnp.float32), jnp.full(2, log_std))
    np.testing.assert_allclose(alpha_divergence(p, p, jnp.float32(0.5)), 0.0, atol=1e-6)
    # In units of the deviation: 4 (1 - e^(-0.3² / 8)) in each entry, as one exponential.
    np.testing.assert_allclose(alpha_divergence(p, q, jnp.float32(0.5)), 4 * (1 - np.exp(-0.18 / 8)), rtol=1e-4)


def test_a_mixture_is_refused():
    mixture = distributions.GaussianMixture(jnp.zeros(2), jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="no closed form for GaussianMixture"):
        alpha_divergence(mixture, mixture, jnp.float32(0.5))
