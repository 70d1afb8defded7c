"""Replay: what is drawn is what was stored, in the right order, with the right probability, at the right cost."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl import buffers
from jaxrl.buffers import Experience, n_step, prioritized, uniform, windows
from jaxrl.ops import sums

L, B = 12, 3


def rows(first, num, num_envs=B):
    """Rows whose item says when and where it was written."""
    time = np.arange(first, first + num)[:, None]
    return {
        "time": jnp.asarray(np.tile(time, (1, num_envs))),
        "env": jnp.asarray(np.tile(np.arange(num_envs), (num, 1))),
    }


ITEM = {"time": jnp.int32(0), "env": jnp.int32(0)}


def filled(buffer, num_rows, num_new=1, state=None, first=0):
    params = buffer.hyperparams()
    add = jax.jit(buffer.add)
    state = buffer.init(ITEM) if state is None else state
    for t in range(first, first + num_rows, num_new):
        state = add(params, state, rows(t, num_new))
    return state


def whole(num_rows, num_steps):
    """Times at which a window of rows that are still there begins."""
    return range(max(0, num_rows - L), num_rows - num_steps + 1)


@pytest.mark.parametrize("make", [uniform, prioritized])
@pytest.mark.parametrize("num_steps, num_new", [(1, 1), (3, 1), (3, 4), (2, 12)])
def test_windows_are_whole_and_in_the_order_of_time(make, num_steps, num_new):
    buffer = make(L * B, B, 512, num_steps)
    params, sample = buffer.hyperparams(), jax.jit(buffer.sample)
    for num_rows in (num_new * -(-num_steps // num_new), 12, 24 + (num_new if num_new < 12 else 0)):
        state = filled(buffer, num_rows, num_new)
        bits = buffer.noise(jax.random.key(num_rows), 4)
        starts = set()
        for words in bits:
            drawn = sample(params, state, words, 0.0)
            seen = jax.tree.map(np.asarray, windows(state.items, drawn.index, num_steps))
            np.testing.assert_array_equal(
                seen["time"] - seen["time"][:1], np.arange(num_steps)[:, None] + np.zeros((1, 512), int)
            )
            np.testing.assert_array_equal(seen["env"], np.broadcast_to(seen["env"][0], seen["env"].shape))
            starts |= set(zip(seen["time"][0].tolist(), seen["env"][0].tolist(), strict=True))
        assert starts == {(t, env) for t in whole(num_rows, num_steps) for env in range(B)}


def test_uniform_is_uniform():
    buffer = uniform(L * B, B, 30_000, 3)
    state = filled(buffer, 17)
    drawn = buffer.sample((), state, buffer.noise(jax.random.key(0)), 0.0)
    counts = np.bincount(np.asarray(drawn.index), minlength=L * B)
    counts = counts[counts > 0]
    assert len(counts) == (L - 2) * B
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    skewed = counts * np.where(np.arange(len(counts)) % 2, 1.1, 0.9)
    assert scipy.stats.chisquare(skewed * counts.sum() / skewed.sum()).pvalue < 1e-3, "the test must see a skew of 10%"


@pytest.mark.parametrize("bound", [1, 7, 10**6 + 3, 2**31 - 1])
def test_the_upper_word_of_a_product(bound):
    bits = np.array(jax.random.bits(jax.random.key(1), (1000,), jnp.uint32))
    bits[:3] = 0, 1, 2**32 - 1
    found = buffers._below(jnp.asarray(bits), jnp.int32(bound))
    np.testing.assert_array_equal(found, (bits.astype(object) * bound) >> 32)


def test_priorities_are_drawn_in_proportion_and_weighted_against_it():
    buffer = prioritized(L * B, B, 6000, 3, alpha=0.7, beta=0.4, beta_end=0.8)
    params = buffer.hyperparams()
    state = filled(buffer, 17)
    index = jnp.arange(L * B)
    valid = np.asarray(state.priorities.levels[0]).ravel()[: L * B] > 0
    given = np.random.default_rng(0).uniform(0.0, 4.0, L * B) ** 2
    entries = index[jnp.asarray(valid)]
    priorities = buffer.update(params, state.priorities, entries, jnp.float32(-given[valid]))
    state = dataclasses.replace(state, priorities=priorities)
    expected = np.where(valid, (given + 1e-6) ** 0.7, 0.0)
    expected /= expected.sum()
    drawn = buffer.sample(params, state, buffer.noise(jax.random.key(3)), 0.5)
    counts = np.bincount(np.asarray(drawn.index), minlength=L * B)
    assert (counts[~valid] == 0).all()
    # Stratified: each count is within two of its expectation, where independent draws would spread by 30.
    np.testing.assert_allclose(counts, 6000 * expected, atol=2.0)
    weight = expected[np.asarray(drawn.index)] ** -0.6
    np.testing.assert_allclose(drawn.weight, weight / weight.max(), rtol=1e-4)
    # Within a stratum draws are spread: without that the same entries would come every time.
    small = prioritized(L * B, B, 4, 3)
    draw = jax.jit(jax.vmap(lambda bits: small.sample(params, state, bits, 0.0).index))
    several = draw(small.noise(jax.random.key(4), 2000))
    counts = np.bincount(np.ravel(several), minlength=L * B)[valid]
    assert scipy.stats.chisquare(counts, 8000 * expected[valid]).pvalue > 1e-3


def test_new_entries_have_the_greatest_priority_and_old_ones_keep_theirs():
    buffer = prioritized(L * B, B, 4, 2, alpha=0.5)
    params = buffer.hyperparams()
    state = filled(buffer, 14)
    priorities = buffer.update(params, state.priorities, jnp.array([18, 19]), jnp.array([9.0, 0.25]))
    state = filled(buffer, 1, state=dataclasses.replace(state, priorities=priorities), first=14)
    levels = state.priorities.levels
    leaves = np.asarray(levels[0]).ravel()
    assert float(state.priorities.greatest) == pytest.approx(9.0)
    # Rows 12, 13 and 14 are at 0, 1 and 2: the windows of 13 have just become whole, those of 14 are not.
    np.testing.assert_allclose(leaves[:9], [1] * 3 + [3] * 3 + [0] * 3, rtol=1e-5)
    np.testing.assert_allclose(leaves[[18, 19]], [3.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(float(jnp.sum(levels[-1])), leaves.sum(), rtol=1e-6)


def test_rounding_never_leads_to_an_entry_without_priority():
    values = np.float32(np.random.default_rng(1).uniform(size=(64, 16)) < 0.2) * 1e-3
    levels = sums.put(sums.empty(1024), jnp.arange(1024), jnp.asarray(values.ravel()))
    total = float(jnp.sum(levels[-1]))
    points = jnp.asarray(np.concatenate([np.linspace(0, total * 1.0001, 4000), np.cumsum(values.ravel())]), jnp.float32)
    index, value = sums.find(levels, points)
    assert (np.asarray(value) > 0).all()
    np.testing.assert_array_equal(value, values.ravel()[np.asarray(index)])


# --- Returns over n steps --------------------------------------------------------------------------------------------


def story(num_rows, num_envs, seed):
    draws = np.random.default_rng(seed)
    terminated, truncated = draws.uniform(size=(2, num_rows, num_envs)) < 0.2
    return Experience(
        obs=jnp.asarray(draws.normal(size=(num_rows, num_envs, 2)), jnp.float32),
        action=jnp.asarray(draws.integers(0, 5, (num_rows, num_envs)), jnp.int32),
        reward=jnp.asarray(draws.normal(size=(num_rows, num_envs)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        next_obs=jnp.asarray(draws.normal(size=(num_rows, num_envs, 2)), jnp.float32),
    )


def first_end(items, row, env, num_steps, *, see_truncation=True):
    for k in range(num_steps):
        at = (row + k) % items.reward.shape[0], env
        if items.terminated[at] or (see_truncation and items.truncated[at]):
            return k
    return num_steps - 1


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_n_step_equals_brute_force(num_steps):
    items = story(40, 3, num_steps)
    index = jnp.arange(120)
    found = jax.tree.map(np.asarray, n_step(items, index, num_steps, jnp.float32(0.9)))
    host = jax.tree.map(np.asarray, items)
    missing_truncation = 0
    for i in range(120):
        row, env = divmod(i, 3)
        last = first_end(host, row, env, num_steps)
        end = (row + last) % 40
        reward = sum(0.9**k * host.reward[(row + k) % 40, env] for k in range(last + 1))
        np.testing.assert_allclose(found.reward[i], reward, atol=1e-5)
        np.testing.assert_allclose(
            found.discount[i], 0.0 if host.terminated[end, env] else 0.9 ** (last + 1), atol=1e-6
        )
        np.testing.assert_array_equal(found.next_obs[i], host.next_obs[end, env])
        np.testing.assert_array_equal(found.obs[i], host.obs[row, env])
        assert found.action[i] == host.action[row, env]
        missing_truncation += last != first_end(host, row, env, num_steps, see_truncation=False)
    assert (missing_truncation > 0) == (num_steps > 1), "a rule that does not see truncation must fail here"


# --- Mapping, dtypes, cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [uniform, prioritized])
def test_members_together_are_members_alone(make):
    buffer = make(L * B, B, 8, 2)

    def run(key, params):
        def round_(state, row):
            t, bits = row
            state = buffer.add(params, state, {"time": jnp.full((2, B), t), "env": jnp.zeros((2, B), jnp.int32)})
            drawn = buffer.sample(params, state, bits, 0.3)
            priorities = buffer.update(params, state.priorities, drawn.index, 1.0 / (1.0 + drawn.index))
            return dataclasses.replace(state, priorities=priorities), drawn

        return jax.lax.scan(round_, buffer.init(ITEM), (jnp.arange(20), buffer.noise(key, 20)))

    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.tree.map(lambda x: x * jnp.array([1.0, 0.5, 1.5]), buffer.hyperparams())
    together = jax.jit(jax.vmap(run))(keys, params)
    for i in range(3):
        alone = jax.jit(run)(keys[i], jax.tree.map(lambda x, i=i: x[i], params))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), together, alone)


def test_observations_keep_their_dtype():
    buffer = uniform(8, 2, 4)
    state = buffer.init({"image": jnp.zeros((2, 2), jnp.uint8), "mask": jnp.bool_(False)})
    state = buffer.add((), state, {"image": jnp.full((4, 2, 2, 2), 255, jnp.uint8), "mask": jnp.ones((4, 2), bool)})
    assert state.items["image"].dtype == jnp.uint8
    assert state.items["mask"].dtype == jnp.bool_
    assert int(state.items["image"].max()) == 255


def compiled_rounds(make, capacity, members=None, num_steps=3):
    """Text of the compiled program of a few adds, draws and updates, its state donated."""
    buffer = make(capacity, 4, 16, num_steps)
    item = {"x": jnp.zeros(5), "y": jnp.float32(0.0), "ended": jnp.bool_(False)}

    def run(state, key):
        def round_(state, bits):
            rows = jax.tree.map(lambda x: jnp.ones((2, 4, *x.shape), x.dtype), item)
            state = buffer.add(buffer.hyperparams(), state, rows)
            drawn = buffer.sample(buffer.hyperparams(), state, bits, 0.0)
            seen = jax.tree.map(jnp.sum, windows(state.items, drawn.index, num_steps))
            priorities = buffer.update(buffer.hyperparams(), state.priorities, drawn.index, drawn.weight)
            return dataclasses.replace(state, priorities=priorities), seen

        return jax.lax.scan(round_, state, buffer.noise(key, 3))

    shape, key = buffer.init(item), jax.random.key(0)
    if members:
        run = jax.vmap(run)
        shape = jax.tree.map(lambda x: jnp.zeros((members, *x.shape), x.dtype), shape)
        key = jax.random.split(key, members)
    return jax.jit(run, donate_argnums=0).lower(shape, key).compile().as_text()


def copies(text, at_least):
    """Copies of arrays of so many entries in a compiled program."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", text)
    return [shape for shape in found if np.prod([int(n) for n in shape.split(",") if n]) >= at_least]


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("make", [uniform, prioritized])
def test_the_buffer_is_never_copied(make, members, num_steps):
    """Read by two indices, scalars with windows of one row were, twice in each round."""
    assert not copies(compiled_rounds(make, 4096, members, num_steps), 4096 * (members or 1))


@pytest.mark.parametrize("make", [uniform, prioritized])
@pytest.mark.parametrize("num_rows", [8, 24, 30, 33])
def test_any_number_of_rows_can_be_added(make, num_rows):
    """As one by one, also where they do not fill the ring evenly or more than once."""
    buffer = make(L * B, B, 4, 2)
    added = buffers.extend(buffer, buffer.hyperparams(), buffer.init(ITEM), rows(0, num_rows))
    jax.tree.map(np.testing.assert_array_equal, added, filled(buffer, num_rows))


def test_a_copy_would_be_seen():
    def run(x, y):
        return jax.lax.scan(lambda x, i: (x.at[0].set(x[i] + 1.0), x.sum()), x, jnp.arange(3)), y + x

    text = jax.jit(run).lower(jnp.zeros(4096), jnp.zeros(4096)).compile().as_text()
    assert copies(text, 4096)


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [uniform, prioritized])
def test_messages(make):
    with pytest.raises(ValueError, match=r"capacity must be a multiple of num_envs .* try capacity = 8"):
        make(10, 4, 2)
    with pytest.raises(ValueError, match="at least num_steps rows"):
        make(8, 4, 2, 3)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        make(8, 4, 0)
    buffer = make(L * B, B, 2)
    with pytest.raises(ValueError, match=r"12 rows .* and 5 added"):
        buffer.add(buffer.hyperparams(), buffer.init(ITEM), rows(0, 5))
    assert make(L * B, B, 2) is buffer
