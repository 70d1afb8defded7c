"""Disco103: the update rule that Oh et al. (2025, Nature, doi:10.1038/s41586-025-09761-x) found on 103 environments.

An agent has a policy π and predictions of its state, y(s), and of each action, z(s, a), whose meaning is the rule's
affair; and by hand an action value q and a prediction p(s, a) of the policy at the next state. The rule is a network
that reads a rollout backward and gives distributions for π, y and z to move to:

    L = KL(π̂ ‖ π) + KL(ŷ ‖ y) + KL(ẑ ‖ z_a) + KL(sg π(s') ‖ p_a) (1 - terminated) + 0.2 CE(q_a, Retrace)

It also has a memory of its own over the agent's life, one step of a recurrent network for each update. Whatever it
reads of actions is averaged over them or is the action taken, so it fits any number of discrete actions.

`rule` is the network, `jaxrl.objectives.disco_file.weights` reads the published one, `estimate` computes what the
rule reads of values, and `losses` is L. The agent is `jaxrl.algorithms.disco`. Written after the authors' published
code (Apache-2.0, google-deepmind/disco_rl), with which two updates are compared in the tests; two things differ.
Successors are the true ones, where they read the next row of the rollout, of which some are ends of episodes with an
action that is not taken; and where a time limit cuts an episode the trace is cut and the value of the successor goes
on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl.networks.initializers import initialize, orthogonal
from jaxrl.networks.recurrent import LSTM
from jaxrl.ops import bins, returns
from jaxrl.types import Key, memoize
from jaxrl.values.scalars import signed_hyperbolic, signed_parabolic

VALUE_LIMIT = 300.0
"""Bins of action values are equally spaced from -300 to 300, after the signed hyperbolic transform."""


@struct.dataclass
class Predictions:
    """What an agent's network gives for T x B observations, all as logits; A actions.

    Attributes:
      policy: of π(s).
      y: of y(s).
      z: of z(s, a).
      next_policy: of p(s, a).
      q: of the action value, a distribution over bins.
    """

    policy: Float[Array, "T B A"]
    y: Float[Array, "T B Y"]
    z: Float[Array, "T B A Y"]
    next_policy: Float[Array, "T B A A"]
    q: Float[Array, "T B A K"]


@struct.dataclass
class Sequence:
    """A rollout, seen by the agent as it is and by a slowly following copy of it.

    Attributes:
      action: taken.
      reward: raw.
      terminated: the successor is terminal.
      truncated: the episode was cut there.
      behavior: logits of the policy that acted.
      here: predictions of s_t.
      there: those of the true successor.
      target_here: the copy's, of s_t.
      target_there: the copy's, of the true successor.
    """

    action: Int[Array, "T B"]
    reward: Float[Array, "T B"]
    terminated: Bool[Array, "T B"]
    truncated: Bool[Array, "T B"]
    behavior: Float[Array, "T B A"]
    here: Predictions
    there: Predictions
    target_here: Predictions
    target_there: Predictions


@struct.dataclass
class Estimates:
    """Values of a rollout.

    Attributes:
      value: Σ_a π(a|s_t) q(s_t, a).
      next_value: the same of the true successor.
      target: G_t, Retrace(λ) of the copy's action values.
      advantage: G_t less the copy's state value.
      normalized_advantage: by running moments.
      q: the copy's action values.
      q_advantage: these less the copy's state value.
      normalized_q_advantage: by the same moments.
    """

    value: Float[Array, "T B"]
    next_value: Float[Array, "T B"]
    target: Float[Array, "T B"]
    advantage: Float[Array, "T B"]
    normalized_advantage: Float[Array, "T B"]
    q: Float[Array, "T B A"]
    q_advantage: Float[Array, "T B A"]
    normalized_q_advantage: Float[Array, "T B A"]


@struct.dataclass
class Moments:
    """Running moments of advantages.

    Attributes:
      first: decayed sum of means.
      second: decayed sum of means of squares.
      weight: product of the decays so far.
    """

    first: Float[Array, ""]
    second: Float[Array, ""]
    weight: Float[Array, ""]


@struct.dataclass
class Targets:
    """What the rule gives, as logits.

    Attributes:
      policy: of π̂.
      y: of ŷ.
      z: of ẑ, for the action taken.
    """

    policy: Float[Array, "T B A"]
    y: Float[Array, "T B Y"]
    z: Float[Array, "T B Y"]


class Rule(NamedTuple):
    """The rule as functions.

    Attributes:
      init: `(key) -> weights`.
      targets: `(weights, Sequence, Estimates, memory) -> (Targets, memory)`.
      initial_memory: `() -> memory` at the beginning of an agent's life.
      prediction_size: Y.
      name: for messages.
    """

    init: Callable[[Key], PyTree]
    targets: Callable[[PyTree, Sequence, Estimates, PyTree], tuple[Targets, PyTree]]
    initial_memory: Callable[[], PyTree]
    prediction_size: int
    name: str = "disco"


class _Embed(nn.Module):
    """Dense, ReLU, Dense to a number, of a distribution's probabilities."""

    hidden: int

    @nn.compact
    def __call__(self, logits: Array) -> Array:
        h = jax.nn.relu(nn.Dense(self.hidden, name="first")(jax.nn.softmax(logits)))
        return nn.Dense(1, name="second")(h)


class _Mix(nn.Module):
    """Layers over actions, each of which also sees the mean over all actions."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "T B A C"]) -> Array:
        for i, width in enumerate(self.channels):
            mean = jnp.broadcast_to(jnp.mean(x, axis=2, keepdims=True), x.shape)
            x = jax.nn.relu(nn.Dense(width, name=f"layer_{i}")(jnp.concatenate([x, mean], axis=-1)))
        return x


class _Read(nn.Module):
    """The inputs of a network, [T, B, 27] with the published sizes, and features of each action."""

    embedding: int
    channels: tuple[int, ...]

    def setup(self) -> None:
        self.y_net, self.z_net, self.mix = _Embed(self.embedding), _Embed(self.embedding), _Mix(self.channels)

    def __call__(self, sequence: Sequence, estimates: Estimates) -> tuple[Array, Array]:
        stop, action = jax.lax.stop_gradient, sequence.action
        here, there = sequence.here, sequence.there
        policy, next_policy = stop(jax.nn.softmax(here.policy)), stop(jax.nn.softmax(there.policy))
        behavior = stop(jax.nn.softmax(sequence.behavior))
        target_policy = stop(jax.nn.softmax(sequence.target_here.policy))
        taken = lambda x: _taken(x, action)
        inputs = [
            taken(policy),
            taken(behavior),
            _sign_log(sequence.reward),
            1.0 - sequence.terminated,
            stop(_sign_log(estimates.value)),
            stop(_sign_log(estimates.next_value)),
            stop(_sign_log(estimates.advantage)),
            stop(estimates.normalized_advantage),
            taken(target_policy),
        ]
        for now, then in ((here, there), (sequence.target_here, sequence.target_there)):
            inputs += [self.y_net(now.y)[..., 0], self.y_net(then.y)[..., 0]]
        scores = []
        for now, then in ((here, there), (sequence.target_here, sequence.target_there)):
            z, next_z = self.z_net(now.z)[..., 0], self.z_net(then.z)[..., 0]
            scores.append(z)
            inputs += [
                taken(z),
                jnp.sum(policy * z, axis=-1),
                jnp.sum(next_policy * next_z, axis=-1),
                jnp.max(z, axis=-1),
                jnp.max(next_z, axis=-1),
            ]
        per_action = [
            policy,
            behavior,
            target_policy,
            *scores,
            stop(_sign_log(estimates.q)),
            stop(_sign_log(estimates.q_advantage)),
            stop(estimates.normalized_q_advantage),
            jax.nn.one_hot(action, policy.shape[-1], dtype=jnp.float32),
        ]
        actions = self.mix(jnp.stack(per_action, axis=-1))
        x = jnp.stack(inputs, axis=-1)
        return jnp.concatenate([x, jnp.mean(actions, axis=2), _taken(actions, action)], axis=-1), actions


class DiscoNetwork(nn.Module):
    """The network of `rule`.

    Attributes:
      prediction_size: Y.
      hidden: units of the core that reads a rollout.
      memory: units of the core over the agent's life.
      embedding: units of small networks.
      channels: of the layers over actions.
      target_channels: of those before π̂.
    """

    prediction_size: int
    hidden: int
    memory: int
    embedding: int
    channels: tuple[int, ...]
    target_channels: tuple[int, ...]

    @nn.compact
    def __call__(self, sequence: Sequence, estimates: Estimates, memory: Any) -> tuple[Targets, Any]:
        """Targets of a rollout, and the memory after it."""
        x, actions = _Read(self.embedding, self.channels, name="read")(sequence, estimates)
        core, ended = LSTM(self.hidden, name="core"), sequence.terminated | sequence.truncated
        _, x = core(core.initial_memory((x.shape[1],)), x[::-1], ended[::-1])
        gate = nn.Dense(self.hidden, kernel_init=orthogonal(), name="gate")(memory[1])
        x = x[::-1] * jnp.broadcast_to(gate, x.shape)
        head = lambda size, name: nn.Dense(size, kernel_init=orthogonal(), name=name)
        summary, y, z = head(1, "summary")(x), head(self.prediction_size, "y")(x), head(self.prediction_size, "z")(x)
        each = jnp.broadcast_to(x[:, :, None], (*actions.shape[:3], x.shape[-1]))
        mixed = _Mix(self.target_channels, name="mix")(jnp.concatenate([each, actions], axis=-1))
        policy = head(1, "policy")(mixed)[..., 0]

        # --- One step of the memory ------------------------------------------------------------------------------
        read = _Read(self.embedding, self.channels, name="memory_read")
        seen = [read(sequence, estimates)[0], summary, read.y_net(y)]
        mean = jnp.mean(nn.Dense(self.embedding, name="memory_embedding")(jnp.concatenate(seen, axis=-1)), axis=(0, 1))
        life = LSTM(self.memory, name="life")
        after, _ = life(jax.tree.map(lambda m: m[None], memory), mean[None, None], jnp.zeros((1, 1), bool))
        return Targets(policy, y, z), jax.tree.map(lambda m: m[0], after)


@memoize
def rule(
    prediction_size: int = 600,
    hidden: int = 256,
    memory: int = 128,
    embedding: int = 16,
    channels: tuple[int, ...] = (16, 2),
    target_channels: tuple[int, ...] = (16,),
) -> Rule:
    """The network of the rule; the defaults are the published sizes, 754,778 weights.

    Weights that were just drawn teach nothing: read the published ones with `weights`, or give them to an outer loop.

    Args:
      prediction_size: Y, of the agent's predictions.
      hidden: units of the core that reads a rollout backward.
      memory: units of the core over the agent's life.
      embedding: units of the small networks through which predictions are seen.
      channels: widths of the layers over actions.
      target_channels: widths of those before π̂.

    Returns:
      The rule.

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> shapes = jax.eval_shape(rule().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      754778
    """
    sizes = {"prediction_size": prediction_size, "hidden": hidden, "memory": memory, "embedding": embedding}
    if min(*sizes.values(), *channels, *target_channels) < 1:
        raise ValueError(
            f"disco: sizes must be at least 1; got {sizes}, channels = {channels}, target_channels = {target_channels}."
        )
    network = DiscoNetwork(prediction_size, hidden, memory, embedding, channels, target_channels)

    def initial_memory() -> PyTree:
        return LSTM(memory).initial_memory()

    def init(key: Key) -> PyTree:
        shape, size = (1, 1), prediction_size
        numbers, flags, pair = jnp.zeros(shape), jnp.zeros(shape, bool), jnp.zeros((1, 1, 2))
        of = Predictions(
            pair, jnp.zeros((1, 1, size)), jnp.zeros((1, 1, 2, size)), jnp.zeros((1, 1, 2, 2)), jnp.zeros((1, 1, 2, 3))
        )
        sequence = Sequence(jnp.zeros(shape, jnp.int32), numbers, flags, flags, pair, of, of, of, of)
        estimates = Estimates(numbers, numbers, numbers, numbers, numbers, pair, pair, pair)
        return initialize(network, key, sequence, estimates, initial_memory())

    def targets(params: PyTree, sequence: Sequence, estimates: Estimates, memory: PyTree) -> tuple[Targets, PyTree]:
        return network.apply(params, sequence, estimates, memory)  # type: ignore[return-value]

    return Rule(jax.jit(init), targets, initial_memory, prediction_size, "disco")


def initial_moments() -> Moments:
    """Of no advantages yet."""
    return Moments(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))


def action_values(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """The value that a distribution over bins stands for.

    >>> round(float(action_values(jnp.array([-99.0, 0.0, 0.0]))), -2)  # h⁻¹(150), h(x) = √(x + 1) - 1 + 0.001 x
    17800.0
    """
    centers = bins.bin_centers(-VALUE_LIMIT, VALUE_LIMIT, logits.shape[-1])
    return signed_parabolic(bins.expected_value(logits, centers))


def estimate(
    sequence: Sequence, moments: Moments, gamma: Float[Array, ""], trace_lambda: Float[Array, ""], decay: float = 0.99
) -> tuple[Estimates, Moments]:
    """What the rule reads of values, and what action values move to.

        V = Σ_a π(a|s) q(s, a),   G = Retrace(λ),   advantage = G - V̄,   q̄ - V̄;   of the copy: q̄, V̄, G

    Both advantages are standardized by running moments of the first, debiased, which this rollout is part of.

    Args:
      sequence: the rollout.
      moments: before it.
      gamma: γ.
      trace_lambda: λ.
      decay: of the moments.

    Returns:
      The estimates, and the moments after the rollout.
    """
    policy, next_policy = jax.nn.softmax(sequence.here.policy), jax.nn.softmax(sequence.there.policy)
    q, next_q = action_values(sequence.here.q), action_values(sequence.there.q)
    target_q, target_next_q = action_values(sequence.target_here.q), action_values(sequence.target_there.q)
    log_prob = lambda logits: _taken(jax.nn.log_softmax(logits), sequence.action)
    target = jax.lax.stop_gradient(
        returns.retrace(
            sequence.reward,
            _taken(target_q, sequence.action),
            jnp.sum(next_policy * target_next_q, axis=-1),
            sequence.terminated,
            sequence.truncated,
            log_prob(sequence.here.policy) - log_prob(sequence.behavior),
            gamma,
            trace_lambda,
        )
    )
    target_value = jnp.sum(policy * target_q, axis=-1)
    advantage, q_advantage = target - target_value, target_q - target_value[..., None]
    moments = Moments(
        decay * moments.first + (1.0 - decay) * jnp.mean(advantage),
        decay * moments.second + (1.0 - decay) * jnp.mean(jnp.square(advantage)),
        moments.weight * decay,
    )
    mean = moments.first / (1.0 - moments.weight)
    variance = jnp.maximum(0.0, moments.second / (1.0 - moments.weight) - jnp.square(mean))
    normalized = lambda x: (x - mean) / (jnp.sqrt(variance + 1e-12) + 1e-6)
    return Estimates(
        value=jnp.sum(policy * q, axis=-1),
        next_value=jnp.sum(next_policy * next_q, axis=-1),
        target=target,
        advantage=advantage,
        normalized_advantage=normalized(advantage),
        q=target_q,
        q_advantage=q_advantage,
        normalized_q_advantage=normalized(q_advantage),
    ), moments


def losses(
    targets: Targets,
    here: Predictions,
    there: Predictions,
    action: Int[Array, "T B"],
    terminated: Bool[Array, "T B"],
    value_target: Float[Array, "T B"],
) -> dict[str, Float[Array, "T B"]]:
    """The parts of an agent's loss, for each step.

    Args:
      targets: of the rule; the caller stops their gradient unless it is to reach the rule's weights.
      here: predictions of s_t, which learn.
      there: those of the true successor, of which the policy is a target.
      action: taken.
      terminated: where there is no next policy.
      value_target: G.

    Returns:
      `policy`, `y`, `z`, `next_policy` and `value`; their sum, the last one by 0.2, is L.
    """
    centers = bins.bin_centers(-VALUE_LIMIT, VALUE_LIMIT, here.q.shape[-1])
    two_hot = bins.two_hot(signed_hyperbolic(jax.lax.stop_gradient(value_target)), centers)
    next_policy = _divergence(jax.lax.stop_gradient(there.policy), _taken(here.next_policy, action))
    return {
        "policy": _divergence(targets.policy, here.policy),
        "y": _divergence(targets.y, here.y),
        "z": _divergence(targets.z, _taken(here.z, action)),
        "next_policy": jnp.where(terminated, 0.0, next_policy),
        "value": bins.cross_entropy(_taken(here.q, action), two_hot),
    }


def _divergence(target: Array, logits: Array) -> Array:
    """KL(target ‖ other), both by their logits."""
    log_target = jax.nn.log_softmax(target)
    return jnp.sum(jnp.exp(log_target) * (log_target - jax.nn.log_softmax(logits)), axis=-1)


def _taken(x: Float[Array, "T B A *rest"], action: Int[Array, "T B"]) -> Float[Array, "T B *rest"]:
    index = action.reshape(*action.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=2)[:, :, 0]


def _sign_log(x: Array) -> Array:
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))
