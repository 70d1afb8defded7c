"""Strategies: shaping by hand, updates against NumPy and evosax 0.3.2's figures, and known minima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxrl import strategies
from jaxrl.strategies import covariance, natural, shaping

NAN, INF = float("nan"), float("inf")
ALL = {
    "open_es": strategies.open_es(8),
    "open_es-low-rank": strategies.open_es(8, rank=1),
    "pgpe": strategies.pgpe(8),
    "snes": strategies.snes(8),
    "xnes": strategies.xnes(8),
    "cma_es": strategies.cma_es(8),
    "sep_cma_es": strategies.sep_cma_es(8),
}
each = pytest.mark.parametrize("name", ALL)
TREE = {"matrix": np.full((2, 2), 0.5, np.float32), "vector": np.array([1.0, -1.0], np.float32)}


@pytest.fixture(autouse=True)
def _compile_quickly(request):
    """Compiling is most of the work, but for the slow ones."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", "slow" not in request.keywords)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def begun(strategy, mean, seed=0, **changes):
    hparams = strategy.hyperparams(**changes)
    return jax.jit(strategy.init)(jax.random.key(seed), mean, hparams), hparams


def rows(candidates):
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(candidates)], axis=1)


def test_shaping_by_hand():
    shapes = {
        shape.__name__: shape for shape in (shaping.centered_rank, shaping.pairwise, shaping.z_score, shaping.raw)
    }
    weights = np.float32([0.6, 0.3, 0.1, -0.1, -0.3, -0.6])

    @jax.jit
    @jax.vmap
    def shaped(fitness):
        made = {name: shape(fitness) for name, shape in shapes.items()}
        ties = {f"tied_{pairs}": shaping.is_tied(fitness, pairs) for pairs in (True, False)}
        return made | ties | {"by_rank": shaping.by_rank(fitness, jnp.asarray(weights))}

    first = [2.0, NAN, 5.0, 2.0, -INF, 9.0]
    some, none, same, one = (
        {
            name: np.asarray(value[i])
            for name, value in shaped(np.float32([first, [NAN] * 6, [3.0] * 6, [NAN, 1] * 3])).items()
        }
        for i in range(4)
    )
    np.testing.assert_allclose(some["centered_rank"], np.array([2.5, 0.5, 4, 2.5, 0.5, 5]) / 5 - 0.5, rtol=1e-6)
    # Pairs are (2, 2), (nan, -inf), (5, 9): two ties and one winner.
    np.testing.assert_array_equal(some["pairwise"], [0, 0, -0.5, 0, 0, 0.5])
    np.testing.assert_array_equal(one["pairwise"], [-0.5, 0.5, -0.5, 0.5, -0.5, 0.5])
    filled = np.array([2, 2, 5, 2, 2, 9.0])
    np.testing.assert_array_equal(some["raw"], filled)
    np.testing.assert_allclose(some["z_score"], (filled - filled.mean()) / filled.std(), rtol=1e-5)
    np.testing.assert_allclose(some["by_rank"], [0, -0.45, 0.3, 0, -0.45, 0.6], atol=1e-7)
    assert some["tied_True"].tolist() == [True, True, False]
    assert some["tied_False"].tolist() == [True, True, False, True, True, False]
    for name in (*shapes, "by_rank"):
        np.testing.assert_array_equal(none[name], np.zeros(6))
        np.testing.assert_allclose(same[name], np.full(6, 3.0 if name == "raw" else 0.0), atol=1e-7)


@functools.cache
def seen(name):
    """What one program gives: candidates, asked twice, after a generation, after one without fitness, and many."""
    strategy = ALL[name]

    def run(keys):
        hparams = strategy.hyperparams(sigma=0.3)
        state = strategy.init(keys[0], TREE, hparams)
        candidates = strategy.ask(state, hparams)
        after, metrics = strategy.tell(state, candidates, jnp.arange(8.0), hparams)
        lost, lost_metrics = strategy.tell(state, candidates, jnp.full(8, jnp.nan), hparams)
        return {
            "state": state,
            "candidates": candidates,
            "again": strategy.ask(state, hparams),
            "next": strategy.ask(after, hparams),
            "after": after,
            "metrics": metrics,
            "lost": lost,
            "lost_metrics": lost_metrics,
            "many": jax.vmap(lambda key: strategy.ask(strategy.init(key, TREE, hparams), hparams))(keys),
        }

    return jax.jit(run)(jax.random.split(jax.random.key(0), 500))


@each
def test_ask_is_pure_and_pairs_are_opposite(name):
    got = seen(name)
    assert [x.shape for x in jax.tree.leaves(got["candidates"])] == [(8, 2, 2), (8, 2)]
    np.testing.assert_array_equal(rows(got["candidates"]), rows(got["again"]))
    assert not np.array_equal(rows(got["candidates"]), rows(got["next"]))
    moved = rows(got["candidates"]) - np.array([0.5] * 4 + [1, -1])
    assert ALL[name].pairs == np.allclose(moved[:4], -moved[4:], atol=1e-6)
    assert jax.tree.map(lambda x: x.dtype, got["after"]) == jax.tree.map(lambda x: x.dtype, got["state"])
    assert all(np.isfinite(value) for value in got["metrics"].values())


@each
def test_perturbations_have_the_deviation_they_should(name):
    many = jax.tree.map(lambda x: x.reshape(4000, *x.shape[2:]), seen(name)["many"])
    moved = rows(many) - np.array([0.5] * 4 + [1, -1])
    np.testing.assert_allclose(moved.std(0), 0.3, rtol=0.1)
    np.testing.assert_allclose(moved.mean(0), 0.0, atol=0.03)
    rank_one = np.abs(np.linalg.det(moved[:, :4].reshape(-1, 2, 2))).max() < 1e-6
    assert rank_one == (name == "open_es-low-rank")


@each
def test_a_generation_without_any_finite_fitness_leaves_the_mean(name):
    got = seen(name)
    for before, after in zip(jax.tree.leaves(got["state"].mean), jax.tree.leaves(got["lost"].mean), strict=True):
        np.testing.assert_array_equal(before, after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got["lost"].own))
    assert float(got["lost_metrics"]["fitness/num_not_finite"]) == 8


@each
def test_it_climbs_and_candidates_that_fail_rank_last(name):
    """Fitness -|x - 2|², NaN for a third of the candidates."""
    strategy = ALL[name]
    state, hparams = begun(strategy, TREE, **{"pgpe": {"learning_rate": 0.05}}.get(name, {}), sigma=0.2)

    def generation(state, index):
        candidates = strategy.ask(state, hparams)
        distance = sum(jnp.sum((x - 2.0) ** 2, axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(candidates))
        fitness = jnp.where((jnp.arange(8) + index) % 3 == 0, jnp.nan, -distance)
        return strategy.tell(state, candidates, fitness, hparams)

    after, metrics = jax.jit(lambda s: jax.lax.scan(generation, s, jnp.arange(150)))(state)
    start, end = (
        sum(float(np.sum((np.asarray(x) - 2.0) ** 2)) for x in jax.tree.leaves(tree)) for tree in (TREE, after.mean)
    )
    assert end < 0.2 * start
    assert set(np.asarray(metrics["fitness/num_not_finite"])) <= {2.0, 3.0}


def test_metrics_of_a_generation():
    strategy = strategies.open_es(4)
    state, hparams = begun(strategy, jnp.zeros(2), sigma=1.0)
    candidates = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    _, metrics = jax.jit(strategy.tell)(state, candidates, jnp.array([1.0, 2.0, NAN, 2.0]), hparams)
    got = {name.partition("/")[2]: float(value) for name, value in metrics.items()}
    # Weights are -1/6, 1/3, -1/2, 1/3: terms (1/3, 0) and (0, 0) of the two pairs.
    want = {"mean": 5 / 3, "std": np.sqrt(2) / 3, "best": 2, "num_not_finite": 1, "tie_rate": 0.5, "sigma": 1}
    want |= {"snr": (1 / 36) / (2 * (1 / 36) / 2), "half_cosine": 0.0}
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_of_a_single_pair_the_noise_is_not_known():
    strategy = strategies.open_es(2)
    state, hparams = begun(strategy, jnp.zeros(2), sigma=1.0)
    _, metrics = strategy.tell(state, strategy.ask(state, hparams), jnp.array([1.0, 2.0]), hparams)
    assert np.isnan(metrics["strategy/snr"])
    assert np.isnan(metrics["strategy/half_cosine"])
    assert np.isfinite(metrics["strategy/step"])


def test_noise_has_a_signal_to_noise_ratio_of_one():
    strategy = strategies.open_es(64)
    hparams = strategy.hyperparams()

    def measure(key):
        fresh = strategy.init(key, jnp.zeros(10), hparams)
        candidates = strategy.ask(fresh, hparams)
        noise = jax.random.normal(jax.random.fold_in(key, 1), (64,))
        return [strategy.tell(fresh, candidates, f, hparams)[1] for f in (noise, candidates[:, 0])]

    noise, signal = jax.jit(jax.vmap(measure))(jax.random.split(jax.random.key(0), 200))
    assert 0.9 < np.mean(noise["strategy/snr"]) < 1.1
    assert abs(np.mean(noise["strategy/half_cosine"])) < 0.1
    assert np.mean(signal["strategy/snr"]) > 2
    assert np.mean(signal["strategy/half_cosine"]) > 0.5


# Three generations on fixed candidates, whose figures evosax 0.3.2 gave (float32, jax 0.10.2).
STEPS = np.array(
    [
        [0.5, -1.0, 0.25],
        [-0.75, 0.5, 1.0],
        [1.25, 0.75, -0.5],
        [-0.5, 1.0, -0.25],
        [0.75, -0.5, -1.0],
        [-1.25, -0.75, 0.5],
    ]
)
EVOSAX = {
    "open_es": ([0.77748615, -0.22251379, 0.72251385], None),
    "pgpe": ([0.50307757, -0.45229778, 0.98922855], [0.80000001, 0.80000001, 0.80000001]),
    "snes": ([0.60568035, 0.56423378, 0.76758581], [0.79121739, 0.85817224, 0.72625202]),
    "sep_cma_es": ([0.62720805, 0.59005028, 0.69902229], 0.6127106),
    "cma_es": ([0.62720805, 0.59005022, 0.69902229], 0.61382508),
}


def three_generations(strategy, **changes):
    """Candidates are the mean plus fixed steps, fitness is -Σ (x - 0.6)² scaled by coordinate."""
    state, hparams = begun(strategy, jnp.array([0.5, -0.5, 1.0]), **changes)
    tell = jax.jit(strategy.tell)
    for generation in range(3):
        candidates = np.float32(np.asarray(state.mean) + STEPS * 0.5**generation)
        fitness = -(np.float32([1.0, 3.0, 0.5]) * (candidates - np.float32(0.6)) ** 2).sum(1)
        state, _ = tell(state, candidates, fitness, hparams)
    return state


@pytest.mark.parametrize("name", ["open_es", "pgpe", "snes", "sep_cma_es", "cma_es"])
def test_updates_are_evosax_s(name):
    strategy = getattr(strategies, name)(6)
    changes = {"open_es": {"learning_rate": 0.1}, "sep_cma_es": {"covariance_rate": 3 / 5}}.get(name, {})
    state = three_generations(strategy, sigma=0.8, **changes)
    mean, sigma = EVOSAX[name]
    np.testing.assert_allclose(state.mean, mean, rtol=2e-5)
    if sigma is not None:
        own = state.own.sigma if hasattr(state.own, "sigma") else state.own
        np.testing.assert_allclose(own, sigma, rtol=2e-5)


def test_xnes_is_the_matrix_exponential():
    """In float64; evosax 0.3.2 takes the exponential of each entry, so its B never leaves the diagonal."""
    num, mean = 3, np.array([0.5, -0.5, 1.0])
    sigma, shape, rate = 0.8, np.eye(num), (9 + 3 * np.log(num)) / (5 * num * np.sqrt(num))
    for generation in range(3):
        moved = STEPS * 0.5**generation
        fitness = -(np.array([1.0, 3.0, 0.5]) * (mean + moved - 0.6) ** 2).sum(1)
        weights = natural.utilities(6).astype(np.float64)[np.argsort(np.argsort(-fitness))]
        z = np.linalg.solve(shape, moved.T / sigma).T
        gradient = sum(w * (np.outer(v, v) - np.eye(num)) for w, v in zip(weights, z, strict=True))
        gain = np.trace(gradient) / num
        mean, sigma, shape = (
            mean + weights @ moved,
            sigma * np.exp(0.5 * rate * gain),
            shape @ scipy.linalg.expm(0.5 * rate * (gradient - gain * np.eye(num))),
        )
    state = three_generations(strategies.xnes(6), sigma=0.8)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.own.sigma, sigma, rtol=1e-5)
    np.testing.assert_allclose(state.own.shape, shape, rtol=1e-4, atol=1e-5)
    assert np.abs(shape - np.diag(np.diag(shape))).max() > 0.05
    np.testing.assert_allclose(np.linalg.det(state.own.shape), 1.0, rtol=1e-5)


def test_pgpe_moves_its_deviations():
    """In float64, with the fitness itself: ranks on symmetric candidates often cancel in the deviations' gradient."""
    mean, sigma, velocity = np.array([0.5, -0.5, 1.0]), np.full(3, 0.8), np.zeros(3)
    for generation in range(3):
        moved = STEPS * 0.5**generation
        fitness = -(np.array([1.0, 3.0, 0.5]) * (mean + moved - 0.6) ** 2).sum(1)
        plus, minus, d = fitness[:3], fitness[3:], moved[:3]
        gradient = (plus - minus) @ d / 6
        velocity = 0.9 * velocity + gradient / np.linalg.norm(gradient)
        velocity *= min(1.0, 2.0 / np.linalg.norm(velocity))
        change = 0.05 * (plus + minus - 2 * fitness.mean()) @ ((d**2 - sigma**2) / sigma) / 6
        mean, sigma = mean + 0.01 * velocity, sigma + np.clip(change, -0.2 * sigma, 0.2 * sigma)
    state = three_generations(strategies.pgpe(6, shaping.raw), sigma=0.8, sigma_rate=0.05)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.own.sigma, sigma, rtol=1e-5)
    assert np.ptp(sigma) > 0.02


def test_low_rank_moves_by_the_mean_of_weighted_perturbations():
    strategy = strategies.open_es(6, shaping=shaping.raw, rank=2)
    state, hparams = begun(strategy, {"w": jnp.zeros((3, 4))}, sigma=0.5, learning_rate=1.0, beta1=0.0, beta2=0.0)
    candidates = jax.jit(strategy.ask)(state, hparams)
    assert np.linalg.matrix_rank(np.asarray(candidates["w"]), tol=1e-4).tolist() == [2] * 6
    fitness = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    after, _ = jax.jit(strategy.tell)(state, candidates, fitness, hparams)
    # Without momenta Adam's step is the gradient's sign.
    np.testing.assert_allclose(after.mean["w"], np.sign(candidates["w"][0]), rtol=1e-4)


def test_decays_of_sigma_and_learning_rate():
    strategy = strategies.open_es(4)
    state, hparams = begun(
        strategy, jnp.zeros(2), sigma=1.0, sigma_decay=0.5, learning_rate=1.0, learning_rate_decay=0.5
    )
    sizes, steps, ask, tell = [], [], jax.jit(strategy.ask), jax.jit(strategy.tell)
    for _ in range(3):
        candidates = ask(state, hparams)
        state, metrics = tell(state, candidates, candidates[:, 0] + candidates[:, 1], hparams)
        sizes.append(float(metrics["strategy/sigma"]))
        steps.append(float(metrics["strategy/step"]))
    assert sizes == [1.0, 0.5, 0.25]
    assert steps[0] == pytest.approx(np.sqrt(2), rel=1e-3)
    assert steps[2] < 0.5 * steps[0]


# f of the mean on a 20-dimensional ellipsoid of condition 1e6, P = 12, from the point (3, ..., 3), median of 5 seeds.
CONDITION = jnp.asarray(10.0 ** (6 * np.arange(20) / 19), jnp.float32)
ROTATION = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0], jnp.float32)


def ellipsoid(strategy, num_generations, rotated=False, num_seeds=5):
    hparams = strategy.hyperparams(sigma=1.0)
    height = lambda x: jnp.sum(CONDITION * (ROTATION @ x if rotated else x) ** 2)

    def run(key):
        def generation(state, _):
            candidates = strategy.ask(state, hparams)
            return strategy.tell(state, candidates, -jax.vmap(height)(candidates), hparams)[0], None

        state = strategy.init(key, jnp.full(20, 3.0), hparams)
        return height(jax.lax.scan(generation, state, None, num_generations)[0].mean)

    return float(np.median(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), num_seeds))))


@pytest.mark.parametrize(
    "name, num_generations, rotated, most", [("sep_cma_es", 400, False, 1.0), ("snes", 400, False, 1.0)]
)
def test_ellipsoid(name, num_generations, rotated, most):
    assert ellipsoid(getattr(strategies, name)(12), num_generations, rotated) < most


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, rotated, most",
    [
        ("cma_es", False, 1e-15),
        ("cma_es", True, 1e-9),
        ("sep_cma_es", False, 1e-15),
        ("snes", False, 1e-15),
        ("xnes", False, 1e-1),
        ("xnes", True, 1e-1),
    ],
)
def test_ellipsoid_to_the_end(name, rotated, most):
    assert ellipsoid(getattr(strategies, name)(12), 1500, rotated) < most


def test_the_diagonal_ones_cannot_turn():
    """The rotated ellipsoid tells whether the whole matrix is learned."""
    assert ellipsoid(strategies.sep_cma_es(12), 200, rotated=True, num_seeds=2) > 1.0


@pytest.mark.parametrize("function", ["eigh", "solve"])
def test_linear_algebra_is_not_batched(function):
    """jaxlib 0.10.2 may sleep forever in batched LAPACK calls."""
    call = {"eigh": covariance.eigh, "solve": lambda m: covariance.solve(m, m)}[function]
    text = str(jax.make_jaxpr(jax.vmap(call))(jnp.stack([jnp.eye(3)] * 2)))
    assert "scan" in text
    assert "[2,3,3] = eigh" not in text
    values = jax.tree.leaves(jax.jit(jax.vmap(call))(jnp.stack([jnp.eye(3), 2 * jnp.eye(3)])))[0]
    assert values.shape[0] == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: strategies.open_es(7),
            "open_es: population_size must be an even number of at least 2.*population_size = 7",
        ),
        (lambda: strategies.snes(1), "snes: population_size must be at least 2; got population_size = 1"),
        (lambda: strategies.open_es(8, rank=0), "rank must be at least 1, or None .*rank = 0"),
        (lambda: strategies.pgpe(8).hyperparams(sigma=-1.0), "sigma must be from"),
        (lambda: strategies.cma_es(8).hyperparams(sigm=1.0), "No hyperparameter is called 'sigm'.*sigma"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["xnes", "cma_es"])
def test_hyperparameters_may_be_mapped(name):
    strategy = ALL[name]
    _, hparams = begun(strategy, TREE)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), hparams)

    def one(hparams):
        state = strategy.init(jax.random.key(0), TREE, hparams)
        return strategy.tell(state, strategy.ask(state, hparams), jnp.arange(8.0), hparams)[0].mean

    together = jax.jit(jax.vmap(one))(stacked)
    for i in range(2):
        alone = jax.jit(one)(jax.tree.map(lambda x: x[i], stacked))
        np.testing.assert_allclose(
            rows(jax.tree.map(lambda x: x[i : i + 1], together)),
            rows(jax.tree.map(lambda x: x[None], alone)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_records_are_memoized():
    assert strategies.open_es(8) is strategies.open_es(8, strategies.centered_rank)
    assert strategies.cma_es(8) is strategies.cma_es(8)
