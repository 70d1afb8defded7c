"""The laws of DESIGN.md over every row of `cases.CASES`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import CASES, VARIANT_CASES, VARIANTS, tiny_variant

import jaxrl
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.ops import trees
from jaxrl.testing import count_conditionals, kind, plain
from jaxrl.training import advance_jit

NUM_STEPS = 3


@functools.cache
def built(name):
    case = CASES.get(name) or VARIANT_CASES[name]
    algorithm = case.make()
    return case, algorithm, algorithm.hyperparams(**case.hparams)


# A row compiles three programs, which its laws share: `init`, `advance`, and `train` mapped over members.


@functools.cache
def starter(name):
    return jax.jit(built(name)[1].init)


def fresh(name, key=0, hparams=None):
    """A state that nothing else holds."""
    return starter(name)(jax.random.key(key), built(name)[2] if hparams is None else hparams)


def trained_from(name, key=0, hparams=None):
    """State and metrics after a few steps."""
    _, algorithm, default = built(name)
    return jaxrl.advance(algorithm, fresh(name, key, hparams), default if hparams is None else hparams, NUM_STEPS)


trained = functools.cache(trained_from)


@functools.cache
def traced_step(name):
    """The type of a state, and the traced step."""
    _, algorithm, hparams = built(name)
    state = jax.eval_shape(starter(name), jax.random.key(0), hparams)
    return state, jax.jit(algorithm.step).trace(state, hparams)


def nudged(name):
    """All numbers a tenth away: downward of variants, among whose coefficients are decays that must stay below 1."""
    factor = 0.9 if name in VARIANT_CASES else 1.1
    change = lambda leaf: leaf * factor if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(change, built(name)[2])


def changed_leaf(path, leaf):
    """Another value of a leaf, which must change the result."""
    if path == "target_kl":
        return jnp.float32(0.0)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf * 0.5
    return jnp.int32(2) if ".max_" in path else leaf - 1


@functools.cache
def mapped(name):
    """Members trained by one program: the row's own, one for each leaf changed, and one with all leaves nudged.

    All begin from key 0 but the last, which begins from key 7.
    """
    _, algorithm, hparams = built(name)
    leaves, structure = jax.tree.flatten(hparams)
    paths = list(trees.named_leaves(hparams))
    members = [leaves]
    if name != "ppo-population":  # its member's own row covers the leaves
        for i, path in enumerate(paths):
            members.append([changed_leaf(path, leaf) if i == j else leaf for j, leaf in enumerate(leaves)])
    members.append(jax.tree.leaves(nudged(name)))
    stacked = jax.tree.unflatten(structure, [jnp.stack(column) for column in zip(*members, strict=True)])
    keys = jnp.stack([jax.random.key(0)] * (len(members) - 1) + [jax.random.key(7)])
    return jax.jit(jax.vmap(jaxrl.train(algorithm, NUM_STEPS)))(keys, stacked)


def assert_close(one, other, what="", **tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(plain(one))[0], jax.tree.leaves(plain(other)), strict=True
    ):
        np.testing.assert_allclose(a, b, err_msg=f"{what} {trees.path_name(path)}", **tolerance)


# The rows one after the other, so that one worker has all laws of a row and their programs.
def each_of(cases):
    rows = [pytest.param(name, marks=pytest.mark.slow if case.slow else ()) for name, case in cases.items()]
    return pytest.mark.parametrize("name", rows, scope="module")


each_case, each_case_and_variant = each_of(CASES), each_of({**CASES, **VARIANT_CASES})


@each_case_and_variant
def test_law_1_step_keeps_the_state_type(name):
    state, traced = traced_step(name)
    after, _ = jax.tree.map(lambda x: x, traced.out_info)
    assert kind(after) == kind(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


@each_case_and_variant
def test_law_2_keys(name):
    state, _ = trained(name)
    again, _ = trained_from(name)
    assert_close(state, again, "same key", rtol=0, atol=0)
    other, _ = trained_from(name, key=1)
    for path, leaf in trees.named_leaves(plain(state.params)).items():
        if path.endswith("kernel"):
            assert not np.array_equal(leaf, trees.named_leaves(plain(other.params))[path]), path
    keys = [leaf for leaf in jax.tree.leaves(state) if trees.is_key(leaf)]
    assert keys, "the state must carry a typed key"


@each_case_and_variant
def test_law_2_no_key_is_used_twice(name):
    _, algorithm, hparams = built(name)
    if name.endswith("population"):
        pytest.skip("the checker takes a batched split's slices for one key; the member's own row is checked")
    with jax.debug_key_reuse(True):
        # Two steps: a key may be used in the first and kept for the second.
        jax.jit(
            lambda key, hparams: algorithm.step(algorithm.step(algorithm.init(key, hparams), hparams)[0], hparams)
        ).lower(jax.random.key(0), hparams)


def test_law_2_the_check_sees_a_reused_key():
    def reuse(key):
        return jax.random.normal(key) + jax.random.uniform(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(reuse).lower(jax.random.key(0))


@each_case_and_variant
def test_law_3_vmap_over_keys_and_hyperparameters_equals_the_loop(name):
    """Every leaf of the hyperparameters is mapped at once, with a value of its own for each member.

    Tolerance: a batched matrix product sums in another order, and three steps of learning amplify the difference. Of
    variants the whole change of the parameters is compared: where a loss is flat at first Adam makes steps of rounding
    errors, and a draw by priority may fall on the entry beside.
    """
    together = mapped(name)
    for i, key, hparams in ((0, 0, built(name)[2]), (-1, 7, nudged(name))):
        one, alone = jax.tree.map(lambda x, i=i: x[i], together), trained_from(name, key, hparams)
        if name in VARIANT_CASES:
            before, *after = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(plain(state.params))])
                for state in (fresh(name, key, hparams), one[0], alone[0])
            )
            apart, moved = np.linalg.norm(after[0] - after[1]), np.linalg.norm(after[1] - before)
            assert apart < 0.2 * moved, (i, apart, moved)
        else:
            assert_close(one, alone, f"member {i}", rtol=2e-3, atol=2e-4)


@each_case_and_variant
def test_law_4_stopping_between_segments_changes_nothing(name):
    _, algorithm, hparams = built(name)
    first, _ = trained_from(name)
    second, metrics = jaxrl.advance(algorithm, jax.tree.map(jnp.copy, first), hparams, NUM_STEPS)
    again, metrics_again = jaxrl.advance(algorithm, first, hparams, NUM_STEPS)
    assert_close((second, metrics), (again, metrics_again), rtol=0, atol=0)


@each_case_and_variant
def test_law_5_no_conditional_on_the_phase_of_training(name):
    assert count_conditionals(traced_step(name)[1].jaxpr.jaxpr) == 0


def test_law_5_the_count_sees_a_conditional_inside_a_scan():
    def body(carry, x):
        return jax.lax.cond(x > 0, lambda c: c + 1, lambda c: c, carry), None

    jaxpr = jax.make_jaxpr(lambda xs: jax.lax.scan(body, 0, xs))(jnp.zeros(3))
    assert count_conditionals(jaxpr.jaxpr) == 1


@each_case
def test_law_6_every_parameter_moves(name):
    before, (after, _) = fresh(name).params, trained(name)
    for path, leaf in trees.named_leaves(plain(before)).items():
        assert not np.array_equal(leaf, trees.named_leaves(plain(after.params))[path]), f"{path} did not move"


@each_case
def test_law_6_every_leaf_of_the_hyperparameters_matters(name):
    """Member i + 1 differs from member 0 in leaf i alone."""
    case, _, hparams = built(name)
    if name == "ppo-population":
        pytest.skip("the member's own row covers its leaves")
    states, _ = mapped(name)
    kernels = [leaf for path, leaf in trees.named_leaves(plain(states.params)).items() if path.endswith("kernel")]
    for i, leaf_name in enumerate(trees.named_leaves(hparams)):
        same = all(np.array_equal(kernel[0], kernel[i + 1]) for kernel in kernels)
        assert not same or leaf_name in case.inert, f"{leaf_name} changes nothing"


def without_target(values):
    return {name: value for name, value in values.items() if name != "target_kl"}


# Each is a program of its own to compile: the ordinary tests have those of PPO.
OPTIONS = [
    pytest.param(name, option, marks=() if case.algorithm == "ppo" else pytest.mark.slow)
    for name, case in CASES.items()
    for option in case.options
]


@pytest.mark.parametrize("name, option", OPTIONS)
def test_law_6_every_option_matters(name, option):
    case, _, _ = built(name)
    changes, base, values = {option: case.options[option]}, {}, case.hparams
    if option == "reset":
        changes["reset_size"] = 1
    if option == "reset_size":
        base = {"reset": "pooled", "reset_size": 1}
        changes["reset"] = "pooled"
    if option == "stop_at_target_kl":
        values = {**case.hparams, "target_kl": 0.0}  # reached at once, if it is looked at

    def final(**config):
        algorithm = case.make(**config)
        given = values if getattr(algorithm.config, "stop_at_target_kl", True) else without_target(values)
        return jax.jit(jaxrl.train(algorithm, NUM_STEPS))(jax.random.key(0), algorithm.hyperparams(**given))[0]

    reference = trained(name)[0] if not base and values is case.hparams else final(**base)
    state = final(**changes)
    paths = trees.named_leaves(plain(reference.params))
    changed = [not np.array_equal(leaf, trees.named_leaves(plain(state.params))[path]) for path, leaf in paths.items()]
    assert any(changed), f"{option} = {case.options[option]!r} changes nothing"


def test_law_6_every_option_of_every_algorithm_has_a_row():
    for algorithm in {case.algorithm for case in CASES.values()}:
        rows = [case for case in CASES.values() if case.algorithm == algorithm]
        covered = {name for case in rows for name in (*case.options, *case.inert)}
        fields = {field.name for field in dataclasses.fields(rows[0].make().config)}
        assert fields <= covered, fields - covered


@each_case
def test_equal_arguments_give_the_same_record_and_advance_traces_once(name):
    case, algorithm, _ = built(name)
    assert case.make() is algorithm
    state, _ = trained_from(name)
    compiled = advance_jit._cache_size()
    jaxrl.advance(case.make(), state, case.make().hyperparams(**case.hparams), NUM_STEPS)
    assert advance_jit._cache_size() == compiled


@each_case
def test_act_is_for_one_environment_and_greedy_without_a_key(name):
    _, algorithm, _ = built(name)
    state, _ = trained(name)
    act = jax.jit(algorithm.act)
    obs = jax.tree.map(lambda x: x[..., 0, :] if x.ndim > 1 else x[0], state.actor.obs)
    memory = algorithm.initial_memory()
    greedy, after = act(state, memory, obs, None)
    again, _ = act(state, memory, obs, None)
    assert_close(greedy, again, rtol=0, atol=0)
    assert kind(after) == kind(jax.tree.map(jnp.asarray, memory))
    drawn = [plain(act(state, memory, obs, key)[0]) for key in jax.random.split(jax.random.key(0), 20)]
    assert any(not np.array_equal(drawn[0], other) for other in drawn[1:]), "sampling must depend on the key"


def variant_marks(name):
    """Those with replay and continuous actions compile for long; the ordinary tests have the row of SAC."""
    base = ALGORITHMS[name].base
    late = base in ("sac", "td3", "cqn") or (base == "dqn" and name != "rainbow")  # dqn's rows have their parts
    return pytest.mark.slow if late else ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=variant_marks(name)) for name in VARIANTS])
def test_variants_learn_something_with_their_own_defaults(name):
    """A variant's parts fit together: laws 1 and 6, its name, its defaults, one record for equal arguments."""
    algorithm, entry, tiny = VARIANT_CASES[name].make(), ALGORITHMS[name], tiny_variant(name)
    assert algorithm.name == name
    assert algorithm is VARIANT_CASES[name].make()
    assert algorithm.config == dataclasses.replace(entry.default_config, **tiny)
    hparams = algorithm.hyperparams(horizon=1000.0)
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0), hparams)
    assert kind(jax.eval_shape(algorithm.step, shapes, hparams)[0]) == kind(shapes)
    before = jax.jit(algorithm.init)(jax.random.key(0), hparams)
    after, metrics = jax.jit(algorithm.step)(before, hparams)
    assert all(np.isfinite(value).all() for value in metrics.values())
    moved = trees.named_leaves(plain(after.params))
    for path, leaf in trees.named_leaves(plain(before.params)).items():
        assert not np.array_equal(leaf, moved[path]), f"{path} did not move"
