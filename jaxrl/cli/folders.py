"""Folders that get their names from what is in them."""

import datetime
from pathlib import Path


def new_folder(name: str) -> Path:
    """A folder below `runs` that does not exist yet: its name, the time, and a number if that is taken.

    Args:
      name: for people; `/` becomes `-`.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{name.replace('/', '-')}-{stamp}"
    candidates = (base.with_name(f"{base.name}-{k}") if k > 1 else base for k in range(1, 1000))
    return next(path for path in candidates if not path.exists())
