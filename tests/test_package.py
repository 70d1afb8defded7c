"""The package as it is installed: what an import costs, what a wheel holds, whether it works where nothing else is."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import jaxrl

ROOT = Path(__file__).parent.parent
# Imported when they are used: figures, labelled arrays, checkpoints, suites.
LATE = ("matplotlib", "xarray", "pandas", "scipy", "orbax", "brax", "mujoco", "gymnax", "PIL", "wandb", "ray")
FIRST_USE = """
import jaxrl
from jaxrl.ops import trees
jaxrl.make_env("probe/Credit"), jaxrl.ppo, jaxrl.train, jaxrl.advance, jaxrl.evaluate, jaxrl.population, jaxrl.evolve
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout


def test_a_first_use_imports_nothing_that_it_does_not_need():
    code = FIRST_USE + f"import sys; print(*({set(LATE)!r} & set(sys.modules)))"
    assert python(code).split() == []


def test_versions_agree():
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == jaxrl.__version__
    assert f"## {jaxrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_import_time():
    """What a first use takes besides jax, flax and optax: less than 1.5 seconds of the processor."""
    code = "import time, jax, flax.linen, flax.struct, optax, jaxtyping\nbegan = time.process_time()\n" + FIRST_USE
    times = [float(python(code + "print(time.process_time() - began)")) for _ in range(3)]
    assert min(times) < 1.5, times


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    (path,) = folder.glob("jaxrl-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = {f"jaxrl/{path.relative_to(ROOT / 'jaxrl').as_posix()}" for path in (ROOT / "jaxrl").rglob("*.py")}
    assert sources <= set(names)
    assert "jaxrl/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"jaxrl", f"jaxrl-{jaxrl.__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    """With the packages of this environment, whose copy of jaxrl is not among them: nothing is downloaded."""
    venv.create(tmp_path / "venv", with_pip=False)
    bin_folder = tmp_path / "venv" / "bin"
    target = next((tmp_path / "venv" / "lib").glob("python3.*/site-packages"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        bin_folder / "python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run([str(part) for part in install], check=True, capture_output=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    # A path file's folder may have path files of its own, that of the editable jaxrl for instance; they are not read.
    (target / "packages.pth").write_text(f"{here}\n")
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(target) in run(bin_folder / "python", "-c", "import jaxrl; print(jaxrl.__file__)")
    assert run(bin_folder / "jaxrl", "--version").split() == ["jaxrl", jaxrl.__version__]
    assert "ppo" in run(bin_folder / "jaxrl", "list", "algorithms").split()
    small = ["--total-steps", "512", "--num-seeds", "2", "--segments", "2", "--evaluations", "1"]
    run(bin_folder / "jaxrl", "train", "ppo", "gymnax/CartPole-v1", *small, "--out", "run")
    assert (tmp_path / "run" / "results.json").exists()


def test_extras_are_named_where_they_are_needed():
    """A suite that is not installed names its extra; each of these is one."""
    from jaxrl.envs import SUITES

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {suite.extra for suite in SUITES.values() if suite.extra} <= set(extras)
