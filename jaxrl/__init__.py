"""jaxrl: functional reinforcement-learning research in JAX."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxrl._version import __version__

if _TYPE_CHECKING:
    from jaxrl import envs, levels, networks, objectives, ops, strategies, sweeps, wrappers
    from jaxrl.algorithms.ppo import ppo
    from jaxrl.algorithms.registry import make
    from jaxrl.envs import list_envs, make_env
    from jaxrl.evaluation import Episodes, evaluate
    from jaxrl.meta.evolve import evolve
    from jaxrl.meta.pbt import pbt
    from jaxrl.meta.population import population
    from jaxrl.networks import actor_critic
    from jaxrl.objectives.files import RuleSpec, load_rule, save_rule
    from jaxrl.sweeps import sweep
    from jaxrl.training import advance, train
    from jaxrl.types import Algorithm, Curriculum, Env, EnvStep, Objective, Strategy

# Loaded on first use, so that `import jaxrl` and the command line start at once.
_HOME = {
    "Algorithm": "jaxrl.types",
    "Curriculum": "jaxrl.types",
    "Env": "jaxrl.types",
    "EnvStep": "jaxrl.types",
    "Episodes": "jaxrl.evaluation",
    "Objective": "jaxrl.types",
    "RuleSpec": "jaxrl.objectives.files",
    "Strategy": "jaxrl.types",
    "actor_critic": "jaxrl.networks",
    "advance": "jaxrl.training",
    "evaluate": "jaxrl.evaluation",
    "evolve": "jaxrl.meta.evolve",
    "list_envs": "jaxrl.envs",
    "load_rule": "jaxrl.objectives.files",
    "make": "jaxrl.algorithms.registry",
    "make_env": "jaxrl.envs",
    "population": "jaxrl.meta.population",
    "pbt": "jaxrl.meta.pbt",
    "ppo": "jaxrl.algorithms.ppo",
    "save_rule": "jaxrl.objectives.files",
    "sweep": "jaxrl.sweeps",
    "train": "jaxrl.training",
}
_MODULES = ("envs", "levels", "networks", "objectives", "ops", "strategies", "sweeps", "wrappers")

__all__ = [
    "Algorithm",
    "Curriculum",
    "Env",
    "EnvStep",
    "Episodes",
    "Objective",
    "RuleSpec",
    "Strategy",
    "__version__",
    "actor_critic",
    "advance",
    "envs",
    "evaluate",
    "evolve",
    "levels",
    "list_envs",
    "load_rule",
    "make",
    "make_env",
    "networks",
    "objectives",
    "ops",
    "pbt",
    "population",
    "ppo",
    "save_rule",
    "strategies",
    "sweep",
    "sweeps",
    "train",
    "wrappers",
]


def __getattr__(name: str) -> _Any:
    if name in _HOME:
        return getattr(_import_module(_HOME[name]), name)
    if name in _MODULES:
        return _import_module(f"jaxrl.{name}")
    raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
