"""The network of streaming agents: sparse weights at the start, normalized activations, one output for each name.

The parts are those of Elsayed et al. 2024 (arXiv:2410.14606, section 3): a sparse initialization, and a layer
normalization without parameters in front of every leaky ReLU. The features of the last layer may instead be scaled to
norm one (Vasan et al. 2024, arXiv:2411.15370, section 4), and every layer's weights may be split into length and
direction (Salimans and Kingma 2016, arXiv:1602.07868).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.networks.actor_critic import part_logits
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.torsos import Encoder
from jaxrl.ops import distributions
from jaxrl.types import memoize

_EPSILON = 1e-5
_LEAST_STD = 1e-6


def sparse(sparsity: float = 0.9) -> Callable[[jax.Array, Sequence[int], Any], Array]:
    """Uniform weights in ±1/√fan_in, of which a share into each unit is zero (arXiv:2410.14606, algorithm 1).

    ⌈sparsity · fan_in⌉ weights of each unit are zero, but one is always left: the paper's rule would cut off every unit
    that has fewer than 10 inputs.

    Args:
      sparsity: share of zeros, from 0 to 1.

    Returns:
      A flax initializer `(key, shape, dtype) -> array`; the last axis is the units'.

    Raises:
      ValueError: the share is out of its range.

    Example:
      >>> kernel = sparse(0.75)(jax.random.key(0), (8, 3), jnp.float32)
      >>> (kernel != 0).sum(axis=0).tolist()
      [2, 2, 2]
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be from 0 to 1; got sparsity = {sparsity}.")

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        key_weights, key_order = jax.random.split(key)
        fan_in, units = math.prod(shape[:-1]), shape[-1]
        num_zeros = min(math.ceil(sparsity * fan_in), fan_in - 1)
        bound = 1.0 / math.sqrt(fan_in)
        weights = jax.random.uniform(key_weights, (fan_in, units), dtype, -bound, bound)
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(key_order, (fan_in, units)), axis=0), axis=0)
        return jnp.where(rank < num_zeros, 0.0, weights).reshape(tuple(shape))

    return init


@dataclasses.dataclass(frozen=True)
class StreamingConfig:
    """The part of a `StreamingNetwork` that does not follow from the environment.

    Attributes:
      hidden: widths of the dense layers.
      convolve: whether images [H, W, C] go through convolutions first; otherwise they are flattened.
      initializer: sparse, or orthogonal with gain 1.
      sparsity: share of zero weights into each unit, if sparse.
      layer_norm: whether each layer is normalized before its activation.
      unit_features: whether the last layer's features are divided by their norm.
      weight_norm: whether each unit's weights are split into length and direction.
    """

    hidden: tuple[int, ...] = (32, 32)
    convolve: bool = True
    initializer: Literal["sparse", "orthogonal"] = "sparse"
    sparsity: float = 0.9
    layer_norm: bool = True
    unit_features: bool = False
    weight_norm: bool = False


class Layer(nn.Module):
    """A dense layer, whose weights may be split into length and direction, w = g v / ‖v‖ for each unit.

    Attributes:
      features: units.
      kernel_init: initializer of v.
      weight_norm: whether there is a g; it starts at ‖v‖, so that w starts as v.
    """

    features: int
    kernel_init: Any
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        """Maps [..., D] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.weight_norm:
            length = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
            scale = self.param("scale", lambda _: length)
            kernel = kernel * (scale / length)[None]
        y = x @ kernel
        return y + jnp.broadcast_to(bias, y.shape)


class StreamingNetwork(nn.Module):
    """Convolutions for an image, dense layers, and a linear output for each name. Leading axes are free.

    Images of at least 36 by 36 get three convolutions (32 8×8 stride 5, 64 4×4 stride 3, 64 3×3 stride 2), smaller ones
    one of 16 3×3, as in the paper. An image inside of a `Dict` is flattened.

    Attributes:
      observation_space: space of one observation.
      outputs: names and sizes.
      config: layers.
    """

    observation_space: spaces.Space
    outputs: tuple[tuple[str, int], ...]
    config: StreamingConfig = StreamingConfig()

    @nn.compact
    def __call__(self, obs: Any, *inputs: Float[Array, "... D"]) -> dict[str, Float[Array, "... F"]]:
        """Evaluates observations [..., *shape]; further inputs, an action for instance, join the dense layers'."""
        config, space = self.config, self.observation_space
        # The length of a kernel is read at once, so it must not be one that is only found later.
        straight = nn.initializers.orthogonal() if config.weight_norm else orthogonal()
        init = sparse(config.sparsity) if config.initializer == "sparse" else straight
        if config.convolve and isinstance(space, spaces.Box) and len(space.shape) == 3:
            x = obs.astype(jnp.float32)
            large = min(space.shape[:2]) >= 36
            shapes = ((32, 8, 5), (64, 4, 3), (64, 3, 2)) if large else ((16, min(3, *space.shape[:2]), 1),)
            for features, side, stride in shapes:
                x = Layer(features, init, config.weight_norm)(_windows(x, side, stride))
                x = self._activate(x, 3)
            x = x.reshape((*x.shape[:-3], -1))
        else:
            x = Encoder(space, convolve=False)(obs)
        x = jnp.concatenate((x, *inputs), axis=-1)
        for features in config.hidden:
            x = self._activate(Layer(features, init, config.weight_norm)(x), 1)
        if config.unit_features:
            x = x / jnp.broadcast_to(jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12), x.shape)
        return {name: Layer(size, init, config.weight_norm, name=name)(x) for name, size in self.outputs}

    def _activate(self, x: Array, num_axes: int) -> Array:
        if self.config.layer_norm:
            axes = tuple(range(-num_axes, 0))
            centered = x - jnp.broadcast_to(jnp.mean(x, axes, keepdims=True), x.shape)
            variance = jnp.mean(jnp.square(centered), axes, keepdims=True)
            x = centered * jnp.broadcast_to(jax.lax.rsqrt(variance + _EPSILON), x.shape)
        # At 0, where the first normalized observation puts all units, the slope is the small one, as the authors' is.
        return jnp.where(x > 0, x, 0.01 * x)


def _windows(x: Float[Array, "... H W C"], side: int, stride: int) -> Float[Array, "... H2 W2 D"]:
    """Square windows without padding, as `jaxrl.networks.torsos.Conv` takes them: a convolution is then a product."""
    rows, columns = ((size - side) // stride * stride + 1 for size in x.shape[-3:-1])
    return jnp.concatenate(
        [x[..., i : i + rows : stride, j : j + columns : stride, :] for i in range(side) for j in range(side)],
        axis=-1,
    )


@memoize
def streaming_network(
    observation_space: spaces.Space, outputs: tuple[tuple[str, int], ...], config: StreamingConfig = StreamingConfig()
) -> StreamingNetwork:
    """Builds a `StreamingNetwork`.

    Args:
      observation_space: space of one observation.
      outputs: names and sizes.
      config: layers.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: a share or a name is out of its range, or a width is not positive.

    Example:
      >>> net = streaming_network(spaces.box(-1.0, 1.0, (3,)), (("value", 2),))
      >>> params = net.init(jax.random.key(0), jnp.zeros(3))
      >>> net.apply(params, jnp.zeros((5, 3)))["value"].shape
      (5, 2)
    """
    sparse(config.sparsity)
    if config.initializer not in ("sparse", "orthogonal"):
        raise ValueError(f"initializer must be sparse or orthogonal; got initializer = {config.initializer!r}.")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"hidden must be positive widths, at least one; got hidden = {config.hidden}.")
    return StreamingNetwork(observation_space, outputs, config)


def policy_outputs(space: spaces.Space) -> tuple[tuple[str, int], ...]:
    """The outputs that `policy_distribution` reads for a space of actions.

    Raises:
      ValueError: there is no policy over such a space.

    >>> policy_outputs(spaces.Discrete(3))
    (('policy', 3),)
    """
    if isinstance(space, spaces.Discrete):
        return (("policy", space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return (("policy", sum(space.nvec)),)
    if isinstance(space, spaces.Box):
        return (("policy", spaces.size(space)), ("spread", spaces.size(space)))
    raise ValueError(f"There is no policy over actions of {space}; wrap the environment to flatten its actions.")


def policy_distribution(space: spaces.Space, outputs: dict[str, Array], mask: Array | None = None) -> Any:
    """The policy that a network's outputs describe.

    A `Box` has a Gaussian in units where the bounds are -1 and 1 (`to_env_action` maps them), with the deviation
    softplus(spread), which depends on the observation.

    Args:
      space: of actions.
      outputs: see `policy_outputs`, leading axes [...].
      mask: legal actions of a `Discrete` or of the parts of a `MultiDiscrete`, one after the other, as many entries as
        there are logits in any shape after the leading axes; or None.

    Returns:
      A distribution of batch shape [...].
    """
    policy = outputs["policy"]
    if isinstance(space, spaces.Discrete):
        if mask is None:
            return distributions.Categorical(policy)
        return distributions.masked_categorical(policy, mask.reshape(policy.shape))
    if isinstance(space, spaces.MultiDiscrete):
        return distributions.MultiCategorical(part_logits(space.nvec, policy, mask))
    return distributions.Gaussian(policy, jnp.log(jax.nn.softplus(outputs["spread"]) + _LEAST_STD))
