"""Rules over sequences: what an agent's policy and predictions should move to, seen from a whole rollout.

A rule reads a rollout backward in time and gives, for each step, a number π̂ and a distribution ŷ over m bins. The agent
has a policy π and a prediction y(s), a distribution over m bins whose meaning is the rule's own affair, and minimizes

    L(θ) = -E[ π̂ log π(a|s) ] + α E[ KL( y(s) ‖ ŷ ) ]                (Oh et al. 2020, arXiv:2007.08794)

so that **π̂ > 0 makes the action more likely**, as an advantage would. No gradient of θ goes through π̂ and ŷ. A learned
rule's weights are data, the leaf `objective` of the agent's hyperparameters (`jaxrl.algorithms.lpg`).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl.networks.initializers import initialize, orthogonal
from jaxrl.networks.recurrent import CORES
from jaxrl.ops import bins, returns, statistics
from jaxrl.types import Key, memoize


@struct.dataclass
class RuleInputs:
    """What a rule sees of a rollout of T steps in B environments.

    Attributes:
      reward: raw.
      terminated: the successor is terminal.
      ended: the episode is over, terminated or truncated: the next row belongs to another one.
      probability: π(a|s) of the action taken.
      prediction: y(s).
      next_prediction: y of the true successor, also where the episode ended.
      gamma: discount, shape ().
      progress: n/N, share of the agent's life that has passed, shape ().
      log_horizon: log N of its length in updates, 0 if that is infinite, shape ().
    """

    reward: Float[Array, "T B"]
    terminated: Bool[Array, "T B"]
    ended: Bool[Array, "T B"]
    probability: Float[Array, "T B"]
    prediction: Float[Array, "T B m"]
    next_prediction: Float[Array, "T B m"]
    gamma: Float[Array, ""]
    progress: Float[Array, ""]
    log_horizon: Float[Array, ""]


@struct.dataclass
class Targets:
    """What a rule gives.

    Attributes:
      policy: π̂, how much the log-probability of the action should rise.
      prediction: log ŷ, normalized.
    """

    policy: Float[Array, "T B"]
    prediction: Float[Array, "T B m"]


class Rule(NamedTuple):
    """A rule, written or learned.

    Attributes:
      init: `(key) -> params`, its coefficients or weights.
      targets: `(params, RuleInputs) -> Targets`.
      num_bins: m, of the agent's prediction.
      name: for messages.
    """

    init: Callable[[Key], PyTree]
    targets: Callable[[PyTree, RuleInputs], Targets]
    num_bins: int
    name: str = "rule"


class LPGNetwork(nn.Module):
    """The network of `lpg`.

    Attributes:
      hidden: units of the recurrent core.
      num_bins: m.
      embedding: units of the layer through which the agent's predictions are seen.
      core: lstm or gru.
      progress: whether it sees how much of the agent's life has passed, and how long it is.
    """

    hidden: int
    num_bins: int
    embedding: int
    core: str
    progress: bool

    @nn.compact
    def __call__(self, inputs: RuleInputs) -> Targets:
        """Targets of a rollout."""
        first = nn.Dense(self.embedding, kernel_init=orthogonal(2**0.5), name="embedding")
        second = nn.Dense(1, kernel_init=orthogonal(), name="embedded")
        embed = lambda y: second(jax.nn.relu(first(y)))[..., 0]
        features = [
            inputs.reward,
            inputs.terminated.astype(jnp.float32),
            inputs.gamma,
            inputs.probability,
            embed(inputs.prediction),
            jnp.where(inputs.terminated, 0.0, embed(inputs.next_prediction)),
        ]
        if self.progress:
            features += [inputs.progress, inputs.log_horizon]
        x = jnp.stack([jnp.broadcast_to(feature, inputs.reward.shape) for feature in features], axis=-1)
        core = CORES[self.core](self.hidden, name="core")
        # Read from the last step to the first; what comes after the end of an episode is forgotten there.
        _, h = core(core.initial_memory((x.shape[1],)), x[::-1], inputs.ended[::-1])
        h = jax.nn.relu(h[::-1])
        policy = nn.Dense(1, kernel_init=orthogonal(), name="policy")(h)[..., 0]
        prediction = nn.Dense(self.num_bins, kernel_init=orthogonal(), name="prediction")(h)
        return Targets(policy, jax.nn.log_softmax(prediction))


@memoize
def lpg(
    hidden: int = 256,
    num_bins: int = 30,
    embedding: int = 16,
    core: Literal["lstm", "gru"] = "lstm",
    progress: bool = False,
) -> Rule:
    """Learned policy gradient: a recurrent network, backward over the rollout (Oh et al. 2020, arXiv:2007.08794).

        x_t = [ r_t, d_t, γ, π(a_t|s_t), φ(y(s_t)), (1 - d_t) φ(y(s_{t+1})) ]
        h_t = core(x_t, h_{t+1} (1 - ended_t)),   π̂_t = w · ReLU(h_t) + b,   ŷ_t = softmax(W ReLU(h_t) + c)

    φ is one small network for both: Dense, ReLU, Dense to a number. d says that the successor is terminal; where a time
    limit cut the episode the successor's prediction is still seen. Only the probability of the action taken goes in, so
    a rule fits any number of actions and any observations.

    With `progress` (TA-LPG, Jackson et al. 2024) it also sees n/N, the share of the agent's life that has passed, and
    log N, N being its length in updates; the agent then needs a finite `horizon`. (The code of that paper passes n and
    N themselves.)

    The weights are meant for an outer loop such as `jaxrl.evolve`; a rule that was just drawn teaches nothing.

    Args:
      hidden: units of the core, 256 in the paper.
      num_bins: m, 30 in the paper.
      embedding: units of φ.
      core: lstm as in the paper, or gru.
      progress: whether the rule may change over the agent's life.

    Returns:
      The rule.

    Raises:
      ValueError: a size is not positive (bins: at least 2), or the core is unknown.

    Example:
      >>> weights = lpg(hidden=32, num_bins=8, core="gru").init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(weights))
      4234
    """
    if hidden < 1 or embedding < 1 or num_bins < 2:
        raise ValueError(
            "lpg: hidden and embedding must be at least 1, num_bins at least 2; "
            f"got hidden = {hidden}, embedding = {embedding}, num_bins = {num_bins}."
        )
    if core not in ("lstm", "gru"):
        raise ValueError(f"lpg: core must be 'lstm' or 'gru'; got core = {core!r}.")
    network = LPGNetwork(hidden, num_bins, embedding, core, progress)

    def init(key: Key) -> PyTree:
        numbers, flags = jnp.zeros((1, 1)), jnp.zeros((1, 1), bool)
        even, zero = jnp.zeros((1, 1, num_bins)), jnp.zeros(())
        return initialize(network, key, RuleInputs(numbers, flags, flags, numbers, even, even, zero, zero, zero))

    def targets(params: PyTree, inputs: RuleInputs) -> Targets:
        return network.apply(params, inputs)  # type: ignore[return-value]

    # Compiled, since a network is drawn by many small operations.
    return Rule(jax.jit(init), targets, num_bins, "ta_lpg" if progress else "lpg")


@struct.dataclass
class A2C:
    """Coefficients of `a2c`.

    Attributes:
      low: the least return that a prediction can stand for.
      high: the greatest.
      trace_lambda: λ of advantages and returns.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    trace_lambda: Float[Array, ""]


@memoize
def a2c(num_bins: int = 30, low: float = -5.0, high: float = 5.0, standardize: bool = True) -> Rule:
    """Advantage actor-critic as a rule: what a learned one is compared with, and may begin at.

        V = Σ_i y_i z_i,   π̂ = GAE(λ), standardized over the rollout,   G = advantage + V
        ŷ_i ∝ exp( -(z_i - G)² / (2 (z_2 - z_1)²) )

    z are equally spaced from `low` to `high`. Since log ŷ is quadratic in G, the y that is closest to many targets in
    the mean of KL(y ‖ ŷ) is that of their mean return, so V is unbiased but for the ends of the range.

    Args:
      num_bins: m.
      low: default of the leaf.
      high: default of the leaf.
      standardize: whether π̂ has mean 0 and deviation 1 over a rollout.

    Returns:
      The rule; its params are an `A2C`.

    Raises:
      ValueError: there are fewer than 2 bins, or the range is empty.

    Example:
      >>> a2c(8).init(jax.random.key(0)).trace_lambda.item()
      0.949999988079071
    """
    if num_bins < 2 or not low < high:
        raise ValueError(
            "a2c: num_bins must be at least 2 and low less than high; "
            f"got num_bins = {num_bins}, low = {low}, high = {high}."
        )

    def init(key: Key) -> A2C:
        del key
        return A2C(jnp.float32(low), jnp.float32(high), jnp.float32(0.95))

    def targets(params: A2C, inputs: RuleInputs) -> Targets:
        centers = bins.bin_centers(params.low, params.high, num_bins)
        value, next_value = inputs.prediction @ centers, inputs.next_prediction @ centers
        truncated = inputs.ended & ~inputs.terminated
        advantage = returns.gae(
            inputs.reward, value, next_value, inputs.terminated, truncated, inputs.gamma, params.trace_lambda
        )
        distance = ((advantage + value)[..., None] - centers[None, None]) / (centers[1] - centers[0])
        policy = statistics.standardize(advantage) if standardize else advantage
        return Targets(policy, jax.nn.log_softmax(-0.5 * jnp.square(distance)))

    return Rule(init, targets, num_bins, "a2c")


def agent_losses(
    targets: Targets, log_prob: Float[Array, "T B"], log_prediction: Float[Array, "T B m"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two parts of an agent's loss: -E[ π̂ log π(a|s) ] and E[ KL( y ‖ ŷ ) ].

    Args:
      targets: of the rule; constants to the agent.
      log_prob: log π(a|s) of the actions taken.
      log_prediction: log y(s), normalized.

    Example:
      >>> even = jnp.log(jnp.full((1, 1, 2), 0.5))
      >>> policy, prediction = agent_losses(Targets(jnp.full((1, 1), 2.0), even), jnp.full((1, 1), -0.5), even)
      >>> float(policy), float(prediction)
      (1.0, 0.0)
    """
    divergence = jnp.sum(jnp.exp(log_prediction) * (log_prediction - targets.prediction), axis=-1)
    return -jnp.mean(targets.policy * log_prob), jnp.mean(divergence)
