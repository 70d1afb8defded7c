"""Gathers what the documentation site is built from, in the layout of the repository.

    scripts/documentation.py FOLDER    fills FOLDER/pages and writes FOLDER/mkdocs.yml, for `mkdocs build`

README.md, the pages of docs/, the READMEs of experiments/ and the notebooks (their scripts, as text and code) keep
their places, so that their links hold. A page for each public module is made from its docstrings by `reference.py`.
"""

import re
import shutil
import sys
from pathlib import Path

import reference

ROOT = Path(__file__).parent.parent
_ASSETS = (".png", ".svg", ".jpg", ".gif", ".css")


def notebook_page(source: str) -> str:
    """A notebook's script in the percent format as Markdown."""
    body = source.split("\n# ---\n", 1)[1] if source.startswith("# ---\n") else source
    parts = []
    for cell in re.split(r"^# %%", body, flags=re.MULTILINE)[1:]:
        kind, _, content = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in content.strip().splitlines()))
        elif content.strip():
            parts.append(f"```python\n{content.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def gather(pages: Path) -> None:
    """Fills a folder with all pages of the site and their pictures."""
    pages.mkdir(parents=True)
    sources = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    sources += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "experiments").glob("*/README.md"))
    assets = [
        path for folder in ("docs", "experiments") for path in (ROOT / folder).rglob("*") if path.suffix in _ASSETS
    ]
    for source in [*sources, *assets]:
        target = pages / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            # The site has the notebooks as pages.
            target.write_text(re.sub(r"(\]\([^)\s]*notebooks/\w+)\.ipynb", r"\1.md", source.read_text()))
        else:
            shutil.copyfile(source, target)
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        target = pages / "notebooks" / f"{source.stem}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(notebook_page(source.read_text()))
    reference.write(ROOT / "jaxrl", pages / "reference")


def main() -> None:
    """Writes the pages and a configuration that reads them."""
    folder = Path(sys.argv[1]).resolve()
    gather(folder / "pages")
    inherited = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {folder / 'pages'}\nsite_dir: {folder / 'site'}\n"
    (folder / "mkdocs.yml").write_text(inherited)


if __name__ == "__main__":
    main()
