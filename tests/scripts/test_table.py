"""The table of algorithms and environments: what a cell holds, that files are kept, that the page is of the figures."""

import json
import sys

import pytest
from loading import load

from jaxrl.algorithms.registry import ALGORITHMS

table = load("table")

CELL = {"returns": [1.0, 2.0, 3.0, 4.0], "env_steps": 1000, "seconds": 1.0}


def test_the_page_is_of_the_figures_in_the_file():
    assert table.PAGE.read_text() == table.render(table.load())


def test_a_cell_is_the_interquartile_mean_with_its_interval():
    page = table.render({"ppo gymnax/CartPole-v1": CELL})
    section = page[page.index("## gymnax/CartPole-v1") :]
    row = next(line for line in section.splitlines() if line.startswith("| ppo"))
    assert row.startswith("| ppo | 2.50 [")
    assert row.endswith("| 1,000 |")
    assert "(1 seeds finished no episode)" in table.figure([1.0, 2.0, float("nan"), 3.0])


def test_what_was_not_run_is_an_empty_cell():
    page = table.render({"dqn gymnax/Acrobot-v1": CELL, "trpo gymnax/CartPole-v1": CELL})
    head, line, *rows = (line.split("|")[1:-1] for line in page[: page.index("## ")].splitlines() if line[:1] == "|")
    assert len(head) == len(line) == 1 + len(table.TASKS)
    assert [title.strip() for title in head[:3]] == ["algorithm", "CartPole", "Acrobot"]
    found = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert [*found][:3] == ["trpo", "dqn", "ppo"], "those that were run first, in the registry's order"
    assert set(found) == set(ALGORITHMS) - set(table.NOT_HERE)
    assert found["trpo"] == ["2.50"] + [""] * 15
    assert found["dqn"] == ["", "2.50"] + [""] * 14
    assert not any(found["ppo"])
    assert page.count("Nothing was run here.") == 14


def test_notes_are_of_cells(monkeypatch):
    dqn, trpo = "dqn gymnax/Acrobot-v1", "trpo gymnax/Acrobot-v1"
    monkeypatch.setattr(table, "NOTES", {dqn: "Known.", trpo: "Known.", "ppo gymnax/Acrobot-v1": "Not run."})
    page = table.render({dqn: CELL, trpo: CELL})
    assert "\n`trpo`, `dqn`: Known.\n" in page
    assert "Not run." not in page
    for key in ("dqm gymnax/Acrobot-v1", "dqn gymnax/Acrobot", "ccn gymnax/Acrobot-v1"):
        with pytest.raises(ValueError, match="cell must be of an algorithm and an environment"):
            table.render({key: CELL})
        monkeypatch.setattr(table, "NOTES", {key: "A wrong name."})
        with pytest.raises(ValueError, match="note must be of an algorithm and an environment"):
            table.render({})
        monkeypatch.setattr(table, "NOTES", {})


def test_only_what_is_registered_is_left_out():
    assert set(table.NOT_HERE) < set(ALGORITHMS)


def test_a_cell_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(table.jax.config, "update", lambda *_: None)
    ran = []
    monkeypatch.setattr(table, "cell", lambda *arguments: ran.append(arguments) or CELL)
    arguments = ["run", "--algorithms", "ppo", "--environments", "gymnax/CartPole-v1", "gymnax/Acrobot-v1"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["table.py", *arguments])
        table.main()
    assert [environment for _, environment, _ in ran] == ["gymnax/CartPole-v1", "gymnax/Acrobot-v1"]
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
    monkeypatch.setattr(sys, "argv", ["table.py", *arguments, "--again"])
    table.main()
    assert len(ran) == 4


def test_settings_of_a_task_reach_the_algorithms_that_have_them():
    member, hparams, num_steps = table.build("ppo", "gymnax/Pendulum-v1")
    assert member.config.normalize_rewards
    assert float(hparams.horizon) == num_steps * member.env_steps
    member, _, _ = table.build("ppo", "gymnax/Breakout-MinAtar")
    assert member.config.network.activation == "relu"
    with pytest.raises(ValueError, match="stream_q"):
        table.build("stream_q", "gymnax/Pendulum-v1")
