"""Grid worlds and delayed chains: laws, the step against its own description, best returns against brute force."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

import jaxrl
from jaxrl.envs import chains, grids
from jaxrl.envs.grids import GridState, Level

UP, DOWN, LEFT, RIGHT, STAY = range(5)
# Two objects, a wall, all probabilities strictly between 0 and 1.
TINY = {
    "side": (3, 3),
    "steps": (6, 6),
    "num_objects": (2, 2),
    "objects": ((1.0, 0.3, 0.4), (-0.5, 0.6, 0.5)),
    "num_walls": 1,
}


def tiny_level(**changes):
    """A row of three cells in a grid of three, the agent between a good object (left) and a bad one (right)."""
    level = Level(
        max_episode_steps=jnp.int32(4),
        side=jnp.int32(3),
        wall=jnp.zeros(9, bool).at[jnp.array([3, 4, 5])].set(True),
        start=jnp.int32(1),
        position=jnp.array([0, 2], jnp.int32),
        present=jnp.ones(2, bool),
        reward=jnp.array([1.0, -0.5]),
        p_terminate=jnp.array([0.3, 0.6]),
        p_respawn=jnp.array([0.4, 0.5]),
    )
    return level.replace(**changes)


def moved(cell, action, side, width, walls):
    row, column = divmod(cell, width)
    change = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1), STAY: (0, 0)}[action]
    row, column = (min(max(x + d, 0), side - 1) for x, d in zip((row, column), change, strict=True))
    return cell if walls[row * width + column] else row * width + column


def outcomes(level, cell, exists, action):
    """(probability, reward, terminated, next cell, next objects) of all that can happen, from the description."""
    side, walls = int(level.side), np.asarray(level.wall)
    width = round(len(walls) ** 0.5)
    cell = moved(cell, action, side, width, walls)
    collected = [e and int(x) == cell for e, x in zip(exists, level.position, strict=True)]
    reward = sum(float(r) for r, taken in zip(level.reward, collected, strict=True) if taken)
    ends = 1.0 - np.prod([1.0 - float(p) for p, taken in zip(level.p_terminate, collected, strict=True) if taken])
    for after in itertools.product([False, True], repeat=len(exists)):
        chance = 1.0
        for there, was, taken, present, rate in zip(
            after, exists, collected, np.asarray(level.present), np.asarray(level.p_respawn), strict=True
        ):
            back = 0.0 if taken or not present else 1.0 if was else float(rate)
            chance *= back if there else 1.0 - back
        for terminated, share in ((True, ends), (False, 1.0 - ends)):
            if chance * share > 0:
                yield chance * share, reward, terminated, cell, after


def best(level, num_steps, cell, exists):
    """The best expected return by trying everything."""
    if num_steps == 0:
        return 0.0
    returns = []
    for action in range(5):
        total = 0.0
        for chance, reward, terminated, *after in outcomes(level, cell, exists, action):
            total += chance * (reward + (0.0 if terminated else best(level, num_steps - 1, *after)))
        returns.append(total)
    return max(returns)


optimal = jax.jit(lambda level: (grids.optimal_values(level), grids.optimal_return(level)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"present": jnp.array([True, False])}, {"max_episode_steps": jnp.int32(2)}, {"side": jnp.int32(2)}],
    ids=["two", "one", "short", "small"],
)
def test_the_best_return_is_what_trying_everything_gives(changes):
    traced = tiny_level(**changes)
    values, begins = (np.asarray(x) for x in optimal(traced))
    level = jax.tree.map(np.asarray, traced)
    values = values.reshape(2, 2, 9)
    for cell, exists in ((1, (True, True)), (0, (False, True)), (1, (False, False))):
        exists = tuple(e and bool(p) for e, p in zip(exists, level.present, strict=True))
        expected = best(level, int(level.max_episode_steps), cell, exists)
        np.testing.assert_allclose(values[(*map(int, exists), cell)], expected, rtol=1e-5, atol=1e-6)
    begin = best(level, int(level.max_episode_steps), 1, tuple(map(bool, level.present)))
    np.testing.assert_allclose(begins, begin, rtol=1e-5)


@functools.cache
def stepper():
    env = grids.make("Small", **TINY)

    def play(key, state, action, level):
        _, step = env.step(key, state, jnp.int32(action), level)
        return step.obs, step.reward, step.terminated

    return jax.jit(jax.vmap(play, (0, None, None, None)))


@pytest.mark.parametrize(
    ("cell", "exists", "action"),
    [(1, (True, True), LEFT), (1, (True, True), RIGHT), (1, (False, True), LEFT), (0, (True, False), STAY)],
)
def test_a_step_has_the_probabilities_of_the_description(cell, exists, action):
    level = tiny_level()
    state = GridState(jnp.int32(0), jnp.int32(cell), jnp.array(exists))
    keys = jax.random.split(jax.random.key(0), 20_000)
    obs, reward, terminated = jax.tree.map(np.asarray, stepper()(keys, state, jnp.int32(action), level))
    level = jax.tree.map(np.asarray, level)
    expected = {}
    for chance, pays, ends, after, there in outcomes(level, cell, exists, action):
        index = after + 9 * int(2 * there[0] + there[1])
        expected[index, ends] = expected.get((index, ends), 0.0) + chance
        np.testing.assert_allclose(reward, pays)
    found = {pair: np.mean((obs == pair[0]) & (terminated == pair[1])) for pair in expected}
    assert sum(found.values()) == pytest.approx(1.0)
    for pair, chance in expected.items():
        assert found[pair] == pytest.approx(chance, abs=0.015), pair


def test_moves_stop_at_walls_and_edges():
    level = tiny_level()
    env = grids.make("Small", **TINY)
    step = jax.jit(lambda cell, action: env.step(
        jax.random.key(0), GridState(jnp.int32(0), cell, jnp.zeros(2, bool)), action, level
    )[0].cell)  # fmt: skip
    for cell in (0, 1, 2, 6, 7, 8):
        for action in range(5):
            expected = moved(cell, action, 3, 3, np.asarray(level.wall))
            assert int(step(jnp.int32(cell), jnp.int32(action))) == expected, (cell, action)


def test_laws_of_grids():
    env = grids.make("Small", **TINY)
    laws.check_all(env, laws.trace(env, 8), deterministic=False)
    for observe in ("one_hot", "maps"):
        laws.check_types(grids.make("Small", observe=observe, **TINY))


def test_laws_of_chains():
    env = chains.make("ShortNoisy", length=(5, 7))
    laws.check_all(env, laws.trace(env, 8), deterministic=False)
    laws.check_types(chains.make("Distractor"))


def test_the_time_limit_truncates_and_objects_terminate():
    env = grids.make("Small", **TINY)
    level = tiny_level(p_terminate=jnp.array([1.0, 0.0]))
    state, _ = env.reset(jax.random.key(0), level)
    left = env.step(jax.random.key(0), state, jnp.int32(LEFT), level)[1]
    assert (bool(left.terminated), bool(left.truncated), float(left.reward)) == (True, False, 1.0)
    last = env.step(jax.random.key(0), state.replace(time=jnp.int32(3)), jnp.int32(STAY), level)[1]
    assert (bool(last.terminated), bool(last.truncated), float(last.reward)) == (False, True, 0.0)


def test_observations_say_the_same():
    level = tiny_level()
    seen = {
        name: grids.make("Small", observe=name, **TINY).reset(jax.random.key(0), level)[1]
        for name in ("index", "one_hot", "maps")
    }
    assert int(seen["index"]) == 1 + 9 * 3
    np.testing.assert_array_equal(seen["one_hot"], np.eye(36)[28])
    np.testing.assert_array_equal(seen["maps"].reshape(3, 9), np.eye(9)[[1, 0, 2]])


def test_levels_are_drawn_within_their_ranges():
    spec = grids.spec_of("Small")
    batch = jax.jit(jax.vmap(grids.levels("Small")))(jax.random.split(jax.random.key(0), 500))
    places = np.concatenate([np.asarray(batch.start)[:, None], np.asarray(batch.position)], axis=1)
    assert all(len(set(row)) == 4 for row in places.tolist())
    wall, side = np.asarray(batch.wall), np.asarray(batch.side)
    rows, columns = np.divmod(places, 6)
    assert (rows < side[:, None]).all()
    assert (columns < side[:, None]).all()
    assert not np.take_along_axis(wall, places, 1).any()
    assert (wall.sum(1) == spec.num_walls).all()
    assert set(side.tolist()) == {4, 5, 6}
    assert set(np.asarray(batch.present).sum(1).tolist()) == {1, 2, 3}
    steps = np.asarray(batch.max_episode_steps)
    assert (steps.min() >= 20, steps.max() <= 100, 40 < np.exp(np.log(steps).mean()) < 50) == (True, True, True)
    reward = np.asarray(batch.reward)
    assert (reward[:, 0] >= 0).all()
    assert -0.1 < reward[:, 1:].mean() < 0.1
    for leaf, low, high in ((batch.p_terminate, 0.01, 1.0), (batch.p_respawn, 0.001, 0.1)):
        assert ((np.asarray(leaf) >= low * 0.999) & (np.asarray(leaf) <= high * 1.001)).all()
    best = jax.jit(jax.vmap(grids.optimal_return))(jax.tree.map(lambda x: x[:40], batch))
    assert (np.asarray(best) >= 0).all()
    assert (np.asarray(best) > 0.1).mean() > 0.7


def test_the_published_levels():
    """What their table says: numbers of cells and objects, and the gaps of the walls."""
    assert jaxrl.make_env("grids/Dense").observation_space.n == 121 * 16
    level = jaxrl.make_env("grids/LongDense").default_params()
    wall = np.asarray(level.wall).reshape(11, 11)
    assert np.flatnonzero(~wall[:, 5]).tolist() == [0, 7]
    assert np.flatnonzero(~wall[4]).tolist() == [2, 8]
    assert int(wall.sum()) == 9 + 9 - 1
    assert int(level.max_episode_steps) == 2000
    longer = jaxrl.make_env("grids/Longer").default_params()
    assert np.asarray(longer.reward).tolist() == [1.0, 1.0, *[-1.0] * 5]
    np.testing.assert_allclose(longer.p_terminate, [0.1] * 2 + [0.8] * 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": (5, 4)}, "side must be .least, greatest. with 2 <= least"),
        ({"steps": (0, 4)}, "steps must be"),
        ({"side": (3, 3)}, "3 objects must have cells of their own beside 7 walls on 3 x 3 cells"),
        ({"objects": ((1.0, 0.0, 0.0),)}, "objects must be as many as the greatest number; got 1 objects"),
        ({"observe": "picture"}, "observe must be one of"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        grids.make("Small", **changes)
    with pytest.raises(ValueError, match="length must be"):
        chains.make("Short", length=(4, 3))


def episode(env, params, first, key):
    """Rewards and flags of an episode that begins with an action and goes on with 0."""
    key_reset, key_steps = jax.random.split(key)
    state, obs = env.reset(key_reset, params)

    def body(state, row):
        key, t = row
        state, step = env.step(key, state, jnp.where(t == 0, first ^ obs, 0), params)
        return state, (step.reward, step.terminated, step.obs)

    return jax.lax.scan(body, state, (jax.random.split(key_steps, 7), jnp.arange(7)))[1]


def test_the_first_action_decides_what_the_end_of_a_chain_pays():
    env = chains.make("ShortNoisy", length=(5, 7))
    run = jax.jit(jax.vmap(lambda first, params, key: episode(env, params, first, key), (None, None, 0)))
    keys = jax.random.split(jax.random.key(0), 200)
    for right in (0, 1):
        for noise in (0.0, 1.0):
            params = env.default_params().replace(length=jnp.int32(6), right=jnp.int32(right), noise=jnp.float32(noise))
            reward, terminated, obs = jax.tree.map(np.asarray, run(jnp.int32(right), params, keys))
            assert (reward[:, 5] == 1.0).all()
            assert (terminated == (np.arange(1, 8) >= 6)).all()
            assert (obs[:, :6] == 2 + 7 + np.arange(6)).all()
            assert (np.abs(reward[:, :5]) == noise).all()
            assert abs(reward[:, :5].mean()) < 0.1
            wrong, _, obs = jax.tree.map(np.asarray, run(jnp.int32(1 - right), params, keys))
            assert (wrong[:, 5] == -1.0).all()
            assert (obs[:, :6] == 2 + np.arange(6)).all()


def test_distracting_bits_are_drawn_in_each_step():
    env = chains.make("Distractor")
    params = env.default_params()
    reward, _, obs = jax.tree.map(
        np.asarray,
        jax.jit(jax.vmap(lambda key: episode_of_bits(env, params, key)))(jax.random.split(jax.random.key(1), 100)),
    )
    assert (obs[..., 0] == 0).all()
    assert 0.4 < obs[..., 2:].mean() < 0.6
    assert obs[..., 2:].std(axis=1).mean() > 0.3
    assert (reward == 0).all()


def episode_of_bits(env, params, key):
    key_reset, key_steps = jax.random.split(key)
    state, _ = env.reset(key_reset, params)

    def body(state, key):
        state, step = env.step(key, state, jnp.int32(0), params)
        return state, (step.reward, step.terminated, step.obs)

    return jax.lax.scan(body, state, jax.random.split(key_steps, 7))[1]
