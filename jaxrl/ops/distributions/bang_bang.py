"""Distributions over the extremes of bounded continuous actions."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl.ops.distributions.categorical import Categorical
from jaxrl.types import Key


@struct.dataclass
class BangBang:
    """Each entry of the action takes one of L evenly spaced values from -1 to 1, independently of the others.

        P(a_d = -1 + 2 l / (L - 1)) = softmax(logits_d)_l

    With L = 2 this is the Bernoulli policy over the two extremes of Seyde et al. (2021, arXiv:2111.02552), with L = 3
    the same with an off switch. One draw is a float vector, the last axis. Nothing is differentiated through a draw.

    Attributes:
      logits: unnormalized log-probabilities of the values of each entry, least first.
    """

    logits: Float[Array, "*batch D L"]

    def entries(self) -> Categorical:
        """The distributions of the entries over the numbers of their values, batch shape [*batch, D]."""
        return Categorical(self.logits)

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        """Draws one vector."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> Float[Array, "*batch D 1"]:
        """The uniform numbers that one draw of each needs; of `self` only the shape is read."""
        return self.entries().noise(key)

    def sample_from(self, noise: Float[Array, "*batch D 1"]) -> Float[Array, "*batch D"]:
        """Turns noise into a draw."""
        return self._value(self.entries().sample_from(noise))

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """Draws one vector; also its log-probability."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-probability; an entry that is none of the values is taken for the nearest of them."""
        last = self.logits.shape[-1] - 1
        index = jnp.clip(jnp.round((x + 1.0) * (0.5 * last)), 0, last).astype(jnp.int32)
        return jnp.sum(self.entries().log_prob(index), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy of the discrete values, the sum over the entries."""
        return jnp.sum(self.entries().entropy(), axis=-1)

    def kl(self, other: "BangBang") -> Float[Array, "*batch"]:
        """KL divergence, the sum over the entries."""
        return jnp.sum(self.entries().kl(other.entries()), axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The most probable value of each entry, the least of several."""
        return self._value(self.entries().mode())

    def _value(self, index: Int[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return index.astype(self.logits.dtype) * (2.0 / (self.logits.shape[-1] - 1)) - 1.0
