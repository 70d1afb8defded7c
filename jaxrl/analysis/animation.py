"""Episodes as pictures that move: recorded by a pure function, drawn on the host, shown in a notebook's page.

`record` plays one episode with a trained state; `animate` draws its states. The pictures are made of few flat shapes by
Pillow, which comes with matplotlib: neither a display, nor OpenGL, nor JavaScript is needed. What is known:

    gymnax's classic control      the mechanism
    grids/…                       the level, its objects by the sign of their reward
    brax/…, mjx/…                 the bodies, seen from the side (tasks on a table: from above)
    observations [H, W] or [H, W, C], MinAtar's and many of bsuite's for instance      cells, a color for each channel
"""

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float
from PIL import Image, ImageDraw

from jaxrl import spaces
from jaxrl.analysis.style import COLORS
from jaxrl.envs import bodies
from jaxrl.types import Action, Algorithm, Env, EnvParams, EnvState, Key, Observation, State


@struct.dataclass
class Recording:
    """One episode, leaves [T, ...]; rows after its end are not `playing`.

    Attributes:
      states: of the environment, before each step.
      obs: what the agent saw in them.
      action: what it did.
      reward: what that paid.
      playing: whether the episode was still going on.
    """

    states: EnvState
    obs: Observation
    action: Action
    reward: Float[Array, " T"]
    playing: Bool[Array, " T"]


def record(algorithm: Algorithm, num_steps: int, sampled: bool = False) -> Callable[[Key, State, EnvParams], Recording]:
    """Plays one episode without learning, and keeps everything.

    Args:
      algorithm: its `act` plays in its `env`.
      num_steps: T, the most steps.
      sampled: whether actions are sampled from the policy; otherwise the policy's mode is taken.

    Returns:
      A pure function `(key, state, env_params) -> Recording`.

    Raises:
      ValueError: the algorithm has no environment, or `num_steps` is not positive.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> hparams = agent.hyperparams()
      >>> state = agent.init(jax.random.key(0), hparams)
      >>> episode = jax.jit(record(agent, 30))(jax.random.key(1), state, hparams.env)
      >>> episode.obs.shape
      (30, 4)
    """
    env = algorithm.env
    if env is None or num_steps < 1:
        raise ValueError(
            "record needs an algorithm with an environment and at least one step; "
            f"got {algorithm.name!r} with env = {env}, num_steps = {num_steps}."
        )

    def run(key: Key, state: State, env_params: EnvParams) -> Recording:
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = env.reset(key_reset, env_params)

        def step(carry: Any, key: Key) -> tuple[Any, Recording]:
            env_state, obs, memory, playing = carry
            key_act, key_env = jax.random.split(key)
            action, memory = algorithm.act(state, memory, obs, key_act if sampled else None)
            after, result = env.step(key_env, env_state, action, env_params)
            row = Recording(env_state, obs, action, result.reward, playing)
            return (after, result.obs, memory, playing & ~result.ended), row

        carry = (env_state, obs, algorithm.initial_memory(), jnp.bool_(True))
        return jax.lax.scan(step, carry, jax.random.split(key_steps, num_steps))[1]

    return run


def trajectory(recording: Recording) -> Recording:
    """A recording without the rows after the end of the episode, on the host.

    Example:
      >>> rows = Recording(np.arange(4), np.arange(4), np.arange(4), np.ones(4), np.array([True, True, False, False]))
      >>> trajectory(rows).obs
      array([0, 1])
    """
    host = jax.device_get(recording)
    num = int(host.playing.sum())
    return jax.tree.map(lambda leaf: leaf[:num], host)


_Renderer = Literal["flat", "mujoco"]


class Shape(NamedTuple):
    """A flat shape in the units of its scene.

    Attributes:
      kind: `line` through points, with round ends; `disc` around one; `polygon`.
      points: [n, 2], y upward.
      color: `#RRGGBB`.
      width: of a line, or the diameter of a disc.
    """

    kind: str
    points: np.ndarray
    color: str
    width: float = 0.0


class Scene(NamedTuple):
    """One picture.

    Attributes:
      shapes: from back to front.
      low: left and lower bound of what is seen.
      high: right and upper bound.
    """

    shapes: list[Shape]
    low: tuple[float, float]
    high: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Animation:
    """Pictures in order; a notebook shows them moving.

    Attributes:
      frames: pictures of one size.
      frames_per_second: how fast they follow.
      title: what they show.
    """

    frames: tuple[Image.Image, ...]
    frames_per_second: float
    title: str

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        return f"Animation({self.title!r}, {len(self.frames)} frames of {width}x{height})"

    def save(self, path: Path | str) -> Path:
        """Writes the animation, as `.gif` or as an animated `.png`, by the ending of the path.

        Raises:
          ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in (".gif", ".png"):
            raise ValueError(f"An animation is saved as .gif or .png; got {path.name!r}.")
        path.write_bytes(self._encoded(path.suffix[1:]))
        return path

    def _repr_html_(self) -> str:
        content = base64.b64encode(self._encoded("png")).decode()
        return f'<img alt="{self.title}" title="{self.title}" src="data:image/png;base64,{content}">'

    def _encoded(self, kind: str) -> bytes:
        content = io.BytesIO()
        first, *rest = (frame.quantize(128) for frame in self.frames)
        duration = 1000 / self.frames_per_second
        first.save(content, format=kind, save_all=True, append_images=rest, duration=duration, loop=0)
        return content.getvalue()


def animate(
    env: Env,
    recording: Recording,
    params: EnvParams | None = None,
    *,
    frames_per_second: float = 25.0,
    max_frames: int = 200,
    width: int = 400,
    renderer: _Renderer = "flat",
) -> Animation:
    """Draws the states of an episode.

    Args:
      env: the environment; wrappers are looked through.
      recording: from `record`.
      params: the environment's parameters, of which some pictures show something; None: the default.
      frames_per_second: of the animation.
      max_frames: of a longer episode every k-th state is drawn, with the least k that keeps to this number.
      width: of the pictures, in pixels.
      renderer: `flat` shapes, or for `brax/…` and `mjx/…` also `mujoco`, which needs OpenGL.

    Returns:
      What a notebook shows as a moving picture.

    Raises:
      ValueError: nothing is known of how the environment looks, a number is not positive, or the renderer does not draw
        this environment or finds no OpenGL.

    Example:
      >>> import jaxrl
      >>> env = jaxrl.make_env("gymnax/Catch-bsuite")
      >>> agent = jaxrl.ppo(env)
      >>> hparams = agent.hyperparams()
      >>> state = agent.init(jax.random.key(0), hparams)
      >>> episode = jax.jit(record(agent, 20))(jax.random.key(1), state, hparams.env)
      >>> len(animate(env, episode).frames)
      9
    """
    if frames_per_second <= 0 or max_frames < 1 or width < 1:
        raise ValueError(
            "animate: frames_per_second, max_frames and width must be positive; "
            f"got {frames_per_second}, {max_frames}, {width}."
        )
    if renderer not in get_args(_Renderer):
        raise ValueError(f"animate: renderer must be one of {get_args(_Renderer)}; got renderer = {renderer!r}.")
    episode = trajectory(recording)
    params = jax.device_get(env.default_params() if params is None else params)
    num_steps = len(episode.reward)
    chosen = range(0, num_steps, math.ceil(num_steps / max_frames))
    rows = [jax.tree.map(lambda leaf: leaf[i], (episode.states, episode.obs)) for i in chosen]
    title = f"{env.name}: return {float(episode.reward.sum()):.4g}"
    if renderer == "mujoco":
        picture = bodies.renderer_of(env.name.partition("|")[0], width, 3 * width // 4)
        frames = tuple(Image.fromarray(picture(_within(state, "qpos", "q"))) for state, _ in rows)
        return Animation(frames, frames_per_second, title)
    draw = scene_of(env)
    scenes = [draw(state, obs, params) for state, obs in rows]
    # All frames have one scale, and each keeps its own middle.
    extent = np.max([np.subtract(scene.high, scene.low) for scene in scenes], axis=0)
    frames = tuple(_painted(scene, extent, width) for scene in scenes)
    return Animation(frames, frames_per_second, title)


def scene_of(env: Env) -> Callable[[EnvState, Observation, EnvParams], Scene]:
    """How one state of an environment looks: `(state, obs, params) -> Scene`, on the host.

    Raises:
      ValueError: nothing is known of how it looks.
    """
    name = env.name.partition("|")[0]
    suite = name.partition("/")[0]
    if name in _MECHANISMS:
        draw, field = _MECHANISMS[name]
        return lambda state, obs, params: draw(_within(state, field), _within(params, "max_steps_in_episode"))
    if suite == "grids":
        return lambda state, obs, params: _grid(_within(state, "exists"), _within(params, "wall"))
    if suite in bodies.SUITES:
        place = bodies.parts_of(name)
        above = any(word in name.lower() for word in ("reacher", "pusher"))
        return lambda state, obs, params: _body(place(_within(state, "qpos", "q")), above)
    space = env.observation_space
    if isinstance(space, spaces.Box) and len(space.shape) in (2, 3) and min(space.shape[:2]) > 1:
        return lambda state, obs, params: _cells(np.asarray(obs, np.float64))
    raise ValueError(
        f"animate does not know how {env.name!r} looks: neither a task of classic control, nor of the suites grids, "
        f"{', '.join(bodies.SUITES)}, nor are its observations pictures [H, W] or [H, W, C]: {space}."
    )


_FAINT, _DARK = "#E6E6E6", "#404040"


def _cartpole(state: Any, params: Any) -> Scene:
    edge, length, foot = float(params.x_threshold), 2.0 * float(params.length), np.array([float(state.x), 0.0])
    tip = foot + length * np.array([math.sin(state.theta), math.cos(state.theta)])
    shapes = [
        _line([(-edge - 0.4, 0.0), (edge + 0.4, 0.0)], _FAINT, 0.03),
        *(_line([(x, -0.1), (x, 0.1)], _DARK, 0.03) for x in (-edge, edge)),
        _box(foot - (0.25, 0.12), foot + (0.25, 0.12), COLORS[0]),
        _line([foot, tip], COLORS[1], 0.1),
    ]
    return Scene(shapes, (-edge - 0.5, -0.4), (edge + 0.5, 1.4))


def _pendulum(state: Any, params: Any) -> Scene:
    del params
    tip = np.array([-math.sin(state.theta), math.cos(state.theta)])
    shapes = [_line([(0.0, 0.0), tip], COLORS[1], 0.16), _disc((0.0, 0.0), _DARK, 0.12)]
    return Scene(shapes, (-1.3, -1.2), (1.3, 1.2))


def _mountain_car(state: Any, params: Any) -> Scene:
    x = np.linspace(float(params.min_position), float(params.max_position), 60)
    height = lambda position: 0.45 * np.sin(3.0 * position) + 0.55
    place, goal = float(state.position), float(params.goal_position)
    shapes = [
        _line(np.stack([x, height(x)], -1), _DARK, 0.02),
        _line([(goal, height(goal)), (goal, height(goal) + 0.15)], COLORS[2], 0.02),
        _disc((place, height(place) + 0.05), COLORS[0], 0.09),
    ]
    return Scene(shapes, (float(x[0]) - 0.1, -0.05), (float(x[-1]) + 0.1, 1.25))


def _acrobot(state: Any, params: Any) -> Scene:
    first, second = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    lengths = float(params.link_length_1), float(params.link_length_2)
    joint = lengths[0] * np.array([math.sin(first), -math.cos(first)])
    tip = joint + lengths[1] * np.array([math.sin(second), -math.cos(second)])
    reach = sum(lengths) + 0.3
    shapes = [
        _line([(-reach, lengths[0]), (reach, lengths[0])], COLORS[2], 0.03),
        _line([(0.0, 0.0), joint], COLORS[0], 0.16),
        _line([joint, tip], COLORS[1], 0.16),
        *(_disc(point, _DARK, 0.12) for point in ((0.0, 0.0), joint)),
    ]
    return Scene(shapes, (-reach, -reach), (reach, reach))


# What is drawn, and a field of the state by which it is found within those of wrappers.
_MECHANISMS: dict[str, tuple[Callable[[Any, Any], Scene], str]] = {
    "gymnax/CartPole-v1": (_cartpole, "theta"),
    "gymnax/Pendulum-v1": (_pendulum, "theta"),
    "gymnax/MountainCar-v0": (_mountain_car, "position"),
    "gymnax/MountainCarContinuous-v0": (_mountain_car, "position"),
    "gymnax/Acrobot-v1": (_acrobot, "joint_angle1"),
}


def _grid(state: Any, level: Any) -> Scene:
    width = round(level.wall.shape[0] ** 0.5)
    side = int(level.side)
    corner = lambda cell: np.array([cell % width, side - 1.0 - cell // width])
    inside = [cell for cell in range(width * width) if cell % width < side and cell // width < side]
    shapes = [_box(corner(cell) + 0.03, corner(cell) + 0.97, _DARK if level.wall[cell] else _FAINT) for cell in inside]
    for cell, reward, exists in zip(level.position, level.reward, state.exists, strict=True):
        if exists:
            shapes.append(_disc(corner(cell) + 0.5, COLORS[2] if reward > 0 else COLORS[1], 0.6))
    shapes.append(_box(corner(state.cell) + 0.2, corner(state.cell) + 0.8, COLORS[0]))
    return Scene(shapes, (0.0, 0.0), (float(side), float(side)))


def _cells(image: np.ndarray) -> Scene:
    height, width = image.shape[:2]
    channels = image.reshape(height, width, -1)
    shapes = [
        _box((x + 0.03, height - y - 0.97), (x + 0.97, height - y - 0.03), _FAINT) for y, x in np.ndindex(height, width)
    ]
    for y, x, channel in np.argwhere(channels > 0):
        shapes.append(_box((x + 0.03, height - y - 0.97), (x + 0.97, height - y - 0.03), COLORS[channel % len(COLORS)]))
    return Scene(shapes, (0.0, 0.0), (float(width), float(height)))


def _body(parts: Sequence[bodies.Part], above: bool) -> Scene:
    """Bodies by parallel rays: from the side and a little from above, or from above."""
    tilt = math.pi / 2 if above else math.radians(12.0)
    up, toward = np.array([0.0, math.sin(tilt), math.cos(tilt)]), np.array([0.0, -math.cos(tilt), math.sin(tilt)])
    flat = lambda points: np.stack([points[..., 0], points @ up], -1)
    everything = np.concatenate([part.points for part in parts])
    middle = 0.5 * (everything.min(0) + everything.max(0)) if above else everything.mean(0)
    reach = float(np.ptp(everything, axis=0).max()) * (0.65 if above else 1.2)
    reach = reach if above else max(1.6, reach)
    shapes = []
    if not above:
        for x in range(math.floor(middle[0] - 2 * reach), math.ceil(middle[0] + 2 * reach) + 1):
            shapes.append(_line(flat(np.array([[x, -2.0, 0.0], [x, 2.0, 0.0]])), _FAINT, 0.03))
        for y in (-2.0, 0.0, 2.0):
            ends = np.array([[middle[0] - 3 * reach, y, 0.0], [middle[0] + 3 * reach, y, 0.0]])
            shapes.append(_line(flat(ends), _FAINT, 0.03))
    for part in sorted(parts, key=lambda part: float((part.points @ toward).mean())):
        color = COLORS[part.body % (len(COLORS) - 1)]
        points = flat(part.points)
        if len(points) == 8:
            shapes.append(Shape("polygon", _hull(points), color))
        elif len(points) == 2:
            shapes.append(_line(points, color, 2.0 * part.radius))
        else:
            shapes.append(_disc(points[0], color, 2.0 * part.radius))
    center = flat(middle[None])[0]
    half = np.array([reach, reach if above else 0.75 * reach])
    low, high = center - half, center + half
    return Scene(shapes, (float(low[0]), float(low[1])), (float(high[0]), float(high[1])))


def _line(points: Any, color: str, width: float) -> Shape:
    return Shape("line", np.asarray(points, np.float64), color, width)


def _disc(center: Any, color: str, width: float) -> Shape:
    return Shape("disc", np.asarray(center, np.float64)[None], color, width)


def _box(low: Any, high: Any, color: str) -> Shape:
    (left, bottom), (right, top) = low, high
    return Shape("polygon", np.array([(left, bottom), (right, bottom), (right, top), (left, top)], np.float64), color)


def _hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of points [n, 2], counterclockwise, by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points))

    def half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for x, y in points:
            while len(chain) > 1:
                (a, b), (c, d) = chain[-2:]
                if (c - a) * (y - b) - (d - b) * (x - a) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def _painted(scene: Scene, extent: np.ndarray, width: int) -> Image.Image:
    """A picture `extent` units wide and high, drawn at twice the size and made smaller for smooth edges."""
    scale = 2.0 * width / extent[0]
    size = (2 * width, max(2, round(scale * extent[1])))
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    middle = 0.5 * (np.array(scene.low) + np.array(scene.high))
    for shape in scene.shapes:
        points = (shape.points - middle) * (scale, -scale) + 0.5 * np.array(size)
        half = max(0.5 * scale * shape.width, 1.0)
        if shape.kind == "polygon":
            pen.polygon([tuple(point) for point in points], fill=shape.color)
            continue
        if shape.kind == "line":
            pen.line([tuple(point) for point in points], fill=shape.color, width=round(2.0 * half), joint="curve")
        for x, y in points if shape.kind == "disc" else points[[0, -1]]:
            pen.ellipse((x - half, y - half, x + half, y + half), fill=shape.color)
    return image.resize((width, size[1] // 2), Image.Resampling.BOX)


def _within(tree: Any, *fields: str) -> Any:
    """The record that has one of the fields: states and parameters of wrappers have the wrapped ones within."""
    while not any(hasattr(tree, field) for field in fields):
        if not hasattr(tree, "inner"):
            raise ValueError(f"None of {', '.join(fields)} is in {type(tree).__name__}: this is no such environment.")
        tree = tree.inner
    return tree
