"""What a target bootstraps from: the policy that the successor is valued under, and bonuses."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.types import memoize
from jaxrl.values.records import ILLEGAL, Backup, BackupInputs


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


@struct.dataclass
class Annealed:
    """Coefficients of `annealed`.

    Attributes:
      start: of the first backup.
      end: of the last.
      fraction: of progress after which only the last is left.
    """

    start: PyTree
    end: PyTree
    fraction: Float[Array, ""]


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


@memoize
def annealed(start: Backup, end: Backup, fraction: float = 1.0) -> Backup:
    """One backup that becomes another: from the optimality operator to that of a policy (Omura et al. 2025).

        (1 - c) T_start + c T_end,   c = min(progress / fraction, 1)

    Of values the mixture is exact. Of distributions it is the mixture of both policies' returns, where both shift an
    action's part with the mean of the two shifts.

    Source: arXiv:2506.05968: the operators and the linear annealing. For continuous actions the authors come close to
    the maximum by an expectile loss instead (`annealed` of SAC and TD3). Their text was not at hand in full, nor their
    code.

    Args:
      start: the backup at the beginning.
      end: the one at the end.
      fraction: default of the share of progress over which one becomes the other.

    Raises:
      ValueError: `fraction` is not positive.

    Example:
      >>> q = jnp.array([[1.0, 2.0]])
      >>> backup = annealed(maximum(), expected(1.0))
      >>> backup.choose(backup.init(), BackupInputs(q, q, q, jnp.array([0]), jnp.float32(0.5)))[0].tolist()
      [[0.25, 0.75]]
    """

    if not fraction > 0.0:
        raise ValueError(f"annealed: fraction must be positive; got fraction = {fraction}.")

    def choose(params: Annealed, inputs: BackupInputs) -> tuple[Array, Array | None, Array | None]:
        share = jnp.minimum(inputs.progress / params.fraction, 1.0)
        first, last = start.choose(params.start, inputs), end.choose(params.end, inputs)

        def mix(one: Array | None, other: Array | None) -> Array | None:
            if one is None and other is None:
                return None
            return (1.0 - share) * (0.0 if one is None else one) + share * (0.0 if other is None else other)

        weight: Array = mix(first[0], last[0])  # type: ignore[assignment]
        total = mix(*(None if shift is None else weight * shift for weight, shift, _ in (first, last)))
        # An action that neither takes has no shift.
        shift = None if total is None else jnp.where(weight > 0.0, total / jnp.where(weight > 0.0, weight, 1.0), 0.0)
        return weight, shift, mix(first[2], last[2])

    init = lambda: Annealed(start.init(), end.init(), jnp.float32(fraction))
    return Backup(init, choose, f"annealed from {start.name} to {end.name}")


def _best(values: Float[Array, "N A"]) -> Float[Array, "N A"]:
    return jax.nn.one_hot(jnp.argmax(values, axis=-1), values.shape[-1], dtype=jnp.float32)


def _softmax(values: Float[Array, "N A"], temperature: Float[Array, ""]) -> tuple[Array, Array]:
    """π and -τ log π, of an illegal action 0 and 0."""
    log_probs = jax.nn.log_softmax(values / temperature)
    legal = values > 0.5 * ILLEGAL
    return jnp.exp(log_probs), jnp.where(legal, -temperature * log_probs, 0.0)
