"""Settings of all tests: ranks never broadcast silently, and programs are dropped once there are too many."""

import gc
from pathlib import Path

import jax
import pytest

QUICK = (
    "contract",
    "learning/test_",
    "objectives",
    "analysis",
    "cli/test_meta",
    "envs",
    "meta",
    "networks",
    "ops",
    "strategies",
    "wrappers",
    "test_alternating",
    "test_buffers",
    "test_diagnostics",
    "test_ensembles",
    "test_estimators",
    "test_levels",
    "test_notebooks",
    "test_readme",
    "test_testing",
    "test_values",
    "sweeps/test_halving",
)
# These train for a while, or hold of programs as users compile them.
AS_USERS = (
    "learning/test_tasks",
    "learning/test_probes",
    "test_diagnostics.py::test_training_is_the_same_bit_for_bit",
    "test_diagnostics.py::test_churn_of_several_actions",
    "test_readme.py::test_python_blocks_run[streaming.md]",
)
TESTS = Path(__file__).parent
_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def pytest_collection_modifyitems(items):
    """Marks what runs for a blink: `scripts/test` compiles it without optimization, in processes of its own.

    Slow tests, those that train for a while, runs and sweeps compile as users do.
    """
    for item in items:
        path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
        quick = path.startswith(QUICK) and not f"{path}::{item.name}".startswith(AS_USERS)
        if quick and "slow" not in item.keywords:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """Compiled programs are dropped once there are many: they hold memory maps, of which Linux gives 65,530.

    Beyond them a worker dies of a segmentation fault somewhere in the compiler.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()
