"""A critic from coarse to fine (Seo et al. 2024, arXiv:2407.07787): each entry of an action by its digits.

The range of an entry, -1 to 1, is cut into B intervals, the one chosen into B again, and so on for L levels. Level l
has B^l intervals side by side, counted from 0; a finest one, a *cell*, is written with L digits to the base B, its bins
from the coarsest level to the finest. Intervals are counted by integers, so that no bound is ever rounded.

    center of interval i of level l    (2 i + 1 - B^l) / B^l
    bin of level l in a cell c         ⌊c / B^(L - 1 - l)⌋ mod B

The critic sees the observation, where the interval that is to be cut next has its center, and the level; it says for
each entry by itself what the return of each of its B bins is, a histogram of K atoms.

    stream    tanh(LayerNorm(Dense(encode(s))))  with center and one-hot level, then SiLU(LayerNorm(Dense)) twice
    logits    V [A, 1, K] + C [A, B, K] - mean over bins of C, of a stream each (dueling)

A critic of S actions in a row (CQN-AS, Seo and Abbeel 2024, arXiv:2411.12155) has S A entries, step after step. Each
stream sees each step with its own center and its one-hot number, and a GRU goes over the steps before the last layer.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl import spaces, validation
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.recurrent import GRU
from jaxrl.networks.torsos import Encoder
from jaxrl.types import Observation, memoize

_MOST_CELLS = 2**20
"""A float32 tells that many centers apart."""
_TIE = 1e-4
"""Bins of which no two values are further apart are drawn from at random, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class CoarseConfig:
    """Levels, bins and layers of a critic from coarse to fine.

    Attributes:
      num_levels: L.
      num_bins: B, bins of an interval.
      num_atoms: K, atoms of the return's histogram.
      num_features: units that each stream keeps of the observation.
      hidden: widths of each stream's hidden layers.
      convolve: whether images [H, W, C] go through a CNN; otherwise they are flattened.
    """

    num_levels: int = 3
    num_bins: int = 5
    num_atoms: int = 51
    num_features: int = 64
    hidden: tuple[int, ...] = (512, 512)
    convolve: bool = True


class CoarseCritic(nn.Module):
    """Logits of the return for each bin of each entry of an action.

    Attributes:
      observation_space: space of one observation.
      num_actions: entries of all S actions, S A; A in the shapes below.
      config: levels, bins and layers.
      length: S.
    """

    observation_space: spaces.Space
    num_actions: int
    config: CoarseConfig = CoarseConfig()
    length: int = 1

    @nn.compact
    def __call__(
        self, obs: Observation, center: Float[Array, "*batch l A"], level: Int[Array, " l"]
    ) -> Float[Array, "*batch l A B K"]:
        """Evaluates the bins of some levels.

        Args:
          obs: observations [*batch, *shape].
          center: of the intervals that each of these levels cuts.
          level: which ones they are.
        """
        config = self.config
        encoded = Encoder(self.observation_space, config.convolve, "silu", name="encoder")(obs)
        shape, output = center.shape[:-1], (*center.shape, -1, config.num_atoms)
        known = [center, jax.nn.one_hot(level, config.num_levels)]
        if self.length > 1:
            shape = (*shape, self.length)
            known = [center.reshape((*shape, -1)), known[1][:, None], jnp.eye(self.length)]
        known = [jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in known]
        dense = functools.partial(nn.Dense, use_bias=False, kernel_init=orthogonal(1.0))

        def stream(name: str, num_bins: int) -> Float[Array, "*batch l A b K"]:
            x = nn.tanh(nn.LayerNorm(name=f"{name}_norm")(dense(config.num_features, name=f"{name}_features")(encoded)))
            x = x.reshape((*x.shape[:-1], *(1,) * (len(shape) - x.ndim + 1), x.shape[-1]))
            x = jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[-1])), *known], axis=-1)
            for i, width in enumerate(config.hidden):
                x = nn.silu(nn.LayerNorm(name=f"{name}_norm_{i}")(dense(width, name=f"{name}_{i}")(x)))
            if self.length > 1:
                x = _over_steps(GRU(x.shape[-1], name=f"{name}_gru"), x)
            num_outputs = self.num_actions // self.length * num_bins * config.num_atoms
            x = nn.Dense(num_outputs, kernel_init=nn.initializers.zeros, name=f"{name}_head")(x)
            return x.reshape(output)

        advantage = stream("advantage", config.num_bins)
        return stream("value", 1) + advantage - jnp.mean(advantage, axis=-2, keepdims=True)


def _over_steps(core: GRU, x: Float[Array, "*batch S H"]) -> Float[Array, "*batch S H"]:
    flat = jnp.moveaxis(x.reshape((-1, *x.shape[-2:])), 1, 0)
    _, y = core(core.initial_memory(flat.shape[1:2]), flat, jnp.zeros(flat.shape[:2], bool))
    return jnp.moveaxis(y, 0, 1).reshape(x.shape)


@memoize
def coarse_critic(
    observation_space: spaces.Space, action_space: spaces.Space, config: CoarseConfig = CoarseConfig(), length: int = 1
) -> CoarseCritic:
    """Builds a critic from coarse to fine.

    Args:
      observation_space: space of one observation.
      action_space: a `Box` with finite bounds.
      config: levels, bins and layers.
      length: actions in a row that it values, S.

    Returns:
      The module; equal arguments give the same one.

    Raises:
      ValueError: actions are no bounded `Box`, a count or a width is not positive, there are too few bins or atoms, or
        more cells than a float32 tells apart.

    Example:
      >>> net = coarse_critic(spaces.box(-1.0, 1.0, (3,)), spaces.box(-2.0, 2.0, (2,)), CoarseConfig(hidden=(8,)))
      >>> params = net.init(jax.random.key(0), jnp.zeros(3), jnp.zeros((1, 2)), jnp.array([0]))
      >>> net.apply(params, jnp.zeros((4, 3)), jnp.zeros((4, 1, 2)), jnp.array([1])).shape
      (4, 1, 2, 5, 51)
    """
    if not (isinstance(action_space, spaces.Box) and action_space.bounded):
        raise ValueError(f"coarse_critic: actions must be a Box with finite bounds; got {action_space}.")
    validation.layers("coarse_critic", config, CoarseConfig)
    validation.counts("coarse_critic", config, ("num_levels", "num_bins", "num_atoms", "num_features"))
    validation.count("coarse_critic", "length", length)
    if config.num_bins < 2 or config.num_atoms < 2 or min(config.hidden, default=1) < 1:
        raise ValueError(
            "coarse_critic: needs at least 2 bins and 2 atoms, and positive widths; got "
            f"num_bins = {config.num_bins}, num_atoms = {config.num_atoms}, hidden = {config.hidden}."
        )
    if config.num_bins**config.num_levels > _MOST_CELLS:
        raise ValueError(
            f"coarse_critic: num_bins^num_levels must be at most 2^20, which a float32 tells apart; got "
            f"num_bins = {config.num_bins}, num_levels = {config.num_levels}."
        )
    return CoarseCritic(observation_space, length * spaces.size(action_space), config, length)


def cell_of(action: Float[Array, "*shape"], config: CoarseConfig) -> Int[Array, "*shape"]:
    """The cell that each entry of an action, from -1 to 1, lies in.

    >>> cell_of(jnp.array([-1.0, 0.0, 1.0]), CoarseConfig(num_levels=2, num_bins=3)).tolist()
    [0, 4, 8]
    """
    num_cells = config.num_bins**config.num_levels
    cell = jnp.floor((action + 1.0) * (0.5 * num_cells)).astype(jnp.int32)
    return jnp.clip(cell, 0, num_cells - 1)


def center_of(interval: Int[Array, "*shape"], num_intervals: int) -> Float[Array, "*shape"]:
    """Where an interval has its center, if -1 to 1 is cut into so many.

    >>> center_of(jnp.array([0, 1, 2, 3]), 4).tolist()
    [-0.75, -0.25, 0.25, 0.75]
    """
    return (2 * interval + 1 - num_intervals).astype(jnp.float32) / num_intervals


def path_of(
    cell: Int[Array, "*batch A"], config: CoarseConfig
) -> tuple[Int[Array, "*batch L A"], Float[Array, "*batch L A"]]:
    """The bins that lead to a cell, and the centers of the intervals in which they are.

    >>> bins, centers = path_of(jnp.array([4]), CoarseConfig(num_levels=2, num_bins=3))
    >>> bins.tolist(), centers.tolist()
    ([[1], [1]], [[0.0], [0.0]])
    """
    base, num_levels = config.num_bins, config.num_levels
    bins = [cell // base ** (num_levels - 1 - level) % base for level in range(num_levels)]
    centers = [center_of(cell // base ** (num_levels - level), base**level) for level in range(num_levels)]
    return jnp.stack(bins, axis=-2), jnp.stack(centers, axis=-2)


def zoom(
    values_of: Callable[[Float[Array, "*batch A"], int], Float[Array, "*batch A B"]],
    shape: tuple[int, ...],
    config: CoarseConfig,
    draw: Float[Array, "*batch L A"] | None = None,
) -> Int[Array, "*batch A"]:
    """The cell that the best bin of each level leads to, for each entry by itself.

    Args:
      values_of: `(center, level) -> values` of the bins of the interval that has its center there.
      shape: of the batch of actions.
      config: how many levels and bins there are.
      draw: numbers from 0 to 1 that decide where all bins of an interval are worth the same; None: the first one.

    >>> cells = zoom(lambda center, level: jnp.array([[0.0, 1.0, 2.0]]), (1,), CoarseConfig(num_levels=2, num_bins=3))
    >>> cells.tolist()
    [8]
    """
    interval = jnp.zeros(shape, jnp.int32)
    for level in range(config.num_levels):
        value = values_of(center_of(interval, config.num_bins**level), level)
        chosen = jnp.argmax(value, axis=-1).astype(jnp.int32)
        if draw is not None:
            any_bin = jnp.floor(draw[..., level, :] * config.num_bins).astype(jnp.int32)
            chosen = jnp.where(jnp.max(value, axis=-1) - jnp.min(value, axis=-1) < _TIE, any_bin, chosen)
        interval = interval * config.num_bins + chosen
    return interval
