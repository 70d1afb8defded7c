"""What an ensemble of critics says: the target that it makes, what the policy climbs, and its loss.

M critics give outputs [M, N, K], of which `jaxrl.networks.members.Coefficients` tell what they are:

    mean           K = 1, the mean of the return
    quantiles      K of them, where there is κ
    categorical    logits of K bins, where there is a support

`returns_of` reads them as `Atoms`, points with equal or given weights. An `Aggregate` is a record:

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
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.members import Coefficients
from jaxrl.ops import bins
from jaxrl.types import Key, memoize


class Atoms(NamedTuple):
    """A distribution of the return as points with weights.

    Attributes:
      points: of the return, [..., J].
      probs: their weights, [..., J], which sum to 1; () if all weigh the same.
    """

    points: Float[Array, "... J"]
    probs: Float[Array, "... J"] | tuple[()] = ()

    def means(self) -> Float[Array, "..."]:
        """Of each return."""
        if isinstance(self.probs, tuple):
            return jnp.mean(self.points, axis=-1)
        return jnp.sum(self.points * self.probs, axis=-1)

    def mean(self) -> Float[Array, ""]:
        """Of all returns together."""
        return jnp.mean(self.means())


class Aggregate(NamedTuple):
    """How the values of an ensemble become one.

    Attributes:
      draw: `(key, num_critics, *axes) -> indices [*axes, m]` of the members that a target looks at, drawn ahead of a
        loop; () if at all of them.
      target: `(Atoms [m, N, K]) -> Atoms [N, J]`: the return from the successor on.
      climb: `(means [m', N]) -> [N]`: what the policy maximizes.
      num_chosen: m, or None: all.
      num_climbed: m', the first so many members, or None: all.
      check: `(num_critics, num_quantiles)`: raises a ValueError for an ensemble that does not fit.
      name: for messages.
    """

    draw: Callable[..., PyTree]
    target: Callable[[Atoms], Atoms]
    climb: Callable[[Float[Array, "m N"]], Float[Array, " N"]]
    num_chosen: int | None
    num_climbed: int | None
    check: Callable[[int, int], None]
    name: str


@memoize
def minimum(climb: Literal["minimum", "mean", "first"] = "minimum") -> Aggregate:
    """The least value of all members (Fujimoto et al. 2018, arXiv:1802.09477, eq. 10).

    Of quantiles the least of each by itself; of histograms that of the member with the least mean, as FastTD3 does
    (Seo et al. 2025, arXiv:2505.22642).

    Args:
      climb: what the policy climbs: the least (SAC), the mean (DroQ) or the first member (TD3).

    Example:
      >>> minimum().target(Atoms(jnp.array([[[1.0]], [[2.0]]]))).points.tolist()
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

    def check(num_critics: int, num_quantiles: int) -> None:
        if size > num_critics:
            raise ValueError(
                f"subset: size must be at most num_critics; got size = {size}, num_critics = {num_critics}."
            )

    return Aggregate(draw, _least, _CLIMB["mean"], size, None, check, "subset")


@memoize
def mean() -> Aggregate:
    """The mean of all members: of quantiles each by itself, of histograms the mixture.

    >>> mean().target(Atoms(jnp.array([[[1.0]], [[2.0]]]))).points.tolist()
    [[1.5]]
    """

    def target(x: Atoms) -> Atoms:
        # The points of histograms are the same for all members.
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), x)

    return Aggregate(_all, target, _CLIMB["mean"], None, None, lambda *_: None, "mean")


@memoize
def truncated(drop_per_net: int = 2) -> Aggregate:
    """The quantiles of all members in one pool, less the greatest (Kuznetsov et al. 2020, arXiv:2005.04269, eq. 12 f.).

    Of the M K atoms z_(1) ≤ … ≤ z_(MK) the first M K - d M remain. The policy climbs the mean of all atoms.

    Args:
      drop_per_net: d, less than the number of quantiles.

    Example:
      >>> truncated(1).target(Atoms(jnp.array([[[1.0, 4.0]], [[3.0, 2.0]]]))).points.tolist()
      [[1.0, 2.0]]
    """
    if drop_per_net < 0:
        raise ValueError(f"truncated: drop_per_net must not be negative; got drop_per_net = {drop_per_net}.")

    def target(x: Atoms) -> Atoms:
        num_critics, num, num_quantiles = x.points.shape
        pool = jnp.sort(jnp.moveaxis(x.points, 0, 1).reshape(num, -1), axis=-1)
        return Atoms(pool[:, : num_critics * (num_quantiles - drop_per_net)])

    def check(num_critics: int, num_quantiles: int) -> None:
        if drop_per_net >= max(1, num_quantiles):
            raise ValueError(
                "truncated: drop_per_net must be less than the quantiles of a critic; got "
                f"drop_per_net = {drop_per_net}, num_quantiles = {num_quantiles}: set num_quantiles in the network."
            )

    return Aggregate(_all, target, _CLIMB["mean"], None, None, check, "truncated")


def pick(tree: PyTree, index: Int[Array, " m"] | slice) -> PyTree:
    """Some members of an ensemble's parameters: those of `EnsembleCritic`, but for the encoder, which they share."""
    own = lambda path: not any(getattr(entry, "key", None) == "encoder" for entry in path)
    counter = lambda leaf: leaf.ndim == 0
    return jax.tree_util.tree_map_with_path(lambda path, x: x[index] if own(path) and not counter(x) else x, tree)


def returns_of(outputs: Float[Array, "... K"], params: Coefficients) -> Atoms:
    """The distribution of the return that a critic's outputs describe.

    Args:
      outputs: of an `EnsembleCritic`.
      params: tell what they are.
    """
    if isinstance(params.support, tuple):
        return Atoms(outputs)
    return Atoms(jnp.broadcast_to(_bins(outputs, params), outputs.shape), jax.nn.softmax(outputs, axis=-1))


def means(outputs: Float[Array, "... K"], params: Coefficients) -> Float[Array, "..."]:
    """The mean of the return that a critic's outputs describe."""
    if isinstance(params.support, tuple):
        return jnp.mean(outputs, axis=-1)
    return bins.expected_value(outputs, _bins(outputs, params))


def bootstrap(batch: NStep, following: Atoms) -> Atoms:
    """r + γ Z of the successor's return Z, which does not count where the transition terminated.

    Args:
      batch: the transitions.
      following: of their successors, [N, J].
    """
    full = lambda x: jnp.broadcast_to(x[:, None], following.points.shape)
    return following._replace(points=full(batch.reward) + full(batch.discount) * following.points)


def loss(
    predicted: Float[Array, "M N K"],
    target: Atoms,
    params: Coefficients,
    weight: Float[Array, " N"] | tuple[()] = (),
    expectile: Float[Array, ""] | None = None,
) -> Float[Array, " M"]:
    """The loss of each member, a mean over the batch.

        mean           ½ E (y - Q_m)²                                                  (arXiv:1812.05905, eq. 5)
        with τ         E |τ - 1{y < Q_m}| (y - Q_m)², the same at τ = ½                (arXiv:2506.05968)
        quantiles      E_n Σ_k E_j |τ_k - 1{u < 0}| L_κ(u) / κ / K                     (arXiv:2005.04269, eq. 14)
        categorical    the cross-entropy of the target projected onto the bins         (arXiv:1707.06887, algorithm 1)

    with u = y_j - q_mk and τ_k = (2k - 1) / 2K.

    Args:
      predicted: outputs of the critics.
      target: y, [N, J]; a constant.
      params: tell what the outputs are.
      weight: factor of each transition's part, () for 1.
      expectile: τ, of means only; None: ½.

    >>> from jaxrl.networks.control import ControlConfig, coefficients
    >>> loss(jnp.zeros((1, 2, 1)), Atoms(jnp.ones((2, 1))), coefficients(ControlConfig())).tolist()
    [0.5]
    """
    if not isinstance(params.support, tuple):
        assert not isinstance(target.probs, tuple)
        probs = bins.project(target.points, target.probs, _bins(predicted, params))
        entropy = bins.cross_entropy(predicted, jnp.broadcast_to(probs, predicted.shape))
        return jnp.mean(_weighed(entropy, weight), axis=1)
    num_critics, num, num_quantiles = predicted.shape
    shape = (num_critics, num, num_quantiles, target.points.shape[-1])
    error = jnp.broadcast_to(target.points[None, :, None], shape) - jnp.broadcast_to(predicted[..., None], shape)
    if isinstance(params.kappa, tuple):
        if expectile is None:
            return 0.5 * jnp.mean(_weighed(jnp.square(error), weight), axis=(1, 2, 3))
        share = jnp.where(error < 0.0, 1.0 - expectile, expectile)
        return jnp.mean(_weighed(share * jnp.square(error), weight), axis=(1, 2, 3))
    midpoints = (jnp.arange(num_quantiles, dtype=jnp.float32) + 0.5) / num_quantiles
    fractions = jnp.broadcast_to(midpoints[None, None, :, None], shape)
    return jnp.mean(_weighed(values.quantile_huber(error, fractions, params.kappa), weight), axis=(1, 2, 3))


def errors(predicted: Float[Array, "M N K"], target: Atoms, params: Coefficients) -> Float[Array, " N"]:
    """Mean over members of |E y - Q_m|: the priority of each transition (Schaul et al. 2016, arXiv:1511.05952).

    >>> from jaxrl.networks.control import ControlConfig, coefficients
    >>> errors(jnp.array([[[1.0]], [[4.0]]]), Atoms(jnp.array([[2.0]])), coefficients(ControlConfig())).tolist()
    [1.5]
    """
    value = means(predicted, params)
    return jnp.mean(jnp.abs(jnp.broadcast_to(target.means(), value.shape) - value), axis=0)


def annealed_expectile(
    start: Float[Array, ""], fraction: Float[Array, ""], progress: Float[Array, ""]
) -> Float[Array, ""]:
    """τ of the loss, from its start linearly to ½: from the optimality operator to that of the policy.

    With τ near 1 a value is close to the greatest of its targets, whose successors' actions differ, instead of to their
    mean (Omura et al. 2025, arXiv:2506.05968).

    Args:
      start: τ at the beginning.
      fraction: share of progress over which it falls.
      progress: from 0 to 1.

    >>> annealed_expectile(jnp.float32(0.75), jnp.float32(0.5), jnp.float32(0.25)).item()
    0.625
    """
    return start + (0.5 - start) * jnp.minimum(progress / fraction, 1.0)


def representation_excess(
    features: Float[Array, "M N H"],
    frozen: Float[Array, "M N H"],
    following: Float[Array, "M N H"],
    kernel: Float[Array, "M H 1"],
    batch: NStep,
) -> Float[Array, " M"]:
    """How far representations of consecutive pairs are more alike than the Bellman equation allows (BEER).

        E relu(cos(f, f') - b),   b = (‖f‖² + γ² ‖g‖² - r² / ‖w‖²) / (2 γ ‖f‖ ‖f'‖)

    b is a constant, and f' and g are. Transitions that terminated have no successor and count as 0; over n steps r and
    γ are those of the whole transition.

    Source: He et al. 2024, arXiv:2404.12754; the formula is that of the authors' code (sweetice/BEER-ICLR2024).

    Args:
      features: f of (s, a): what the last layer makes a value of.
      frozen: f' of (s', a') by the target network, a' that of the target.
      following: g of (s', π(s')) by the network itself.
      kernel: w, of the last layer.
      batch: the transitions.

    Returns:
      Of each member, a mean over the batch.
    """
    norm = lambda x: jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), 1e-12))
    continues = jnp.broadcast_to(batch.discount > 0.0, features.shape[:2])
    gamma = jnp.where(continues, jnp.broadcast_to(batch.discount, continues.shape), 1.0)
    squared = jnp.square(jnp.broadcast_to(batch.reward, continues.shape))
    weights = jnp.broadcast_to(jnp.sum(jnp.square(kernel), axis=(1, 2))[:, None], continues.shape)
    inner = jnp.square(norm(features)) + jnp.square(gamma * norm(following)) - squared / weights
    bound = jax.lax.stop_gradient(inner / (2.0 * gamma * norm(features) * norm(frozen)))
    cosine = jnp.sum(features * frozen, axis=-1) / (norm(features) * norm(frozen))
    return jnp.mean(jnp.where(continues, jax.nn.relu(cosine - bound), 0.0), axis=1)


def check_means(owner: str, reason: str, config: ControlConfig) -> None:
    """Raises a ValueError if critics learn a distribution, where what is asked for is one of means."""
    if config.num_quantiles or config.num_bins:
        raise ValueError(
            f"{owner}: {reason} is for critics that learn means; got num_quantiles = {config.num_quantiles}, "
            f"num_bins = {config.num_bins}: leave them 0, or leave it out."
        )


def _weighed(x: Float[Array, "..."], weight: Float[Array, " N"] | tuple[()]) -> Float[Array, "..."]:
    """Entries [M, N, ...] times the weight of their transition."""
    if isinstance(weight, tuple):
        return x
    return x * jnp.broadcast_to(weight.reshape((1, -1, *(1,) * (x.ndim - 2))), x.shape)


def _bins(outputs: Array, params: Coefficients) -> Float[Array, " K"]:
    return bins.bin_centers(params.support.low, params.support.high, outputs.shape[-1])


def _all(key: Key, num_critics: int, *axes: int) -> tuple[()]:
    del key, num_critics, axes
    return ()


def _least(x: Atoms) -> Atoms:
    if isinstance(x.probs, tuple):
        return Atoms(jnp.min(x.points, axis=0))
    member = jnp.argmin(x.means(), axis=0)
    return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, member[None, :, None], axis=0)[0], x)


_CLIMB: dict[str, Callable[[Any], Any]] = {
    "minimum": lambda x: jnp.min(x, axis=0),
    "mean": lambda x: jnp.mean(x, axis=0),
    "first": lambda x: x[0],
}
