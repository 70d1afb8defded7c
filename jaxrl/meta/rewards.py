"""Rewards that are learned so that a policy which maximizes them is good at something else.

The parts of `jaxrl.meta.reward_learning`:

- a `Reward` r_φ and its discount: `blend` of an environment's reward with an auxiliary one (BARFI), or `learned`;
- an `Aim`, the outer loss of the policy: `primary_return` (BARFI) or `preferences` between its trajectories (PARL);
- `differentiable_return`, whose derivatives of every order estimate those of an expected return; both levels need them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl import rollout
from jaxrl.networks.readouts import readout
from jaxrl.types import Env, Key, memoize

Auxiliary = Callable[[rollout.Transition], Float[Array, "T B"]]
"""A heuristic reward of transitions, leaves [T, B, ...]."""


@struct.dataclass
class Episodes:
    """B episodes, of at most T steps, from their beginning.

    Attributes:
      batch: transitions, leaves [T, B, ...]; `reward` is the environment's, the primary one.
      alive: whether the step is one of the episode, and not after its end.
    """

    batch: rollout.Transition
    alive: Bool[Array, "T B"]


class Reward(NamedTuple):
    """A reward function with weights φ.

    Attributes:
      init: `(key) -> φ`.
      of: `(φ, batch) -> r_φ [T, B]` of transitions.
      discount: `(φ, γ) -> γ_φ`, γ being the environment's own.
      name: for messages.
    """

    init: Callable[[Key], PyTree]
    of: Callable[[PyTree, rollout.Transition], Float[Array, "T B"]]
    discount: Callable[[PyTree, Float[Array, ""]], Float[Array, ""]]
    name: str = "reward"


class Aim(NamedTuple):
    """What the policy should be good at.

    Attributes:
      loss: `(φ, log π(a|s) [T, B], episodes, reward, hparams) -> scalar`. Its value is the outer loss; its derivative
        through the log-probabilities is that of the distribution of episodes, its derivative by φ the direct one.
      name: for messages.
    """

    loss: Callable[[PyTree, Float[Array, "T B"], Episodes, Reward, Any], Float[Array, ""]]
    name: str = "aim"


def leave_one_out(x: Float[Array, "... B"]) -> Float[Array, "... B"]:
    """For each of B ≥ 2 the mean of the others, a baseline that does not depend on its own draws.

    >>> leave_one_out(jnp.array([1.0, 2.0, 6.0])).tolist()
    [4.0, 3.5, 1.5]
    """
    return (jnp.sum(x, axis=-1, keepdims=True) - x) / (x.shape[-1] - 1)


def discounted(reward: Float[Array, "T B"], gamma: Float[Array, ""]) -> Float[Array, "T B"]:
    """Σ_{k≥t} γ^{k-t} r_k of finished episodes.

    >>> discounted(jnp.array([[1.0], [2.0]]), jnp.float32(0.5)).ravel().tolist()
    [2.0, 2.0]
    """

    def add(after: Array, r: Array) -> tuple[Array, Array]:
        total = r + gamma * after
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(reward[0]), reward, reverse=True)[1]


def magnifier(log_prob: Float[Array, "T B"]) -> Float[Array, "T B"]:
    """Σ_{k≤t} (log π_k - its value): 0, with the derivatives of the log-probability of the first t actions."""
    return jnp.cumsum(log_prob - jax.lax.stop_gradient(log_prob), axis=0)


def differentiable_return(
    log_prob: Float[Array, "T B"],
    reward: Float[Array, "T B"],
    alive: Bool[Array, "T B"],
    gamma: Float[Array, ""],
    baseline: Float[Array, "T B"] | None = None,
) -> Float[Array, " B"]:
    """Discounted returns whose derivatives of every order are estimates of those of their expectation.

        Σ_t γ^t [ ⊡_t (r_t - b_t) + ⊡_{t-1} b_t ],   ⊡_t = exp(Σ_{k≤t} (log π_k - sg log π_k))

    sg takes a value as a constant, so every ⊡ is 1 and the value is the return. Averaged over episodes of π, its first
    derivative is the policy gradient and its second one an unbiased Hessian, for any b that does not depend on the
    episode's own actions from t on.

    Args:
      log_prob: log π(a|s) of the actions taken, by the parameters to differentiate.
      reward: may depend on parameters too.
      alive: steps that count.
      gamma: γ.
      baseline: b; None: the mean return to go of the other episodes.

    Source: Foerster et al. 2018, arXiv:1802.05098 (DiCE); Mao et al. 2019, arXiv:1905.12957 (baselines).

    Example:
      >>> slope = jax.grad(lambda x: differentiable_return(x * jnp.ones((1, 2)), jnp.array([[3.0, 1.0]]),
      ...     jnp.ones((1, 2), bool), 0.9)[0])(0.0)
      >>> float(slope)  # (3 - 1) times the slope of log π
      2.0
    """
    reward = jnp.where(alive, reward, 0.0)
    upto = magnifier(jnp.where(alive, log_prob, 0.0))
    before = jnp.concatenate([jnp.zeros_like(upto[:1]), upto[:-1]])
    if baseline is None:
        baseline = leave_one_out(discounted(reward, gamma))
    weight = jnp.power(gamma, jnp.arange(reward.shape[0], dtype=reward.dtype))[:, None]
    return jnp.sum(weight * (jnp.exp(upto) * (reward - baseline) + jnp.exp(before) * baseline), axis=0)


@memoize
def blend(
    env: Env,
    auxiliary: Auxiliary,
    *,
    by_state: bool = False,
    tabular: bool = False,
    hidden: tuple[int, ...] = (64, 64),
    discount: float | None = None,
) -> Reward:
    """The behavior alignment reward of Gupta et al. (2023, arXiv:2310.19007).

        r_φ(s, a) = φ_1(s, a) + φ_2(s, a) r_p(s, a) + φ_3(s, a) r_aux(s, a)

    It begins at r_p + r_aux, the naive sum, and the outer loop finds out how far to trust either. (The abstract of the
    paper and a description of its equations were at hand, not its text.)

    Args:
      env: its actions are discrete if `by_state`.
      auxiliary: r_aux, see `Auxiliary`; shaping by a potential Φ is γ Φ(s') - Φ(s), with Φ = 0 at terminal states.
      by_state: whether the φ_i are functions of state and action, 0, 1, 1 and what is learned on top; otherwise they
        are three numbers.
      tabular: whether these functions are tables; otherwise a network.
      hidden: of that network.
      discount: None: the environment's. A number: γ_φ is learned, as the logistic of a number, from here.

    Returns:
      The reward.

    Raises:
      ValueError: `discount` is not between 0 and 1, or a table is asked for and observations do not name a state.

    Example:
      >>> import jaxrl
      >>> reward = blend(jaxrl.make_env("probe/Credit"), lambda batch: 0.0 * batch.reward, discount=0.9)
      >>> phi = reward.init(jax.random.key(0))
      >>> phi["weights"].tolist(), round(float(reward.discount(phi, 0.99)), 4)
      ([0.0, 1.0, 1.0], 0.9)
    """
    if discount is not None and not 0.0 < discount < 1.0:
        raise ValueError(f"blend: discount must be between 0 and 1, or None; got discount = {discount}.")
    size = 3 * getattr(env.action_space, "n", 0)
    if by_state and not size:
        raise ValueError(f"blend: by_state needs discrete actions; {env.name!r} has {env.action_space}.")
    head = readout(env.observation_space, size, tabular, hidden) if by_state else None

    def init(key: Key) -> PyTree:
        phi: dict[str, PyTree] = {"weights": jnp.array([0.0, 1.0, 1.0])}
        if head is not None:
            phi["by_state"] = head.init(key)
        if discount is not None:
            phi["discount"] = jnp.log(jnp.float32(discount)) - jnp.log1p(-jnp.float32(discount))
        return phi

    def of(phi: PyTree, batch: rollout.Transition) -> Array:
        weights = jnp.broadcast_to(phi["weights"], (*batch.reward.shape, 3))
        if head is not None:
            per_action = head.read(phi["by_state"], batch.obs).reshape((*batch.reward.shape, -1, 3))
            weights += jnp.take_along_axis(per_action, batch.action[..., None, None], axis=-2)[..., 0, :]
        return weights[..., 0] + weights[..., 1] * batch.reward + weights[..., 2] * auxiliary(batch)

    def own_discount(phi: PyTree, gamma: Float[Array, ""]) -> Array:
        return gamma if discount is None else jax.nn.sigmoid(phi["discount"])

    return Reward(init, of, own_discount, "blend")


@memoize
def learned(env: Env, tabular: bool = False, hidden: tuple[int, ...] = (64, 64)) -> Reward:
    """A reward of state and discrete action that nothing but the outer loss tells.

    Args:
      env: for its spaces.
      tabular: whether it is a table, zeros at first; otherwise a network.
      hidden: of the network.

    Returns:
      The reward; the environment's own has no part in it.

    Raises:
      ValueError: actions are not discrete, or a table is asked for and observations do not name a state.

    Example:
      >>> import jaxrl
      >>> learned(jaxrl.make_env("chains/Short"), tabular=True).init(jax.random.key(0))["kernel"].shape
      (62, 2)
    """
    size = getattr(env.action_space, "n", 0)
    if not size:
        raise ValueError(f"learned: actions must be discrete; {env.name!r} has {env.action_space}.")
    head = readout(env.observation_space, size, tabular, hidden)

    def of(phi: PyTree, batch: rollout.Transition) -> Array:
        return jnp.take_along_axis(head.read(phi, batch.obs), batch.action[..., None], axis=-1)[..., 0]

    return Reward(head.init, of, lambda phi, gamma: gamma, "learned")


@memoize
def primary_return() -> Aim:
    """The discounted return of the environment's own reward, as in BARFI.

        L = -E[ Σ_t γ^t r_p ] + c γ_φ

    c is `hparams.discount_cost`: a smaller discount is easier to learn with.

    Example:
      >>> primary_return().name
      'primary_return'
    """

    def loss(phi: PyTree, log_prob: Array, episodes: Episodes, reward: Reward, hparams: Any) -> Array:
        returns = differentiable_return(log_prob, episodes.batch.reward, episodes.alive, hparams.gamma)
        return -jnp.mean(returns) + hparams.discount_cost * reward.discount(phi, hparams.gamma)

    return Aim(loss, "primary_return")


@memoize
def preferences(temperature: float = 1.0) -> Aim:
    """Agreement with a teacher who compares pairs of the policy's own trajectories, as in PARL.

        L = E_{τ, τ' ~ π} [ -p log P_φ - (1 - p) log(1 - P_φ) ],   P_φ = σ(R_φ(τ) - R_φ(τ'))

    R_φ is the discounted learned return (Bradley and Terry), p the teacher's probability of preferring τ, here
    σ((R(τ) - R(τ')) / temperature) of the environment's own returns. The pairs come from the policy that the learned
    reward has made, so the derivative of L by φ has a part that goes through the policy: ordinary learning from
    preferences leaves it out (`solver="none"` of `reward_learning`).

    Episode i is compared with episode i + B/2.

    Args:
      temperature: of the teacher; small: never wrong.

    Raises:
      ValueError: the temperature is not positive.

    Source: Chakraborty et al. 2023, arXiv:2308.02585, eq. 3 and 5 and algorithm 1 (A-PARL), of which the abstract and
    descriptions were at hand.

    Example:
      >>> preferences(0.1).name
      'preferences'
    """
    if not temperature > 0.0:
        raise ValueError(f"preferences: temperature must be positive; got temperature = {temperature}.")

    def loss(phi: PyTree, log_prob: Array, episodes: Episodes, reward: Reward, hparams: Any) -> Array:
        batch, alive = episodes.batch, episodes.alive
        learned_return, true_return = (
            discounted(jnp.where(alive, x, 0.0), gamma)[0]
            for x, gamma in (
                (reward.of(phi, batch), reward.discount(phi, hparams.gamma)),
                (batch.reward, hparams.gamma),
            )
        )
        apart = lambda x: jnp.subtract(*jnp.split(x, 2))
        preferred = jax.nn.sigmoid(apart(true_return) / temperature)
        margin = apart(learned_return)
        losses = -preferred * jax.nn.log_sigmoid(margin) - (1.0 - preferred) * jax.nn.log_sigmoid(-margin)
        pair = jnp.exp(sum(jnp.split(magnifier(jnp.where(alive, log_prob, 0.0))[-1], 2)))  # type: ignore[arg-type]
        # One pair has no others to take a baseline from.
        baseline = leave_one_out(losses) if losses.shape[0] > 1 else jnp.zeros_like(losses)
        return jnp.mean(pair * (losses - baseline) + baseline)

    return Aim(loss, "preferences")
