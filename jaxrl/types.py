"""Protocols, records and axis letters that every part of the package shares.

Axis letters, used in all shape annotations:

    T  time (always axis 0 of a rollout)      N  flat batch of transitions
    B  environments                           M  minibatches
    P  members of a population                A  discrete actions
    K  bins or quantiles                      D  features

Three kinds of Python type, each with one meaning:

- a `flax.struct.dataclass` of arrays is *data*: an argument of `jit`, may be vmapped, saved, differentiated;
- a `NamedTuple` of functions is *behaviour*: hashable, static;
- a frozen `dataclass` is *structure* (`Config`): hashable, static, another value is another program.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from jaxrl.display import html_table, shape_or_value
from jaxrl.spaces import Space

Key = jax.Array
"""A typed random key (`jax.random.key`), shape ()."""

Observation = PyTree
Action = PyTree
Memory = PyTree
EnvState = Any
EnvParams = Any
State = Any
Hyperparams = Any
Metrics = dict[str, Array]
"""`group/name` to array. What aggregates over episodes is a sum (`..._sum`) or a count (`.../count`)."""


@struct.dataclass
class EnvStep:
    """What one environment returns for one action.

    Attributes:
      obs: the true successor observation, also when the episode ended (never that of the next episode).
      reward: the reward of this transition, float32.
      terminated: the episode ended in a terminal state: its value is zero.
      truncated: the episode was cut from outside, by a time limit for instance: the successor has a value.
        Both may be true at once; then the state is terminal.
      info: named extra arrays.
    """

    obs: Observation
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    info: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def ended(self) -> Bool[Array, ""]:
        """Whether the episode is over, for either reason."""
        return self.terminated | self.truncated


class Env(NamedTuple):
    """One environment as pure functions. It never resets itself; `jaxrl.rollout` does that, once for all.

    Attributes:
      name: `suite/Name`.
      reset: `(key, params) -> (state, obs)`.
      step: `(key, state, action, params) -> (state, EnvStep)`.
      default_params: `() -> params`, a pytree of arrays; every leaf may be vmapped and swept.
      observation_space: the space of `obs`.
      action_space: the space of `action`.
      max_episode_steps: the time limit under the default parameters, or None if there is none.
    """

    name: str
    reset: Callable[[Key, EnvParams], tuple[EnvState, Observation]]
    step: Callable[[Key, EnvState, Action, EnvParams], tuple[EnvState, EnvStep]]
    default_params: Callable[[], EnvParams]
    observation_space: Space
    action_space: Space
    max_episode_steps: int | None = None

    def __repr__(self) -> str:
        limit = "" if self.max_episode_steps is None else f", max_episode_steps={self.max_episode_steps}"
        return f"Env({self.name!r}, observations={self.observation_space}, actions={self.action_space}{limit})"


class Algorithm(NamedTuple):
    """A learner as pure functions; wrappers take one and return one, as `optax.chain` does.

    Attributes:
      init: `(key, hparams) -> state`. The only place where a key enters.
      step: `(state, hparams) -> (state, metrics)`: one iteration of collecting and learning.
      act: `(state, memory, obs, key) -> (action, memory)` for one environment; callers vmap. A key samples
        from the policy, `None` takes its mode.
      hyperparams: `(**changes) -> hparams`: the defaults with some leaves replaced, as strongly typed arrays.
      initial_memory: `() -> memory` at the start of an episode; `()` unless recurrent.
      env_steps: transitions that one `step` consumes, over all environments and members.
      name: for run folders and messages.
      env: the environment learned in, if there is one; `evaluate` plays in it.
      config: the structure it was built with, for run folders and messages.
    """

    init: Callable[[Key, Hyperparams], State]
    step: Callable[[State, Hyperparams], tuple[State, Metrics]]
    act: Callable[[State, Memory, Observation, Key | None], tuple[Action, Memory]]
    hyperparams: Callable[..., Hyperparams]
    initial_memory: Callable[[], Memory] = tuple
    env_steps: int = 0
    name: str = "algorithm"
    env: Env | None = None
    config: Any = None

    def __repr__(self) -> str:
        env = "" if self.env is None else f", env={self.env.name!r}"
        return f"Algorithm({self.name!r}{env}, env_steps={self.env_steps}, config={self.config})"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, Any]] = [("environment", "" if self.env is None else self.env.name)]
        rows.append(("environment steps of one step", f"{self.env_steps:,}"))
        if dataclasses.is_dataclass(self.config):
            rows += [
                (f"config.{field.name}", getattr(self.config, field.name)) for field in dataclasses.fields(self.config)
            ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.hyperparams()):
            rows.append((jax.tree_util.keystr(path, simple=True, separator="."), shape_or_value(leaf)))
        return html_table(self.name, rows)


@struct.dataclass
class PolicyInputs:
    """What an `Objective` sees of a minibatch; arrays have shape [N], or [T, b] for a recurrent network.

    Attributes:
      log_prob: log-probability of the action taken under the policy being learned.
      behavior_log_prob: the same under the policy that acted.
      proximal_log_prob: the same under the policy that the update should stay close to (that which acted,
        unless the algorithm keeps another one).
      policy: the distribution being learned.
      proximal_policy: the distribution to stay close to.
      advantage: as normalized by the algorithm.
      entropy: of `policy`.
      progress: share of the training horizon that has passed, shape ().
      variables: the objective's own trained parameters (see `Objective.variables`), or ().
      action: the actions taken, leaves [N, ...].
      heads: the network's further outputs by name, those that the objective asked for among them.
    """

    log_prob: Array
    behavior_log_prob: Array
    proximal_log_prob: Array
    policy: Any
    proximal_policy: Any
    advantage: Array
    entropy: Array
    progress: Array
    variables: Any = ()
    action: Any = ()
    heads: Any = struct.field(default_factory=dict)


class Objective(NamedTuple):
    """A policy objective, written or learned.

    Attributes:
      init: `(key) -> params`, the coefficients of a written objective or the weights of a learned one.
      loss: `(params, PolicyInputs) -> (scalar to minimize, metrics)`.
      heads: extra network outputs that it needs, by name and size.
      name: for messages.
      variables: `() -> tree` of parameters that are trained by the loss's own gradient beside the network's, such
        as Lagrange multipliers; () if there are none.
      weighted: whether it weights advantages by the ratio π/μ to the policy that acted.
    """

    init: Callable[[Key], PyTree]
    loss: Callable[[PyTree, Any], tuple[Float[Array, ""], Metrics]]
    heads: tuple[tuple[str, int], ...] = ()
    name: str = "objective"
    variables: Callable[[], PyTree] = tuple
    weighted: bool = False


@struct.dataclass
class ReturnInputs:
    """What an `Estimator` sees of a rollout; arrays have shape [T, B], laws as in `jaxrl.ops.returns`.

    Attributes:
      reward: as scaled by the algorithm.
      value: V(s_t).
      next_value: V of the true successor.
      terminated: nothing is bootstrapped there.
      truncated: the value goes on there.
      log_ratio: log π(a|s) - log μ(a|s) of the policy that learns and the one that acted; 0 if they are one.
      gamma: discount, shape ().
      trace_lambda: λ, shape ().
    """

    reward: Array
    value: Array
    next_value: Array
    terminated: Array
    truncated: Array
    log_ratio: Array
    gamma: Array
    trace_lambda: Array


class Estimator(NamedTuple):
    """How a rollout becomes advantages and targets of the value function.

    Attributes:
      init: `() -> params`, its coefficients.
      estimate: `(params, ReturnInputs) -> (advantage [T, B], value target [T, B])`.
      name: for messages.
      min_envs: environments that it needs at least.
      weighted: whether advantages have the ratio π/μ to the policy that acted as a weight, as those of `vtrace`.
    """

    init: Callable[[], PyTree]
    estimate: Callable[[PyTree, ReturnInputs], tuple[Array, Array]]
    name: str = "estimator"
    min_envs: int = 1
    weighted: bool = False


class Strategy(NamedTuple):
    """An evolution strategy over a tree of parameters. Fitness is maximized.

    Attributes:
      init: `(key, mean, hparams) -> state`; the only place where a key enters.
      ask: `(state, hparams) -> candidates`, leaves [P, ...]. It changes nothing: asked twice it gives the same ones.
      tell: `(state, candidates, fitness [P], hparams) -> (state, metrics)`: one generation. A candidate whose fitness
        is not finite ranks last.
      mean: `(state) -> tree`: the center of the search.
      hyperparams: `(**changes) -> hparams`: the defaults with some leaves replaced, as strongly typed arrays.
      population_size: P.
      pairs: whether candidates i and i + P/2 lie opposite each other around the mean.
      name: for messages.
    """

    init: Callable[[Key, PyTree, Hyperparams], State]
    ask: Callable[[State, Hyperparams], PyTree]
    tell: Callable[[State, PyTree, Float[Array, " P"], Hyperparams], tuple[State, Metrics]]
    mean: Callable[[State], PyTree]
    hyperparams: Callable[..., Hyperparams]
    population_size: int
    pairs: bool = False
    name: str = "strategy"


class Curriculum(NamedTuple):
    """Which levels the learners of an outer loop meet, and how long they live there; G levels a generation.

    Attributes:
      init: `(key, hparams) -> state`; the only place where a key enters.
      draw: `(state, hparams) -> (levels [G, ...], lifetimes [G], tickets)`: parameters of the environment and steps of
        the learner. It changes nothing: asked twice it gives the same ones.
      tell: `(state, tickets, fitness [G], hparams) -> (state, metrics)`: what the learners made of them.
      hyperparams: `(**changes) -> hparams`: the defaults with some leaves replaced, as strongly typed arrays.
      tasks: `(key) -> level`: the distribution behind it, which held-out levels come from.
      lifetimes: `(key) -> steps`, likewise; None: all lives have `num_steps`.
      num_levels: G.
      num_steps: of the longest life.
      env_steps: transitions that one `tell` consumes.
      name: for messages.
    """

    init: Callable[[Key, Hyperparams], State]
    draw: Callable[[State, Hyperparams], tuple[EnvParams, Array, Any]]
    tell: Callable[[State, Any, Float[Array, " G"], Hyperparams], tuple[State, Metrics]]
    hyperparams: Callable[..., Hyperparams]
    tasks: Callable[[Key], EnvParams]
    lifetimes: Callable[[Key], Array] | None
    num_levels: int
    num_steps: int
    env_steps: int = 0
    name: str = "curriculum"


_P = ParamSpec("_P")
_T = TypeVar("_T")


def memoize(factory: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes equal arguments give the same record, so that `jit`'s cache hits when a notebook's cell runs again.

    Raises (when the factory is called):
      TypeError: an argument is not hashable.
    """
    cached = functools.lru_cache(maxsize=None)(factory)
    signature = inspect.signature(factory)
    options = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)

    @functools.wraps(factory)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # However they are passed, and whether a default is spelled out or not, equal arguments are one key.
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            try:
                # Of **options the cache sees the values; a dict that was given as an argument it could not take.
                hash(tuple(value.items()) if name == options else value)
            except TypeError:
                raise TypeError(
                    f"{factory.__name__}: argument {name} = {value!r} must be hashable, since equal arguments "
                    "give the same compiled program. Pass a tuple for a list, a frozen dataclass for a dict; "
                    "arrays belong in the hyperparameters."
                ) from None
        return cached(*bound.args, **bound.kwargs)

    return wrapper
