"""Which leaves of an algorithm's hyperparameters an outer loop changes."""

import jax.numpy as jnp

from jaxrl import names
from jaxrl.ops import trees
from jaxrl.types import Algorithm


def chosen_leaves(owner: str, algorithm: Algorithm, paths: str | tuple[str, ...], verb: str) -> tuple[str, ...]:
    """Paths of all float leaves at or below some paths.

    Args:
      owner: the outer loop, for messages.
      algorithm: whose hyperparameters they are.
      paths: dotted paths of leaves, or of records and trees of them.
      verb: what the leaves are to do, for messages.

    Returns:
      The paths of leaves, each once.

    Raises:
      ValueError: a path names nothing, a leaf is not float, or there is none.

    Example:
      >>> import jaxrl
      >>> chosen_leaves("evolve", jaxrl.ppo(jaxrl.make_env("probe/Credit")), ("objective", "gamma"), "evolve")
      ('objective.clip', 'gamma')
    """
    named = trees.named_leaves(algorithm.hyperparams())
    chosen: list[str] = []
    for path in (paths,) if isinstance(paths, str) else paths:
        found = [name for name in named if name == path or name.startswith(f"{path}.")]
        if not found:
            raise ValueError(f"{owner}: {names.unknown(path, named)}")
        chosen += [name for name in found if name not in chosen]
    if not chosen:
        raise ValueError(f"{owner}: leaves must name at least one hyperparameter; got leaves = ().")
    for name in chosen:
        if not jnp.issubdtype(named[name].dtype, jnp.floating):
            raise ValueError(
                f"{owner}: {name} must be float to {verb}; it is {named[name].dtype}. Name the leaves beside it."
            )
    return tuple(chosen)


def evolving_leaves(
    owner: str, algorithm: Algorithm, paths: str | tuple[str, ...], log: tuple[str, ...]
) -> tuple[str, ...]:
    """Paths of the leaves that evolve, of which some do as their logarithm.

    Args:
      owner: the outer loop, for messages.
      algorithm: whose hyperparameters they are.
      paths: as for `chosen_leaves`.
      log: those that evolve as their logarithm.

    Raises:
      ValueError: as for `chosen_leaves`; or one of `log` is not among them or not positive.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"))
      >>> evolving_leaves("evolve", agent, ("learning_rate", "gamma"), ("learning_rate",))
      ('learning_rate', 'gamma')
    """
    named = trees.named_leaves(algorithm.hyperparams())
    chosen = chosen_leaves(owner, algorithm, paths, "evolve")
    for name in log:
        if name not in chosen:
            raise ValueError(f"{owner}: log names {name!r}, which does not evolve; there are {', '.join(chosen)}.")
        if not bool(jnp.all(named[name] > 0)):
            raise ValueError(f"{owner}: {name} must be positive to evolve as its logarithm; its default is not.")
    return chosen
