"""The coverage tasks pay exactly what the set functions of their docstrings say, which are written again here."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

import jaxrl
from jaxrl.envs import coverage
from jaxrl.networks import NetworkConfig

SMALL = {
    "Cells": {"size": (3, 4)},
    "Density": {"size": (4, 3), "seed": 3},
    "Items": {"size": (3, 4), "items": ((4, 2), (3, 1), (2, 2))},
    "Information": {"size": (3, 3)},
}
NUM_STEPS = 12
STAY, RIGHT, UP, LEFT, DOWN = range(5)


def value_of(name, cells, task, size):
    """F of a set of cells, from its definition."""
    cells = sorted(set(cells))
    if name in ("Cells", "Density"):
        where = [divmod(cell, size[1]) for cell in cells]
        near = lambda v: any(abs(v // size[1] - r) + abs(v % size[1] - c) <= 1 for r, c in where)
        return sum(float(task.weight[v]) for v in range(size[0] * size[1]) if near(v))
    if name == "Items":
        kinds = np.asarray(task.kind)[cells]
        return sum(min(int((kinds == k).sum()), int(n)) for k, n in enumerate(task.needed))
    block = np.asarray(task.covariance, np.float64)[np.ix_(cells, cells)]
    return 0.5 * np.linalg.slogdet(np.eye(len(cells)) + block / float(task.noise))[1]


@functools.cache
def played(name, modular=0.0, slip=0.0, lanes=6):
    """Random walks: the parameters, the cells after each step [lanes, T], rewards and gains."""
    env = coverage.make(name, max_episode_steps=NUM_STEPS, **SMALL[name])
    params = env.default_params().replace(modular=jnp.float32(modular), slip=jnp.float32(slip))

    def play(key):
        key_actions, key_steps = jax.random.split(key)
        actions = jax.random.randint(key_actions, (NUM_STEPS,), 0, 5)
        state, _ = env.reset(key, params)

        def body(state, row):
            state, step = env.step(row[0], state, row[1], params)
            return state, (state.cell, step.reward, step.info["gain"], state.visited)

        return jax.lax.scan(body, state, (jax.random.split(key_steps, NUM_STEPS), actions))[1]

    out = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), lanes))
    return (params.task, *map(np.asarray, out))


@pytest.mark.parametrize(
    ("name", "observe"), [*((name, "history") for name in coverage.names()), ("Cells", "position"), ("Items", "cell")]
)
def test_laws(name, observe):
    env = coverage.make(name, observe=observe, **SMALL[name])
    laws.check_all(env, laws.trace(env), deterministic=True, fixed_horizon=True)


def test_laws_with_slips():
    env = coverage.make("Cells", **SMALL["Cells"])
    slippery = env._replace(default_params=lambda: env.default_params().replace(slip=jnp.float32(0.5)))
    laws.check_all(slippery, laws.trace(slippery), deterministic=False, fixed_horizon=True)


@pytest.mark.parametrize("name", coverage.names())
def test_rewards_are_marginal_gains(name):
    task, cells, reward, gain, visited = played(name)
    size = SMALL[name]["size"]
    np.testing.assert_array_equal(reward, gain)
    assert (reward > 0).any()
    for lane, path in enumerate(cells):
        values = [value_of(name, [0, *path[:t]], task, size) for t in range(NUM_STEPS + 1)]
        np.testing.assert_allclose(reward[lane], np.diff(values), atol=2e-4)
        assert set(np.flatnonzero(visited[lane, -1])) == {0, *path.tolist()}


@pytest.mark.parametrize("name", coverage.names())
def test_modular_reward_forgets(name):
    task, cells, reward, gain, _ = played(name, modular=1.0)
    alone = [[value_of(name, [cell], task, SMALL[name]["size"]) for cell in path] for path in cells]
    np.testing.assert_allclose(reward, alone, atol=2e-4)
    _, same_cells, only_gain, _, _ = played(name)
    np.testing.assert_array_equal(cells, same_cells)
    np.testing.assert_allclose(gain, only_gain, atol=1e-6)
    half = played(name, modular=0.25)[2]
    np.testing.assert_allclose(half, 0.75 * gain + 0.25 * reward, atol=1e-5)


@pytest.mark.parametrize("name", coverage.names())
def test_gains_diminish(name):
    """F(c | S) >= F(c | T) for S within T, of all nested pairs along random walks."""
    task, cells, *_ = played(name)
    size = SMALL[name]["size"]
    function = coverage._TASKS[name][0](**SMALL[name])[1]
    everywhere = jnp.arange(size[0] * size[1])
    for path in cells[:2]:
        summary, before, seen = function.empty(task), None, set()
        for cell in dict.fromkeys(path.tolist()):
            gains = np.asarray(jax.vmap(lambda c, s=summary: function.gain(s, c, task))(everywhere))
            fresh = [c for c in range(len(gains)) if c not in seen]
            assert (gains >= 0).all()
            assert before is None or (gains[fresh] <= before[fresh] + 1e-5).all()
            before, summary, seen = gains, function.add(summary, jnp.int32(cell), task), seen | {cell}


def test_moves_and_observations():
    env = coverage.make("Cells", size=(2, 3), max_episode_steps=4, observe="history")
    params = env.default_params()
    state, obs = env.reset(jax.random.key(0), params)
    np.testing.assert_array_equal(obs, [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    found = []
    for action in (UP, RIGHT, DOWN, LEFT, LEFT, STAY):
        state, step = env.step(jax.random.key(0), state, jnp.int32(action), params)
        found.append(int(state.cell))
    assert found == [0, 1, 4, 3, 3, 3]
    np.testing.assert_array_equal(step.obs, [0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0])
    assert float(step.reward) == 0.0
    plain = coverage.make("Cells", size=(2, 3)).reset(jax.random.key(0), params)[1]
    np.testing.assert_array_equal(plain, obs[:7])
    cell = coverage.make("Cells", size=(2, 3), observe="cell").reset(jax.random.key(0), params)[1]
    np.testing.assert_array_equal(cell, obs[:6])


def test_slips_are_uniform_moves():
    env = coverage.make("Cells", size=(3, 3), max_episode_steps=9)
    params = env.default_params().replace(slip=jnp.float32(0.5))
    state, _ = env.reset(jax.random.key(0), params)
    state = state.replace(cell=jnp.int32(4))
    keys = jax.random.split(jax.random.key(1), 4000)
    cells = jax.vmap(lambda key: env.step(key, state, jnp.int32(RIGHT), params)[0].cell)(keys)
    share = np.bincount(np.asarray(cells), minlength=9) / len(keys)
    np.testing.assert_allclose(share, [0, 0.1, 0, 0.1, 0.1, 0.6, 0, 0.1, 0], atol=0.03)


def test_what_is_drawn_depends_on_the_seed():
    for name, leaf in (("Density", "weight"), ("Items", "kind"), ("Information", "covariance")):
        draw = lambda seed, name=name, leaf=leaf: np.asarray(
            getattr(coverage.make(name, seed=seed).default_params().task, leaf)
        )
        assert not np.array_equal(draw(0), draw(1)), name
        np.testing.assert_array_equal(draw(0), draw(0))
    task = coverage.make("Items").default_params().task
    assert np.bincount(np.asarray(task.kind) + 1).tolist() == [12, 18, 14, 13, 16, 18, 14]
    assert task.needed.tolist() == [3, 2, 3, 4, 6, 3]
    weight = coverage.make("Density").default_params().task.weight
    assert float(weight.min()) == 0.0
    np.testing.assert_allclose(weight.mean(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Cells", {"size": (0, 3)}, "each part of size must be a whole number of at least 1"),
        ("Cells", {"size": 5}, r"size must be a tuple \(rows, columns\); got size = 5"),
        ("Cells", {"radius": -1}, "radius must be not negative; got radius = -1"),
        ("Cells", {"observe": "all"}, "observe must be one of .*'cell', 'position', 'history'"),
        ("Cells", {"max_episode_steps": 0}, "max_episode_steps must be a whole number"),
        ("Density", {"lengthscale": 0.0}, "lengthscale must be positive"),
        ("Items", {"items": ((2, 3),)}, "1 <= needed <= copies"),
        ("Items", {"items": ((4, 3),), "size": (1, 3)}, "4 items in all"),
        ("Information", {"noise": 0.0}, "noise must be positive"),
        ("Information", {"num_known": 37}, "num_known must be from 0 to the number of cells"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        jaxrl.make_env(f"coverage/{name}", **options)
    with pytest.raises(ValueError, match="does not take these options"):
        jaxrl.make_env("coverage/Cells", seed=1)


def test_subpo_covers_and_the_modular_reward_does_not():
    """Two by three cells, six steps, a bonus of weight in one corner: the modular optimum stays there."""
    env = coverage.make("Density", size=(2, 3), radius=0, max_episode_steps=6)
    weight = jnp.array([0.1, 1.0, 3.0, 1.0, 1.0, 1.0])
    params = env.default_params()
    params = params.replace(task=params.task.replace(weight=weight))
    agent = jaxrl.make("subpo", env, num_envs=32, num_steps=6, network=NetworkConfig(hidden=(32,)))

    def play(key, modular):
        hparams = agent.hyperparams(env=params.replace(modular=modular), learning_rate=0.02)
        state, _ = jaxrl.train(agent, 120)(key, hparams)
        return jaxrl.evaluate(agent, 1)(key, state, params).mean_return

    keys = jax.random.split(jax.random.key(0), 5)
    over_seeds = jax.vmap(play, (0, None))
    gain, alone = np.asarray(jax.jit(jax.vmap(over_seeds, (None, 0)))(keys, jnp.array([0.0, 1.0])))
    best = max(sum(float(weight[c]) for c in {0, *path} - {0}) for path in walks((2, 3), 6))
    assert best == 7.0
    assert np.median(gain) == best, gain
    assert gain.min() >= 6.0, gain
    np.testing.assert_allclose(alone, 4.0, err_msg="to the corner by the shortest way, and stay")


def walks(size, num_steps):
    """All walks from the first cell."""
    moves = ((0, 0), (0, 1), (-1, 0), (0, -1), (1, 0))
    for sequence in itertools.product(moves, repeat=num_steps):
        row, column, path = 0, 0, []
        for down, right in sequence:
            row, column = min(max(row + down, 0), size[0] - 1), min(max(column + right, 0), size[1] - 1)
            path.append(row * size[1] + column)
        yield path
