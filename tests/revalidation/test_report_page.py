"""The page: nothing of a report can act in it, it asks for nothing, its colours can be read, and it stays small."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from support import sample_reports
from test_report_files import NASTY, planted

from helpers.revalidation.report import html, html_detail, schema, svg, wording
from helpers.revalidation.report import markdown as report_markdown

TAGS = {"html", "head", "meta", "link", "style", "title", "body", "main", "section", "details", "summary", "h1", "h2", "p", "a",
        "b", "bdi", "br", "code", "div", "span", "dl", "dt", "dd", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td",
        "svg", "g", "path", "rect", "circle", "text"}  # fmt: skip
VOID = {"meta", "link", "br"}
DRAWN = {"viewbox", "d", "x", "y", "width", "height", "cx", "cy", "r", "fill", "text-anchor"}
ATTRIBUTES = DRAWN | {"lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "scope", "role", "aria-label",
                      "aria-hidden", "tabindex"}  # fmt: skip
ORDER = [
    'aria-label="Verdict"',
    "What was compared",
    "<h2>Monitors",
    "What to do next",
    "<h2>Controls",
    "How sure this gate is",
    "<details>",
]


class Seen(HTMLParser):
    """What a browser would find: tags, attributes, texts, and tags that do not close."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open, self.wrong = [], [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def page(report):
    """The page of a report as `reports.write` makes it."""
    found = wording.plain(report)
    schema.check_report(found)
    return html.html(found)


@pytest.fixture(scope="module")
def pages():
    return {name: page(make()) for name, make in {**sample_reports.ALL, "planted": planted}.items()}


# ---------------------------------------------------------------- nothing acts, nothing is asked for


@pytest.mark.parametrize("name", [*sample_reports.ALL, "planted"])
def test_a_page_holds_only_what_we_put_there(pages, name):
    seen = Seen(pages[name])
    assert set(seen.tags) <= TAGS
    assert {attribute for _, attribute, _ in seen.attributes} <= ATTRIBUTES
    assert seen.wrong == seen.open == []
    links = {value for _, attribute, value in seen.attributes if attribute in {"href", "src"}}
    assert links == {"data:,", "report.json", "schema.json"}


@pytest.mark.parametrize("name", [*sample_reports.ALL, "planted"])
def test_a_page_asks_for_nothing_and_says_so(pages, name):
    head, style = pages[name].split("<body>")[0], re.search(r"<style>(.*?)</style>", pages[name], re.DOTALL)[1]
    assert not re.search(r"url\(|@import|@font-face|expression|//", style)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', head)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert head.index("Content-Security-Policy") < head.index("<style>")
    assert '<html lang="en">' in head
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in head
    assert len(re.findall(r"<title>[^<]+</title>", head)) == 1


def test_what_is_nasty_is_shown_as_text(pages):
    seen = " ".join("".join(Seen(pages["planted"]).texts).replace("\u00a0", " ").split())
    for text in NASTY:
        assert wording.clean(text) in seen
    assert "\ufffd" in pages["planted"]  # the lone surrogate


def test_a_text_cannot_leave_its_place():
    assert html_detail.text("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"
    assert html_detail.figure("<b>") == "&lt;b&gt;"


def test_an_attribute_cannot_be_left(pages):
    """The only words of a report in an attribute are numbers and layers; names with quotes stand in texts alone."""
    for tag, attribute, value in Seen(pages["planted"]).attributes:
        if attribute not in {"content", "href"}:
            assert re.fullmatch(r"[\w\s.,:;%°()−-]*", value or ""), (tag, attribute, value)


# ---------------------------------------------------------------- the first screen


@pytest.mark.parametrize("name", sample_reports.ALL)
def test_the_first_screen_has_its_order_and_the_detail_comes_last(pages, name):
    body = pages[name].split("<body>")[1]
    if name == "many":  # its fine monitors are folded where monitors stand
        body = re.sub(r"<details><summary>And .*?</details>", "", body, flags=re.DOTALL)
    found = [body.index(words) for words in ORDER]
    assert found == sorted(found)
    assert "<details" not in body[: found[-1]]


def test_the_verdict_is_a_word_with_a_symbol_and_a_reason(pages):
    for name, make in sample_reports.ALL.items():
        verdict = make()["verdict"]
        section = unescape(re.search(r'<section class="verdict.*?</section>', pages[name], re.DOTALL)[0]).replace("\u00a0", " ")
        for words in (verdict["word"].upper(), wording.SYMBOLS[verdict["word"]], verdict["sentence"], verdict["reason"]):
            assert words in section


def test_fingerprints_rates_and_states_stand_on_the_first_screen(pages):
    text = "".join(Seen(pages["stale"].split("<details>")[0]).texts).replace("\u00a0", " ")
    report = sample_reports.stale()
    for side in ("base", "update"):
        assert report["compared"][side]["fingerprint"][:12] in text
    assert report["compared"]["template"][:12] in text
    for words in ("nf4", "merged-requantized", "5.0 → 31.0 %", "93.0 → 72.0 %", "−21.0 [−23.8, −18.2]", "n 200",
                  "0.902 → 0.877",
                  "would take 1,240", "not required", "all 3 controls passed", "1.2 % [0.7 %, 2.1 %]"):  # fmt: skip
        assert words in text
    shown = re.findall(r"(STALE|INCONCLUSIVE|FINE)", text)[1:]  # the first is the verdict's
    assert shown == ["STALE"] * 2 + ["INCONCLUSIVE"] + ["FINE"] * 3


def test_without_labels_the_line_says_what_the_scores_say(pages):
    first = "".join(Seen(pages["unlabelled"].split("<details>")[0]).texts).replace("\u00a0", " ")
    assert "alarms 5.2 % → 11.8 % · agreement 94.0 %" in first
    assert "labelled textsnone" in first
    assert "<svg" not in pages["unlabelled"]


def test_the_detail_holds_every_test_repair_layer_note_and_fingerprint(pages):
    report = sample_reports.stale()
    text = "".join(Seen(pages["stale"].split("</section>")[-1]).texts)
    found = re.findall(r"<details>.*?</details>", pages["stale"], re.DOTALL)
    assert len(found) == 9
    assert found[0].count("<tr>") == 1 + sum(len(monitor["tests"]) for monitor in report["monitors"])
    assert "centre-scale <b>(chosen)</b>" in found[4]
    assert "FPR 5.0\u00a0% [2.0\u00a0%, 11.0\u00a0%] → 6.0\u00a0%" in found[4]  # its effect on labels that did not choose it
    assert found[5].count("<rect") == len(report["moved"]["by_layer"])
    for words in (report["compared"]["labels"]["sha256"], report["monitors"][4]["hash"], report["notes"][0], "2.13.0", "refusal"):
        assert words in text


# ---------------------------------------------------------------- drawings


def drawn(measure, before, after, half):
    """Ends of the bar, the shaded span, the dashed line and the full line of one test's drawing."""
    found = svg.intervals([sample_reports.checked(measure, before, after, half, 1)])
    bar = re.search(r'class="i" d="M([\d.]+) \d+H([\d.]+)([^"]*)"', found)
    shade = re.search(r'class="s" x="([\d.]+)" y="\d+" width="([\d.]+)"', found)
    span = (float(shade[1]), float(shade[1]) + float(shade[2])) if shade else None
    lines = [float(re.search(rf'class="{name}" d="M([\d.]+)', found)[1]) for name in "gz"]
    return (float(bar[1]), float(bar[2])), span, *lines, bool(bar[3])


@pytest.mark.parametrize(("measure", "sign"), [("auroc", -1), ("tpr_5", -1), ("fpr_5", 1)])
def test_worse_is_drawn_to_the_right_of_the_margin_for_every_measure(measure, sign):
    margin = sample_reports.MARGINS[measure]
    (low, high), (left, right), dashed, full, cut = drawn(measure, 0.5, 0.5 + sign * 2 * margin, 0.5 * margin)
    assert full < dashed < low < high < right
    assert left == dashed
    assert not cut
    width = (low + high) / 2 - full
    assert width == pytest.approx(2 * (dashed - full), abs=0.2)  # to scale


@pytest.mark.parametrize("measure", ["auroc", "tpr_5", "fpr_5"])
def test_a_preserved_measure_is_shaded_up_to_its_margin_and_an_open_one_not_at_all(measure):
    margin = sample_reports.MARGINS[measure]
    (low, high), (left, right), dashed, full, _ = drawn(measure, 0.5, 0.5, 0.3 * margin)
    assert left < low < full < high < right == dashed
    (low, high), span, dashed, _, _ = drawn(measure, 0.5, 0.5, 3 * margin)
    assert span is None
    assert low < dashed < high


def test_what_lies_beyond_the_scale_ends_in_an_arrow_inside_the_drawing():
    (low, high), _, _, _, cut = drawn("fpr_5", 0.05, 0.9, 0.01)
    assert cut
    assert 0 <= low <= high <= svg.WIDTH


def test_an_undefined_measure_has_no_bar():
    test = sample_reports.checked("auroc", 0.9, 0.9, 0.01, 1) | {
        "after": None,
        "change": {"value": None, "low": None, "high": None},
    }
    assert 'class="i"' not in svg.intervals([test])
    report = sample_reports.fine()
    report["monitors"][0]["tests"][0] = test
    assert "0.900 → –" in page(report)


def test_the_tallest_bar_is_the_layer_that_moved_most():
    rows = sample_reports.stale()["moved"]["by_layer"]
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg.draw_layers(rows))]
    assert heights.index(max(heights)) == max(range(len(rows)), key=lambda i: rows[i]["relative_change"])
    assert 'aria-label="Relative change of the states by layer; the largest is 0.138 in layer 22"' in svg.draw_layers(rows)
    assert svg.draw_layers([]) == svg.draw_layers([{"layer": 0, "relative_change": 0.0, "cosine": 1.0}]) == ""


# ---------------------------------------------------------------- colours


def luminance(colour):
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """Contrast ratio of two colours (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def over(front, back, share):
    """The colour of a half transparent one upon another."""
    pairs = ((int(front[i : i + 2], 16), int(back[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def roots():
    """The colours of both modes, as they stand in the style sheet."""
    found = re.findall(r":root\{([^}]*)\}", svg.style())
    return [dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", text)) for text in found]


STATES = ("fine", "stale", "unsure", "same")
WORDS = [("ink", "page"), ("ink", "card"), ("muted", "page"), ("muted", "card"), ("link", "page"), ("link", "card")]
WORDS += [(state, back) for state in STATES for back in ("card", f"{state}-bg")] + [("ink", f"{state}-bg") for state in STATES]


def test_the_formula_of_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_words_and_lines_can_be_read_in_both_modes(mode):
    colours = roots()[mode]
    assert {
        pair: round(contrast(*(colours[c] for c in pair)), 2) for pair in WORDS if contrast(*(colours[c] for c in pair)) < 4.5
    } == {}
    shades = [over(colours[state], colours["card"], 0.2) for state in ("fine", "stale")]
    lines = (
        [("mark", back) for back in (colours["card"], *shades)] + [("ink", back) for back in shades] + [("same", colours["card"])]
    )
    lines += [(state, over(colours[state], colours["card"], 0.2)) for state in ("fine", "stale")]
    assert [(name, back) for name, back in lines if contrast(colours[name], back) < 3] == []


def test_every_colour_of_the_style_sheet_is_one_of_the_variables():
    style = svg.style()
    rules = re.sub(r":root\{[^}]*\}", "", style)
    light, dark = roots()
    assert set(light) == set(dark) == set(re.findall(r"var\(--([\w-]+)\)", rules))
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", rules)
    assert "@media screen and (prefers-color-scheme:dark)" in style
    assert "@media print" in style
    assert re.search(r"\.s\{[^}]*opacity:\.2\}", rules)  # the share that `over` is told above


# ---------------------------------------------------------------- size


def longest(n):
    """A report of many stale monitors in which every text is as long as it may be, and grows when it is escaped."""
    found = sample_reports.many(n, n // 2)
    for i, monitor in enumerate(found["monitors"]):
        monitor.update(name=f"{i:05d}" + '"' * 195, reason='"' * 2000)
        monitor["repair"] = {
            "tried": [{**sample_reports.repair()["tried"][0], "before": {'"' * 200: '"' * 2000}}] * 9,
            "chosen": None,
        }
    words = {"action": '"' * 2000, "monitor": '"' * 200, "detail": '"' * 2000}
    return found | {
        "verdict": found["verdict"] | {"sentence": '"' * 2000, "reason": '"' * 2000},
        "next": [words] * 100,
        "controls": [{"name": '"' * 200, "passed": False, "detail": '"' * 2000}] * 100,
        "notes": ['"' * 2000] * 500,
        "behaviour": {f"{i}{'' * 100}": '"' * 2000 for i in range(500)},
    }


@pytest.mark.parametrize(("n", "stale_ones"), [(200, 7), (200, 100), (1000, 40)])
def test_a_page_of_many_monitors_stays_small_and_lists_the_stale_ones_first(n, stale_ones):
    found = page(sample_reports.many(n, stale_ones))
    assert len(found.encode()) <= 500_000
    first = found.split("<details>")[0]
    shown = re.findall(r"(STALE|INCONCLUSIVE|FINE|NO UPDATE)</span> <b", first)
    assert shown == sorted(shown, key=lambda word: wording.URGENCY.index(word.lower()))
    assert shown[: min(stale_ones, 24)] == ["STALE"] * min(stale_ones, 24)
    assert f"{stale_ones} stale, {stale_ones} inconclusive" in first
    if n == 200:
        assert all(found.count(f">task-{i:03d}/") > 0 for i in range(n))  # none is left out


@pytest.mark.parametrize("n", [12, 100])
def test_the_limit_holds_for_the_longest_texts_and_what_is_cut_is_said(n):
    found = page(longest(n))
    assert len(found.encode()) <= 500_000
    assert "more in report.json" in found
    assert [found.index(words) for words in ORDER] == sorted(found.index(words) for words in ORDER) or n > 12
    markdown = report_markdown.report_markdown(wording.plain(longest(n)))
    assert len(markdown.encode()) <= 60_000


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_no_page_is_wider_than_its_screen(pages, tmp_path):
    """Each page in frames of two widths, all details open; the frame around them measures how wide they would be."""
    frames = ""
    for name, text in pages.items():
        file = tmp_path / f"{name.replace(' ', '-')}.html"
        file.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
        frames += "".join(
            f'<iframe src="{file.name}" name="{name}" style="width:{width}px;height:900px"></iframe>' for width in (390, 1400)
        )
    script = (
        "onload=()=>{document.title=JSON.stringify([...document.querySelectorAll('iframe')].map(f=>"
        "[f.name,f.clientWidth,f.contentDocument.documentElement.scrollWidth,f.contentDocument.querySelectorAll('h2').length]))}"
    )
    (tmp_path / "frames.html").write_text(f"<body>{frames}<script>{script}</script>", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
               f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = json.loads(unescape(re.search(r"<title>(.*?)</title>", said)[1]))
    assert len(found) == 2 * len(pages)
    assert [row for row in found if row[3] != 5] == []  # all pages were there to be measured
    assert [row for row in found if row[2] > row[1]] == []
