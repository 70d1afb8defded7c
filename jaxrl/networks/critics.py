"""Networks of algorithms that climb an action value: the critic Q(s, a), and the squashed policy that it teaches.

The layers are those of REPPO (Voelcker et al. 2025, arXiv:2507.11019): dense, normalized, SiLU. The critic is

    features f(s, a) = MLP([encode(s), a])          no activation after its last layer; encode ends in a recurrent core
                                                    if there is a memory, as the policy's does
    output   g(f)    = MLP(silu(f))                 one value, or the logits of K bins
    forecast h(f)    = MLP(silu(f))                 the features of the successor and the reward
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces, validation
from jaxrl.networks.initializers import initialize
from jaxrl.networks.recurrent import CORES, initial_memory
from jaxrl.networks.torsos import Encoder
from jaxrl.types import Key, Memory, Observation, memoize

_OFFSET_SCALE = 40.0
"""Of the offset's contribution to the logits. An HL-Gauss histogram peaks near 0.5, so the logits at the beginning are
about 20 where it does: the network starts with that value, whatever its other weights."""


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The layers of a `SquashedActor` and an `ActionCritic`.

    Attributes:
      actor_hidden: widths of the policy's hidden layers.
      features: widths of the critic's feature layers; the last is the number of features.
      head_hidden: widths of the hidden layers between the features and the value, and between them and the forecast.
      norm: what normalizes each hidden layer before its activation: rms (learned scale), layer (and shift) or none.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
      memory: none, gru, lstm or s5: a core of the policy and one of the critic, between encoder and dense layers.
      memory_size: width of each core.
    """

    actor_hidden: tuple[int, ...] = (512, 512)
    features: tuple[int, ...] = (512, 512)
    head_hidden: tuple[int, ...] = (512,)
    norm: Literal["rms", "layer", "none"] = "rms"
    convolve: bool = True
    memory: Literal["none", "gru", "lstm", "s5"] = "none"
    memory_size: int = 128


@struct.dataclass
class CriticOutput:
    """What an `ActionCritic` says of observations and actions with leading axes [...].

    Attributes:
      output: one value, or logits of the bins, [..., num_outputs].
      features: of this observation and action, [..., D].
      forecast: of the features of the successor, [..., D].
      reward: forecast of the reward, [...].
    """

    output: Float[Array, "... K"]
    features: Float[Array, "... D"]
    forecast: Float[Array, "... D"]
    reward: Float[Array, "..."]


class Remembering(nn.Module):
    """A network that may have a recurrent core after its encoder.

    Attributes:
      observation_space: space of one observation.
      config: layers.
    """

    observation_space: spaces.Space
    config: CriticConfig

    @property
    def recurrent(self) -> bool:
        """Whether there is a memory."""
        return self.config.memory != "none"

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> Memory:
        """Memory at the start of an episode, leaves [*batch_shape, ...]; `()` without memory."""
        return initial_memory(self.config.memory, self.config.memory_size, batch_shape)

    def _see(self, obs: Any, memory: Memory, start: Array | None) -> tuple[Array, Memory]:
        """What is known of observations, and the memory after the last of them."""
        config = self.config
        x = Encoder(self.observation_space, config.convolve, "silu", name="encoder")(obs)
        if not self.recurrent:
            return x, memory
        assert start is not None
        memory, x = CORES[config.memory](config.memory_size, name="core")(memory, x, start)
        return x, memory


class SquashedActor(Remembering):
    """Means and logarithms of standard deviations of a Gaussian that is then squashed.

    Attributes:
      observation_space: space of one observation.
      config: layers.
      num_actions: entries of one action.
    """

    num_actions: int = 1

    @nn.compact
    def __call__(
        self, obs: Any, memory: Memory = (), start: Bool[Array, "T B"] | None = None
    ) -> tuple[tuple[Float[Array, "... A"], Float[Array, "... A"]], Memory]:
        """Maps observations [..., *shape] to (mean, log_std), and memory to the memory after the last of them.

        Args:
          obs: observations [..., *shape], or [T, B, *shape] with memory.
          memory: before the first of them, leaves [B, ...].
          start: true where an observation is the first of its episode; read only with memory.
        """
        x, memory = self._see(obs, memory, start)
        x = _hidden(x, self.config.actor_hidden, self.config.norm)
        return (nn.Dense(self.num_actions, name="mean")(x), nn.Dense(self.num_actions, name="log_std")(x)), memory


class ActionCritic(Remembering):
    """An action value, with a forecast of the features that come next.

    Attributes:
      observation_space: space of one observation.
      config: layers.
      num_outputs: 1 for a value, K for the logits of K bins.
      forecasts: whether the forecast is computed; otherwise it is the features themselves and a reward of 0.
    """

    num_outputs: int = 1
    forecasts: bool = True

    @nn.compact
    def __call__(
        self,
        obs: Any,
        memory: Memory,
        start: Bool[Array, "T B"] | None,
        action: Float[Array, "... A"],
        offset: Float[Array, " K"] | None = None,
    ) -> tuple[CriticOutput, Memory]:
        """Evaluates actions.

        Args:
          obs: observations [..., *shape], or [T, B, *shape] with memory.
          memory: before the first of them, leaves [B, ...]; or ().
          start: true where an observation is the first of its episode; read only with memory.
          action: actions [..., A], flat.
          offset: read by `init` only: a histogram that the logits start from, [num_outputs]; None: zeros.

        Returns:
          The outputs [...], and the memory after the last observation.
        """
        config = self.config
        x, memory = self._see(obs, memory, start)
        x = jnp.concatenate([x, action], axis=-1)
        x = _hidden(x, config.features[:-1], config.norm)
        features = nn.Dense(config.features[-1], name="features")(x)
        active = jax.nn.silu(features)
        output = nn.Dense(self.num_outputs, name="output")(_hidden(active, config.head_hidden, config.norm))
        if self.num_outputs > 1:
            begin = self.param("offset", lambda _: jnp.zeros(self.num_outputs) if offset is None else offset)
            output = output + jnp.broadcast_to(_OFFSET_SCALE * begin, output.shape)
        if not self.forecasts:
            return CriticOutput(output, features, features, jnp.zeros(features.shape[:-1])), memory
        ahead = _hidden(active, config.head_hidden, config.norm)
        forecast = nn.Dense(config.features[-1], name="forecast")(ahead)
        reward = nn.Dense(1, name="reward")(ahead)[..., 0]
        return CriticOutput(output, features, forecast, reward), memory


def init_params(net: SquashedActor | ActionCritic, key: Key, obs: Observation, *inputs: Array) -> PyTree:
    """Draws a network's parameters.

    Args:
      net: the network.
      key: a random key.
      obs: one observation; only its shapes matter.
      *inputs: of an `ActionCritic`: one action, and the histogram to start from if any.

    Returns:
      What `apply_step` and `net.apply` take.
    """
    if not net.recurrent:
        return initialize(net, key, obs, (), None, *inputs)
    one = jax.tree.map(lambda x: x[None, None], obs)
    action = tuple(x[None, None] for x in inputs[:1])
    return initialize(net, key, one, net.initial_memory((1,)), jnp.zeros((1, 1), bool), *action, *inputs[1:])


def apply_step(
    net: SquashedActor | ActionCritic,
    params: PyTree,
    obs: Observation,
    memory: Memory,
    start: Bool[Array, " B"] | None,
    *action: Float[Array, "B A"],
) -> tuple[Any, Memory]:
    """Applies a network to observations that do not follow one another, for instance one of each of B environments.

    Args:
      net: the network.
      params: its parameters.
      obs: observations [B, ...].
      memory: before each, leaves [B, ...].
      start: whether each is the first of its episode.
      *action: of an `ActionCritic`, actions [B, A].

    Returns:
      The outputs [B], and the memory after each observation.
    """
    if not net.recurrent:
        return net.apply(params, obs, memory, start, *action)  # type: ignore[return-value]
    assert start is not None
    row = lambda x: x[None]
    given = jax.tree.map(row, obs), memory, start[None], *map(row, action)
    output, memory = net.apply(params, *given)  # type: ignore[misc]
    return jax.tree.map(lambda x: x[0], output), memory


def _hidden(x: Array, widths: tuple[int, ...], norm: str) -> Array:
    """Dense layers, each normalized before its SiLU."""
    for width in widths:
        x = nn.Dense(width)(x)
        if norm != "none":
            x = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}[norm]()(x)
        x = jax.nn.silu(x)
    return x


@memoize
def action_critic(
    observation_space: spaces.Space, num_outputs: int = 1, config: CriticConfig = CriticConfig(), forecasts: bool = True
) -> ActionCritic:
    """Builds an `ActionCritic`.

    Args:
      observation_space: space of one observation.
      num_outputs: 1 for a value, K for the logits of K bins.
      config: layers.
      forecasts: whether it forecasts its successor's features and the reward.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: a width or `num_outputs` is not positive, there is no feature layer, or `norm` or `memory` is unknown.

    Example:
      >>> critic = action_critic(spaces.box(-1.0, 1.0, (3,)), 5, CriticConfig(features=(8,), head_hidden=()))
      >>> params = init_params(critic, jax.random.key(0), jnp.zeros(3), jnp.zeros(2))
      >>> apply_step(critic, params, jnp.zeros((4, 3)), (), None, jnp.zeros((4, 2)))[0].output.shape
      (4, 5)
    """
    _validate(config)
    if num_outputs < 1:
        raise ValueError(f"num_outputs must be at least 1; got num_outputs = {num_outputs}.")
    return ActionCritic(observation_space, config, num_outputs, forecasts)


@memoize
def squashed_actor(
    observation_space: spaces.Space, action_space: spaces.Space, config: CriticConfig = CriticConfig()
) -> SquashedActor:
    """Builds a `SquashedActor`.

    Args:
      observation_space: space of one observation.
      action_space: a `Box` with finite bounds.
      config: layers.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: the actions are no bounded `Box`, a width is not positive, or `norm` or `memory` is unknown.

    Example:
      >>> actor = squashed_actor(spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,)), CriticConfig((8,)))
      >>> (mean, log_std), _ = actor.apply(init_params(actor, jax.random.key(0), jnp.zeros(3)), jnp.zeros((4, 3)))
      >>> mean.shape, log_std.shape
      ((4, 2), (4, 2))
    """
    _validate(config)
    if not (isinstance(action_space, spaces.Box) and action_space.bounded):
        raise ValueError(f"A squashed policy needs actions that are a Box with finite bounds; got {action_space}.")
    return SquashedActor(observation_space, config, spaces.size(action_space))


def _validate(config: CriticConfig) -> None:
    widths = (*config.actor_hidden, *config.features, *config.head_hidden)
    if not config.features or min(widths) < 1:
        raise ValueError(
            f"Widths must be positive, with at least one in features; got actor_hidden = {config.actor_hidden}, "
            f"features = {config.features}, head_hidden = {config.head_hidden}."
        )
    if config.norm not in ("rms", "layer", "none"):
        raise ValueError(f"norm must be rms, layer or none; got norm = {config.norm!r}.")
    if config.memory not in ("none", *CORES):
        raise ValueError(f"memory must be none or one of {sorted(CORES)}; got memory = {config.memory!r}.")
    validation.count("network", "memory_size", config.memory_size)
