"""`jaxrl plot`: the formats that it writes, and what the overview says of it."""

import pytest

from jaxrl import cli


@pytest.mark.parametrize("drawn", ["run", "rule.npz"])
@pytest.mark.parametrize("out", ["x.txt", "x.jpg", "x"])
def test_formats_are_those_of_the_help(tmp_path, capsys, drawn, out):
    assert cli.main(["plot", "--help"]) == 0
    assert "png, pdf or svg" in capsys.readouterr().out
    # Before anything is read or computed: neither is there.
    assert cli.main(["plot", str(tmp_path / drawn), "--out", out]) == 2
    assert capsys.readouterr().err == f"jaxrl: error: --out {out} must end in one of png, pdf, svg.\n"


def test_the_overview_names_what_is_drawn(capsys):
    assert cli.main(["--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["plot"]]
    assert all(word in line for word in ("learning curves", "searches", "rule"))
    assert len(line) <= 100
