"""Hidden layers of M networks side by side: one module whose parameters have a leading axis [M].

    tower     normalized input if `batch`, then for each layer
              Dense, dropout, LayerNorm if `layer`, activation, normalized if `batch`
              or, if `residual` (SimBa: Lee et al. 2025, arXiv:2410.09754, figure 4): Dense, then for each layer
              x + Dense(activation(Dense(LayerNorm(x)))) with four times as many units between, then LayerNorm
              or, if `hyperspherical` (SimbaV2, with heads of its own): see `jaxrl.networks.hyperspherical`

`batch` is batch renormalization (Ioffe 2017, arXiv:1702.03275, algorithm 1), plain batch normalization for the first
`warmup` updates, in policy and critics at the places where the authors' code of CrossQ has it (Bhatt et al. 2024,
arXiv:1902.05605). Running moments are no parameters: they are the collection `batch_stats`. `layer` and dropout are in
the critics alone, in the order of the authors' code of DroQ (Hiraoka et al. 2021, arXiv:2110.02034).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl.networks.hyperspherical import HyperTower
from jaxrl.networks.torsos import activation_function
from jaxrl.types import Key

_EPSILON = 1e-3
"""Added to variances, as in the authors' code of CrossQ."""
_INITIAL = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
_HE = nn.initializers.he_normal(in_axis=-2, out_axis=-1, batch_axis=0)


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
