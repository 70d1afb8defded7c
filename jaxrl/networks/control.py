"""Networks of off-policy control: a policy, and an ensemble of critics Q_1 … Q_M that is one network.

    policy    μ, log σ  = Dense(tower(encode(s)))                     [..., A]
    critics   Q_m(s, a) = Dense_m(tower_m([encode(s), a]))            [M, ..., K]

All parameters of the M critics have a leading axis [M]; a convolutional encoder is shared by them. The towers are those
of `jaxrl.networks.members`. K is 1, or the number of quantiles, at the midpoints (2k - 1) / 2K, or of the bins of a
histogram, of which the outputs are logits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxrl import spaces, validation
from jaxrl.networks.hyperspherical import HyperHead, bounded
from jaxrl.networks.members import Coefficients, Dense, Renormalization, Tower
from jaxrl.networks.torsos import Encoder
from jaxrl.ops.bins import Support
from jaxrl.types import Env, Key, Observation, memoize

_HYPER_LOG_STD = (-10.0, 2.0)
"""Range of log σ with hyperspherical blocks, as in the authors' code of SimbaV2."""


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
      >>> import jax
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
      ValueError: both are given, `config` is of another class, the policy given is of the other kind, or what
        `control_networks` raises.
    """
    if discrete and not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"{owner}: actions must be discrete; {env.name!r} has {env.action_space}. Use sac.")
    if not discrete and not (isinstance(env.action_space, spaces.Box) and env.action_space.bounded):
        raise ValueError(
            f"{owner}: actions must be a Box with finite bounds, since the gradient of Q goes through them; "
            f"{env.name!r} has {env.action_space}. Use discrete_sac, dqn or ppo."
        )
    validation.layers(owner, config, ControlConfig)
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
