"""What the README and the docs show works: Python blocks run in order, in one namespace a file, command lines are
understood, scripts exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from jaxrl.cli import arguments, build

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def shown(text):
    """Command lines in fenced blocks that are not Python, and between backticks in the text, as lists of words."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [
        line for language, block in fences if language != "python" for line in block.replace("\\\n", " ").split("\n")
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"(python )?scripts/|jaxrl ", line)]
    return [words[1:] if words[0] == "python" else words for words in found]


def check(words):
    """Parses one command as the program would, and builds what a training run would train, without compiling it."""
    if words[0] not in ("jaxrl", "scripts/run"):
        assert (ROOT / words[0]).is_file()
        return
    if len(words) == 2:
        assert words[1] in arguments.COMMANDS
        return
    command = arguments.parse(words[1:])
    if command is None:
        return
    if command.function == "algorithm_help":
        build.find_algorithm(command.options.algorithm)
    elif command.function == "train":
        build.from_options(command.options)


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page.read_text())], ids=lambda page: page.name)
def test_command_lines_are_understood(page):
    for words in shown(page.read_text()):
        check(words)


def test_the_commands_of_the_readme_are_found():
    commands = {words[1] for words in shown((ROOT / "README.md").read_text()) if words[0] == "scripts/run"}
    assert {"train", "resume", "evaluate", "plot", "list"} <= commands


@pytest.mark.parametrize(
    "line, message",
    [
        ("scripts/run train ppo gymnax/CartPole-v1 --num-sedes 3", "--num-sedes"),
        ("scripts/run train ppo gymnax/CartPole-v1 learning_rat=1e-3", "learning_rat"),
        ("scripts/run train ppo gymnax/CartPole-v1 config.num_env=4", "num_env"),
        ("scripts/run train ppo gymnax/CartPole-v1 config.network.activation=rely", "rely"),
        ("scripts/run train pppo --help", "pppo"),
        ("jaxrl evaluate runs/a --episode 3", "--episode"),
    ],
)
def test_a_planted_mistake_is_found(line, message):
    (words,) = shown(f"Text.\n\n```\n{line}  # why\n```\n")
    with pytest.raises(ValueError, match=message):
        check(words)
    assert shown(f"In the text `{line}` too.") == [words]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    namespace = {"__name__": "readme"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
