"""The critic of value-based agents in slots: how returns are represented, what is bootstrapped from, what is learned.

    head      K outputs of the network for each action ⟷ a value; its loss       scalar, categorical, quantile, …
    backup    the policy that the successor is valued under, and bonuses          maximum, double, soft, munchausen, …
    target    the network that values the successor                               `synchronize`

Every constant of a head or a backup is a leaf of its parameters, so it may be swept. A head knows nothing of actions'
choice and a backup nothing of distributions: any two go together.

A *chain* of targets (i-QN) or an ensemble is the same record with one axis more: parameters [C, ...], `jax.vmap` over
it of the network and of the head's loss, with link c's target valued by link c - 1.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import validation
from jaxrl.networks.q_network import QOutput
from jaxrl.ops import bins
from jaxrl.types import memoize

ILLEGAL = -1e9
"""The value of an action that a mask forbids."""


@struct.dataclass
class Target:
    """What a head learns from; N transitions.

    Attributes:
      reward: with the backup's bonus, [N].
      discount: of the successor, 0 where it is terminal, [N].
      next: outputs of the bootstrapping network at the successor, values [N, A, K].
      weight: probability of the successor's actions, [N, A].
      shift: added to the return after each of them, [N, A], or None: nothing.
      greedy: whether `weight` is 1 for one action of each, which saves the others.
    """

    reward: Float[Array, " N"]
    discount: Float[Array, " N"]
    next: QOutput
    weight: Float[Array, "N A"]
    shift: Float[Array, "N A"] | None = None
    greedy: bool = struct.field(pytree_node=False, default=False)


class ValueHead(NamedTuple):
    """A representation of returns.

    Attributes:
      init: `() -> params`, its coefficients.
      mean: `(params, output [..., A, K]) -> Q [..., A]`.
      loss: `(params, output of the actions taken [N, K], Target) -> (loss [N], surprise [N])`; the second is what
        replay by priority uses, at least 0.
      size: K, outputs of each action.
      name: for messages.
      fractions: for a network with implicit quantiles: how many are learned at once, bootstrapped from, and used to
        choose an action; otherwise ().
    """

    init: Callable[[], PyTree]
    mean: Callable[[PyTree, QOutput], Float[Array, "... A"]]
    loss: Callable[[PyTree, QOutput, Target], tuple[Float[Array, " N"], Float[Array, " N"]]]
    size: int
    name: str
    fractions: tuple[int, ...] = ()


@struct.dataclass
class BackupInputs:
    """What a backup may look at; what it does not is never computed.

    Attributes:
      online_next: values of the successor's actions under the parameters that learn, [N, A].
      target_next: the same under those that are bootstrapped from.
      target_now: values at the observation itself under those, [N, A].
      action: taken there, [N].
    """

    online_next: Float[Array, "N A"]
    target_next: Float[Array, "N A"]
    target_now: Float[Array, "N A"]
    action: Int[Array, " N"]


class Backup(NamedTuple):
    """What a target bootstraps from.

    Attributes:
      init: `() -> params`, its coefficients.
      choose: `(params, BackupInputs) -> (weight [N, A], shift [N, A] or None, bonus [N] or None)`, see `Target`.
      name: for messages.
      greedy: whether the weight is always 1 for one action.
    """

    init: Callable[[], PyTree]
    choose: Callable[[PyTree, BackupInputs], tuple[Array, Array | None, Array | None]]
    name: str
    greedy: bool = False


# --- Heads -----------------------------------------------------------------------------------------------------------


@struct.dataclass
class Huber:
    """Coefficients of `scalar` and of heads of quantiles.

    Attributes:
      kappa: the error from which on the loss is linear.
    """

    kappa: Float[Array, ""]


@struct.dataclass
class Support:
    """Coefficients of `categorical`.

    Attributes:
      low: the least return that can be represented.
      high: the greatest.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]


@memoize
def scalar(
    loss: Literal["square", "huber"] = "square",
    transform: Literal["none", "signed_hyperbolic"] = "none",
    kappa: float = 1.0,
) -> ValueHead:
    """One value: half the squared error, or Huber's (κ = 1 is the clipped error of Mnih et al. 2015).

    Huber's loss is for rewards in [-1, 1] and returns of a few units: every error above κ has the same gradient, so
    where terminal states are few and returns large, values can rise without bound (they do on CartPole).

    With `signed_hyperbolic` the network learns h(Q), h(x) = sign(x)(√(|x|+1) - 1) + 0.001 x, the target being
    h(r + γ h⁻¹(·)) (Pohlen et al. 2018, arXiv:1805.11593, proposition A.2).

    Example:
      >>> head = scalar()
      >>> head.mean(head.init(), QOutput(jnp.array([[[1.0], [2.0]]]))).tolist()
      [[1.0, 2.0]]
    """
    _choice("scalar", "loss", loss, ("square", "huber"))
    _choice("scalar", "transform", transform, ("none", "signed_hyperbolic"))
    forward, back = _TRANSFORMS[transform]

    def mean(params: PyTree, output: QOutput) -> Array:
        return back(output.values[..., 0])

    def loss_of(params: PyTree, output: QOutput, target: Target) -> tuple[Array, Array]:
        error = forward(_expected(target, mean(params, target.next))) - output.values[:, 0]
        if loss == "square":
            return 0.5 * jnp.square(error), jnp.abs(error)
        return huber(error, params.kappa), jnp.abs(error)

    return ValueHead(lambda: Huber(jnp.float32(kappa)) if loss == "huber" else (), mean, loss_of, 1, "scalar")


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
    _choice("categorical", "projection", projection, ("c51", "two_hot", "hl_gauss"))
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
            return spread(_expected(target, mean(params, target.next)), points)
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

    return ValueHead(
        lambda: Support(jnp.float32(low), jnp.float32(high)), mean, loss, num_bins, f"categorical {projection}"
    )


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

    return ValueHead(lambda: Huber(jnp.float32(kappa)), mean, loss, num_quantiles, "quantile")


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
    return ValueHead(init, mean, loss, 1, "implicit quantile", (num_online, num_target, num_policy))


def huber(error: Float[Array, "*batch"], kappa: Float[Array, ""]) -> Float[Array, "*batch"]:
    """½ u² where |u| ≤ κ, κ (|u| - ½ κ) beyond.

    >>> huber(jnp.array([0.5, 3.0]), jnp.float32(1.0)).tolist()
    [0.125, 2.5]
    """
    size = jnp.abs(error)
    inner = jnp.minimum(size, kappa)
    return inner * (size - 0.5 * inner)


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


def _expected(target: Target, values: Float[Array, "N A"]) -> Float[Array, " N"]:
    """r + γ Σ_a π(a) (Q(a) + shift(a))."""
    shifted = values if target.shift is None else values + target.shift
    return target.reward + target.discount * jnp.sum(target.weight * shifted, axis=-1)


def _signed_hyperbolic(x: Array) -> Array:
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + 1e-3 * x


def _signed_parabolic(x: Array) -> Array:
    root = (jnp.sqrt(1.0 + 4e-3 * (jnp.abs(x) + 1.0 + 1e-3)) - 1.0) / 2e-3
    return jnp.sign(x) * (jnp.square(root) - 1.0)


_TRANSFORMS = {
    "none": (lambda x: x, lambda x: x),
    "signed_hyperbolic": (_signed_hyperbolic, _signed_parabolic),
}


# --- Backups ---------------------------------------------------------------------------------------------------------


@struct.dataclass
class Soft:
    """Coefficients of `soft`.

    Attributes:
      temperature: τ of the policy softmax(Q / τ).
    """

    temperature: Float[Array, ""]


@struct.dataclass
class Munchausen:
    """Coefficients of `munchausen`.

    Attributes:
      alpha: weight of the log-probability that joins the reward.
      temperature: τ.
      least: bound l_0 of τ log π from below, negative.
    """

    alpha: Float[Array, ""]
    temperature: Float[Array, ""]
    least: Float[Array, ""]


@struct.dataclass
class Expected:
    """Coefficients of `expected`.

    Attributes:
      epsilon: share of random actions in the policy that is valued.
    """

    epsilon: Float[Array, ""]


@memoize
def maximum() -> Backup:
    """The best action of the network that is bootstrapped from: Q-learning (Mnih et al. 2015).

    >>> q = jnp.array([[1.0, 2.0]])
    >>> maximum().choose((), BackupInputs(-q, q, q, jnp.array([0])))[0].tolist()
    [[0.0, 1.0]]
    """
    return Backup(tuple, lambda params, inputs: (_best(inputs.target_next), None, None), "maximum", greedy=True)


@memoize
def double() -> Backup:
    """The best action of the network that learns, valued by the other (van Hasselt et al. 2015, arXiv:1509.06461).

    >>> q = jnp.array([[1.0, 2.0]])
    >>> double().choose((), BackupInputs(-q, q, q, jnp.array([0])))[0].tolist()
    [[1.0, 0.0]]
    """
    return Backup(tuple, lambda params, inputs: (_best(inputs.online_next), None, None), "double", greedy=True)


@memoize
def expected(epsilon: float = 0.05) -> Backup:
    """The ε-greedy policy of the network that is bootstrapped from: expected SARSA (van Seijen et al. 2009).

    >>> q = jnp.array([[1.0, 2.0]])
    >>> backup = expected(0.5)
    >>> backup.choose(backup.init(), BackupInputs(q, q, q, jnp.array([0])))[0].tolist()
    [[0.25, 0.75]]
    """

    def choose(params: Expected, inputs: BackupInputs) -> tuple[Array, None, None]:
        legal = (inputs.target_next > 0.5 * ILLEGAL).astype(jnp.float32)
        anything = legal / jnp.sum(legal, axis=-1, keepdims=True)
        return params.epsilon * anything + (1.0 - params.epsilon) * _best(inputs.target_next), None, None

    return Backup(lambda: Expected(jnp.float32(epsilon)), choose, "expected")


@memoize
def soft(temperature: float = 0.03) -> Backup:
    """The policy softmax(Q/τ) with its entropy as a bonus: E_π[Q - τ log π] (soft Q-learning; arXiv:2007.14430, eq. 1).

    >>> q = jnp.zeros((1, 2))
    >>> backup = soft(1.0)
    >>> [x.tolist() for x in backup.choose(backup.init(), BackupInputs(q, q, q, jnp.array([0])))[:2]]
    [[[0.5, 0.5]], [[0.6931471824645996, 0.6931471824645996]]]
    """

    def choose(params: Soft, inputs: BackupInputs) -> tuple[Array, Array, None]:
        return *_softmax(inputs.target_next, params.temperature), None

    return Backup(lambda: Soft(jnp.float32(temperature)), choose, "soft")


@memoize
def munchausen(alpha: float = 0.9, temperature: float = 0.03, least: float = -1.0) -> Backup:
    """`soft`, with the log-probability of the action taken added to the reward (Vieillard et al. 2020).

        r + α max(τ log π(a|s), l_0) + γ E_π[Q(s', ·) - τ log π],   π = softmax(Q/τ)

    of the network that is bootstrapped from. Over n steps the bonus is that of the first action.

    Source: arXiv:2007.14430, eq. 2, with the clipping of section 3.

    >>> q = jnp.array([[0.0, 0.0]])
    >>> backup = munchausen(0.5, 1.0)
    >>> round(float(backup.choose(backup.init(), BackupInputs(q, q, q, jnp.array([0])))[2][0]), 4)
    -0.3466
    """

    def choose(params: Munchausen, inputs: BackupInputs) -> tuple[Array, Array, Array]:
        weight, shift = _softmax(inputs.target_next, params.temperature)
        _, negative = _softmax(inputs.target_now, params.temperature)
        taken = -jnp.take_along_axis(negative, inputs.action[:, None], axis=-1)[:, 0]
        return weight, shift, params.alpha * jnp.clip(taken, params.least, 0.0)

    init = lambda: Munchausen(jnp.float32(alpha), jnp.float32(temperature), jnp.float32(least))
    return Backup(init, choose, "munchausen")


def _best(values: Float[Array, "N A"]) -> Float[Array, "N A"]:
    return jax.nn.one_hot(jnp.argmax(values, axis=-1), values.shape[-1], dtype=jnp.float32)


def _softmax(values: Float[Array, "N A"], temperature: Float[Array, ""]) -> tuple[Array, Array]:
    """π and -τ log π, of an illegal action 0 and 0."""
    log_probs = jax.nn.log_softmax(values / temperature)
    legal = values > 0.5 * ILLEGAL
    return jnp.exp(log_probs), jnp.where(legal, -temperature * log_probs, 0.0)


# --- Acting and targets ----------------------------------------------------------------------------------------------


def epsilon_greedy(
    noise: Float[Array, "*batch 2"], values: Float[Array, "*batch A"], epsilon: Float[Array, ""]
) -> Int[Array, "*batch"]:
    """With probability ε any legal action, otherwise the best, from two uniform numbers each.

    >>> epsilon_greedy(jnp.array([0.4, 0.1]), jnp.array([0.0, 1.0]), jnp.float32(0.5)).item()
    0
    """
    legal = values > 0.5 * ILLEGAL
    # The k-th legal action, k = ⌊noise · number⌋.
    rank = jnp.floor(noise[..., 1:] * jnp.sum(legal, axis=-1, keepdims=True)).astype(jnp.int32)
    anything = jnp.argmax((jnp.cumsum(legal, axis=-1) > rank) & legal, axis=-1)
    return jnp.where(noise[..., 0] < epsilon, anything, jnp.argmax(values, axis=-1)).astype(jnp.int32)


def legal_only(values: Float[Array, "*batch A"], obs: Any) -> Float[Array, "*batch A"]:
    """Values with those of illegal actions replaced by `ILLEGAL`, where the observation has an `action_mask`.

    >>> legal_only(jnp.array([1.0, 2.0]), {"action_mask": jnp.array([True, False])}).tolist()
    [1.0, -1000000000.0]
    """
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    return values if mask is None else jnp.where(mask.astype(bool), values, ILLEGAL)


def synchronize(
    target: PyTree, params: PyTree, age: Int[Array, ""], period: Float[Array, ""], tau: Float[Array, ""]
) -> tuple[PyTree, Int[Array, ""]]:
    """Moves the parameters that are bootstrapped from towards those that learn, every `period` updates.

        θ' ← (1 - τ) θ' + τ θ

    τ = 1 copies (Mnih et al. 2015); period 1 is Polyak averaging (Lillicrap et al. 2015). Both are data, and there is
    no conditional: between two synchronizations τ is 0.

    Args:
      target: θ'.
      params: θ, after an update.
      age: updates since the last synchronization.
      period: updates between two.
      tau: τ.

    Returns:
      θ' and its age.

    >>> synchronize(jnp.float32(0.0), jnp.float32(4.0), jnp.int32(1), jnp.float32(2.0), jnp.float32(1.0))[0].item()
    4.0
    """
    due = (age + 1).astype(jnp.float32) >= period
    share = jnp.where(due, tau, 0.0)
    moved = jax.tree.map(lambda old, new: (1.0 - share) * old + share * new, target, params)
    return moved, jnp.where(due, 0, age + 1)


def _choice(owner: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(allowed)}; got {name} = {value!r}.")
