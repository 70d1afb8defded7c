"""What an ensemble of critics says: the target that it makes, what the policy climbs, and its loss.

An `Aggregate` is a record; M critics give [M, N, K], K = 1 or quantiles:

    minimum      the least of all                                            SAC, TD3, DroQ, CrossQ
    subset       the least of a few drawn at random for each update          REDQ
    mean         the mean of all
    truncated    the pooled quantiles without the greatest                   TQC

Members that an aggregate does not look at are not computed.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import validation, values
from jaxrl.buffers import NStep
from jaxrl.types import Key, memoize


class Aggregate(NamedTuple):
    """How the values of an ensemble become one.

    Attributes:
      draw: `(key, num_critics, *axes) -> indices [*axes, m]` of the members that a target looks at, drawn ahead of a
        loop; () if at all of them.
      target: `(values [m, N, K]) -> [N, J]`: the value of the successor, or the quantiles that pool makes.
      climb: `(values [m', N, K]) -> [N]`: what the policy maximizes.
      num_chosen: m, or None: all.
      num_climbed: m', the first so many members, or None: all.
      check: `(num_critics, num_outputs)`: raises a ValueError for an ensemble that does not fit.
      name: for messages.
    """

    draw: Callable[..., PyTree]
    target: Callable[[Float[Array, "m N K"]], Float[Array, "N J"]]
    climb: Callable[[Float[Array, "m N K"]], Float[Array, " N"]]
    num_chosen: int | None
    num_climbed: int | None
    check: Callable[[int, int], None]
    name: str


@memoize
def minimum(climb: Literal["minimum", "mean", "first"] = "minimum") -> Aggregate:
    """The least value of all members, of quantiles each by itself (Fujimoto et al. 2018, arXiv:1802.09477, eq. 10).

    Args:
      climb: what the policy climbs: the least (SAC), the mean (DroQ) or the first member (TD3).

    Example:
      >>> minimum().target(jnp.array([[[1.0]], [[2.0]]])).tolist()
      [[1.0]]
    """
    if climb not in _CLIMB:
        raise ValueError(f"minimum: climb must be one of {', '.join(_CLIMB)}; got climb = {climb!r}.")
    num_climbed = 1 if climb == "first" else None
    return Aggregate(_all, _least, _CLIMB[climb], None, num_climbed, lambda *_: None, "minimum")


@memoize
def subset(size: int = 2) -> Aggregate:
    """The least value of a random subset; the policy climbs the mean (Chen et al. 2021, arXiv:2101.05982, algorithm 1).

    Args:
      size: members of the subset, another one for each update.

    Example:
      >>> subset(2).draw(jax.random.key(0), 10, 3).shape
      (3, 2)
    """
    validation.count("subset", "size", size)

    def draw(key: Key, num_critics: int, *axes: int) -> Int[Array, "*axes m"]:
        order = jnp.argsort(jax.random.uniform(key, (*axes, num_critics)), axis=-1)
        return order[..., :size].astype(jnp.int32)

    def check(num_critics: int, num_outputs: int) -> None:
        if size > num_critics:
            raise ValueError(
                f"subset: size must be at most num_critics; got size = {size}, num_critics = {num_critics}."
            )

    return Aggregate(draw, _least, _CLIMB["mean"], size, None, check, "subset")


@memoize
def mean() -> Aggregate:
    """The mean of all members, of quantiles each by itself.

    >>> mean().target(jnp.array([[[1.0]], [[2.0]]])).tolist()
    [[1.5]]
    """
    return Aggregate(_all, lambda x: jnp.mean(x, axis=0), _CLIMB["mean"], None, None, lambda *_: None, "mean")


@memoize
def truncated(drop_per_net: int = 2) -> Aggregate:
    """The quantiles of all members in one pool, less the greatest (Kuznetsov et al. 2020, arXiv:2005.04269, eq. 12 f.).

    Of the M K atoms z_(1) ≤ … ≤ z_(MK) the first M K - d M remain. The policy climbs the mean of all atoms.

    Args:
      drop_per_net: d, less than the number of quantiles.

    Example:
      >>> truncated(1).target(jnp.array([[[1.0, 4.0]], [[3.0, 2.0]]])).tolist()
      [[1.0, 2.0]]
    """
    if drop_per_net < 0:
        raise ValueError(f"truncated: drop_per_net must not be negative; got drop_per_net = {drop_per_net}.")

    def target(x: Float[Array, "M N K"]) -> Float[Array, "N J"]:
        num_critics, num, num_quantiles = x.shape
        pool = jnp.sort(jnp.moveaxis(x, 0, 1).reshape(num, -1), axis=-1)
        return pool[:, : num_critics * (num_quantiles - drop_per_net)]

    def check(num_critics: int, num_outputs: int) -> None:
        if drop_per_net >= num_outputs:
            raise ValueError(
                "truncated: drop_per_net must be less than the quantiles of a critic; got "
                f"drop_per_net = {drop_per_net}, num_quantiles = {num_outputs}: set num_quantiles in the network."
            )

    return Aggregate(_all, target, _CLIMB["mean"], None, None, check, "truncated")


def pick(tree: PyTree, index: Int[Array, " m"] | slice) -> PyTree:
    """Some members of an ensemble's parameters: those of `EnsembleCritic`, but for the encoder, which they share."""
    own = lambda path: not any(getattr(entry, "key", None) == "encoder" for entry in path)
    counter = lambda leaf: leaf.ndim == 0
    return jax.tree_util.tree_map_with_path(lambda path, x: x[index] if own(path) and not counter(x) else x, tree)


def bootstrap(batch: NStep, values: Float[Array, "N J"]) -> Float[Array, "N J"]:
    """r + γ x for the values x of successors, which do not count where the transition terminated.

    Args:
      batch: the transitions.
      values: of their successors, or quantiles of them.
    """
    full = lambda x: jnp.broadcast_to(x[:, None], values.shape)
    return full(batch.reward) + full(batch.discount) * values


def loss(
    predicted: Float[Array, "M N K"], target: Float[Array, "N J"], kappa: Float[Array, ""] | PyTree = ()
) -> Float[Array, " M"]:
    """The loss of each member, a mean over the batch.

        K = J = 1 without κ:   ½ E (y - Q_m)²                                          (arXiv:1812.05905, eq. 5)
        otherwise:             E_n Σ_k E_j |τ_k - 1{u < 0}| L_κ(u) / κ / K             (arXiv:2005.04269, eq. 14)

    with u = y_j - q_mk and τ_k = (2k - 1) / 2K.

    Args:
      predicted: Q_m, or its quantiles.
      target: y; a constant.
      kappa: κ, or () for squared errors.

    >>> loss(jnp.zeros((1, 2, 1)), jnp.ones((2, 1))).tolist()
    [0.5]
    """
    num_critics, num, num_quantiles = predicted.shape
    shape = (num_critics, num, num_quantiles, target.shape[-1])
    error = jnp.broadcast_to(target[None, :, None], shape) - jnp.broadcast_to(predicted[..., None], shape)
    if isinstance(kappa, tuple):
        return 0.5 * jnp.mean(jnp.square(error), axis=(1, 2, 3))
    midpoints = (jnp.arange(num_quantiles, dtype=jnp.float32) + 0.5) / num_quantiles
    fractions = jnp.broadcast_to(midpoints[None, None, :, None], shape)
    return jnp.mean(values.quantile_huber(error, fractions, kappa), axis=(1, 2, 3))


def _all(key: Key, num_critics: int, *axes: int) -> tuple[()]:
    del key, num_critics, axes
    return ()


def _least(x: Float[Array, "m N K"]) -> Float[Array, "N K"]:
    return jnp.min(x, axis=0)


_CLIMB: dict[str, Callable[[Any], Any]] = {
    "minimum": lambda x: jnp.min(jnp.mean(x, axis=-1), axis=0),
    "mean": lambda x: jnp.mean(x, axis=(0, 2)),
    "first": lambda x: jnp.mean(x[0], axis=-1),
}
