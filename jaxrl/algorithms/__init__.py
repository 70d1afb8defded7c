"""Algorithms, one file each; none imports another."""

from jaxrl.algorithms.ppo import ppo

__all__ = ["ppo"]
