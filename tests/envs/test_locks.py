"""Combination locks: laws, who gets what, and what an observation tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from envs import laws

import jaxrl
from jaxrl.envs import locks

HORIZON = 5


def played(env, params, wrong_at, num=400):
    """Returns of episodes of right actions but at one time, none if -1; states and observations after each step."""
    discrete = env.name.endswith("Discrete")

    def episode(key):
        def step(carry, key):
            state, _ = carry
            action = locks.right_action(params, state)
            action = jnp.where(state.time == wrong_at, (action + 1) % 10, action)
            after, told = env.step(key, state, action if discrete else jax.nn.one_hot(action, 10), params)
            return (after, told.obs), (told.reward, told.terminated, after, told.obs)

        key_reset, key_steps = jax.random.split(key)
        return jax.lax.scan(step, env.reset(key_reset, params), jax.random.split(key_steps, HORIZON))[1]

    return jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), num))


@pytest.mark.parametrize("name", locks.names())
def test_laws(name):
    env = locks.make(name, 3)
    laws.check_all(env, laws.trace(env, 5), deterministic=False)


@pytest.mark.parametrize("name", locks.names())
def test_only_the_whole_code_pays(name):
    env = jaxrl.make_env(f"locks/{name}", horizon=HORIZON)
    params = locks.levels(name, HORIZON)(jax.random.key(5)).replace(temperature=jnp.float32(0.01))
    reward, terminated, state, _ = played(env, params, wrong_at=-1)
    assert (reward[:, :-1] == 0).all()
    assert (reward[:, -1] == 1).all()
    assert terminated[:, -1].all()
    assert not terminated[:, :-1].any()
    assert set(np.unique(state.state)) == {0, 1}
    for wrong in range(HORIZON):
        reward, _, state, _ = played(env, params, wrong_at=wrong)
        assert (reward[:, :-1] == 0).all()
        assert (state.state[:, wrong:] == 2).all()
        end = np.round(np.asarray(reward[:, -1]), 3)
        assert set(np.unique(end)) == {0.0, np.float32(0.1)}
        # Four deviations of a share of 400 draws.
        assert abs(np.mean(end > 0) - 0.5) < 0.1


def test_the_first_state_and_switches_are_even():
    env = locks.make("Discrete", HORIZON)
    state, _ = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(1), 400), env.default_params())
    assert abs(np.mean(state.state) - 0.5) < 0.1
    _, _, state, _ = played(env, env.default_params(), wrong_at=-1)
    switched = np.diff(np.asarray(state.state)[:, :-1]) != 0
    assert abs(np.mean(switched) - 0.5) < 0.05
    _, _, state, _ = played(env, env.default_params().replace(switch=jnp.float32(0.0)), wrong_at=-1)
    assert (np.diff(np.asarray(state.state)) == 0).all()


def test_an_observation_is_the_rotated_indicators():
    env = locks.make("Discrete", HORIZON)
    _, _, state, obs = played(env, env.default_params(), wrong_at=2)
    indicators = np.asarray(obs) @ scipy.linalg.hadamard(16) / 16
    expected = np.zeros((400, HORIZON, 16))
    np.put_along_axis(expected, np.asarray(state.state)[..., None], 1.0, -1)
    np.put_along_axis(expected, 3 + np.asarray(state.time)[..., None], 1.0, -1)
    error = indicators - expected
    np.testing.assert_allclose(error[..., : HORIZON + 3].std(), 0.1, rtol=0.03)
    np.testing.assert_allclose(error[..., HORIZON + 3 :], 0.0, atol=1e-5)


def test_levels_draw_codes():
    codes = jax.vmap(locks.levels("Discrete", 4, 3))(jax.random.split(jax.random.key(0), 300)).code
    assert codes.shape == (300, 2, 4)
    assert [abs(np.mean(codes == i) - 1 / 3) < 0.06 for i in range(3)] == [True] * 3
    env = jaxrl.make_env("locks/Discrete", horizon=5)
    with pytest.raises(ValueError, match=r"shape \(2, horizon\) = \(2, 5\); got \(2, 4\)"):
        env.reset(jax.random.key(0), locks.levels("Discrete", 4)(jax.random.key(0)))
    with pytest.raises(ValueError, match="horizon must be"):
        jaxrl.make_env("locks/Discrete", horizon=0)
