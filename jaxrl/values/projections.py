"""An ensemble of two projections of one return, whose disagreement is what there is to explore."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl import validation
from jaxrl.networks.q_network import QOutput
from jaxrl.ops import bins
from jaxrl.ops.bins import Support
from jaxrl.types import memoize
from jaxrl.values.distributional import quantile_huber
from jaxrl.values.records import Target, ValueHead


@struct.dataclass
class ProjectionEnsemble:
    """Coefficients of `projection_ensemble`.

    Attributes:
      support: of returns.
      bonus_support: of what is to come of the bonus.
      kappa: of the quantile Huber loss.
      beta: weight of the bonus in acting.
    """

    support: Support
    bonus_support: Support
    kappa: Float[Array, ""]
    beta: Float[Array, ""]


@memoize
def projection_ensemble(
    num_atoms: int = 51,
    low: float = 0.0,
    high: float = 1.0,
    bonus_high: float = 2.0,
    kappa: float = 1.0,
    beta: float = 1.0,
) -> ValueHead:
    """A histogram and quantiles of the same return, and a bonus where they disagree: PE-DQN.

        b(s, a) = W_1(histogram, quantiles projected onto its bins) = Σ_k |F_1(z_k) - F_2(z_k)| Δz
        Z(s, a) ← r + γ (Z_1 + Z_2)(s', a') / 2,                a' of the backup, for the mean Q of both
        U(s, a) ← γ (b(s', a*) + (U_1 + U_2)(s', a*) / 2),      a* = argmax Q + β (b + U)

    Both members learn the same target, the mixture of both, each projected in its own way; where data is scarce they
    generalize differently. U is what of the bonus is still to come, learned by two members in the same way. Sampled
    acting maximizes Q + β (b + U), greedy acting Q. The outputs are, of each action: histogram of Z, histogram of U,
    quantiles of Z, quantiles of U; `QNetworkConfig(num_members=2)` makes each half by a network of its own, and
    with that `prior=(20.0, 0.0)` adds a fixed random network to what is said of Z but not of U.

    Source: Zanger et al. 2024, arXiv:2306.07124, eq. 10 to 13 and 17, appendix B.2, and the authors' code; β stays,
    where theirs falls to 0 over a third of the run, and the bonus is not divided by its deviation, as in their VizDoom.

    Args:
      num_atoms: bins, and quantiles.
      low: default of the least return.
      high: default of the greatest.
      bonus_high: default of the greatest U; the least is 0.
      kappa: default of Huber's κ.
      beta: default of β.

    Raises:
      ValueError: there are fewer than two atoms, or a range is empty.

    Example:
      >>> head = projection_ensemble(2)
      >>> sure = QOutput(jnp.array([[9.0, -9.0, 9.0, -9.0, 1.0, 1.0, 0.0, 0.0]]))  # 0 says one member, 1 the other
      >>> head.mean(head.init(), sure).round(2).tolist(), head.explore(head.init(), sure).round(2).tolist()
      ([0.5], [1.5])
    """
    validation.count("projection_ensemble", "num_atoms", num_atoms)
    if num_atoms < 2 or not low < high or not bonus_high > 0.0:
        raise ValueError(
            "projection_ensemble: needs at least 2 atoms, low < high and bonus_high > 0; got "
            f"num_atoms = {num_atoms}, low = {low}, high = {high}, bonus_high = {bonus_high}."
        )

    def parts(values: Float[Array, "... K"]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Logits and quantiles of Z, and of U."""
        logits, bonus_logits, quantiles, bonus_quantiles = jnp.split(values, 4, axis=-1)
        return (logits, quantiles), (bonus_logits, bonus_quantiles)

    def centers(support: Support) -> Array:
        return bins.bin_centers(support.low, support.high, num_atoms)

    def atoms(support: Support, members: tuple[Array, Array]) -> tuple[Array, Array]:
        """The mixture of both members, [..., 2 J]."""
        logits, quantiles = members
        points = jnp.concatenate([jnp.broadcast_to(centers(support), logits.shape), quantiles], axis=-1)
        weights = [jax.nn.softmax(logits), jnp.full_like(quantiles, 1.0 / num_atoms)]
        return points, 0.5 * jnp.concatenate(weights, axis=-1)

    def average(support: Support, members: tuple[Array, Array]) -> Array:
        points, probs = atoms(support, members)
        return jnp.sum(points * probs, axis=-1)

    def disagreement(params: ProjectionEnsemble, values: Array) -> Array:
        (logits, quantiles), _ = parts(values)
        places = centers(params.support)
        other = bins.project(quantiles, jnp.full_like(quantiles, 1.0 / num_atoms), places)
        apart = jnp.abs(jnp.cumsum(jax.nn.softmax(logits) - other, axis=-1))
        return jnp.sum(apart, axis=-1) * (places[1] - places[0])

    def mean(params: ProjectionEnsemble, output: QOutput) -> Array:
        return average(params.support, parts(output.values)[0])

    def explore(params: ProjectionEnsemble, output: QOutput) -> Array:
        later = average(params.bonus_support, parts(output.values)[1])
        return mean(params, output) + params.beta * (disagreement(params, output.values) + later)

    def fit(params: ProjectionEnsemble, support: Support, members: tuple, points: Array, probs: Array) -> Array:
        """The losses of both members for a target of weighted points, [N]."""
        logits, quantiles = members
        entropy = bins.cross_entropy(logits, bins.project(points, probs, centers(support)))
        error = points[:, None] - quantiles[:, :, None]
        midpoints = (jnp.arange(num_atoms, dtype=jnp.float32) + 0.5) / num_atoms
        each = quantile_huber(error, jnp.broadcast_to(midpoints[None, :, None], error.shape), params.kappa)
        return entropy + jnp.sum(probs[:, None] * each, axis=(1, 2))

    def loss(params: ProjectionEnsemble, output: QOutput, target: Target) -> tuple[Array, Array]:
        if target.action is None or target.online_next is None:
            raise ValueError("projection_ensemble: of the algorithms dqn gives the values of all actions only.")
        rows = jnp.arange(target.action.shape[0])
        own, bonus = parts(output.values[rows, target.action])
        column = lambda x: x[:, None]
        # Returns: the mixture over members, and over the actions of the policy that is backed up.
        following, following_bonus = parts(target.next.values)
        points, probs = atoms(params.support, following)
        if target.shift is not None:
            points = points + target.shift[..., None]
        if target.greedy:
            points, probs = (jnp.einsum("na,nak->nk", target.weight, x) for x in (points, probs))
        else:
            probs = (target.weight[..., None] * probs).reshape((rows.size, -1))
            points = points.reshape((rows.size, -1))
        points = column(target.reward) + column(target.discount) * points
        losses = fit(params, params.support, own, points, probs)
        surprise = jnp.abs(jnp.sum(points * probs, axis=-1) - average(params.support, own))
        # What of the bonus is to come, under the policy that explores.
        wanted = jnp.argmax(explore(params, target.online_next), axis=-1)
        gained = disagreement(params, target.online_next.values)[rows, wanted]
        later, weights = (x[rows, wanted] for x in atoms(params.bonus_support, following_bonus))
        later = column(target.discount) * (column(gained) + later)
        return losses + fit(params, params.bonus_support, bonus, later, weights), surprise

    def init() -> ProjectionEnsemble:
        between = lambda low, high: Support(jnp.float32(low), jnp.float32(high))
        return ProjectionEnsemble(between(low, high), between(0.0, bonus_high), jnp.float32(kappa), jnp.float32(beta))

    return ValueHead(init, mean, loss, 4 * num_atoms, "projection ensemble", whole=True, explore=explore)
