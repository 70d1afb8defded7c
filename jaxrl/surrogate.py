"""What PPO and its relatives minimize: a policy objective, a value loss and an entropy bonus on a minibatch."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.networks.actor_critic import Output
from jaxrl.ops import losses, statistics
from jaxrl.types import Action, Metrics, Objective, Observation, PolicyInputs


@struct.dataclass
class Sample:
    """A transition as an update sees it; leaves [N, ...], or [T, b, ...] for a recurrent network.

    Attributes:
      obs: as the network sees it.
      action: the action taken.
      log_prob: its log-probability under the proximal policy, which the update should stay close to.
      policy: the proximal policy.
      advantage: as estimated.
      target: of the value function.
      value: V when the rollout was estimated; None where the value loss is not clipped.
      start: whether `obs` is the first of an episode; None without memory.
      behavior_log_prob: the action's log-probability under the policy that acted; None where that is the proximal one.
    """

    obs: Observation
    action: Action
    log_prob: Array
    policy: Any
    advantage: Array
    target: Array
    value: Array | None = None
    start: Array | None = None
    behavior_log_prob: Array | None = None


def surrogate_loss(
    output: Output,
    variables: PyTree,
    sample: Sample,
    objective: Objective,
    hparams: Any,
    progress: Float[Array, ""],
    *,
    standardize: bool,
    clip_value: bool,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of one minibatch (Schulman et al. 2017, arXiv:1707.06347, eq. 9, with any objective in L^CLIP's place).

        L = L_objective + value_coef L_value - entropy_coef mean H(π)

    Args:
      output: of the network that learns, on the sample's observations.
      variables: the objective's own parameters, or ().
      sample: the minibatch.
      objective: the policy's loss.
      hparams: of the algorithm; `objective`, `value_coef`, `entropy_coef`, and `value_clip` if `clip_value`, are read.
      progress: share of the training horizon that has passed.
      standardize: whether advantages are standardized over the minibatch.
      clip_value: whether the value may move only by `value_clip` from `sample.value`.

    Returns:
      The loss, and `loss/policy`, `loss/value`, `policy/entropy`, `policy/kl` beside the objective's metrics.
    """
    log_prob, entropy = output.policy.log_prob(sample.action), output.policy.entropy()
    inputs = PolicyInputs(
        log_prob=log_prob,
        behavior_log_prob=sample.log_prob if sample.behavior_log_prob is None else sample.behavior_log_prob,
        proximal_log_prob=sample.log_prob,
        policy=output.policy,
        proximal_policy=sample.policy,
        advantage=statistics.standardize(sample.advantage) if standardize else sample.advantage,
        entropy=entropy,
        progress=progress,
        variables=variables,
        action=sample.action,
        heads=output.heads,
    )
    policy_loss, metrics = objective.loss(hparams.objective, inputs)
    if clip_value and sample.value is not None:
        value_loss = losses.clipped_value_loss(output.value, sample.target, sample.value, hparams.value_clip)
    else:
        value_loss = losses.value_loss(output.value, sample.target)
    mean_entropy = jnp.mean(entropy)
    metrics |= {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "policy/entropy": mean_entropy,
        "policy/kl": losses.approximate_kl(log_prob, sample.log_prob),
    }
    return policy_loss + hparams.value_coef * value_loss - hparams.entropy_coef * mean_entropy, metrics
