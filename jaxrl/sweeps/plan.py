"""What a sweep runs: settings that share a program are a group, its members are packed into batches that fit.

A member is one setting with one seed. Its key is `fold_in(key(seed), index of its seed)`: it depends neither on the
other settings nor on the batch, and the same seeds meet every setting.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import config_fields, memory
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.envs import make_env
from jaxrl.evaluation import Episodes, play_episodes, time_limit
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.meta.population import population
from jaxrl.names import CONFIG, unknown
from jaxrl.ops import trees
from jaxrl.sweeps.settings import Settings, expand
from jaxrl.sweeps.spaces import Space
from jaxrl.types import Algorithm, Env, Hyperparams, Key, State

MAX_MEMBERS = 10**6
# Share of the free memory that a batch may take.
_MEMORY_SHARE = 0.6


class Learner(NamedTuple):
    """An algorithm before it knows its environment.

    Attributes:
      name: for labels and folders.
      factory: `(env, config=...) -> Algorithm`.
      config: its default config.
    """

    name: str
    factory: Callable[..., Algorithm]
    config: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Settings of one algorithm in one environment that one compiled program serves.

    Attributes:
      index: place in the plan.
      algorithm: name.
      env: name.
      member: the algorithm of one member.
      config: fields of the config that the sweep sets, `config.` left out.
      settings: indices into the pair's `Settings.rows`.
      values: of the leaves that are set, by dotted path, [settings, *shape of the leaf].
      mapped: those of them that differ between settings.
      num_seeds: of each setting.
      iterations: calls of `step`.
      segment: iterations between two looks of the host.
      layout: on the machine.
      width: members of a batch, padding included.
      bytes_shared: estimated for a batch besides what grows with its width.
      bytes_member: estimated for each member more.
    """

    index: int
    algorithm: str
    env: str
    member: Algorithm
    config: dict[str, Any]
    settings: tuple[int, ...]
    values: dict[str, np.ndarray]
    mapped: tuple[str, ...]
    num_seeds: int
    iterations: int
    segment: int
    layout: Layout
    width: int
    bytes_shared: int
    bytes_member: int

    @property
    def num_members(self) -> int:
        """Settings times seeds."""
        return len(self.settings) * self.num_seeds

    @property
    def batches(self) -> list["Batch"]:
        """All members in batches of equal width, but for the last."""
        edges = range(0, self.num_members, self.width)
        return [Batch(self.index, start, min(start + self.width, self.num_members)) for start in edges]

    def population(self, width: int) -> Algorithm:
        """The program of a batch of so many members, padding included."""
        layout = fitted(self.layout, width)
        return population(self.member, width, self.mapped, *layout)

    def hyperparams(self, batch: "Batch", width: int) -> Hyperparams:
        """Hyperparameters of a batch: mapped leaves [width, ...], padded by repeating its last member."""
        agents = self.population(width)
        lanes = np.minimum(np.arange(batch.start, batch.start + width), batch.stop - 1) // self.num_seeds
        changes = {name: column[lanes] if name in self.mapped else column[0] for name, column in self.values.items()}
        return agents.hyperparams(**_fields(self.member.hyperparams(), changes))

    def play(self, width: int, num_episodes: int) -> Callable[[Key, State, Hyperparams], Episodes]:
        """The evaluation of a batch of so many members, until the greatest time limit that is swept."""
        template = self.member.hyperparams()
        max_steps = time_limit(self.member.env, _fields(template, self.values).get("env", template.env))
        return play_episodes(self.member, num_episodes, False, max_steps, width, *fitted(self.layout, width))

    def keys(self, batch: "Batch", width: int, seed: int) -> Key:
        """Keys of a batch's members, [width]."""
        lanes = np.minimum(np.arange(batch.start, batch.start + width), batch.stop - 1) % self.num_seeds
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(lanes, jnp.uint32))


class Batch(NamedTuple):
    """Members `start` to `stop` of a group, setting by setting, each with all of its seeds.

    Attributes:
      group: index of the group.
      start: first member.
      stop: after the last.
    """

    group: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.group:03d}-{self.start:07d}-{self.stop:07d}"

    def halves(self, multiple: int) -> tuple["Batch", "Batch"]:
        """Two batches in its place, the first a multiple of what the layout wants where that is possible."""
        size = self.stop - self.start
        half = -(-size // 2)
        half = min(-(-half // multiple) * multiple, size - 1) if size > multiple else half
        return self._replace(stop=self.start + half), self._replace(start=self.start + half)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A sweep before it runs.

    Attributes:
      space: what is swept.
      pairs: settings by (algorithm, environment), in the order of the result.
      groups: what is compiled.
      num_seeds: of each setting.
      seed: all keys follow from it.
      total_steps: environment steps of each member, at least.
      num_points: of the curves in the result.
      fixed: values of names that are the same in all settings.
      defaults: of the swept names, in the first pair; a name without one number or text is left out.
      free_bytes: of memory, when the plan was made; None where nothing tells.
    """

    space: Space
    pairs: dict[tuple[str, str], Settings]
    groups: tuple[Group, ...]
    num_seeds: int
    seed: int
    total_steps: int
    num_points: int
    fixed: dict[str, Any]
    defaults: dict[str, Any]
    free_bytes: int | None

    def __repr__(self) -> str:
        pairs = ", ".join(f"{algorithm} on {env}" for algorithm, env in self.pairs)
        settings = sum(group.num_members for group in self.groups) // self.num_seeds
        return f"Plan({pairs}: {settings} settings x {self.num_seeds} seeds in {len(self.groups)} programs)"

    @property
    def num_members(self) -> int:
        """Of all groups."""
        return sum(group.num_members for group in self.groups)

    @property
    def batches(self) -> list[Batch]:
        """Of all groups."""
        return [batch for group in self.groups for batch in group.batches]

    def env_steps_of(self, batch: Batch) -> int:
        """Transitions of all members of a batch, padding left out."""
        group = self.groups[batch.group]
        return (batch.stop - batch.start) * group.iterations * group.member.env_steps

    @property
    def env_steps(self) -> int:
        """Transitions of all members together."""
        return sum(group.num_members * group.iterations * group.member.env_steps for group in self.groups)


def make_plan(
    algorithms: Any,
    environments: Any,
    space: Space,
    *,
    num_seeds: int,
    total_steps: int,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    segments: int = 20,
    num_points: int = 50,
    max_batch: int | None = None,
    layout: Layout | None = None,
) -> Plan:
    """Plans a sweep. Nothing is compiled; each group is traced once to know its memory.

    Args:
      algorithms: a name of the registry, a factory `(env, config=...) -> Algorithm`, a mapping of labels to these, or
        a sequence.
      environments: a name, an `Env`, a mapping of labels to these, or a sequence.
      space: what is swept, in every pair of algorithm and environment.
      num_seeds: members of each setting.
      total_steps: environment steps of each member, rounded up to whole iterations.
      seed: all randomness follows from it.
      fixed: values of leaves and of `config.` fields for all settings; the space goes before it.
      segments: parts of each member's training between two looks of the host.
      num_points: points of each curve in the result; fewer if a group has fewer iterations.
      max_batch: most members in a batch; None: as many as the memory takes.
      layout: for all groups; None chooses for each.

    Raises:
      ValueError: a name is unknown, a value does not fit, a count is not positive, or there are more than
        `MAX_MEMBERS` members.
    """
    for name, value in (("num_seeds", num_seeds), ("total_steps", total_steps), ("segments", segments)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {name} = {value}.")
    fixed = dict(fixed or {})
    if both := sorted(set(fixed) & set(space.names)):
        raise ValueError(f"{', '.join(both)} cannot be both fixed and swept: leave out one.")
    free = memory.available()
    pairs: dict[tuple[str, str], Settings] = {}
    groups: list[Group] = []
    defaults: dict[str, Any] = {}
    for learner, (label, env) in itertools.product(find_learners(algorithms), find_envs(environments)):
        settings, rows, found = _settings(learner, env, space, fixed)
        defaults = defaults or {name: found[name] for name in space.names if name in found}
        pairs[learner.name, label] = settings
        _check_size(len(pairs) * len(settings.rows) * num_seeds, settings, num_seeds)
        for config, members in by_config(rows):
            chosen = [rows[index] for index in members]
            group = make_group(learner, label, env, config, chosen, tuple(members), total_steps)
            group = dataclasses.replace(
                group,
                index=len(groups),
                num_seeds=num_seeds,
                segment=math.ceil(group.iterations / segments),
            )
            groups.append(_packed(group, free, max_batch, layout))
    num_points = min([num_points, *(group.iterations for group in groups)])
    return Plan(space, pairs, tuple(groups), num_seeds, seed, total_steps, num_points, fixed, defaults, free)


def fitted(layout: Layout, width: int) -> Layout:
    """The layout for a batch of another width: as it is where it divides, else without chunks, else on one device."""
    num_devices, chunk = layout
    if width % num_devices:
        num_devices = math.gcd(width, num_devices)
    each = width // num_devices
    return Layout(num_devices, None if chunk is None else each if chunk >= each else math.gcd(each, chunk))


def width_of(group: Group, batch: Batch) -> int:
    """Members that a batch computes: those of its group's width; of a part of a split batch, as the layout wants."""
    if batch in group.batches:
        return group.width
    size, multiple = batch.stop - batch.start, group.layout.multiple
    return -(-size // multiple) * multiple if size >= multiple else size


def describe_plan(plan: Plan, seconds: Sequence[tuple[float, float]] | None = None) -> list[str]:
    """The plan for people.

    Args:
      plan: the plan.
      seconds: of each group, to compile and to run, where they were measured.
    """
    total, num_settings = len(plan.batches), sum(len(settings.rows) for settings in plan.pairs.values())
    lines = [
        f"{plan.num_members:,} members: {_count(num_settings, 'setting')} x "
        f"{_count(plan.num_seeds, 'seed')}, each of {plan.total_steps:,} steps",
        f"{_count(len(plan.groups), 'compiled program')}, {_count(total, 'batch', 'batches')}",
    ]
    for group in plan.groups:
        changes = ", ".join(f"{name} = {value}" for name, value in group.config.items())
        batches = _count(len(group.batches), "batch", "batches")
        devices = _count(group.layout.num_devices, "device")
        size = memory.readable(group.bytes_shared + group.bytes_member * group.width)
        parts = [
            f"  {group.index}: {group.algorithm} on {group.env}{f' ({changes})' if changes else ''}",
            f"{group.num_members:,} members in {batches} of up to {group.width:,}",
            f"{devices}, {group.layout.chunk or 'all'} at a time on each",
            f"about {size}",
        ]
        if seconds:
            parts.append(f"about {seconds[group.index][0]:.0f} s to compile, {seconds[group.index][1]:.0f} s to run")
        lines.append("; ".join(parts))
    return lines


def find_learners(given: Any) -> list[Learner]:
    """Algorithms by name or as factories, as `make_plan` takes them.

    Raises:
      ValueError: a name is unknown or comes twice, or something is no factory.
    """

    def learner(name: str | None, value: Any) -> Learner:
        if isinstance(value, str):
            if value not in ALGORITHMS:
                raise ValueError(unknown(value, ALGORITHMS, kind="algorithm"))
            entry = ALGORITHMS[value]
            return Learner(name or value, entry.factory, entry.default_config)
        if not callable(value):
            raise ValueError(f"An algorithm is a name or a factory (env, config=...) -> Algorithm; got {value!r}.")
        config = inspect.signature(value).parameters.get("config")
        if config is None or not dataclasses.is_dataclass(config.default):
            raise ValueError(f"The factory {value!r} needs an argument `config` with a default, a frozen dataclass.")
        # A functools.partial has its factory's name.
        label = name or getattr(getattr(value, "func", value), "__name__", "algorithm")
        return Learner(label, cast(Any, value), config.default)

    return _labelled("algorithm", given, learner, lambda each: each.name)


def find_envs(given: Any) -> list[tuple[str, Env]]:
    """Environments with their labels, as `make_plan` takes them.

    Raises:
      ValueError: a name is unknown or comes twice, or something is no environment.
    """

    def env(name: str | None, value: Any) -> tuple[str, Env]:
        made = make_env(value) if isinstance(value, str) else value
        if not isinstance(made, Env):
            raise ValueError(f"An environment is a name or an Env; got {value!r}.")
        return name or made.name, made

    return _labelled("environment", given, env, lambda each: each[0])


def _labelled(kind: str, given: Any, make: Callable[[str | None, Any], Any], label: Callable[[Any], str]) -> list[Any]:
    if isinstance(given, Mapping):
        made = [make(name, value) for name, value in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, (str, Env)):
        made = [make(None, value) for value in given]
    else:
        made = [make(None, given)]
    labels = [label(each) for each in made]
    if not made or len(set(labels)) < len(labels):
        raise ValueError(
            f"There must be at least one {kind}, and no two of one name (a mapping names them); got {labels}."
        )
    return made


def _settings(
    learner: Learner, env: Env, space: Space, fixed: dict[str, Any]
) -> tuple[Settings, list[dict[str, Any]], dict[str, Any]]:
    """The settings of one pair, for each all that it sets, and the defaults."""
    fields = {name: field.value for name, field in config_fields.fields(learner.config, CONFIG).items()}
    member = learner.factory(env, config=learner.config)
    leaves = trees.named_leaves(member.hyperparams())
    defaults = {name: _number(leaf) for name, leaf in leaves.items() if not np.ndim(leaf)}
    defaults |= fields | fixed | {"algorithm": learner.name, "env": env.name}
    settings = expand(space, defaults)
    known = {**fields, **leaves}
    named = {name: None for row in settings.rows for name in row}
    for name in [*named, *fixed]:
        if name not in known:
            raise ValueError(
                f"{unknown(name, known)} ({learner.name} on {env.name}; "
                'a condition such as "name=... if algorithm == ppo" sweeps a name in one of several.)'
            )
    return settings, [{**fixed, **row} for row in settings.rows], defaults


def by_config(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Rows that share the config, in the order of their first."""
    found: dict[Any, tuple[dict[str, Any], list[int]]] = {}
    for index, row in enumerate(rows):
        config = {name.removeprefix(CONFIG): value for name, value in row.items() if name.startswith(CONFIG)}
        key = repr(sorted(config.items()))
        found.setdefault(key, (config, []))[1].append(index)
    yield from found.values()


def make_group(
    learner: Learner,
    label: str,
    env: Env,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    settings: tuple[int, ...],
    total_steps: int,
) -> Group:
    """Settings that share a config as a group; how it is packed, its place in the plan and its seeds are not yet set.

    Args:
      learner: the algorithm.
      label: of the environment.
      env: the environment.
      config: fields that the settings have in common, `config.` left out.
      rows: values by name of each setting.
      settings: indices of the settings in their pair.
      total_steps: of each member, rounded up to whole iterations.

    Raises:
      ValueError: a value does not fit.
    """
    made = learner.config
    for name, value in config.items():
        made = config_fields.replaced(made, name, value)
    member = learner.factory(env, config=made)
    iterations = math.ceil(total_steps / member.env_steps)
    template = member.hyperparams()
    leaves = trees.named_leaves(template)
    values: dict[str, np.ndarray] = {}
    if "horizon" in leaves:
        values["horizon"] = np.full(len(rows), iterations * member.env_steps, np.float32)
    for name in {name: None for row in rows for name in row if not name.startswith(CONFIG)}:
        default = values[name] if name in values else [leaves[name]] * len(rows)
        values[name] = np.stack(
            [_leaf(name, row.get(name, default[index]), leaves[name]) for index, row in enumerate(rows)]
        )
    mapped = tuple(name for name, column in values.items() if np.any(column != column[:1]))
    # The factory checks ranges, of all settings at once.
    member.hyperparams(**_fields(template, values))
    return Group(0, learner.name, label, member, config, settings, values, mapped, 1, iterations, 1, Layout(), 1, 0, 0)


def _packed(group: Group, free: int | None, max_batch: int | None, layout: Layout | None) -> Group:
    """Chooses layout and width: the fewest batches that fit, of nearly equal width."""
    member, count = group.member, group.num_members
    hparams = group.member.hyperparams()
    layout = layout or choose_layout(member, hparams, count, exact=False)
    parts = memory.estimate(member, hparams, group.segment)
    at_once = layout.num_devices * layout.chunk if layout.chunk else None
    # In chunks the states are read from one array and written to another.
    each = parts.metrics + (2 * parts.state if at_once else parts.state + parts.step)
    shared = at_once * parts.step if at_once else 0
    room = count if free is None else int((_MEMORY_SHARE * free - shared) // max(each, 1))
    most = max(1, min(count, room, max_batch or count))
    width = math.ceil(count / math.ceil(count / most))
    multiple = layout.multiple
    if width >= multiple:
        width = min(-(-width // multiple) * multiple, -(-count // multiple) * multiple)
        if width > most and width > multiple and most >= multiple:
            width = most // multiple * multiple
    return dataclasses.replace(group, layout=fitted(layout, width), width=width, bytes_shared=shared, bytes_member=each)


def _check_size(members: int, settings: Settings, num_seeds: int) -> None:
    if members > MAX_MEMBERS:
        raise ValueError(
            f"The sweep has at least {members:,} members ({len(settings.rows):,} settings x {num_seeds} seeds), more "
            f"than {MAX_MEMBERS:,}: use fewer values, samples or seeds, or cut it into several sweeps."
        )


def _leaf(name: str, value: Any, like: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        if not np.issubdtype(like.dtype, np.inexact) and not np.array_equal(array, array.astype(like.dtype)):
            raise ValueError
        return np.broadcast_to(array.astype(like.dtype), np.shape(like))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {like.dtype} of shape {np.shape(like)}; got {value!r}.") from None


def _number(leaf: Any) -> Any:
    """A scalar leaf as a person would write it: the shortest number that gives the float32, 0.00025."""
    value = np.asarray(leaf)[()]
    return float(str(value)) if isinstance(value, np.floating) else value.item()


def _fields(template: Hyperparams, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as changes by field of the record."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        field, _, rest = name.partition(".")
        present = fields.get(field, getattr(template, field))
        fields[field] = trees.replace_leaf(present, rest, jnp.asarray(value)) if rest else value
    return fields


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
