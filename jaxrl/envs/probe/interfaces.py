"""The probes of kinds of actions and observations: continuous, several at once, of several parts, masked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.envs.probe.rules import Params, ProbeState, Rules, as_sign, leaf, sign, steps


@struct.dataclass
class TargetParams:
    """Parameters of `ContinuousPolicy`.

    Attributes:
      reward: what all rewards are multiplied by.
      target: the best action.
    """

    reward: Float[Array, ""]
    target: Float[Array, ""]


def continuous_policy(target: float = 0.5) -> Rules:
    """One step that pays for closeness to a number.

    Observation [0], action [a] in [-1, 1], reward -(a - target)², terminates.

    a* = target, V = 0; of a policy with mean μ and standard deviation σ, V = -(μ - target)² - σ².

    Args:
      target: default of the leaf, the best action.
    """
    if not -1.0 <= target <= 1.0:
        raise ValueError(
            f"probe/ContinuousPolicy: target must be an action, a number from -1 to 1; got target = {target}."
        )
    return Rules(
        steps(1),
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: -jnp.square(action[0] - params.target),
        params=TargetParams(leaf(1.0), leaf(float(target))),
        action_space=spaces.box(-1.0, 1.0, (1,)),
    )


def continuous_observation() -> Rules:
    """One step that pays for closeness to the observation.

    Observation [x], uniform in [-0.5, 0.5], action [a] in [-1, 1], reward -(a - x)², terminates.

    a*(x) = x, V(x) = 0, Q(x, a) = -(a - x)². The best policy blind to x, a = 0, has
    -Var[x] = -1/12 on average.
    """
    return Rules(
        steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: -jnp.square(action[0] - state.cue),
        observation_space=spaces.box(-0.5, 0.5, (1,)),
        action_space=spaces.box(-1.0, 1.0, (1,)),
        draw=lambda key: jax.random.uniform(key, (), jnp.float32, -0.5, 0.5),
    )


def multi_discrete_policy() -> Rules:
    """One step that pays 1 for each of two actions that is right for the observation.

    Observation [x] with x = ±1 at random; of the actions (2, 3) the best are (1, 2) for x = +1 and
    (0, 0) for x = -1. Reward: how many of the two are right; terminates.

    V(x) = 2; of the uniform policy V(x) = 1/2 + 1/3; a policy blind to x has at most 1 on average.
    """
    return Rules(
        steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: jnp.sum(action == jnp.where(state.cue > 0, jnp.array([1, 2]), 0)),
        action_space=spaces.MultiDiscrete((2, 3)),
        draw=sign,
    )


def dict_observation() -> Rules:
    """One step that pays for reading both parts of the observation.

    Two signs x, y = ±1 at random. Observation: `vector` [x, -x], and `image` [4, 4, 1], lit in its
    right half if y = +1 and in its left half if y = -1. Action 2i + j of four says i for x and j
    for y, where 1 says +1; each of the two pays +1/2 if right and -1/2 if wrong; terminates.

    V = 1; a policy blind to one part has at most 1/2 on average, one blind to both has 0.
    """
    side = np.broadcast_to(np.array([-1, -1, 1, 1], np.float32)[None, :, None], (4, 4, 1))

    def observe(state: ProbeState, params: Params) -> dict[str, Array]:
        x, y = state.cue
        return {"vector": jnp.stack([x, -x]), "image": (side == y).astype(jnp.float32)}

    def reward(state: ProbeState, action: Any, params: Params) -> Array:
        x, y = state.cue
        return 0.5 * x * as_sign(action // 2) + 0.5 * y * as_sign(action % 2)

    return Rules(
        steps(1),
        observe,
        reward,
        observation_space=spaces.Dict(
            (("vector", spaces.box(-1.0, 1.0, (2,))), ("image", spaces.box(0.0, 1.0, (4, 4, 1))))
        ),
        action_space=spaces.Discrete(4),
        draw=lambda key: jax.random.rademacher(key, (2,), jnp.float32),
    )


def action_mask() -> Rules:
    """One step of four actions, of which the one that pays most is often illegal.

    A legal action i pays i/3, an illegal one -1 and `info["illegal"]`; terminates. Observation:
    `observation` [0], and `action_mask` [4], true for action 0 and with probability 1/2 for each
    other one.

    With L the last legal action, V(mask) = L/3, on average 17/24. `illegal` never comes true for a
    policy that masks; one that ignores the mask has at most 0 on average.
    """
    return Rules(
        steps(1),
        lambda state, params: {"observation": jnp.zeros(1), "action_mask": state.cue},
        lambda state, action, params: jnp.where(state.cue[action], action / 3, -1.0),
        observation_space=spaces.Dict(
            (
                ("observation", spaces.box(-1.0, 1.0, (1,))),
                ("action_mask", spaces.box(0, 1, (4,), jnp.bool_)),
            )
        ),
        action_space=spaces.Discrete(4),
        draw=lambda key: jax.random.bernoulli(key, 0.5, (4,)).at[0].set(True),
        info=lambda state, action: {"illegal": ~state.cue[action]},
    )
