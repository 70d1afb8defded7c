"""The laws of `Env` over every environment of every suite, and each suite's own step as the reference."""

from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from jaxrl.envs import list_envs, make_env
from jaxrl.envs.registry import SUITES, installed
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep

GYMNAX_QUICK = (
    "CartPole-v1", "Pendulum-v1", "Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "SimpleBandit-bsuite",
    "FourRooms-misc", "MetaMaze-misc", "GaussianBandit-misc", "BernoulliBandit-misc", "FrozenLake-misc",
)  # fmt: skip
FIXED_HORIZON = ("DeepSea-bsuite", "DiscountingChain-bsuite", "BernoulliBandit-misc", "GaussianBandit-misc")
# Neither the start nor the moves depend on a key.
DETERMINISTIC = frozenset({
    "gymnax/SpaceInvaders-MinAtar", "gymnax/DeepSea-bsuite", "gymnax/DiscountingChain-bsuite", "gymnax/Pong-misc",
    "navix/Navix-DistShift1-v0", "navix/Navix-DistShift2-v0", "playground/BallInCup", "playground/HumanoidStand",
    "playground/HumanoidWalk", "playground/HumanoidRun",
    *(f"navix/Navix-Empty-{n}x{n}-v0" for n in (5, 6, 8, 16)),
    *(f"xminigrid/MiniGrid-Empty-{n}x{n}" for n in (5, 6, 8, 16)),
})  # fmt: skip
# The ghosts of PacMan leave their house after some steps; until then nothing is random.
MORE_STEPS = {"jumanji/PacMan-v1": 40}
BRAX_QUICK = "inverted_pendulum"
EXTRAS = tuple(suite for suite in SUITES if SUITES[suite].extra is not None)
# One of each suite that compiles fast.
EXTRAS_QUICK = (
    "playground/PendulumSwingup", "navix/Navix-Empty-Random-5x5-v0", "craftax/Craftax-Classic-Symbolic-v1",
    "xminigrid/MiniGrid-EmptyRandom-5x5", "jumanji/Tetris-v0", "jumanji/Game2048-v1", "pgx/tic_tac_toe",
    "pgx/minatar-breakout",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _strict_ranks():
    """Overrides the fixture of that name for all tests: the suites let ranks broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield


def cases(names: tuple[str, ...], quick: tuple[str, ...], *marks: Any) -> list[Any]:
    # The largest physics and pictures compile for five minutes where something else runs too.
    long = (pytest.mark.slow, pytest.mark.timeout(1200))
    return [pytest.param(n, marks=[*marks, *(() if n in quick else long)]) for n in names]


def check(env: Env, num_steps: int = 8) -> None:
    suite, _, short = env.name.partition("/")
    laws.check_all(
        env,
        laws.trace(env, num_steps),
        deterministic=env.name in DETERMINISTIC,
        fixed_horizon=short in FIXED_HORIZON,
        # Physics amplifies what another order of float operations changes.
        tolerance=2e-3 if suite in ("brax", "playground") else 1e-4,
    )


@pytest.mark.parametrize("name", cases(list_envs("gymnax"), tuple(f"gymnax/{n}" for n in GYMNAX_QUICK)))
def test_laws_gymnax(name):
    check(make_env(name), 50)


@pytest.mark.parametrize("name", cases(list_envs("gymnax"), tuple(f"gymnax/{n}" for n in GYMNAX_QUICK)))
def test_step_is_gymnax_own(name):
    """Reward, flags and true successor over several episodes, each step from gymnax's own state."""
    import gymnax

    short = name.partition("/")[2]
    env, (own, _) = make_env(name), gymnax.make(short)
    leaf = "max_steps_in_episode"
    params = env.default_params()
    limit = min(int(getattr(params, leaf)), 20)
    params = trees.replace_leaf(params, leaf, jnp.asarray(limit, getattr(params, leaf).dtype))

    def play(key: jax.Array) -> Any:
        key_reset, key_steps = jax.random.split(key)
        obs, state = own.reset(key_reset, params)
        _, our_obs = env.reset(key_reset, params)

        def body(state: Any, key: jax.Array) -> Any:
            action = laws.spaces.sample(env.action_space, jax.random.fold_in(key, 0))
            _, next_state, reward, terminated, truncated, info = own.step(key, state, action, params)
            _, ours = env.step(jax.random.split(key)[0], state, action, params)
            next_state = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), next_state, state)
            return next_state, (ours, reward, terminated, truncated, info["final_observation"])

        state = trees.as_arrays(state)
        return obs, our_obs, jax.lax.scan(body, state, jax.random.split(key_steps, 2 * limit + 2))[1]

    obs, our_obs, (ours, reward, terminated, truncated, final) = jax.jit(jax.vmap(play))(
        jax.random.split(jax.random.key(1), 4)
    )
    np.testing.assert_array_equal(our_obs, obs)
    np.testing.assert_allclose(ours.obs, final, rtol=1e-6)
    np.testing.assert_allclose(ours.reward, reward, rtol=1e-6)
    if short in FIXED_HORIZON:
        np.testing.assert_array_equal(ours.terminated, terminated | truncated)
        assert not ours.truncated.any()
        assert truncated.any()
    else:
        np.testing.assert_array_equal(ours.terminated, terminated)
        np.testing.assert_array_equal(ours.truncated, truncated)
    assert (terminated | truncated).any()


def test_bounds_of_gymnax_are_widened():
    gaussian = make_env("gymnax/GaussianBandit-misc").observation_space
    assert not gaussian.bounded
    assert gaussian.low_array[3] == -1.0
    assert make_env("gymnax/MemoryChain-bsuite").observation_space.low_array.tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("name", cases(list_envs("brax"), (f"brax/{BRAX_QUICK}",)))
def test_laws_brax(name):
    check(make_env(name), 6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
@pytest.mark.parametrize("name", [f"brax/{BRAX_QUICK}", "brax/hopper"])
def test_laws_brax_backends(name, backend):
    check(make_env(name, backend=backend), 6)


@pytest.mark.parametrize(
    "name,backend",
    [
        (BRAX_QUICK, "spring"),
        *(pytest.param("hopper", b, marks=pytest.mark.slow) for b in ("spring", "positional", "generalized", "mjx")),
    ],
)
def test_step_is_brax_own(name, backend):
    """The same observations, rewards and flags as brax's own episodes of 30 steps."""
    from brax import envs
    from brax.envs.wrappers.training import EpisodeWrapper

    limit = 30
    env = make_env(f"brax/{name}", backend=backend)
    params = env.default_params().replace(max_episode_steps=jnp.int32(limit))
    own = EpisodeWrapper(envs.get_environment(name, backend=backend), limit, 1)
    actions = jax.random.uniform(jax.random.key(2), (limit, *env.action_space.shape), minval=-1, maxval=1)

    def play_own(key: jax.Array) -> Any:
        start = own.reset(key)
        like = jax.tree.map(jnp.asarray, start)

        def body(state: Any, action: jax.Array) -> Any:
            state = own.step(state, action)
            state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, like)
            return state, (state.obs, state.reward, state.done, state.info["truncation"])

        return jax.lax.scan(body, like, actions)[1]

    def play_ours(key: jax.Array) -> EnvStep:
        state, _ = env.reset(key, params)
        return jax.lax.scan(lambda s, action: env.step(key, s, action, params), state, actions)[1]

    keys = jax.random.split(jax.random.key(3), 8)
    obs, reward, done, truncation = jax.jit(jax.vmap(play_own))(keys)
    ours = jax.jit(jax.vmap(play_ours))(keys)
    running = laws.alive_steps(np.asarray(done, bool))[:, :20]  # later, chaos outgrows rounding
    np.testing.assert_allclose(
        np.asarray(ours.obs)[:, :20][running], np.asarray(obs)[:, :20][running], rtol=2e-3, atol=2e-3
    )
    np.testing.assert_allclose(
        np.asarray(ours.reward)[:, :20][running], np.asarray(reward)[:, :20][running], rtol=2e-3, atol=2e-3
    )
    np.testing.assert_array_equal(ours.terminated, (done * (1 - truncation)).astype(bool))
    np.testing.assert_array_equal(ours.truncated, np.broadcast_to(np.arange(limit) == limit - 1, (8, limit)))
    assert ours.terminated.any() or name != BRAX_QUICK


def test_physics_of_brax_may_be_swept():
    pendulum = make_env(f"brax/{BRAX_QUICK}")
    leaves = ("gravity_scale", "mass_scale", "gear_scale")
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), pendulum.default_params())
    for lane, leaf in enumerate(leaves, start=1):
        params = trees.replace_leaf(params, leaf, getattr(params, leaf).at[lane].set(1.5))

    def play(params: Any) -> jax.Array:
        state, _ = pendulum.reset(jax.random.key(0), params)
        return jax.lax.scan(lambda s, a: pendulum.step(jax.random.key(0), s, a, params), state, jnp.ones((3, 1)))[1].obs

    obs = jax.jit(jax.vmap(play))(params)
    for lane, leaf in enumerate(leaves, start=1):
        assert not np.allclose(obs[0], obs[lane], atol=1e-6), leaf


@pytest.mark.slow
def test_friction_of_brax_may_be_swept():
    env = make_env("brax/hopper")
    params = env.default_params()

    def play(scale: jax.Array) -> jax.Array:
        changed = params.replace(friction_scale=scale)
        state, _ = env.reset(jax.random.key(0), changed)
        return jax.lax.scan(lambda s, _: env.step(jax.random.key(0), s, jnp.ones(3), changed), state, None, 20)[1].obs

    obs = jax.jit(jax.vmap(play))(jnp.array([1.0, 0.2]))
    assert not np.allclose(obs[0], obs[1], atol=1e-4)


def test_brax_names_its_backends():
    with pytest.raises(ValueError, match=r"backend must be one of spring, positional, generalized, mjx; got 'warp'"):
        make_env(f"brax/{BRAX_QUICK}", backend="warp")


@pytest.mark.parametrize(
    "name",
    cases(tuple(n for s in EXTRAS if installed(s) for n in list_envs(s)), EXTRAS_QUICK, pytest.mark.suites),
)
def test_laws_extras(name):
    check(make_env(name), MORE_STEPS.get(name, 8))


@pytest.mark.suites
@pytest.mark.parametrize("suite", EXTRAS)
def test_suite_is_installed(suite):
    """Run with `--suites`, nothing may be left out unseen."""
    pytest.importorskip(SUITES[suite].package)
    assert list_envs(suite)
