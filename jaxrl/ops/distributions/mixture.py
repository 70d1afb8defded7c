"""Mixtures of normal distributions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.ops.distributions.categorical import Categorical
from jaxrl.ops.distributions.gaussian import Gaussian
from jaxrl.types import Key


@struct.dataclass
class GaussianMixture:
    """K components of independent normal variables; one draw is a float vector, the last axis.

        p(x) = Σ_k w_k N(x; μ_k, σ_k²),   w = softmax(logits)

    Entropy and KL divergence of mixtures have no closed form: `entropy` is a lower bound and `kl` an upper one, so
    that a bonus for entropy and a penalty on KL err on the safe side. Both are exact for one component, and where
    components lie far apart.

    Attributes:
      logits: unnormalized log-weights of the components.
      mean: means.
      log_std: logarithms of the standard deviations, a shape that broadcasts to that of `mean`. Give both the same
        shape where the distribution itself is mapped or stacked.
    """

    logits: Float[Array, "*batch K"]
    mean: Float[Array, "*batch K D"]
    log_std: Float[Array, "*#batch K D"]

    def router(self) -> Categorical:
        """The distribution of the component."""
        return Categorical(self.logits)

    def components(self) -> Gaussian:
        """The components, batch shape [*batch, K]."""
        return Gaussian(self.mean, jnp.broadcast_to(self.log_std, self.mean.shape))

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        """Draws one vector, differentiable in the drawn component's mean and log_std, not in the logits."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch D"]]:
        """The uniform and standard normal numbers that one draw of each needs; of `self` only the shape is read."""
        key_component, key_normal = jax.random.split(key)
        shape = (*self.mean.shape[:-2], self.mean.shape[-1])
        return self.router().noise(key_component), jax.random.normal(key_normal, shape, self.mean.dtype)

    def sample_from(self, noise: tuple[Float[Array, "*batch 1"], Float[Array, "*batch D"]]) -> Float[Array, "*batch D"]:
        """Turns noise into a draw."""
        uniform, normal = noise
        draws = self.components().sample_from(normal[..., None, :])
        return _select(self.router().sample_from(uniform), draws)

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """Draws one vector; also its log-density."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-density, exact."""
        return jax.nn.logsumexp(self.joint_log_prob(x), axis=-1)

    def joint_log_prob(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch K"]:
        """log w_k + log N(x; μ_k, σ_k²); its softmax over k says how responsible each component is for x."""
        return self.router().log_probs() + self.components().log_prob(x[..., None, :])

    def entropy(self) -> Float[Array, "*batch"]:
        """A lower bound of the differential entropy, from distances of pairs (Kolchinsky and Tracey 2017).

            H ≥ Σ_i w_i [H_i - log Σ_j w_j exp(-B_ij)]

        B is the Bhattacharyya distance (arXiv:1706.02361, section 3.2, with α = ½). The bound lies at most log K below
        the entropy, and takes K² D numbers for each entry of the batch.
        """
        mean, log_std = self.components().mean, self.components().log_std
        difference = mean[..., :, None, :] - mean[..., None, :, :]
        # The square of difference / sqrt(σ_i² + σ_j²), and log((σ_i² + σ_j²) / 2σ_iσ_j) = log cosh(log σ_i/σ_j).
        log_sum = jnp.logaddexp(2.0 * log_std[..., :, None, :], 2.0 * log_std[..., None, :, :])
        z = difference * jnp.exp(-0.5 * log_sum)
        log_cosh = log_sum - math.log(2.0) - log_std[..., :, None, :] - log_std[..., None, :, :]
        distance = jnp.sum(0.25 * z * z + 0.5 * log_cosh, axis=-1)
        overlap = jax.nn.logsumexp(self.router().log_probs()[..., None, :] - distance, axis=-1)
        return jnp.sum(self.router().probs() * (self.components().entropy() - overlap), axis=-1)

    def kl(self, other: "GaussianMixture") -> Float[Array, "*batch"]:
        """An upper bound of the KL divergence: that of the pairs of component and draw.

            KL ≤ KL(w ‖ w') + Σ_k w_k KL(N_k ‖ N'_k)

        It is zero for equal mixtures and compares component k with component k, as fits two versions of one policy;
        two mixtures that differ by the order of their components only are apart.
        """
        apart = self.components().kl(other.components())
        return self.router().kl(other.router()) + jnp.sum(self.router().probs() * apart, axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The mean of the component of greatest weight (the density may be greater elsewhere)."""
        return _select(self.router().mode(), self.mean)


def _select(index: Any, values: Float[Array, "*batch K D"]) -> Float[Array, "*batch D"]:
    one_hot = jax.nn.one_hot(index, values.shape[-2], dtype=jnp.bool_)
    return jnp.sum(jnp.where(one_hot[..., None], values, 0.0), axis=-2)
