"""Losses as data: typed expression graphs in integer arrays, which one compiled program evaluates for any of them.

A `Program` is a list of L nodes. Each has an operation and two operands, which are inputs or nodes before it; the last
node is the loss of each sample. Since a program is data, `vmap` over programs scores thousands of losses at once, and
evolution is arithmetic on indices (Co-Reyes et al. 2021, arXiv:2101.03958, sections 3.2 and 3.3).

Every value is an array [N, A], whatever its type: a float is the same for all actions, an action is one-hot. So an
operation is a function of two such arrays, all operations of a node are computed, and one is selected.

    q, target_next, online_next, target_now   list       values of all actions, [N, A]
    action                                    action     taken
    reward, discount                          float      the discount is 0 where the successor is terminal
    0.5, 0.2, 0.1, 0.01                       float      constants
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxrl.types import Key

FLOAT, LIST, PROBABILITY, ACTION = range(4)
"""Types: a number of each sample; a number for each action; probabilities of the actions; an action."""

_NUM_TYPES = 4
_INPUTS = (
    ("q", LIST),
    ("target_next", LIST),
    ("online_next", LIST),
    ("target_now", LIST),
    ("action", ACTION),
    ("reward", FLOAT),
    ("discount", FLOAT),
    ("0.5", FLOAT),
    ("0.2", FLOAT),
    ("0.1", FLOAT),
    ("0.01", FLOAT),
)
INPUTS = tuple(name for name, _ in _INPUTS)
"""What the first operands are, by index; a node i is operand `len(INPUTS)` + i."""

NUM_INPUTS = len(INPUTS)
_NUM_CONSTANTS = 4

Expression = Any
"""An input's name, or a tuple of an operation's name and its operands: `("subtract", "reward", ("abs", "0.1"))`."""


class Operation(NamedTuple):
    """One kind of node.

    Attributes:
      name: of it.
      types: type of the result by types of the operands, one or two of them.
      commutes: whether the order of two operands does not matter.
    """

    name: str
    types: dict[tuple[int, ...], int]
    commutes: bool = False

    @property
    def arity(self) -> int:
        """Number of operands."""
        return len(next(iter(self.types)))


_EITHER = {(FLOAT, FLOAT): FLOAT, (FLOAT, LIST): LIST, (LIST, FLOAT): LIST, (LIST, LIST): LIST}
_SAME = {(FLOAT,): FLOAT, (LIST,): LIST}
_OF_LIST = {(LIST,): FLOAT}
_OF_BATCH = {(FLOAT,): FLOAT}

OPERATIONS = (
    Operation("add", _EITHER, commutes=True),
    Operation("subtract", _EITHER),
    Operation("multiply", _EITHER, commutes=True),
    Operation("divide", {(FLOAT, FLOAT): FLOAT, (LIST, LIST): LIST}),
    Operation("max", _EITHER, commutes=True),
    Operation("min", {(FLOAT, FLOAT): FLOAT, (LIST, LIST): LIST}, commutes=True),
    Operation("half_squared_distance", {(FLOAT, FLOAT): FLOAT}, commutes=True),
    Operation("select", {(LIST, ACTION): FLOAT}),
    Operation("kl", {(PROBABILITY, PROBABILITY): FLOAT}),
    Operation("square", _SAME),
    Operation("abs", _SAME),
    Operation("log", _SAME),
    Operation("exp", _SAME),
    Operation("tenth", {(FLOAT,): FLOAT}),
    Operation("argmax_list", {(LIST,): ACTION}),
    Operation("max_list", _OF_LIST),
    Operation("sum_list", _OF_LIST),
    Operation("mean_list", _OF_LIST),
    Operation("std_list", _OF_LIST),
    Operation("logsumexp_list", _OF_LIST),
    Operation("softmax", {(LIST,): PROBABILITY}),
    Operation("entropy", {(PROBABILITY,): FLOAT}),
    Operation("mean_batch", _OF_BATCH),
    Operation("std_batch", _OF_BATCH),
)
"""What a node may be, by index.

Those of the authors' code (ops.py) but for states and vectors, which only a network could read, and for random ones,
since a loss has no key. x / y is x / (y + 10⁻¹⁰), log is log(|x| + 10⁻¹²), exp is at most 10¹⁰, and the entropy is
-Σ p log p, where the code has the other sign.
"""

_INDEX = {operation.name: i for i, operation in enumerate(OPERATIONS)}
_ARITY = np.array([operation.arity for operation in OPERATIONS])
_COMMUTES = np.array([operation.commutes for operation in OPERATIONS])


def _result_types() -> np.ndarray:
    """Type of the result by operation and types of both operands; -1 where there is none."""
    table = np.full((len(OPERATIONS), _NUM_TYPES, _NUM_TYPES), -1, np.int32)
    for i, operation in enumerate(OPERATIONS):
        for types, result in operation.types.items():
            table[i, types[0], types[1] if len(types) == 2 else slice(None)] = result
    return table


_RESULTS = _result_types()


@struct.dataclass
class Program:
    """L nodes; the last one is the loss. Operands are numbered inputs first, then nodes.

    Attributes:
      operation: index in `OPERATIONS`, [L].
      first: operand, [L].
      second: operand, 0 where there is one only, [L].
    """

    operation: Int[Array, " L"]
    first: Int[Array, " L"]
    second: Int[Array, " L"]


@struct.dataclass
class LossInputs:
    """What a program is evaluated on; N transitions (s, a, r, s'), A actions.

    Attributes:
      q: Q(s, ·) of the parameters that learn, [N, A].
      target_next: Q(s', ·) of those that are bootstrapped from.
      online_next: Q(s', ·) of those that learn.
      target_now: Q(s, ·) of those that are bootstrapped from.
      action: a, [N].
      reward: r, [N].
      discount: γ, or 0 where s' is terminal, [N].
    """

    q: Float[Array, "N A"]
    target_next: Float[Array, "N A"]
    online_next: Float[Array, "N A"]
    target_now: Float[Array, "N A"]
    action: Int[Array, " N"]
    reward: Float[Array, " N"]
    discount: Float[Array, " N"]


def evaluate(program: Program, inputs: LossInputs) -> Float[Array, " N"]:
    """The loss of each sample.

    Its derivatives are those of the selected operations, and finite where these are: no operation that is not selected
    has an infinite derivative at finite operands.

    Args:
      program: as `program_of`, `random_program` or `mutate` make it.
      inputs: of a batch.

    >>> one = jnp.ones((1, 2))
    >>> inputs = LossInputs(3.0 * one, one, one, one, jnp.zeros(1, int), jnp.ones(1), jnp.full(1, 0.5))
    >>> evaluate(program_of(TD), inputs).tolist()
    [1.125]
    """
    num_nodes = program.operation.shape[-1]
    wide = lambda x: jnp.broadcast_to(x[:, None], inputs.q.shape)
    constants = [jnp.full(inputs.q.shape, float(name)) for name in INPUTS[-_NUM_CONSTANTS:]]
    known = [
        inputs.q,
        inputs.target_next,
        inputs.online_next,
        inputs.target_now,
        jax.nn.one_hot(inputs.action, inputs.q.shape[-1]),
        wide(inputs.reward),
        wide(inputs.discount),
        *constants,
    ]
    table = jnp.concatenate([jnp.stack(known), jnp.zeros((num_nodes, *inputs.q.shape))])

    # Not the results of all operations are kept for the derivative, but the operands.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def node(table: Array, row: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        i, operation, first, second = row
        return table.at[i].set(_apply(operation, table[first], table[second])), None

    rows = (NUM_INPUTS + jnp.arange(num_nodes), program.operation, program.first, program.second)
    table, _ = jax.lax.scan(node, table, rows)
    return table[-1, :, 0]


def _apply(operation: Int[Array, ""], x: Float[Array, "N A"], y: Float[Array, "N A"]) -> Float[Array, "N A"]:
    """The result of one operation. All are computed: under `vmap` a conditional would do the same."""
    wide = lambda z: jnp.broadcast_to(z, x.shape)
    over_actions = {"axis": -1, "keepdims": True}
    # A divisor that is not one might be 0.
    divisor = jnp.where(operation == _INDEX["divide"], y + 1e-10, 1.0)
    deviation = lambda axis: jnp.sqrt(
        jnp.mean(jnp.square(x - jnp.mean(x, axis, keepdims=True)), axis, keepdims=True) + 1e-12
    )
    sure = lambda p: jnp.clip(p, 1e-7, 1.0)
    results = {
        "add": x + y,
        "subtract": x - y,
        "multiply": x * y,
        "divide": x / divisor,
        "max": jnp.maximum(x, y),
        "min": jnp.minimum(x, y),
        "half_squared_distance": 0.5 * jnp.square(x - y),
        "select": wide(jnp.sum(jnp.where(y > 0.5, x, 0.0), **over_actions)),
        "kl": wide(jnp.sum(sure(x) * (jnp.log(sure(x)) - jnp.log(sure(y))), **over_actions)),
        "square": jnp.square(x),
        "abs": jnp.abs(x),
        "log": jnp.log(jnp.abs(x) + 1e-12),
        "exp": jnp.exp(jnp.minimum(x, math.log(1e10))),
        "tenth": 0.1 * x,
        "argmax_list": jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1]),
        "max_list": wide(jnp.max(x, **over_actions)),
        "sum_list": wide(jnp.sum(x, **over_actions)),
        "mean_list": wide(jnp.mean(x, **over_actions)),
        "std_list": wide(deviation(-1)),
        "logsumexp_list": wide(jax.nn.logsumexp(x, **over_actions)),
        "softmax": jax.nn.softmax(x),
        "entropy": wide(-jnp.sum(x * jnp.log(jnp.maximum(x, 0.0) + 1e-8), **over_actions)),
        "mean_batch": wide(jnp.mean(x, axis=0, keepdims=True)),
        "std_batch": wide(deviation(0)),
    }
    return jax.lax.select_n(operation, *(results[operation.name] for operation in OPERATIONS))


_Q = ("select", "q", "action")
_NEXT = ("max_list", "target_next")
_TARGET = ("add", "reward", ("multiply", "discount", _NEXT))
_ERROR = ("subtract", _Q, _TARGET)

TD: Expression = ("half_squared_distance", _Q, _TARGET)
"""DQN's: ½ (Q(s, a) - Y)², Y = r + γ max Q'(s', ·)."""

DQN_REG: Expression = ("add", ("tenth", _Q), ("square", _ERROR))
"""0.1 Q(s, a) + (Q(s, a) - Y)² (Co-Reyes et al. 2021, section 4.3)."""

DQN_CLIPPED: Expression = (
    "add",
    ("max", _Q, ("add", ("square", _ERROR), _TARGET)),
    ("max", _ERROR, ("multiply", "discount", ("square", _NEXT))),
)
"""max(Q, (Q - Y)² + Y) + max(Q - Y, γ (max Q'(s', ·))²), Q being Q(s, a) (the same)."""


def program_of(expression: Expression, num_nodes: int | None = None) -> Program:
    """Writes an expression as nodes, equal parts of it once.

    Args:
      expression: of type float.
      num_nodes: L; nodes that nothing reads fill up the beginning. None: as many as there are.

    Raises:
      ValueError: a name is unknown, a type does not fit, or there are more nodes than `num_nodes`.

    Example:
      >>> program_of(("square", ("select", "q", "action")), num_nodes=3).operation.shape
      (3,)
    """
    nodes: list[tuple[int, ...]] = []
    found: dict[Expression, tuple[int, int]] = {name: (i, kind) for i, (name, kind) in enumerate(_INPUTS)}

    def place(part: Expression) -> tuple[int, int]:
        """Number of an operand, and its type."""
        if part in found:
            return found[part]
        if not isinstance(part, tuple) or part[0] not in _INDEX or len(part) != 1 + _ARITY[_INDEX[part[0]]]:
            raise ValueError(
                f"program_of: {part!r} is no input ({', '.join(INPUTS)}) and no operation with its operands "
                f"({', '.join(f'{o.name}/{o.arity}' for o in OPERATIONS)})."
            )
        operands = [place(operand) for operand in part[1:]]
        types = tuple(kind for _, kind in operands)
        result = OPERATIONS[_INDEX[part[0]]].types.get(types)
        if result is None:
            raise ValueError(
                f"program_of: {part[0]} takes no operands of types {[_NAMES[t] for t in types]}: {part!r}."
            )
        nodes.append((_INDEX[part[0]], *(i for i, _ in operands), 0)[:3])
        found[part] = (NUM_INPUTS + len(nodes) - 1, result)
        return found[part]

    last, kind = place(expression)
    if kind != FLOAT or last < NUM_INPUTS:
        raise ValueError(f"program_of: a loss is an operation of type float; got {_NAMES[kind]}: {expression!r}.")
    num_fill = (len(nodes) if num_nodes is None else num_nodes) - len(nodes)
    if num_fill < 0:
        raise ValueError(f"program_of: the expression has {len(nodes)} nodes; got num_nodes = {num_nodes}.")
    shift = lambda i: i + num_fill if i >= NUM_INPUTS else i
    rows = [(_INDEX["abs"], INPUTS.index("reward"), 0)] * num_fill
    rows += [(operation, shift(first), shift(second)) for operation, first, second in nodes]
    return Program(*(jnp.asarray(column, jnp.int32) for column in zip(*rows, strict=True)))


_NAMES = ("float", "list", "probability", "action")


def describe(program: Program) -> str:
    """The expression that a program computes, for people.

    >>> describe(program_of(("abs", ("subtract", "reward", "0.1"))))
    'abs(subtract(reward, 0.1))'
    """
    texts = list(INPUTS)
    for operation, first, second in zip(*(np.asarray(x) for x in jax.tree.leaves(program)), strict=True):
        operands = (first, second)[: _ARITY[operation]]
        texts.append(f"{OPERATIONS[operation].name}({', '.join(texts[i] for i in operands)})")
    return texts[-1]


def types_of(program: Program) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """The type of each operand, and whether it depends on `q`; -1 where a node's operands do not fit it.

    Args:
      program: L nodes, S = inputs + L.
    """
    num_nodes = program.operation.shape[-1]
    types = jnp.asarray([*(kind for _, kind in _INPUTS), *[-1] * num_nodes], jnp.int32)
    depends = jnp.arange(len(types)) == 0

    def node(carry: Any, row: Any) -> tuple[Any, None]:
        types, depends = carry
        i, operation, first, second = row
        both = jnp.asarray(_ARITY)[operation] == 2
        fits = (types[first] >= 0) & (~both | (types[second] >= 0))
        result = jnp.asarray(_RESULTS)[operation, types[first], jnp.where(both, types[second], 0)]
        reads = depends[first] | (both & depends[second])
        return (types.at[i].set(jnp.where(fits, result, -1)), depends.at[i].set(reads)), None

    rows = (NUM_INPUTS + jnp.arange(num_nodes), program.operation, program.first, program.second)
    return jax.lax.scan(node, (types, depends), rows)[0]


def is_loss(program: Program) -> Bool[Array, ""]:
    """Whether all types fit, the last node is a float, and it depends on `q`."""
    types, depends = types_of(program)
    return jnp.all(types >= 0) & (types[-1] == FLOAT) & depends[-1]


def _choose(
    key: Key,
    index: Int[Array, ""],
    types: Int[Array, " S"],
    depends: Bool[Array, " S"],
    result: Int[Array, ""],
    dependent: Bool[Array, ""],
) -> tuple[Array, Array, Array]:
    """An operation and its operands for node `index`, uniform over all that fit.

    Args:
      key: a random key.
      index: of the operand that the node is; operands come before it.
      types: of all operands.
      depends: which of them depend on q.
      result: type that the node must have, or -1.
      dependent: whether it must depend on q.
    """
    size = len(types)
    before = jnp.arange(size) < index
    two = (_ARITY == 2)[:, None, None]
    order = np.arange(size)[:, None] - np.arange(size)[None]
    # No operand twice; of two orders that mean the same, one.
    shape = np.where(two, np.where(_COMMUTES[:, None, None], order < 0, order != 0), (np.arange(size) == 0)[None, None])
    kinds = jnp.asarray(_RESULTS)[:, jnp.maximum(types, 0)][:, :, jnp.maximum(types, 0)]
    reads = depends[None, :, None] | (jnp.asarray(two) & depends[None, None])
    fits = jnp.asarray(shape) & before[None, :, None] & before[None, None] & (kinds >= 0)
    fits &= (result < 0) | (kinds == result)
    fits &= ~dependent | reads
    # The k-th that fits: one random number instead of one for each.
    count = jnp.cumsum(fits.ravel())
    k = jnp.floor(jax.random.uniform(key) * count[-1].astype(jnp.float32))
    flat = jnp.searchsorted(count, jnp.minimum(k.astype(count.dtype), count[-1] - 1), side="right")
    operation, first, second = jnp.unravel_index(flat, fits.shape)
    return tuple(x.astype(jnp.int32) for x in (operation, first, second))  # type: ignore[return-value]


def random_program(key: Key, num_nodes: int, start: Program | None = None) -> Program:
    """Draws a program: node after node, an operation and operands uniformly among all whose types fit.

    The last node is drawn among those of type float that depend on q, where the authors draw whole programs until one
    is so. Operands of one node differ.

    Args:
      key: a random key.
      num_nodes: L.
      start: the first nodes, kept as they are; DQN's loss to bootstrap from it.

    Example:
      >>> bool(is_loss(random_program(jax.random.key(0), 8, program_of(TD))))
      True
    """
    given = 0 if start is None else start.operation.shape[-1]
    empty = Program(*(jnp.zeros(num_nodes, jnp.int32) for _ in range(3)))
    if start is not None:
        empty = jax.tree.map(lambda x, head: x.at[:given].set(head), empty, start)

    def node(program: Program, row: tuple[Array, Key]) -> tuple[Program, None]:
        i, key = row
        types, depends = types_of(program)
        is_last = i == num_nodes - 1
        chosen = _choose(key, NUM_INPUTS + i, types, depends, jnp.where(is_last, FLOAT, -1), is_last)
        return _with_node(program, i, chosen), None

    rows = (jnp.arange(given, num_nodes), jax.random.split(key, num_nodes - given))
    return jax.lax.scan(node, empty, rows)[0]


def mutate(key: Key, program: Program, num_tries: int = 8) -> Program:
    """Replaces one node, drawn uniformly, by another operation with other operands.

    A node that a later one reads keeps its type; the last one stays a float. A change after which the loss does not
    depend on q any more is drawn again, `num_tries` times at most; then the program stays as it is.

    Args:
      key: a random key.
      program: a loss.
      num_tries: how often.

    Example:
      >>> bool(is_loss(mutate(jax.random.key(0), program_of(DQN_REG))))
      True
    """
    num_nodes = program.operation.shape[-1]
    types, depends = types_of(program)
    both = jnp.asarray(_ARITY)[program.operation] == 2

    def attempt(key: Key) -> tuple[Program, Array]:
        key_node, key_choice = jax.random.split(key)
        i = jax.random.randint(key_node, (), 0, num_nodes)
        is_read = jnp.any((program.first == NUM_INPUTS + i) | (both & (program.second == NUM_INPUTS + i)))
        is_last = i == num_nodes - 1
        result = jnp.where(is_last | is_read, types[NUM_INPUTS + i], -1)
        changed = _with_node(program, i, _choose(key_choice, NUM_INPUTS + i, types, depends, result, is_last))
        return changed, is_loss(changed)

    tries, good = jax.vmap(attempt)(jax.random.split(key, num_tries))
    chosen = jnp.argmax(good)
    return jax.tree.map(lambda new, old: jnp.where(good[chosen], new[chosen], old), tries, program)


def _with_node(program: Program, i: Array, node: tuple[Array, ...]) -> Program:
    return Program(*(x.at[i].set(value) for x, value in zip(jax.tree.leaves(program), node, strict=True)))


_NUM_PROBES = 10


def _probes() -> LossInputs:
    draws = np.random.default_rng(2021)
    lists = [np.float32(2.0 * draws.normal(size=(_NUM_PROBES, 3))) for _ in range(4)]
    numbers = [np.float32(draws.normal(size=_NUM_PROBES)), np.float32(draws.uniform(0.1, 0.9, _NUM_PROBES))]
    return LossInputs(*lists, draws.integers(0, 3, _NUM_PROBES), *numbers)  # type: ignore[arg-type]


def fingerprint(program: Program) -> UInt32[Array, "2"]:
    """64 bits that are equal for programs that compute the same function, and with near certainty only for those.

    A hash of the losses of ten fixed random samples, each rounded to 13 bits of its mantissa; all values that are not
    finite count as one. (Section 3.3 of the paper, functional equivalence check.)

    Example:
      >>> swapped = ("add", ("square", _ERROR), ("tenth", _Q))
      >>> bool((fingerprint(program_of(swapped, 12)) == fingerprint(program_of(DQN_REG))).all())
      True
    """
    losses = evaluate(program, jax.tree.map(jnp.asarray, _probes()))
    # + 0 makes of -0 the other zero.
    words = jax.lax.bitcast_convert_type(losses + 0.0, jnp.int32)
    words = jnp.where(jnp.isfinite(losses), (words + 2**9) >> 10, 2**23).astype(jnp.uint32)
    hashes = []
    for factor in (0x9E3779B1, 0x85EBCA77):
        hashed = jnp.uint32(factor)
        for i in range(_NUM_PROBES):
            hashed = (hashed ^ words[i]) * jnp.uint32(factor)
            hashed = hashed ^ (hashed >> 15)
        hashes.append(hashed)
    return jnp.stack(hashes)
