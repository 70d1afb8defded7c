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
import functools
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

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints two lines where the package warp is missing
    from mujoco import mjx
    from mujoco.mjx._src.math import quat_integrate

_mujoco: Any = mujoco  # its compiled names are unknown to type checkers

# Runge-Kutta 4: the share of a substep at which each stage is evaluated, and the stage's weight.
_STAGES = np.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]])

# Sine of the angle to the vertical below which a capsule has no direction on a plane.
_UPRIGHT = 1e-6

_SOLVERS = {"newton": _mujoco.mjtSolver.mjSOL_NEWTON, "cg": _mujoco.mjtSolver.mjSOL_CG}


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
      derive: `(params, qpos, qvel, full) -> mjx.Data` without control: positions and velocities of bodies, and with
        `full` the forces as well.
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
    model.opt.jacobian = getattr(_mujoco.mjtJacobian, f"mjJAC_{jacobian.upper()}")
    # Kept as NumPy arrays, so that they neither belong to a device nor to a trace in which `make` is called.
    with jax.ensure_compile_time_eval():
        base, blank = jax.tree.map(np.asarray, (mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")))
    runge_kutta = model.opt.integrator == _mujoco.mjtIntegrator.mjINT_RK4

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

    @_allowing_rank_promotion
    def derive(params: MjxParams, qpos: Array, qvel: Array, full: bool) -> Any:
        scaled_model, d = scaled(params), data(qpos, qvel)
        if full:
            d = _dynamics(model, scaled_model, d)
        else:
            d = mjx.com_vel(scaled_model, mjx.com_pos(scaled_model, mjx.kinematics(scaled_model, d)))
        # MJX normalizes quaternions in `qpos`, which reset noise has made longer or shorter; C MuJoCo does not.
        return d.replace(qpos=qpos)

    @_allowing_rank_promotion
    def advance(params: MjxParams, qpos: Array, qvel: Array, warmstart: Array, ctrl: Array) -> Any:
        scaled_model = scaled(params)

        def substep(d: Any, _: None) -> tuple[Any, None]:
            after = (
                _runge_kutta(model, scaled_model, d)
                if runge_kutta
                else mjx.euler(scaled_model, _dynamics(model, scaled_model, d))
            )
            return jax.tree.map(lambda new, old: new.astype(old.dtype), after, d), None

        start = data(qpos, qvel, qacc_warmstart=warmstart, ctrl=ctrl.astype(qvel.dtype))
        end, _ = jax.lax.scan(substep, start, None, length=frame_skip)
        return mjx.rne_postconstraint(scaled_model, end) if contact_forces else end

    return Physics(model, model.opt.timestep * frame_skip, derive, advance)


def _allowing_rank_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """MJX broadcasts vectors to matrices, which callers may have forbidden for their own code."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args)

    return wrapper


def _read(xml: str) -> Any:
    """Reads a model from the installed gymnasium, without importing gymnasium."""
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ValueError("The suite mjx reads its models from the package gymnasium, which is not installed.")
    path = pathlib.Path(spec.origin).parent / "envs" / "mujoco" / "assets" / xml
    # half_cheetah.xml has a deprecated attribute, of which MuJoCo writes to a log file in the working directory.
    warn = _mujoco.get_mju_user_warning()
    _mujoco.set_mju_user_warning(lambda message: None)
    try:
        return _mujoco.MjModel.from_xml_path(str(path))
    finally:
        _mujoco.set_mju_user_warning(warn)


def _dynamics(host: Any, model: Any, d: Any) -> Any:
    """Accelerations and all they are made of: `mjx.forward` without cameras and sensors.

    One thing is set right on the way. C MuJoCo lays the first tangent of a plane-capsule contact
    along the capsule; MJX 3.17 does so only where the capsule leans by more than 30 degrees. A
    pyramidal friction cone depends on its tangents, so Ant's feet would slide otherwise.
    """
    d = mjx.com_pos(model, mjx.kinematics(model, d))
    d = mjx.tendon_armature(model, mjx.crb(model, mjx.tendon(model, d)))
    d = mjx.collision(model, mjx.factor_m(model, d))
    if d._impl.contact.dist.size:
        d = _align(host, d)
    d = mjx.transmission(model, mjx.make_constraint(model, d))
    d = mjx.fwd_acceleration(model, mjx.fwd_actuation(model, mjx.fwd_velocity(model, d)))
    return mjx.solve(model, d) if d._impl.efc_J.size else d.replace(qacc=d.qacc_smooth)


def _align(host: Any, d: Any) -> Any:
    """Turns the tangents of plane-capsule contacts into the capsule's direction."""
    contact = d._impl.contact
    kinds = jnp.asarray(host.geom_type)[contact.geom]
    normal = contact.frame[:, 0]
    axis = d.geom_xmat[contact.geom[:, 1], :, 2]
    along = axis - normal * jnp.sum(normal * axis, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.sum(along**2, axis=-1, keepdims=True))
    along = along / jnp.maximum(length, _UPRIGHT)
    frame = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    pair = jnp.array([_mujoco.mjtGeom.mjGEOM_PLANE, _mujoco.mjtGeom.mjGEOM_CAPSULE], int)
    known = jnp.all(kinds == pair[None], axis=-1) & (length[:, 0] > _UPRIGHT)
    frame = jnp.where(known[:, None, None], frame, contact.frame)
    return d.tree_replace({"_impl.contact.frame": frame})


def _runge_kutta(host: Any, model: Any, start: Any) -> Any:
    """One substep of RK4 on the manifold of positions, as C MuJoCo 4.0 does it.

    With stage times a = (0, ½, ½, 1), weights b = (1, 2, 2, 1)/6, rates r and accelerations v̇ of stage i:

        q_i = q ⊕ a_i h r_{i-1},  v_i = v + a_i h v̇_{i-1},  r_i = dexp⁻¹(a_i h r_{i-1}) v_i
        q' = q ⊕ h Σ b_i r_i,  v' = v + h Σ b_i v̇_i

    `mjx.rungekutta4` takes r_i = v_i, which differs by 1e-7 where a free body spins, hence more where a foot
    touches down; and it compiles the dynamics four times where this does once. Munthe-Kaas, High order Runge-Kutta
    methods on manifolds, Applied Numerical Mathematics 29 (1999).
    """
    timestep = host.opt.timestep

    def stage(carry: tuple[Any, Array, Array, Array], tableau: Array) -> tuple[tuple[Any, Array, Array, Array], None]:
        d, rate, rate_sum, acceleration_sum = carry
        elapsed, weight = tableau[0] * timestep, tableau[1]
        qpos = _integrate(host, start.qpos, rate, elapsed)
        after = _dynamics(host, model, d.replace(qpos=qpos, qvel=start.qvel + elapsed * d.qacc))
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, d)
        rate = _rate(host, elapsed * rate, after.qvel)
        return (after, rate, rate_sum + weight * rate, acceleration_sum + weight * after.qacc), None

    still = jnp.zeros_like(start.qvel)
    carry, _ = jax.lax.scan(stage, (start, still, still, still), jnp.asarray(_STAGES, still.dtype))
    d, _, rate, acceleration = carry
    return d.replace(
        qpos=_integrate(host, start.qpos, rate, timestep),
        qvel=start.qvel + timestep * acceleration,
        qacc_warmstart=d.qacc,
    )


def _rate(host: Any, turned: Array, qvel: Array) -> Array:
    """The change of the displacement `turned` from a substep's start at which the velocity is `qvel`."""
    for v in host.jnt_dofadr[host.jnt_type == _mujoco.mjtJoint.mjJNT_FREE]:
        angle, spin = turned[v + 3 : v + 6], qvel[v + 3 : v + 6]
        bracket = jnp.cross(angle, spin)
        qvel = qvel.at[v + 3 : v + 6].add(bracket / 2 + jnp.cross(angle, bracket) / 12)
    return qvel


def _integrate(host: Any, qpos: Array, qvel: Array, time: float | Array) -> Array:
    """Positions after moving at a constant velocity; the joints are free, hinges or slides."""
    free = host.jnt_type == _mujoco.mjtJoint.mjJNT_FREE
    moved = qpos.at[host.jnt_qposadr[~free]].add(time * qvel[host.jnt_dofadr[~free]])
    for q, v in zip(host.jnt_qposadr[free], host.jnt_dofadr[free], strict=True):
        moved = moved.at[q : q + 3].add(time * qvel[v : v + 3])
        moved = moved.at[q + 3 : q + 7].set(quat_integrate(qpos[q + 3 : q + 7], qvel[v + 3 : v + 6], jnp.asarray(time)))
    return moved
