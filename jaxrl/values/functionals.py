"""What is maximized of a return's distribution other than its mean, with the rewards so far: the stock.

Pires et al. 2025 (arXiv:2501.13028). A policy that maximizes a functional K of the return has to know what it has
earned already: the observation is augmented by the stock c (`jaxrl.wrappers.observe_stock`), and the greedy action is

    argmax_a K(c + Z(s, c, a)),   c_{t+1} = (c_t + r_{t+1}) / γ

with Z the distribution of the return to go. Any head that learns distributions takes a functional, by `maximizing`:

    mean             E x                                     what the head does without
    utility          E u(x), u any function
    shortfall        E min(x, 0)                             from a stock of -b it is CVaR's, see `best_stock`
    homeostatic      -E |x - target|                         a return that is neither more nor less
    entropic         -log E exp(-ρ x) / ρ                    averse to risk if ρ > 0
    cvar             the mean of the worst share             not what dynamic programming can maximize; see there

Distributional dynamic programming finds the best policy of K if K orders mixtures as it orders their parts, and
discounting does not change its order: so for γ below 1 `utility` needs u(γ x) to order as u(x) does, as `shortfall`
and `homeostatic` with target 0 do (any other target goes into the first stock, as its negative). The paper's text was
not at hand; the formulas are the paper's as known.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.networks.q_network import QOutput
from jaxrl.types import memoize
from jaxrl.values.records import Target, ValueHead


class Functional(NamedTuple):
    """A number for every distribution; the greater, the better.

    Attributes:
      init: `() -> params`, its coefficients.
      value: `(params, points [..., J], probs [..., J]) -> [...]`; probabilities sum to 1.
      name: for messages.
    """

    init: Callable[[], PyTree]
    value: Callable[[PyTree, Float[Array, "... J"], Float[Array, "... J"]], Float[Array, "..."]]
    name: str


@struct.dataclass
class Homeostatic:
    """Coefficients of `homeostatic`.

    Attributes:
      target: the return that is wanted.
    """

    target: Float[Array, ""]


@struct.dataclass
class Entropic:
    """Coefficients of `entropic`.

    Attributes:
      aversion: ρ, not 0.
    """

    aversion: Float[Array, ""]


@struct.dataclass
class Cvar:
    """Coefficients of `cvar`.

    Attributes:
      level: τ, the share of the worst outcomes.
    """

    level: Float[Array, ""]


@struct.dataclass
class Maximizing:
    """Coefficients of a head that maximizes a functional.

    Attributes:
      head: of the head itself.
      functional: of the functional.
    """

    head: PyTree
    functional: PyTree


@memoize
def mean() -> Functional:
    """The mean, E x.

    >>> mean().value((), jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])).item()
    2.0
    """
    return Functional(tuple, lambda params, points, probs: jnp.sum(probs * points, axis=-1), "mean")


@memoize
def utility(function: Callable[[Array], Array], name: str = "expected utility") -> Functional:
    """An expected utility, E u(x).

    Args:
      function: u, of arrays, entry by entry.
      name: for messages.

    >>> utility(jnp.square).value((), jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])).item()
    5.0
    """
    return Functional(tuple, lambda params, points, probs: jnp.sum(probs * function(points), axis=-1), name)


@memoize
def shortfall() -> Functional:
    """What is missing to 0 on average, E min(x, 0).

    >>> shortfall().value((), jnp.array([-1.0, 3.0]), jnp.array([0.5, 0.5])).item()
    -0.5
    """
    return utility(lambda x: jnp.minimum(x, 0.0), "shortfall")


@memoize
def homeostatic(target: float = 0.0) -> Functional:
    """The distance to a return that is wanted, -E |x - target|.

    Args:
      target: default of the return.

    >>> functional = homeostatic(2.0)
    >>> functional.value(functional.init(), jnp.array([1.0, 5.0]), jnp.array([0.5, 0.5])).item()
    -2.0
    """

    def value(params: Homeostatic, points: Array, probs: Array) -> Array:
        return -jnp.sum(probs * jnp.abs(points - params.target), axis=-1)

    return Functional(lambda: Homeostatic(jnp.float32(target)), value, "homeostatic")


@memoize
def entropic(aversion: float = 1.0) -> Functional:
    """The certainty equivalent of an exponential utility, -log E exp(-ρ x) / ρ.

    Args:
      aversion: default of ρ; below 0 it seeks risk.

    Raises:
      ValueError: ρ is 0, which is the mean.

    >>> functional = entropic(1.0)
    >>> round(functional.value(functional.init(), jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5])).item(), 4)
    0.3799
    """
    if aversion == 0.0:
        raise ValueError("entropic: aversion must not be 0, where it is the mean; use mean().")

    def value(params: Entropic, points: Array, probs: Array) -> Array:
        return -jax.nn.logsumexp(-params.aversion * points, axis=-1, b=probs) / params.aversion

    return Functional(lambda: Entropic(jnp.float32(aversion)), value, "entropic")


@memoize
def cvar(level: float = 0.25) -> Functional:
    """The conditional value at risk: the mean of the worst share τ of outcomes.

    A policy that takes the action of the greatest CVaR of what is still to come need not have the greatest CVaR of the
    whole: what was the worst share changes on the way. The best policy comes from `shortfall` with the first stock of
    `best_stock`.

    Args:
      level: default of τ, above 0; 1 is the mean.

    Raises:
      ValueError: τ is not above 0 and at most 1.

    >>> functional = cvar(0.5)
    >>> functional.value(functional.init(), jnp.array([4.0, 1.0, 2.0, 3.0]), jnp.full(4, 0.25)).item()
    1.5
    """
    if not 0.0 < level <= 1.0:
        raise ValueError(f"cvar: level must be above 0 and at most 1; got level = {level}.")

    def value(params: Cvar, points: Array, probs: Array) -> Array:
        order = jnp.argsort(points, axis=-1)
        ordered = jnp.take_along_axis(probs, order, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        share = jnp.clip(params.level - before, 0.0, ordered)
        total = jnp.sum(share * jnp.take_along_axis(points, order, axis=-1), axis=-1)
        # By the sum, since rounded probabilities may not reach τ = 1.
        return total / jnp.sum(share, axis=-1)

    return Functional(lambda: Cvar(jnp.float32(level)), value, "CVaR")


def best_stock(
    points: Float[Array, "C J"], probs: Float[Array, "C J"], stocks: Float[Array, " C"], level: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The first stock from which maximizing `shortfall` maximizes CVaR, and that CVaR.

        CVaR_τ(G) = max_c -c + E min(c + G, 0) / τ,   the greatest c being minus the quantile at τ

    (Rockafellar and Uryasev 2000; with the stock Bäuerle and Ott 2011 and arXiv:2501.13028).

    Args:
      points: of the return from each stock, under the policy that is greedy from there.
      probs: their probabilities.
      stocks: the stocks to choose from.
      level: τ.

    Returns:
      The stock and the CVaR.

    >>> stock, value = best_stock(jnp.array([[0.0, 4.0]] * 3), jnp.full((3, 2), 0.5), jnp.array([-4.0, 0.0, 4.0]), 0.5)
    >>> value.item()
    0.0
    """
    missing = jnp.sum(probs * jnp.minimum(stocks[:, None] + points, 0.0), axis=-1)
    value = missing / level - stocks
    best = jnp.argmax(value)
    return stocks[best], value[best]


@memoize
def maximizing(functional: Functional, head: ValueHead) -> ValueHead:
    """A head whose values of actions are a functional of the stock plus the return, instead of the mean return.

    What is learned stays the distribution of the return to go. Greedy acting, and backups that are greedy, maximize
    K(c + Z). Without `jaxrl.wrappers.observe_stock` the stock is 0: the functional of what is still to come.

    Args:
      functional: K.
      head: of distributions: `quantile`, `implicit_quantile`, or `categorical` with the projection of C51.

    Returns:
      The head; its params are a `Maximizing`.

    Raises:
      ValueError: the head learns no distribution.

    Example:
      >>> from jaxrl.values.distributional import quantile
      >>> head = maximizing(shortfall(), quantile(2))
      >>> head.mean(head.init(), QOutput(jnp.array([[-1.0, 3.0], [-2.0, 0.0]]), stock=jnp.float32(1.0))).tolist()
      [0.0, -0.5]
    """
    atoms = head.atoms
    if atoms is None:
        raise ValueError(
            f"maximizing: the head {head.name!r} learns no distribution of which {functional.name!r} could be taken. "
            "Use quantile, implicit_quantile or categorical(projection='c51')."
        )

    def value(params: Maximizing, output: QOutput) -> Array:
        points, probs = atoms(params.head, output)
        if not isinstance(output.stock, tuple):
            points = points + jnp.expand_dims(output.stock, (-2, -1))
        return functional.value(params.functional, points, jnp.broadcast_to(probs, points.shape))

    def loss(params: Maximizing, output: QOutput, target: Target) -> tuple[Array, Array]:
        return head.loss(params.head, output, target)

    return head._replace(
        init=lambda: Maximizing(head.init(), functional.init()),
        mean=value,
        loss=loss,
        name=f"{functional.name} of {head.name}",
    )
