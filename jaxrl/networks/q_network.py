"""The network of value-based agents: K outputs for every discrete action, with parts that are asked for.

    features   x = MLP(encode(obs))                                   all hidden layers but the last
    memory     x, m ← core(x, m)                                      over time, if recurrent
    implicit   x ← x ⊙ relu(Dense(cos(π i τ)))                        for each fraction τ, if implicit
    stream     y = activation(Dense(x))                               the last hidden layer
    outputs    Dense(y), or V + A - mean_a A of two such streams      [..., A, K]

Sources: Wang et al. 2016, arXiv:1511.06581, eq. 9 (dueling); Fortunato et al. 2018, arXiv:1706.10295, eq. 8 to 11
(factorized noise); Dabney et al. 2018, arXiv:1806.06923, eq. 4 (implicit quantiles).
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces, validation
from jaxrl.networks.initializers import initialize, orthogonal
from jaxrl.networks.recurrent import CORES, initial_memory
from jaxrl.networks.torsos import MLP, Encoder, activation_function
from jaxrl.types import Key, Memory, Observation, memoize

_NOISE = 0.5
"""σ_0 of the deviations at the beginning, σ_0 / √inputs."""
_NUM_COSINES = 64


@dataclasses.dataclass(frozen=True)
class QNetworkConfig:
    """The part of a `QNetwork` that follows neither from the environment nor from the head.

    Attributes:
      hidden: widths of the dense layers; the last one is each stream's own.
      activation: relu, tanh, gelu, silu or elu.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
      layer_norm: whether dense layers are normalized before their activation.
      dueling: whether a value and advantages are apart.
      noisy: whether the dense layers but the first ones that are shared have learned noise; it replaces random actions.
      memory: none, gru, lstm or s5: a recurrent core between the shared layers and the streams.
      memory_size: width of the core.
      num_members: networks of an ensemble, each of which makes an equal part of the K outputs.
      prior: factor of the outputs of a network that stays as it was drawn, added to those of each member (Osband et
        al. 2018, arXiv:1806.03335); several: one for each of as many equal parts of a member's outputs; (): there is
        none. An optimizer that decays weights decays its weights too.
    """

    hidden: tuple[int, ...] = (120, 84)
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "relu"
    convolve: bool = True
    layer_norm: bool = False
    dueling: bool = False
    noisy: bool = False
    memory: Literal["none", "gru", "lstm", "s5"] = "none"
    memory_size: int = 128
    num_members: int = 1
    prior: tuple[float, ...] = ()


@struct.dataclass
class QOutput:
    """What a `QNetwork` says of observations with leading axes [...].

    Attributes:
      values: of every action, [..., A, K].
      fractions: the τ that the K values belong to, [..., K], if implicit; otherwise ().
      memory: after the last observation, leaves [B, ...], if recurrent; otherwise ().
      stock: what the observations say was earned so far (`jaxrl.wrappers.observe_stock`), [...]; () if they do not.
    """

    values: Float[Array, "... A K"]
    fractions: Any = ()
    memory: Memory = ()
    stock: Any = ()


class NoisyDense(nn.Module):
    """A dense layer with learned, factorized Gaussian noise on weights and biases.

        y = (μ_w + σ_w ⊙ f(ε_in) f(ε_out)ᵀ)ᵀ x + μ_b + σ_b ⊙ f(ε_out),   f(ε) = sign(ε) √|ε|

    One draw of the noise serves all leading axes of x.

    Attributes:
      features: units.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "... D"], key: Key | None) -> Float[Array, "... F"]:
        """Maps [..., D] to [..., features]; without a key there is no noise."""
        num_inputs = x.shape[-1]
        bound = 1.0 / math.sqrt(num_inputs)
        mean = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        deviation = nn.initializers.constant(_NOISE * bound)
        shape = (num_inputs, self.features)
        kernel, kernel_std = self.param("kernel", mean, shape), self.param("kernel_std", deviation, shape)
        bias = self.param("bias", mean, (self.features,))
        bias_std = self.param("bias_std", deviation, (self.features,))
        if key is None:
            y = x @ kernel
            return y + jnp.broadcast_to(bias, y.shape)
        noise = jax.random.normal(key, (num_inputs + self.features,))
        noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
        kernel = kernel + kernel_std * jnp.outer(noise[:num_inputs], noise[num_inputs:])
        y = x @ kernel
        return y + jnp.broadcast_to(bias + bias_std * noise[num_inputs:], y.shape)


class QNetwork(nn.Module):
    """Values of discrete actions. Leading axes are free, or [T, B] if recurrent.

    Attributes:
      observation_space: space of one observation.
      action_space: a `Discrete`.
      num_outputs: K of each action; read only if not implicit.
      implicit: whether the outputs are quantiles at fractions τ that are inputs.
      config: layers.
    """

    observation_space: spaces.Space
    action_space: spaces.Discrete
    num_outputs: int = 1
    implicit: bool = False
    config: QNetworkConfig = QNetworkConfig()

    @property
    def stochastic(self) -> bool:
        """Whether a key changes the outputs."""
        return self.implicit or self.config.noisy

    @property
    def recurrent(self) -> bool:
        """Whether there is a memory."""
        return self.config.memory != "none"

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> Memory:
        """Memory at the start of an episode, leaves [*batch_shape, ...]; `()` without memory."""
        return initial_memory(self.config.memory, self.config.memory_size, batch_shape)

    @nn.compact
    def __call__(
        self,
        obs: Observation,
        key: Key | None = None,
        num_fractions: int = 1,
        memory: Memory = (),
        start: Bool[Array, "T B"] | None = None,
    ) -> QOutput:
        """Evaluates observations.

        Args:
          obs: observations [..., *shape], or [T, B, *shape] with memory.
          key: draws noise and fractions; None: no noise, and the midpoints of `num_fractions` equal parts of [0, 1].
          num_fractions: K, if implicit.
          memory: before the first of them, leaves [B, ...], if recurrent.
          start: whether an observation is the first of its episode, if recurrent.

        Returns:
          The outputs.
        """
        config, num_actions = self.config, self.action_space.n
        stock = obs.get("stock", ()) if isinstance(obs, dict) else ()
        if config.num_members > 1:
            return QOutput(self._ensemble(obs), stock=stock)
        keys = list(jax.random.split(key, 5)) if key is not None and self.stochastic else [None] * 5
        x = Encoder(self.observation_space, config.convolve, config.activation, name="encoder")(obs)
        x = MLP(config.hidden[:-1], config.activation, config.layer_norm, name="torso")(x)
        if self.recurrent:
            assert start is not None
            memory, x = CORES[config.memory](config.memory_size, name="core")(memory, x, start)
        fractions, num_outputs = (), self.num_outputs
        if self.implicit:
            fractions, num_outputs = _fractions(keys[0], x.shape[:-1], num_fractions), 1
            angles = fractions[..., None] * jnp.broadcast_to(
                jnp.pi * jnp.arange(_NUM_COSINES, dtype=jnp.float32), (*fractions.shape, _NUM_COSINES)
            )
            weight = jax.nn.relu(
                nn.Dense(x.shape[-1], kernel_init=orthogonal(math.sqrt(2)), name="fractions")(jnp.cos(angles))
            )
            x = x[..., None, :] * weight
        advantage = self._stream("advantage", num_actions * num_outputs, x, keys[1], keys[2])
        values = advantage.reshape((*x.shape[:-1], num_actions, num_outputs))
        if config.dueling:
            value = self._stream("value", num_outputs, x, keys[3], keys[4])[..., None, :]
            values = value + values - jnp.mean(values, axis=-2, keepdims=True)
        if self.implicit:
            values = jnp.swapaxes(values[..., 0], -1, -2)
        if config.prior:
            fixed = self._like(num_outputs, "prior", prior=())(obs)
            factors = jnp.repeat(jnp.asarray(config.prior), num_outputs // len(config.prior))
            scaled = jnp.broadcast_to(factors, fixed.values.shape) * fixed.values
            values = values + jax.lax.stop_gradient(scaled)
        return QOutput(values, fractions, memory, stock)

    def _like(self, num_outputs: int, name: str, **changes: Any) -> Any:
        config = dataclasses.replace(self.config, **changes)
        return QNetwork(self.observation_space, self.action_space, num_outputs, False, config, name=name)

    def _ensemble(self, obs: Observation) -> Float[Array, "... A K"]:
        """The outputs of all members beside one another."""
        num_members = self.config.num_members
        member = nn.vmap(
            lambda module, obs: module(obs).values,
            in_axes=None,  # type: ignore[arg-type]
            axis_size=num_members,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        each = member(self._like(self.num_outputs // num_members, "members", num_members=1), obs)
        return jnp.concatenate([each[i] for i in range(num_members)], axis=-1)

    def _stream(self, name: str, num_outputs: int, x: Array, key: Key | None, key_output: Key | None) -> Array:
        config = self.config
        width = config.hidden[-1]
        if config.noisy:
            y = NoisyDense(width, name=f"{name}_hidden")(x, key)
        else:
            y = nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)), name=f"{name}_hidden")(x)
        if config.layer_norm:
            y = nn.LayerNorm(name=f"{name}_norm")(y)
        y = activation_function(config.activation)(y)
        if config.noisy:
            return NoisyDense(num_outputs, name=name)(y, key_output)
        return nn.Dense(num_outputs, kernel_init=orthogonal(1.0), name=name)(y)


def _fractions(key: Key | None, shape: tuple[int, ...], num: int) -> Float[Array, "... K"]:
    if key is None:
        return jnp.broadcast_to((jnp.arange(num, dtype=jnp.float32) + 0.5) / num, (*shape, num))
    return jax.random.uniform(key, (*shape, num))


@memoize
def q_network(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    num_outputs: int = 1,
    implicit: bool = False,
    config: QNetworkConfig = QNetworkConfig(),
) -> QNetwork:
    """Builds a `QNetwork`.

    Args:
      observation_space: space of one observation.
      action_space: a `Discrete`.
      num_outputs: K of each action, as the head needs it.
      implicit: whether the outputs are quantiles at given fractions.
      config: layers.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: the actions are not discrete, a width or `num_outputs` is not positive, there is no layer, the
        members or the factors of a prior do not share the outputs evenly, or members or a prior are asked for with
        noise, a memory or implicit quantiles.

    Example:
      >>> net = q_network(spaces.box(-1.0, 1.0, (3,)), spaces.Discrete(2), 5)
      >>> params = net.init(jax.random.key(0), jnp.zeros(3))
      >>> net.apply(params, jnp.zeros((4, 3))).values.shape
      (4, 2, 5)
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"q_network: actions must be Discrete, one value each; got {action_space}.")
    validation.count("q_network", "num_outputs", num_outputs)
    validation.layers("q_network", config, QNetworkConfig)
    validation.counts("q_network", config, ("memory_size", "num_members"))
    validation.choices("q_network", config)
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"q_network: hidden must be positive widths, at least one; got hidden = {config.hidden}.")
    plain = not implicit and not config.noisy and config.memory == "none"
    if not isinstance(config.prior, tuple):
        raise ValueError(f"q_network: prior must be a tuple of factors; got prior = {config.prior!r}: try (3.0,).")
    uneven = num_outputs % (config.num_members * max(1, len(config.prior)))
    if uneven or ((config.num_members > 1 or config.prior) and not plain):
        raise ValueError(
            "q_network: num_members must divide the outputs of an action, and the number of a prior's factors a "
            "member's; members and a prior are for networks without noise, memory and implicit quantiles; got "
            f"num_members = {config.num_members}, prior = {config.prior}, num_outputs = {num_outputs}, "
            f"noisy = {config.noisy}, memory = {config.memory!r}, implicit = {implicit}."
        )
    return QNetwork(observation_space, action_space, num_outputs, implicit, config)


def init_params(net: QNetwork, key: Key, obs: Observation) -> PyTree:
    """Draws a network's parameters.

    Args:
      net: the network.
      key: a random key.
      obs: one observation; only its shapes matter.

    Returns:
      What the other functions take.
    """
    if not net.recurrent:
        return initialize(net, key, obs)
    one = jax.tree.map(lambda x: x[None, None], obs)
    return initialize(net, key, one, None, 1, net.initial_memory((1,)), jnp.zeros((1, 1), bool))


def apply_step(
    net: QNetwork,
    params: PyTree,
    obs: Observation,
    key: Key | None = None,
    num_fractions: int = 1,
    memory: Memory = (),
    start: Bool[Array, " B"] | None = None,
) -> QOutput:
    """Applies a network to observations that do not follow one another.

    Args:
      net: the network.
      params: its parameters.
      obs: observations, leaves [B, ...]; any leading axes if not recurrent.
      key: as the network takes it.
      num_fractions: as the network takes it.
      memory: before each, leaves [B, ...].
      start: whether each is the first of its episode; None: none is.

    Returns:
      The outputs [B], with the memory after each.
    """
    if not net.recurrent:
        return net.apply(params, obs, key, num_fractions)  # type: ignore[return-value]
    row = jax.tree.map(lambda x: x[None], obs)
    start = jnp.zeros(jax.tree.leaves(obs)[0].shape[0], bool) if start is None else start
    output: Any = net.apply(params, row, key, num_fractions, memory, start[None])
    fractions, stock = jax.tree.map(lambda x: x[0], (output.fractions, output.stock))
    return QOutput(output.values[0], fractions, output.memory, stock)


def apply_one(
    net: QNetwork, params: PyTree, obs: Observation, key: Key | None = None, num_fractions: int = 1, memory: Memory = ()
) -> QOutput:
    """Applies a network to one observation of one environment, as acting does.

    Args:
      net: the network.
      params: its parameters.
      obs: an observation, no leading axes.
      key: as the network takes it.
      num_fractions: as the network takes it.
      memory: what it remembers; where an episode starts, `net.initial_memory()`.

    Returns:
      The output, with the memory after the observation.
    """
    if not net.recurrent:
        return net.apply(params, obs, key, num_fractions)  # type: ignore[return-value]
    batch = jax.tree.map(lambda x: x[None], (obs, memory))
    return jax.tree.map(lambda x: x[0], apply_step(net, params, batch[0], key, num_fractions, batch[1]))


def memories(net: QNetwork, params: PyTree, obs: Observation, memory: Memory, start: Bool[Array, "T B"]) -> Memory:
    """The memory before every observation of a sequence, and after the last.

    Args:
      net: a recurrent network.
      params: its parameters.
      obs: observations, leaves [T, B, ...].
      memory: before the first, leaves [B, ...].
      start: whether an observation is the first of its episode. The memory that stands before it is still the last
        one of the episode before.

    Returns:
      Leaves [T + 1, B, ...].
    """

    def step(memory: Memory, row: tuple[Observation, Array]) -> tuple[Memory, Memory]:
        obs, start = row
        return apply_step(net, params, obs, memory=memory, start=start).memory, memory

    last, before = jax.lax.scan(step, memory, (obs, start))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), before, last)
