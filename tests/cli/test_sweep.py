"""`jaxrl sweep` and what it prints; the rest is tested through `jaxrl.sweeps`."""

import pytest

from jaxrl.cli import main, options
from jaxrl.sweeps import results

TINY = ["config.num_envs=2", "config.num_steps=8"]
LEAST = ["--num-seeds", "2", "--total-steps", "32", "--points", "2", "--eval-episodes", "1"]


def test_a_sweep_from_the_command_line(tmp_path, capsys):
    folder = str(tmp_path / "sweep")
    over = ["learning_rate=log(1e-4,1e-2,2)", "objective.clip=uniform(0.1,0.3)", "config.network.hidden=(4,),(8,4)"]
    command = ["sweep", "ppo", "probe/Policy", *TINY, "--over", *over, "--samples", "2", *LEAST, "--out", folder]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "16 members: 8 settings x 2 seeds, each of 32 steps" in printed
    assert "2 compiled programs, 2 batches" in printed
    assert "(num_envs = 2, num_steps = 8, network.hidden = (8, 4)); 8 members in 1 batch" in printed
    assert "score" in printed
    data = results.read_results(folder)
    assert dict(data["score"].sizes) == {
        "algorithm": 1,
        "env": 1,
        "learning_rate": 2,
        "config.network.hidden": 2,
        "sample": 2,
        "seed": 2,
    }
    assert data["config.network.hidden"].values.tolist() == ["(4,)", "(8, 4)"]
    assert data["objective.clip"].dims == ("sample",)
    # The same command finds everything done; so does resume.
    assert main(command) == 0
    assert main(["resume", folder]) == 0
    assert results.read_results(folder).identical(data)
    # What takes a run says what takes a sweep.
    capsys.readouterr()
    for command in ("plot", "evaluate"):
        assert main([command, folder]) == 2
        assert f"`jaxrl report {folder}`" in capsys.readouterr().err


def test_a_table(tmp_path, capsys):
    table = tmp_path / "settings.csv"
    table.write_text("learning_rate,gamma\n1e-3,0.9\n1e-2,\n")
    folder = str(tmp_path / "sweep")
    assert main(["sweep", "ppo", "probe/Policy", *TINY, "--table", str(table), *LEAST, "--out", folder]) == 0
    data = results.read_results(folder)
    assert data["learning_rate"].dims == ("setting",)
    assert data["gamma"].values.tolist() == [0.9, pytest.approx(0.99)]
    capsys.readouterr()


def test_the_plan_alone_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "ppo", "probe/Policy", *TINY, "--over", "gamma=0.9,0.99", *LEAST, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "4 members: 2 settings x 2 seeds" in printed
    assert " s to compile, " in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--over", "gama=0.9"], "No hyperparameter is called 'gama'. Did you mean gamma"),
        (["--over", "config.num_env=1"], "Did you mean config.num_envs"),
        (["--over", "gamma=lgo(0.1,0.9,3)"], "lgo"),
        (["--over", "learning_rate=log(0,1,3)"], "log"),
        (["--over", "gamma="], "gamma"),
        (["--over", "gamma=0.9,1.5"], "gamma must be from 0.0 to 1.0"),
        (["--over", "config.num_minibatches=3"], "must be divisible by num_minibatches"),
        (["--over", "gamma=uniform(0.9,0.99)"], "num_samples"),
        (["--over", "gamma=0.9", "--samples", "3"], "num_samples"),
        (["--over", "gamma=0.9", "--where", "gamma > 1"], "No setting of the space fulfills"),
        (["--table", "nowhere.csv"], "nowhere.csv"),
        (["--over", "gamma=0.9", "--shard", "3/3"], "must be I/N with 0 <= I < N"),
        (["--over", "gamma=0.9", "--num-seeds", "10000000"], "at least 10,000,000 members"),
        (["learning_rate=0.1", "--over", "learning_rate=0.1"], "both fixed and swept"),
    ],
)
def test_bad_arguments_are_refused(more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "ppo", "probe/Policy", *more]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_cannot_be_made_longer(tmp_path, capsys):
    folder = str(tmp_path / "sweep")
    assert main(["sweep", "ppo", "probe/Policy", *TINY, "--over", "gamma=0.9", *LEAST, "--out", folder]) == 0
    assert main(["resume", folder, "--total-steps", "64"]) == 2
    assert "is a sweep, whose members cannot change" in capsys.readouterr().err
    assert main(["resume", folder, "gamma=0.5"]) == 2


def test_shares():
    assert options.share("2/3") == (2, 3)


def test_report_and_compare(tmp_path, capsys):
    """Of a sweep and of a run, side by side."""
    folder, run = str(tmp_path / "sweep"), str(tmp_path / "run")
    assert main(["sweep", "ppo", "probe/Policy", *TINY, "--over", "gamma=0.9,0.99", *LEAST, "--out", folder]) == 0
    short = ["--num-seeds", "3", "--total-steps", "64", "--eval-episodes", "2", "--no-plot"]
    assert main(["train", "ppo", "probe/Policy", *TINY, *short, "--out", run]) == 0
    capsys.readouterr()
    assert main(["report", folder, run, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "2 settings" in page
    assert "probe/Policy" in page
    assert main(["report", folder]) == 0
    assert (tmp_path / "sweep" / "report.html").exists()
    assert main(["compare", run, run]) == 0
    assert "probe/Policy" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert main(["report", folder, "--out", "page.pdf"]) == 2
