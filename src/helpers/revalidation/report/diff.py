"""What changed between two reports on the same frozen monitors: the verdict, states, measures, fingerprints, thresholds.

Two reports compare only where monitors, base and template are the same; else a state of the one says nothing of the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.revalidation.report import markdown as report_markdown
from helpers.revalidation.report import wording
from helpers.revalidation.report.wording import DASH, Report

HEALTH = {"stale": 0, "unfit": 0, "inconclusive": 1, "fine": 2, "no update": 2}
ORDER = ("worsened", "gone", "new", "improved", "same")  # of reading
HEADS = ("change", "monitor", "state", "measures beyond their intervals, thresholds")
OTHER = ("what", "before", "after")
Diff = Mapping[str, Any]


def compare(old: Report, new: Report) -> dict[str, Any]:
    """The changes from one plain, checked report to another, as plain JSON.

    A measure changed `beyond` its intervals where those of its two changes since the base do not overlap; that is stricter
    than a test at 5 %. StudyError 13 where base, tokenizer and template, or a monitor that both hold is another.
    """
    notes = _comparable(old, new)
    first, second = ({monitor["name"]: monitor for monitor in report["monitors"]} for report in (old, new))
    pairs = [(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
    found = sorted((_monitor(*pair) for pair in pairs), key=lambda row: ORDER.index(row["change"]))
    before, after = (report["verdict"]["word"] for report in (old, new))
    return {
        "verdict": {"before": before, "after": after, "change": _health(before, after)},
        "fingerprints": _fingerprints(old["compared"], new["compared"]) + _policies(old["policy"], new["policy"]),
        "monitors": found,
        "notes": notes,
    }


def _comparable(old: Report, new: Report) -> list[str]:
    """What has to be known when the two are compared; refused where they cannot be."""
    pairs = [
        (side, report["compared"]["base"]["fingerprint"], report["compared"]["template"])
        for side, report in (("old", old), ("new", new))
    ]
    (_, base, template), (_, base_now, template_now) = pairs
    others = {monitor["name"]: monitor["hash"] for monitor in old["monitors"]}
    hashes = [(f"monitor {m['name']}", others[m["name"]], m["hash"]) for m in new["monitors"] if m["name"] in others]
    notes = []
    for what, first, second in [("base", base, base_now), ("tokenizer and template", template, template_now), *hashes]:
        if first is None or second is None:
            notes.append(f"The fingerprint of {what} is not known in both reports, so nothing shows that it is the same.")
        elif first != second:
            text = f"not the same {what}: states are not comparable ({wording.short(first)} and {wording.short(second)})"
            raise StudyError(f"{text}; compare reports on the same frozen monitors", NOT_COMPARABLE)
    return notes + _other_texts(old["compared"], new["compared"])


def _other_texts(old: Mapping, new: Mapping) -> list[str]:
    first, second = ((side["labels"] or {}).get("sha256") for side in (old, new))
    return ["The labelled texts are others, so a measure may have changed with them."] if first != second else []


def _health(before: str, after: str) -> str:
    step = HEALTH[after] - HEALTH[before]
    return "improved" if step > 0 else "worsened" if step < 0 else "same"


def _fingerprints(old: Mapping, new: Mapping) -> list[dict[str, Any]]:
    """What else was compared and is another now."""
    sides = [
        {
            "update": side["update"]["fingerprint"] or side["update"]["name"],
            **{key: side[key] for key in ("precision", "serving", "device", "compute", "threads")},
            **{
                f"{key} texts": (side[name] or {}).get("sha256")
                for key, name in (("unlabelled", "texts"), ("labelled", "labels"))
            },
            **side["versions"],
        }
        for side in (old, new)
    ]
    keys = dict.fromkeys([*sides[0], *sides[1]])
    rows = [{"what": key, "before": sides[0].get(key), "after": sides[1].get(key)} for key in keys]
    return [row for row in rows if row["before"] != row["after"]]


def _policies(old: Mapping, new: Mapping) -> list[dict[str, Any]]:
    """What was asked of monitors and is asked otherwise now, by the names of the policy; its hash closes the list."""
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in {"hash", "file"}]
    sides = [{key: _listed(side.get(key)) for key in keys} for side in (old, new)]
    rows = [{"what": f"policy {key}", "before": sides[0][key], "after": sides[1][key]} for key in keys]
    changed = [row for row in rows if row["before"] != row["after"]]
    return [*changed, *([{"what": "policy", "before": old["hash"], "after": new["hash"]}] if changed else [])]


def _listed(value: object) -> object:
    return ", ".join(map(str, value)) or "all" if isinstance(value, list) else value


# ---------------------------------------------------------------- monitors


def _monitor(name: str, old: Mapping | None, new: Mapping | None) -> dict[str, Any]:
    if old is None or new is None:
        sides = {"before": old and old["state"], "after": new and new["state"]}
        return {"name": name, **sides, "change": "gone" if old else "new", "measures": [], "thresholds": []}
    change = _health(old["state"], new["state"])
    before, after = ({test["measure"]: test for test in wording.tests_of(side)} for side in (old, new))
    both = [(before[key], after[key]) for key in after if key in before]
    return {
        "name": name, "before": old["state"], "after": new["state"], "change": change,
        "measures": [_measure(*pair) for pair in both], "thresholds": _thresholds(old, new, both),
    }  # fmt: skip


def _measure(old: Mapping, new: Mapping) -> dict[str, Any]:
    """A measure on both updates, and whether its intervals lie apart."""
    first, second = wording.harm_of_test(old), wording.harm_of_test({**new, "margin": old["margin"]})
    apart, moved = False, "same"
    if first and second and (first[2] < second[1] or second[2] < first[1]):
        apart, moved = True, "worsened" if second[0] > first[0] else "improved"
    return {"measure": new["measure"], "before": old["after"], "after": new["after"], "beyond": apart, "change": moved}


def _thresholds(old: Mapping, new: Mapping, both: Sequence[tuple[Mapping, Mapping]]) -> list[dict[str, Any]]:
    """Margins that are others, and thresholds of the monitor where the reports hold them."""
    rows = [(f"margin of {a['measure']}", a["margin"], b["margin"]) for a, b in both]
    cuts, now = (side.get("thresholds") or {} for side in (old, new))
    rows += [(f"threshold {key}", cuts.get(key), now.get(key)) for key in dict.fromkeys([*cuts, *now])]
    return [{"what": what, "before": before, "after": after} for what, before, after in rows if before != after]


# ---------------------------------------------------------------- in words


def _shown(row: Mapping, key: str) -> str:
    value = row[key]
    return (
        wording.value(row, key) if "measure" in row else wording.number(wording.short(value) if isinstance(value, str) else value)
    )


def _moves(monitor: Mapping) -> str:
    """The measures that changed beyond their intervals, and thresholds that are others."""
    far = [
        f"{wording.measure(row, monitor['measures'])} {wording.sides(row)} ({row['change']})"
        for row in monitor["measures"]
        if row["beyond"]
    ]
    cuts = [f"{row['what']} {_shown(row, 'before')} → {_shown(row, 'after')}" for row in monitor["thresholds"]]
    return "; ".join([*far, *cuts]) or DASH


def _states(monitor: Mapping) -> str:
    return f"{monitor['before'] or DASH} → {monitor['after'] or DASH}"


def _counted(diff: Diff) -> str:
    changes = [monitor["change"] for monitor in diff["monitors"]]
    return ", ".join(f"{changes.count(word)} {word}" for word in ORDER if word in changes) or "no monitor"


def diff_lines(diff: Diff) -> list[str]:
    """The diff for a terminal, at most 100 columns wide: what changed first; monitors that did not change are only counted."""
    verdict = diff["verdict"]
    said = [f"verdict: {verdict['before']} → {verdict['after']} ({verdict['change']})", f"monitors: {_counted(diff)}"]
    told = [m for m in diff["monitors"] if m["change"] != "same" or _moves(m) != DASH]
    said += [f"  {m['change'].upper():<9} {m['name']}: {_states(m)}; {_moves(m)}".removesuffix(f"; {DASH}") for m in told]
    other = [f"  {row['what']}: {_shown(row, 'before')} → {_shown(row, 'after')}" for row in diff["fingerprints"]]
    said += ["other than before:" if other else "nothing else is other than before", *other]
    return report_markdown.wrapped([*said, *(f"note: {note}" for note in diff["notes"])])


def diff_markdown(diff: Diff) -> str:
    """The diff as Markdown for the summary of a CI job, at most 60 kB."""
    verdict = diff["verdict"]
    rows = [[m["change"], m["name"], _states(m), _moves(m)] for m in diff["monitors"]]
    other = [[row["what"], _shown(row, "before"), _shown(row, "after")] for row in diff["fingerprints"]]

    def said(most: int) -> list[str]:
        return [
            f"## Verdict: {verdict['before']} → {verdict['after']} ({verdict['change']})",
            "", f"### Monitors: {_counted(diff)}",
            *report_markdown.markdown_table(HEADS, rows, most),
            *(["### Other than before", *report_markdown.markdown_table(OTHER, other, most)] if other else []),
            *(f"- {report_markdown.escaped(note)}" for note in diff["notes"][:most]),
        ]  # fmt: skip

    return report_markdown.fitting(said)
