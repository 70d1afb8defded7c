"""Policy gradient for a concave utility of the state-action occupancy, N-VR-PG (Barakat et al. 2023, arXiv:2306.01854).

Maximized is F(λ), where λ(s, a) = E Σ_h γ^h 1[s_h = s, a_h = a], and not a sum of rewards: how evenly states are
visited, how close the occupancy is to that of a demonstration, a return under a constraint. The gradient of F at the
estimated occupancy is the reward of the next step (a pseudo-reward). One step, with its shapes:

    collect        T steps of B new episodes                                     [T, B]
    occupancy      λ ← λ̂(τ) + (1 - η)(λ - w λ̂(τ)),   r ← ∇F(λ)                  [S, A]
    direction      d ← g(τ, θ, r') + (1 - η)(d - w g(τ, θ', r''))                [S, A]
    policy         θ ← θ + α d / ‖d‖                                             [S, A]

θ' is the policy before, r' and r'' are the pseudo-rewards of the last two steps, w is the probability of an episode
under θ' by that under θ, g the policy gradient Σ_t ∇log π(a_t|s_t) Σ_{h≥t} γ^h r(s_h, a_h); λ̂, w λ̂ and g are means
over B episodes. η_t = (2/(t+2))^p and α_t = α / (t+1)^p, so the first step takes its own data alone
(algorithm 1 with B = 1 and p = 2/3). The paper's full text was not at hand when this was written: the update follows
its abstract, its tests compare it with exact occupancies, and the two schedules are unchecked.

States are tabular: an observation must be an integer, or a vector of which the greatest entry names the state. The
policy is a softmax over a table of logits. The environment's own rewards are not read.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import rollout, spaces, validation
from jaxrl.ops.distributions import Categorical
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_RESET = rollout.Reset()


class Utility(NamedTuple):
    """A concave function of the occupancy.

    Attributes:
      init: `(num_states, num_actions) -> params`, its coefficients; arrays, each of which may be swept.
      value: `(params, occupancy [S, A]) -> ()`. Of the occupancy divided by its sum, so by and large a distribution; an
        estimate may have entries a little below 0, and `value` must have a gradient there.
      name: for messages.
    """

    init: Callable[[int, int], Any]
    value: Callable[[Any, Float[Array, "S A"]], Float[Array, ""]]
    name: str


@struct.dataclass
class Entropy:
    """Coefficients of `entropy`.

    Attributes:
      smoothing: added to probabilities within the logarithm, which bounds the pseudo-reward.
    """

    smoothing: Float[Array, ""]


@struct.dataclass
class Imitation:
    """Coefficients of `imitation`.

    Attributes:
      target: the occupancy to imitate, a distribution over pairs.
      smoothing: added to probabilities within the logarithms.
    """

    target: Float[Array, "S A"]
    smoothing: Float[Array, ""]


@struct.dataclass
class Constrained:
    """Coefficients of `constrained`.

    Attributes:
      reward: of each pair.
      cost: of each pair.
      limit: greatest mean cost of a step that is free.
      weight: of the squared excess.
    """

    reward: Float[Array, "S A"]
    cost: Float[Array, "S A"]
    limit: Float[Array, ""]
    weight: Float[Array, ""]


@memoize
def entropy(of: Literal["states", "pairs"] = "states", smoothing: float = 1e-3) -> Utility:
    """Pure exploration: the entropy of the visited states, or of pairs of state and action, in nats.

        F(λ) = -Σ_s λ(s) log(λ(s) + σ),   λ(s) = Σ_a λ(s, a)

    Example:
      >>> utility = entropy(smoothing=0.0)
      >>> round(float(utility.value(utility.init(2, 2), jnp.full((2, 2), 0.25))), 4)
      0.6931
    """
    if of not in ("states", "pairs"):
        raise ValueError(f"entropy: of must be 'states' or 'pairs'; got of = {of!r}.")

    def value(params: Entropy, occupancy: Array) -> Array:
        visited = jnp.sum(occupancy, axis=1) if of == "states" else occupancy
        return -jnp.sum(visited * jnp.log(_positive(visited, params.smoothing)))

    return Utility(lambda num_states, num_actions: Entropy(jnp.float32(smoothing)), value, f"entropy of {of}")


@memoize
def imitation(smoothing: float = 1e-3) -> Utility:
    """Learning from a demonstration: -KL(λ ‖ target) in nats, at most 0; the leaf `target` is uniform by default.

    Example:
      >>> utility = imitation()
      >>> float(utility.value(utility.init(2, 2), jnp.full((2, 2), 0.25)))
      -0.0
    """

    def init(num_states: int, num_actions: int) -> Imitation:
        uniform = jnp.full((num_states, num_actions), 1.0 / (num_states * num_actions), jnp.float32)
        return Imitation(uniform, jnp.float32(smoothing))

    def value(params: Imitation, occupancy: Array) -> Array:
        ratio = _positive(occupancy, params.smoothing) / _positive(params.target, params.smoothing)
        return -jnp.sum(occupancy * jnp.log(ratio))

    return Utility(init, value, "imitation")


@memoize
def constrained(limit: float = 0.0, weight: float = 10.0) -> Utility:
    """A mean reward less a penalty on the mean cost: <λ, r> - weight/2 max(<λ, c> - limit, 0)².

    The leaves `reward` and `cost` are tables of all pairs, 0 by default.

    Example:
      >>> utility = constrained(limit=0.5)
      >>> params = utility.init(1, 2).replace(reward=jnp.array([[0.0, 1.0]]), cost=jnp.array([[0.0, 1.0]]))
      >>> float(utility.value(params, jnp.array([[0.4, 0.6]]))) < 0.6
      True
    """

    def init(num_states: int, num_actions: int) -> Constrained:
        zero = jnp.zeros((num_states, num_actions), jnp.float32)
        return Constrained(zero, zero, jnp.float32(limit), jnp.float32(weight))

    def value(params: Constrained, occupancy: Array) -> Array:
        excess = jnp.maximum(jnp.sum(occupancy * params.cost) - params.limit, 0.0)
        return jnp.sum(occupancy * params.reward) - 0.5 * params.weight * jnp.square(excess)

    return Utility(init, value, "constrained")


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: episodes an iteration, B.
      num_steps: steps of each at most, T; what comes after an episode's end does not count.
      variance_reduction: whether occupancy and direction are carried on with recursive momentum; otherwise η = 1, and
        each iteration uses its own episodes alone.
    """

    num_envs: int = 16
    num_steps: int = 32
    variance_reduction: bool = True


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      utility: coefficients of the utility.
      env: parameters of the environment.
      step_size: α, how far the logits move in the first step, in norm.
      exponent: p, how fast step size and momentum fall.
      gamma: discount factor.
    """

    utility: PyTree
    env: PyTree
    step_size: Float[Array, ""]
    exponent: Float[Array, ""]
    gamma: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the logits, {"kernel": [S, A]}.
      previous: those before the last step.
      direction: d.
      occupancy: λ, the estimate that the utility is taken of, not normalized.
      rewards: the pseudo-rewards of the last step and of the one before, [2, S, A].
      actor: the environments as the last step left them.
      num_steps: iterations done.
    """

    key: Key
    params: PyTree
    previous: PyTree
    direction: PyTree
    occupancy: Float[Array, "S A"]
    rewards: Float[Array, "2 S A"]
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


@memoize
def utilities(
    env: Env,
    utility: Utility = entropy(),  # noqa: B008 (memoized record)
    config: Config = Config(),
) -> Algorithm:
    """Builds the normalized policy gradient for a utility of the occupancy.

    Args:
      env: the environment to learn in.
      utility: what to maximize; its coefficients are `hparams.utility`.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics `utility/value` of the
      estimated occupancy, `utility/weight` (the mean of w, 1 in expectation) and `gradient/norm` of d.

    Raises:
      ValueError: a count is not positive, actions are not discrete, or observations do not name a state.

    Example:
      >>> import jaxrl
      >>> agent = utilities(jaxrl.make_env("probe/Termination"), config=Config(num_envs=4, num_steps=5))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> round(float(metrics["utility/value"][-1]), 3)  # five states, one after the other: nearly log 5
      1.604
    """
    validation.counts("utilities", config, ("num_envs", "num_steps"))
    num_states, num_actions = _sizes(env)
    batch_size = config.num_envs * config.num_steps

    def hyperparams(**changes: Any) -> Hyperparams:
        nested = {"utility": utility.init(num_states, num_actions), "env": env.default_params()}
        return build(Hyperparams, _LEAVES, config, changes, **nested)

    def policy(params: PyTree, obs: Observation) -> Categorical:
        return Categorical(params["kernel"][_state_of(env, obs)])

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_actor = jax.random.split(key)
        # Of each its own buffer: `advance` donates them.
        table = lambda *axes: jnp.zeros((*axes, num_states, num_actions), jnp.float32)
        return State(
            key=key,
            params={"kernel": table()},
            previous={"kernel": table()},
            direction={"kernel": table()},
            occupancy=table(),
            rewards=table(2),
            actor=rollout.start(key_actor, env, hparams.env, config.num_envs, (), _RESET),
            num_steps=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_start, key_noise, key_collect = jax.random.split(state.key, 4)
        time = state.num_steps.astype(jnp.float32)
        eta = (2.0 / (time + 2.0)) ** hparams.exponent if config.variance_reduction else jnp.float32(1.0)

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(noise: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            action = policy(state.params, obs).sample_from(noise)
            return action, action, memory, ()

        actor = rollout.start(key_start, env, hparams.env, config.num_envs, (), _RESET)
        shape = jax.eval_shape(lambda: policy(state.params, actor.obs))
        noise = jax.vmap(shape.noise)(jax.random.split(key_noise, config.num_steps))
        actor, batch, metrics = rollout.collect(key_collect, env, hparams.env, actor, look, noise, _RESET)

        # --- Occupancy -------------------------------------------------------------------------------------------
        ended = jnp.cumsum(batch.ended, axis=0) - batch.ended
        running = (ended == 0).astype(jnp.float32)
        now = jnp.arange(config.num_steps, dtype=jnp.float32)[:, None]
        discount = hparams.gamma**now * running
        where = (_state_of(env, batch.obs), batch.action)

        def log_prob(params: PyTree) -> Array:
            return policy(params, batch.obs).log_prob(batch.action)

        weight = jnp.exp(jnp.sum(running * (log_prob(state.previous) - log_prob(state.params)), axis=0))

        def visits(weight: Array) -> Array:
            return jnp.zeros_like(state.occupancy).at[where].add(discount * weight[None] / config.num_envs)

        keep = 1.0 - eta
        occupancy = visits(jnp.ones_like(weight)) + keep * (state.occupancy - visits(weight))
        normalized = lambda occupancy: utility.value(hparams.utility, occupancy / jnp.sum(occupancy))
        value, pseudo_reward = jax.value_and_grad(normalized)(occupancy)
        # To a normalized step the scale does not matter, but it should not differ between the last two rewards.
        pseudo_reward = pseudo_reward * jnp.sum(occupancy)
        last, before = jnp.where(state.num_steps == 0, jnp.stack([pseudo_reward] * 2), state.rewards)

        # --- Update ----------------------------------------------------------------------------------------------
        def gradient(params: PyTree, reward: Array, weight: Array) -> PyTree:
            to_go = jnp.cumsum((discount * reward[where])[::-1], axis=0)[::-1]
            loss = lambda params: jnp.mean(weight * jnp.sum(running * log_prob(params) * to_go, axis=0))
            return jax.grad(loss)(params)

        here = gradient(state.params, last, jnp.ones_like(weight))
        there = gradient(state.previous, before, weight)
        direction = jax.tree.map(lambda g, old, d: g + keep * (d - old), here, there, state.direction)
        norm = optax.tree.norm(direction)
        length = hparams.step_size / (time + 1.0) ** hparams.exponent / jnp.maximum(norm, 1e-12)
        metrics |= {
            "utility/value": value,
            "utility/weight": jnp.mean(weight),
            "gradient/norm": norm,
            "policy/entropy": jnp.sum(running * policy(state.params, batch.obs).entropy()) / jnp.sum(running),
        }
        return State(
            key=key,
            params=jax.tree.map(lambda x, d: x + length * d, state.params, direction),
            previous=state.params,
            direction=direction,
            occupancy=occupancy,
            rewards=jnp.stack([pseudo_reward, last]),
            actor=actor,
            num_steps=state.num_steps + 1,
        ), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        choice = policy(state.params, obs)
        return choice.mode() if key is None else choice.sample(key), memory

    return Algorithm(init, step, act, hyperparams, env_steps=batch_size, name="utilities", env=env, config=config)


def _positive(probability: Array, smoothing: Array) -> Array:
    """Within a logarithm; for an estimate below 0 as for 0."""
    return jnp.maximum(probability, 0.0) + smoothing


def _sizes(env: Env) -> tuple[int, int]:
    """Numbers of states and actions."""
    seen, actions = env.observation_space, env.action_space
    if not isinstance(actions, spaces.Discrete):
        raise ValueError(f"utilities: actions must be discrete, one of a table; {env.name!r} has {actions}.")
    if isinstance(seen, spaces.Discrete):
        return seen.n, actions.n
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise ValueError(
            "utilities: observations must be integers or vectors of which the greatest entry names the state; "
            f"{env.name!r} has {seen}."
        )
    return seen.shape[0], actions.n


def _state_of(env: Env, obs: Observation) -> Int[Array, "..."]:
    """The state's number, of observations with any leading axes."""
    return obs if isinstance(env.observation_space, spaces.Discrete) else jnp.argmax(obs, axis=-1)


_LEAVES = {
    "step_size": Leaf(1.0, 0.0),
    "exponent": Leaf(2.0 / 3.0, 0.0, 1.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
}
