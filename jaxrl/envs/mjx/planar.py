"""Hopper, Walker2d, HalfCheetah and Swimmer, which move in a plane."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxrl.envs.mjx import tasks
from jaxrl.envs.mjx.tasks import Numbers, Options, Outcome, Scene, Task


def _track(num: int) -> Callable[..., Array]:
    return lambda data, scene, options: data.qpos[:num]


def _observe_runner(num_excluded: int, limit: float | None = None) -> Callable[..., Array]:
    """Positions but the first ones, velocities."""

    def observe(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
        position, velocity = tasks.proprioception(data, options, num_excluded)
        return jnp.concatenate([position, velocity if limit is None else jnp.clip(velocity, -limit, limit)])

    return observe


def _judge_runner(data: Any, before: Array, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    """HalfCheetah and Swimmer: forward speed less control; no end."""
    velocity = (data.qpos[: before.shape[0]] - before) / scene.dt
    forward, control = numbers["forward_reward_weight"] * velocity[0], tasks.control_cost(action, numbers)
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
    healthy = tasks.within(data.qpos[1], numbers["healthy_z_range"]) & tasks.within(
        data.qpos[2], numbers["healthy_angle_range"]
    )
    if "healthy_state_range" in numbers:
        state = jnp.concatenate([data.qpos[2:], data.qvel])
        healthy &= jnp.all(tasks.within(state, numbers["healthy_state_range"]))
    reward, _, info = _judge_runner(data, before, action, scene, numbers, options)
    survive = healthy * numbers["healthy_reward"]
    info |= {"reward_survive": survive, "z_distance_from_origin": data.qpos[1] - scene.qpos[1]}
    return reward + survive, ~healthy & options["terminate_when_unhealthy"], info


def _upright(xml: str, **healthy: tuple[float, float]) -> Task:
    """Hopper and Walker2d, which differ in the ranges in which they are healthy."""
    numbers = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 1e-3,
        "healthy_reward": 1.0,
        **healthy,
        "reset_noise_scale": 5e-3,
    }
    observe, options = _observe_runner(1, limit=10.0), {**tasks.END, **tasks.POSITIONS}
    return Task(xml, 4, observe, _judge_planar, tasks.reset_uniform, numbers, options, _track(1))


TASKS = {
    "Hopper-v5": _upright(
        "hopper.xml",
        healthy_state_range=(-100.0, 100.0),
        healthy_z_range=(0.7, math.inf),
        healthy_angle_range=(-0.2, 0.2),
    ),
    "Walker2d-v5": _upright("walker2d_v5.xml", healthy_z_range=(0.8, 2.0), healthy_angle_range=(-1.0, 1.0)),
    "HalfCheetah-v5": Task(
        "half_cheetah.xml",
        5,
        _observe_runner(1),
        _judge_runner,
        tasks.reset_normal,
        {"forward_reward_weight": 1.0, "ctrl_cost_weight": 0.1, "reset_noise_scale": 0.1},
        tasks.POSITIONS,
        _track(1),
    ),
    "Swimmer-v5": Task(
        "swimmer.xml",
        4,
        _observe_runner(2),
        _judge_runner,
        tasks.reset_uniform,
        {"forward_reward_weight": 1.0, "ctrl_cost_weight": 1e-4, "reset_noise_scale": 0.1},
        tasks.POSITIONS,
        _track(2),
    ),
}
