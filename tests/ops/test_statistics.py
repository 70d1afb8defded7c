"""Running statistics against NumPy over all samples at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import statistics

update = jax.jit(statistics.update_statistics, static_argnums=2)


def run(batches, num_batch_axes=2):
    example = jax.tree.map(lambda leaf: leaf[(0,) * num_batch_axes], batches[0])
    stats = statistics.init_statistics(example)
    for batch in batches:
        stats = update(stats, batch, num_batch_axes)
    return stats


def float_batches(offset, shapes=((7, 4), (1, 2), (30, 5)), seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(offset + rng.normal(size=(*shape, 3)) * [1, 2, 3], jnp.float32) for shape in shapes]


def all_samples(batches):
    return np.concatenate([np.asarray(batch, np.float64).reshape(-1, batch.shape[-1]) for batch in batches])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_numpy_on_all_samples(offset):
    batches = float_batches(offset)
    stats, samples = run(batches), all_samples(batches)
    assert int(stats.count) == len(samples)
    mean = np.asarray(stats.mean, np.float64) + np.asarray(stats.mean_residual)
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats.var, samples.var(0), rtol=1e-4)


def test_many_batches_far_from_zero_stay_accurate():
    rng = np.random.default_rng(0)
    batches = jnp.asarray(1e4 + rng.normal(size=(2000, 16, 1)), jnp.float32)

    @jax.jit
    def scan(batches):
        start = statistics.init_statistics(batches[0, 0])
        return jax.lax.scan(lambda s, b: (statistics.update_statistics(s, b, 1), None), start, batches)[0]

    stats, samples = scan(batches), np.asarray(batches, np.float64)
    mean = np.asarray(stats.mean, np.float64) + np.asarray(stats.mean_residual)
    np.testing.assert_allclose(mean, samples.mean((0, 1)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(stats.var, samples.var((0, 1)), rtol=1e-4)


def test_first_batch_very_far_from_zero():
    samples = np.float32(1e6 + np.random.default_rng(0).normal(size=(4096, 1)))
    stats = run([jnp.asarray(samples)], num_batch_axes=1)
    mean = np.asarray(stats.mean, np.float64) + np.asarray(stats.mean_residual)
    np.testing.assert_allclose(mean, samples.astype(np.float64).mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(stats.var, samples.astype(np.float64).var(0), rtol=1e-4)


def test_mean_follows_steps_that_float32_would_swallow():
    """At 1e4 float32 resolves 1e-3; each batch moves the mean by a tenth of that."""
    stats = statistics.RunningStatistics(
        count=jnp.uint32(100_000_000), mean=jnp.array([1e4]), mean_residual=jnp.zeros(1), var=jnp.ones(1)
    )
    batches = jnp.full((500, 10_000, 1), 10_001.0)
    for batch in batches[:50]:
        stats = update(stats, batch, 1)
    expected = 1e4 + 50 * 10_000 / (100_000_000 + 50 * 10_000)
    actual = np.asarray(stats.mean, np.float64) + np.asarray(stats.mean_residual)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_count_is_exact_where_float32_is_not_and_saturates():
    stats = statistics.init_statistics(jnp.zeros(1))
    many = stats.replace(count=jnp.uint32(2**24 + 2**20))
    assert int(update(many, jnp.zeros((1, 1)), 1).count) == 2**24 + 2**20 + 1
    full = stats.replace(count=jnp.uint32(2**32 - 3), var=jnp.ones(1))
    for _ in range(3):
        full = update(full, jnp.full((2, 1), 5.0), 1)
        assert np.all(np.isfinite(full.mean))
        np.testing.assert_allclose(full.var, 1.0, rtol=1e-6)
    assert int(full.count) == 2**32 - 1
    assert 0 < float(full.mean[0]) < 1e-7


def test_trees_of_other_dtypes_and_batch_axes():
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, 5, 2, 3)), jnp.uint8),
        "flag": jnp.asarray(rng.random((4, 5)) < 0.3),
        "nested": (jnp.asarray(rng.integers(-5, 5, (4, 5, 2)), jnp.int32),),
    }
    stats = run([batch])
    for mean, var, leaf in zip(*map(jax.tree.leaves, (stats.mean, stats.var, batch)), strict=True):
        samples = np.asarray(leaf, np.float64)
        np.testing.assert_allclose(mean, samples.mean((0, 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(var, samples.var((0, 1)), rtol=1e-4, atol=1e-6)
    flat = run([jax.tree.map(lambda x: x.reshape(20, *x.shape[2:]), batch)], num_batch_axes=1)
    for actual, expected in zip(jax.tree.leaves(flat), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    normalized = statistics.normalize(stats, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(normalized))
    for leaf in jax.tree.leaves(normalized):
        np.testing.assert_allclose(np.mean(leaf, (0, 1)), 0.0, atol=1e-5)
        np.testing.assert_allclose(np.std(leaf, (0, 1)), 1.0, rtol=1e-4)


def test_update_keeps_types():
    batch = float_batches(0.0)[0]
    stats = statistics.init_statistics(batch[0, 0])
    new = update(stats, batch, 2)
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, after.weak_type)
    from_shape = statistics.init_statistics(jax.ShapeDtypeStruct((3,), jnp.int32))
    assert from_shape.mean.shape == (3,)
    assert from_shape.mean.dtype == jnp.float32


def test_vmap_equals_loop():
    populations = [jnp.stack([b, 2.0 * b + 1.0]) for b in float_batches(3.0, ((6, 4), (6, 4)))]
    stats = jax.vmap(lambda _: statistics.init_statistics(jnp.zeros(3)))(jnp.arange(2))
    for batch in populations:
        stats = jax.vmap(lambda s, b: statistics.update_statistics(s, b, 2))(stats, batch)
    for member in range(2):
        alone = run([batch[member] for batch in populations])
        for actual, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(actual[member], expected, rtol=1e-5, atol=1e-6)


def test_normalize_before_the_first_update_only_converts():
    stats = statistics.init_statistics({"x": jnp.zeros(2, jnp.int32), "y": jnp.zeros(())})
    obs = {"x": jnp.array([[3, -400]], jnp.int32), "y": jnp.array([99.0])}
    normalized = statistics.normalize(stats, obs)
    np.testing.assert_array_equal(normalized["x"], [[3.0, -400.0]])
    np.testing.assert_array_equal(normalized["y"], [99.0])
    assert normalized["x"].dtype == jnp.float32


def test_normalize_by_hand_and_clip():
    stats = run([jnp.array([[1.0, 5.0], [3.0, 5.0]])], num_batch_axes=1)
    obs = jnp.array([[3.0, 5.0], [1.0, 6.0], [2.5, 4.0], [1000.0, 5.0]])
    expected = [[1.0, 0.0], [-1.0, 10.0], [0.5, -10.0], [10.0, 0.0]]
    np.testing.assert_allclose(statistics.normalize(stats, obs), expected, rtol=1e-6)
    np.testing.assert_allclose(statistics.normalize(stats, obs, clip=2.0)[:, 0], [1.0, -1.0, 0.5, 2.0], rtol=1e-6)


def test_masks_of_legal_actions_are_left_alone():
    batch = {"board": jnp.arange(6.0).reshape(3, 2), "action_mask": jnp.array([[True, False]] * 3)}
    stats = run([batch], num_batch_axes=1)
    normalized = statistics.normalize(stats, batch)
    assert normalized["action_mask"].dtype == jnp.bool_
    np.testing.assert_array_equal(normalized["action_mask"], batch["action_mask"])
    assert not np.allclose(normalized["board"], batch["board"])


def test_explained_variance():
    target = jnp.array([1.0, 2.0, 3.0, 6.0])
    assert statistics.explained_variance(target + 7.0, target) == 1
    assert statistics.explained_variance(jnp.full(4, 2.0), target) == 0
    np.testing.assert_allclose(statistics.explained_variance(-target, target), -3.0, rtol=1e-6)
    np.testing.assert_allclose(statistics.explained_variance(0.5 * target, target), 0.75, rtol=1e-6)
    assert statistics.explained_variance(target, jnp.ones(4)) == 0
    assert statistics.explained_variance(jnp.ones((2, 2)), target.reshape(2, 2)).shape == ()


def test_a_stream_is_normalized_by_its_sample_variance():
    """Of one sample the deviation is 1, then NumPy's with n - 1; there is no bound."""
    samples = np.float32([[1.0], [4.0], [-2.0], [1000.0]])
    stats = statistics.init_statistics(jnp.zeros(1))
    for i, sample in enumerate(samples):
        stats = statistics.update_statistics(stats, jnp.asarray(sample), 0)
        deviation = 1.0 if i == 0 else samples[: i + 1].std(ddof=1)
        expected = (samples - samples[: i + 1].mean()) / deviation
        np.testing.assert_allclose(statistics.normalize_in_stream(stats, jnp.asarray(samples)), expected, rtol=1e-5)
