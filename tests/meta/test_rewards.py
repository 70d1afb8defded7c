"""Learned rewards where every trajectory can be listed, so that derivatives of what is sampled are exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxrl
from jaxrl import rollout
from jaxrl.meta import rewards
from jaxrl.meta.implicit import conjugate, hypergradient, stationary
from jaxrl.meta.reward_learning import Config, reward_learning
from jaxrl.meta.rewards import Episodes, Reward, differentiable_return, preferences, primary_return

# Two states, two actions, two steps; the second one leads nowhere. An episode in state 0 after action 1 is over.
HORIZON, GAMMA, MOVE = 2, 0.9, np.array([[0.7, 0.2], [0.4, 0.9]])
PAYS = np.array([[0.3, -0.2], [1.0, 0.1]])
LOGITS = np.array([[0.4, -0.3], [0.1, 0.6]])
NUDGE = 0.03
PHI = np.array([[0.5, 0.1], [-0.2, 0.4]])


def trajectories():
    """States [T, J], actions, whether alive, and the probability of their moves."""
    rows = []
    for a, s, b in itertools.product((0, 1), (0, 1), (0, 1)):
        over = a == 1 and s == 0
        if over and b == 1:
            continue  # what comes after the end is one row, not two
        move = MOVE[0, a] if s == 1 else 1.0 - MOVE[0, a]
        rows.append(((0, s), (a, b), (True, not over), move))
    states, actions, alive, moves = (np.array(x) for x in zip(*rows, strict=True))
    states, actions = states.astype(np.int32), actions.astype(np.int32)
    return states.T, actions.T, alive.T, moves


STATES, ACTIONS, ALIVE, MOVES = trajectories()
NUM = len(MOVES)
PAIRS = np.array(list(itertools.product(range(NUM), range(NUM))))


def log_probs(logits):
    return jax.nn.log_softmax(logits)[STATES, ACTIONS]


def chances(logits):
    """Of each trajectory, differentiable by the logits."""
    return MOVES * jnp.exp(jnp.sum(jnp.where(ALIVE, log_probs(logits), 0.0), 0))


def returns_of(reward):
    return jnp.sum(jnp.where(ALIVE, reward[STATES, ACTIONS] * GAMMA ** np.arange(HORIZON)[:, None], 0.0), 0)


def expected(logits, phi):
    """The soft return of r_φ, whose derivatives are exact."""
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)
    return jnp.sum(chances(logits) * returns_of(phi + 0.3 * entropy[:, None]))


def sampled(logits, phi):
    """The mean over all pairs of trajectories, as likely as they are, of what a batch of two would give."""
    weights = jax.lax.stop_gradient(chances(logits))
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)

    def one(pair):
        state, action, alive = (jnp.asarray(x)[:, pair] for x in (STATES, ACTIONS, ALIVE))
        reward = (phi + 0.3 * entropy[:, None])[state, action]
        total = differentiable_return(jax.nn.log_softmax(logits)[state, action], reward, alive, GAMMA)
        return jnp.prod(weights[pair]) * jnp.mean(total)

    return jnp.sum(jax.vmap(one)(jnp.asarray(PAIRS)))


def derivatives(value):
    return lambda logits, phi: (
        value(logits, phi),
        jax.grad(value)(logits, phi),
        jax.hessian(value)(logits, phi),
        jax.jacobian(jax.grad(value), 1)(logits, phi),
    )


def test_derivatives_of_a_sampled_return_are_those_of_its_expectation():
    """Value, gradient, Hessian and cross derivative, with the baseline of the other episode of a pair."""
    given = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(PHI, jnp.float32)
    for got, want in zip(jax.jit(derivatives(sampled))(*given), jax.jit(derivatives(expected))(*given), strict=True):
        assert abs(want).max() > 0.05
        np.testing.assert_allclose(got, want, atol=2e-6)


TABLE = Reward(lambda key: jnp.zeros((2, 2)), lambda phi, batch: phi[batch.obs, batch.action], lambda phi, gamma: gamma)


@struct.dataclass
class Leaves:
    gamma: float = GAMMA
    discount_cost: float = 0.0


def outer(aim):
    """An aim's loss, averaged over all pairs as likely as they are."""

    def loss(logits, phi):
        weights = jax.lax.stop_gradient(chances(logits))

        def one(pair):
            state, action, alive = (jnp.asarray(x)[:, pair] for x in (STATES, ACTIONS, ALIVE))
            pays = jnp.asarray(PAYS, jnp.float32)[state, action]
            batch = rollout.Transition(state, action, pays, ~alive, ~alive, state, alive, (), ())
            log_prob = jax.nn.log_softmax(logits)[state, action]
            return jnp.prod(weights[pair]) * aim.loss(phi, log_prob, Episodes(batch, alive), TABLE, Leaves())

        return jnp.sum(jax.vmap(one)(jnp.asarray(PAIRS)))

    return loss


def inner(logits, phi):
    return -expected(logits, phi) + 0.05 * jnp.sum(jnp.square(logits))


def solved(phi):
    """The inner optimum, by Newton's method."""

    def newton(x, _):
        hessian = jax.hessian(inner)(x, phi).reshape(4, 4)
        return x - jnp.linalg.solve(hessian, jax.grad(inner)(x, phi).ravel()).reshape(2, 2), None

    return jax.lax.scan(newton, jnp.zeros((2, 2)), length=20)[0]


def exact_outer(aim_name, logits, phi):
    chance = chances(logits)
    if aim_name == "primary_return":
        return -jnp.sum(chance * returns_of(jnp.asarray(PAYS)))
    true, own = returns_of(jnp.asarray(PAYS)), returns_of(phi)
    preferred = jax.nn.sigmoid((true[:, None] - true[None]) / 0.5)
    margin = own[:, None] - own[None]
    losses = -preferred * jax.nn.log_sigmoid(margin) - (1 - preferred) * jax.nn.log_sigmoid(-margin)
    return jnp.sum(chance[:, None] * chance[None] * losses)


@pytest.mark.parametrize("aim", [primary_return(), preferences(0.5)], ids=lambda aim: aim.name)
def test_the_outer_gradient_is_that_of_finite_differences_through_a_converged_policy(aim):
    """Of preferences too, although the pairs that are compared come from the policy."""
    run = lambda x, phi: hypergradient(outer(aim), stationary(inner), x, phi, conjugate(4))[1]

    @jax.jit
    def all_of(phi):
        around = phi[None] + NUDGE * np.concatenate([np.eye(4), -np.eye(4)]).reshape(8, 2, 2)
        total = jax.lax.map(lambda phi: exact_outer(aim.name, solved(phi), phi), around)  # not vmap: it solves systems
        logits = solved(phi)
        return (total[:4] - total[4:]) / (2 * NUDGE), run(logits, phi), jax.grad(outer(aim), 1)(logits, phi)

    differences, found, alone = (np.asarray(x).reshape(2, 2) for x in all_of(jnp.asarray(PHI, jnp.float32)))
    size = abs(differences).max()
    assert size > 0.01
    np.testing.assert_allclose(found, differences, atol=5e-3 * size)
    assert abs(alone - differences).max() > 0.05 * size, "the part through the policy is not there to be seen"


def test_a_blend_begins_at_the_sum_and_its_parts_are_seen():
    env = jaxrl.make_env("chains/Short")
    zeros = jnp.zeros((3, 2), jnp.int32)
    pays = jnp.arange(6.0).reshape(3, 2)
    batch = rollout.Transition(zeros, zeros + 1, pays, pays > 9, pays > 9, zeros, pays > 9, (), ())
    reward = rewards.blend(env, lambda batch: 10.0 + batch.reward, by_state=True, tabular=True, discount=0.8)
    phi = reward.init(jax.random.key(0))
    np.testing.assert_allclose(reward.of(phi, batch), 10.0 + 2.0 * pays)
    phi["by_state"]["kernel"] = phi["by_state"]["kernel"].at[0].set(jnp.array([9.0, 9.0, 9.0, 1.0, 2.0, -1.0]))
    np.testing.assert_allclose(reward.of(phi, batch), 1.0 + 3.0 * pays)
    np.testing.assert_allclose(reward.discount(phi, 0.99), 0.8, rtol=1e-6)


def test_arguments_are_checked():
    env = jaxrl.make_env("chains/Short")
    aux = lambda batch: batch.reward
    with pytest.raises(ValueError, match="discount must be between"):
        rewards.blend(env, aux, discount=1.0)
    with pytest.raises(ValueError, match="by_state needs discrete"):
        rewards.blend(jaxrl.make_env("probe/ContinuousPolicy"), aux, by_state=True)
    with pytest.raises(ValueError, match="actions must be discrete"):
        rewards.learned(jaxrl.make_env("probe/ContinuousPolicy"))
    with pytest.raises(ValueError, match="temperature must be positive"):
        preferences(0.0)
    with pytest.raises(ValueError, match="num_envs must be even"):
        reward_learning(env, rewards.blend(env, aux), config=Config(num_envs=3))
