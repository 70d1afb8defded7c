"""N-PG-IGT and HARPG: the estimates against exact derivatives, and that they learn, over 5 seeds."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrl
from jaxrl.algorithms import harpg
from jaxrl.networks import NetworkConfig

NUM_SEEDS = 5
STATES, ACTIONS, HORIZON, GAMMA = 2, 2, 3, 0.9


class Tiny:
    """A tabular task of three steps, all of whose trajectories are enumerated as columns, [T, 64]."""

    def __init__(self):
        numbers = np.random.default_rng(0)
        self.forward = numbers.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        self.reward = numbers.normal(size=(STATES, ACTIONS)) + 1.0
        self.first = np.array([0.3, 0.7])
        self.logits = numbers.normal(size=(STATES, ACTIONS))
        self.vector = numbers.normal(size=(STATES, ACTIONS))
        pairs = itertools.product(range(STATES), range(ACTIONS))
        paths = np.array(list(itertools.product(pairs, repeat=HORIZON)))
        self.state, self.action = paths[..., 0].T, paths[..., 1].T
        moves = self.forward[self.state[:-1], self.action[:-1], self.state[1:]].prod(0)
        policy = np.exp(self.logits) / np.exp(self.logits).sum(-1, keepdims=True)
        self.probability = self.first[self.state[0]] * moves * policy[self.state, self.action].prod(0)
        discount = GAMMA ** np.arange(HORIZON)[:, None]
        # γ^t times the return to go: the discounted rewards from t on.
        self.credit = np.cumsum((discount * self.reward[self.state, self.action])[::-1], axis=0)[::-1]
        self.discount = discount

    def log_prob(self, logits):
        return jax.nn.log_softmax(logits)[self.state, self.action]

    def value(self, logits):
        """The exact return, backwards in time."""
        policy, value = jax.nn.softmax(logits), jnp.zeros(STATES)
        for _ in range(HORIZON):
            value = jnp.sum(policy * (self.reward + GAMMA * self.forward @ value), axis=1)
        return self.first @ value


def starts(num_columns):
    return jnp.zeros((HORIZON, num_columns), bool).at[0].set(True)


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_expectations_are_the_exact_gradient_and_hessian_product(baseline):
    """Over all trajectories, each with its probability, in float64; whatever baseline the state has."""
    with jax.enable_x64(True):
        task = Tiny()
        np.testing.assert_allclose(task.probability.sum(), 1.0)
        weight = task.credit - task.discount * baseline * (1.0 + task.state)
        weight = weight * task.probability
        first = harpg.gradient(task.log_prob, task.logits, weight, 1.0)
        second = harpg.hessian_product(task.log_prob, task.logits, task.vector, weight, starts(weight.shape[1]), 1.0)
        exact = jax.hessian(task.value)(task.logits)
        np.testing.assert_allclose(first, jax.grad(task.value)(task.logits), atol=1e-12)
        np.testing.assert_allclose(second, jnp.einsum("ijkl,kl->ij", exact, task.vector), atol=1e-12)
        assert first.dtype == second.dtype == jnp.float64


def test_episodes_of_one_column_are_apart():
    """Two episodes after one another count as in two columns, and the mean is over their number."""
    with jax.enable_x64(True):
        task = Tiny()
        chosen = np.array([5, 40])
        apart = lambda x: task.log_prob(x)[:, chosen]
        joined = lambda x: task.log_prob(x)[:, chosen].T.reshape(-1, 1)
        weight = task.credit[:, chosen]
        want = harpg.hessian_product(apart, task.logits, task.vector, weight, starts(2), 2.0)
        start = starts(2).T.reshape(-1, 1)
        got = harpg.hessian_product(joined, task.logits, task.vector, weight.T.reshape(-1, 1), start, 2.0)
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_ages_count_from_every_start():
    start = jnp.array([[True, True], [False, True], [True, False], [False, False]])
    np.testing.assert_array_equal(harpg._age(start), [[0, 0], [1, 0], [0, 1], [1, 2]])


@pytest.mark.parametrize(
    "num_hessian_envs, least, greatest", [(64, 0.0, 0.05), pytest.param(0, 0.15, 1.0, marks=pytest.mark.slow)]
)
def test_the_direction_follows_the_gradient(num_hessian_envs, least, greatest):
    """On average over keys d is the gradient at θ, though that turns; without the Hessian it lags behind."""
    env = jaxrl.make_env("probe/Credit")
    small = NetworkConfig(hidden=(4,))
    net = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=(4,))
    cues, better = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([1, 0])

    def value(params):
        # The first action decides: +1 or -1 a step later.
        return 0.99 * jnp.mean(2.0 * net.apply(params, cues)[0].policy.probs()[jnp.arange(2), better] - 1.0)

    def bias(num_hessian_envs):
        config = harpg.Config(num_envs=64, num_hessian_envs=num_hessian_envs, num_steps=2, network=small)
        agent = harpg.harpg(env, config=config)
        hparams = agent.hyperparams(step_size=0.4, step_exponent=0.0, momentum=0.4, momentum_exponent=0.0)
        start = agent.init(jax.random.key(0), hparams)

        def error(key):
            state = dataclasses.replace(start, key=key)
            move = lambda carry, _: ((agent.step(carry[0], hparams)[0], carry[0].params), None)
            (state, before), _ = jax.lax.scan(move, (state, start.params), None, 3)
            exact = jax.grad(value)(before)
            return jax.tree.map(jnp.subtract, state.direction, exact), exact

        both = jax.jit(jax.vmap(error))(jax.random.split(jax.random.key(1), 128))
        error, exact = jax.tree.map(lambda x: jnp.mean(x, axis=0), both)
        return float(optax.tree.norm(error) / optax.tree.norm(exact))

    got = bias(num_hessian_envs)
    assert least < got < greatest, got


def learned(name, env, total_steps, config, **hparams):
    """Mean greedy return of each seed."""
    agent = jaxrl.make(name, jaxrl.make_env(env), **config)
    hparams = agent.hyperparams(**hparams)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, total_steps // agent.env_steps), (0, None)))(keys, hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 32), (0, 0, None)))
    return np.asarray(play(jax.random.split(jax.random.key(1), NUM_SEEDS), states, hparams.env).mean_return)


SMALL = {"num_envs": 16, "num_steps": 16, "network": NetworkConfig(hidden=(16,))}


@pytest.mark.parametrize(
    "name, config",
    [
        ("n_pg_igt", {}),
        ("harpg", {}),
        pytest.param("harpg", {"normalize": False, "baseline": "none"}, marks=pytest.mark.slow),
    ],
)
def test_probe(name, config):
    """A random policy has 0 on average; credit must cross two steps."""
    got = learned(name, "probe/Credit", 16 * 16 * 60, SMALL | config)
    assert (got >= 0.95).all(), got


@pytest.mark.slow
def test_continuous_actions():
    """The best return is 0; -1/12 = -0.083 for a policy that does not see."""
    got = learned("harpg", "probe/ContinuousObservation", 16 * 16 * 60, SMALL)
    assert (got >= -0.01).all(), got


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, config", [("harpg", {}), ("harpg", {"normalize": False})])
def test_cartpole(name, config):
    """500 is full, a random policy has about 20. `n_pg_igt` is tried in test_variants.py."""
    got = learned(name, "gymnax/CartPole-v1", 500_000, config)
    print(name, config, np.round(got, 1))
    assert np.median(got) >= 400, got
    assert got.min() >= 200, got


def test_messages():
    env = jaxrl.make_env("probe/Memory")
    with pytest.raises(ValueError, match="num_hessian_envs = -1"):
        harpg.harpg(env, config=harpg.Config(num_hessian_envs=-1))
