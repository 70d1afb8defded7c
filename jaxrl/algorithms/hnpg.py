"""Hybrid natural policy gradient: an on-policy method that also learns from a dataset (Zhou et al. 2023, 2311.08384).

One step of the algorithm (algorithm 3), with its shapes:

    collect        T steps in B environments                                     [T, B]
    targets        Monte Carlo returns y of what was collected                   [T, B]
    evaluate       num_evaluations times, each with the last one's Q as Q':      algorithm 2, equation 1
                     num_updates gradient steps on N of the dataset and N of the rollout, of
                     mean (Q(s, a) - r - γ Q'(s', a'))² + λ mean (Q(s, a) - y)²,  a' ~ π
    advantages     of the rollout by GAE with V(s) = E Q(s, a); of the dataset's states Q(s, a) - V(s) with a ~ π
    policy         one natural-gradient step within a trust region, on both: E over the dataset + λ E over the rollout

With a memory, of which policy and critic have one each (`jaxrl.networks.history`), a gradient step draws windows of
`length` steps instead of transitions; those of the rollout begin with the memory that was kept when it was collected,
those of the dataset with that of an episode's start.

Temporal differences are for the dataset's transitions; the rollout's are regressed on what was paid, completed with V
only where the rollout was cut: choose `num_steps` that hold whole episodes. So where temporal differences go wrong
there still is an on-policy critic, and where the rollout never comes the dataset tells of it. Unless `Config.hybrid` it
is the natural policy gradient with a critic of state and action.

Different from the paper, as in its authors' code (read beside the paper): the step is TRPO's; the policy's advantages
on the dataset are of actions that the policy draws there; one rollout serves all evaluations, which go on from the last
step's critic, and the last of each is taken, of critics as of policies, instead of a mean. Different from both: one
network for all time steps, with discounting, where they have one for each; minibatches and one Adam throughout, where
they regress anew on everything at once; λ for both losses (in the code 1); a standard deviation that depends on the
state; the critic sees actions clipped to the bounds; the line search asks for any gain and for the KL divergence.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, buffers, datasets, rollout, spaces, validation
from jaxrl.networks.actor_critic import Output
from jaxrl.networks.control import ControlConfig, control_networks
from jaxrl.networks.history import History, apply_step, apply_with_successors, init_params
from jaxrl.networks.initializers import initialize
from jaxrl.ops import losses, returns, statistics, trees, trust_region
from jaxrl.ops.distributions import Categorical, Gaussian
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Action, Algorithm, Env, Key, Memory, Metrics, Observation, memoize

_LOG_STD = (-10.0, 2.0)
_NETWORK = ControlConfig(hidden=(64, 64), num_critics=1, activation="tanh")


@dataclasses.dataclass(frozen=True)
class Config:
    """What fixes shapes or the traced program; another value is another program.

    Attributes:
      num_envs: environments stepped side by side, B.
      num_steps: steps of each environment per iteration, T.
      num_evaluations: regressions of a step, K_2 of algorithm 2.
      num_updates: gradient steps of each.
      batch_size: transitions of a gradient step from the rollout, and as many from the dataset, N.
      num_action_samples: actions that V(s) is the mean over; not read if actions are discrete, where it is exact.
      num_cg_steps: conjugate-gradient iterations at most.
      line_search: whether the policy's step is shortened until it helps and keeps to the trust region, or taken whole.
      num_backtracks: times that it is shortened at most; after that nothing is changed.
      reset: where new episodes start: fresh, pooled or cached (see `jaxrl.rollout.Reset`).
      reset_size: resets a step if pooled, states kept if cached.
      matmul_precision: of matrix products on GPU and TPU: float32, tensorfloat32 or bfloat16.
      hybrid: whether there is a dataset, `hparams.replay` from `jaxrl.datasets.dataset`.
      memory: none, gru, lstm or s5: a core in front of the policy and one in front of the critics.
      memory_size: width of each.
      length: steps of a window, if there is a memory; divides num_steps and batch_size.
      network: layers of policy and critics; a policy over a `Box` is Gaussian, several critics are averaged.
    """

    num_envs: int = 8
    num_steps: int = 128
    num_evaluations: int = 8
    num_updates: int = 20
    batch_size: int = 128
    num_action_samples: int = 10
    num_cg_steps: int = 10
    line_search: bool = True
    num_backtracks: int = 10
    reset: rollout.ResetMode = "fresh"
    reset_size: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    hybrid: bool = False
    memory: Literal["none", "gru", "lstm", "s5"] = "none"
    memory_size: int = 64
    length: int = 16
    network: ControlConfig = _NETWORK


@struct.dataclass
class Hyperparams:
    """What is data: every leaf may be vmapped, searched, scheduled or meta-learned.

    Attributes:
      env: parameters of the environment.
      replay: the dataset if hybrid, or ().
      online_weight: λ, of the rollout beside the dataset: of the critic's errors, of the policy's advantages and its
        divergence.
      max_kl: δ, the trust region's size in nats: the mean KL divergence from the old policy to the new one.
      damping: added to the diagonal of the Fisher matrix.
      backtrack_factor: by which the line search shortens the step, if `line_search`.
      learning_rate: of the critic's Adam.
      max_grad_norm: greatest global norm of the critic's gradient.
      gamma: discount factor.
      gae_lambda: λ of the advantages of the rollout.
    """

    env: PyTree
    replay: PyTree
    online_weight: Float[Array, ""]
    max_kl: Float[Array, ""]
    damping: Float[Array, ""]
    backtrack_factor: Float[Array, ""]
    learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]
    gamma: Float[Array, ""]
    gae_lambda: Float[Array, ""]


@struct.dataclass
class State:
    """All that one step changes; saving this saves the run.

    Attributes:
      key: the random key that every later draw comes from.
      params: of the policy and the critic each the parameters of `network` and, with a memory, of `history`.
      opt_state: the state of the critic's optimizer.
      actor: environments in progress.
      num_steps: iterations done.
    """

    key: Key
    params: dict[str, PyTree]
    opt_state: optax.OptState
    actor: rollout.ActorState
    num_steps: Int[Array, ""]


@struct.dataclass
class _Given:
    """What a core sees: observations [T, N, ...], the memory before them [N, ...], and whether episodes start there."""

    obs: Observation
    memory: Memory
    start: Any


@memoize
def hnpg(env: Env, config: Config = Config()) -> Algorithm:
    """Builds the hybrid natural policy gradient.

    Args:
      env: the environment to learn in; its actions are `Discrete` or a `Box` with finite bounds.
      config: shapes and structure.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, its state a `State`. Metrics `loss/online` and, if hybrid,
      `loss/offline` of the critic, `policy/kl` of the step taken (if hybrid the mean over both kinds of states, the
      rollout's weighing `online_weight`) and `policy/step` (α; 0 where the line search gave up).

    Raises:
      ValueError: counts that are not positive or that windows do not divide, other actions or illegal ones, a
        `config.network` of another class, critics that learn distributions, drop units, are normalized by the batch or
        on spheres; on `init` a hybrid without a dataset or with one of another environment, or a dataset that would
        have no effect.

    Example:
      >>> import jaxrl
      >>> agent = hnpg(jaxrl.make_env("gymnax/CartPole-v1"), Config(num_envs=4, num_steps=32, num_updates=2))
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> bool((metrics["policy/kl"] <= 0.0101).all())
      True
    """
    space = env.action_space
    reset = rollout.Reset(config.reset, config.reset_size)
    counted = "num_envs num_steps num_evaluations num_updates batch_size num_action_samples num_cg_steps num_backtracks"
    validation.counts("hnpg", config, (*counted.split(), "memory_size", "length"))
    validation.choices("hnpg", config)
    validation.layers("hnpg", config.network, ControlConfig)
    validation.unmasked("hnpg", env)
    reset.validate(config.num_envs)
    layers = config.network
    sphere = layers.block == "hyperspherical"
    if layers.num_quantiles or layers.num_bins or layers.dropout or layers.norm == "batch" or sphere:
        raise ValueError(
            "hnpg: critics learn means, without dropout, batch normalization or hyperspherical blocks; got "
            f"num_quantiles = {layers.num_quantiles}, num_bins = {layers.num_bins}, dropout = {layers.dropout}, "
            f"norm = {layers.norm!r}, block = {layers.block!r}."
        )
    remembers, length = config.memory != "none", config.length if config.memory != "none" else 1
    if config.num_steps % length or config.batch_size % length:
        raise ValueError(
            "hnpg: with a memory, num_steps and batch_size must be divisible by length; got num_steps = "
            f"{config.num_steps}, batch_size = {config.batch_size}, length = {length}."
        )
    history = History(env.observation_space, config.memory, config.memory_size, layers.convolve, layers.activation)
    seen_space = history.features_space if remembers else env.observation_space
    policy_net, critic_net = control_networks(seen_space, space, True, layers)
    discrete = isinstance(space, spaces.Discrete)
    batch_size = config.num_envs * config.num_steps
    precision = config.matmul_precision
    # Draws of the critic's updates, and states for the policy's.
    of_critic, of_policy = (
        buffers.fixed(size // length, length, datasets.example_of(env)) if config.hybrid else None
        for size in (config.batch_size, batch_size)
    )

    def hyperparams(**changes: Any) -> Hyperparams:
        replay = of_critic.hyperparams() if of_critic else ()
        return build(Hyperparams, _LEAVES, config, changes, env=env.default_params(), replay=replay)

    optimizer = lambda hparams: optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm), optax.adam(hparams.learning_rate, eps=1e-5)
    )

    def see(params: PyTree, given: _Given) -> Observation:
        """What stands for the observations of windows [L, N, ...]; without a memory these, of any leading axes."""
        if not remembers:
            return given.obs
        return history.apply(params["history"], given.obs, given.memory, given.start)[0]  # type: ignore[return-value]

    def see_both(params: PyTree, given: _Given, next_obs: Observation) -> tuple[Observation, Observation]:
        """The same, and what stands for their successors."""
        if not remembers:
            return given.obs, next_obs
        return apply_with_successors(history, params["history"], given.obs, next_obs, given.memory, given.start)

    def initial_memory(batch_shape: tuple[int, ...] = ()) -> Memory:
        return {name: history.initial_memory(batch_shape) for name in ("policy", "critic")} if remembers else ()

    def remember(name: str, params: PyTree, obs: Observation, memory: PyTree, start: Array) -> tuple[Any, PyTree]:
        """What stands for one observation of each of B environments, and the memories, that of this name after it."""
        if not remembers:
            return obs, memory
        seen, after = apply_step(history, params[name]["history"], obs, memory[name], start)
        return seen, {**memory, name: after}

    def policy_at(params: PyTree, seen: Observation) -> Any:
        outputs: Any = policy_net.apply(params["network"], seen)
        mean, log_std = outputs
        return Categorical(mean) if discrete else Gaussian(mean, jnp.clip(log_std, *_LOG_STD))

    def critics_at(params: PyTree, seen: Observation, action: Action) -> Float[Array, "M ..."]:
        """Of each critic, Q(s, a)."""
        if not discrete:
            # As the environment takes them, and as a dataset has them.
            return critic_net.apply(params["network"], seen, jnp.clip(action, -1.0, 1.0))[..., 0]  # type: ignore[index]
        values: Any = critic_net.apply(params["network"], seen)
        taken = jnp.broadcast_to(action[None, ..., None], (*values.shape[:-1], 1))
        return jnp.take_along_axis(values, taken, axis=-1)[..., 0]

    def q_value(params: PyTree, seen: Observation, action: Action) -> Float[Array, "..."]:
        return jnp.mean(critics_at(params, seen, action), axis=0)

    def value_at(policy: Any, critic: PyTree, seen: Observation, noise: PyTree) -> Float[Array, "..."]:
        """V(s) = E Q(s, a): over all actions, or over draws with noise [S, ..., A]."""
        if discrete:
            values: Any = critic_net.apply(critic["network"], seen)
            return jnp.sum(policy.probs() * jnp.mean(values, axis=0), axis=-1)
        one = lambda noise: q_value(critic, seen, policy.sample_from(noise))
        return jnp.mean(jax.vmap(one)(noise), axis=0)

    def init(key: Key, hparams: Hyperparams) -> State:
        if config.hybrid:
            datasets.check(env, hparams.replay, length)
        elif isinstance(hparams.replay, buffers.BufferState):
            raise ValueError("replay: a dataset has no effect; set Config(hybrid=True).")
        key, key_policy, key_critic, key_actor = jax.random.split(key, 4)
        actor = rollout.start(key_actor, env, hparams.env, config.num_envs, initial_memory((config.num_envs,)), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        action = () if discrete else (jnp.zeros(spaces.size(space)),)

        def draw_params(net: Any, key: Key, *inputs: Array) -> PyTree:
            if not remembers:
                return {"network": initialize(net, key, one, *inputs)}
            key, key_history = jax.random.split(key)
            network = initialize(net, key, jnp.zeros(config.memory_size), *inputs)
            return {"network": network, "history": init_params(history, key_history, one)}

        with jax.default_matmul_precision(precision):
            params = {
                "policy": draw_params(policy_net, key_policy),
                "critic": draw_params(critic_net, key_critic, *action),
            }
        return State(key, params, optimizer(hparams).init(params["critic"]), actor, jnp.int32(0))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        with jax.default_matmul_precision(precision):
            return _step(state, hparams)

    def draw(hparams: Hyperparams, buffer: Any, bits: Array) -> tuple[_Given, buffers.Experience]:
        """Windows of the dataset, [L, N, ...], or without a memory transitions, [N, ...]."""
        index = buffer.sample(hparams.replay, (), bits, jnp.float32(0.0)).index
        drawn = buffers.windows(hparams.replay.items, index, length)
        if not remembers:
            drawn = jax.tree.map(lambda x: x[0], drawn)
            return _Given(drawn.obs, (), ()), drawn
        ended = drawn.terminated | drawn.truncated
        start = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
        return _Given(drawn.obs, history.initial_memory(index.shape), start), drawn

    def pick(played: PyTree, index: Array) -> PyTree:
        """Windows of the rollout by their numbers, [L, N, ...], or without a memory transitions, [N, ...]."""
        memory, rows = jax.tree.map(lambda x: x[index], played)
        (obs, start), action, target = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows) if remembers else rows
        return _Given(obs, memory, start), action, target

    def critic_loss(
        params: PyTree, last: PyTree, policy_params: PyTree, played: PyTree, row: Any, hparams: Hyperparams
    ) -> tuple[Array, tuple[Array, Array]]:
        """Equation 1 on a minibatch, and its two parts; `last` are the parameters of Q'."""
        index, bits, key = row
        given, action, target = pick(played, index)
        played_value = critics_at(params, see(params, given), action)
        if not config.hybrid:
            online = jnp.mean(jnp.square(played_value - target[None]))
            return online, (online, jnp.float32(0.0))
        given, drawn = draw(hparams, of_critic, bits)
        (_, of_policy), (_, of_last) = (see_both(each, given, drawn.next_obs) for each in (policy_params, last))
        following = q_value(last, of_last, policy_at(policy_params, of_policy).sample(key))
        bootstrapped = drawn.reward + hparams.gamma * jnp.where(drawn.terminated, 0.0, following)
        value = critics_at(params, see(params, given), drawn.action)
        total, offline, online = losses.hybrid_loss(
            value, bootstrapped[None], played_value, target[None], hparams.online_weight
        )
        return total, (online, offline)

    def fit(state: State, played: PyTree, keys: Any, hparams: Hyperparams) -> tuple[tuple[PyTree, Any], Metrics]:
        """Algorithm 2: the critic and the state of its optimizer after all evaluations; keys [3]."""
        transform, policy_params = optimizer(hparams), state.params["policy"]

        def evaluation(carry: tuple[PyTree, Any], rows: Any) -> tuple[Any, Any]:
            last, _ = carry

            def update(carry: tuple[PyTree, Any], row: Any) -> tuple[Any, Any]:
                params, opt_state = carry
                given = last, policy_params, played, row, hparams
                gradient, info = jax.grad(critic_loss, has_aux=True)(params, *given)
                updates, opt_state = transform.update(gradient, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), info

            return jax.lax.scan(update, carry, rows)

        # All random numbers of the updates in one draw, before the loops.
        rounds = config.num_evaluations, config.num_updates
        num_windows = config.batch_size // length
        index = jax.random.randint(keys[0], (*rounds, num_windows), 0, batch_size // length)
        bits = of_critic.noise(keys[1], *rounds) if of_critic else ()
        rows = index, bits, jax.random.split(keys[2], rounds)
        after, (online, offline) = jax.lax.scan(evaluation, (state.params["critic"], state.opt_state), rows)
        metrics = {"loss/online": jnp.mean(online[-1])}
        return after, metrics | ({"loss/offline": jnp.mean(offline[-1])} if config.hybrid else {})

    def _step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_collect, key_value, key_offline, *keys = jax.random.split(state.key, 7)

        # --- Collect ---------------------------------------------------------------------------------------------
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            seen, memory = remember("policy", state.params, obs, memory, start)
            _, memory = remember("critic", state.params, obs, memory, start)
            return Output(policy_at(state.params["policy"], seen), jnp.zeros(start.shape), {}), memory

        actor, batch, metrics = acting.collect(
            key_collect, env, hparams.env, state.actor, look, config.num_steps, reset
        )
        ends = batch.terminated, batch.truncated

        def noise(key: Key, *shape: int) -> PyTree:
            return () if discrete else jax.random.normal(key, (config.num_action_samples, *shape, spaces.size(space)))

        # One draw for a state, whether it is looked at as the successor of one step or before the next.
        drawn = noise(key_value, config.num_steps + 1, config.num_envs)
        noise_now, noise_next = (jax.tree.map(lambda x, part=part: x[:, part], drawn) for part in (_NOW, _NEXT))

        # --- Evaluate --------------------------------------------------------------------------------------------
        policy_params = state.params["policy"]
        of = lambda memory, name: memory[name] if remembers else ()
        given, given_critic = (
            _Given(batch.obs, of(state.actor.memory, name), batch.start) for name in ("policy", "critic")
        )
        policy, next_policy = (
            policy_at(policy_params, seen) for seen in see_both(policy_params, given, batch.next_obs)
        )
        _, next_seen = see_both(state.params["critic"], given_critic, batch.next_obs)
        next_value = value_at(next_policy, state.params["critic"], next_seen, noise_next)
        target = returns.lambda_returns(batch.reward, next_value, *ends, hparams.gamma, 1.0)
        starts = batch.start if remembers else ()
        rows = (batch.obs, starts), batch.action, target
        memory = given_critic.memory, of(batch.memory, "critic")
        (critic, opt_state), info = fit(state, _played(rows, memory, length, remembers), keys, hparams)
        metrics |= info

        # --- Advantages ------------------------------------------------------------------------------------------
        seen, next_seen = see_both(critic, given_critic, batch.next_obs)
        value = value_at(policy, critic, seen, noise_now)
        next_value = value_at(next_policy, critic, next_seen, noise_next)
        advantage = returns.gae(batch.reward, value, next_value, *ends, hparams.gamma, hparams.gae_lambda)
        metrics["value/explained_variance"] = statistics.explained_variance(value, target)
        parts = [(given, batch.action, advantage, hparams.online_weight if config.hybrid else jnp.float32(1.0))]
        if of_policy:
            key_bits, key_action, key_value = jax.random.split(key_offline, 3)
            offline, drawn = draw(hparams, of_policy, of_policy.noise(key_bits))
            drawn_policy = policy_at(policy_params, see(policy_params, offline))
            action, seen = drawn_policy.sample(key_action), see(critic, offline)
            average = value_at(drawn_policy, critic, seen, noise(key_value, *drawn.reward.shape))
            parts.append((offline, action, q_value(critic, seen, action) - average, jnp.float32(1.0)))

        # --- Update the policy -----------------------------------------------------------------------------------
        old = [policy_at(policy_params, see(policy_params, given)) for given, *_ in parts]
        old_log_prob = [policy.log_prob(action) for policy, (_, action, *_) in zip(old, parts, strict=True)]
        total = sum(weight for *_, weight in parts)

        def surrogate_and_kl(params: PyTree) -> tuple[Array, Array]:
            surrogate, kl = jnp.float32(0.0), jnp.float32(0.0)
            for before, log_prob, (given, action, advantage, weight) in zip(old, old_log_prob, parts, strict=True):
                new = policy_at(params, see(params, given))
                ratio = jnp.exp(new.log_prob(action) - log_prob)
                surrogate += weight / total * jnp.mean(ratio * advantage)
                kl += weight / total * jnp.mean(before.kl(new))
            return surrogate, kl

        region = trust_region.Region(hparams.max_kl, hparams.damping, hparams.backtrack_factor)
        num_backtracks = config.num_backtracks if config.line_search else 0
        moved, info = trust_region.step(surrogate_and_kl, policy_params, region, config.num_cg_steps, num_backtracks)
        metrics |= info | {"policy/entropy": jnp.mean(old[0].entropy())}
        return State(key, {"policy": moved, "critic": critic}, opt_state, actor, state.num_steps + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        with jax.default_matmul_precision(precision):
            one, before = jax.tree.map(lambda x: x[None], (obs, memory))
            found = remember("policy", state.params, one, before, jnp.zeros(1, bool))
            seen, after = jax.tree.map(lambda x: x[0], found)
            policy = policy_at(state.params["policy"], seen)
        return acting.choose(env, Output(policy, jnp.float32(0.0), {}), key), after

    return Algorithm(
        init, step, act, hyperparams, initial_memory, env_steps=batch_size, name="hnpg", env=env, config=config
    )


def _played(rows: PyTree, memory: tuple[Memory, Memory], length: int, remembers: bool) -> tuple[Memory, PyTree]:
    """A rollout as its single transitions, leaves [T B, ...], or as windows, [W, L, ...].

    Args:
      rows: leaves [T, B, ...].
      memory: before the rollout, leaves [B, ...], and after each observation, [T, B, ...].
      length: L, which divides T.
      remembers: whether there is a memory.

    Returns:
      The memory before each window, leaves [W, ...], or (); and the rows.
    """
    if not remembers:
        return (), trees.flatten_time(rows)
    start, after = memory
    before = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs[length - 1 : -1 : length]]), start, after)

    def cut(x: Array) -> Array:
        parts = x.reshape((-1, length, *x.shape[1:]))
        return jnp.swapaxes(parts, 1, 2).reshape((-1, length, *x.shape[2:]))

    return trees.flatten_time(before), jax.tree.map(cut, rows)


_NOW, _NEXT = slice(None, -1), slice(1, None)
_LEAVES = {
    "online_weight": Leaf(1.0, 0.0, needs=("hybrid", True)),
    "max_kl": Leaf(0.01, 1e-12),
    "damping": Leaf(0.1, 0.0),
    "backtrack_factor": Leaf(0.8, 0.0, 1.0, needs=("line_search", True)),
    "learning_rate": Leaf(1e-3, 0.0),
    "max_grad_norm": Leaf(10.0, 1e-12),
    "gamma": Leaf(0.99, 0.0, 1.0),
    "gae_lambda": Leaf(0.97, 0.0, 1.0),
}
