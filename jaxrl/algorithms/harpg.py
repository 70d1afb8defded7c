"""Hessian-aided recursive policy gradient (Fatkhullin et al. 2023, arXiv:2302.01734: HARPG and N-HARPG).

One step of the algorithm, with its shapes:

    collect        episodes of π_θ from fresh resets                             [T, B]
    estimate       g ← gradient of the return at θ
    point          θ̂ ← θ' + q (θ - θ'),   q uniform in [0, 1]
    collect        episodes of π_θ̂ from fresh resets                            [T, C]
    estimate       h ← product of the return's Hessian at θ̂ with θ - θ'
    direction      d ← (1 - η)(d + h) + η g;   at first d ← g
    policy         θ' ← θ,   θ ← θ + γ d / ‖d‖,   or θ + γ d without `normalize`
    value          num_value_updates steps of Adam on the squared error          [T, B]

θ' is the policy before. The mean of the Hessian over the segment from θ' to θ, times θ - θ', is the difference of the
gradients at its ends, and a point drawn from it has that mean: so d + h is an estimate of the gradient at θ if d was
one at θ'. For an episode τ with Φ(θ) = Σ_t c_t log π_θ(a_t|s_t), c_t = γ^t (Σ_{i≥t} γ^(i-t) r_i - b(s_t)),

    g = ∇Φ,   h = (Σ_t ∇log π(a_t|s_t) · v) ∇Φ + ∇²Φ v,   v = θ - θ'

each the mean over episodes. η_t = η_0 (2/(t+2))^p and γ_t = γ_0 (2/(t+2))^q.

Checked against: the authors' code (on garage; its optimizer STORMHess), which has this recursion, this point and these
schedules, with p = 1, and q = 1 for normalized steps and 1/2 for plain ones; of the paper, its abstract only, so the
numbers of its algorithms and equations are not given here. In that code c_t lacks γ^t (`discount_credit=False`), b is a
linear fit, means are over transitions, and the first term of h is a product of two means over the whole batch, whose
expectation is not the Hessian's product. Here that term is taken episode by episode, and the tests compare its
expectation with the exact Hessian.

Episodes are cut after T steps; where one ends earlier, the next begins, so that no step is lost. The mean is over the
episodes begun: exact where every environment plays one. The value stands for what a cut episode has still to come, or 0
without a baseline.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import Output, apply_one, apply_step, init_params, successor_value
from jaxrl.ops import losses, returns, statistics
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_RESET = rollout.Reset()


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments of the first batch, B.
      num_hessian_envs: those of the second batch, C; 0: none, and no Hessian, so that d is a mere average of gradients
        (with η = 1 the policy gradient itself).
      num_steps: steps of each, T.
      normalize: whether a step has length γ (N-HARPG), or is γ d (HARPG).
      baseline: b: the value function, or none, as in the paper's algorithm.
      discount_credit: whether c_t has the factor γ^t. Without it g is not the gradient of any function.
      num_value_updates: steps of the value function's optimizer per iteration, each on the whole first batch.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers and memory.
    """

    num_envs: int = 8
    num_hessian_envs: int = 8
    num_steps: int = 200
    normalize: bool = True
    baseline: Literal["value", "none"] = "value"
    discount_credit: bool = True
    num_value_updates: int = 10
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      step_size: γ_0: a distance in parameter space if `normalize`, 0.2 by default; otherwise what the direction is
        multiplied by, whose right size is that of the task's returns, 0.001 by default.
      step_exponent: q, how fast the step falls; by default 1 if `normalize`, otherwise 1/2.
      momentum: η_0, the weight of the newest gradient at the beginning.
      momentum_exponent: p, how fast it falls.
      gamma: discount factor.
      value_learning_rate: of the value function's Adam.
    """

    env: PyTree
    step_size: Float[Array, ""]
    step_exponent: Float[Array, ""]
    momentum: Float[Array, ""]
    momentum_exponent: Float[Array, ""]
    gamma: Float[Array, ""]
    value_learning_rate: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters; θ are those that the policy reads.
      previous: those before the last step, or () without a second batch.
      direction: d, with zeros for the value's parameters.
      opt_state: the state of the value function's optimizer.
      actor: the first batch's environments as the last step left them.
      num_steps: iterations done, t.
    """

    key: Key
    params: PyTree
    previous: PyTree
    direction: PyTree
    opt_state: optax.OptState
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


@memoize
def harpg(env: Env, network: ActorCritic | None = None, config: Config = Config()) -> Algorithm:
    """Builds N-HARPG, or HARPG with `Config(normalize=False)`.

    Args:
      env: the environment to learn in.
      network: policy and value, which share no parameter; None builds `config.network` for the environment's spaces.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics `direction/norm`,
      `gradient/norm` of g, `gradient/correction` (the norm of h) and `direction/step` (γ). Those of episodes are of the
      first batch, and of episodes that ended within T steps: evaluate for a mean that favors no short ones.

    Raises:
      ValueError: a count is not positive, an unknown choice, or a network with a core for both.

    Example:
      >>> import jaxrl
      >>> agent = harpg(jaxrl.make_env("gymnax/CartPole-v1"), config=Config(num_envs=4, num_steps=32))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> [round(float(length), 4) for length in metrics["direction/step"]]
      [0.2, 0.1333]
    """
    validation.layers("harpg", config.network, NetworkConfig)
    net = acting.network_for(env, network, config.network, separate=True)
    validation.counts("harpg", config, ("num_envs", "num_steps", "num_value_updates"))
    validation.choices("harpg", config)
    if config.num_hessian_envs:
        validation.count("harpg", "num_hessian_envs", config.num_hessian_envs)
    batch_size = (config.num_envs + config.num_hessian_envs) * config.num_steps
    precision = config.matmul_precision
    leaves = _LEAVES | (_NORMALIZED if config.normalize else _PLAIN)

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, leaves, config, changes, env=env.default_params())

    def optimizer(hparams: Hyperparams) -> optax.GradientTransformation:
        return optax.adam(hparams.value_learning_rate, eps=1e-5)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor = jax.random.split(key, 3)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, _RESET)
        with jax.default_matmul_precision(precision):
            params = init_params(net, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(
            key=key,
            params=params,
            # Of each its own buffer: `advance` donates them.
            previous=jax.tree.map(jnp.copy, params) if config.num_hessian_envs else (),
            direction=jax.tree.map(jnp.zeros_like, params),
            opt_state=optimizer(hparams).init(params),
            actor=actor,
            num_steps=jnp.int32(0),
        )

    def play(key: Key, hparams: Hyperparams, params: PyTree, num_envs: int) -> tuple[Any, rollout.Transition, Metrics]:
        """Episodes of a policy from fresh resets, [T, num_envs]."""
        key_start, key_collect = jax.random.split(key)

        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return apply_step(net, params, obs, memory, start)

        actor = rollout.start(key_start, env, hparams.env, num_envs, net.initial_memory((num_envs,)), _RESET)
        return acting.collect(key_collect, env, hparams.env, actor, look, config.num_steps, _RESET)

    def evaluate(params: PyTree, batch: rollout.Transition) -> Output:
        """Policy and value at every step, [T, B]; all of a batch's episodes began in it."""
        memory = net.initial_memory((batch.start.shape[1],))
        return net.apply(params, batch.obs, memory, batch.start)[0]  # type: ignore[return-value]

    def credit(hparams: Hyperparams, params: PyTree, batch: rollout.Transition) -> tuple[Array, Array, Array]:
        """c and the return to go that the value learns, [T, B], and the values."""
        value = evaluate(params, batch).value
        baseline, next_value = value, successor_value(net, params, batch.next_obs, batch.memory)
        if config.baseline == "none":
            baseline = next_value = jnp.zeros_like(value)
        to_go = returns.lambda_returns(
            batch.reward, next_value, batch.terminated, batch.truncated, hparams.gamma, trace_lambda=1.0
        )
        weight = hparams.gamma ** _age(batch.start) if config.discount_credit else 1.0
        return weight * (to_go - baseline), to_go, value

    def log_prob_of(batch: rollout.Transition) -> Callable[[PyTree], Array]:
        return lambda params: evaluate(params, batch).policy.log_prob(batch.action)

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_first, key_point, key_second = jax.random.split(state.key, 4)
        params, fall = state.params, 2.0 / (state.num_steps.astype(jnp.float32) + 2.0)
        eta = jnp.minimum(hparams.momentum * fall**hparams.momentum_exponent, 1.0)
        eta = jnp.where(state.num_steps == 0, 1.0, eta)
        rate = hparams.step_size * fall**hparams.step_exponent

        # --- The gradient here -----------------------------------------------------------------------------------
        actor, batch, metrics = play(key_first, hparams, params, config.num_envs)
        weight, to_go, value = credit(hparams, params, batch)
        here = gradient(log_prob_of(batch), params, weight, _count(batch.start))

        # --- The way from the last gradient ----------------------------------------------------------------------
        carried = state.direction
        if config.num_hessian_envs:
            share = jax.random.uniform(key_point)
            point = jax.tree.map(lambda old, new: old + share * (new - old), state.previous, params)
            _, second, _ = play(key_second, hparams, point, config.num_hessian_envs)
            second_weight, _, _ = credit(hparams, point, second)
            moved = optax.tree.sub(params, state.previous)
            change = hessian_product(
                log_prob_of(second), point, moved, second_weight, second.start, _count(second.start)
            )
            carried = optax.tree.add(carried, change)
            metrics["gradient/correction"] = optax.tree.norm(change)

        # --- Update ----------------------------------------------------------------------------------------------
        direction = jax.tree.map(lambda d, g: (1.0 - eta) * d + eta * g, carried, here)
        norm = optax.tree.norm(direction)
        length = rate / jnp.maximum(norm, 1e-12) if config.normalize else rate
        learned = jax.tree.map(lambda x, d: x + length * d, params, direction)
        metrics |= {
            "policy/entropy": jnp.mean(evaluate(params, batch).policy.entropy()),
            "gradient/norm": optax.tree.norm(here),
            "direction/norm": norm,
            "direction/step": rate,
        }
        opt_state, transform = state.opt_state, optimizer(hparams)

        def update(carry: Any, _: None) -> tuple[Any, Array]:
            learned, opt_state = carry
            loss = lambda params: losses.value_loss(evaluate(params, batch).value, to_go)
            value_loss, slope = jax.value_and_grad(loss)(learned)
            updates, opt_state = transform.update(slope, opt_state, learned)
            return (optax.apply_updates(learned, updates), opt_state), value_loss

        if config.baseline == "value":
            (learned, opt_state), value_loss = jax.lax.scan(
                update, (learned, opt_state), None, config.num_value_updates
            )
            metrics["loss/value"] = value_loss[0]
            metrics["value/explained_variance"] = statistics.explained_variance(value, to_go)
        previous = params if config.num_hessian_envs else ()
        return State(key, learned, previous, direction, opt_state, actor, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            output, memory = apply_one(net, state.params, obs, memory)
        return acting.choose(env, output, key), memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="harpg", env=env, config=config
    )


def gradient(log_prob: Callable[[PyTree], Array], params: PyTree, weight: Array, num_episodes: Array) -> PyTree:
    """g: the gradient of Σ_t c_t log π(a_t|s_t), a mean over episodes.

    Args:
      log_prob: from parameters to log π of the actions taken, [T, B].
      params: where.
      weight: c, [T, B].
      num_episodes: how many these are, shape ().
    """
    return jax.grad(lambda params: jnp.sum(weight * log_prob(params)) / num_episodes)(params)


def hessian_product(
    log_prob: Callable[[PyTree], Array],
    params: PyTree,
    vector: PyTree,
    weight: Float[Array, "T B"],
    start: Bool[Array, "T B"],
    num_episodes: Array,
) -> PyTree:
    """h: the Hessian of the return times a vector, a mean over episodes of (Σ_t ∇log π · v) ∇Φ + ∇²Φ v.

    Args:
      log_prob: from parameters to log π of the actions taken, [T, B].
      params: where.
      vector: v.
      weight: c of Φ.
      start: whether a step is the first of its episode.
      num_episodes: how many these are, shape ().
    """
    _, score = jax.jvp(log_prob, (params,), (vector,))
    scored = weight * _episode_sum(score, start)
    _, curved = jax.jvp(lambda at: gradient(log_prob, at, weight, num_episodes), (params,), (vector,))
    return optax.tree.add(curved, gradient(log_prob, params, scored, num_episodes))


def _count(start: Bool[Array, "T B"]) -> Float[Array, ""]:
    """How many episodes were begun."""
    return jnp.sum(start.astype(jnp.float32))


def _episode_sum(x: Float[Array, "T B"], start: Bool[Array, "T B"]) -> Float[Array, "T B"]:
    """At every step the sum over its episode, before and after it."""
    last = jnp.concatenate([start[1:], jnp.ones_like(start[:1])])
    sums = lambda x, ends: returns.lambda_returns(x, jnp.zeros_like(x), ends, jnp.zeros_like(ends), 1.0, 1.0)
    return sums(x, last) + sums(x[::-1], start[::-1])[::-1] - x


def _age(start: Bool[Array, "T B"]) -> Float[Array, "T B"]:
    """Steps since the episode began; the first row begins one."""
    now = jnp.broadcast_to(jnp.arange(start.shape[0])[:, None], start.shape)
    return (now - jax.lax.cummax(jnp.where(start, now, 0), axis=0)).astype(jnp.float32)


_NORMALIZED = {"step_size": Leaf(0.2, 0.0), "step_exponent": Leaf(1.0, 0.0)}
_PLAIN = {"step_size": Leaf(0.001, 0.0), "step_exponent": Leaf(0.5, 0.0)}
_LEAVES = {
    "momentum": Leaf(1.0, 0.0, 1.0),
    "momentum_exponent": Leaf(1.0, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "value_learning_rate": Leaf(1e-3, 0.0, needs=("baseline", "value")),
}
