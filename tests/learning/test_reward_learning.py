"""Rewards by implicit gradients: a blend undoes a misleading one, and comparisons alone teach a way to the goal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.envs import grids
from jaxrl.meta import rewards
from jaxrl.meta.reward_learning import Config, reward_learning

SIDE, STEPS = 4, 16
NUM_CELLS, NUM_SEEDS, NUM_ITERATIONS = SIDE * SIDE, 5, 150


def task():
    """A grid whose goal, in the far corner, pays 1."""
    env = grids.make("Sparse", side=(SIDE, SIDE), steps=(STEPS, STEPS), num_objects=(1, 1), objects=((1.0, 1.0, 0.0),))
    return env, env.default_params().replace(start=jnp.int32(0), position=jnp.array([NUM_CELLS - 1], jnp.int32))


def train(agent, **changes):
    """States, and primary return of the last iterations, of all seeds."""
    hparams = agent.hyperparams(gamma=0.95, learning_rate=0.1, entropy_coef=0.05, decay=0.001, **changes)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, NUM_ITERATIONS), (0, None)))(keys, hparams)
    return states, np.asarray(metrics["episode/return_sum"] / metrics["episode/count"])[:, -10:].mean(-1)


def final_returns(solver):
    """Primary return of the last iterations and weights, of all seeds."""
    env, level = task()
    reward = rewards.blend(env, lambda batch: 0.3 * (batch.next_obs % NUM_CELLS == 2), discount=0.95)
    config = Config(num_envs=32, num_steps=STEPS, num_updates=4, solver=solver, tabular=True)
    states, returns = train(reward_learning(env, reward, config=config), env=level, meta_learning_rate=0.1)
    return returns, np.asarray(states.meta["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("solver, learns", [("neumann", True), ("none", False)])
def test_implicit_gradients_undo_a_misleading_reward(solver, learns):
    """Without the part through the policy the weights never move, and the policy stays where the decoy pays."""
    returns, weights = final_returns(solver)
    print(solver, returns, weights.round(2).tolist())
    assert (np.median(returns) > 0.9) if learns else (np.max(returns) < 0.1)
    if learns:
        assert np.median(weights[:, 1] - weights[:, 2]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, rate, learns",
    [("neumann", 0.02, True), ("none", 0.1, True), ("conjugate", 0.1, False), ("none", 0.0, False)],
)
def test_preferences_teach_a_reward_that_leads_to_the_goal(solver, rate, learns):
    """The policy sees a reward that only comparisons of its own episodes have made; without them it stays random."""
    env, level = task()
    config = Config(num_envs=64, num_steps=STEPS, num_updates=4, solver=solver, tabular=True)
    agent = reward_learning(env, rewards.learned(env, tabular=True), rewards.preferences(0.1), config)
    _, returns = train(agent, env=level, meta_learning_rate=rate)
    print(solver, rate, returns)
    assert (np.min(returns) > 0.9) if learns else (np.max(returns) < 0.1)
