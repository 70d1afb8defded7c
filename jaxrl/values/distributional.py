"""Heads that learn the return's distribution: a histogram, or quantiles at fixed or random fractions."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl import validation
from jaxrl.networks.q_network import QOutput
from jaxrl.ops import bins
from jaxrl.ops.bins import Support
from jaxrl.types import memoize
from jaxrl.values.records import Target, ValueHead, check_choice, expected_return
from jaxrl.values.scalars import Huber, huber


@memoize
def categorical(
    num_bins: int = 51,
    projection: Literal["c51", "two_hot", "hl_gauss"] = "c51",
    low: float = -10.0,
    high: float = 10.0,
) -> ValueHead:
    """A histogram of the return, learned by cross-entropy.

    `c51`: the distribution r + γ Z of the successor, projected onto the bins (Bellemare et al. 2017, arXiv:1707.06887,
    algorithm 1); the surprise is the KL divergence, as Rainbow's priorities (Hessel et al. 2017). `two_hot` and
    `hl_gauss`: the mean of the target alone, spread over two bins or over about six (Farebrother et al. 2024,
    arXiv:2403.03950).

    Args:
      num_bins: K.
      projection: what of the target is learned.
      low: default of the support's lower end.
      high: default of its upper end.

    Example:
      >>> head = categorical(3, low=0.0, high=2.0)
      >>> head.mean(head.init(), QOutput(jnp.zeros((1, 2, 3)))).tolist()
      [[1.0, 1.0]]
    """
    check_choice("categorical", "projection", projection, ("c51", "two_hot", "hl_gauss"))
    validation.count("categorical", "num_bins", num_bins)
    if num_bins < 2 or not low < high:
        raise ValueError(
            f"categorical: needs at least 2 bins and low < high; got num_bins = {num_bins}, low = {low}, high = {high}."
        )

    def centers(params: Support) -> Array:
        return bins.bin_centers(params.low, params.high, num_bins)

    def mean(params: Support, output: QOutput) -> Array:
        return bins.expected_value(output.values, centers(params))

    def histogram(params: Support, target: Target) -> Array:
        points = centers(params)
        if projection != "c51":
            spread = {"two_hot": bins.two_hot, "hl_gauss": bins.hl_gauss}[projection]
            return spread(expected_return(target, mean(params, target.next)), points)
        probs = jax.nn.softmax(target.next.values)
        atoms = jnp.broadcast_to(points, (target.reward.shape[0], num_bins))
        if target.shift is None:
            returns = target.reward[:, None] + target.discount[:, None] * atoms
            return bins.project(returns, jnp.einsum("na,nak->nk", target.weight, probs), points)
        # After each action another shift, so the atoms of all of them.
        shifted = atoms[:, None] + target.shift[:, :, None]
        returns = target.reward[:, None, None] + target.discount[:, None, None] * shifted
        weighted = target.weight[:, :, None] * probs
        flat = (target.reward.shape[0], -1)
        return bins.project(returns.reshape(flat), weighted.reshape(flat), points)

    def loss(params: Support, output: QOutput, target: Target) -> tuple[Array, Array]:
        probs = histogram(params, target)
        cross_entropy = bins.cross_entropy(output.values, probs)
        entropy = -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)
        return cross_entropy, jnp.maximum(cross_entropy - entropy, 0.0)

    def atoms(params: Support, output: QOutput) -> tuple[Array, Array]:
        return jnp.broadcast_to(centers(params), output.values.shape), jax.nn.softmax(output.values)

    init = lambda: Support(jnp.float32(low), jnp.float32(high))
    # The other projections know of a target's mean only.
    learned = atoms if projection == "c51" else None
    return ValueHead(init, mean, loss, num_bins, f"categorical {projection}", atoms=learned)


@memoize
def quantile(num_quantiles: int = 200, kappa: float = 1.0) -> ValueHead:
    """Quantiles of the return at the midpoints (2i - 1) / 2K (Dabney et al. 2017, arXiv:1710.10044, eq. 10).

    Args:
      num_quantiles: K.
      kappa: default of Huber's κ; see `quantile_huber`.

    Example:
      >>> head = quantile(2)
      >>> head.mean(head.init(), QOutput(jnp.array([[[0.0, 1.0]]]))).tolist()
      [[0.5]]
    """
    validation.count("quantile", "num_quantiles", num_quantiles)

    def mean(params: Huber, output: QOutput) -> Array:
        return jnp.mean(output.values, axis=-1)

    def loss(params: Huber, output: QOutput, target: Target) -> tuple[Array, Array]:
        midpoints = (jnp.arange(num_quantiles, dtype=jnp.float32) + 0.5) / num_quantiles
        return _quantile_loss(params, output.values, jnp.broadcast_to(midpoints, output.values.shape), target)

    return ValueHead(lambda: Huber(jnp.float32(kappa)), mean, loss, num_quantiles, "quantile", atoms=_equal_atoms)


@memoize
def implicit_quantile(num_online: int = 8, num_target: int = 8, num_policy: int = 32, kappa: float = 1.0) -> ValueHead:
    """Quantiles at random fractions, which the network takes as inputs (Dabney et al. 2018, arXiv:1806.06923, eq. 3).

    Args:
      num_online: N fractions that are learned in one update.
      num_target: N' that the target consists of.
      num_policy: K that an action is chosen by.
      kappa: default of Huber's κ.

    Example:
      >>> implicit_quantile().fractions
      (8, 8, 32)
    """
    fractions = {"num_online": num_online, "num_target": num_target, "num_policy": num_policy}
    for name, value in fractions.items():
        validation.count("implicit_quantile", name, value)

    def mean(params: Huber, output: QOutput) -> Array:
        return jnp.mean(output.values, axis=-1)

    def loss(params: Huber, output: QOutput, target: Target) -> tuple[Array, Array]:
        return _quantile_loss(params, output.values, output.fractions, target)

    init = lambda: Huber(jnp.float32(kappa))
    fractions_of = (num_online, num_target, num_policy)
    return ValueHead(init, mean, loss, 1, "implicit quantile", fractions_of, atoms=_equal_atoms)


def _equal_atoms(params: Huber, output: QOutput) -> tuple[Array, Array]:
    """The quantiles as points that weigh the same."""
    return output.values, jnp.full_like(output.values, 1.0 / output.values.shape[-1])


def quantile_huber(
    error: Float[Array, "*batch"], fraction: Float[Array, "*batch"], kappa: Float[Array, ""]
) -> Float[Array, "*batch"]:
    """|τ - 1{u < 0}| L_κ(u) / κ, with u the target less the quantile (arXiv:1806.06923, eq. 3; κ > 0).

    >>> quantile_huber(jnp.array([2.0, -2.0]), jnp.array([0.25, 0.25]), jnp.float32(1.0)).tolist()
    [0.375, 1.125]
    """
    return jnp.abs(fraction - (error < 0.0)) * huber(error, kappa) / kappa


def _quantile_loss(
    params: Huber, values: Float[Array, "N K"], fractions: Float[Array, "N K"], target: Target
) -> tuple[Array, Array]:
    """Σ_i E_j over the K' quantiles of the successor, those of each action weighted by its probability."""
    following, weight = target.next.values, target.weight
    if target.greedy:
        following, weight = jnp.einsum("na,nak->nk", weight, following)[:, None], jnp.ones_like(weight[:, :1])
    elif target.shift is not None:
        following = following + target.shift[..., None]
    returns = target.reward[:, None, None] + target.discount[:, None, None] * following
    weight = jnp.broadcast_to(weight[..., None], returns.shape) / returns.shape[-1]
    returns, weight = (x.reshape((len(values), 1, -1)) for x in (returns, weight))
    error = returns - values[:, :, None]
    each = quantile_huber(error, jnp.broadcast_to(fractions[:, :, None], error.shape), params.kappa)
    mean_error = jnp.sum(weight[:, 0] * returns[:, 0], axis=-1) - jnp.mean(values, axis=-1)
    return jnp.sum(weight * each, axis=(1, 2)), jnp.abs(mean_error)
