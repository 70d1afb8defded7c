"""Meta-gradients: hyperparameters are moved along the derivative of what learners reach by K of their updates.

One step of the algorithm, with its shapes; L learners live on from one step to the next:

    learn          K updates of each learner under the leaves η, θ_0 → θ_K(η)    [L]
    judge          a loss of the learner as it now is, and its derivative by η   [L], [L, η]
    move           one optimizer step on the mean derivative
    renew          learners whose life is over begin anew, with another task     [L]

The derivative goes through all K updates, which are computed again on the way back (rematerialization), so memory grows
with K by the learners' states and not by what is within an update. What an algorithm samples (actions, minibatches) is
taken as given. A derivative through K updates cannot see what the leaves do to a life that is longer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from jaxrl import acting, rollout, validation
from jaxrl.meta.leaves import chosen_leaves
from jaxrl.networks import Output, orthogonal, tables
from jaxrl.networks.initializers import initialize
from jaxrl.networks.torsos import MLP, Encoder
from jaxrl.ops import returns, statistics, trees
from jaxrl.ops.members import check_split, over_members
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Action, Algorithm, Env, EnvParams, Key, Memory, Metrics, Observation, memoize


class Judge(NamedTuple):
    """What a learner should be good at after its updates.

    Attributes:
      init: `(key, learner, hparams) -> own`, what the judge keeps of a learner, such as a critic; a new learner gets a
        new one.
      loss: `(key, own, learner, rows, hparams) -> (loss, (own, metrics))`: of a learner after its updates, and of
        their metrics [K]. Differentiable by whatever the learner's parameters and rows were made of.
      env_steps: transitions that it plays.
      name: for messages.
    """

    init: Callable[[Key, Any, Any], Any]
    loss: Callable[[Key, Any, Any, Metrics, Any], tuple[Float[Array, ""], tuple[Any, Metrics]]]
    env_steps: int = 0
    name: str = "judge"


@struct.dataclass
class Hyperparams:
    """Of the inner algorithm and of the outer step.

    Attributes:
      inner: the algorithm's; the leaves that are learned are where they begin.
      learning_rate: of the outer optimizer.
      max_grad_norm: of the mean derivative; a greater one is scaled down to it.
    """

    inner: PyTree
    learning_rate: Float[Array, ""]
    max_grad_norm: Float[Array, ""]

    @property
    def env(self) -> PyTree:
        """Parameters of the environment."""
        return self.inner.env


@struct.dataclass
class Life:
    """One learner; a batch of them has leaves [L, ...].

    Attributes:
      learner: the inner algorithm's state.
      own: what the judge keeps of it.
      env: its task, or () if all have that of the hyperparameters.
      age: updates so far.
      lifetime: updates after which another learner takes its place.
    """

    learner: PyTree
    own: PyTree
    env: PyTree
    age: Int[Array, ""]
    lifetime: Int[Array, ""]


@struct.dataclass
class State:
    """All that one step changes.

    Attributes:
      key: the random key that every later draw comes from.
      values: the leaves that are learned, by dotted path.
      opt_state: the outer optimizer's.
      lives: the learners, leaves [L, ...].
    """

    key: Key
    values: dict[str, Array]
    opt_state: optax.OptState
    lives: Life

    @property
    def agent(self) -> PyTree:
        """The first learner."""
        return jax.tree.map(lambda x: x[0], self.lives.learner)


@memoize
def meta_gradient(
    algorithm: Algorithm,
    judge: Judge,
    leaves: str | tuple[str, ...] = "objective",
    *,
    lifetimes: int | Callable[[Key], Int[Array, ""]],
    num_updates: int = 5,
    num_learners: int = 32,
    optimizer: Optimizer = adam,
    tasks: Callable[[Key], EnvParams] | None = None,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Learns leaves of an algorithm's hyperparameters by gradients through its own updates.

    Args:
      algorithm: the inner learner. Its `step` must be differentiable by the leaves, as that of `jaxrl.algorithms.lpg`.
      judge: gives the loss; see `policy_gradient`.
      leaves: dotted paths of leaves, or of records and trees of them, all float.
      lifetimes: updates of a learner's life, or how they are drawn. Where hyperparameters have a `horizon`, it is the
        learner's own life in environment steps.
      num_updates: K, through which the derivative goes.
      num_learners: L.
      optimizer: of the leaves.
      tasks: draws the environment's parameters of each learner; None: all have those of the hyperparameters.
      num_devices: as for `jaxrl.population`.
      chunk: learners that are computed together on a device; None: all.

    Returns:
      The algorithm; its hyperparameters are a `Hyperparams`, of which `hyperparams(**changes)` takes its own leaves and
      the inner algorithm's changes. `act` plays with the first learner.

      Metrics: `meta/loss` and the judge's, means over learners; `meta/gradient` (norm of the mean derivative),
      `meta/num_not_finite` (learners whose derivative was not finite; it counts as 0), and `episode/return_sum` and
      `episode/count` of all updates, if the algorithm has them.

    Raises:
      ValueError: a path names no leaf or one that is not float, a count is not positive, or learners do not split.

    Example:
      >>> import jaxrl
      >>> from jaxrl.algorithms import lpg
      >>> from jaxrl.objectives import rules
      >>> env, config = jaxrl.make_env("chains/Short"), lpg.Config(num_envs=2, tabular=True, optimizer="sgd")
      >>> judge = policy_gradient(env, lpg.policy(env, config), num_envs=2, tabular=True)
      >>> agents = meta_gradient(lpg.lpg(env, rules.lpg(4, 3), config), judge, lifetimes=50, num_learners=2)
      >>> state, metrics = jax.eval_shape(jaxrl.train(agents, 3), jax.random.key(0), agents.hyperparams())
      >>> metrics["meta/loss"].shape, state.lives.age.shape
      ((3,), (2,))
    """
    counts = {"num_updates": num_updates, "num_learners": num_learners}
    for name, value in (counts | ({} if callable(lifetimes) else {"lifetimes": lifetimes})).items():
        validation.count("meta_gradient", name, value)
    check_split(num_learners, num_devices, chunk)
    chosen = chosen_leaves("meta_gradient", algorithm, leaves, "be learned")
    if tasks is not None and algorithm.env is None:
        raise ValueError(f"meta_gradient: tasks need an algorithm with an environment; {algorithm.name!r} has none.")

    def hyperparams(**changes: Any) -> Hyperparams:
        own = {name: changes.pop(name) for name in ("meta_learning_rate", "meta_max_grad_norm") if name in changes}
        default = Hyperparams(algorithm.hyperparams(**changes), jnp.float32(1e-3), jnp.float32(0.5))
        renamed = {name.removeprefix("meta_"): value for name, value in own.items()}
        return trees.with_changes(default, renamed, {"learning_rate": (0.0, jnp.inf), "max_grad_norm": (0.0, jnp.inf)})

    def inner_of(values: dict[str, Array], life: Life, hparams: Hyperparams) -> PyTree:
        inner = hparams.inner if tasks is None else dataclasses.replace(hparams.inner, env=life.env)
        if hasattr(inner, "horizon"):
            inner = trees.replace_leaf(inner, "horizon", life.lifetime.astype(jnp.float32) * algorithm.env_steps)
        return trees.replace_leaves(inner, values)

    def begin(key: Key, values: dict[str, Array], hparams: Hyperparams) -> Life:
        key_learner, key_own, key_task, key_life = jax.random.split(key, 4)
        lifetime = lifetimes(key_life) if callable(lifetimes) else jnp.int32(lifetimes)
        env = () if tasks is None else tasks(key_task)
        life = Life((), (), env, jnp.int32(0), lifetime)
        inner = inner_of(values, life, hparams)
        learner = algorithm.init(key_learner, inner)
        return dataclasses.replace(life, learner=learner, own=judge.init(key_own, learner, inner))

    def judged(
        values: dict[str, Array], key: Key, life: Life, hparams: Hyperparams
    ) -> tuple[Array, tuple[Life, Metrics]]:
        inner = inner_of(values, life, hparams)

        @jax.checkpoint
        def update(learner: Any, n: Int[Array, ""]) -> tuple[Any, Metrics]:
            after, metrics = algorithm.step(learner, inner)
            return trees.where(life.age + n < life.lifetime, after, learner), metrics

        learner, rows = jax.lax.scan(update, life.learner, jnp.arange(num_updates))
        loss, (own, metrics) = judge.loss(key, life.own, learner, rows, inner)
        metrics |= {name: jnp.sum(rows[name]) for name in _EPISODES if name in rows}
        after = dataclasses.replace(life, learner=learner, own=own, age=life.age + num_updates)
        return loss, (after, metrics | {"meta/loss": loss})

    def one(key: Key, life: Life, values: dict[str, Array], hparams: Hyperparams) -> tuple[PyTree, Life, Metrics]:
        key_judge, key_new = jax.random.split(key)
        grads, (after, metrics) = jax.grad(judged, has_aux=True)(values, key_judge, life, hparams)
        sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
        grads = jax.tree.map(lambda g: jnp.where(sound, g, jnp.zeros_like(g)), grads)
        life = trees.where(after.age >= after.lifetime, begin(key_new, values, hparams), after)
        return grads, life, metrics | {"meta/num_not_finite": (~sound).astype(jnp.float32)}

    all_lives = over_members(one, (0, 0, None, None), num_devices, chunk)
    all_begin = over_members(begin, (0, None, None), num_devices, chunk)

    def init(key: Key, hparams: Hyperparams) -> State:
        key, key_lives = jax.random.split(key)
        named = trees.named_leaves(hparams.inner)
        values = {name: jnp.copy(named[name]) for name in chosen}
        return State(
            key=key,
            values=values,
            opt_state=optimizer(hparams, hparams.learning_rate).init(values),
            lives=all_begin(jax.random.split(key_lives, num_learners), values, hparams),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        key, key_lives = jax.random.split(state.key)
        keys = jax.random.split(key_lives, num_learners)
        grads, lives, metrics = all_lives(keys, state.lives, state.values, hparams)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        updates, opt_state = optimizer(hparams, hparams.learning_rate).update(mean, state.opt_state, state.values)
        summed = (*_EPISODES, "meta/num_not_finite")
        metrics = {name: (jnp.sum if name in summed else jnp.mean)(value) for name, value in metrics.items()}
        metrics["meta/gradient"] = optax.tree.norm(mean)
        values: Any = optax.apply_updates(state.values, updates)
        return State(key, values, opt_state, lives), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.agent, memory, obs, key)

    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=algorithm.initial_memory,
        env_steps=num_learners * (num_updates * algorithm.env_steps + judge.env_steps),
        name=f"meta_gradient({algorithm.name}, {judge.name})",
        env=algorithm.env,
        config=algorithm.config,
    )


_EPISODES = ("episode/return_sum", "episode/count")


@struct.dataclass
class Critic:
    """What `policy_gradient` keeps of a learner.

    Attributes:
      params: the critic's.
      opt_state: of its optimizer.
      actor: environments in progress.
    """

    params: PyTree
    opt_state: optax.OptState
    actor: rollout.ActorState


class _Value(nn.Module):
    """A number for each observation."""

    env: Env
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, obs: Observation) -> Array:
        features = MLP(self.hidden, name="torso")(Encoder(self.env.observation_space, name="encoder")(obs))
        return nn.Dense(1, kernel_init=orthogonal(), name="head")(features)[..., 0]


@memoize
def policy_gradient(
    env: Env,
    policy: Callable[[Any, Observation], Any],
    *,
    num_envs: int = 64,
    num_steps: int = 20,
    tabular: bool = False,
    hidden: tuple[int, ...] = (64, 64),
    critic_rate: float | None = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    regularizers: tuple[tuple[str, float], ...] = (),
) -> Judge:
    """The return of a learner's policy, by a policy gradient on a new rollout (Oh et al. 2020, arXiv:2007.08794).

        loss = -E[ log π_{θ_K}(a|s) A ] + Σ_i c_i E[ x_i ]

    A is GAE of a critic of the learner's own, standardized over the rollout; after it has been used, the critic takes
    one step of gradient descent on the squared error of its value (of Adam, if it is a network). No entry of a table
    moves beyond the mean of its targets: a state that makes up more than 1 / `critic_rate` of the steps would diverge.
    x_i are metrics of the updates.

    Args:
      env: the environment.
      policy: `(state of the learner, obs) -> distribution`.
      num_envs: B.
      num_steps: T.
      tabular: whether the critic is a table.
      hidden: of the critic otherwise.
      critic_rate: of its optimizer; None: 4 for a table, 5e-4 for a network. Its gradient's norm is at most 0.5.
      gamma: discount.
      gae_lambda: λ.
      regularizers: pairs of a metric and its weight c. LPG's are ("policy/entropy", -0.05), ("prediction/entropy",
        -0.001), ("rule/policy_square", 0.005), ("rule/prediction_square", 0.001).

    Returns:
      The judge. Metrics: `meta/advantage` before standardizing, `meta/value_loss`, and `meta/value_gradient`, the norm
      of its gradient.

    Raises:
      ValueError: a count is not positive, or a table is asked for and observations do not name a state.

    Example:
      >>> import jaxrl
      >>> env = jaxrl.make_env("chains/Short")
      >>> policy_gradient(env, lambda state, obs: None, num_envs=4, tabular=True).env_steps
      80
    """
    validation.count("policy_gradient", "num_envs", num_envs)
    validation.count("policy_gradient", "num_steps", num_steps)
    num_states = tables.num_states(f"policy_gradient in {env.name}", env.observation_space) if tabular else 0
    net, reset = _Value(env, hidden), rollout.Reset()
    scale = optax.identity() if tabular else optax.scale_by_adam(eps=1e-5)
    rate = (4.0 if tabular else 5e-4) if critic_rate is None else critic_rate
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), scale, optax.scale(-rate))

    def value_of(params: PyTree, obs: Observation) -> Array:
        if tabular:
            return params["kernel"][tables.state_of(env.observation_space, obs)]
        return net.apply(params, obs)  # type: ignore[return-value]

    def init(key: Key, learner: Any, hparams: Any) -> Critic:
        del learner
        key_params, key_actor = jax.random.split(key)
        actor = rollout.start(key_actor, env, hparams.env, num_envs, (), reset)
        one = jax.tree.map(lambda x: x[0], actor.obs)
        params = {"kernel": jnp.zeros(num_states)} if tabular else initialize(net, key_params, one)
        return Critic(params, optimizer.init(params), actor)

    def loss(key: Key, own: Critic, learner: Any, rows: Metrics, hparams: Any) -> tuple[Array, tuple[Critic, Metrics]]:
        def look(obs: Observation, memory: Memory, start: Array) -> tuple[Output, Memory]:
            return Output(policy(learner, obs), jnp.zeros(num_envs), {}), memory

        actor, batch, _ = acting.collect(key, env, hparams.env, own.actor, look, num_steps, reset)
        value, next_value = value_of(own.params, batch.obs), value_of(own.params, batch.next_obs)
        ends = (batch.terminated, batch.truncated)
        advantage = returns.gae(batch.reward, value, next_value, *ends, gamma, gae_lambda)
        target = jax.lax.stop_gradient(advantage + value)

        def value_loss(params: PyTree) -> Array:
            return jnp.mean(jnp.square(value_of(params, batch.obs) - target))

        error, gradient = jax.value_and_grad(value_loss)(own.params)
        length = optax.tree.norm(gradient)
        if tabular:
            state = tables.state_of(env.observation_space, batch.obs)
            share = jnp.zeros(num_states).at[state].add(1.0 / state.size)
            # A state seen more often than 1 / (2 rate) of the time would overshoot, and diverge at twice as often.
            gradient = {"kernel": gradient["kernel"] / jnp.maximum(2.0 * rate * share, 1.0)}
        updates, opt_state = optimizer.update(gradient, own.opt_state, own.params)
        after = Critic(optax.apply_updates(own.params, updates), opt_state, actor)
        weight = jax.lax.stop_gradient(statistics.standardize(advantage))
        total = -jnp.mean(policy(learner, batch.obs).log_prob(batch.action) * weight)
        for name, coefficient in regularizers:
            total += coefficient * jnp.mean(rows[name])
        return total, (
            after,
            {
                "meta/advantage": jnp.mean(advantage),
                "meta/value_loss": error,
                "meta/value_gradient": length,
            },
        )

    return Judge(init, loss, num_envs * num_steps, "policy_gradient")
