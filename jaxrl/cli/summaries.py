"""Names and summaries of the algorithms, without importing them."""

import ast
import importlib.util
from pathlib import Path


def algorithm_summaries() -> dict[str, str]:
    """Name and summary of each algorithm, read from the registry's source, since importing it would import jax."""
    spec = importlib.util.find_spec("jaxrl")
    folder = spec and next(iter(spec.submodule_search_locations or []), None)
    tree = ast.parse((Path(folder or ".") / "algorithms" / "registry.py").read_text())
    found: dict[str, str] = {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ALGORITHMS"):
            continue
        entries = node.value if isinstance(node.value, ast.Dict) else ast.Dict([], [])
        for key, value in zip(entries.keys, entries.values, strict=True):
            texts = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant)]
            found[ast.literal_eval(key or ast.Constant(""))] = next(text for text in texts if isinstance(text, str))
    return found
