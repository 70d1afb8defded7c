"""Bayesian quadrature of a policy gradient with Fisher kernels, in the space of the samples.

The gradient ∇η = E[R(ξ) u(ξ)], u(ξ) = ∇log p(ξ; θ), is an integral over trajectories; M of them are drawn, with scores
U = [u_1 … u_M] and returns R_1 … R_M. The integrand, or its unknown factor, has a Gaussian process as its prior, which
makes a Gaussian of the gradient. G is the Fisher matrix, C = (K + σ² I)⁻¹, n the number of parameters:

    model 1   f = R u, one process for each entry;   k(ξ, ξ') = (1 + u G⁻¹ u')²
              mean = U (R ∘ C b),   covariance = (b₀ - b C b) I,   b_i = ∫ k(ξ, ξ_i) p = 1 + u_i G⁻¹ u_i,   b₀ = 1 + n
    model 2   f = R, u is known;   k(ξ, ξ') = u G⁻¹ u'
              mean = B C R = U C R,   covariance = G - U C Uᵀ,   B = ∫ u k(ξ, ·) p = U,   ∫∫ u k(ξ, ξ') u' p p' = G

Nothing of size n × n is needed: all is said by X = G⁻¹U, A = UᵀU and UᵀX, and each mean is U c or X c for
M coefficients c. The noise is σ² = ν tr(K) / M, a share of the prior's variance; only that share enters the means, as
the kernel's scale is arbitrary.

G may be estimated from the same scores (`of_scores`), or be known better. It matters: with G = UUᵀ / M, and ν → 0,
model 2's mean U C R is Monte-Carlo's Σ R_i u_i / M exactly, whatever n and M are, since U (UᵀG⁻¹U)⁺ = U / M; model 1's
weights still differ. With the true G model 2's mean is G times the least-squares regression of R on u, whose variance
is far smaller where R is nearly linear in u. The mean of the natural gradient is that regression in both cases.

Source: Ghavamzadeh and Engel 2006; Ghavamzadeh, Engel and Valko 2016 (JMLR 17). Of these the abstracts and summaries
were at hand, which name the two models and kernels; the integrals were derived here, and are checked by numerical
integration (tests/ops/test_quadrature.py).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

Model = Literal[1, 2]


@struct.dataclass
class Posterior:
    """A Gaussian belief about a policy gradient.

    Attributes:
      coefficients: c, [M]; the mean is U c, of the natural gradient G⁻¹ ∇η it is X c.
      trace: of the gradient's covariance.
      prior_trace: the same before any trajectory was seen.
    """

    coefficients: Float[Array, " M"]
    trace: Float[Array, ""]
    prior_trace: Float[Array, ""]


def of_scores(gram: Float[Array, "M M"], damping: Float[Array, ""]) -> tuple[Float[Array, "M M"], Float[Array, ""]]:
    """The Fisher matrix that the scores themselves make: G = λ I + U Uᵀ / M with λ = ε tr(UUᵀ / M).

    As ε is a share of the sum of the eigenvalues, the condition is at most 1 + 1/ε.

    Args:
      gram: A = UᵀU.
      damping: ε, above 0.

    Returns:
      H⁻¹ = (λ I + A / M)⁻¹, of which G⁻¹U = U H⁻¹ by the matrix inversion lemma; and λ.

    >>> inverse, ridge = of_scores(jnp.array([[4.0]]), jnp.float32(0.25))  # one score, 2: G = 1 + 4
    >>> round(float(2.0 * inverse[0, 0]), 4)
    0.4
    """
    num = len(gram)
    ridge = damping * jnp.trace(gram) / num
    eye = jnp.eye(num, dtype=gram.dtype)
    return _solve(ridge * eye + gram / num, eye), ridge


def posterior(
    similarity: Float[Array, "M M"],
    gram: Float[Array, "M M"],
    returns: Float[Array, " M"],
    num_parameters: int,
    fisher_trace: Float[Array, ""],
    noise: Float[Array, ""],
    model: Model,
) -> Posterior:
    """The belief about the gradient after M trajectories.

    Args:
      similarity: UᵀG⁻¹U.
      gram: A = UᵀU.
      returns: R, of which the prior expects 0: center them where they have a mean.
      num_parameters: n.
      fisher_trace: tr G; read by model 2.
      noise: ν, above 0, and above the relative error of the similarity.
      model: 1 or 2.

    Returns:
      The posterior.

    Example:
      >>> scores = jnp.array([[1.0, -1.0, 2.0]])  # one parameter, and G is 2
      >>> gram = scores.T @ scores
      >>> returns = jnp.array([1.0, -1.0, 2.0])  # they are u, so that the gradient is E[u²] = 2
      >>> belief = posterior(gram / 2.0, gram, returns, 1, jnp.float32(2.0), jnp.float32(1e-4), 2)
      >>> round(float((scores @ belief.coefficients)[0]), 2), bool(belief.trace < 0.01 * belief.prior_trace)
      (2.0, True)
    """
    num = len(returns)
    # Rounding, or a solver that stopped early, must not make the kernel asymmetric.
    similarity = 0.5 * (similarity + similarity.T)
    kernel = jnp.square(1.0 + similarity) if model == 1 else similarity
    kernel = kernel + noise * jnp.trace(kernel) / num * jnp.eye(num, dtype=kernel.dtype)
    if model == 1:
        integral = 1.0 + jnp.diagonal(similarity)
        weights = _solve(kernel, integral[:, None])[:, 0]
        coefficients = returns * weights
        prior_trace = jnp.asarray(num_parameters * (1.0 + num_parameters), gram.dtype)
        trace = prior_trace - num_parameters * (integral @ weights)
    else:
        coefficients = _solve(kernel, returns[:, None])[:, 0]
        prior_trace = fisher_trace
        trace = prior_trace - jnp.trace(_solve(kernel, gram))
    return Posterior(coefficients, jnp.maximum(trace, 0.0), prior_trace)


def _solve(matrix: Float[Array, "M M"], target: Float[Array, "M K"]) -> Float[Array, "M K"]:
    """Of a positive definite matrix, by Cholesky's factors."""
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jax.scipy.linalg.cho_solve(factor, target)
