"""Columnar-constructive networks: recurrent features whose exact gradient is carried forward in time.

A *column* is an LSTM cell with one hidden unit. Columns share the input z and do not see each other, so real-time
recurrent learning (RTRL) needs for each weight only its influence on the two numbers h and c of its own column:

    i, f, o = σ(a_i), σ(a_f), σ(a_o),  g = tanh(a_g),     a_q = k_q · [z, h, 1]
    c' = f c + i g,                    h' = o tanh(c')
    Dc' = f Dc + (∂c'/∂a · u) Dh + ∂c'/∂a ⊗ [z, h, 1]                                     with D = ∂/∂k, u = ∂a/∂h
    Dh' = o (1 - tanh² c') Dc' + o (1 - o) tanh(c') (u_o Dh + e_o ⊗ [z, h, 1])

In the forms of Javed et al. 2023 (arXiv:2302.05326), all of them settings of one record:

    columnar               one stage of d columns, all of which learn all the time
    constructive           stages of one column
    columnar-constructive  S stages of d columns

The columns of a stage see the observation and the features of the stages before it. Only the newest stage learns;
those before it are frozen, those after it are not there yet. Whatever reaches the output depends on a learning weight
through its own column alone, so the gradient is exact: no truncation, no noise. What is seen, and each feature, is
centered and divided by its running deviation, of which neither the mean nor the deviation is differentiated.

Checked against the authors' code (github.com/khurramjaved96/Columnar-Constructive-Networks, commit ade18a5), not
against the paper's text: the cell, the recursions, the stages, the one step by which a stage sees the features of the
others late, the statistics of a stage's inputs that stop with its learning, those of the features that do not, small
uniform weights. Different here: the first n samples of a statistic have the weight 1/n (there it starts at 0 and 1),
the least deviation bounds the deviation (there the variance: `min_std=0.1` is its `std_cap` 0.01), a stage that is not
there yet is silent (there it runs, and nothing reads it), and sensitivities follow the weights with which the cell ran
(there those after the next update).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrl import spaces, validation
from jaxrl.networks.torsos import Encoder
from jaxrl.ops.leaves import Leaf, build
from jaxrl.types import Key, Observation, memoize

_MOST_SAMPLES = 2**30
_LEAVES = {
    "steps_per_stage": Leaf(100_000.0, 1.0),
    "decay": Leaf(0.99999, 0.0, 1.0),
    "min_std": Leaf(0.1, 1e-6),
}


@dataclasses.dataclass(frozen=True)
class ColumnarConfig:
    """What fixes the shapes of a `Columnar`.

    Attributes:
      num_stages: S.
      columns_per_stage: d.
      weight_scale: weights start uniform in ± this.
    """

    num_stages: int = 5
    columns_per_stage: int = 4
    weight_scale: float = 0.01


@struct.dataclass
class Rates:
    """What is data of a `Columnar`; made by `rates`.

    Attributes:
      steps_per_stage: steps for which a stage learns before the next one does; the last one never stops.
      decay: the n-th sample of a running mean or deviation has weight max(1/n, 1 - decay).
      min_std: least deviation that is divided by.
    """

    steps_per_stage: Float[Array, ""]
    decay: Float[Array, ""]
    min_std: Float[Array, ""]


def rates(**changes: Any) -> Rates:
    """The default `Rates` with some leaves replaced.

    Raises:
      ValueError: a name is unknown or a value out of its range.

    >>> float(rates(steps_per_stage=10.0).steps_per_stage)
    10.0
    """
    return build(Rates, _LEAVES, None, changes)


@struct.dataclass
class Moments:
    """Running mean and variance of some numbers, and how many samples each has had, [S, ...], [S, ...] and [S]."""

    mean: Array
    var: Array
    count: Int[Array, " S"]


@struct.dataclass
class Carry:
    """What passes from one step to the next; D inputs, I = D + (S - 1) d.

    Attributes:
      hidden: h of each column.
      cell: c of each column.
      hidden_sensitivity: ∂h/∂k of the columns that learn.
      cell_sensitivity: ∂c/∂k of the columns that learn.
      stage: which columns they are.
      inputs: moments of what each stage sees.
      features: moments of h.
      min_std: least deviation that is divided by.
    """

    hidden: Float[Array, "S d"]
    cell: Float[Array, "S d"]
    hidden_sensitivity: Float[Array, "d 4 I+2"]
    cell_sensitivity: Float[Array, "d 4 I+2"]
    stage: Int[Array, ""]
    inputs: Moments
    features: Moments
    min_std: Float[Array, ""]


class Columnar(NamedTuple):
    """A columnar-constructive network as pure functions of its kernel [S, d, 4, I + 2].

    The axis of 4 is input gate, forget gate, candidate, output gate; the last axis is the D inputs, the features of the
    other stages, h and 1. Weights from features that a stage does not see are there and are multiplied by zero: for
    large S this doubles the memory of the kernel, which buys one product for all columns. Sensitivities exist for the
    learning stage alone.

    Attributes:
      init: `(key) -> kernel`.
      initial_carry: `() -> carry` before the first step.
      advance: `(kernel, carry, x [D], stage, start, rates) -> carry` after seeing x with `stage` learning;
        `start` says that x begins an episode: h, c and the sensitivities are zero before it. A new stage begins with
        sensitivities of zero.
      features: `(carry) -> [S, d]`, normalized; zero for the stages that are not there yet.
      pull_back: `(carry, cotangent [S, d]) -> [d, 4, I + 2]`: the gradient with respect to the kernel of the learning
        stage, of a number whose gradient with respect to `features` is `cotangent`.
      recall: `(kernel, carry, (h, c), x) -> carry` after seeing x in another stream whose state is (h, c), zeros where
        it begins; nothing is learned, and of the carry only h and c change.
      num_features: S d.
      stage_at: `(time, steps_per_stage) -> stage`: min(⌊time / steps_per_stage⌋, S - 1).
    """

    init: Callable[[Key], Array]
    initial_carry: Callable[[], Carry]
    advance: Callable[[Array, Carry, Array, Array, Array, Rates], Carry]
    features: Callable[[Carry], Array]
    pull_back: Callable[[Carry, Array], Array]
    recall: Callable[[Array, Carry, tuple[Array, Array], Array], Carry]
    num_features: int
    stage_at: Callable[[Array, Array], Array]


@memoize
def columnar(num_inputs: int, config: ColumnarConfig = ColumnarConfig()) -> Columnar:
    """Builds a `Columnar`.

    Cost of a step, in multiplications: about 4 S d I for all columns, and for those that learn 4 (I + 2) d times 6:
    linear in the number of parameters, and beyond the first term in that of the learning ones.

    Args:
      num_inputs: D.
      config: stages and columns.

    Returns:
      Its functions; equal arguments give the same record.

    Raises:
      ValueError: a count is not positive, or the weights' scale is.

    Example:
      >>> net = columnar(3, ColumnarConfig(num_stages=2, columns_per_stage=4))
      >>> data = rates(decay=0.999)
      >>> kernel, carry = net.init(jax.random.key(0)), net.initial_carry()
      >>> carry = net.advance(kernel, carry, jnp.ones(3), jnp.int32(0), jnp.bool_(True), data)
      >>> net.features(carry).shape, net.pull_back(carry, jnp.ones((2, 4))).shape
      ((2, 4), (4, 4, 9))
    """
    validation.counts("columnar", config, ("num_stages", "columns_per_stage"))
    validation.count("columnar", "num_inputs", num_inputs)
    if config.weight_scale <= 0:
        raise ValueError(f"columnar: weight_scale must be positive; got weight_scale = {config.weight_scale}.")
    num_stages, width = config.num_stages, config.columns_per_stage
    size = num_inputs + (num_stages - 1) * width
    ages = np.arange(num_stages)
    # Of the inputs, which stage sees which.
    source = np.concatenate([np.full(num_inputs, -1), np.repeat(ages[:-1], width)])
    sees = (source[None, :] < ages[:, None]).astype(np.float32)

    def init(key: Key) -> Float[Array, "S d 4 I+2"]:
        shape = (num_stages, width, 4, size + 2)
        return jax.random.uniform(key, shape, jnp.float32, -config.weight_scale, config.weight_scale)

    def initial_carry() -> Carry:
        def zeros(*shape: int) -> Array:
            return jnp.zeros(shape, jnp.float32)

        def moments(last: int) -> Moments:
            return Moments(zeros(num_stages, last), zeros(num_stages, last), jnp.zeros(num_stages, jnp.int32))

        return Carry(
            hidden=zeros(num_stages, width),
            cell=zeros(num_stages, width),
            hidden_sensitivity=zeros(width, 4, size + 2),
            cell_sensitivity=zeros(width, 4, size + 2),
            stage=jnp.int32(0),
            inputs=moments(size),
            features=moments(width),
            min_std=jnp.float32(_LEAVES["min_std"].default),
        )

    def inputs_at(hidden: Float[Array, "S d"], x: Float[Array, " D"]) -> Float[Array, "S I"]:
        # The others' features as they were a step before, so that all columns run at once.
        return jnp.broadcast_to(jnp.concatenate([x, hidden[:-1].ravel()]), (num_stages, size))

    def run(kernel: Array, hidden: Array, cell: Array, z: Float[Array, "S I"], stage: Array) -> tuple[Array, ...]:
        """The cells: their gates, then h and c after this step."""
        recurrent, bias = kernel[..., size], kernel[..., size + 1]
        before = jnp.einsum("sdqi,si->sdq", kernel[..., :size], z) + recurrent * hidden[..., None] + bias
        put, forget, out = (jax.nn.sigmoid(before[..., gate]) for gate in (0, 1, 3))
        candidate = jnp.tanh(before[..., 2])
        cell = jnp.where((ages <= stage)[:, None], forget * cell + put * candidate, 0.0)
        return put, forget, candidate, out, out * jnp.tanh(cell), cell

    def advance(
        kernel: Float[Array, "S d 4 I+2"],
        carry: Carry,
        x: Float[Array, " D"],
        stage: Int[Array, ""],
        start: Bool[Array, ""],
        rates: Rates,
    ) -> Carry:
        hidden, cell = (jnp.where(start, 0.0, state) for state in (carry.hidden, carry.cell))
        seen = inputs_at(hidden, x)
        inputs = _update(carry.inputs, seen, ages == stage, rates.decay)
        z = jnp.asarray(sees) * _normalize(inputs, seen, rates.min_std)
        put, forget, candidate, out, next_hidden, next_cell = run(kernel, hidden, cell, z, stage)
        # Real-time recurrent learning, of the columns that learn.
        keep = (carry.stage == stage) & ~start
        dh, dc = (jnp.where(keep, s, 0.0) for s in (carry.hidden_sensitivity, carry.cell_sensitivity))
        i, f, g, o, c, h, th, u, row = (
            part[stage]
            for part in (put, forget, candidate, out, cell, hidden, jnp.tanh(next_cell), kernel[..., size], z)
        )
        full = jnp.concatenate([jnp.broadcast_to(row, (width, size)), h[:, None], jnp.ones_like(h)[:, None]], axis=-1)
        by_gate = jnp.stack([i * (1.0 - i) * g, f * (1.0 - f) * c, i * (1.0 - jnp.square(g)), jnp.zeros_like(o)], -1)
        through_h = jnp.sum(by_gate * u, axis=-1)
        dc = _scale(f, dc) + _scale(through_h, dh) + by_gate[..., None] * full[:, None, :]
        opened = jnp.stack([jnp.zeros_like(o)] * 3 + [o * (1.0 - o) * th], -1)
        direct = _scale(opened[:, 3] * u[:, 3], dh) + opened[..., None] * full[:, None, :]
        dh = _scale(o * (1.0 - jnp.square(th)), dc) + direct
        return Carry(
            hidden=next_hidden,
            cell=next_cell,
            hidden_sensitivity=dh,
            cell_sensitivity=dc,
            stage=jnp.asarray(stage, jnp.int32),
            inputs=inputs,
            features=_update(carry.features, next_hidden, ages <= stage, rates.decay),
            min_std=jnp.copy(rates.min_std),  # the carry is donated, the hyperparameters are not
        )

    def features(carry: Carry) -> Float[Array, "S d"]:
        there = (ages <= carry.stage)[:, None]
        return jnp.where(there, _normalize(carry.features, carry.hidden, carry.min_std), 0.0)

    def pull_back(carry: Carry, cotangent: Float[Array, "S d"]) -> Float[Array, "d 4 I+2"]:
        by_hidden = cotangent[carry.stage] / _deviation(carry.features.var[carry.stage], carry.min_std)
        return _scale(by_hidden, carry.hidden_sensitivity)

    def recall(kernel: Array, carry: Carry, state: tuple[Array, Array], x: Float[Array, " D"]) -> Carry:
        hidden, cell = state
        z = jnp.asarray(sees) * _normalize(carry.inputs, inputs_at(hidden, x), carry.min_std)
        *_, hidden, cell = run(kernel, hidden, cell, z, carry.stage)
        return dataclasses.replace(carry, hidden=hidden, cell=cell)

    def stage_at(time: Float[Array, ""], steps_per_stage: Float[Array, ""]) -> Int[Array, ""]:
        return jnp.minimum(jnp.floor(time / steps_per_stage), num_stages - 1.0).astype(jnp.int32)

    return Columnar(init, initial_carry, advance, features, pull_back, recall, num_stages * width, stage_at)


class ColumnarMemory(NamedTuple):
    """A `Columnar` as the memory of an agent that learns one tree of parameters along one trace.

    Without columns there are no features, no parameters and nothing to carry. Gradients and traces are as large as the
    whole kernel and zero outside of the learning stage: S times the memory and time of what `ccn` keeps, for one tree
    that any optimizer of `jaxrl.ops.traces` takes.

    Attributes:
      init: `(key) -> params`.
      initial_carry: `() -> carry`.
      advance: `(params, carry, obs, stage, start, rates) -> carry` after one observation.
      features: `(carry) -> [S d]`.
      pull_back: `(carry, cotangent [S d]) -> gradient`, like the parameters.
      learning: `(carry, tree, otherwise) -> tree`: the learning stage's part of a tree like the parameters, the other
        stages' of another one.
      stage_at: `(time, rates) -> stage`.
      rates: `() -> rates`, the defaults.
      initial_memory: `() -> memory` of an agent that acts, at the start of an episode.
      recall: `(params, carry, memory, obs) -> (memory, features)` of an agent that acts.
      num_features: S d.
    """

    init: Callable[[Key], PyTree]
    initial_carry: Callable[[], PyTree]
    advance: Callable[[PyTree, PyTree, Observation, Array, Array, PyTree], PyTree]
    features: Callable[[PyTree], Array]
    pull_back: Callable[[PyTree, Array], PyTree]
    learning: Callable[[PyTree, PyTree, PyTree], PyTree]
    stage_at: Callable[[Array, PyTree], Array]
    rates: Callable[[], PyTree]
    initial_memory: Callable[[], PyTree]
    recall: Callable[[PyTree, PyTree, PyTree, Observation], tuple[PyTree, Array]]
    num_features: int


@memoize
def columnar_memory(space: spaces.Space, config: ColumnarConfig | None) -> ColumnarMemory:
    """Builds the memory of an agent.

    Args:
      space: of one observation; images are flattened.
      config: stages and columns; None: no memory.

    Returns:
      Its functions; equal arguments give the same record.

    Raises:
      ValueError: what `columnar` raises.

    Example:
      >>> memory = columnar_memory(spaces.Discrete(3), ColumnarConfig(num_stages=2, columns_per_stage=4))
      >>> memory.init(jax.random.key(0))["kernel"].shape, memory.num_features
      ((2, 4, 4, 9), 8)
      >>> columnar_memory(spaces.Discrete(3), None).features(()).shape
      (0,)
    """
    if config is None:
        nothing = lambda *_: ()
        none = lambda *_: jnp.zeros(0, jnp.float32)
        empty = lambda *_: {}
        stage = lambda *_: jnp.int32(0)
        forget = lambda *_: ((), jnp.zeros(0, jnp.float32))
        return ColumnarMemory(empty, nothing, nothing, none, empty, empty, stage, nothing, nothing, forget, 0)
    num_stages, width = config.num_stages, config.columns_per_stage
    net = columnar(num_inputs(space), config)

    def learning(carry: Carry, tree: PyTree, otherwise: PyTree) -> PyTree:
        here = (jnp.arange(num_stages) == carry.stage)[:, None, None, None]
        return jax.tree.map(lambda x, y: jnp.where(here, x, y), tree, otherwise)

    def pull_back(carry: Carry, cotangent: Float[Array, " F"]) -> PyTree:
        gradient = net.pull_back(carry, cotangent.reshape(num_stages, width))
        whole = jnp.broadcast_to(gradient, (num_stages, *gradient.shape))
        return learning(carry, {"kernel": whole}, {"kernel": jnp.zeros_like(whole)})

    def advance(params: PyTree, carry: Carry, obs: Observation, stage: Array, start: Array, rates: Rates) -> Carry:
        return net.advance(params["kernel"], carry, encode(space, obs), stage, start, rates)

    def recall(params: PyTree, carry: Carry, memory: PyTree, obs: Observation) -> tuple[PyTree, Array]:
        after = net.recall(params["kernel"], carry, memory, encode(space, obs))
        return (after.hidden, after.cell), net.features(after).ravel()

    return ColumnarMemory(
        init=lambda key: {"kernel": net.init(key)},
        initial_carry=net.initial_carry,
        advance=advance,
        features=lambda carry: net.features(carry).ravel(),
        pull_back=pull_back,
        learning=learning,
        stage_at=lambda time, rates: net.stage_at(time, rates.steps_per_stage),
        rates=rates,
        initial_memory=lambda: (jnp.zeros((num_stages, width)), jnp.zeros((num_stages, width))),
        recall=recall,
        num_features=net.num_features,
    )


def encode(space: spaces.Space, obs: Observation) -> Float[Array, " D"]:
    """One observation as a vector: numbers flattened, integers of a discrete space one-hot (`torsos.Encoder`).

    >>> encode(spaces.Discrete(3), jnp.int32(1)).tolist()
    [0.0, 1.0, 0.0]
    """
    return Encoder(space, convolve=False).apply({}, obs)  # type: ignore[return-value]


def num_inputs(space: spaces.Space) -> int:
    """D of `encode`.

    >>> num_inputs(spaces.Discrete(3))
    3
    """
    return jax.eval_shape(lambda: encode(space, spaces.zeros(space))).shape[-1]


def _scale(factor: Float[Array, " d"], x: Float[Array, "d 4 I"]) -> Array:
    return factor[:, None, None] * x


def _update(moments: Moments, x: Float[Array, "S N"], which: Any, decay: Array) -> Moments:
    """Adds a sample to the rows named."""
    count = jnp.where(which, jnp.minimum(moments.count, _MOST_SAMPLES) + 1, moments.count)
    weight = jnp.maximum(1.0 / jnp.maximum(count, 1).astype(x.dtype), 1.0 - decay)
    weight = jnp.where(which, weight, 0.0)[:, None]
    distance = x - moments.mean
    mean, var = moments.mean + weight * distance, (1.0 - weight) * (moments.var + weight * jnp.square(distance))
    return Moments(*jax.lax.stop_gradient((mean, var)), count)


def _normalize(moments: Moments, x: Float[Array, "S N"], min_std: Array) -> Array:
    return (x - moments.mean) / _deviation(moments.var, min_std)


def _deviation(var: Array, min_std: Array) -> Array:
    return jnp.maximum(jnp.sqrt(var), min_std)
