"""Several categorical actions, each drawn with knowledge of those before it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxrl.ops.distributions.categorical import Categorical
from jaxrl.types import Key

MAX_JOINT_ACTIONS = 4096
"""Combinations of the parts up to which an `AutoregressiveCategorical` may be built."""


@struct.dataclass
class AutoregressiveCategorical:
    """k categorical actions, the logits of each a function of those before it; one draw is an int32 of shape (k,).

        logits of part i given a_1 … a_{i-1}  =  logits_i + Σ_{j<i} tables_ij[a_j]

    The tables are leaves like the logits, so that drawing needs no network. Two parts can have any joint distribution;
    of more parts every pair interacts, no triple does beyond that. `entropy`, `kl` and `mode` are exact: they go
    through all A_1 · … · A_k combinations, of which there may be `MAX_JOINT_ACTIONS`.

    Attributes:
      logits: k arrays, one for each part, each with its own number of actions.
      tables: k - 1 arrays, one for each part but the first: the tables of all parts before it, one below the other.
    """

    logits: tuple[Float[Array, "*batch A"], ...]
    tables: tuple[Float[Array, "*batch P A"], ...]

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of actions of each part."""
        return tuple(logits.shape[-1] for logits in self.logits)

    def sample(self, key: Key) -> Int[Array, "*batch k"]:
        """Draws all parts."""
        return self.sample_from(self.noise(key))

    def noise(self, key: Key) -> tuple[Float[Array, "*batch 1"], ...]:
        """The uniform numbers that one draw of each needs; of `self` only the shape is read."""
        keys = jax.random.split(key, len(self.logits))
        return tuple(Categorical(logits).noise(keys[i]) for i, logits in enumerate(self.logits))

    def sample_from(self, noise: tuple[Float[Array, "*batch 1"], ...]) -> Int[Array, "*batch k"]:
        """Turns noise into actions, part by part."""
        draws: list[Array] = []
        for i, uniform in enumerate(noise):
            draws.append(self._part(i, draws).sample_from(uniform))
        return jnp.stack(draws, axis=-1)

    def sample_and_log_prob(self, key: Key) -> tuple[Int[Array, "*batch k"], Float[Array, "*batch"]]:
        """Draws all parts; also their joint log-probability."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def log_prob(self, x: Int[Array, "*batch k"]) -> Float[Array, "*batch"]:
        """Joint log-probability, the sum of the conditional ones."""
        chosen = [x[..., i] for i in range(len(self.logits))]
        terms = [self._part(i, chosen[:i]).log_prob(one) for i, one in enumerate(chosen)]
        return jnp.sum(jnp.stack(terms), axis=0)

    def joint(self) -> Categorical:
        """The distribution over all combinations, numbered with the last part running fastest.

        Raises:
          ValueError: there are more than `MAX_JOINT_ACTIONS`.
        """
        check_num_joint_actions(self.nvec)
        log_probs = jax.nn.log_softmax(self.logits[0])
        for i, table in enumerate(self.tables, start=1):
            before = self.nvec[:i]
            combinations = np.indices(before).reshape(i, -1)
            one_hot = np.concatenate([np.eye(n)[row] for n, row in zip(before, combinations, strict=True)], axis=-1)
            added = _rows("np,...pa->...na", jnp.asarray(one_hot, table.dtype), table)
            conditional = jax.nn.log_softmax(self.logits[i][..., None, :] + added)
            both = log_probs[..., None] + conditional
            log_probs = both.reshape((*both.shape[:-2], -1))
        return Categorical(log_probs)

    def entropy(self) -> Float[Array, "*batch"]:
        """Joint entropy, exact."""
        return self.joint().entropy()

    def kl(self, other: "AutoregressiveCategorical") -> Float[Array, "*batch"]:
        """Joint KL divergence, exact."""
        return self.joint().kl(other.joint())

    def mode(self) -> Int[Array, "*batch k"]:
        """The most probable combination, which need not begin with the most probable first part."""
        return jnp.stack(jnp.unravel_index(self.joint().mode(), self.nvec), axis=-1)

    def _part(self, i: int, before: list[Array]) -> Categorical:
        """Part i, given the values [*batch] of those before it."""
        if not before:
            return Categorical(self.logits[i])
        table = self.tables[i - 1]
        one_hot = [jax.nn.one_hot(x, n, dtype=table.dtype) for x, n in zip(before, self.nvec[:i], strict=True)]
        return Categorical(self.logits[i] + _rows("...p,...pa->...a", jnp.concatenate(one_hot, axis=-1), table))


def check_num_joint_actions(nvec: tuple[int, ...]) -> None:
    """Checks that an autoregressive distribution over these numbers of actions can go through all combinations.

    Raises:
      ValueError: there are more than `MAX_JOINT_ACTIONS`.
    """
    if (num := math.prod(nvec)) > MAX_JOINT_ACTIONS:
        raise ValueError(
            f"an autoregressive policy goes through all combinations of its parts, at most {MAX_JOINT_ACTIONS}; "
            f"got nvec = {nvec}, {num} combinations. Use independent parts (policy = 'gaussian', the default)."
        )


def _rows(subscripts: str, one_hot: Array, table: Array) -> Array:
    # Rows are selected, so none of their digits should be lost.
    return jnp.einsum(subscripts, one_hot, table, precision=jax.lax.Precision.HIGHEST)
