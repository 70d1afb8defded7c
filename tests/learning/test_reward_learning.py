"""A learned blend of rewards undoes a misleading auxiliary one, which the naive sum follows."""

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


def final_returns(solver):
    """Primary return of the last iterations and weights, of all seeds; 1 is the goal, in the far corner."""
    goal = ((1.0, 1.0, 0.0),)
    env = grids.make("Sparse", side=(SIDE, SIDE), steps=(STEPS, STEPS), num_objects=(1, 1), objects=goal)
    level = env.default_params().replace(start=jnp.int32(0), position=jnp.array([NUM_CELLS - 1], jnp.int32))
    reward = rewards.blend(env, lambda batch: 0.3 * (batch.next_obs % NUM_CELLS == 2), discount=0.95)
    config = Config(num_envs=32, num_steps=STEPS, num_updates=4, solver=solver, tabular=True)
    agent = reward_learning(env, reward, config=config)
    hparams = agent.hyperparams(
        env=level, gamma=0.95, learning_rate=0.1, meta_learning_rate=0.1, entropy_coef=0.05, decay=0.001
    )
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, NUM_ITERATIONS), (0, None)))(keys, hparams)
    curve = np.asarray(metrics["episode/return_sum"] / metrics["episode/count"])
    return curve[:, -10:].mean(-1), np.asarray(states.meta["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("solver, learns", [("neumann", True), ("none", False)])
def test_implicit_gradients_undo_a_misleading_reward(solver, learns):
    """Without the part through the policy the weights never move, and the policy stays where the decoy pays."""
    returns, weights = final_returns(solver)
    print(solver, returns, weights.round(2).tolist())
    assert (np.median(returns) > 0.9) if learns else (np.max(returns) < 0.1)
    if learns:
        assert np.median(weights[:, 1] - weights[:, 2]) > 0.5
