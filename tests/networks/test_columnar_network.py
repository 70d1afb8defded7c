"""The gradient that columns carry forward is the one that backpropagation through all of time gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.networks import columnar
from jaxrl.networks.columnar import ColumnarConfig

NUM_INPUTS, NUM_STEPS = 4, 60
RATES = {"decay": 0.95, "min_std": 0.2}
DOUBLE_RATES = lambda: columnar.Rates(jnp.float64(1.0), *(jnp.float64(x) for x in RATES.values()))


def observations(num_steps=NUM_STEPS):
    """Rare bits and a walk."""
    rng = np.random.default_rng(0)
    bits = rng.uniform(size=(num_steps, NUM_INPUTS - 1)) < 0.2
    return np.concatenate([bits, np.cumsum(rng.normal(size=(num_steps, 1)), 0)], axis=1)


def double(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def run(net, kernel, rates, xs, stages, starts):
    """Carries after each step, leaves [T, ...]; `stages` and `starts` say what happens at which."""
    carry = net.initial_carry()
    if kernel.dtype == jnp.float64:
        carry = double(carry)

    def step(carry, row):
        carry = net.advance(kernel, carry, *row, rates)
        return carry, carry

    rows = (jnp.asarray(xs, kernel.dtype), jnp.asarray(stages, jnp.int32), jnp.asarray(starts))
    return jax.jit(lambda carry, rows: jax.lax.scan(step, carry, rows)[1])(carry, rows)


def at(carries, t):
    return jax.tree.map(lambda x: x[t], carries)


class Reference:
    """The network again, in NumPy and one column at a time: running moments, then cells."""

    def __init__(self, size, decay, min_std):
        self.n, self.mean, self.var = 0, np.zeros(size), np.zeros(size)
        self.decay, self.min_std = decay, min_std

    def add(self, x):
        self.n += 1
        weight = max(1.0 / self.n, 1.0 - self.decay)
        self.var = (1.0 - weight) * (self.var + weight * (x - self.mean) ** 2)
        self.mean = self.mean + weight * (x - self.mean)

    def deviation(self):
        return np.maximum(np.sqrt(self.var), self.min_std)

    def normalize(self, x):
        return (x - self.mean) / self.deviation()


def cells(kernels, zs, starts):
    """h of columns [d, 4, I + 2] at each step, [T, d], by a scan that `jax.grad` goes through."""

    def step(carry, row):
        z, start = row
        h, c = (jnp.where(start, 0.0, x) for x in carry)
        inputs = jnp.concatenate([jnp.tile(z, (len(h), 1)), h[:, None], jnp.ones((len(h), 1))], axis=1)
        put, forget, candidate, out = jnp.einsum("dqi,di->qd", kernels, inputs)
        sigmoid = lambda a: 1.0 / (1.0 + jnp.exp(-a))
        c = sigmoid(forget) * c + sigmoid(put) * jnp.tanh(candidate)
        h = sigmoid(out) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros(kernels.shape[0], kernels.dtype)
    return jax.lax.scan(step, (zero, zero), (jnp.asarray(zs), jnp.asarray(starts)))[1]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("num_stages, width", [(1, 3), (3, 2), (3, 1)])
def test_the_gradient_is_that_of_backpropagation_through_time(num_stages, width, dtype, tolerance):
    """Columnar, columnar-constructive and constructive; each stage learns for 20 of 60 steps, the last to the end.

    The second half of each stage begins with a new episode.
    """
    with jax.enable_x64(dtype == "float64"):
        net = columnar.columnar(NUM_INPUTS, ColumnarConfig(num_stages, width, 1.5))
        rates, kernel = columnar.rates(**RATES), net.init(jax.random.key(0))
        if dtype == "float64":
            rates, kernel = DOUBLE_RATES(), double(kernel)
        xs, length = observations(), NUM_STEPS // num_stages
        stages = np.arange(NUM_STEPS) // length
        starts = np.arange(NUM_STEPS) % length == length // 2
        starts[0] = True
        carries = run(net, kernel, rates, xs, stages, starts)
        weight = np.random.default_rng(1).normal(size=(num_stages, width))
        hidden = jax.jit(cells)
        # v = Σ w f at one step with the moments held fixed, as a sum over h of all steps.
        backpropagated = jax.jit(jax.grad(lambda k, zs, starts, cotangent: jnp.sum(cells(k, zs, starts) * cotangent)))
        cast = lambda x: jnp.asarray(x, kernel.dtype)

        seen = np.zeros((NUM_STEPS, 0))
        for stage in range(num_stages):
            begin, end = stage * length, (stage + 1) * length
            # What the stage sees: x and the features as they were one step before, zero where an episode starts.
            late = np.concatenate([np.zeros((1, seen.shape[1])), seen[:-1]]) * ~starts[:, None]
            raw = np.concatenate([xs, late], axis=1)
            moments, zs = Reference(raw.shape[1], **RATES), np.zeros((NUM_STEPS, kernel.shape[-1] - 2))
            for t in range(begin, NUM_STEPS):
                if t < end:
                    moments.add(raw[t])
                zs[t, : raw.shape[1]] = moments.normalize(raw[t])
            # A stage is born as if an episode started.
            born = starts | (np.arange(NUM_STEPS) == begin)
            hs = (
                np.asarray(hidden(kernel[stage], cast(zs), born), np.float64) * (np.arange(NUM_STEPS) >= begin)[:, None]
            )
            features = Reference(width, **RATES)
            for t in range(begin, end):
                features.add(hs[t])
                got = net.features(at(carries, t))[stage]
                np.testing.assert_allclose(got, features.normalize(hs[t]), atol=10 * tolerance)
                cotangent = np.zeros((NUM_STEPS, width))
                cotangent[t] = weight[stage] / features.deviation()
                exact = np.asarray(backpropagated(kernel[stage], cast(zs), born, cast(cotangent)))
                got = net.pull_back(at(carries, t), cast(weight))
                assert np.abs(exact).max() > 1e-3
                np.testing.assert_allclose(got, exact, atol=tolerance * max(1.0, np.abs(exact).max()))
            seen = np.concatenate([seen, hs], axis=1)


def test_nothing_reaches_the_output_past_the_columns_own_state():
    """The whole kernel through the network itself: stages not there yet have no gradient, the newest the exact one."""
    with jax.enable_x64(True):
        net = columnar.columnar(NUM_INPUTS, ColumnarConfig(3, 2, 1.0))
        kernel = double(net.init(jax.random.key(1)))
        xs, weight = jnp.asarray(observations(30)), jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)))
        rates = DOUBLE_RATES()

        def value(kernel):
            carries = run(net, kernel, rates, xs, np.ones(30), np.arange(30) == 0)
            return jnp.sum(weight * net.features(at(carries, 29))), at(carries, 29)

        (_, carry), gradient = jax.value_and_grad(value, has_aux=True)(kernel)
        assert np.abs(gradient[0]).max() > 1e-3, "the frozen stage matters, and is not learned"
        np.testing.assert_array_equal(gradient[2], np.zeros_like(gradient[2]))
        np.testing.assert_allclose(net.pull_back(carry, weight), gradient[1], atol=1e-10)


def test_stages_freeze_what_they_see_and_begin_without_sensitivities():
    net = columnar.columnar(NUM_INPUTS, ColumnarConfig(2, 2, 1.0))
    rates, kernel = columnar.rates(**RATES), net.init(jax.random.key(0))
    xs = observations(20)
    carries = run(net, kernel, rates, xs, np.arange(20) // 10, np.arange(20) == 0)
    for name in ("mean", "var", "count"):
        frozen = np.asarray(getattr(carries.inputs, name))[9:, 0]
        np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))
    born = at(carries, 9)
    assert np.abs(born.hidden[1]).max() == 0 == np.abs(net.features(born)[1]).max()
    assert int(born.features.count[1]) == 0
    assert int(carries.features.count[-1][0]) == 20
    # One step after its birth only that step's input has an influence.
    again = net.advance(
        kernel,
        born.replace(hidden_sensitivity=born.hidden_sensitivity * np.nan),
        xs[10].astype(np.float32),
        jnp.int32(1),
        jnp.bool_(False),
        rates,
    )
    # Two programs: equal but for the order of sums.
    np.testing.assert_allclose(again.hidden_sensitivity, carries.hidden_sensitivity[10], atol=1e-6)


def test_stage_at():
    net = columnar.columnar(2, ColumnarConfig(3, 1))
    got = [int(net.stage_at(jnp.float32(t), jnp.float32(10.0))) for t in (0, 9, 10, 19, 20, 1e6)]
    assert got == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "num_inputs, config, rule",
    [
        (0, ColumnarConfig(), "num_inputs must be a whole number"),
        (1, ColumnarConfig(num_stages=0), "num_stages must be a whole number"),
        (1, ColumnarConfig(weight_scale=0.0), "weight_scale must be positive"),
    ],
)
def test_wrong_settings(num_inputs, config, rule):
    with pytest.raises(ValueError, match=rule):
        columnar.columnar(num_inputs, config)


def test_wrong_rates():
    with pytest.raises(ValueError, match="decay must be from 0"):
        columnar.rates(decay=1.5)
