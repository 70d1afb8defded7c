"""Sweeps: the settings of a grid or sample as few compiled programs, in a folder that survives, as labelled arrays."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxrl.sweeps.spaces import (
    Space,
    choice,
    grid,
    integers,
    linear,
    log,
    space,
    uniform,
)
from jaxrl.sweeps.texts import from_table

if _TYPE_CHECKING:
    from jaxrl.sweeps.api import sweep
    from jaxrl.sweeps.execution import SweepProgress

# Loaded on first use: spaces need no jax.
_HOME = {"sweep": "jaxrl.sweeps.api", "SweepProgress": "jaxrl.sweeps.execution"}

__all__ = [
    "Space",
    "SweepProgress",
    "choice",
    "from_table",
    "grid",
    "integers",
    "linear",
    "log",
    "space",
    "sweep",
    "uniform",
]


def __getattr__(name: str) -> _Any:
    if name in _HOME:
        return getattr(_import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jaxrl.sweeps' has no attribute {name!r}")
