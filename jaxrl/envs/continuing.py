"""Continuing tasks: a walk on a line of which a parameter is the mixing time, with average rewards known exactly.

    s ∈ {0, …, S-1};   with probability `motion` the walker moves one cell: as the action says (0 left, 1 right), or,
    with probability `slip`, to a random side; at an edge it stays.   r = rewards[s'].

With P the walk at motion = 1, the walk at another motion m is (1 - m) I + m P: every policy has the same stationary
distribution and the same average reward for all m, while the relaxation time 1 / (1 - λ₂) grows as 1 / m. So the leaf
`motion` slows mixing down and changes nothing else of the task.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl import spaces, validation
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

__all__ = ["LineParams", "average_reward", "line", "make", "names", "transitions"]


@struct.dataclass
class LineParams:
    """Parameters of the walk.

    Attributes:
      motion: probability that a step moves at all.
      slip: probability that a move goes to a random side.
      rewards: paid on arriving in each cell, or staying there, [S].
    """

    motion: Float[Array, ""]
    slip: Float[Array, ""]
    rewards: Float[Array, " S"]


@memoize
def line(num_states: int = 8, motion: float = 1.0, slip: float = 0.1, sparse: bool = True) -> Env:
    """Makes the walk. It never ends.

    Args:
      num_states: S, at least 3.
      motion: default of the leaf, above 0, at most 1.
      slip: default of the leaf, from 0 to 1.
      sparse: whether by default the last cell alone pays (1); otherwise cell s pays s / (S - 1).

    Returns:
      The environment; an observation is the cell, one-hot, [S]. It starts in cell 0.

    Raises:
      ValueError: a number is out of its range.

    Example:
      >>> env = line(4, motion=0.5)
      >>> right = jnp.ones(4)
      >>> round(float(average_reward(env.default_params().replace(slip=0.2), right)), 4)
      0.889
    """
    validation.count("continuing/Line", "num_states", num_states)
    if num_states < 3 or not 0.0 < motion <= 1.0 or not 0.0 <= slip <= 1.0:
        raise ValueError(
            "continuing/Line: num_states must be at least 3, motion above 0 and at most 1, slip from 0 to 1; got "
            f"num_states = {num_states}, motion = {motion}, slip = {slip}."
        )
    cells = np.arange(num_states)
    table = (cells == num_states - 1).astype(np.float32) if sparse else (cells / (num_states - 1)).astype(np.float32)

    def default_params() -> LineParams:
        return trees.as_arrays(LineParams(np.float32(motion), np.float32(slip), table))  # type: ignore[arg-type]

    def observe(cell: Array) -> Array:
        return jax.nn.one_hot(cell, num_states, dtype=jnp.float32)

    def reset(key: jax.Array, params: LineParams) -> tuple[Int[Array, ""], Array]:
        del key, params  # all chance is in the moves
        cell = jnp.int32(0)
        return cell, observe(cell)

    def step(key: jax.Array, cell: Array, action: Array, params: LineParams) -> tuple[Array, EnvStep]:
        draws = jax.random.uniform(key, (3,))
        right = jnp.where(draws[0] < params.slip, draws[1] < 0.5, action == 1)
        moved = jnp.clip(cell + jnp.where(right, 1, -1), 0, num_states - 1).astype(jnp.int32)
        cell = jnp.where(draws[2] < params.motion, moved, cell)
        never = jnp.zeros((), bool)
        return cell, EnvStep(obs=observe(cell), reward=params.rewards[cell], terminated=never, truncated=never)

    return Env(
        name="continuing/Line",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(0.0, 1.0, (num_states,)),
        action_space=spaces.Discrete(2),
    )


def names() -> tuple[str, ...]:
    """All tasks."""
    return ("Line",)


def make(name: str, **options: Any) -> Env:
    """Makes a task by name.

    Args:
      name: one of `names()`.
      **options: as `line` takes them.

    Example:
      >>> make("Line", num_states=5) is line(5)
      True
    """
    return {"Line": line}[name](**options)


def average_reward(params: LineParams, right: Float[Array, "... S"]) -> Float[Array, "..."]:
    """The exact long-run average reward of a policy.

    The walk is reversible, so its stationary distribution d obeys detailed balance, d(s) up(s) = d(s+1) down(s+1), in
    which `motion` cancels.

    Args:
      params: of the walk; slip above 0, or a policy that takes both actions.
      right: probability of action 1 in each cell, [..., S].

    Returns:
      Σ_s d(s) rewards[s].
    """
    up = (1.0 - params.slip) * right + 0.5 * params.slip
    down = 1.0 - up
    steps = jnp.log(up[..., :-1]) - jnp.log(down[..., 1:])
    logits = jnp.concatenate([jnp.zeros_like(steps[..., :1]), jnp.cumsum(steps, axis=-1)], axis=-1)
    return jax.nn.softmax(logits) @ params.rewards


def transitions(params: LineParams, right: Float[Array, " S"]) -> np.ndarray:
    """The transition matrix of a policy, [S, S], in float64.

    Args:
      params: of the walk.
      right: probability of action 1 in each cell.
    """
    motion, slip, going = (np.asarray(x, np.float64) for x in (params.motion, params.slip, right))
    up = (1.0 - slip) * going + 0.5 * slip
    cells = np.arange(len(up))
    matrix = (1.0 - motion) * np.eye(len(up))
    np.add.at(matrix, (cells, np.minimum(cells + 1, len(up) - 1)), motion * up)
    np.add.at(matrix, (cells, np.maximum(cells - 1, 0)), motion * (1.0 - up))
    return matrix
