"""The probes of what an algorithm learns by: values, discounts, policies, credit, ends of episodes, memory."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl import spaces, validation
from jaxrl.envs.probe.rules import ProbeState, Rules, as_sign, leaf, sign, steps


@struct.dataclass
class TimeLimitParams:
    """Parameters of `Truncation`.

    Attributes:
      reward: paid at every step.
      max_episode_steps: steps until truncation.
    """

    reward: Float[Array, ""]
    max_episode_steps: Int[Array, ""]


@struct.dataclass
class MemoryParams:
    """Parameters of `Memory`.

    Attributes:
      reward: what all rewards are multiplied by.
      length: steps from the one that shows the cue to the one that asks for it.
    """

    reward: Float[Array, ""]
    length: Int[Array, ""]


def constant() -> Rules:
    """One step that pays 1.

    Observation [0], reward 1 whatever the action, terminates.

    V = 1, Q(·) = 1. Fails: the critic's loss, its optimizer, or a reward that goes astray.
    """
    return Rules(steps(1), lambda state, params: jnp.zeros(1), lambda state, action, params: 1.0)


def observation() -> Rules:
    """One step that pays what is seen.

    Observation [x] with x = ±1 at random, reward x whatever the action, terminates.

    V(x) = x, Q(x, ·) = x. Fails: the critic's input, or observations and rewards of different
    environments or times get mixed.
    """
    return Rules(
        steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: state.cue,
        draw=sign,
    )


def discounting() -> Rules:
    """Two steps, of which the second pays 1.

    Observation [0] then [1], rewards 0 then 1 whatever the actions, terminates.

    V(0) = γ, V(1) = 1. Fails: the discount, the bootstrap, or the pairing of an observation with
    its successor.
    """
    return Rules(
        steps(2),
        lambda state, params: jnp.minimum(state.time, 1).astype(jnp.float32)[None],
        lambda state, action, params: state.time == 1,
    )


def policy() -> Rules:
    """One step that pays +1 for action 1 and -1 for action 0.

    Observation [0], terminates.

    π(1) = 1, V = 1, Q(0) = -1, Q(1) = 1; of the uniform policy V = 0. Fails: the sign of the
    policy's gradient, or actions stored other than those taken.
    """
    return Rules(
        steps(1),
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: as_sign(action),
    )


def policy_observation() -> Rules:
    """One step that pays for the action that matches the observation.

    Observation [x] with x = ±1 at random; action 1 matches x = +1 and action 0 matches x = -1.
    Reward +1 for a match, otherwise -1; terminates.

    π(1|+1) = π(0|-1) = 1, V(x) = 1, Q(x, a) = x(2a - 1); a policy blind to x has 0 on average.
    """
    return Rules(
        steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: state.cue * as_sign(action),
        draw=sign,
    )


def credit() -> Rules:
    """Two steps, of which the first action decides what the second step pays.

    Observation [x, 0] with x = ±1 at random; the first action pays nothing and matches x or not, as
    in `policy_observation`. The second observation [m, 1] tells by m = ±1, and the second step pays
    m whatever its action; terminates.

    π(1|+1, 0) = π(0|-1, 0) = 1, V(x, 0) = γ, V(m, 1) = m, Q((x, 0), a) = γ x(2a - 1); of the
    uniform policy V(x, 0) = 0. Fails: the λ-trace, the n-step return, or rewards a step off.
    """
    return Rules(
        steps(2),
        lambda state, params: jnp.stack([state.cue, jnp.minimum(state.time, 1).astype(jnp.float32)]),
        lambda state, action, params: jnp.where(state.time == 1, state.cue, 0.0),
        observation_space=spaces.box((-1.0, 0.0), (1.0, 1.0), (2,)),
        draw=sign,
        follow=lambda state, action: jnp.where(state.time == 0, state.cue * as_sign(action), state.cue),
    )


def truncation(max_episode_steps: int = 5) -> Rules:
    """Steps that pay 1 each, without end but for a time limit that is not seen.

    Observation [0], reward 1 whatever the action, truncated after L = `max_episode_steps`.

    V = 1 / (1 - γ). Where truncation is taken for termination, the value is smaller: with all steps
    weighed alike, one-step targets have the fixed point 1 / (1 - γ(L - 1)/L), less than L.

    Args:
      max_episode_steps: default of the leaf L.
    """
    validation.count("probe/Truncation", "max_episode_steps", max_episode_steps)
    return Rules(
        lambda params: params.max_episode_steps,
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: 1.0,
        params=TimeLimitParams(leaf(1.0), leaf(max_episode_steps)),
        truncates=True,
    )


def termination(num_steps: int = 5) -> Rules:
    """Steps that pay 1 each, terminates after a number of steps that is seen.

    Observation: one-hot of the step k = 0 … `num_steps` - 1, all zeros after the end; reward 1
    whatever the action.

    V(k) = Σ_{i < num_steps - k} γ^i = (1 - γ^(num_steps - k)) / (1 - γ). Where termination is taken
    for truncation, the values grow toward 1 / (1 - γ).

    Args:
      num_steps: length of an episode and of the observation (static).
    """
    validation.count("probe/Termination", "num_steps", num_steps)
    return Rules(
        steps(num_steps),
        lambda state, params: jax.nn.one_hot(state.time, num_steps, dtype=jnp.float32),
        lambda state, action, params: 1.0,
        observation_space=spaces.box(0.0, 1.0, (num_steps,)),
    )


def memory(length: int = 3) -> Rules:
    """The first observation shows a cue, which the last action has to match.

    At t = 0 the observation is [x, 0] with x = ±1 at random, then come `length` - 1 blank ones
    [0, 0], and at t = `length` [0, 1] asks: the action pays +1 if it matches x, as in
    `policy_observation`, otherwise -1, and the episode terminates. Other actions do nothing.

    V(t) = γ^(length - t) for a policy that remembers; a policy without memory has 0 on average.

    Args:
      length: default of the leaf, steps from the cue to the question.
    """
    validation.count("probe/Memory", "length", length)

    def asks(state: ProbeState, params: MemoryParams) -> Array:
        return state.time == params.length

    def observe(state: ProbeState, params: MemoryParams) -> Array:
        shown = jnp.where(state.time == 0, state.cue, 0.0)
        return jnp.stack([shown, asks(state, params).astype(jnp.float32)])

    def reward(state: ProbeState, action: Any, params: MemoryParams) -> Array:
        return jnp.where(asks(state, params), state.cue * as_sign(action), 0.0)

    return Rules(
        lambda params: params.length + 1,
        observe,
        reward,
        params=MemoryParams(leaf(1.0), leaf(length)),
        observation_space=spaces.box((-1.0, 0.0), (1.0, 1.0), (2,)),
        draw=sign,
    )
