"""The reference: a page for each public module, from its source alone, so that nothing is imported.

    scripts/reference.py FOLDER    writes index.md and one page a module into FOLDER

A module is public if no part of its name begins with an underscore, and so is a function, class or method. Docstrings
are Google style: sections of entries become lists, examples and indented equations become code.
"""

import ast
import re
import sys
import textwrap
from pathlib import Path

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example|Examples|Raises \([^)]*\)):\s*$")
_ENTRY = re.compile(r"(\*{0,2}[\w.,* ]+?)(?: \([^)]*\))?: (.*)", re.DOTALL)


def modules(package: Path) -> dict[str, Path]:
    """Dotted names of a package's public modules, with their files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return found


def markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown."""
    lines, parts = textwrap.dedent(docstring).strip().splitlines(), []
    start = 0
    while start < len(lines):
        match = _SECTION.fullmatch(lines[start])
        end = next((i for i in range(start + 1, len(lines)) if _SECTION.fullmatch(lines[i])), len(lines))
        if match:
            parts.append(_section(match[1], textwrap.dedent("\n".join(lines[start + 1 : end])).strip("\n")))
        else:
            parts.append(_prose("\n".join(lines[start:end])))
        start = end
    return "\n\n".join(part for part in parts if part)


def _section(title: str, text: str) -> str:
    if title.startswith("Example"):
        return f"```python\n{text.strip()}\n```"
    # An entry begins where the indentation is least; what is deeper continues it.
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?! )", text.strip())]
    if title == "Returns":
        return f"*Returns:* {' '.join(entries)}"
    items = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        items.append(f"- **{_literal(match[1])}**: {match[2]}" if match else f"- {entry}")
    return f"*{title}:*\n\n" + "\n".join(items)


def _literal(name: str) -> str:
    return name.replace("*", "\\*")


def _prose(text: str) -> str:
    """Paragraphs as they are, indented blocks and tables of equals signs as code."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        is_code = all(line.startswith("    ") for line in block.splitlines()) or block.startswith(("===", ">>> "))
        parts.append(f"```text\n{textwrap.dedent(block)}\n```" if is_code else block)
    return "\n\n".join(parts)


def _signature(node: ast.FunctionDef) -> str:
    """A function's signature, on one line if it is short, otherwise one argument a line."""
    arguments, returns = ast.unparse(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({arguments}){returns}"
    if len(line) <= 100:
        return line
    split = [ast.unparse(arg) for arg in _each_argument(node.args)]
    return f"{node.name}(\n" + "".join(f"    {part},\n" for part in split) + f"){returns}"


def _each_argument(arguments: ast.arguments) -> list[ast.arguments]:
    """One record for each argument, so that each is written with its default."""
    empty = {
        "posonlyargs": [],
        "args": [],
        "vararg": None,
        "kwonlyargs": [],
        "kw_defaults": [],
        "kwarg": None,
        "defaults": [],
    }
    make = lambda **fields: ast.arguments(**{**empty, **fields})
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    found = [
        make(args=[arg], defaults=[arguments.defaults[i - first]] if i >= first else [])
        for i, arg in enumerate(positional)
    ]
    if arguments.vararg or arguments.kwonlyargs:
        found.append(make(vararg=arguments.vararg or ast.arg("")))
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(make(args=[arg], defaults=[default] if default else []))
    return [*found, make(kwarg=arguments.kwarg)] if arguments.kwarg else found


def _entry(node: ast.stmt, owner: str, level: int) -> list[str]:
    """The Markdown of a function or class and of its public methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return []
    text = ast.get_docstring(node)
    if text is None:
        return []
    name = f"{owner}{node.name}"
    parts = [f"{'#' * level} `{name}`"]
    if isinstance(node, ast.FunctionDef):
        parts.append(f"```python\n{_signature(node)}\n```")
    parts.append(markdown(text))
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            parts += _entry(inner, f"{name}.", level + 1)
    return parts


def page(name: str, source: str) -> str:
    """The page of one module."""
    tree = ast.parse(source)
    parts = [f"# {name}", markdown(ast.get_docstring(tree) or "")]
    for node in tree.body:
        parts += _entry(node, "", 2)
    return "\n\n".join(part for part in parts if part) + "\n"


def write(package: Path, folder: Path) -> None:
    """Writes the index and all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Reference", "", "All public modules, from their docstrings.", "", "| module | what |", "|---|---|"]
    for name, path in modules(package).items():
        source = path.read_text()
        (folder / f"{name}.md").write_text(page(name, source))
        summary = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| [{name}]({name}.md) | {summary} |")
    (folder / "index.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(__file__).parent.parent / "jaxrl", Path(sys.argv[1]))
