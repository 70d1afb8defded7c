"""What several adapters share: silence at import, fixed types, a step counter, parameters of MuJoCo models."""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import spaces
from jaxrl.ops import trees


@struct.dataclass
class CountedState:
    """A suite's state with the number of steps that the episode has taken.

    Attributes:
      inner: the suite's own state.
      num_steps: steps since `reset`, int32.
    """

    inner: Any
    num_steps: Int[Array, ""]


@struct.dataclass
class TimeLimit:
    """Parameters of a suite whose only number that may vary is the time limit.

    Attributes:
      max_episode_steps: steps until truncation.
    """

    max_episode_steps: Int[Array, ""]


@struct.dataclass
class PhysicsParams:
    """Physics and time limit; scales multiply what the model's file says, 1 leaves it unchanged.

    Attributes:
      max_episode_steps: steps until truncation.
      gravity_scale: of the gravitational acceleration.
      mass_scale: of mass and inertia of every body (brax's spring and positional pipelines take the mass at
        `reset` and damp its effect by the model's `spring_mass_scale`).
      friction_scale: of the friction of every geometry.
      gear_scale: of the force of every actuator.
    """

    max_episode_steps: Int[Array, ""]
    gravity_scale: Float[Array, ""]
    mass_scale: Float[Array, ""]
    friction_scale: Float[Array, ""]
    gear_scale: Float[Array, ""]


def default_physics(max_episode_steps: int) -> PhysicsParams:
    """The model as its file says, under a time limit."""
    return PhysicsParams(jnp.int32(max_episode_steps), *(jnp.ones(()) for _ in range(4)))


def scaled_fields(model: Any, params: PhysicsParams) -> dict[str, Array]:
    """The fields of an MJX model that `params` changes, by dotted path, for `tree_replace`."""
    mass = params.mass_scale
    return {
        "opt.gravity": model.opt.gravity * params.gravity_scale,
        "body_mass": model.body_mass * mass,
        "body_subtreemass": model.body_subtreemass * mass,
        "body_inertia": model.body_inertia * mass,
        "body_invweight0": model.body_invweight0 / mass,
        "dof_invweight0": model.dof_invweight0 / mass,
        "geom_friction": model.geom_friction * params.friction_scale,
        "actuator_gear": model.actuator_gear * params.gear_scale,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows what a third-party package prints or warns of while it is imported or constructed.

    MuJoCo would also write its warnings into a file in the working directory.
    """
    mujoco = sys.modules.get("mujoco")
    previous = mujoco.get_mju_user_warning() if mujoco else None
    if mujoco:
        mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if mujoco:
            mujoco.set_mju_user_warning(previous)


def load(module: str) -> Any:
    """Imports a module of a suite without noise (by name: the adapters' own files have the suites' names)."""
    with quiet():
        return importlib.import_module(module)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Gives every leaf the dtype of its counterpart, strongly typed.

    Suites often start an episode with other dtypes than they go on with; what `reset` gives counts.

    Args:
      tree: what a step returned.
      like: arrays or `ShapeDtypeStruct`s, as many and in the same order.

    Returns:
      The leaves of `tree` in the structure of `like`.

    Raises:
      ValueError: the numbers of leaves differ.
    """

    def cast(leaf: Any, model: Any) -> Any:
        return leaf if trees.is_key(leaf) else jax.lax.convert_element_type(leaf, model.dtype)

    leaves = jax.tree.leaves(tree)
    structure = jax.tree.structure(like)
    if len(leaves) != structure.num_leaves:
        raise ValueError(f"cast_like: {len(leaves)} leaves do not fit the structure {structure}.")
    return structure.unflatten(map(cast, leaves, structure.flatten_up_to(like)))


def unbounded(like: PyTree) -> spaces.Space:
    """The space of observations without declared bounds; a dict gives a `Dict`, integers their dtype's range.

    Args:
      like: an observation, or its `ShapeDtypeStruct`s: one array or a (nested) dict of arrays.
    """
    if isinstance(like, dict):
        return spaces.Dict(tuple((name, unbounded(leaf)) for name, leaf in like.items()))
    if like.dtype == jnp.bool_:
        return spaces.box(0, 1, like.shape, like.dtype)
    if jnp.issubdtype(like.dtype, jnp.integer):
        limits = jnp.iinfo(like.dtype)
        return spaces.box(limits.min, limits.max, like.shape, like.dtype)
    return spaces.box(-jnp.inf, jnp.inf, like.shape, like.dtype)
