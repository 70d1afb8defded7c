"""Coverage: walks on a grid that are paid for the set of cells they visit (submodular reinforcement learning).

Prajapat et al. (2023, arXiv:2307.13372): the value of an episode is a monotone submodular function F of the set of the
visited cells, and the reward of a step is what the step adds to it,

    r_t = F(s_{t+1} | s_0 … s_t) = F({s_0 … s_{t+1}}) - F({s_0 … s_t}),   so that   Σ_t r_t = F(visited) - F({s_0}).

The environment keeps the set, so any algorithm maximizes F by maximizing the return with γ = 1. The agent starts in the
first cell and stays or moves to one of four sides; at the edge it stays. The length of an episode is part of the task,
and the time is seen: its end is terminal.

===========  ========================================================================================
name         F
===========  ========================================================================================
Cells        the number of cells within `radius` steps of the path
Density      the same, each weighted by a field drawn once: informative path planning
Items        items of several kinds collected, of each only as many as are needed
Information  nats that one noisy measurement in each cell tells about a Gaussian field: experiment design
===========  ========================================================================================
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import spaces, validation
from jaxrl.envs.coverage import functions
from jaxrl.envs.coverage.functions import SetFunction, Size
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

__all__ = ["CoverageState", "Params", "make", "names"]

Observe = Literal["cell", "position", "history"]

# Stay, right, up, left, down.
_MOVES = np.array([(0, 0), (0, 1), (-1, 0), (0, -1), (1, 0)], np.int32)
# Of each of six kinds, how many there are and how many are needed, on 7 x 15 cells: the sizes of the authors' code.
_ITEMS = ((18, 3), (14, 2), (13, 3), (16, 4), (18, 6), (14, 3))


@struct.dataclass
class Params:
    """Parameters of every task.

    Attributes:
      max_episode_steps: steps of an episode, which then terminates.
      slip: probability that a move is replaced by a uniform one of the five.
      modular: 0: the reward is what the cell adds to those visited, F(s' | history). 1: what it would add to nothing,
        F({s'}), as often as it is visited, which is the best that a reward of the state alone can do. Between: their
        mixture.
      task: parameters of the set function.
    """

    max_episode_steps: Int[Array, ""]
    slip: Float[Array, ""]
    modular: Float[Array, ""]
    task: PyTree


@struct.dataclass
class CoverageState:
    """State of every task.

    Attributes:
      time: steps since the reset.
      cell: where the agent is.
      visited: the set of cells, the first one included.
      summary: what the set function keeps of it.
    """

    time: Int[Array, ""]
    cell: Int[Array, ""]
    visited: Bool[Array, " cells"]
    summary: PyTree


def _cells(size: Size = (10, 10), radius: int = 1) -> tuple[Size, SetFunction]:
    _check("Cells", size, radius=radius)
    return size, functions.discs(size, radius, np.ones(size[0] * size[1]))


def _density(
    size: Size = (10, 10), radius: int = 1, lengthscale: float = 2.0, seed: int = 0
) -> tuple[Size, SetFunction]:
    _check("Density", size, radius=radius, lengthscale=lengthscale, seed=seed)
    return size, functions.discs(size, radius, functions.density(size, lengthscale, seed))


def _items(
    size: Size = (7, 15), items: tuple[tuple[int, int], ...] = _ITEMS, seed: int = 0
) -> tuple[Size, SetFunction]:
    _check("Items", size, seed=seed)
    total = sum(copies for copies, _ in items)
    if not items or any(not 1 <= needed <= copies for copies, needed in items) or total > size[0] * size[1]:
        raise ValueError(
            "coverage/Items: items must be pairs of how many there are and how many of them are needed, 1 <= needed "
            f"<= copies, in cells of their own; got items = {items} on size = {size}, {total} items in all."
        )
    return size, functions.items(size, items, seed)


def _information(
    size: Size = (6, 6), lengthscale: float = 1.5, noise: float = 0.1, num_known: int = 3, seed: int = 0
) -> tuple[Size, SetFunction]:
    _check("Information", size, lengthscale=lengthscale, noise=noise, seed=seed)
    if not 0 <= num_known <= size[0] * size[1]:
        raise ValueError(
            f"coverage/Information: num_known must be from 0 to the number of cells; got num_known = {num_known} "
            f"with size = {size}."
        )
    return size, functions.information(size, lengthscale, noise, num_known, seed)


# Name: (set function, steps of an episode by default).
_TASKS: dict[str, tuple[Callable[..., tuple[Size, SetFunction]], int]] = {
    "Cells": (_cells, 25),
    "Density": (_density, 25),
    "Items": (_items, 40),
    "Information": (_information, 12),
}


def names() -> tuple[str, ...]:
    """All tasks."""
    return tuple(_TASKS)


@memoize
def make(name: str, max_episode_steps: int | None = None, observe: Observe = "position", **options: Any) -> Env:
    """Makes one task.

    Args:
      name: one of `names()`.
      max_episode_steps: default of the leaf; None takes the task's own.
      observe: `cell`: the cell, one-hot, [cells]: a table of states. `position`: the share of the time that has passed
        besides, [cells + 1], as the paper's Markovian policies see it. `history`: the set of visited cells besides,
        [2 cells + 1], which makes the problem Markov.
      **options: `size` (rows, columns) of all; `radius` of Cells and Density, `lengthscale` and `seed` of Density,
        `items` (pairs of how many there are and how many are needed) and `seed` of Items, `lengthscale`, `noise`,
        `num_known` and `seed` of Information (see `jaxrl.envs.coverage.functions`). What the seed draws is a leaf.

    Returns:
      The environment.

    Raises:
      ValueError: an option is out of its range.
      TypeError: the task does not have the option.

    Example:
      >>> env = make("Cells", size=(3, 4), observe="history")
      >>> env.observation_space.shape, env.max_episode_steps
      ((25,), 25)
    """
    build, default_steps = _TASKS[name]
    size, function = build(**options)
    steps = default_steps if max_episode_steps is None else max_episode_steps
    validation.count(f"coverage/{name}", "max_episode_steps", steps)
    if observe not in get_args(Observe):
        raise ValueError(f"coverage/{name}: observe must be one of {get_args(Observe)}; got observe = {observe!r}.")
    num_cells = size[0] * size[1]

    def default_params() -> Params:
        zero = functions.leaf(0.0, np.float32)
        return trees.as_arrays(Params(functions.leaf(steps, np.int32), zero, zero, function.params))

    def observation(state: CoverageState, params: Params) -> Array:
        here = jax.nn.one_hot(state.cell, num_cells, dtype=jnp.float32)
        time = jnp.minimum(state.time / params.max_episode_steps, 1.0).astype(jnp.float32)[None]
        parts = [here, time, state.visited.astype(jnp.float32)]
        return jnp.concatenate(parts[: 1 + get_args(Observe).index(observe)])

    def reset(key: jax.Array, params: Params) -> tuple[CoverageState, Array]:
        del key  # all chance is in the moves
        first = jnp.int32(0)
        summary = function.add(function.empty(params.task), first, params.task)
        state = CoverageState(jnp.int32(0), first, jnp.arange(num_cells) == first, summary)
        return state, observation(state, params)

    def step(key: jax.Array, state: CoverageState, action: Array, params: Params) -> tuple[CoverageState, EnvStep]:
        key_slip, key_move = jax.random.split(key)
        slips = jax.random.bernoulli(key_slip, params.slip)
        move = jnp.where(slips, jax.random.randint(key_move, (), 0, len(_MOVES)), action)
        position = jnp.stack(jnp.divmod(state.cell, size[1])) + jnp.asarray(_MOVES)[move]
        row, column = jnp.clip(position, 0, jnp.array(size) - 1)
        cell = row * size[1] + column
        again = state.visited[cell]
        gain = jnp.where(again, 0.0, function.gain(state.summary, cell, params.task))
        alone = function.gain(function.empty(params.task), cell, params.task)
        after = CoverageState(
            time=state.time + 1,
            cell=cell,
            visited=state.visited.at[cell].set(True),
            summary=trees.where(again, state.summary, function.add(state.summary, cell, params.task)),
        )
        return after, EnvStep(
            obs=observation(after, params),
            reward=(1.0 - params.modular) * gain + params.modular * alone,
            terminated=after.time >= params.max_episode_steps,
            truncated=jnp.zeros((), bool),
            info={"gain": gain},
        )

    return Env(
        name=f"coverage/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(
            0.0, 1.0, ({"cell": 0, "position": 1, "history": 1 + num_cells}[observe] + num_cells,)
        ),
        action_space=spaces.Discrete(len(_MOVES)),
        max_episode_steps=steps,
    )


def _check(name: str, size: Size, **numbers: float) -> None:
    """Raises a ValueError unless there are cells, lengths and variances are positive, and the rest is not negative."""
    owner = f"coverage/{name}"
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"{owner}: size must be a tuple (rows, columns); got size = {size!r}.")
    for part in size:
        validation.count(owner, "each part of size", part)
    for option, value in numbers.items():
        positive = option in ("lengthscale", "noise")
        if value < 0 or (positive and value == 0):
            rule = "positive" if positive else "not negative"
            raise ValueError(f"{owner}: {option} must be {rule}; got {option} = {value}.")
