"""From a record of `jaxrl meta-train` to its search: which agent a rule teaches, and which outer loop finds it."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxrl import runs, spaces, strategies
from jaxrl.algorithms import lpg
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.cli import overrides, rules
from jaxrl.envs import make_env
from jaxrl.evaluation import time_limit
from jaxrl.meta import evolve, regularized_evolution
from jaxrl.objectives.files import FAMILIES, RuleSpec
from jaxrl.ops import expressions, trees
from jaxrl.types import Algorithm, Env, Key, memoize

TABLES = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}
"""Rates of an agent of tables: Jackson et al. 2023, whose agents descend by plain gradients of bounded norm."""


class Outer(NamedTuple):
    """How rules of a family are found and tried.

    Attributes:
      agent: that they teach, by name.
      starts: where a search may begin, the default first; () where nothing searches them.
      defaults: of the options that the loop has.
      loop: the outer loop.
      fitness: of learners.
      sampled: whether evaluation draws actions.
      baselines: of `jaxrl meta-test`.
    """

    agent: str
    starts: tuple[str, ...]
    defaults: dict[str, Any]
    loop: Literal["strategy", "programs"] = "strategy"
    fitness: Literal["training", "evaluation"] = "training"
    sampled: bool = False
    baselines: tuple[str, ...] = ("ppo", "random")


_STRATEGY = {"sigma": 0.1, "meta_rate": 0.01, "decay": 1.0, "shaping": "centered_rank", "population": 32}
OUTER: dict[str, Outer] = {
    "drift": Outer("ppo", ("zero", "ppo"), _STRATEGY, baselines=("ppo", "a2c", "random")),
    "sequence": Outer(
        "lpg",
        ("random", "a2c"),
        {**_STRATEGY, "shaping": "pairwise"},
        fitness="evaluation",
        sampled=True,
        baselines=("ppo", "a2c", "random"),
    ),
    "optimizer": Outer("ppo", ("zero",), {**_STRATEGY, "sigma": 0.3, "meta_rate": 0.1}),
    "head": Outer(
        "dqn",
        ("random", "td"),
        {"population": 100, "tournament": 10, "children": 8, "mutation": 0.95},
        "programs",
        baselines=("dqn", "dqn_reg", "random"),
    ),
    "disco": Outer("disco", (), {}, sampled=True),
}
"""By the family's name."""

OWN = {
    "strategy": ("tasks", "held_out_every", "sigma", "meta_rate", "decay", "shaping"),
    "programs": ("tournament", "children", "mutation"),
}
"""Options that one outer loop has and the other does not."""


class Search(NamedTuple):
    """A search that a record describes.

    Attributes:
      spec: of the rule.
      member: the inner algorithm.
      algorithm: that finds its rule.
      hparams: of the search.
      leaf: of the inner algorithm's hyperparameters.
      generations: in one iteration of the algorithm.
      segment: iterations between looks.
    """

    spec: RuleSpec
    member: Algorithm
    algorithm: Algorithm
    hparams: Any
    leaf: str
    generations: int
    segment: int

    def found(self, state: Any) -> PyTree:
        """The rule's weights in a state of the search: the mean of a strategy, or the best program."""
        if isinstance(state, regularized_evolution.State):
            return state.best
        values = {name: jnp.asarray(value) for name, value in state.values.items()}
        return getattr(trees.replace_leaves(self.hparams.inner, values), self.leaf)


def search_of(record: dict[str, Any], start: PyTree | None) -> Search:
    """Builds what a record says.

    Args:
      record: of the run.
      start: weights at which the search begins; None: the rule's own.

    Raises:
      ValueError: this jaxrl lacks something of it.
    """
    about = record["meta"]
    spec = RuleSpec(about["kind"], about["arguments"])
    leaf, loop = FAMILIES[spec.family].leaf, OUTER[spec.family].loop
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in record["env_options"].items()}
    env = make_env(record["env"], **options)
    member = member_of(env, record["algorithm"], record["config"], spec)
    template = member.hyperparams(**({} if start is None else {leaf: start}))
    inner = runs.hyperparams_from_json(record["hyperparams"], template)
    if loop == "programs":
        algorithm, hparams = _of_programs(about, record["layout"], member, inner)
        return Search(spec, member, algorithm, hparams, leaf, 1, about["held_out_every"])
    tasks = rules.tasks_of(record["env"], **options) if about["tasks"] else None
    algorithm, hparams = _of_strategy(about, record["layout"], member, inner, leaf, tasks)
    return Search(spec, member, algorithm, hparams, leaf, about["held_out_every"], 1)


def _of_strategy(
    about: dict[str, Any], layout: list[Any], member: Algorithm, inner: Any, leaf: str, tasks: Any
) -> tuple[Algorithm, Any]:
    low, high = about["life"]
    search = strategies.open_es(about["population"], getattr(strategies, about["shaping"]))
    algorithm = evolve.evolve(
        member,
        search,
        leaf,
        num_steps=high,
        num_generations=about["held_out_every"],
        num_seeds=about["num_seeds"],
        num_held_out=about["num_held_out"],
        fitness=about["fitness"],
        num_episodes=about["num_episodes"],
        max_episode_steps=time_limit(member.env, inner.env),
        sampled=about["sampled"],
        common_keys="pairs" if tasks else "all",
        tasks=tasks,
        lifetimes=None if low == high else lifetimes(low, high),
        num_devices=layout[0],
        chunk=layout[1],
    )
    own = search.hyperparams(
        sigma=about["sigma"],
        learning_rate=about["meta_rate"],
        sigma_decay=about["decay"],
        learning_rate_decay=about["decay"],
    )
    return algorithm, evolve.Hyperparams(trees.as_arrays(inner), own)


def _of_programs(about: dict[str, Any], layout: list[Any], member: Algorithm, inner: Any) -> tuple[Algorithm, Any]:
    start = expressions.TD if about["start"] == "td" else None
    algorithm = regularized_evolution.regularized_evolution(
        member,
        regularized_evolution.programs(inner.head.operation.shape[0], start),
        "head",
        num_steps=about["life"][1],
        population_size=about["population"],
        tournament_size=about["tournament"],
        num_children=about["children"],
        num_seeds=about["num_seeds"],
        num_held_out=about["num_held_out"],
        fitness=about["fitness"],
        num_episodes=about["num_episodes"],
        num_devices=layout[0],
        chunk=layout[1],
    )
    probability = jnp.float32(about["mutation"])
    return algorithm, regularized_evolution.Hyperparams(trees.as_arrays(inner), probability)


def member_of(env: Env, algorithm: str, config: dict[str, Any], spec: RuleSpec | None) -> Algorithm:
    """The inner learner.

    Args:
      env: that it learns in.
      algorithm: its name.
      config: as a record has it.
      spec: of its rule; None: with its own parts.

    Raises:
      ValueError: the rule cannot act in the environment, or the config does not fit.
    """
    entry = ALGORITHMS[algorithm]
    made = overrides.config_from_json(entry.config, config)
    return rules.factory_of(algorithm, entry, (rules.Chosen(spec),) if spec else ())(env, config=made)


def inner_defaults(env: Env, algorithm: str) -> tuple[Any, dict[str, float]]:
    """Config and rates of an inner learner, before the user changes them.

    Tables where states are numbered; and DQN, whose lives are short here (`--life` 50 is 25,600 transitions), begins
    with an eighth of its random ones.
    """
    if algorithm == "dqn":
        return dataclasses.replace(ALGORITHMS[algorithm].default_config, num_warmup_steps=128), {}
    if algorithm == "lpg" and isinstance(env.observation_space, spaces.Discrete):
        return lpg.Config(tabular=True, optimizer="sgd"), TABLES
    return ALGORITHMS[algorithm].default_config, {}


@memoize
def lifetimes(low: int, high: int) -> Callable[[Key], Array]:
    """Draws log-uniform lengths of life, in iterations."""

    def draw(key: Key) -> Array:
        length = jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high)))
        return jnp.round(length).astype(jnp.int32)

    return draw


def inner_of(member: Algorithm, hparams: Any, leaf: str) -> dict[str, Any]:
    """Settings of an inner learner for a rule's provenance: its config, and as text what is not the default.

    Args:
      member: the learner.
      hparams: its hyperparameters.
      leaf: the field that holds the rule's weights, which is left out.
    """
    changed = {name: text for name, text in _changed(member, hparams) if name.partition(".")[0] not in ("env", leaf)}
    changed.pop("horizon", None)
    return {"algorithm": member.name, "config": dataclasses.asdict(member.config), "hyperparams": changed}


def env_params_of(member: Algorithm, hparams: Any) -> dict[str, str]:
    """Single numbers among the environment's parameters that are not the default, `env.name` by their texts."""
    return {name: text for name, text in _changed(member, hparams) if name.partition(".")[0] == "env"}


def _changed(member: Algorithm, hparams: Any) -> Iterator[tuple[str, str]]:
    """Numbers that are not the default, with the shortest texts that give them again in their own precision."""
    defaults = trees.named_leaves(member.hyperparams())
    for name, leaf in trees.named_leaves(hparams).items():
        value = np.asarray(leaf)
        if not value.ndim and name in defaults and value != defaults[name]:
            yield name, str(value[()]) if value.dtype.kind == "f" else str(value.item())
