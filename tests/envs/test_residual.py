"""Actions on top of a base policy's: what is executed and shown, and members with bases of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs import laws

from jaxrl import spaces, wrappers
from jaxrl.envs import make_env

NUM_STEPS = 6
swing = wrappers.BasePolicy(lambda params, obs: params["gain"] * obs[2:], lambda: {"gain": jnp.float32(1.5)})
PENDULUM = make_env("gymnax/Pendulum-v1")


def test_laws():
    env = wrappers.residual_action(PENDULUM, swing)
    laws.check_all(env, laws.trace(env, num_steps=4), deterministic=False)


@pytest.fixture(scope="module")
def played():
    """Observations of `(scale, gain, actions) -> [T + 1, 4]`, the first from a reset, one program."""
    env = wrappers.residual_action(PENDULUM, swing)

    def play(scale, gain, actions):
        params = env.default_params().replace(scale=scale, base={"gain": gain})
        state, first = env.reset(jax.random.key(3), params)

        def body(state, action):
            state, step = env.step(jax.random.key(4), state, action, params)
            return state, (step.obs, step.reward)

        _, (obs, reward) = jax.lax.scan(body, state, actions)
        return jnp.concatenate([first[None], obs]), reward

    # Members with bases of their own.
    return jax.jit(jax.vmap(play, (0, 0, None)))


def test_what_is_executed_is_the_sum_clipped_and_mapped_to_the_bounds(played):
    """The wrapped environment, stepped by hand: actions from -2 to 2, some sums beyond the bounds."""
    scales, gains = np.float32([0.5, 0.5, 1e-9, 2.0]), np.float32([1.5, -0.7, 1.5, 1.5])
    actions = jnp.linspace(-1.0, 1.0, NUM_STEPS)[:, None]
    found, rewards = played(scales, gains, actions)
    (begin, advance), params, clipped = map(jax.jit, (PENDULUM.reset, PENDULUM.step)), PENDULUM.default_params(), 0
    for i, (scale, gain) in enumerate(zip(scales, gains, strict=True)):
        state, obs = begin(jax.random.key(3), params)
        for t in range(NUM_STEPS):
            base = np.clip(gain * float(obs[2]) / 2.0, -1.0, 1.0)
            np.testing.assert_allclose(found[i, t], np.append(obs, base), rtol=1e-4, atol=1e-5)
            total = base + scale * float(actions[t, 0])
            clipped += abs(total) > 1
            executed = jnp.float32([2.0 * np.clip(total, -1.0, 1.0)])
            state, step = advance(jax.random.key(4), state, executed, params)
            np.testing.assert_allclose(rewards[i, t], step.reward, rtol=1e-4)
            obs = step.obs
    assert 0 < clipped < 4 * NUM_STEPS


def test_bounds_that_are_not_symmetric():
    """Actions from 0 to 4: a base of 3 is shown as ½; with ¼ more 3.5 is executed, with 1 more the bound."""
    executed = []

    def step(key, state, action, params):
        jax.debug.callback(lambda x: executed.append(float(x[0])), action)
        return PENDULUM.step(key, state, action - 2.0, params)

    shifted = PENDULUM._replace(step=step, action_space=spaces.box(0.0, 4.0, (1,)))
    three = wrappers.BasePolicy(lambda params, obs: jnp.full(1, params), lambda: jnp.float32(3.0))
    env = wrappers.residual_action(shifted, three, scale=0.5)
    state, obs = env.reset(jax.random.key(0), env.default_params())
    assert obs[-1] == 0.5
    params = env.default_params()
    for scale in (0.5, 2.0):
        env.step(jax.random.key(0), state, jnp.float32([0.5]), params.replace(scale=jnp.float32(scale)))
        jax.effects_barrier()
    assert executed == [3.5, 4.0]


@pytest.mark.parametrize(
    "env, scale, message",
    [
        ("gymnax/CartPole-v1", 0.5, "actions must be a Box of floats"),
        ("probe/ContinuousObservation", 0.0, "scale must be positive"),
    ],
)
def test_messages(env, scale, message):
    with pytest.raises(ValueError, match=message):
        wrappers.residual_action(make_env(env), swing, scale)
    images = PENDULUM._replace(observation_space=spaces.box(0.0, 1.0, (2, 2)))
    with pytest.raises(ValueError, match="Apply flatten_observation first"):
        wrappers.residual_action(images, swing)
