"""Rules in files: what is written comes back, what is damaged, foreign or newer says so, nothing is lost unasked."""

import io
import json

import jax
import numpy as np
import pytest
from test_disco import PUBLISHED, file_of

from jaxrl import objectives, values
from jaxrl.checkpoint import StorageError
from jaxrl.networks.update_rules import open_rule, open_weights
from jaxrl.objectives import disco, disco_file, files, rules
from jaxrl.objectives.files import RuleSpec, load_rule, read_rule, save_rule
from jaxrl.ops import expressions, trees

LPO = RuleSpec("ta_lpo", {"hidden": 4}, {"env": "gymnax/CartPole-v1", "held_out": np.float32(0.5), "bad": float("nan")})
LPG = RuleSpec("lpg", {"hidden": 3, "num_bins": 2, "embedding": 2, "core": "gru"})
PROGRAM = RuleSpec("program", {"num_nodes": 8})


def weights(spec, seed=0):
    """Random leaves of the right shapes, without drawing a network."""
    template = jax.eval_shape(spec.init, jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), template)


def rewritten(path, change, spec=None):
    """The same file with other members, or another spec."""
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    record = json.loads(members["spec"].tobytes())
    record.update(spec or {})
    members["spec"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **change(members))
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    "spec",
    [LPO, LPG, RuleSpec("dpo", {"alpha": 1.5}), RuleSpec("open", {"hidden": 2, "memory": 3}), RuleSpec("dqn_reg")],
    ids=lambda spec: spec.kind,
)
def test_what_is_written_comes_back(tmp_path, spec):
    params = weights(spec)
    path = save_rule(tmp_path / "deep" / "rule.npz", spec, params)
    built, found = load_rule(path)
    # Equal specs are the same record, so that programs are found again.
    assert built is spec.build()
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for name, leaf in trees.named_leaves(found).items():
        np.testing.assert_array_equal(leaf, trees.named_leaves(params)[name])
        assert isinstance(leaf, jax.Array)
    assert [p.name for p in path.parent.iterdir()] == ["rule.npz"]


def test_the_spec_says_where_it_comes_from(tmp_path):
    found = read_rule(save_rule(tmp_path / "rule.npz", LPO, weights(LPO)))
    assert (found.spec.kind, found.spec.arguments, found.spec.family) == ("ta_lpo", {"hidden": 4}, "drift")
    assert found.spec.provenance["env"] == "gymnax/CartPole-v1"
    assert found.spec.provenance["held_out"] == 0.5
    assert found.spec.provenance["bad"] is None
    assert set(found.spec.provenance["versions"]) == {"jaxrl", "jax", "flax"}
    assert files.from_bytes(found.content).digest == found.digest


def test_every_kind_builds_what_it_says():
    assert RuleSpec("lpo").build() is objectives.lpo()
    assert RuleSpec("ta_lpg", {"core": "gru"}).build() is rules.lpg(core="gru", progress=True)
    assert RuleSpec("open", {"hidden": 32}).build() is open_rule(hidden=32)
    assert PROGRAM.build() is values.graph(expressions.TD, 8)
    for name, kind in files.KINDS.items():
        is_rule = isinstance(RuleSpec(name).build(), rules.Rule)
        assert is_rule == (kind.family == "sequence")


def test_another_rule_is_not_overwritten_unasked(tmp_path):
    path = save_rule(tmp_path / "rule.npz", LPO, weights(LPO))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds another rule: name another file, or pass replace=True"):
        save_rule(path, LPO, weights(LPO, 1))
    assert path.read_bytes() == before
    # The same rule may be written again, with more to say of it.
    save_rule(path, RuleSpec("ta_lpo", {"hidden": 4}, {"held_out": 0.75}), weights(LPO))
    assert read_rule(path).spec.provenance["held_out"] == 0.75
    save_rule(path, LPO, weights(LPO, 1), replace=True)
    np.testing.assert_array_equal(load_rule(path)[1].hidden, weights(LPO, 1).hidden)
    other = tmp_path / "other.npz"
    other.write_text("mine")
    with pytest.raises(ValueError, match="cannot be read as a rule"):
        save_rule(other, LPO, weights(LPO))
    assert other.read_text() == "mine"


def test_damage_is_seen(tmp_path):
    path = save_rule(tmp_path / "rule.npz", LPO, weights(LPO))
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(StorageError, match=r"rule\.npz is damaged"):
            load_rule(path)
    path.write_bytes(whole)
    rewritten(path, lambda members: {**members, "weights/output": members["weights/output"] + np.float32(1e-6)})
    with pytest.raises(StorageError, match="its weights are not those that were written"):
        load_rule(path)
    path.write_bytes(whole)
    rewritten(path, lambda members: members, {"format": "x"})
    with pytest.raises(StorageError, match="its spec cannot be read"):
        load_rule(path)


def test_foreign_and_newer_files_say_what_they_are(tmp_path):
    path = tmp_path / "rule.npz"
    with pytest.raises(ValueError, match="There is no file"):
        load_rule(path)
    for content in (b"", b"text", np.zeros(3).tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a rule's file"):
            load_rule(path)
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match="it has no spec"):
        load_rule(path)
    save_rule(path, LPO, weights(LPO), replace=True)
    rewritten(path, lambda members: members, {"format": files.FORMAT + 1})
    with pytest.raises(ValueError, match=r"made by a newer jaxrl \(format 2 > 1\): update jaxrl"):
        load_rule(path)
    rewritten(path, lambda members: members, {"format": files.FORMAT, "kind": "ta_lpx"})
    with pytest.raises(ValueError, match=r"No kind of rule is called 'ta_lpx'. Did you mean ta_lp"):
        load_rule(path)
    with pytest.raises(StorageError, match="cannot be read"):
        load_rule(tmp_path)


def test_nothing_but_data_is_read(tmp_path):
    path = save_rule(tmp_path / "rule.npz", LPO, weights(LPO))
    rewritten(path, lambda members: {**members, "weights/hidden": np.array([{}], object)})
    with pytest.raises(StorageError, match="allow_pickle=False"):
        load_rule(path)


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (RuleSpec("lpo", {"hiden": 4}), None, "No argument of lpo is called 'hiden'. Did you mean hidden"),
        (RuleSpec("lpo", {"progress": True}), None, "No argument of lpo is called 'progress'"),
        (RuleSpec("lpx"), None, "No kind of rule is called 'lpx'"),
        (RuleSpec("lpo", {"hidden": 0}), None, "hidden must be at least 1"),
        (RuleSpec("lpo", {"hidden": 5}), None, r"hidden must be float32\[8, 5\]; got float32\[16, 4\]"),
        (RuleSpec("dpo"), None, "they differ in alpha, beta, hidden, output"),
        (LPO, lambda p: p.replace(output=p.output * np.nan), "The weights must be finite; output is not"),
        (LPO, lambda p: p.replace(output=p.output.astype(np.float64)), r"got float64\[4, 1\]"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, spec, change, message):
    params = weights(LPO)
    with pytest.raises(ValueError, match=message):
        save_rule(tmp_path / "rule.npz", spec, change(params) if change else params)
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_rule(tmp_path / "rule.npy", LPO, weights(LPO))


def test_a_program_comes_back_as_the_head_that_it_was_found_for(tmp_path):
    program = expressions.program_of(expressions.DQN_REG, 8)
    head, found = load_rule(save_rule(tmp_path / "rule.npz", PROGRAM, program))
    assert head is values.graph(expressions.TD, 8)
    assert isinstance(found, expressions.Program)
    assert expressions.describe(found) == expressions.describe(program)


def test_a_program_may_be_built_inside_of_a_trace():
    spec = RuleSpec("program", {"num_nodes": 19})
    assert jax.eval_shape(spec.init, jax.random.key(0)).operation.shape == (19,)
    # The head is memoized: it must not have kept anything of that trace.
    assert expressions.describe(spec.build().init()) == expressions.describe(expressions.program_of(expressions.TD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p.replace(operation=p.operation.at[0].set(99)),
            "unknown operation, or reads one that is not before",
        ),
        (lambda p: p.replace(first=p.first.at[3].set(expressions.NUM_INPUTS + 3)), "reads one that is not before it"),
        (lambda p: p.replace(second=p.second.at[7].set(-1)), "reads one that is not before it"),
        (lambda p: p.replace(operation=p.operation.at[-1].set(16)), "types do not fit"),
        (lambda p: expressions.program_of(expressions.TD, 7), r"operation must be int32\[8\]; got int32\[7\]"),
    ],
)
def test_what_is_no_loss_is_refused(tmp_path, change, message):
    program = expressions.program_of(expressions.TD, 8)
    with pytest.raises(ValueError, match=message):
        save_rule(tmp_path / "rule.npz", PROGRAM, change(program))
    assert list(tmp_path.iterdir()) == []


def test_published_vectors_are_rules(tmp_path):
    for size, arguments in ((1211, {}), (3571, {"hidden": 32, "memory": 16})):
        flat = np.random.default_rng(size).normal(size=size).astype(np.float32)
        np.save(tmp_path / "ant_OPEN.npy", flat)
        found = read_rule(tmp_path / "ant_OPEN.npy")
        assert (found.spec.kind, found.spec.arguments) == ("open", arguments)
        assert found.spec.provenance["source"] == "ant_OPEN.npy"
        assert found.rule is open_rule(**arguments)
        want = trees.named_leaves(open_weights(flat, **arguments))
        for name, leaf in trees.named_leaves(found.params).items():
            np.testing.assert_array_equal(leaf, want[name])
        # What is copied into a folder is a file of ours.
        assert files.from_bytes(found.content).digest == found.digest
    for wrong, message in (
        (np.zeros(1210), "vectors of 1211 or 3571 numbers; got float64"),
        (np.zeros(1211, int), "int64"),
    ):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match=message):
            read_rule(tmp_path / "wrong.npy")
    whole = (tmp_path / "ant_OPEN.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:900])
    with pytest.raises(StorageError, match=r"cut\.npy is damaged"):
        read_rule(tmp_path / "cut.npy")
    np.save(tmp_path / "nan.npy", np.full(1211, np.nan))
    with pytest.raises(ValueError, match="The weights must be finite"):
        read_rule(tmp_path / "nan.npy")


@pytest.mark.slow
def test_the_published_file_of_disco_is_a_rule(tmp_path):
    arrays = file_of(tmp_path / "disco_103.npz", PUBLISHED)
    found = read_rule(tmp_path / "disco_103.npz")
    assert (found.spec.kind, found.spec.provenance["source"]) == ("disco", "disco_103.npz")
    assert found.rule is disco.rule()
    want = trees.named_leaves(disco_file.weights(tmp_path / "disco_103.npz"))
    for name, leaf in trees.named_leaves(found.params).items():
        np.testing.assert_array_equal(leaf, want[name])
    assert files.from_bytes(found.content).digest == found.digest
    arrays.popitem()
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(ValueError, match="is not a file of Disco103"):
        read_rule(tmp_path / "less.npz")
