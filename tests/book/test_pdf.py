"""The book as one document and as a PDF: order, anchors, links, what stays at home, and the sheets that its contents name."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from support import chromium
from support.tiers import slow

from helpers.book.away import document, pdf
from helpers.errors import ENVIRONMENT, REFUSED, StudyError

ABOUT = {"title": "A Book & more", "description": "About <it>.", "author": "Them", "run": "A run.", "logo": "_static/logo.svg"}
NAV = """<nav class="bd-links"><ul><li><a class="reference internal" href="index.html">A Book</a></li></ul>
<p class="caption"><span>Reading</span></p><ul><li><a class="reference internal" href="../notebooks/02.html">Two</a></li>
<li><a class="reference internal" href="#">One</a><details><summary>x</summary><ul>
<li><a class="reference internal" href="deep/x.html#top">Deep</a></li></ul></details></li></ul></nav>"""
FIRST = """<h1 id="top">A Book</h1><p><a href="../notebooks/02.html#top">two</a> <a href="#top">here</a>
<a href="../notebooks/02.html">all</a>
<a href="https://example.org/x">away</a> <a href="../_static/data.csv">data</a></p><a class="headerlink" href="#top">#</a>"""
SECOND = """<h1 id="top">Two</h1><label for="box">x</label><input id="box">
<details class="hint"><summary>Hint</summary>HINTED</details><details class="solution"><summary>Solution</summary>SOLVED</details>
<details class="answer"><summary>Answer</summary>ANSWERED</details><details class="other"><summary>More</summary>KEPT</details>
<details class="tall"><summary>By a, b (2 rows)</summary><table><tr><td>TALL</td></tr></table></details>
<details class="tall"><summary>Named (2 rows)</summary><table><caption>Named</caption><tr><td>x</td></tr></table></details>
<figure class="plate"><img class="only-light" loading="lazy" src="../_static/a.svg"><img class="only-dark" src="../_static/b.svg">
<figcaption>CSV</figcaption></figure><svg><path id="inner"/><use href="#inner"/></svg><img src="data:image/gif;base64,R0lG">
<script>alert(1)</script><script type="application/json">{"x": 1}</script>"""
DEEP = '<h1 id="top">Deep</h1><p><a href="../../book/index.html#top">up</a><img src="../../_static/a.svg"></p>'


def page(text: str, math: str = "") -> str:
    styles = '<link rel="stylesheet" href="../_static/custom.css?v=1"><link rel="stylesheet" href="../_static/theme.css?v=2">'
    body = f'{NAV}<article class="bd-article"><section>{text}</section></article>'
    return f"<html><head>{styles}{math}</head><body>{body}</body></html>"


def site(root: Path, more: str = "") -> Path:
    """A built site of three pages, of which the second has formulas."""
    texts = {"book/index.html": page(FIRST), "book/deep/x.html": page(DEEP)}
    texts["notebooks/02.html"] = page(SECOND + more, '<script>window.MathJax = {"options": {}}</script>')
    texts["index.html"] = '<head><meta http-equiv="refresh" content="0; url=book/index.html" /></head>'
    drawn = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='40'><rect width='40' height='40'/></svg>"
    texts |= {"_static/custom.css": "@media print { p { color: black } }", "_static/theme.css": "", "_static/a.svg": drawn}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def whole(html: Path, numbers: dict[str, int] | None = None) -> tuple[str, BeautifulSoup]:
    entries = [entry for entry in document.contents(html) if entry.title != "One"]  # a page that is the first once more
    text = document.combined(html, entries, ABOUT, numbers or {})
    return text, BeautifulSoup(text, "html.parser")


# ---------------------------------------------------------------- one document


def test_contents_are_the_pages_of_the_site_with_parts_titles_and_depths(tmp_path):
    found = [(entry.part, entry.place, entry.title, entry.depth) for entry in document.contents(site(tmp_path))]
    assert found == [
        ("", "book/index.html", "A Book", 1),
        ("Reading", "notebooks/02.html", "Two", 1),
        ("Reading", "book/index.html", "One", 1),
        ("Reading", "book/deep/x.html", "Deep", 2),
    ]


def test_pages_stand_in_order_after_cover_and_contents_with_anchors_of_their_own(tmp_path):
    text, soup = whole(site(tmp_path))
    assert [tag["id"] for tag in soup.select("section#cover, section#contents, article")] == [
        *("cover", "contents", "page-book-index", "page-notebooks-02", "page-book-deep-x")
    ]
    anchors = [tag["id"] for tag in soup.select("[id]")]
    assert len(anchors) == len(set(anchors))
    assert "A Book &amp; more" in text
    assert "About &lt;it&gt;." in text
    assert soup.find("label")["for"] == soup.find("input")["id"] == "page-notebooks-02--box"
    assert soup.select_one("svg use")["href"] == f"#{soup.select_one('svg path')['id']}"  # a drawing keeps its own names


def test_links_between_pages_stay_links_and_files_beside_the_book_are_none(tmp_path):
    _, soup = whole(site(tmp_path))
    links = {tag.text: tag.get("href") for tag in soup.select("article a")}
    assert links == {
        "two": "#page-notebooks-02--top", "here": "#page-book-index--top", "all": "#page-notebooks-02",
        "away": "https://example.org/x", "data": None, "up": "#page-book-index--top",
    }  # fmt: skip
    aims = {tag["id"] for tag in soup.select("[id]")}
    assert {href[1:] for href in links.values() if href and href.startswith("#")} <= aims
    assert {tag["src"] for tag in soup.select("article img")} == {"_static/a.svg", "data:image/gif;base64,R0lG"}


def test_solutions_stay_at_home_and_the_rest_is_open_and_light(tmp_path):
    text, soup = whole(site(tmp_path))
    assert not re.search("HINTED|SOLVED|ANSWERED|alert|only-dark|figcaption|loading=|headerlink", text)
    assert [(tag["class"], tag.get("open")) for tag in soup.find_all("details")] == [(["other"], "")]
    assert "KEPT" in text
    assert [tag.text for tag in soup.find_all("caption")] == ["By a, b (2 rows)", "Named"]
    assert '{"x": 1}' in text  # what a figure is drawn from
    assert soup.html["data-theme"] == "light"


def test_the_styles_of_the_site_hold_and_its_own_rules_for_print_hold_where_widths_are_measured(tmp_path):
    text, soup = whole(site(tmp_path))
    assert "@media all { p { color: black } }" in text
    assert [tag["href"] for tag in soup.select("link[rel=stylesheet]")] == ["_static/theme.css"]
    assert 'window.MathJax = {"options": {}}' in text
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!example)', text)


def test_the_contents_name_the_sheets(tmp_path):
    _, soup = whole(site(tmp_path), {"page-book-index": 4, "page-notebooks-02": 17})
    lines = [(tag.a["href"], tag.span.text, tag.get("class")) for tag in soup.select("#contents p")]
    assert lines == [
        ("#page-book-index", "4", None), ("#page-notebooks-02", "17", None), ("#page-book-deep-x", "000", ["below"])
    ]  # fmt: skip
    assert [tag.text for tag in soup.select("#contents h2")] == ["Reading"]


def test_a_site_without_contents_or_a_page_without_text_is_refused(tmp_path):
    html = site(tmp_path)
    (html / "notebooks/02.html").write_text("<p>nothing</p>")
    with pytest.raises(StudyError, match=r"notebooks/02.html .* make book") as caught:
        whole(html)
    assert caught.value.code == REFUSED
    (html / "book/index.html").write_text("<p>nothing</p>")
    with pytest.raises(StudyError, match="no contents"):
        document.contents(html)


# ---------------------------------------------------------------- printing

PRINTED = b"""%PDF-1.4
7 0 obj
<</Type /Page
/Parent 9 0 R>>
endobj
9 0 obj
<</Type /Pages
/Count 2
/Kids [12 0 R 7 0 R]
/Parent 11 0 R>>
endobj
10 0 obj
<</Type /Pages
/Count 1
/Kids [3 0 R]
/Parent 11 0 R>>
endobj
11 0 obj
<</Type /Pages
/Count 3
/Kids [9 0 R 10 0 R]>>
endobj
13 0 obj
<</page-a [7 0 R /XYZ 0 815.7 0]
/page-b--x [3 0 R /XYZ 0 1 0]
/page-c [12 0 R /XYZ 0 1 0]>>
endobj
14 0 obj
<</Type /Catalog
/Pages 11 0 R
/Dests 13 0 R>>
endobj
"""


def test_sheets_are_counted_through_the_tree_of_pages():
    assert pdf.sheets(PRINTED) == {"page-c": 1, "page-a": 2, "page-b--x": 3}
    with pytest.raises(StudyError, match="names no places") as caught:
        pdf.sheets(PRINTED.replace(b"/Dests 13 0 R", b""))
    assert caught.value.code == ENVIRONMENT


@pytest.mark.parametrize("named", ["", "no-such-chromium"])
def test_without_chromium_one_line_says_what_to_do(named, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CHROMIUM", named)
    with pytest.raises(StudyError, match=r"needs chromium, and .*; install it, or name it: CHROMIUM=path make pdf") as caught:
        pdf.pdf(tmp_path, "cpu", tmp_path)
    assert caught.value.code == ENVIRONMENT
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing was built for nothing


@pytest.mark.parametrize(
    ("does", "said"), [("echo no room >&2; exit 3", "ended with 3 and said: no room"), ("exit 0", "ended with 0")]
)
def test_a_chromium_that_fails_is_one_line(does, said, monkeypatch, tmp_path):
    (tmp_path / "c").write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / "c").chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "c"))
    with pytest.raises(StudyError, match=said):
        pdf.printed(tmp_path / "x.html")


def played(monkeypatch: pytest.MonkeyPatch, *prints: dict[str, int]) -> list[dict[str, int]]:
    """Lets chromium print what is given, one after the other; what the contents said each time is gathered."""
    left, asked = list(prints), []
    monkeypatch.setattr(document, "combined", lambda html, entries, about, numbers: asked.append(dict(numbers)) or "")
    monkeypatch.setattr(document, "contents", lambda html: [document.Entry("", "a.html", "A", 1)])
    monkeypatch.setattr(pdf, "printed", lambda page: b"print")
    monkeypatch.setattr(pdf, "sheets", lambda found: left.pop(0))
    return asked


def test_it_is_printed_until_the_contents_are_right(monkeypatch, tmp_path):
    done, (html, work) = {document.DONE: 2}, (tmp_path / "html", tmp_path / "work")
    html.mkdir(), work.mkdir()
    asked = played(monkeypatch, {"page-a": 3, **done}, {"page-a": 4, **done}, {"page-a": 4, **done})
    assert pdf.numbered(html, ABOUT, work) == b"print"
    assert asked == [{}, {"page-a": 3}, {"page-a": 4}]
    played(monkeypatch, *({"page-a": place, **done} for place in range(9)))
    with pytest.raises(StudyError, match="moved in each of"):
        pdf.numbered(html, ABOUT, work)
    played(monkeypatch, {"page-a": 3})
    with pytest.raises(StudyError, match="before formulas and figures were set"):
        pdf.numbered(html, ABOUT, work)


@slow("a real print; one document and the numbers of its sheets are tested without chromium")
@pytest.mark.browser
@pytest.mark.skipif(not chromium.PROGRAM, reason="chromium is not installed: no PDF of the book was printed")
def test_chromium_prints_one_file_whose_contents_lead_to_the_right_sheets(tmp_path):
    rows = "".join(f"<tr><td>{'wide ' * 9}{i}</td>{'<td>unbreakable-' * 9}</tr>" for i in range(99))
    html, work = site(tmp_path / "html", f"<table style='white-space: nowrap'>{rows}</table>"), tmp_path / "work"
    (html / "book" / "index.html").write_text(page(FIRST).replace('<li><a class="reference internal" href="#">One</a>', "<li>"))
    work.mkdir()
    found = pdf.numbered(html, ABOUT, work)
    assert found.startswith(b"%PDF-")
    assert b"/Outlines" in found
    places, count = pdf.sheets(found), len(re.findall(rb"/Type\s*/Page\b", found))
    starts = [places[f"page-{name}"] for name in ("book-index", "notebooks-02", "book-deep-x")]
    assert starts[:2] == [3, 4]  # after cover and contents
    assert starts[1] + 1 < starts[2] == count  # the long table takes more than a sheet
    printed = (work / "the-book.html").read_text(encoding="utf-8")
    assert re.findall(r"<span>(\d+)</span></p>", printed) == [str(place) for place in starts]
    assert sorted(path.name for path in html.iterdir()) == ["_static", "book", "index.html", "notebooks"]
