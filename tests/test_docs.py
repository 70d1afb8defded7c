"""The documentation as a whole: links and their anchors, the site's navigation, the pages made by scripts."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scripts():
    """Imports a script; its folder is on the path only while it is imported, since it would hide `profile`."""

    def load(name):
        sys.path.insert(0, str(ROOT / "scripts"))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(ROOT / "scripts"))

    return load


@pytest.fixture(scope="module")
def site(scripts, tmp_path_factory):
    """All pages that the site is built from."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    scripts("documentation").gather(folder)
    return folder


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def broken_links(pages):
    """`page: target` of each link within a folder of pages that leads nowhere."""
    found = []
    for page in sorted(pages.rglob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
            path, _, anchor = target.partition("#")
            if path.startswith(("http", "mailto")):
                continue
            goal = page.parent / path if path else page
            if not goal.is_file() or (anchor and anchor not in anchors(goal.read_text())):
                found.append(f"{page.relative_to(pages)}: {target}")
    return found


def test_links_and_anchors_of_the_site_lead_somewhere(site):
    assert not broken_links(site)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# A page\n\n[x](b.md) [y](#a-page) [z](c.md#what-vmap-costs) [w](c.md#else)\n")
    (tmp_path / "c.md").write_text("## What `vmap` costs\n\n```\n# else\n[v](d.md)\n```\n")
    assert broken_links(tmp_path) == ["a.md: b.md", "a.md: c.md#else"]


def headless(text):
    """First rows of tables that have no header: text to a reader, and nothing to what gathers tables."""
    blocks = re.findall(r"(?:^\|.*\n?)+", without_code(text), re.MULTILINE)
    blocks = [block for block in blocks if block.startswith("| ")]
    return [block.splitlines()[0] for block in blocks if not re.match(r".*\n\|[-:| ]+\|", block)]


def test_every_table_has_a_header(site):
    found = {str(page.relative_to(site)): headless(page.read_text()) for page in site.rglob("*.md")}
    assert not {page: rows for page, rows in found.items() if rows}


def test_a_row_after_a_blank_line_is_found():
    assert headless("| a | b |\n|---|:-:|\n| 1 | 2 |\n\n| 3 | 4 |\n") == ["| 3 | 4 |"]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page(site):
    entries = re.findall(r"^ +- [^\n]*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {str(path.relative_to(site)) for path in site.rglob("*.md")}
    assert len(entries) == len(set(entries))
    assert set(entries) <= pages
    # Experiments are reached from their gallery, modules from the index of the reference.
    elsewhere = {page for page in pages if page.startswith(("experiments/", "reference/"))}
    missing = pages - elsewhere - set(entries)
    assert not missing, f"add to the navigation of mkdocs.yml: {sorted(missing)}"


def test_pages_made_by_a_script_are_up_to_date(scripts):
    assert not scripts("pages").stale(), "run scripts/pages.py"


def test_every_algorithm_is_explained_on_a_page(scripts):
    lost = [name for name, page in scripts("pages").pages_of_names().items() if not page]
    assert not lost, f"no table with a column for the paper or the evidence names {lost}"


def test_every_experiment_is_in_the_gallery(scripts):
    page = scripts("pages").experiments_page()
    folders = [path.name for path in (ROOT / "experiments").iterdir() if (path / "README.md").exists()]
    assert len(folders) > 5
    for folder in folders:
        assert f"experiments/{folder}/README.md" in page
        found = scripts("pages").experiment(ROOT / "experiments" / folder)
        assert (ROOT / found.command.split()[-1]).is_file()


def test_files_that_evidence_names_exist(scripts):
    for page, rows in scripts("pages").pages_with_papers().items():
        for path in re.findall(r"(?:tests|experiments|docs)/[\w/.-]+\.\w+", " ".join(map(" ".join, rows))):
            assert (ROOT / path.rstrip(".")).exists(), f"{page}: {path}"


TABLE = """
# Page

| name | paper | as arguments | evidence |
|---|---|---|---|
| `a` | A 2020 | `x="b|c"` | tests; [below](#more) |

| size | value |
|---|---|
| 1 | 2 |
"""


def test_tables_are_gathered(scripts):
    pages = scripts("pages")
    (row,) = pages.gathered(TABLE, "page.md")
    assert row == ("`a`", "A 2020", '`x="b|c"`', "tests; [below](page.md#more)")
    assert [header for header, _ in pages.tables(TABLE)] == [
        ["name", "paper", "as arguments", "evidence"],
        ["size", "value"],
    ]


@pytest.mark.parametrize(
    "text, answer",
    [
        ("# Q\n\n## Answer\n\nNo: " + 60 * "x" + "\n\n- Because.", "No: " + 60 * "x"),
        ("# Q\n\n## Answer\n\nIn part.\n\n- As far\n  as one. \n- And", "In part. As far as one."),
        ("# Q\n\n**Answer** (mean):\n\n| a |\n|---|\n\n- The claim holds.\n- Not", "The claim holds."),
        ("# Q\n\nNothing yet.", ""),
    ],
)
def test_an_answer_is_found(scripts, text, answer):
    assert scripts("pages").answer_of(text) == answer


DOCSTRING = """Computes it.

    x = y

More.

Args:
  first: one thing
    over two lines.
  *rest: others.

Returns:
  What it
  computes.

Raises:
  ValueError: if not.

Example:
  >>> f(1)
  2
"""


def test_a_docstring_becomes_markdown(scripts):
    assert scripts("reference").markdown(DOCSTRING) == (
        "Computes it.\n\n```text\nx = y\n```\n\nMore.\n\n"
        "*Args:*\n\n- **first**: one thing over two lines.\n- **\\*rest**: others.\n\n"
        "*Returns:* What it computes.\n\n*Raises:*\n\n- **ValueError**: if not.\n\n"
        "```python\n>>> f(1)\n2\n```"
    )


def test_the_reference_has_every_public_function(site):
    page = (site / "reference" / "jaxrl.evaluation.md").read_text()
    assert "## `evaluate`" in page
    assert "### `Episodes.mean_return`" in page
    assert "_check" not in page
    index = (site / "reference" / "index.md").read_text()
    assert "| [jaxrl.algorithms.ppo](jaxrl.algorithms.ppo.md) | Proximal policy optimization" in index


def test_a_long_signature_has_an_argument_a_line(scripts):
    source = f'def f(a, b: int = 1, *, {"c" * 90}: str, d=2, **rest) -> int:\n    """Does."""\n'
    page = scripts("reference").page("m", source)
    assert f"f(\n    a,\n    b: int=1,\n    *,\n    {'c' * 90}: str,\n    d=2,\n    **rest,\n) -> int" in page


def test_a_notebook_becomes_a_page(scripts):
    script = '# ---\n# jupyter:\n# ---\n\n# %% [markdown]\n# # Title\n#\n# Text.\n\n# %% tags=["a"]\nx = 1\n'
    assert scripts("documentation").notebook_page(script) == "# Title\n\nText.\n\n```python\nx = 1\n```\n"
