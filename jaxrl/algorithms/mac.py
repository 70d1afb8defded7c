"""MAC, multi-level Monte Carlo actor-critic for the average reward (Suttle et al. 2023, arXiv:2301.12083).

The aim is the long-run average reward of a continuing task. A trajectory of 2^J transitions, J ~ Geom(1/2), makes one
update; nothing in it depends on how fast the environment mixes. One step of the algorithm takes num_steps transitions
in each of B environments, one after the other; each of them:

    act            a ~ π(·|s)                                                                          [B]
    error          δ = r - ρ + V(s') - V(s)                                                            [B]
    samples        g_ρ = r - ρ,   g_V = δ ∇V(s),   g_π = δ ∇log π(a|s),   means over [B]             like the parameters
    accumulate     h ← h + w g,   w by the place in the trajectory and its level (jaxrl.ops.multilevel)
    update         where the trajectory is complete:  Σ ← Σ + ‖h‖²,   x ← x + α h / √Σ  for each of x = ρ, V, π;
                   h ← 0, and the next level is drawn

Each of ρ, V and π has an AdaGrad step size of its own, one number for all of its parameters. h is the estimate
g^0 + 2^J (g^J - g^(J-1)) with g^j the mean over the first 2^j samples, or g^0 alone where 2^J > T_max = 2^max_level.
Its expectation is that of the mean over T_max samples, its expected length about log2 T_max. As 2^J cancels the
denominators, h is a sum with weights ±1, and no trajectory has to be stored or padded.

The paper's loop draws a level, rolls out 2^J transitions with the parameters fixed, and updates. This is that loop,
cut into steps of a fixed number of transitions: a trajectory may go on in the next step of the algorithm, level, place
and sums are in the state. So no transition is wasted or masked and `env_steps` is exact; only the number of updates in
a step is random. Where 2^J > T_max one transition is taken, as the estimate uses no more (the authors' code takes all).

Continuing tasks: where an episode terminates, s' is the first state of the next one, so a reset is just a transition.
Where a time limit cuts one, s' is the true successor, and the jump is not learned from. Under this aim a task that pays
1 a step for staying alive pays 1 a step whatever one does; `reset_cost` is taken off where an episode terminates.

With a memory the gradient of a transition is taken through its own step of the two cores, and what they remembered
before it is given: nothing is propagated back in time, as the update may come at any transition.

Sources: the estimator, signs and AdaGrad rule are those of the authors' repository (Bridge00/
mixing_rate_reinforcement_learning, class MAC) but for its error's sign (it minimizes costs) and its mean over samples,
which there runs over the entries of a gradient too. The paper's text beyond the abstract was not at hand: whether it
projects the critic to a ball is unchecked, and here it is not. B > 1 is an addition: B chains share the level.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.networks import ActorCritic, NetworkConfig
from jaxrl.networks.actor_critic import apply_one, apply_step, init_params, only_value_reads, to_env_action
from jaxrl.ops import multilevel, trees
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B; the paper has 1.
      num_steps: transitions of each per step of the algorithm, whatever the trajectories' lengths.
      max_level: T_max = 2^max_level is the longest trajectory.
      lengths: `geometric`: the multi-level estimate. `fixed`: every trajectory has T_max transitions and the estimate
        is their mean, the plain actor-critic (with max_level = 0, of every single transition).
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers; `hidden=()` is linear.
    """

    num_envs: int = 1
    num_steps: int = 128
    max_level: int = 5
    lengths: Literal["geometric", "fixed"] = "geometric"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      policy_rate: α of the policy; its first update has this norm.
      value_rate: α of the value.
      reward_rate: α of the average reward's estimate.
      reset_cost: taken off the reward where an episode terminates.
    """

    env: PyTree
    policy_rate: Float[Array, ""]
    value_rate: Float[Array, ""]
    reward_rate: Float[Array, ""]
    reset_cost: Float[Array, ""]


@struct.dataclass
class Learned:
    """The average reward, and the network's parameters; or a gradient of them.

    Attributes:
      reward: ρ.
      params: of value and policy.
    """

    reward: Float[Array, ""]
    params: PyTree


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters.
      average_reward: ρ, of the rewards less `reset_cost`.
      total: h, the trajectory's estimate so far.
      squares: Σ of average reward, value and policy: the squared norms of all their estimates, [3].
      level: of the trajectory in progress.
      position: its transitions so far.
      actor: environments in progress.
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: PyTree
    average_reward: Float[Array, ""]
    total: Learned
    squares: Float[Array, "3"]
    level: Int[Array, ""]
    position: Int[Array, ""]
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


@memoize
def mac(env: Env, network: ActorCritic | None = None, config: Config = Config()) -> Algorithm:
    """Builds MAC for an environment.

    Args:
      env: the environment to learn in.
      network: policy and value, which share no parameter; None builds `config.network` for the environment's spaces.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics: `reward/mean` of the
      transitions (less reset costs), `reward/average` (ρ), `loss/td_error`, `policy/entropy`, and `update/frequency`,
      updates per transition of one environment.

    Raises:
      ValueError: a count or level is out of its range, a choice is unknown, or the network has a core for both.

    Example:
      >>> import jaxrl
      >>> agent = mac(jaxrl.make_env("probe/Credit"), config=Config(num_steps=64))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> agent.env_steps, metrics["reward/mean"].shape
      (64, (2,))
    """
    validation.layers("mac", config.network, NetworkConfig)
    net = acting.network_for(env, network, config.network, separate=True)
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("mac", config, ("num_envs", "num_steps"))
    validation.choices("mac", config)
    reset.validate(config.num_envs)
    if not isinstance(config.max_level, int) or not 0 <= config.max_level <= multilevel.MAX_LEVEL:
        raise ValueError(
            f"mac: max_level must be a whole number from 0 to {multilevel.MAX_LEVEL}; got max_level = "
            f"{config.max_level!r}. The longest trajectory has 2^max_level transitions."
        )
    geometric = config.lengths == "geometric"

    def hyperparams(**changes: Any) -> Hyperparams:
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params())

    def draw_level(key: Key) -> Int[Array, ""]:
        return multilevel.draw_level(key, config.max_level) if geometric else jnp.int32(config.max_level)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_level, key_actor = jax.random.split(key, 4)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        with jax.default_matmul_precision(config.matmul_precision):
            params = init_params(net, key_params, jax.tree.map(lambda x: x[0], actor.obs))
        return State(
            key=key,
            params=params,
            average_reward=jnp.float32(0.0),
            total=Learned(jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)),
            squares=jnp.zeros(3, jnp.float32),
            level=draw_level(key_level),
            position=jnp.int32(0),
            actor=actor,
            num_steps=jnp.int32(0),
        )

    def learn(state: State, row: tuple[Key, Any, Array], hparams: Hyperparams) -> tuple[State, Metrics]:
        """One transition of each environment."""
        key, noise, next_level = row

        # --- Collect ---------------------------------------------------------------------------------------------
        def policy(noise: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            output, memory = apply_step(net, state.params, obs, memory, start)
            action = output.policy.sample_from(noise)
            return action, to_env_action(env.action_space, action), memory, ()

        draws = jax.tree.map(lambda x: x[None], noise)
        actor, batch, metrics = rollout.collect(key, env, hparams.env, state.actor, policy, draws, reset)
        step = jax.tree.map(lambda x: x[0], batch)

        # --- Estimate --------------------------------------------------------------------------------------------
        reward = step.reward - jnp.where(step.terminated, hparams.reset_cost, 0.0)
        successor = trees.where(step.terminated, actor.obs, step.next_obs)
        next_value = apply_step(net, state.params, successor, step.memory, step.terminated)[0].value
        surplus = reward - state.average_reward

        def gain(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            # Its gradient is δ ∇(log π + V): no parameter is in both, so that each gets its own.
            output, _ = apply_step(net, params, step.obs, state.actor.memory, step.start)
            delta = jax.lax.stop_gradient(surplus + next_value - output.value)
            both = output.policy.log_prob(step.action) + output.value
            return jnp.mean(delta * both), (delta, output.policy.entropy())

        gradient, (delta, entropy) = jax.grad(gain, has_aux=True)(state.params)
        weight = multilevel.sample_weight(state.position, state.level) if geometric else 0.5**config.max_level
        sample = Learned(jnp.mean(surplus), gradient)
        total = jax.tree.map(lambda h, g: h + weight * g, state.total, sample)

        # --- Update ----------------------------------------------------------------------------------------------
        last = state.position + 1 == 1 << state.level
        norms = jnp.stack([jnp.square(total.reward), *_squared_norms(total.params)])
        squares = state.squares + jnp.where(last, norms, 0.0)
        rates = jnp.stack([hparams.reward_rate, hparams.value_rate, hparams.policy_rate])
        sizes = jnp.where(last, rates / jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0)), 0.0)
        params = jax.tree_util.tree_map_with_path(
            lambda path, x, h: x + jnp.where(only_value_reads(path), sizes[1], sizes[2]) * h, state.params, total.params
        )
        metrics |= {
            "reward/mean": jnp.mean(reward),
            "reward/average": state.average_reward,
            "loss/td_error": jnp.mean(jnp.abs(delta)),
            "policy/entropy": jnp.mean(entropy),
            "update/frequency": last.astype(jnp.float32),
        }
        return dataclasses.replace(
            state,
            params=params,
            average_reward=state.average_reward + sizes[0] * total.reward,
            total=jax.tree.map(lambda h: jnp.where(last, 0.0, h), total),
            squares=squares,
            level=jnp.where(last, next_level, state.level),
            position=jnp.where(last, 0, state.position + 1),
            actor=actor,
        ), metrics

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_steps, key_noise, key_levels = jax.random.split(state.key, 4)
        # All noise in one draw: inside the loop over time it would cost more than the network.
        look = lambda actor: apply_step(net, state.params, actor.obs, actor.memory, actor.start)[0].policy
        shapes = jax.eval_shape(look, state.actor)
        noise = jax.vmap(shapes.noise)(jax.random.split(key_noise, config.num_steps))
        levels = jax.vmap(draw_level)(jax.random.split(key_levels, config.num_steps))
        rows = (jax.random.split(key_steps, config.num_steps), noise, levels)
        with jax.default_matmul_precision(config.matmul_precision):
            state, metrics = jax.lax.scan(lambda state, row: learn(state, row, hparams), state, rows)
        return dataclasses.replace(state, key=key, num_steps=state.num_steps + 1), rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(config.matmul_precision):
            output, memory = apply_one(net, state.params, obs, memory)
        return acting.choose(env, output, key), memory

    env_steps = config.num_envs * config.num_steps
    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=env_steps, name="mac", env=env, config=config
    )


def _squared_norms(gradient: PyTree) -> tuple[Array, Array]:
    """Of the value's part and of the policy's."""
    leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
    parts = ([leaf for path, leaf in leaves if only_value_reads(path) == mine] for mine in (True, False))
    value, policy = (jnp.asarray(optax.tree.norm(part, squared=True)) for part in parts)
    return value, policy


_LEAVES = {
    "policy_rate": Leaf(0.3, 0.0),
    "value_rate": Leaf(1.0, 0.0),
    "reward_rate": Leaf(0.3, 0.0),
    "reset_cost": Leaf(0.0),
}
