"""Environments by name: `suite/Name`. A suite's module is imported only when it is asked for."""

import dataclasses
import difflib
import importlib
import importlib.util
from typing import Any

from jaxrl.types import Env, memoize


@dataclasses.dataclass(frozen=True)
class Suite:
    """Where a suite's adapter lives and what it needs.

    The module has `names() -> tuple[str, ...]` and `make(name, **options) -> Env`.

    Attributes:
      module: the adapter's module.
      package: the third-party package that must be importable, or None.
      extra: the extra of jaxrl that installs it, or None if it comes with jaxrl.
      summary: one line for people.
    """

    module: str
    package: str | None
    extra: str | None
    summary: str


SUITES: dict[str, Suite] = {
    "gymnax": Suite("jaxrl.envs.adapters.gymnax", "gymnax", None, "classic control, MinAtar, bsuite and small tasks"),
    "brax": Suite("jaxrl.envs.adapters.brax", "brax", None, "continuous control; option backend"),
    "mjx": Suite("jaxrl.envs.mjx", "mujoco", None, "gymnasium's MuJoCo v5 tasks on MJX"),
    "probe": Suite("jaxrl.envs.probe", None, None, "one environment for each thing that can break"),
    "coverage": Suite("jaxrl.envs.coverage", None, None, "walks paid for the set of cells they visit (submodular)"),
    "conditioning": Suite("jaxrl.envs.conditioning", None, None, "predictions of animal learning that need memory"),
    "continuing": Suite("jaxrl.envs.continuing", None, None, "an endless walk with an exact average reward"),
    "grids": Suite("jaxrl.envs.grids", None, None, "the grid worlds of objects of LPG, with exact best returns"),
    "chains": Suite("jaxrl.envs.chains", None, None, "delayed chains: the first action decides what the end pays"),
    "locks": Suite("jaxrl.envs.locks", None, None, "combination locks seen through noise, whose end alone pays"),
    "playground": Suite("jaxrl.envs.adapters.playground", "mujoco_playground", "playground", "tasks of dm_control"),
    "navix": Suite("jaxrl.envs.adapters.navix", "navix", "navix", "MiniGrid"),
    "craftax": Suite("jaxrl.envs.adapters.craftax", "craftax", "craftax", "Crafter and NetHack-like worlds"),
    "xminigrid": Suite("jaxrl.envs.adapters.xminigrid", "xminigrid", "xminigrid", "MiniGrid and XLand grid worlds"),
    "jumanji": Suite("jaxrl.envs.adapters.jumanji", "jumanji", "jumanji", "combinatorial problems and games"),
    "pgx": Suite("jaxrl.envs.adapters.pgx", "pgx", "pgx", "board games and MinAtar, one player"),
}  # fmt: skip


def installed(suite: str) -> bool:
    """Whether a suite's package can be imported."""
    package = SUITES[suite].package
    return package is None or importlib.util.find_spec(package) is not None


def list_envs(suite: str | None = None) -> tuple[str, ...]:
    """Names of all environments of the suites that are installed, or of one suite.

    Raises:
      ValueError: the suite is unknown or not installed.
    """
    if suite is not None:
        return tuple(f"{suite}/{name}" for name in _adapter(suite, suite).names())
    return tuple(name for suite in SUITES if installed(suite) for name in list_envs(suite))


@memoize
def make_env(name: str, **options: Any) -> Env:
    """Makes an environment from its name.

    Args:
      name: `suite/Name`, as `jaxrl list envs` prints it.
      **options: options of the suite's adapter, for instance `backend="mjx"` for brax.

    Returns:
      The environment. Equal arguments give the same record.

    Raises:
      ValueError: the name is unknown (the message offers the nearest ones), its suite is not installed (the
        message names the extra), or the suite does not have one of the options.

    Example:
      >>> make_env("gymnax/CartPole-v1").action_space
      Discrete(n=2)
    """
    suite, slash, short = name.partition("/")
    if not slash or suite not in SUITES:
        raise ValueError(_unknown(name))
    adapter = _adapter(suite, name)
    if short not in adapter.names():
        raise ValueError(_unknown(name))
    try:
        return adapter.make(short, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"Environment {name!r} does not take these options: {options}. {error}") from error


def _adapter(suite: str, asked: str) -> Any:
    if suite not in SUITES:
        raise ValueError(_unknown(asked))
    entry = SUITES[suite]
    if not installed(suite):
        raise ValueError(
            f"Environment {asked!r} needs the package {entry.package!r}, which is not installed. "
            f'Install it with: pip install "jaxrl[{entry.extra}]"'
        )
    return importlib.import_module(entry.module)


def _unknown(name: str) -> str:
    known = list_envs()
    wanted = name.lower()
    by_lower = {candidate.lower(): candidate for candidate in known}
    short = {candidate.lower().partition("/")[2]: candidate for candidate in known}
    near = [by_lower[match] for match in difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.6)]
    near += [short[match] for match in difflib.get_close_matches(wanted.rpartition("/")[2], short, n=3, cutoff=0.6)]
    near = list(dict.fromkeys(near))[:5]
    missing = [suite for suite in SUITES if not installed(suite)]
    message = f"Unknown environment {name!r}; names are suite/Name."
    if near:
        message += " Nearest: " + ", ".join(near) + "."
    if missing:
        message += (
            " Suites that are not installed: "
            + ", ".join(f'{suite} (pip install "jaxrl[{SUITES[suite].extra}]")' for suite in missing)
            + "."
        )
    return message + " `jaxrl list envs` prints all."
