"""Checks that many factories make of their arguments, before anything is traced."""

import numbers
import typing
from collections.abc import Iterable
from typing import Any, Literal

from jaxrl import spaces
from jaxrl.types import Env, Estimator, Objective


def count(owner: str, name: str, value: Any) -> None:
    """Checks that a number says how many.

    Args:
      owner: what the argument belongs to, for the message.
      name: of the argument.
      value: what was given.

    Raises:
      ValueError: it is not a whole number of at least 1.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} must be a whole number of at least 1; got {name} = {value!r}.")


def counts(owner: str, config: Any, names: Iterable[str]) -> None:
    """Checks some fields of a config as `count` does.

    Args:
      owner: what the config belongs to, for the message.
      config: has these attributes.
      names: of the fields.

    Raises:
      ValueError: one is not a whole number of at least 1.
    """
    for name in names:
        count(owner, name, getattr(config, name))


def choices(owner: str, config: Any) -> None:
    """Checks every field of a config whose annotation is a `Literal`.

    Args:
      owner: what the config belongs to, for the message.
      config: an instance of a dataclass.

    Raises:
      ValueError: a field has a value that its annotation does not list.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        allowed, value = typing.get_args(hint), getattr(config, name)
        if typing.get_origin(hint) is Literal and value not in allowed:
            raise ValueError(f"{owner}: {name} must be one of {', '.join(allowed)}; got {name} = {value!r}.")


def layers(owner: str, given: Any, wanted: type) -> None:
    """Checks that the layers that a config describes are described by the class that an algorithm builds from.

    Args:
      owner: the algorithm, for the message.
      given: its `config.network`.
      wanted: the frozen dataclass that it reads.

    Raises:
      ValueError: it is of another class, such as the settings of other networks or a network that is built.
    """
    if not isinstance(given, wanted):
        raise ValueError(
            f"{owner}: network must be a {wanted.__name__}, from which it builds its networks; got "
            f"{type(given).__name__}, network = {given!r}. Pass {wanted.__module__}.{wanted.__name__}(...)."
        )


def made_for(network: Any, env: Env) -> None:
    """Checks that a network that knows its actions has those of the environment.

    Args:
      network: any; one without an `action_space` is not checked.
      env: the environment.

    Raises:
      ValueError: it was built for another number of actions or entries.
    """
    space = getattr(network, "action_space", None)
    if space is not None and _form(space) != _form(env.action_space):
        raise ValueError(
            f"The network was built for actions {space}, and those of {env.name!r} are {env.action_space}. Build it "
            "for the environment's spaces."
        )


def _form(space: spaces.Space) -> Any:
    """What a network's outputs depend on."""
    return type(space), space.shape if isinstance(space, spaces.Box) else space


def unmasked(owner: str, env: Env) -> None:
    """Checks that an environment has no illegal actions, for algorithms that would take them.

    Args:
      owner: the algorithm, for the message.
      env: the environment.

    Raises:
      ValueError: its observations have an `action_mask`.
    """
    space = env.observation_space
    if isinstance(space, spaces.Dict) and "action_mask" in space.names:
        raise ValueError(
            f"{owner}: it knows nothing of illegal actions; got {env.name!r}, whose observations have an action_mask. "
            "Use an algorithm that honors it: ppo, or dqn."
        )


def heads(owner: str, objective: Objective, present: tuple[tuple[str, int], ...]) -> None:
    """Checks that a network has the further outputs that an objective reads.

    Args:
      owner: the algorithm, for the message.
      objective: with the heads that it needs.
      present: those of the network, as (name, size).

    Raises:
      ValueError: one is missing or has another size.
    """
    if missing := sorted(set(objective.heads) - set(present)):
        raise ValueError(
            f"{owner}: the objective {objective.name!r} needs the heads {missing}, which the network lacks: "
            f"pass network=actor_critic(..., heads={objective.heads})."
        )


def estimator(owner: str, estimator: Estimator, num_envs: int) -> None:
    """Checks that there are as many environments as an estimator needs.

    Args:
      owner: the algorithm, for the message.
      estimator: of advantages.
      num_envs: B.

    Raises:
      ValueError: there are fewer.
    """
    if num_envs < estimator.min_envs:
        raise ValueError(
            f"{owner}: the estimator {estimator.name!r} needs num_envs of at least {estimator.min_envs}; "
            f"got num_envs = {num_envs}."
        )
