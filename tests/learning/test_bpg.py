"""Bayesian policy gradient: its step is the posterior's mean, and it learns. 5 seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import bpg
from jaxrl.networks import NetworkConfig, actor_critic

NUM_SEEDS = 5
SMALL = NetworkConfig(hidden=(4,))


def trained(agent, num_iterations, **hparams):
    run = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations), (0, None)))
    return run(jax.random.split(jax.random.key(0), NUM_SEEDS), agent.hyperparams(**hparams))


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("natural, fisher", [(False, "scores"), (True, "scores"), (False, "policy"), (True, "policy")])
@pytest.mark.parametrize("model", ["returns_times_scores", "returns"])
def test_the_step_is_the_mean_of_the_posterior(model, natural, fisher):
    """Of a one-step probe of which observation and action are told by the reward; in float64, with n x n matrices."""
    env, num = jaxrl.make_env("probe/Policy"), 6
    config = bpg.Config(num, 1, model, natural, fisher, standardize=False, network=SMALL)
    agent = bpg.bpg(env, config)
    rate, damping, noise = 0.5, 0.3, 0.2
    hparams = agent.hyperparams(learning_rate=rate, damping=damping, noise=noise)
    before = agent.init(jax.random.key(0), hparams)
    with jax.enable_x64(True):
        # Away from an even chance for both actions.
        params = jax.tree.map(lambda x: x.astype(jnp.float64) + 0.3, before.params)
        after, metrics = jax.jit(agent.step)(before.replace(params=params), hparams)
        net = actor_critic(env.observation_space, env.action_space, critic=False, hidden=(4,))
        log_probs = lambda params: jax.nn.log_softmax(net.apply(params, jnp.zeros(1))[0].policy.logits)
        each = jax.jacobian(log_probs)(params)
        table = np.stack([flat(jax.tree.map(lambda x, a=a: x[a], each)) for a in range(2)], axis=1)
        num_right = round((float(metrics["return/mean"]) + 1.0) / 2.0 * num)
        assert 0 < num_right < num, "both actions must be there"
        actions = np.array([1] * num_right + [0] * (num - num_right))
        scores, returns = table[:, actions], 2.0 * actions - 1.0
        chances = np.exp(np.asarray(log_probs(params), np.float64))
        matrix = scores @ scores.T / num if fisher == "scores" else (table * chances) @ table.T
        matrix = matrix + damping * np.sum(np.square(scores)) / num * np.eye(len(scores))
        similarity = scores.T @ np.linalg.solve(matrix, scores)
        if model == "returns":
            mean = scores @ np.linalg.solve(similarity + noise * np.trace(similarity) / num * np.eye(num), returns)
        else:
            kernel = np.square(1.0 + similarity)
            kernel += noise * np.trace(kernel) / num * np.eye(num)
            mean = scores * returns @ np.linalg.solve(kernel, 1.0 + np.diagonal(similarity))
        direction = np.linalg.solve(matrix, mean) if natural else mean
        np.testing.assert_allclose(flat(after.params) - flat(params), rate * direction, rtol=1e-5, atol=1e-6)


def test_what_comes_after_an_episodes_end_does_not_count():
    agents = [bpg.bpg(jaxrl.make_env("probe/Credit"), bpg.Config(4, num_steps, network=SMALL)) for num_steps in (2, 9)]
    hparams = agents[0].hyperparams(gamma=0.5)
    for agent in agents:
        _, metrics = jax.jit(agent.step)(agent.init(jax.random.key(0), hparams), hparams)
        # The second step alone pays, ±1, at γ; what a later episode of the rollout pays would make it more.
        returns = float(metrics["return/mean"]) * 4 / 0.5
        assert np.isclose(returns, round(returns))
        assert abs(returns) <= 4.0


@pytest.mark.parametrize("model", ["returns_times_scores", "returns"])
@pytest.mark.parametrize("natural", [False, True])
def test_it_learns_a_probe(model, natural):
    agent = bpg.bpg(jaxrl.make_env("probe/PolicyObservation"), bpg.Config(16, 1, model, natural, network=SMALL))
    _, metrics = trained(agent, 60)
    final = np.asarray(metrics["return/mean"][:, -10:].mean(1))
    assert np.median(final) > 0.7, final
    share = np.asarray(metrics["posterior/share"])
    assert ((share >= 0.0) & (share <= 1.0)).all()


@pytest.mark.parametrize("config, word", [({"model": "both"}, "model"), ({"num_envs": 0}, "num_envs")])
def test_what_bpg_refuses(config, word):
    with pytest.raises(ValueError, match=word):
        bpg.bpg(jaxrl.make_env("probe/Policy"), bpg.Config(**config))


@pytest.mark.slow
def test_it_learns_cartpole():
    agent = bpg.bpg(jaxrl.make_env("gymnax/CartPole-v1"))
    _, metrics = trained(agent, 60)
    final = np.asarray(metrics["return/mean"][:, -10:].mean(1))
    assert np.median(final) > 150.0, final  # at most 200 in 200 steps
