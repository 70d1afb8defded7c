"""BPG, Bayesian policy gradient (Ghavamzadeh and Engel 2006; Ghavamzadeh, Engel and Valko 2016, JMLR 17).

The gradient of the expected return is an integral over trajectories. Bayesian quadrature gives it a Gaussian belief, by
a Gaussian process over the integrand with a Fisher kernel, in place of a Monte-Carlo mean; its mean makes the step, its
covariance says how much of it is known. One step of the algorithm, with its shapes:

    collect        an episode in each of M environments, of T steps at most                            [T, M]
    scores         u_i = Σ_t ∇log π(a_t|s_t),   R_i = Σ_t γ^t r_t, standardized                        [M, n], [M]
    Fisher         X = G⁻¹U                                                                            [M, n]
    belief         UᵀX, UᵀU;  c and the covariance's trace                   (jaxrl.ops.quadrature)    [M, M], [M]
    update         θ ← θ + α X c, the natural gradient,   or θ + α U c                                 like θ

Model 1 takes R u for the unknown integrand and (1 + u G⁻¹ u')² for its kernel, model 2 takes R and u G⁻¹ u'. The Fisher
matrix G never appears as an n x n matrix. It is the mean over the visited states of the policy's own, expected over
actions (`fisher="policy"`, by conjugate gradients), or that of the M scores (`"scores"`: cheaper, and then model 2's
conventional gradient is Monte-Carlo's, see jaxrl.ops.quadrature). There is no value function and no causality: every
action is credited with the whole return.

Returns are standardized over the M episodes, because the processes expect 0. That, the damping, the noise as a share of
the kernel's trace, the fixed step size α and the network are this file's: of the paper the abstract and summaries were
at hand, not its text, so step sizes and the way it estimates G are unchecked. Its Bayesian actor-critic
(a Gaussian process over Q with a state kernel besides) is not here.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.networks import NetworkConfig, actor_critic
from jaxrl.networks.actor_critic import Output, apply_one, apply_step, init_params
from jaxrl.ops import quadrature, statistics
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.linear import conjugate_gradient
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_RESET = rollout.Reset()


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: episodes an iteration, M.
      num_steps: steps of each at most, T; what comes after an episode's end does not count.
      model: `returns_times_scores`: model 1. `returns`: model 2.
      natural: whether the step is along the natural gradient.
      fisher: where G comes from: `scores` of the episodes, or the `policy` in the states that they visited.
      num_cg_steps: conjugate-gradient iterations for each episode, if of the policy.
      standardize: whether returns are standardized; otherwise they are taken as they are.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: layers, memory and head of the policy.
    """

    num_envs: int = 32
    num_steps: int = 200
    model: Literal["returns_times_scores", "returns"] = "returns"
    natural: bool = True
    fisher: Literal["scores", "policy"] = "scores"
    num_cg_steps: int = 10
    standardize: bool = True
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: NetworkConfig = dataclasses.field(default_factory=lambda: NetworkConfig(hidden=(16,)))


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      learning_rate: α.
      damping: ε, added to the Fisher matrix's eigenvalues, as a share of their sum.
      noise: ν, the variance of what the process does not explain, as a share of what it does. The rounding of the
        kernel, about M / ε of the last place, is added to it.
      gamma: discount factor of the return.
    """

    env: PyTree
    learning_rate: Float[Array, ""]
    damping: Float[Array, ""]
    noise: Float[Array, ""]
    gamma: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the policy's parameters, θ.
      actor: the environments as the last step left them.
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


@memoize
def bpg(env: Env, config: Config = Config()) -> Algorithm:
    """Builds Bayesian policy gradient for an environment.

    Args:
      env: the environment to learn in; actions are `Discrete`, `MultiDiscrete` or a `Box`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics: `posterior/trace` of the
      gradient's covariance and `posterior/share` of it in the prior's, `gradient/norm` of the step's direction,
      `return/mean` of the M episodes (discounted, cut at T) and `policy/entropy`.

    Raises:
      ValueError: there is no such policy over the actions or their mask is of others, a count is not positive, a
        choice is unknown, or `config.network` is of another class.

    Example:
      >>> import jaxrl
      >>> agent = bpg(jaxrl.make_env("probe/Policy"), Config(num_envs=8, num_steps=1))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=20))(jax.random.key(1), agent.hyperparams())
      >>> bool(metrics["return/mean"][-1] > 0.5)  # at most 1
      True
    """
    validation.counts("bpg", config, ("num_envs", "num_steps", "num_cg_steps"))
    validation.choices("bpg", config)
    validation.layers("bpg", config.network, NetworkConfig)
    options = dataclasses.asdict(config.network)
    net = actor_critic(env.observation_space, env.action_space, critic=False, **options)
    precision = config.matmul_precision

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def policy_at(params: PyTree, obs: Observation, start: Array) -> Any:
        """The policy at each step of episodes that began in the rollout, [T, M]."""
        memory = net.initial_memory(start.shape[1:])
        return net.apply(params, obs, memory, start)[0].policy  # type: ignore[index]

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, _RESET)
        with jax.default_matmul_precision(precision):
            params = init_params(net, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(key=key, params=params, actor=actor, num_steps=jnp.int32(0))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_start, key_collect = jax.random.split(state.key, 3)

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, state.params, obs, memory, start)

        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_start, env, hparams.env, config.num_envs, memory, _RESET)
        actor, batch, metrics = acting.collect(key_collect, env, hparams.env, actor, look, config.num_steps, _RESET)
        ended = batch.ended.astype(jnp.int32)
        running = (jnp.cumsum(ended, axis=0) - ended == 0).astype(jnp.float32)

        # --- Estimate --------------------------------------------------------------------------------------------
        discount = hparams.gamma ** jnp.arange(config.num_steps, dtype=jnp.float32)[:, None]
        returns = jnp.sum(running * discount * batch.reward, axis=0)

        def log_prob(params: PyTree, episode: PyTree) -> Array:
            obs, action, start, running = jax.tree.map(lambda x: x[:, None], episode)
            return jnp.sum(running * policy_at(params, obs, start).log_prob(action))

        episodes = (batch.obs, batch.action, batch.start, running)
        scores = jax.vmap(jax.grad(log_prob), (None, 1))(state.params, episodes)
        gram = _products(scores, scores)
        scale = jnp.trace(gram) / config.num_envs
        if config.fisher == "scores":
            inverse, ridge = quadrature.of_scores(gram, hparams.damping)
            solved = jax.tree.map(lambda u: jnp.tensordot(inverse, u, axes=1), scores)
        else:
            ridge = hparams.damping * scale

            def divergence(params: PyTree) -> Array:
                old = jax.lax.stop_gradient(policy_at(state.params, batch.obs, batch.start))
                return jnp.sum(running * old.kl(policy_at(params, batch.obs, batch.start))) / config.num_envs

            def fisher(vector: PyTree) -> PyTree:
                curved = jax.jvp(jax.grad(divergence), (state.params,), (vector,))[1]
                return jax.tree.map(lambda x, v: x + ridge * v, curved, vector)

            solved = jax.vmap(lambda u: conjugate_gradient(fisher, u, config.num_cg_steps))(scores)
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        rounding = config.num_envs / hparams.damping * jnp.finfo(jnp.float32).eps
        belief = quadrature.posterior(
            similarity=_products(scores, solved),
            gram=gram,
            returns=statistics.standardize(returns) if config.standardize else returns,
            num_parameters=num_parameters,
            fisher_trace=scale + ridge * num_parameters,
            noise=hparams.noise + rounding,
            model=1 if config.model == "returns_times_scores" else 2,
        )

        # --- Update ----------------------------------------------------------------------------------------------
        entropy = policy_at(state.params, batch.obs, batch.start).entropy()
        along = solved if config.natural else scores
        direction = jax.tree.map(lambda u: jnp.tensordot(belief.coefficients, u, axes=1), along)
        metrics |= {
            "posterior/trace": belief.trace,
            "posterior/share": belief.trace / belief.prior_trace,
            "gradient/norm": optax.tree.norm(direction),
            "return/mean": jnp.mean(returns),
            "policy/entropy": jnp.sum(running * entropy) / jnp.sum(running),
        }
        params = jax.tree.map(lambda x, d: x + hparams.learning_rate * d, state.params, direction)
        return State(key, params, actor, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output, memory = apply_one(net, state.params, obs, memory)
        return acting.choose(env, output, key), memory

    env_steps = config.num_envs * config.num_steps
    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=env_steps, name="bpg", env=env, config=config
    )


def _products(rows: PyTree, others: PyTree) -> Float[Array, "M M"]:
    """Inner products of M vectors with M others; leaves [M, ...]."""
    flat = lambda leaf: leaf.reshape((leaf.shape[0], -1))
    parts = jax.tree.map(lambda one, other: flat(one) @ flat(other).T, rows, others)
    return jnp.asarray(sum(jax.tree.leaves(parts)))


_LEAVES = {
    "learning_rate": Leaf(0.3, 0.0),
    "damping": Leaf(0.01, 1e-4),
    "noise": Leaf(0.1, 1e-4),
    "gamma": Leaf(1.0, 0.0, 1.0),
}
