"""What agents with an actor-critic network share: building it, its optimizers, collecting and acting with it."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.networks import ActorCritic, NetworkConfig, actor_critic
from jaxrl.networks.actor_critic import Output, only_value_reads, to_env_action
from jaxrl.ops import returns, trees
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.spaces import Space
from jaxrl.types import Action, Env, EnvParams, Key, Memory, Metrics, Objective, Observation, memoize

Look = Callable[[Observation, Memory, Bool[Array, " B"]], tuple[Output, Memory]]
"""`(obs [B], memory [B], start [B]) -> (output [B], memory [B])`: a network with its parameters."""


FixedPolicy = Callable[[Key | None, Observation], Action]
"""`(key, obs) -> action` for one environment; without a key its mode."""


def fixed_policy(space: Space, policy: FixedPolicy | None) -> FixedPolicy:
    """The policy given, or uniformly random actions, whose mode is the first."""
    return policy or (lambda key, obs: spaces.zeros(space) if key is None else spaces.sample(space, key))


def return_error(
    value: Float[Array, " T"],
    reward: Float[Array, " T"],
    next_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    gamma: Float[Array, ""],
) -> Float[Array, " T"]:
    """Squared difference of each prediction and the discounted rewards that followed, bootstrapped where they end.

    >>> no, one = jnp.zeros(2, bool), jnp.ones(2)
    >>> return_error(one, one, one, no, no, jnp.float32(0.5)).tolist()  # 1.75 and 1.5 followed
    [0.5625, 0.25]
    """
    return jnp.square(value - returns.lambda_returns(reward, next_value, terminated, truncated, gamma, 1.0))


def network_for(env: Env, network: ActorCritic | None, config: NetworkConfig, separate: bool = False) -> ActorCritic:
    """The network given, or the one that a config describes for the environment's spaces.

    Args:
      env: the environment.
      network: the network, or None.
      config: of the one to build.
      separate: whether no parameter may move both policy and value: what is built has two cores if it has a memory.

    Raises:
      ValueError: both are given, the network is for other actions, or it shares what must be separate.
    """
    validation.made_for(network, env)
    if network is not None and config != NetworkConfig():
        raise ValueError(f"Pass a network or set config.network, not both; got {network} and {config}.")
    if network is not None and separate and not network.separate:
        raise ValueError(
            "Policy and value must have no parameter in common, since each has a step of its own; got a network with "
            f"memory = {network.memory!r} and share_core = True. Set share_core=False."
        )
    options = dataclasses.asdict(config) | ({"share_core": False} if separate else {})
    return network or actor_critic(env.observation_space, env.action_space, **options)


def with_variables(params: PyTree, objective: Objective) -> PyTree:
    """A network's parameters with an objective's own (`Objective.variables`) in a collection that no network reads."""
    variables = objective.variables()
    return {**params, "objective": {"variables": trees.as_arrays(variables)}} if jax.tree.leaves(variables) else params


def variables_of(params: PyTree) -> PyTree:
    """The objective's own parameters, or ()."""
    return params.get("objective", {}).get("variables", ())


def collect(
    key: Key,
    env: Env,
    env_params: EnvParams,
    actor: rollout.ActorState,
    look: Look,
    num_steps: int,
    reset: rollout.Reset,
    keep_log_prob: bool = False,
) -> tuple[rollout.ActorState, rollout.Transition, Metrics]:
    """Steps B environments T times with actions sampled from a policy.

    Args:
      key: a random key.
      env: the environment.
      env_params: its parameters.
      actor: from `rollout.start` or the last call.
      look: the policy that acts.
      num_steps: T.
      reset: where new episodes start.
      keep_log_prob: whether `extras` of the transitions is the log-probability of the action, [T, B]; otherwise ().

    Returns:
      As `rollout.collect`.
    """
    key_noise, key_collect = jax.random.split(key)

    def policy(noise: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
        output, memory = look(obs, memory, start)
        action = output.policy.sample_from(noise)
        extras = output.policy.log_prob(action) if keep_log_prob else ()
        return action, to_env_action(env.action_space, action), memory, extras

    # The noise of all steps in one draw: inside the loop over time it would cost more than the network.
    shapes, _ = jax.eval_shape(look, actor.obs, actor.memory, actor.start)
    noise = jax.vmap(shapes.policy.noise)(jax.random.split(key_noise, num_steps))
    return rollout.collect(key_collect, env, env_params, actor, policy, noise, reset)


def choose(env: Env, output: Output, key: Key | None) -> Action:
    """An action for the environment from a policy over one observation: sampled, or the mode if the key is None."""
    action = output.policy.mode() if key is None else output.policy.sample(key)
    return to_env_action(env.action_space, action)


@dataclasses.dataclass(frozen=True)
class Separate:
    """An `Optimizer` of `separate`; a type of its own, since it does not go with every network.

    Attributes:
      policy: of all parameters but the value's.
      value: of the value's.
      value_rate: its rate.
    """

    policy: Optimizer
    value: Optimizer
    value_rate: float

    def __call__(self, hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
        """The transformation for these hyperparameters."""
        parts: dict[Hashable, optax.GradientTransformation] = {
            "policy": self.policy(hparams, learning_rate),
            "value": self.value(hparams, jnp.float32(self.value_rate)),
        }
        role = lambda path, _: "value" if only_value_reads(path) else "policy"
        return optax.partition(parts, lambda params: jax.tree_util.tree_map_with_path(role, params))


@memoize
def separate(policy: Optimizer, value: Optimizer = adam, value_rate: float = 1e-3) -> Separate:
    """One optimizer for the parameters that only an `ActorCritic`'s value reads, another for all others.

    For a rule with a norm or a step size that is the policy's own, which the value's gradient would spoil. So with a
    memory the network has two cores (`NetworkConfig.share_core`), which `ppo` sees to.

    Args:
      policy: of all parameters but the value's; `learning_rate` is its rate.
      value: of the value's parameters.
      value_rate: its rate.

    Raises:
      ValueError: `value_rate` is not positive.

    Example:
      >>> import types
      >>> import jax.numpy as jnp
      >>> from jaxrl.ops.optimizers import gradient_transport
      >>> transform = separate(gradient_transport())(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
      >>> params = {"params": {"policy": jnp.float32(0.0), "value": jnp.float32(0.0)}}
      >>> updates, _ = transform.update(params | {}, transform.init(params), params)
      >>> sorted(updates["params"])
      ['policy', 'value']
    """
    if not value_rate > 0:
        raise ValueError(f"separate: value_rate must be positive; got value_rate = {value_rate}.")
    return Separate(policy, value, value_rate)
