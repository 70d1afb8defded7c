"""What agents that learn control from replay share: the frame of their step.

A `Frame` warms up, collects, stores and draws; the agent says how it acts and what an update is. Actions are stored as
the policies give them: between -1 and 1 and flat, or the number of a discrete one.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import buffers, chunks, datasets, rollout, spaces, validation
from jaxrl.alternating import Draws, Order, alternate, last_of_each, order
from jaxrl.buffers import Buffer, BufferState, Experience, NStep, Sample
from jaxrl.networks.actor_critic import to_env_action
from jaxrl.ops import reward_scaling, schedules, statistics
from jaxrl.ops.optimizers import Optimizer
from jaxrl.types import Env, EnvParams, Key, Memory, Metrics, Observation

Tree = TypeVar("Tree")


@struct.dataclass
class Learner:
    """What updates change; parts are called policy, critic, and what else there is.

    Attributes:
      params: parameters of each part.
      opt_state: states of their optimizers.
      target_params: averages or copies of parameters, in the form that the agent has them.
      statistics: running moments of the networks of each part, {} without batch normalization.
    """

    params: dict[str, PyTree]
    opt_state: dict[str, optax.OptState]
    target_params: PyTree
    statistics: dict[str, PyTree]


@struct.dataclass
class State:
    """All that one step of an agent with replay changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      learner: parameters and all that their updates change.
      actor: environments in progress.
      buffer: replay, a `BufferState`; () offline.
      observation_statistics: running, () if observations are not normalized.
      reward_scale: by what drawn rewards are divided, () if they are not.
      acting: hyperparameters that `act` reads.
      num_steps: steps of the algorithm done.
    """

    key: Key
    learner: Learner
    actor: rollout.ActorState
    buffer: PyTree
    observation_statistics: statistics.RunningStatistics | tuple[()]
    reward_scale: reward_scaling.ReturnScale | tuple[()]
    acting: PyTree
    num_steps: Int[Array, ""]

    @property
    def params(self) -> dict[str, PyTree]:
        """The learner's parameters."""
        return self.learner.params

    @property
    def world(self) -> "World":
        """What collecting changes."""
        return World(self.actor, self.buffer, self.observation_statistics, self.reward_scale)


class World(NamedTuple):
    """What collecting changes.

    Attributes:
      actor: environments in progress.
      buffer: replay, a `BufferState`; offline the dataset during a step, otherwise ().
      seen: statistics of the observations, or () if they are not normalized.
      reward_scale: of the returns, or () if rewards are not divided by anything.
    """

    actor: rollout.ActorState
    buffer: PyTree
    seen: statistics.RunningStatistics | tuple[()]
    reward_scale: reward_scaling.ReturnScale | tuple[()]

    def normalized(self, obs: Observation) -> Observation:
        """Observations as the networks see them: by their statistics, if there are any."""
        return obs if isinstance(self.seen, tuple) else statistics.normalize(self.seen, obs)

    def observe(self, batch: rollout.Transition, gamma: Float[Array, ""]) -> "World":
        """With a rollout in the statistics, if there are any."""
        seen, scale = self.seen, self.reward_scale
        if not isinstance(seen, tuple):
            seen = statistics.update_statistics(seen, batch.obs, 2)
        if not isinstance(scale, tuple):
            scale = reward_scaling.observe_returns(scale, batch.reward, batch.ended, gamma)
        return self._replace(seen=seen, reward_scale=scale)

    def scaled(self, batch: NStep, bound: Float[Array, ""] | float) -> NStep:
        """Transitions with rewards that make returns of at most the bound, if rewards are scaled."""
        if isinstance(self.reward_scale, tuple):
            return batch
        divisor = reward_scaling.return_divisor(self.reward_scale, bound)
        return dataclasses.replace(batch, reward=batch.reward / divisor)


class _Learning(NamedTuple):
    """What the updates of one step of the algorithm carry from one to the next.

    Attributes:
      learner: as it is.
      priorities: of the buffer, which updates change though they change nothing else of it; () if uniform.
      index: entries that the last update of the critics has drawn; () if uniform.
    """

    learner: Learner
    priorities: PyTree
    index: PyTree


class Frame(NamedTuple):
    """The step of an agent with replay but for what it computes.

    Attributes:
      env: the environment.
      config: with the fields that `check_config` names; with `prioritized`, if it has that, replay is by priority, with
        `normalize_rewards` the rewards drawn are divided by what bounds their returns, with a `length` above 1 each
        transition drawn has that many actions in a row, with `returns` of retrace whole windows are drawn, with
        `offline` nothing is collected and draws are from a dataset.
      plan: how rounds and updates follow each other.
      buffer: draws batches.
      reset: where new episodes start.
    """

    env: Env
    config: Any
    plan: Order
    buffer: Buffer
    reset: rollout.Reset

    @property
    def prioritized(self) -> bool:
        """Whether replay is by priority."""
        return getattr(self.config, "prioritized", False)

    @property
    def length(self) -> int:
        """Actions of a transition drawn."""
        return getattr(self.config, "length", 1)

    @property
    def draws_windows(self) -> bool:
        """Whether a batch is all rows of its windows, instead of one transition over each."""
        return getattr(self.config, "returns", "n_step") == "retrace"

    @property
    def offline(self) -> bool:
        """Whether draws are from a dataset and nothing is collected."""
        return getattr(self.config, "offline", False)

    @property
    def env_steps(self) -> int:
        """Transitions of one step of the algorithm; offline its updates of the critics."""
        if self.offline:
            return self.config.num_rounds * self.config.num_updates
        return self.config.num_envs * self.config.num_steps * self.config.num_rounds

    @property
    def acting_shape(self) -> tuple[int, int, int]:
        """(rounds, steps, environments) of one step of the algorithm."""
        return self.config.num_rounds, self.config.num_steps, self.config.num_envs

    def start(
        self,
        key: Key,
        env_params: EnvParams,
        memory: Memory = (),
        replay: PyTree = (),
        gamma: Float[Array, ""] | float = 0.0,
        extras: PyTree = (),
    ) -> World:
        """Environments after the random warm-up, and the buffer with it.

        Args:
          key: a random key.
          env_params: parameters of the environment.
          memory: initial memory of what acts, leaves [B, ...].
          replay: coefficients of the buffer, `buffer.hyperparams()`; offline the dataset.
          gamma: discount of the returns that rewards are scaled by.
          extras: what is stored of each random action besides.

        Raises:
          ValueError: offline without a dataset, or with one of another environment; a dataset while not offline.
        """
        key_actor, key_warmup = jax.random.split(key)
        actor = rollout.start(key_actor, self.env, env_params, self.config.num_envs, memory, self.reset)
        if self.offline:
            datasets.check(self.env, replay, max(self.config.n_step, self.length))
            seen = ()
            if self.config.normalize_observations:
                seen = statistics.init_statistics(jax.tree.map(lambda x: x[0], actor.obs))
                seen = statistics.update_statistics(seen, replay.items.obs, 2)
            return World(actor, (), seen, ())
        if isinstance(replay, BufferState):
            raise ValueError("replay: a dataset has no effect on an agent that collects; set Config(offline=True).")
        actor, batch = warm_up(key_warmup, self.env, env_params, actor, self.config.num_warmup_steps, self.reset)
        shape = batch.reward.shape
        extras = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), extras)
        rows, seen, scale = experience(dataclasses.replace(batch, extras=extras)), (), ()
        stored = buffers.extend(self.buffer, replay, self.buffer.init(jax.tree.map(lambda x: x[0, 0], rows)), rows)
        if self.config.normalize_observations:
            seen = statistics.init_statistics(jax.tree.map(lambda x: x[0, 0], batch.obs))
        if getattr(self.config, "normalize_rewards", False):
            scale = reward_scaling.init_return_scale(self.config.num_envs)
        return World(actor, stored, seen, scale).observe(batch, jnp.asarray(gamma, jnp.float32))

    def progress(self, num_steps: Array, horizon: Float[Array, ""]) -> Float[Array, ""]:
        """Share of the horizon that so many steps of the algorithm are."""
        return schedules.progress(num_steps.astype(jnp.float32) * self.env_steps, horizon)

    def factor(self, num_steps: Array, horizon: Float[Array, ""]) -> Float[Array, ""]:
        """What the learning rates are multiplied by after so many steps of the algorithm."""
        return schedules.SCHEDULES[self.config.schedule](self.progress(num_steps, horizon))

    def run(
        self,
        keys: tuple[Key, Key],
        learner: Learner,
        world: World,
        env_params: EnvParams,
        gamma: Float[Array, ""],
        draws: Draws,
        behave: Callable[[Learner, Any, Observation, Memory, Array], tuple[Any, ...]],
        critic: Callable[[Learner, Any, Any], Any],
        policy: Callable[[Learner, Any, Observation], tuple[Learner, Metrics]],
        replay: PyTree = (),
        progress: Float[Array, ""] | float = 0.0,
        return_bound: Float[Array, ""] | float = 1.0,
    ) -> tuple[tuple[Learner, World], Metrics]:
        """One step of the algorithm: rounds of collecting, critic updates and policy updates.

        Args:
          keys: of the environments, and of the replay.
          learner: what updates change.
          world: what collecting changes.
          env_params: parameters of the environment.
          gamma: discount of the transitions over n steps.
          draws: the agent's random numbers: of collecting, leaves [R, T, ...]; of critics [R, U, ...]; of policies
            [P, ...].
          behave: `(learner, draw, obs [B], memory [B], start [B]) -> (action [B, ...], memory)`, and what else is to be
            stored after these.
          critic: `(learner, draw, batch [N]) -> (learner, metrics)`, and with replay by priority the error of each
            transition [N] after these; the batch then has its importance weights. The batch is an `NStep`, or an
            `Experience` [n, N] if whole windows are drawn.
          policy: `(learner, draw, obs [N]) -> (learner, metrics)`; its batch is that of the critic's update before it.
          replay: coefficients of the buffer, `buffer.hyperparams()`; offline the dataset.
          progress: of the training, from 0 to 1, which the importance weights follow.
          return_bound: of returns, where rewards are scaled.

        Returns:
          Learner and world, and the metrics of all rounds in one.
        """
        config = self.config
        bits = self.buffer.noise(keys[1], *self.plan.updates_shape)
        rows = Draws(
            collect=(jax.random.split(keys[0], config.num_rounds), draws.collect),
            critic=(bits, draws.critic),
            policy=(last_of_each(self.plan, bits), draws.policy),
        )

        def sampled(world: World, priorities: PyTree, bits: Array) -> Sample:
            stored = dataclasses.replace(world.buffer, priorities=priorities)
            return self.buffer.sample(replay, stored, bits, jnp.asarray(progress, jnp.float32))

        def collect(learning: _Learning, world: World, row: Any) -> tuple[_Learning, World, Metrics]:
            if self.offline:
                return learning, world, {}

            def act(draw: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
                action, memory, *extras = behave(learning.learner, draw, world.normalized(obs), memory, start)
                return action, to_env_action(self.env.action_space, action), memory, extras[0] if extras else ()

            key, own = row
            actor, batch, metrics = rollout.collect(key, self.env, env_params, world.actor, act, own, self.reset)
            stored = dataclasses.replace(world.buffer, priorities=learning.priorities)
            stored = self.buffer.add(replay, stored, experience(batch))
            learning = learning._replace(priorities=stored.priorities)
            world = world._replace(actor=actor, buffer=dataclasses.replace(stored, priorities=()))
            world = world.observe(batch, gamma)
            if not isinstance(world.reward_scale, tuple):
                metrics["reward/divisor"] = reward_scaling.return_divisor(world.reward_scale, return_bound)
            return learning, world, metrics

        def batch_of(world: World, drawn: Sample) -> Any:
            items, index = world.buffer.items, drawn.index
            if self.draws_windows:
                rows: Experience = buffers.windows(items, index, config.n_step)
                obs, next_obs = world.normalized(rows.obs), world.normalized(rows.next_obs)
                return dataclasses.replace(rows, obs=obs, next_obs=next_obs)
            batch = buffers.n_step(items, index, config.n_step, gamma)
            action = chunks.taken(items, index, self.length) if self.length > 1 else batch.action
            obs, next_obs = world.normalized(batch.obs), world.normalized(batch.next_obs)
            weight = drawn.weight if self.prioritized else ()
            batch = dataclasses.replace(batch, obs=obs, action=action, next_obs=next_obs, weight=weight)
            return world.scaled(batch, return_bound)

        def critic_update(learning: _Learning, row: Any, world: World) -> tuple[_Learning, Metrics]:
            drawn = sampled(world, learning.priorities, row[0])
            learner, metrics, *errors = critic(learning.learner, row[1], batch_of(world, drawn))
            if not self.prioritized:
                return learning._replace(learner=learner), metrics
            priorities = self.buffer.update(replay, learning.priorities, drawn.index, errors[0])
            return _Learning(learner, priorities, drawn.index), metrics

        def policy_update(learning: _Learning, row: Any, world: World) -> tuple[_Learning, Metrics]:
            # Priorities have changed since the critic's update: the same bits would draw another batch.
            index = learning.index if self.prioritized else sampled(world, (), row[0]).index
            obs = jax.tree.map(lambda x: x[0], buffers.windows(world.buffer.items.obs, index, 1))
            learner, metrics = policy(learning.learner, row[1], world.normalized(obs))
            return learning._replace(learner=learner), metrics

        index = jnp.zeros(config.batch_size, jnp.int32) if self.prioritized else ()
        if self.offline:
            world = world._replace(buffer=replay)
        learning = _Learning(learner, world.buffer.priorities, index)
        world = world._replace(buffer=dataclasses.replace(world.buffer, priorities=()))
        (learning, world), metrics = alternate(
            self.plan, (learning, world), rows, collect, critic_update, policy_update
        )
        stored = () if self.offline else dataclasses.replace(world.buffer, priorities=learning.priorities)
        return (learning.learner, world._replace(buffer=stored)), rollout.summarize(metrics)


def frame(owner: str, env: Env, config: Any) -> Frame:
    """The frame that a config describes.

    Args:
      owner: the algorithm, for messages.
      env: the environment.
      config: see `check_config`.

    Raises:
      ValueError: what `check_config`, `order`, `rollout.Reset.validate` and the buffer raise.
    """
    check_config(owner, config)
    plan = order(owner, config.num_rounds, config.num_updates, config.policy_delay)
    reset = rollout.Reset(config.reset, config.reset_size)
    reset.validate(config.num_envs)
    num_rows = max(config.n_step, getattr(config, "length", 1))
    if getattr(config, "offline", False):
        buffer = buffers.fixed(config.batch_size, num_rows, datasets.example_of(env))
    else:
        make_buffer = buffers.prioritized if getattr(config, "prioritized", False) else buffers.uniform
        buffer = make_buffer(config.capacity, config.num_envs, config.batch_size, num_rows)
    return Frame(env, config, plan, buffer, reset)


def experience(batch: rollout.Transition) -> Experience:
    """What of a rollout is stored."""
    return Experience(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(Experience)})


def optimizers(
    optimizer: Optimizer, hparams: Any, parts: Iterable[str], factor: Float[Array, ""] | float
) -> dict[str, optax.GradientTransformation]:
    """A transformation for each part, with its learning rate times a factor.

    Args:
      optimizer: makes them.
      hparams: with a leaf `<part>_learning_rate` for each.
      parts: their names.
      factor: of all rates.
    """
    return {name: optimizer(hparams, factor * getattr(hparams, f"{name}_learning_rate")) for name in parts}


def descend(
    learner: Learner, part: str, gradient: PyTree, transforms: dict[str, optax.GradientTransformation]
) -> Learner:
    """One optimizer step of one part of a learner.

    Args:
      learner: before it.
      part: its name.
      gradient: of the loss.
      transforms: from `optimizers`.

    Returns:
      The learner with that part's parameters and optimizer state replaced.
    """
    before = learner.params[part]
    updates, opt_state = transforms[part].update(gradient, learner.opt_state[part], before)
    return dataclasses.replace(
        learner,
        params={**learner.params, part: optax.apply_updates(before, updates)},
        opt_state={**learner.opt_state, part: opt_state},
    )


def dropout_keys(key: Key, stochastic: bool, plan: Order) -> tuple[Any, Any]:
    """Keys of dropout for the updates of critics and of policies; None for each if there is none."""
    if not stochastic:
        return None, None
    key_critic, key_policy = jax.random.split(key)
    return jax.random.split(key_critic, plan.updates_shape), jax.random.split(key_policy, plan.num_policy_updates)


def follow(target: Tree, params: Tree, tau: Float[Array, ""] | float) -> Tree:
    """Polyak averaging, (1 - τ) θ' + τ θ (Lillicrap et al. 2015, arXiv:1509.02971, algorithm 1).

    Args:
      target: θ'.
      params: θ.
      tau: τ.

    >>> follow(jnp.float32(0.0), jnp.float32(4.0), 0.25).item()
    1.0
    """
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, params)


def warm_up(
    key: Key, env: Env, env_params: EnvParams, actor: rollout.ActorState, num_steps: int, reset: rollout.Reset
) -> tuple[rollout.ActorState, rollout.Transition]:
    """Steps with uniform actions.

    Args:
      key: a random key.
      env: with actions that are discrete or a bounded `Box`.
      env_params: its parameters.
      actor: B environments.
      num_steps: of each environment, T.
      reset: where new episodes start.

    Returns:
      The environments after it, and the transitions [T, B]; actions between -1 and 1, flat, or discrete.
    """
    key_action, key_collect = jax.random.split(key)
    space, shape = env.action_space, (num_steps, len(actor.start))

    def policy(action: Array, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
        return action, to_env_action(space, action), memory, ()

    if isinstance(space, spaces.Discrete):
        actions = jax.random.randint(key_action, shape, 0, space.n)
    else:
        actions = jax.random.uniform(key_action, (*shape, spaces.size(space)), jnp.float32, -1.0, 1.0)
    actor, batch, _ = rollout.collect(key_collect, env, env_params, actor, policy, actions, reset)
    return actor, batch


def check_config(owner: str, config: Any) -> None:
    """Checks the counts and choices of a config of an agent with replay.

    Args:
      owner: the algorithm, for messages.
      config: with num_envs, num_steps, num_updates, num_rounds, policy_delay, batch_size, capacity, num_warmup_steps
        and n_step; its `length`, if it has that, is checked too.

    Raises:
      ValueError: a count is not positive, a choice unknown, or rows would be split at the buffer's end.
    """
    names = "num_envs num_steps num_updates num_rounds policy_delay batch_size capacity num_warmup_steps n_step"
    length = getattr(config, "length", 1)
    validation.counts(owner, config, names.split())
    validation.count(owner, "length", length)
    validation.choices(owner, config)
    if getattr(config, "offline", False):
        for name in ("prioritized", "normalize_rewards"):
            if getattr(config, name, False):
                raise ValueError(
                    f"{owner}: a dataset is drawn from uniformly and has the rewards that it has; got offline = True "
                    f"with {name} = True: set {name}=False."
                )
        return
    buffers.check_rows(owner, config, max(config.n_step, length))
