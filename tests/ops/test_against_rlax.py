"""The same targets from rlax, where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import returns

rlax = pytest.importorskip("rlax")

T = 12
GAMMA, LAMBDA = 0.95, 0.8


@pytest.fixture(scope="module")
def rollout():
    keys = jax.random.split(jax.random.key(0), 5)
    values = jax.random.normal(keys[0], (T + 1,))
    terminated = jax.random.bernoulli(keys[1], 0.2, (T,))
    return {
        "reward": jax.random.normal(keys[2], (T,)),
        "value": values[:-1],
        "next_value": values[1:],
        "terminated": terminated,
        "truncated": jnp.zeros(T, bool),
        "log_ratio": 0.5 * jax.random.normal(keys[3], (T,)),
        "discount": GAMMA * (1.0 - terminated.astype(jnp.float32)),
        "values": values,
    }


def flags(x):
    return x["terminated"], x["truncated"]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_gae(rollout):
    x = rollout
    with jax.numpy_dtype_promotion("standard"):
        expected = rlax.truncated_generalized_advantage_estimation(x["reward"], x["discount"], LAMBDA, x["values"])
    close(returns.gae(x["reward"], x["value"], x["next_value"], *flags(x), GAMMA, LAMBDA), expected)


def test_lambda_returns(rollout):
    x = rollout
    with jax.numpy_dtype_promotion("standard"):
        expected = rlax.lambda_returns(x["reward"], x["discount"], x["next_value"], LAMBDA)
    close(returns.lambda_returns(x["reward"], x["next_value"], *flags(x), GAMMA, LAMBDA), expected)


def test_n_step_returns(rollout):
    x = rollout
    with jax.numpy_dtype_promotion("standard"):
        expected = rlax.n_step_bootstrapped_returns(x["reward"], x["discount"], x["next_value"], 4)
    close(returns.n_step_returns(x["reward"], x["next_value"], *flags(x), GAMMA, 4), expected)


def test_vtrace(rollout):
    x = rollout
    with jax.numpy_dtype_promotion("standard"):
        expected = rlax.vtrace_td_error_and_advantage(
            x["value"], x["next_value"], x["reward"], x["discount"], jnp.exp(x["log_ratio"]), 1.0
        )
    target, advantage = returns.vtrace(x["reward"], x["value"], x["next_value"], *flags(x), x["log_ratio"], GAMMA)
    close(target - x["value"], expected.errors)
    close(advantage, expected.pg_advantage)


def test_retrace(rollout):
    x = rollout
    q_value = jnp.sin(3.0 * x["value"])
    with jax.numpy_dtype_promotion("standard"):
        # rlax takes Q(s_{t+1}, a_{t+1}), log-ratios of a_{t+1}, and no trace beyond the last row
        errors = rlax.general_off_policy_returns_from_q_and_v(
            q_value[1:],
            x["next_value"],
            x["reward"],
            x["discount"],
            LAMBDA * jnp.minimum(1.0, jnp.exp(x["log_ratio"][1:])),
        )
    actual = returns.retrace(x["reward"], q_value, x["next_value"], *flags(x), x["log_ratio"], GAMMA, LAMBDA)
    close(actual, errors)
