"""Drifts: what a policy objective takes off the surrogate, written as functions or learned as networks.

    L = -E[ w (r A - f(r, A)) ]

A drift f of the ratio r and the advantage A makes a step of mirror learning (Kuba et al. 2022, arXiv:2208.02249) if

    f >= 0,   f = 0 at r = 1,   df/dr = 0 at r = 1

Here a learned drift keeps the three by its form, whatever its weights are.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.objectives.surrogate import ratios
from jaxrl.types import Metrics, Objective, PolicyInputs, memoize

Drift = Callable[[PyTree, Float[Array, " N"], Float[Array, " N"], Float[Array, ""]], Float[Array, " N"]]
"""`(params, log r [N], A [N], progress) -> f [N]`."""

# ξ: the network's output below which there is no drift. It makes the neighborhood of r = 1 flat.
_DEAD_ZONE = 1e-4
_PPO_CLIP = 0.2
_NUM_INPUTS = 8


@struct.dataclass
class LPO:
    """Weights of `lpo`: `net(x) = output · tanh(x · hidden)`, without biases.

    Attributes:
      hidden: of the hidden layer, [8, H], or [16, H] with progress.
      output: of the output, [H, 1].
    """

    hidden: Float[Array, "8 H"]
    output: Float[Array, "H 1"]


def drift_inputs(log_ratio: Float[Array, " N"], advantage: Float[Array, " N"]) -> Float[Array, "N 8"]:
    """What LPO's network sees of a sample; all of it is 0 where the ratio is 1.

        x_r = [1 - r, (1 - r)², log r, (log r)²],   x = [x_r, A x_r]

    Example:
      >>> x = drift_inputs(jnp.zeros(1), jnp.ones(1))
      >>> x.shape, bool((x == 0).all())
      ((1, 8), True)
    """
    # 1 - r to full precision near 1.
    less = -jnp.expm1(log_ratio)
    of_ratio = jnp.stack([less, jnp.square(less), log_ratio, jnp.square(log_ratio)], axis=-1)
    return jnp.concatenate([of_ratio, advantage[..., None] * of_ratio], axis=-1)


def ppo_drift(
    log_ratio: Float[Array, " N"], advantage: Float[Array, " N"], epsilon: float | Float[Array, ""] = _PPO_CLIP
) -> Float[Array, " N"]:
    """PPO's clipping as a drift: f = ReLU( (r - clip(r, 1-ε, 1+ε)) A ).

    Example:
      >>> f = ppo_drift(jnp.log(jnp.array([0.5, 1.1, 1.5])), jnp.array([-1.0, 1.0, 2.0]))
      >>> [round(x, 4) for x in f.tolist()]
      [0.3, 0.0, 0.6]
    """
    ratio = jnp.exp(log_ratio)
    return jax.nn.relu((ratio - jnp.clip(ratio, 1 - epsilon, 1 + epsilon)) * advantage)


def drift_objective(name: str, init: Callable[[jax.Array], PyTree], drift: Drift) -> Objective:
    """The surrogate less a drift, to be minimized: L = -E[ w (r A - f) ], w as in `jaxrl.objectives.surrogate`.

    Args:
      name: for messages.
      init: `(key) -> params` of the drift.
      drift: of samples.

    Returns:
      The objective. Metric `policy/drift`: the mean of f.

    Example:
      >>> clipped = drift_objective("ppo", lambda key: jnp.float32(0.2), lambda e, log_r, a, _: ppo_drift(log_r, a, e))
      >>> clipped.name
      'ppo'
    """

    def loss(params: PyTree, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        ratio, weight = ratios(inputs)
        taken = drift(params, inputs.log_prob - inputs.proximal_log_prob, inputs.advantage, inputs.progress)
        return -jnp.mean(weight * (ratio * inputs.advantage - taken)), {"policy/drift": jnp.mean(taken)}

    return Objective(init, loss, name=name, weighted=True)


@memoize
def lpo(hidden: int = 128, start: Literal["zero", "ppo"] = "zero", progress: bool = False) -> Objective:
    """Learned policy optimization: a drift that is a small network (Lu et al. 2022, arXiv:2210.05639).

        f = ReLU( net(x) - ξ ),   or with start = "ppo"   f = ReLU( f_PPO + net(x) - ξ ),   ξ = 1e-4

    x as in `drift_inputs`. Without biases net(0) = 0 < ξ, so around r = 1 both f and its slope are exactly 0, for all
    weights. With 128 hidden units there are 1152 of them.

    With `progress` (TA-LPO, Jackson et al. 2024) the network sees x and n/N x, n/N being the share of training that has
    passed, which multiplies so that the inputs are still 0 at r = 1; it needs a finite `horizon`.

    The output's weights begin at 0, so the drift begins as none, or as PPO's less ξ. They are meant for an outer loop
    such as `jaxrl.evolve`; the loss itself does not train them.

    Args:
      hidden: H, units.
      start: no drift, or PPO's with ε = 0.2.
      progress: whether the drift may change over training.

    Returns:
      The objective; its params are an `LPO`. Metric `policy/drift`: the mean of f.

    Raises:
      ValueError: `hidden` is not positive, or `start` is unknown.

    Example:
      >>> params = lpo().init(jax.random.key(0))
      >>> params.hidden.size + params.output.size
      1152
    """
    if hidden < 1:
        raise ValueError(f"lpo: hidden must be at least 1; got hidden = {hidden}.")
    if start not in ("zero", "ppo"):
        raise ValueError(f"lpo: start must be 'zero' or 'ppo'; got start = {start!r}.")
    num_inputs = 2 * _NUM_INPUTS if progress else _NUM_INPUTS

    def init(key: jax.Array) -> LPO:
        weights = jax.random.normal(key, (num_inputs, hidden)) / jnp.sqrt(float(num_inputs))
        return LPO(weights, jnp.zeros((hidden, 1)))

    def drift(params: LPO, log_ratio: Array, advantage: Array, passed: Array) -> Array:
        inputs = drift_inputs(log_ratio, advantage)
        if progress:
            inputs = jnp.concatenate([inputs, passed * inputs], axis=-1)
        net = (jnp.tanh(inputs @ params.hidden) @ params.output)[..., 0]
        base = ppo_drift(log_ratio, advantage) if start == "ppo" else 0.0
        return jax.nn.relu(base + net - _DEAD_ZONE)

    return drift_objective("ta_lpo" if progress else "lpo", init, drift)


def drift_of(
    objective: Objective,
    params: PyTree,
    log_ratio: Float[Array, " N"],
    advantage: Float[Array, " N"],
    progress: float | Float[Array, ""] = 0.0,
) -> Float[Array, " N"]:
    """The drift f(r, A) of any objective of single samples, from its loss: f = r A + L of the sample alone.

    Args:
      objective: one whose loss reads ratio, advantage and progress alone: `clip`, `spo`, `dpo`, `lpo`.
      params: its coefficients or weights.
      log_ratio: log r.
      advantage: A.
      progress: share of training that has passed.

    Returns:
      f; for r not near 1 exact to the rounding of r A.

    Example:
      >>> from jaxrl.objectives import clip
      >>> f = drift_of(clip(), clip().init(jax.random.key(0)), jnp.log(jnp.array([1.0, 1.5])), jnp.array([1.0, 1.0]))
      >>> [round(x, 4) for x in f.tolist()]
      [0.0, 0.3]
    """

    def one(log_ratio: Array, advantage: Array) -> Array:
        zero = jnp.zeros(1)
        inputs = PolicyInputs(
            log_prob=log_ratio[None],
            behavior_log_prob=zero,
            proximal_log_prob=zero,
            policy=None,
            proximal_policy=None,
            advantage=advantage[None],
            entropy=zero,
            progress=jnp.asarray(progress, jnp.float32),
        )
        return jnp.exp(log_ratio) * advantage + objective.loss(params, inputs)[0]

    return jax.vmap(one)(log_ratio, advantage)
