"""The rows of `jaxrl meta-test`: learners by rules, by written parts with the same inner settings, and at random."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl import config_fields
from jaxrl.algorithms import ppo
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.cli import overrides
from jaxrl.cli.meta_search import OUTER, inner_defaults, member_of
from jaxrl.meta import trials
from jaxrl.names import CONFIG, distinct, unknown
from jaxrl.networks import NetworkConfig
from jaxrl.objectives.files import FAMILIES, KINDS, RuleFile, RuleSpec
from jaxrl.objectives.kinds import FamilyName
from jaxrl.ops import expressions
from jaxrl.types import Algorithm, Env

RANDOM, WRITTEN, LEARNED, EXACT = "random", "hand-made", "learned", "exact"
_ALIASES = {"drift": {"ppo": "clip", "a2c": "policy_gradient"}, "head": {"dqn": "scalar"}}


class Arm(NamedTuple):
    """One row of the table in one environment.

    Attributes:
      name: for people.
      group: random, hand-made or learned.
      algorithm: the learner.
      hparams: of it.
      trained: what a learned rule was trained on, for people.
      settings: how it differs from the common inner settings, for people.
    """

    name: str
    group: str
    algorithm: Algorithm
    hparams: Any
    trained: str = ""
    settings: str = ""


def family_of(found: list[tuple[Path, RuleFile]]) -> FamilyName:
    """The family of all rules.

    Raises:
      ValueError: there are several.
    """
    families: dict[FamilyName, Path] = {rule.spec.family: path for path, rule in found}
    if len(families) > 1:
        said = [f"{path} is {FAMILIES[family].what} for {OUTER[family].agent}" for family, path in families.items()]
        raise ValueError(f"{' and '.join(said)}, whose agents differ: test them apart.")
    return next(iter(families))


def baselines_of(text: str | None, family: FamilyName) -> tuple[str, ...]:
    """The rows besides the rules.

    Args:
      text: names with commas between; None: the family's.
      family: of the rules.

    Raises:
      ValueError: a name is unknown.
    """
    default = OUTER[family].baselines
    written = [name for name, kind in KINDS.items() if not kind.is_learned and kind.family == family]
    known = [*dict.fromkeys((*default, *written))]
    names = tuple(text.split(",")) if text else default
    for name in names:
        if name not in known:
            raise ValueError(unknown(name, known, kind="baseline"))
    return tuple(dict.fromkeys(names))


def assignments_of(
    texts: Iterable[str], baselines: tuple[str, ...]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Settings of each baseline, and those of all.

    Args:
      texts: `name=value`, or `baseline.name=value`.
      baselines: their names.
    """
    own: dict[str, dict[str, str]] = {name: {} for name in baselines}
    common: dict[str, str] = {}
    for name, value in overrides.parse_assignments(texts).items():
        first, _, rest = name.partition(".")
        if first in own and rest:
            own[first][rest] = value
        else:
            common[name] = value
    return own, common


def check_assignments(own: dict[str, dict[str, str]], common: dict[str, str], family: FamilyName) -> None:
    """Refuses settings that would have no effect.

    Raises:
      ValueError: a horizon, which each row's life sets, a learning rate for learned optimizers, or anything of the
        random row.
    """
    if own.get(RANDOM):
        raise ValueError(f"{RANDOM}.{next(iter(own[RANDOM]))} has no effect: the random row learns nothing.")
    for row, given in (("", common), *((f"{name}.", texts) for name, texts in own.items())):
        if "horizon" in given:
            raise ValueError(f"{row}horizon is as long as each row's life: set --life instead.")
    if family == "optimizer" and "learning_rate" in common:
        raise ValueError(
            "learning_rate has no effect on a learned optimizer, whose rule says how far a step goes: give "
            "ppo.learning_rate, of the row that has one."
        )


def arms_of(
    name: str,
    env: Env,
    found: list[tuple[Path, RuleFile]],
    baselines: tuple[str, ...],
    common: dict[str, str],
    own: dict[str, dict[str, str]],
) -> list[Arm]:
    """All rows of one environment: random, written, learned.

    Args:
      name: of the environment.
      env: it.
      found: the rules, of one family.
      baselines: the other rows.
      common: settings of all rows, as texts.
      own: those of each baseline.

    Raises:
      ValueError: a setting or an environment does not fit.
    """
    family = found[0][1].spec.family
    inner = found[0][1].spec.provenance.get("inner") or {}
    algorithm = OUTER[family].agent
    base, rates = inner_defaults(env, algorithm)
    changed = {field: str(value) for field, value in rates.items()}
    if inner:
        recorded = overrides.config_from_json(type(base), inner["config"])
        # Tables where states are numbered, networks elsewhere, with the rates of their kind.
        if getattr(recorded, "tabular", False) == getattr(base, "tabular", False):
            base, changed = recorded, dict(inner["hyperparams"])

    def built(spec: RuleSpec | None, params: Any, more: dict[str, str], start: Any = base) -> tuple[Algorithm, Any]:
        given = {**common, **more}
        config = overrides.with_config_changes(start, overrides.config_changes(given))
        member = member_of(env, algorithm, dataclasses.asdict(config), spec)
        weights = {} if params is None else {FAMILIES[family].leaf: params}
        return member, _hyperparams(member, {**changed, **overrides.hyperparameter_changes(given)}, weights)

    def written(baseline: str) -> Arm:
        more = own[baseline]
        settings = ", ".join(f"{field}={value}" for field, value in more.items())
        if family in ("drift", "head"):
            kind, start = _ALIASES[family].get(baseline, baseline), base
            if baseline == "a2c":
                start = dataclasses.replace(base, num_epochs=1, num_minibatches=1, clip_value=False)
                settings = ", ".join(filter(None, ("one epoch, one minibatch", settings)))
            return Arm(baseline, WRITTEN, *built(RuleSpec(kind), None, more, start), settings=settings)
        if family == "optimizer":
            member, hparams = built(None, None, more)
            return Arm(baseline, WRITTEN, member, hparams, settings=f"Adam, {_with_rate(hparams, more)}")
        if baseline == "ppo":
            member, hparams = _ppo_beside(env, base, common, more)
            return Arm("ppo", WRITTEN, member, hparams, settings=f"rates of its own, {_with_rate(hparams, more)}")
        bins = {rule.rule.num_bins for _, rule in found}
        return Arm(baseline, WRITTEN, *built(RuleSpec("a2c", {"num_bins": max(bins)}), None, more), settings=settings)

    chance = trials.random_policy(env)
    arms = [Arm(RANDOM, RANDOM, chance, chance.hyperparams())] if RANDOM in baselines else []
    try:
        arms += [written(baseline) for baseline in baselines if baseline != RANDOM]
        arms += [
            Arm(
                label,
                LEARNED,
                *built(rule.spec, rule.params, {}),
                trained=_trained(rule),
                settings=expressions.describe(rule.params) if rule.spec.kind == "program" else "",
            )
            for label, (_, rule) in zip(_labels([path for path, _ in found]), found, strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"In {name}: {error}") from error
    return arms


def _hyperparams(member: Algorithm, texts: dict[str, str], weights: dict[str, Any]) -> Any:
    others = config_fields.fields(member.config, CONFIG)
    changes = overrides.with_hyperparameter_changes(member.hyperparams(), texts, others)
    return member.hyperparams(**weights, **changes)


def _with_rate(hparams: Any, more: dict[str, str]) -> str:
    """For people: the learning rate, given or not, and what else was given."""
    rate = f"learning_rate={float(hparams.learning_rate):.3g}"
    return ", ".join((rate, *(f"{field}={value}" for field, value in more.items() if field != "learning_rate")))


def _ppo_beside(env: Env, config: Any, common: dict[str, str], more: dict[str, str]) -> tuple[Algorithm, Any]:
    """PPO with the rollouts and networks of an agent of a rule over sequences, but with rates of its own."""
    sizes = overrides.with_config_changes(config, overrides.config_changes(common))
    network = NetworkConfig(hidden=() if getattr(sizes, "tabular", False) else sizes.hidden)
    own = ppo.Config(num_envs=sizes.num_envs, num_steps=sizes.num_steps, network=network)
    own = overrides.with_config_changes(own, overrides.config_changes(more))
    member = ALGORITHMS["ppo"].factory(env, config=own)
    return member, _hyperparams(member, overrides.hyperparameter_changes(more), {})


def _labels(paths: list[Path]) -> list[str]:
    """The files' names, with as many of their folders as tell them apart; one that is just "rule" with its folder."""
    if [path.stem for path in paths] == ["rule"]:
        return [f"{paths[0].resolve().parent.name}/rule"]
    return distinct([path.with_suffix("") for path in paths])


def _trained(rule: RuleFile) -> str:
    about, kind = rule.spec.provenance, rule.spec.kind
    if not about.get("horizon"):
        return f"{kind}, {about['source']}" if "source" in about else kind
    low, high = about["horizon"]["iterations"]
    lives = f"{high}" if low == high else f"{low} to {high}"
    where = " ".join((str(about.get("env")), *(f"{name}={text}" for name, text in about.get("env_params", {}).items())))
    return f"{kind}, {'levels of ' if about.get('tasks') else ''}{where}, {lives} iterations"
