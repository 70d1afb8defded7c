"""The actor-critic network: one module for every observation space, action space, torso and memory."""

import dataclasses
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces
from jaxrl.networks.initializers import initialize, orthogonal
from jaxrl.networks.recurrent import CORES, initial_memory
from jaxrl.networks.torsos import MLP, Encoder, activation_function
from jaxrl.ops import distributions, trees
from jaxrl.types import Key, Memory, Observation, memoize

Policy = Literal["gaussian", "tanh_gaussian", "mixture", "bang_bang", "bang_off_bang", "autoregressive"]


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The part of an `ActorCritic` that does not follow from the environment.

    Attributes:
      hidden: widths of the torsos' dense layers.
      activation: tanh, relu, gelu, silu or elu.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
      layer_norm: whether dense layers are normalized.
      memory: none, gru, lstm or s5.
      memory_size: width of the recurrent core.
      share_core: whether policy and value read one encoder and one core, if there is a memory; otherwise each has its
        own. Algorithms that step along the policy's gradient alone (n_pg_igt, harpg, mac) have two either way.
      policy: the distribution of actions. Of a Box: gaussian, tanh_gaussian, mixture, bang_bang or bang_off_bang. Of a
        MultiDiscrete: autoregressive, otherwise independent parts. A Discrete one is categorical.
      num_components: of a mixture.
      state_std: whether the standard deviation depends on the observation; otherwise it is one free parameter for each
        entry of the action.
      weight_norm: whether dense layers of the torsos have weights g v / ‖v‖.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "tanh"
    convolve: bool = True
    layer_norm: bool = False
    memory: Literal["none", "gru", "lstm", "s5"] = "none"
    memory_size: int = 128
    share_core: bool = True
    policy: Policy = "gaussian"
    num_components: int = 4
    state_std: bool = False
    weight_norm: bool = False


@struct.dataclass
class Output:
    """What an actor-critic says of observations with leading axes [...].

    Attributes:
      policy: a distribution over actions, batch shape [...].
      value: estimated return, [...].
      heads: further outputs by name, each [..., size].
    """

    policy: Any
    value: Float[Array, "..."]
    heads: dict[str, Array]


class ActorCritic(nn.Module):
    """A policy and a value function.

    Without memory, policy and value have torsos of their own and leading axes are free. With memory, inputs are
    [T, B, ...], the memory is forgotten wherever an episode starts, and both read one encoder and one recurrent core,
    or have no parameter in common (`share_core=False`; the memory is then a pair, the policy's and the value's).

    A `Box` policy works in units where the bounds are -1 and 1; `to_env_action` maps to the environment's.

    Attributes:
      observation_space: space of one observation.
      action_space: space of one action.
      hidden: widths of the torsos' dense layers.
      activation: name of the activation (`tanh`, `relu`, `gelu`, `silu`, `elu`).
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
      layer_norm: whether dense layers are normalized.
      memory: `none`, `gru`, `lstm` or `s5`.
      memory_size: width of the recurrent core.
      share_core: whether policy and value share encoder and core, if there is a memory.
      critic: whether there is a value; otherwise it is 0 and has no parameters.
      policy: `gaussian`, `tanh_gaussian`, `mixture`, `bang_bang` or `bang_off_bang` for a `Box`; `autoregressive` for a
        `MultiDiscrete`.
      num_components: K of a mixture.
      state_std: whether the standard deviation depends on the observation.
      weight_norm: whether dense layers of the torsos have weights g v / ‖v‖.
      heads: further linear outputs as (name, size), which an objective may ask for.
      dtype: of the torsos' computation; parameters and outputs stay float32.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    convolve: bool = True
    layer_norm: bool = False
    memory: str = "none"
    memory_size: int = 128
    share_core: bool = True
    critic: bool = True
    policy: str = "gaussian"
    num_components: int = 4
    state_std: bool = False
    weight_norm: bool = False
    heads: tuple[tuple[str, int], ...] = ()
    dtype: Any = jnp.float32

    @property
    def recurrent(self) -> bool:
        """Whether there is a memory."""
        return self.memory != "none"

    @property
    def separate(self) -> bool:
        """Whether no parameter moves both the policy and the value."""
        return not (self.recurrent and self.share_core and self.critic)

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> Memory:
        """Memory at the start of an episode, leaves [*batch_shape, ...]; `()` without memory."""
        # Of each core its own arrays: one put into a state twice could not be donated.
        fresh = lambda: initial_memory(self.memory, self.memory_size, batch_shape)
        return (fresh(), fresh()) if self.recurrent and self.separate and self.critic else fresh()

    @nn.compact
    def __call__(self, obs: Any, memory: Memory = (), start: Bool[Array, "..."] | None = None) -> tuple[Output, Memory]:
        """Evaluates observations.

        Args:
          obs: observations [..., *shape], or [T, B, *shape] with memory.
          memory: memory before the first of them, leaves [B, ...].
          start: true where an observation is the first of its episode, [T, B]; read only with memory.

        Returns:
          The outputs [...], and the memory after the last observation.
        """
        if not self.critic:
            actor, memory = self._branch("actor", obs, memory, start)
            value = jnp.zeros(actor.shape[:-1])
        elif self.separate:
            of_actor, of_critic = memory if self.recurrent else ((), ())
            actor, of_actor = self._branch("actor", obs, of_actor, start)
            critic, of_critic = self._branch("critic", obs, of_critic, start)
            memory = (of_actor, of_critic) if self.recurrent else ()
            value = self._value(critic)
        else:
            actor, memory = self._branch("", obs, memory, start)
            value = self._value(actor)
        mask = obs.get("action_mask") if isinstance(obs, dict) else None
        heads = {
            name: nn.Dense(size, kernel_init=orthogonal(1.0), name=f"head_{name}")(actor) for name, size in self.heads
        }
        return Output(self._distribution(actor, mask), value, heads), memory

    def _branch(self, of: str, obs: Any, memory: Memory, start: Array | None) -> tuple[Array, Memory]:
        """Encoder, torso and core of the policy (`actor`), of the value (`critic`) or of both (an empty name)."""
        prefix = f"{of}_" if of else ""
        encoder = Encoder(self.observation_space, self.convolve, self.activation, self.dtype, name=f"{prefix}encoder")
        torso = MLP(self.hidden, self.activation, self.layer_norm, self.dtype, self.weight_norm, name=of or "torso")
        features = torso(encoder(obs)).astype(jnp.float32)
        if not self.recurrent:
            return features, memory
        assert start is not None
        memory, features = CORES[self.memory](self.memory_size, name=f"{prefix}core")(memory, features, start)
        return features.astype(jnp.float32), memory

    def _value(self, features: Array) -> Array:
        return nn.Dense(1, kernel_init=orthogonal(1.0), name="value")(features)[..., 0]

    def _distribution(self, features: Array, mask: Array | None) -> Any:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            logits = self._linear("policy", space.n, features)
            if mask is None:
                return distributions.Categorical(logits)
            return distributions.masked_categorical(logits, mask.reshape(logits.shape))
        if isinstance(space, spaces.MultiDiscrete):
            return self._several(space.nvec, features, mask)
        num = spaces.size(space)
        if self.policy in _LEVELS:
            return self._extremes(num, _LEVELS[self.policy], features)
        if self.policy == "mixture":
            shape = (self.num_components, num)
            router = self._linear("router", self.num_components, features)
            return distributions.GaussianMixture(router, *self._normal(shape, features))
        mean, log_std = self._normal((num,), features)
        if self.policy == "tanh_gaussian":
            return distributions.TanhGaussian(mean, log_std, -1.0, 1.0)
        return distributions.Gaussian(mean, log_std)

    def _several(self, nvec: tuple[int, ...], features: Array, mask: Array | None) -> Any:
        parts = part_logits(nvec, self._linear("policy", sum(nvec), features), mask)
        if self.policy != "autoregressive":
            return distributions.MultiCategorical(parts)
        shapes = list(zip(_starts(nvec), nvec[1:], strict=True))
        sizes = [math.prod(shape) for shape in shapes]
        flat = self._linear("tables", sum(sizes), features)
        tables = jnp.split(flat, [sum(sizes[:i]) for i in range(1, len(sizes))], axis=-1)
        reshaped = [table.reshape((*flat.shape[:-1], *shape)) for table, shape in zip(tables, shapes, strict=True)]
        return distributions.AutoregressiveCategorical(parts, tuple(reshaped))

    def _extremes(self, num: int, num_levels: int, features: Array) -> Any:
        # The first value's logit is 0, so that two values are a Bernoulli variable with one logit.
        free = self._linear("policy", num * (num_levels - 1), features).reshape((*features.shape[:-1], num, -1))
        return distributions.BangBang(jnp.concatenate([jnp.zeros_like(free[..., :1]), free], axis=-1))

    def _normal(self, shape: tuple[int, ...], features: Array) -> tuple[Array, Array]:
        """Means and logarithms of standard deviations, [..., *shape]."""
        full = (*features.shape[:-1], *shape)
        mean = self._linear("policy", math.prod(shape), features).reshape(full)
        if self.state_std:
            return mean, self._linear("log_std", math.prod(shape), features).reshape(full)
        return mean, jnp.broadcast_to(self.param("log_std", nn.initializers.zeros, shape), full)

    def _linear(self, name: str, size: int, features: Array) -> Array:
        return nn.Dense(size, kernel_init=orthogonal(0.01), name=name)(features)


_LEVELS = {"bang_bang": 2, "bang_off_bang": 3}


def _starts(nvec: tuple[int, ...]) -> list[int]:
    """Where the parts of a `MultiDiscrete` begin in one row of logits, but for the first."""
    return [sum(nvec[:i]) for i in range(1, len(nvec))]


def part_logits(nvec: tuple[int, ...], logits: Float[Array, "... A"], mask: Array | None) -> tuple[Array, ...]:
    """The logits of each part of a `MultiDiscrete`, where those of illegal actions are replaced.

    Args:
      nvec: actions of each part.
      logits: of all parts, one after the other.
      mask: true where an action is legal, of as many entries in any shape after the leading axes; None: all are.

    >>> [x.shape for x in part_logits((2, 3), jnp.zeros((4, 5)), None)]
    [(4, 2), (4, 3)]
    """
    parts = jnp.split(logits, _starts(nvec), axis=-1)
    if mask is None:
        return tuple(parts)
    masks = jnp.split(mask.reshape(logits.shape), _starts(nvec), axis=-1)
    return tuple(distributions.masked_categorical(*part).logits for part in zip(parts, masks, strict=True))


def init_params(net: ActorCritic, key: Key, obs: Observation) -> PyTree:
    """Draws a network's parameters.

    Args:
      net: the network.
      key: a random key.
      obs: one observation; only its shapes matter.

    Returns:
      What `apply_one`, `apply_step` and `net.apply` take.
    """
    return initialize(net, key, *_inputs_of_one(net, obs, net.initial_memory()))


def apply_one(net: ActorCritic, params: PyTree, obs: Observation, memory: Memory) -> tuple[Output, Memory]:
    """Applies a network to one observation of one environment, as acting does.

    Args:
      net: the network.
      params: its parameters.
      obs: an observation, no leading axes.
      memory: what it remembers; where an episode starts, `net.initial_memory()`.

    Returns:
      The output, batch shape (), and the memory after the observation.
    """
    output, memory = net.apply(params, *_inputs_of_one(net, obs, memory))  # type: ignore[misc]
    if not net.recurrent:
        return output, memory
    return jax.tree.map(lambda x: x[0, 0], output), jax.tree.map(lambda x: x[0], memory)


def apply_step(
    net: ActorCritic, params: PyTree, obs: Observation, memory: Memory, start: Bool[Array, " B"]
) -> tuple[Output, Memory]:
    """Applies a network to one time step of a batch of environments.

    Args:
      net: the network.
      params: its parameters.
      obs: observations [B, ...].
      memory: before them, leaves [B, ...].
      start: whether they are the first of an episode.

    Returns:
      The outputs [B], and the memory after the observations.
    """
    if not net.recurrent:
        return net.apply(params, obs)  # type: ignore[return-value]
    output, memory = net.apply(params, jax.tree.map(lambda x: x[None], obs), memory, start[None])  # type: ignore[misc]
    return jax.tree.map(lambda x: x[0], output), memory


def memories_of(
    net: ActorCritic, params: PyTree, obs: Observation, memory: Memory, start: Bool[Array, "T B"]
) -> Memory:
    """What a network remembers after each observation of a rollout, for `successor_value`.

    Args:
      net: the network.
      params: its parameters.
      obs: observations, leaves [T, B, ...].
      memory: before the first of them, leaves [B, ...].
      start: whether they are the first of an episode.

    Returns:
      Leaves [T, B, ...]; () without memory.
    """
    if not net.recurrent:
        return ()

    def step(memory: Memory, row: tuple[Observation, Array]) -> tuple[Memory, Memory]:
        _, memory = apply_step(net, params, row[0], memory, row[1])
        return memory, memory

    return jax.lax.scan(step, memory, (obs, start))[1]


def successor_value(net: ActorCritic, params: PyTree, next_obs: Observation, memory: Memory) -> Float[Array, " T B"]:
    """Values the true successors of a rollout's steps: those of the next episode's first observation nowhere.

    Args:
      net: the network.
      params: its parameters.
      next_obs: the successor observation of each step, leaves [T, B, ...].
      memory: after each step's own observation, leaves [T, B, ...].

    Returns:
      V(s'), [T, B].
    """
    shape = jax.tree.leaves(next_obs)[0].shape[:2]
    flat_obs, flat_memory = trees.flatten_time((next_obs, memory))
    never = jnp.zeros(shape[0] * shape[1], bool)
    return apply_step(net, params, flat_obs, flat_memory, never)[0].value.reshape(shape)


def _inputs_of_one(net: ActorCritic, obs: Observation, memory: Memory) -> tuple[Any, ...]:
    """One observation as the network wants it: as it is, or [1, 1, ...] with memory [1, ...]."""
    if not net.recurrent:
        return (obs,)
    return jax.tree.map(lambda x: x[None, None], obs), jax.tree.map(lambda x: x[None], memory), jnp.zeros((1, 1), bool)


def is_core(name: str) -> bool:
    """Whether a module of an `ActorCritic` is a recurrent core, by its name."""
    return name in ("core", "actor_core", "critic_core")


def only_value_reads(path: tuple[Any, ...]) -> bool:
    """Whether a parameter of an `ActorCritic`, by its path in the tree, moves the value and not the policy."""
    return trees.path_name(path).split(".")[1] in ("critic", "critic_encoder", "critic_core", "value")


def to_env_action(space: spaces.Space, action: Any) -> Any:
    """Maps a policy's action to the environment's: a bounded `Box` from [-1, 1], clipped, to its bounds.

    Args:
      space: the environment's action space.
      action: actions [..., n] for a `Box` of n entries, otherwise as the space has them.

    Returns:
      Actions of the space's shape and dtype, with the same leading axes.
    """
    if not isinstance(space, spaces.Box):
        return action
    shape = (*action.shape[:-1], *space.shape)
    if not space.bounded:
        return action.reshape(shape).astype(space.dtype)
    low, high = (jnp.broadcast_to(bound.ravel(), action.shape) for bound in (space.low_array, space.high_array))
    scaled = jnp.clip(action, -1.0, 1.0) * (0.5 * (high - low)) + 0.5 * (high + low)
    return scaled.reshape(shape).astype(space.dtype)


@memoize
def actor_critic(observation_space: spaces.Space, action_space: spaces.Space, **options: Any) -> ActorCritic:
    """Builds an `ActorCritic` for two spaces.

    Args:
      observation_space: space of one observation.
      action_space: space of one action.
      **options: attributes of `ActorCritic`.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: an option is unknown or has a value that it cannot have.

    Example:
      >>> import jax
      >>> net = actor_critic(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2), hidden=(8,))
      >>> params = net.init(jax.random.key(0), jnp.zeros((3,)))
      >>> net.apply(params, jnp.zeros((5, 3)))[0].value.shape
      (5,)
    """
    known = set(ActorCritic.__dataclass_fields__) - {
        "parent",
        "name",
        "observation_space",
        "action_space",
    }
    if unknown := set(options) - known:
        raise ValueError(f"Unknown network options {sorted(unknown)}; there are {sorted(known)}.")
    network = ActorCritic(observation_space, action_space, **options)
    activation_function(network.activation)
    if network.memory not in ("none", *CORES):
        raise ValueError(f"memory must be none or one of {sorted(CORES)}; got memory = {network.memory!r}.")
    _check_policy(network)
    return network


def _check_policy(network: ActorCritic) -> None:
    policy, space = network.policy, network.action_space
    box = isinstance(space, spaces.Box)
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}; got policy = {policy!r}.")
    if isinstance(space, spaces.Dict):
        raise ValueError("actor_critic has no head for a Dict of actions; wrap the environment to flatten its actions.")
    if policy in ("tanh_gaussian", *_LEVELS) and not (box and space.bounded):
        raise ValueError(f"policy = {policy!r} needs a Box of actions with finite bounds; got {space}.")
    if policy == "mixture" and not box:
        raise ValueError(f"policy = 'mixture' needs a Box of actions; got {space}.")
    if policy == "autoregressive":
        if not isinstance(space, spaces.MultiDiscrete) or len(space.nvec) < 2:
            raise ValueError(f"policy = 'autoregressive' needs a MultiDiscrete of at least two parts; got {space}.")
        distributions.check_num_joint_actions(space.nvec)
    if network.num_components < 1:
        raise ValueError(f"num_components must be at least 1; got num_components = {network.num_components}.")
    if policy != "mixture" and network.num_components != NetworkConfig.num_components:
        raise ValueError(
            f"num_components is read by policy = 'mixture' only; got num_components = {network.num_components} with "
            f"policy = {policy!r}."
        )
    if network.state_std and (not box or policy in _LEVELS):
        raise ValueError(f"state_std needs a policy with a standard deviation; got policy = {policy!r} for {space}.")
    check_mask(network.observation_space, space)


def check_mask(observed: spaces.Space, space: spaces.Space) -> None:
    """Checks that the mask of legal actions in observations, if there is one, is of the actions.

    Args:
      observed: space of one observation.
      space: space of one action.

    Raises:
      ValueError: it has another number of entries.
    """
    if not (isinstance(observed, spaces.Dict) and "action_mask" in observed.names):
        return
    mask = observed["action_mask"]
    if isinstance(space, spaces.Discrete) and spaces.size(mask) != space.n:
        raise ValueError(f"action_mask of {space} must have {space.n} entries; got {mask}.")
    if isinstance(space, spaces.MultiDiscrete) and spaces.size(mask) != sum(space.nvec):
        raise ValueError(
            f"action_mask of {space} must have {sum(space.nvec)} entries, the parts' masks one after the other; "
            f"got {mask}."
        )
