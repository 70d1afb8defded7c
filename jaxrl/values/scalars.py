"""Heads that learn the mean of the return: one value, a value within bounds, one with its spread, a mapped one."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.networks.q_network import QOutput
from jaxrl.ops.bins import Support
from jaxrl.types import memoize
from jaxrl.values.records import Target, ValueHead, check_choice, expected_return

_LEAST_SHAPE = 1e-3
"""β, α and |δ| / α of `generalized_gaussian` are at least this."""


@struct.dataclass
class Huber:
    """Coefficients of `scalar` and of heads of quantiles.

    Attributes:
      kappa: the error from which on the loss is linear.
    """

    kappa: Float[Array, ""]


@struct.dataclass
class Mapped:
    """Coefficients of `mapped`.

    Attributes:
      scale: c of the logarithm.
      least: the least return of a channel.
      greatest: the greatest.
      share: of the way from a channel's value to its target that is mapped; the rest is the optimizer's.
    """

    scale: Float[Array, ""]
    least: Float[Array, ""]
    greatest: Float[Array, ""]
    share: Float[Array, ""]


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
    check_choice("scalar", "loss", loss, ("square", "huber"))
    check_choice("scalar", "transform", transform, ("none", "signed_hyperbolic"))
    forward, back = _TRANSFORMS[transform]

    def mean(params: PyTree, output: QOutput) -> Array:
        return back(output.values[..., 0])

    def loss_of(params: PyTree, output: QOutput, target: Target) -> tuple[Array, Array]:
        error = forward(expected_return(target, mean(params, target.next))) - output.values[:, 0]
        if loss == "square":
            return 0.5 * jnp.square(error), jnp.abs(error)
        return huber(error, params.kappa), jnp.abs(error)

    return ValueHead(lambda: Huber(jnp.float32(kappa)) if loss == "huber" else (), mean, loss_of, 1, "scalar")


@memoize
def logistic(low: float = 0.0, high: float = 100.0) -> ValueHead:
    """One value within bounds, learned by the log loss of fitted Q-iteration (Ayoub et al. 2024, arXiv:2403.05385).

        Q = low + (high - low) σ(x),   L = -p log σ(x) - (1 - p) log(1 - σ(x)),   p = (target - low) / (high - low)

    with p clipped to [0, 1]. The gradient in x is σ(x) - p: unlike that of a squared error it does not vanish where
    σ(x) is near 0 or 1.

    Args:
      low: default of the least return.
      high: default of the greatest.

    Raises:
      ValueError: `low` is not below `high`.

    Example:
      >>> head = logistic(0.0, 10.0)
      >>> head.mean(head.init(), QOutput(jnp.zeros((1, 2, 1)))).tolist()
      [[5.0, 5.0]]
    """
    if not low < high:
        raise ValueError(f"logistic: needs low < high; got low = {low}, high = {high}.")

    def mean(params: Support, output: QOutput) -> Array:
        return params.low + (params.high - params.low) * jax.nn.sigmoid(output.values[..., 0])

    def loss(params: Support, output: QOutput, target: Target) -> tuple[Array, Array]:
        goal = expected_return(target, mean(params, target.next))
        share = jnp.clip((goal - params.low) / (params.high - params.low), 0.0, 1.0)
        losses = optax.sigmoid_binary_cross_entropy(output.values[:, 0], share)
        return losses, jnp.abs(goal - mean(params, output))

    return ValueHead(lambda: Support(jnp.float32(low), jnp.float32(high)), mean, loss, 1, "logistic")


@memoize
def generalized_gaussian(scale: bool = False, error: Literal["power", "product"] = "power") -> ValueHead:
    """A value with the shape of its error's distribution, a generalized Gaussian (Kim et al. 2024, arXiv:2408.02295).

        L = (|δ| / α)^β - log β + log α + log Γ(1/β),   β = softplus(x_2),   α = softplus(x_3) or 1

    the negative log-likelihood up to log 2, with δ the target less x_1. β = 2 is a Gaussian, β = 1 a Laplace
    distribution; the less β, the heavier the tails.

    `product` replaces (|δ| / α)^β by β |δ| / α, as the authors' code has it. Their weights of an ensemble's members and
    the regularizer of inverse variances need an ensemble and are not here.

    Args:
      scale: whether α is learned too; the authors fix it at 1.
      error: power or product.

    Example:
      >>> head = generalized_gaussian()
      >>> head.size, head.mean((), QOutput(jnp.array([[[3.0, 0.5]]]))).tolist()
      (2, [[3.0]])
    """
    check_choice("generalized_gaussian", "error", error, ("power", "product"))

    def mean(params: PyTree, output: QOutput) -> Array:
        return output.values[..., 0]

    def loss(params: PyTree, output: QOutput, target: Target) -> tuple[Array, Array]:
        positive = jax.nn.softplus(output.values[:, 1:]) + _LEAST_SHAPE
        shape, width = positive[:, 0], positive[:, 1] if scale else jnp.ones_like(positive[:, 0])
        size = jnp.abs(expected_return(target, mean(params, target.next)) - output.values[:, 0])
        # Below 1 the power has no derivative at 0.
        part = size * shape / width if error == "product" else jnp.maximum(size / width, _LEAST_SHAPE) ** shape
        constant = jnp.log(width) - jnp.log(shape) + jax.lax.lgamma(1.0 / shape)
        return part + constant, size

    return ValueHead(tuple, mean, loss, 3 if scale else 2, "generalized Gaussian")


@memoize
def mapped(
    mapping: Literal["log", "loglin"] = "loglin",
    scale: float = 0.5,
    least: float = 0.01687,
    greatest: float = 100.0,
    share: float = 0.1,
) -> ValueHead:
    """Positive and negative rewards as channels with values of their own, learned through a logarithm.

        Q = f⁻¹(x_1) - f⁻¹(x_2),   U_i = ±r (or 0) + γ Σ_a π(a) f⁻¹(x_i(s', a)),
        L = Σ_i Huber(f(max(d, q_i + β (U_i - q_i))) - x_i),   q_i = f⁻¹(x_i)

    The policy π is that of the sum, the same for both channels. `log`: f(q) = c log q. `loglin`: the same for q ≤ 1,
    from there on c q - c, its tangent. q_i and the successor's values are kept from 0 to `greatest`. A step of β
    towards the target is made before mapping, since the average of logarithms is not the logarithm of the average.

    Source: Fatemi and Tavakoli 2022, arXiv:2203.07171, eq. 13 with the mapping of LogLinDQN, as their code has it
    (c = 0.5, d = 0.01687, β the ratio of their rates 0.00025 and 0.0025); `log` is LogDQN of van Seijen et al. 2019,
    arXiv:1906.00572. Their rewards are within [-1, 1] and `greatest` is 1 / (1 - γ). Over n steps it is the sum of
    rewards whose sign tells the channel.

    Args:
      mapping: f.
      scale: default of c.
      least: default of d.
      greatest: default of the greatest return of a channel.
      share: default of β.

    Example:
      >>> head = mapped()
      >>> head.mean(head.init(), QOutput(jnp.array([[[0.5, 0.0]]]))).tolist()
      [[1.0]]
    """
    check_choice("mapped", "mapping", mapping, ("log", "loglin"))
    if not 0.0 < least < greatest:
        raise ValueError(f"mapped: needs 0 < least < greatest; got least = {least}, greatest = {greatest}.")

    def forward(params: Mapped, x: Array) -> Array:
        logarithm = params.scale * jnp.log(x)
        return logarithm if mapping == "log" else jnp.where(x > 1.0, params.scale * (x - 1.0), logarithm)

    def back(params: Mapped, y: Array) -> Array:
        # Bounded, since float32 ends at the exponential of 88.
        power = jnp.exp(jnp.minimum(y / params.scale, 80.0 if mapping == "log" else 0.0))
        return power if mapping == "log" else jnp.where(y > 0.0, 1.0 + y / params.scale, power)

    def mean(params: Mapped, output: QOutput) -> Array:
        channels = back(params, output.values)
        return channels[..., 0] - channels[..., 1]

    def loss(params: Mapped, output: QOutput, target: Target) -> tuple[Array, Array]:
        # Without the successor's values: the reward and what is added after it.
        reward = expected_return(target, jnp.zeros_like(target.weight))
        parts = jnp.stack([jnp.maximum(reward, 0.0), jnp.maximum(-reward, 0.0)], axis=-1)
        following = jnp.einsum("na,nak->nk", target.weight, back(params, target.next.values))
        goal = parts + target.discount[:, None] * jnp.clip(following, 0.0, params.greatest)
        now = jnp.clip(jax.lax.stop_gradient(back(params, output.values)), 0.0, params.greatest)
        stepped = jnp.maximum(now + params.share * (goal - now), params.least)
        error = goal - now
        losses = jnp.sum(huber(forward(params, stepped) - output.values, jnp.float32(1.0)), axis=-1)
        return losses, jnp.abs(error[:, 0] - error[:, 1])

    init = lambda: Mapped(*(jnp.float32(x) for x in (scale, least, greatest, share)))
    return ValueHead(init, mean, loss, 2, f"mapped {mapping}")


def huber(error: Float[Array, "*batch"], kappa: Float[Array, ""]) -> Float[Array, "*batch"]:
    """½ u² where |u| ≤ κ, κ (|u| - ½ κ) beyond.

    >>> huber(jnp.array([0.5, 3.0]), jnp.float32(1.0)).tolist()
    [0.125, 2.5]
    """
    size = jnp.abs(error)
    inner = jnp.minimum(size, kappa)
    return inner * (size - 0.5 * inner)


def signed_hyperbolic(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """sign(x)(√(|x|+1) - 1) + 0.001 x.

    >>> round(signed_hyperbolic(jnp.float32(-3.0)).item(), 4)
    -1.003
    """
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + 1e-3 * x


def signed_parabolic(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The inverse of `signed_hyperbolic`.

    >>> round(signed_parabolic(jnp.float32(-1.003)).item(), 2)
    -3.0
    """
    root = (jnp.sqrt(1.0 + 4e-3 * (jnp.abs(x) + 1.0 + 1e-3)) - 1.0) / 2e-3
    return jnp.sign(x) * (jnp.square(root) - 1.0)


_TRANSFORMS = {
    "none": (lambda x: x, lambda x: x),
    "signed_hyperbolic": (signed_hyperbolic, signed_parabolic),
}
