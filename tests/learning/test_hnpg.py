"""The hybrid natural policy gradient: what is bootstrapped, what is regressed, and what each moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import datasets, rollout, spaces
from jaxrl.algorithms import hnpg
from jaxrl.buffers import Experience
from jaxrl.envs import locks
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.history import History, apply_step, apply_with_successors, init_params

SMALL = {"num_envs": 16, "num_steps": 16, "network": ControlConfig(hidden=(32,), num_critics=1, activation="tanh")}
GAMMA = 0.5
STILL = {"max_kl": 1e-12, "gamma": GAMMA, "learning_rate": 1e-2}


def episodes(env, num_episodes, epsilon, favorite=None, reward=None):
    """Episodes of a lock, [T, B]: actions right or a favorite, with probability ε uniform; rewards given or its own."""
    params, num_actions, horizon = env.default_params(), 10, env.max_episode_steps
    discrete = env.name.endswith("Discrete")

    def episode(key):
        def step(carry, key):
            state, obs = carry
            key_choice, key_action, key_step = jax.random.split(key, 3)
            action = locks.right_action(params, state) if favorite is None else jnp.int32(favorite)
            if discrete:
                other, taken = jax.random.randint(key_action, (), 0, num_actions), action
            else:
                other, taken = jax.random.uniform(key_action, (num_actions,)), jax.nn.one_hot(action, num_actions)
            taken = jnp.where(jax.random.bernoulli(key_choice, epsilon), other, taken)
            after, told = env.step(key_step, state, taken, params)
            paid = told.reward if reward is None else reward(taken)
            stored = taken if discrete else 2.0 * taken - 1.0
            return (after, told.obs), Experience(obs, stored, paid, told.terminated, told.truncated, told.obs)

        key_reset, key_steps = jax.random.split(key)
        return jax.lax.scan(step, env.reset(key_reset, params), jax.random.split(key_steps, horizon))[1]

    return jax.vmap(episode, out_axes=1)(jax.random.split(jax.random.key(3), num_episodes))


def nets_of(agent, state, obs):
    """Q of all discrete actions, and the policy's probabilities."""
    nets = hnpg.control_networks(agent.env.observation_space, agent.env.action_space, True, agent.config.network)
    values = nets.critic.apply(state.params["critic"]["network"], obs)
    logits, _ = nets.policy.apply(state.params["policy"]["network"], obs)
    return np.asarray(values).mean(0), np.asarray(jax.nn.softmax(logits))


def test_the_dataset_is_bootstrapped():
    """Action 3 pays 1, and those who made the dataset took it three times of four; the policy does not."""
    env = jaxrl.make_env("locks/Discrete", horizon=2)
    rows = episodes(env, 1024, 0.25, favorite=3, reward=lambda action: (action == 3).astype(jnp.float32))
    agent = jaxrl.make("hnpg", env, hybrid=True, **SMALL)
    hparams = agent.hyperparams(replay=datasets.dataset(rows), online_weight=0.0, **STILL)
    state, metrics = jax.jit(jaxrl.train(agent, 20))(jax.random.key(0), hparams)
    assert (metrics["policy/kl"] <= 1e-6).all()
    (first, _), (last, policy) = (nets_of(agent, state, obs) for obs in rows.obs)
    # Other actions are a fortieth of the data each.
    np.testing.assert_allclose(last[:, 3].mean(), 1.0, atol=0.05)
    np.testing.assert_allclose(np.delete(last, 3, axis=1).mean(), 0.0, atol=0.1)
    following = GAMMA * policy[:, 3].mean()
    assert following < GAMMA * 0.3, "the policy must differ from the data for the test to tell"
    np.testing.assert_allclose(first[:, 3].mean(), 1.0 + following, atol=0.08)


def test_the_rollout_is_regressed_on_what_was_paid():
    """The dataset has last steps only and says 1 there, the lock pays 0.05: between them in the end, not before."""
    env = jaxrl.make_env("locks/Discrete", horizon=2)
    rows = episodes(env, 1024, 1.0, reward=lambda action: jnp.float32(1.0))
    data = datasets.dataset(jax.tree.map(lambda x: x[1:], rows))
    agent = jaxrl.make("hnpg", env, hybrid=True, **SMALL)
    state, _ = jax.jit(jaxrl.train(agent, 20))(jax.random.key(0), agent.hyperparams(replay=data, **STILL))
    (first, _), (last, _) = (nets_of(agent, state, obs) for obs in rows.obs)
    # All rows of the dataset and half of the rollout's: (1 + 0.05 / 2) / 1.5 = 0.68.
    assert 0.5 < last.mean() < 0.9
    # By temporal differences it would be half of that.
    np.testing.assert_allclose(first.mean(), GAMMA * 0.05, atol=0.08)


def test_the_dataset_moves_the_policy_where_the_rollout_pays_nothing():
    """The dataset pays for action 3, the lock next to nothing: without the dataset action 3 is not preferred."""
    env = jaxrl.make_env("locks/Discrete", horizon=2)
    data = datasets.dataset(episodes(env, 256, 1.0, reward=lambda action: (action == 3).astype(jnp.float32)))
    obs = data.items.obs[0, :64]

    def share(hybrid, **changes):
        agent = jaxrl.make("hnpg", env, hybrid=hybrid, **SMALL)
        hparams = agent.hyperparams(gamma=GAMMA, **changes)
        state, _ = jax.jit(jaxrl.train(agent, 60))(jax.random.key(0), hparams)
        chosen = jax.vmap(lambda obs: agent.act(state, (), obs, None)[0])(obs)
        return float(jnp.mean(chosen == 3))

    assert share(True, replay=data, online_weight=0.1, max_kl=0.05) >= 0.95
    assert share(False, max_kl=0.05) <= 0.5


def test_members_with_datasets_of_their_own_are_as_alone():
    env = jaxrl.make_env("locks/Continuous", horizon=2)
    tiny = {**SMALL, "hybrid": True, "num_evaluations": 2, "num_updates": 2}
    agent = jaxrl.make("hnpg", env, **tiny)
    data = [datasets.dataset(episodes(env, 32, 1.0, reward=lambda action, i=i: i * action[0])) for i in (0, 5)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *[agent.hyperparams(replay=one) for one in data])
    keys = jax.random.split(jax.random.key(1), 2)
    run = jaxrl.train(agent, 2)
    states, metrics = jax.jit(jax.vmap(run))(keys, both)
    for i in range(2):
        alone, told = jax.jit(run)(keys[i], agent.hyperparams(replay=data[i]))
        np.testing.assert_allclose(metrics["loss/offline"][i], told["loss/offline"], rtol=1e-2)
        for x, y in zip(jax.tree.leaves(states.params), jax.tree.leaves(alone.params), strict=True):
            # Conjugate gradients amplify another order of sums.
            np.testing.assert_allclose(x[i], y, rtol=2e-3, atol=3e-3)
    one, other = np.asarray(metrics["loss/offline"])[:, 0]
    assert other > 5.0 * one


def test_without_a_dataset_it_learns_from_its_rollouts():
    """1 is the best return; a random policy has 0."""
    agent = jaxrl.make("hnpg", jaxrl.make_env("probe/Credit"), **SMALL)
    hparams = agent.hyperparams(max_kl=0.05)
    keys = jax.random.split(jax.random.key(0), 5)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, 40), (0, None)))(keys, hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 32), (0, 0, None)))
    got = np.asarray(play(jax.random.split(jax.random.key(1), 5), states, hparams.env).mean_return)
    assert (got >= 0.95).all(), got


def test_successors_are_seen_with_what_was_remembered_before_them():
    net = History(spaces.box(-1.0, 1.0, (3,)), size=4)
    draws = jax.random.split(jax.random.key(1), 4)
    obs, next_obs = jax.random.normal(draws[0], (5, 2, 3)), jax.random.normal(draws[1], (5, 2, 3))
    start = jax.random.bernoulli(draws[2], 0.4, (5, 2))
    params, memory = init_params(net, draws[3], obs[0, 0]), net.initial_memory((2,)) + 0.3
    now, after = apply_with_successors(net, params, obs, next_obs, memory, start)
    np.testing.assert_allclose(now, net.apply(params, obs, memory, start)[0], atol=1e-6)
    for t in range(5):
        _, memory = apply_step(net, params, obs[t], memory, start[t])
        expected, _ = apply_step(net, params, next_obs[t], memory, jnp.zeros(2, bool))
        np.testing.assert_allclose(after[t], expected, atol=1e-6)


def test_windows_begin_with_the_memory_that_was_there():
    """A rollout cut into windows of 3 says at each step what it said as a whole; with other memories it does not."""
    env = jaxrl.make_env("probe/Memory")
    net = History(env.observation_space, size=4)
    draws = jax.random.split(jax.random.key(0), 3)
    obs, start = jax.random.normal(draws[0], (9, 2, 2)), jax.random.bernoulli(draws[1], 0.2, (9, 2))
    params = init_params(net, draws[2], obs[0, 0])
    before = net.initial_memory((2,)) + 0.5
    whole, _ = net.apply(params, obs, before, start)

    def step(memory, row):
        _, memory = apply_step(net, params, row[0], memory, row[1])
        return memory, memory

    _, after = jax.lax.scan(step, before, (obs, start))
    memory, (seen, starts, expected) = hnpg._played((obs, start, whole), (before, after), 3, True)
    assert seen.shape == (6, 3, 2)
    column = lambda x: jnp.swapaxes(x, 0, 1)
    got, _ = net.apply(params, column(seen), memory, column(starts))
    np.testing.assert_allclose(got, column(expected), atol=1e-6)
    fresh, _ = net.apply(params, column(seen), jnp.zeros_like(memory), column(starts))
    assert np.abs(np.asarray(fresh - column(expected))).max() > 0.1


@pytest.mark.slow
def test_a_memory_is_learned_from_the_dataset():
    """Rollouts that pay nothing, and a dataset of random play that pays for what has to be kept in mind."""
    env = jaxrl.make_env("probe/Memory")
    params = env.default_params()

    def at_random(key, obs, memory, start):
        action = jax.random.bernoulli(key, 0.5, (64,)).astype(jnp.int32)
        return action, action, memory, ()

    reset, draws = rollout.Reset(), jax.random.split(jax.random.key(1), 40)
    actor = rollout.start(jax.random.key(0), env, params, 64, (), reset)
    _, batch, _ = rollout.collect(jax.random.key(2), env, params, actor, at_random, draws, reset)
    rows = Experience(batch.obs, batch.action, batch.reward, batch.terminated, batch.truncated, batch.next_obs)
    sizes = {"num_envs": 16, "num_steps": 30, "num_evaluations": 2, "num_updates": 10, "batch_size": 120, "length": 6}
    layers = ControlConfig(hidden=(16,), num_critics=1, activation="tanh")

    def learned(memory):
        agent = jaxrl.make("hnpg", env, hybrid=True, network=layers, memory=memory, memory_size=16, **sizes)
        silent = dataclasses.replace(params, reward=jnp.float32(0.0))
        hparams = agent.hyperparams(replay=datasets.dataset(rows), env=silent, online_weight=0.1, learning_rate=3e-3)
        run = jax.jit(jax.vmap(jaxrl.train(agent, 80), (0, None)))
        states, _ = run(jax.random.split(jax.random.key(0), 5), hparams)
        test = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64), (0, 0, None)))
        return np.asarray(test(jax.random.split(jax.random.key(1), 5), states, params).mean_return)

    got = learned("gru")
    print(np.round(got, 2))
    assert (got >= 0.95).sum() >= 4, got
    assert np.abs(learned("none")).max() < 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_dataset_opens_a_lock():
    """Continuous actions, five steps: with episodes of which a third end well 5 of 5 seeds, alone none."""
    env = jaxrl.make_env("locks/Continuous", horizon=5)
    data = datasets.dataset(episodes(env, 10_000, 0.2))
    keys = jax.random.split(jax.random.key(0), 5)
    for changes, passed in (({"replay": data}, lambda x: x >= 0.8), ({}, lambda x: x <= 0.2)):
        agent = jaxrl.make("hnpg", env, num_envs=16, num_steps=64, hybrid=bool(changes))
        _, metrics = jax.jit(jax.vmap(jaxrl.train(agent, 120), (0, None)))(
            keys, agent.hyperparams(gamma=1.0, **changes)
        )
        late = {name: np.asarray(metrics[f"episode/{name}"])[:, -10:].sum(-1) for name in ("return_sum", "count")}
        got = late["return_sum"] / late["count"]
        print(np.round(got, 2))
        assert passed(got).all(), got


def test_messages():
    env = jaxrl.make_env("locks/Discrete", horizon=2)
    agent = jaxrl.make("hnpg", env, hybrid=True, **SMALL)
    with pytest.raises(ValueError, match=r"online_weight = 2\.0 has no effect while config.hybrid = False"):
        jaxrl.make("hnpg", env, **SMALL).hyperparams(online_weight=2.0)
    with pytest.raises(ValueError, match="replay: needs a dataset"):
        agent.init(jax.random.key(0), agent.hyperparams())
    alone = jaxrl.make("hnpg", env, **SMALL)
    held = dataclasses.replace(alone.hyperparams(), replay=agent.hyperparams().replay)
    with pytest.raises(ValueError, match=r"set Config\(hybrid=True\)"):
        alone.init(jax.random.key(0), held)
    wrong = episodes(env, 2, 1.0)
    wrong = datasets.dataset(dataclasses.replace(wrong, action=wrong.action + 10))
    with pytest.raises(ValueError, match=r"actions of locks/Discrete are 0 to 9; those of the dataset are 1\d to 1\d"):
        agent.init(jax.random.key(0), agent.hyperparams(replay=wrong))
    other = datasets.dataset(episodes(jaxrl.make_env("locks/Discrete", horizon=20), 2, 1.0))
    with pytest.raises(ValueError, match="transitions of locks/Discrete are"):
        agent.init(jax.random.key(0), agent.hyperparams(replay=other))
    for layers in (
        {"num_quantiles": 5},
        {"dropout": True},
        {"norm": "batch"},
        {"block": "hyperspherical", "hidden": (8,)},
    ):
        with pytest.raises(ValueError, match="critics learn means, without dropout, batch normalization"):
            jaxrl.make("hnpg", jaxrl.make_env("locks/Continuous"), network=ControlConfig(**layers))
