"""Reacher, Pusher and the two inverted pendulums."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrl.envs.mjx.tasks import (
    Numbers,
    Options,
    Outcome,
    Scene,
    Task,
    reset_normal,
    reset_uniform,
    uniform,
)
from jaxrl.types import Key

_CANDIDATES = 32


def _reset_reacher(key: Key, scene: Scene, numbers: Numbers) -> tuple[Array, Array]:
    """The target is uniform on a disk, drawn in polar coordinates where gymnasium rejects."""
    key_qpos, key_radius, key_angle, key_qvel = jax.random.split(key, 4)
    radius = 0.2 * jnp.sqrt(jax.random.uniform(key_radius))
    angle = 2 * jnp.pi * jax.random.uniform(key_angle)
    target = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    qpos = uniform(key_qpos, scene.qpos, 0.1).at[-2:].set(target)
    return qpos, uniform(key_qvel, scene.qvel, 0.005).at[-2:].set(0.0)


def _reset_pusher(key: Key, scene: Scene, numbers: Numbers) -> tuple[Array, Array]:
    """The object is the first of 32 candidates off the goal; that all are on it has probability 3e-14."""
    key_object, key_qvel = jax.random.split(key)
    unit = jax.random.uniform(key_object, (_CANDIDATES, 2))
    candidates = jnp.stack([0.3 * unit[:, 0] - 0.3, 0.4 * unit[:, 1] - 0.2], axis=-1)
    first = jnp.argmax(jnp.linalg.norm(candidates, axis=-1) > 0.17)
    qpos = jnp.asarray(scene.qpos).at[-4:].set(jnp.concatenate([candidates[first], jnp.zeros(2)]))
    return qpos, uniform(key_qvel, scene.qvel, 0.005).at[-4:].set(0.0)


def _apart(data: Any, scene: Scene, one: str, other: str) -> Array:
    return data.xpos[scene.model.body(one).id] - data.xpos[scene.model.body(other).id]


def _observe_reacher(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    angles, target = data.qpos[:2], data.qpos[2:]
    apart = _apart(data, scene, "fingertip", "target")[:2]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), target, data.qvel[:2], apart])


def _judge_reacher(data: Any, before: None, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    apart = jnp.linalg.norm(_apart(data, scene, "fingertip", "target"))
    info = {
        "reward_dist": -apart * numbers["reward_dist_weight"],
        "reward_ctrl": -jnp.sum(action**2) * numbers["reward_control_weight"],
    }
    return info["reward_dist"] + info["reward_ctrl"], False, info


def _observe_pusher(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    bodies = [data.xpos[scene.model.body(name).id] for name in ("tips_arm", "object", "goal")]
    return jnp.concatenate([data.qpos[:7], data.qvel[:7], *bodies])


def _judge_pusher(data: Any, before: None, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    near = jnp.linalg.norm(_apart(data, scene, "object", "tips_arm"))
    far = jnp.linalg.norm(_apart(data, scene, "object", "goal"))
    info = {
        "reward_dist": -far * numbers["reward_dist_weight"],
        "reward_ctrl": -jnp.sum(action**2) * numbers["reward_control_weight"],
        "reward_near": -near * numbers["reward_near_weight"],
    }
    return info["reward_dist"] + info["reward_ctrl"] + info["reward_near"], False, info


def _observe_pendulum(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    return jnp.concatenate([data.qpos, data.qvel])


def _judge_pendulum(
    data: Any, before: None, action: Array, scene: Scene, numbers: Numbers, options: Options
) -> Outcome:
    finite = jnp.all(jnp.isfinite(data.qpos)) & jnp.all(jnp.isfinite(data.qvel))
    terminated = ~finite | (jnp.abs(data.qpos[1]) > 0.2)
    survive = 1.0 - terminated
    return survive, terminated, {"reward_survive": survive}


def _observe_double(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    cart, angles = data.qpos[:1], data.qpos[1:]
    clipped = [jnp.clip(data.qvel, -10, 10), jnp.clip(data.qfrc_constraint[:1], -10, 10)]
    return jnp.concatenate([cart, jnp.sin(angles), jnp.cos(angles), *clipped])


def _judge_double(data: Any, before: None, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    x, _, height = data.site_xpos[0]
    terminated = height <= 1
    alive = numbers["healthy_reward"] * ~terminated
    distance = 0.01 * x**2 + (height - 2) ** 2
    velocity = 1e-3 * data.qvel[1] ** 2 + 5e-3 * data.qvel[2] ** 2
    info = {"reward_survive": alive, "distance_penalty": -distance, "velocity_penalty": -velocity}
    return alive - distance - velocity, terminated, info


TASKS = {
    "Reacher-v5": Task(
        "reacher.xml",
        2,
        _observe_reacher,
        _judge_reacher,
        _reset_reacher,
        {"reward_dist_weight": 1.0, "reward_control_weight": 1.0},
        max_episode_steps=50,
    ),
    "Pusher-v5": Task(
        "pusher_v5.xml",
        5,
        _observe_pusher,
        _judge_pusher,
        _reset_pusher,
        {"reward_near_weight": 0.5, "reward_dist_weight": 1.0, "reward_control_weight": 0.1},
        max_episode_steps=100,
    ),
    "InvertedPendulum-v5": Task(
        "inverted_pendulum.xml",
        2,
        _observe_pendulum,
        _judge_pendulum,
        reset_uniform,
        {"reset_noise_scale": 0.01},
    ),
    "InvertedDoublePendulum-v5": Task(
        "inverted_double_pendulum.xml",
        5,
        _observe_double,
        _judge_double,
        reset_normal,
        {"healthy_reward": 10.0, "reset_noise_scale": 0.1},
        full_reset=True,
    ),
}
