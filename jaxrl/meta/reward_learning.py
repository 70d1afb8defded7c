"""Reward functions by implicit gradients: a policy maximizes a reward, whose weights follow an outer loss of it.

One step, with its shapes:

    improve     K times: B new episodes of π_θ, one optimizer step of θ on the learned reward          [T, B]
    align       B new episodes; the outer loss L, the Hessian and the cross derivative of the inner    [T, B]
                loss, all from them; one optimizer step of φ along
                    dL/dφ = ∂L/∂φ - wᵀ ∂F/∂φ,   (∂F/∂θ) w = ∂L/∂θ,   F = ∇_θ inner loss

    inner loss = -E[ Σ_t γ_φ^t (r_φ + τ H(π(·|s_t))) ] + μ ‖θ‖² / 2

The policy lives on while its reward changes, so no derivative goes through its learning (`jaxrl.meta.implicit`).
Entropy and the square make the inner problem well posed. Tasks are episodic and T is to cover an episode: what an
episode would have paid after T, or after a time limit, counts nothing.

- BARFI (Gupta et al. 2023, arXiv:2310.19007): `blend` of the environment's reward with an auxiliary one, γ_φ learned,
  L the negative primary return. The authors' off-policy estimates of inner gradients are not used.
- A-PARL (Chakraborty et al. 2023, arXiv:2308.02585): a `learned` reward, L its disagreement with a teacher on pairs of
  the policy's own trajectories.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl import acting, rollout, spaces, validation
from jaxrl.meta import implicit
from jaxrl.meta.rewards import Aim, Episodes, Reward, differentiable_return, primary_return
from jaxrl.networks import Output
from jaxrl.networks.readouts import readout
from jaxrl.ops import optimizers
from jaxrl.ops.distributions import Categorical
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: episodes of each estimate, B, an even number.
      num_steps: steps of an episode at most, T.
      num_updates: K, of the policy between two of the reward.
      solver: of the linear system: the Neumann series, conjugate gradients, or none: then φ follows the direct
        derivative ∂L/∂φ alone.
      num_terms: of the series, or steps of conjugate gradients.
      tabular: whether the policy is a table of states, zeros at first; otherwise it is a network.
      hidden: widths of the network's dense layers.
      activation: of the network.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
    """

    num_envs: int = 64
    num_steps: int = 32
    num_updates: int = 8
    solver: Literal["neumann", "conjugate", "none"] = "neumann"
    num_terms: int = 8
    tabular: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "gelu", "silu", "elu"] = "tanh"
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      reward: φ at the start.
      env: parameters of the environment.
      learning_rate: of the policy (Adam).
      meta_learning_rate: of φ (Adam); 0 keeps the reward as it is.
      max_grad_norm: gradients of a greater norm are scaled down to it, those of θ and φ apart.
      gamma: the environment's own discount.
      entropy_coef: τ.
      decay: μ.
      series_step: α of the Neumann series, less than 2 over the greatest eigenvalue of the inner Hessian.
      discount_cost: see `primary_return`.
    """

    reward: PyTree
    env: PyTree
    learning_rate: Float[Array, ""]
    meta_learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    gamma: Float[Array, ""]
    entropy_coef: Float[Array, ""]
    decay: Float[Array, ""]
    series_step: Float[Array, ""]
    discount_cost: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: of the policy, θ.
      opt_state: of its optimizer.
      meta: φ.
      meta_opt_state: of its optimizer.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    meta: PyTree
    meta_opt_state: optax.OptState


@memoize
def reward_learning(
    env: Env,
    reward: Reward,
    aim: Aim = primary_return(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds an agent that learns its reward function beside its policy.

    Args:
      env: the environment; its actions are discrete.
      reward: r_φ and γ_φ; see `jaxrl.meta.rewards`.
      aim: the outer loss.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics: `episode/return_sum` (raw
      rewards), `episode/length_sum` and `episode/count` of all episodes that ended within T; `outer/loss`,
      `outer/gradient`, the norm of dL/dφ; `reward/discount`, γ_φ; `policy/entropy` of the last episodes, in nats.

    Raises:
      ValueError: a count is not positive, `num_envs` is odd, actions are not discrete or may be illegal, or a table
        is asked for and observations do not name a state.

    Example:
      >>> import jaxrl
      >>> from jaxrl.meta import rewards
      >>> env = jaxrl.make_env("probe/Credit")
      >>> misleading = rewards.blend(env, lambda batch: -batch.reward)
      >>> agent = reward_learning(env, misleading, config=Config(num_envs=4, num_steps=4, tabular=False, hidden=(4,)))
      >>> state, metrics = jax.eval_shape(jaxrl.train(agent, 3), jax.random.key(0), agent.hyperparams())
      >>> state.meta["weights"].shape, metrics["outer/loss"].shape
      ((3,), (3,))
    """
    validation.counts("reward_learning", config, ("num_envs", "num_steps", "num_updates", "num_terms"))
    validation.choices("reward_learning", config)
    if config.num_envs % 2:
        raise ValueError(f"reward_learning: num_envs must be even; got num_envs = {config.num_envs}.")
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"reward_learning: actions must be discrete; {env.name!r} has {env.action_space}.")
    validation.unmasked("reward_learning", env)
    head = readout(env.observation_space, env.action_space.n, config.tabular, config.hidden, config.activation)
    # What is collected after the end of an episode is not looked at.
    reset, precision = rollout.Reset("cached", 1), config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"reward": reward.init(jax.random.key(0)), "env": env.default_params()}
        return build(Hyperparams, _LEAVES, config, changes, **nested)

    def play(key: Key, params: PyTree, hparams: Hyperparams) -> tuple[Episodes, Metrics]:
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            logits = head.read(params, obs)
            return Output(Categorical(logits), jnp.zeros(logits.shape[:-1]), {}), memory

        key_start, key_collect = jax.random.split(key)
        actor = rollout.start(key_start, env, hparams.env, config.num_envs, (), reset)
        _, batch, _ = acting.collect(key_collect, env, hparams.env, actor, look, config.num_steps, reset)
        alive = jnp.cumsum(batch.ended, axis=0) - batch.ended == 0
        own, finished = jnp.where(alive, batch.reward, 0.0), jnp.any(batch.ended, axis=0)
        return Episodes(batch, alive), {
            "episode/return_sum": jnp.sum(jnp.where(finished, jnp.sum(own, axis=0), 0.0)),
            "episode/length_sum": jnp.sum(jnp.where(finished, jnp.sum(alive, axis=0), 0)).astype(jnp.float32),
            "episode/count": jnp.sum(finished).astype(jnp.float32),
        }

    def policy_of(params: PyTree, episodes: Episodes) -> Categorical:
        return Categorical(head.read(params, episodes.batch.obs))

    def inner_loss(params: PyTree, meta: PyTree, episodes: Episodes, hparams: Hyperparams) -> Array:
        policy = policy_of(params, episodes)
        total = reward.of(meta, episodes.batch) + hparams.entropy_coef * policy.entropy()
        gamma = reward.discount(meta, hparams.gamma)
        returns = differentiable_return(policy.log_prob(episodes.batch.action), total, episodes.alive, gamma)
        # Not the norm's square: the norm has no derivative at zero, where tables begin.
        return -jnp.mean(returns) + 0.5 * hparams.decay * optax.tree.vdot(params, params)

    def outer_gradient(params: PyTree, meta: PyTree, episodes: Episodes, hparams: Hyperparams) -> tuple[Array, PyTree]:
        def outer(params: PyTree, meta: PyTree) -> Array:
            log_prob = policy_of(params, episodes).log_prob(episodes.batch.action)
            return aim.loss(meta, log_prob, episodes, reward, hparams)

        if config.solver == "none":
            return jax.value_and_grad(outer, 1)(params, meta)
        solver = implicit.conjugate(config.num_terms)
        if config.solver == "neumann":
            solver = implicit.neumann(config.num_terms, hparams.series_step)
        residual = implicit.stationary(lambda params, meta: inner_loss(params, meta, episodes, hparams))
        return implicit.hypergradient(outer, residual, params, meta, solver)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params = jax.random.split(key)
        params, meta = head.init(key_params), jax.tree.map(jnp.copy, hparams.reward)
        return State(
            key=key,
            params=params,
            opt_state=optimizers.adam(hparams, hparams.learning_rate).init(params),
            meta=meta,
            meta_opt_state=optimizers.adam(hparams, hparams.meta_learning_rate).init(meta),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_inner, key_outer = jax.random.split(state.key, 3)

        # --- Improve ---------------------------------------------------------------------------------------------
        def improve(carry: tuple[PyTree, optax.OptState], key: Key) -> tuple[Any, Metrics]:
            params, opt_state = carry
            episodes, counted = play(key, params, hparams)
            grads = jax.grad(inner_loss)(params, state.meta, episodes, hparams)
            transform = optimizers.adam(hparams, hparams.learning_rate)
            updates, opt_state = transform.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), counted

        keys = jax.random.split(key_inner, config.num_updates)
        (params, opt_state), counted = jax.lax.scan(improve, (state.params, state.opt_state), keys)

        # --- Align -----------------------------------------------------------------------------------------------
        episodes, last = play(key_outer, params, hparams)
        loss, grads = outer_gradient(params, state.meta, episodes, hparams)
        transform = optimizers.adam(hparams, hparams.meta_learning_rate)
        updates, meta_opt_state = transform.update(grads, state.meta_opt_state, state.meta)
        meta = optax.apply_updates(state.meta, updates)

        entropy = jnp.where(episodes.alive, policy_of(params, episodes).entropy(), 0.0)
        metrics = {name: jnp.sum(counted[name]) + last[name] for name in last} | {
            "outer/loss": loss,
            "outer/gradient": optax.tree.norm(grads),
            "reward/discount": jnp.asarray(reward.discount(meta, hparams.gamma)),
            "policy/entropy": jnp.sum(entropy) / jnp.sum(episodes.alive),
        }
        return State(key, params, opt_state, meta, meta_opt_state), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            policy = Categorical(head.read(state.params, obs))
        return policy.mode() if key is None else policy.sample(key), memory

    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        env_steps=(config.num_updates + 1) * config.num_envs * config.num_steps,
        name=f"reward_learning({reward.name}, {aim.name})",
        env=env,
        config=config,
    )


_LEAVES = {
    "learning_rate": Leaf(0.05, 0.0),
    "meta_learning_rate": Leaf(0.01, 0.0),
    "max_grad_norm": Leaf(1.0, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "entropy_coef": Leaf(0.02, 0.0),
    "decay": Leaf(0.01, 0.0),
    "series_step": Leaf(0.5, 0.0),
    "discount_cost": Leaf(0.0),
}
