"""For tests and doctests alike."""

import gc


def pytest_sessionstart():
    """Collects garbage less often: tracing makes many small objects that live, and looking at them took a seventh of
    the time of a sample of twenty tests."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
