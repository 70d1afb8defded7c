"""Persistent learners: estimates against the exact derivative, what a pair shares, when lives end, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

import jaxrl
from jaxrl import checkpoint, fit, runs
from jaxrl.meta.persistent import persistent
from jaxrl.ops import trees
from jaxrl.types import Algorithm

LIFE, STRETCH, PAIRS = 8, 2, 4096
THETA, NOISE = 0.5, 0.1


@struct.dataclass
class Hyperparams:
    theta: jax.Array
    horizon: jax.Array


@struct.dataclass
class State:
    key: jax.Array
    position: jax.Array
    num_steps: jax.Array


def gain(position, theta):
    """Of one step: a position of 6 is best, and θ costs at once what it brings later."""
    return -0.5 * jnp.square(position - 6.0) - 4.0 * theta


@functools.cache
def walker():
    """Moves by θ and a little noise: what is gained late in life depends on every θ before."""

    def hyperparams(**changes):
        return trees.with_changes(trees.as_arrays(Hyperparams(theta=THETA, horizon=jnp.inf)), changes, {})

    def init(key, hparams):
        return State(key, jnp.float32(0.0), jnp.int32(0))

    def step(state, hparams):
        key, key_noise = jax.random.split(state.key)
        metrics = {
            "gain": gain(state.position, hparams.theta),
            "episode/count": jnp.float32(1.0),
            "episode/return_sum": state.position,
        }
        position = state.position + hparams.theta + NOISE * jax.random.normal(key_noise)
        return State(key, position, state.num_steps + 1), metrics

    act = lambda state, memory, obs, key: (obs, memory)
    return Algorithm(init, step, act, hyperparams, env_steps=3, name="walker")


def total_gain(state, metrics):
    return jnp.sum(metrics["gain"])


def ascent(hparams, learning_rate):
    return optax.scale(-learning_rate)


def walking(estimator="nres", **changes):
    arguments = {"num_steps": LIFE, "truncation": STRETCH, "num_pairs": PAIRS, "num_held_out": 1, **changes}
    return persistent(walker(), "theta", estimator=estimator, fitness=total_gain, optimizer=ascent, **arguments)


# No estimator matters to the beginning.
begin = functools.cache(lambda: jax.jit(walking().init))


@functools.cache
def after_four(estimator):
    """State after as many generations as a life has stretches, at a mean that stays, and the compiled step."""
    agents = walking(estimator)
    step = jax.jit(agents.step)
    still = agents.hyperparams(meta_sigma=0.3, meta_learning_rate=0.0)
    state = begin()(jax.random.key(0), still)
    for _ in range(LIFE // STRETCH):
        state, _ = step(state, still)
    return agents, step, still, state


def mean_gain(theta, remembers):
    """Mean over the stretches of a life; where the past is not remembered, no derivative goes through it."""
    position, total = jnp.float32(0.0), 0.0
    for n in range(LIFE):
        if n % STRETCH == 0 and not remembers:
            position = jax.lax.stop_gradient(position)
        total += gain(position, theta)
        position = position + theta
    return total * STRETCH / LIFE


@pytest.mark.parametrize("estimator", ["pes", "nres", pytest.param("truncated", marks=pytest.mark.slow)])
def test_the_estimate_is_that_of_the_whole_life(estimator):
    """At a mean that stays: of the whole life for PES and NRES, of the stretch alone without their weights.

    One step at rate 1 moves the mean by the estimate. Gain is a quadratic of the perturbations, so the differences of
    pairs are linear in them, and the expectation is the derivative itself.
    """
    agents, step, still, state = after_four(estimator)
    estimates = []
    for _ in range(8):
        moved, metrics = step(state, still.replace(learning_rate=jnp.float32(1.0)))
        estimates.append(float(moved.mean["theta"] - state.mean["theta"]))
        np.testing.assert_allclose(metrics["strategy/gradient"], abs(estimates[-1]), rtol=1e-3)
        state, _ = step(state, still)
    whole, truncated = (float(jax.grad(mean_gain)(THETA, remembers)) for remembers in (True, False))
    assert whole > 0 > truncated
    expected = truncated if estimator == "truncated" else whole
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert error < 0.1 * abs(expected)
    np.testing.assert_allclose(np.mean(estimates), expected, atol=4 * error + 0.02)
    assert agents.env_steps == (2 * PAIRS * STRETCH + LIFE) * 3


def test_nres_has_the_lower_variance():
    """Of one pair's estimate, where gain is smooth over the whole life (Li et al. 2023)."""
    variance = {}
    for estimator in ("pes", "nres"):
        _, step, still, state = after_four(estimator)
        _, metrics = step(state, still)
        # The squared estimate by its variance.
        variance[estimator] = float(metrics["strategy/gradient"]) ** 2 / float(metrics["strategy/snr"])
    assert variance["nres"] < variance["pes"]


@pytest.mark.parametrize("estimator", ["pes", "nres"])
def test_pairs_live_on_and_differ_by_their_leaves_alone(estimator):
    """The two of a pair have met the same noise, so that their distance is the perturbations that they have had."""
    _, step, still, state = after_four(estimator)
    state, _ = step(state, still)
    pairs = jax.tree.map(np.asarray, state.pairs.replace(learners=state.pairs.learners.replace(key=())))
    # Lives end in turn: a quarter of the pairs is at each age, and those at 0 are about to begin.
    ages, counts = np.unique(pairs.age, return_counts=True)
    assert (ages.tolist(), counts.tolist()) == ([0, 2, 4, 6], [PAIRS // 4] * 4)
    assert (pairs.end == LIFE).all()
    lived = np.where(pairs.age == 0, LIFE, pairs.age)
    np.testing.assert_array_equal(pairs.learners.num_steps, np.stack([lived, lived], axis=1))
    distance = pairs.learners.position[:, 0] - pairs.learners.position[:, 1]
    steps = STRETCH if estimator == "pes" else lived
    np.testing.assert_allclose(distance, 2.0 * steps * pairs.perturbation["theta"], rtol=1e-4, atol=1e-4)
    # The noise itself differs from pair to pair.
    assert np.std(pairs.learners.position.mean(axis=1) - THETA * lived) > 0.5 * NOISE


def test_a_life_that_goes_on_keeps_its_perturbation_and_a_new_one_has_another():
    _, step, still, state = after_four("nres")
    after, _ = step(state, still)
    before, now = (np.asarray(x.pairs.perturbation["theta"]) for x in (state, after))
    goes_on = np.asarray(state.pairs.age) > 0
    np.testing.assert_array_equal(now[goes_on], before[goes_on])
    assert (now[~goes_on] != before[~goes_on]).all()
    assert 0.27 < now[~goes_on].std() < 0.33


def test_the_first_lives_are_cut_short_in_turn():
    agents = walking(num_pairs=6)
    state = jax.jit(agents.init)(jax.random.key(0), agents.hyperparams())
    assert state.pairs.end.tolist() == [2, 2, 4, 6, 6, 8]
    assert float(agents.hyperparams().inner.horizon) == LIFE * 3


def few(num_generations=1, **changes):
    arguments = {"num_generations": num_generations, "log": ("theta",), "chunk": 2, **changes}
    return walking("pes", num_pairs=4, **arguments)


@pytest.mark.slow
def test_it_climbs_and_goes_on_after_a_kill(tmp_path):
    agents = few(4)
    hparams = agents.hyperparams(theta=0.1, meta_sigma=0.1, meta_learning_rate=1e-2)

    def train(path, *, resume=False, die_after=None):
        run = runs.Run.open(path) if resume else runs.Run.create(path, runs.describe())

        def on_segment(progress):
            if progress.iteration == die_after:
                raise RuntimeError("killed")

        settings = {"segment": 1, "checkpoint_seconds": 0.0, "resume": resume, "on_segment": on_segment}
        state = fit.fit(agents, hparams, run=run, seed=1, total_iterations=12, **settings).state
        return state, run.metrics()

    state, rows = train(tmp_path / "whole")
    curve = np.asarray(rows["held_out/fitness"]).ravel()
    # The whole life's gain, of a learner under the mean; the greatest is about that of θ = 0.6.
    assert curve[-1] > curve[0] + 10.0
    assert 0.2 < float(state.values["theta"]) < 1.0
    np.testing.assert_allclose(state.values["theta"], np.exp(state.mean["theta"]), rtol=1e-6)
    assert int(state.num_generations) == 48
    assert np.asarray(rows["episode/count"]).ravel()[-1] == 4 * 2 * 4 * STRETCH + LIFE
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", die_after=5)
    again, _ = train(tmp_path / "cut", resume=True)
    assert checkpoint.digests(again) == checkpoint.digests(state)


@pytest.mark.slow
def test_chunks_and_generations_in_a_step_change_nothing():
    hparams = few().hyperparams(theta=0.1)
    one, _ = jax.jit(jaxrl.train(few(3), 1))(jax.random.key(2), hparams)
    three, _ = jax.jit(jaxrl.train(few(1, chunk=None), 3))(jax.random.key(2), hparams)
    np.testing.assert_allclose(one.mean["theta"], three.mean["theta"], rtol=1e-5)
    np.testing.assert_allclose(one.pairs.learners.position, three.pairs.learners.position, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation": 3}, "truncation must divide num_steps.*got num_steps = 8, truncation = 3"),
        ({"num_pairs": 0}, "num_pairs must be a whole number of at least 1"),
        ({"estimator": "es"}, "estimator must be one of pes, nres, truncated; got estimator = 'es'"),
        ({"log": ("rate",)}, "persistent: log names 'rate', which does not evolve"),
        ({"tasks": gain}, "tasks need an algorithm with an environment; 'walker' has none"),
        ({"num_pairs": 4, "chunk": 3}, "divisible by chunk"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        walking(**changes)
