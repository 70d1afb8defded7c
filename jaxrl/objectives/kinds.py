"""Kinds of rules by name: what each is built from, where it plugs in, and what its weights must be."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxrl import objectives, values
from jaxrl.names import unknown
from jaxrl.networks.update_rules import UpdateRule, open_rule
from jaxrl.objectives import disco, rules
from jaxrl.objectives.rules import Rule
from jaxrl.ops import expressions
from jaxrl.types import Key, Objective
from jaxrl.values import ValueHead

FamilyName = Literal["drift", "sequence", "disco", "optimizer", "head"]
"""What a rule plugs into; see `FAMILIES`."""

AnyRule = Objective | Rule | disco.Rule | UpdateRule | ValueHead


class Family(NamedTuple):
    """Where the rules of a family go.

    Attributes:
      slot: the argument of an algorithm's factory.
      leaf: the field of its hyperparameters that holds the weights, and the option of the command line.
      what: for messages.
    """

    slot: str
    leaf: Literal["objective", "optimizer", "head"]
    what: str


FAMILIES: dict[str, Family] = {
    "drift": Family("objective", "objective", "an objective of samples"),
    "sequence": Family("rule", "objective", "a rule over sequences"),
    "disco": Family("update_rule", "objective", "a rule of Disco103's form"),
    "optimizer": Family("optimizer", "optimizer", "a learned optimizer"),
    "head": Family("head", "head", "a loss of action values"),
}
"""All families by name."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of rule.

    Attributes:
      build: `(**arguments) -> rule`.
      family: what it plugs into.
      is_learned: whether its parameters are weights that mean nothing before an outer loop has found them.
      problem: `(weights by path) -> what is wrong with them`, or None; shapes and types are right already.
    """

    build: Callable[..., AnyRule]
    family: FamilyName = "drift"
    is_learned: bool = False
    problem: Callable[[Mapping[str, np.ndarray]], str | None] = lambda weights: None


def _program(num_nodes: int = 12) -> ValueHead:
    """A head whose loss is a program; before one is found, DQN's loss."""
    fewest = expressions.program_of(expressions.TD).operation.shape[0]
    if num_nodes < fewest:
        raise ValueError(
            f"program: num_nodes must be at least {fewest}, the nodes of DQN's loss; got num_nodes = {num_nodes}. "
            "`expressions.program_of` fills a shorter loss up."
        )
    return values.graph(expressions.TD, num_nodes)


_is_loss = jax.jit(expressions.is_loss)


def _problem_of_program(weights: Mapping[str, np.ndarray]) -> str | None:
    operation, *operands = (weights[name] for name in ("operation", "first", "second"))
    before = expressions.NUM_INPUTS + np.arange(len(operation))
    named = (operation >= 0) & (operation < len(expressions.OPERATIONS))
    if not (named.all() and all(((x >= 0) & (x < before)).all() for x in operands)):
        return "a node has an unknown operation, or reads one that is not before it"
    if not _is_loss(expressions.Program(*map(jnp.asarray, (operation, *operands)))):
        return "it is no loss: types do not fit, or the values that learn have no part in it"
    return None


KINDS: dict[str, Kind] = {
    "lpo": Kind(functools.partial(objectives.lpo, progress=False), is_learned=True),
    "ta_lpo": Kind(functools.partial(objectives.lpo, progress=True), is_learned=True),
    "lpg": Kind(functools.partial(rules.lpg, progress=False), "sequence", is_learned=True),
    "ta_lpg": Kind(functools.partial(rules.lpg, progress=True), "sequence", is_learned=True),
    "disco": Kind(disco.rule, "disco", is_learned=True),
    "open": Kind(open_rule, "optimizer", is_learned=True),
    "program": Kind(_program, "head", is_learned=True, problem=_problem_of_program),
    "clip": Kind(objectives.clip),
    "kl_penalty": Kind(objectives.kl_penalty),
    "alpha_penalty": Kind(objectives.alpha_penalty),
    "mdpo": Kind(objectives.mdpo),
    "spo": Kind(objectives.spo),
    "dpo": Kind(objectives.dpo),
    "awr": Kind(objectives.awr),
    "vmpo": Kind(objectives.vmpo),
    "policy_gradient": Kind(objectives.policy_gradient),
    "a2c": Kind(rules.a2c, "sequence"),
    "scalar": Kind(values.scalar, "head"),
    "dqn_reg": Kind(values.dqn_reg, "head"),
    "dqn_clipped": Kind(values.dqn_clipped, "head"),
}
"""All kinds by name."""


def kind_of(name: str) -> Kind:
    """The kind of a name.

    Raises:
      ValueError: the name is unknown; the message offers the nearest.
    """
    if name not in KINDS:
        raise ValueError(unknown(name, KINDS, kind="kind of rule"))
    return KINDS[name]


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """What a rule is, without its weights.

    Attributes:
      kind: a name in `KINDS`.
      arguments: of that kind's factory, those that are not the default.
      provenance: anything that JSON can hold: task, generations, seed, the held-out figure, the inner settings.
    """

    kind: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def family(self) -> FamilyName:
        """What it plugs into."""
        return kind_of(self.kind).family

    def build(self) -> Any:
        """The rule, an `AnyRule`; equal specs give the same record.

        Raises:
          ValueError: the kind or an argument is unknown, or a value is out of its range.

        Example:
          >>> RuleSpec("ta_lpo", {"hidden": 8}).build().name
          'ta_lpo'
        """
        build = kind_of(self.kind).build
        parameters = inspect.signature(build).parameters
        known = [name for name in parameters if name != "progress"]
        for name, value in self.arguments.items():
            if name not in known:
                raise ValueError(unknown(name, known, kind=f"argument of {self.kind}"))
            if type(parameters[name].default) is int and type(value) is not int:
                raise ValueError(f"{self.kind}: {name} must be a whole number; got {name} = {value!r}.")
        return build(**{name: tuple(v) if isinstance(v, list) else v for name, v in self.arguments.items()})

    def init(self, key: Key) -> PyTree:
        """Weights, or coefficients, before anything has been found.

        Raises:
          ValueError: as for `build`.

        Example:
          >>> RuleSpec("program", {"num_nodes": 7}).init(jax.random.key(0)).operation.shape
          (7,)
        """
        rule = self.build()
        return rule.init() if isinstance(rule, ValueHead) else rule.init(key)
