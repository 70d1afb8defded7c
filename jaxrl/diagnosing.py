"""Diagnostics that any algorithm can carry: a wrapper that looks at what it learned through its own `act`.

    keep       the observations that the environments are at after each iteration, the last K of them      [K, ...]
    before     greedy actions there with the state that began the iteration                                [K, ...]
    after      the same with the state that it left, and what each layer then reads                        [K, ...]

Nothing of the training depends on it: no key is drawn, and the compiler may not fuse it with the iteration.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.extend.core import Literal
from jaxtyping import Array, Int, PyTree

from jaxrl import diagnostics, rollout, spaces
from jaxrl.names import unknown
from jaxrl.types import Action, Algorithm, Hyperparams, Key, Memory, Metrics, Observation

NAMES = ("churn", "dormant", "effective_rank")


@struct.dataclass
class State:
    """A learner, and where it is looked at.

    Attributes:
      learner: the state of the algorithm.
      obs: the last observations, leaves [K, ...].
      memory: what the policy remembered there, leaves [K, ...].
      position: rows written so far, modulo K.
    """

    learner: Any
    obs: Observation
    memory: Memory
    position: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The learner's parameters."""
        return self.learner.params

    @property
    def num_steps(self) -> Int[Array, ""]:
        """Iterations done."""
        return self.learner.num_steps


class _Read(NamedTuple):
    """What a layer reads."""

    path: str
    features: Array


def diagnose(algorithm: Algorithm, names: tuple[str, ...] = NAMES, num_observations: int = 256) -> Algorithm:
    """Adds metrics of what was learned to an algorithm, whatever its networks are.

    Args:
      algorithm: of one member, with environments of its own; make populations of what this returns.
      names: of metrics: churn, dormant, effective_rank.
      num_observations: K, the observations that they are computed on: the last ones at which an iteration ended, so
        those of K / B iterations. At first the initial ones are repeated.

    Returns:
      An algorithm that learns the same, with a `State` around the learner's and more metrics, of shape ():
      `probe/churn` (`jaxrl.diagnostics.policy_churn` of the iteration); `probe/dormant`
      (`jaxrl.diagnostics.dormant_share` over all that layers with a kernel read, but the inputs of the network) and
      `probe/rank` (`jaxrl.diagnostics.effective_rank` of what the last of these layers reads), both of the networks
      that `act` reads, after the iteration.

    Raises:
      ValueError: a name is unknown or comes twice, the number is not positive, the algorithm has no environments of
        its own or no memory in `state.actor`, actions have no finite bounds (churn), or no layer reads another (the
        others); on `init` if the default hyperparameters do not start it.

    Example:
      >>> import jaxrl
      >>> agent = diagnose(jaxrl.make("stream_q", jaxrl.make_env("gymnax/CartPole-v1")), ("churn", "dormant"), 64)
      >>> state, metrics = jax.jit(jaxrl.train(agent, num_steps=2))(jax.random.key(1), agent.hyperparams())
      >>> metrics["probe/dormant"].shape
      (2,)
    """
    _validate(algorithm, names, num_observations)

    def init(key: Key, hparams: Hyperparams) -> State:
        learner = algorithm.init(key, hparams)
        _check(algorithm, names, learner)
        size = learner.actor.start.shape[0]
        rows = jnp.arange(num_observations) % size
        obs, memory = jax.tree.map(lambda x: x[rows], _where(algorithm, learner))
        return State(learner, obs, memory, jnp.int32(0))

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        before = state.learner
        learner, metrics = algorithm.step(before, hparams)
        size = min(learner.actor.start.shape[0], num_observations)
        rows = (state.position + jnp.arange(size)) % num_observations
        write = lambda kept, new: kept.at[rows].set(new[:size])
        obs, memory = jax.tree.map(write, (state.obs, state.memory), _where(algorithm, learner))
        after = State(learner, obs, memory, (state.position + size) % num_observations)
        # The compiler must not fuse what follows with the training, which would round otherwise then.
        given = jax.lax.optimization_barrier((before, learner, memory, obs))
        return after, metrics | _measure(algorithm, names, *given)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return algorithm.act(state.learner, memory, obs, key)

    return algorithm._replace(init=init, step=step, act=act)


def _where(algorithm: Algorithm, learner: Any) -> tuple[Observation, Memory]:
    """Observations and memories of the environments in progress, leaves [B, ...].

    Where acting needs no memory, what collecting carries there, noise for instance, is none.
    """
    actor = learner.actor
    return actor.obs, actor.memory if jax.tree.leaves(algorithm.initial_memory()) else ()


def _measure(
    algorithm: Algorithm, names: tuple[str, ...], before: Any, after: Any, memory: Memory, obs: Observation
) -> Metrics:
    metrics: Metrics = {}
    greedy = lambda learner: jax.vmap(lambda memory, obs: algorithm.act(learner, memory, obs, None)[0])(memory, obs)
    if "churn" in names:
        metrics["probe/churn"] = _churn(algorithm.env.action_space, greedy(before), greedy(after))  # type: ignore[union-attr]
    if {"dormant", "effective_rank"} & set(names):
        paths = _inner(algorithm, after, memory, obs)

        def features(memory: Memory, obs: Observation) -> list[Array]:
            return [read.features for read in _reads(algorithm, after, memory, obs) if read.path in paths]

        layers = jax.vmap(features)(memory, obs)
        if "dormant" in names:
            metrics["probe/dormant"] = diagnostics.dormant_share(layers)
        if "effective_rank" in names:
            metrics["probe/rank"] = diagnostics.effective_rank(layers[-1].reshape(layers[-1].shape[0], -1))
    return metrics


def _churn(space: spaces.Space, before: Action, after: Action) -> Array:
    """As `diagnostics.policy_churn`, of actions as the environment takes them."""
    if isinstance(space, spaces.Box):
        return jnp.mean(jnp.abs(after - before) / (jnp.asarray(space.high) - jnp.asarray(space.low)))
    changed = before != after
    return jnp.mean(jnp.any(changed.reshape(changed.shape[0], -1), axis=-1).astype(jnp.float32))


def _reads(algorithm: Algorithm, learner: Any, memory: Memory, obs: Observation) -> list[_Read]:
    """What each layer with a kernel reads when the learner acts on one observation, in the order of the calls."""
    found: list[_Read] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        # A recurrent core takes its memory first, which may be several arrays; what it reads besides has a layer too.
        is_layer = context.method_name == "__call__" and args and hasattr(args[0], "ndim")
        is_layer = is_layer and module.has_variable("params", "kernel")
        # Two layers that read the same are one.
        if is_layer and not any(read.features is args[0] for read in found):
            found.append(_Read(f"{len(found)}/{'/'.join(module.path)}", args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        algorithm.act(learner, memory, obs, None)
    return found


def _inner(algorithm: Algorithm, learner: Any, memory: Memory, obs: Observation) -> set[str]:
    """Layers that read what others put out: those whose input depends on parameters."""
    leaves, structure = jax.tree.flatten(learner)
    mine = {id(leaf) for leaf in jax.tree.leaves(learner.params)}
    paths: list[str] = []

    def run(leaves: list[Array], memory: Memory, obs: Observation) -> list[Array]:
        reads = _reads(algorithm, jax.tree.unflatten(structure, leaves), memory, obs)
        paths.extend(read.path for read in reads)
        return [read.features for read in reads]

    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    jaxpr = jax.make_jaxpr(run)(leaves, *jax.tree.map(one, (memory, obs))).jaxpr
    # What is read within a loop of the network's own comes out as a constant here, so it is left out.
    depends = {var for var, leaf in zip(jaxpr.invars, leaves, strict=False) if id(leaf) in mine}
    for equation in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in depends for var in equation.invars):
            depends.update(equation.outvars)
    seen = zip(paths, jaxpr.outvars, strict=True)
    return {path for path, var in seen if not isinstance(var, Literal) and var in depends}


def _validate(algorithm: Algorithm, names: Any, num_observations: int) -> None:
    if not isinstance(names, tuple) or not names or len(set(names)) < len(names):
        raise ValueError(f"diagnose: names must be a tuple of different ones among {', '.join(NAMES)}; got {names!r}.")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"diagnose: {unknown(name, NAMES, kind='diagnostic')}")
    if not isinstance(num_observations, int) or num_observations < 1:
        raise ValueError(f"diagnose: num_observations must be a whole number from 1; got {num_observations!r}.")
    try:
        key = jax.eval_shape(lambda: jax.random.key(0))
        learner = jax.eval_shape(algorithm.init, key, algorithm.hyperparams())
    except ValueError:
        # The defaults alone do not start it, a dataset is missing for instance: `init` is told, and checks then.
        return
    _check(algorithm, names, learner)


def _check(algorithm: Algorithm, names: tuple[str, ...], learner: Any) -> None:
    """Raises a ValueError if this state cannot be looked at."""
    actor = getattr(learner, "actor", None)
    if algorithm.env is None or not isinstance(actor, rollout.ActorState) or actor.start.ndim != 1:
        raise ValueError(
            "diagnose: it looks at the observations [B, ...] in state.actor of one member with an environment, which "
            f"{algorithm.name!r} has not. Wrap the algorithm of one member, then make a population of it."
        )
    needed = jax.tree.structure(algorithm.initial_memory())
    if needed not in (jax.tree.structure(()), jax.tree.structure(actor.memory)):
        raise ValueError(
            f"diagnose: what {algorithm.name!r} remembers between actions is not in state.actor.memory, so that its "
            "actions on observations of the past are not to be had."
        )
    space = algorithm.env.action_space
    if "churn" in names and isinstance(space, spaces.Box) and not space.bounded:
        raise ValueError(f"diagnose: churn is in units of the range of actions, so it needs bounds; got {space}.")
    obs, memory = _where(algorithm, learner)
    if set(names) - {"churn"} and not _inner(algorithm, learner, memory, obs):
        raise ValueError(
            f"diagnose: in what {algorithm.name!r} acts with no layer reads another, but within loops of the network's "
            f"own (members of an ensemble, steps of a memory); dormant and effective_rank need one; got {names!r}."
        )
