"""Networks of off-policy control: a policy, and an ensemble of critics Q_1 … Q_M that is one network.

    policy    μ, log σ  = Dense(tower(encode(s)))                     [..., A]
    critics   Q_m(s, a) = Dense_m(tower_m([encode(s), a]))            [M, ..., K]
    tower     normalized input if `batch`, then for each layer
              Dense, dropout, LayerNorm if `layer`, activation, normalized if `batch`
              or, if `residual` (SimBa: Lee et al. 2025, arXiv:2410.09754, figure 4): Dense, then for each layer
              x + Dense(activation(Dense(LayerNorm(x)))) with four times as many units between, then LayerNorm
              or, if `hyperspherical` (SimbaV2, with heads of its own): see `jaxrl.networks.hyperspherical`

All parameters of the M critics have a leading axis [M]; a convolutional encoder is shared by them. K is 1, or the
number of quantiles, at the midpoints (2k - 1) / 2K, or of the bins of a histogram, of which the outputs are logits.

`batch` is batch renormalization (Ioffe 2017, arXiv:1702.03275, algorithm 1), plain batch normalization for the first
`warmup` updates, in policy and critics at the places where the authors' code of CrossQ has it (Bhatt et al. 2024,
arXiv:1902.05605). Running moments are no parameters: they are the collection `batch_stats`. `layer` and dropout are in
the critics alone, in the order of the authors' code of DroQ (Hiraoka et al. 2021, arXiv:2110.02034).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import spaces, validation
from jaxrl.networks.hyperspherical import HyperHead, HyperTower, bounded
from jaxrl.networks.torsos import Encoder, activation_function
from jaxrl.ops.bins import Support
from jaxrl.types import Env, Key, Observation, memoize

_HYPER_LOG_STD = (-10.0, 2.0)
"""Range of log σ with hyperspherical blocks, as in the authors' code of SimbaV2."""
_EPSILON = 1e-3
"""Added to variances, as in the authors' code of CrossQ."""
_INITIAL = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
_HE = nn.initializers.he_normal(in_axis=-2, out_axis=-1, batch_axis=0)


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """The layers of a policy and of an ensemble of critics.

    Attributes:
      hidden: widths of the policy's hidden layers.
      critic_hidden: widths of each critic's; () takes those of the policy.
      num_critics: M.
      num_quantiles: K, quantiles of the return that a critic learns; 0: its mean only.
      num_bins: K, bins of a histogram of the return that a critic learns instead; 0: none.
      block: what a hidden layer is: plain; residual or hyperspherical, where all layers of a network have one width.
        Hyperspherical ones are made for the optimizer `on_spheres`.
      activation: relu, tanh, gelu, silu or elu.
      norm: what normalizes: none, layer (the critics' layers) or batch (all layers and the input, see the module).
      dropout: whether units of the critics' hidden layers are left out at random.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
    """

    hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = ()
    num_critics: int = 2
    num_quantiles: int = 0
    num_bins: int = 0
    block: Literal["plain", "residual", "hyperspherical"] = "plain"
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "relu"
    norm: Literal["none", "layer", "batch"] = "none"
    dropout: bool = False
    convolve: bool = True


@struct.dataclass
class Renormalization:
    """Coefficients of batch renormalization.

    Attributes:
      momentum: share of the running moments that an update keeps.
      warmup: updates with plain batch normalization.
      max_ratio: bound of r, the batch's deviation over the running one, and of 1/r.
      max_shift: bound of |d|, the difference of means over the running deviation.
    """

    momentum: Float[Array, ""]
    warmup: Float[Array, ""]
    max_ratio: Float[Array, ""]
    max_shift: Float[Array, ""]


@struct.dataclass
class Coefficients:
    """What of the networks is data; () for what the config does not have.

    Attributes:
      dropout_rate: share of units left out.
      renormalization: a `Renormalization`.
      kappa: error from which on the loss of quantiles is linear.
      support: a `jaxrl.ops.bins.Support`, the ends of the histogram.
    """

    dropout_rate: PyTree
    renormalization: PyTree
    kappa: PyTree
    support: PyTree


def coefficients(config: ControlConfig, bound: Any = 250.0) -> Coefficients:
    """The defaults: DroQ's rate for its easy tasks, CrossQ's constants, κ = 1, returns between ±250 as in FastTD3.

    Args:
      config: layers.
      bound: of the returns' histogram, where rewards are scaled so that returns have one.

    >>> coefficients(ControlConfig(dropout=True)).dropout_rate.item() == jnp.float32(0.01)
    Array(True, dtype=bool)
    """
    numbers = Renormalization(*(jnp.float32(x) for x in (0.99, 100_000.0, 3.0, 5.0)))
    return Coefficients(
        dropout_rate=jnp.float32(0.01) if config.dropout else (),
        renormalization=numbers if config.norm == "batch" else (),
        kappa=jnp.float32(1.0) if config.num_quantiles else (),
        support=Support(-jnp.asarray(bound, jnp.float32), jnp.asarray(bound, jnp.float32)) if config.num_bins else (),
    )


class Dense(nn.Module):
    """M dense layers side by side.

    Attributes:
      num_members: M.
      features: units of each.
      initial: initializer of the kernel.
    """

    num_members: int
    features: int
    initial: nn.initializers.Initializer = _INITIAL

    @nn.compact
    def __call__(self, x: Float[Array, "... N D"]) -> Float[Array, "M N F"]:
        """Maps [N, D], the same input for all, or [M, N, D]."""
        kernel = self.param("kernel", self.initial, (self.num_members, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.num_members, self.features))
        y = jnp.einsum("nd,mdf->mnf" if x.ndim == 2 else "mnd,mdf->mnf", x, kernel)
        return y + jnp.broadcast_to(bias[:, None], y.shape)


class Renorm(nn.Module):
    """Batch renormalization of each unit, with a learned scale and shift.

        y = (x - μ_B) / σ_B · r + d,   r = clip(σ_B / σ, 1/r_max … r_max),   d = clip((μ_B - μ) / σ, ±d_max)

    r and d are constants for the gradient, and 1 and 0 in the first `warmup` updates. Without training μ and σ, the
    running moments, take the place of the batch's.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "M N D"], params: Renormalization | None, train: bool) -> Float[Array, "M N D"]:
        """Normalizes; if `train`, with the batch's moments, which then enter the running ones."""
        shape = (x.shape[0], x.shape[2])
        full = lambda value: jnp.broadcast_to(value[:, None], x.shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "variance", jnp.ones, shape)
        num_updates = self.variable("batch_stats", "num_updates", lambda: jnp.int32(0))
        center, deviation = mean.value, jnp.sqrt(variance.value + _EPSILON)
        ratio, offset = jnp.ones(shape), jnp.zeros(shape)
        if train:
            assert params is not None
            batch_mean, batch_variance = jnp.mean(x, axis=1), jnp.var(x, axis=1)
            batch_deviation = jnp.sqrt(batch_variance + _EPSILON)
            settled = num_updates.value.astype(jnp.float32) >= params.warmup
            ratio = jnp.clip(batch_deviation / deviation, 1.0 / params.max_ratio, params.max_ratio)
            offset = jnp.clip((batch_mean - center) / deviation, -params.max_shift, params.max_shift)
            ratio, offset = jax.lax.stop_gradient((jnp.where(settled, ratio, 1.0), jnp.where(settled, offset, 0.0)))
            keep = params.momentum
            mean.value = keep * center + (1.0 - keep) * jax.lax.stop_gradient(batch_mean)
            variance.value = keep * variance.value + (1.0 - keep) * jax.lax.stop_gradient(batch_variance)
            num_updates.value = num_updates.value + 1
            center, deviation = batch_mean, batch_deviation
        gain = scale * ratio / deviation
        return full(gain) * (x - full(center)) + full(scale * offset + shift)


class Tower(nn.Module):
    """Hidden layers of M members.

    Attributes:
      num_members: M.
      hidden: widths.
      activation: its name.
      norm: none, layer or batch.
      dropout: whether units are left out where there is a key.
      block: plain, residual or hyperspherical.
    """

    num_members: int
    hidden: tuple[int, ...]
    activation: str
    norm: str
    dropout: bool
    block: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "N D"], params: Coefficients | None, key: Key | None, train: bool
    ) -> Float[Array, "M N H"]:
        """Maps one input to the features of all members."""
        if self.block == "residual":
            return self._residual(x)
        if self.block == "hyperspherical":
            return HyperTower(self.num_members, self.hidden, self.activation)(x)
        renormalization = params.renormalization if params is not None else None
        if self.norm == "batch":
            x = Renorm()(jnp.broadcast_to(x, (self.num_members, *x.shape)), renormalization, train)
        keys = [None] * len(self.hidden)
        if self.dropout and key is not None:
            keys = list(jax.random.split(key, len(self.hidden)))
        for width, key_mask in zip(self.hidden, keys, strict=True):
            x = Dense(self.num_members, width)(x)
            if key_mask is not None:
                assert params is not None
                x = drop(x, params.dropout_rate, key_mask)
            if self.norm == "layer":
                x = LayerNorm()(x)
            x = activation_function(self.activation)(x)
            if self.norm == "batch":
                x = Renorm()(x, renormalization, train)
        return x

    def _residual(self, x: Float[Array, "N D"]) -> Float[Array, "M N H"]:
        x = Dense(self.num_members, self.hidden[0])(x)
        for width in self.hidden:
            y = Dense(self.num_members, 4 * width, _HE)(LayerNorm()(x))
            x = x + Dense(self.num_members, width, _HE)(activation_function(self.activation)(y))
        return LayerNorm()(x)


class LayerNorm(nn.Module):
    """Layer normalization with a scale and shift for each member."""

    @nn.compact
    def __call__(self, x: Float[Array, "M N D"]) -> Float[Array, "M N D"]:
        """Normalizes the units of each example."""
        shape = (x.shape[0], x.shape[2])
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        full = lambda value: jnp.broadcast_to(value[:, None], x.shape)
        return full(scale) * jax.nn.standardize(x, axis=-1, epsilon=1e-6) + full(shift)


def drop(x: Float[Array, "*shape"], rate: Float[Array, ""], key: Key) -> Float[Array, "*shape"]:
    """Sets a share of entries to 0 and divides the others by what is left; the rate resolves 2^-16.

    >>> drop(jnp.ones(4), jnp.float32(0.0), jax.random.key(0)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    kept: Bool[Array, "*shape"] = bits.astype(jnp.float32) >= rate * 2.0**16
    return jnp.where(kept, x / (1.0 - rate), 0.0)


class ControlPolicy(nn.Module):
    """Means, and logarithms of standard deviations, of actions before they are squashed.

    Attributes:
      observation_space: space of one observation.
      num_actions: entries of one action, A.
      stochastic: whether there are standard deviations.
      config: layers.
    """

    observation_space: spaces.Space
    num_actions: int
    stochastic: bool = True
    config: ControlConfig = ControlConfig()

    @nn.compact
    def __call__(
        self, obs: Observation, params: Coefficients | None = None, train: bool = False
    ) -> tuple[Float[Array, "... A"], Float[Array, "... A"] | None]:
        """Maps observations [..., *shape] to (mean, log_std); the latter is None without standard deviations."""
        config = self.config
        x = Encoder(self.observation_space, config.convolve, config.activation, name="encoder")(obs)
        flat = x.reshape((-1, x.shape[-1]))
        norm = "batch" if config.norm == "batch" else "none"
        tower = Tower(1, config.hidden, config.activation, norm, False, config.block, name="tower")
        features = tower(flat, params, None, train)
        head = _head(config, 1, self.num_actions)
        out = lambda name: head(name)(features).reshape((*x.shape[:-1], -1))
        if not self.stochastic:
            return out("mean"), None
        mean, log_std = out("mean"), out("log_std")
        return mean, bounded(log_std, *_HYPER_LOG_STD) if config.block == "hyperspherical" else log_std


class EnsembleCritic(nn.Module):
    """M action values, or M sets of quantiles or logits.

    Attributes:
      observation_space: space of one observation.
      num_members: M.
      config: layers.
      num_actions: A of a discrete space, whose values then are the outputs: no action is an input, and K = A.
    """

    observation_space: spaces.Space
    num_members: int = 2
    config: ControlConfig = ControlConfig()
    num_actions: int = 0

    @property
    def num_outputs(self) -> int:
        """K."""
        return max(1, self.config.num_quantiles, self.config.num_bins, self.num_actions)

    @property
    def stochastic(self) -> bool:
        """Whether a key changes the outputs."""
        return self.config.dropout

    @nn.compact
    def __call__(
        self,
        obs: Observation,
        action: Float[Array, "... A"] | None = None,
        params: Coefficients | None = None,
        key: Key | None = None,
        train: bool = False,
    ) -> Float[Array, "M ... K"]:
        """Evaluates actions.

        Args:
          obs: observations [..., *shape].
          action: actions [..., A], flat; None if they are discrete.
          params: read if there is dropout, and in training by batch renormalization.
          key: of dropout; None: no unit is left out.
          train: whether batch renormalization takes the batch's moments.
        """
        config = self.config
        x = Encoder(self.observation_space, config.convolve, config.activation, name="encoder")(obs)
        if action is not None:
            x = jnp.concatenate([x, action], axis=-1)
        flat, hidden = x.reshape((-1, x.shape[-1])), config.critic_hidden or config.hidden
        tower = Tower(
            self.num_members, hidden, config.activation, config.norm, config.dropout, config.block, name="tower"
        )
        features = tower(flat, params, key, train)
        values = _head(config, self.num_members, self.num_outputs)("value")(features)
        return values.reshape((self.num_members, *x.shape[:-1], -1))


def _head(config: ControlConfig, num_members: int, num_outputs: int) -> Callable[[str], nn.Module]:
    """What reads the features, by its name."""
    if config.block == "hyperspherical":
        return lambda name: HyperHead(num_outputs, name=name)
    return lambda name: Dense(num_members, num_outputs, name=name)


class ControlNetworks(NamedTuple):
    """A policy and its critics.

    Attributes:
      policy: `(obs, coefficients, train) -> (mean, log_std)`.
      critic: `(obs, action, coefficients, key, train) -> values [M, ..., K]`.
    """

    policy: ControlPolicy
    critic: EnsembleCritic


@memoize
def control_networks(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    stochastic: bool = True,
    config: ControlConfig = ControlConfig(),
) -> ControlNetworks:
    """Builds a policy and an ensemble of critics.

    Args:
      observation_space: space of one observation.
      action_space: a `Box` with finite bounds, or `Discrete`.
      stochastic: whether the policy has standard deviations; of discrete actions it has logits instead.
      config: layers.

    Returns:
      The modules; equal arguments give the same ones.

    Raises:
      ValueError: the actions are neither, critics of discrete actions are to learn distributions, a width or a count
        is not positive, a choice is unknown, or the blocks do not go with the rest.

    Example:
      >>> nets = control_networks(spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,)))
      >>> variables = nets.critic.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(2))
      >>> nets.critic.apply(variables, jnp.zeros((5, 3)), jnp.zeros((5, 2))).shape
      (2, 5, 1)
    """
    discrete = isinstance(action_space, spaces.Discrete)
    if not (discrete or (isinstance(action_space, spaces.Box) and action_space.bounded)):
        raise ValueError(f"control_networks: actions must be Discrete or a Box with finite bounds; got {action_space}.")
    if discrete and (config.num_quantiles or config.num_bins):
        raise ValueError(
            "control_networks: critics of discrete actions learn means only; got "
            f"num_quantiles = {config.num_quantiles}, num_bins = {config.num_bins}."
        )
    validation.choices("control_networks", config)
    validation.counts("control_networks", config, ("num_critics",))
    if not config.hidden or min(config.hidden + config.critic_hidden) < 1 or config.num_quantiles < 0:
        raise ValueError(
            "control_networks: widths must be positive, at least one in hidden, and num_quantiles not negative; got "
            f"hidden = {config.hidden}, critic_hidden = {config.critic_hidden}, "
            f"num_quantiles = {config.num_quantiles}."
        )
    if config.num_bins < 0 or config.num_bins == 1 or (config.num_bins and config.num_quantiles):
        raise ValueError(
            "control_networks: a histogram has at least 2 bins and excludes quantiles; got "
            f"num_bins = {config.num_bins}, num_quantiles = {config.num_quantiles}."
        )
    if config.block != "plain" and (
        config.norm != "none" or config.dropout or any(len(set(x)) > 1 for x in (config.hidden, config.critic_hidden))
    ):
        raise ValueError(
            f"control_networks: {config.block} blocks have a normalization of their own, no dropout, and one width; "
            f"got norm = {config.norm!r}, dropout = {config.dropout}, hidden = {config.hidden}, "
            f"critic_hidden = {config.critic_hidden}."
        )
    num_actions = action_space.n if isinstance(action_space, spaces.Discrete) else 0
    return ControlNetworks(
        ControlPolicy(observation_space, num_actions or spaces.size(action_space), stochastic and not discrete, config),
        EnsembleCritic(observation_space, config.num_critics, config, num_actions),
    )


def networks_for(
    owner: str,
    env: Env,
    network: ControlNetworks | None,
    stochastic: bool,
    config: ControlConfig,
    discrete: bool = False,
) -> ControlNetworks:
    """The networks given, or those that a config describes for the environment's spaces.

    Args:
      owner: the algorithm, for messages.
      env: with actions that are a bounded `Box`, or discrete.
      network: given, or None.
      stochastic: whether the policy must have standard deviations.
      config: layers.
      discrete: whether actions must be discrete.

    Raises:
      ValueError: both are given, the policy given is of the other kind, or what `control_networks` raises.
    """
    if discrete and not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"{owner}: actions must be discrete; {env.name!r} has {env.action_space}. Use sac.")
    if not discrete and not (isinstance(env.action_space, spaces.Box) and env.action_space.bounded):
        raise ValueError(
            f"{owner}: actions must be a Box with finite bounds, since the gradient of Q goes through them; "
            f"{env.name!r} has {env.action_space}. Use discrete_sac, dqn or ppo."
        )
    if network is None:
        return control_networks(env.observation_space, env.action_space, stochastic, config)
    if config != ControlConfig():
        raise ValueError(f"{owner}: pass a network or set config.network, not both; got {network} and {config}.")
    if network.policy.stochastic != stochastic:
        raise ValueError(
            f"{owner}: needs a policy with stochastic = {stochastic}; build it with "
            f"control_networks(..., stochastic={stochastic})."
        )
    return network


def evaluate_with_features(
    critic: EnsembleCritic, params: PyTree, *inputs: Any
) -> tuple[Float[Array, "M ... K"], Float[Array, "M N H"]]:
    """Applies a critic without batch normalization; also what its last layer makes the values of.

    Args:
      critic: the module.
      params: its parameters.
      *inputs: what it takes.

    Returns:
      Values, and the features of each member.
    """
    captured = {"capture_intermediates": lambda module, _: isinstance(module, Tower), "mutable": ["intermediates"]}
    output, after = critic.apply({"params": params}, *inputs, **captured)
    features = after["intermediates"]["tower"]["__call__"][0]
    return output, features  # type: ignore[return-value]


def evaluate(module: nn.Module, params: PyTree, statistics: PyTree, *inputs: Any) -> tuple[Any, PyTree]:
    """Applies a module to parameters and running moments.

    Args:
      module: of this file.
      params: the collection `params`.
      statistics: the other collections, {} if there are none.
      *inputs: what the module takes.

    Returns:
      Its output, and the running moments after it.
    """
    output, after = module.apply({"params": params, **statistics}, *inputs, mutable=["batch_stats"])
    return output, dict(after)
