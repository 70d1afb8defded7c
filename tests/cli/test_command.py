"""The `jaxrl` command from end to end, on runs of three iterations that the tests of a session share."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

from jaxrl import checkpoint, cli, fit, memory
from jaxrl.cli import arguments, lists, options, summaries
from jaxrl.cli.documentation import attributes
from jaxrl.runs import Run

SMALL = ["config.num_envs=4", "config.num_steps=16", "config.num_epochs=1", "config.num_minibatches=1"]
TRAIN = ["train", "ppo", "gymnax/CartPole-v1", *SMALL, "env.max_steps_in_episode=20", "--num-seeds", "2"]
SHORT = ["--total-steps", "190", "--segments", "3", "--evaluations", "3", "--eval-episodes", "2"]


def call(*argv) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main([str(part) for part in argv])
    return code, out.getvalue(), err.getvalue()


def error_of(*argv) -> str:
    """The one line of an error."""
    code, _, err = call(*argv)
    assert code == 2
    assert err.startswith("jaxrl: error: ")
    assert err.count("\n") == 1
    return err.strip()


def process(*argv, **settings):
    command = [sys.executable, "-m", "jaxrl", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    code, out, err = call(*TRAIN, *SHORT, "--seed", "7", "learning_rate=1e-3", "--sink", "tensorboard", "--out", folder)
    assert code == 0, err
    return folder, out


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained[0], tmp_path / "copy"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_fills_the_folder(trained):
    folder, _ = trained
    run = Run.open(folder)
    metrics = run.metrics()
    assert dict(metrics.sizes) == {"step": 3, "seed": 2}
    np.testing.assert_array_equal(metrics["step"], [64, 128, 192])
    assert not metrics["loss/policy"].isnull().any()
    evaluations = run.evaluations()
    assert dict(evaluations.sizes) == {"step": 3, "seed": 2, "episode": 2}
    assert evaluations["finished"].all()
    assert evaluations["lengths"].max() <= 20
    assert checkpoint.iterations(run.checkpoints)[-1] == 3
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6
    assert len(list((folder / "tensorboard").rglob("events*"))) == 2
    results = json.loads((folder / "results.json").read_text())
    assert results["finished"]
    assert [row["seed"] for row in results["seeds"]] == [0, 1]


def test_train_records_what_makes_the_run_again(trained):
    record = Run.open(trained[0]).record
    assert (record["algorithm"], record["env"], record["seed"], record["num_seeds"]) == (
        "ppo",
        "gymnax/CartPole-v1",
        7,
        2,
    )
    assert record["total_steps"] == 192
    assert record["config"]["num_steps"] == 16
    assert record["hyperparams"]["learning_rate"] == pytest.approx(1e-3)
    assert record["hyperparams"]["env.max_steps_in_episode"] == 20
    # The schedule ends with the run unless the user says otherwise.
    assert record["hyperparams"]["horizon"] == 192


def test_train_tells_a_person_what_happens(trained):
    folder, out = trained
    assert "ppo on gymnax/CartPole-v1: 2 seeds x 192 steps, seed 7" in out
    assert "3 iterations of 64 steps (num_envs 4, num_steps 16); 190 steps were asked for" in out
    assert re.search(r"compiled in \d+\.\d s", out)
    lines = [line for line in out.splitlines() if re.match(r" *\d+ steps +\d+%  .* steps/s  return ", line)]
    assert [line.split()[0] for line in lines] == ["64", "128", "192"]
    assert all("evaluation" in line for line in lines)
    assert re.search(r"^mean +\S+ \[.*\] +\S+ \[.*\]", out, re.M)
    assert f"folder {folder}, curves {folder}/curves.png" in out


def test_train_does_not_touch_a_folder_that_holds_a_run(trained):
    folder, _ = trained
    before = files_of(folder)
    message = error_of(*TRAIN, *SHORT, "--out", folder)
    assert f"{folder} already holds a run" in message
    assert f"jaxrl resume {folder}" in message
    assert files_of(folder) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_that_does_not_fit_leaves_nothing_behind(tmp_path, monkeypatch, exists):
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    monkeypatch.setattr(memory, "available", lambda num_devices=1: 1000)
    message = error_of(*TRAIN, *SHORT, "--out", folder)
    assert "1000 bytes are free" in message
    assert "config.num_envs (now 4)" in message
    assert list(files_of(folder)) == (["notes.txt"] if exists else [])
    assert folder.exists() == exists


def test_without_plot_and_evaluations(tmp_path, monkeypatch):
    given = {}

    def fake_fit(algorithm, hparams, **settings):
        given.update(settings)
        results = {"seeds": [], "steps_per_second": None}
        return fit.Result(state=None, iteration=3, stopped=None, results=results)

    monkeypatch.setattr(fit, "fit", fake_fit)
    code, out, _ = call(*TRAIN, *SHORT, "--evaluations", "0", "--no-plot", "--out", tmp_path / "run")
    assert code == 0
    assert given["evaluation"] is None
    assert "curves" not in out


def test_the_default_folder_names_algorithm_environment_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit, "fit", lambda *args, **settings: 1 / 0)
    error_of(*TRAIN)
    made = []
    monkeypatch.setattr(Run, "create", classmethod(lambda cls, path, record: made.append(path) or 1 / 0))
    error_of(*TRAIN)
    assert re.fullmatch(r"runs/ppo-gymnax-CartPole-v1-\d{8}-\d{6}", str(made[0]))


@pytest.mark.parametrize("argv, message", [
    (["pop", "gymnax/CartPole-v1"], "No algorithm is called 'pop'. Did you mean .*ppo"),
    (["ppo", "gymnax/CartPol-v1"], "Unknown environment 'gymnax/CartPol-v1'.*Nearest: gymnax/CartPole-v1"),
    (["ppo", "gymnax/CartPole-v1", "learning_rat=1"], "is called 'learning_rat'. Did you mean learning_rate"),
    (["ppo", "gymnax/CartPole-v1", "env.gravty=1"], "Did you mean env.gravity?"),
    (["ppo", "gymnax/CartPole-v1", "num_envs=1"], "Did you mean config.num_envs?"),
    (["ppo", "gymnax/CartPole-v1", "config.learning_rate=1"], "Did you mean learning_rate?"),
    (["ppo", "gymnax/CartPole-v1", "config.num_envs=x"], "config.num_envs must be an integer; got 'x'"),
    (["ppo", "gymnax/CartPole-v1", "config.schedule=x"], "config.schedule must be one of constant, linear, cosine"),
    (["ppo", "gymnax/CartPole-v1", "config.num_minibatches=7"], "must be divisible by num_minibatches"),
    (["ppo", "gymnax/CartPole-v1", "gamma=2"], "gamma must be from 0.0 to 1.0"),
    (["ppo", "gymnax/CartPole-v1", "gamma=1", "gamma=0"], "gamma is given twice"),
    (["ppo", "gymnax/CartPole-v1", "gamma"], "unknown argument 'gamma'"),
    (["ppo", "gymnax/CartPole-v1", "--env-option", "size=3"], "size"),
    (["ppo", "gymnax/CartPole-v1", "--num-sed", "3"], r"unknown argument '--num-sed' \(did you mean --num-seeds\?\)"),
    (["ppo", "gymnax/CartPole-v1", "--num-seeds", "0"], "--num-seeds: must be at least 1, got '0'"),
    (["ppo", "gymnax/CartPole-v1", "--total-steps", "1.5"], "--total-steps: must be a whole number, got '1.5'"),
    (["ppo", "gymnax/CartPole-v1", "--checkpoint-seconds", "-1"], "must be a number of seconds, got '-1'"),
    (["ppo", "gymnax/CartPole-v1", "--sink", "paper"], "invalid choice: 'paper'"),
    (["ppo"], "arguments are required: ENV"),
])  # fmt: skip
def test_train_errors(argv, message, tmp_path):
    found = error_of("train", *argv, *([] if argv == ["ppo"] else ["--out", tmp_path / "run"]))
    assert re.search(message, found), found
    assert not (tmp_path / "run").exists()


def test_counts():
    assert [options.count(text) for text in ("5e5", "500_000", "12345678901234567")] == [
        500_000,
        500_000,
        12345678901234567,
    ]


# --- resume -----------------------------------------------------------------------------------------------------------


def test_resume_of_a_complete_run_says_so(trained):
    before = files_of(trained[0])
    code, out, _ = call("resume", trained[0])
    assert code == 0
    assert "is complete at 192 steps" in out
    assert files_of(trained[0]) == before


def test_resume_is_as_if_it_had_never_stopped(trained, copy):
    original = Run.open(copy).metrics()
    shutil.rmtree(copy / "checkpoints" / "3")
    (copy / "metrics" / "000002.nc").unlink()
    (copy / "results.json").unlink()
    code, out, err = call("resume", copy, "--no-plot")
    assert code == 0, err
    assert "192 steps 100%" in out
    xarray.testing.assert_identical(Run.open(copy).metrics(), original)
    digests = [(folder / "checkpoints" / "3" / "manifest.json").read_text() for folder in (trained[0], copy)]
    leaves = [json.loads(text)["leaves"] for text in digests]
    assert leaves[0] == leaves[1]


def test_a_longer_run_needs_a_horizon(copy):
    before = files_of(copy)
    message = error_of("resume", copy, "--total-steps", "320")
    assert "config.schedule is linear and ends at horizon = 192 steps" in message
    assert "`horizon=320`" in message
    assert files_of(copy) == before


def test_a_longer_run(copy):
    code, out, err = call("resume", copy, "--total-steps", "320", "horizon=320", "--no-plot")
    assert code == 0, err
    run = Run.open(copy)
    assert run.metrics().sizes["step"] == 5
    assert (run.record["total_steps"], run.record["iterations"], run.record["hyperparams"]["horizon"]) == (320, 5, 320)
    assert set(run.record["changes"][0]["after"]) == {"total_steps", "iterations", "hyperparams"}
    assert "Hyperparameters changed since the checkpoint: horizon." in out


@pytest.mark.parametrize("argv, message", [
    (["config.num_envs=8"], "config.num_envs cannot change in a run"),
    (["learning_rat=8"], "Did you mean learning_rate?"),
    (["--total-steps", "64"], "has done 192 steps already, more than --total-steps 64"),
    (["gamma=2"], "gamma must be from 0.0 to 1.0"),
])  # fmt: skip
def test_resume_errors(copy, argv, message):
    before = files_of(copy)
    assert message in error_of("resume", copy, *argv)
    assert files_of(copy) == before


@pytest.mark.parametrize("command", ["resume", "evaluate", "plot"])
def test_a_folder_that_is_no_run(command, tmp_path):
    assert f"{tmp_path} is not the folder of a run" in error_of(command, tmp_path)
    assert "nowhere is not the folder of a run" in error_of(command, "nowhere")


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_run_made_from_python_is_refused(command, tmp_path):
    Run.create(tmp_path / "run", {"algorithm": "ppo"})
    assert "was not made by `jaxrl train`: its run.json lacks env, " in error_of(command, tmp_path / "run")


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_zero(tmp_path):
    folder = tmp_path / "run"
    running = process(*TRAIN, "--total-steps", "1e8", "--segments", "1e6", "--evaluations", "0", "--out", folder)
    try:
        for line in running.stdout:
            if " steps/s " in line:
                break
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 0, err
    assert not err
    assert "SIGTERM: the segment in flight is finished and the state saved." in out
    assert f"stopped by SIGTERM and saved; continue with: jaxrl resume {folder}" in out
    run = Run.open(folder)
    saved = checkpoint.iterations(run.checkpoints)[-1]
    assert run.metrics()["step"].values[-1] == 64 * saved
    assert (folder / "curves.png").exists()
    assert not json.loads((folder / "results.json").read_text())["finished"]


# --- evaluate, plot, list, help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv, steps", [
    ([], 192),
    (["--checkpoint", "2", "--sampled"], 128),
    (["--checkpoint", "best"], None),
])  # fmt: skip
def test_evaluate(trained, argv, steps):
    before = files_of(trained[0])
    code, out, err = call("evaluate", trained[0], "--episodes", "3", *argv)
    assert code == 0, err
    assert "3 episodes of each seed, " + ("sampled" if "--sampled" in argv else "greedy") in out
    assert steps is None or f"after {steps} steps" in out
    assert re.search(r"^0 .*3/3\s*$", out, re.M)
    assert re.search(r"^1 .*3/3\s*$", out, re.M)
    assert re.search(r"^IQM \d\S*, 95% interval over seeds \S+ to \S+$", out, re.M)
    assert files_of(trained[0]) == before


def test_evaluate_gives_the_same_again_and_other_episodes_for_another_seed(trained):
    first, again, other = (
        call("evaluate", trained[0], "--episodes", "3", "--sampled", "--seed", seed)[1] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_evaluate_names_the_checkpoints_there_are(trained, copy):
    assert "has no checkpoint '9'; there are latest, best, " in error_of("evaluate", copy, "--checkpoint", "9")
    shutil.rmtree(copy / "checkpoints")
    assert "has no checkpoints yet" in error_of("evaluate", copy)


def test_plot(trained, copy, tmp_path, monkeypatch):
    (copy / "curves.png").unlink()
    code, out, _ = call("plot", copy)
    assert code == 0
    assert out == f"{copy}/curves.png\n"
    assert (copy / "curves.png").exists()
    assert call("plot", trained[0], copy, "--out", tmp_path / "both.svg")[0] == 0
    assert "<svg" in (tmp_path / "both.svg").read_text()
    monkeypatch.chdir(tmp_path)
    assert call("plot", trained[0], copy)[1] == "curves.png\n"
    assert "must end in one of" in error_of("plot", copy, "--out", "curves.doc")


def test_the_list_of_algorithms_is_the_registry():
    from jaxrl.algorithms.registry import ALGORITHMS

    assert summaries.algorithm_summaries() == {name: entry.summary for name, entry in ALGORITHMS.items()}
    code, out, _ = call("list", "algorithms")
    assert code == 0
    assert out.split() == list(ALGORITHMS)


def test_list_envs():
    from jaxrl.envs import list_envs

    assert call("list", "envs", "gymnax")[1].split() == list(list_envs("gymnax"))
    assert set(list_envs("probe")) < set(call("list", "envs")[1].split())


def test_list_for_a_terminal_names_suites_and_how_to_install_them(monkeypatch):
    monkeypatch.setattr(arguments, "is_terminal", lambda: True)
    out = call("list", "envs")[1]
    assert re.search(r"^gymnax  .*classic control.*\(\d+\)", out, re.M)
    assert "gymnax/CartPole-v1" in out
    from jaxrl.envs import registry

    for name, suite in registry.SUITES.items():
        if not registry.installed(name):
            assert f'not installed: pip install "jaxrl[{suite.extra}]"' in out
    assert "proximal policy optimization" in call("list", "algorithms")[1]


@pytest.mark.parametrize("argv, message", [
    (["list", "envs", "gym"], "No suite is called 'gym'; there are gymnax, "),
    (["list", "algorithms", "x"], "takes no further argument"),
    (["list"], "arguments are required: what"),
    (["trian"], "no command is called 'trian'; did you mean `jaxrl train`?"),
    (["xyz"], "no command is called 'xyz'; there are train, sweep, "),
    (["plot", "a=b", "--points", "x"], "--points: must be a whole number"),
    (["train", "pop", "--help"], "No algorithm is called 'pop'"),
])  # fmt: skip
def test_other_errors(argv, message):
    assert message in error_of(*argv)


@pytest.mark.parametrize("command", [None, *arguments.COMMANDS])
def test_help(command):
    code, out, err = call(*([command] if command else []), "--help")
    assert (code, err) == (0, "")
    assert "usage: jaxrl" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert call() == call("--help")


def test_version():
    assert call("--version")[1] == f"jaxrl {arguments.__version__}\n"


def test_help_of_an_algorithm_has_every_setting_with_its_default_and_meaning():
    import dataclasses

    from jaxrl.algorithms import ppo

    code, out, err = call("train", "ppo", "gymnax/CartPole-v1", "--help")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    text = " ".join(out.split())
    for field in dataclasses.fields(ppo.Config):
        if field.name == "network":
            assert "config.network.hidden 64,64 widths of the torsos' dense layers" in text
            continue
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        default = ",".join(default) if isinstance(default, tuple) else default
        meaning = attributes(ppo.Config)[field.name].rstrip(".")
        assert " ".join(f"config.{field.name} {default} {meaning}".split()) in text
    for name, leaf in ppo._LEAVES.items():
        shown = "total steps" if name == "horizon" else f"{leaf.default:.5g}"
        assert f" {name} {shown} {attributes(ppo.Hyperparams)[name]}" in text
    assert "objective.clip 0.2 ε, how far the ratio may move from 1" in text
    assert "env.gravity 9.8 " in text
    assert "--total-steps N" in text


def test_help_of_an_algorithm_without_environment_says_how_to_see_its_parameters():
    out = call("train", "ppo", "--help")[1]
    assert "`jaxrl train ppo ENV --help` lists its parameters" in out
    assert "\n  env." not in out


@pytest.mark.parametrize(
    "argv, code", [(["--help"], 0), (["train", "--help"], 0), (["list", "algorithms"], 0), (["train", "ppo", "--x"], 2)]
)
def test_what_needs_no_jax_does_not_import_it(argv, code):
    script = (
        f"import sys; from jaxrl.cli import main; print(main({argv!r}), {{'jax', 'rich', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"{code} set()"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(monkeypatch):
    def broken(options):
        raise RuntimeError("a\nb")

    monkeypatch.delenv("JAXRL_DEBUG", raising=False)
    monkeypatch.setattr(lists, "list_names", broken)
    assert "RuntimeError: a b (unexpected: JAXRL_DEBUG=1 shows where)" in error_of("list", "envs")
    monkeypatch.setenv("JAXRL_DEBUG", "1")
    with pytest.raises(RuntimeError):
        call("list", "envs")


def test_a_second_interrupt_ends_with_130(monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lists, "list_names", interrupted)
    assert call("list", "envs")[::2] == (130, "jaxrl: interrupted\n")


def test_a_reader_that_has_seen_enough_is_no_error():
    running = process("list", "envs", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    running.stdout.close()
    assert running.wait(timeout=120) == 0
    assert not running.stderr.read()
    running.stderr.close()


def test_a_run_is_diagnosed_and_resumed_so(tmp_path):
    """The names stand in the record, the metrics in the log; `resume` and `evaluate` know the state."""
    folder, few = tmp_path / "run", ["--segments", "1", "--evaluations", "0", "--no-plot", "--total-steps"]
    train = ["train", "ppo", "probe/Credit", *SMALL, "--num-seeds", "2", *few, "64", "--diagnose"]
    assert call(*train, "churn,dormant", "--out", folder)[0] == 0
    assert json.loads((folder / "run.json").read_text())["diagnose"] == ["churn", "dormant"]
    assert call("resume", folder, "--total-steps", "128", "horizon=128", "--no-plot")[0] == 0
    log = (folder / "log.jsonl").read_text()
    assert log.count("probe/churn") > 1
    assert "probe/rank" not in log
    assert call("evaluate", folder, "--episodes", "2")[0] == 0
    assert "Did you mean churn?" in error_of(*train, "chrun", "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()
