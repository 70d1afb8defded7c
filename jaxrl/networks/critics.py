"""Networks of algorithms that climb an action value: the critic Q(s, a), and the squashed policy that it teaches.

The layers are those of REPPO (Voelcker et al. 2025, arXiv:2507.11019): dense, normalized, SiLU. The critic is

    features f(s, a) = MLP([encode(s), a])          no activation after its last layer
    output   g(f)    = MLP(silu(f))                 one value, or the logits of K bins
    forecast h(f)    = MLP(silu(f))                 the features of the successor and the reward
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.networks.torsos import Encoder
from jaxrl.types import memoize

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
    """

    actor_hidden: tuple[int, ...] = (512, 512)
    features: tuple[int, ...] = (512, 512)
    head_hidden: tuple[int, ...] = (512,)
    norm: Literal["rms", "layer", "none"] = "rms"
    convolve: bool = True


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


class SquashedActor(nn.Module):
    """Means and logarithms of standard deviations of a Gaussian that is then squashed.

    Attributes:
      observation_space: space of one observation.
      num_actions: entries of one action.
      config: layers.
    """

    observation_space: spaces.Space
    num_actions: int
    config: CriticConfig = CriticConfig()

    @nn.compact
    def __call__(self, obs: Any) -> tuple[Float[Array, "... A"], Float[Array, "... A"]]:
        """Maps observations [..., *shape] to (mean, log_std)."""
        x = Encoder(self.observation_space, self.config.convolve, "silu", name="encoder")(obs)
        x = _hidden(x, self.config.actor_hidden, self.config.norm)
        return nn.Dense(self.num_actions, name="mean")(x), nn.Dense(self.num_actions, name="log_std")(x)


class ActionCritic(nn.Module):
    """An action value, with a forecast of the features that come next.

    Attributes:
      observation_space: space of one observation.
      num_outputs: 1 for a value, K for the logits of K bins.
      config: layers.
      forecasts: whether the forecast is computed; otherwise it is the features themselves and a reward of 0.
    """

    observation_space: spaces.Space
    num_outputs: int = 1
    config: CriticConfig = CriticConfig()
    forecasts: bool = True

    @nn.compact
    def __call__(
        self, obs: Any, action: Float[Array, "... A"], offset: Float[Array, " K"] | None = None
    ) -> CriticOutput:
        """Evaluates actions.

        Args:
          obs: observations [..., *shape].
          action: actions [..., A], flat.
          offset: read by `init` only: a histogram that the logits start from, [num_outputs]; None: zeros.

        Returns:
          The outputs [...].
        """
        config = self.config
        x = Encoder(self.observation_space, config.convolve, "silu", name="encoder")(obs)
        x = jnp.concatenate([x, action], axis=-1)
        x = _hidden(x, config.features[:-1], config.norm)
        features = nn.Dense(config.features[-1], name="features")(x)
        active = jax.nn.silu(features)
        output = nn.Dense(self.num_outputs, name="output")(_hidden(active, config.head_hidden, config.norm))
        if self.num_outputs > 1:
            start = self.param("offset", lambda _: jnp.zeros(self.num_outputs) if offset is None else offset)
            output = output + jnp.broadcast_to(_OFFSET_SCALE * start, output.shape)
        if not self.forecasts:
            return CriticOutput(output, features, features, jnp.zeros(features.shape[:-1]))
        ahead = _hidden(active, config.head_hidden, config.norm)
        forecast = nn.Dense(config.features[-1], name="forecast")(ahead)
        reward = nn.Dense(1, name="reward")(ahead)[..., 0]
        return CriticOutput(output, features, forecast, reward)


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
      ValueError: a width or `num_outputs` is not positive, or there is no feature layer.

    Example:
      >>> critic = action_critic(spaces.box(-1.0, 1.0, (3,)), 5, CriticConfig(features=(8,), head_hidden=()))
      >>> params = critic.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(2))
      >>> critic.apply(params, jnp.zeros((4, 3)), jnp.zeros((4, 2))).output.shape
      (4, 5)
    """
    _validate(config)
    if num_outputs < 1:
        raise ValueError(f"num_outputs must be at least 1; got num_outputs = {num_outputs}.")
    return ActionCritic(observation_space, num_outputs, config, forecasts)


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
      ValueError: the actions are no bounded `Box`, or a width is not positive.

    Example:
      >>> actor = squashed_actor(spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,)), CriticConfig((8,)))
      >>> mean, log_std = actor.apply(actor.init(jax.random.key(0), jnp.zeros(3)), jnp.zeros((4, 3)))
      >>> mean.shape, log_std.shape
      ((4, 2), (4, 2))
    """
    _validate(config)
    if not (isinstance(action_space, spaces.Box) and action_space.bounded):
        raise ValueError(f"A squashed policy needs actions that are a Box with finite bounds; got {action_space}.")
    return SquashedActor(observation_space, spaces.size(action_space), config)


def _validate(config: CriticConfig) -> None:
    widths = (*config.actor_hidden, *config.features, *config.head_hidden)
    if not config.features or min(widths) < 1:
        raise ValueError(
            f"Widths must be positive, with at least one in features; got actor_hidden = {config.actor_hidden}, "
            f"features = {config.features}, head_hidden = {config.head_hidden}."
        )
    if config.norm not in ("rms", "layer", "none"):
        raise ValueError(f"norm must be rms, layer or none; got norm = {config.norm!r}.")
