"""Maximum likelihood as a bilevel problem: a reward whose best policy is the likeliest to have made the data.

    max over r  E_y[ log p_{θ*(r)}(y) ],   θ*(r) = argmax E_{y, ŷ ~ p_θ}[ r(ŷ, y) ] + λ H(p_θ)

Benechehab et al. (2025, arXiv:2510.07624), who learn a reward from data alone, so that a model can be trained by policy
gradients on it. Any inner and outer loss go into `jaxrl.meta.implicit.descend`; here is the case that can be solved on
paper, a Gaussian p_θ = N(m, L Lᵀ) and r(ŷ, y) = -(ŷ - y)ᵀ U (ŷ - y), for which

    m* = E[y],   (L Lᵀ)* = λ/2 U⁻¹,   and the best reward has U* = λ/2 Cov(y)⁻¹

(Of the paper the abstract and this result were at hand; the rest follows in a few lines.)
"""

import math

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Gaussian:
    """A normal distribution of D numbers.

    Attributes:
      mean: m.
      factor: its strict lower triangle is that of L, its diagonal the logarithm of L's; what is above has no part.
    """

    mean: Float[Array, " D"]
    factor: Float[Array, "D D"]

    def cholesky(self) -> Float[Array, "D D"]:
        """L, lower triangular with a positive diagonal."""
        return jnp.tril(self.factor, -1) + jnp.diag(jnp.exp(jnp.diagonal(self.factor)))

    def log_determinant(self) -> Float[Array, ""]:
        """log det L."""
        return jnp.sum(jnp.diagonal(self.factor))


def standard_normal(num_dims: int) -> Gaussian:
    """N(0, I).

    >>> standard_normal(2).cholesky().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return Gaussian(jnp.zeros(num_dims), jnp.zeros((num_dims, num_dims)))


def reward_loss(
    policy: Gaussian, root: Float[Array, "D D"], data: Float[Array, "N D"], temperature: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The inner loss: -E[ r(ŷ, y) ] - λ H, in closed form but for a constant.

        tr(U L Lᵀ) + E_y[ (m - y)ᵀ U (m - y) ] - λ log det L,   U = R Rᵀ

    Args:
      policy: of the ŷ.
      root: R, any matrix.
      data: y.
      temperature: λ.

    >>> float(reward_loss(standard_normal(2), jnp.eye(2), jnp.array([[3.0, 4.0]]), 1.0))
    27.0
    """
    away = (policy.mean[None] - data) @ root
    return (
        jnp.sum(jnp.square(root.T @ policy.cholesky()))
        + jnp.mean(jnp.sum(jnp.square(away), axis=-1))
        - temperature * policy.log_determinant()
    )


def negative_log_likelihood(policy: Gaussian, data: Float[Array, "N D"]) -> Float[Array, ""]:
    """The outer loss: -E_y[ log p(y) ].

    >>> round(float(negative_log_likelihood(standard_normal(1), jnp.zeros((4, 1)))), 4)
    0.9189
    """
    lower, away = policy.cholesky(), data - policy.mean[None]
    # Forward substitution, written out: a batched triangular solve would be LAPACK's.
    solved: list[Array] = []
    for i in range(lower.shape[0]):
        known = sum((lower[i, j] * solved[j] for j in range(i)), jnp.zeros_like(away[:, i]))
        solved.append((away[:, i] - known) / lower[i, i])
    square = jnp.mean(jnp.sum(jnp.square(jnp.stack(solved)), axis=0))
    return 0.5 * square + policy.log_determinant() + 0.5 * lower.shape[0] * math.log(2 * math.pi)
