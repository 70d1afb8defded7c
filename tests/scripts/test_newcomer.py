"""A newcomer finds what the README promises, in a fresh clone, by its commands alone."""

import pytest
from loading import load

TEXT = """
Words with `code`.

```
first --one   # why
# a remark

second \\
  --two
```

```python
a = 1
```

```text
not a command
```

```python
b = a
```

```
third
```
"""


def test_steps_are_taken_in_the_order_of_the_text():
    newcomer = load("newcomer")
    commands = [step.command for step in newcomer.steps_of(TEXT)]
    assert [" ".join(command.split()) for command in commands] == [
        "first --one # why",
        "second --two",
        ".venv/bin/python -",
        "third",
    ]
    assert newcomer.steps_of(TEXT)[2].program == "a = 1\n\nb = a\n"


def test_a_step_that_fails_ends_the_hour(tmp_path, monkeypatch, capsys):
    newcomer = load("newcomer")
    readme = "```\necho one > file\ncat file missing\necho two\n```\n"

    def clone(folder, working_tree):
        (folder / "README.md").write_text(readme)
        return folder

    monkeypatch.setattr(newcomer, "fresh_clone", clone)
    assert newcomer.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAILED: cat file missing" in out
    assert "two" not in out
    readme = readme.replace(" missing", "")
    assert newcomer.main([str(tmp_path)]) == 0
    assert "3 steps" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_newcomers_hour(tmp_path, capsys):
    """Needs what a newcomer needs: the packages' index, or a cache of it."""
    code = load("newcomer").main([str(tmp_path), "--working-tree"])
    assert code == 0, capsys.readouterr().out
