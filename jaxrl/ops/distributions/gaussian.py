"""Distributions of continuous actions with one mode: normal, and normal squashed into bounds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxrl.types import Key

_LOG_2 = math.log(2.0)
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)
_MAX_TANH = 1.0 - 1e-6


@struct.dataclass
class Gaussian:
    """Independent normal variables; one draw is a float vector, the last axis.

    Attributes:
      mean: means.
      log_std: logarithms of the standard deviations, a shape that broadcasts to that of `mean`. Give both the same
        shape where the distribution itself is mapped or stacked.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*#batch D"]

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        """Draws one vector, differentiable in mean and log_std."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> Float[Array, "*batch D"]:
        """The standard normal numbers that one draw of each needs; of `self` only the shape is read."""
        return jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Turns noise into a draw, differentiable in mean and log_std."""
        return self.mean + jnp.exp(self._full_log_std()) * noise

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """Draws one vector; also its log-density."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-density."""
        log_std = self._full_log_std()
        z = (x - self.mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * z * z - log_std - _HALF_LOG_2_PI, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Σ_d (½ log 2πe + log σ_d)."""
        return jnp.sum(self._full_log_std() + (0.5 + _HALF_LOG_2_PI), axis=-1)

    def kl(self, other: "Gaussian") -> Float[Array, "*batch"]:
        """Σ_d [log σ'/σ + (σ² + (μ - μ')²) / 2σ'² - ½]."""
        log_std, other_log_std = self._full_log_std(), other._full_log_std()
        log_ratio = log_std - other_log_std
        z = (self.mean - other.mean) * jnp.exp(-other_log_std)
        # expm1 keeps the divergence of two nearly equal policies, which stopping rules compare with 0.01
        return jnp.sum(0.5 * (jnp.expm1(2.0 * log_ratio) + z * z) - log_ratio, axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The mean."""
        return self.mean

    def _full_log_std(self) -> Float[Array, "*batch D"]:
        return jnp.broadcast_to(self.log_std, self.mean.shape)


@struct.dataclass
class TanhGaussian:
    """A Gaussian squashed by tanh and mapped to [low, high]; one draw is a float vector, the last axis.

        a = low + (high - low) (tanh(u) + 1) / 2,   u ~ N(mean, exp(log_std)²)

    `low` and `high` are structure, numbers or tuples of D numbers (arrays are converted), so that mapping and stacking
    a distribution leaves them alone.

    Attributes:
      mean: means before squashing.
      log_std: logarithms of the standard deviations before squashing, as in `Gaussian`.
      low: finite lower bounds.
      high: finite upper bounds.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*#batch D"]
    low: Any = struct.field(pytree_node=False, default=-1.0)
    high: Any = struct.field(pytree_node=False, default=1.0)

    def __post_init__(self):
        for name in ("low", "high"):
            bound = getattr(self, name)
            if not isinstance(bound, (float, tuple)):
                array = np.asarray(bound, np.float64)
                packed = float(array) if array.ndim == 0 else tuple(array.ravel().tolist())
                object.__setattr__(self, name, packed)

    def base(self) -> Gaussian:
        """The Gaussian before squashing."""
        return Gaussian(self.mean, self.log_std)

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        """Draws one vector, differentiable in mean and log_std."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> Float[Array, "*batch D"]:
        """The standard normal numbers that one draw of each needs; of `self` only the shape is read."""
        return self.base().noise(key)

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Turns noise into a draw, differentiable in mean and log_std."""
        return self._forward(self.base().sample_from(noise))

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """Draws one vector; also its log-density, computed before rounding to the bounds can lose it."""
        return self.sample_and_log_prob_from(self.noise(key))

    def sample_and_log_prob_from(
        self, noise: Float[Array, "*batch D"]
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """Turns noise into a draw and its log-density, as `sample_and_log_prob`."""
        u = self.base().sample_from(noise)
        return self._forward(u), self._log_prob_before(u)

    def log_prob(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-density. What lies closer to a bound than 5e-7 of the range is taken to lie there."""
        center, half_range = self._bounds()
        squashed = jnp.clip((x - center) / half_range, -_MAX_TANH, _MAX_TANH)
        return self._log_prob_before(jnp.arctanh(squashed))

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy on [low, high], within 2e-5 nats for each dimension.

            H = Σ_d [½ log 2πeσ² + E log(1 - tanh²u) + log (high - low)/2]

        The expectation has no closed form. `_expected_log_tanh_slope` replaces log(1 - tanh²u) by a function that
        differs from it by less than 2e-5 for every u and whose expectation is elementary: no samples, no noise, exact
        gradients of that function, and the same bound for every mean and standard deviation.
        """
        _, half_range = self._bounds()
        base = self.base()
        slope = _expected_log_tanh_slope(self.mean, jnp.exp(base._full_log_std()))
        return base.entropy() + jnp.sum(slope + jnp.log(half_range), axis=-1)

    def kl(self, other: "TanhGaussian") -> Float[Array, "*batch"]:
        """That of the Gaussians before squashing, to which it is equal if both have the same bounds."""
        return self.base().kl(other.base())

    def mode(self) -> Float[Array, "*batch D"]:
        """The image of the mean, which is the median (the mode of the density may lie on a bound)."""
        return self._forward(self.mean)

    def _bounds(self) -> tuple[Array, Array]:
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)

        def full(bound: np.ndarray) -> Array:
            return jnp.broadcast_to(jnp.asarray(bound, self.mean.dtype), self.mean.shape)

        return full((low + high) / 2), full((high - low) / 2)

    def _forward(self, u: Array) -> Array:
        center, half_range = self._bounds()
        return center + half_range * jnp.tanh(u)

    def _log_prob_before(self, u: Array) -> Array:
        _, half_range = self._bounds()
        return self.base().log_prob(u) - jnp.sum(_log_tanh_slope(u) + jnp.log(half_range), axis=-1)


def _log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh²u), without the cancellation of that form."""
    return 2.0 * (_LOG_2 - u - jax.nn.softplus(-2.0 * u))


# Least-squares fit of log(1 - tanh²u) on [0, 12] by 2 log 2 - 2 E|u + s_0 z| + Σ_k a_k exp(-u² / 2 s_k²), z ~ N(0, 1).
_SLOPE_BLUR = 0.782866
_SLOPE_BUMPS = ((-0.155065, 1.001416), (0.043381, 0.583676), (-0.025351, 1.469349))


def _expected_log_tanh_slope(mean: Array, std: Array) -> Array:
    """E log(1 - tanh²u) for u ~ N(mean, std²), each term of the fit above in closed form."""
    square = jnp.square(mean)
    spread = jnp.sqrt(jnp.square(std) + _SLOPE_BLUR**2)
    absolute = spread * math.sqrt(2.0 / math.pi) * jnp.exp(-0.5 * square / jnp.square(spread))
    absolute += mean * jax.lax.erf(mean / (math.sqrt(2.0) * spread))
    expected = 2.0 * _LOG_2 - 2.0 * absolute
    for height, width in _SLOPE_BUMPS:
        variance = jnp.square(std) + width**2
        expected += height * width * jax.lax.rsqrt(variance) * jnp.exp(-0.5 * square / variance)
    return expected
