"""The stock that an observation shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

from jaxrl import wrappers
from jaxrl.envs import make_env


def test_the_stock_grows_by_rewards_and_by_the_discount():
    env = wrappers.observe_stock(make_env("probe/Termination"), gamma=0.5, low=-1.0, high=2.0)
    params = env.default_params()
    first = [float(env.reset(key, params)[1]["stock"]) for key in jax.random.split(jax.random.key(0), 8)]
    assert min(first) >= -1.0
    assert max(first) <= 2.0
    assert len(set(first)) == 8
    state, obs = env.reset(jax.random.key(0), params)
    expected = float(obs["stock"])
    for _ in range(3):
        state, result = env.step(jax.random.key(1), state, jnp.int32(0), params)
        expected = (expected + 1.0) / 0.5  # every step pays 1
        np.testing.assert_allclose(result.obs["stock"], expected)
        assert float(result.reward) == 1.0
    assert float(result.obs["observation"][3]) == 1.0


def test_laws_of_observe_stock():
    env = wrappers.observe_stock(make_env("probe/Memory"), gamma=0.9, low=-1.0, high=1.0)
    laws.check_all(env, laws.trace(env), deterministic=False)


def test_a_mask_of_actions_stays_where_agents_look_for_it():
    plain = make_env("probe/ActionMask")
    env = wrappers.observe_stock(plain)
    assert set(env.observation_space.names) == {*plain.observation_space.names, "stock"}


def test_messages_of_observe_stock():
    env = make_env("probe/Policy")
    with pytest.raises(ValueError, match=r"gamma must be above 0 and at most 1.* got gamma = 0\.0"):
        wrappers.observe_stock(env, 0.0)
    with pytest.raises(ValueError, match=r"low and high finite, in this order"):
        wrappers.observe_stock(env, 1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="must not have a stock yet"):
        wrappers.observe_stock(wrappers.observe_stock(env))
