"""Where the parts of a simulated body are in space, for pictures: from MuJoCo's model and a state's coordinates alone.

Neither brax's nor MJX's pipelines are run: the generalized coordinates of a state are given to MuJoCo's kinematics in
C, so nothing compiles and no graphics device is needed (but for `renderer_of`). Lengths are in meters.
"""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrl.envs.adapters import _common


class Part(NamedTuple):
    """One rigid part of a body: its points, each with a ball of `radius` around it, and what lies between them.

    Attributes:
      points: one for a ball, the two ends of a capsule or cylinder, the eight corners of a box, [n, 3].
      radius: of the ball; 0 for a box.
      body: number of the rigid body that it belongs to.
    """

    points: np.ndarray
    radius: float
    body: int


SUITES = ("brax", "mjx")
"""Suites whose states this module understands."""


@functools.lru_cache(maxsize=32)
def parts_of(name: str) -> Callable[[Any], list[Part]]:
    """The function that places the parts of an environment's bodies.

    Args:
      name: `brax/…` or `mjx/…`, without wrappers.

    Returns:
      `(state) -> parts`, for one state of the environment on the host.

    Raises:
      ValueError: the environment is of another suite, or its state has other coordinates than the model.

    Example:
      >>> import types
      >>> place = parts_of("mjx/InvertedPendulum-v5")
      >>> [part.points.shape for part in place(types.SimpleNamespace(qpos=np.array([0.5, 0.0])))]
      [(2, 3), (2, 3), (2, 3)]
    """
    engine, model = _load(name)
    data = engine.MjData(model)

    def place(state: Any) -> list[Part]:
        data.qpos[:] = _coordinates(name, model, state)
        engine.mj_kinematics(model, data)
        parts = []
        for geom in range(model.ngeom):
            points = _points(engine.mjtGeom, engine.mjtGeom(int(model.geom_type[geom])), model.geom_size[geom])
            # Whatever has no alpha is not meant to be seen.
            if points is None or not model.geom_rgba[geom][3]:
                continue
            offsets, radius = points
            rotation = data.geom_xmat[geom].reshape(3, 3)
            parts.append(Part(data.geom_xpos[geom] + offsets @ rotation.T, radius, int(model.geom_bodyid[geom])))
        return parts

    return place


def renderer_of(name: str, width: int, height: int) -> Callable[[Any], np.ndarray]:
    """MuJoCo's own renderer, with light and shadow; it needs OpenGL.

    Args:
      name: `brax/…` or `mjx/…`, without wrappers.
      width: of the pictures, in pixels.
      height: of the pictures, in pixels.

    Returns:
      `(state) -> picture [height, width, 3]`, uint8; the camera follows the first body.

    Raises:
      ValueError: as for `parts_of`, or there is no OpenGL to draw with.
    """
    engine, model = _load(name)
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    try:
        renderer = engine.Renderer(model, height, width)
    except Exception as error:
        raise ValueError(
            "MuJoCo's renderer found no OpenGL without a display. Start the process with MUJOCO_GL=egl, or =osmesa "
            f"where there is no such driver, or draw without it. It said: {error}"
        ) from error
    data, camera = engine.MjData(model), engine.MjvCamera()
    engine.mjv_defaultFreeCamera(model, camera)
    start = parts_of(name)(types.SimpleNamespace(qpos=model.qpos0))
    camera.distance = 2.0 + 1.5 * float(np.ptp(np.concatenate([part.points for part in start]), axis=0).max())

    def draw(state: Any) -> np.ndarray:
        data.qpos[:] = _coordinates(name, model, state)
        engine.mj_forward(model, data)
        camera.lookat[:] = data.xpos[1]
        renderer.update_scene(data, camera)
        return renderer.render()

    return draw


def _load(name: str) -> tuple[Any, Any]:
    """MuJoCo, whose compiled names are unknown to type checkers, and the environment's model."""
    import mujoco

    suite, _, short = name.partition("/")
    if suite not in SUITES:
        raise ValueError(f"Bodies are known of the suites {', '.join(SUITES)}; got {name!r}.")
    if suite == "mjx":
        from jaxrl.envs.mjx import physics, table

        return mujoco, physics._read(table.TASKS[short].xml)
    from brax import envs

    with _common.quiet():
        wrapped: Any = envs.get_environment(short)
    return mujoco, copy.deepcopy(wrapped.sys.mj_model)


def _coordinates(name: str, model: Any, state: Any) -> np.ndarray:
    """Generalized coordinates: a state of MJX has them as `qpos`, one of brax within as `q`."""
    while not hasattr(state, "qpos") and not hasattr(state, "q"):
        state = state.inner
    coordinates = np.asarray(state.qpos if hasattr(state, "qpos") else state.q, np.float64)
    if coordinates.shape != (model.nq,):
        raise ValueError(f"{name}: a state has {model.nq} coordinates; got an array of shape {coordinates.shape}.")
    return coordinates


def _points(kinds: Any, kind: Any, size: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Points in the frame of a geom, and their radius; None for planes and meshes."""
    if kind == kinds.mjGEOM_SPHERE:
        return np.zeros((1, 3)), float(size[0])
    if kind in (kinds.mjGEOM_CAPSULE, kinds.mjGEOM_CYLINDER):
        return np.array([[0.0, 0.0, -size[1]], [0.0, 0.0, size[1]]]), float(size[0])
    if kind in (kinds.mjGEOM_BOX, kinds.mjGEOM_ELLIPSOID):
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
        return signs * size, 0.0
    return None
