"""Datasets: rows in the order of time, learned from as replay is, and left as they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import buffers, datasets, runs
from jaxrl.algorithms import sac
from jaxrl.buffers import Experience
from jaxrl.networks.control import ControlConfig

SMALL = {
    "num_rounds": 1,
    "batch_size": 4,
    "capacity": 16,
    "num_warmup_steps": 16,
    "network": ControlConfig(hidden=(8,)),
}


def rows(num, **changes):
    """A stream whose rewards count."""
    steps, never = np.arange(num, dtype=np.float32), np.zeros(num, bool)
    one = Experience(steps, np.zeros((num, 1), np.float32), steps, never, never, steps + 1)
    return dataclasses.replace(one, **changes)


@pytest.mark.parametrize("num_rows, kept", [(3, [0, 1, 2]), (6, [2, 3, 4, 5])])
def test_a_ring_becomes_a_stream(num_rows, kept):
    """Of one that is not full only what is there, of one that has gone round the oldest first."""
    buffer = buffers.uniform(8, 2, 1)
    one, other = rows(num_rows), rows(num_rows, reward=np.arange(num_rows) + np.float32(0.5))
    both = jax.tree.map(lambda *x: jnp.stack(x, 1), one, other)
    state = buffer.init(jax.tree.map(lambda x: x[0, 0], both))
    for t in range(num_rows):
        state = buffer.add((), state, jax.tree.map(lambda x: x[t : t + 1], both))
    data = datasets.dataset(state)
    np.testing.assert_array_equal(data.items.reward, np.stack([kept, np.array(kept) + 0.5], 1))
    assert (int(data.filled), int(data.pointer)) == (len(kept), 0)


def test_draws_are_whole_windows_as_likely():
    data, buffer = datasets.dataset(rows(5)), buffers.fixed(30_000, 2, jax.tree.map(lambda x: x[0], rows(5)))
    drawn = buffer.sample(data, (), buffer.noise(jax.random.key(0)), 0.0)
    first, second = np.asarray(buffers.windows(data.items, drawn.index, 2).reward)
    np.testing.assert_array_equal(second, first + 1)
    np.testing.assert_allclose(np.bincount(first.astype(int)) / 30_000, np.full(4, 0.25), atol=0.01)


def test_an_update_from_a_dataset_is_that_from_replay():
    """Of the same rows, with the same key, bit for bit; the dataset and the environments stay as they are."""
    env = jaxrl.make_env("gymnax/Pendulum-v1")
    online, offline = (sac.sac(env, config=sac.Config(offline=x, **SMALL)) for x in (False, True))
    hparams = online.hyperparams()
    before = online.init(jax.random.key(0), hparams)
    after, _ = jax.jit(online.step)(before, hparams)
    held = offline.hyperparams(replay=datasets.dataset(after.buffer))
    told = jax.tree.map(np.asarray, held)
    start = dataclasses.replace(offline.init(jax.random.key(1), held), key=before.key, learner=before.learner)
    end, metrics = jax.jit(offline.step)(start, held)
    jax.tree.map(np.testing.assert_array_equal, end.learner, after.learner)
    jax.tree.map(np.testing.assert_array_equal, end.actor, start.actor)
    jax.tree.map(np.testing.assert_array_equal, held, told)
    assert end.buffer == ()
    assert not any(name.startswith("episode/") for name in metrics)
    assert offline.env_steps == 1


def test_observations_are_normalized_by_the_dataset():
    env = jaxrl.make_env("gymnax/Pendulum-v1")
    config = sac.Config(offline=True, normalize_observations=True, **SMALL)
    obs = np.random.default_rng(0).normal((1.0, 2.0, 30.0), (0.5, 3.0, 7.0), (64, 3)).astype(np.float32)
    data = datasets.dataset(rows(64, obs=obs, next_obs=obs))
    agent = sac.sac(env, config=config)
    state, _ = jaxrl.train(agent, 2)(jax.random.key(0), agent.hyperparams(replay=data))
    np.testing.assert_allclose(state.observation_statistics.mean, obs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.observation_statistics.var, obs.var(0), rtol=1e-4)


def test_two_datasets_in_one_program():
    """One of random actions, and the same with rewards that belong to others: what is learned is in the dataset."""
    env = jaxrl.make_env("probe/ContinuousObservation")
    config = sac.Config(num_rounds=1, num_envs=8, batch_size=1, capacity=2048, num_warmup_steps=128)
    world = sac.sac(env, config=config)
    data = datasets.dataset(world.init(jax.random.key(0), world.hyperparams()).buffer)
    reward = np.random.default_rng(0).permutation(data.items.reward.ravel()).reshape(data.items.reward.shape)
    wrong = dataclasses.replace(data, items=dataclasses.replace(data.items, reward=jnp.asarray(reward)))
    both = jax.tree.map(lambda *x: jnp.stack(x), data, wrong)

    config = sac.Config(offline=True, num_rounds=300, batch_size=32, network=ControlConfig(hidden=(32,)))
    agent = sac.sac(env, config=config)
    rates = {"policy_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "tau": 0.02, "target_entropy": -2.0}

    def learned(key, data):
        hparams = agent.hyperparams(replay=data, **rates)
        state, _ = jaxrl.train(agent, 3)(key, hparams)
        return jaxrl.evaluate(agent, 128)(jax.random.key(7), state, hparams.env).mean_return

    keys = jax.random.split(jax.random.key(1), 5)
    good, bad = jax.jit(jax.vmap(jax.vmap(learned, (0, None)), (None, 0)))(keys, both)
    assert (good > -0.02).all(), (good, bad)
    assert (bad < -0.04).all(), (good, bad)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward": np.zeros(3, np.float32)}, "must begin with the same axes"),
        ({"obs": np.float32(0.0)}, r"leaves that begin with \[\(\), "),
        ({"terminated": np.zeros(4)}, "must be boolean; got terminated of float64"),
        ({"next_obs": np.array([0.0, np.nan, np.inf, 1.0])}, r"of next_obs 2 are not"),
        ({"action": np.full((4, 1), -2.0)}, "between -1 and 1.*got one of size 2"),
    ],
)
def test_messages_of_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.dataset(rows(4, **changes))


def test_messages_of_agents():
    env = jaxrl.make_env("gymnax/Pendulum-v1")
    agent = sac.sac(env, config=sac.Config(offline=True, n_step=3, **SMALL))

    def fails(message, agent=agent, **changes):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(agent.init, jax.random.key(0), agent.hyperparams(**changes))

    def pendulum(num, **changes):
        obs = np.zeros((num, 3), np.float32)
        return datasets.dataset(rows(num, **{"obs": obs, "next_obs": obs, **changes}))

    fails(r"needs a dataset; pass agent.hyperparams\(replay=")
    fails(
        r"gymnax/Pendulum-v1 are .*'obs'\]\": 'floats \(3,\)'.*'obs'\]\": 'floats \(\)'",
        replay=datasets.dataset(rows(4)),
    )
    fails("'next_obs'.*floats \\(3,\\).*'next_obs'.*floats \\(2,\\)", replay=pendulum(4, next_obs=np.zeros((4, 2))))
    fails("of the dataset .*'action'.*integers", replay=pendulum(4, action=np.zeros((4, 1), int)))
    fails("needs 3 rows in a stream .* has 2", replay=pendulum(2))
    fails(r"set Config\(offline=True\)", agent=sac.sac(env, config=sac.Config(**SMALL)), replay=pendulum(4))
    for changes in ({"prioritized": True}, {"normalize_rewards": True}):
        with pytest.raises(ValueError, match=f"set {next(iter(changes))}=False"):
            sac.sac(env, config=sac.Config(**{"offline": True, **SMALL, **changes}))
    with pytest.raises(ValueError, match=r"those of \(2,\) members: take one"):
        datasets.dataset(jax.tree.map(lambda x: jnp.stack([x, x]), pendulum(4)))


def test_members_share_a_dataset(tmp_path):
    """A population equals its members, is saved without the dataset, and goes on with it."""
    env = jaxrl.make_env("gymnax/Pendulum-v1")
    obs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    data = datasets.dataset(rows(8, obs=obs, next_obs=obs[::-1].copy()))
    # Neither number of environments nor capacity matters, so neither is checked.
    agent = sac.sac(env, config=sac.Config(offline=True, n_step=2, **{**SMALL, "num_envs": 3}))
    both = jaxrl.population(agent, 2, ("critic_learning_rate",))
    hparams = both.hyperparams(replay=data, critic_learning_rate=[1e-3, 1e-2])
    state, _ = jax.jit(jaxrl.train(both, 2))(jax.random.key(0), hparams)
    for i, key in enumerate(jax.random.split(jax.random.key(0), 2)):
        one = agent.hyperparams(replay=data, critic_learning_rate=[1e-3, 1e-2][i])
        alone, _ = jax.jit(jaxrl.train(agent, 2))(key, one)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-6),
            state.learner.params,
            alone.learner.params,
        )
    assert not any(leaf.shape[1:3] == (8, 1) for leaf in jax.tree.leaves(state))
    written = runs.hyperparams_to_json(hparams)
    again = runs.hyperparams_from_json(json.loads(json.dumps(written)), both.hyperparams())
    jax.tree.map(np.testing.assert_array_equal, again, hparams)
    on, metrics = jaxrl.advance(both, state, again, 1)
    assert metrics["loss/critic"].shape == (1, 2)
    assert int(on.num_steps[0]) == 3
