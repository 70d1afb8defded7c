"""Deep Q-learning from replay (Mnih et al. 2015), and everything that is a choice of its parts.

One step of the algorithm is `num_rounds` times, with shapes:

    collect        T steps in B environments, ε-greedily                         [T, B]
    store          in a ring; batches are drawn uniformly or by priority         [L, B]
    update         num_updates times
      draw         N windows of n rows: transitions over n steps                 [N]
      backup       successor's policy and bonuses                                [N, A]
      loss         of the head's representation; one optimizer step              [N, K]
      priorities   of the entries drawn                                          [N]
      target       copied every `target_period` updates, or averaged

With a network that has a memory what is drawn are sequences (R2D2, Kapturowski et al. 2019): windows of
burn_in + length + n - 1 rows, the first with the memory that acting had there. Both networks go through all rows from
it, forgetting where an episode starts; the loss is of the `length` rows after the burn-in, N of them one after another.
With `num_links` above 1 every link of a chain of networks does the update on the same draw (i-QN).

The buffer begins with `num_warmup_steps` random steps of each environment, made by `init`; they count neither in
`env_steps` nor in progress. All random numbers of a step are drawn before the loops.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import buffers, rollout, spaces, validation, values
from jaxrl.buffers import BufferState, Experience
from jaxrl.networks import q_network as networks
from jaxrl.networks.q_network import QNetwork, QNetworkConfig, QOutput, q_network
from jaxrl.ops import schedules
from jaxrl.ops.leaves import Leaf, build
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize
from jaxrl.values import Backup, BackupInputs, Target, ValueHead, sequences
from jaxrl.values.sequences import Sequences


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment in a round, T.
      num_updates: gradient steps in a round.
      num_rounds: rounds of one step of the algorithm; only batches random numbers and metrics.
      batch_size: transitions of a gradient step, N; with a memory sequences.
      capacity: transitions kept; a multiple of num_envs · num_steps.
      num_warmup_steps: steps of each environment with random actions before the first update; a multiple of
        `num_steps`. Of more than the capacity holds the last are kept.
      n_step: rows of a target, n.
      burn_in: rows that only bring the memory up to date, with a memory.
      length: rows of a sequence that are learned, with a memory.
      num_links: networks in a chain, of which each learns from the target of the one before; 1 is no chain.
      prioritized: whether replay is by priority.
      target: whether the successor is valued by a copy of the parameters, or by themselves.
      schedule: how the learning rate falls with progress: constant, linear or cosine.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      network: the default network's layers.
    """

    num_envs: int = 8
    num_steps: int = 1
    num_updates: int = 1
    num_rounds: int = 64
    batch_size: int = 128
    capacity: int = 16_384
    num_warmup_steps: int = 1_024
    n_step: int = 1
    burn_in: int = 0
    length: int = 1
    num_links: int = 1
    prioritized: bool = False
    target: bool = True
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    network: QNetworkConfig = dataclasses.field(default_factory=QNetworkConfig)


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      head: coefficients of the representation of returns.
      backup: coefficients of what is bootstrapped from.
      replay: coefficients of priorities (`buffers.Coefficients`), or ().
      priority_max: share of the greatest error in a sequence's priority, the rest being the mean; () without sequences
        or priorities.
      sync_period: updates from one synchronization of a chain's targets to the next; () without a chain.
      learning_rate: of the optimizer, at the beginning.
      gamma: discount factor.
      epsilon_start: share of random actions at the beginning.
      epsilon_end: share of random actions at the end of the decay.
      epsilon_fraction: share of `horizon` over which it decays linearly.
      target_period: updates from one synchronization of the target to the next; of a chain from one move of its window.
      tau: how far it moves then: 1 copies.
      max_grad_norm: gradients of a greater global norm are scaled down to it; by default hardly any are. Infinity
        has no derivative, so meta-gradients through updates need a number.
      horizon: environment steps over which progress goes from 0 to 1.
    """

    env: PyTree
    head: PyTree
    backup: PyTree
    replay: PyTree
    priority_max: PyTree
    sync_period: PyTree
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    epsilon_start: Float[Array, ""]
    epsilon_end: Float[Array, ""]
    epsilon_fraction: Float[Array, ""]
    target_period: Float[Array, ""]
    tau: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    horizon: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: the network's parameters; of a chain leaves [C, ...], as those of the next two.
      opt_state: the optimizer's state.
      target_params: those that the successor is valued by, or ().
      target_age: updates since they were synchronized.
      actor: environments in progress.
      buffer: replay.
      head: coefficients of the head, which acting reads.
      epsilon: present share of random actions.
      num_steps: steps of the algorithm done.
    """

    key: Key
    params: PyTree
    opt_state: optax.OptState
    target_params: PyTree
    target_age: Int[Array, ""]
    actor: rollout.ActorState
    buffer: BufferState
    head: PyTree
    epsilon: Float[Array, ""]
    num_steps: Int[Array, ""]


@struct.dataclass
class _Learner:
    """What a gradient step changes."""

    params: PyTree
    opt_state: optax.OptState
    target_params: PyTree
    target_age: Int[Array, ""]
    priorities: PyTree


@struct.dataclass
class _Drawn:
    """What a gradient step learns from: M transitions, of sequences those learned."""

    batch: buffers.NStep
    past: Sequences | None
    weight: Float[Array, " M"]
    keys: tuple[Any, ...]
    progress: Float[Array, ""]


@memoize
def dqn(
    env: Env,
    network: QNetwork | None = None,
    head: ValueHead = values.scalar(),  # noqa: B008 (memoized record)
    backup: Backup = values.maximum(),  # noqa: B008
    optimizer: Optimizer = adam,
    config: Config = Config(),
) -> Algorithm:
    """Builds deep Q-learning for an environment with discrete actions.

    Args:
      env: the environment to learn in.
      network: values of all actions; None builds `config.network` for the environment's spaces and the head.
      head: how returns are represented; its coefficients are `hparams.head`.
      backup: what is bootstrapped from; its coefficients are `hparams.backup`.
      optimizer: makes the gradient transformation from the hyperparameters and the present learning rate.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`.

    Raises:
      ValueError: actions are not discrete, a count is not positive, a choice is unknown, the capacity or the warm-up
        does not fit, or a network's outputs are not those of the head.

    Example:
      >>> import jaxrl
      >>> config = Config(num_envs=4, num_rounds=2, batch_size=8, capacity=64, num_warmup_steps=8)
      >>> agent = dqn(jaxrl.make_env("gymnax/CartPole-v1"), backup=values.double(), config=config)
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=3))(jax.random.key(1), agent.hyperparams())
      >>> metrics["loss/value"].shape, int(state.buffer.filled)
      ((3,), 14)
    """
    net = _network(env, network, head, config)
    reset = rollout.Reset(config.reset, config.reset_size)
    validation.counts("dqn", config, _COUNTS)
    validation.choices("dqn", config)
    reset.validate(config.num_envs)
    _check_parts(net, config)
    window = config.burn_in + config.length + config.n_step - 1
    make_buffer = buffers.prioritized if config.prioritized else buffers.uniform
    buffer = make_buffer(config.capacity, config.num_envs, config.batch_size, window)
    buffers.check_rows("dqn", config, window)
    round_size = config.num_envs * config.num_steps
    batch_size = round_size * config.num_rounds
    precision = config.matmul_precision
    num_online, num_target, num_policy = head.fractions or (1, 1, 1)
    chain, learned = config.num_links > 1, (config.burn_in, config.length)
    absent = () if net.recurrent and config.prioritized else ("priority_max",)
    absent += () if chain else ("sync_period",)

    def hyperparams(**changes: Any) -> Hyperparams:
        for name in absent:
            if name in changes:
                raise ValueError(f"dqn: {name} = {changes[name]} has no effect without {_NEEDS[name]}.")
        leaves = {name: leaf for name, leaf in _LEAVES.items() if name not in absent}
        nested = {"head": head.init(), "backup": backup.init(), "replay": buffer.hyperparams()}
        return build(
            Hyperparams, leaves, config, changes, env=env.default_params(), **nested, **dict.fromkeys(absent, ())
        )

    def evaluate(
        params: PyTree, obs: Observation, key: Key | None, num: int, memory: Memory = (), start: Any = None
    ) -> QOutput:
        return networks.apply_step(net, params, obs, key, num, memory, start)

    def value_of(hparams: PyTree, output: QOutput, obs: Observation) -> Float[Array, "... A"]:
        return values.legal_only(head.mean(hparams, output), obs)

    def tempting(hparams: PyTree, output: QOutput, obs: Observation) -> Float[Array, "... A"]:
        """What sampled acting maximizes."""
        return values.legal_only((head.explore or head.mean)(hparams, output), obs)

    def collect(
        key: Key, noise: PyTree, params: PyTree, actor: rollout.ActorState, epsilon: Array, hparams: Hyperparams
    ) -> tuple[rollout.ActorState, Experience, Metrics]:
        def policy(draw: Any, obs: Observation, memory: Memory, start: Array) -> tuple[Any, Any, Memory, Any]:
            numbers, key_network, link = draw
            output = evaluate(_link(params, link), obs, key_network, num_policy, memory, start)
            action = values.epsilon_greedy(numbers, tempting(hparams.head, output, obs), epsilon)
            return action, action, output.memory, (memory, start) if net.recurrent else ()

        actor, batch, metrics = rollout.collect(key, env, hparams.env, actor, policy, noise, reset)
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Experience)}
        return actor, Experience(**fields), metrics

    def draws(key: Key, *axes: int) -> tuple[Array, Any, Any]:
        """Randomness of as many steps: what makes actions random, what the network draws from, which link acts."""
        key, key_network = jax.random.split(key)
        links = None
        if chain:
            key_network, key_link = jax.random.split(key_network)
            links = jax.random.randint(key_link, axes, 0, config.num_links)
        keys = jax.random.split(key_network, axes) if net.stochastic else None
        return jax.random.uniform(key, (*axes, config.num_envs, 2)), keys, links

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_params, key_actor, key_noise, key_collect = jax.random.split(key, 5)
        memory = net.initial_memory((config.num_envs,))
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, memory, reset)
        obs = jax.tree.map(lambda x: x[0], actor.obs)
        start = lambda key: networks.init_params(net, key, obs)
        optimize = optimizer(hparams, hparams.learning_rate).init
        if chain:
            start, optimize = jax.vmap(start), jax.vmap(optimize)
            key_params = jax.random.split(key_params, config.num_links)
        params = start(key_params)
        actor, rows, _ = collect(
            key_collect, draws(key_noise, config.num_warmup_steps), params, actor, jnp.float32(1.0), hparams
        )
        item = jax.tree.map(lambda x: x[0, 0], rows)
        return State(
            key=key,
            params=params,
            opt_state=optimize(params),
            target_params=jax.tree.map(jnp.copy, params) if config.target else (),
            target_age=jnp.int32(0),
            actor=actor,
            buffer=buffers.extend(buffer, hparams.replay, buffer.init(item), rows),
            # Copies: the state is donated, the hyperparameters are not.
            head=jax.tree.map(jnp.copy, hparams.head),
            epsilon=jnp.copy(hparams.epsilon_start),
            num_steps=jnp.int32(0),
        )

    def update(
        online: PyTree, opt_state: Any, frozen: PyTree, drawn: _Drawn, hparams: Hyperparams
    ) -> tuple[PyTree, Any, Array, Metrics]:
        """One gradient step of one network, or of one link of the chain."""
        batch, past, keys = drawn.batch, drawn.past, drawn.keys

        # --- Estimate ------------------------------------------------------------------------------------------------
        known, known_frozen = (sequences.recall(net, x, past, batch.length, config.burn_in) for x in (online, frozen))
        following = evaluate(frozen, batch.next_obs, keys[0], num_target, known_frozen.after)
        chosen_by = following
        if head.fractions:
            # Implicit quantiles choose by fractions of their own.
            chosen_by = evaluate(frozen, batch.next_obs, keys[1], num_policy, known_frozen.after)
        ahead = evaluate(online, batch.next_obs, keys[2], num_policy, known.after)
        first = sequences.starts_of(past, *learned)
        now = evaluate(frozen, batch.obs, keys[3], num_policy, known_frozen.before, first)
        weight, shift, bonus = backup.choose(
            hparams.backup,
            BackupInputs(
                online_next=value_of(hparams.head, ahead, batch.next_obs),
                target_next=value_of(hparams.head, chosen_by, batch.next_obs),
                target_now=value_of(hparams.head, now, batch.obs),
                action=batch.action,
                progress=drawn.progress,
            ),
        )
        reward = batch.reward if bonus is None else batch.reward + bonus
        target = Target(reward, batch.discount, following, weight, shift, backup.greedy)
        if head.whole:
            target = dataclasses.replace(target, action=batch.action, online_next=ahead, now=now)

        # --- Update --------------------------------------------------------------------------------------------------
        def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            if past is None:
                output = evaluate(params, batch.obs, keys[4], num_online)
            else:
                output = sequences.evaluate_rows(net, params, past, known.first, *learned, keys[4], num_online)
            taken = jnp.take_along_axis(output.values, batch.action[:, None, None], axis=1)[:, 0]
            seen = output if head.whole else dataclasses.replace(output, values=taken)
            losses, surprise = head.loss(hparams.head, seen, target)
            return jnp.mean(drawn.weight * losses), (surprise, jnp.mean(head.mean(hparams.head, output)))

        rate = hparams.learning_rate * schedules.SCHEDULES[config.schedule](drawn.progress)
        (value_loss, (surprise, mean)), gradient = jax.value_and_grad(loss, has_aux=True)(online)
        updates, opt_state = optimizer(hparams, rate).update(gradient, opt_state, online)
        info = {
            "loss/value": value_loss,
            "loss/surprise": jnp.mean(surprise),
            "value/mean": mean,
            "gradient/norm": optax.tree.norm(gradient),
        }
        return optax.apply_updates(online, updates), opt_state, surprise, info

    def learn(
        learner: _Learner, bits: Array, key: Key | None, replay: BufferState, progress: Array, hparams: Hyperparams
    ) -> tuple[_Learner, Metrics]:
        """Draws, updates, and what follows from it."""
        keys = (None,) * 5 if key is None else tuple(jax.random.split(key, 5))
        replay = dataclasses.replace(replay, priorities=learner.priorities)
        sample = buffer.sample(hparams.replay, replay, bits, progress)
        rows, weight, past = sample.index, sample.weight, None
        if net.recurrent:
            rows = sequences.learned_rows(rows, config.capacity // config.num_envs, config.num_envs, *learned)
            weight = jnp.tile(weight, config.length)
            obs, (memory, start) = buffers.windows((replay.items.obs, replay.items.extras), sample.index, window)
            past = Sequences(obs, start, jax.tree.map(lambda x: x[0], memory))
        batch = buffers.n_step(replay.items, rows, config.n_step, hparams.gamma)
        drawn = _Drawn(batch, past, weight, keys, progress)
        frozen, age = learner.target_params if config.target else learner.params, learner.target_age
        each = jax.vmap(update, (0, 0, 0, None, None)) if chain else update
        params, opt_state, surprise, info = each(learner.params, learner.opt_state, frozen, drawn, hparams)
        if chain:
            info, surprise = jax.tree.map(jnp.mean, info), jnp.mean(surprise, axis=0)
            periods = (hparams.target_period, hparams.sync_period, hparams.tau)
            frozen, params, age = values.synchronize_chain(frozen, params, age, *periods)
        elif config.target:
            frozen, age = values.synchronize(frozen, params, age, hparams.target_period, hparams.tau)
        if net.recurrent and config.prioritized:
            errors, share = surprise.reshape((config.length, -1)), hparams.priority_max
            surprise = share * jnp.max(errors, axis=0) + (1.0 - share) * jnp.mean(errors, axis=0)
        priorities = buffer.update(hparams.replay, learner.priorities, sample.index, surprise)
        return _Learner(params, opt_state, frozen if config.target else (), age, priorities), info

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_noise, key_collect, key_replay, key_network = jax.random.split(state.key, 5)
        num_rounds = config.num_rounds
        rows = (
            jax.random.split(key_collect, num_rounds),
            draws(key_noise, num_rounds, config.num_steps),
            buffer.noise(key_replay, num_rounds, config.num_updates),
            jax.random.split(key_network, (num_rounds, config.num_updates)) if net.stochastic else None,
            jnp.arange(num_rounds, dtype=jnp.float32),
        )

        def round_(state: State, row: Any) -> tuple[State, Metrics]:
            key_collect, noise, bits, keys, index = row
            passed = state.num_steps.astype(jnp.float32) * batch_size + index * round_size
            progress = schedules.progress(passed, hparams.horizon)
            decayed = jnp.minimum(progress / hparams.epsilon_fraction, 1.0)
            epsilon = hparams.epsilon_start + (hparams.epsilon_end - hparams.epsilon_start) * decayed

            # --- Collect ---------------------------------------------------------------------------------------------
            actor, experience, metrics = collect(key_collect, noise, state.params, state.actor, epsilon, hparams)
            replay = buffer.add(hparams.replay, state.buffer, experience)

            # --- Learn -----------------------------------------------------------------------------------------------
            learner = _Learner(state.params, state.opt_state, state.target_params, state.target_age, replay.priorities)
            learner, info = jax.lax.scan(
                lambda learner, row: learn(learner, *row, replay, progress, hparams), learner, (bits, keys)
            )
            state = dataclasses.replace(
                state,
                params=learner.params,
                opt_state=learner.opt_state,
                target_params=learner.target_params,
                target_age=learner.target_age,
                actor=actor,
                buffer=dataclasses.replace(replay, priorities=learner.priorities),
                epsilon=epsilon,
            )
            return state, metrics | jax.tree.map(jnp.mean, info)

        state, metrics = jax.lax.scan(round_, state, rows)
        head_now = jax.tree.map(jnp.copy, hparams.head)
        state = dataclasses.replace(state, key=key, head=head_now, num_steps=state.num_steps + 1)
        return state, rollout.summarize(metrics)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        key_action, key_network = (None, None) if key is None else jax.random.split(key)
        link = None
        if chain and key_network is not None:
            key_network, key_link = jax.random.split(key_network)
            link = jax.random.randint(key_link, (), 0, config.num_links)
        elif chain:
            link = config.num_links - 1
        with jax.default_matmul_precision(precision):
            output = networks.apply_one(net, _link(state.params, link), obs, key_network, num_policy, memory)
            value = (value_of if key_action is None else tempting)(state.head, output, obs)
        if key_action is None:
            return jnp.argmax(value, axis=-1).astype(jnp.int32), output.memory
        return values.epsilon_greedy(jax.random.uniform(key_action, (2,)), value, state.epsilon), output.memory

    return Algorithm(
        init, step, act, hyperparams, net.initial_memory, env_steps=batch_size, name="dqn", env=env, config=config
    )


def _link(params: PyTree, link: Any) -> PyTree:
    """The parameters of one link of a chain; all, if there is none."""
    return params if link is None else jax.tree.map(lambda x: x[link], params)


def _network(env: Env, network: QNetwork | None, head: ValueHead, config: Config) -> QNetwork:
    """The network given, or the one that the config describes; checked against the head."""
    validation.made_for(network, env)
    observed = env.observation_space
    if head.whole and isinstance(observed, spaces.Dict) and "action_mask" in observed.names:
        raise ValueError(
            f"dqn: the head {head.name!r} reads the values of all actions and knows nothing of illegal ones; got "
            f"{env.name!r}, whose observations have an action_mask. Use another head."
        )
    if network is None:
        return q_network(env.observation_space, env.action_space, head.size, bool(head.fractions), config.network)
    if config.network != QNetworkConfig():
        raise ValueError(f"dqn: pass a network or set config.network, not both; got {network} and {config.network}.")
    if (network.num_outputs, network.implicit) != (head.size, bool(head.fractions)):
        raise ValueError(
            f"dqn: the head {head.name!r} needs a network with num_outputs = {head.size} and "
            f"implicit = {bool(head.fractions)}; got {network.num_outputs} and {network.implicit}."
        )
    return network


def _check_parts(net: QNetwork, config: Config) -> None:
    sequential = (config.burn_in, config.length) != (0, 1)
    if isinstance(config.burn_in, bool) or not isinstance(config.burn_in, int) or config.burn_in < 0:
        raise ValueError(f"dqn: burn_in must be a whole number of at least 0; got burn_in = {config.burn_in!r}.")
    if sequential and not net.recurrent:
        raise ValueError(
            f"dqn: burn_in and length are for a network with memory; got burn_in = {config.burn_in}, "
            f"length = {config.length} and memory = 'none'. Set QNetworkConfig(memory='lstm')."
        )
    if config.num_links > 1 and (net.recurrent or not config.target):
        raise ValueError(
            "dqn: a chain needs targets, and its links no memory, since each would remember something else; got "
            f"num_links = {config.num_links}, target = {config.target}, memory = {net.config.memory!r}."
        )


_LEAVES = {
    "learning_rate": Leaf(2.5e-4, 0.0),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "epsilon_start": Leaf(1.0, 0.0, 1.0),
    "epsilon_end": Leaf(0.05, 0.0, 1.0),
    "epsilon_fraction": Leaf(0.5, 1e-9, 1.0),
    "target_period": Leaf(50.0, 1.0, needs=("target", True)),
    "tau": Leaf(1.0, 0.0, 1.0, needs=("target", True)),
    "max_grad_norm": Leaf(1e9, 1e-12),
    "horizon": Leaf(500_000.0, 1.0),
    "priority_max": Leaf(0.9, 0.0, 1.0),
    "sync_period": Leaf(10.0, 1.0),
}
_NEEDS = {
    "priority_max": "a network with memory and config.prioritized",
    "sync_period": "a chain, config.num_links above 1",
}
_COUNTS = ("num_envs", "num_steps", "num_updates", "num_rounds", "num_warmup_steps", "n_step", "length", "num_links")
