"""`jaxrl meta-train`, `jaxrl meta-test`, `--objective`, and what a search leaves in its folder."""

import contextlib
import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxrl import checkpoint, cli, runs
from jaxrl.algorithms import dqn
from jaxrl.cli import arguments, build, meta, meta_parsers, meta_search, rule_arms, rule_table, rules
from jaxrl.cli.meta_record import record_of
from jaxrl.envs import make_env
from jaxrl.objectives import spo
from jaxrl.objectives.files import KINDS, RuleSpec, load_rule, read_rule, save_rule
from jaxrl.ops import expressions, trees
from jaxrl.runs import Run
from jaxrl.sweeps import results

SMALL = ["config.num_envs=2", "config.num_steps=8", "config.num_epochs=2", "config.num_minibatches=1"]
TINY = [part for size in ("hidden=2", "num_bins=2", "core=gru") for part in ("--rule-option", size)]
SEARCH = ["--env", "chains/Short", "--env-option", "length=3,3", "config.num_envs=2", "config.num_steps=6", *TINY]
SEARCH += ["--population", "4", "--held-out", "2", "--held-out-every", "1", "--life", "3", "--fitness", "training"]
PPO = ["config.num_envs=2", "config.num_steps=8", "config.num_epochs=1", "config.num_minibatches=1"]
DQN = ["config.num_envs=2", "config.num_rounds=4", "config.batch_size=4", "config.capacity=32"]
DQN += ["config.num_warmup_steps=8", "config.network.hidden=4"]
PROGRAMS = ["--env", "probe/Credit", *DQN, "--rule-option", "num_nodes=6", "--population", "6", "--children", "3"]
PROGRAMS += ["--held-out", "2", "--life", "3", "--chunk", "3", "--start", "td"]
GRIDS = ["--env-option", "side=3,3", "--env-option", "num_walls=0", "--env-option", "num_objects=1,1"]


def call(*argv) -> tuple[int, str, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main([str(part) for part in argv])
    return code, out.getvalue(), err.getvalue()


def done(*argv) -> str:
    code, out, err = call(*argv)
    assert code == 0, err
    return out


def error_of(*argv) -> str:
    code, _, err = call(*argv)
    assert code == 2
    assert err.count("\n") == 1
    return err


def planned(*argv):
    """What a command line asks for, before anything is computed."""
    command = arguments.parse([str(part) for part in argv])
    return record_of(command.options, Console())


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two looks, the second after a stop."""
    folder = tmp_path_factory.mktemp("meta") / "run"
    command = ["meta-train", "lpg", *SEARCH, "--sigma", "1", "--chunk", "4", "--generations", "2"]
    out = done(*command, "--time-limit", "0", "--out", folder)
    after_first = {path.name for path in folder.iterdir()}
    more = done("resume", folder)
    return folder, out, after_first, more


@pytest.fixture(scope="module")
def found_programs(tmp_path_factory):
    """A search of four generations with two looks."""
    folder = tmp_path_factory.mktemp("programs") / "run"
    return folder, done("meta-train", "program", *PROGRAMS, "--generations", "4", "--out", folder)


@pytest.fixture
def rule(tmp_path):
    """A rule's file that was made by hand."""
    spec = RuleSpec("lpo", {"hidden": 4, "start": "ppo"})
    params = spec.build().init(jax.random.key(3))
    return save_rule(tmp_path / "mine.npz", spec, params.replace(output=params.output + 0.1))


@pytest.fixture
def optimizer(tmp_path):
    """The file of a learned optimizer."""
    spec = RuleSpec("open", {"hidden": 2, "memory": 2})
    shapes = jax.eval_shape(spec.init, jax.random.key(0))
    draws = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: draws.normal(size=x.shape).astype(np.float32), shapes)
    return save_rule(tmp_path / "optimizer.npz", spec, weights)


@pytest.fixture
def program(tmp_path):
    """The file of a loss."""
    loss = expressions.program_of(expressions.DQN_REG, 8)
    return save_rule(tmp_path / "program.npz", RuleSpec("program", {"num_nodes": 8}), loss)


@pytest.fixture
def trained(tmp_path):
    """One that says what it was trained with."""
    more = ["--rule-option", "hidden=4", "--life", "7", "--chunk", "1", "config.network.hidden=4", "learning_rate=0.25"]
    record, _ = planned("meta-train", "ta_lpo", "--env", "probe/Credit", *SMALL, *more)
    search = meta_search.search_of(record, None)
    about = {
        "env": "probe/Credit",
        "horizon": {"iterations": [7, 7]},
        "inner": meta_search.inner_of(search.member, search.hparams.inner, search.leaf),
    }
    spec = dataclasses.replace(search.spec, provenance=about)
    return save_rule(tmp_path / "trained" / "rule.npz", spec, jax.device_get(search.hparams.inner.objective))


# --- meta-train -------------------------------------------------------------------------------------------------------


def test_a_search_stops_goes_on_and_leaves_rules(searched):
    folder, out, after_first, more = searched
    assert "lpg (130 weights, from random) on chains/Short, seed 0" in out
    assert "2 generations of 4 candidates x 1 learner = 8, and 4 held-out ones in 2 looks" in out
    assert "a learner is lpg for 3 iterations of 12 steps" in out
    assert "generation 1: held out" in out
    assert "the time limit of 0 s is reached" in out
    assert f"jaxrl resume {folder}" in out
    assert {"rule.npz", "rule-last.npz", "generations.png"} <= after_first
    assert "generation 1:" not in more
    assert "generation 2: held out" in more
    rows = Run.open(folder).metrics()
    assert rows.sizes["step"] == 2
    held_out = rows["held_out/fitness"].values.ravel()
    best, last = read_rule(folder / "rule.npz").spec.provenance, read_rule(folder / "rule-last.npz").spec.provenance
    assert best["held_out"] == pytest.approx(held_out.max())
    assert best["generations"] == 1 + int(held_out.argmax())
    assert last["held_out"] == pytest.approx(held_out[-1])
    assert last["generations"] == 2
    assert last["horizon"] == {"iterations": [3, 3], "env_steps": [36, 36]}
    assert last["inner"]["hyperparams"] == {"learning_rate": "40.0", "prediction_learning_rate": "4.0"}
    assert last["inner"]["config"]["num_envs"] == 2


def test_a_kill_between_a_look_and_its_file_costs_no_rule(searched, tmp_path):
    """Resuming a folder that lacks the rule of its newest look, or has an older and worse one, makes it."""
    folder = shutil.copytree(searched[0], tmp_path / "killed")
    run = Run.open(folder)
    search = meta_search.search_of(run.record, None)
    template = jax.eval_shape(search.algorithm.init, jax.random.key(0), search.hparams)
    caught_up = lambda: meta._caught_up(run, search, template)
    looks = run.metrics()["held_out/fitness"].values.ravel()
    (folder / "rule.npz").unlink()
    assert caught_up() == looks[1]
    found = read_rule(folder / "rule.npz")
    assert (found.spec.provenance["held_out"], found.spec.provenance["generations"]) == (looks[1], 2)
    for held_out, replaced in ((looks[1] - 1.0, True), (looks[1] + 1.0, False)):
        spec = dataclasses.replace(found.spec, provenance={"held_out": held_out, "generations": 1})
        save_rule(folder / "rule.npz", spec, found.params, replace=True)
        assert caught_up() == max(held_out, looks[1])
        assert (read_rule(folder / "rule.npz").spec.provenance["generations"] == 2) == replaced
    # Without the metrics of the newest look nothing is known of it, and nothing is lost.
    shutil.rmtree(folder / "metrics")
    assert caught_up() == looks[1] + 1.0
    with run.lock(), pytest.raises(checkpoint.StorageError, match="Another process"):
        caught_up()


def test_a_search_that_nothing_moves_is_told_from_one_that_moves(searched, tmp_path):
    run = Run.open(searched[0])
    assert not meta._stood_still(run)
    assert "did alike" not in searched[1] + searched[3]
    still = Run.create(tmp_path / "still", {})
    assert not meta._stood_still(still)
    for first, ties in enumerate((1.0, 1.0, 0.5)):
        still.write_segment(first, runs.segment_dataset({"fitness/tie_rate": np.array([ties])}, first, 4))
        assert meta._stood_still(still) == (ties == 1.0)


@pytest.mark.parametrize(
    ("given", "want"), [([], (10, 20)), (["--generations", "1"], (1, 1)), (["--generations", "7"], (7, 1))]
)
def test_the_last_generation_is_looked_at(given, want):
    record, _ = planned("meta-train", "lpo", "--env", "probe/Credit", "--plan", *given)
    assert (record["meta"]["held_out_every"], record["iterations"]) == want


def test_the_rule_says_in_which_environment_it_was_found():
    record, _ = planned("meta-train", "lpo", "--env", "gymnax/CartPole-v1", "--plan", *SMALL, "env.gravity=5")
    search = meta_search.search_of(record, None)
    assert meta_search.env_params_of(search.member, search.hparams.inner) == {"env.gravity": "5.0"}
    assert "env.gravity" not in meta_search.inner_of(search.member, search.hparams.inner, "objective")["hyperparams"]


@pytest.mark.slow
def test_the_last_rule_is_the_mean_of_the_search(searched):
    folder = searched[0]
    run = Run.open(folder)
    search = meta_search.search_of(run.record, None)
    template = jax.eval_shape(search.algorithm.init, jax.random.key(0), search.hparams)
    state, _ = checkpoint.load(run.checkpoints, 2, template)
    _, params = load_rule(folder / "rule-last.npz")
    first = trees.named_leaves(search.hparams.inner.objective)
    assert any(np.any(leaf != first[name]) for name, leaf in trees.named_leaves(params).items())
    for name, leaf in trees.named_leaves(params).items():
        np.testing.assert_array_equal(leaf, state.values[f"objective.{name}"])


def test_other_commands_say_what_takes_a_search(searched, tmp_path):
    folder = searched[0]
    assert "`jaxrl meta-test" in error_of("evaluate", folder)
    assert "goes on as it began" in error_of("resume", folder, "learning_rate=1")
    picture = tmp_path / "generations.png"
    assert done("plot", folder, "--out", picture).strip() == str(picture)
    assert picture.stat().st_size > 5000


def test_the_record_makes_the_search_again(rule):
    record, start = planned(
        *(
            "meta-train",
            "lpo",
            "--env",
            "probe/Credit",
            "--start",
            rule,
            *SMALL,
            "gamma=0.9",
            "--sigma",
            "0.2",
            "--chunk",
            "1",
        ),
    )
    assert start.spec.arguments == {"hidden": 4, "start": "ppo"}
    again = meta_search.search_of(json.loads(json.dumps(record)), start.params)
    assert again.hparams.inner.gamma == np.float32(0.9)
    assert again.hparams.inner.horizon == 50 * 16
    assert again.hparams.strategy.sigma == np.float32(0.2)
    np.testing.assert_array_equal(again.hparams.inner.objective.output, start.params.output)
    assert again.member.config.num_epochs == 2


def test_rules_over_sequences_begin_with_tables_where_states_are_numbered():
    record, start = planned(
        "meta-train", "ta_lpg", "--tasks", "chains/Short", *TINY, "--chunk", "1", "prediction_learning_rate=8"
    )
    assert start is None
    assert (record["algorithm"], record["config"]["tabular"], record["config"]["optimizer"]) == ("lpg", True, "sgd")
    assert record["hyperparams"]["learning_rate"] == 40.0
    assert record["hyperparams"]["prediction_learning_rate"] == 8.0
    about = record["meta"]
    assert (about["life"], about["shaping"], about["fitness"], about["sampled"]) == (
        [10, 100],
        *("pairwise", "evaluation"),
        True,
    )
    networks, rates = meta_search.inner_defaults(make_env("probe/Credit"), "lpg")
    assert not networks.tabular
    assert rates == {}


def test_a_short_life_of_dqn_begins_with_fewer_random_transitions():
    default, (short, rates) = dqn.Config(), meta_search.inner_defaults(make_env("probe/Credit"), "dqn")
    assert (short.num_warmup_steps, rates) == (default.num_warmup_steps // 8, {})
    assert dataclasses.replace(short, num_warmup_steps=default.num_warmup_steps) == default


def test_lengths_of_life_are_drawn_between_both_ends():
    drawn = jax.vmap(meta_search.lifetimes(3, 9))(jax.random.split(jax.random.key(0), 500))
    assert (int(drawn.min()), int(drawn.max())) == (3, 9)
    assert meta_search.lifetimes(3, 9) is meta_search.lifetimes(3, 9)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lpo"], "one of the arguments --env --tasks is required"),
        (["lpx", "--env", "probe/Credit"], "invalid choice: 'lpx'"),
        (["lpg", "--env", "probe/ContinuousPolicy"], "actions must be discrete"),
        (["lpo", "--tasks", "gymnax/CartPole-v1"], "has no levels to draw: use --env"),
        (["lpo", "--env", "probe/Credit", "--population", "3"], "--population must be even"),
        (["lpo", "--env", "probe/Credit", "--start", "a2c"], "--start must be one of zero, ppo or a file"),
        (["lpg", "--env", "probe/Credit", "--start", "ppo"], "--start must be one of random, a2c or a file"),
        (["lpo", "--env", "probe/Credit", "--rule-option", "hiden=3"], "Did you mean hidden"),
        (["lpo", "--env", "probe/Credit", "learning_rat=1"], "Did you mean learning_rate"),
        (["lpo", "--env", "probe/Credit", "--life", "9:3"], "must be N or A:B with A <= B"),
        (["lpo", "--env", "probe/Credit", "--sigma", "0"], "must be a number above 0"),
        (["lpo", "--env", "probe/Credit", "--children", "3"], "--children is for program; lpo is searched in another"),
        (["open", "--env", "probe/Credit", "--start", "ppo"], "--start must be one of zero or a file"),
        (["open", "--env", "probe/Credit", "--rule-option", "hiden=3"], "Did you mean hidden"),
        (["open", "--env", "probe/Credit", "--rule-option", "hidden=x"], "open: hidden must be a whole number"),
        (["program", "--env", "probe/Credit", "--held-out-every", "2"], "--held-out-every is for lpo"),
        (["program", "--env", "probe/Credit", "--meta-rate", "1"], "--meta-rate is for lpo, ta_lpo, lpg, ta_lpg, open"),
        (["program", "--tasks", "grids/Small"], "--tasks is for lpo"),
        (["program", "--env", "probe/Credit", "--life", "3:9"], "--life of program is one number"),
        (["program", "--env", "probe/Credit", "--start", "x.npz"], "--start must be one of random, td; got 'x.npz'"),
        (["program", "--env", "probe/Credit", "--mutation", "2"], "must be a number from 0 to 1"),
        (["program", "--env", "probe/Credit", "--rule-option", "num_nodes=4"], "num_nodes must be at least 5"),
        (["program", "--env", "probe/Credit", "--population", "4", "--children", "5"], "num_children <="),
        (["program", "--env", "probe/ContinuousPolicy"], "iscrete"),
        (["disco", "--env", "probe/Credit"], "invalid choice: 'disco'"),
        (["open", "--env", "probe/Credit", "learning_rate=1"], "learning_rate has no effect with a learned optimizer"),
        (["lpo", "--env", "probe/Credit", "--generations", "5", "--held-out-every", "2"], "must be a multiple of"),
        (["lpo", "--env", "probe/Credit", "--generations", "25"], "got --generations 25, --held-out-every 10."),
    ],
)
def test_wrong_searches_leave_nothing(tmp_path, argv, message):
    assert message in error_of("meta-train", *argv, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(rule, tmp_path):
    file = tmp_path / "afile"
    file.write_text("mine")
    for command in (["meta-train", "lpo", "--env", "probe/Credit"], ["train", "ppo", "probe/Credit"]):
        assert f"{file} is a file or leads nowhere" in error_of(*command, "--out", file)
    test = ["meta-test", rule, "--envs", "probe/Credit", "--life", "1", "--out"]
    assert f"{file} is a file or leads nowhere" in error_of(*test, file / "below")
    assert file.read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is a file or leads nowhere" in error_of("train", "ppo", "probe/Credit", "--out", tmp_path / "link")


def test_a_plan_for_a_folder_that_holds_a_run_is_refused(searched):
    assert "already holds a run" in error_of("meta-train", "lpg", *SEARCH, "--plan", "--out", searched[0])


def test_a_file_of_another_kind_does_not_begin_a_search(rule):
    assert "is of kind lpo" in error_of("meta-train", "ta_lpo", "--env", "probe/Credit", "--start", rule)


def test_every_kind_that_is_searched_has_a_command():
    learned = [name for name, kind in KINDS.items() if kind.is_learned and meta_search.OUTER[kind.family].starts]
    assert list(meta_parsers.KINDS) == learned


def test_a_search_of_optimizers_says_what_it_is(optimizer):
    record, start = planned("meta-train", "open", "--env", "probe/Credit", *PPO, "--chunk", "1", "--start", optimizer)
    assert start.spec.arguments == {"hidden": 2, "memory": 2}
    about = record["meta"]
    assert (record["algorithm"], about["sigma"], about["meta_rate"], about["fitness"]) == ("ppo", 0.3, 0.1, "training")
    search = meta_search.search_of(json.loads(json.dumps(record)), start.params)
    assert search.algorithm.name.startswith("evolve(ppo, open_es")
    want = trees.named_leaves(start.params)
    for name, leaf in trees.named_leaves(search.hparams.inner.optimizer).items():
        np.testing.assert_array_equal(leaf, want[name])
    inner = meta_search.inner_of(search.member, search.hparams.inner, search.leaf)
    assert inner["hyperparams"] == {}
    record, start = planned("meta-train", "open", "--env", "probe/Credit", *PPO, "--chunk", "1", "--sigma", "0.5")
    assert start is None
    assert record["meta"]["sigma"] == 0.5
    assert not np.any(meta_search.search_of(record, None).hparams.inner.optimizer["params"]["output"]["kernel"])


def test_a_search_of_programs_says_what_it_is():
    record, start = planned("meta-train", "program", *PROGRAMS, "--generations", "5", "learning_rate=0.01")
    assert start is None
    about = record["meta"]
    assert (record["algorithm"], record["iterations"], about["tournament"], about["start"]) == ("dqn", 5, 6, "td")
    search = meta_search.search_of(json.loads(json.dumps(record)), None)
    assert (search.leaf, search.generations, search.segment) == ("head", 1, 1)
    assert search.hparams.inner.learning_rate == np.float32(0.01)
    assert search.hparams.inner.horizon == 3 * search.member.env_steps
    assert search.hparams.mutation_probability == np.float32(0.95)


def test_the_best_programs_of_a_population_get_files_once_each(tmp_path):
    record, _ = planned("meta-train", "program", *[part.replace("=6", "=8") for part in PROGRAMS])
    search, run = meta_search.search_of(record, None), Run.create(tmp_path / "run", record)
    td = ("half_squared_distance", expressions.TD[2], expressions.TD[1])
    written = [expressions.DQN_REG, expressions.TD, expressions.DQN_CLIPPED[1], td, ("square", expressions.TD)]
    genomes = [expressions.program_of(each, 8) for each in written]
    state = jax.eval_shape(search.algorithm.init, jax.random.key(0), search.hparams)
    state = state.replace(
        genomes=jax.tree.map(lambda *x: np.stack(x), *genomes), fitness=np.float32([1.0, 3.0, -np.inf, 2.0, 0.5])
    )
    (run.path / "population-4.npz").write_bytes(b"of another time")
    title, *lines = meta._save_population(run, search, state, 6)
    assert "population-*.npz" in title
    # The distance is the same both ways round, and what has no finite score is none of the best.
    found = [read_rule(path) for path in sorted(run.path.glob("population-*.npz"))]
    assert [each.spec.provenance["population_fitness"] for each in found] == [3.0, 1.0, 0.5]
    assert [each.spec.provenance["formula"] for each in found] == [expressions.describe(genomes[i]) for i in (1, 0, 4)]
    assert lines == [
        f"{each.spec.provenance['population_fitness']:.4g}  {each.spec.provenance['formula']}" for each in found
    ]
    assert found[0].spec.provenance["generations"] == 6


@pytest.mark.slow
def test_what_a_search_of_programs_leaves(found_programs):
    folder, out = found_programs
    assert "program (6 nodes, from td) on probe/Credit, seed 0" in out
    assert "4 generations of 3 programs x 1 learner = 12, and 8 held-out ones in 4 looks" in out
    assert "population 6, tournaments of 6" in out
    assert [f"generation {n}: held out" in out for n in range(1, 6)] == [True] * 4 + [False]
    rows = Run.open(folder).metrics()
    assert rows.sizes["step"] == 4
    best = read_rule(folder / "rule.npz")
    assert best.spec.provenance["held_out"] == pytest.approx(max(rows["held_out/fitness"].values.ravel()))
    assert best.spec.provenance["formula"] == expressions.describe(best.params)
    assert best.spec.provenance["inner"]["algorithm"] == "dqn"
    assert f"  {best.spec.provenance['formula']}" in out
    last = read_rule(folder / "rule-last.npz").spec.provenance
    assert (last["generations"], last["start"]) == (4, "td")
    population = [read_rule(path) for path in sorted(folder.glob("population-*.npz"))]
    assert population
    scores = [each.spec.provenance["population_fitness"] for each in population]
    assert scores == sorted(scores, reverse=True)
    prints = {tuple(np.asarray(expressions.fingerprint(each.params)).tolist()) for each in population}
    assert len(prints) == len(population)
    assert (folder / "generations.png").exists()


@pytest.mark.slow
def test_a_stop_changes_no_bit_of_a_search_of_programs(found_programs, tmp_path):
    folder = tmp_path / "cut"
    out = done("meta-train", "program", *PROGRAMS, "--generations", "4", "--time-limit", "0", "--out", folder)
    assert "the time limit of 0 s is reached" in out
    assert "generation 4" not in out
    more = done("resume", folder)
    assert "generation 1:" not in more
    assert "generation 4: held out" in more
    first, second = (Run.open(path).metrics() for path in (found_programs[0], folder))
    for name in first:
        np.testing.assert_array_equal(first[name].values, second[name].values)
    names = ["rule.npz", "rule-last.npz", *(path.name for path in folder.glob("population-*.npz"))]
    assert [read_rule(found_programs[0] / name).digest for name in names] == [
        read_rule(folder / name).digest for name in names
    ]


# --- --objective ------------------------------------------------------------------------------------------------------


def options_of(*argv):
    return arguments.parse([str(part) for part in argv]).options


def test_objectives_by_name_and_file(rule):
    built, record = build.from_options(options_of("train", "ppo", "probe/Credit", *SMALL, "--objective", "spo"))
    assert record["objective"] == {"kind": "spo", "arguments": {}, "digest": None}
    assert trees.named_leaves(built.hparams)["objective.epsilon"] == spo().init(jax.random.key(0)).epsilon
    built, record = build.from_options(options_of("train", "ppo", "probe/Credit", *SMALL, "--objective", rule))
    np.testing.assert_array_equal(built.hparams.objective.output, load_rule(rule)[1].output)
    assert record["objective"]["digest"] == read_rule(rule).digest


def test_the_copy_in_the_folder_makes_the_run_again(rule, tmp_path):
    built, record = build.from_options(options_of("train", "ppo", "probe/Credit", *SMALL, "--objective", rule))
    record |= {"seed": 0, "num_seeds": 8, "total_steps": 32, "segment": 1, "layout": list(built.layout)}
    run = Run.create(tmp_path / "run", json.loads(json.dumps(record)))
    built.chosen[0].keep(run.path)
    rule.unlink()
    again = build.from_record(run)
    np.testing.assert_array_equal(again.hparams.objective.output, built.hparams.objective.output)
    spec = RuleSpec("lpo", {"hidden": 4, "start": "ppo"})
    save_rule(run.path / "objective.npz", spec, spec.build().init(jax.random.key(9)), replace=True)
    with pytest.raises(ValueError, match=r"is not the rule that .* was made with"):
        build.from_record(run)
    (run.path / "objective.npz").unlink()
    with pytest.raises(ValueError, match="is missing: copy the lpo of digest"):
        build.from_record(run)


@pytest.mark.parametrize(
    ("algorithm", "objective", "message"),
    [
        ("ppo", "sop", "No objective is called 'sop'. Did you mean spo? A learned one is a file"),
        ("ppo", "lpo", "lpo is learned: give the file of its weights"),
        ("ppo", "", "--objective is empty: give a name or a file"),
        ("disco", "disco", "give the file of its weights, their authors' disco_103.npz"),
        ("ppo", "a2c", "a2c is a rule over sequences, which ppo does not take: take one of lpg"),
        ("lpg", "spo", "spo is an objective of samples, which lpg does not take: take one of ppo"),
        ("dqn", "spo", "which dqn does not take: take one of ppo, props"),
        ("ppo", "nowhere.npz", "There is no file nowhere.npz"),
    ],
)
def test_objectives_that_do_not_fit(tmp_path, algorithm, objective, message):
    assert message in error_of("train", algorithm, "probe/Credit", "--objective", objective, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("algorithm", "option", "value", "message"),
    [
        ("ppo", "objective", "optimizer", "is a learned optimizer, no objective: give it as --optimizer"),
        ("ppo", "optimizer", "program", "is a loss of action values, no optimizer: give it as --head"),
        ("dqn", "optimizer", "optimizer", "open is a learned optimizer, which dqn does not take: take one of ppo."),
        ("ppo", "head", "program", "program is a loss of action values, which ppo does not take: take one of dqn"),
        ("ppo", "optimizer", "adam", "--optimizer takes the file of a learned one, FILE.npz; got 'adam'"),
        ("dqn", "head", "dqn_ref", "No head is called 'dqn_ref'. Did you mean dqn_reg"),
    ],
)
def test_rules_that_do_not_fit(optimizer, program, tmp_path, algorithm, option, value, message):
    file = {"optimizer": optimizer, "program": program}.get(value, value)
    argv = ["train", algorithm, "probe/Credit", f"--{option}", file, "--out", tmp_path / "run"]
    assert message in error_of(*argv)
    assert not (tmp_path / "run").exists()


def test_which_algorithms_need_the_file_of_a_rule(rule):
    assert [name for name in ("lpg", "disco", "ppo", "dqn") if rules.is_missing(name, ())] == ["lpg", "disco"]
    assert not rules.is_missing("lpg", (rules.from_file(rule),))


def test_an_optimizer_and_an_objective_at_once(optimizer, tmp_path):
    argv = ["train", "ppo", "probe/Credit", *SMALL, "--objective", "spo", "--optimizer", optimizer]
    built, record = build.from_options(options_of(*argv))
    assert record["objective"] == {"kind": "spo", "arguments": {}, "digest": None}
    assert record["optimizer"]["digest"] == read_rule(optimizer).digest
    run = Run.create(
        tmp_path / "run",
        json.loads(
            json.dumps(record | {"seed": 0, "num_seeds": 8, "total_steps": 32, "segment": 1, "layout": [1, None]})
        ),
    )
    for chosen in built.chosen:
        chosen.keep(run.path)
    assert sorted(path.name for path in run.path.glob("*.npz")) == ["optimizer.npz"]
    optimizer.unlink()
    again = build.from_record(run)
    want = trees.named_leaves(built.hparams)
    assert any(name.startswith("optimizer.params.gru") for name in want)
    for name, leaf in trees.named_leaves(again.hparams).items():
        np.testing.assert_array_equal(leaf, want[name])


def test_published_vectors_and_programs_in_training(program, tmp_path):
    vector = np.random.default_rng(0).normal(size=1211).astype(np.float32)
    np.save(tmp_path / "ant_OPEN.npy", vector)
    argv = ["train", "ppo", "probe/Credit", *SMALL, "--optimizer", tmp_path / "ant_OPEN.npy"]
    built, _ = build.from_options(options_of(*argv))
    assert built.hparams.optimizer["params"]["output"]["kernel"][-1, -1] == vector[-1]
    built, record = build.from_options(options_of("train", "dqn", "probe/Credit", *DQN, "--head", program))
    assert expressions.describe(built.hparams.head) == expressions.describe(expressions.program_of(expressions.DQN_REG))
    assert record["head"]["kind"] == "program"
    built, _ = build.from_options(options_of("train", "dqn", "probe/Credit", *DQN, "--head", "dqn_reg"))
    assert trees.named_leaves(built.hparams)["head.weight"] == np.float32(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["optimizer", "program"])
def test_other_rules_train_go_on_and_play_after_the_file_has_moved(request, tmp_path, kind):
    file = request.getfixturevalue(kind)
    agent = ["ppo", "probe/Credit", *SMALL, "--optimizer", file] if kind == "optimizer" else None
    train = ["train", *(agent or ["dqn", "probe/Credit", *DQN, "--head", file])]
    train += ["--num-seeds", "2", "--segments", "2", "--eval-episodes", "2", "horizon=64"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done(*train, "--total-steps", "64", "--out", whole)
    done(*train, "--total-steps", "32", "--out", cut)
    file.unlink()
    done("resume", cut, "--total-steps", "64")
    last = [Run.open(path).metrics()["loss/value"].values[-1] for path in (whole, cut)]
    np.testing.assert_array_equal(*last)
    assert "mean" in done("evaluate", cut, "--episodes", "2")


@pytest.mark.slow
def test_disco_takes_its_rule(tmp_path):
    sizes = {"prediction_size": 5, "hidden": 4, "memory": 3, "embedding": 4, "channels": [3, 2], "target_channels": [3]}
    spec = RuleSpec("disco", sizes)
    shapes = jax.eval_shape(spec.init, jax.random.key(0))
    draws = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: draws.normal(size=x.shape).astype(np.float32), shapes)
    file = save_rule(tmp_path / "disco.npz", spec, weights)
    small = ["config.num_envs=2", "config.num_steps=4", "config.hidden=4", "config.model_size=4"]
    small += ["config.model_hidden=4", "config.num_bins=9"]
    argv = ["train", "disco", "probe/Credit", *small, "--objective", file]
    built, record = build.from_options(options_of(*argv))
    assert record["objective"]["arguments"]["prediction_size"] == 5
    want = trees.named_leaves(weights)
    for name, leaf in trees.named_leaves(built.hparams.objective).items():
        np.testing.assert_array_equal(leaf, want[name])
    arms = arms_of(file, *small)
    assert list(arms) == ["random", "ppo", "disco"]
    assert arms["ppo"].algorithm.config.network.hidden == (4,)
    assert "disco is a rule of Disco103's form, which ppo does not take: take one of disco." in error_of(
        "train", "ppo", "probe/Credit", "--objective", file
    )


@pytest.mark.slow
def test_a_sweep_with_an_optimizer(optimizer, tmp_path):
    folder = tmp_path / "sweep"
    command = ["sweep", "ppo", "probe/Policy", *SMALL, "--over", "gamma=0.9,0.99", "--num-seeds", "2"]
    command += ["--total-steps", "32", "--points", "2", "--eval-episodes", "1", "--out", folder]
    done(*command, "--optimizer", optimizer)
    data = results.read_results(folder)
    optimizer.unlink()
    done("resume", folder)
    assert results.read_results(folder).identical(data)
    assert (folder / "optimizer.npz").exists()


@pytest.mark.slow
def test_a_run_with_a_file_is_resumed_and_evaluated_after_the_file_has_moved(rule, tmp_path):
    train = ["train", "ppo", "probe/Credit", *SMALL, "--num-seeds", "2", "--segments", "2", "--eval-episodes", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done(*train, "--total-steps", "64", "--objective", rule, "horizon=64", "--out", whole)
    done(*train, "--total-steps", "32", "--objective", rule, "horizon=64", "--out", cut)
    rule.unlink()
    done("resume", cut, "--total-steps", "64")
    assert "policy/drift" in Run.open(whole).metrics()
    np.testing.assert_array_equal(*(Run.open(path).metrics()["loss/policy"].values[-1] for path in (whole, cut)))
    assert "mean" in done("evaluate", cut, "--episodes", "2")


@pytest.mark.slow
def test_a_sweep_with_a_file(rule, tmp_path):
    folder = tmp_path / "sweep"
    command = ["sweep", "ppo", "probe/Policy", *SMALL, "--over", "learning_rate=1e-3,1e-2", "--num-seeds", "2"]
    command += ["--total-steps", "32", "--points", "2", "--eval-episodes", "1", "--out", folder, "--objective", rule]
    done(*command)
    data = results.read_results(folder)
    moved = Path(shutil.move(rule, tmp_path / "moved.npz"))
    done("resume", folder)
    done(*command[:-1], moved)
    assert results.read_results(folder).identical(data)
    assert "holds another sweep" in error_of(*command[:-1], "spo")


# --- meta-test --------------------------------------------------------------------------------------------------------


def arms_of(path, *argv, env="probe/Credit"):
    options = options_of("meta-test", path, "--envs", env, *argv)
    found = [(path, read_rule(path))]
    baselines = rule_arms.baselines_of(options.baselines, found[0][1].spec.family)
    own, common = rule_arms.assignments_of(options.assignments, baselines)
    return {arm.name: arm for arm in rule_arms.arms_of(env, build.find_env(env)[0], found, baselines, common, own)}


def test_all_rows_have_the_settings_of_the_training(trained):
    arms = arms_of(trained, "--baselines", "ppo,a2c,dpo,random", "config.num_steps=4", "ppo.config.num_epochs=3")
    assert list(arms) == ["random", "ppo", "a2c", "dpo", "trained/rule"]
    learned = arms["trained/rule"]
    for name in ("ppo", "a2c", "dpo"):
        config, hparams = arms[name].algorithm.config, arms[name].hparams
        assert (config.num_envs, config.num_steps, config.network) == (2, 4, learned.algorithm.config.network)
        assert hparams.learning_rate == learned.hparams.learning_rate == 0.25
    assert [arms[name].algorithm.config.num_epochs for name in ("ppo", "a2c", "dpo", "trained/rule")] == [3, 1, 2, 2]
    assert arms["ppo"].settings == "config.num_epochs=3"
    assert trees.named_leaves(arms["ppo"].hparams)["objective.clip"] == np.float32(0.2)
    np.testing.assert_array_equal(learned.hparams.objective.output, load_rule(trained)[1].output)
    assert learned.trained == "ta_lpo, probe/Credit, 7 iterations"


def test_rows_of_rules_can_be_told_apart():
    labels = lambda *paths: rule_arms._labels([Path(path) for path in paths])
    assert labels("runs/a/rule.npz") == ["a/rule"]
    assert labels("mine.npz", "yours.npz") == ["mine", "yours"]
    assert labels("a/lpo/rule.npz", "b/lpo/rule.npz") == ["a/lpo/rule", "b/lpo/rule"]


def test_rules_over_sequences_have_baselines_too(tmp_path):
    spec = RuleSpec("lpg", {"hidden": 2, "num_bins": 3, "core": "gru"})
    path = save_rule(tmp_path / "mine.npz", spec, spec.build().init(jax.random.key(0)))
    arms = arms_of(path, "config.num_envs=3", "ppo.learning_rate=0.5", env="chains/Short")
    assert list(arms) == ["random", "ppo", "a2c", "mine"]
    assert arms["mine"].algorithm.config.tabular
    assert arms["a2c"].hparams.learning_rate == arms["mine"].hparams.learning_rate == 40.0
    assert arms["a2c"].algorithm.config == arms["mine"].algorithm.config
    assert (arms["ppo"].algorithm.config.num_envs, arms["ppo"].algorithm.config.num_steps) == (3, 20)
    assert arms["ppo"].algorithm.config.network.hidden == ()
    assert arms["ppo"].hparams.learning_rate == 0.5
    networks = arms_of(path, env="probe/Credit")
    assert not networks["mine"].algorithm.config.tabular
    with pytest.raises(ValueError, match="In probe/ContinuousPolicy: lpg: actions must be discrete"):
        arms_of(path, env="probe/ContinuousPolicy")
    assert "does not say what horizon it was trained for: give --life" in error_of(
        "meta-test", path, "--envs", "chains/Short"
    )


def test_optimizers_have_adam_beside_them(optimizer):
    arms = arms_of(optimizer, *PPO, "learning_rate=0.5", "ppo.learning_rate=0.25")
    assert list(arms) == ["random", "ppo", "optimizer"]
    assert arms["ppo"].algorithm.config == arms["optimizer"].algorithm.config
    assert arms["ppo"].algorithm.config.num_envs == 2
    assert arms["ppo"].hparams.optimizer == ()
    assert arms["ppo"].settings == "Adam, learning_rate=0.25"
    want = trees.named_leaves(load_rule(optimizer)[1])
    for name, leaf in trees.named_leaves(arms["optimizer"].hparams.optimizer).items():
        np.testing.assert_array_equal(leaf, want[name])


def test_programs_have_written_losses_beside_them(program):
    arms = arms_of(program, *DQN, "--baselines", "dqn,dqn_reg,dqn_clipped", "dqn.learning_rate=0.5")
    assert list(arms) == ["dqn", "dqn_reg", "dqn_clipped", "program"]
    assert {arm.algorithm.config.num_rounds for arm in arms.values()} == {4}
    assert arms["dqn"].hparams.learning_rate == 0.5
    assert arms["dqn_reg"].hparams.head.weight == np.float32(0.1)
    assert arms["program"].settings == expressions.describe(load_rule(program)[1])
    assert arms["program"].hparams.learning_rate == arms["dqn_reg"].hparams.learning_rate


def test_tables_are_written(tmp_path):
    scores = np.array([0.0, 1.0, 2.0, 100.0])
    rows = [
        rule_table.Row("probe/Credit", 2, 32, "mine", "learned", "lpo, probe/Credit, 2 iterations", scores),
        rule_table.Row("probe/Credit", 0, 0, "random", "random", "", scores - 1.0),
    ]
    rule_table._write(tmp_path, rows, ["4 seeds"])
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("4 seeds.\n\n| env | tested at | rule | kind | IQM [95%] | trained on |\n|---|")
    assert "| probe/Credit | 2 (32 steps) | mine | learned | 1.5 [" in text
    with open(tmp_path / "table.csv") as file:
        first, second = csv.DictReader(file)
    assert (float(first["iqm"]), float(first["mean"]), first["num_seeds"]) == (1.5, 25.75, "4")
    assert float(first["low"]) < 1.5 < float(first["high"])
    assert float(second["iqm"]) == 0.5
    with open(tmp_path / "scores.csv") as file:
        assert [float(line["score"]) for line in csv.DictReader(file)][:4] == scores.tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--envs", "probe/Credits"], "Nearest: probe/Credit"),
        (["--envs", "probe/Credit", "--baselines", "pop"], "No baseline is called 'pop'. Did you mean ppo"),
        (["--envs", "probe/Credit", "gama=1"], "In probe/Credit: No hyperparameter is called 'gama'"),
        (["--envs", "probe/Credit", "--env-option", "grids/Small:side=3,3"], "which is not among --envs: probe/Credit"),
        (["--envs", "probe/Credit", "--life", "0"], "must be at least 1"),
        (["--envs", "probe/Credit", "--num-seeds", "0"], "must be at least 1"),
        (["--envs", "probe/Credit,"], "--envs has an empty name"),
        (["--envs", "probe/Credit,probe/Credit"], "an environment is given twice, probe/Credit"),
        (["--envs", "probe/Credit", "horizon=3"], "horizon is as long as each row's life: set --life"),
        (["--envs", "probe/Credit", "ppo.horizon=3"], "ppo.horizon is as long as"),
        (["--envs", "probe/Credit", "random.gamma=1"], "random.gamma has no effect"),
        ([], "the following arguments are required: --envs"),
    ],
)
def test_wrong_tests_leave_nothing(searched, tmp_path, more, message):
    path = searched[0] / "rule.npz"
    assert message in error_of("meta-test", path, "--out", tmp_path / "table", *more)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_for_learned_optimizers_is_refused(optimizer, tmp_path):
    said = error_of("meta-test", optimizer, "--envs", "probe/Credit", "--life", "1", "learning_rate=1")
    assert "give ppo.learning_rate" in said
    assert "a rule is given twice" in error_of(
        "meta-test", optimizer, optimizer, "--envs", "probe/Credit", "--life", "1"
    )


def test_rules_of_two_families_are_tested_apart(searched, tmp_path):
    spec = RuleSpec("dpo")
    other = save_rule(tmp_path / "dpo.npz", spec, spec.build().init(jax.random.key(0)))
    assert "test them apart" in error_of("meta-test", searched[0] / "rule.npz", other, "--envs", "probe/Credit")


@pytest.mark.slow
def test_a_table_from_the_command_line(trained, rule, tmp_path):
    folder = tmp_path / "table"
    command = ["meta-test", trained, rule, "--envs", "probe/Credit,grids/Small", "--num-seeds", "4"]
    command += [part if part == "--env-option" else f"grids/Small:{part}" for part in GRIDS]
    command += ["--eval-episodes", "2", "--life", "1,3", "--out", folder]
    out = done(*command)
    assert "4 seeds, lives of 1, 3 iterations" in out
    with open(folder / "table.csv") as file:
        rows = list(csv.DictReader(file))
    # Chance once, four rows at two lengths of life, and in the grid world the best that there is.
    assert [row["rule"] for row in rows if row["env"] == "probe/Credit"] == [
        "random",
        *("ppo", "ppo", "a2c", "a2c", "rule", "rule", "mine", "mine"),
    ]
    best = [float(row["mean"]) for row in rows if row["rule"] == "best possible"]
    others = [float(row["mean"]) for row in rows if row["env"] == "grids/Small" and row["rule"] != "best possible"]
    assert len(best) == 1
    assert len(others) == 9
    assert "already holds a table" in error_of(*command)


@pytest.mark.slow
def test_programs_in_a_table(found_programs, program, tmp_path):
    command = ["meta-test", found_programs[0] / "rule.npz", program, "--envs", "probe/Credit", "--num-seeds", "2"]
    done(*command, "--eval-episodes", "2", "--life", "2", "--out", tmp_path / "table")
    text = (tmp_path / "table" / "table.md").read_text()
    assert f"program: {expressions.describe(load_rule(program)[1])}." in text
    with open(tmp_path / "table" / "table.csv") as file:
        assert [row["rule"] for row in csv.DictReader(file)] == ["random", "dqn", "dqn_reg", "rule", "program"]


@pytest.mark.slow
def test_an_optimizer_is_found_tried_and_drawn(tmp_path):
    folder = tmp_path / "run"
    command = ["meta-train", "open", "--env", "probe/Credit", *PPO, "config.network.hidden=4", "--population", "4"]
    command += ["--held-out", "2", "--generations", "2", "--held-out-every", "1", "--life", "3", "--chunk", "4"]
    assert "open (1,211 weights, from zero)" in done(*command, "--time-limit", "0", "--out", folder)
    done("resume", folder)
    assert read_rule(folder / "rule-last.npz").spec.provenance["generations"] == 2
    table = [
        "meta-test",
        folder / "rule-last.npz",
        "--envs",
        "probe/Credit",
        "--num-seeds",
        "2",
        "--eval-episodes",
        "2",
    ]
    done(*table, "--out", tmp_path / "table")
    assert "ppo: Adam, learning_rate=0.00025." in (tmp_path / "table" / "table.md").read_text()
    (drawn,) = done("plot", folder / "rule-last.npz").split()
    assert Path(drawn).stat().st_size > 20000


def test_what_has_no_picture_says_so(program, tmp_path):
    assert "no picture: add(tenth(select(q, action))" in error_of("plot", program)
    np.save(tmp_path / "ant_OPEN.npy", np.zeros(1211, np.float32))
    assert "does not say where it was trained" in error_of("plot", tmp_path / "ant_OPEN.npy")


@pytest.mark.slow
def test_a_search_over_levels_begins_at_actor_critic_and_is_drawn(tmp_path):
    folder = tmp_path / "run"
    command = ["meta-train", "ta_lpg", "--tasks", "grids/Small", *GRIDS, "--start", "a2c", "--population", "4"]
    command += ["--held-out", "2", "--generations", "2", "--held-out-every", "2", "--life", "2:4", "--out", folder]
    sizes = ["--rule-option", "hidden=4", "--rule-option", "num_bins=3", "--rule-option", "core=gru"]
    out = done(*command, *sizes, "config.num_envs=2", "config.num_steps=5")
    assert "ta_lpg" in out
    assert "from a2c" in out
    assert read_rule(folder / "objective.npz").spec.kind == "ta_lpg"
    drawn = done("plot", folder / "rule-last.npz").split()
    assert [Path(name).name for name in drawn] == ["rule-last.png", "rule-last-horizons.png"]
    assert all(Path(name).stat().st_size > 5000 for name in drawn)
    done("resume", folder)
