"""Layers whose features and weights lie on unit spheres: SimbaV2's (Lee et al. 2025, arXiv:2502.15280), M side by side.

With u(x) = x / ‖x‖, e of D units and L blocks:

    input    e = u(s ⊙ W u([x, c]))                     c = 3 keeps what the length of x says
    block    e ← u(e + α ⊙ (u(V (relu(s ⊙ W e) + ε)) - e)), with 4 D units between
    head     V (s ⊙ W e) + b

The weights into each unit of W and V have length 1: at the beginning by `unit_columns`, after an update by the
optimizer `jaxrl.ops.optimizers.on_spheres`, which finds these layers by the name of their class. Scales s and α are
learned; a parameter that begins at `scale` stands for a factor that begins at `start`. The constants are those of the
authors' code (DAVIAN-Robotics/SimbaV2): s starts at √(2/D), in a block at half of that, in a head at 1, α at
1 / (L + 1).
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.torsos import activation_function

EXPANSION = 4
"""How many times as many units there are within a block."""
SHIFT = 3.0
"""c."""
_LEAST = 1e-8
"""Added to activations and the least length that is divided by."""


def on_sphere(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """x / max(‖x‖, 1e-8) along an axis.

    >>> [round(x, 3) for x in on_sphere(jnp.array([3.0, 4.0])).tolist()]
    [0.6, 0.8]
    """
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, _LEAST**2))


def unit_columns(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "M D F"]:
    """Orthogonal matrices [M, D, F], whose columns are then made as long as 1 where F is greater than D."""
    kernels = jax.vmap(lambda one: orthogonal()(one, shape[1:], dtype))(jax.random.split(key, shape[0]))
    return on_sphere(kernels, axis=-2)


class HyperDense(nn.Module):
    """M dense layers without a bias, the weights into each unit of length 1.

    Attributes:
      num_members: M.
      features: units of each.
    """

    num_members: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "... N D"]) -> Float[Array, "M N F"]:
        """Maps [N, D], the same input for all, or [M, N, D]."""
        kernel = self.param("kernel", unit_columns, (self.num_members, x.shape[-1], self.features))
        return jnp.einsum("nd,mdf->mnf" if x.ndim == 2 else "mnd,mdf->mnf", x, kernel)


class Scaler(nn.Module):
    """A learned factor of each unit.

    Attributes:
      start: the factor at the beginning.
      scale: its parameter at the beginning: the smaller, the faster an optimizer that moves by the rate moves it.
    """

    start: float = 1.0
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "M N D"]) -> Float[Array, "M N D"]:
        """Scales."""
        scaler = self.param("scaler", nn.initializers.constant(self.scale), (x.shape[0], x.shape[2]))
        return jnp.broadcast_to(scaler[:, None], x.shape) * (self.start / self.scale) * x


class HyperTower(nn.Module):
    """Input and blocks.

    Attributes:
      num_members: M.
      hidden: the width D of each block, all the same.
      activation: its name; relu in the paper.
    """

    num_members: int
    hidden: tuple[int, ...]
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "M N H"]:
        """Maps one input to features of length 1 of all members."""
        width, num = self.hidden[0], self.num_members
        start = math.sqrt(2.0 / width)
        x = on_sphere(jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), SHIFT)], axis=-1))
        x = on_sphere(Scaler(start, start)(HyperDense(num, width)(x)))
        inner = start / math.sqrt(EXPANSION)
        for _ in self.hidden:
            y = Scaler(inner, inner)(HyperDense(num, EXPANSION * width)(x))
            y = on_sphere(HyperDense(num, width)(activation_function(self.activation)(y) + _LEAST))
            x = on_sphere(x + Scaler(1.0 / (len(self.hidden) + 1), 1.0 / math.sqrt(width))(y - x))
        return x


class HyperHead(nn.Module):
    """Two layers that read features of length 1; a bias at the end only.

    Attributes:
      num_outputs: K.
    """

    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "M N H"]) -> Float[Array, "M N K"]:
        """Maps features to outputs."""
        num = x.shape[0]
        y = Scaler()(HyperDense(num, x.shape[-1])(x))
        y = HyperDense(num, self.num_outputs)(y)
        bias = self.param("bias", nn.initializers.zeros, (num, self.num_outputs))
        return y + jnp.broadcast_to(bias[:, None], y.shape)


def bounded(x: Float[Array, "*shape"], low: float, high: float) -> Float[Array, "*shape"]:
    """low + (high - low) (1 + tanh x) / 2.

    >>> bounded(jnp.float32(0.0), -10.0, 2.0).item()
    -4.0
    """
    return low + 0.5 * (high - low) * (1.0 + jnp.tanh(x))
