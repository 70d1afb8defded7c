"""Meta-gradients against finite differences: exact on a two-state chain, and of LPG's whole step; lives and critics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from runs import toy

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import lpg
from jaxrl.envs import chains
from jaxrl.meta.meta_gradient import Judge, meta_gradient, policy_gradient
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.distributions import Categorical
from jaxrl.types import Algorithm, Env, EnvStep, memoize

GAMMA, RATE = 0.8, 0.7
# Of staying (0) and changing (1) in both states: where it leads, with a slip of 0.1, and what it truly pays.
MOVES = np.array([[[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]])
PAYS = np.array([[0.0, 0.2], [1.0, -0.5]])


def descent(hparams, learning_rate):
    return optax.chain(optax.clip_by_global_norm(hparams.max_grad_norm), optax.scale(-learning_rate))


@pytest.fixture(autouse=True)
def _compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@struct.dataclass
class ChainHyperparams:
    reward: jax.Array


@struct.dataclass
class ChainState:
    key: jax.Array
    params: jax.Array
    num_steps: jax.Array


def exact_return(logits, reward):
    """From state 0, of a policy on the chain."""
    policy = jax.nn.softmax(logits)
    matrix = jnp.eye(2) - GAMMA * jnp.einsum("sa,sat->st", policy, MOVES.astype(np.float32))
    pays = jnp.sum(policy * reward, axis=1)
    determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
    return (matrix[1, 1] * pays[0] - matrix[0, 1] * pays[1]) / determinant


@memoize
def two_states() -> Algorithm:
    """Gradient ascent on the exact return of a reward that is a hyperparameter."""

    def hyperparams(**changes):
        return trees.with_changes(ChainHyperparams(jnp.array([[0.3, -0.1], [0.2, 0.4]])), changes, {})

    def init(key, hparams):
        key, key_params = jax.random.split(key)
        return ChainState(key, jax.random.normal(key_params, (2, 2)), jnp.int32(0))

    def step(state, hparams):
        value, slope = jax.value_and_grad(exact_return)(state.params, hparams.reward)
        return state.replace(params=state.params + RATE * slope, num_steps=state.num_steps + 1), {"loss/value": -value}

    return Algorithm(init, step, lambda state, memory, obs, key: (obs, memory), hyperparams, env_steps=1)


@memoize
def true_return() -> Judge:
    def loss(key, own, learner, rows, hparams):
        return -exact_return(learner.params, PAYS.astype(np.float32)), (own, {})

    return Judge(lambda key, learner, hparams: (), loss)


def three(key):
    return jnp.int32(3)


def return_and_slope(logits, reward):
    """The same in float64, its slope by the policy gradient theorem."""
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    matrix = np.eye(2) - GAMMA * np.einsum("sa,sat->st", policy, MOVES)
    value = np.linalg.solve(matrix, (policy * reward).sum(1))
    visits = np.linalg.solve(matrix.T, [1.0, 0.0])
    action_value = reward + GAMMA * MOVES @ value
    return value[0], visits[:, None] * policy * (action_value - value[:, None])


def after_updates(reward, logits, num):
    for _ in range(num):
        logits = logits + RATE * return_and_slope(logits, reward)[1]
    return logits


def test_the_derivative_is_that_of_finite_differences_on_two_states():
    """Through three updates: the life ends before the fourth."""
    agents = meta_gradient(
        two_states(), true_return(), "reward", lifetimes=three, num_updates=4, num_learners=2, optimizer=descent
    )
    hparams = agents.hyperparams(meta_learning_rate=1.0, meta_max_grad_norm=1e9)
    before = jax.jit(agents.init)(jax.random.key(0), hparams)
    after, metrics = jax.jit(agents.step)(before, hparams)
    reward, starts = np.asarray(hparams.inner.reward, np.float64), np.asarray(before.lives.learner.params, np.float64)

    def loss(reward):
        return np.mean([-return_and_slope(after_updates(reward, x, 3), PAYS)[0] for x in starts])

    expected, nudge = np.zeros((2, 2)), 1e-5
    for i in np.ndindex(2, 2):
        change = np.zeros((2, 2))
        change[i] = nudge
        expected[i] = (loss(reward + change) - loss(reward - change)) / (2 * nudge)
    found = np.asarray(before.values["reward"] - after.values["reward"], np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["meta/loss"], loss(reward), rtol=1e-4)
    np.testing.assert_allclose(metrics["meta/gradient"], np.linalg.norm(expected), rtol=1e-3)
    assert after.lives.age.tolist() == [0, 0]
    assert (np.abs(np.asarray(after.lives.learner.params) - starts).max(axis=(1, 2)) > 0.1).all()


def test_the_true_return_rises():
    agents = meta_gradient(two_states(), true_return(), "reward", lifetimes=8, num_updates=4, num_learners=8)
    _, metrics = jax.jit(jaxrl.train(agents, 40))(jax.random.key(1), agents.hyperparams(meta_learning_rate=0.1))
    losses = np.asarray(metrics["meta/loss"])
    assert losses[-4:].mean() < losses[:4].mean() - 0.5, losses


@struct.dataclass
class HasEnv:
    env: chains.ChainParams


ENV = chains.make("Short", length=(3, 6))
CONFIG = lpg.Config(num_envs=4, num_steps=6, tabular=True, optimizer="sgd")


@functools.cache
def lpg_agents():
    regularizers = (("policy/entropy", -0.05), ("rule/policy_square", 0.005))
    judge = policy_gradient(
        ENV, lpg.policy(ENV, CONFIG), num_envs=4, num_steps=6, tabular=True, regularizers=regularizers
    )
    agents = meta_gradient(
        lpg.lpg(ENV, rules.lpg(6, 4, 3), CONFIG),
        judge,
        lifetimes=3,
        num_updates=2,
        num_learners=3,
        optimizer=descent,
        tasks=chains.levels("Short", length=(3, 6)),
    )
    hparams = agents.hyperparams(
        meta_learning_rate=1.0, meta_max_grad_norm=1e9, learning_rate=2.0, prediction_learning_rate=2.0
    )
    return agents, hparams, jax.jit(agents.init), jax.jit(agents.step)


@pytest.mark.slow
def test_the_derivative_of_lpg_is_that_of_finite_differences():
    """Along random directions, with the same keys: what is sampled stays as it is."""
    _, hparams, init, step = lpg_agents()
    state = init(jax.random.key(2), hparams)
    # One update first, so that no table is even.
    state, _ = step(state, hparams.replace(learning_rate=jnp.float32(0.0)))
    after, metrics = step(state, hparams)
    gradient = {name: state.values[name] - after.values[name] for name in state.values}
    assert float(metrics["meta/num_not_finite"]) == 0
    for seed in range(2):
        keys = jax.random.split(jax.random.key(seed), len(gradient))
        direction = {name: jax.random.normal(k, g.shape) for k, (name, g) in zip(keys, gradient.items(), strict=True)}
        expected = sum(float(jnp.sum(gradient[name] * direction[name])) for name in gradient)
        nudge = 3e-3
        losses = [
            float(step(state.replace(values=moved(state.values, direction, sign * nudge)), hparams)[1]["meta/loss"])
            for sign in (1.0, -1.0)
        ]
        np.testing.assert_allclose((losses[0] - losses[1]) / (2 * nudge), expected, rtol=0.03, atol=2e-4)


def moved(values, direction, distance):
    return {name: value + distance * direction[name] for name, value in values.items()}


@pytest.mark.slow
def test_critics_learn_and_lives_end():
    """Lives of three updates, two a step: the second step stops after one and begins new ones."""
    agents, hparams, init, step = lpg_agents()
    state = init(jax.random.key(2), hparams)
    assert state.lives.age.tolist() == [0, 0, 0]
    first, metrics = step(state, hparams)
    assert float(metrics["meta/value_gradient"]) > 1e-3
    assert (np.abs(np.asarray(first.lives.own.params["kernel"])).max(axis=1) > 0).all()
    assert first.lives.age.tolist() == [2, 2, 2]
    assert first.lives.learner.num_steps.tolist() == [2, 2, 2]
    assert np.array_equal(first.lives.env.length, state.lives.env.length)
    second, _ = step(first, hparams)
    assert second.lives.age.tolist() == [0, 0, 0]
    assert second.lives.learner.num_steps.tolist() == [0, 0, 0]
    assert (np.asarray(second.lives.own.params["kernel"]) == 0).all()
    lengths = [np.asarray(x.lives.env.length).tolist() for x in (first, second)]
    rights = [np.asarray(x.lives.env.right).tolist() for x in (first, second)]
    assert (lengths[0], rights[0]) != (lengths[1], rights[1])
    assert agents.env_steps == 3 * (2 * 24 + 24)


@pytest.mark.slow
def test_the_state_keeps_its_type():
    agents, hparams, _, _ = lpg_agents()
    state = jax.eval_shape(agents.init, jax.random.key(0), hparams)
    after, _ = jax.eval_shape(agents.step, state, hparams)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    played, _ = jax.eval_shape(agents.act, state, (), jnp.int32(0), jax.random.key(0))
    assert played.shape == ()


def test_a_judges_critic_has_a_gradient_and_takes_a_step_along_it():
    """Of a policy that goes neither way: after one step the table is what the advantages' mean makes of it."""
    even = lambda learner, obs: Categorical(jnp.zeros((*obs.shape, 2)))
    judge = policy_gradient(ENV, even, num_envs=4, num_steps=6, tabular=True, critic_rate=0.5)
    hparams = HasEnv(ENV.default_params())

    def play(key):
        own = judge.init(key, None, hparams)
        return own, *judge.loss(key, own, None, {}, hparams)

    own, loss, (after, metrics) = jax.jit(play)(jax.random.key(0))
    assert 1e-3 < float(metrics["meta/value_gradient"]) < 0.5
    length = np.linalg.norm(np.asarray(after.params["kernel"] - own.params["kernel"]))
    np.testing.assert_allclose(length, 0.5 * metrics["meta/value_gradient"], rtol=1e-4)
    # Standardized advantages have mean 0, and all actions the same probability.
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    assert float(metrics["meta/value_loss"]) > 0.0


def test_the_table_of_a_judges_critic_does_not_diverge_where_one_state_is_all_there_is():
    """An episode is one step and pays 1. At rate 4, plain descent would multiply the value's error by -7."""
    one, zero = spaces.Discrete(1), jnp.int32(0)
    over = EnvStep(obs=zero, reward=jnp.float32(1.0), terminated=jnp.bool_(True), truncated=jnp.bool_(False))
    env = Env(
        "here/One", lambda key, _: (zero, zero), lambda *_: (zero, over), lambda: zero, one, spaces.Discrete(2), 1
    )
    even = lambda learner, obs: Categorical(jnp.zeros((*obs.shape, 2)))
    judge = policy_gradient(env, even, num_envs=4, num_steps=2, tabular=True)

    def play(own, key):
        _, (after, metrics) = judge.loss(key, own, None, {}, HasEnv(zero))
        return after, metrics["meta/value_loss"]

    keys = jax.random.split(jax.random.key(0), 4)
    own, errors = jax.jit(lambda: jax.lax.scan(play, judge.init(keys[0], None, HasEnv(zero)), keys))()
    np.testing.assert_allclose(own.params["kernel"], [1.0])
    np.testing.assert_allclose(errors, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaves": "rewart"}, "meta_gradient: No hyperparameter is called 'rewart'. Did you mean reward"),
        ({"num_updates": 0}, "num_updates must be a whole number of at least 1"),
        ({"lifetimes": 0}, "lifetimes must be a whole number of at least 1"),
        ({"num_learners": 3, "chunk": 2}, "divisible by chunk"),
        ({"tasks": lambda key: ()}, "tasks need an algorithm with an environment"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        meta_gradient(two_states(), true_return(), **{"leaves": "reward", "lifetimes": 5, **changes})


def test_a_learner_whose_derivative_is_not_finite_counts_for_nothing():
    def loss(key, own, learner, rows, hparams):
        bad = jnp.where(learner.params["w"][0] > 0, jnp.nan, 1.0)
        return jnp.sum(learner.params["w"]) * bad, (own, {})

    judge = Judge(lambda key, learner, hparams: (), loss)
    agents = meta_gradient(
        toy.noisy_descent(), judge, "target", lifetimes=9, num_updates=1, num_learners=16, optimizer=descent
    )
    hparams = agents.hyperparams(meta_learning_rate=1.0, meta_max_grad_norm=1e9, learning_rate=0.1)
    before = jax.jit(agents.init)(jax.random.key(0), hparams)
    after, metrics = jax.jit(agents.step)(before, hparams)
    bad = int(metrics["meta/num_not_finite"])
    assert 0 < bad < 16
    # d w / d target = 2 rate for each of three weights.
    moved_by = float(before.values["target"] - after.values["target"])
    np.testing.assert_allclose(moved_by, (16 - bad) / 16 * 3 * 0.2, rtol=1e-5)
