"""A functional of the stock and the return decides how an agent acts: careful after a gain, daring after a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import values, wrappers
from jaxrl.algorithms import dqn
from jaxrl.analysis import finite_mdps
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.ops import trees

NUM_SEEDS = 5
START, GAIN, LOSS, CHOICE, ONE, THREE, END = range(7)
AIM = 3.0


def gamble():
    """Two or nothing by chance; then one for sure, or three with probability .4. What chance gave is not seen."""
    transitions, rewards = np.zeros((7, 2, 7)), np.zeros((7, 2))
    transitions[START, :, [GAIN, LOSS]] = 0.5
    transitions[[GAIN, LOSS], :, CHOICE] = 1.0
    transitions[CHOICE, 0, ONE] = 1.0
    transitions[CHOICE, 1, [THREE, END]] = 0.4, 0.6
    transitions[[ONE, THREE, END], :, END] = 1.0
    rewards[GAIN], rewards[ONE], rewards[THREE] = 2.0, 1.0, 3.0
    return trees.as_arrays(finite_mdps.FiniteMDP(transitions, rewards, np.eye(7)[START], 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "functional, expected",
    [
        # To three there is one missing, or all: of E min(c + G, 0) safety has 0 and -2, the gamble -.6 and -1.8.
        (values.shortfall(), [0, 1]),
        (values.functionals.mean(), [1, 1]),
    ],
)
def test_the_stock_decides(functional, expected):
    env = wrappers.observe_stock(finite_mdps.environment(7, 2, 4), 1.0, -AIM, -AIM)
    config = dqn.Config(
        num_envs=8, num_steps=4, num_updates=4, num_rounds=500, batch_size=64, capacity=4096, num_warmup_steps=64,
        network=QNetworkConfig(hidden=(32, 32)),
    )  # fmt: skip
    agent = dqn.dqn(env, head=values.maximizing(functional, values.quantile(16, kappa=0.1)), config=config)
    params = env.default_params().replace(inner=gamble())
    hparams = agent.hyperparams(
        env=params, gamma=1.0, learning_rate=2e-3, target_period=20, epsilon_end=0.3, horizon=16_000
    )
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, 1), (0, None)))(keys, hparams)
    here = jnp.concatenate([jnp.eye(7)[CHOICE], jnp.eye(4)[2]])
    seen = {"observation": jnp.stack([here] * 2), "stock": jnp.float32([2.0 - AIM, -AIM])}
    act = jax.jit(jax.vmap(jax.vmap(lambda state, obs: agent.act(state, (), obs, None)[0], (None, 0)), (0, None)))
    assert np.asarray(act(states, seen)).tolist() == [expected] * NUM_SEEDS
