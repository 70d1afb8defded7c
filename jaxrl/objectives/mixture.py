"""The objective of mixture policies (Ren et al. 2021, arXiv:2104.09122, PMOE).

The paper trains the router of a Gaussian mixture beside the policy's own loss: its weights move, by a squared error,
toward the indicator of the component whose action is worth most. With PPO, in an author's own code for it (Z. Ding,
quantumiracle/Popular-RL-Algorithms, pmoe_ppo.py), the policy's loss is the clipped surrogate with the likelihood of
the whole mixture, so that all components learn from an action, each by its share in it. That only the best component
gets the policy's gradient holds for SAC.

That code finds the best component with a network Q(s, a) for one draw of each. Here a head of the actor-critic
estimates each component's mean advantage: in expectation that ranks them the same way, without draws and without a
second network.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.objectives.surrogate import clip
from jaxrl.types import Metrics, Objective, PolicyInputs, memoize

COMPONENT_ADVANTAGE = "component_advantage"


@struct.dataclass
class PMOE:
    """Coefficients of `pmoe`.

    Attributes:
      base: those of the policy's own loss.
      router_coef: weight of the router's loss.
      component_coef: weight of the loss of the components' advantages.
    """

    base: PyTree
    router_coef: Float[Array, ""]
    component_coef: Float[Array, ""]


@memoize
def pmoe(
    num_components: int = 4,
    base: Objective = clip(),  # noqa: B008 (memoized record)
    router_coef: float = 1.0,
    component_coef: float = 1.0,
) -> Objective:
    """A policy's loss, with the router of its mixture drawn to the best component (Ren et al. 2021, arXiv:2104.09122).

        L = L_base + c_r E[ mean_k (w_k - 1[k = argmax_j A_j(s)])² ] + c_a E[ Σ_k p(k|s,a) (A_k(s) - A)² ]

    w are the weights of the mixture, p(k|s,a) the share of component k in the likelihood of the action, without
    gradient, and A_k(s) the head `component_advantage` of the network.

    Args:
      num_components: of the mixture.
      base: the policy's own loss.
      router_coef: the default of c_r.
      component_coef: the default of c_a.

    Returns:
      The objective; its params are a `PMOE`. It reads `action` and `heads` of its inputs and needs
      `actor_critic(..., policy="mixture", num_components=K, heads=objective.heads)`. Metrics `loss/router`,
      `loss/component` and `policy/router_entropy`, in nats.

    Raises:
      ValueError: fewer than two components, or a negative coefficient.

    Example:
      >>> pmoe(3).heads
      (('component_advantage', 3),)
    """
    if num_components < 2:
        raise ValueError(f"pmoe: num_components must be at least 2; got num_components = {num_components}.")
    if router_coef < 0 or component_coef < 0:
        raise ValueError(
            "pmoe: router_coef and component_coef must not be negative; "
            f"got router_coef = {router_coef}, component_coef = {component_coef}."
        )

    def init(key: jax.Array) -> PMOE:
        return PMOE(base.init(key), jnp.float32(router_coef), jnp.float32(component_coef))

    def loss(params: PMOE, inputs: PolicyInputs) -> tuple[Float[Array, ""], Metrics]:
        base_loss, metrics = base.loss(params.base, inputs)
        router = inputs.policy.router()
        advantages = inputs.heads[COMPONENT_ADVANTAGE]
        share = jax.lax.stop_gradient(jax.nn.softmax(inputs.policy.joint_log_prob(inputs.action)))
        error = jnp.square(advantages - inputs.advantage[..., None])
        component_loss = jnp.mean(jnp.sum(share * error, axis=-1))
        best = jax.nn.one_hot(jnp.argmax(advantages, axis=-1), num_components)
        router_loss = jnp.mean(jnp.square(router.probs() - best))
        metrics = {
            **metrics,
            "loss/router": router_loss,
            "loss/component": component_loss,
            "policy/router_entropy": jnp.mean(router.entropy()),
        }
        return base_loss + params.router_coef * router_loss + params.component_coef * component_loss, metrics

    heads = (*base.heads, (COMPONENT_ADVANTAGE, num_components))
    return Objective(init, loss, heads, name="pmoe", variables=base.variables, weighted=base.weighted)
