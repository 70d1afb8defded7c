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

from jaxrl import checkpoint, cli
from jaxrl.cli import arguments, build, meta, rule_table, rules
from jaxrl.envs import make_env
from jaxrl.objectives import spo
from jaxrl.objectives.files import RuleSpec, load_rule, read_rule, save_rule
from jaxrl.ops import trees
from jaxrl.runs import Run
from jaxrl.sweeps import results

SMALL = ["config.num_envs=2", "config.num_steps=8", "config.num_epochs=2", "config.num_minibatches=1"]
TINY = [part for size in ("hidden=2", "num_bins=2", "core=gru") for part in ("--rule-option", size)]
SEARCH = ["--env", "chains/Short", "--env-option", "length=3,3", "config.num_envs=2", "config.num_steps=6", *TINY]
SEARCH += ["--population", "4", "--held-out", "2", "--held-out-every", "1", "--life", "3", "--fitness", "training"]
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
    return meta._record(command.options, Console())


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two looks, the second after a stop."""
    folder = tmp_path_factory.mktemp("meta") / "run"
    command = ["meta-train", "lpg", *SEARCH, "--sigma", "1", "--chunk", "4", "--generations", "2"]
    out = done(*command, "--time-limit", "0", "--out", folder)
    after_first = {path.name for path in folder.iterdir()}
    more = done("resume", folder)
    return folder, out, after_first, more


@pytest.fixture
def rule(tmp_path):
    """A rule's file that was made by hand."""
    spec = RuleSpec("lpo", {"hidden": 4, "start": "ppo"})
    params = spec.build().init(jax.random.key(3))
    return save_rule(tmp_path / "mine.npz", spec, params.replace(output=params.output + 0.1))


@pytest.fixture
def trained(tmp_path):
    """One that says what it was trained with."""
    more = ["--rule-option", "hidden=4", "--life", "7", "--chunk", "1", "config.network.hidden=4", "learning_rate=0.25"]
    record, _ = planned("meta-train", "ta_lpo", "--env", "probe/Credit", *SMALL, *more)
    search = meta.search_of(record, None)
    about = {
        "env": "probe/Credit",
        "horizon": {"iterations": [7, 7]},
        "inner": meta.inner_of(search.member, search.hparams.inner),
    }
    spec = dataclasses.replace(search.spec, provenance=about)
    return save_rule(tmp_path / "trained" / "rule.npz", spec, jax.device_get(search.hparams.inner.objective))


# --- meta-train -------------------------------------------------------------------------------------------------------


def test_a_search_stops_goes_on_and_leaves_rules(searched):
    folder, out, after_first, more = searched
    assert "lpg (130 weights, from random) on chains/Short, seed 0" in out
    assert "2 generations of 4 candidates x 1 learners = 8, and 4 held-out ones in 2 looks" in out
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


@pytest.mark.slow
def test_the_last_rule_is_the_mean_of_the_search(searched):
    folder = searched[0]
    run = Run.open(folder)
    search = meta.search_of(run.record, None)
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
    again = meta.search_of(json.loads(json.dumps(record)), start.params)
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
    networks, rates = meta.inner_defaults(make_env("probe/Credit"), "lpg")
    assert not networks.tabular
    assert rates == {}


def test_lengths_of_life_are_drawn_between_both_ends():
    drawn = jax.vmap(meta.lifetimes(3, 9))(jax.random.split(jax.random.key(0), 500))
    assert (int(drawn.min()), int(drawn.max())) == (3, 9)
    assert meta.lifetimes(3, 9) is meta.lifetimes(3, 9)


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
    ],
)
def test_wrong_searches_leave_nothing(tmp_path, argv, message):
    assert message in error_of("meta-train", *argv, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_does_not_begin_a_search(rule):
    assert "is of kind lpo" in error_of("meta-train", "ta_lpo", "--env", "probe/Credit", "--start", rule)


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
    built.chosen.keep(run.path)
    rule.unlink()
    again = build.from_record(run)
    np.testing.assert_array_equal(again.hparams.objective.output, built.hparams.objective.output)
    spec = RuleSpec("lpo", {"hidden": 4, "start": "ppo"})
    save_rule(run.path / rules.COPY, spec, spec.build().init(jax.random.key(9)), replace=True)
    with pytest.raises(ValueError, match=r"is not the rule that .* was made with"):
        build.from_record(run)
    (run.path / rules.COPY).unlink()
    with pytest.raises(ValueError, match="There is no file"):
        build.from_record(run)


@pytest.mark.parametrize(
    ("algorithm", "objective", "message"),
    [
        ("ppo", "sop", "No objective is called 'sop'. Did you mean spo? A learned one is a file"),
        ("ppo", "lpo", "lpo is learned: give the file of its weights"),
        ("ppo", "a2c", "a2c is a rule over sequences, which ppo does not take: take one of lpg"),
        ("lpg", "spo", "spo is an objective of samples, which lpg does not take: take one of ppo"),
        ("dqn", "spo", "which dqn does not take: take one of ppo, props"),
        ("ppo", "nowhere.npz", "There is no file nowhere.npz"),
    ],
)
def test_objectives_that_do_not_fit(tmp_path, algorithm, objective, message):
    assert message in error_of("train", algorithm, "probe/Credit", "--objective", objective, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    baselines = rule_table._baselines(options.baselines, found[0][1].spec.family)
    own, common = rule_table._assignments(options.assignments, baselines)
    return {arm.name: arm for arm in rule_table._arms(env, build.find_env(env)[0], found, baselines, common, own)}


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
        ([], "the following arguments are required: --envs"),
    ],
)
def test_wrong_tests_leave_nothing(searched, tmp_path, more, message):
    path = searched[0] / "rule.npz"
    assert message in error_of("meta-test", path, "--out", tmp_path / "table", *more)
    assert list(tmp_path.iterdir()) == []


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
def test_a_search_over_levels_begins_at_actor_critic_and_is_drawn(tmp_path):
    folder = tmp_path / "run"
    command = ["meta-train", "ta_lpg", "--tasks", "grids/Small", *GRIDS, "--start", "a2c", "--population", "4"]
    command += ["--held-out", "2", "--generations", "2", "--held-out-every", "2", "--life", "2:4", "--out", folder]
    sizes = ["--rule-option", "hidden=4", "--rule-option", "num_bins=3", "--rule-option", "core=gru"]
    out = done(*command, *sizes, "config.num_envs=2", "config.num_steps=5")
    assert "ta_lpg" in out
    assert "from a2c" in out
    assert read_rule(folder / rules.COPY).spec.kind == "ta_lpg"
    drawn = done("plot", folder / "rule-last.npz").split()
    assert [Path(name).name for name in drawn] == ["rule-last.png", "rule-last-horizons.png"]
    assert all(Path(name).stat().st_size > 5000 for name in drawn)
    done("resume", folder)
