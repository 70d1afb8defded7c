"""Implicit gradients: how the solution of an inner problem moves with what defines it, without going through its steps.

An inner problem has the solution θ*(φ), where a residual F(θ*, φ) = 0: the gradient of an inner loss, or θ - T(θ, φ)
where the solution is a fixed point of T. An outer loss L(θ*, φ) then has the derivative

    dL/dφ = ∂L/∂φ - wᵀ ∂F/∂φ,   Mᵀ w = ∂L/∂θ,   M = ∂F/∂θ at θ*

M is never built: it is known by its products with vectors, forward and in reverse. The linear system is solved by the
Neumann series or by conjugate gradients, loops of a fixed length of products only, which may be vmapped. How θ* was
found does not matter, so memory does not grow with the steps of the inner solver. Where θ is not yet the solution, the
formula is evaluated there, as methods do that improve θ and φ in turns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxrl import validation
from jaxrl.ops.linear import conjugate_gradient
from jaxrl.types import memoize

Residual = Callable[[Any, Any], Any]
"""`(params, meta) -> F`, a tree like `params` that is zero at the solution."""


class System(NamedTuple):
    """A linear system Mᵀ w = b.

    Attributes:
      product: v ↦ Mᵀ v, trees like b.
      transposed: v ↦ M v.
      target: b.
    """

    product: Callable[[PyTree], PyTree]
    transposed: Callable[[PyTree], PyTree]
    target: PyTree


Solver = Callable[[System], Any]
"""`(system) -> w`."""


def neumann(num_terms: int, step: float | Float[Array, ""]) -> Solver:
    """Solves by the first terms of the Neumann series.

        w = α Σ_{j=0}^{K-1} (I - α Mᵀ)^j b

    It converges where all eigenvalues of α M are within 1 of 1; its error falls like the greatest of (1 - αλ)^K. Few
    terms are a solution with a prior: directions of small curvature count less than they should.

    Args:
      num_terms: K; each but the first takes one product.
      step: α, less than 2 over the greatest eigenvalue. May be traced.

    Returns:
      The solver.

    Raises:
      ValueError: `num_terms` is not positive.

    Source: Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590, algorithm 3.

    Example:
      >>> system = System(lambda v: 0.5 * v, lambda v: 0.5 * v, jnp.float32(1.0))
      >>> float(neumann(1, 1.0)(system)), float(neumann(3, 1.0)(system)), round(float(neumann(40, 1.0)(system)), 4)
      (1.0, 1.75, 2.0)
    """
    validation.count("neumann", "num_terms", num_terms)

    def solve(system: System) -> PyTree:
        def add(_: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            term, total = carry
            term = jax.tree.map(lambda t, p: t - step * p, term, system.product(term))
            return term, optax.tree.add(total, term)

        total = jax.lax.fori_loop(1, num_terms, add, (system.target, system.target))[1]
        return jax.tree.map(lambda x: step * x, total)

    return solve


@memoize
def conjugate(num_steps: int, tolerance: float = 1e-10, symmetric: bool = True) -> Solver:
    """Solves by conjugate gradients.

    Args:
      num_steps: at most; each takes one product, or two if the system is not symmetric.
      tolerance: as for `jaxrl.ops.linear.conjugate_gradient`.
      symmetric: whether M is symmetric and positive definite, as the Hessian at a minimum; otherwise the normal
        equations M Mᵀ w = M b are solved, whose condition number is the square.

    Returns:
      The solver.

    Raises:
      ValueError: `num_steps` is not positive.

    Example:
      >>> turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])  # not symmetric: Mᵀ w = b
      >>> system = System(lambda v: turn.T @ v, lambda v: turn @ v, jnp.array([1.0, 2.0]))
      >>> conjugate(2, symmetric=False)(system).tolist()
      [-2.0, 1.0]
    """
    validation.count("conjugate", "num_steps", num_steps)

    def solve(system: System) -> PyTree:
        if symmetric:
            return conjugate_gradient(system.product, system.target, num_steps, tolerance)
        twice = lambda v: system.transposed(system.product(v))
        return conjugate_gradient(twice, system.transposed(system.target), num_steps, tolerance)

    return solve


def stationary(loss: Callable[[Any, Any], Float[Array, ""]]) -> Residual:
    """The residual of a minimum: the gradient of the inner loss by its parameters.

    Args:
      loss: `(params, meta) -> scalar`.

    Example:
      >>> float(stationary(lambda theta, phi: 0.5 * (theta - phi) ** 2)(3.0, 1.0))
      2.0
    """
    return jax.grad(loss)


def fixed_point(update: Callable[[Any, Any], Any]) -> Residual:
    """The residual of a fixed point: what one update takes off the parameters.

    With it the Neumann series of step 1 is that of the update's own Jacobian: K terms are the gradient through the last
    K updates at the solution.

    Args:
      update: `(params, meta) -> params`.

    Example:
      >>> float(fixed_point(lambda theta, phi: 0.5 * theta + phi)(3.0, 1.0))
      0.5
    """
    return lambda params, meta: jax.tree.map(jnp.subtract, params, update(params, meta))


def hypergradient(
    outer: Callable[[Any, Any], Float[Array, ""]],
    residual: Residual,
    params: PyTree,
    meta: PyTree,
    solver: Solver,
    damping: float | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, ""], PyTree]:
    """The outer loss and its derivative by what defines the inner problem.

        w = (M + μ I)⁻ᵀ ∂L/∂θ,   dL/dφ = ∂L/∂φ - wᵀ ∂F/∂φ

    Args:
      outer: `(params, meta) -> L`.
      residual: F; see `stationary` and `fixed_point`.
      params: θ, at or near the solution.
      meta: φ.
      solver: of the linear system; see `neumann` and `conjugate`.
      damping: μ, for systems that are singular or nearly so.

    Returns:
      L and dL/dφ, a tree like `meta`.

    Source: Bengio 2000, Neural Computation 12(8); Pedregosa 2016, arXiv:1602.02355, eq. 2.

    Example:
      >>> inner = lambda theta, phi: 0.5 * 4.0 * theta**2 - phi * theta  # θ* = φ / 4
      >>> outer = lambda theta, phi: theta**2 + phi
      >>> value, gradient = hypergradient(outer, stationary(inner), 0.5, 2.0, conjugate(1))
      >>> float(value), float(gradient)
      (2.25, 1.25)
    """
    value, (by_params, by_meta) = jax.value_and_grad(outer, (0, 1))(params, meta)
    at_meta = lambda x: residual(x, meta)
    _, reverse = jax.vjp(at_meta, params)
    _, forward = jax.linearize(at_meta, params)
    damped = lambda product: lambda v: jax.tree.map(lambda p, x: p + damping * x, product(v), v)
    system = System(damped(lambda v: reverse(v)[0]), damped(forward), by_params)
    _, by_residual = jax.vjp(lambda x: residual(params, x), meta)
    return value, jax.tree.map(jnp.subtract, by_meta, by_residual(solver(system))[0])


def descend(
    inner: Callable[[Any, Any], Float[Array, ""]],
    outer: Callable[[Any, Any], Float[Array, ""]],
    params: PyTree,
    meta: PyTree,
    transforms: tuple[optax.GradientTransformation, optax.GradientTransformation],
    solver: Solver,
    num_inner: int,
    num_outer: int,
) -> tuple[PyTree, PyTree, Float[Array, " num_outer"]]:
    """Solves a bilevel problem: min over φ of outer(θ*(φ), φ), where θ* minimizes inner(·, φ).

    In turns: some steps of θ, which goes on from where it was, then one step of φ along the implicit gradient.

    Args:
      inner: `(params, meta) -> scalar`.
      outer: likewise.
      params: θ at the start.
      meta: φ at the start.
      transforms: optimizers of θ and of φ.
      solver: see `hypergradient`.
      num_inner: steps of θ for each of φ.
      num_outer: steps of φ.

    Returns:
      θ, φ, and the outer loss before each step of φ.

    Raises:
      ValueError: a count is not positive.

    Example:
      >>> inner = lambda theta, phi: (theta - phi) ** 2
      >>> outer = lambda theta, phi: (theta - 3.0) ** 2
      >>> sgd = optax.sgd(0.3)
      >>> theta, phi, losses = descend(inner, outer, jnp.zeros(()), jnp.zeros(()), (sgd, sgd), conjugate(1), 10, 20)
      >>> round(float(phi), 3), round(float(theta), 3)
      (3.0, 3.0)
    """
    validation.count("descend", "num_inner", num_inner)
    validation.count("descend", "num_outer", num_outer)
    own, above = transforms

    def align(carry: Any, _: None) -> tuple[Any, Array]:
        learner, (meta, meta_state) = carry

        def improve(_: Array, learner: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
            params, state = learner
            updates, state = own.update(jax.grad(inner)(params, meta), state, params)
            return optax.apply_updates(params, updates), state

        params, state = jax.lax.fori_loop(0, num_inner, improve, learner)
        loss, grads = hypergradient(outer, stationary(inner), params, meta, solver)
        updates, meta_state = above.update(grads, meta_state, meta)
        return ((params, state), (optax.apply_updates(meta, updates), meta_state)), loss

    start = ((params, own.init(params)), (meta, above.init(meta)))
    ((params, _), (meta, _)), losses = jax.lax.scan(align, start, length=num_outer)
    return params, meta, losses
