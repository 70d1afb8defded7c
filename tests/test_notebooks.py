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
}


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


@pytest.mark.parametrize("name", SMALL)
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
