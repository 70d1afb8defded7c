"""CQN and CQN-AS: intervals, zooming in, updates against formulas in float64, acting, values of probes, Pendulum."""

import dataclasses
import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import buffers, chunks, spaces
from jaxrl.algorithms import cqn
from jaxrl.networks.coarse import CoarseConfig, cell_of, center_of, coarse_critic, path_of, zoom
from jaxrl.networks.control import control_networks
from jaxrl.ops.bins import Support

NUM_SEEDS, GAMMA, TAU = 5, 0.8, 0.3
SMALL = CoarseConfig(num_levels=2, num_bins=3, num_atoms=7, num_features=4, hidden=(6,))


def with_actions(probe, truncates=False, **options):
    """A probe with two continuous actions that nothing depends on, unless large ones are to end the episode."""
    env = jaxrl.make_env(f"probe/{probe}", **options)

    def step(key, state, action, params):
        after, result = env.step(key, state, jnp.int32(0), params)
        return after, result.replace(truncated=result.truncated | (truncates & (action[0] > 0.8)))

    return env._replace(step=step, action_space=spaces.box(-2.0, 2.0, (2,)))


def support(low, high):
    return Support(jnp.float32(low), jnp.float32(high))


# --- Zooming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels, num_bins", [(3, 5), (10, 4)])
def test_cells_and_paths_are_exact(num_levels, num_bins):
    config = CoarseConfig(num_levels=num_levels, num_bins=num_bins)
    num_cells = num_bins**num_levels
    cells = np.unique(np.linspace(0, num_cells - 1, 200).astype(np.int32))
    np.testing.assert_array_equal(cell_of(center_of(jnp.asarray(cells), num_cells), config), cells)
    bins, centers = (np.asarray(x) for x in path_of(jnp.asarray(cells)[:, None], config))
    for cell, path, seen in zip(cells, bins[..., 0], centers[..., 0], strict=True):
        low, high = Fraction(-1), Fraction(1)
        for bin_, center in zip(path, seen, strict=True):
            assert abs(float(center) - float((low + high) / 2)) < 2e-7
            width = (high - low) / num_bins
            low, high = low + width * int(bin_), low + width * (int(bin_) + 1)
        assert low == Fraction(int(cell) * 2, num_cells) - 1
        assert abs(float(center_of(cell, num_cells)) - float((low + high) / 2)) < 2e-7


def test_an_action_goes_to_the_bins_of_the_recursion_in_floating_point():
    """The authors' arithmetic, in float64, for actions that are not at a bound."""
    config = CoarseConfig()
    action = np.random.default_rng(0).uniform(-1, 1, 500)
    low, high, bins = -np.ones(500), np.ones(500), []
    for _ in range(config.num_levels):
        width = (high - low) / config.num_bins
        bins.append(np.floor((action - low) / width))
        low, high = low + width * bins[-1], low + width * (bins[-1] + 1)
    found, _ = path_of(cell_of(jnp.float32(action)[:, None], config), config)
    np.testing.assert_array_equal(found[..., 0], np.stack(bins, axis=1))


def test_zooming_finds_the_best_cell_of_a_separable_value():
    """Where a bin is worth what the best of its cells is; against all actions of the finest grid."""
    config = CoarseConfig(num_levels=3, num_bins=3)
    tables = np.random.default_rng(1).normal(size=(2, 27))

    def values_of(center, level):
        parts = jnp.float32(tables).reshape(2, 3**level, 3, -1).max(-1)
        interval = jnp.round((center + 1) * 3**level / 2 - 0.5).astype(int)
        return jnp.stack([parts[entry, interval[entry]] for entry in range(2)])

    found = zoom(values_of, (2,), config)
    best = max(itertools.product(range(27), range(27)), key=lambda cells: tables[0, cells[0]] + tables[1, cells[1]])
    assert tuple(found.tolist()) == best


def test_bins_of_equal_value_are_drawn():
    config, draw = CoarseConfig(num_levels=2, num_bins=3), jnp.float32([[[0.1], [0.9]], [[0.5], [0.4]]])
    equal = lambda center, level: jnp.zeros((2, 1, 3))
    assert zoom(equal, (2, 1), config, draw).tolist() == [[2], [4]]
    assert zoom(equal, (2, 1), config).tolist() == [[0], [0]]
    better = lambda center, level: jnp.broadcast_to(jnp.array([0.0, 2e-4, 0.0]), (2, 1, 3))
    assert zoom(better, (2, 1), config, draw).tolist() == [[4], [4]]


# --- One update ------------------------------------------------------------------------------------------------------

NUM_DRAWN, GAIN = 32, 0.7


def gru(params, x):
    """Outputs [N, S, H] of Cho et al.'s unit as PyTorch has it, in float64."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    kernel, bias = np.float64(params["kernel"]), np.float64(params["bias"])
    h, outputs = np.zeros((len(x), kernel.shape[0])), []
    for step in range(x.shape[1]):
        reset, update, new = np.split(
            x[:, step] @ np.float64(params["input"]["kernel"]) + np.float64(params["input"]["bias"]), 3, axis=1
        )
        reset_h, update_h, new_h = np.split(h @ kernel, 3, axis=1)
        update = sigmoid(update + update_h)
        h = (1 - update) * np.tanh(new + sigmoid(reset + reset_h) * (new_h + bias)) + update * h
        outputs.append(h)
    return np.stack(outputs, axis=1)


def stream(params, name, obs, center, level):
    """Outputs of one stream in float64 for one interval of one level, [N, S, A b K]."""

    def norm(layer, x):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return z * np.float64(layer["scale"]) + np.float64(layer["bias"])

    num, length = len(obs), center.shape[1] // 2
    full = lambda x: np.broadcast_to(x, (num, length, x.shape[-1]))
    x = np.tanh(norm(params[f"{name}_norm"], obs @ np.float64(params[f"{name}_features"]["kernel"])))
    known = [full(x[:, None]), center.reshape(num, length, 2), full(np.eye(SMALL.num_levels)[level])]
    if length > 1:
        known.append(full(np.eye(length)))
    x = np.concatenate(known, axis=-1) @ np.float64(params[f"{name}_0"]["kernel"])
    x = norm(params[f"{name}_norm_0"], x)
    x = x / (1 + np.exp(-x))
    if length > 1:
        x = gru(params[f"{name}_gru"], x)
    return x @ np.float64(params[f"{name}_head"]["kernel"]) + np.float64(params[f"{name}_head"]["bias"])


def logits_of(params, obs, center, level):
    value = stream(params, "value", obs, center, level).reshape(*center.shape, 1, -1)
    advantage = stream(params, "advantage", obs, center, level).reshape(*center.shape, SMALL.num_bins, -1)
    return value + advantage - advantage.mean(2, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def zoomed(params, obs, atoms, num_entries):
    """The best cell and, of each level, its bins [N, entries]."""
    interval, bins = np.zeros((len(obs), num_entries), int), []
    for level in range(SMALL.num_levels):
        center = (2 * interval + 1) / SMALL.num_bins**level - 1
        bins.append((softmax(logits_of(params, obs, center, level)) @ atoms).argmax(-1))
        interval = interval * SMALL.num_bins + bins[-1]
    return interval, bins


@functools.cache
def updated(length):
    """Agent, its hyperparameters and atoms, the states around an update, and its metrics."""
    config = cqn.Config(
        num_steps=1,
        num_rounds=1,
        batch_size=NUM_DRAWN,
        capacity=16,
        num_warmup_steps=16,
        n_step=2,
        length=length,
        network=SMALL,
    )
    agent = cqn.cqn(with_actions("Termination", truncates=True, num_steps=3), config=config)
    changes = {"noise_start": 0.0, "noise_end": 0.0, "ensemble_gain": GAIN} if length > 1 else {}
    hparams = agent.hyperparams(support=support(-0.5, 2.5), gamma=GAMMA, tau=TAU, critic_learning_rate=1e-2, **changes)
    before = jax.jit(agent.init)(jax.random.key(0), hparams)
    # Heads begin at zero: others, so that there is something to compare.
    draws = np.random.default_rng(0)
    moved = lambda tree: jax.tree.map(lambda x: x + jnp.float32(draws.normal(0, 0.5, x.shape)), tree)
    learner = dataclasses.replace(
        before.learner,
        params={"critic": moved(before.learner.params["critic"])},
        target_params=moved(before.learner.target_params),
    )
    before, step = dataclasses.replace(before, learner=learner), jax.jit(agent.step)
    after, metrics = step(before, hparams)
    return agent, lambda state: step(state, hparams)[0], np.linspace(-0.5, 2.5, SMALL.num_atoms), before, after, metrics


@pytest.mark.parametrize("length", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_an_update(length):
    """Two-step returns, terminations and truncations; each level and entry learns from the same of the next action.

    With two actions in a row both have the return from the first on; after an end the first is the second too.
    """
    agent, _, atoms, before, after, metrics = updated(length)
    # The order of keys is the one in `_step`.
    key_replay = jax.random.split(before.key, 6)[3]
    buffer = buffers.uniform(16, 1, NUM_DRAWN, 2)
    index = buffer.sample((), after.buffer, buffer.noise(key_replay, 1, 1)[0, 0], jnp.float32(0.0)).index
    rows = jax.tree.map(lambda x: np.asarray(x)[:, 0].astype(np.float64), after.buffer.items)
    first, second = np.asarray(index), (np.asarray(index) + 1) % 16
    ended = (rows.terminated + rows.truncated > 0)[first]
    assert {(bool(a), bool(b)) for a, b in zip(ended, rows.terminated[first], strict=True)} > {(True, False)}
    reward = rows.reward[first] + np.where(ended, 0, GAMMA * rows.reward[second])
    last = np.where(ended, first, second)
    discount = np.where(rows.terminated[last], 0, np.where(ended, GAMMA, GAMMA**2))
    obs, next_obs = rows.obs[first], rows.next_obs[last]

    # The next action by the critic, its bins' distributions by the target.
    n, num_entries = (np.arange(NUM_DRAWN)[:, None], np.arange(2 * length)[None]), 2 * length
    interval, target = np.zeros((NUM_DRAWN, num_entries), int), []
    for level, chosen in enumerate(zoomed(before.params["critic"], next_obs, atoms, num_entries)[1]):
        center = (2 * interval + 1) / SMALL.num_bins**level - 1
        probs = softmax(logits_of(before.learner.target_params, next_obs, center, level))[(*n, chosen)]
        returns = np.clip(reward[:, None] + discount[:, None] * atoms, atoms[0], atoms[-1])
        spread = np.maximum(0, 1 - np.abs(returns[..., None] - atoms) / (atoms[1] - atoms[0]))
        target.append(np.einsum("naj,njk->nak", probs, spread))
        interval = interval * SMALL.num_bins + chosen
    interval, losses = np.zeros((NUM_DRAWN, num_entries), int), []
    action = rows.action[first]
    if length > 1:
        follows = np.where(ended[:, None], rows.action[first], rows.action[second])
        assert ended.any()
        action = np.concatenate([action, follows], axis=1)
    cells = np.clip(np.floor((action + 1) / 2 * 9), 0, 8).astype(int)
    for level in range(SMALL.num_levels):
        center = (2 * interval + 1) / SMALL.num_bins**level - 1
        taken = cells // SMALL.num_bins ** (SMALL.num_levels - 1 - level) % SMALL.num_bins
        logits = logits_of(before.params["critic"], obs, center, level)[(*n, taken)]
        losses.append(-(target[level] * np.log(softmax(logits))).sum(-1))
        interval = interval * SMALL.num_bins + taken
    np.testing.assert_allclose(metrics["loss/critic"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["value/target"], np.mean(target @ atoms), rtol=1e-4)
    assert np.std(losses) > 0.1
    exact = lambda old, new: (1 - TAU) * np.float64(old) + TAU * np.float64(new)
    averaged = jax.tree.map(exact, before.learner.target_params, after.learner.params["critic"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.learner.target_params, averaged
    )
    if length == 1:  # What was taken lies on the finest grid.
        newest = rows.action[(int(after.buffer.pointer) - 1) % 16]
        np.testing.assert_allclose(newest, center_of(cell_of(jnp.float32(newest), SMALL), 9), rtol=1e-6)
        assert agent.initial_memory() == ()


def test_acting_in_sequences():
    """What the last two choices mean for now, of this episode only; the authors' table of choices, in NumPy."""
    # No choice was made before: the warm-up is random.
    agent, step, atoms, state, _, _ = updated(2)
    table, means, act = [], [], jax.jit(agent.act)
    memory = agent.initial_memory()
    for _ in range(6):
        obs, start = np.float64(state.actor.obs), bool(state.actor.start[0])
        cells, _ = zoomed(state.params["critic"], obs, atoms, 4)
        table = [] if start else table
        table.append((2 * cells[0] + 1).reshape(2, 2) / 9 - 1)
        now = [choice[1] for choice in table[-2:-1]] + [table[-1][0]]  # the oldest first
        weights = np.exp(-GAIN * np.arange(len(now)))
        expected = (np.array(now) * weights[:, None]).sum(0) / weights.sum()
        means.append((len(now), not np.array_equal(now[0], now[-1])))
        memory = agent.initial_memory() if start else memory
        action, memory = act(state, memory, state.actor.obs[0], None)
        np.testing.assert_allclose(action, 2 * expected, rtol=1e-5)
        state = step(state)
        taken = np.asarray(state.buffer.items.action)[(int(state.buffer.pointer) - 1) % 16, 0]
        np.testing.assert_allclose(taken, expected, rtol=1e-5)
    assert {(1, False), (2, True)} <= set(means)


def test_overlapping_choices_are_the_authors_table():
    """Three actions in a row over eight steps of two environments."""
    choices = np.random.default_rng(0).normal(size=(8, 2, 3, 1))
    plans, history = chunks.no_plans(3, 1, 2), np.full((8, 11, 2, 1), np.nan)
    for t, choice in enumerate(choices):
        history[t, t : t + 3] = np.moveaxis(choice, 1, 0)
        now = history[:, t][~np.isnan(history[:, t, 0, 0])]
        weights = np.exp(-GAIN * np.arange(len(now)))
        found, plans = chunks.blend(plans, jnp.float32(choice), jnp.float32(GAIN))
        np.testing.assert_allclose(found, np.einsum("i,iba->ba", weights / weights.sum(), now), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_bins": 1}, "at least 2 bins"),
        ({"hidden": (0,)}, "positive widths"),
        ({"num_levels": 21, "num_bins": 2}, r"at most 2\^20"),
        ({"num_levels": 0}, "num_levels must be a whole number"),
    ],
)
def test_messages_of_the_critic(changes, message):
    box = spaces.box(-1.0, 1.0, (2,))
    with pytest.raises(ValueError, match=message):
        coarse_critic(box, box, CoarseConfig(**changes))


def test_messages():
    with pytest.raises(ValueError, match="coarse_critic: actions must be a Box with finite bounds"):
        cqn.cqn(jaxrl.make_env("gymnax/CartPole-v1"))
    pendulum = jaxrl.make_env("gymnax/Pendulum-v1")
    with pytest.raises(ValueError, match="cqn: length must be a whole number of at least 1; got length = 0"):
        cqn.cqn(pendulum, config=cqn.Config(length=0))
    with pytest.raises(ValueError, match=r"num_warmup_steps = 4, .* windows of 8 rows"):
        cqn.cqn(pendulum, config=cqn.Config(num_warmup_steps=4, length=8))
    with pytest.raises(ValueError, match=r"ensemble_gain = 0\.5 has no effect while config\.length = 1"):
        cqn.cqn(pendulum).hyperparams(ensemble_gain=0.5)
    _, plans = chunks.blend(chunks.no_plans(4, 1), jnp.full((4, 1), 0.5), jnp.float32(50.0))
    for _ in range(4):
        action, plans = chunks.blend(plans, jnp.full((4, 1), 0.5), jnp.float32(50.0))
    np.testing.assert_allclose(action, 0.5)
    with pytest.raises(ValueError, match="cqn: its critic is"):
        jaxrl.make("cqn_as", pendulum, network=control_networks(pendulum.observation_space, pendulum.action_space))


# --- Values and learning ---------------------------------------------------------------------------------------------


def train(agent, num_steps, broken=False, **hparams):
    hparams = agent.hyperparams(**hparams)
    if broken:
        # It climbs what it should descend; `hyperparams` would refuse the rate.
        hparams = dataclasses.replace(hparams, critic_learning_rate=-hparams.critic_learning_rate)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    return states, hparams


TERMINATION = np.eye(5), [sum(GAMMA**i for i in range(5 - k)) for k in range(5)]
TRUNCATION = [[0.0]], [1 / (1 - GAMMA)]


@pytest.mark.slow
@pytest.mark.parametrize("probe, expected", [("Termination", TERMINATION), ("Truncation", TRUNCATION)])
def test_values_of_the_probes(probe, expected):
    """A bootstrap cut at the time limit would give at most 3.36 instead of 5, one at the end of the episode 5."""
    env, network = with_actions(probe), dataclasses.replace(SMALL, num_atoms=21, num_features=16, hidden=(16,))
    config = cqn.Config(
        num_envs=4,
        num_steps=4,
        num_updates=4,
        num_rounds=200,
        batch_size=32,
        capacity=512,
        num_warmup_steps=16,
        network=network,
    )
    changes = {"support": support(0, 8), "gamma": GAMMA, "tau": 0.1, "critic_learning_rate": 1e-2}
    states, _ = train(cqn.cqn(env, config=config), 1, **changes)
    obs, value = expected
    net = coarse_critic(env.observation_space, env.action_space, network)
    center = jnp.zeros((len(obs), 1, 2))
    logits = jax.vmap(lambda params: net.apply({"params": params}, jnp.float32(obs), center, jnp.array([0])))(
        states.params["critic"]
    )
    found = (softmax(np.asarray(logits)) @ np.linspace(0, 8, 21)).mean((2, 3, 4))
    np.testing.assert_allclose(found, np.broadcast_to(np.array(value), found.shape), atol=0.2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name, width", [("cqn", 64), ("cqn_as", 32)])
def test_pendulum(name, width, broken):
    """9,600 steps; a rate of 1e-3, batches of 64, small layers. A random policy has about -1200, a good one -150.

    The broken version has a quarter of the steps.
    """
    network = CoarseConfig(num_features=32, hidden=(width, width))
    agent = jaxrl.make(name, jaxrl.make_env("gymnax/Pendulum-v1"), network=network, batch_size=64, capacity=16_384)
    changes = {"critic_learning_rate": 1e-3, "support": support(-1600, 0), "horizon": 9600, "noise_fraction": 0.5}
    states, hparams = train(agent, (2400 if broken else 9600) // agent.env_steps, broken, **changes)
    run = jax.jit(jax.vmap(jaxrl.evaluate(agent, 16), (0, 0, None)))
    got = np.asarray(run(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)
    print(name, "broken" if broken else "", np.round(got, 1))
    assert np.mean(got) <= -800 if broken else np.mean(got) >= -250, got
