"""Torsos: observations of any space to a vector of features. All of them accept any leading axes."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.networks.initializers import orthogonal

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
}


def activation_function(name: str) -> Callable[[Array], Array]:
    """The activation of that name.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}; got activation = {name!r}.")
    return ACTIVATIONS[name]


class MLP(nn.Module):
    """Dense layers, each followed by the activation (and before it a LayerNorm if asked for).

    Attributes:
      hidden: width of each layer.
      activation: name of the activation.
      layer_norm: whether to normalize before each activation.
      dtype: of the computation; parameters stay float32.
      weight_norm: whether the weights into each unit are g v / ‖v‖, with their length g learned apart from their
        direction v (Salimans and Kingma 2016, arXiv:1602.07868, eq. 2). It couples no two examples. g is √2 at first,
        the length without this option; the paper's initialization from a first batch is left out.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    layer_norm: bool = False
    dtype: Any = jnp.float32
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... H"]:
        """Maps [..., D] to [..., hidden[-1]]."""
        for width in self.hidden:
            dense = nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)), dtype=self.dtype)
            if self.weight_norm:
                dense = nn.WeightNorm(dense, scale_init=nn.initializers.constant(math.sqrt(2)))
            x = dense(x)
            if self.layer_norm:
                x = nn.LayerNorm(dtype=self.dtype)(x)
            x = activation_function(self.activation)(x)
        return x


class Conv(nn.Module):
    """A convolution without padding, as slices and one matrix product.

    Under `vmap` over members an ordinary convolution becomes a grouped one, which CPUs and GPUs run slowly; a matrix
    product becomes a batched one, which they run well.

    Attributes:
      features: output channels.
      kernel: side of the square window.
      stride: step of the window.
      dtype: of the computation.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... H W C"]) -> Float[Array, "... H2 W2 F"]:
        """Maps [..., H, W, C] to [..., (H-kernel)//stride+1, (W-kernel)//stride+1, features]."""
        height, width, channels = x.shape[-3:]
        rows, columns = ((side - self.kernel) // self.stride + 1 for side in (height, width))
        span_i, span_j = (rows - 1) * self.stride + 1, (columns - 1) * self.stride + 1
        patches = [
            x[..., i : i + span_i : self.stride, j : j + span_j : self.stride, :]
            for i in range(self.kernel)
            for j in range(self.kernel)
        ]
        merged = jnp.concatenate(patches, axis=-1)
        weights = self.param("kernel", orthogonal(math.sqrt(2)), (self.kernel, self.kernel, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = weights.reshape(-1, self.features).astype(self.dtype)
        return jnp.matmul(merged.astype(self.dtype), kernel) + jnp.broadcast_to(
            bias.astype(self.dtype), (*merged.shape[:-1], self.features)
        )


class CNN(nn.Module):
    """Convolutions, then one dense layer.

    Images of at least 36 by 36 get the three layers of Mnih et al. (2015); smaller ones (MinAtar's are 10 by 10) the
    single 3 by 3 layer of Young and Tian (2019, arXiv:1903.03176).

    Attributes:
      features: width of the dense layer; None takes the papers' (512 and 128).
      activation: name of the activation.
      dtype: of the computation.
    """

    features: int | None = None
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... H W C"]) -> Float[Array, "... D"]:
        """Maps [..., H, W, C] to [..., features]."""
        activate = activation_function(self.activation)
        large = min(x.shape[-3:-1]) >= 36
        layers = ((32, 8, 4), (64, 4, 2), (64, 3, 1)) if large else ((16, min(3, *x.shape[-3:-1]), 1),)
        for features, kernel, stride in layers:
            x = activate(Conv(features, kernel, stride, dtype=self.dtype)(x))
        x = x.reshape((*x.shape[:-3], -1))
        width = self.features or (512 if large else 128)
        return activate(nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)), dtype=self.dtype)(x))


class Encoder(nn.Module):
    """Turns an observation of any space into one vector of features.

    Numbers are cast to float32 (integer images of 0…255 are divided by 255), integers of a discrete space become
    one-hot vectors, images [H, W, C] go through a `CNN` if `convolve`, everything else is flattened; the parts of a
    `Dict` are concatenated, but for `action_mask`.

    Attributes:
      space: the observation space.
      convolve: whether images go through a CNN.
      activation: of the CNN.
      dtype: of the computation.
    """

    space: spaces.Space
    convolve: bool = True
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, obs: Any) -> Float[Array, "... D"]:
        """Maps an observation with any leading axes to [..., D]."""
        return self._encode(self.space, obs)

    def _encode(self, space: spaces.Space, obs: Any) -> Array:
        if isinstance(space, spaces.Dict):
            parts = [self._encode(sub, obs[name]) for name, sub in space.spaces if name != "action_mask"]
            return jnp.concatenate(parts, axis=-1)
        if isinstance(space, spaces.Discrete):
            return jax.nn.one_hot(obs, space.n)
        if isinstance(space, spaces.MultiDiscrete):
            parts = [jax.nn.one_hot(obs[..., i], n) for i, n in enumerate(space.nvec)]
            return jnp.concatenate(parts, axis=-1)
        x = obs.astype(jnp.float32)
        if space.dtype == jnp.uint8:
            x = x / 255.0
        if self.convolve and len(space.shape) == 3:
            return CNN(activation=self.activation, dtype=self.dtype)(x)
        return x.reshape((*x.shape[: x.ndim - len(space.shape)], -1))
