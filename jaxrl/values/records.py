"""What the critic's parts are, and what passes between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl.networks.q_network import QOutput

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
      action: taken, [N]; this and the following for a head that is `whole` only, otherwise None.
      online_next: outputs of the network that learns at the successor.
      now: outputs of the bootstrapping network at the observation.
    """

    reward: Float[Array, " N"]
    discount: Float[Array, " N"]
    next: QOutput
    weight: Float[Array, "N A"]
    shift: Float[Array, "N A"] | None = None
    greedy: bool = struct.field(pytree_node=False, default=False)
    action: Int[Array, " N"] | None = None
    online_next: QOutput | None = None
    now: QOutput | None = None


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
      whole: whether `loss` gets the output of all actions, [N, A, K], and the last fields of `Target`.
      atoms: `(params, output [..., A, K]) -> (points [..., A, J], probs [..., A, J])`, the distribution of the return
        where one is learned, otherwise None.
      explore: `(params, output [..., A, K]) -> [..., A]`, what sampled acting maximizes; None: `mean`.
    """

    init: Callable[[], PyTree]
    mean: Callable[[PyTree, QOutput], Float[Array, "... A"]]
    loss: Callable[[PyTree, QOutput, Target], tuple[Float[Array, " N"], Float[Array, " N"]]]
    size: int
    name: str
    fractions: tuple[int, ...] = ()
    whole: bool = False
    atoms: Callable[[PyTree, QOutput], tuple[Float[Array, "... A J"], Float[Array, "... A J"]]] | None = None
    explore: Callable[[PyTree, QOutput], Float[Array, "... A"]] | None = None


@struct.dataclass
class BackupInputs:
    """What a backup may look at; what it does not is never computed.

    Attributes:
      online_next: values of the successor's actions under the parameters that learn, [N, A].
      target_next: the same under those that are bootstrapped from.
      target_now: values at the observation itself under those, [N, A].
      action: taken there, [N].
      progress: of training, from 0 to 1.
    """

    online_next: Float[Array, "N A"]
    target_next: Float[Array, "N A"]
    target_now: Float[Array, "N A"]
    action: Int[Array, " N"]
    progress: Float[Array, ""] | float = 0.0


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


def expected_return(target: Target, values: Float[Array, "N A"]) -> Float[Array, " N"]:
    """r + γ Σ_a π(a) (Q(a) + shift(a)), with Q given."""
    shifted = values if target.shift is None else values + target.shift
    return target.reward + target.discount * jnp.sum(target.weight * shifted, axis=-1)


def check_choice(owner: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError if a value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(allowed)}; got {name} = {value!r}.")
