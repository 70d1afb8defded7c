"""Diagnostics around any algorithm: against NumPy, against the training without them, and for every registered name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import CASES

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import dqn, ppo
from jaxrl.diagnosing import _churn, diagnose
from jaxrl.networks import NetworkConfig
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.testing import plain

NUM_OBSERVATIONS = 6


def value_based(**changes):
    small = {"num_envs": 2, "num_warmup_steps": 8, "capacity": 64, "batch_size": 4, "num_steps": 4}
    network = QNetworkConfig(hidden=(8, 5))
    fields = {field.name for field in dataclasses.fields(dqn.Config)}
    config = {name: value for name, value in small.items() if name in fields}
    return dqn.dqn(jaxrl.make_env("gymnax/CartPole-v1"), config=dqn.Config(**{**config, "network": network, **changes}))


def run(agent, num_steps=3):
    hparams = agent.hyperparams()
    state, collected = jax.jit(agent.init)(jax.random.key(0), hparams), []
    step = jax.jit(agent.step)
    for _ in range(num_steps):
        before, (state, metrics) = state, step(state, hparams)
        collected.append((before, state, metrics))
    return collected


def test_the_training_stays_the_same_bit_for_bit():
    bare, watched = value_based(), diagnose(value_based(), num_observations=NUM_OBSERVATIONS)
    (_, alone, metrics), (_, state, more) = run(bare)[-1], run(watched)[-1]
    same = jax.tree.map(np.array_equal, plain(alone), plain(state.learner))
    assert all(jax.tree.leaves(same))
    assert set(more) - set(metrics) == {"probe/churn", "probe/dormant", "probe/rank"}
    assert all(np.array_equal(metrics[name], more[name], equal_nan=True) for name in metrics)


def test_metrics_are_those_of_numpy():
    """Two layers below the outputs; observations by hand from the state, features by hand from the parameters."""
    agent = diagnose(value_based(), num_observations=NUM_OBSERVATIONS)
    expected_rows = None
    for before, after, metrics in run(agent, 5):
        if expected_rows is None:
            expected_rows = np.tile(np.asarray(before.learner.actor.obs), (3, 1))
        position = int(before.position)
        rows = [(position + i) % NUM_OBSERVATIONS for i in range(2)]
        expected_rows[rows] = np.asarray(after.learner.actor.obs)
        np.testing.assert_array_equal(after.obs, expected_rows)

        def layers(learner):
            x, found = np.asarray(expected_rows, np.float64), []
            layers = jax.tree.leaves(learner.params, is_leaf=lambda node: isinstance(node, dict) and "kernel" in node)
            for i, layer in enumerate(
                sorted(layers, key=lambda layer: [(4, 8), (8, 5), (5, 2)].index(layer["kernel"].shape))
            ):
                x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
                x = np.maximum(x, 0.0) if i < 2 else x
                found.append(x)
            return found

        first, second, _ = layers(after.learner)
        dormant = [np.abs(h).mean(0) <= 0.025 * np.abs(h).mean() for h in (first, second)]
        assert metrics["probe/dormant"] == pytest.approx(np.concatenate(dormant).mean(), abs=1e-6)
        values = np.linalg.svd(second, compute_uv=False)
        assert metrics["probe/rank"] == 1 + np.sum(np.cumsum(values) < 0.99 * values.sum())
        greedy = [layers(learner)[-1].argmax(-1) for learner in (before.learner, after.learner)]
        assert metrics["probe/churn"] == pytest.approx(np.mean(greedy[0] != greedy[1]), abs=1e-6)


def test_churn_of_a_box_is_a_share_of_its_range():
    space = spaces.Box(-2.0, 2.0, (2,))
    before, after = jnp.zeros((3, 2)), jnp.asarray([[1.0, 0.0], [0.0, 0.0], [2.0, -2.0]])
    assert _churn(space, before, after) == pytest.approx(5.0 / 4.0 / 6.0)


def test_churn_of_several_discrete_actions_is_of_any():
    before = jnp.zeros((4, 2), jnp.int32)
    after = before.at[0, 0].set(1).at[1].set(1)
    assert _churn(spaces.MultiDiscrete((2, 2)), before, after) == 0.5


def test_in_a_population_each_member_has_its_own():
    agent = diagnose(value_based(), num_observations=NUM_OBSERVATIONS)
    many = jaxrl.population(agent, 2)
    _, metrics = jax.eval_shape(jaxrl.train(many, 2), jax.random.key(0), many.hyperparams())
    assert metrics["probe/dormant"].shape == (2, 2)


# Why not; what is not here takes all three.
REFUSED = {
    **dict.fromkeys(("ppo-population", "ppo-pbt-population", "reward_learning"), "Wrap the algorithm of one member"),
    **dict.fromkeys(("stream_q-columns", "sqirl"), "remembers between actions is not in state.actor.memory"),
    **dict.fromkeys(("stream_td", "ccn", "ccn-obgd"), "no layer reads another"),  # their policy is fixed
    **dict.fromkeys(("lpg-tabular", "utilities"), "no layer reads another"),
    **dict.fromkeys(
        (f"utilities-{kind}-population" for kind in ("evolved", "regret", "persistent")), "of one member|no layer"
    ),
    "dqn-projections": "members of an ensemble",
}
NEEDS_DATA = ("hnpg-hybrid", "hnpg-recurrent-hybrid")
ORDINARY = ("ppo-discrete", "stream_q", "harpg", "props", "mac")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ORDINARY else pytest.mark.slow)
        for name, case in CASES.items()
        if case.algorithm != "ppo-population"
    ],
)
def test_every_algorithm_carries_what_it_can(name):
    """Or says why not."""
    agent = CASES[name].make()
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            diagnose(agent, num_observations=NUM_OBSERVATIONS)
        return
    watched = diagnose(agent, num_observations=NUM_OBSERVATIONS)
    hparams = agent.hyperparams(**(CASES[name].hparams if name in NEEDS_DATA else {}))
    _, metrics = jax.eval_shape(jaxrl.train(watched, 2), jax.random.key(0), hparams)
    assert {"probe/churn", "probe/dormant", "probe/rank"} <= set(metrics)
    assert all(leaf.shape == (2,) for path, leaf in metrics.items() if path.startswith("probe/"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("chrun",)}, "churn"),
        ({"names": ()}, "a tuple of different ones"),
        ({"names": ("churn", "churn")}, "a tuple of different ones"),
        ({"num_observations": 0}, "whole number from 1"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        diagnose(value_based(), **changes)


def test_a_population_cannot_be_wrapped():
    with pytest.raises(ValueError, match="Wrap the algorithm of one member"):
        diagnose(jaxrl.population(value_based(), 2))


def test_a_linear_policy_has_no_features():
    agent = ppo.ppo(jaxrl.make_env("probe/Credit"), config=ppo.Config(network=NetworkConfig(hidden=())))
    with pytest.raises(ValueError, match="no layer reads another"):
        diagnose(agent, ("dormant",))
    diagnose(agent, ("churn",))
