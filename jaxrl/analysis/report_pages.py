"""What a report is made of, and how it is written as a page of HTML or as Markdown."""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path

from jaxrl.checkpoint import write_file


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a part of the table of contents."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph; `lead` is set larger, `note` smaller."""

    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Key figures, side by side: value and what it is."""

    entries: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; columns of numbers are set right."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: int | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as SVG, with what it shows for those who cannot see it."""

    name: str
    svg: bytes
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Fold:
    """Text that is folded away; `file` names a download of it."""

    title: str
    text: str
    file: str = ""


Block = Heading | Paragraph | Tiles | Table | Picture | Fold

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 32px 64px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 23px; margin: 48px 0 8px; padding-top: 16px; border-top: 2px solid #0072b2; }
h3 { font-size: 19px; margin: 36px 0 8px; }
h4 { font-size: 16px; margin: 28px 0 6px; }
p { margin: 8px 0; max-width: 84ch; }
p.lead { font-size: 17px; }
p.note, figcaption, caption { color: #444; font-size: 14px; text-align: left; }
nav ul { margin: 8px 0; padding-left: 20px; }
nav li.level-3 { margin-left: 24px; }
a { color: #005a8f; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px; margin: 16px 0; }
dl.tiles div { border: 1px solid #c8c8c8; border-radius: 6px; padding: 10px 14px; display: flex;
  flex-direction: column-reverse; justify-content: flex-end; }
dl.tiles dt { color: #444; font-size: 13px; }
dl.tiles dd { margin: 0; font-size: 22px; font-weight: 600; line-height: 1.25; }
figure { margin: 12px 0 24px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { max-width: 100ch; }
div.scroll { overflow-x: auto; margin: 12px 0 20px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 6px; max-width: 100ch; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; font-weight: 600; overflow-wrap: normal; }
td:first-child:not(.number), th:first-child:not(.number) { min-width: 90px; }
.interval, th.number, td.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 600; background: #eef5fa; }
details { margin: 12px 0; }
summary { cursor: pointer; color: #005a8f; }
pre { max-height: 420px; overflow: auto; background: #f6f6f6; padding: 12px; font-size: 13px; white-space: pre; }
@media print { body { max-width: none; } details { display: none; } }
"""

_INTERVAL = re.compile(r"\S+ \(\S+ to \S+\)|unknown|\S{1,12}")
_NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?%?|–|")


def write_html(title: str, blocks: Sequence[Block], path: Path) -> Path:
    """Writes one page that needs nothing else: no network, no script, figures inside."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing that slipped in can be fetched or run.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<link rel="icon" href="data:,">',
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header><h1>{_escape(title)}</h1>",
    ]
    entries = [(index, block) for index, block in enumerate(blocks) if isinstance(block, Heading) and block.level < 4]
    if len(entries) > 1:
        links = (
            f'<li class="level-{block.level}"><a href="#part-{index}">{_escape(block.text)}</a></li>'
            for index, block in entries
        )
        parts.append(f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>')
    parts.append("</header>\n<main>")
    parts += [_html(block, index) for index, block in enumerate(blocks)]
    parts.append("</main>\n</body>\n</html>\n")
    write_file(path, "\n".join(parts).encode())
    return path


def write_pages(title: str, blocks: Sequence[Block], path: Path) -> Path:
    """Writes Markdown, and its figures in a folder beside it that is named after it."""
    folder = path.with_name(f"{path.stem}_figures")
    parts = [f"# {_plain(title)}"]
    for index, block in enumerate(blocks):
        if isinstance(block, Picture):
            name = f"{index:03d}-{block.name}.svg"
            write_file(folder / name, block.svg)
            link = f"![{_plain(block.alt)}](<{folder.name}/{name}>)"
            parts.append(f"{link}\n\n*{_plain(block.caption)}*")
        else:
            parts.append(_markdown(block))
    write_file(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _html(block: Block, index: int) -> str:
    match block:
        case Heading(level, text):
            return f'<h{level} id="part-{index}">{_escape(text)}</h{level}>'
        case Paragraph(text, kind):
            return f'<p class="{kind}">{_escape(text)}</p>' if kind else f"<p>{_escape(text)}</p>"
        case Tiles(entries):
            tiles = (f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for value, name in entries)
            return f'<dl class="tiles">{"".join(tiles)}</dl>'
        case Table():
            return _html_table(block)
        case Picture(_, svg, alt, caption):
            source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
            size = _pixels(svg)
            image = f'<img src="{source}" alt="{_escape(alt)}" {size}>'
            return f"<figure>{image}<figcaption>{_escape(caption)}</figcaption></figure>"
        case Fold(title, text, file):
            link = ""
            if file:
                data = base64.b64encode(text.encode()).decode()
                link = f'<p><a download="{_escape(file)}" href="data:text/csv;base64,{data}">{_escape(file)}</a></p>'
            return f"<details><summary>{_escape(title)}</summary>{link}<pre>{_escape(text)}</pre></details>"


def _html_table(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.head)
    kinds = [_kind(column) for column in columns]
    head = "".join(f'<th scope="col"{kind}>{_escape(cell)}</th>' for cell, kind in zip(table.head, kinds, strict=True))
    rows = "".join(
        ('<tr class="strong">' if index == table.strong else "<tr>")
        + "".join(f"<td{kind}>{_escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return (
        f'<div class="scroll"><table><caption>{_escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _kind(column: Sequence[str]) -> str:
    """The class of a table's column: numbers are set right, and estimates are not broken."""
    for kind, pattern in (("number", _NUMBER), ("interval", _INTERVAL)):
        if all(pattern.fullmatch(cell) for cell in column):
            return f' class="{kind}"'
    return ""


def _markdown(block: Heading | Paragraph | Tiles | Table | Fold) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, _):
            return _plain(text)
        case Tiles(entries):
            return _markdown_table([name for _, name in entries], [[value for value, _ in entries]])
        case Table(caption, head, rows, _):
            return f"{_plain(caption)}\n\n{_markdown_table(head, rows)}"
        case Fold(title, text, _):
            # A fence longer than any inside.
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            summary = f"<details>\n<summary>{html.escape(title)}</summary>"
            return f"{summary}\n\n{fence}\n{text.rstrip()}\n{fence}\n\n</details>"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_plain(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: one line, nothing that is markup or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(text.split()))


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _pixels(svg: bytes) -> str:
    """Width and height of a picture, so that the page does not jump while it is drawn."""
    found = re.search(rb'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    points = [float(size) for size in found.groups()] if found else []
    return 'width="{:.0f}" height="{:.0f}"'.format(*(size * 4 / 3 for size in points)) if points else ""
