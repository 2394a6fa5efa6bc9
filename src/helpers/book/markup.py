"""Markdown that shows any text as it is: nothing in a value can become a link, a tag, a formula, a role or a new column."""

import html
import re
from collections.abc import Iterable, Sequence

PUNCTUATION = re.compile(r"([!-/:-@\[-`{}~])")  # CommonMark lets a backslash take the meaning from each; pipes are `table`'s


def text(value: object) -> str:
    """The value as one line of Markdown that reads as the value itself."""
    return PUNCTUATION.sub(r"\\\1", " ".join(str(value).split()))


def entities(value: object) -> str:
    """The value as HTML inside of Markdown: entities for what either could read, so that it stays text in a page's source."""
    return "".join(f"&#{ord(sign)};" if sign in "*_`$\\[]{}|~<>&\"'" else sign for sign in html.unescape(str(value)))


def code(value: object) -> str:
    """The value as a code span of one line."""
    line = " ".join(str(value).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def block(lines: Iterable[object], language: str = "text") -> str:
    """The lines as a fenced block, whose fence is longer than any within."""
    body = "\n".join(str(line) for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{fence}{language}\n{body}\n{fence}\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that `text` or `code` made; a pipe ends a cell even inside of code, so each is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') or ' ' for cell in line)} |\n" for line in lines)


def folded(title: str, body: str) -> str:
    """A part of a page that opens on a click; it opens by itself in print."""
    return f"::::{{dropdown}} {text(title)}\n{body.rstrip()}\n::::\n"


def chapter_link(chapter: str) -> str:
    """A link to the page of a chapter, from a page of `book/`."""
    return f"{{doc}}`{chapter[:2]} {chapter[3:]} <../notebooks/{chapter}>`"
