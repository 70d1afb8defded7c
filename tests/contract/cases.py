"""Every algorithm as a row; each row gets all the laws. A new algorithm adds one or a few rows.

The environments are probes: tiny programs, so that a law costs a second or two of compiling.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import jaxrl
from jaxrl.algorithms import ppo
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.meta.pbt import Range, pbt
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import Clip
from jaxrl.types import Algorithm


@dataclasses.dataclass(frozen=True)
class Case:
    """One algorithm in a small setting.

    Attributes:
      algorithm: its name in the registry.
      make: builds it; keyword arguments are fields of its `Config`.
      hparams: changes to the default hyperparameters under which every leaf matters.
      options: for each field of `Config` another value that must change the result.
      inert: leaves and fields that cannot matter in this case, each with the reason.
    """

    algorithm: str
    make: Callable[..., Algorithm]
    hparams: dict[str, Any]
    options: dict[str, Any]
    inert: dict[str, str]


def _ppo(env: str, **network: Any) -> Callable[..., Algorithm]:
    tiny = {
        "stop_at_target_kl": True,
        "num_envs": 4,
        "num_steps": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "network": NetworkConfig(hidden=(8,), **network),
    }

    def make(**config: Any) -> Algorithm:
        return ppo.ppo(jaxrl.make_env(env), config=ppo.Config(**{**tiny, **config}))

    return make


# Narrow clips, a finite horizon and a finite target, so that each of them is reached within three small steps.
_PPO_HPARAMS = {
    "horizon": 512.0,
    "target_kl": 0.5,
    "learning_rate": 1e-2,
    "value_clip": 0.02,
    "objective": Clip(clip=jnp.float32(0.02)),
}
_PPO_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_epochs": 3,
    "num_minibatches": 4,
    "normalize_advantage": "batch",
    "stop_at_target_kl": False,
    "clip_value": False,
    "schedule": "constant",
    "normalize_observations": True,
    "normalize_rewards": True,
    "reset": "pooled",
    "reset_size": 2,
    "network": NetworkConfig(hidden=(8,), activation="relu"),
}
_PBT_RANGES = {"learning_rate": Range(1e-3, 1e-1), "objective.clip": Range(0.01, 0.4)}
_CPU = {"matmul_precision": "one precision only on a CPU"}

CASES = {
    "ppo-discrete": Case("ppo", _ppo("probe/Credit"), _PPO_HPARAMS, _PPO_OPTIONS, _CPU),
    "ppo-continuous": Case(
        "ppo",
        lambda **config: _ppo("gymnax/Pendulum-v1")(
            **{"normalize_observations": True, "normalize_rewards": True, **config}
        ),
        _PPO_HPARAMS,
        {"normalize_observations": False, "normalize_rewards": False},
        _CPU,
    ),
    "ppo-recurrent": Case("ppo", _ppo("probe/Memory", memory="gru", memory_size=8), _PPO_HPARAMS, {}, _CPU),
    "ppo-population": Case(
        "ppo",
        lambda **config: jaxrl.population(_ppo("probe/Credit")(**config), 3),
        _PPO_HPARAMS,
        {},
        _CPU,
    ),
    "ppo-pbt-population": Case(
        "ppo",
        lambda **config: pbt(_ppo("probe/Credit")(**config), 3, _PBT_RANGES, interval=2, truncation=0.34),
        _PPO_HPARAMS,
        {},
        _CPU,
    ),
}

assert {case.algorithm for case in CASES.values()} == set(ALGORITHMS), "every algorithm needs a row"
