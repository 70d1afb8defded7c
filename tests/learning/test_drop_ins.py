"""Recurrent and convolutional networks are drop-ins: a step of each on-policy name traces."""

import dataclasses

import jax
import pytest

import jaxrl
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.networks import NetworkConfig
from jaxrl.networks.critics import CriticConfig

NAMES = [
    name
    for name, entry in ALGORITHMS.items()
    if isinstance(getattr(entry.default_config, "network", None), NetworkConfig | CriticConfig)
]
SIZES = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "num_behavior_updates": 2, "num_behavior_minibatches": 2}


def traced(name, env, **changes):
    """Shapes of the metrics of one step."""
    config = ALGORITHMS[name].default_config
    sizes = {field: size for field, size in SIZES.items() if getattr(config, field, 1) > 1}
    widths = {"hidden": (8,)}
    if isinstance(config.network, CriticConfig):
        env, widths = "probe/ContinuousObservation", {"actor_hidden": (8,), "features": (8,), "head_hidden": (8,)}
    network = dataclasses.replace(config.network, **widths, **changes)
    agent = jaxrl.make(name, jaxrl.make_env(env), network=network, **sizes)
    step = lambda hparams: agent.step(agent.init(jax.random.key(0), hparams), hparams)
    return jax.eval_shape(step, agent.hyperparams())[1]


def test_the_names_are_those_of_the_docs():
    assert len(NAMES) > 15
    own = {"props", "harpg", "mac", "bpg", "reppo", "n_pg_igt"}
    assert set(NAMES) > own | {"ppo", "trpo", "a2c", "impala", "mdpo", "vmpo", "subpo"}


def of_names(quick):
    """All names; slow those that are the step of others with another loss."""
    marked = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
    return pytest.mark.parametrize("name", marked)


@of_names(quick={"trpo", "a2c", "impala", "ppo_ewma", "props", "harpg", "mac", "bpg", "reppo", "n_pg_igt"})
@pytest.mark.parametrize(
    "memory", ["gru", pytest.param("lstm", marks=pytest.mark.slow), pytest.param("s5", marks=pytest.mark.slow)]
)
def test_memory(name, memory):
    assert traced(name, "probe/Memory", memory=memory, memory_size=4)["episode/count"].shape == ()


@of_names(quick={"ppo", "trpo", "props", "harpg", "mac"})
def test_images(name):
    if name == "reppo":
        pytest.skip("no environment here has images and a Box of actions")
    assert traced(name, "gymnax/Breakout-MinAtar")["episode/count"].shape == ()
