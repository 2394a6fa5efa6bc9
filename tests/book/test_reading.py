"""What readers tripped over, each kind in a real browser: on a page of its own with this book's styles and scripts."""

import re
from pathlib import Path

import pytest
from support import chromium

from helpers.book import site

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
PAGE = """<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>A page</title>
<link rel="stylesheet" href="custom.css"><style>* {{ margin: 0 }} article {{ width: 100% }}</style>
<script>window.DOCUMENTATION_OPTIONS = {{}}</script><script src="site.js"></script>
</head><body><main><article class="bd-article">{}</article></main></body></html>"""


@pytest.fixture(scope="module")
def browser():
    if not chromium.PROGRAM:
        pytest.skip("chromium is not installed: what readers tripped over was not looked at in a browser")
    with chromium.browser() as found:
        yield found


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page with that body in this book's styles, at a width and with what follows its address."""

    def at(body: str, width: int = 1400, address: str = "") -> chromium.Browser:
        for name in ("custom.css", "site.js"):
            (tmp_path / name).write_bytes((STATIC / name).read_bytes())
        (tmp_path / "page.html").write_text(PAGE.format(body), encoding="utf-8")
        browser.size(width)
        browser.open(f"{(tmp_path / 'page.html').as_uri()}{address}")
        browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return browser

    return at


LEFT = "document.querySelector('{}').getBoundingClientRect().left"


def test_a_citation_box_keeps_its_first_letters_and_the_list_of_references_hangs(opened):
    box = '<div class="seealso citation admonition"><pre id="a">@software{{x,</pre></div>'
    listed = '<div class="citation-list"><div class="citation"><span class="label">[1]</span><p id="b">Doe</p></div></div>'
    page = opened(box + listed)
    assert page.evaluate("getComputedStyle(document.querySelector('#a')).textIndent") == "0px"
    assert page.evaluate("getComputedStyle(document.querySelector('#b')).textIndent") == "-24px"
    assert page.evaluate("document.querySelector('.label').offsetWidth") == 0


FIGURE = '<figure class="plate"><div class="plate-images" role="group"><img alt="x" width="620" height="99"></div></figure>'


def test_a_figure_that_goes_on_past_a_narrow_screen_fades_there_and_scrolls(opened):
    page = opened(FIGURE, 390)
    seen = "(() => { const box = document.querySelector('.plate-images'); return [box.scrollWidth > box.clientWidth, "
    seen += "getComputedStyle(box).maskImage !== 'none', box.tabIndex]; })()"
    assert page.evaluate(seen) == [True, True, 0]
    page.evaluate("document.querySelector('.plate-images').scrollLeft = 999")
    page.evaluate("new Promise(done => setTimeout(done, 60))")
    assert page.evaluate(seen)[1] is False  # nothing more to come
    assert opened(FIGURE, 1400).evaluate(seen)[:2] == [False, False]


def test_a_long_command_can_be_read_to_its_end(opened):
    page = opened(f'<div class="highlight"><pre id="a">{"word --option value " * 20}</pre></div>')
    assert page.evaluate("(a => a.scrollWidth <= a.clientWidth)(document.querySelector('#a'))")


def test_no_sign_covers_the_query_of_a_search(opened):
    form = '<form class="bd-search"><i>Q</i><input type="search" value="clone"></form>'
    page = opened(f'<div class="bd-search-container">{form}</div><div id="beside">{form}</div>')
    assert page.evaluate("document.querySelector('.bd-search-container i').offsetWidth") == 0
    assert page.evaluate("document.querySelector('#beside i').offsetWidth") > 0  # the field in the header has room for it


FOLDS = "".join(
    f'<details class="{kind}"><summary>{kind}</summary><p>text of {kind}</p></details>'
    for kind in ("hint", "solution", "answer", "tall", "hide")
)


@pytest.mark.parametrize(("address", "seen"), [("", ["tall"]), ("?solutions", ["hint", "solution", "answer", "tall"])])
def test_a_printed_chapter_has_solutions_only_where_the_address_asks_for_them(opened, address, seen):
    page = opened(FOLDS, address=address)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown = "[...document.querySelectorAll('details')].filter(d => d.querySelector('p').checkVisibility()).map(d => d.className)"
    assert page.evaluate(shown) == seen
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.call("Emulation.setEmulatedMedia", media="")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert page.evaluate("document.querySelectorAll('summary').length") == 5


def test_a_link_into_a_folded_part_opens_it(opened):
    body = '<div style="height: 3000px"></div><details><summary>more</summary><p id="n1">a number</p></details>'
    assert opened(body, address="#n1").evaluate("document.querySelector('#n1').checkVisibility()")
    assert not opened(body).evaluate("document.querySelector('#n1').checkVisibility()")


# ---------------------------------------------------------------- tables and sentences of built pages


def table(rows: int, words: str = "word", caption: str = "") -> str:
    head = f"<caption>{caption}</caption>" if caption else ""
    body = "".join(f"<tr><td>{i}</td><td>{words}</td></tr>" for i in range(rows))
    return f"<table>{head}<thead><tr><th>place</th><th>what</th></tr></thead><tbody>{body}</tbody></table>"


def test_a_tall_table_is_folded_under_its_caption_or_its_heads_and_a_short_one_is_not():
    assert site.with_tall_tables_folded(table(9)) == table(9)
    folded = site.with_tall_tables_folded(f"<p>a</p>{table(40)}<p>b</p>{table(40, caption='All <code>x</code>')}")
    assert re.findall("<summary>(.*?)</summary>", folded) == ["By place, what (40 rows)", "All <code>x</code> (40 rows)"]
    assert table(40) in folded
    inside = f"<details><summary>s</summary>{table(40)}</details>"
    assert site.with_tall_tables_folded(inside) == inside


@pytest.mark.parametrize("rows", [10, 30])
@pytest.mark.parametrize("words", ["word", "some words " * 30])
def test_the_height_of_a_table_is_about_what_a_browser_gives_it(opened, rows, words):
    style = "<style>article { width: 785px !important; font: 16px/1.65 sans-serif }</style>"
    page = opened(style + table(rows, words))
    height = page.evaluate("document.querySelector('table').offsetHeight")
    assert site.table_height(table(rows, words)) == pytest.approx(height, rel=0.35)


def test_a_glued_number_is_a_link_and_a_glued_sentence_has_one_behind_it():
    link = '<a class="number" href="p.html#n"><span class="pasted-text">{}</span></a>'
    number, sentence = link.format("6 % [1, 17]"), link.format("mean drop +0.003, claimed below +0.03 (supported); " * 3)
    page = site._finished(f"<html><head><title>t</title></head><body>{number}{sentence}</body></html>", "p.html", "t", "d", "")
    assert number in page
    assert '; </span> <a class="number" href="p.html#n">(rows)</a>' in page
    assert "(rows)" not in site._short_link(site.GLUED.search(number))
