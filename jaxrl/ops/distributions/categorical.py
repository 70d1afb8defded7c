"""Distributions of discrete actions: one of A, and several independent ones."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl.types import Key

_ILLEGAL_LOGIT = -1e9


@struct.dataclass
class Categorical:
    """Actions 0 … A-1 with probabilities softmax(logits); one draw is an int32 of shape ().

    Attributes:
      logits: unnormalized log-probabilities.
    """

    logits: Float[Array, "*batch A"]

    def log_probs(self) -> Float[Array, "*batch A"]:
        """Log-probabilities of all actions."""
        return jax.nn.log_softmax(self.logits)

    def probs(self) -> Float[Array, "*batch A"]:
        """Probabilities of all actions."""
        return jax.nn.softmax(self.logits)

    def sample(self, key: Key) -> Int[Array, "*batch"]:
        """Draws one action."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> Float[Array, "*batch 1"]:
        """The uniform numbers that one draw of each needs; of `self` only the shape is read."""
        return jax.random.uniform(key, (*self.logits.shape[:-1], 1), self.logits.dtype)

    def sample_from(self, noise: Float[Array, "*batch 1"]) -> Int[Array, "*batch"]:
        """Turns noise into actions, by inverting the distribution function; probabilities are resolved to 2^-23."""
        # One uniform number a draw, where the Gumbel-max trick takes A of them and 2A logarithms.
        weight = jnp.exp(self.logits - jnp.max(self.logits, axis=-1, keepdims=True))
        # A parallel sum may round differently at an action of weight zero, which must never be drawn.
        cumulative = jnp.where(weight > 0, jnp.cumsum(weight, axis=-1), 0.0)
        threshold = noise * jnp.max(cumulative, axis=-1, keepdims=True)
        return jnp.argmax(cumulative > threshold, axis=-1).astype(jnp.int32)

    def sample_and_log_prob(self, key: Key) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
        """Draws one action; also its log-probability."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def log_prob(self, x: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log-probability of an action."""
        one_hot = jax.nn.one_hot(x, self.logits.shape[-1], dtype=jnp.bool_)
        return jnp.sum(jnp.where(one_hot, self.log_probs(), 0.0), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """-Σ p log p."""
        return -jnp.sum(self.probs() * self.log_probs(), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Σ p (log p - log q)."""
        return jnp.sum(self.probs() * (self.log_probs() - other.log_probs()), axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        """The most probable action, the first of several."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def masked_categorical(logits: Float[Array, "*batch A"], mask: Bool[Array, "*batch A"]) -> Categorical:
    """A `Categorical` over the legal actions only.

    An illegal action's logit is replaced by a finite number so low that its probability is exactly zero in float32;
    entropy, KL and all gradients stay finite, and no gradient reaches the logits of illegal actions. Where a mask
    allows nothing, the distribution is uniform over all actions. `kl` to a distribution that forbids an action of
    positive probability is finite but huge (about 1e9 times that probability).

    Args:
      logits: unnormalized log-probabilities, of magnitude well below 1e9.
      mask: true where an action is legal (other dtypes: not zero).
    """
    return Categorical(jnp.where(mask.astype(jnp.bool_), logits, _ILLEGAL_LOGIT))


@struct.dataclass
class MultiCategorical:
    """Several independent categorical actions; one draw is an int32 of shape (k,).

    Attributes:
      logits: k arrays, one for each part, each with its own number of actions.
    """

    logits: tuple[Float[Array, "*batch A"], ...]

    def parts(self) -> tuple[Categorical, ...]:
        """The distributions of the parts."""
        return tuple(Categorical(logits) for logits in self.logits)

    def sample(self, key: Key) -> Int[Array, "*batch k"]:
        """Draws all parts."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> tuple[Float[Array, "*batch 1"], ...]:
        """The uniform numbers that one draw of each needs; of `self` only the shape is read."""
        keys = jax.random.split(key, len(self.logits))
        return tuple(part.noise(keys[i]) for i, part in enumerate(self.parts()))

    def sample_from(self, noise: tuple[Float[Array, "*batch 1"], ...]) -> Int[Array, "*batch k"]:
        """Turns noise into actions."""
        draws = [part.sample_from(one) for part, one in zip(self.parts(), noise, strict=True)]
        return jnp.stack(draws, axis=-1)

    def sample_and_log_prob(self, key: Key) -> tuple[Int[Array, "*batch k"], Float[Array, "*batch"]]:
        """Draws all parts; also their joint log-probability."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def log_prob(self, x: Int[Array, "*batch k"]) -> Float[Array, "*batch"]:
        """Joint log-probability."""
        return _sum([part.log_prob(x[..., i]) for i, part in enumerate(self.parts())])

    def entropy(self) -> Float[Array, "*batch"]:
        """Joint entropy, the sum over the parts."""
        return _sum([part.entropy() for part in self.parts()])

    def kl(self, other: "MultiCategorical") -> Float[Array, "*batch"]:
        """Joint KL divergence, the sum over the parts."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return _sum([part.kl(other_part) for part, other_part in pairs])

    def mode(self) -> Int[Array, "*batch k"]:
        """The most probable action of each part."""
        return jnp.stack([part.mode() for part in self.parts()], axis=-1)


def _sum(terms: list[Array]) -> Array:
    return jnp.sum(jnp.stack(terms), axis=0)
