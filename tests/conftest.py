"""Settings of all tests: ranks never broadcast silently, and one platform."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield
