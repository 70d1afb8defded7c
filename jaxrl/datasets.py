"""Datasets: transitions that are there before training, for agents that collect none.

A dataset is a buffer's content (`jaxrl.buffers.BufferState`) and a leaf of an agent's hyperparameters. It comes from
arrays, or from the replay of an agent that has collected:

    data = datasets.dataset(state.buffer)
    agent = sac(env, config=Config(offline=True))
    hparams = agent.hyperparams(replay=data)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrl import spaces
from jaxrl.buffers import BufferState, Experience
from jaxrl.types import Env, Key

_FIELDS = dataclasses.fields(Experience)  # type: ignore[arg-type]


def dataset(source: Experience | BufferState) -> BufferState:
    """What an agent that collects nothing learns from.

    Args:
      source: transitions in the order of time, leaves [T, B, ...] for B streams of T steps each, or [T, ...] of a
        single stream; or the buffer of one agent, such as `state.buffer` of another agent. Actions are as agents
        store them: flat and between -1 and 1, or the number of a discrete one. `next_obs` is the true successor, and an
        episode's last transition has `terminated` or `truncated` set.

    Returns:
      All rows that are there, oldest first, leaves [T, B, ...].

    Raises:
      ValueError: there are no rows, a buffer is that of many members, leaves do not begin with the same axes, flags
        are not boolean, a number is not finite, or an action is beyond ±1.

    Example:
      >>> steps, never = np.arange(3.0), np.zeros(3, bool)
      >>> rows = Experience(steps, steps[:, None] / 2 - 0.5, steps, never, never, steps + 1)
      >>> data = dataset(rows)
      >>> data.items.action.shape, int(data.filled)
      ((3, 1, 1), 3)
    """
    if isinstance(source, BufferState):
        if np.ndim(source.filled):
            raise ValueError(
                f"dataset: needs one buffer; got those of {np.shape(source.filled)} members: take one, "
                "jax.tree.map(lambda x: x[0], buffer)."
            )
        num_rows, filled = source.items.reward.shape[0], int(source.filled)
        order = (int(source.pointer) - filled + np.arange(filled)) % num_rows
        rows = jax.tree.map(lambda x: np.asarray(x)[order], source.items)
    else:
        single = np.ndim(source.reward) == 1
        arrays = {field.name: jax.tree.map(np.asarray, getattr(source, field.name)) for field in _FIELDS}
        arrays["reward"] = arrays["reward"].astype(np.float32)
        rows = Experience(**jax.tree.map(lambda x: x[:, None] if single and x.ndim else x, arrays))
    shape = rows.reward.shape
    leading = sorted({x.shape[:2] for x in jax.tree.leaves(rows)})
    if len(shape) != 2 or 0 in shape or leading != [shape]:
        raise ValueError(
            "dataset: every leaf must begin with the same axes, [T] or [T, B], of which none is 0; got leaves that "
            f"begin with {leading} beside rewards of shape {shape}."
        )
    for path, leaf in jax.tree.leaves_with_path(rows):
        name = jax.tree_util.keystr(path)
        if name in (".terminated", ".truncated") and leaf.dtype != bool:
            raise ValueError(f"dataset: terminated and truncated must be boolean; got {name[1:]} of {leaf.dtype}.")
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise ValueError(f"dataset: numbers must be finite; of {name[1:]} {np.sum(~np.isfinite(leaf))} are not.")
    beyond = np.abs(rows.action).max()
    if np.issubdtype(rows.action.dtype, np.floating) and beyond > 1.0:
        raise ValueError(
            f"dataset: actions must be between -1 and 1, the environment's bounds; got one of size {beyond}: divide by "
            "the bounds of its action space."
        )
    return BufferState(jax.tree.map(jnp.asarray, rows), jnp.int32(0), jnp.int32(shape[0]), ())


def example_of(env: Env) -> Experience:
    """Shapes and dtypes of one transition as agents store it."""

    def one(key: Key) -> Experience:
        _, obs = env.reset(key, env.default_params())
        discrete = isinstance(env.action_space, spaces.Discrete)
        action = jnp.int32(0) if discrete else jnp.zeros(spaces.size(env.action_space))
        return Experience(obs, action, jnp.float32(0.0), jnp.bool_(False), jnp.bool_(False), obs)

    return jax.eval_shape(one, jax.random.key(0))


def check(env: Env, data: Any, num_rows: int) -> None:
    """Checks that a dataset is one, and could be of an environment.

    Args:
      env: the environment.
      data: from `jaxrl.datasets.dataset`.
      num_rows: of a window.

    Raises:
      ValueError: it is no dataset or has no rows, too few for a window, leaves of another tree, shape or kind of
        number, or discrete actions that there are not.
    """
    if not isinstance(data, BufferState) or not data.items.reward.shape[0]:
        raise ValueError(
            "replay: needs a dataset; pass agent.hyperparams(replay=datasets.dataset(...)), see jaxrl.datasets (the "
            "command line takes none)."
        )

    def told(items: Experience, num_axes: int) -> dict[str, str]:
        parts = {name: getattr(items, name) for name in ("obs", "action", "next_obs")}
        leaves = jax.tree_util.tree_leaves_with_path(parts)
        kind = lambda x: "floats" if jnp.issubdtype(x.dtype, jnp.floating) else "integers"
        return {jax.tree_util.keystr(path): f"{kind(x)} {x.shape[num_axes:]}" for path, x in leaves}

    expected, found = told(example_of(env), 0), told(data.items, 2)
    if found != expected:
        raise ValueError(
            f"replay: transitions of {env.name} are {expected}, after the leading axes; those of the dataset {found}."
        )
    action = data.items.action
    if isinstance(env.action_space, spaces.Discrete) and not isinstance(action, Tracer):
        least, greatest = int(action.min()), int(action.max())
        if least < 0 or greatest >= env.action_space.n:
            raise ValueError(
                f"replay: actions of {env.name} are 0 to {env.action_space.n - 1}; those of the dataset are {least} to "
                f"{greatest}."
            )
    if data.items.reward.shape[0] < num_rows:
        raise ValueError(
            f"replay: a draw needs {num_rows} rows in a stream (n_step, or length); the dataset has "
            f"{data.items.reward.shape[0]}."
        )
