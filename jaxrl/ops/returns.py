"""Targets for values and advantages from rollouts.

All arrays are time-major, [T, *batch], and float32 unless they are flags. One law holds for every function:

- `terminated[t]` says that the successor of step t has value zero: nothing is bootstrapped there;
- `truncated[t]` says that the episode was cut from outside: its value goes on, in `next_value[t]`;
- whatever sums over later steps stops at both, since row t+1 belongs to another episode;
- where both are true the state is terminal;
- after the last row nothing is known but `next_value[T-1]`, which is bootstrapped unless the row terminated.

`next_value[t]` is the value of the true successor observation of step t, which is not the observation of row t+1
where an episode ended. Discounts and trace parameters are scalars, or arrays that broadcast against [T, *batch]
from the right. No function stops gradients; what trains on a target does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


def gae(
    reward: Float[Array, " T *batch"],
    value: Float[Array, " T *batch"],
    next_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    gamma: ArrayLike,
    gae_lambda: ArrayLike,
) -> Float[Array, " T *batch"]:
    """Generalized advantage estimation.

        δ_t = r_t + γ (1 - terminated_t) V(s'_t) - V(s_t)
        A_t = δ_t + γ λ (1 - ended_t) A_{t+1}

    Source: Schulman et al. 2016, arXiv:1506.02438, equations 11 to 16.

    Args:
      reward: r_t.
      value: V(s_t).
      next_value: V(s'_t) of the true successor.
      terminated: the successor is terminal.
      truncated: the episode was cut after step t.
      gamma: discount.
      gae_lambda: 0 gives the one-step error δ, 1 the discounted return less the value.

    Returns:
      A_t; `A + value` is the λ-return on which the value function is trained.
    """
    return _sum_errors(reward, value, next_value, terminated, truncated, gamma, gae_lambda)


def lambda_returns(
    reward: Float[Array, " T *batch"],
    next_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    gamma: ArrayLike,
    trace_lambda: ArrayLike,
) -> Float[Array, " T *batch"]:
    """λ-returns, which need no value of the state that they are a target for.

        G_t = r_t + γ (1 - terminated_t) [(1 - λ) V(s'_t) + λ G_{t+1}],

    with V(s'_t) in place of G_{t+1} where the episode was truncated and at the last row. λ = 1 gives discounted
    returns, λ = 0 one-step targets; with `next_value` the maximum over actions of Q it is Peng's Q(λ).

    Source: Sutton and Barto 2018, Reinforcement Learning, equation 12.18, as a recursion.

    Args:
      reward: r_t.
      next_value: V(s'_t) of the true successor.
      terminated: the successor is terminal.
      truncated: the episode was cut after step t.
      gamma: discount.
      trace_lambda: weight of the longer returns.

    Returns:
      G_t.
    """
    gamma, trace_lambda = _broadcast(gamma, reward), _broadcast(trace_lambda, reward)
    trace = jnp.where(terminated | truncated, 0.0, trace_lambda)
    bootstrap = jnp.where(terminated, 0.0, next_value)
    return _accumulate(reward + gamma * (1.0 - trace) * bootstrap, gamma * trace, next_value[-1])


def n_step_returns(
    reward: Float[Array, " T *batch"],
    next_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    gamma: ArrayLike,
    num_steps: int,
) -> Float[Array, " T *batch"]:
    """Returns over a window of `num_steps` rows, shorter where the episode or the rollout ends within it.

        G_t = Σ_{k<h} γ^k r_{t+k} + γ^h (1 - terminated_{t+h-1}) V(s'_{t+h-1}),

    where h is the smallest of `num_steps`, the steps that the episode still has and the rows that are left.

    Source: Sutton and Barto 2018, Reinforcement Learning, equation 7.1.

    Args:
      reward: r_t.
      next_value: V(s'_t) of the true successor.
      terminated: the successor is terminal.
      truncated: the episode was cut after step t.
      gamma: discount.
      num_steps: rows in a window; static, at least 1.

    Returns:
      G_t.

    Raises:
      ValueError: `num_steps` is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"n_step_returns: num_steps must be at least 1, the one-step target; got {num_steps}.")
    gamma = _broadcast(gamma, reward)
    one_step = reward + gamma * jnp.where(terminated, 0.0, next_value)
    ended = (terminated | truncated).at[-1].set(True)

    def lengthen(_: int, target: Array) -> Array:
        return jnp.where(ended, one_step, reward + gamma * _shift(target, target[-1]))

    return jax.lax.fori_loop(0, min(num_steps, reward.shape[0]) - 1, lengthen, one_step)


def vtrace(
    reward: Float[Array, " T *batch"],
    value: Float[Array, " T *batch"],
    next_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    log_ratio: Float[Array, " T *batch"],
    gamma: ArrayLike,
    trace_lambda: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
) -> tuple[Float[Array, " T *batch"], Float[Array, " T *batch"]]:
    """V-trace targets and the advantages that go with them, for data of another policy.

        ρ_t = min(clip_rho, π/μ),   c_t = λ min(clip_c, π/μ)
        v_t = V(s_t) + ρ_t δ_t + γ (1 - ended_t) c_t (v_{t+1} - V(s_{t+1}))
        A_t = ρ_t (r_t + γ (1 - terminated_t) [λ v_{t+1} + (1 - λ) V(s_{t+1})] - V(s_t)),

    with δ as in `gae`, and in A the value V(s'_t) in place of the bracket where the episode was truncated and at the
    last row. Where both policies are one, A is the advantage of `gae` with the same λ.

    Source: Espeholt et al. 2018, arXiv:1802.01561, equation 1, remark 2 for λ, section 4.2 for the advantage with
    λ = 1; for other λ the bracket is that of rlax.

    Args:
      reward: r_t.
      value: V(s_t).
      next_value: V(s'_t) of the true successor.
      terminated: the successor is terminal.
      truncated: the episode was cut after step t.
      log_ratio: log π(a_t|s_t) - log μ(a_t|s_t), learner's policy over the one that acted.
      gamma: discount.
      trace_lambda: additional decay of the trace.
      clip_rho: bound of the weight of an error, which decides the fixed point.
      clip_c: bound of the weight of the trace, which decides the speed; at most `clip_rho`.

    Returns:
      The targets v_t and the advantages A_t of the policy gradient, the weight ρ_t included.
    """
    ratio = jnp.exp(log_ratio)
    rho = jnp.minimum(_broadcast(clip_rho, reward), ratio)
    trace = _broadcast(trace_lambda, reward) * jnp.minimum(_broadcast(clip_c, reward), ratio)
    target = value + _sum_errors(reward, value, next_value, terminated, truncated, gamma, trace, rho)
    bootstrap = jnp.where(terminated, 0.0, next_value)
    mixing = _broadcast(trace_lambda, reward)
    later = mixing * _shift(target, bootstrap[-1]) + (1.0 - mixing) * _shift(value, bootstrap[-1])
    successor = jnp.where(terminated | truncated, bootstrap, later)
    return target, rho * (reward + _broadcast(gamma, reward) * successor - value)


def retrace(
    reward: Float[Array, " T *batch"],
    q_value: Float[Array, " T *batch"],
    next_state_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    log_ratio: Float[Array, " T *batch"],
    gamma: ArrayLike,
    trace_lambda: ArrayLike = 1.0,
) -> Float[Array, " T *batch"]:
    """Retrace(λ) targets for action values, for data of another policy.

        c_t = λ min(1, π/μ)
        δ_t = r_t + γ (1 - terminated_t) E_π[Q(s'_t, ·)] - Q(s_t, a_t)
        G_t = Q(s_t, a_t) + δ_t + γ (1 - ended_t) c_{t+1} (G_{t+1} - Q(s_{t+1}, a_{t+1}))

    Source: Munos et al. 2016, arXiv:1606.02647, equation 4.

    Args:
      reward: r_t.
      q_value: Q(s_t, a_t) of the action taken.
      next_state_value: E_π[Q(s'_t, ·)] at the true successor under the policy being learned.
      terminated: the successor is terminal.
      truncated: the episode was cut after step t.
      log_ratio: log π(a_t|s_t) - log μ(a_t|s_t), learner's policy over the one that acted.
      gamma: discount.
      trace_lambda: additional decay of the trace.

    Returns:
      G_t.
    """
    trace = _broadcast(trace_lambda, reward) * jnp.minimum(1.0, jnp.exp(log_ratio))
    next_trace = _shift(trace, jnp.zeros_like(trace[0]))
    return q_value + _sum_errors(reward, q_value, next_state_value, terminated, truncated, gamma, next_trace)


def _broadcast(parameter: ArrayLike, like: Array) -> Array:
    """A parameter at the shape and dtype of the rewards, which strict promotion asks for."""
    return jnp.broadcast_to(jnp.asarray(parameter, like.dtype), like.shape)


def _shift(x: Float[Array, " T *batch"], last: Float[Array, " *batch"]) -> Array:
    """Row t becomes row t+1; `last` follows the last row."""
    return jnp.concatenate([x[1:], last[None]])


def _sum_errors(
    reward: Float[Array, " T *batch"],
    value: Float[Array, " T *batch"],
    next_value: Float[Array, " T *batch"],
    terminated: Bool[Array, " T *batch"],
    truncated: Bool[Array, " T *batch"],
    gamma: ArrayLike,
    trace: ArrayLike,
    weight: Float[Array, " T *batch"] | None = None,
) -> Float[Array, " T *batch"]:
    """What off-policy and generalized estimates share: y_t = w_t δ_t + γ (1 - ended_t) c_t y_{t+1}, with y_T = 0.

    δ is as in `gae`, c the trace and w the weight of an error, 1 if not given.
    """
    gamma, trace = _broadcast(gamma, reward), _broadcast(trace, reward)
    error = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    if weight is not None:
        error = weight * error
    return _accumulate(error, jnp.where(terminated | truncated, 0.0, gamma * trace), jnp.zeros_like(error[0]))


def _accumulate(
    x: Float[Array, " T *batch"], decay: Float[Array, " T *batch"], last: Float[Array, " *batch"]
) -> Float[Array, " T *batch"]:
    """Solves y_t = x_t + decay_t y_{t+1} backwards from y_T = last."""

    def step(y: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        y = row[0] + row[1] * y
        return y, y

    # On a CPU neither unrolling nor an associative scan is faster, and both are several times slower for 2048 columns.
    return jax.lax.scan(step, last, (x, decay), reverse=True)[1]
