"""XLand-MiniGrid 0.9 (https://github.com/dunnolab/xland-minigrid): MiniGrid and worlds with rules for meta-learning.

The suite marks a truncation by a last step with discount 1. An XLand world starts without rules and goal, hence without
reward: put a ruleset (of one of the suite's benchmarks, say) into the parameters' leaf `ruleset`; it may be vmapped.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

xminigrid = _common.load("xminigrid")
constants = _common.load("xminigrid.core.constants")


@struct.dataclass
class EnvParams:
    """What may vary without recompiling.

    Attributes:
      max_episode_steps: steps until truncation; the reward for the goal shrinks over this time.
      ruleset: XLand's goal, rules and objects; empty for MiniGrid.
    """

    max_episode_steps: Int[Array, ""]
    ruleset: Any = ()


def names() -> tuple[str, ...]:
    """All environments of the suite."""
    return tuple(xminigrid.registered_environments())


@memoize
def make(name: str, direction: bool = False, **options: Any) -> Env:
    """Wraps one environment of XLand-MiniGrid.

    Args:
      name: the suite's own name, `MiniGrid-DoorKey-8x8` for instance.
      direction: whether to observe the agent's heading too; the observation is then the dict `image`, `direction`.
      **options: fields of the suite's `EnvParams` (static), `view_size=5` for instance.

    Returns:
      The environment. An image has one channel for tiles and one for colors.

    Example:
      >>> make("MiniGrid-Empty-8x8").action_space
      Discrete(n=6)
    """
    with _common.quiet():
        wrapped, static = xminigrid.make(name, **options)
    xland = hasattr(static, "ruleset")

    def default_params() -> EnvParams:
        # Copies: the suite's own arrays must survive if a caller donates these.
        return trees.as_arrays(jax.tree.map(jnp.array, EnvParams(static.max_steps, static.ruleset if xland else ())))

    def suite_params(params: EnvParams) -> Any:
        ruleset = {"ruleset": params.ruleset} if xland else {}
        return static.replace(max_steps=params.max_episode_steps, **ruleset)

    def observe(timestep: Any) -> Any:
        if not direction:
            return timestep.observation
        return {"image": timestep.observation, "direction": jax.nn.one_hot(timestep.state.agent.direction, 4)}

    def reset(key: jax.Array, params: EnvParams) -> tuple[Any, Any]:
        timestep = trees.as_arrays(wrapped.reset(suite_params(params), key))
        return timestep, observe(timestep)

    def step(key: jax.Array, state: Any, action: Any, params: EnvParams) -> tuple[Any, EnvStep]:
        del key  # the dynamics draw nothing
        after = _common.cast_like(wrapped.step(suite_params(params), state, action), state)
        return after, EnvStep(
            obs=observe(after),
            reward=after.reward.astype(jnp.float32),
            terminated=after.discount == 0,
            truncated=after.state.step_num >= params.max_episode_steps,
        )

    size = static.view_size
    last = jnp.broadcast_to(jnp.array([constants.NUM_TILES - 1, constants.NUM_COLORS - 1]), (size, size, 2))
    space = spaces.box(0, last, (size, size, 2), jnp.uint8)
    if direction:
        space = spaces.Dict((("image", space), ("direction", spaces.box(0.0, 1.0, (4,)))))
    return Env(
        name=f"xminigrid/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=space,
        action_space=spaces.Discrete(wrapped.num_actions(static)),
        max_episode_steps=int(static.max_steps),
    )
