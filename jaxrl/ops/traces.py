"""Eligibility traces over pytrees, and the optimizers that step along them.

A trace is a tree like the parameters. With an error δ that scales it, one step of an online λ-method is

    z ← decay z + ∇θ w(s)        `accumulate`, with the decay γλ, or 0 where an episode starts
    θ ← θ + α δ z                `OPTIMIZERS`, which differ in α

(Sutton and Barto 2018, section 12.2). Where `w` is the value function and δ its TD error this is TD(λ).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree


def zeros(params: PyTree) -> PyTree:
    """The trace before any gradient: zeros like the parameters."""
    return jax.tree.map(jnp.zeros_like, params)


def accumulate(trace: PyTree, gradient: PyTree, factor: Float[Array, ""]) -> PyTree:
    """The accumulating trace, z ← factor z + ∇.

    Args:
      trace: z.
      gradient: a tree like it.
      factor: of z, see `decay`.

    >>> float(accumulate(jnp.float32(2.0), jnp.float32(1.0), jnp.float32(0.5)))
    2.0
    """
    return jax.tree.map(lambda z, g: factor * z + g, trace, gradient)


def decay(gamma: Float[Array, ""], trace_lambda: Float[Array, ""], cut: Bool[Array, ""]) -> Float[Array, ""]:
    """The factor of the trace so far: γλ, or 0 where it is forgotten.

    A factor rather than a second pass over the trace, which is as large as the network.

    Args:
      gamma: discount factor.
      trace_lambda: λ.
      cut: whether an episode starts, or what came before must not learn from what follows.
    """
    return jnp.where(cut, 0.0, gamma * trace_lambda)


def norm(trace: PyTree) -> Float[Array, ""]:
    """The L1 norm of the whole tree, Σ|z|."""
    return sum((jnp.sum(jnp.abs(z)) for z in jax.tree.leaves(trace)), jnp.float32(0.0))


def bounded_step_size(
    delta: Float[Array, ""],
    trace_norm: Float[Array, ""],
    learning_rate: Float[Array, ""],
    kappa: Float[Array, ""],
) -> Float[Array, ""]:
    """The step size with which a step does not overshoot its target,

        α = lr / max(1, lr κ max(1, |δ|) ‖z‖₁).

    A step of α changes what is predicted so little that the error keeps its sign if the prediction is no steeper along
    the step than κ says (Elsayed et al. 2024, arXiv:2410.14606, algorithm 3).

    Args:
      delta: the TD error.
      trace_norm: ‖z‖₁.
      learning_rate: greatest step size.
      kappa: how cautious.

    >>> float(bounded_step_size(jnp.float32(0.1), jnp.float32(4.0), jnp.float32(1.0), jnp.float32(2.0)))
    0.125
    """
    return learning_rate / jnp.maximum(1.0, learning_rate * kappa * jnp.maximum(1.0, jnp.abs(delta)) * trace_norm)


class TraceOptimizer(NamedTuple):
    """How parameters move along their trace.

    Attributes:
      init: `(params) -> state`, () if it remembers nothing.
      update: `(params, state, trace, delta, learning_rate, kappa, beta2) -> (params, state, step size)`; what an
        optimizer does not need it ignores.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree, Float[Array, ""]]]


@struct.dataclass
class SecondMoment:
    """The memory of `adaptive_obgd`.

    Attributes:
      mean_square: exponential mean of (δz)², not yet corrected for its start at zero.
      count: updates so far.
    """

    mean_square: PyTree
    count: Int[Array, ""]


def sgd() -> TraceOptimizer:
    """Steps of a fixed size, θ ← θ + lr δ z.

    >>> params, _, _ = sgd().update(jnp.float32(1.0), (), jnp.float32(2.0), jnp.float32(3.0), 0.5, 2.0, 0.999)
    >>> float(params)
    4.0
    """

    def update(
        params: PyTree, state: Any, trace: PyTree, delta: Array, learning_rate: Array, kappa: Array, beta2: Array
    ) -> tuple[PyTree, Any, Array]:
        return _move(params, trace, learning_rate * delta), state, jnp.asarray(learning_rate, jnp.float32)

    return TraceOptimizer(lambda params: (), update)


def obgd() -> TraceOptimizer:
    """Overshooting-bounded gradient descent, θ ← θ + α δ z with α from `bounded_step_size`.

    Source: Elsayed et al. 2024, arXiv:2410.14606, algorithm 3.

    >>> one, two = jnp.float32(1.0), jnp.float32(2.0)
    >>> params, _, size = obgd().update(one, (), two, one, one, two, one)
    >>> float(params), float(size)
    (1.5, 0.25)
    """

    def update(
        params: PyTree, state: Any, trace: PyTree, delta: Array, learning_rate: Array, kappa: Array, beta2: Array
    ) -> tuple[PyTree, Any, Array]:
        size = bounded_step_size(delta, norm(trace), learning_rate, kappa)
        return _move(params, trace, size * delta), state, size

    return TraceOptimizer(lambda params: (), update)


def adaptive_obgd(epsilon: float = 1e-8) -> TraceOptimizer:
    """`obgd` along the trace divided by the deviation of its steps:

        v ← β₂ v + (1 - β₂) (δz)²,   z̃ = z / √(v / (1 - β₂^t) + ε),   θ ← θ + α δ z̃

    with α from `bounded_step_size` of ‖z̃‖₁. Source: the code of Elsayed et al. 2024, `AdaptiveObGD`.

    Args:
      epsilon: ε, inside the root.

    >>> params = jnp.float32(1.0)
    >>> optimizer = adaptive_obgd()
    >>> moved, state, _ = optimizer.update(params, optimizer.init(params), params, params, 1.0, 1.0, 0.9)
    >>> int(state.count)
    1
    """

    def init(params: PyTree) -> SecondMoment:
        return SecondMoment(zeros(params), jnp.int32(0))

    def update(
        params: PyTree,
        state: SecondMoment,
        trace: PyTree,
        delta: Array,
        learning_rate: Array,
        kappa: Array,
        beta2: Array,
    ) -> tuple[PyTree, SecondMoment, Array]:
        count = state.count + 1
        square = jax.tree.map(lambda v, z: beta2 * v + (1.0 - beta2) * jnp.square(delta * z), state.mean_square, trace)
        correction = 1.0 - beta2 ** count.astype(jnp.float32)
        scaled = jax.tree.map(lambda z, v: z * jax.lax.rsqrt(v / correction + epsilon), trace, square)
        size = bounded_step_size(delta, norm(scaled), learning_rate, kappa)
        return _move(params, scaled, size * delta), SecondMoment(square, count), size

    return TraceOptimizer(init, update)


def adam(beta1: float = 0.9, epsilon: float = 1e-8) -> TraceOptimizer:
    """Adam on the gradient estimate -δz (Kingma and Ba 2015), what streaming methods are compared with.

    Args:
      beta1: decay of the first moment.
      epsilon: ε, outside the root.

    >>> params = jnp.float32(1.0)
    >>> optimizer = adam()
    >>> moved, _, _ = optimizer.update(params, optimizer.init(params), params, params, jnp.float32(0.1), 1.0, 0.9)
    >>> round(float(moved), 4)
    1.1
    """

    def init(params: PyTree) -> PyTree:
        return optax.scale_by_adam().init(params)

    def update(
        params: PyTree, state: PyTree, trace: PyTree, delta: Array, learning_rate: Array, kappa: Array, beta2: Array
    ) -> tuple[PyTree, PyTree, Array]:
        ascent = jax.tree.map(lambda z: delta * z, trace)
        step, state = optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon).update(ascent, state)  # type: ignore[arg-type]
        return _move(params, step, learning_rate), state, jnp.asarray(learning_rate, jnp.float32)

    return TraceOptimizer(init, update)


OptimizerName = Literal["obgd", "adaptive_obgd", "adam", "sgd"]
OPTIMIZERS: dict[str, TraceOptimizer] = {
    "obgd": obgd(),
    "adaptive_obgd": adaptive_obgd(),
    "adam": adam(),
    "sgd": sgd(),
}


def _move(params: PyTree, direction: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda p, d: p + factor * d, params, direction)
