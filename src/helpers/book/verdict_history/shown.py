"""Shown: where the book says that a verdict changed: a section of the page on changes, and a feed (Atom, RFC 4287).

Both are made when the book is built, from the record of the profile that it shows. All of it is text, whatever the record holds.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5
from xml.etree import ElementTree

import yaml

from helpers.book.markup import code, text
from helpers.book.verdict_history.lines import claim_parts, verdict_words
from helpers.book.verdict_history.record import Change, read_changes, unlike
from helpers.book.verdict_history.sides import FILE, read_side
from helpers.study import statuses

FEED = "verdicts.xml"  # in _static/ of the site
ATOM = "http://www.w3.org/2005/Atom"
PAGE = "book/changelog.html"
NAMED = 3  # claims in the title of an entry
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what no XML 1.0 may hold


# ---------------------------------------------------------------- the section


def section(root: Path, run: Path) -> str:
    """What the page says of changed verdicts, the newest first; that none changed where nothing is recorded."""
    folder = run.parents[1]
    changes = read_changes(folder)
    feed = f'<a href="../_static/{FEED}">a feed</a>'
    behind = _unrecorded(folder, changes)
    if not changes:
        made = f", made on {since_day(folder)}" if since_day(folder) else ""
        first = f"those of {code(folder.name)}{made}"
        said = f"No verdict has changed since the first results of which this page keeps account: {first}."
        return f"{said} When one does, this page says so, and so does {feed}.\n"
    told = [_change(number, change) for number, change in reversed([*enumerate(changes, 1)])]
    return f"Of the profile {code(folder.name)}, the newest first; also as {feed}.\n\n{behind}{''.join(told)}"


def _unrecorded(folder: Path, changes: Sequence[Change]) -> str:
    """A sentence on verdicts that are newer than the record; else nothing."""
    if not changes or not (folder / FILE).is_file():
        return ""
    other = unlike(changes[-1]["verdicts"], read_side(str(folder)).verdicts)
    if not other:
        return ""
    return f"The results that this book shows have newer verdicts on {text(', '.join(other))}, not recorded here yet.\n\n"


def change_anchor(number: int, change: Mapping[str, Any]) -> str:
    """The id of a change on the page."""
    return f"verdicts-{change['date']}-{number}"


def _change(number: int, change: Change) -> str:
    lines = [
        line
        for head, parts in _told(change, text, "**{}**")
        for line in (f"- {head}\n", *(f"  - {text(part)}\n" for part in parts))
    ]
    return f"({change_anchor(number, change)})=\n### {change['date']}\n\n{_rules(change)}{''.join(lines)}\n"


def _rules(change: Change) -> str:
    before, after = (" and ".join(change["rules"][when]) or "unknown" for when in ("before", "after"))
    return "" if before == after else f"Judged by the rules of {text(after)}; before, by those of {text(before)}.\n\n"


def _told(change: Change, escaped: Any, strong: str) -> Iterable[tuple[str, list[str]]]:
    """Each claim of a change as a line, escaped, with its parts, not yet so."""
    for claim in change["moved"]:
        short = f" ({escaped(claim['short'])})" if claim["short"] else ""
        yield f"{strong.format(escaped(claim['claim']))}{short}: {escaped(verdict_words(claim))}", claim_parts(claim)
    for key, said in (("only_new", "new claim"), ("only_old", "no longer asked")):
        for claim in change[key]:
            short = f" ({escaped(claim['short'])})" if claim["short"] else ""
            yield f"{strong.format(escaped(claim['claim']))}{short}: {said}, {escaped(claim['verdict'])}", []


def since(folder: Path) -> str:
    """The instant at which the last chapter of the profile's runs ended, as the runs tell it; empty where none does."""
    found = [statuses.status(path.parents[1], path.stem).get("finished", "") for path in folder.glob("*/seed-*/status/*.json")]
    return max((str(one) for one in found if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)", str(one))), default="")


def since_day(folder: Path) -> str:
    """The day of `since`."""
    return since(folder)[:10]


# ---------------------------------------------------------------- the feed


def feed(root: Path, run: Path) -> str:
    """The changes of the profile's verdicts as an Atom feed, the newest first; without any it has no entry."""
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    folder, title = run.parents[1], str(settings["title"])
    changes, address = read_changes(folder), str(settings.get("address", "")).rstrip("/")
    base = f"{address}/" if address else "../"  # a feed without an address is read beside its page
    recorded = f"{changes[-1]['date']}T00:00:00Z" if changes else "1970-01-01T00:00:00Z"
    updated = max(recorded, since(folder))  # never before what it was without a record
    top = ElementTree.Element("feed", {"xmlns": ATOM, "xml:lang": "en"})
    _fields(top, id=_urn(folder.name), title=f"{title}: when a verdict changed", updated=updated)
    _fields(ElementTree.SubElement(top, "author"), name=str(settings.get("author", title)))
    if address:
        ElementTree.SubElement(top, "link", {"rel": "self", "href": f"{address}/_static/{FEED}"})
    ElementTree.SubElement(top, "link", {"rel": "alternate", "type": "text/html", "href": f"{base}{PAGE}"})
    for number, change in reversed([*enumerate(changes, 1)]):
        _entry(top, folder.name, f"{base}{PAGE}#{change_anchor(number, change)}", number, change)
    ElementTree.indent(top)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(top, encoding="unicode")}\n'


def _entry(top: ElementTree.Element, profile: str, address: str, number: int, change: Change) -> None:
    entry = ElementTree.SubElement(top, "entry")
    _fields(entry, id=_urn(profile, str(number), change["date"]), title=_title(change), updated=f"{change['date']}T00:00:00Z")
    ElementTree.SubElement(entry, "link", {"rel": "alternate", "type": "text/html", "href": address})
    items = [
        f"<li>{head}{'<ul>' * bool(parts)}{''.join(f'<li>{escape(part)}</li>' for part in parts)}{'</ul>' * bool(parts)}</li>"
        for head, parts in _told(change, escape, "<strong>{}</strong>")
    ]
    body = ElementTree.SubElement(entry, "content", {"type": "html"})
    body.text = _writable(f"<ul>{''.join(items)}</ul>")


def _title(change: Change) -> str:
    names = [f"{claim['claim']}: {verdict_words(claim)}" for claim in change["moved"]]
    names += [f"{claim['claim']}: {said}" for key, said in (("only_new", "new"), ("only_old", "no longer asked"))
              for claim in change[key]]  # fmt: skip
    more = len(names) - NAMED
    return "; ".join([*names[:NAMED], *([f"and {more} more"] if more > 0 else [])])


def _urn(*names: str) -> str:
    """A name of the feed or of an entry that stays the same wherever the book lies."""
    return uuid5(NAMESPACE_URL, "/".join(("after-the-update", "verdicts", *names))).urn


def _fields(parent: ElementTree.Element, **texts: str) -> None:
    for name, value in texts.items():
        ElementTree.SubElement(parent, name).text = _writable(value)


def _writable(value: str) -> str:
    return UNWRITABLE.sub("�", value)
