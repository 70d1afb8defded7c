"""N-VR-PG against exact occupancies: it reaches known optima, and its estimate is that of its policy. 5 seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import utilities

NUM_SEEDS = 5
GAMMA = 0.9
ROWS, COLUMNS, HORIZON = 1, 5, 20


def line():
    return jaxrl.make_env("coverage/Cells", size=(ROWS, COLUMNS), max_episode_steps=HORIZON, observe="cell")


def successors():
    """The cell after each of the five moves (stay, right, up, left, down), [S, A, S]."""
    table = np.zeros((COLUMNS, 5, COLUMNS), np.float32)
    for cell in range(COLUMNS):
        for action, change in enumerate((0, 1, 0, -1, 0)):
            table[cell, action, min(max(cell + change, 0), COLUMNS - 1)] = 1.0
    return table


def occupancy_of(policy):
    """Exact discounted occupancy of a policy [S, A] on the line, not normalized, [S, A]."""
    forward = jnp.einsum("sa,sat->st", policy, successors())

    def body(at, discount):
        return at @ forward, discount * at[:, None] * policy

    return jax.lax.scan(body, jnp.eye(COLUMNS)[0], GAMMA ** jnp.arange(HORIZON))[1].sum(0)


def trained(env, what, num_iterations, config=None, **hparams):
    """States of all seeds, and metrics [seeds, iterations]."""
    agent = utilities.utilities(env, what, config or utilities.Config(num_envs=16, num_steps=HORIZON))
    changes = agent.hyperparams(gamma=GAMMA, **hparams)
    run = jax.jit(jax.vmap(jaxrl.train(agent, num_iterations), (0, None)))
    return run(jax.random.split(jax.random.key(0), NUM_SEEDS), changes)


def policies(states):
    return np.asarray(jax.nn.softmax(states.params["kernel"]))


def entropy(occupancy):
    visited = occupancy.sum(-1) / occupancy.sum()
    return -jnp.sum(visited * jnp.log(visited + 1e-12))


@pytest.mark.slow
def test_exploration_reaches_the_greatest_entropy():
    """The optimum over stationary policies by ascent on the exact occupancy, from several starts."""
    states, metrics = trained(line(), utilities.entropy(), 300)
    ascend = jax.vmap(jax.grad(lambda logits: entropy(occupancy_of(jax.nn.softmax(logits)))))
    starts = jax.random.normal(jax.random.key(0), (3, COLUMNS, 5))
    ends = jax.jit(lambda x: jax.lax.fori_loop(0, 1500, lambda _, logits: logits + 2.0 * ascend(logits), x))(starts)
    best = max(float(entropy(occupancy_of(jax.nn.softmax(logits)))) for logits in ends)
    uniform = float(entropy(occupancy_of(jnp.full((COLUMNS, 5), 0.2))))
    got = [float(entropy(occupancy_of(policy))) for policy in policies(states)]
    assert uniform < 0.85 * best
    assert min(got) > 0.98 * best, (got, best)
    np.testing.assert_allclose(np.asarray(metrics["utility/value"])[:, -1], got, atol=0.03)


@pytest.mark.slow
def test_imitation_reproduces_an_occupancy():
    teacher = jax.nn.softmax(1.5 * jax.random.normal(jax.random.key(3), (COLUMNS, 5)))
    target = occupancy_of(teacher)
    target = target / target.sum()
    utility = utilities.imitation()
    leaves = utility.init(COLUMNS, 5).replace(target=target)
    states, _ = trained(line(), utility, 400, utility=leaves)

    def divergence(policy):
        occupancy = occupancy_of(policy) / occupancy_of(policy).sum()
        return float(jnp.sum(occupancy * jnp.log(occupancy / target)))

    assert divergence(jnp.full((COLUMNS, 5), 0.2)) > 0.3
    got = [divergence(policy) for policy in policies(states)]
    assert max(got) < 0.03, got


@pytest.mark.parametrize(("limit", "weight"), [(0.3, 10.0), (0.1, 5.0)])
def test_a_penalty_stops_where_its_slope_is_the_reward(limit, weight):
    """Two actions: p - weight/2 (p - limit)² is greatest at p = limit + 1/weight."""
    utility = utilities.constrained()
    table = jnp.array([[0.0, 1.0]])
    leaves = utility.init(1, 2).replace(reward=table, cost=table, limit=jnp.float32(limit), weight=jnp.float32(weight))
    config = utilities.Config(num_envs=64, num_steps=2)
    states, _ = trained(jaxrl.make_env("probe/Policy"), utility, 300, config, utility=leaves, step_size=0.5)
    np.testing.assert_allclose(policies(states)[:, 0, 1], limit + 1.0 / weight, atol=0.05)


@pytest.mark.slow
def test_momentum_brings_the_estimate_closer_to_the_policys_own_occupancy():
    """The same episodes in each iteration: what is carried on must help, so the weights must be right."""
    errors = {}
    for reduced in (False, True):
        config = utilities.Config(num_envs=4, num_steps=HORIZON, variance_reduction=reduced)
        agent = utilities.utilities(line(), utilities.entropy(), config)
        hparams = agent.hyperparams(gamma=GAMMA, step_size=0.2)

        def body(state, _, agent=agent, hparams=hparams):
            after, metrics = agent.step(state, hparams)
            exact = occupancy_of(jax.nn.softmax(state.params["kernel"]))
            return after, (jnp.abs(after.occupancy - exact).sum(), metrics["utility/weight"])

        play = jax.vmap(lambda key, body=body: jax.lax.scan(body, agent.init(key, hparams), None, 100)[1])
        error, weight = jax.jit(play)(jax.random.split(jax.random.key(1), NUM_SEEDS))
        errors[reduced] = np.asarray(error)[:, 50:].mean(-1)
        np.testing.assert_allclose(np.asarray(weight).mean(), 1.0, atol=0.02)
    assert (errors[True] < 0.6 * errors[False]).all(), errors


def test_occupancy_and_direction_carry_over_without_bias():
    """From exact ones of the policy before to those of the policy now, in the mean of many episodes."""
    env, num_envs = line(), 8_000
    config = utilities.Config(num_envs=num_envs, num_steps=HORIZON)
    agent = utilities.utilities(env, utilities.entropy(), config)
    hparams = agent.hyperparams(gamma=GAMMA)
    keys = jax.random.split(jax.random.key(2), 4)
    previous = jax.random.normal(keys[0], (COLUMNS, 5))
    now = previous + 0.1 * jax.random.normal(keys[1], (COLUMNS, 5))
    last, before = jax.random.uniform(keys[2], (2, COLUMNS, 5))
    occupancy = lambda logits: occupancy_of(jax.nn.softmax(logits))
    gradient = lambda logits, reward: jax.grad(lambda x: jnp.sum(occupancy(x) * reward))(logits)
    state = agent.init(keys[3], hparams).replace(
        params={"kernel": now},
        previous={"kernel": previous},
        direction={"kernel": gradient(previous, before)},
        occupancy=occupancy(previous),
        rewards=jnp.stack([last, before]),
        num_steps=jnp.int32(50),
    )
    after, metrics = jax.jit(agent.step)(state, hparams)
    np.testing.assert_allclose(metrics["utility/weight"], 1.0, atol=0.01)
    moved = np.abs(occupancy(now) - occupancy(previous)).max()
    np.testing.assert_allclose(after.occupancy, occupancy(now), atol=0.15 * moved)
    np.testing.assert_allclose(after.rewards[1], last)
    exact = gradient(now, last)
    changed = np.abs(exact - gradient(previous, before)).max()
    np.testing.assert_allclose(after.direction["kernel"], exact, atol=0.1 * changed)
    step = (after.params["kernel"] - now) / after.direction["kernel"]
    np.testing.assert_allclose(step, float(step[0, 0]), rtol=1e-3)
    length = np.linalg.norm(after.params["kernel"] - now)
    np.testing.assert_allclose(length, 51.0 ** (-2 / 3), rtol=1e-4)


def test_what_comes_after_an_episode_does_not_count():
    """Episodes of 3 steps in a rollout of 8: three states, weighted by the discount."""
    env = jaxrl.make_env("probe/Termination", num_steps=3)
    agent = utilities.utilities(env, config=utilities.Config(num_envs=8, num_steps=8))
    hparams = agent.hyperparams(gamma=0.5)
    state, metrics = agent.step(agent.init(jax.random.key(0), hparams), hparams)
    np.testing.assert_allclose(state.occupancy.sum(-1), [1.0, 0.5, 0.25], rtol=1e-6)
    weights = np.array([4, 2, 1]) / 7
    np.testing.assert_allclose(metrics["utility/value"], -(weights * np.log(weights + 1e-3)).sum(), rtol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="actions must be discrete"):
        utilities.utilities(jaxrl.make_env("probe/ContinuousPolicy"))
    with pytest.raises(ValueError, match="observations must be integers or vectors"):
        utilities.utilities(jaxrl.make_env("probe/DictObservation"))
    with pytest.raises(ValueError, match="num_envs must be a whole number"):
        utilities.utilities(jaxrl.make_env("probe/Policy"), config=utilities.Config(num_envs=0))
    with pytest.raises(ValueError, match="of must be 'states' or 'pairs'; got of = 'all'"):
        utilities.entropy("all")
