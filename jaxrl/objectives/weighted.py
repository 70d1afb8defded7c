"""Objectives that raise the log-probability of the actions taken, each with a weight made of its advantage.

None of them corrects for the policy that acted: `policy_gradient` takes the correction with the advantage, `awr` and
`vmpo` fit the policy to the weighted samples of the one that acted.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxrl.types import Metrics, Objective, PolicyInputs, memoize


@struct.dataclass
class AWR:
    """Coefficients of `awr`.

    Attributes:
      temperature: β, in units of the advantage; the smaller it is, the more the best samples count.
      max_weight: bound of a sample's weight.
    """

    temperature: Float[Array, ""]
    max_weight: Float[Array, ""]


@struct.dataclass
class VMPO:
    """Coefficients of `vmpo`.

    Attributes:
      epsilon_eta: ε_η, bound of the divergence, in nats, of the weighted samples from equal weights.
      epsilon_alpha: ε_α, bound of the mean KL divergence, in nats, of the policy from the one to stay close to.
    """

    epsilon_eta: Float[Array, ""]
    epsilon_alpha: Float[Array, ""]


@struct.dataclass
class Multipliers:
    """Trained variables of `vmpo`, each before softplus, which keeps it positive.

    Attributes:
      eta: of the temperature η.
      alpha: of the multiplier α of the KL constraint.
    """

    eta: Float[Array, ""]
    alpha: Float[Array, ""]


# Softplus underflows to zero, and η is divided by.
_MIN_MULTIPLIER = 1e-8


def _positive(variable: Array) -> Array:
    return jax.nn.softplus(variable) + _MIN_MULTIPLIER


def _before_softplus(x: float) -> Array:
    """The inverse of softplus, in a form that overflows for no x."""
    return jnp.float32(x + math.log(-math.expm1(-x)))


@memoize
def policy_gradient() -> Objective:
    """The policy gradient (Williams 1992, theorem 1; with a learned baseline that of A3C, arXiv:1602.01783).

        L = -E[ A log π(a|s) ]

    Data of an older policy needs advantages with their importance weight included, as `jaxrl.estimators.vtrace` makes
    them (IMPALA, arXiv:1802.01561, section 4.2).

    Returns:
      The objective; it has no coefficients, its params are (), and no metrics.

    Example:
      >>> policy_gradient().init(jax.random.key(0))
      ()
    """

    def init(key: jax.Array) -> tuple[()]:
        del key
        return ()

    def loss(params: tuple[()], inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        del params
        return -jnp.mean(inputs.advantage * inputs.log_prob), {}

    return Objective(init, loss, name="policy_gradient")


@memoize
def awr(temperature: float = 1.0, max_weight: float = 20.0) -> Objective:
    """Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177, algorithm 1), to be minimized.

        L = -E[ min(exp(A / β), max_weight) log π(a|s) ]

    The defaults are those of the authors' code, for advantages normalized to deviation 1. There the samples come from
    a replay buffer of many iterations; here they are those that the algorithm passes.

    Args:
      temperature: the default of the coefficient `temperature`, β.
      max_weight: the default of the coefficient `max_weight`.

    Returns:
      The objective; its params are an `AWR`. Metrics `policy/weight`: the mean weight; `policy/clip_fraction`: share
      of samples whose weight is at its bound.

    Raises:
      ValueError: `temperature` or `max_weight` is not positive.

    Example:
      >>> awr(temperature=0.5).init(jax.random.key(0)).temperature.item()
      0.5
    """
    if not (temperature > 0 and max_weight > 0):
        raise ValueError(
            f"awr: temperature and max_weight must be positive; got temperature = {temperature}, "
            f"max_weight = {max_weight}."
        )

    def init(key: jax.Array) -> AWR:
        del key
        return AWR(temperature=jnp.float32(temperature), max_weight=jnp.float32(max_weight))

    def loss(params: AWR, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        log_weight, bound = inputs.advantage / params.temperature, jnp.log(params.max_weight)
        # Bounded before the exponential, which overflows for the advantages that the bound is for.
        weight = jnp.exp(jnp.minimum(log_weight, bound))
        metrics = {
            "policy/weight": jnp.mean(weight),
            "policy/clip_fraction": jnp.mean((log_weight >= bound).astype(jnp.float32)),
        }
        return -jnp.mean(weight * inputs.log_prob), metrics

    return Objective(init, loss, name="awr")


@memoize
def vmpo(
    epsilon_eta: float = 0.01,
    epsilon_alpha: float = 0.01,
    initial_eta: float = 1.0,
    initial_alpha: float = 5.0,
) -> Objective:
    """V-MPO's policy improvement loss (Song et al. 2020, arXiv:1909.12238, eq. 2 to 5), to be minimized.

        L   = L_π + L_η + L_α
        L_π = -Σ_D' ψ log π(a|s),   ψ = exp(A/η) / Σ_D' exp(A/η), held fixed
        L_η = η ε_η + η log( Σ_D' exp(A/η) / |D'| )
        L_α = E[ α (ε_α - [KL]) + [α] KL ],   KL = KL(π_proximal(·|s) ‖ π(·|s)), what is in brackets held fixed

    D' is the half of the minibatch with the greatest advantages (and what ties with the least of them). The temperature
    η and the multiplier α are variables of the objective, trained by the gradient of this loss and kept positive
    by softplus, where the paper projects them. π_proximal takes the place of the paper's target network. For
    continuous actions the paper bounds mean and covariance apart; here it is one divergence, as in eq. 5. The defaults
    are values that reimplementations report for it.

    Args:
      epsilon_eta: the default of the coefficient `epsilon_eta`.
      epsilon_alpha: the default of the coefficient `epsilon_alpha`.
      initial_eta: η at the beginning, in units of the advantage.
      initial_alpha: α at the beginning.

    Returns:
      The objective; its params are a `VMPO`, its variables `Multipliers`. Metrics `policy/temperature`: η;
      `policy/multiplier`: α; `policy/penalty`: the mean KL divergence; `loss/temperature`: L_η.

    Raises:
      ValueError: an argument is not positive.

    Example:
      >>> objective = vmpo()
      >>> objective.init(jax.random.key(0)).epsilon_eta.item()
      0.009999999776482582
      >>> round(jax.nn.softplus(objective.variables().alpha).item(), 5)
      5.0
    """
    if not min(epsilon_eta, epsilon_alpha, initial_eta, initial_alpha) > 0:
        raise ValueError(
            "vmpo: epsilon_eta, epsilon_alpha, initial_eta and initial_alpha must be positive; got "
            f"epsilon_eta = {epsilon_eta}, epsilon_alpha = {epsilon_alpha}, initial_eta = {initial_eta}, "
            f"initial_alpha = {initial_alpha}."
        )

    def init(key: jax.Array) -> VMPO:
        del key
        return VMPO(epsilon_eta=jnp.float32(epsilon_eta), epsilon_alpha=jnp.float32(epsilon_alpha))

    def variables() -> Multipliers:
        return Multipliers(eta=_before_softplus(initial_eta), alpha=_before_softplus(initial_alpha))

    def loss(params: VMPO, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        eta, alpha = _positive(inputs.variables.eta), _positive(inputs.variables.alpha)
        advantage, log_prob = inputs.advantage.reshape(-1), inputs.log_prob.reshape(-1)

        least = jax.lax.top_k(advantage, max(1, advantage.size // 2))[0][-1]
        chosen = advantage >= least
        scaled = jnp.where(chosen, advantage / eta, -jnp.inf)
        weight = jax.lax.stop_gradient(jax.nn.softmax(scaled))
        policy_loss = -jnp.sum(weight * log_prob)
        log_mean = jax.nn.logsumexp(scaled) - jnp.log(jnp.sum(chosen.astype(jnp.float32)))
        temperature_loss = eta * (params.epsilon_eta + log_mean)

        divergence = jnp.mean(inputs.proximal_policy.kl(inputs.policy))
        constraint_loss = alpha * (params.epsilon_alpha - jax.lax.stop_gradient(divergence))
        constraint_loss += jax.lax.stop_gradient(alpha) * divergence

        metrics = {
            "policy/temperature": eta,
            "policy/multiplier": alpha,
            "policy/penalty": divergence,
            "loss/temperature": temperature_loss,
        }
        return policy_loss + temperature_loss + constraint_loss, metrics

    return Objective(init, loss, name="vmpo", variables=variables)
