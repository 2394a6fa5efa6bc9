"""The report in a real browser: whatever names and texts stand in it, nothing of them runs, opens or is fetched."""

import html as escaping

import pytest
from support import chromium
from test_report_files import at, places, planted

from helpers.revalidation.report import files

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.PROGRAM, reason="chromium is not installed: no report was opened in a browser"),
]

MARK = "window.ran = true"
ACTING = (
    f"<script>{MARK}</script>", f"<img src=x onerror='{MARK}'>", f"<svg onload='{MARK}'></svg>",
    "</style><script src=/away.js></script>", f'"><body onpageshow="{MARK}">', "<link rel=stylesheet href=/away.css>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'></iframe>", "<meta http-equiv=refresh content='0;/away'>",
    f"<details open ontoggle='{MARK}'>x</details>", "<base href=/away/>", f"]]><script>{MARK}</script>",
    f"<math><mtext><style><img src=x onerror='{MARK}'></style></mtext></math>", "</title><object data=/away></object>",
)  # fmt: skip
STRANGE = "img, iframe, object, embed, base, form, math, meta[http-equiv=refresh]"
FOUND = f"""({{
    ran: window.ran === true, scripts: document.scripts.length, place: location.pathname,
    acting: [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames().filter(n => n.startsWith('on'))),
    strange: [...document.querySelectorAll('{STRANGE}')].map(e => e.tagName),
}})"""
NOTHING = {"ran": False, "scripts": 0, "acting": [], "strange": [], "place": "/report.html"}


def acting():
    """A report with something that acts in every string, and under the names of its behaviour."""
    found = planted()
    for i, path in enumerate(places(found)):
        at(found, path[:-1])[path[-1]] = f"{ACTING[i % len(ACTING)]}{i}"
    found["behaviour"] |= {f"key {text}": text for text in ACTING}
    return found


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as found:
        yield found


def opened(browser, folder):
    """What stands in a report's page once it has settled, and what the browser complained of or asked for elsewhere."""
    with chromium.served(folder) as address:
        browser.open(f"{address}/report.html")
        found = browser.evaluate(f"new Promise(done => setTimeout(() => done({FOUND}), 300))")
        own = (f"{address}/report.html", "data:", "about:")
        asked = [event["request"]["url"] for name, event in browser.seen if name == "Network.requestWillBeSent"]
        return found, [*browser.complaints(address), *(url for url in asked if not url.startswith(own))]


@pytest.mark.parametrize("make", [acting, planted])
def test_nothing_of_a_hostile_report_acts_in_a_browser(browser, tmp_path, make):
    folder = tmp_path / "out"
    files.write(make(), folder)
    assert opened(browser, folder) == (NOTHING, [])


def test_the_same_page_acts_where_nothing_is_escaped(browser, tmp_path):
    """The control: the browser does run what was planted, and says so."""
    files.write(acting(), tmp_path / "out")
    path = tmp_path / "out" / "report.html"
    page = path.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    plain = escaping.unescape(page.replace("Content-Security-Policy", "x-nothing"))
    path.write_text(plain.replace("http-equiv=refresh", ""), encoding="utf-8")  # which would lead away before anything is seen
    found, complaints = opened(browser, tmp_path / "out")
    assert found["ran"]
    assert found["scripts"]
    assert found["acting"]
    assert complaints


def test_the_page_keeps_its_own_code_out_even_where_a_text_slips_through(browser, tmp_path):
    """Its policy holds by itself: what is unescaped stands there, and does not run."""
    files.write(acting(), tmp_path / "out")
    path = tmp_path / "out" / "report.html"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{ACTING[0]}{ACTING[1]}</body>"), encoding="utf-8")
    found, complaints = opened(browser, tmp_path / "out")
    assert (found["ran"], found["scripts"], found["strange"]) == (False, 1, ["IMG"])
    assert any("Content Security Policy" in one for one in complaints)
