"""Running moments of one transition at a time, against NumPy's of the whole stream."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.ops import error_scaling, statistics

STEPS, GAMMA = 40, 0.9


def stream(seed=0):
    rng = np.random.default_rng(seed)
    terminated = rng.random(STEPS) < 0.1
    truncated = rng.random(STEPS) < 0.1
    terminated[12], truncated[20] = True, True
    return rng.normal(size=STEPS) + 0.5, terminated, truncated


def test_error_scale():
    reward, terminated, truncated = stream()

    def step(scale, row):
        reward, terminated, truncated = row
        deviation, scale = error_scaling.update_error_scale(
            scale, reward, jnp.float32(GAMMA), terminated, terminated | truncated
        )
        return scale, deviation

    rows = (jnp.float32(reward), jnp.asarray(terminated), jnp.asarray(truncated))
    _, got = jax.jit(lambda scale: jax.lax.scan(step, scale, rows))(error_scaling.init_error_scale())

    squares, total = [], 0.0
    for t in range(STEPS):
        total += reward[t]
        if terminated[t] or truncated[t]:
            squares.append(total**2)
            total = 0.0
        discounts = np.where(terminated[: t + 1], 0.0, GAMMA)
        variance = np.var(reward[: t + 1]) + np.var(discounts) * (np.mean(squares) if squares else 0.0)
        expected = np.sqrt(max(variance, 1e-4)) if squares or variance > 0.01 else 1.0
        np.testing.assert_allclose(got[t], expected, rtol=1e-4, err_msg=str(t))


def test_every_observation_is_counted_once():
    """Statistics over successors and first observations equal those of the observations in the order they came."""
    rng = np.random.default_rng(0)
    ended = rng.random(STEPS) < 0.2
    next_obs, first_obs = rng.normal(size=(2, STEPS, 3)) * 2.0 + 5.0
    start = rng.normal(size=3)
    seen, came = statistics.update_statistics(statistics.init_statistics(jnp.zeros(3)), jnp.float32(start), 0), [start]
    update = jax.jit(statistics.update_with_transition)
    for t in range(STEPS):
        successor, seen = update(seen, jnp.float32(next_obs[t]), jnp.float32(first_obs[t]), jnp.asarray(ended[t]))
        came.append(next_obs[t])
        np.testing.assert_allclose(successor.mean, np.mean(came, axis=0), rtol=1e-5)
        if ended[t]:
            came.append(first_obs[t])
        np.testing.assert_allclose(seen.mean, np.mean(came, axis=0), rtol=1e-5)
        np.testing.assert_allclose(seen.var, np.var(came, axis=0), rtol=1e-4)
        assert int(seen.count) == len(came)
