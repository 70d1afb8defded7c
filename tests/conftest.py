"""Settings of all tests: ranks never broadcast silently, one platform, and quick compiling where that is the work."""

from pathlib import Path

import jax
import pytest

QUICK = (
    "contract",
    "learning/test_",
    "objectives",
    "test_diagnostics",
    "test_readme",
    "envs",
    "meta/test_p",
    "networks",
    "ops",
    "wrappers",
    "test_estimators",
    "sweeps/test_halving",
)
OPTIMIZED = ("learning/test_tasks",)
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _quick_compiling(request):
    """Programs that run for a blink are compiled without optimization, which takes about half the time.

    Slow tests, and everything that is not in QUICK (runs, sweeps, the command line, environments), compile as users do.
    """
    path = request.path.relative_to(TESTS).as_posix()
    quick = path.startswith(QUICK) and not path.startswith(OPTIMIZED) and "slow" not in request.keywords
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
