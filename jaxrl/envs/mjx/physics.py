"""A MuJoCo model stepped by MJX the way gymnasium steps it with the C library.

gymnasium's `do_simulation` is `mj_step` `frame_skip` times, then `mj_rnePostConstraint`. `mj_step` leaves body
positions, inertias, contacts and forces as they were at the last evaluation of the dynamics, not at the new
`qpos`: at the fourth Runge-Kutta stage, or before the last Euler step. Rewards and observations that read them lag
likewise, here as there.

Between steps only `qpos`, `qvel` and the solver's warm start are kept; `mjx.Data` (1.5 to 62 kB an environment) is
rebuilt from them, since every other field that these models' dynamics read is a function of the three and of the
control.
"""

import contextlib
import importlib.util
import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

with contextlib.redirect_stdout(
    io.StringIO()
):  # mjx prints two lines where the package warp is missing
    from mujoco import mjx
    from mujoco.mjx._src.math import quat_integrate

# Runge-Kutta 4: the share of a substep at which each stage is evaluated, and the stage's weight.
_STAGES = np.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]])

_SOLVERS = {"newton": mujoco.mjtSolver.mjSOL_NEWTON, "cg": mujoco.mjtSolver.mjSOL_CG}


@struct.dataclass
class MjxParams:
    """What may differ from environment to environment without recompiling.

    Scales multiply the model's own values; 1 is gymnasium's. The model's `*_invweight0`, which set the softness of
    constraints, stay those of the unscaled model, as they do in C MuJoCo until `mj_setConst` is called.

    Attributes:
      max_episode_steps: the time limit.
      gravity: acceleration, m/s², shape [3].
      mass_scale: multiplies the mass and rotational inertia of every body (joint armatures stay).
      friction_scale: multiplies sliding, torsional and rolling friction of every geom.
      gear_scale: multiplies the gear, hence the force, of every actuator.
      task: the numbers of gymnasium's constructor, by gymnasium's names.
    """

    max_episode_steps: Int[Array, ""]
    gravity: Float[Array, " 3"]
    mass_scale: Float[Array, ""]
    friction_scale: Float[Array, ""]
    gear_scale: Float[Array, ""]
    task: dict[str, Array]


class Physics(NamedTuple):
    """A model and the pure functions that advance it.

    Attributes:
      model: the host's model, read only.
      dt: seconds between two actions.
      derive: `(params, qpos, qvel, full) -> mjx.Data` at rest from control: positions and velocities of bodies, and
        with `full` the forces as well.
      advance: `(params, qpos, qvel, warmstart, ctrl) -> mjx.Data` after `frame_skip` substeps.
    """

    model: Any
    dt: float
    derive: Callable[..., Any]
    advance: Callable[..., Any]


def load(
    xml: str,
    frame_skip: int,
    solver: str,
    iterations: int | None,
    ls_iterations: int | None,
    jacobian: str,
    contact_forces: bool,
) -> Physics:
    """Builds the physics of one of gymnasium's models.

    Args:
      xml: file name among gymnasium's MuJoCo assets.
      frame_skip: substeps for each action.
      solver: `newton` or `cg`.
      iterations: most iterations of the constraint solver; None for the model's own.
      ls_iterations: iterations of its line search (MJX runs all of them); None for the model's own.
      jacobian: `sparse` factorizes the mass matrix by MJX's own LDL, `dense` by Cholesky.
      contact_forces: whether `advance` computes `cfrc_ext`.

    Returns:
      The physics.
    """
    model = _read(xml)
    model.opt.solver = _SOLVERS[solver]
    model.opt.iterations = model.opt.iterations if iterations is None else iterations
    model.opt.ls_iterations = model.opt.ls_iterations if ls_iterations is None else ls_iterations
    model.opt.jacobian = getattr(mujoco.mjtJacobian, f"mjJAC_{jacobian.upper()}")
    # Kept as NumPy arrays, so that they neither belong to a device nor to a trace in which `make` is called.
    with jax.ensure_compile_time_eval():
        base, blank = jax.tree.map(
            np.asarray, (mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax"))
        )
    runge_kutta = model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4

    def scaled(params: MjxParams) -> Any:
        changes = {
            "opt.gravity": params.gravity,
            "body_mass": base.body_mass * params.mass_scale,
            "body_inertia": base.body_inertia * params.mass_scale,
            "body_subtreemass": base.body_subtreemass * params.mass_scale,
            "geom_friction": base.geom_friction * params.friction_scale,
            "actuator_gear": base.actuator_gear * params.gear_scale,
        }
        return jax.tree.map(jnp.asarray, base).tree_replace(changes)

    def data(qpos: Array, qvel: Array, **fields: Array) -> Any:
        return jax.tree.map(jnp.asarray, blank).replace(qpos=qpos, qvel=qvel, **fields)

    def derive(params: MjxParams, qpos: Array, qvel: Array, full: bool) -> Any:
        scaled_model, d = scaled(params), data(qpos, qvel)
        if full:
            return mjx.forward(scaled_model, d)
        return mjx.com_vel(scaled_model, mjx.com_pos(scaled_model, mjx.kinematics(scaled_model, d)))

    def advance(params: MjxParams, qpos: Array, qvel: Array, warmstart: Array, ctrl: Array) -> Any:
        scaled_model = scaled(params)

        def substep(d: Any, _: None) -> tuple[Any, None]:
            after = (
                _runge_kutta(model, scaled_model, d) if runge_kutta else mjx.step(scaled_model, d)
            )
            return jax.tree.map(lambda new, old: new.astype(old.dtype), after, d), None

        start = data(qpos, qvel, qacc_warmstart=warmstart, ctrl=ctrl.astype(qvel.dtype))
        end, _ = jax.lax.scan(substep, start, None, length=frame_skip)
        return mjx.rne_postconstraint(scaled_model, end) if contact_forces else end

    return Physics(model, model.opt.timestep * frame_skip, derive, advance)


def _read(xml: str) -> Any:
    """Reads a model from the installed gymnasium, without importing gymnasium."""
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ValueError(
            "The suite mjx reads its models from the package gymnasium, which is not installed."
        )
    path = pathlib.Path(spec.origin).parent / "envs" / "mujoco" / "assets" / xml
    # half_cheetah.xml has a deprecated attribute, of which MuJoCo writes to a log file in the working directory.
    warn = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(warn)


def _runge_kutta(host: Any, model: Any, start: Any) -> Any:
    """One substep of RK4, as `mjx.rungekutta4`, which compiles the dynamics four times where this does once."""
    timestep = host.opt.timestep

    def stage(
        carry: tuple[Any, Array, Array], tableau: Array
    ) -> tuple[tuple[Any, Array, Array], None]:
        d, velocity, acceleration = carry
        elapsed, weight = tableau[0] * timestep, tableau[1]
        qpos = _integrate(host, start.qpos, d.qvel, elapsed)
        at_stage = d.replace(qpos=qpos, qvel=start.qvel + elapsed * d.qacc)
        after = mjx.forward(model, at_stage)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, d)
        return (after, velocity + weight * after.qvel, acceleration + weight * after.qacc), None

    still = jnp.zeros_like(start.qvel)
    (d, velocity, acceleration), _ = jax.lax.scan(
        stage, (start, still, still), jnp.asarray(_STAGES, still.dtype)
    )
    return d.replace(
        qpos=_integrate(host, start.qpos, velocity, timestep),
        qvel=start.qvel + timestep * acceleration,
        qacc_warmstart=d.qacc,
    )


def _integrate(host: Any, qpos: Array, qvel: Array, time: float | Array) -> Array:
    """Positions after moving at a constant velocity; the joints are free, hinges or slides."""
    free = host.jnt_type == mujoco.mjtJoint.mjJNT_FREE
    moved = qpos.at[host.jnt_qposadr[~free]].add(time * qvel[host.jnt_dofadr[~free]])
    for q, v in zip(host.jnt_qposadr[free], host.jnt_dofadr[free], strict=True):
        moved = moved.at[q : q + 3].add(time * qvel[v : v + 3])
        moved = moved.at[q + 3 : q + 7].set(
            quat_integrate(qpos[q + 3 : q + 7], qvel[v + 3 : v + 6], time)
        )
    return moved
