"""Levels of environments chosen by what learners made of them: a buffer as data, and curricula for outer loops."""

from jaxrl.levels import buffer
from jaxrl.levels.buffer import Buffer
from jaxrl.levels.curriculum import Regret, regret

__all__ = ["Buffer", "Regret", "buffer", "regret"]
