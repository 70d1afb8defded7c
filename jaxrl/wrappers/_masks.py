"""What is observed, with and without a mask of actions."""

from typing import Any

from jaxrl import spaces

_MASKED = {"observation", "action_mask"}


def observed(tree: Any) -> Any:
    """The observation without its mask, or the space of that."""
    if isinstance(tree, spaces.Dict):
        return tree["observation"] if set(tree.names) == _MASKED else tree
    return tree["observation"] if isinstance(tree, dict) and set(tree) == _MASKED else tree


def with_observed(tree: Any, new: Any) -> Any:
    """Puts `new` where `observed` takes from."""
    if isinstance(tree, spaces.Dict):
        return spaces.Dict(tuple((name, new if name == "observation" else part) for name, part in tree.spaces))
    return {**tree, "observation": new} if isinstance(tree, dict) else new
