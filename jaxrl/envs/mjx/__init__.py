"""gymnasium 1.3's MuJoCo v5 tasks on MJX (https://mujoco.readthedocs.io/en/stable/mjx.html).

Models are read from the installed gymnasium; observations, rewards, ends, `info`, resets and default arguments are
those of its `envs/mujoco/*_v5.py`. One step from the same state differs from C MuJoCo 4.0 by float32 rounding: 1e-7
to 3e-6 of the observation without contacts, 3e-6 to 1e-4 with them, 2e-3 where a foot of Ant touches down. In
float64 a substep of Ant agrees to 3e-11. What else differs:

- Humanoid and HumanoidStandup are solved by Newton's method, since MJX has no PGS, which gymnasium's model asks for
  and which stops after 50 iterations: 4e-3 of HumanoidStandup's observation, 6e-4 against C with Newton.
- C MuJoCo resets a simulation whose state or acceleration has become infinite or huge; here it stays.
- `uph_cost_weight` weighs what gymnasium documents; its code leaves it out. Both have 1 by default.

On a CPU with jaxlib 0.10 set `XLA_FLAGS=--xla_cpu_use_fusion_emitters=false`: without it vmapped kinematics of a long
chain run thousands of times slower (64 Pushers: 1 step a second instead of 2200) and compile about twice as long.
jaxlib 0.11 does not need it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, Key, memoize

_NAMES = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)

# Ten iterations by ten of line search give what MuJoCo's 100 by 50 give, and MJX runs all that are allowed.
# "sparse" spares the mass matrix a Cholesky factorization beside that of the solver: jaxlib 0.10 can
# deadlock on a CPU with two batched LAPACK calls at once.
_PHYSICS = {
    "frame_skip": None,
    "solver": "newton",
    "iterations": 10,
    "ls_iterations": 10,
    "jacobian": "sparse",
}


@struct.dataclass
class MjxState:
    """One environment between two actions.

    Attributes:
      qpos: generalized positions.
      qvel: generalized velocities.
      warmstart: accelerations from which the constraint solver starts.
      tracked: where the body was of whose speed the reward is made, as of the last evaluation of the dynamics (None
        where no reward needs it).
      num_steps: actions so far.
    """

    qpos: Float[Array, " nq"]
    qvel: Float[Array, " nv"]
    warmstart: Float[Array, " nv"]
    tracked: Float[Array, " xy"] | None
    num_steps: Int[Array, ""]


def names() -> tuple[str, ...]:
    """The eleven tasks, by gymnasium's ids."""
    return _NAMES


@memoize
def make(name: str, **options: Any) -> Env:
    """Makes one task; its numbers are `MjxParams`, and what follows is structure.

    Args:
      name: gymnasium's id, `Hopper-v5` for instance.
      **options: gymnasium's structural arguments of the task by their names
        (`exclude_current_positions_from_observation`, `terminate_when_unhealthy`, `include_…_in_observation`,
        `main_body`), and of the physics `frame_skip`, `solver` ("newton" or "cg"), `iterations`, `ls_iterations`
        and `jacobian` ("sparse" or "dense").

    Returns:
      The environment. Actions are not clipped: the model limits the force, and the reward charges for the action
      as given, as in gymnasium.

    Raises:
      ValueError: the task is unknown, does not have an option, or an option's value is not allowed.

    Example:
      >>> make("Reacher-v5").max_episode_steps
      50
    """
    if name not in _NAMES:
        raise ValueError(f"mjx has no task {name!r}. It has: {', '.join(_NAMES)}.")
    from jaxrl.envs.mjx import physics, table, tasks

    task = table.TASKS[name]
    chosen = _choose(name, task.options, options)
    structure = {option: chosen.pop(option) for option in task.options}
    frame_skip = chosen.pop("frame_skip") or task.frame_skip
    engine = physics.load(task.xml, frame_skip, **chosen, contact_forces=task.contact_forces)
    start = np.asarray(engine.model.qpos0, np.float32)
    scene = tasks.Scene(engine.model, engine.dt, start, np.zeros(engine.model.nv, np.float32))

    def default_params() -> Any:
        return physics.MjxParams(
            max_episode_steps=jnp.asarray(task.max_episode_steps, jnp.int32),
            gravity=jnp.asarray(engine.model.opt.gravity, jnp.float32),
            mass_scale=jnp.asarray(1.0, jnp.float32),
            friction_scale=jnp.asarray(1.0, jnp.float32),
            gear_scale=jnp.asarray(1.0, jnp.float32),
            task={key: jnp.asarray(value, jnp.float32) for key, value in task.numbers.items()},
        )

    def look(data: Any, params: Any) -> tuple[Array | None, Array]:
        tracked = None if task.track is None else task.track(data, scene, structure).astype(float)
        return tracked, task.observe(data, scene, params.task, structure).astype(jnp.float32)

    def reset(key: Key, params: Any) -> tuple[MjxState, Array]:
        qpos, qvel = (leaf.astype(float) for leaf in task.reset(key, scene, params.task))
        tracked, obs = look(engine.derive(params, qpos, qvel, task.full_reset), params)
        return MjxState(qpos, qvel, jnp.zeros_like(qvel), tracked, jnp.zeros((), jnp.int32)), obs

    def step(key: Key, state: MjxState, action: Array, params: Any) -> tuple[MjxState, EnvStep]:
        data = engine.advance(params, state.qpos, state.qvel, state.warmstart, action)
        tracked, obs = look(data, params)
        num_steps = state.num_steps + 1
        reward, terminated, info = task.judge(data, state.tracked, action, scene, params.task, structure)
        after = MjxState(data.qpos, data.qvel, data.qacc_warmstart, tracked, num_steps)
        return after, EnvStep(
            obs=obs,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(terminated, bool),
            truncated=num_steps >= params.max_episode_steps,
            info=trees.as_arrays(info),
        )

    obs_like = jax.eval_shape(lambda key: reset(key, default_params())[1], jax.random.key(0))
    low, high = engine.model.actuator_ctrlrange.T
    return Env(
        name=f"mjx/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(-math.inf, math.inf, obs_like.shape),
        action_space=spaces.box(low, high, low.shape),
        max_episode_steps=task.max_episode_steps,
    )


def _choose(name: str, of_task: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a task with those given, checked."""
    known = _PHYSICS | dict(of_task)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"mjx/{name} does not take {', '.join(unknown)}; its options are {', '.join(known)}. Numbers such as "
            "reward weights are leaves of the parameters: env.default_params().task."
        )
    for option in ("frame_skip", "iterations", "ls_iterations"):
        value = given.get(option)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"mjx/{name}: {option} must be a positive integer or None; got {value!r}.")
    for option, default in of_task.items():
        value = given.get(option, default)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"mjx/{name}: {option} must be True or False; got {value!r}.")
    for option, allowed in (("solver", ("newton", "cg")), ("jacobian", ("sparse", "dense"))):
        if given.get(option, allowed[0]) not in allowed:
            raise ValueError(f"mjx/{name}: {option} must be one of {allowed}; got {given[option]!r}.")
    return known | given
