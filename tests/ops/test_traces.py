"""Traces and their optimizers against the formulas written out in float64, and against what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import returns, traces

GAMMA, LAMBDA, RATE, KAPPA, BETA2 = 0.9, 0.8, 0.3, 2.0, 0.95
STEPS = 30


@pytest.fixture(scope="module")
def stream():
    """Gradients of two leaves, errors of which some are above 1, and starts of episodes."""
    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(STEPS, 3, 2)) * 0.1, "b": rng.normal(size=(STEPS, 4)) * 0.1}
    start = rng.random(STEPS) < 0.2
    start[0] = True
    return gradients, rng.normal(size=STEPS) * 1.5, start


def reference(name, gradients, delta, start):
    """One flat vector, in the order of the authors' code: decay and add, step, forget where the episode ended."""
    flat = np.concatenate([gradients["a"].reshape(STEPS, -1), gradients["b"]], axis=1)
    params, z = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    v, first, sizes = np.zeros_like(z), np.zeros_like(z), []
    for t in range(STEPS):
        z = (0.0 if start[t] else GAMMA * LAMBDA) * z + flat[t]
        direction, size = z, RATE
        if name in ("adaptive_obgd", "adam"):
            v = BETA2 * v + (1 - BETA2) * (delta[t] * z) ** 2
        if name == "adaptive_obgd":
            direction = z / np.sqrt(v / (1 - BETA2 ** (t + 1)) + 1e-8)
        if name.endswith("obgd"):
            overshoot = max(abs(delta[t]), 1.0) * np.abs(direction).sum() * RATE * KAPPA
            size = RATE / overshoot if overshoot > 1 else RATE
        if name == "adam":
            first = 0.9 * first + 0.1 * delta[t] * z
            move = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - BETA2 ** (t + 1))) + 1e-8)
        else:
            move = delta[t] * direction
        params = params + size * move
        sizes.append(size)
    return params, np.array(sizes)


@pytest.mark.parametrize("name", traces.OPTIMIZERS)
@jax.numpy_dtype_promotion("standard")  # optax counts steps in integers
def test_optimizers_equal_the_formulas(name, stream):
    gradients, delta, start = stream
    optimizer = traces.OPTIMIZERS[name]
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4)}

    def step(carry, row):
        params, state, trace = carry
        gradient, delta, start = row
        trace = traces.accumulate(trace, gradient, traces.decay(jnp.float32(GAMMA), jnp.float32(LAMBDA), start))
        params, state, size = optimizer.update(params, state, trace, delta, jnp.float32(RATE), KAPPA, BETA2)
        return (params, state, trace), size

    rows = (jax.tree.map(jnp.float32, gradients), jnp.float32(delta), jnp.asarray(start))
    (params, _, _), sizes = jax.jit(lambda carry: jax.lax.scan(step, carry, rows))(
        (params, optimizer.init(params), traces.zeros(params))
    )
    expected, expected_sizes = reference(name, *stream)
    np.testing.assert_allclose(np.concatenate([params["a"].ravel(), params["b"]]), expected, atol=1e-5)
    np.testing.assert_allclose(sizes, expected_sizes, rtol=1e-5)
    if name.endswith("obgd"):
        assert (expected_sizes < RATE).any(), "the bound must have been reached"


def test_the_bound_is_reached_by_some_steps_only(stream):
    sizes = reference("obgd", *stream)[1]
    assert 0 < (sizes < RATE).sum() < STEPS


@pytest.mark.parametrize("name, overshoots", [("obgd", False), ("sgd", True)])
def test_a_bounded_step_does_not_change_the_sign_of_the_error(name, overshoots):
    """A linear prediction of features of at most 1: α‖x‖² ≤ 1/κ, while a step of fixed size goes beyond."""
    x = jax.random.uniform(jax.random.key(0), (50, 20), minval=-1.0, maxval=1.0)
    target = jax.random.normal(jax.random.key(1), (50,)) * 10.0

    def after(x, target):
        weights, _, _ = traces.OPTIMIZERS[name].update(jnp.zeros(20), (), x, target, 1.0, 2.0, 0.999)
        return target - jnp.sum(weights * x)

    error = np.asarray(jax.vmap(after)(x, target)) / np.asarray(target)
    assert (error < 0).any() == overshoots
    assert (error > 1).sum() == 0


def test_traces_sum_up_to_the_lambda_return():
    """With parameters held fixed, Σ δ_t z_t = Σ (G^λ_t - V_t) ∇V_t over whole episodes (Sutton and Barto, 12.2)."""
    rng = np.random.default_rng(1)
    gradient, value, reward = rng.normal(size=(9, 4)), rng.normal(size=9), rng.normal(size=9)
    next_value = np.append(value[1:], 0.0)
    terminated, truncated = np.zeros(9, bool), np.zeros(9, bool)
    terminated[3], truncated[-1] = True, True
    next_value[3], next_value[-1] = 0.0, 1.7
    z, total = jnp.zeros(4), jnp.zeros(4)
    for t in range(9):
        cut = jnp.asarray(t == 0 or terminated[t - 1] or truncated[t - 1])
        z = traces.accumulate(z, jnp.float32(gradient[t]), traces.decay(jnp.float32(GAMMA), jnp.float32(LAMBDA), cut))
        total += (reward[t] + GAMMA * next_value[t] - value[t]) * z
    columns = (jnp.float32(x)[:, None] for x in (reward, next_value))
    flags = (jnp.asarray(x)[:, None] for x in (terminated, truncated))
    target = np.asarray(returns.lambda_returns(*columns, *flags, GAMMA, LAMBDA))[:, 0]
    np.testing.assert_allclose(total, (target - value) @ gradient, atol=1e-5)


def test_norm_is_over_the_whole_tree():
    assert float(traces.norm({"a": -jnp.ones((2, 3)), "b": [jnp.full(2, 0.5)]})) == 7.0
