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
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.probe import interfaces, learning
from jaxrl.envs.probe.rules import Params, ProbeState, Rules
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

__all__ = ["Params", "ProbeState", "make", "names"]

_PROBES: dict[str, Callable[..., Rules]] = {
    "Constant": learning.constant,
    "Observation": learning.observation,
    "Discounting": learning.discounting,
    "Policy": learning.policy,
    "PolicyObservation": learning.policy_observation,
    "Credit": learning.credit,
    "Truncation": learning.truncation,
    "Termination": learning.termination,
    "Memory": learning.memory,
    "ContinuousPolicy": interfaces.continuous_policy,
    "ContinuousObservation": interfaces.continuous_observation,
    "MultiDiscretePolicy": interfaces.multi_discrete_policy,
    "DictObservation": interfaces.dict_observation,
    "ActionMask": interfaces.action_mask,
}


def names() -> tuple[str, ...]:
    """All probes, in the order in which to try them."""
    return tuple(_PROBES)


@memoize
def make(name: str, **options: Any) -> Env:
    """Makes one probe.

    Args:
      name: one of `names()`; `learning` and `interfaces` have a function of each, which says what there is to learn.
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
