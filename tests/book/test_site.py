"""What is published is safe and findable: each fault is named when planted, and the book as built has none."""

import base64
import hashlib
import html as escaping
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from support import published
from support.tiers import slow

from helpers import cache
from helpers.book import site
from helpers.data import corpora, tasks
from helpers.models import behaviour

THEMES = (
    '\n document.documentElement.dataset.mode = localStorage.getItem("mode") || "auto";\n'
    ' document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";\n',
    "let toggleHintShow = 'Show';",
    "var togglebuttonSelector = '.toggle, .admonition.dropdown';",
    "DOCUMENTATION_OPTIONS.pagename = 'book/first';",
    'window.MathJax = {"options": {"enableMenu": false}}',
    'document.write(`<button class="search">Search</button>`);',
)
STRANGE = (
    "alert(1)",
    "let toggleHintShow = 'Show'; alert(1);",
    "let toggleHintShow = ''+alert(1)+'';",
    'document.write(`<img src="x">${alert(1)}`);',
    'window.MathJax = {"options": alert(1)}',
    "DOCUMENTATION_OPTIONS.pagename = 'x'; alert('x');",
)
PLAIN = 'A first paragraph, long enough to say what the page is about, with "quotes".'
PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>{name} &#8212; A Book</title>
    <script>{script}</script>
    <link rel="stylesheet" href="{up}_static/own.css" />
  </head>
  <body><article><section id="top"><h1>{name}</h1><p>Short.</p><p>{text}</p>{more}</section></article></body>
</html>
"""


def write(html: Path, place: str, more: str = "", script: str = THEMES[0]) -> Path:
    """A page as the builder leaves it."""
    path = html / place
    path.parent.mkdir(parents=True, exist_ok=True)
    up = "../" * place.count("/")
    path.write_text(PAGE.format(name=path.stem, script=script, up=up, text=escaping.escape(PLAIN), more=more), encoding="utf-8")
    return path


def finished(html: Path, *more: str, **changes: str) -> Path:
    """A site of two pages, finished; `more` stands in the second."""
    write(html, "book/first.html", '<p id="here">Here.</p>')
    write(html, "book/second.html", "".join(more), **changes)
    (html / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=book/first.html" />\n')
    (html / "_static").mkdir(exist_ok=True)
    for name in ("own.css", "picture.png", site.CARD.removeprefix("_static/")):
        (html / "_static" / name).write_text("")
    site.finish(html, "A Book", "What it is about.")
    return html


def page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def meta(soup: BeautifulSoup) -> dict[str, str]:
    """The page's metadata by name."""
    return {tag.get("name") or tag.get("property") or tag.get("http-equiv"): tag.get("content") for tag in soup.find_all("meta")}


# ---------------------------------------------------------------- finishing


def test_a_page_runs_its_own_files_and_the_themes_inline_scripts_alone(tmp_path):
    html = finished(tmp_path, '<i class="math">x</i>', *(f"<script>{script}</script>" for script in (*THEMES[1:], *STRANGE)))
    head = page(html / "book/second.html").head
    assert [tag.get("charset") or tag.get("http-equiv") for tag in head.find_all(True)[:2]] == [
        "utf-8",
        "Content-Security-Policy",
    ]
    rules = dict(rule.split(" ", 1) for rule in meta(head)["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == rules["object-src"] == rules["base-uri"] == "'none'"
    assert set(rules["script-src"].split()) == {"'self'", *map(source_of, THEMES)}
    assert "unsafe" not in rules["script-src"]
    assert "http" not in " ".join(rules.values())


def source_of(script: str) -> str:
    """The form in which a policy allows a script by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def test_metadata_says_what_the_page_is_about(tmp_path):
    html = finished(tmp_path)
    found = meta(page(html / "book/second.html"))
    assert found["description"] == found["og:description"] == PLAIN
    assert found["og:title"] == "second"
    assert found["og:image"] == "../_static/social-card.png"
    assert (html / "book" / found["og:image"]).resolve().is_file()
    first = page(html / "index.html")
    assert (first.html["lang"], first.title.text, first.a["href"]) == ("en", "A Book", "book/first.html")
    assert meta(first)["description"] == "What it is about."


def test_a_public_address_makes_the_card_absolute(tmp_path):
    write(tmp_path, "book/first.html")
    site.finish(tmp_path, "A Book", "About.", "https://example.org/book")
    found = meta(page(tmp_path / "book/first.html"))
    assert found["og:image"] == "https://example.org/book/_static/social-card.png"
    assert found["og:url"] == "https://example.org/book/book/first.html"


def test_what_loads_needlessly_or_as_a_handler_is_gone(tmp_path):
    script = (
        '<script>window.MathJax = {}</script><script defer="defer" src="../_static/mathjax/tex-chtml.js"></script>'
        '<script defer="defer" src="../_static/explore.js?v=1"></script>'
    )
    more = '<button onclick="window.print()">Print</button><script src="../_static/vendor/fontawesome/6/js/all.js"></script>'
    font = '<link rel="preload" as="font" type="font/woff2" crossorigin href="../_static/x.woff2" />'
    plain, needy = (
        finished(tmp_path / name, more, script, font, extra)
        for name, extra in (("a", ""), ("b", '<span class="math">x</span><section data-explorable="x"></section>'))
    )
    text = (plain / "book/second.html").read_text()
    assert "data-print" in text
    assert not re.search("onclick|MathJax|mathjax|explore|fontawesome|preload", text)
    assert re.search(r"MathJax(?s:.)*tex-chtml\.js(?s:.)*explore\.js", (needy / "book/second.html").read_text())


def test_the_same_pages_are_finished_to_the_same_bytes(tmp_path):
    first, second = (finished(tmp_path / name, *map("<script>{}</script>".format, THEMES)) for name in "ab")
    assert [path.read_bytes() for path in sorted(first.rglob("*.html"))] == [
        path.read_bytes() for path in sorted(second.rglob("*.html"))
    ]


# ---------------------------------------------------------------- problems


def test_a_sound_site_has_no_problem(tmp_path):
    sound = (
        '<a href="first.html#here">a</a><a href="#top">b</a><a href="https://doi.org/10/x">c</a><a href="first.html?q=1">d</a>'
        '<img src="../_static/picture.png" srcset="../_static/picture.png 2x"><img src="data:image/gif;base64,R0lG">'
        '<script type="application/json">{"a": "alert(1)"}</script><pre>&lt;script&gt;alert(1)&lt;/script&gt; javascript:x</pre>'
    )
    assert site.problems(finished(tmp_path, sound)) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ('<table border="1" class="dataframe"><tr><td>1</td></tr></table>', "shows a raw frame"),
        ('<a href="third.html">x</a>', "no file"),
        ('<a href="first.html#there">x</a>', "anchor"),
        ('<a href="#there">x</a>', "anchor"),
        ('<img src="../_static/none.png">', "no file"),
        ('<img srcset="../_static/picture.png 1x, ../_static/none.png 2x">', "no file"),
        ('<a href="../../outside.html">x</a>', "no file"),
        ('<a href="/book/first.html">x</a>', "root"),
        ('<script src="https://example.org/x.js"></script>', "elsewhere"),
        ('<img src="//example.org/x.png">', "elsewhere"),
        ('<link rel="stylesheet" href="http://example.org/x.css">', "elsewhere"),
        ('<form action="https://example.org"></form>', "elsewhere"),
        ('<video poster="https://example.org/x.png"></video>', "elsewhere"),
        ('<a href="javascript:alert(1)">x</a>', "elsewhere"),
        ('<a href=" JavaScript:alert(1)">x</a>', "elsewhere"),
        ('<a href="data:text/html,x">x</a>', "elsewhere"),
        ('<svg><a xlink:href="javascript:alert(1)">x</a></svg>', "elsewhere"),
        ('<p onmouseover="x()">x</p>', "handler"),
        ("<script>alert(1)</script>", "not the theme's"),
        ('<script type="module">alert(1)</script>', "not the theme's"),
        ('<iframe srcdoc="x"></iframe>', "<iframe>"),
        ("<object></object>", "<object>"),
        ('<base href="x">', "<base>"),
        ("<p style=\"background: url('https://example.org/x')\">x</p>", "style"),
        ("<style>@import '//example.org/x.css'</style>", "style"),
        ("<p>see /{}/somebody/file</p>".format("home"), "machine"),  # the name of no machine may stand in a file
    ],
)
def test_each_fault_is_named_with_its_page(tmp_path, planted, said):
    found = site.problems(finished(tmp_path, planted))
    assert found
    assert all(line.startswith("book/second.html: ") for line in found)
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub("<meta http-equiv[^>]*>", "", text), "policy"),
        (lambda text: text.replace("object-src 'none'", "object-src *"), "policy"),
        (lambda text: text.replace("<head>", '<head><script src="../_static/own.css"></script>'), "policy"),
        (lambda text: text.replace("<title>", "<p>").replace("</title>", "</p>"), "title"),
        (lambda text: text.replace(' lang="en"', ""), "language"),
    ],
)
def test_a_page_without_its_head_is_named(tmp_path, change: Callable[[str], str], said):
    path = finished(tmp_path) / "book/second.html"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert any(said in line for line in site.problems(tmp_path))


def test_a_style_sheet_that_asks_elsewhere_and_a_site_too_large_are_named(tmp_path, monkeypatch):
    html = finished(tmp_path)
    (html / "_static/own.css").write_text("p { background: url(https://example.org/x.png) }")
    assert site.problems(html) == ["_static/own.css: has a style that asks for something elsewhere"]
    (html / "_static/own.css").write_text("p { background: url(picture.png) }")
    monkeypatch.setattr(site, "MOST", 100)
    assert [line for line in site.problems(html) if "MB" in line]


@pytest.mark.parametrize("script", STRANGE)
def test_a_script_like_the_themes_is_not_the_themes(script):
    assert not site.themes_own(script)
    assert all(map(site.themes_own, THEMES))


# ---------------------------------------------------------------- the book


@slow("the whole book of the committed results; that of smoke is built in test_study")
def test_the_book_can_be_published():
    html = published.book()
    assert site.problems(html) == []
    assert len(list(html.rglob("*.html"))) > 15


@slow("the whole book of the committed results; that of smoke is built in test_study")
def test_the_book_can_be_found_and_walked_through():
    html = published.book()
    names = [path for folder in ("book", "notebooks") for path in sorted((html / folder).rglob("*.html"))]
    soups = {path: page(path) for path in names}
    linked = {rel: sum(bool(soup.find("link", rel=rel)) for soup in soups.values()) for rel in ("next", "prev")}
    assert min(linked.values()) >= len(names) - 1  # all but the last, all but the first
    described = [meta(soup)["description"] for soup in soups.values()]
    assert len(set(described)) > 0.9 * len(described)  # pages say what they are about, not one sentence for all
    for path, soup in soups.items():
        titles = soup.select("article :is(h1, h2)")
        assert titles, path.name
        assert all(title.select_one("a.headerlink") for title in titles), path.name
    assert "stale" in (html / "searchindex.js").read_text(encoding="utf-8")


def test_the_vendored_file_is_the_one_that_its_readme_names():
    folder = Path(__file__).parents[1] / "vendor"
    named = dict(re.findall(r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}


def test_the_social_card_is_a_small_picture_of_the_right_size():
    data = (published.ROOT / "book" / site.CARD).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1200, 630)
    assert len(data) < 150_000


# ---------------------------------------------------------------- hostile text


@slow("the whole book of the committed results; that of smoke is built in test_study")
def test_hostile_text_is_shown_and_stays_text():
    html = published.hostile_book()
    soup = page(html / "notebooks" / f"{published.HOST}.html")
    shown = " ".join(soup.get_text().split())
    assert [text for text in published.HOSTILE if " ".join(re.sub(r"\x1b\[\d+m", "", text).split()) not in shown] == []
    inside = [tag for tag in soup.find_all(["script", "style", "svg", "iframe"]) if published.MARK in tag.get_text()]
    named = [
        (tag.name, name)
        for tag in soup.find_all(True)
        for name, value in tag.attrs.items()
        if published.MARK in f"{name} {value}"
    ]
    assert inside == []
    assert {name for _, name in named} <= {"alt", "content"}  # the words for a figure, and those for a search engine
    assert site.problems(html) == []


# ---------------------------------------------------------------- no text of the corpora, no reply, no person

WORD = re.compile(r"[a-z0-9']+")
RUN = 8  # words of a text of the corpora in a row are a quotation
SHORTEST = 5  # shorter texts are phrases of everyday language
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{3}[ .-]\d{3,4}[ .-]\d{3,4}(?![\w.])|\+\d{9,14}\b")
READ = (".html", ".ipynb", ".json", ".csv", ".md", ".svg", ".txt", ".bib", ".inv")


def strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, pictures left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("image/png"):
                yield from strings(item)
    elif isinstance(value, list):
        yield "".join(value) if all(isinstance(item, str) for item in value) else ""
        for item in value:
            yield from strings(item)


def said(path: Path) -> str:
    """What a file of the site says to a reader or a machine, without its markup."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".html":
        return BeautifulSoup(text, "html.parser").get_text("\n")
    if path.suffix == ".svg":
        return escaping.unescape(re.sub(r"<[^>]*>", "\n", text))
    return "\n".join(strings(json.loads(text))) if path.suffix in {".ipynb", ".json"} else text


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def runs(text: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return zip(*(text[start:] for start in range(length)), strict=False)


def passages(known: Iterable[str]) -> set[tuple[str, ...]]:
    """All runs of eight words of the texts, and the shorter texts whole."""
    split = [words(text) for text in known]
    return {part for text in split if len(text) >= SHORTEST for part in runs(text, min(RUN, len(text)))}


def quotations(text: str, known: set[tuple[str, ...]]) -> int:
    """How many of the known passages a text has."""
    found = words(text)
    return sum(part in known for length in range(SHORTEST, RUN + 1) for part in runs(found, length))


@pytest.fixture(scope="module")
def sayings():
    """What each file of the book says."""
    html = published.book()
    return {path.relative_to(html).as_posix(): said(path) for path in sorted(html.rglob("*")) if path.suffix in READ}


def persons(text: str) -> list[str]:
    """Mail addresses and telephone numbers in a text; places reserved for examples are nobody's."""
    mails = [mail for mail in EMAIL.findall(text) if not re.search(r"@(?:[\w-]+\.)*example(?:\.\w+)?$", mail)]
    return mails + [number for number in PHONE.findall(text) if not re.search(r"\b555\b", number)]


@slow("the whole book of the committed results; that of smoke is built in test_study")
def test_no_person_can_be_reached_through_the_book(sayings):
    found = {name: persons(text) for name, text in sayings.items() if not name.startswith("_static/mathjax")}
    assert {name: people for name, people in found.items() if people} == {}
    assert persons("write to jane@mail.org or call +49 170 123 4567, not x@example.org, in 2026-11-22 or 0.123 0.456") == [
        "jane@mail.org",
        "+49 170 123 4567",
    ]


@slow("the whole book of the committed results; that of smoke is built in test_study")
@pytest.mark.real
def test_no_text_of_the_corpora_stands_in_the_book(sayings):
    harmful = [
        row.prompt
        for name in corpora.TEXTS
        if name.startswith(("advbench", "strongreject", "harmbench"))
        for row in corpora.texts(name)
    ]
    for name in ("harmful-request", "refusal-compliance", "toxicity", "jailbreak"):  # privacy-pii is made up by Faker
        harmful += [text for example in tasks.examples(name) for text in (example.prompt, example.reply)]
    assert len(set(harmful)) > 2000
    known, longest = passages(harmful), max(harmful, key=len)
    found = {name: count for name, text in sayings.items() if (count := quotations(text, known))}
    assert found == {}  # names and counts alone: a text is never printed
    assert quotations(f"before {longest[: len(longest) // 2].upper()}\n after", known) > 0  # the control: half a text is found


def codes(text: str) -> set[str]:
    """The hashes of a text's lines and paragraphs, in the form in which a reply's is kept; a word or two are no reply."""
    parts = {part.strip() for part in [*text.split("\n"), *re.split(r"\n\s*\n", text)]}
    parts |= {part.strip("\"' ") for part in parts}
    return {hashlib.sha256(part.encode()).hexdigest()[:12] for part in parts if len(words(part)) > 2}


@slow("the whole book of the committed results; that of smoke is built in test_study")
@pytest.mark.real
def test_no_reply_of_the_model_stands_in_the_book(sayings):
    """Replies are not kept, but their hashes are: no line and no paragraph has one of them."""
    measured = [pd.read_parquet(path) for path in sorted((cache.cache_folder() / "measurements").glob("*.parquet"))]
    replies = {code for table in measured for code in table.loc[table["kind"] == "harmful", "hash"] if code}
    if not replies:
        pytest.skip("no variant was measured with this cache: there are no hashes of replies to look for")
    assert {name: len(codes(text) & replies) for name, text in sayings.items() if codes(text) & replies} == {}
    reply = behaviour.measure_behaviour.__doc__.split("\n")[0]  # the control: any sentence, as a reply's hash would be kept
    assert hashlib.sha256(reply.encode()).hexdigest()[:12] in codes(f"He said:\n  '{reply}'\nand no more.")
