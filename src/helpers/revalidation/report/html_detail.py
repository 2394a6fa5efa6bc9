"""The folded detail of a report's page: every test, the screening, repairs, what moved, behaviour, notes, versions.

`text` and `figure` are the only ways by which a word or number of a report enters the page: cleaned and escaped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from helpers.revalidation.report import svg, wording
from helpers.revalidation.report.wording import DASH, Report

FEW = 12  # monitors that are all shown in full; of more, the fine ones are folded
MANY = 24  # lines at most of a list that stands open
LONGEST = 1000  # characters of one text on a page; the JSON has the whole
URGENT = ("stale", "unfit", "inconclusive")

# ---------------------------------------------------------------- cells


def text(value: object) -> str:
    """A value as text of the page, or of an attribute in quotes: cleaned, and escaped with its quotes."""
    escaped = escape(wording.clean(str(value), LONGEST).replace(" -> ", " → "), quote=True)
    return escaped.replace(" %", "\u00a0%")  # no line ends between a number and its unit


def figure(value: object, digits: int = 3) -> str:
    """A number as text of the page."""
    return text(wording.number(value, digits))


def name(monitor: Mapping) -> str:
    """A monitor's name, kept apart from the direction of writing around it."""
    return f"<bdi>{text(monitor['name'])}</bdi>"


def rest(left: int) -> str:
    """How many more there are in the JSON; empty where none are."""
    return f'<p class="note">{left:,} more in report.json.</p>' if left > 0 else ""


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], most: int, told: Iterable[int] = ()) -> str:
    """A table of ready cells, its first `most` rows; columns in `told` hold words and may wrap. Empty without rows."""
    if not rows:
        return ""
    cells = ['<td class="say">' if i in set(told) else "<td>" for i in range(len(heads))]
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"{a}{b}</td>" for a, b in zip(cells, row, strict=True)) + "</tr>" for row in rows[:most])
    return wide(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>") + rest(len(rows) - most)


def wide(inside: str) -> str:
    """A box that scrolls sideways on its own, by keyboard too, so that the page never does."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="scrolls sideways">{inside}</div>'


# ---------------------------------------------------------------- parts


def details(report: Report, rows: int) -> str:
    """All that is folded: each part that has something to say, tables cut at `rows`, and where the whole is."""
    made = {title: make(report, rows) for title, make in PARTS.items()}
    folded = "".join(f"<details><summary>{title}</summary>{body}</details>\n" for title, body in made.items() if body)
    links = '<a href="report.json">report.json</a>; its form: <a href="schema.json">schema.json</a>'
    return f'{folded}<p class="note">Everything, unrounded: {links}.</p>'


def _tests(report: Report, most: int) -> str:
    found = wording.ordered(report["monitors"])
    if len(found) > FEW:  # the fine ones stand in the folded table of the first screen
        found = [monitor for monitor in found if monitor["state"] in URGENT]
    rows = [[name(monitor), *cells] for monitor in found for cells in _tests_of(monitor)]
    heads = ("monitor", "measure", "before", "after", "change", "margin", "p worse", "Holm", "p preserved", "Hochberg", "answer")
    note = (
        "Changes with 90 % intervals, and margins, of rates in percentage points; Holm adjusts over all tests of this run, "
        "Hochberg over the monitors of which fine is asked."
    )
    return f'<p class="note">{text(note)}</p>{html_table(heads, rows, most, (0,))}' if rows else ""


def _tests_of(monitor: Mapping) -> list[list[str]]:
    """The cells of a monitor's tests, and of the one for all of them together where the report has it."""
    rows = [_test(test, monitor["tests"]) for test in wording.tests_of(monitor)]
    if rows and monitor.get("p_fine_adjusted") is not None:
        rows.append(["together", *[""] * 7, text(wording.probability(monitor["p_fine_adjusted"])), text(monitor["state"])])
    return rows


def _test(test: Mapping, among: Sequence[Mapping]) -> list[str]:
    shown = (wording.measure(test, among), wording.value(test, "before"), wording.value(test, "after"), wording.change(test))
    margin = wording.margin(test)
    p = (wording.probability(test[key]) for key in ("p_worse", "p_worse_adjusted", "p_preserved", "p_preserved_adjusted"))
    return [text(cell) for cell in (*shown, margin, *p, test["answer"])]


def _floors(report: Report, most: int) -> str:
    """What each monitor must do at least, by the policy, and whether it does."""
    rows = [
        [
            name(monitor),
            text(wording.floor(one)),
            *(text(wording.probability(one[key])) for key in ("p_missed_adjusted", "p_kept")),
        ]
        for monitor in wording.ordered(report["monitors"])
        for one in monitor["floors"]
    ]
    return html_table(("monitor", "floor", "p missed, Holm", "p kept"), rows, most, (0, 1))


def _settings(report: Report, most: int) -> str:
    """Everything but the weights that a forward pass depends on, field by field, those that differ first."""
    found = sorted(report["compared"]["settings"], key=lambda row: row["same"])
    rows = [
        [text(row["what"]), *(text(DASH if row[side] is None else row[side]) for side in ("base", "update")),
         "same" if row["same"] else "<b>differs</b>"]
        for row in found
    ]  # fmt: skip
    return html_table(("what", "base", "update", ""), rows, most, (0, 1, 2))


def _screening(report: Report, most: int) -> str:
    found = [monitor for monitor in wording.ordered(report["monitors"]) if monitor["screening"]]
    found.sort(key=lambda monitor: monitor["screening"]["place_in_order"] or len(found) + 1)
    rows = [[name(monitor), *_screened(monitor["screening"])] for monitor in found]
    heads = ("monitor", "place", "risk", "agreement", "alarms before", "alarms after", "PSI", "KS")
    return _order(report["triage"], most) + html_table(heads, rows, most, (0,))


def _order(triage: Mapping | None, most: int) -> str:
    """In which order to label, and what the budget buys."""
    if not triage or not triage["order"]:
        return ""
    order = ", ".join(triage["order"][:MANY]) + " …" * (len(triage["order"]) > MANY)
    budget = "" if triage["budget"] is None else f" with a budget of {figure(triage['budget'])} labels"
    plan = [share for share in triage.get("plan") or [] if share["labels"]]
    rows = [[text(share["monitor"]), figure(share["labels"]), figure(share["needed"])] for share in plan]
    bought = html_table(("monitor", "labels from the budget", "labels it takes"), rows, most, (0,))
    return f"<p>Label in this order{budget}: {text(order)}.</p>{bought}"


def _screened(found: Mapping) -> list[str]:
    shares = (wording.percent(found[key]) for key in ("agreement", "alarm_before", "alarm_after"))
    return [figure(found["place_in_order"]), figure(found["risk"]), *map(text, shares), figure(found["psi"]), figure(found["ks"])]


def _repairs(report: Report, most: int) -> str:
    found = [monitor for monitor in wording.ordered(report["monitors"]) if monitor["repair"]]
    rows = [[name(m), *_repair(tried, m["repair"]["chosen"])] for m in found for tried in m["repair"]["tried"]]
    why = "".join(f"<p>{name(m)}: {_effect(m['repair'])}</p>" for m in found[: min(most, MANY)])
    return (
        html_table(("monitor", "repair", "needs labels", "before", "after", "worked"), rows, most, (0, 3, 4)) + why
        if found
        else ""
    )


def _repair(tried: Mapping, chosen: str | None) -> list[str]:
    method = text(tried["method"]) + " <b>(chosen)</b>" * (tried["method"] == chosen)
    worked = "not known" if tried["worked"] is None else figure(tried["worked"])
    return [method, "no" if tried["label_free"] else "yes", _side(tried["before"]), _side(tried["after"]), worked]


def _side(found: Mapping) -> str:
    """The measures of one side of a repair, named and in percent as elsewhere."""
    shown = []
    for key, value in found.items():
        kind = key.split("_")[0]
        if kind in wording.NAMES and isinstance(value, float | int | None):
            shown.append(f"{wording.NAMES[kind]} {wording.value({'measure': key, 'side': value}, 'side')}")
        elif key in {"agreement", "alarms"} and isinstance(value, float | int | None):
            shown.append(f"{key} {wording.percent(value)}")
        else:
            shown += [f"{path} {words_of}" for path, words_of in _flat(value, key)]
    return text("; ".join(shown) or DASH)


def _effect(repair: Mapping) -> str:
    """What the chosen repair is worth on labels that did not choose it, where the report has it."""
    said = []
    for one in repair.get("effect") or []:
        show = wording.number if one["measure"] == "auroc" else wording.percent
        both = " → ".join(wording.spread(one[side], show) for side in ("before", "after"))
        said.append(f"{wording.measure(one)} {both}")
    chosen = f"{repair['chosen']} was chosen" if repair["chosen"] else "no repair was chosen"
    return text("; ".join(part for part in (chosen, repair.get("reason"), *said) if part) + ".")


def _moved(report: Report, most: int) -> str:
    found = report["moved"] or {"by_layer": [], "directions": []}
    layers = [[figure(row[key]) for key in ("layer", "relative_change", "cosine")] for row in found["by_layer"]]
    turned = [
        [f"<bdi>{text(row['monitor'])}</bdi>", figure(row["shift_along"]), figure(row["angle"], 1)] for row in found["directions"]
    ]
    drawn = svg.draw_layers(found["by_layer"][:200])
    heads = ("monitor", "mean shift along its direction, sd of its score", "angle of the shift to its direction, degrees")
    return (
        (wide(drawn) if drawn else "")
        + html_table(heads, turned, most, (0,))
        + html_table(("layer", "relative change of its states", "cosine"), layers, most)
    )


def _behaviour(report: Report, most: int) -> str:
    rest_of = {key: value for key, value in (report["behaviour"] or {}).items() if key != "measures"}
    rows = [[text(key.replace("_", " ")), text(value)] for key, value in _flat(rest_of) if key]
    return html_table(("measure", "value"), rows, most, (0, 1))


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Names and values of a free-form part, such as `behaviour`: intervals and changes on one line each."""
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        rest = {key: item for key, item in value.items() if key not in {"value", "low", "high"}}
        return [(path or "value", wording.spread(value)), *(_flat(rest, path) if rest else [])]
    if isinstance(value, Mapping):
        both = _pair(value)
        rest = {key: item for key, item in value.items() if not both or key not in {"before", "after"}}
        return [
            *([(path, both)] if both else []),
            *(row for key, item in rest.items() for row in _flat(item, " · ".join(filter(None, (path, key))))),
        ]
    if isinstance(value, list):
        return [(path, ", ".join(wording.number(item) if not isinstance(item, list | dict) else "…" for item in value[:50]))]
    return [(path, wording.number(value))]


def _pair(value: Mapping) -> str:
    """`before → after`, where both are there."""
    if not {"before", "after"} <= set(value):
        return ""
    sides = [value["before"], value["after"]]
    if any(isinstance(side, Mapping) and not {"value", "low", "high"} <= set(side) for side in sides):
        return ""
    return " → ".join(wording.spread(side) if isinstance(side, Mapping) else wording.number(side) for side in sides)


def _notes(report: Report, most: int) -> str:
    found = report["notes"]
    rows = "".join(f"<li>{text(note)}</li>" for note in found[:most])
    return f"<ul>{rows}</ul>{rest(len(found) - most)}" if found else ""


def _versions(report: Report, most: int) -> str:
    found = report["compared"]
    whole = {f"{side} fingerprint": found[side]["fingerprint"] for side in ("base", "update")}
    whole |= {f"{side} sha256": found[side]["sha256"] for side in ("texts", "labels") if found[side]}
    whole |= {"tokenizer and template": found["template"], **{key: found[key] for key in ("device", "compute", "threads")}}
    whole |= found["versions"] | {f"monitor {monitor['name']}": monitor["hash"] for monitor in report["monitors"]}
    rows = [[text(key), text(DASH if value is None else value)] for key, value in whole.items()]
    return html_table(("what", "value"), rows, most, (0, 1))


PARTS: dict[str, Callable[[Report, int], str]] = {
    "All tests, with p values": _tests,
    "What each monitor must do, by the policy": _floors,
    "Settings of a forward pass, compared field by field": _settings,
    "Screening without labels, and the order of labelling": _screening,
    "Repairs that were tried": _repairs,
    "Which layer and which direction moved": _moved,
    "Behaviour beside the monitors": _behaviour,
    "Notes": _notes,
    "Fingerprints and versions": _versions,
}
