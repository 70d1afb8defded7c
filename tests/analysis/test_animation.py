"""Episodes are recorded as they were played, and drawn where things are."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxrl
from jaxrl.analysis import animation
from jaxrl.analysis.animation import Recording, animate, record, scene_of, trajectory
from jaxrl.analysis.style import COLORS
from jaxrl.envs import bodies


def agent_of(env, action):
    """An agent that remembers how often it has acted, and always does the same."""
    return jaxrl.Algorithm(
        init=lambda key, hparams: (),
        step=lambda state, hparams: (state, {}),
        act=lambda state, memory, obs, key: (action, memory + 1),
        hyperparams=dict,
        initial_memory=lambda: jnp.int32(0),
        env=env,
    )


def pixels(image, color):
    """Rows and columns of the pixels that have a color."""
    rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    return np.argwhere((np.asarray(image) == rgb).all(-1))


def one(env, **fields):
    """A recording of one state of an environment."""
    state = types.SimpleNamespace(**fields)
    return Recording([state], np.zeros(1), np.zeros(1), np.ones(1), np.array([True]))


def test_an_episode_is_recorded_until_it_ends():
    env = jaxrl.make_env("probe/Credit")
    params = env.default_params()
    episode = record(agent_of(env, jnp.int32(0)), 6)(jax.random.key(0), (), params)
    assert episode.reward.shape == (6,)
    assert episode.playing[0]
    num = int(episode.playing.sum())
    assert 0 < num < 6
    np.testing.assert_array_equal(episode.playing, np.arange(6) < num)
    rows = trajectory(episode)
    assert len(rows.reward) == num
    # The rows are those of stepping by hand.
    state, obs = env.reset(jax.random.split(jax.random.key(0))[0], params)
    np.testing.assert_array_equal(rows.obs[0], obs)
    for name, leaf in zip("abc", jax.tree.leaves(state), strict=False):
        np.testing.assert_array_equal(jax.tree.leaves(rows.states)["abc".index(name)][0], leaf)


def draw(name, state, params=None):
    env = jaxrl.make_env(name)
    params = jax.device_get(env.default_params()) if params is None else params
    scene = scene_of(env)(state, None, params)
    return animation._painted(scene, np.subtract(scene.high, scene.low), 200)


def test_the_pole_leans_to_where_it_falls():
    left, right = (draw("gymnax/CartPole-v1", types.SimpleNamespace(x=0.0, theta=theta)) for theta in (-0.5, 0.5))
    assert pixels(left, COLORS[1])[:, 1].mean() < 95
    assert pixels(right, COLORS[1])[:, 1].mean() > 105
    moved = draw("gymnax/CartPole-v1", types.SimpleNamespace(x=1.0, theta=0.0))
    assert pixels(moved, COLORS[0])[:, 1].mean() == pytest.approx(100 + 1.0 * 200 / 5.8, abs=1)


def test_the_pendulum_is_up_at_zero_and_turns_to_the_left():
    up, left = (draw("gymnax/Pendulum-v1", types.SimpleNamespace(theta=theta)) for theta in (0.0, np.pi / 2))
    middle = up.size[1] / 2
    assert pixels(up, COLORS[1])[:, 0].mean() < middle - 20
    assert pixels(left, COLORS[1])[:, 1].mean() < 80


def test_the_acrobot_hangs_at_zero_and_the_car_is_in_the_valley():
    hanging = draw("gymnax/Acrobot-v1", types.SimpleNamespace(joint_angle1=0.0, joint_angle2=0.0))
    assert pixels(hanging, COLORS[0])[:, 0].mean() > hanging.size[1] / 2
    assert pixels(hanging, COLORS[1])[:, 0].mean() > pixels(hanging, COLORS[0])[:, 0].mean()
    valley, slope = (draw("gymnax/MountainCar-v0", types.SimpleNamespace(position=x)) for x in (-0.52, 0.3))
    assert pixels(valley, COLORS[0])[:, 0].mean() > pixels(slope, COLORS[0])[:, 0].mean() + 10


def test_a_grid_is_drawn_as_the_level_has_it():
    level = types.SimpleNamespace(
        wall=np.array([False, False, True, False]),
        side=np.int32(2),
        position=np.array([1, 3]),
        reward=np.array([1.0, -1.0]),
    )
    picture = draw("grids/Small", types.SimpleNamespace(cell=np.int32(0), exists=np.array([True, False])), level)
    half = 100
    for color, row, column in ((COLORS[0], 0, 0), (COLORS[2], 0, 1), ("#404040", 1, 0)):
        places = pixels(picture, color) // half
        assert len(places)
        assert (places == [row, column]).all()
    # What has been collected is not there.
    assert not len(pixels(picture, COLORS[1]))


def test_pictures_are_drawn_by_channel():
    env = jaxrl.make_env("gymnax/Catch-bsuite")
    image = np.zeros((10, 5), np.float32)
    image[2, 4] = 1.0
    scene = scene_of(env)(None, image, None)
    picture = animation._painted(scene, np.subtract(scene.high, scene.low), 100)
    assert picture.size == (100, 200)
    assert (pixels(picture, COLORS[0]) // 20 == [2, 4]).all()


def test_the_bodies_of_mjx_are_where_mujoco_has_them():
    parts = bodies.parts_of("mjx/HalfCheetah-v5")(types.SimpleNamespace(qpos=np.zeros(9)))
    moved = bodies.parts_of("mjx/HalfCheetah-v5")(types.SimpleNamespace(qpos=np.array([2.0, 0.5, *np.zeros(7)])))
    assert len(parts) == 8
    for part, after in zip(parts, moved, strict=True):
        np.testing.assert_allclose(
            after.points - part.points, np.broadcast_to([2.0, 0.0, 0.5], part.points.shape), atol=1e-9
        )
    with pytest.raises(ValueError, match="9 coordinates"):
        bodies.parts_of("mjx/HalfCheetah-v5")(types.SimpleNamespace(qpos=np.zeros(8)))
    picture = draw("mjx/HalfCheetah-v5", types.SimpleNamespace(qpos=np.zeros(9)), ())
    columns = np.flatnonzero((np.asarray(picture).min(-1) < 120).any(0))
    assert 60 < np.ptp(columns) < 180


def test_a_long_episode_is_thinned_and_a_wrapper_looked_through(tmp_path):
    env = jaxrl.wrappers.time_limit(jaxrl.make_env("gymnax/CartPole-v1"), 50)

    places = np.linspace(-1, 1, 40)

    scenes = [types.SimpleNamespace(inner=types.SimpleNamespace(x=x, theta=0.0)) for x in places]
    params = jax.device_get(env.default_params())
    first = scene_of(env)(scenes[0], None, params)
    assert first.shapes
    frames = tuple(
        animation._painted(scene_of(env)(scene, None, params), np.array([5.8, 1.8]), 60) for scene in scenes[::8]
    )
    moving = animation.Animation(frames, 25.0, "walk")
    assert 'src="data:image/png;base64,' in moving._repr_html_()
    assert repr(moving) == "Animation('walk', 5 frames of {}x{})".format(*frames[0].size)
    for suffix in (".gif", ".png"):
        with Image.open(moving.save(tmp_path / f"walk{suffix}")) as image:
            assert image.n_frames == 5
    with pytest.raises(ValueError, match=r"\.gif or \.png"):
        moving.save(tmp_path / "walk.mp4")


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="does not know how 'probe/Credit' looks"):
        scene_of(jaxrl.make_env("probe/Credit"))
    with pytest.raises(ValueError, match="Bodies are known of the suites brax, mjx"):
        bodies.parts_of("gymnax/CartPole-v1")
    with pytest.raises(ValueError, match="needs an algorithm with an environment"):
        record(agent_of(None, 0), 5)
    with pytest.raises(ValueError, match=r"must be one of \('flat', 'mujoco'\)"):
        animate(jaxrl.make_env("gymnax/CartPole-v1"), one(None), renderer="gl")
    with pytest.raises(ValueError, match="must be positive"):
        animate(jaxrl.make_env("gymnax/CartPole-v1"), one(None), max_frames=0)


def test_the_hull_of_a_cube_is_its_outline():
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5), (0.2, 0.7)])
    assert sorted(map(tuple, animation._hull(square))) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brax/ant", "brax/hopper", "mjx/Reacher-v5"])
def test_bodies_that_move_are_drawn(name):
    env = jaxrl.make_env(name)
    agent = agent_of(env, jnp.zeros(env.action_space.shape))
    with jax.numpy_rank_promotion("allow"):  # brax relies on it
        episode = jax.jit(record(agent, 8))(jax.random.key(0), (), env.default_params())
    moving = animate(env, episode, width=100)
    assert len(moving.frames) == len(trajectory(episode).reward)
    assert np.asarray(moving.frames[0]).std() > 5


RENDERED = """
import types
import numpy as np
from jaxrl.envs.bodies import renderer_of
cheetah = renderer_of("mjx/HalfCheetah-v5", 80, 60)
standing, upside = (cheetah(types.SimpleNamespace(qpos=np.array([3.0, 0, angle, *np.zeros(6)]))) for angle in (0, 2))
print(standing.shape, standing.std() > 5, (standing != upside).any())
"""


@pytest.mark.slow
def test_mujocos_renderer_draws_or_says_what_it_lacks():
    """In a process of its own: MuJoCo chooses its OpenGL when it is imported."""
    command = [sys.executable, "-c", RENDERED]
    drawn = subprocess.run(command, env={**os.environ, "MUJOCO_GL": "egl"}, capture_output=True, text=True, check=False)
    without = subprocess.run(
        command, env={**os.environ, "MUJOCO_GL": "off"}, capture_output=True, text=True, check=False
    )
    assert "MUJOCO_GL=egl" in without.stderr
    if "found no OpenGL" in drawn.stderr or "EGL" in drawn.stderr:
        pytest.skip("no EGL on this machine")
    assert drawn.stdout == "(60, 80, 3) True True\n", drawn.stderr
