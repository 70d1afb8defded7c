"""Rules in files: what is written comes back, what is damaged, foreign or newer says so, nothing is lost unasked."""

import io
import json

import jax
import numpy as np
import pytest

from jaxrl import objectives
from jaxrl.checkpoint import StorageError
from jaxrl.objectives import files, rules
from jaxrl.objectives.files import RuleSpec, load_rule, read_rule, save_rule
from jaxrl.ops import trees

LPO = RuleSpec("ta_lpo", {"hidden": 4}, {"env": "gymnax/CartPole-v1", "held_out": np.float32(0.5), "bad": float("nan")})
LPG = RuleSpec("lpg", {"hidden": 3, "num_bins": 2, "embedding": 2, "core": "gru"})


def weights(spec, seed=0):
    """Random leaves of the right shapes, without drawing a network."""
    template = jax.eval_shape(spec.build().init, jax.random.key(0))
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


@pytest.mark.parametrize("spec", [LPO, LPG, RuleSpec("dpo", {"alpha": 1.5})], ids=lambda spec: spec.kind)
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
