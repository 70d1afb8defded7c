"""Hopper, Walker2d, HalfCheetah and Swimmer, which move in a plane."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxrl.envs.mjx.tasks import (
    Numbers,
    Options,
    Outcome,
    Scene,
    Task,
    control_cost,
    reset_normal,
    reset_uniform,
    within,
)

_INFINITY = float("inf")
_POSITIONS = {"exclude_current_positions_from_observation": True}
_END = {"terminate_when_unhealthy": True}


def _track(num: int) -> Callable[..., Array]:
    return lambda data, scene, options: data.qpos[:num]


def _observe_runner(num_excluded: int, limit: float | None = None) -> Callable[..., Array]:
    """Positions but the first ones, velocities."""

    def observe(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
        skip = num_excluded if options["exclude_current_positions_from_observation"] else 0
        velocity = data.qvel if limit is None else jnp.clip(data.qvel, -limit, limit)
        return jnp.concatenate([data.qpos[skip:], velocity])

    return observe


def _judge_runner(data: Any, before: Array, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    """HalfCheetah and Swimmer: forward speed less control; no end."""
    velocity = (data.qpos[: before.shape[0]] - before) / scene.dt
    forward, control = (
        numbers["forward_reward_weight"] * velocity[0],
        control_cost(action, numbers),
    )
    info = {
        "x_position": data.qpos[0],
        "x_velocity": velocity[0],
        "reward_forward": forward,
        "reward_ctrl": -control,
    }
    if before.shape[0] == 2:
        info |= {
            "y_position": data.qpos[1],
            "y_velocity": velocity[1],
            "distance_from_origin": jnp.linalg.norm(data.qpos[:2]),
        }
    return forward - control, False, info


def _judge_planar(data: Any, before: Array, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    """Hopper and Walker2d: forward speed while upright."""
    healthy = within(data.qpos[1], numbers["healthy_z_range"]) & within(data.qpos[2], numbers["healthy_angle_range"])
    if "healthy_state_range" in numbers:
        state = jnp.concatenate([data.qpos[2:], data.qvel])
        healthy &= jnp.all(within(state, numbers["healthy_state_range"]))
    reward, _, info = _judge_runner(data, before, action, scene, numbers, options)
    survive = healthy * numbers["healthy_reward"]
    info |= {"reward_survive": survive, "z_distance_from_origin": data.qpos[1] - scene.qpos[1]}
    return reward + survive, ~healthy & options["terminate_when_unhealthy"], info


TASKS = {
    "Hopper-v5": Task(
        "hopper.xml",
        4,
        _observe_runner(1, limit=10.0),
        _judge_planar,
        reset_uniform,
        {
            "forward_reward_weight": 1.0,
            "ctrl_cost_weight": 1e-3,
            "healthy_reward": 1.0,
            "healthy_state_range": (-100.0, 100.0),
            "healthy_z_range": (0.7, _INFINITY),
            "healthy_angle_range": (-0.2, 0.2),
            "reset_noise_scale": 5e-3,
        },
        _END | _POSITIONS,
        _track(1),
    ),
    "Walker2d-v5": Task(
        "walker2d_v5.xml",
        4,
        _observe_runner(1, limit=10.0),
        _judge_planar,
        reset_uniform,
        {
            "forward_reward_weight": 1.0,
            "ctrl_cost_weight": 1e-3,
            "healthy_reward": 1.0,
            "healthy_z_range": (0.8, 2.0),
            "healthy_angle_range": (-1.0, 1.0),
            "reset_noise_scale": 5e-3,
        },
        _END | _POSITIONS,
        _track(1),
    ),
    "HalfCheetah-v5": Task(
        "half_cheetah.xml",
        5,
        _observe_runner(1),
        _judge_runner,
        reset_normal,
        {"forward_reward_weight": 1.0, "ctrl_cost_weight": 0.1, "reset_noise_scale": 0.1},
        _POSITIONS,
        _track(1),
    ),
    "Swimmer-v5": Task(
        "swimmer.xml",
        4,
        _observe_runner(2),
        _judge_runner,
        reset_uniform,
        {"forward_reward_weight": 1.0, "ctrl_cost_weight": 1e-4, "reset_noise_scale": 0.1},
        _POSITIONS,
        _track(2),
    ),
}
