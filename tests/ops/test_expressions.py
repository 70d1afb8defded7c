"""Programs against an interpreter in NumPy; what is drawn and mutated is a loss; equal functions are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops import expressions
from jaxrl.ops.expressions import (
    DQN_CLIPPED,
    DQN_REG,
    INPUTS,
    NUM_INPUTS,
    OPERATIONS,
    TD,
    LossInputs,
    Program,
    describe,
    evaluate,
    fingerprint,
    is_loss,
    mutate,
    program_of,
    random_program,
    types_of,
)

N, A, L = 6, 3, 12
DRAWS = np.random.default_rng(0)
LISTS = 2.0 * DRAWS.normal(size=(4, N, A))
ACTIONS, REWARDS, DISCOUNTS = DRAWS.integers(0, A, N), DRAWS.normal(size=N), np.where(np.arange(N) == 2, 0.0, 0.9)
BATCH = LossInputs(
    *(jnp.asarray(x, jnp.float32) for x in LISTS),
    jnp.asarray(ACTIONS),
    jnp.asarray(REWARDS, jnp.float32),
    jnp.asarray(DISCOUNTS, jnp.float32),
)
NUM_PROGRAMS = 200

softmax = lambda x: np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
wide = lambda x: np.broadcast_to(x, (N, A))
sure = lambda p: np.clip(p, 1e-7, 1.0)
ORACLE = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / (y + 1e-10),
    "max": np.maximum,
    "min": np.minimum,
    "half_squared_distance": lambda x, y: (x - y) ** 2 / 2,
    "select": lambda x, y: wide(x[np.arange(N), y.argmax(-1)][:, None]),
    "kl": lambda x, y: wide((sure(x) * np.log(sure(x) / sure(y))).sum(-1, keepdims=True)),
    "square": lambda x: x**2,
    "abs": np.abs,
    "log": lambda x: np.log(np.abs(x) + 1e-12),
    "exp": lambda x: np.minimum(np.exp(np.minimum(x, 500.0)), 1e10),
    "tenth": lambda x: x / 10,
    "argmax_list": lambda x: np.eye(A)[x.argmax(-1)],
    "max_list": lambda x: wide(x.max(-1, keepdims=True)),
    "sum_list": lambda x: wide(x.sum(-1, keepdims=True)),
    "mean_list": lambda x: wide(x.mean(-1, keepdims=True)),
    "std_list": lambda x: wide(np.sqrt(x.var(-1, keepdims=True) + 1e-12)),
    "logsumexp_list": lambda x: wide(np.log(np.exp(x - x.max()).sum(-1, keepdims=True)) + x.max()),
    "softmax": softmax,
    "entropy": lambda x: wide(-(x * np.log(x + 1e-8)).sum(-1, keepdims=True)),
    "mean_batch": lambda x: wide(x.mean(0, keepdims=True)),
    "std_batch": lambda x: wide(np.sqrt(x.var(0, keepdims=True) + 1e-12)),
}


def interpreted(program):
    """Losses of a program and the greatest size of a value on the way, node by node."""
    table = [*LISTS, np.eye(A)[ACTIONS], wide(REWARDS[:, None]), wide(DISCOUNTS[:, None])]
    table += [np.full((N, A), float(name)) for name in INPUTS[-4:]]
    with np.errstate(all="ignore"):
        for operation, first, second in zip(*rows_of(program), strict=True):
            operands = (first, second)[: OPERATIONS[operation].arity]
            table.append(ORACLE[OPERATIONS[operation].name](*(table[i] for i in operands)))
        return table[-1][:, 0], max(np.abs(x).max() for x in table)


def rows_of(program):
    return [np.asarray(x) for x in (program.operation, program.first, program.second)]


def stacked(programs):
    return jax.tree.map(lambda *x: jnp.stack(x), *programs)


def each(programs):
    return [Program(*row) for row in zip(*rows_of(programs), strict=True)]


losses_of = jax.jit(jax.vmap(evaluate, (0, None)))
prints_of = jax.jit(jax.vmap(fingerprint))
are_losses = jax.jit(jax.vmap(is_loss))


@pytest.fixture(scope="module")
def drawn():
    """Half of them from nothing, half from DQN's loss; and a mutant of each."""
    keys = jax.random.split(jax.random.key(0), NUM_PROGRAMS)
    half = NUM_PROGRAMS // 2
    scratch = jax.jit(jax.vmap(functools.partial(random_program, num_nodes=L)))(keys[:half])
    start = program_of(TD)
    booted = jax.jit(jax.vmap(lambda key: random_program(key, L, start)))(keys[half:])
    programs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), scratch, booted)
    return programs, jax.jit(jax.vmap(mutate))(jax.random.split(jax.random.key(1), NUM_PROGRAMS), programs)


def test_every_operation_is_its_formula():
    """Each of them once, made a float."""
    operand = {0: "reward", 1: "q", 2: ("softmax", "q"), 3: "action"}
    other = {0: "discount", 1: "target_next", 2: ("softmax", "target_next"), 3: "action"}
    to_float = {
        0: lambda x: x,
        1: lambda x: ("select", x, "action"),
        2: lambda x: ("kl", x, ("softmax", "online_next")),
    }
    to_float[3] = lambda x: ("select", "target_now", x)
    found = []
    for operation in OPERATIONS:
        for types, result in operation.types.items():
            operands = [table[kind] for table, kind in zip((operand, other), types, strict=False)]
            part = to_float[result]((operation.name, *operands))
            found.append(program_of(part, L))
    # As many as are drawn, so that both are one compiled program.
    got = np.asarray(losses_of(stacked([found[i % len(found)] for i in range(NUM_PROGRAMS)]), BATCH))[: len(found)]
    assert {OPERATIONS[i].name for program in found for i in rows_of(program)[0]} == set(ORACLE)
    for row, program in zip(got, found, strict=True):
        np.testing.assert_allclose(row, interpreted(program)[0], rtol=2e-5, atol=1e-5, err_msg=describe(program))


def test_random_programs_are_losses_and_compute_what_they_say(drawn):
    programs = drawn[0]
    assert np.all(are_losses(programs))
    got = np.asarray(losses_of(programs, BATCH))
    compared = 0
    for row, program in zip(got, each(programs), strict=True):
        want, greatest = interpreted(program)
        if greatest < 1e4 and "divide" not in describe(program) and "std_batch" not in describe(program):
            compared += 1
            np.testing.assert_allclose(row, want, rtol=1e-3, atol=1e-3 * greatest, err_msg=describe(program))
    assert compared > NUM_PROGRAMS / 4
    used = {OPERATIONS[i].name for i in rows_of(programs)[0].ravel()}
    assert set(ORACLE) - used <= {"kl", "entropy"}, "these need probabilities, which are few"
    for name, column in zip(("operation", "first", "second"), rows_of(programs), strict=True):
        assert (column[NUM_PROGRAMS // 2 :, :5] == np.asarray(getattr(program_of(TD), name))).all()


def test_mutants_are_losses_that_differ_in_one_node(drawn):
    programs, mutants = drawn
    assert np.all(are_losses(mutants))
    changed = np.zeros((NUM_PROGRAMS, L), bool)
    for before, after in zip(rows_of(programs), rows_of(mutants), strict=True):
        changed |= before != after
    assert changed.sum(-1).max() == 1
    # The same node may be drawn as it was.
    assert changed.sum() > 0.9 * NUM_PROGRAMS
    assert (changed.sum(0) > 0).all(), "every place of a program mutates"
    types, others = (np.asarray(jax.vmap(types_of)(x)[0]) for x in (programs, mutants))
    operations, firsts, seconds = rows_of(programs)
    binary = np.array([operation.arity == 2 for operation in OPERATIONS])[operations]
    for i, node in zip(*np.nonzero(changed), strict=True):
        is_read = ((firsts[i] == NUM_INPUTS + node) | (binary[i] & (seconds[i] == NUM_INPUTS + node))).any()
        if is_read:
            assert types[i, NUM_INPUTS + node] == others[i, NUM_INPUTS + node]


def renamed(program, draws):
    """The same function: nodes in another order, operands that commute swapped, nodes that nothing reads replaced."""
    operations, firsts, seconds = rows_of(program)
    parents = [
        [int(x) - NUM_INPUTS for x in (a, b)[: OPERATIONS[o].arity] if x >= NUM_INPUTS]
        for o, a, b in zip(operations, firsts, seconds, strict=True)
    ]
    read, order, rest = {L - 1}, [], list(range(L - 1))
    for i in reversed(range(L)):
        read |= set(parents[i]) if i in read else set()
    while rest:
        ready = [i for i in rest if all(p in order for p in parents[i])]
        order.append(int(draws.choice(ready)))
        rest.remove(order[-1])
    order.append(L - 1)
    place = {old: new for new, old in enumerate(order)}
    rows = []
    for old in order:
        if old not in read:
            rows.append((OPERATIONS.index(next(o for o in OPERATIONS if o.name == "exp")), INPUTS.index("discount"), 0))
            continue
        kind = OPERATIONS[operations[old]]
        operands = [x if x < NUM_INPUTS else NUM_INPUTS + place[x - NUM_INPUTS] for x in (firsts[old], seconds[old])]
        if kind.commutes and draws.random() < 0.5:
            operands = operands[::-1]
        rows.append((operations[old], operands[0], operands[1] if kind.arity == 2 else 0))
    return Program(*(jnp.asarray(column, jnp.int32) for column in zip(*rows, strict=True)))


def test_fingerprints_of_renamed_programs_are_equal_and_of_others_differ(drawn):
    programs, draws = drawn[0], np.random.default_rng(0)
    others = stacked([renamed(program, draws) for program in each(programs)])
    moved = [(a != b).any(-1) for a, b in zip(rows_of(programs), rows_of(others), strict=True)]
    assert np.any(moved, axis=0).mean() > 0.9, "names that are not changed test nothing"
    one, other = (np.asarray(prints_of(x)) for x in (programs, others))
    assert (one == other).all(-1).mean() >= 0.99
    assert one.dtype == np.uint32
    # Where two fingerprints agree the functions do, on samples that the fingerprint does not know.
    losses = np.asarray(losses_of(programs, BATCH))
    codes = one[:, 0].astype(np.uint64) << np.uint64(32) | one[:, 1]
    assert len(np.unique(codes)) > 0.5 * NUM_PROGRAMS
    for code in np.unique(codes):
        group = losses[codes == code]
        sound = np.isfinite(group).all(-1)
        for row in group[sound]:
            np.testing.assert_allclose(row, group[sound][0], rtol=2e-3, atol=1e-5)


Q, NEXT = LISTS[0][np.arange(N), ACTIONS], LISTS[1].max(-1)
GOAL = REWARDS + DISCOUNTS * NEXT
ERROR = Q - GOAL
KNOWN = {
    "td": (TD, ERROR**2 / 2, ERROR),
    "reg": (DQN_REG, 0.1 * Q + ERROR**2, 0.1 + 2 * ERROR),
    "clipped": (
        DQN_CLIPPED,
        np.maximum(Q, ERROR**2 + GOAL) + np.maximum(ERROR, DISCOUNTS * NEXT**2),
        np.where(Q > ERROR**2 + GOAL, 1.0, 2 * ERROR) + (ERROR > DISCOUNTS * NEXT**2),
    ),
}


def test_known_losses_and_their_derivatives():
    """The derivative is by Q(s, a) alone, and finite where an operation that is not selected has none."""
    programs = stacked([program_of(expression, L) for expression, _, _ in KNOWN.values()])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def of(program, batch):
        total = lambda q: (lambda loss: (jnp.sum(loss), loss))(
            evaluate(program, LossInputs(q, *jax.tree.leaves(batch)[1:]))
        )
        slope, loss = jax.grad(total, has_aux=True)(batch.q)
        return loss, slope

    losses, slopes = of(programs, BATCH)
    for i, (_, loss, slope) in enumerate(KNOWN.values()):
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(slopes[i], slope[:, None] * np.eye(A)[ACTIONS], rtol=1e-5, atol=1e-5)
    # Logarithms, quotients and deviations of 0; powers and exponentials of large numbers.
    for size in (0.0, 1e15):
        assert np.isfinite(of(programs, jax.tree.map(lambda x: jnp.full_like(x, size), BATCH))[1]).all(), size


def test_messages():
    with pytest.raises(ValueError, match=r"'value' is no input \(q, target_next"):
        program_of(("square", "value"))
    with pytest.raises(ValueError, match="is no input"):
        program_of(("square", "reward", "reward"))
    with pytest.raises(ValueError, match="select takes no operands of types"):
        program_of(("select", "q", "reward"))
    with pytest.raises(ValueError, match="a loss is an operation of type float; got list"):
        program_of(("square", "q"))
    with pytest.raises(ValueError, match="a loss is an operation of type float; got float"):
        program_of("reward")
    with pytest.raises(ValueError, match="has 5 nodes; got num_nodes = 4"):
        program_of(TD, 4)
    wrong = Program(*(jnp.asarray(x, jnp.int32) for x in ([7], [0], [5])))
    assert not is_loss(wrong), "an action is not a reward"
    assert not is_loss(program_of(("square", "reward"))), "it does not depend on q"
    assert expressions.describe(program_of(DQN_REG, 9)) == (
        "add(tenth(select(q, action)), square(subtract(select(q, action), "
        "add(reward, multiply(discount, max_list(target_next))))))"
    )
