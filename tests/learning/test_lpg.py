"""The agent of a rule: one update written out, and that written rules make tables and networks learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import lpg
from jaxrl.envs import grids
from jaxrl.objectives import rules
from jaxrl.objectives.rules import Rule, Targets

NUM_SEEDS = 5


@functools.cache
def paid():
    """π̂ is 1 + reward, ŷ is (0.8, 0.2) everywhere."""

    def targets(params, inputs):
        aim = jnp.broadcast_to(jnp.log(jnp.array([0.8, 0.2])), inputs.prediction.shape)
        return Targets(params * (1.0 + inputs.reward), aim)

    return Rule(lambda key: jnp.float32(1.0), targets, 2, "paid")


def test_one_update_of_a_table_written_out():
    """On the probe that pays 1 for action 1 and -1 for action 0: the return tells how often each was taken."""
    config = lpg.Config(num_envs=8, num_steps=4, tabular=True, optimizer="sgd")
    agent = lpg.lpg(jaxrl.make_env("probe/Policy"), paid(), config)
    hparams = agent.hyperparams(learning_rate=0.3, prediction_learning_rate=0.7, prediction_coef=0.4, max_grad_norm=1e9)
    before = jax.jit(agent.init)(jax.random.key(0), hparams)
    after, metrics = jax.jit(agent.step)(before, hparams)
    share = 0.5 * (1.0 + float(metrics["episode/return_sum"]) / 32)
    assert 0.0 < share < 1.0
    # The mean of π̂ (1[a] - 1/2), π̂ being 2 for action 1.
    np.testing.assert_allclose(after.params["policy"]["kernel"], [[-0.3 * share, 0.3 * share]], rtol=1e-4)
    log_ratio = np.log(0.5) - np.log([0.8, 0.2])
    slope = 0.5 * (log_ratio - log_ratio.mean())
    np.testing.assert_allclose(after.params["prediction"]["kernel"], [-0.7 * 0.4 * slope], rtol=1e-4)
    np.testing.assert_allclose(metrics["prediction/kl"], log_ratio.mean(), rtol=1e-5)
    chance = 1.0 / (1.0 + np.exp(-0.6 * share))
    entropy = -chance * np.log(chance) - (1.0 - chance) * np.log(1.0 - chance)
    np.testing.assert_allclose(metrics["policy/entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["rule/policy_square"], 4.0 * share, rtol=1e-5)
    np.testing.assert_allclose(metrics["rule/prediction_square"], 0.68, rtol=1e-5)
    np.testing.assert_allclose(metrics["rule/gain"], 2.0 * share * np.log(0.5), rtol=1e-5)
    # Norms are bounded for the policy and for the prediction apart.
    bounded, _ = jax.jit(agent.step)(before, hparams.replace(max_grad_norm=jnp.float32(1e-3)))
    for name, rate in (("policy", 0.3), ("prediction", 0.7)):
        np.testing.assert_allclose(np.linalg.norm(bounded.params[name]["kernel"]), rate * 1e-3, rtol=1e-4)


def test_a_rule_that_pays_the_reward_finds_the_better_action_and_its_negative_the_worse():
    config = lpg.Config(num_envs=8, num_steps=4, hidden=(8,))
    agent = lpg.lpg(jaxrl.make_env("probe/Policy"), paid(), config)

    def act(key, sign):
        state, _ = jaxrl.train(agent, 60)(key, agent.hyperparams(objective=sign, learning_rate=0.02))
        return agent.act(state, (), state.actor.obs[0], None)[0]

    signs = jnp.array([1.0] * NUM_SEEDS + [-1.0] * NUM_SEEDS)
    actions = jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(0), 2 * NUM_SEEDS), signs)
    assert actions.tolist() == [1] * NUM_SEEDS + [0] * NUM_SEEDS


LEVEL = {"side": (3, 3), "steps": (12, 12), "num_objects": (2, 2), "objects": ((1.0, 0.0, 0.3), (-1.0, 0.5, 0.3))}


@functools.cache
def shares(num_steps):
    """Share of the best return that tables reach by A2C as a rule, of a random policy, and of the best."""
    env = grids.make("Small", num_walls=0, **LEVEL)
    agent = lpg.lpg(env, rules.a2c(8), lpg.Config(num_envs=16, num_steps=10, tabular=True, optimizer="sgd"))
    hparams = agent.hyperparams(learning_rate=20.0, prediction_learning_rate=20.0)
    play = jaxrl.evaluate(agent, 64, sampled=True)

    def one(key):
        key_level, key_train, key_play = jax.random.split(key, 3)
        level = grids.levels("Small", num_walls=0, **LEVEL)(key_level)
        own = hparams.replace(env=level)
        state, _ = jaxrl.train(agent, num_steps)(key_train, own)
        scores = [play(key_play, x, level).mean_return for x in (state, agent.init(key_train, own))]
        return jnp.stack([*scores, grids.optimal_return(level)])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), NUM_SEEDS)))


def test_tables_learn_by_a2c_as_a_rule():
    found = shares(100)
    trained, random, best = found.mean(axis=0)
    assert trained > 0.8 * best, found
    assert random < 0.5 * best, found
    assert (found[:, 0] < 1.1 * found[:, 2]).all(), found


@pytest.mark.slow
def test_networks_learn_cartpole_by_a2c_as_a_rule():
    agent = lpg.lpg(jaxrl.make_env("gymnax/CartPole-v1"), rules.a2c(30, 0.0, 100.0), lpg.Config(num_envs=16))
    hparams = agent.hyperparams(learning_rate=3e-3, prediction_learning_rate=3e-3)
    run = jax.jit(jax.vmap(jaxrl.train(agent, 600), (0, None)))
    states, _ = run(jax.random.split(jax.random.key(0), NUM_SEEDS), hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 16), (0, 0, None)))
    returns = play(jax.random.split(jax.random.key(1), NUM_SEEDS), states, hparams.env).mean_return
    assert np.median(returns) > 300, returns


@pytest.mark.parametrize(
    ("env", "config", "message"),
    [
        ("probe/ContinuousPolicy", {}, "actions must be discrete, since the rule reads"),
        ("probe/DictObservation", {"tabular": True}, "lpg in probe/DictObservation: to a table observations must be"),
        ("probe/Policy", {"num_envs": 0}, "num_envs must be a whole number of at least 1"),
        ("probe/Policy", {"optimizer": "lion"}, "optimizer must be one of sgd, adam"),
    ],
)
def test_bad_arguments_are_refused(env, config, message):
    with pytest.raises(ValueError, match=message):
        lpg.lpg(jaxrl.make_env(env), paid(), lpg.Config(**config))
