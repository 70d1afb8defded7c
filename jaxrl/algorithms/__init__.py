"""Algorithms, one file each; none imports another. `jaxrl.algorithms.ppo.ppo` is also `jaxrl.ppo`."""
