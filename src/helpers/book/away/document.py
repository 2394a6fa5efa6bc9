"""One document: all pages of the built site in one HTML file, in the order of its contents, as it is to be printed.

The pages share the site's own styles for print, and links between them stay links; hints, solutions and answers stay at home.
"""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from bs4.element import Tag

from helpers.errors import REFUSED, StudyError

DONE = "all-is-set"  # the anchor that the script below writes last: a print without it came too early
# What stays at home, and what only a screen needs; of each figure the light form is kept.
LEFT_OUT = (
    "details:is(.hint, .solution, .answer, .hide), script:not([type='application/json']), .headerlink, .toggle-button, .copybtn, "
    "figure.plate img.only-dark, figure.plate figcaption, #jb-print-docs-body"
)
NAMED = ("id", "name", "for", "aria-labelledby", "aria-describedby", "aria-controls")  # what names an anchor of its own page
OWN_STYLES = ("custom.css", "explore.css")  # whose rules for print hold here on the screen too, where widths are measured
STYLE = """
@page { size: A4; margin: 17mm 16mm 19mm; @bottom-center { content: counter(page); font: 9pt sans-serif; color: #555; } }
@page :first { @bottom-center { content: none; } }
html, body { background: #fff !important; }
body { width: 178mm; margin: 0; padding: 0; }
.bd-main, .bd-content, .bd-article-container {
  display: block !important; width: 178mm; padding: 0 !important; overflow: visible;
}
.bd-article { padding: 0 !important; break-before: page; }
.bd-article :is(img, svg) { max-height: 225mm; width: auto; height: auto; }
.bd-article :is(pre, .cell_output, .cell_input, .highlight) { overflow: visible !important; }
.bd-article .cell_input { break-inside: avoid; }
.bd-article table.provenance { font-size: 0.62em; line-height: 1.3; }
.bd-article > section > h1 { margin-top: 0; }
#cover { height: 250mm; display: flex; flex-direction: column; justify-content: center; }
#cover img { width: 32mm; margin-bottom: 14mm; } #cover h1 { font-size: 30pt; }
#cover .about { font-size: 14pt; max-width: 140mm; } #cover .small { margin-top: 40mm; color: #555; }
#contents { break-before: page; } #contents h2 { font-size: 12pt; margin: 5mm 0 1mm; }
#contents p { display: flex; gap: 3mm; margin: 0 0 0.6mm; break-inside: avoid; } #contents .below { padding-left: 6mm; }
#contents i { flex: 1; border-bottom: 1px dotted #999; margin-bottom: 1.2mm; min-width: 8mm; }
#contents a { text-decoration: none; }
"""
# What is wider than the paper is made smaller by itself, else chromium would shrink the whole book with it.
SCRIPT = """
addEventListener("load", async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  await document.fonts.ready;
  for (const table of document.querySelectorAll(".bd-article table")) {  // the theme keeps each whole, which leaves sheets empty
    table.style.breakInside = table.offsetHeight > 400 ? "auto" : "avoid";
  }
  const room = document.querySelector(".bd-article").getBoundingClientRect();
  for (const box of document.querySelectorAll(".bd-article :is(table, pre, mjx-container, .explorable)")) {
    const place = box.getBoundingClientRect(), wide = Math.max(place.width, box.scrollWidth);
    const most = room.right - place.left;
    if (wide > most + 1) box.style.zoom = Math.max(0.3, most / wide);
  }
  document.getElementById("contents").insertAdjacentHTML("beforeend", '<b id="DONE"></b><a href="#DONE"></a>');
});
"""


@dataclass(frozen=True)
class Entry:
    """A page of the book as its contents name it: part, file in the site, title, and how deep it stands."""

    part: str
    place: str
    title: str
    depth: int

    @property
    def anchor(self) -> str:
        """The anchor of the page in the one document."""
        return "page-" + re.sub(r"[^a-z0-9]+", "-", self.place.removesuffix(".html").lower())


def contents(html: Path) -> list[Entry]:
    """The pages of the built site in the order of its contents, the first page first."""
    found = re.search(r'url=([\w./-]+)"', (html / "index.html").read_text(encoding="utf-8"))
    first = found[1] if found else "index.html"
    nav = _soup(html / first).select_one("nav.bd-links")
    if nav is None:
        raise StudyError(f"{first} of the built site has no contents; build it again: make book FORCE=1", REFUSED)
    entries, part = [], ""
    for tag in nav.select("p.caption, a.reference"):
        if tag.name == "p":
            part = tag.get_text(" ", strip=True)
            continue
        href = str(tag["href"]).partition("#")[0]
        place = _beside(first, href) if href else first
        entries.append(Entry(part, place, tag.get_text(" ", strip=True), len(tag.find_parents("ul"))))
    return entries


def combined(html: Path, entries: list[Entry], about: Mapping[str, str], numbers: Mapping[str, int]) -> str:
    """The whole book as one HTML document whose files lie relative to `html`; solutions are left out.

    `about` holds title, description, author and run; `numbers` says by anchor on which sheet a page begins.
    """
    anchors = {entry.place: entry.anchor for entry in entries}
    articles, settings = [], ""
    for entry in entries:
        soup = _soup(html / entry.place)
        settings = settings or next((tag.text for tag in soup("script") if "window.MathJax =" in tag.text), "")
        articles.append(_article(soup, entry, anchors))
    body = "\n".join([_cover(about), _listed(entries, numbers), *articles])
    head = _head(html, entries[0].place, escape(about["title"]), settings)
    inside = '<main class="bd-main"><div class="bd-content"><div class="bd-article-container">'
    opening = '<!DOCTYPE html>\n<html lang="en" data-theme="light" data-mode="light">'
    return f"{opening}\n{head}\n<body>{inside}\n{body}\n</div></div></main></body></html>\n"


def _soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def _beside(place: str, address: str) -> str:
    """The file of the site that a relative address in the page `place` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(address)))


def _head(html: Path, first: str, title: str, settings: str) -> str:
    """The styles of the site, and the scripts that set formulas and draw what a reader could move."""
    lines = []
    for tag in _soup(html / first).select("head > link[rel=stylesheet]"):
        place = _beside(first, urlsplit(str(tag["href"])).path)
        if posixpath.basename(place) in OWN_STYLES:
            lines.append(f"<style>{(html / place).read_text(encoding='utf-8').replace('@media print', '@media all')}</style>")
        else:
            lines.append(f'<link rel="stylesheet" href="{escape(place)}" />')
    scripts = [f"<script>{settings}</script>", '<script defer src="_static/mathjax/tex-chtml.js"></script>'] if settings else []
    if (html / "_static" / "explore.js").is_file():
        scripts.append('<script defer src="_static/explore.js"></script>')
    script = f"<script>{SCRIPT.replace('DONE', DONE)}</script>"
    return "\n".join(
        [
            '<head><meta charset="utf-8" />',
            f"<title>{title}</title>",
            *lines,
            f"<style>{STYLE}</style>",
            *scripts,
            script,
            "</head>",
        ]
    )


def _cover(about: Mapping[str, str]) -> str:
    logo = f'<img src="{escape(about["logo"])}" alt="" />' if about.get("logo") else ""
    return (
        f'<section id="cover">{logo}<h1>{escape(about["title"])}</h1><p class="about">{escape(about["description"])}</p>'
        f'<p>{escape(about["author"])}</p><p class="small">{escape(about["run"])}</p></section>'
    )


def _listed(entries: list[Entry], numbers: Mapping[str, int]) -> str:
    """The contents: parts, titles and the sheets on which they begin."""
    lines, part = ["<h1>Contents</h1>"], ""
    for entry in entries:
        if entry.part != part:
            part = entry.part
            lines.append(f"<h2>{escape(part)}</h2>")
        below = ' class="below"' if entry.depth > 1 else ""
        number = numbers.get(entry.anchor, 0)
        lines.append(f'<p{below}><a href="#{entry.anchor}">{escape(entry.title)}</a><i></i><span>{number or "000"}</span></p>')
    return f'<section id="contents">{"".join(lines)}</section>'


def _article(soup: BeautifulSoup, entry: Entry, anchors: Mapping[str, str]) -> str:
    """The text of one page, with its anchors made its own in the book, and its links to what the book holds."""
    article = soup.select_one("article.bd-article")
    if article is None:
        raise StudyError(f"{entry.place} of the built site has no text; build it again: make book FORCE=1", REFUSED)
    for tag in article.select(LEFT_OUT):
        tag.decompose()
    for tag in article.select("details.tall"):
        _unfolded(tag)
    for tag in article.find_all("details"):
        tag["open"] = ""
    for tag in article.find_all(True):
        if not (tag.name != "svg" and tag.find_parent("svg")):
            for name in NAMED:
                if tag.get(name):
                    tag[name] = " ".join(f"{entry.anchor}--{word}" for word in str(tag[name]).split())
        _readdressed(tag, entry, anchors)
    return f'<article class="bd-article" id="{entry.anchor}">{article.decode_contents()}</article>'


def _unfolded(tall: Tag) -> None:
    """Puts a folded table in place of its fold, under what the fold says, so that its rows begin on the same sheet."""
    summary, table = tall.summary, tall.table
    if summary and table and not table.caption:
        summary.name = "caption"
        table.insert(0, summary.extract())
    elif summary:
        summary.decompose()
    tall.unwrap()


def _readdressed(tag: Tag, entry: Entry, anchors: Mapping[str, str]) -> None:
    """Changes what a tag fetches or leads to: pictures by their place in the site, pages by their anchor in the book."""
    if tag.get("src"):
        tag["src"] = tag["src"] if urlsplit(str(tag["src"])).scheme else _beside(entry.place, str(tag["src"]))
        del tag["loading"], tag["decoding"]  # a picture that comes late is not printed
    if tag.name != "a" or not tag.get("href"):
        return
    parts = urlsplit(str(tag["href"]))
    if parts.scheme:
        return
    place = _beside(entry.place, parts.path) if parts.path else entry.place
    if place in anchors:
        tag["href"] = f"#{anchors[place]}" + (f"--{parts.fragment}" if parts.fragment else "")
    else:
        del tag["href"]  # a file beside the site is not in the book
