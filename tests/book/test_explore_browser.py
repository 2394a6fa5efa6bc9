"""Explore in a real browser: a link reproduces its view, pasted scores are counted, and nothing leaves the page."""

import csv
import io
import shutil
from urllib.parse import unquote

import pytest
import test_browser as checks
from support import chromium
from test_explore import EVIL, ROOT, blocks, own_scores, pasted, write

from helpers.book import explore
from helpers.stats.intervals import rate_interval

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.PROGRAM, reason="chromium is not installed: Explore was not looked at in a browser"),
]
PAGE = """<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Explore</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'">
<link rel="stylesheet" href="explore.css"><script defer src="explore.js"></script></head><body><main><h1>Explore</h1>{}</main>"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("explore")
    found = blocks(explore.explore_page(root, write(root)))
    folder = root / "html"
    folder.mkdir()
    (folder / "page.html").write_text(PAGE.format("".join(found.values())), encoding="utf-8")
    (folder / "favicon.ico").write_bytes(b"")
    for name in ("explore.js", "explore.css"):
        shutil.copy2(ROOT / "book" / "_static" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as found:
        yield found


def move(browser: chromium.Browser, name: str, control: str, value: str) -> None:
    """Moves one control as a reader does; a choice by its name."""
    browser.evaluate(f"""(() => {{ const input = document.getElementById('explore-{name}-{control}');
        input.value = input.options ? [...input.options].find(one => one.text === {value!r}).value : {value!r};
        input.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()""")


@pytest.mark.parametrize("root", ["server", "file"])
def test_a_link_reproduces_the_view_and_its_file_the_numbers(browser, place, root):
    with chromium.served(place) as address:
        base = address if root == "server" else place.as_uri()
        browser.open(f"{base}/page.html")
        move(browser, "threshold", "variant", "nf4")
        move(browser, "threshold", "edge", "4")
        seen = browser.evaluate("document.querySelector('#explore-threshold .explorable-said').textContent")
        link = browser.evaluate("location.href")
        assert "#explore-threshold?" in link
        assert "variant=nf4" in link
        file = browser.evaluate("document.querySelector('#explore-threshold [download]').href")
        rows = list(csv.reader(io.StringIO(unquote(file.partition(",")[2]))))
        browser.open(f"{base}/page.html")
        assert browser.evaluate("document.querySelector('#explore-threshold .explorable-said').textContent") != seen
        browser.open(link)
        assert browser.evaluate("document.querySelector('#explore-threshold .explorable-said').textContent") == seen
        assert all(f"{row[3]} % [{row[4]}, {row[5]}]" in seen for row in rows[1:])
        assert browser.complaints(base) == []


def paste(browser: chromium.Browser, text: str) -> str:
    """What the page says of a table that a visitor pastes."""
    browser.evaluate(f"document.querySelector('#explore-scores textarea').value = {text!r}")
    browser.evaluate("document.querySelector('#explore-scores .explorable-paste button').click()")
    return browser.evaluate("document.querySelector('#explore-scores').innerText")


def test_pasted_scores_are_counted_in_the_page_and_sent_nowhere(browser, place):
    with chromium.served(place) as address:
        browser.open(f"{address}/page.html")
        browser.seen.clear()
        given = own_scores(groups=True)
        said = paste(browser, pasted(given))
        for side, name in ((1, "caught"), (0, "false alarms")):
            own = [row for row in given if row["label"] == side]
            e = rate_interval([float(row["after"] > 1.25) for row in own], [row["group"] for row in own])
            assert f"{100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}]" in said, name
        assert "Nothing left this page." in said
        asked = [event["request"]["url"] for name, event in browser.seen if name == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.endswith("favicon.ico")] == []  # that one the browser wants by itself
        assert "#explore-scores" not in browser.evaluate("location.href")  # a visitor's scores stand in no address


@pytest.mark.parametrize("text", [
    "score,label\n1,0", f"monitor,id,before,{EVIL}\nm,1,0,1", f'monitor,id,before,after\n{EVIL.replace(",", "")},1,0,1\n',
    '{"monitor": "<img src=x onerror=alert(1)>", "id": 1, "before": 0, "after": 1}',
])  # fmt: skip
def test_wrong_columns_get_a_message_and_hostile_text_is_inert(browser, place, text):
    with chromium.served(place) as address:
        browser.open(f"{address}/page.html")
        before = browser.evaluate("document.querySelectorAll('img, script, iframe').length")
        said = paste(browser, text)
        assert ("No column" in said) == ("before,after" not in text and 'before": 0' not in text)
        assert browser.evaluate("document.querySelectorAll('img, script, iframe').length") == before
        assert browser.complaints(address) == []


def test_the_figures_are_right_wide_and_narrow_light_and_dark(browser, place):
    with chromium.served(place) as address:
        found = checks.inspect(browser, f"{address}/page.html", address)
    assert {kind: lines for kind, lines in found.items() if lines} == {}
