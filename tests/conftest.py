"""Settings of all tests: ranks never broadcast silently, one platform, and quick compiling where that is the work."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

QUICK = (
    "contract",
    "learning/test_",
    "objectives",
    "test_diagnostics",
    "envs",
    "meta/test_p",
    "networks",
    "ops",
    "wrappers",
    "test_estimators",
    "sweeps/test_halving",
)
OPTIMIZED = ("learning/test_tasks", "learning/test_probes")
TESTS = Path(__file__).parent
_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 20_000
_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
_UNOPTIMIZED, _LEAST_SECONDS = "jax_disable_most_optimizations", "jax_persistent_cache_min_compile_time_secs"
_USUAL_SECONDS = getattr(jax.config, _LEAST_SECONDS)


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def pytest_configure(config):
    """Ordinary tests compile in two thirds of the time without XLA's newer code for fusions, and run no longer.

    The flag is gone in jax 0.11. Slow tests, where running is what takes the time, keep the newer code.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "not slow" in config.getoption("markexpr") and version("jaxlib").startswith("0.10.") and _FUSIONS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FUSIONS}"


def pytest_runtest_setup(item):
    """Programs that run for a blink are compiled without optimization, which takes about half the time.

    They are not kept in the compilation cache either, which others would read. Slow tests, and everything that is not
    in QUICK (runs, sweeps, the command line), compile as users do.
    """
    path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    quick = path.startswith(QUICK) and not path.startswith(OPTIMIZED) and "slow" not in item.keywords
    if quick != jax.config.read(_UNOPTIMIZED):
        jax.clear_caches()  # a cached program does not say how it was compiled
        jax.config.update(_UNOPTIMIZED, quick)
        jax.config.update(_LEAST_SECONDS, 1e9 if quick else _USUAL_SECONDS)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """Compiled programs are dropped once there are many: they hold memory maps, of which Linux gives 65,530.

    Beyond them a worker dies of a segmentation fault somewhere in the compiler.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()
