"""The same targets and losses of values from rlax, which comes with the optional suites (`scripts/test --suites`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import values
from jaxrl.networks.q_network import QOutput
from jaxrl.ops import returns
from jaxrl.values import BackupInputs, Target

rlax = pytest.importorskip("rlax")
pytestmark = pytest.mark.suites

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


N, ACTIONS, ATOMS = 6, 3, 7
KAPPA = 0.7


@pytest.fixture(scope="module")
def batch():
    """Transitions, and outputs [N, A, K] of the network that learns and of the one that is bootstrapped from."""
    keys = jax.random.split(jax.random.key(1), 6)
    outputs = [2.0 * jax.random.normal(key, (N, ACTIONS, ATOMS)) for key in keys[:3]]
    return {
        "action": jax.random.randint(keys[3], (N,), 0, ACTIONS),
        "reward": jax.random.normal(keys[4], (N,)),
        "discount": GAMMA * (jnp.arange(N) != 2).astype(jnp.float32),
        **dict(zip(("now", "online_next", "target_next"), outputs, strict=True)),
    }


def learned(head, backup, x):
    """Losses [N] and the gradient of their sum by the outputs for all actions, [N, A, K]."""
    cut = {name: x[name][..., : head.size] for name in ("now", "online_next", "target_next")}
    online, bootstrap = (head.mean(head.init(), QOutput(cut[name])) for name in ("online_next", "target_next"))
    weight, shift, bonus = backup.choose(backup.init(), BackupInputs(online, bootstrap, bootstrap, x["action"]))
    assert shift is None
    assert bonus is None
    target = Target(x["reward"], x["discount"], QOutput(cut["target_next"]), weight, greedy=backup.greedy)

    def total(now):
        taken = jnp.take_along_axis(now, x["action"][:, None, None], axis=1)[:, 0]
        losses, _ = head.loss(head.init(), QOutput(taken), target)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(cut["now"])
    return losses, gradient, cut


def compare(head, backup, x, loss, scale=1.0):
    """With `loss` of one transition: (now, action, reward, discount, online_next, target_next) -> scalar."""
    with jax.numpy_dtype_promotion("standard"):
        losses, gradient, cut = learned(head, backup, x)
    rows = (x["action"], x["reward"], x["discount"], cut["online_next"], cut["target_next"])

    def total(now):
        expected = jax.vmap(loss)(now, *rows)
        return expected.sum(), expected

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected_gradient, expected = jax.grad(total, has_aux=True)(cut["now"])
    assert np.ptp(expected) > 0.1
    close(losses, scale * expected)
    close(gradient, scale * expected_gradient)


@pytest.mark.parametrize("loss", ["square", "huber"])
@pytest.mark.parametrize("backup", ["maximum", "double"])
def test_q_learning(batch, backup, loss):
    def expected(now, action, reward, discount, online, bootstrap):
        now, online, bootstrap = (x[:, 0] for x in (now, online, bootstrap))
        if backup == "maximum":
            error = rlax.q_learning(now, action, reward, discount, bootstrap)
        else:
            error = rlax.double_q_learning(now, action, reward, discount, bootstrap, online)
        return rlax.l2_loss(error) if loss == "square" else rlax.huber_loss(error, KAPPA)

    compare(values.scalar(loss, kappa=KAPPA), getattr(values, backup)(), batch, expected)


@pytest.mark.filterwarnings("ignore:Rlax categorical_cross_entropy will be deprecated")
@pytest.mark.parametrize("backup", ["maximum", "double"])
def test_categorical_q_learning(batch, backup):
    atoms = jnp.linspace(-2.0, 2.0, ATOMS)

    def expected(now, action, reward, discount, online, bootstrap):
        if backup == "maximum":
            return rlax.categorical_q_learning(atoms, now, action, reward, discount, atoms, bootstrap)
        selector = jax.nn.softmax(online) @ atoms
        return rlax.categorical_double_q_learning(atoms, now, action, reward, discount, atoms, bootstrap, selector)

    compare(values.categorical(ATOMS, low=-2.0, high=2.0), getattr(values, backup)(), batch, expected)


@pytest.mark.parametrize("backup", ["maximum", "double"])
def test_quantile_q_learning(batch, backup):
    fractions = (jnp.arange(ATOMS, dtype=jnp.float32) + 0.5) / ATOMS

    def expected(now, action, reward, discount, online, bootstrap):
        # rlax has the quantiles first.
        selector = bootstrap if backup == "maximum" else online
        return rlax.quantile_q_learning(
            now.T, fractions, action, reward, discount, selector.T, bootstrap.T, huber_param=KAPPA
        )

    # rlax's Huber loss is not divided by κ, as eq. 3 of Dabney et al. 2018 is.
    compare(values.quantile(ATOMS, KAPPA), getattr(values, backup)(), batch, expected, scale=1.0 / KAPPA)
