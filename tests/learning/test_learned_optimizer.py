"""OPEN as PPO's optimizer: it teaches nothing at first, and evolution makes it teach."""

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl import strategies
from jaxrl.algorithms import ppo
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.networks.update_rules import open_rule


@pytest.mark.slow
def test_from_weights_of_zero_evolution_finds_a_rule_that_learns():
    """On a probe whose best return is 1 and where a random policy has 0; other rates of the search were not tried."""
    config = ppo.Config(num_envs=16, num_steps=16, network=NetworkConfig(hidden=(8,)))
    agent = ppo.ppo(jaxrl.make_env("probe/Credit"), optimizer=open_rule(), config=config)
    search = strategies.open_es(32)
    learner = evolve(agent, search, "optimizer", num_steps=10, num_generations=4, num_held_out=16)
    hparams = learner.hyperparams(strategy=search.hyperparams(sigma=0.3, learning_rate=0.1))
    state, metrics = jax.jit(jaxrl.train(learner, 10))(jax.random.key(0), hparams)
    curve = np.asarray(metrics["held_out/fitness"])
    print(np.round(curve, 2))
    assert curve[-1] > 0.6, curve
    assert sum(value.size for value in state.values.values()) == 1211
