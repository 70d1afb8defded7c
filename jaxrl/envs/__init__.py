"""Environments: the registry, our own ones, and adapters of third-party suites."""

from jaxrl.envs.registry import SUITES, list_envs, make_env

__all__ = ["SUITES", "list_envs", "make_env"]
