"""TRPO and the variants of PPO's step learn, each with the defaults of its name: over 5 seeds.

A probe whose best return is 1 (of some of them in the ordinary tests); CartPole, where 500 is full and a random policy
has about 20, and Pendulum if slow.
"""

import dataclasses

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl import estimators
from jaxrl.algorithms.registry import ALGORITHMS

NUM_SEEDS = 5
NAMES = ["trpo", *(name for name, entry in ALGORITHMS.items() if entry.base == "ppo")]
QUICK = ("trpo", "a2c", "impala", "vmpo")
"""One of each kind of part: a natural gradient, a plain one, lagging actors, trained multipliers."""


def learned(name, env, total_steps, config, broken=False, **hparams):
    """Mean greedy return of each seed; if broken, of what makes the actions likely that were worse than expected."""
    entry, parts = ALGORITHMS[name], {}
    if broken:
        whole = entry.components.get("estimator", estimators.gae())

        def estimate(params, inputs):
            advantage, target = whole.estimate(params, inputs)
            return -advantage, target

        parts["estimator"] = whole._replace(estimate=estimate)
    agent = entry.factory(jaxrl.make_env(env), config=dataclasses.replace(entry.default_config, **config), **parts)
    num_steps = total_steps // agent.env_steps
    if hasattr(agent.hyperparams(), "horizon"):
        hparams["horizon"] = float(num_steps * agent.env_steps)
    hparams = agent.hyperparams(**hparams)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, _ = jax.jit(jax.vmap(jaxrl.train(agent, num_steps), (0, None)))(keys, hparams)
    play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 32), (0, 0, None)))
    return np.asarray(play(jax.random.split(jax.random.key(1), NUM_SEEDS), states, hparams.env).mean_return)


def on_probe(name, broken=False):
    small = {"num_envs": 16, "num_steps": 16, "network": jaxrl.networks.NetworkConfig(hidden=(16,))}
    # Two whose step is a distance of its own kind.
    rate = {"learning_rate": 1e-2} if name not in ("trpo", "n_pg_igt") else {}
    return learned(name, "probe/Credit", 16 * 16 * 60, small, broken, **rate)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_probe(name):
    """A random policy has 0 on average; credit must cross two steps."""
    assert (on_probe(name) >= 0.95).all()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_broken_version_fails_the_probe(name):
    got = on_probe(name, broken=True)
    print(name, np.round(got, 2))
    assert np.median(got) <= 0.0, got


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "subpo"])
def test_cartpole(name):
    """Not subpo, whose defaults (γ = 1, no entropy) are for short tasks: tests/envs/test_coverage.py."""
    got = learned(name, "gymnax/CartPole-v1", 500_000, {})
    print(name, np.round(got, 1))
    assert np.median(got) >= 400, got
    assert got.min() >= 200, got


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("line_search", [True, False])
def test_trpo_and_natural_gradient_swing_up_a_pendulum(line_search):
    """A random policy has about -1,200, gymnax's own agent -130."""
    config = {"normalize_observations": True, "normalize_rewards": True, "line_search": line_search}
    got = learned("trpo", "gymnax/Pendulum-v1", 500_000, config)
    print(np.round(got, 1))
    assert np.median(got) >= -250, got
