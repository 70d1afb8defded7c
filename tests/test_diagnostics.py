"""Diagnostics against exact values, NumPy and networks made by hand; and that they change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import diagnostics, spaces
from jaxrl.algorithms import ppo, trpo
from jaxrl.networks import NetworkConfig, actor_critic
from jaxrl.ops import distributions, trees

ALL = diagnostics.NAMES
TINY = {"num_envs": 4, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2}
FACTORIES = {"ppo": (ppo.ppo, ppo.Config), "trpo": (trpo.trpo, trpo.Config)}


def build(algorithm, env, names=(), hidden=(8, 8), changes=None, **network):
    factory, config = FACTORIES[algorithm]
    fields = {**TINY, **(changes or {}), "diagnostics": names, "network": NetworkConfig(hidden=hidden, **network)}
    return factory(jaxrl.make_env(env), config=config(**fields))


# --- Gradient noise --------------------------------------------------------------------------------------------------


def estimates(theta, sigma, num_parts, num_samples, num_draws):
    """Estimates for the loss E|θ - x|² / 2, x ~ N(0, σ² I): one sample's gradient is θ - x, so tr Σ = d σ², G = θ."""

    def one(key):
        x = sigma * jax.random.normal(key, (num_parts, num_samples // num_parts, theta.size))
        gradient = jax.grad(lambda t, part: 0.5 * jnp.mean(jnp.sum(jnp.square(t[None] - part), axis=-1)))
        return diagnostics.gradient_noise(key, lambda part: gradient(theta, part), lambda _: x, num_samples)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws))


def test_gradient_noise_is_unbiased_on_a_quadratic():
    """Exact means; the spreads of the two estimates, which are of Gaussian gradients, give the tolerance.

    tr Σ: d σ² χ²(d (M-1)) / (d (M-1)). |G|²: 4 |θ|² σ²/N + 2 d (σ²/N)² from |ḡ|², less 1/N of the former. θ is so small
    that |ḡ|² is six times |G|², so an estimate without its correction fails.
    """
    d, sigma, num_parts, num_samples, num_draws = 20, 2.0, 4, 32, 2000
    theta = jnp.full(d, np.sqrt(0.5 / d), jnp.float32)
    metrics = estimates(theta, sigma, num_parts, num_samples, num_draws)
    trace, square, variance = d * sigma**2, 0.5, sigma**2 / num_samples
    spread_of_trace = trace * np.sqrt(2.0 / (d * (num_parts - 1)))
    spread = np.sqrt(4 * square * variance + 2 * d * variance**2 + (spread_of_trace / num_samples) ** 2)
    root = np.sqrt(num_draws)
    assert abs(np.mean(metrics["gradient/noise_trace"]) - trace) < 4 * spread_of_trace / root
    assert abs(np.mean(metrics["gradient/squared_norm"]) - square) < 4 * spread / root
    assert np.std(metrics["gradient/noise_trace"]) == pytest.approx(spread_of_trace, rel=0.1)
    ratio = np.mean(metrics["gradient/noise_trace"]) / np.mean(metrics["gradient/squared_norm"])
    assert ratio == pytest.approx(trace / square, rel=4 * (spread / square + spread_of_trace / trace) / root)


def test_gradient_noise_of_linear_regression():
    """One sample's gradient is x (x·e), x ~ N(0, I), e the error in the weights: |G|² = |e|², tr Σ = (d + 1) |e|²."""
    d, num_parts, size, num_draws = 6, 8, 16, 1000
    error = jnp.arange(1.0, d + 1.0) / d

    def one(key):
        x = jax.random.normal(key, (num_parts, size, d))
        gradient = jax.grad(lambda e, part: 0.5 * jnp.mean(jnp.square(part @ e)))
        return diagnostics.gradient_noise(key, lambda part: gradient(error, part), lambda _: x, num_parts * size)

    metrics = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), num_draws))
    exact = float(jnp.sum(jnp.square(error)))
    for name, value in (("noise_trace", (d + 1) * exact), ("squared_norm", exact)):
        found = np.asarray(metrics[f"gradient/{name}"], np.float64)
        assert abs(found.mean() - value) < 4 * found.std() / np.sqrt(num_draws), name
    scale = np.asarray(metrics["gradient/noise_scale"])
    assert np.median(scale) == pytest.approx(d + 1, rel=0.1)


def test_gradient_noise_without_a_signal_is_infinite():
    parts = jnp.asarray([[1.0], [-1.0]])
    metrics = diagnostics.gradient_noise(jax.random.key(0), lambda part: part, lambda _: parts, 2)
    assert metrics["gradient/squared_norm"] == -1.0
    assert np.isinf(metrics["gradient/noise_scale"])


@pytest.mark.parametrize("memory", ["none", pytest.param("gru", marks=pytest.mark.slow)])
def test_gradient_noise_of_ppo_splits_the_whole_gradient(memory):
    """|ḡ|² = |G|² + tr Σ / N is the squared gradient of the whole rollout, which one minibatch shows.

    The loss is then a mean over samples, so no split changes it; the key and the rollout are the same.
    """
    env = "probe/Memory" if memory == "gru" else "probe/Credit"
    changes = {"normalize_advantage": "none", "num_epochs": 1, "num_minibatches": 1}
    plain = build("ppo", env, (), changes=changes, memory=memory)
    split = build("ppo", env, ("gradient_noise",), changes={**changes, "num_minibatches": 4}, memory=memory)
    _, whole = jax.jit(jaxrl.train(plain, 1))(jax.random.key(0), plain.hyperparams())
    _, metrics = jax.jit(jaxrl.train(split, 1))(jax.random.key(0), split.hyperparams())
    mean_square = metrics["gradient/squared_norm"] + metrics["gradient/noise_trace"] / 32
    np.testing.assert_allclose(mean_square, np.square(whole["gradient/norm"]), rtol=1e-4)
    assert metrics["gradient/noise_trace"] > 0


def test_the_noise_of_one_minibatch_is_that_of_its_parts():
    """4 × 8 samples make 8 parts of 4, with a memory 4 of one environment each; the update is of the whole."""
    config = ppo.Config(**{**TINY, "num_minibatches": 1})
    assert (diagnostics.num_parts(config, False), diagnostics.num_parts(config, True)) == (8, 4)
    assert diagnostics.num_parts(ppo.Config(num_minibatches=3), False) == 3
    fields = {"num_envs": 4, "num_steps": 8, "diagnostics": ("gradient_noise",), "network": NetworkConfig(hidden=(8,))}
    agent = jaxrl.make("a2c", jaxrl.make_env("probe/Credit"), **fields)
    _, metrics = jax.jit(jaxrl.train(agent, 1))(jax.random.key(0), agent.hyperparams())
    mean_square = metrics["gradient/squared_norm"] + metrics["gradient/noise_trace"] / 32
    np.testing.assert_allclose(mean_square, np.square(metrics["gradient/norm"]), rtol=1e-4)


def test_gradient_noise_of_trpo_splits_its_own_gradient():
    agent = build("trpo", "probe/Credit", ("gradient_noise",))
    _, metrics = jax.jit(jaxrl.train(agent, 2))(jax.random.key(0), agent.hyperparams())
    mean_square = metrics["gradient/squared_norm"] + metrics["gradient/noise_trace"] / 32
    np.testing.assert_allclose(mean_square, np.square(metrics["gradient/norm"]), rtol=1e-3)


# --- Dormant units and effective rank --------------------------------------------------------------------------------


BOX = spaces.Box(-1.0, 1.0, (3,))
DISCRETE = spaces.Discrete(2)


def start(net, obs):
    return net.init(jax.random.key(0), obs)


def look(names, net, params, obs, before=None):
    before = net.apply(params, obs)[0].policy if before is None else before
    return diagnostics.measure(names, net, (obs,), before, params)


def silence(params, torso, layer, units):
    """Makes units of a layer put out zero: no weights, and below zero by their bias."""
    kernel = params["params"][torso][layer]["kernel"]
    bias = params["params"][torso][layer]["bias"]
    kernel, bias = kernel.at[..., units].set(0.0), bias.at[units].set(-1.0)
    params["params"][torso][layer] = {"kernel": kernel, "bias": bias}
    return params


def test_dormant_counts_units_killed_by_hand():
    net = actor_critic(BOX, DISCRETE, hidden=(8, 16), activation="relu")
    obs = jax.random.normal(jax.random.key(1), (50, 3))
    params = start(net, obs)
    before = look(("dormant",), net, params, obs)
    assert before == {"features/dormant_actor": 0.0, "features/dormant_critic": 0.0}
    params = silence(params, "actor", "Dense_0", jnp.array([1, 4, 5]))
    params = silence(params, "actor", "Dense_1", jnp.array([0, 2, 9, 15]))
    after = look(("dormant",), net, params, obs)
    assert after["features/dormant_actor"] == np.float32(7 / 24)
    assert after["features/dormant_critic"] == 0.0
    tanh = actor_critic(BOX, DISCRETE, hidden=(8, 16), activation="tanh")
    assert look(("dormant",), tanh, params, obs)["features/dormant_actor"] == 0.0, "tanh(-1) is not silent"


def test_dormant_counts_channels_of_a_convolution():
    net = actor_critic(spaces.Box(0.0, 1.0, (10, 10, 2)), DISCRETE, hidden=(), activation="relu")
    obs = jax.random.uniform(jax.random.key(1), (4, 5, 10, 10, 2))
    params = start(net, obs)
    layer = params["params"]["critic_encoder"]["CNN_0"]["Conv_0"]
    layer["kernel"], layer["bias"] = layer["kernel"].at[..., :3].set(0.0), layer["bias"].at[:3].set(-1.0)
    _, captured = net.apply(params, obs, capture_intermediates=diagnostics._is_kept, mutable=["intermediates"])
    torsos = diagnostics.torso_activations(net, captured["intermediates"])
    assert set(torsos) == {"actor_encoder", "critic_encoder"}, "the torsos have no layers"
    convolution, dense = torsos["critic_encoder"]
    assert convolution.shape == (4, 5, 8, 8, 16)
    levels = [np.abs(convolution).mean(axis=(0, 1, 2, 3)), np.abs(dense).mean(axis=(0, 1))]
    assert (levels[0][:3] == 0).all()
    count = sum(np.sum(level <= 0.025 * level.mean()) for level in levels)
    assert look(("dormant",), net, params, obs)["features/dormant_critic_encoder"] == np.float32(count / (16 + 128))


def test_dormant_compares_with_the_mean_of_the_layer():
    for score, share in ((0.0251, 0.0), (0.0249, 1 / 8)):
        rest = (8 - score) / 7
        layer = jnp.tile(jnp.asarray([score, *[-rest] * 7]), (6, 1))
        assert diagnostics.dormant_share([layer]) == share
    assert diagnostics.dormant_share([jnp.ones((6, 8))], tau=1.0) == 1.0
    assert diagnostics.dormant_share([jnp.zeros((6, 8)), jnp.ones((6, 24))]) == 0.25


@pytest.mark.parametrize(
    "layer_norm, weight_norm, memory",
    [
        (False, False, "none"),
        (True, False, "none"),
        (False, True, "none"),
        (True, True, "gru"),
        (False, False, "lstm"),
        (False, False, "s5"),
    ],
)
def test_activations_are_those_of_the_torso(layer_norm, weight_norm, memory):
    """The last of the activations made again here is what the torso puts out, and there is one for each layer."""
    options = {"layer_norm": layer_norm, "weight_norm": weight_norm, "memory": memory, "memory_size": 8}
    net = actor_critic(BOX, DISCRETE, hidden=(8, 6, 4), activation="gelu", **options)
    obs = jax.random.normal(jax.random.key(1), (5, 2, 3))
    inputs = (obs, net.initial_memory((2,)), jnp.zeros((5, 2), bool))
    params = net.init(jax.random.key(0), *inputs)
    kept = {"capture_intermediates": diagnostics._is_kept, "mutable": ["intermediates"]}
    layers = net.apply(params, *inputs, **kept)[1]["intermediates"]
    activations = diagnostics.torso_activations(net, layers)
    assert set(activations) == ({"actor", "critic"} if memory == "none" else {"torso"})
    for torso, found in activations.items():
        assert [h.shape[-1] for h in found] == [8, 6, 4]
        np.testing.assert_array_equal(found[-1], layers[torso]["__call__"][0])
    features = diagnostics.last_features(layers)
    assert {name: x.shape for name, x in features.items()} == (
        {"actor": (5, 2, 4), "critic": (5, 2, 4)} if memory == "none" else {"core": (5, 2, 8)}
    )


def srank(x, delta=0.01):
    """In NumPy, float64."""
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    return int(np.argmax(np.cumsum(values) >= (1 - delta) * values.sum())) + 1


@pytest.mark.parametrize("shape", [(200, 16), (10, 32), (120, 60)])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5])
def test_effective_rank_is_numpys(shape, decay):
    random = np.random.default_rng(0)
    least = min(shape)
    left, right = (np.linalg.qr(random.normal(size=(n, least)))[0] for n in shape)
    x = ((left * np.exp(-decay * np.arange(least))) @ right.T).astype(np.float32)
    found = jax.jit(diagnostics.effective_rank)(jnp.asarray(x))
    assert found == srank(x)
    assert found == srank(x / 1e6)


def test_effective_rank_of_wide_features_of_low_rank():
    """Eigenvalues of one Gram matrix in float32 fail: roots that should be 0 are 2e-4 of the greatest, and many."""
    random = np.random.default_rng(1)
    x = (random.normal(size=(300, 3)) @ random.normal(size=(3, 256))).astype(np.float32)
    x += 30 * random.normal(size=(1, 256)).astype(np.float32)
    assert diagnostics.effective_rank(jnp.asarray(x)) == srank(x) == 4
    assert diagnostics.effective_rank(jnp.asarray(x), 3e-3) == srank(x, 3e-3) == 4
    gram = np.sqrt(np.maximum(np.linalg.eigvalsh(x.T @ x)[::-1], 0.0))
    assert np.sum(np.cumsum(gram) < (1 - 3e-3) * gram.sum()) + 1 > 20


def test_effective_rank_of_nothing_and_of_nan():
    assert diagnostics.effective_rank(jnp.zeros((5, 3))) == 0.0
    assert np.isnan(diagnostics.effective_rank(jnp.full((5, 3), jnp.nan)))


def test_effective_rank_under_vmap_decomposes_one_at_a_time():
    x = jax.random.normal(jax.random.key(0), (3, 40, 6)) * jnp.exp(-jnp.arange(6.0))[None, None]
    mapped = jax.jit(jax.vmap(diagnostics.effective_rank))(x)
    assert mapped.tolist() == [srank(one) for one in x]
    text = jax.jit(jax.vmap(diagnostics.effective_rank)).lower(x).as_text()
    calls = [line for line in text.splitlines() if "lapack_ssyevd" in line]
    assert len(calls) == 2
    assert all("tensor<6x6xf32>" in line and "tensor<3x6x6xf32>" not in line for line in calls)


@pytest.mark.parametrize("num, most", [(2048, 1024), (4096, 100), (1025, 1024), (10, 20), (7919, 1000)])
def test_the_samples_of_a_rank_are_different_and_of_all_environments(num, most):
    rows = diagnostics.spread(num, most)
    assert len(set(rows.tolist())) == len(rows) == min(num, most)
    assert rows.min() >= 0
    assert rows.max() < num
    for num_envs in (2, 8, 16):
        counts = np.bincount(rows % num_envs, minlength=num_envs)
        assert counts.min() >= len(rows) // num_envs - 3
    assert np.ptp(np.histogram(rows, bins=5, range=(0, num))[0]) <= 3


# --- Policies before and after ---------------------------------------------------------------------------------------


def linear(action_space, kernel, bias, log_std=None):
    """A network without hidden layers, with weights given, for one number observed."""
    net = actor_critic(spaces.Box(-1.0, 1.0, (1,)), action_space, hidden=())
    params = start(net, jnp.zeros((1,)))
    params["params"]["policy"] = {"kernel": jnp.asarray([kernel]), "bias": jnp.asarray(bias)}
    if log_std is not None:
        params["params"]["log_std"] = jnp.asarray(log_std)
    return net, params


GRID = jnp.linspace(-0.99, 0.99, 100)[:, None]


def test_churn_of_discrete_actions():
    """Action 0 where x > 0, then where x > 0.5: a quarter of the states of a grid on [-1, 1]."""
    net, old = linear(DISCRETE, [1.0, 0.0], [0.0, 0.0])
    _, new = linear(DISCRETE, [1.0, 0.0], [-0.5, 0.0])
    before = net.apply(old, GRID)[0].policy
    assert look(("churn",), net, new, GRID, before)["policy/churn"] == 0.25
    assert look(("churn",), net, old, GRID, before)["policy/churn"] == 0.0


def test_churn_of_several_actions_counts_states():
    space = spaces.MultiDiscrete((2, 2))
    net, old = linear(space, [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    _, new = linear(space, [1.0, 0.0, 1.0, 0.0], [-0.5, 0.0, 0.25, 0.0])
    before = net.apply(old, GRID)[0].policy
    changed = (GRID[:, 0] > -0.25) & (GRID[:, 0] <= 0.5)
    assert look(("churn",), net, new, GRID, before)["policy/churn"] == pytest.approx(float(changed.mean()))


def test_churn_of_continuous_actions_is_in_units_of_the_range():
    net, old = linear(spaces.Box(-3.0, 5.0, (2,)), [0.0, 0.0], [0.5, 0.8])
    _, new = linear(spaces.Box(-3.0, 5.0, (2,)), [0.0, 0.0], [0.1, 7.0])
    before = net.apply(old, GRID)[0].policy
    # Entry 0 moves by 0.4 of the 2 that the range measures, entry 1 by 0.2 up to the bound.
    assert look(("churn",), net, new, GRID, before)["policy/churn"] == pytest.approx((0.2 + 0.1) / 2)


def test_kl_is_from_before_to_after_and_staleness_from_behavior_to_learner():
    box = spaces.Box(-1.0, 1.0, (1,))
    net, old = linear(box, [1.0], [0.0], [0.0])
    _, new = linear(box, [1.0], [0.5], [np.log(2.0)])
    before = net.apply(old, GRID)[0].policy
    exact = np.log(2.0) + (1 + 0.25) / 8 - 0.5
    assert look(("kl",), net, new, GRID, before)["policy/kl_exact"] == pytest.approx(exact, rel=1e-5)
    stale = diagnostics.measure(("staleness",), net, (GRID,), net.apply(new, GRID)[0].policy, old, old)
    assert stale == {"policy/staleness": pytest.approx(exact, rel=1e-5)}


def test_kl_agrees_with_that_of_trpo():
    """TRPO measures its own step exactly, and its values have torsos of their own."""
    agent = build("trpo", "gymnax/CartPole-v1", ("kl", "churn"))
    _, metrics = jax.jit(jaxrl.train(agent, 3))(jax.random.key(0), agent.hyperparams(max_kl=0.05))
    assert np.min(metrics["policy/kl"]) > 1e-3
    np.testing.assert_allclose(metrics["policy/kl_exact"], metrics["policy/kl"], rtol=1e-3)


def test_staleness_begins_when_the_policies_part():
    agent = build("ppo", "gymnax/Pendulum-v1", ("staleness",), changes={"actor_lag": 2})
    _, metrics = jax.jit(jaxrl.train(agent, 4))(jax.random.key(0), agent.hyperparams(learning_rate=1e-2))
    stale = np.asarray(metrics["policy/staleness"])
    assert stale[0] == 0.0
    assert (stale[1:] > 1e-6).all()


# --- They only add ---------------------------------------------------------------------------------------------------


def every(algorithm):
    lag = algorithm == "ppo"
    return tuple(name for name in ALL if lag or name != "staleness"), ({"actor_lag": 1} if lag else {})


EACH = pytest.mark.parametrize(
    "algorithm, env, network",
    [
        ("ppo", "gymnax/CartPole-v1", {}),
        pytest.param(
            "ppo", "gymnax/Pendulum-v1", {"layer_norm": True, "policy": "tanh_gaussian"}, marks=pytest.mark.slow
        ),
        ("ppo", "probe/Memory", {"memory": "gru", "memory_size": 8}),
        pytest.param("trpo", "probe/Memory", {"memory": "gru", "memory_size": 8}, marks=pytest.mark.slow),
    ],
)


@functools.cache
def with_and_without(algorithm, env, network):
    names, changes = every(algorithm)
    agents = [build(algorithm, env, chosen, changes=changes, **dict(network)) for chosen in ((), names)]
    return [(agent, jax.jit(jaxrl.train(agent, 4))(jax.random.key(3), agent.hyperparams())) for agent in agents]


@EACH
def test_training_is_the_same_bit_for_bit(algorithm, env, network):
    (_, (state, metrics)), (_, (other, more)) = with_and_without(algorithm, env, tuple(network.items()))
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(other), strict=True):
        a, b = (jax.random.key_data(x) if trees.is_key(x) else x for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=trees.path_name(path))
    for name, values in metrics.items():
        np.testing.assert_array_equal(values, more[name], err_msg=name)
    added = set(more) - set(metrics)
    assert {name.split("/")[0] for name in added} == {"gradient", "policy", "features"}
    for name in added - {"gradient/noise_scale"}:
        assert more[name].dtype == jnp.float32
        assert more[name].shape == (4,)
        assert np.isfinite(more[name]).all(), name
    assert (more["policy/kl_exact"] > 0).all()
    assert not np.isnan(more["gradient/noise_scale"]).any()


@pytest.mark.parametrize(
    "algorithm, env, network",
    [
        ("ppo", "gymnax/CartPole-v1", {}),
        pytest.param("ppo", "probe/Memory", {"memory": "gru", "memory_size": 8}, marks=pytest.mark.slow),
    ],
)
def test_a_population_measures_what_its_members_do(algorithm, env, network):
    _, (agent, _) = with_and_without(algorithm, env, tuple(network.items()))
    keys = jax.random.split(jax.random.key(5), 2)
    run = jaxrl.train(agent, 1)
    _, together = jax.jit(jax.vmap(run, (0, None)))(keys, agent.hyperparams())
    for i, key in enumerate(keys):
        _, alone = jax.jit(run)(key, agent.hyperparams())
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value, rtol=5e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("algorithm", FACTORIES)
def test_without_names_nothing_is_traced(algorithm, monkeypatch):
    def step_of(agent):
        hparams = agent.hyperparams()
        state = jax.eval_shape(agent.init, jax.random.key(0), hparams)
        return str(jax.make_jaxpr(agent.step)(state, hparams))

    # Sizes of their own: an equal record would be remembered with its trace.
    changes = {"num_steps": 4}
    text = step_of(build(algorithm, "probe/Credit", (), changes=changes))
    assert step_of(build(algorithm, "probe/Credit", ("kl",), changes=changes)) != text
    monkeypatch.setattr(diagnostics, "measure", lambda *_: {})
    monkeypatch.setattr(diagnostics, "gradient_noise", lambda *_: {})
    jax.clear_caches()
    assert step_of(build(algorithm, "probe/Credit", ("kl", "gradient_noise"), changes=changes)) == text


def test_no_key_is_used_twice():
    names, changes = every("ppo")
    agent = build("ppo", "probe/Credit", names, changes=changes)
    with jax.debug_key_reuse(True):
        jax.jit(jaxrl.train(agent, 1)).lower(jax.random.key(0), agent.hyperparams())


def test_the_key_of_the_noise_is_no_child_of_a_split():
    seen = []

    def shuffled(key):
        seen.append(jax.random.key_data(key))
        return jnp.ones((2, 1))

    key = jax.random.key(0)
    diagnostics.gradient_noise(key, lambda part: part, shuffled, 2)
    children = jax.random.key_data(jax.random.split(key, 300))
    assert not (children == seen[0][None]).all(axis=1).any()


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, changes, message",
    [
        (("noise",), {}, "must be a tuple of different names among gradient_noise, dormant"),
        ("kl", {}, "got diagnostics = 'kl'"),
        (("kl", "kl"), {}, "different names"),
        (("gradient_noise",), {"num_minibatches": 1, "num_envs": 1, "num_steps": 11}, "equal parts of a rollout"),
        (("staleness",), {}, "actor_lag of at least 1; got actor_lag = 0"),
    ],
)
def test_errors_at_building(names, changes, message):
    with pytest.raises(ValueError, match=message):
        build("ppo", "probe/Credit", names, changes=changes)


def test_errors_that_depend_on_algorithm_and_spaces():
    with pytest.raises(ValueError, match=r"trpo: .*'staleness'.*which this algorithm has not"):
        build("trpo", "probe/Credit", ("staleness",))
    with pytest.raises(ValueError, match=r"'dormant' needs a torso .* got hidden = \(\)"):
        build("ppo", "probe/Credit", ("dormant",), hidden=())
    free = actor_critic(BOX, spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match=r"'churn' .* needs finite bounds"):
        diagnostics.validate("ppo", ("churn",), free, 2)
    flat = actor_critic(spaces.Box(0.0, 1.0, (10, 10, 2)), DISCRETE, hidden=(), convolve=False)
    with pytest.raises(ValueError, match="'dormant' needs"):
        diagnostics.validate("ppo", ("dormant",), flat, 2)


def test_all_policies_have_what_is_measured():
    """The mode and the divergence of every head are there; a Gaussian mixture's divergence is an upper bound."""
    policies = ["gaussian", "tanh_gaussian", "mixture", "bang_bang", "bang_off_bang"]
    names = ("churn", "kl", "staleness")
    for policy in policies:
        net = actor_critic(BOX, spaces.Box(-1.0, 1.0, (2,)), hidden=(4,), policy=policy)
        obs = jax.random.normal(jax.random.key(0), (6, 3))
        old, new = net.init(jax.random.key(1), obs), net.init(jax.random.key(2), obs)
        before = net.apply(old, obs)[0].policy
        assert isinstance(before, distributions.Distribution)
        found = diagnostics.measure(names, net, (obs,), before, new, new)
        assert all(0 < value < 1 for value in found.values()), policy


def test_configs_carry_the_names_to_a_run_and_back():
    from jaxrl.cli.overrides import config_from_json, with_config_changes

    config = with_config_changes(ppo.Config(), {"diagnostics": "kl,churn"})
    assert config.diagnostics == ("kl", "churn")
    values = {**dataclasses.asdict(config), "diagnostics": ["kl", "churn"]}
    assert config_from_json(ppo.Config, values) == config
