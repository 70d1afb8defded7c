"""The pages that say what there is, made from the repository itself.

    scripts/pages.py            writes docs/papers.md, docs/experiments.md, docs/speed.md and the tables of README.md
    scripts/pages.py --check    writes nothing, and names those that are not as they would be written

docs/papers.md gathers the tables of all pages that have a column for a paper, a source or the evidence.
docs/experiments.md takes question, command, figure and answer from each experiment's README.md. docs/speed.md shows
docs/speed.csv, which scripts/bench.py wrote. README.md lists what the registries hold, between two comments.
"""

import argparse
import collections
import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- made by scripts/pages.py -->", "<!-- end -->"
_WIDTH = 120
_TEMPORARY = "temporary_bytes_per_member"
_MADE = ("papers.md", "experiments.md", "speed.md")
# Columns of the gathered tables, and what pages call them.
_COLUMNS = {
    "paper": ("paper", "source"),
    "how": ("as arguments", "how", "factory", "option", "file"),
    "evidence": ("evidence", "checked against"),
}


class Row(NamedTuple):
    """A row of a gathered table."""

    name: str
    paper: str
    how: str
    evidence: str


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each Markdown table of a page."""
    found: list[tuple[list[str], list[list[str]]]] = []
    rows: list[list[str]] = []
    for line in [*re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines(), ""]:
        if line.startswith("|"):
            # Bars between backticks or after a backslash are text.
            cells = re.split(r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)", line.strip().strip("|"))
            rows.append([cell.strip() for cell in cells])
            continue
        if len(rows) > 2 and all(set(cell) <= set("-: ") for cell in rows[1]):
            found.append((rows[0], rows[2:]))
        rows = []
    return found


def gathered(text: str, page: str) -> list[Row]:
    """The rows of a page's tables on papers; links within the page are made links to it."""
    rows = []
    for header, body in tables(text):
        places = {
            column: next((header.index(name) for name in names if name in header), None)
            for column, names in _COLUMNS.items()
        }
        if places["paper"] is None and places["evidence"] is None:
            continue
        for cells in body:
            cell = lambda column: "" if (place := places[column]) is None else cells[place]
            name = cells[0] or (cells[1] if len(cells) > 1 else "")
            row = Row(name, *(cell(column) for column in _COLUMNS))
            rows.append(Row(*(part.replace("](#", f"]({page}#") for part in row)))
    return rows


def pages_with_papers() -> dict[str, list[Row]]:
    """File name of each page of docs/ that has such tables, with their rows."""
    found = {
        page.name: gathered(page.read_text(), page.name)
        for page in sorted((ROOT / "docs").glob("*.md"))
        if page.name not in _MADE
    }
    return {page: rows for page, rows in found.items() if rows}


def registered() -> dict[str, str]:
    """Names of the registry with their summaries, read from its source: importing it would import jax."""
    from jaxrl.cli.summaries import algorithm_summaries

    return algorithm_summaries()


def pages_of_names() -> dict[str, str]:
    """For each registered name the page that explains it: by a row of a table, or else in its text; "" if none does."""
    found = dict.fromkeys(registered(), "")
    for column in (lambda row: row._replace(how=""), lambda row: row):
        for page, rows in pages_with_papers().items():
            for name in (name for row in rows for name in _names(column(row))):
                if name in found and not found[name]:
                    found[name] = page
    for name in (name for name, page in found.items() if not page):
        texts = ((path.name, path.read_text()) for path in sorted((ROOT / "docs").glob("*.md")))
        found[name] = next((page for page, text in texts if page not in _MADE and f"`{name}`" in text), "")
    return found


def title_of(path: Path) -> str:
    """The first heading of a page."""
    return next(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))


def papers_page() -> str:
    """docs/papers.md."""
    # Pages that explain the most algorithms come first.
    explained = list(pages_of_names().values())
    found = dict(sorted(pages_with_papers().items(), key=lambda item: -explained.count(item[0])))
    parts = ["# Papers", *map(_filled, _ABOUT_PAPERS)]
    for page, rows in found.items():
        parts.append(f"## [{title_of(ROOT / 'docs' / page)}]({page})")
        titles = ("name", "paper", "as", "evidence")
        filled = [i for i in range(len(titles)) if any(row[i] for row in rows)]
        parts.append(_table([titles[i] for i in filled], [[row[i] for i in filled] for row in rows]))
        for paragraph in (ROOT / "docs" / page).read_text().split("\n\n"):
            if paragraph.startswith("Not here"):
                parts.append(_filled(paragraph.replace("](#", f"]({page}#")))
    named = {name for rows in found.values() for row in rows for name in _names(row)}
    others = [
        [
            f"`{name}`",
            summary,
            f"[{title_of(ROOT / 'docs' / page)}]({page})" if (page := pages_of_names()[name]) else "",
        ]
        for name, summary in registered().items()
        if name not in named
    ]
    if others:
        parts += ["## Algorithms without a row of their own", _table(["name", "what", "page"], others)]
    return "\n\n".join(parts) + "\n"


_ABOUT_PAPERS = (
    "Written by `scripts/pages.py` from the tables of the other pages; each heading leads to the page that explains "
    "its rows.",
    "Which argument gives which paper, and what it was checked against. A row is code that is here; what a row's "
    "evidence does not say has not been shown. Names that `jaxrl list algorithms` prints can be trained as they are: "
    "`jaxrl train a2c gymnax/CartPole-v1`. Whether a paper's claim holds here is asked in the "
    "[experiments](experiments.md), and returns beside published ones are in the [results](results.md).",
)


def _names(row: Row) -> list[str]:
    """What a row may name in the registry: its first column, and what its second begins with."""
    return re.findall(r"`([^`]+)`", f"{row.name} {row.how.partition(',')[0]}")


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


class Experiment(NamedTuple):
    """What an experiment's README.md says."""

    title: str
    command: str
    answer: str
    figure: str


def experiment(folder: Path) -> Experiment:
    """Reads one experiment.

    Raises:
      ValueError: its README.md has no title or no command that runs a file of the folder.
    """
    text = (folder / "README.md").read_text()
    command = re.search(rf"[\w./]*python (experiments/{folder.name}/\w+\.py)", text)
    if not text.startswith("# ") or command is None:
        raise ValueError(
            f"{folder.name}/README.md must begin with its title and name a command that runs a file of its folder."
        )
    figure = re.search(r"!\[[^]]*\]\(([^)]+)\)", text)
    return Experiment(title_of(folder / "README.md"), command[0], answer_of(text), figure[1] if figure else "")


def answer_of(text: str) -> str:
    """The answer as an experiment's README begins it; "" if it has none yet.

    Under a heading that is its first paragraph, with the first point of the list if it is short. Where "Answer" only
    introduces a table, it is the first point after that.
    """
    match = re.search(r"^(?:## Answer\b.*|\*\*Answer)", text, re.MULTILINE)
    if match is None:
        return ""
    blocks = [
        block
        for block in re.split(r"\n\n|\n(?=- )", text[match.end() :].strip())
        if not block.startswith(("|", "!", "    "))
    ]
    plain = [" ".join(block.removeprefix("- ").split()) for block in blocks]
    if not match[0].startswith("##"):
        return plain[1] if len(plain) > 1 else plain[0].lstrip(".* ")
    first = plain[0] if len(plain[0]) > 60 or len(plain) == 1 else f"{plain[0]} {plain[1]}"
    # A last sentence that introduces a table says nothing without it.
    *before, last = re.split(r"(?<=[.!?]) (?=[A-Z])", first)
    return " ".join(before) if before and last.endswith(":") else first


def experiments_page() -> str:
    """docs/experiments.md."""
    parts = [
        "# Experiments",
        _filled(
            "Written by `scripts/pages.py` from the folders of experiments/: the question, the beginning of the "
            "answer, the figure, and the command that makes it. Each folder's page has the setting, all figures, and "
            "what was not tried."
        ),
    ]
    for folder in folders_of_experiments():
        found = experiment(folder)
        parts.append(f"## [{found.title}](../experiments/{folder.name}/README.md)")
        parts.append(_filled(found.answer or "No answer yet."))
        parts.append(f"```\n{found.command}\n```")
        if found.figure:
            parts.append(f"![{found.title}](../experiments/{folder.name}/{found.figure})")
    return "\n\n".join(parts) + "\n"


def revisions(measured: list[dict[str, str]]) -> str:
    """The commits that rows were measured at; several with their numbers of rows, the most frequent first."""
    counts = collections.Counter(row["git_revision"] for row in measured).most_common()
    if len(counts) == 1:
        return f"`{counts[0][0]}`"
    return ", ".join(f"`{name}` ({count} of {len(measured)} rows)" for name, count in counts)


def speed_page() -> str:
    """What `scripts/bench.py --suite algorithms` measured, one row an algorithm."""
    with (ROOT / "docs" / "speed.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    cases: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    for row in measured:
        name, task, _ = row["case"].split()
        cases.setdefault((name, task), {})[int(row["num_seeds"])] = row
    figures = {"compile_seconds": "{:.1f}", "steps_per_second": "{:,.0f}"}
    body = []
    for (name, task), by_members in sorted(cases.items()):
        cells = [
            figures[field].format(float(by_members[members][field])) if members in by_members else ""
            for field in figures
            for members in (1, 64)
        ]
        memory = [f"{int(by_members[1][field]) / 1e6:,.2f}" for field in ("state_bytes_per_member", _TEMPORARY)]
        body.append([f"`{name}`", task.rpartition("/")[2], *cells, *memory])
    header = ["algorithm", "task", "compile, 1", "64", "steps/s, 1", "64", "state, MB", "temporary, MB"]
    names = ", ".join(f"`{name}`" for name in registered() if name not in {name for name, _ in cases})
    missing = f" Not run: {names}, which came later or need a GPU for their sizes." if names else ""
    about = {(row["processor"], row["jax"], row["python"], row["time"][:10]) for row in measured}
    machines = "; ".join(f"{cpu}, jax {jax}, Python {python}, {day}" for cpu, jax, python, day in sorted(about))
    if len({row["processor"] for row in measured}) > 1:
        fewest = collections.Counter(row["processor"] for row in measured).most_common()[-1][0]
        others = sorted({f"`{row['case'].split()[0]}`" for row in measured if row["processor"] == fewest})
        machines += f"; {', '.join(others)} on the {fewest}, not to be compared with the rest"
    text = f"""Made by scripts/pages.py from docs/speed.csv, which `taskset -c 0 python scripts/bench.py --suite
algorithms --cores 1 --out docs/speed.csv` wrote: one core, while others ran on the second ({machines}; jaxrl at
{revisions(measured)}). Each algorithm has the defaults of its name, so rows differ by how much they learn from a step
(replay ratio, batch, network) more than by how well they are written. Seconds to compile `init` and `step`; environment
steps a second over all members, in training; bytes of one member's state and of what its program needs for a while.
Where 64 members are missing, a step of theirs would have taken over 20 seconds or their states over a third of the
memory.{missing} Beside other libraries at equal settings: [benchmarks](benchmarks.md)."""
    return f"# Speed of each algorithm\n\n{_filled(text)}\n\n{_table(header, body)}\n"


def folders_of_experiments() -> list[Path]:
    """The folders of experiments/."""
    return sorted(path for path in (ROOT / "experiments").iterdir() if any(path.glob("*.py")))


def readme_tables() -> str:
    """What README.md lists of algorithms and environments."""
    from jaxrl.envs import registry

    pages = pages_of_names()
    algorithms = []
    for page in sorted(set(pages.values()), key=lambda page: (not page, page)):
        names = ", ".join(f"`{name}`" for name in pages if pages[name] == page)
        algorithms.append([f"[{title_of(ROOT / 'docs' / page)}](docs/{page})" if page else "others", names])
    environments = [
        [f"`{name}`", "extra" if suite.extra else str(len(registry.list_envs(name))), suite.summary]
        for name, suite in registry.SUITES.items()
    ]
    by_page = _table(["algorithms, with papers and evidence", "names"], algorithms)
    return f"{by_page}\n\n{_table(['environments', 'number', 'what'], environments)}"


def readme() -> str:
    """README.md with its tables made anew."""
    text = (ROOT / "README.md").read_text()
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"README.md must have the comments {BEGIN} and {END} around its tables.")
    return f"{before}{BEGIN}\n\n{readme_tables()}\n\n{END}{after}"


def made() -> dict[str, str]:
    """Each page by its path in the repository, as it should be."""
    return {
        "docs/papers.md": papers_page(),
        "docs/experiments.md": experiments_page(),
        "docs/speed.md": speed_page(),
        "README.md": readme(),
    }


def stale() -> list[str]:
    """The pages that are not as they should be."""
    return [path for path, text in made().items() if not (ROOT / path).exists() or (ROOT / path).read_text() != text]


def _filled(text: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def main() -> int:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    if parser.parse_args().check:
        print(*(f"{path} is not up to date: run scripts/pages.py" for path in stale()), sep="\n")
        return int(bool(stale()))
    for path, text in made().items():
        (ROOT / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
