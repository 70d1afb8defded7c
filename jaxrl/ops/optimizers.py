"""Optimizers as functions of hyperparameters, so that rates and bounds stay data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxrl.types import memoize

Optimizer = Callable[[Any, Float[Array, ""]], optax.GradientTransformation]
"""`(hparams, learning_rate) -> transformation`, rebuilt in every step, so that rates stay data."""


def adam(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """Adam (ε = 1e-5) behind clipping of the global gradient norm.

    Args:
      hparams: of the algorithm; its leaf `max_grad_norm` is the greatest norm.
      learning_rate: at present.

    >>> import types
    >>> import jax.numpy as jnp
    >>> transform = adam(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    >>> round(float(updates), 3)
    -0.1
    """
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_adam(eps=1e-5),
        optax.scale(-learning_rate),  # type: ignore[arg-type]
    )


@memoize
def adam_with(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0) -> Optimizer:
    """Adam with other constants than `adam` has, behind the same clipping.

    Args:
      beta1: decay of the first moment.
      beta2: decay of the second.
      epsilon: added to the root of the second.
      weight_decay: decoupled (AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2): the learning rate
        times this share of each parameter is taken off. Scalars, such as a temperature, do not decay.

    Raises:
      ValueError: a decay is not in [0, 1), ε is not positive, or the weight decay is negative.

    Example:
      >>> import types
      >>> import jax.numpy as jnp
      >>> transform = adam_with(beta1=0.0)(types.SimpleNamespace(max_grad_norm=1e9), jnp.float32(0.1))
      >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
      >>> round(float(updates), 3)
      -0.1
    """
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0 and epsilon > 0.0):
        raise ValueError(
            "adam_with: beta1 and beta2 must be at least 0 and below 1, and epsilon positive; got "
            f"beta1 = {beta1}, beta2 = {beta2}, epsilon = {epsilon}."
        )
    if weight_decay < 0.0:
        raise ValueError(f"adam_with: weight_decay must not be negative; got weight_decay = {weight_decay}.")
    arrays = lambda params: jax.tree.map(lambda x: x.ndim > 0, params)
    decay = (optax.add_decayed_weights(weight_decay, arrays),) if weight_decay else ()

    def make(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),
            optax.scale_by_adam(beta1, beta2, epsilon),
            *decay,
            optax.scale(-learning_rate),  # type: ignore[arg-type]
        )

    return make


@memoize
def on_spheres(optimizer: Optimizer = adam, layer: str = "HyperDense") -> Optimizer:
    """An optimizer after whose update the weights into each unit of some layers have length 1 (arXiv:2502.15280).

        w ← (w + Δ) / ‖w + Δ‖,   Δ the update of the optimizer given; parameters of other layers move by Δ

    Where there are no such layers it is the optimizer given.

    Args:
      optimizer: gives Δ.
      layer: what the names of these layers begin with; each leaf there has the weights into a unit along its axis -2.

    Example:
      >>> import types
      >>> import jax.numpy as jnp
      >>> transform = on_spheres(adam)(types.SimpleNamespace(max_grad_norm=1e9), jnp.float32(0.75))
      >>> params = {"HyperDense_0": {"kernel": jnp.array([[1.0], [0.0]])}}
      >>> updates, _ = transform.update({"HyperDense_0": {"kernel": jnp.array([[0.0], [-9.0]])}},
      ...                               transform.init(params), params)
      >>> moved = optax.apply_updates(params, updates)["HyperDense_0"]["kernel"]
      >>> [round(x, 3) for x in moved.ravel().tolist()]
      [0.8, 0.6]
    """

    def make(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
        moved = optimizer(hparams, learning_rate)

        def project(path: tuple[Any, ...], step: Array, param: Array) -> Array:
            if not any(str(getattr(entry, "key", "")).startswith(layer) for entry in path):
                return step
            after = param + step
            return after / jnp.maximum(jnp.linalg.norm(after, axis=-2, keepdims=True), _MIN_NORM) - param

        def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
            updates, state = moved.update(updates, state, params)
            return jax.tree_util.tree_map_with_path(project, updates, params), state

        return optax.GradientTransformation(moved.init, update)

    return make


def rmsprop(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """RMSProp (decay 0.99, ε = 1e-5, Mnih et al. 2016, arXiv:1602.01783, eq. 8) behind clipping of the global norm.

    Args:
      hparams: of the algorithm; its leaf `max_grad_norm` is the greatest norm.
      learning_rate: at present.

    >>> import types
    >>> import jax.numpy as jnp
    >>> transform = rmsprop(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    >>> updates, _ = transform.update(jnp.float32(3.0), transform.init(jnp.float32(0.0)))
    >>> round(float(updates), 3)
    -0.998
    """
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_rms(decay=0.99, eps=1e-5),
        optax.scale(-learning_rate),  # type: ignore[arg-type]
    )


class TransportState(NamedTuple):
    """State of `gradient_transport`.

    Attributes:
      num_updates: so far, t.
      iterate: θ_t, which the parameters run ahead of.
      direction: d_{t-1}.
    """

    num_updates: Int[Array, ""]
    iterate: PyTree
    direction: PyTree


@memoize
def gradient_transport(
    initial_momentum: float = 1.0, momentum_exponent: float = 0.8, rate_exponent: float = 1.0
) -> Optimizer:
    """Normalized momentum with implicit gradient transport (Fatkhullin et al. 2023, arXiv:2302.01734, N-PG-IGT).

        d_t     = (1 - η_t) d_{t-1} + η_t g(θ̃_t),   d_0 = g(θ̃_0)
        θ_{t+1} = θ_t - γ_t d_t / ‖d_t‖
        θ̃_t    = θ_t + (1 - η_t) / η_t (θ_t - θ_{t-1}),   θ̃_0 = θ_0

    η_t = η_0 (2/(t+2))^p and γ_t = learning rate (2/(t+2))^q. The parameters that are updated *are* θ̃, so whoever
    samples with them and takes the gradient there needs to know nothing of it; `iterate` gives θ. θ̃ is ahead of θ by
    γ_{t-1} (1 - η_t) / η_t, with the defaults about 2^(1/5) γ_0 t^(-1/5). Where the gradient is that of a quadratic,
    d_t is exactly the gradient at θ_t: so averaging over iterations costs no bias to first order.

    Schedules and exponents are those of the authors' code (its optimizer NIGT); of the paper only the abstract was at
    hand. That code takes θ̃_t with η_{t-1}; here it is the η_t that then averages, since otherwise a quadratic's d_t
    would not be exact.

    Args:
      initial_momentum: η_0, in (0, 1].
      momentum_exponent: p; 0 with η_0 = 1 is the plain normalized gradient.
      rate_exponent: q.

    Returns:
      The optimizer; its `learning_rate` is γ_0, a distance in parameter space.

    Raises:
      ValueError: η_0 is not in (0, 1], or an exponent is negative.

    Example:
      >>> import types
      >>> import jax.numpy as jnp
      >>> transform = gradient_transport()(types.SimpleNamespace(), jnp.float32(0.1))
      >>> params, state = jnp.float32(1.0), transform.init(jnp.float32(1.0))
      >>> for _ in range(2):
      ...     updates, state = transform.update(params, state, params)
      ...     params = params + updates
      >>> round(float(iterate(state, params)), 4), round(float(params), 4)
      (0.8333, 0.7839)
    """
    if not 0.0 < initial_momentum <= 1.0 or min(momentum_exponent, rate_exponent) < 0.0:
        raise ValueError(
            "gradient_transport: initial_momentum must be above 0 and at most 1, and exponents not negative; got "
            f"initial_momentum = {initial_momentum}, momentum_exponent = {momentum_exponent}, "
            f"rate_exponent = {rate_exponent}."
        )

    def fall(count: Array, exponent: float) -> Array:
        return (2.0 / (count.astype(jnp.float32) + 2.0)) ** exponent

    def make(hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
        del hparams

        def init(params: PyTree) -> TransportState:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return TransportState(jnp.int32(0), jax.tree.map(jnp.copy, params), zeros)

        def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, TransportState]:
            count = state.num_updates
            eta = jnp.where(count == 0, 1.0, initial_momentum * fall(count, momentum_exponent))
            direction = jax.tree.map(lambda d, g: (1.0 - eta) * d + eta * g, state.direction, updates)
            rate = learning_rate * fall(count, rate_exponent)
            length = rate / jnp.maximum(optax.tree.norm(direction), _MIN_NORM)
            step = jax.tree.map(lambda d: -length * d, direction)
            iterate = optax.tree.add(state.iterate, step)
            next_eta = initial_momentum * fall(count + 1, momentum_exponent)
            ahead = (1.0 - next_eta) / next_eta
            moved = jax.tree.map(lambda x, s, at: x + ahead * s - at, iterate, step, params)
            return moved, TransportState(count + 1, iterate, direction)

        return optax.GradientTransformation(init, update)

    return make


def iterate(opt_state: optax.OptState, params: PyTree) -> PyTree:
    """θ of `gradient_transport`, whose parameters are θ̃; parameters that another optimizer moves are returned as given.

    Args:
      opt_state: of an optimizer that `gradient_transport` is or is part of.
      params: the parameters that go with it.
    """
    found = optax.tree.get(opt_state, "iterate")
    apart = lambda x: isinstance(x, optax.MaskedNode)
    return jax.tree.map(lambda x, param: param if apart(x) else x, found, params, is_leaf=apart)


# Below this length a direction is taken for none.
_MIN_NORM = 1e-12
