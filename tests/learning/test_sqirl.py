"""SQIRL solves what its depth suffices for, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analysis.hand_made import misleading

import jaxrl
from jaxrl.algorithms import sqirl
from jaxrl.analysis import finite_mdps
from jaxrl.analysis.effective_horizon import effective_horizon
from jaxrl.networks.q_network import QNetworkConfig, q_network
from jaxrl.ops import trees

NUM_SEEDS = 5
TINY = sqirl.Config(num_envs=128, num_steps=2, num_updates=150, batch_size=64, network=QNetworkConfig(hidden=(16,)))


@pytest.mark.parametrize("depth, pooled", [(1, True), (2, False)])
def test_the_depth_decides_what_is_solved(depth, pooled):
    """The random policy's Q of the other way is 1/4: more than .02, less than .6. The best gets 1."""
    tasks = [misleading(4, sure) for sure in (0.02, 0.6)]
    assert [effective_horizon(mdp).least_k for mdp in tasks] == [1, 2]
    env = finite_mdps.environment(3, 4, 2)
    agent = sqirl.sqirl(env, config=dataclasses.replace(TINY, depth=depth, pooled=pooled))

    def one(key, mdp):
        hparams = agent.hyperparams(learning_rate=1e-2, env=mdp)
        state, _ = jaxrl.train(agent, 2)(key, hparams)
        cells = jnp.eye(3)
        at = [jnp.concatenate([cells, jnp.tile(jnp.eye(2)[time], (3, 1))], axis=1) for time in range(2)]
        act = jax.vmap(lambda obs, time: agent.act(state, time, obs, None)[0], (0, None))
        return jnp.stack([act(at[time], jnp.int32(time)) for time in range(2)])

    stacked = trees.as_arrays(jax.tree.map(lambda *x: np.stack(x), *tasks))
    every = jax.vmap(jax.vmap(one, (0, None)), (None, 0))
    actions = np.asarray(jax.jit(every)(jax.random.split(jax.random.key(0), NUM_SEEDS), stacked))
    returns = [[finite_mdps.policy_return(mdp, x) for x in found] for mdp, found in zip(tasks, actions, strict=True)]
    best = [1.0, 1.0] if depth == 2 else [1.0, 0.6]
    np.testing.assert_allclose(returns, np.repeat(np.array(best)[:, None], NUM_SEEDS, axis=1))


def test_what_comes_after_an_episode_does_not_count():
    """Episodes of one step in rollouts of three: without the cut there would be three times as many steps."""
    config = sqirl.Config(num_envs=4, num_steps=3, num_updates=1, batch_size=4, network=QNetworkConfig(hidden=(4,)))
    agent = sqirl.sqirl(jaxrl.make_env("probe/Constant"), config=config)
    hparams = agent.hyperparams()
    _, metrics = jax.jit(lambda key: agent.step(agent.init(key, hparams), hparams))(jax.random.key(0))
    got = [float(metrics[f"episode/{name}"]) for name in ("return_sum", "length_sum", "count")]
    assert got == [4.0, 4.0, 4.0]


def test_what_comes_after_the_last_time_step_does_not_count():
    """Each step of CartPole pays 1; at the last of two that is the whole return, of the random and any other policy."""
    env = jaxrl.make_env("gymnax/CartPole-v1")
    config = dataclasses.replace(TINY, num_envs=16, num_updates=300, depth=2, pooled=False)
    agent = sqirl.sqirl(env, config=config)
    hparams = agent.hyperparams(learning_rate=1e-2)
    state, _ = jax.jit(jaxrl.train(agent, 2))(jax.random.key(0), hparams)
    net = q_network(env.observation_space, env.action_space, 2, config=config.network)
    values = net.apply(state.params, state.actor.obs).values
    np.testing.assert_allclose(values.mean((0, 1)), [1.0, 1.0], atol=0.1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"depth": 3}, "depth must be at most num_steps"),
        ({"num_updates": 0}, "num_updates must be a whole number"),
        ({"network": QNetworkConfig(noisy=True)}, "neither random nor recurrent"),
        ({"network": QNetworkConfig(memory="gru")}, "neither random nor recurrent"),
    ],
)
def test_messages_of_sqirl(changes, message):
    with pytest.raises(ValueError, match=message):
        sqirl.sqirl(jaxrl.make_env("probe/Credit"), config=sqirl.Config(**{"num_steps": 2, **changes}))
