"""Imports the scripts as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
# At the end, where profile.py does not hide Python's own.
sys.path.append(str(SCRIPTS))


def load(name: str) -> ModuleType:
    """A script by its name, under which other scripts import it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
