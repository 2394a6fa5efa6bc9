"""Provenance: from a number in prose to the rows of its table, and from there to the manifest and the command that made it.

A chapter glues its numbers with their source (`tables.Said`), which travels in the executed notebook. When the book is staged,
every such number becomes a link to its line on the page `book/provenance`.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.book.markup import entities
from helpers.figures import tables
from helpers.folders import file_hash

GLUED = re.compile(r"\{glue:text\}`(?:(?P<path>[^`]*?)::)?(?P<key>[^`:]+)(?::[^`]*)?`")
PAGE = "book/provenance"
FIRST = 5  # ranges of row numbers that the page shows; all of them travel in the chapter as it ran


@dataclass(frozen=True)
class Number:
    """One text that a chapter glued: its key, what it says, and its source (`tables.source`; {} for words without a table)."""

    chapter: str
    key: str
    text: str
    source: dict[str, Any]

    @property
    def anchor(self) -> str:
        """The id of its line on the page of provenance."""
        return f"n{self.chapter[:2]}-{re.sub(r'[^a-z0-9]+', '-', self.key.lower())}"


def glued_numbers(folder: Path, chapter: str) -> list[Number]:
    """The numbers that the executed chapter of a run has glued, in their order."""
    notebook = json.loads((folder / "executed" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    found = []
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        mark = output.get("metadata", {})
        if "scrapbook" in mark:
            text = output["data"]["application/papermill.record/text/plain"]
            found.append(Number(chapter, mark["scrapbook"]["name"], "".join(text), mark.get("source", {})))
    return found


def file_of(folder: Path, number: Number) -> Path:
    """The file that holds the rows: a table of the run, the part of a chapter, or the findings of the profile."""
    name, part = number.source["table"], number.source.get("part", "")
    if name == "findings":
        return folder.parents[1] / "findings.parquet"
    return folder / ("parts/" + str(part) if part else "tables") / f"{name}.parquet"


# ---------------------------------------------------------------- in the book


def linked(text: str, page: str) -> str:
    """The markdown of a page with each glued number made a link to its line; `page` is the page's own chapter or address."""
    folder = os.path.dirname(page)

    def link(match: re.Match) -> str:
        chapter = Path(match["path"] or page).stem
        address = os.path.relpath(f"{PAGE}.html", folder)
        return f'<a class="number" href="{address}#{Number(chapter, match["key"], "", {}).anchor}">{match[0]}</a>'

    return GLUED.sub(link, text)


def provenance_page(root: Path, folder: Path, chapters: list[str]) -> str:
    """The lines of all glued numbers of a run, chapter by chapter: the number, its rows, the file with its hash, the command."""
    profile, model, seed = folder.parts[-3:]
    sections = []
    for chapter in chapters:
        found = glued_numbers(folder, chapter)
        if found:
            command = f"python -m helpers chapter {chapter[:2]} --profile {profile} --model {model} --seed {seed[5:]}"
            lines = "".join(_line(folder, number) for number in found)
            head = "<thead><tr><th>number</th><th>made of</th><th>rows</th></tr></thead>"
            sections.append(
                f"## {chapter[:2]} {chapter[3:]}\n\n"
                f"Chapter {{doc}}`../notebooks/{chapter}`, made by\n\n```text\n{command}\n```\n\n"
                f'<div class="results-table">\n<table class="results provenance">{head}<tbody>{lines}</tbody></table>\n</div>\n'
            )
    return "\n".join(sections)


def _line(folder: Path, number: Number) -> str:
    if not number.source:
        return f'<tr id="{number.anchor}"><td>{_said(number)}</td><td>words: no table of this run holds them</td><td></td></tr>'
    path, count = file_of(folder, number), number.source["count"]
    digest = file_hash(path) or "(no such file)"
    how = tables.HOW[str(number.source["how"]).partition(" ")[0]]
    place = "/".join(path.parts[-4:]) if path.name == "findings.parquet" else os.path.relpath(path, folder)
    where = f"<code>{entities(place)}</code><br><small>sha256 <code>{digest[:12]}</code></small>"
    return (f'<tr id="{number.anchor}"><td>{_said(number)}</td>'
            f"<td>{entities(how)}, {count} row{'s' * (count != 1)}<br>{where}</td><td>{_where(number)}</td></tr>")  # fmt: skip


def fewer(places: str) -> tuple[str, int]:
    """The first `FIRST` of some ranges of row numbers, such as `0-4, 9`, and how many rows the others hold."""
    runs = places.split(",")
    bounds = [(int(run.partition("-")[0]), int(run.rpartition("-")[2])) for run in runs[FIRST:]]
    return ", ".join(runs[:FIRST]), sum(last - first + 1 for first, last in bounds)


def _said(number: Number) -> str:
    return f"{entities(number.text)}<br><small><code>{entities(number.key)}</code></small>"


def _where(number: Number) -> str:
    if "places" in number.source:
        first, more = fewer(str(number.source["places"]))
        return f"<small>row numbers {entities(first)}{f' and {more:,} more' if more else ''}</small>"
    named = [" · ".join(f"{key} {value}" for key, value in row.items() if value != "") for row in number.source["rows"]]
    return "<br>".join(f"<small>{entities(row)}</small>" for row in named)
