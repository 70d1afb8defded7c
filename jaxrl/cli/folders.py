"""Folders of runs: new names, and finding what is in them."""

import datetime
from pathlib import Path

from jaxrl.runs import Run


def open_run(path: Path) -> Run:
    """Opens the folder of a run.

    Raises:
      ValueError: it is not the folder of a run; of a sweep's, it says which command takes one.
      StorageError: its run.json is damaged.
    """
    if (path / "sweep.json").exists():
        raise ValueError(
            f"{path} is the folder of a sweep, not of a run. `jaxrl report {path}` draws its curves and settings; its "
            f"batches are runs: {path / 'batches'}."
        )
    return Run.open(path)


def new_folder(name: str) -> Path:
    """A folder below `runs` that does not exist yet: its name, the time, and a number if that is taken.

    Args:
      name: for people; `/` becomes `-`.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{name.replace('/', '-')}-{stamp}"
    candidates = (base.with_name(f"{base.name}-{k}") if k > 1 else base for k in range(1, 1000))
    return next(path for path in candidates if not path.exists())
