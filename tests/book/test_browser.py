"""Every page in a real browser: nothing fails, nothing is missing, all of it can be read, wide and narrow, light and dark."""

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from support import chromium, published
from support.tiers import mostly_slow, slow

from helpers.book import site

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.PROGRAM, reason="chromium is not installed: no page of the book was looked at in a browser"),
]
AXE = (Path(__file__).parents[1] / "vendor" / "axe.min.js").read_text(encoding="utf-8")
WIDE, NARROW = 1400, 390
FIRST, MATHS = "book/index.html", f"notebooks/{published.HOST}.html"
FIRST_MOST = 10**6  # bytes of the first page with all that it loads
# Folded parts are opened and late images fetched, so that they are looked at too; nothing moves, so colours are those that stay.
OPENED = """(async () => {
    for (const part of document.querySelectorAll('details')) part.open = true;
    for (const part of document.querySelectorAll('.toggle-hidden')) part.classList.remove('toggle-hidden');
    const still = 'transition: none !important; animation: none !important';
    document.head.insertAdjacentHTML('beforeend', `<style>*, ::before, ::after { ${still} }</style>`);
    for (const image of document.images) image.loading = 'eager';
    await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
})()"""
SCROLLED = """(async () => {
    const shown = [...document.images].filter(image => image.offsetParent);
    for (const image of shown) image.loading = 'eager';
    await Promise.all(shown.map(image => image.decode()));
})()"""
MISSING = "[...document.images].filter(image => !image.naturalWidth).map(image => image.getAttribute('src'))"
MODE = "document.documentElement.dataset.theme = document.documentElement.dataset.mode = '%s'"
# What sticks out at the right, unless it lies in a box that scrolls or in a panel beside the page; the farthest are named.
OVERFLOW = """(() => {
    const wide = innerWidth + 1, found = [];
    const held = part => { for (let box = part; box && box !== document.body; box = box.parentElement) {
        const way = getComputedStyle(box);
        if (way.position === 'fixed') return true;
        if (box !== part && way.overflowX !== 'visible' && box.getBoundingClientRect().right <= wide) return true;
    } return false; };
    for (const part of document.querySelectorAll('body *')) {
        const place = part.getBoundingClientRect(), open = getComputedStyle(part).overflowX === 'visible';
        const right = Math.max(place.right, open ? place.left + part.scrollWidth : 0);
        if (place.width && right > wide && !held(part)) found.push([Math.round(right), part]);
    }
    const name = ([right, part]) => `${part.tagName.toLowerCase()}.${part.getAttribute('class')} reaches to ${right}: ` +
        part.textContent.trim().slice(0, 60);
    const page = document.documentElement.scrollWidth > wide ? [`the page is ${document.documentElement.scrollWidth} wide`] : [];
    return [...page, ...found.sort((a, b) => b[0] - a[0]).slice(0, 3).map(name)];
})()"""
# Where what a selector names ends, how many numbers lead from it to their origin, and its text.
ENDS = """[...document.querySelectorAll('{}')].map(part => [
    Math.round(part.getBoundingClientRect().bottom + scrollY),
    part.querySelectorAll('a.number[href]').length, part.textContent])"""
SEARCHES = {
    "PII probe": "book/faq.html",
    "what should I check first": "book/faq.html",
    "recalibrate threshold": "book/faq.html",
    "classifier": "book/faq.html",
    "drift": "book/faq.html",
    "merge adapter": "book/faq.html",
    "SafeLoRA": "notebooks/07_projection.html",
    "QLoRA": "notebooks/05_staleness.html",
    "CORAL": "book/faq.html",
    "threshold": "book/glossary.html",
}
GRAVE = {"serious", "critical"}
ALL = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
SCROLLS = {"runOnly": {"type": "rule", "values": ["scrollable-region-focusable"]}}


def axe(browser: chromium.Browser, rules: dict) -> list[str]:
    """What axe finds in the page as it stands, one line an element."""
    run = f"axe.run(document, {json.dumps({**rules, 'resultTypes': ['violations']})}).then(found => found.violations)"
    return [
        f"{rule['id']}: {node['target'][-1]}: {' '.join(node['failureSummary'].split())[:160]}"
        for rule in browser.evaluate(run)
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


def inspect(browser: chromium.Browser, address: str, place: str) -> dict[str, list[str]]:
    """What is wrong with one page, by kind."""
    browser.size(WIDE)
    browser.open(address)
    browser.evaluate(OPENED)
    browser.evaluate(AXE)
    found = {"missing": browser.evaluate(MISSING)}
    for mode, rules in (("light", ALL), ("dark", COLOURS)):
        browser.evaluate(MODE % mode)
        found[mode] = axe(browser, rules)
    browser.size(NARROW)
    browser.evaluate(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )  # site.js marks what scrolls
    found["narrow"] = browser.evaluate(OVERFLOW) + axe(browser, SCROLLS)
    found["complaints"] = browser.complaints(place)
    return found


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as found:
        yield found


@pytest.fixture(scope="module")
def book():
    with chromium.served(published.book()) as address:
        yield address


# ---------------------------------------------------------------- the inspection itself

SOUND = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title></head><body><main><h1>A page</h1>{}</main>'
)


def of_page(browser: chromium.Browser, folder: Path, body: str) -> dict[str, list[str]]:
    """What the inspection finds in a page with that body; kinds without a finding are left out."""
    (folder / "page.html").write_text(SOUND.format(body), encoding="utf-8")
    (folder / "favicon.ico").write_bytes(b"")
    with chromium.served(folder) as address:
        return {kind: found for kind, found in inspect(browser, f"{address}/page.html", address).items() if found}


@mostly_slow("a page for each kind of fault")
@pytest.mark.parametrize(
    ("planted", "kind", "said"),
    [
        ('<p style="color: #999; background: #fff">faint</p>', "light", "color-contrast"),
        (
            '<style>[data-theme="dark"] p { color: #333; background: #000 }</style><p>faint in the dark</p>',
            "dark",
            "color-contrast",
        ),
        (
            '<details><summary>more</summary><p style="color: #999; background: #fff">faint, folded</p></details>',
            "light",
            "contrast",
        ),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "light", "image-alt"),
        ('<div style="width: 600px">wide</div>', "narrow", "div"),
        ("<pre>" + "x" * 99 + "</pre>", "narrow", "pre"),
        ('<div style="overflow-x: auto"><p style="width: 600px">' + "word " * 99 + "</p></div>", "narrow", "focusable"),
        ('<img src="none.png" alt="none">', "missing", "none.png"),
        ('<img src="none.png" alt="none" loading="lazy" style="display: none">', "missing", "none.png"),
        ("<script>console.error('planted')</script>", "complaints", "console: planted"),
        ("<script>planted()</script>", "complaints", "exception"),
        ("<script>Promise.reject(Error('planted'))</script>", "complaints", "exception"),
        ('<script src="none.js"></script>', "complaints", "404"),
        ("<script>alert('planted')</script>", "complaints", "dialog: planted"),
        ('<img src="http://example.org/x.png" alt="x">', "complaints", "request to elsewhere: http://example.org/x.png"),
        ("<script>fetch('https://127.0.0.1:1/').catch(() => 0)</script>", "complaints", "request to elsewhere"),
        (
            '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'"><script>1</script>',
            "complaints",
            "Content Security",
        ),
    ],
)
def test_the_inspection_finds_what_is_planted(browser, tmp_path, planted, kind, said):
    found = of_page(browser, tmp_path, planted)
    assert any(said in line for line in found.get(kind, [])), found


def test_the_inspection_finds_nothing_in_a_sound_page(browser, tmp_path):
    wide = '<div style="overflow-x: auto" tabindex="0"><table style="width: 900px"><tr><td>wide</td></tr></table></div>'
    assert of_page(browser, tmp_path, f"<p>Read me.</p>{wide}") == {}


# ---------------------------------------------------------------- every page


@pytest.fixture(scope="module")
def seen(browser, book):
    """What is wrong with each page of the book, by page and kind."""
    names = sorted(path.relative_to(published.book()).as_posix() for path in published.book().rglob("*.html"))
    return {name: inspect(browser, f"{book}/{name}", book) for name in names if name != "index.html"}


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
@pytest.mark.parametrize("kind", ["complaints", "missing", "light", "dark", "narrow"])
def test_every_page_is_right(seen, kind):
    assert len(seen) > 15
    assert {name: found[kind] for name, found in seen.items() if found[kind]} == {}


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_the_first_page_is_light_and_the_root_leads_to_it(browser, book):
    browser.size(WIDE)
    browser.call("Network.setCacheDisabled", cacheDisabled=True)
    browser.open(f"{book}/{FIRST}")
    browser.evaluate(SCROLLED)  # what comes late counts too, but not the images of the other mode
    sizes = {event["requestId"]: event["encodedDataLength"] for name, event in browser.seen if name == "Network.loadingFinished"}
    browser.call("Network.setCacheDisabled", cacheDisabled=False)
    assert len(sizes) > 10
    assert sum(sizes.values()) <= FIRST_MOST
    browser.open(f"{book}/index.html")
    assert until(browser, "location.pathname", lambda path: path != "/index.html") == f"/{FIRST}"


def until(browser: chromium.Browser, script: str, wanted: Callable[[object], bool] = bool, tries: int = 50) -> object:
    """The value of the script once it is wanted, or after as many tenths of a second."""
    for _ in range(tries):
        value = browser.evaluate(script)
        if wanted(value):
            return value
        time.sleep(0.1)
    return value


# ---------------------------------------------------------------- what a reader does, from a server and from a file


@pytest.fixture(params=["server", "file"])
def root(request, book):
    return book if request.param == "server" else published.book().as_uri()


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_the_search_finds_a_word(browser, root):
    browser.open(f"{root}/search.html?q=stale")
    assert until(browser, "document.querySelectorAll('#search-results a').length", lambda count: count >= 3) >= 3
    assert "Glossary" in until(browser, "document.querySelector('#search-results').innerText", lambda text: "Glossary" in text)
    assert browser.complaints(root) == []


@slow("the published book in a real browser; the sentences themselves are tested in test_answers")
@pytest.mark.parametrize(("query", "page"), SEARCHES.items())
def test_the_words_of_engineers_find_their_page_among_the_first_three(browser, book, query, page):
    browser.open(f"{book}/search.html?q={quote(query)}")
    until(browser, "document.querySelector('.search-summary')?.textContent ?? ''", lambda text: "found" in text)
    found = browser.evaluate("[...document.querySelectorAll('ul.search li > a')].map(link => link.getAttribute('href'))")
    assert page in [link.partition("#")[0].partition("?")[0] for link in found][:3]


@slow("the published book in a real browser; the sentences themselves are tested in test_answers")
@pytest.mark.parametrize(("width", "height"), [(WIDE, 1000), (NARROW, 844)])
def test_what_was_found_stands_in_the_first_view(browser, book, width, height):
    browser.size(width, height)
    browser.open(f"{book}/{FIRST}")
    items = browser.evaluate(ENDS.format("#on-monday ol > li"))
    assert 3 <= len(items) <= 5
    assert sorted(end for end, *_ in items)[2] <= height
    for end, numbers, text in items:
        assert numbers or "not measured" in text, (end, text)
    for path in sorted((published.book() / "notebooks").glob("[0-9]*.html")):
        browser.open(f"{book}/notebooks/{path.name}")
        ((end, numbers, text),) = browser.evaluate(ENDS.format(".in-short"))
        assert end <= 700, path.stem
        assert numbers or "measures it" in text or "makes it" in text, path.stem
        assert not re.search("if there is|where the profile|may or may not", text, re.IGNORECASE)


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_formulas_are_set_and_the_mode_can_be_switched(browser, root):
    browser.size(WIDE)
    browser.open(f"{root}/{MATHS}")
    assert browser.evaluate("document.querySelectorAll('mjx-container').length") > 3
    before = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):  # auto, light, dark: two steps reach another ground than the first
        browser.evaluate("[...document.querySelectorAll('.theme-switch-button')].find(b => b.offsetWidth).click()")
        if browser.evaluate("getComputedStyle(document.body).backgroundColor") != before:
            break
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert browser.evaluate("localStorage.getItem('theme')") == browser.evaluate("document.documentElement.dataset.theme")
    browser.evaluate("localStorage.clear()")
    assert browser.complaints(root) == []


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_code_can_be_copied_and_the_next_page_reached(browser, root):
    browser.open(f"{root}/{MATHS}")
    browser.evaluate("document.addEventListener('copy', () => window.copied = String(getSelection())); 1")
    browser.evaluate("document.querySelector('button.copybtn').click()")
    first = browser.evaluate("document.querySelector('div.highlight pre').innerText.trim().slice(0, 20)")
    selected = until(browser, "document.querySelector('button.copybtn.success') !== null")
    assert selected
    assert first
    linked = "[...document.querySelectorAll('.prev-next-footer a')].map(a => a.title)"
    assert browser.evaluate(linked) == ["previous page", "next page"]
    assert browser.complaints(root) == []


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_paper_shows_the_text_alone_in_light_with_all_parts_open_but_solutions(browser, book):
    browser.size(WIDE)
    browser.open(f"{book}/{MATHS}")
    browser.evaluate(MODE % "dark")
    browser.evaluate(
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<details><summary>x</summary>y</details>')"
    )
    browser.evaluate("window.printed = 0; window.print = () => printed++; document.querySelector('[data-print]').click()")
    assert browser.evaluate("printed") == 1
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    aside = ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, .copybtn, .headerlink"
    assert browser.evaluate(f"[...document.querySelectorAll('{aside}')].filter(part => part.offsetWidth).length") == 0
    at_home = "details:is(.hint, .solution, .answer)"  # what a class is not handed, unless the address ends in ?solutions
    assert browser.evaluate(f"document.querySelectorAll('details:not([open]):not({at_home})').length") == 0
    assert browser.evaluate(f"[...document.querySelectorAll('{at_home}')].filter(part => part.offsetHeight).length") == 0
    assert browser.evaluate(f"document.querySelectorAll('{at_home}').length") >= 9
    assert browser.evaluate("document.documentElement.dataset.theme") == "light"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") >= 1


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_every_handout_fits_on_one_sheet(browser, book):
    handouts = sorted(path.relative_to(published.book()) for path in published.book().rglob("handout-*.html"))
    sheets = {}
    for path in [*handouts, Path(MATHS)]:
        browser.open(f"{book}/{path.as_posix()}")
        printed = base64.b64decode(browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])  # A4
        sheets[path.stem] = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert sheets.pop(Path(MATHS).stem) > 1  # the control: a chapter does not
    assert set(sheets.values()) <= {1}, sheets


# ---------------------------------------------------------------- what readers tripped over, on every page

TALL = """[...document.querySelectorAll('article table')].filter(t => t.checkVisibility() && t.offsetHeight > 900
    && !document.querySelector('[data-explorable]')).map(t => `a table of ${t.offsetHeight} px`)"""
CUT = """[...document.querySelectorAll('article pre')].filter(p => p.checkVisibility() && p.scrollWidth > p.clientWidth + 1)
    .map(p => `cut: ${p.innerText.slice(0, 40)}`)"""
RAW = "[...document.querySelectorAll('article table.dataframe:not(.results)')].map(t => 'a raw frame')"
LINES = """[...document.querySelectorAll('a.number')].filter(a => a.innerText.length > 60 && a.checkVisibility())
    .map(a => `underlined: ${a.innerText.slice(0, 40)}`)"""
TICKS = "[...document.querySelectorAll('article caption')].filter(c => c.innerText.includes('`')).map(c => c.innerText)"


@slow("the published book in a real browser; pages of a few lines stay, in test_reading")
def test_no_page_has_what_readers_tripped_over(browser, book):
    browser.size(WIDE, 1000)
    found = {}
    for path in sorted(published.book().rglob("*.html")):
        name = path.relative_to(published.book()).as_posix()
        if name != "index.html":
            browser.open(f"{book}/{name}")
            found[name] = [line for script in (TALL, CUT, RAW, LINES, TICKS) for line in browser.evaluate(script)]
    assert {name: lines for name, lines in found.items() if lines} == {}
    browser.open(f"{book}/{MATHS}")
    cells = "[...document.querySelectorAll('article .cell')].slice(0, 2).map(c => c.querySelector('details.hide') !== null)"
    assert browser.evaluate(cells) == [True, True]  # parameters and set-up


# ---------------------------------------------------------------- hostile text

# tables that a figure reads are no scripts that run
LIVE = """document.querySelectorAll(
    '.pwned, [href^=javascript], [src*=pwned], [srcdoc], article script:not([type="application/json"]), article iframe'
).length"""


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
def test_hostile_text_does_nothing_in_a_page(browser):
    with chromium.served(published.hostile_book()) as address:
        browser.open(f"{address}/{MATHS}")
        assert browser.evaluate("document.body.innerText.includes('<img src=pwned.png onerror=')")
        assert browser.evaluate("document.querySelectorAll('mjx-container').length") > 3
        assert (browser.evaluate("window.pwned"), browser.evaluate(LIVE)) == (None, 0)
        assert browser.complaints(address) == []


@slow("the published book in a real browser; one page of the smoke book stays, in test_study")
@pytest.mark.parametrize("text", published.HOSTILE[:6])
def test_hostile_words_do_nothing_in_the_search(browser, book, text):
    browser.open(f"{book}/search.html?q={quote(text)}&highlight={quote(text)}")
    assert until(browser, "/search finished|did not match/i.test(document.querySelector('#search-results').innerText)")
    assert browser.evaluate("window.pwned") is None
    assert browser.complaints(book) == []


def test_were_hostile_text_live_the_policy_would_stop_it(browser, tmp_path):
    """The second wall: the same page executes what is planted without its policy, and nothing with it."""
    ran = {}
    for name in ("open", "walled"):
        folder = tmp_path / name
        folder.mkdir()
        body = (
            "".join(published.HOSTILE[2:5]) + "<script>window.pwned = 'script'</script><p>A paragraph, as every page has one.</p>"
        )
        (folder / "page.html").write_text(SOUND.format(body).replace("<head>", "<head>\n"), encoding="utf-8")
        if name == "walled":
            site.finish(folder, "A Book", "About.")
            assert len(site.problems(folder)) >= 4
        with chromium.served(folder) as address:
            browser.open(f"{address}/page.html")
            ran[name] = [until(browser, "window.pwned", tries=10)]
            browser.evaluate("window.pwned = null; document.querySelector('a').click()")
            ran[name].append(until(browser, "window.pwned", tries=10))
    assert all(ran["open"])
    assert ran["walled"] == [None, None]
