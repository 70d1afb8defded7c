"""Targets against sums written out from their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import returns

T, B = 9, 6
GAMMA, LAMBDA = 0.9, 0.7


def make_rollout(seed):
    rng = np.random.default_rng(seed)
    rollout = {name: rng.normal(size=(T, B)) for name in ("reward", "value", "next_value", "log_ratio")}
    rollout["terminated"] = rng.random((T, B)) < 0.2
    rollout["truncated"] = rng.random((T, B)) < 0.2
    # every pattern of flags, also on the last row: none, one, the other, both
    rollout["terminated"][3, :4] = rollout["terminated"][-1, :4] = [False, True, False, True]
    rollout["truncated"][3, :4] = rollout["truncated"][-1, :4] = [False, False, True, True]
    return rollout


def to_jax(rollout):
    return {name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else bool) for name, x in rollout.items()}


@pytest.fixture(scope="module", params=[0, 1])
def rollout(request):
    return make_rollout(request.param)


def gae(x, gamma, trace_lambda):
    return returns.gae(x["reward"], x["value"], x["next_value"], x["terminated"], x["truncated"], gamma, trace_lambda)


def lambda_returns(x, gamma, trace_lambda):
    return returns.lambda_returns(x["reward"], x["next_value"], x["terminated"], x["truncated"], gamma, trace_lambda)


def three_step_returns(x, gamma, _):
    return returns.n_step_returns(x["reward"], x["next_value"], x["terminated"], x["truncated"], gamma, 3)


def vtrace(x, gamma, trace_lambda, clip_rho=1.3, clip_c=0.8):
    return returns.vtrace(*_off_policy(x), gamma, trace_lambda, clip_rho, clip_c)


def vtrace_targets(x, gamma, trace_lambda):
    return vtrace(x, gamma, trace_lambda)[0]


def vtrace_advantages(x, gamma, trace_lambda):
    return vtrace(x, gamma, trace_lambda)[1]


def retrace(x, gamma, trace_lambda):
    return returns.retrace(*_off_policy(x), gamma, trace_lambda)


def _off_policy(x):
    return (x[name] for name in ("reward", "value", "next_value", "terminated", "truncated", "log_ratio"))


# Oracles: one column, one start row, explicit sums up to the row at which the episode or the rollout ends.


def last_row(x, t):
    while t < T - 1 and not (x["terminated"][t] or x["truncated"][t]):
        t += 1
    return t


def bootstrap(x, t):
    return 0.0 if x["terminated"][t] else x["next_value"][t]


def delta(x, t, gamma):
    return x["reward"][t] + gamma * bootstrap(x, t) - x["value"][t]


def gae_oracle(x, t, gamma, trace_lambda):
    rows = range(t, last_row(x, t) + 1)
    return sum((gamma * trace_lambda) ** (k - t) * delta(x, k, gamma) for k in rows)


def n_step_oracle(x, t, gamma, num_steps):
    end = min(t + num_steps - 1, last_row(x, t))
    rewards = sum(gamma ** (k - t) * x["reward"][k] for k in range(t, end + 1))
    return rewards + gamma ** (end - t + 1) * bootstrap(x, end)


def lambda_oracle(x, t, gamma, trace_lambda):
    longest = last_row(x, t) - t + 1
    weights = [(1 - trace_lambda) * trace_lambda ** (n - 1) for n in range(1, longest)] + [
        trace_lambda ** (longest - 1)
    ]
    assert np.isclose(sum(weights), 1)
    return sum(w * n_step_oracle(x, t, gamma, n + 1) for n, w in enumerate(weights))


def vtrace_target_oracle(x, t, gamma, trace_lambda, clip_rho=1.3, clip_c=0.8):
    ratio = np.exp(x["log_ratio"])
    c, rho = trace_lambda * np.minimum(clip_c, ratio), np.minimum(clip_rho, ratio)
    rows = range(t, last_row(x, t) + 1)
    return x["value"][t] + sum(gamma ** (k - t) * np.prod(c[t:k]) * rho[k] * delta(x, k, gamma) for k in rows)


def vtrace_advantage_oracle(x, t, gamma, trace_lambda):
    rho = min(1.3, np.exp(x["log_ratio"][t]))
    cut = last_row(x, t) == t
    if cut:
        after = bootstrap(x, t)
    else:
        later = vtrace_target_oracle(x, t + 1, gamma, trace_lambda)
        after = trace_lambda * later + (1 - trace_lambda) * x["value"][t + 1]
    return rho * (x["reward"][t] + gamma * after - x["value"][t])


def retrace_oracle(x, t, gamma, trace_lambda):
    c = trace_lambda * np.minimum(1.0, np.exp(x["log_ratio"]))
    rows = range(t, last_row(x, t) + 1)
    return x["value"][t] + sum(gamma ** (k - t) * np.prod(c[t + 1 : k + 1]) * delta(x, k, gamma) for k in rows)


def everywhere(oracle, rollout, *args):
    columns = [{name: x[:, b] for name, x in rollout.items()} for b in range(B)]
    return np.array([[oracle(column, t, *args) for column in columns] for t in range(T)])


PAIRS = [
    (gae, gae_oracle),
    (lambda_returns, lambda_oracle),
    (three_step_returns, lambda x, t, gamma, _: n_step_oracle(x, t, gamma, 3)),
    (vtrace_targets, vtrace_target_oracle),
    (vtrace_advantages, vtrace_advantage_oracle),
    (retrace, retrace_oracle),
]
FUNCTIONS = [function for function, _ in PAIRS]


@pytest.fixture(scope="module")
def jitted():
    return {function: jax.jit(function) for function in FUNCTIONS}


@pytest.mark.parametrize("gamma, trace_lambda", [(0.9, 0.7), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("function, oracle", PAIRS)
def test_equals_explicit_sum(jitted, rollout, function, oracle, gamma, trace_lambda):
    actual = jitted[function](to_jax(rollout), gamma, trace_lambda)
    assert actual.dtype == jnp.float32
    assert not actual.weak_type
    np.testing.assert_allclose(actual, everywhere(oracle, rollout, gamma, trace_lambda), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_jit_is_the_same(jitted, rollout, function):
    x = to_jax(rollout)
    np.testing.assert_allclose(function(x, GAMMA, LAMBDA), jitted[function](x, GAMMA, LAMBDA), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap_over_environments_equals_batch(jitted, rollout, function):
    x = to_jax(rollout)
    mapped = jax.vmap(lambda x: function(x, GAMMA, LAMBDA), in_axes=1, out_axes=1)(x)
    np.testing.assert_allclose(mapped, jitted[function](x, GAMMA, LAMBDA), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_discounts_may_be_mapped_or_differ_between_environments(jitted, rollout, function):
    x = to_jax(rollout)
    gammas, lambdas = jnp.linspace(0.5, 1.0, B), jnp.linspace(1.0, 0.2, B)
    loop = [jitted[function](x, gamma, trace) for gamma, trace in zip(gammas, lambdas, strict=True)]
    mapped = jax.vmap(function, in_axes=(None, 0, 0))(x, gammas, lambdas)
    np.testing.assert_allclose(mapped, np.stack(loop), rtol=1e-6, atol=1e-6)
    by_column = np.stack([target[:, b] for b, target in enumerate(loop)], axis=1)
    np.testing.assert_allclose(function(x, gammas, lambdas), by_column, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_passes_the_end_of_an_episode(jitted, function, flag):
    before = make_rollout(0)
    for name in ("terminated", "truncated"):
        before[name] = np.full((T, B), False)
    after = {name: x.copy() for name, x in before.items()}
    for name in ("reward", "value", "next_value", "log_ratio"):
        after[name][5:] += 1.0
    open_end = jitted[function](to_jax(before), GAMMA, LAMBDA) - jitted[function](to_jax(after), GAMMA, LAMBDA)
    assert np.all(np.abs(open_end[4]) > 1e-4)
    before[flag][4] = after[flag][4] = True
    cut = jitted[function](to_jax(before), GAMMA, LAMBDA) - jitted[function](to_jax(after), GAMMA, LAMBDA)
    np.testing.assert_array_equal(cut[:5], 0.0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_successor_counts_where_truncated_and_not_where_terminated(jitted, function):
    rollout = make_rollout(0)
    for name in ("terminated", "truncated"):
        rollout[name] = np.full((T, B), False)
    changed = {**rollout, "next_value": rollout["next_value"].copy()}
    changed["next_value"][4] += 1.0

    def effect(**flags):
        rows = {name: np.arange(T)[:, None] * np.ones(B) == 4 for name in flags}
        return np.abs(
            jitted[function](to_jax({**rollout, **rows}), GAMMA, LAMBDA)
            - jitted[function](to_jax({**changed, **rows}), GAMMA, LAMBDA)
        )[4]

    assert np.all(effect(truncated=True) > 0.05)
    np.testing.assert_array_equal(effect(terminated=True), 0.0)
    np.testing.assert_array_equal(effect(terminated=True, truncated=True), 0.0)


def test_gae_by_hand():
    reward, value, next_value = jnp.array([1.0, 2.0, 4.0]), jnp.ones(3), jnp.array([2.0, 6.0, 8.0])
    middle, never = jnp.array([False, True, False]), jnp.zeros(3, bool)
    # errors 1, 4, 7; half times half of the next
    np.testing.assert_allclose(returns.gae(reward, value, next_value, never, never, 0.5, 0.5), [2.4375, 5.75, 7.0])
    np.testing.assert_allclose(returns.gae(reward, value, next_value, never, middle, 0.5, 0.5), [2.0, 4.0, 7.0])
    np.testing.assert_allclose(returns.gae(reward, value, next_value, middle, never, 0.5, 0.5), [1.25, 1.0, 7.0])


def test_n_step_returns_by_hand():
    reward, next_value = jnp.ones(4), jnp.array([2.0, 4.0, 8.0, 16.0])
    second, never = jnp.array([False, True, False, False]), jnp.zeros(4, bool)
    np.testing.assert_allclose(returns.n_step_returns(reward, next_value, never, never, 0.5, 2), [2.5, 3.5, 5.5, 9.0])
    np.testing.assert_allclose(returns.n_step_returns(reward, next_value, never, second, 0.5, 2), [2.5, 3.0, 5.5, 9.0])
    np.testing.assert_allclose(returns.n_step_returns(reward, next_value, second, never, 0.5, 2), [1.5, 1.0, 5.5, 9.0])


@pytest.mark.parametrize("num_steps", [1, 2, 5, T, 3 * T])
def test_n_step_returns_of_any_length(rollout, num_steps):
    x = to_jax(rollout)
    actual = returns.n_step_returns(x["reward"], x["next_value"], x["terminated"], x["truncated"], GAMMA, num_steps)
    np.testing.assert_allclose(actual, everywhere(n_step_oracle, rollout, GAMMA, num_steps), rtol=1e-5, atol=1e-5)


def test_n_step_returns_of_no_step_are_refused():
    x = to_jax(make_rollout(0))
    with pytest.raises(ValueError, match=r"num_steps must be at least 1.*got 0"):
        returns.n_step_returns(x["reward"], x["next_value"], x["terminated"], x["truncated"], GAMMA, 0)


def test_estimators_agree_where_theory_says_so(jitted, rollout):
    # A consistent value function: the successor's value is the next row's within an episode.
    ended = rollout["terminated"] | rollout["truncated"]
    following = np.where(ended[:-1], rollout["next_value"][:-1], rollout["value"][1:])
    consistent = {**rollout, "next_value": np.concatenate([following, rollout["next_value"][-1:]])}
    x = to_jax({**consistent, "log_ratio": np.zeros((T, B))})
    target = jitted[lambda_returns](x, GAMMA, LAMBDA)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(jitted[gae](x, GAMMA, LAMBDA) + x["value"], target, **close)
    on_policy = vtrace(x, GAMMA, LAMBDA, 1.0, 1.0)[0]
    np.testing.assert_allclose(on_policy, target, **close)
    np.testing.assert_allclose(jitted[retrace](x, GAMMA, LAMBDA), target, **close)


def test_gradient_with_respect_to_discount_and_trace(jitted, rollout):
    x = to_jax(rollout)

    def total(gamma, trace):
        return jnp.sum(gae(x, gamma, trace))

    def oracle(gamma, trace):
        return everywhere(gae_oracle, rollout, gamma, trace).sum()

    step = 1e-5
    numeric = [
        (oracle(GAMMA + step, LAMBDA) - oracle(GAMMA - step, LAMBDA)) / (2 * step),
        (oracle(GAMMA, LAMBDA + step) - oracle(GAMMA, LAMBDA - step)) / (2 * step),
    ]
    np.testing.assert_allclose(jax.grad(total, argnums=(0, 1))(GAMMA, LAMBDA), numeric, rtol=1e-4, atol=1e-4)


def test_one_environment_needs_no_batch_axis(jitted, rollout):
    x = to_jax(rollout)
    for function in FUNCTIONS:
        column = function({name: leaf[:, 0] for name, leaf in x.items()}, GAMMA, LAMBDA)
        np.testing.assert_allclose(column, jitted[function](x, GAMMA, LAMBDA)[:, 0], rtol=1e-6, atol=1e-6)
