import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """Pure mathematics must neither mix dtypes nor broadcast ranks by accident."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
