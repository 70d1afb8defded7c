"""Wrappers of algorithms: each takes an `Algorithm` and returns one, so they nest, save and sweep like any other."""

from jaxrl.meta.population import population

__all__ = ["population"]
