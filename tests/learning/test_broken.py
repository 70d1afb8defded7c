"""Each learns its probe in 5 seeds, and does not with the sign of one rate turned: what learning tests ask can fail.

The variants of PPO and TRPO are in test_variants.py, control from replay in test_off_policy.py, test_mrq.py and
test_cqn.py, stream-x in test_streaming.py (without the bound of its steps).
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import avg, bpg, harpg, mac, ppo, props, reppo, stream_td
from jaxrl.envs import continuing
from jaxrl.networks import NetworkConfig
from jaxrl.networks.critics import CriticConfig
from jaxrl.networks.streaming import StreamingConfig

pytestmark = pytest.mark.slow
NUM_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """An algorithm, its task, the rate that is turned, and the least return of what has learned."""

    factory: Any
    env: Any
    config: Any
    num_steps: int
    rate: str
    least: float
    hparams: tuple = ()


def _head(probe, num_steps, least, **network):
    sizes = {"num_envs": 16, "num_steps": 16, "num_epochs": 4, "num_minibatches": 4}
    config = ppo.Config(**sizes, network=NetworkConfig(hidden=(16,), **network))
    make = lambda env, config: ppo.ppo(env, config=config)
    rates = (("learning_rate", 3e-3), ("value_coef", 1.0), ("horizon", float(256 * num_steps)))
    return Case(make, jaxrl.make_env(f"probe/{probe}"), config, num_steps, "learning_rate", least, rates)


CASES = {
    "reppo": Case(
        reppo.reppo,
        jaxrl.make_env("probe/ContinuousObservation"),
        reppo.Config(
            num_envs=16,
            num_steps=16,
            num_minibatches=4,
            num_bins=51,
            normalize_observations=False,
            network=CriticConfig(actor_hidden=(32,), features=(32,), head_hidden=(32,)),
        ),
        60,
        "learning_rate",
        -0.02,
        (("learning_rate", 3e-3), ("value_min", -2.5), ("value_max", 0.5), ("target_entropy", -2.0)),
    ),
    "avg": Case(
        avg.avg,
        jaxrl.make_env("probe/ContinuousObservation"),
        avg.Config(
            num_steps=500,
            normalize_observations=False,
            network=StreamingConfig((32, 32), initializer="orthogonal", layer_norm=False, unit_features=True),
        ),
        20,
        "policy_learning_rate",
        -0.02,
        (("policy_learning_rate", 1e-3), ("critic_learning_rate", 3e-3), ("entropy_coef", 0.02)),
    ),
    # It pays 1 at the end of the line only; a uniform policy has 0.37 of the best, which is below 1 itself.
    "mac": Case(
        lambda env, config: mac.mac(env, config=config),
        continuing.line(3),
        mac.Config(num_steps=200, network=NetworkConfig(hidden=())),
        20,
        "policy_rate",
        0.5,
    ),
    "bpg": Case(
        bpg.bpg, jaxrl.make_env("probe/Policy"), bpg.Config(num_envs=16, num_steps=1), 60, "learning_rate", 0.99
    ),
    "props": Case(
        lambda env, config: props.props(env, config=config),
        jaxrl.make_env("probe/Credit"),
        props.Config(
            num_envs=16,
            num_steps=16,
            num_behavior_updates=4,
            num_behavior_minibatches=2,
            network=NetworkConfig(hidden=(16,)),
        ),
        40,
        "learning_rate",
        0.95,
        (("learning_rate", 1e-2), ("value_coef", 1.0), ("target_kl", 0.1), ("gamma", 0.8)),
    ),
    "harpg": Case(
        lambda env, config: harpg.harpg(env, config=config),
        jaxrl.make_env("probe/Credit"),
        harpg.Config(num_envs=16, num_steps=16, network=NetworkConfig(hidden=(16,))),
        60,
        "step_size",
        0.95,
        (("step_size", 0.1),),
    ),
    "mixture": _head("ContinuousPolicy", 160, -0.02, policy="mixture", num_components=3),
    "deviation of the observation": _head("ContinuousObservation", 160, -0.02, state_std=True),
    "bang-bang": _head("ContinuousObservation", 160, -0.7, policy="bang_bang"),
    "bang-off-bang": _head("ContinuousObservation", 60, -0.12, policy="bang_off_bang"),
    "autoregressive": _head("MultiDiscretePolicy", 60, 1.95, policy="autoregressive"),
}


@pytest.mark.parametrize("broken", [False, True])
def test_predictions_need_the_sign_of_their_rate(broken):
    """Stream TD on a reward of 1 a step, whose value is 5; turned, it goes away from it."""
    network = StreamingConfig(hidden=(16, 16))
    raw = stream_td.Config(num_steps=500, normalize_observations=False, normalize_rewards=False, network=network)
    agent = stream_td.stream_td(jaxrl.make_env("probe/Truncation"), raw)
    hparams = agent.hyperparams(gamma=0.8, learning_rate=0.01)
    if broken:
        hparams = dataclasses.replace(hparams, learning_rate=-hparams.learning_rate)
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    _, metrics = jax.jit(jax.vmap(jaxrl.train(agent, 10), (0, None)))(keys, hparams)
    found = np.asarray(metrics["value/mean"])[:, -1]
    print("stream_td", "broken" if broken else "", np.round(found, 3))
    assert (np.abs(found - 5.0) < 0.3).all() != broken, found


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_learning_needs_the_sign_of_its_rate(name, broken):
    case = CASES[name]
    agent = case.factory(case.env, case.config)
    hparams = agent.hyperparams(**dict(case.hparams))
    if broken:  # `hyperparams` would refuse it
        hparams = dataclasses.replace(hparams, **{case.rate: -getattr(hparams, case.rate)})
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, metrics = jax.jit(jax.vmap(jaxrl.train(agent, case.num_steps), (0, None)))(keys, hparams)
    if name == "mac":
        found = np.asarray(metrics["reward/mean"])[:, -5:].mean(1)
    else:
        play = jax.jit(jax.vmap(jaxrl.evaluate(agent, 64), (0, 0, None)))
        found = np.asarray(play(jax.random.split(jax.random.key(9), NUM_SEEDS), states, hparams.env).mean_return)
    print(name, "broken" if broken else "", np.round(found, 3))
    learned = np.median(found) >= case.least
    assert learned != broken, found
