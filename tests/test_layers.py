"""Imports only point down, third-party suites are imported in their adapters only, and no algorithm imports another."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxrl"

# Lower first. A module may import its own layer and every layer before it.
LAYERS = (
    ("_version", "names", "config_fields", "display"),
    ("spaces",),
    ("types",),
    ("validation",),
    ("ops",),
    ("networks", "envs", "wrappers", "buffers", "datasets", "values", "ensembles", "archives", "strategies"),
    (
        "objectives",
        "estimators",
        "rollout",
        "alternating",
        "chunks",
        "replaying",
        "acting",
        "surrogate",
        "diagnostics",
        "diagnosing",
        "evaluation",
        "levels",
        "training",
        "testing",
        "checkpoint",
        "runs",
        "programs",
        "progress",
        "fit",
        "sinks",
        "memory",
        "processes",
    ),
    ("algorithms",),
    ("meta",),
    ("sweeps", "analysis"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SUITES = {
    "gymnax",
    "brax",
    "mujoco",
    "gymnasium",
    "mujoco_playground",
    "navix",
    "craftax",
    "xminigrid",
    "jumanji",
    "pgx",
}


def imports(source: str) -> list[str]:
    """Dotted names of every module that a source imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def violations(path: str, source: str) -> list[str]:
    """What a file of the package imports against the rules."""
    parts = path.removesuffix(".py").split("/")
    layer = parts[0]
    if layer == "__init__":
        return []
    problems = [] if layer in RANK else [f"{path}: {layer!r} is in no layer"]
    for name in imports(source):
        top, _, rest = name.partition(".")
        if top == "jaxrl":
            target = rest.split(".")[0]
            if target in RANK and layer in RANK and RANK[target] > RANK[layer]:
                problems.append(f"{path}: {layer} imports {target}, which is above it")
            inner = rest.split(".")
            if (
                layer == "algorithms"
                and target == "algorithms"
                and parts[-1] not in ("registry", "__init__")
                and inner[1:2] != [parts[-1]]
            ):
                problems.append(f"{path}: imports another algorithm ({name})")
        elif top in SUITES and layer != "envs":
            problems.append(f"{path}: imports the suite {top} outside of jaxrl.envs")
    return problems


def test_layers():
    problems = [
        p
        for file in sorted(PACKAGE.rglob("*.py"))
        for p in violations(str(file.relative_to(PACKAGE)), file.read_text())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "path, source",
    [
        ("ops/returns.py", "from jaxrl.networks import actor_critic"),
        ("train.py", "def f():\n    import jaxrl.meta.population"),
        ("algorithms/dqn.py", "from jaxrl.algorithms.ppo import Config"),
        ("rollout.py", "import gymnax"),
        ("newlayer/x.py", "import os"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert violations(path, source)


def test_allowed_imports_pass():
    assert not violations("algorithms/ppo.py", "from jaxrl import rollout\nfrom jaxrl.ops import returns\nimport jax")
