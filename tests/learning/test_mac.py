"""MAC: its updates are those of the formulas, its walk has the stationary rewards that are claimed, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import mac
from jaxrl.envs import continuing
from jaxrl.networks import NetworkConfig

NUM_SEEDS = 5
LINEAR = NetworkConfig(hidden=())


# --- The walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", [1.0, 0.05])
def test_the_average_reward_is_that_of_the_stationary_distribution(motion):
    params = continuing.line(6, motion=motion, sparse=False).default_params()
    right = np.random.default_rng(0).uniform(0.2, 0.8, 6)
    matrix = continuing.transitions(params, right)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    stationary = np.linalg.matrix_power(matrix, 2**16)[0]
    found = continuing.average_reward(params, jnp.asarray(right, jnp.float32))
    np.testing.assert_allclose(found, stationary @ np.asarray(params.rewards), rtol=1e-5)


def test_the_walk_moves_as_its_transitions_say():
    env = continuing.line(4, motion=0.6, slip=0.3)
    params, num_draws = env.default_params(), 4000
    matrix = continuing.transitions(params, np.ones(4))
    step = jax.vmap(env.step, (0, None, None, None))
    for cell in range(4):
        after, result = step(jax.random.split(jax.random.key(cell), num_draws), cell, jnp.int32(1), params)
        shares = np.bincount(np.asarray(after), minlength=4) / num_draws
        np.testing.assert_allclose(shares, matrix[cell], atol=4 * 0.5 / np.sqrt(num_draws))
        np.testing.assert_array_equal(result.reward, np.asarray(after) == 3)


@pytest.mark.parametrize("change", [{"num_states": 2}, {"motion": 0.0}, {"slip": 1.5}])
def test_a_walk_out_of_its_range(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        continuing.line(**change)


# --- One trajectory at a time ----------------------------------------------------------------------------------------


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


class Oracle:
    """MAC on a table, in float64, from the transitions that an agent saw."""

    def __init__(self, state, rates):
        params = state.params["params"]
        self.learned = {
            "rho": np.zeros(()),
            "value": np.asarray(params["value"]["kernel"], np.float64),
            "value_bias": np.asarray(params["value"]["bias"], np.float64),
            "policy": np.asarray(params["policy"]["kernel"], np.float64),
            "policy_bias": np.asarray(params["policy"]["bias"], np.float64),
        }
        self.groups = {"rho": ["rho"], "value": ["value", "value_bias"], "policy": ["policy", "policy_bias"]}
        self.squares, self.rates, self.samples = dict.fromkeys(self.groups, 0.0), rates, []

    def sample(self, cell, action, reward, successor):
        at = self.learned
        value = at["value"][:, 0] + at["value_bias"][0]
        delta = reward - at["rho"] + value[successor] - value[cell]
        here = np.eye(len(value))[cell]
        score = np.eye(2)[action] - softmax(at["policy"][cell] + at["policy_bias"])
        self.samples.append(
            {
                "rho": reward - at["rho"],
                "value": delta * here[:, None],
                "value_bias": delta * np.ones(1),
                "policy": delta * np.outer(here, score),
                "policy_bias": delta * score,
            }
        )

    def update(self, length, mean_only):
        assert len(self.samples) == length
        mean = lambda name, num: np.mean([sample[name] for sample in self.samples[:num]], axis=0)
        for group, names in self.groups.items():
            estimate = {}
            for name in names:
                estimate[name] = mean(name, length)
                if not mean_only:
                    levels = length * (mean(name, length) - mean(name, length // 2)) if length > 1 else 0.0
                    estimate[name] = mean(name, 1) + levels
            self.squares[group] += sum(np.sum(np.square(h)) for h in estimate.values())
            for name, h in estimate.items():
                self.learned[name] = self.learned[name] + self.rates[group] * h / np.sqrt(self.squares[group] or 1.0)
        self.samples = []


@pytest.mark.parametrize("lengths", ["geometric", "fixed"])
def test_updates_are_those_of_the_formulas(lengths):
    num_states, num_steps, max_level = 4, 80, 2
    env = continuing.line(num_states, slip=0.0, sparse=False)
    agent = mac.mac(env, config=mac.Config(num_steps=1, max_level=max_level, lengths=lengths, network=LINEAR))
    rates = {"rho": 0.3, "value": 0.2, "policy": 0.5}
    hparams = agent.hyperparams(reward_rate=0.3, value_rate=0.2, policy_rate=0.5)
    state, step = agent.init(jax.random.key(3), hparams), jax.jit(agent.step)
    oracle, seen = Oracle(state, rates), set()
    for _ in range(num_steps):
        after, metrics = step(state, hparams)
        cell, successor = (int(jnp.argmax(s.actor.obs)) for s in (state, after))
        right = successor == cell + 1 or cell == successor == num_states - 1
        oracle.sample(cell, int(right), successor / (num_states - 1), successor)
        if metrics["update/frequency"] == 1.0:
            assert len(oracle.samples) == 2 ** int(state.level)
            seen.add(int(state.level))
            oracle.update(2 ** int(state.level), lengths == "fixed")
        params = after.params["params"]
        found = {"rho": after.average_reward, "value": params["value"]["kernel"], "policy": params["policy"]["kernel"]}
        for name, leaf in found.items():
            np.testing.assert_allclose(leaf, oracle.learned[name], rtol=1e-5, atol=1e-5, err_msg=name)
        state = after
    assert seen == ({0, 1, 2} if lengths == "geometric" else {2})


def test_an_end_is_a_transition_into_the_next_episode_and_a_cut_is_not():
    """Two steps that pay 1, of values 1 and 2. δ at the second one tells which state was taken for its successor."""
    env = jaxrl.make_env("probe/Termination", num_steps=2)

    def cut(*arguments):
        state, result = env.step(*arguments)
        return state, result.replace(terminated=result.truncated, truncated=result.terminated)

    def last_error(env):
        agent = mac.mac(env, config=mac.Config(num_steps=1, max_level=0, lengths="fixed", network=LINEAR))
        frozen = agent.hyperparams(policy_rate=0.0, value_rate=0.0, reward_rate=0.0, reset_cost=0.25)
        state = agent.init(jax.random.key(0), frozen)
        kernel = jnp.arange(1.0, 1.0 + env.observation_space.shape[0])[:, None]
        state.params["params"]["value"]["kernel"] = kernel
        for _ in range(2):
            state, metrics = jax.jit(agent.step)(state, frozen)
        return float(metrics["loss/td_error"])

    assert np.isclose(last_error(env), abs(1.0 - 0.25 + 1.0 - 2.0)), "the next episode's first state, at a cost"
    assert np.isclose(last_error(env._replace(step=cut)), abs(1.0 + 0.0 - 2.0)), "the true successor, all zeros"


def test_a_trajectory_goes_on_in_the_next_step_of_the_algorithm():
    env = continuing.line(4)
    whole, parts = (
        mac.mac(env, config=mac.Config(num_steps=n, max_level=4, lengths="fixed", network=LINEAR)) for n in (16, 4)
    )
    hparams = parts.hyperparams()
    state = parts.init(jax.random.key(0), hparams)
    frequencies = []
    for _ in range(8):
        state, metrics = jax.jit(parts.step)(state, hparams)
        frequencies.append(float(metrics["update/frequency"]))
    assert frequencies == [0.0, 0.0, 0.0, 0.25] * 2
    state = jax.jit(whole.step)(whole.init(jax.random.key(0), hparams), hparams)[0]
    assert int(state.position) == 0
    assert float(state.squares[2]) > 0.0


@pytest.mark.parametrize(
    "config, word",
    [
        ({"max_level": -1}, "max_level"),
        ({"max_level": 31}, "max_level"),
        ({"num_steps": 0}, "num_steps"),
        ({"lengths": "long"}, "lengths"),
    ],
)
def test_what_mac_refuses(config, word):
    with pytest.raises(ValueError, match=word):
        mac.mac(continuing.line(4), config=mac.Config(**config))


# --- Learning --------------------------------------------------------------------------------------------------------


def exact_average(env, states, network):
    """The average reward of each seed's policy, and that of always going right."""
    params = env.default_params()
    cells = jnp.eye(env.observation_space.shape[0])
    right = jax.vmap(lambda p: network.apply(p, cells)[0].policy.log_probs()[:, 1])(states.params)
    best = continuing.average_reward(params, jnp.ones(len(cells)))
    return np.asarray(continuing.average_reward(params, jnp.exp(right)) / best)


def share_of_optimum(env, num_steps, lengths="geometric"):
    network = jaxrl.actor_critic(env.observation_space, env.action_space, hidden=())
    agent = mac.mac(env, network, mac.Config(num_steps=200, lengths=lengths))
    run = jax.jit(jax.vmap(jaxrl.train(agent, num_steps // 200), (0, None)))
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, metrics = run(keys, agent.hyperparams())
    return exact_average(env, states, network), metrics


def test_it_learns_a_small_walk():
    """A uniform policy has 0.37 of the optimum."""
    share, _ = share_of_optimum(continuing.line(3), 4_000)
    assert np.median(share) > 0.8, share


@pytest.mark.slow
def test_it_learns_a_walk_that_mixes_slowly_and_pays_in_one_cell():
    """A uniform policy has 0.18 of the optimum."""
    share, metrics = share_of_optimum(continuing.line(6, motion=0.1), 200_000)
    assert np.median(share) > 0.9, share
    assert np.isclose(metrics["update/frequency"].mean(), 1 / (5 + 2**-5), rtol=0.05)


@pytest.mark.slow
def test_it_balances_cartpole_as_a_continuing_task():
    """A random policy's episodes have 22 steps. Seeds are far apart: 190, 74, 491, 110 and 197 in one run."""
    env = jaxrl.make_env("gymnax/CartPole-v1")
    agent = mac.mac(env, config=mac.Config(num_envs=8, num_steps=500, max_level=2))
    run = jax.jit(jax.vmap(jaxrl.train(agent, 150), (0, None)))
    hparams = agent.hyperparams(reset_cost=10.0)
    _, metrics = run(jax.random.split(jax.random.key(0), NUM_SEEDS), hparams)
    last = slice(-10, None)
    length = metrics["episode/length_sum"][:, last].sum(1) / metrics["episode/count"][:, last].sum(1)
    assert np.median(length) > 100.0, length
    assert length.min() > 44.0, length
