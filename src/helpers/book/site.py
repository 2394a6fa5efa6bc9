"""Site: the built pages made safe to publish and easy to find, and what would be wrong with publishing them.

A page runs only our own script files and the few inline scripts of the theme, known here by their form; whatever else may
have come in with some text is not run by a browser, and is named by `problems`, so that `make book` refuses it.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from bs4.element import Tag

CARD = "_static/social-card.png"
FEED = "_static/verdicts.xml"  # the changes of verdicts, which every page names as a feed
# The themes' own sources, which are no pages; and scripts that redraw the icons which a style sheet has drawn already.
UNUSED = ("_static/*-macros.html", "_static/vendor/fontawesome/*/js/*")
# What loads them; and fonts fetched before it is known whether a page needs them, which no browser allows from a file.
NEEDLESS = re.compile(r'<script src="[^"]*/fontawesome/[^"]*"></script>|<link rel="preload" as="font"[^>]*>')
WHERE = {  # what only some pages need, by what such a page holds: formulas, or figures that can be moved
    ".math": re.compile(r"<script>window\.MathJax = [^<]*</script>|<script[^>]*/mathjax/[^>]*></script>"),
    "[data-explorable]": re.compile(r"<script[^>]*/explore\.js[^>]*></script>"),
}
REWRITTEN = {
    ' onclick="window.print()"': " data-print",  # no inline handler may run; site.js gives the button its work back
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # a list of what may not stand in a list
    ' role="doc-biblioentry"': "",
    ' aria-label="Toggle hidden content"': "",  # what stands in it says what is hidden
    '<summary><span class="toctree-toggle"': '<summary aria-label="The pages below"><span class="toctree-toggle"',
    '<input class="task-list-item-checkbox"': '<input class="task-list-item-checkbox" aria-label="done"',
    '<meta charset="utf-8" />': "",  # it comes first, below
}
MOST = 40 * 10**6  # bytes of the site
TALLEST = 500  # px that a table may take as `table_height` estimates it, before it is folded; up to 1.75 times that were seen
WIDTH, LETTER, LINE, GAP = 760, 7.6, 22, 12  # px: of a table, of one letter, of a line, and between two rows
SENTENCE = 60  # characters above which what was glued is a sentence, and only what follows it is the link to its rows
GLUED = re.compile(r'<a class="number" href="([^"]*)">(<span class="pasted-text">((?:(?!</?a\b).)*?)</span>)</a>', re.DOTALL)
TABLE, ROW = re.compile(r"<table.*?</table>", re.DOTALL), re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL, CAPTION = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL), re.compile(r"<caption[^>]*>(.*?)</caption>", re.DOTALL)
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",  # and the hashes of the theme's inline scripts; no 'unsafe-inline', no eval
    # MathJax places every letter by a style attribute and keeps its fonts in a style element; neither can run anything
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",  # the search page reads the pages it found, to show an excerpt
    "base-uri": "'none'",
    "form-action": "'self'",
    "object-src": "'none'",
}
# The theme's inline scripts, blanks collapsed: settings, and buttons that make no sense without scripts.
THEME = re.compile(
    r"""document\.documentElement\.dataset\.mode\ =\ localStorage\.getItem\("mode"\)\ \|\|\ "\w*";
        \ document\.documentElement\.dataset\.theme\ =\ localStorage\.getItem\("theme"\)\ \|\|\ "\w*";
    | let\ toggle(?:HintShow|HintHide|OpenOnPrint)\ =\ '[\w ]*';
    | var\ togglebuttonSelector\ =\ '[\w.,\ -]*';
    | DOCUMENTATION_OPTIONS\.(?:pagename\ =\ '[\w./-]*'|COLLAPSE_INDEX\ =\ true);
    | document\.write\(`\s?<(?:img|button)\ [^`$\\]*`\);
    | //\ Activate\ the\ search\ field\ on\ page\ load\ let\ searchInput\ =\ document\.querySelector\("form\.bd-search\ input"\);
      \ if\ \(searchInput\)\ \{\ searchInput\.focus\(\);\ searchInput\.select\(\);\ console\.log\("[\w\[\]:.\ ]*"\);\ \}""",
    re.VERBOSE,
)
INLINE = re.compile(r"<script(?![^>]*\ssrc=)([^>]*)>(.*?)</script>", re.DOTALL)
LONGEST = 200  # characters of a description
# What is read of a page is an address in one of these; every tag but a link fetches what it names.
ADDRESSES = ("href", "src", "srcset", "poster", "action", "formaction", "data", "background", "xlink:href")
BARRED = ("iframe", "frame", "object", "embed", "applet", "base", "portal")
ELSEWHERE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|mnt|private|opt|tmp|var/folders)/[\w.-]+")
TEXTS = (".html", ".css", ".svg", ".xml", ".ipynb", ".md", ".json", ".csv", ".txt", ".bib")


# ---------------------------------------------------------------- finishing


def finish(html: Path, title: str, description: str, address: str = "") -> None:
    """Gives every page its content security policy and its metadata; without an `address` the social card's path is relative."""
    for path in [path for pattern in UNUSED for path in html.glob(pattern)]:
        path.unlink()
    feed = f"{title}: when a verdict changed" if (html / FEED).is_file() else ""
    for path in sorted(html.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(html).as_posix()
        text = _finished(text, place, title, description, address and address.rstrip("/") + "/")
        path.write_text(_with_feed(text, place, feed) if feed else text, encoding="utf-8")


def _finished(text: str, place: str, title: str, description: str, address: str) -> str:
    if "<head>" not in text:
        text = _redirection(text, title)
    text = NEEDLESS.sub("", text)
    for old, new in REWRITTEN.items():
        text = text.replace(old, new)
    text = GLUED.sub(_short_link, text)
    text = text if "data-explorable" in text else with_tall_tables_folded(text)  # there a table stands for a figure
    soup = BeautifulSoup(text, "html.parser")
    for needed, scripts in WHERE.items():
        text = text if soup.select_one(needed) else scripts.sub("", text)
    about = {
        "og:type": "website" if place == "index.html" else "article",
        "og:site_name": title,
        "og:title": re.sub(rf" [—-] {re.escape(title)}$", "", soup.title.get_text(strip=True) if soup.title else ""),
        "og:description": _first_paragraph(soup) or description,
        "og:image": (address or "../" * place.count("/")) + CARD,
        "og:image:alt": title,
        **({"og:url": address + place} if address else {}),
    }
    lines = [f'<meta property="{name}" content="{escape(value)}" />' for name, value in about.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image" />')
    if not soup.find("meta", attrs={"name": "description"}):
        lines.insert(0, f'<meta name="description" content="{escape(about["og:description"])}" />')
    # the charset first: a browser looks for it in the first 1024 bytes only
    start = f'<head>\n<meta charset="utf-8" />\n<meta http-equiv="Content-Security-Policy" content="{policy(text)}" />\n'
    return text.replace("<head>", start + "\n".join(lines), 1)


def _with_feed(page: str, place: str, title: str) -> str:
    """The page with the feed named in its head, where readers of feeds look for it."""
    address = "../" * place.count("/") + FEED
    link = f'<link rel="alternate" type="application/atom+xml" title="{escape(title)}" href="{address}" />'
    return page.replace("</head>", f"{link}\n</head>", 1)


def _short_link(match: re.Match) -> str:
    """A glued number as it is; a glued sentence with its link behind it, as lines of underlined words are hard to read."""
    address, glued, words = match.groups()
    return match[0] if len(_words(words)) <= SENTENCE else f'{glued} <a class="number" href="{address}">(rows)</a>'


def with_tall_tables_folded(page: str) -> str:
    """The page with each table that is too tall folded under its caption, or its heads; what is folded already stays so."""

    def folded(match: re.Match) -> str:
        before = page[: match.start()]
        if table_height(match[0]) <= TALLEST or before.count("<details") > before.count("</details"):
            return match[0]
        caption, rows = CAPTION.search(match[0]), ROW.findall(match[0])
        heads = ", ".join(filter(None, (_words(head) for head in CELL.findall(rows[0]))))
        said = caption[1] if caption else f"By {escape(heads)}"
        return f'<details class="tall"><summary>{said} ({len(rows) - 1} rows)</summary>\n{match[0]}\n</details>'

    return TABLE.sub(folded, page)


def table_height(table: str) -> int:
    """About how many px a table takes at 1400 px: its rows, each as high as its fullest cell where columns share the width.

    A column gets its share by the longest of its cells, about as browsers give it.
    """
    rows = [[_words(cell) for cell in CELL.findall(row)] for row in ROW.findall(table)]
    columns = range(max(map(len, rows), default=0))
    longest = [max((len(row[place]) for row in rows if place < len(row)), default=0) for place in columns]
    room = WIDTH / LETTER - 2.5 * len(longest)
    wide = [max(6.0, room * letters / sum(longest)) if sum(longest) > room else letters for letters in longest]
    lines = [max((math.ceil(len(cell) / max(wide[place], 1)) for place, cell in enumerate(row)), default=1) for row in rows]
    return sum(LINE * max(1, count) + GAP for count in lines)


def _words(cell: str) -> str:
    """What a reader sees of a cell."""
    return " ".join(unescape(re.sub("<[^>]+>", " ", cell)).split())


def _redirection(text: str, title: str) -> str:
    """The page that leads to the first page, whole: the builder writes it as one tag."""
    target = re.findall(r"url=([\w./-]+)", text)[0]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><title>{escape(title)}</title>'
        f'<meta http-equiv="refresh" content="0; url={target}" /><link rel="canonical" href="{target}" /></head>\n'
        f'<body><p><a href="{target}">{escape(title)}</a></p></body>\n</html>\n'
    )


def _first_paragraph(soup: BeautifulSoup) -> str:
    """The first paragraph of the text itself, not of a box or a picture in it, no longer than a search engine shows."""
    for paragraph in soup.select("article section > p"):
        text = re.sub(r"\\[()]", "", " ".join(paragraph.get_text().split())).removeprefix("Question. ")
        if len(text) > 40:
            return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
    return ""


def policy(page: str) -> str:
    """The content security policy of a page: its own files, and those of its inline scripts that are the theme's."""
    scripts = dict.fromkeys(found[2] for found in INLINE.finditer(page) if themes_own(found[2]))
    sums = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    rules = {**POLICY, "script-src": " ".join([POLICY["script-src"], *(f"'sha256-{found}'" for found in sums)])}
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def themes_own(script: str) -> bool:
    """Whether an inline script is one of the theme's, by its form; MathJax's settings are, where they are data alone."""
    flat = " ".join(script.split())
    settings = flat.removeprefix("window.MathJax = ")
    if settings == flat:
        return bool(THEME.fullmatch(flat))
    try:
        return isinstance(json.loads(settings), dict)
    except ValueError:
        return False


# ---------------------------------------------------------------- problems


def problems(html: Path) -> list[str]:
    """What stands against publishing the site, a line each: dead links, requests to elsewhere, live code, paths."""
    pages = {path.relative_to(html).as_posix(): path.read_text(encoding="utf-8") for path in sorted(html.rglob("*.html"))}
    soups = {place: BeautifulSoup(text, "html.parser") for place, text in pages.items()}
    anchors = {
        place: {str(tag[key]) for key in ("id", "name") for tag in soup.select(f"[{key}]")} for place, soup in soups.items()
    }
    found = [f"{place}: {text}" for place, soup in soups.items() for text in _of_page(html, place, pages[place], soup, anchors)]
    files = sorted(path for path in html.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in TEXTS:
            found += [f"{path.relative_to(html).as_posix()}: {text}" for text in _of_text(path)]
    size = sum(path.stat().st_size for path in files)
    return found + [f"the site has {size / 1e6:.0f} MB; at most {MOST / 1e6:.0f} are wanted"] * (size > MOST)


def _of_text(path: Path) -> Iterator[str]:
    """What no file may hold: a folder of some machine; and what no style may: something fetched from elsewhere."""
    text = path.read_text(encoding="utf-8")
    yield from sorted({f"names a folder of a machine, {found[0]}" for found in MACHINE.finditer(text)})
    if path.suffix in {".css", ".svg"} and ELSEWHERE.search(text):
        yield "has a style that asks for something elsewhere"


def _of_page(html: Path, place: str, text: str, soup: BeautifulSoup, anchors: dict[str, set[str]]) -> Iterator[str]:
    rules = [tag.get("content") for tag in soup.select("head > meta[http-equiv=Content-Security-Policy]")]
    first = soup.head.find(lambda tag: tag.get("charset") is None) if soup.head else None
    if rules != [policy(text)] or first is None or first.get("http-equiv") != "Content-Security-Policy":
        yield "has no content security policy of its own at its top"
    if not (soup.html and soup.html.get("lang") and soup.title and soup.find("meta", attrs={"name": "description"})):
        yield "lacks its language, title or description"
    for tag in soup.find_all(True):
        yield from _of_tag(html, place, tag, anchors)


def _of_tag(html: Path, place: str, tag: Tag, anchors: dict[str, set[str]]) -> Iterator[str]:
    if tag.name in BARRED:
        yield f"holds <{tag.name}>"
    if tag.name == "table" and "dataframe" in (kinds := str(tag.get("class"))) and "results" not in kinds:
        yield "shows a raw frame"
    if tag.name == "script" and not tag.get("src") and not str(tag.get("type", "")).endswith("json") and not themes_own(tag.text):
        yield f"has an inline script that is not the theme's: {' '.join(tag.text.split())[:60]}"
    yield from (f"has the inline handler {name} on <{tag.name}>" for name in tag.attrs if name.startswith("on"))
    if ELSEWHERE.search(str(tag.get("style", ""))) or (tag.name == "style" and ELSEWHERE.search(tag.text)):
        yield f"has a style that asks for something elsewhere on <{tag.name}>"
    for name in ADDRESSES:
        for address in _addresses(name, tag):
            if why := _wrong(html, place, tag.name, address, anchors):
                yield f"<{tag.name} {name}={address[:100]}> {why}"


def _addresses(name: str, tag: Tag) -> list[str]:
    if tag.get(name) is None:
        return []
    value = str(tag[name])
    return [part.split()[0] for part in value.split(",") if part.strip()] if name == "srcset" else [value.strip()]


def _wrong(html: Path, place: str, tag: str, address: str, anchors: dict[str, set[str]]) -> str:
    """What is wrong with an address in a page; empty where it leads to something that is there, or is a link to elsewhere."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        linked = tag == "a" and parts.scheme in {"http", "https", "mailto"}
        drawn = tag in {"img", "image", "source"} and address.startswith("data:image/")
        return "" if linked or drawn else "asks for something elsewhere, or could run"
    if parts.path.startswith("/"):
        return "starts at a server's root; a page is also read from a file"
    target = (html / place).parent / unquote(parts.path) if parts.path else html / place
    target = target.resolve()
    if not target.is_file() or not target.is_relative_to(html.resolve()):
        return "leads to no file of the site"
    inside = target.relative_to(html.resolve()).as_posix()
    wanted = unquote(parts.fragment)
    return "names an anchor that is not there" if wanted and wanted not in anchors.get(inside, {wanted}) else ""
