"""Settings of all tests: ranks never broadcast silently, one platform, and quick compiling where that is the work."""

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
_UNOPTIMIZED, _LEAST_SECONDS = "jax_disable_most_optimizations", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _quick_compiling(request):
    """Programs that run for a blink are compiled without optimization, which takes about half the time.

    They are not kept in the compilation cache either: a worker once died of a segmentation fault in jaxlib 0.10.2's
    serialization of one of them, after some 1,200 tests. Slow tests, and everything that is not in QUICK (runs, sweeps,
    the command line), compile as users do.
    """
    path = request.path.relative_to(TESTS).as_posix()
    quick = path.startswith(QUICK) and not path.startswith(OPTIMIZED) and "slow" not in request.keywords
    before = jax.config.read(_UNOPTIMIZED), getattr(jax.config, _LEAST_SECONDS)
    if quick:
        _configure(True, 1e9)
    yield
    _configure(*before)


def _configure(unoptimized, least_seconds):
    jax.config.update(_UNOPTIMIZED, unoptimized)
    jax.config.update(_LEAST_SECONDS, least_seconds)
