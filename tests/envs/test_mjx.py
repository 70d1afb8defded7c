"""MJX tasks against gymnasium's own, which C MuJoCo steps in float64."""

import functools
import importlib
import importlib.util
import inspect
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import mjx as suite
from jaxrl.envs.mjx import table, tasks
from jaxrl.ops import trees

QUICK = ("InvertedPendulum-v5", "Reacher-v5")

# Largest |ours - theirs| / (1 + |theirs|) of any entry of obs and info over the steps below; behind each the measured
# one. In float64 the differences of Ant and HalfCheetah are below 1e-10 a substep, so these are float32's, by way of
# stiff contacts, and largest where a foot touches down a stage earlier. HumanoidStandup, lying on many contacts, adds
# that gymnasium's PGS solver stops after 50 iterations, which is not yet the solution (6e-4 against Newton in C).
TOLERANCE = {
    "InvertedPendulum-v5": 1e-6,  # 1e-7
    "Reacher-v5": 1e-6,  # 2e-7
    "InvertedDoublePendulum-v5": 3e-6,  # 5e-7
    "Swimmer-v5": 1e-5,  # 2e-6
    "Hopper-v5": 2e-5,  # 3e-6
    "Pusher-v5": 1e-4,  # 2e-5
    "HalfCheetah-v5": 2e-4,  # 2e-5, and 1e-4 over 60 steps
    "Walker2d-v5": 2e-4,  # 3e-5
    "Humanoid-v5": 2e-3,  # 9e-5, and 4e-4 over 60 steps
    "Ant-v5": 4e-3,  # 3e-5, and 2e-3 over 60 steps
    "HumanoidStandup-v5": 2e-2,  # 4e-3
}
REWARD_TOLERANCE = 5e-5  # at most 1e-5


def check(name: str, worst: dict[str, float], where: str = "") -> None:
    assert worst["reward"] < REWARD_TOLERANCE, f"{name}{where}: {worst}"
    assert max(worst.values()) < TOLERANCE[name], f"{name}{where}: {worst}"


def tasks_of(quick: tuple[str, ...]) -> Any:
    """All tasks, those outside `quick` as slow tests."""
    marks = {name: () if name in quick else (pytest.mark.slow,) for name in suite.names()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


@pytest.fixture(scope="module")
def gymnasium(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """gymnasium, whose MuJoCo part imports imageio for rendering only, in a folder for MuJoCo's log file."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("imageio") is None:
            patch.setitem(sys.modules, "imageio", types.ModuleType("imageio"))
        patch.chdir(tmp_path_factory.mktemp("mujoco"))
        yield importlib.import_module("gymnasium")


@functools.cache
def compiled(name: str) -> tuple[Any, Any]:
    env = suite.make(name)
    return jax.jit(env.reset), jax.jit(env.step)


def tracked(name: str, host: Any, like: Any) -> Any:
    """Where gymnasium reads the position before a step, of whose change the reward is made."""
    data = host.data
    if like is None:
        return None
    if name == "Ant-v5":
        return data.xpos[1, :2]
    if name == "Humanoid-v5":
        return (host.model.body_mass @ data.xipos / host.model.body_mass.sum())[:2]
    return data.qpos[: like.shape[0]]


def copy_state(name: str, host: Any, state: Any) -> Any:
    """Our state with gymnasium's positions and velocities."""
    data = host.data
    fields = (data.qpos, data.qvel, data.qacc_warmstart, tracked(name, host, state.tracked))
    qpos, qvel, warmstart, position = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), fields)
    return state.replace(qpos=qpos, qvel=qvel, warmstart=warmstart, tracked=position)


def deviation(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs)), initial=0.0))


def compare(name: str, reference: Any, step: Any, state: Any, params: Any, num_steps: int) -> dict[str, float]:
    """Plays both; ours takes over gymnasium's state before every second step and goes on alone in between.

    Taking it over each time would not test what our state carries; never doing so would measure chaos.
    """
    host = reference.unwrapped
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, host.model.nu))
    actions = (actions * host.model.actuator_ctrlrange[:, 1]).astype(np.float32)
    worst = dict.fromkeys(("obs", "reward"), 0.0)
    fresh = True
    for index, action in enumerate(actions):
        state = copy_state(name, host, state) if fresh or index % 2 == 0 else state
        obs, reward, terminated, truncated, info = reference.step(action)
        state, ours = step(jax.random.key(0), state, jnp.asarray(action), params)
        assert bool(ours.terminated) == terminated, f"{name}: terminated after step {index}"
        pairs = {"obs": (ours.obs, obs), "reward": (ours.reward, reward)}
        pairs |= {key: (ours.info[key], value) for key, value in info.items() if key in ours.info}
        assert set(info) <= set(ours.info) | {"TimeLimit.truncated"}, f"{name}: info lacks {set(info) - set(ours.info)}"
        for key, pair in pairs.items():
            worst[key] = max(worst.get(key, 0.0), deviation(*pair))
        fresh = terminated or truncated
        if fresh:
            reference.reset(seed=index)
    return worst


@tasks_of(("Reacher-v5",))
def test_steps_like_gymnasium(name: str, gymnasium: Any) -> None:
    reference = gymnasium.make(name, disable_env_checker=True)
    first, _ = reference.reset(seed=0)
    env = suite.make(name)
    reset, step = compiled(name)
    state, obs = reset(jax.random.key(0), env.default_params())
    assert obs.shape == first.shape == env.observation_space.shape
    np.testing.assert_array_equal(env.action_space.low_array, reference.action_space.low)
    np.testing.assert_array_equal(env.action_space.high_array, reference.action_space.high)
    worst = compare(name, reference, step, state, env.default_params(), num_steps=30)
    check(name, worst)


@tasks_of(QUICK)
def test_first_observation_is_gymnasiums(name: str, gymnasium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same positions and velocities, which here are gymnasium's draws."""
    reference = gymnasium.make(name, disable_env_checker=True)
    theirs, _ = reference.reset(seed=3)
    host = reference.unwrapped
    drawn = tuple(jnp.asarray(leaf.copy(), jnp.float32) for leaf in (host.data.qpos, host.data.qvel))
    monkeypatch.setitem(table.TASKS, name, table.TASKS[name]._replace(reset=lambda *_: drawn))
    env = suite.make.__wrapped__(name)
    _, ours = jax.jit(env.reset)(jax.random.key(0), env.default_params())
    assert deviation(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", suite.names())
def test_arguments_and_limits_are_gymnasiums(name: str, gymnasium: Any) -> None:
    task = table.TASKS[name]
    spec = gymnasium.spec(name)
    module, _, kind = spec.entry_point.partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), kind).__init__).parameters
    theirs = {key: value.default for key, value in signature.items() if value.default is not inspect.Parameter.empty}
    theirs.pop("default_camera_config")
    assert theirs == {"xml_file": task.xml, "frame_skip": task.frame_skip, **task.numbers, **task.options}
    assert spec.max_episode_steps == task.max_episode_steps


def check_parameters(name: str, gymnasium: Any, num_steps: int) -> None:
    """Each lane of a vmap over the physics' parameters is gymnasium with its model changed likewise."""
    env = suite.make(name)
    base = env.default_params()
    lanes = [
        base,
        base.replace(gravity=2 * base.gravity),
        base.replace(mass_scale=jnp.float32(1.5), gear_scale=jnp.float32(0.5)),
        base.replace(friction_scale=jnp.float32(0.3)),
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    batched = jax.jit(jax.vmap(env.step, in_axes=(None, None, None, 0)))
    state, _ = compiled(name)[0](jax.random.key(0), base)
    for lane, chosen in enumerate(lanes):
        reference = gymnasium.make(name, disable_env_checker=True)
        model = reference.unwrapped.model
        model.opt.gravity[:] = chosen.gravity
        for field in (model.body_mass, model.body_inertia, model.body_subtreemass):
            field *= float(chosen.mass_scale)
        model.geom_friction *= float(chosen.friction_scale)
        model.actuator_gear *= float(chosen.gear_scale)
        reference.reset(seed=0)
        pick = lambda *args: jax.tree.map(lambda leaf: leaf[lane], batched(*args[:3], params))
        worst = compare(name, reference, pick, state, params, num_steps)
        check(name, worst, f", lane {lane}")


def test_parameters_change_the_physics_as_in_c(gymnasium: Any) -> None:
    check_parameters("InvertedPendulum-v5", gymnasium, num_steps=8)


@pytest.mark.slow
def test_friction_and_mass_under_contact(gymnasium: Any) -> None:
    check_parameters("Walker2d-v5", gymnasium, num_steps=60)


@tasks_of(QUICK)
def test_state_keeps_its_types(name: str) -> None:
    env = suite.make(name)
    params = env.default_params()
    state, obs = jax.eval_shape(env.reset, jax.random.key(0), params)
    action = jax.ShapeDtypeStruct(env.action_space.shape, jnp.float32)
    after, step = jax.eval_shape(env.step, jax.random.key(0), state, action, params)
    describe = lambda tree: {k: (v.shape, v.dtype, v.weak_type) for k, v in trees.named_leaves(tree).items()}
    assert describe(state) == describe(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, obs, step, params)))
    assert (obs.shape, obs.dtype) == (step.obs.shape, step.obs.dtype) == (env.observation_space.shape, jnp.float32)
    assert trees.num_bytes(state) < 400


def test_time_limit_truncates() -> None:
    env = suite.make("Reacher-v5")
    params = env.default_params().replace(max_episode_steps=jnp.int32(3))
    reset, step = compiled("Reacher-v5")
    state, _ = reset(jax.random.key(0), params)
    flags = []
    for _ in range(4):
        state, out = step(jax.random.key(1), state, jnp.zeros(2), params)
        flags.append((bool(out.terminated), bool(out.truncated)))
    assert flags == [(False, False), (False, False), (False, True), (False, True)]


def test_resets_draw_from_gymnasiums_distributions() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)

    def draw(task: tasks.Task, num_positions: int, num_velocities: int) -> tuple[np.ndarray, np.ndarray]:
        scene = tasks.Scene(None, 0.1, np.full(num_positions, 0.5, np.float32), np.zeros(num_velocities, np.float32))
        return jax.tree.map(np.asarray, jax.vmap(lambda key: task.reset(key, scene, task.numbers))(keys))

    qpos, qvel = draw(table.TASKS["Hopper-v5"], 6, 6)
    for noise in (qpos - 0.5, qvel):
        assert 0.99 * 5e-3 < np.abs(noise).max() <= 5e-3 + 1e-7
        assert np.std(noise) == pytest.approx(5e-3 / 3**0.5, rel=0.02)
    qpos, qvel = draw(table.TASKS["HalfCheetah-v5"], 9, 9)
    assert np.abs(qpos - 0.5).max() <= 0.1 + 1e-6
    assert np.std(qvel) == pytest.approx(0.1, rel=0.02)
    assert np.abs(qvel).max() > 0.3
    assert abs(np.corrcoef(qpos[:, 0], qvel[:, 0])[0, 1]) < 0.05

    qpos, qvel = draw(table.TASKS["Reacher-v5"], 4, 4)
    squared = np.sum(qpos[:, 2:] ** 2, axis=1) / 0.2**2  # uniform on the unit interval if the disk is uniform
    assert squared.max() <= 1 + 1e-6
    assert np.quantile(squared, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    assert 0.099 < np.abs(qpos[:, :2] - 0.5).max() <= 0.1 + 1e-6
    assert not qvel[:, 2:].any()
    assert 0.0049 < np.abs(qvel[:, :2]).max() <= 0.005

    qpos, qvel = draw(table.TASKS["Pusher-v5"], 11, 11)
    y, x = qpos[:, -4:-2].T
    assert (y.min() >= -0.3, y.max() <= 0, np.abs(x).max() <= 0.2, np.hypot(x, y).min() > 0.17) == (True,) * 4
    share = (0.13 * 0.4) / (0.3 * 0.4 - np.pi * 0.17**2 / 2)
    assert np.mean(y < -0.17) == pytest.approx(share, abs=0.03)
    np.testing.assert_array_equal(qpos[:, :7], 0.5)
    assert not qpos[:, -2:].any()
    assert not qvel[:, -4:].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ctrl_cost_weight": 0.2}, "does not take ctrl_cost_weight"),
        ({"frame_skip": 0}, "positive integer"),
        ({"solver": "pgs"}, "solver must be one of"),
        ({"exclude_current_positions_from_observation": "no"}, "must be True or False"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        suite.make("Swimmer-v5", **options)


def test_structure_changes_the_observation() -> None:
    assert suite.make("Swimmer-v5").observation_space.shape == (8,)
    whole = suite.make("Swimmer-v5", exclude_current_positions_from_observation=False)
    assert whole.observation_space.shape == (10,)


def test_made_inside_a_trace_it_works_outside() -> None:
    made = []

    def traced() -> jax.Array:
        made.append(suite.make("Reacher-v5", iterations=7))
        return made[0].reset(jax.random.key(0), made[0].default_params())[1]

    jax.eval_shape(traced)
    env = made[0]
    assert jax.eval_shape(env.reset, jax.random.key(0), env.default_params())[1].shape == (10,)
