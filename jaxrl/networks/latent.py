"""Networks of MR.Q (Fujimoto et al. 2025, arXiv:2501.16142): features from a model of the world, and what reads them.

    state     z_s  = f(s)            three layers, or the CNN and one layer for images               [..., S]
    pair      z_sa = g(z_s, a)       three layers of [z_s, activation(Dense(a))]                     [..., D]
    model     one linear layer of z_sa: ended 1, the next z_s, logits of the reward                  [..., 1 + S + K]
    policy    three layers of z_s: actions before tanh, or logits of discrete ones                   [..., A]
    value     M times three layers of z_sa, normalized, then one: Q_1 … Q_M                          [M, ...]

The model is unrolled over windows of H rows, and `model_losses` compares it with what was seen.

Between layers stands activation(LayerNorm(x)), without scale and shift; z_s ends with it too. Kernels begin as uniform
draws of Glorot's variance times 2, biases as 0. As in the authors' code.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces, validation
from jaxrl.networks import members
from jaxrl.networks.torsos import Encoder, activation_function
from jaxrl.ops import bins
from jaxrl.types import Observation, memoize

_INITIAL = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_INITIAL_OF_MEMBERS = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=0)


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Sizes of the features and of the layers.

    Attributes:
      num_state_features: entries of z_s, S.
      num_action_features: entries of an action's own features.
      num_pair_features: entries of z_sa, D.
      hidden: width of all hidden layers.
      num_bins: K, bins of the reward.
      num_critics: M.
      activation: of encoder and critics: relu, tanh, gelu, silu or elu.
      policy_activation: of the policy.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
    """

    num_state_features: int = 512
    num_action_features: int = 256
    num_pair_features: int = 512
    hidden: int = 512
    num_bins: int = 65
    num_critics: int = 2
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "elu"
    policy_activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "relu"
    convolve: bool = True


def normalized(x: Float[Array, "*batch D"], activation: str) -> Float[Array, "*batch D"]:
    """activation(LayerNorm(x)).

    >>> normalized(jnp.array([-1.0, 1.0]), "relu").tolist()
    [0.0, 0.9999949932098389]
    """
    return activation_function(activation)(jax.nn.standardize(x, axis=-1, epsilon=1e-5))


class Layers(nn.Module):
    """Three layers.

    Attributes:
      hidden: width of the first two.
      features: of the last.
      activation: between them.
    """

    hidden: int
    features: int
    activation: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch F"]:
        """Maps [..., I] to [..., features]."""
        for width in (self.hidden, self.hidden):
            x = normalized(nn.Dense(width, kernel_init=_INITIAL)(x), self.activation)
        return nn.Dense(self.features, kernel_init=_INITIAL)(x)


class Prediction(NamedTuple):
    """What the model says of one step.

    Attributes:
      terminated: an estimate of whether the successor is terminal, [...].
      features: z_s of the successor, [..., S].
      reward: logits of its bins, [..., K].
    """

    terminated: Float[Array, "*batch"]
    features: Float[Array, "*batch S"]
    reward: Float[Array, "*batch K"]


class LatentEncoder(nn.Module):
    """f, g and the model.

    Attributes:
      observation_space: space of one observation.
      config: sizes.
    """

    observation_space: spaces.Space
    config: LatentConfig = LatentConfig()

    def setup(self):  # noqa: D102 (flax's own)
        config, space = self.config, self.observation_space
        self.torso = Encoder(space, config.convolve, config.activation)
        image = config.convolve and isinstance(space, spaces.Box) and len(space.shape) == 3
        layers = lambda features: Layers(config.hidden, features, config.activation)
        dense = lambda features: nn.Dense(features, kernel_init=_INITIAL)
        self.state_layers: Any = dense(config.num_state_features) if image else layers(config.num_state_features)
        self.action_layer = dense(config.num_action_features)
        self.pair_layers = layers(config.num_pair_features)
        self.model = dense(1 + config.num_state_features + config.num_bins)

    def state(self, obs: Observation) -> Float[Array, "*batch S"]:
        """z_s of observations with any leading axes."""
        return normalized(self.state_layers(self.torso(obs)), self.config.activation)

    def pair(self, features: Float[Array, "*batch S"], action: Float[Array, "*batch A"]) -> Float[Array, "*batch D"]:
        """z_sa of actions that are flat, from -1 to 1, or one-hot."""
        own = activation_function(self.config.activation)(self.action_layer(action))
        return self.pair_layers(jnp.concatenate([features, own], axis=-1))

    def predict(self, features: Float[Array, "*batch S"], action: Float[Array, "*batch A"]) -> Prediction:
        """One step of the model from z_s."""
        output, size = self.model(self.pair(features, action)), self.config.num_state_features
        return Prediction(output[..., 0], output[..., 1 : 1 + size], output[..., 1 + size :])

    def __call__(self, obs: Observation, action: Float[Array, "*batch A"]) -> Prediction:
        """One step of the model from an observation."""
        return self.predict(self.state(obs), action)


class LatentPolicy(nn.Module):
    """Actions before they are squashed, or logits.

    Attributes:
      num_actions: A, entries or discrete actions.
      config: sizes.
    """

    num_actions: int
    config: LatentConfig = LatentConfig()

    @nn.compact
    def __call__(self, features: Float[Array, "*batch S"]) -> Float[Array, "*batch A"]:
        """Maps z_s."""
        return Layers(self.config.hidden, self.num_actions, self.config.policy_activation)(features)


class LatentValue(nn.Module):
    """M values.

    Attributes:
      config: sizes.
    """

    config: LatentConfig = LatentConfig()

    @nn.compact
    def __call__(self, pair: Float[Array, "N D"]) -> Float[Array, "M N"]:
        """Values z_sa."""
        config, x = self.config, pair
        dense = lambda width, name: members.Dense(config.num_critics, width, _INITIAL_OF_MEMBERS, name=name)
        for i in range(3):
            x = normalized(dense(config.hidden, f"layer_{i}")(x), config.activation)
        return dense(1, "value")(x)[..., 0]


class LatentNetworks(NamedTuple):
    """The networks of MR.Q.

    Attributes:
      encoder: features and the model.
      policy: reads z_s.
      value: reads z_sa.
    """

    encoder: LatentEncoder
    policy: LatentPolicy
    value: LatentValue


@memoize
def latent_networks(
    observation_space: spaces.Space, action_space: spaces.Space, config: LatentConfig = LatentConfig()
) -> LatentNetworks:
    """Builds the networks of MR.Q for two spaces.

    Args:
      observation_space: space of one observation.
      action_space: `Discrete`, or a `Box` with finite bounds.
      config: sizes.

    Returns:
      The modules; equal arguments give the same ones.

    Raises:
      ValueError: actions are neither, a size is not positive, a choice is unknown, or the reward has fewer than 2 bins.

    Example:
      >>> nets = latent_networks(spaces.box(-1.0, 1.0, (3,)), spaces.Discrete(2), LatentConfig(hidden=8, num_bins=5))
      >>> inputs = jnp.zeros((4, 3)), jnp.zeros((4, 2))
      >>> prediction, _ = jax.eval_shape(nets.encoder.init_with_output, jax.random.key(0), *inputs)
      >>> prediction.terminated.shape, prediction.features.shape, prediction.reward.shape
      ((4,), (4, 512), (4, 5))
    """
    if not isinstance(action_space, spaces.Discrete) and not (
        isinstance(action_space, spaces.Box) and action_space.bounded
    ):
        raise ValueError(f"latent_networks: actions must be Discrete or a Box with finite bounds; got {action_space}.")
    validation.layers("latent_networks", config, LatentConfig)
    validation.choices("latent_networks", config)
    sizes = [field.name for field in dataclasses.fields(config) if type(field.default) is int]
    validation.counts("latent_networks", config, sizes)
    if config.num_bins < 2:
        raise ValueError(f"latent_networks: the reward needs at least 2 bins; got num_bins = {config.num_bins}.")
    size = action_space.n if isinstance(action_space, spaces.Discrete) else spaces.size(action_space)
    return LatentNetworks(LatentEncoder(observation_space, config), LatentPolicy(size, config), LatentValue(config))


@struct.dataclass
class Windows:
    """N windows of H rows that the model is unrolled over.

    Attributes:
      obs: of the first rows, leaves [N, ...].
      action: one-hot or flat, [H, N, A].
      reward: [H, N].
      terminated: [H, N].
      features: z_s of the successors by the target encoder, [H, N, S].
      whole: whether the episode has not ended before a row; others do not count, [H, N].
    """

    obs: Observation
    action: Float[Array, "H N A"]
    reward: Float[Array, "H N"]
    terminated: Bool[Array, "H N"]
    features: Float[Array, "H N S"]
    whole: Bool[Array, "H N"]


def model_losses(
    encoder: LatentEncoder, params: PyTree, windows: Windows, centers: Float[Array, " K"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The losses of the unrolled model, each a sum over rows and a mean over windows.

        z_0 = f(s_0),   z_{i+1} = model(g(z_i, a_i))
        dynamics       Σ_i mean (z_{i+1} - f'(s_{i+1}))²
        reward         Σ_i CE(model's logits, two-hot of r_i)
        termination    Σ_i (model's estimate - terminated_i)²

    Rows after the end of an episode count 0.

    Args:
      encoder: the network.
      params: its parameters.
      windows: what was seen.
      centers: of the reward's bins.
    """

    def row(features: Array, seen: Windows) -> tuple[Array, tuple[Array, Array, Array]]:
        prediction = encoder.apply({"params": params}, features, seen.action, method="predict")
        assert isinstance(prediction, Prediction)
        counts = seen.whole.astype(jnp.float32)
        dynamics = jnp.mean(jnp.square(prediction.features - seen.features), axis=-1)
        reward = bins.cross_entropy(prediction.reward, two_hot(seen.reward, centers))
        termination = jnp.square(prediction.terminated - seen.terminated.astype(jnp.float32))
        mean = lambda x: jnp.mean(counts * x)
        return prediction.features, (mean(dynamics), mean(reward), mean(termination))

    first: Any = encoder.apply({"params": params}, windows.obs, method="state")
    _, losses = jax.lax.scan(row, first, dataclasses.replace(windows, obs=()))
    dynamics, reward, termination = (jnp.sum(x) for x in losses)
    return dynamics, reward, termination


def before_end(ended: Bool[Array, "H N"]) -> Bool[Array, "H N"]:
    """Whether no row before each one has ended an episode.

    >>> before_end(jnp.array([[False], [True], [False]])).tolist()
    [[True], [True], [False]]
    """
    return jnp.cumsum(ended, axis=0) - ended == 0


def symexp_bins(low: Float[Array, ""], high: Float[Array, ""], num_bins: int) -> Float[Array, " K"]:
    """Bins that are the closer together the closer they are to 0: sign(x) (exp |x| - 1) of equally spaced x.

    >>> symexp_bins(jnp.float32(-1.0), jnp.float32(1.0), 3).round(3).tolist()
    [-1.718000054359436, 0.0, 1.718000054359436]
    """
    x = bins.bin_centers(low, high, num_bins)
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def two_hot(x: Float[Array, "*batch"], centers: Float[Array, " K"]) -> Float[Array, "*batch K"]:
    """Splits the weight of a value between the two nearest of increasing centers, so that the mean is the value.

    Args:
      x: values; those outside of the centers are moved to the nearest end.
      centers: at any distances.

    >>> two_hot(jnp.float32(2.0), jnp.array([0.0, 1.0, 5.0])).tolist()
    [0.0, 0.75, 0.25]
    """
    num_bins = centers.shape[0]
    clipped = jnp.clip(x, centers[0], centers[-1])
    above = jnp.clip(jnp.searchsorted(centers, clipped, side="right", method="compare_all"), 1, num_bins - 1)
    low, high = centers[above - 1], centers[above]
    share = ((clipped - low) / (high - low))[..., None]
    return (1.0 - share) * jax.nn.one_hot(above - 1, num_bins) + share * jax.nn.one_hot(above, num_bins)
