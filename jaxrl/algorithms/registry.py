"""Algorithms by name, for the command line, the sweeps and the contract tests."""

import dataclasses
from collections.abc import Callable

from jaxrl.algorithms import ppo
from jaxrl.types import Algorithm


@dataclasses.dataclass(frozen=True)
class Entry:
    """One algorithm.

    Attributes:
      factory: `(env, network=..., config=...) -> Algorithm`.
      config: the frozen dataclass of its structure.
      hyperparams: the record of its data.
      summary: one line for people.
    """

    factory: Callable[..., Algorithm]
    config: type
    hyperparams: type
    summary: str


ALGORITHMS: dict[str, Entry] = {
    "ppo": Entry(ppo.ppo, ppo.Config, ppo.Hyperparams, "proximal policy optimization (Schulman et al. 2017)"),
}
