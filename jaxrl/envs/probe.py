"""Probe environments: each isolates one thing that can break, and its values are known exactly.

An algorithm that fails one of them has its bug in what that one adds to those before it: the
critic's bias, its input, the discount, the policy, its input, credit over time, the kind of an
episode's end, memory, and then each kind of action and observation. `γ` is the discount; values
are those of the best policy unless another one is named. The leaf `reward`, 1 by default,
multiplies all rewards of every probe, and so all values given here.

=====================  ============================================================
name                   what it isolates
=====================  ============================================================
Constant               the value of a constant
Observation            a value that depends on the observation
Discounting            the discount, and bootstrapping from a successor
Policy                 preferring the better action
PolicyObservation      a policy that depends on the observation
Credit                 credit over two steps
Truncation             bootstrapping where a time limit cuts the episode
Termination            not bootstrapping where the episode terminates
Memory                 a recurrent policy
ContinuousPolicy       the mean and the spread of a continuous action
ContinuousObservation  a continuous action that depends on the observation
MultiDiscretePolicy    several discrete actions at once
DictObservation        observations of several parts, a vector and an image
ActionMask             masking of illegal actions
=====================  ============================================================
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize


@struct.dataclass
class Params:
    """Parameters of most probes.

    Attributes:
      reward: what all rewards are multiplied by.
    """

    reward: Float[Array, ""]


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


@struct.dataclass
class TargetParams:
    """Parameters of `ContinuousPolicy`.

    Attributes:
      reward: what all rewards are multiplied by.
      target: the best action.
    """

    reward: Float[Array, ""]
    target: Float[Array, ""]


@struct.dataclass
class ProbeState:
    """State of every probe.

    Attributes:
      time: steps since the reset.
      cue: what the reset drew, () if nothing; in `Credit`, after the first step, what that led to.
    """

    time: Int[Array, ""]
    cue: PyTree


def _leaf(value: float) -> Any:
    # NumPy, since a factory may run while something is being traced.
    return np.asarray(value, np.int32 if isinstance(value, int) else np.float32)


class _Rules(NamedTuple):
    """What makes one probe; `state` is the one before the action, except in `observe`."""

    horizon: Callable[[Any], Any]  # (params) -> steps of an episode
    observe: Callable[[ProbeState, Any], Any]  # (state, params)
    reward: Callable[[ProbeState, Any, Any], Any]  # (state, action, params), without the leaf
    params: Any = Params(_leaf(1.0))
    observation_space: spaces.Space = spaces.box(-1.0, 1.0, (1,))
    action_space: spaces.Space = spaces.Discrete(2)
    draw: Callable[[jax.Array], Any] = lambda key: ()
    follow: Callable[[ProbeState, Any], Any] = lambda state, action: state.cue  # the next cue
    truncates: bool = False
    info: Callable[[ProbeState, Any], dict[str, Any]] = lambda state, action: {}


def names() -> tuple[str, ...]:
    """All probes, in the order in which to try them."""
    return tuple(_PROBES)


@memoize
def make(name: str, **options: Any) -> Env:
    """Makes one probe.

    Args:
      name: one of `names()`; this module has a function of each, which says what there is to learn.
      **options: `max_episode_steps` of Truncation, `num_steps` of Termination, `length` of Memory,
        `target` of ContinuousPolicy; the others have none.

    Returns:
      The environment. Its `max_episode_steps` is the length of its episodes under the default
      parameters, also where they terminate there.

    Raises:
      ValueError: an option is out of its range.
      TypeError: the probe does not have the option.

    Example:
      >>> env = make("Credit")
      >>> env.max_episode_steps, env.default_params().reward.item()
      (2, 1.0)
    """
    rules = _PROBES[name](**options)

    def default_params() -> Any:
        return trees.as_arrays(rules.params)

    def reset(key: jax.Array, params: Any) -> tuple[ProbeState, Any]:
        state = ProbeState(jnp.zeros((), jnp.int32), rules.draw(key))
        return state, rules.observe(state, params)

    def step(key: jax.Array, state: ProbeState, action: Any, params: Any) -> tuple[ProbeState, EnvStep]:
        del key  # all chance is in the reset
        after = ProbeState(state.time + 1, rules.follow(state, action))
        over = after.time >= rules.horizon(params)
        never = jnp.zeros((), bool)
        return after, EnvStep(
            obs=rules.observe(after, params),
            reward=params.reward * jnp.asarray(rules.reward(state, action, params), jnp.float32),
            terminated=never if rules.truncates else over,
            truncated=over if rules.truncates else never,
            info=rules.info(state, action),
        )

    return Env(
        name=f"probe/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=rules.observation_space,
        action_space=rules.action_space,
        max_episode_steps=int(rules.horizon(rules.params)),
    )


def constant() -> _Rules:
    """One step that pays 1.

    Observation [0], reward 1 whatever the action, terminates.

    V = 1, Q(·) = 1. Fails: the critic's loss, its optimizer, or a reward that goes astray.
    """
    return _Rules(_steps(1), lambda state, params: jnp.zeros(1), lambda state, action, params: 1.0)


def observation() -> _Rules:
    """One step that pays what is seen.

    Observation [x] with x = ±1 at random, reward x whatever the action, terminates.

    V(x) = x, Q(x, ·) = x. Fails: the critic's input, or observations and rewards of different
    environments or times get mixed.
    """
    return _Rules(
        _steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: state.cue,
        draw=_sign,
    )


def discounting() -> _Rules:
    """Two steps, of which the second pays 1.

    Observation [0] then [1], rewards 0 then 1 whatever the actions, terminates.

    V(0) = γ, V(1) = 1. Fails: the discount, the bootstrap, or the pairing of an observation with
    its successor.
    """
    return _Rules(
        _steps(2),
        lambda state, params: jnp.minimum(state.time, 1).astype(jnp.float32)[None],
        lambda state, action, params: state.time == 1,
    )


def policy() -> _Rules:
    """One step that pays +1 for action 1 and -1 for action 0.

    Observation [0], terminates.

    π(1) = 1, V = 1, Q(0) = -1, Q(1) = 1; of the uniform policy V = 0. Fails: the sign of the
    policy's gradient, or actions stored other than those taken.
    """
    return _Rules(
        _steps(1),
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: _as_sign(action),
    )


def policy_observation() -> _Rules:
    """One step that pays for the action that matches the observation.

    Observation [x] with x = ±1 at random; action 1 matches x = +1 and action 0 matches x = -1.
    Reward +1 for a match, otherwise -1; terminates.

    π(1|+1) = π(0|-1) = 1, V(x) = 1, Q(x, a) = x(2a - 1); a policy blind to x has 0 on average.
    """
    return _Rules(
        _steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: state.cue * _as_sign(action),
        draw=_sign,
    )


def credit() -> _Rules:
    """Two steps, of which the first action decides what the second step pays.

    Observation [x, 0] with x = ±1 at random; the first action pays nothing and matches x or not, as
    in `policy_observation`. The second observation [m, 1] tells by m = ±1, and the second step pays
    m whatever its action; terminates.

    π(1|+1, 0) = π(0|-1, 0) = 1, V(x, 0) = γ, V(m, 1) = m, Q((x, 0), a) = γ x(2a - 1); of the
    uniform policy V(x, 0) = 0. Fails: the λ-trace, the n-step return, or rewards a step off.
    """
    return _Rules(
        _steps(2),
        lambda state, params: jnp.stack([state.cue, jnp.minimum(state.time, 1).astype(jnp.float32)]),
        lambda state, action, params: jnp.where(state.time == 1, state.cue, 0.0),
        observation_space=spaces.box((-1.0, 0.0), (1.0, 1.0), (2,)),
        draw=_sign,
        follow=lambda state, action: jnp.where(state.time == 0, state.cue * _as_sign(action), state.cue),
    )


def truncation(max_episode_steps: int = 5) -> _Rules:
    """Steps that pay 1 each, without end but for a time limit that is not seen.

    Observation [0], reward 1 whatever the action, truncated after L = `max_episode_steps`.

    V = 1 / (1 - γ). Where truncation is taken for termination, the value is smaller: with all steps
    weighed alike, one-step targets have the fixed point 1 / (1 - γ(L - 1)/L), less than L.

    Args:
      max_episode_steps: default of the leaf L.
    """
    _at_least_one("Truncation", "max_episode_steps", max_episode_steps)
    return _Rules(
        lambda params: params.max_episode_steps,
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: 1.0,
        params=TimeLimitParams(_leaf(1.0), _leaf(max_episode_steps)),
        truncates=True,
    )


def termination(num_steps: int = 5) -> _Rules:
    """Steps that pay 1 each, terminates after a number of steps that is seen.

    Observation: one-hot of the step k = 0 … `num_steps` - 1, all zeros after the end; reward 1
    whatever the action.

    V(k) = Σ_{i < num_steps - k} γ^i = (1 - γ^(num_steps - k)) / (1 - γ). Where termination is taken
    for truncation, the values grow toward 1 / (1 - γ).

    Args:
      num_steps: length of an episode and of the observation (static).
    """
    _at_least_one("Termination", "num_steps", num_steps)
    return _Rules(
        _steps(num_steps),
        lambda state, params: jax.nn.one_hot(state.time, num_steps, dtype=jnp.float32),
        lambda state, action, params: 1.0,
        observation_space=spaces.box(0.0, 1.0, (num_steps,)),
    )


def memory(length: int = 3) -> _Rules:
    """The first observation shows a cue, which the last action has to match.

    At t = 0 the observation is [x, 0] with x = ±1 at random, then come `length` - 1 blank ones
    [0, 0], and at t = `length` [0, 1] asks: the action pays +1 if it matches x, as in
    `policy_observation`, otherwise -1, and the episode terminates. Other actions do nothing.

    V(t) = γ^(length - t) for a policy that remembers; a policy without memory has 0 on average.

    Args:
      length: default of the leaf, steps from the cue to the question.
    """
    _at_least_one("Memory", "length", length)

    def asks(state: ProbeState, params: MemoryParams) -> Array:
        return state.time == params.length

    def observe(state: ProbeState, params: MemoryParams) -> Array:
        shown = jnp.where(state.time == 0, state.cue, 0.0)
        return jnp.stack([shown, asks(state, params).astype(jnp.float32)])

    def reward(state: ProbeState, action: Any, params: MemoryParams) -> Array:
        return jnp.where(asks(state, params), state.cue * _as_sign(action), 0.0)

    return _Rules(
        lambda params: params.length + 1,
        observe,
        reward,
        params=MemoryParams(_leaf(1.0), _leaf(length)),
        observation_space=spaces.box((-1.0, 0.0), (1.0, 1.0), (2,)),
        draw=_sign,
    )


def continuous_policy(target: float = 0.5) -> _Rules:
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
    return _Rules(
        _steps(1),
        lambda state, params: jnp.zeros(1),
        lambda state, action, params: -jnp.square(action[0] - params.target),
        params=TargetParams(_leaf(1.0), _leaf(float(target))),
        action_space=spaces.box(-1.0, 1.0, (1,)),
    )


def continuous_observation() -> _Rules:
    """One step that pays for closeness to the observation.

    Observation [x], uniform in [-0.5, 0.5], action [a] in [-1, 1], reward -(a - x)², terminates.

    a*(x) = x, V(x) = 0, Q(x, a) = -(a - x)². The best policy blind to x, a = 0, has
    -Var[x] = -1/12 on average.
    """
    return _Rules(
        _steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: -jnp.square(action[0] - state.cue),
        observation_space=spaces.box(-0.5, 0.5, (1,)),
        action_space=spaces.box(-1.0, 1.0, (1,)),
        draw=lambda key: jax.random.uniform(key, (), jnp.float32, -0.5, 0.5),
    )


def multi_discrete_policy() -> _Rules:
    """One step that pays 1 for each of two actions that is right for the observation.

    Observation [x] with x = ±1 at random; of the actions (2, 3) the best are (1, 2) for x = +1 and
    (0, 0) for x = -1. Reward: how many of the two are right; terminates.

    V(x) = 2; of the uniform policy V(x) = 1/2 + 1/3; a policy blind to x has at most 1 on average.
    """
    return _Rules(
        _steps(1),
        lambda state, params: state.cue[None],
        lambda state, action, params: jnp.sum(action == jnp.where(state.cue > 0, jnp.array([1, 2]), 0)),
        action_space=spaces.MultiDiscrete((2, 3)),
        draw=_sign,
    )


def dict_observation() -> _Rules:
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
        return 0.5 * x * _as_sign(action // 2) + 0.5 * y * _as_sign(action % 2)

    return _Rules(
        _steps(1),
        observe,
        reward,
        observation_space=spaces.Dict(
            (("vector", spaces.box(-1.0, 1.0, (2,))), ("image", spaces.box(0.0, 1.0, (4, 4, 1))))
        ),
        action_space=spaces.Discrete(4),
        draw=lambda key: jax.random.rademacher(key, (2,), jnp.float32),
    )


def action_mask() -> _Rules:
    """One step of four actions, of which the one that pays most is often illegal.

    A legal action i pays i/3, an illegal one -1 and `info["illegal"]`; terminates. Observation:
    `observation` [0], and `action_mask` [4], true for action 0 and with probability 1/2 for each
    other one.

    With L the last legal action, V(mask) = L/3, on average 17/24. `illegal` never comes true for a
    policy that masks; one that ignores the mask has at most 0 on average.
    """
    return _Rules(
        _steps(1),
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


_PROBES: dict[str, Callable[..., _Rules]] = {
    "Constant": constant,
    "Observation": observation,
    "Discounting": discounting,
    "Policy": policy,
    "PolicyObservation": policy_observation,
    "Credit": credit,
    "Truncation": truncation,
    "Termination": termination,
    "Memory": memory,
    "ContinuousPolicy": continuous_policy,
    "ContinuousObservation": continuous_observation,
    "MultiDiscretePolicy": multi_discrete_policy,
    "DictObservation": dict_observation,
    "ActionMask": action_mask,
}


def _steps(num_steps: int) -> Callable[[Any], int]:
    return lambda params: num_steps


def _sign(key: jax.Array) -> Array:
    return jax.random.rademacher(key, (), jnp.float32)


def _as_sign(action: Any) -> Array:
    return 2.0 * action - 1.0


def _at_least_one(probe: str, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"probe/{probe}: {name} must be a whole number of at least 1; got {name} = {value!r}.")
