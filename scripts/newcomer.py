"""A newcomer's hour: takes each command and each program of README.md in order, in a fresh clone, with no other step.

    scripts/newcomer.py FOLDER                 clones the repository into FOLDER/clone and goes through the text
    scripts/newcomer.py FOLDER --notebooks     runs the notebooks afterwards, as the scripts that they are too
    scripts/newcomer.py FOLDER --working-tree  takes the files as they are here instead of the last commit

Lines of blocks without a language are given to bash as they stand; Python blocks are one program, run at the place of
the last one by the environment that the first command has made. Each step is printed with its time; the first one that
fails ends the hour, with its output.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# What would tell a fresh clone of the environments and caches that are here.
_FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH", "JAXRL_VENV", "JAXRL_LOCK", "JAXRL_PYTHON", "JAX_COMPILATION_CACHE_DIR")


class Step(NamedTuple):
    """One step of the text.

    Attributes:
      command: what bash is given.
      program: given to the command on its standard input.
    """

    command: str
    program: str = ""


def steps_of(text: str) -> list[Step]:
    """The steps of a page in order."""
    steps: list[Step] = []
    programs: list[str] = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    last = max((i for i, (language, _) in enumerate(blocks) if language == "python"), default=-1)
    for i, (language, block) in enumerate(blocks):
        if language == "python":
            programs.append(block)
            if i == last:
                steps.append(Step(".venv/bin/python -", "\n".join(programs)))
        elif not language:
            lines = block.replace("\\\n", " ").splitlines()
            steps += [Step(line) for line in lines if line.strip() and not line.startswith("#")]
    return steps


def fresh_clone(folder: Path, working_tree: bool) -> Path:
    """The repository in a folder of its own."""
    target = folder / "clone"
    if not working_tree:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(target)], check=True)
        return target
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def take(step: Step, folder: Path) -> tuple[bool, float, str]:
    """Whether a step succeeded, the seconds it took, and its output."""
    began = time.perf_counter()
    surroundings = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=surroundings,
        input=step.program,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, time.perf_counter() - began, done.stdout


def main(argv: list[str] | None = None) -> int:
    """Takes all steps; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder")
    parser.add_argument("--notebooks", action="store_true", help="run the notebooks as well")
    parser.add_argument("--working-tree", action="store_true", help="the files as they are, not the last commit")
    options = parser.parse_args(argv)
    clone = fresh_clone(options.folder.resolve(), options.working_tree)
    steps = steps_of((clone / "README.md").read_text())
    if options.notebooks:
        steps += [
            Step(f".venv/bin/python {path.relative_to(clone)}") for path in sorted((clone / "notebooks").glob("*.py"))
        ]
    total = 0.0
    for step in steps:
        succeeded, seconds, output = take(step, clone)
        total += seconds
        print(f"{seconds:8.1f} s  {'' if succeeded else 'FAILED: '}{step.command}", flush=True)
        if not succeeded:
            print(output)
            return 1
    print(f"{total:8.1f} s  {len(steps)} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
