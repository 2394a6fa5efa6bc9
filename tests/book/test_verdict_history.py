"""The record of changed verdicts, its section and its feed: written by the command alone, and text whatever it holds."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from test_appendices import NASTY, rendered
from test_verdict_moves import judged, refused, side

from helpers.book import pages, site
from helpers.book.verdict_history import lines, moves, record, shown
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE
from helpers.study.claims import CLAIMS

ROOT = Path(__file__).parents[2]
ATOM = {"a": shown.ATOM}
CONFIG = 'title: "A Book & more"\nauthor: Somebody\n'


def folders(tmp_path):
    """An old and a new folder of results, of which M1 moved, and the run of the new one."""
    made = side(tmp_path / "old", judged()), side(tmp_path / "new", judged(wrong={"M1"}))
    for one in made:
        (one.folder / "embedded" / "seed-0").mkdir(parents=True)
    return *made, made[1].folder / "embedded" / "seed-0"


def recorded(tmp_path, day="2026-12-01"):
    old, new, run = folders(tmp_path)
    record.append(old, new, moves.compare(old, new), day)
    (tmp_path / "_config.yml").write_text(CONFIG, encoding="utf-8")
    return new.folder, run


def changed(folder, change):
    """The record with something else in it, as a hand would put it there."""
    path = folder / record.RECORD
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")


# ---------------------------------------------------------------- the record


def test_what_moved_is_recorded_once_and_read_back(tmp_path):
    old, new, _ = folders(tmp_path)
    found = moves.compare(old, new)
    for _ in range(2):
        assert record.append(old, new, found, "2026-12-01") == new.folder / record.RECORD
    (change,) = record.read_changes(new.folder)
    assert (change["date"], [claim["claim"] for claim in change["moved"]]) == ("2026-12-01", ["M1"])
    assert change["verdicts"] == new.verdicts
    assert change["moved"][0]["parts"] == found["moved"][0]["parts"]
    assert str(tmp_path) not in (new.folder / record.RECORD).read_text(encoding="utf-8")  # no folder of a machine


def test_a_record_goes_on_in_the_next_folder_and_only_where_it_ended(tmp_path):
    old, new, _ = folders(tmp_path)
    record.append(old, new, moves.compare(old, new), "2026-12-01")
    later = side(tmp_path / "later", judged(wrong={"M1", "S1"}))
    later.folder.mkdir()
    with refused(USAGE, "2026-11-30", "2026-12-01"):
        record.append(new, later, moves.compare(new, later), "2026-11-30")
    with refused(NOT_COMPARABLE, "other verdicts (M1)"):
        record.append(old, new, moves.compare(old, side(tmp_path / "new", judged(wrong={"S1"}))), "2026-12-02")
    record.append(new, later, moves.compare(new, later), "2026-12-02")
    assert [change["date"] for change in record.read_changes(later.folder)] == ["2026-12-01", "2026-12-02"]
    assert len(record.read_changes(new.folder)) == 1  # the older folder stays as it was


def test_nothing_is_recorded_where_nothing_moved_and_a_new_claim_is(tmp_path):
    old, new = side(tmp_path / "old", judged()), side(tmp_path / "new", judged())
    new.folder.mkdir()
    assert record.append(old, new, moves.compare(old, new), "2026-12-01") is None
    assert list(new.folder.iterdir()) == []
    fewer = judged()[0].iloc[:-1]
    older = side(tmp_path / "older", judged(), stored=fewer)
    record.append(older, new, moves.compare(older, new), "2026-12-01")
    (change,) = record.read_changes(new.folder)
    assert [claim["claim"] for claim in change["only_new"]] == [list(CLAIMS)[-1]]


@pytest.mark.parametrize("day", ["2026-13-01", "20261201", "2026-12-1", "", "tomorrow", "2026-02-30"])
def test_what_is_no_date_is_refused(day):
    with refused(USAGE, "is no date"):
        record.checked_date(day)


FAULTS = {
    "no such verdict": lambda found: found["changes"][0]["moved"][0]["before"].update(verdict="perhaps"),
    "a field of somebody's": lambda found: found["changes"][0].update(note="x"),
    "a date of no month": lambda found: found["changes"][0].update(date="2026-13-01"),
    "another schema": lambda found: found.update(schema=2),
    "dates out of order": lambda found: found["changes"].append({**found["changes"][0], "date": "2020-01-01"}),
    "a number as text": lambda found: found["changes"][0]["moved"][0]["parts"][0]["after"].update(estimate="1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_was_edited_by_hand_is_refused(tmp_path, fault):
    folder, run = recorded(tmp_path)
    changed(folder, FAULTS[fault])
    for read in (lambda: record.read_changes(folder), lambda: shown.section(tmp_path, run)):
        with refused(REFUSED, f"new/{record.RECORD}"):
            read()


def test_a_record_that_is_no_json_is_refused(tmp_path):
    (tmp_path / record.RECORD).write_text("{", encoding="utf-8")
    with refused(REFUSED, "cannot be read as JSON", "restore it"):
        record.read_changes(tmp_path)


# ---------------------------------------------------------------- the section


def test_without_a_record_the_page_says_that_no_verdict_changed(tmp_path):
    _, new, run = folders(tmp_path)
    assert "No verdict has changed since the first results of which this page keeps account: those of `new`." in shown.section(
        tmp_path, run
    )
    (run / "status").mkdir()
    status = {"finished": "2026-12-01T13:30:32.099+00:00"}
    (run / "status" / "01_models.json").write_text(json.dumps(status), encoding="utf-8")
    assert "`new`, made on 2026-12-01." in shown.section(tmp_path, run)
    assert shown.since(new.folder) == status["finished"]


def test_the_section_says_what_moved_why_and_when_the_newest_first(tmp_path):
    folder, _ = recorded(tmp_path)
    old, new = side(tmp_path / "new", judged(wrong={"M1"})), side(tmp_path / "later", judged(wrong={"M1", "S1"}), ("2027-01-01",))
    (new.folder / "embedded" / "seed-0").mkdir(parents=True)
    record.append(old, new, moves.compare(old, new), "2027-01-02")
    html = BeautifulSoup(rendered(shown.section(tmp_path, new.folder / "embedded" / "seed-0")), "html.parser")
    assert [head.get_text() for head in html.find_all("h3")] == ["2027-01-02", "2026-12-01"]
    text = " ".join(html.get_text().split())
    assert text.index("S1") < text.index("M1")
    assert f"M1 ({CLAIMS['M1'].short}): supported → contradicted" in text
    assert "Judged by the rules of 2027-01-01; before, by those of" in text
    part = record.read_changes(folder)[0]["moved"][0]["parts"][0]
    assert f"{part['name']}: supported, {lines.told_number(part['unit'], part['before'])} → contradicted, " in text
    assert html.a["href"] == "../_static/verdicts.xml"
    assert "newer verdicts" not in text


def test_results_that_are_newer_than_their_record_are_said_to_be(tmp_path):
    folder, run = recorded(tmp_path)
    judged(wrong={"M1"})[0].to_parquet(folder / "findings.parquet")
    assert "newer verdicts" not in shown.section(tmp_path, run)
    judged(wrong={"M1", "S1"})[0].to_parquet(folder / "findings.parquet")
    assert "newer verdicts on S1, not recorded here yet" in shown.section(tmp_path, run)


@pytest.mark.parametrize("value", NASTY)
def test_whatever_a_record_holds_is_text_on_the_page_and_in_the_feed(tmp_path, value):
    folder, run = recorded(tmp_path)

    def put(found):
        claim = found["changes"][0]["moved"][0]
        claim["claim"] = claim["short"] = claim["parts"][0]["name"] = claim["parts"][0]["asked"] = value
        found["changes"][0]["rules"]["before"] = [value]

    changed(folder, put)
    html = BeautifulSoup(rendered(shown.section(tmp_path, run)), "html.parser")
    assert html.get_text().count(" ".join(value.split())) >= 4
    assert {tag.name for tag in html.find_all(True)} <= {"p", "a", "code", "h3", "ul", "li", "strong", "div"}
    assert [link["href"] for link in html.find_all("a")] == ["../_static/verdicts.xml", "#verdicts-2026-12-01-1"]
    top = ElementTree.fromstring(shown.feed(tmp_path, run))
    inside = BeautifulSoup(top.find("a:entry/a:content", ATOM).text, "html.parser")
    assert {tag.name for tag in inside.find_all(True)} <= {"ul", "li", "strong"}
    assert value in inside.get_text()


# ---------------------------------------------------------------- the feed


def checked_feed(text):
    """The feed's root, if it has what RFC 4287 asks of feeds and entries."""
    top = ElementTree.fromstring(text)
    assert top.tag == f"{{{shown.ATOM}}}feed"
    for each in (top, *top.findall("a:entry", ATOM)):
        for name in ("id", "title", "updated"):
            (only,) = each.findall(f"a:{name}", ATOM)
            assert only.text.strip()
        assert each.find("a:id", ATOM).text.startswith("urn:uuid:")
        assert [link.get("rel") for link in each.findall("a:link", ATOM)].count("alternate") == 1
        instant = each.find("a:updated", ATOM).text
        assert shown.re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", instant)
    assert top.find("a:author/a:name", ATOM).text
    ids = [one.text for one in top.iter(f"{{{shown.ATOM}}}id")]
    assert len(ids) == len(set(ids))
    return top


def test_a_feed_without_a_change_is_valid_and_empty(tmp_path):
    _, _, run = folders(tmp_path)
    (tmp_path / "_config.yml").write_text(CONFIG, encoding="utf-8")
    top = checked_feed(shown.feed(tmp_path, run))
    assert top.findall("a:entry", ATOM) == []
    assert top.find("a:updated", ATOM).text == "1970-01-01T00:00:00Z"
    (run / "status").mkdir()
    for name, instant in (("01", "2026-12-01T13:30:32.099+00:00"), ("02", "2026-12-01T09:00:00.000+00:00"), ("03", "then")):
        (run / "status" / f"{name}.json").write_text(json.dumps({"finished": instant}), encoding="utf-8")
    assert checked_feed(shown.feed(tmp_path, run)).find("a:updated", ATOM).text == "2026-12-01T13:30:32.099+00:00"
    assert top.find("a:title", ATOM).text == "A Book & more: when a verdict changed"


def test_a_feed_has_an_entry_for_each_change_and_names_that_stay(tmp_path):
    folder, run = recorded(tmp_path)
    first = checked_feed(shown.feed(tmp_path, run))
    (entry,) = first.findall("a:entry", ATOM)
    assert entry.find("a:title", ATOM).text == "M1: supported → contradicted"
    assert entry.find("a:updated", ATOM).text == first.find("a:updated", ATOM).text == "2026-12-01T00:00:00Z"
    anchor = entry.find("a:link", ATOM).get("href").partition("#")[2]
    assert f"({anchor})=" in shown.section(tmp_path, run)
    changed(folder, lambda found: found["changes"].append({**found["changes"][0], "date": "2026-12-05"}))
    second = checked_feed(shown.feed(tmp_path, run))
    assert [one.find("a:updated", ATOM).text[:10] for one in second.findall("a:entry", ATOM)] == ["2026-12-05", "2026-12-01"]
    assert second.findall("a:entry/a:id", ATOM)[1].text == entry.find("a:id", ATOM).text


def test_a_public_address_makes_the_feeds_links_absolute(tmp_path):
    _, run = recorded(tmp_path)
    (tmp_path / "_config.yml").write_text(f"{CONFIG}address: https://example.org/book/\n", encoding="utf-8")
    links = {link.get("rel"): link.get("href") for link in checked_feed(shown.feed(tmp_path, run)).findall("a:link", ATOM)}
    assert links == {
        "self": "https://example.org/book/_static/verdicts.xml",
        "alternate": "https://example.org/book/book/changelog.html",
    }


def test_what_no_xml_may_hold_does_not_break_the_feed(tmp_path):
    folder, run = recorded(tmp_path)
    changed(folder, lambda found: found["changes"][0]["moved"][0].update(claim="M\x001\ud800"))
    assert "M�1�" in checked_feed(shown.feed(tmp_path, run)).find("a:entry/a:title", ATOM).text


def test_every_page_names_the_feed_that_the_build_writes(tmp_path):
    assert f"_static/{shown.FEED}" == site.FEED
    page = '<html lang="en"><head><title>A page</title></head><body><article></article></body></html>'
    for place in ("book/first.html", "top.html"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(page, encoding="utf-8")
    site.finish(tmp_path, "A Book", "About.")
    assert "alternate" not in (tmp_path / "top.html").read_text(encoding="utf-8")  # the control: no feed, no link
    (tmp_path / "_static").mkdir()
    (tmp_path / site.FEED).write_text("<feed/>", encoding="utf-8")
    for place in ("book/first.html", "top.html"):
        (tmp_path / place).write_text(page, encoding="utf-8")
    site.finish(tmp_path, "A <Book>", "About.")
    for place in ("book/first.html", "top.html"):
        head = BeautifulSoup((tmp_path / place).read_text(encoding="utf-8"), "html.parser").head
        (link,) = head.select("link[rel=alternate]")
        assert (link["type"], link["title"]) == ("application/atom+xml", "A <Book>: when a verdict changed")
        assert (tmp_path / place).parent.joinpath(link["href"]).resolve() == (tmp_path / site.FEED).resolve()
    assert not [text for text in site.problems(tmp_path) if site.FEED in text]


def test_the_page_on_changes_holds_the_section_and_the_stage_holds_the_feed():
    page = (ROOT / "book" / "changelog.md").read_text(encoding="utf-8")
    assert page.index("## When a verdict changed") < page.index("<!-- generated: verdict-changes -->")
    assert "verdict-changes" in pages.GENERATED
