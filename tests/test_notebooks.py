"""The notebooks run from top to bottom with small settings; their two forms agree and hold no outputs."""

from pathlib import Path

import jupytext
import matplotlib
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SMALL = {
    "1_first_run": {"num_seeds": 2, "num_iterations": 4},
    "2_sweeps": {"num_seeds": 4, "total_steps": 2_048, "num_rates": 2},
    "3_algorithm": {"num_seeds": 2, "num_iterations": 20},
    "4_objectives": {"num_iterations": 4, "num_candidates": 4, "num_rounds": 2, "num_seeds": 2},
    "5_look_inside": {"num_seeds": 2, "num_iterations": 2, "num_moments": 2, "num_grid_iterations": 1, "bodies": ()},
    "6_runs": {"num_seeds": 2, "total_steps": 512, "settings": ["config.num_steps=16", "config.num_epochs=1"]},
    "7_own_parts": {"num_seeds": 2, "num_iterations": 8},
}
# Whose parts the tests of the command line, of networks and of environments go through anyway.
LONG = ("6_runs", "7_own_parts")


def notebook(name):
    return jupytext.read(FOLDER / f"{name}.py")


def test_all_are_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(SMALL)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_both_forms_agree_and_hold_no_outputs(name):
    stored = jupytext.read(FOLDER / f"{name}.ipynb")
    kind = lambda cell: (cell.cell_type, cell.source, cell.metadata.get("tags", []))
    assert [kind(cell) for cell in stored.cells] == [kind(cell) for cell in notebook(name).cells], (
        f"run `jupytext --sync notebooks/{name}.py`"
    )
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SMALL])
def test_runs_with_small_settings(name):
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(notebook(name).cells):
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, f"{name}, cell {number}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", []):
            assert set(SMALL[name]) <= set(namespace)
            namespace |= SMALL[name]
    matplotlib.pyplot.close("all")
