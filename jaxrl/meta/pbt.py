"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): a search that moves weights between members.

One step of the algorithm, with its shapes:

    train          every member, `interval` steps with hyperparameters of its own      [interval, P]
    score          mean return of the episodes that ended meanwhile                    [P]
    exploit        each of the worst copies one of the best: state, score and values   [P]
    explore        what was copied is perturbed or drawn again                         [P]

All of it is inside the compiled program. Scores, values and the leaves of `State.members` have the axis P and are
global arrays also where the members are spread over devices; only exploit communicates.

Terms between members have two places. What compares or recombines trained members (SEARL's tournament and mutations,
selection for novelty) is a function of arrays [P] like `_select` and goes between score and explore. What enters a
member's gradient (DvD's determinant over the population's behavior) needs all members in one step: it takes the place
of `population`, of which this file uses no more than `init`, `step`, `act` and the leading axis [P].
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import runs
from jaxrl.meta.population import population
from jaxrl.ops import trees
from jaxrl.progress import not_finite
from jaxrl.types import Action, Algorithm, Hyperparams, Key, Memory, Metrics, Observation, memoize


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a leaf of the hyperparameters may go, both ends included.

    Attributes:
      low: lower end.
      high: upper end.
      scale: "log": drawn uniformly in the logarithm and perturbed by factors; "linear": drawn uniformly and perturbed
        by parts of high - low, since a factor does little at 0 and too much near 1.

    Raises:
      ValueError: the ends are not finite, low is not below high, or a log range does not lie above 0.

    Example:
      >>> Range(1e-4, 1e-2)
      Range(low=0.0001, high=0.01, scale='log')
    """

    low: float
    high: float
    scale: Literal["log", "linear"] = "log"

    def __post_init__(self) -> None:
        if self.scale not in ("log", "linear"):
            raise ValueError(f"scale must be 'log' or 'linear'; got scale = {self.scale!r}.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, both finite; got low = {self.low}, high = {self.high}.")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"A log range must lie above 0; got low = {self.low}: raise it, or use scale='linear'.")

    def draw(self, share: Float[Array, "..."]) -> Float[Array, "..."]:
        """The value below which a share in [0, 1) of the range lies."""
        if self.scale == "linear":
            return self.clip(self.low + share * (self.high - self.low))
        low, high = math.log(self.low), math.log(self.high)
        return self.clip(jnp.exp(low + share * (high - low)))

    def perturb(self, value: Float[Array, "..."], factor: Float[Array, "..."]) -> Float[Array, "..."]:
        """value * factor, or value + (factor - 1)(high - low) if linear; not yet clipped."""
        return value * factor if self.scale == "log" else value + (factor - 1.0) * (self.high - self.low)

    def clip(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest value inside."""
        return jnp.clip(value, self.low, self.high)


@struct.dataclass
class State:
    """All that one step changes.

    Attributes:
      key: of each member's draws in exploit and explore, [P].
      members: state of the population, leaves [P, ...].
      values: of the evolving leaves by name, [P].
      score: of each member; -inf before an episode of it has ended, [P].
      num_intervals: steps done.
    """

    key: Key
    members: PyTree
    values: dict[str, Float[Array, " P"]]
    score: Float[Array, " P"]
    num_intervals: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The members' parameters, leaves [P, ...], of algorithms that have `params`."""
        return self.members.params

    @property
    def actor(self) -> PyTree:
        """The members' environments, leaves [P, ...], of algorithms that have an `actor`."""
        return self.members.actor


def pbt(
    algorithm: Algorithm,
    num_members: int,
    ranges: Mapping[str, Range],
    *,
    interval: int,
    truncation: float = 0.2,
    perturb: tuple[float, float] = (0.8, 1.2),
    resample_probability: float = 0.25,
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Trains P members whose hyperparameters evolve while they learn.

    After each interval the members are ranked by score. With k = max(1, floor(truncation P)), each of the k worst draws
    one of the k best and, if that one's score is higher, takes over its state, score and hyperparameters. Then each
    evolving leaf of it is drawn again from its range with `resample_probability`, else perturbed by one of the two
    factors, and clipped to the range. (Section 4.2 and appendix A of the paper; truncation selection.)

    - A member keeps its own random keys, since two members of one state and one key would stay equal.
    - The score is the mean return of the episodes that ended in the interval; where none did, the score stays.
    - A member whose parameters or returns are not finite ranks last and is replaced in any case, also beyond the k
      worst, as long as one member is sound.
    - With truncation = 0 nothing is ever replaced, and the members are those of a plain `population`.

    Args:
      algorithm: what each member runs, with the metrics `episode/return_sum` and `episode/count`.
      num_members: P.
      ranges: by dotted path of a leaf (`learning_rate`, `objective.clip`) where it may go; a number each, float.
      interval: steps of the algorithm between two exploits.
      truncation: share of the members that is replaced, 0 to 0.5.
      perturb: the two factors, each drawn with probability 1/2.
      resample_probability: of each leaf that is copied.
      num_devices: as for `population`.
      chunk: as for `population`.

    Returns:
      The algorithm; one step of it is `interval` steps of every member. Its hyperparameters are the algorithm's.
      Evolving leaves have shape [P] and are initial values: NaN, the default, lets `init` draw them from their range.
      A record that is given (`objective=...`) gives all the leaves in it. Its `init` takes one key or keys [P].

      Metrics, each [P]: those of the members, summed over the interval or averaged (`jaxrl.runs.is_summed`);
      `pbt/<leaf>`, the value that the interval was trained with; `pbt/parent`, the member that each one continues as,
      its own index if it goes on as itself.

    Raises:
      ValueError: a count, share or factor is out of its range, a path is no leaf or no single float, its default range
        of values does not hold the `Range`, or P does not split evenly.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> agents = pbt(agent, 4, {"learning_rate": Range(1e-4, 1e-2)}, interval=2)
      >>> state, metrics = jax.jit(jaxrl.train(agents, 1))(jax.random.key(0), agents.hyperparams())
      >>> metrics["pbt/parent"].shape, state.values["learning_rate"].shape
      ((1, 4), (4,))
    """
    return _pbt(
        algorithm,
        num_members,
        tuple(ranges.items()),
        interval,
        truncation,
        tuple(perturb),
        resample_probability,
        num_devices,
        chunk,
    )


@memoize
def _pbt(
    algorithm: Algorithm,
    num_members: int,
    given: tuple[tuple[str, Range], ...],
    interval: int,
    truncation: float,
    perturb: tuple[float, ...],
    resample_probability: float,
    num_devices: int,
    chunk: int | None,
) -> Algorithm:
    _check(num_members, interval, truncation, perturb, resample_probability)
    ranges = dict(given)
    _check_ranges(algorithm, ranges)
    agents = population(algorithm, num_members, tuple(ranges), num_devices, chunk)
    num_replaced = max(1, math.floor(truncation * num_members + 1e-9)) if truncation else 0

    def hyperparams(**changes: Any) -> Hyperparams:
        hparams = agents.hyperparams(**changes)
        for name in ranges:
            if name.partition(".")[0] not in changes:
                hparams = trees.replace_leaf(hparams, name, jnp.full(num_members, jnp.nan, jnp.float32))
        return hparams

    def init(key: Key, hparams: Hyperparams) -> State:
        keys = key if key.ndim else jax.random.split(key, num_members)
        key, key_values, key_members = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
        initial = {name: trees.named_leaves(hparams)[name] for name in ranges}
        drawn = {name: ranges[name].draw(share) for name, share in _uniforms(key_values, tuple(ranges)).items()}
        values = {name: jnp.where(jnp.isnan(initial[name]), drawn[name], initial[name]) for name in ranges}
        return State(
            key=key,
            members=agents.init(key_members, trees.replace_leaves(hparams, values)),
            values=values,
            score=jnp.full(num_members, -jnp.inf, jnp.float32),
            num_intervals=jnp.int32(0),
        )

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        # --- Train -----------------------------------------------------------------------------------------------
        own = trees.replace_leaves(hparams, state.values)
        members, rows = jax.lax.scan(lambda s, _: agents.step(s, own), state.members, None, interval)
        metrics = {name: (jnp.sum if runs.is_summed(name) else jnp.mean)(row, 0) for name, row in rows.items()}

        # --- Score -----------------------------------------------------------------------------------------------
        score = _score(metrics, state.score)
        sound = ~not_finite(members, num_members) & (score < jnp.inf)

        # --- Exploit and explore ---------------------------------------------------------------------------------
        key, key_parent, key_values = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(state.key)
        parent = _select(key_parent, score, sound, num_replaced)
        members, (score, values) = _copied(members, parent), _copied((score, state.values), parent)
        explored = _explore(key_values, values, ranges, perturb, resample_probability)
        is_copy = parent != jnp.arange(num_members)
        values = trees.where(is_copy, explored, values)
        metrics["pbt/parent"] = parent.astype(jnp.float32)
        metrics |= {f"pbt/{name}": value for name, value in state.values.items()}
        return State(key, members, values, score, state.num_intervals + 1), metrics

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        return agents.act(state.members, memory, obs, key)

    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=agents.initial_memory,
        env_steps=agents.env_steps * interval,
        name=f"pbt({algorithm.name}, {num_members})",
        env=algorithm.env,
        config=algorithm.config,
    )


def _score(metrics: Metrics, before: Float[Array, " P"]) -> Float[Array, " P"]:
    """Mean return of the episodes that ended; as before where none did."""
    if not {"episode/return_sum", "episode/count"} <= set(metrics):
        raise ValueError(
            "pbt ranks members by their returns and needs an algorithm with the metrics episode/return_sum and "
            f"episode/count; this one has {sorted(metrics)}."
        )
    count = metrics["episode/count"]
    score = jnp.where(count > 0, metrics["episode/return_sum"] / jnp.maximum(count, 1), before)
    return score.astype(jnp.float32)


def _select(key: Key, score: Float[Array, " P"], sound: Bool[Array, " P"], num_replaced: int) -> Int[Array, " P"]:
    """The member that each one continues as, [P]."""
    own = jnp.arange(len(score))
    if not num_replaced:
        return own
    # Best first; sound members without a score before those that are not sound.
    order = jnp.lexsort((-score, ~sound))
    rank = jnp.argsort(order)
    num_best = jnp.clip(jnp.sum(sound), 1, num_replaced)
    place = jnp.floor(jax.vmap(jax.random.uniform)(key) * num_best).astype(jnp.int32)
    candidate = order[jnp.minimum(place, num_best - 1)]
    is_worst = (rank >= len(score) - num_replaced) & (score[candidate] > score)
    return jnp.where(sound[candidate] & (is_worst | ~sound), candidate, own)


def _copied(tree: PyTree, parent: Int[Array, " P"]) -> PyTree:
    """Each member's leaves from its parent, but for random keys."""
    return jax.tree.map(lambda leaf: leaf if trees.is_key(leaf) else leaf[parent], tree)


def _explore(
    key: Key,
    values: dict[str, Float[Array, " P"]],
    ranges: dict[str, Range],
    perturb: tuple[float, ...],
    resample_probability: float,
) -> dict[str, Float[Array, " P"]]:
    """New values for all members, by name."""
    key_kind, key_factor, key_draw = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(key)
    names = tuple(ranges)
    kind, factor, share = (_uniforms(k, names) for k in (key_kind, key_factor, key_draw))
    explored = {}
    for name, allowed in ranges.items():
        perturbed = allowed.perturb(values[name], jnp.where(factor[name] < 0.5, perturb[0], perturb[1]))
        drawn = allowed.draw(share[name])
        explored[name] = allowed.clip(jnp.where(kind[name] < resample_probability, drawn, perturbed))
    return explored


def _uniforms(keys: Key, names: tuple[str, ...]) -> dict[str, Float[Array, " P"]]:
    """Numbers in [0, 1) by name, one a key."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (len(names),)), out_axes=1)(keys)
    return dict(zip(names, drawn, strict=True))


def _check(
    num_members: int, interval: int, truncation: float, perturb: tuple[float, ...], resample_probability: float
) -> None:
    if interval < 1:
        raise ValueError(f"pbt: interval must be at least 1; got interval = {interval}.")
    if not 0 <= truncation <= 0.5:
        raise ValueError(f"pbt: truncation must be from 0 to 0.5; got truncation = {truncation}.")
    if num_members < (2 if truncation else 1):
        raise ValueError(f"pbt: num_members must be at least 2, or 1 without truncation; got {num_members}.")
    if len(perturb) != 2 or not all(math.isfinite(factor) and factor > 0 for factor in perturb):
        raise ValueError(f"pbt: perturb must be two factors above 0; got perturb = {perturb}.")
    if not 0 <= resample_probability <= 1:
        raise ValueError(
            f"pbt: resample_probability must be from 0 to 1; got resample_probability = {resample_probability}."
        )


def _check_ranges(algorithm: Algorithm, ranges: dict[str, Range]) -> None:
    template = algorithm.hyperparams()
    leaves = trees.named_leaves(template)
    if not ranges:
        raise ValueError(f"pbt: ranges must name at least one leaf; there are {sorted(leaves)}.")
    for name, allowed in ranges.items():
        if name not in leaves:
            raise ValueError(f"pbt: ranges names {name!r}, which is no leaf; there are {sorted(leaves)}.")
        leaf = leaves[name]
        if leaf.ndim or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"pbt: {name} must be one float to evolve; it is {leaf.dtype} of shape {leaf.shape}. Leave it out."
            )
        if "." not in name:
            try:
                algorithm.hyperparams(**{name: jnp.asarray([allowed.low, allowed.high], leaf.dtype)})
            except ValueError as error:
                raise ValueError(f"pbt: the range of {name} does not fit: {error}") from error
