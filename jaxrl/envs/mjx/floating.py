"""Ant, Humanoid and HumanoidStandup, whose torso moves freely."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxrl.envs.mjx import tasks
from jaxrl.envs.mjx.tasks import Numbers, Options, Outcome, Scene, Task

_HUMANOID = {
    **tasks.POSITIONS,
    **{f"include_{part}_in_observation": True for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")},
}


def _track_torso(data: Any, scene: Scene, options: Options) -> Array:
    return data.xpos[scene.model.body(options["main_body"]).id, :2]


def _contact_forces(data: Any, numbers: Numbers) -> Array:
    return jnp.clip(data._impl.cfrc_ext, numbers["contact_force_range"][0], numbers["contact_force_range"][1])


def _observe_ant(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    parts = tasks.proprioception(data, options, num_excluded=2)
    if options["include_cfrc_ext_in_observation"]:
        parts.append(_contact_forces(data, numbers)[1:].ravel())
    return jnp.concatenate(parts)


def _walk(data: Any, position: Array, before: Array, scene: Scene, numbers: Numbers) -> tuple[Array, dict[str, Array]]:
    """Forward reward and the free-floating walkers' info."""
    velocity = (position - before) / scene.dt
    forward = numbers["forward_reward_weight"] * velocity[0]
    return forward, {
        "x_position": data.qpos[0],
        "y_position": data.qpos[1],
        "x_velocity": velocity[0],
        "y_velocity": velocity[1],
        "distance_from_origin": jnp.linalg.norm(data.qpos[:2]),
        "reward_forward": forward,
    }


def _judge_ant(data: Any, before: Array, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    low, high = numbers["healthy_z_range"]
    finite = jnp.all(jnp.isfinite(data.qpos)) & jnp.all(jnp.isfinite(data.qvel))
    healthy = finite & (low <= data.qpos[2]) & (data.qpos[2] <= high)
    forward, info = _walk(data, _track_torso(data, scene, options), before, scene, numbers)
    survive, control = healthy * numbers["healthy_reward"], tasks.control_cost(action, numbers)
    contact = numbers["contact_cost_weight"] * jnp.sum(_contact_forces(data, numbers) ** 2)
    info |= {"reward_survive": survive, "reward_ctrl": -control, "reward_contact": -contact}
    return (
        forward + survive - control - contact,
        ~healthy & options["terminate_when_unhealthy"],
        info,
    )


def _track_mass(data: Any, scene: Scene, options: Options) -> Array:
    # a common scale of all masses cancels
    return (scene.model.body_mass @ data.xipos / scene.model.body_mass.sum())[:2]


def _observe_humanoid(data: Any, scene: Scene, numbers: Numbers, options: Options) -> Array:
    parts = tasks.proprioception(data, options, num_excluded=2)
    optional = {
        "cinert": lambda: data._impl.cinert[1:],
        "cvel": lambda: data.cvel[1:],
        "qfrc_actuator": lambda: data.qfrc_actuator[6:],
        "cfrc_ext": lambda: data._impl.cfrc_ext[1:],
    }
    parts += [part().ravel() for name, part in optional.items() if options[f"include_{name}_in_observation"]]
    return jnp.concatenate(parts)


def _impact(data: Any, weight: Array, bounds: Array) -> Array:
    return jnp.clip(weight * jnp.sum(data._impl.cfrc_ext**2), bounds[0], bounds[1])


def _tendons(data: Any) -> dict[str, Array]:
    return {"tendon_length": data.ten_length, "tendon_velocity": data._impl.ten_velocity}


def _judge_humanoid(
    data: Any, before: Array, action: Array, scene: Scene, numbers: Numbers, options: Options
) -> Outcome:
    healthy = tasks.within(data.qpos[2], numbers["healthy_z_range"])
    forward, info = _walk(data, _track_mass(data, scene, options), before, scene, numbers)
    survive, control = healthy * numbers["healthy_reward"], tasks.control_cost(action, numbers)
    contact = _impact(data, numbers["contact_cost_weight"], numbers["contact_cost_range"])
    info |= _tendons(data) | {
        "reward_survive": survive,
        "reward_ctrl": -control,
        "reward_contact": -contact,
    }
    return (
        forward + survive - control - contact,
        ~healthy & options["terminate_when_unhealthy"],
        info,
    )


def _judge_standup(data: Any, before: None, action: Array, scene: Scene, numbers: Numbers, options: Options) -> Outcome:
    up = numbers["uph_cost_weight"] * data.qpos[2] / scene.model.opt.timestep
    control = tasks.control_cost(action, numbers)
    impact = _impact(data, numbers["impact_cost_weight"], numbers["impact_cost_range"])
    info = _tendons(data) | {
        "x_position": data.qpos[0],
        "y_position": data.qpos[1],
        "z_distance_from_origin": data.qpos[2] - scene.qpos[2],
        "reward_linup": up,
        "reward_quadctrl": -control,
        "reward_impact": -impact,
    }
    return up - control - impact + 1.0, False, info


TASKS = {
    "Ant-v5": Task(
        "ant.xml",
        5,
        _observe_ant,
        _judge_ant,
        tasks.reset_normal,
        {
            "forward_reward_weight": 1.0,
            "ctrl_cost_weight": 0.5,
            "contact_cost_weight": 5e-4,
            "healthy_reward": 1.0,
            "healthy_z_range": (0.2, 1.0),
            "contact_force_range": (-1.0, 1.0),
            "reset_noise_scale": 0.1,
        },
        {**tasks.END, **tasks.POSITIONS, "include_cfrc_ext_in_observation": True, "main_body": 1},
        _track_torso,
        contact_forces=True,
    ),
    "Humanoid-v5": Task(
        "humanoid.xml",
        5,
        _observe_humanoid,
        _judge_humanoid,
        tasks.reset_uniform,
        {
            "forward_reward_weight": 1.25,
            "ctrl_cost_weight": 0.1,
            "contact_cost_weight": 5e-7,
            "contact_cost_range": (-math.inf, 10.0),
            "healthy_reward": 5.0,
            "healthy_z_range": (1.0, 2.0),
            "reset_noise_scale": 1e-2,
        },
        {**tasks.END, **_HUMANOID},
        _track_mass,
        contact_forces=True,
    ),
    "HumanoidStandup-v5": Task(
        "humanoidstandup.xml",
        5,
        _observe_humanoid,
        _judge_standup,
        tasks.reset_uniform,
        {
            "uph_cost_weight": 1.0,
            "ctrl_cost_weight": 0.1,
            "impact_cost_weight": 0.5e-6,
            "impact_cost_range": (-math.inf, 10.0),
            "reset_noise_scale": 1e-2,
        },
        _HUMANOID,
        contact_forces=True,
    ),
}
