"""A report in words: cleaned text, numbers as people read them, and what every form of the report says, in one order.

HTML, Markdown, JUnit and the terminal take their words from here, so that they never say different things.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.cache import plain as plain_values
from helpers.console import scrub
from helpers.revalidation.behaviour import words
from helpers.revalidation.evidence.distances import noise_words, standing_words
from helpers.revalidation.hypotheses import NAMES, URGENCY, WORSE, in_margins

Report = Mapping[str, Any]

SYMBOLS = {"stale": "✗", "unfit": "!", "inconclusive": "?", "fine": "✓", "no update": "="}
ERRORS = {  # of the gate, by simulation; the second and last are not in every report
    "false_alarm": "Where nothing changed, a monitor is called stale in",
    "opened": "Where nothing changed, all required monitors are called fine in",
    "miss": "A monitor made worse on purpose is not called stale in",
    "let_through": "A monitor made worse on purpose is called fine in",
}
LONGEST = 2000  # characters of one text
DASH = "–"

# Terminal sequences whole (CSI, OSC, others), so that none of their letters stays behind.
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[@-_]?")
_MACHINE = re.compile(r"(?:file:/{2}|(?<![\w.:<~/-]))(?:/|[A-Za-z]:\\+|\\\\)(?:[\w.@+~-]{1,80}[/\\]+)+([\w.@+~-]+)")
_JOINER = "\u200d"  # holds emoji together; every other mark of format (bidi, zero width, tags) goes


# ---------------------------------------------------------------- plain values


def clean(text: str, most: int = LONGEST) -> str:
    """The text on one line: no control character, terminal sequence, bidi mark, lone surrogate, nor path of a machine."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_letter, _ESCAPES.sub("", text)))
    text = " ".join(text.split())
    if "/" in text or "\\" in text:
        text = _MACHINE.sub(r"\1", scrub(text, Path.cwd()))
    return text if len(text) <= most else text[: most - 1] + "…"


def _letter(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind == "Cs":
        return "\ufffd"
    if kind in {"Zl", "Zp"} or letter in "\t\n\r\x0b\x0c\x85":
        return " "
    gone = kind == "Cc" or (kind == "Cf" and letter != _JOINER) or (ord(letter) & 0xFFFE) == 0xFFFE
    return "" if gone or 0xFDD0 <= ord(letter) <= 0xFDEF else letter


def plain(report: Any) -> Any:
    """The report as plain JSON holds it: cleaned texts, numbers of Python, null for what is undefined (NaN, infinity)."""
    return plain_values(report, clean)


def number(value: object, digits: int = 3) -> str:
    """A number with a true minus and thousands apart; a dash for what is undefined or not measured."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,}".replace("-", "−") if isinstance(value, int) else f"{value:,.0f}".replace("-", "−")
    words = f"{value:.{digits}f}" if abs(value) >= 0.5 * 10**-digits or value == 0 else f"{value:.1e}"
    return words.replace("-", "−")


def probability(p: float | None) -> str:
    """A p value; the very small ones by their bound."""
    return "< 0.0001" if p is not None and p < 1e-4 else number(p)


def percent(share: float | None) -> str:
    """A share in percent, one decimal."""
    return DASH if share is None else f"{100 * share:.1f} %"


def spread(interval: Mapping, show=number) -> str:
    """A value with its interval."""
    return f"{show(interval['value'])} [{show(interval['low'])}, {show(interval['high'])}]"


def short(fingerprint: str | None) -> str | None:
    """The first 12 letters of a fingerprint, which tell two apart at a glance; the whole stands in report.json."""
    return fingerprint if fingerprint is None or len(fingerprint) <= 16 else fingerprint[:12] + "…"


def _joined(*parts: object) -> str:
    return " · ".join(str(part) for part in parts if part not in (None, "")) or DASH


# ---------------------------------------------------------------- monitors


def ordered(monitors: Iterable[Mapping]) -> list[Mapping]:
    """The monitors in the order of reading: stale first, then what is not known, the required ones before the others."""
    return sorted(monitors, key=lambda monitor: (URGENCY.index(monitor["state"]), not monitor["required"]))


def counts(monitors: Iterable[Mapping]) -> str:
    """How many monitors are in each state, the urgent ones first."""
    states = [monitor["state"] for monitor in monitors]
    return ", ".join(f"{states.count(state)} {state}" for state in URGENCY if state in states) or "no monitor"


def tests_of(monitor: Mapping) -> list[Mapping]:
    """The monitor's tests, rates at the frozen threshold before rankings: those are what an operator meets."""
    places = list(WORSE)
    return sorted(monitor["tests"], key=lambda test: places.index(test["measure"].split("_")[0]))


def measure(test: Mapping, among: Sequence[Mapping] = ()) -> str:
    """The name of a measure; with the nominal FPR of its threshold where the monitor has several."""
    kind, _, level = test["measure"].partition("_")
    several = len({other["measure"] for other in among if other["measure"].startswith(kind)}) > 1
    return f"{NAMES[kind]} @{level} %" if several else NAMES[kind]


def value(test: Mapping, key: str) -> str:
    """`before` or `after` as people read it: rates in percent, an AUROC as a number."""
    return number(test[key]) if test["measure"] == "auroc" else percent(test[key])


def sides(test: Mapping) -> str:
    """`before → after` of a measure."""
    before, after = value(test, "before"), value(test, "after")
    return f"{before.removesuffix(' %')} → {after}"


def change(test: Mapping) -> str:
    """The change with its interval; of rates in percentage points."""
    if test["measure"] == "auroc":
        return _signed(test["change"], 1, 3)
    return _signed(test["change"], 100, 1)


def margin(test: Mapping) -> str:
    """The margin of a measure; of rates in percentage points."""
    return number(test["margin"]) if test["measure"] == "auroc" else number(100 * test["margin"], 1)


def _signed(interval: Mapping, scale: float, digits: int) -> str:
    def shown(end: float | None) -> str:
        words = DASH if end is None else f"{scale * end:+.{digits}f}".replace("-", "−")
        return words if words.strip("+−0.") else words.lstrip("+−")

    value, low, high = (shown(interval[key]) for key in ("value", "low", "high"))
    return value if (low, high) == (DASH, DASH) else f"{value} [{low}, {high}]"


def harm_of_test(test: Mapping) -> tuple[float, float, float] | None:
    """Change and its interval, turned so that worse is above 0, in units of the margin; None where one is undefined."""
    ends = [test["change"][key] for key in ("value", "low", "high")]
    if any(end is None for end in ends):
        return None
    value, first, second = (in_margins(test["measure"], end, test["margin"]) for end in ends)
    return value, min(first, second), max(first, second)


def facts(monitor: Mapping) -> str:
    """What else there is to know of a monitor on its line: n, the n it would take, and whether the gate requires it."""
    needed = f"would take {number(monitor['needed_n'])}" if monitor["needed_n"] and monitor["state"] == "inconclusive" else None
    return _joined(f"n {number(monitor['n'])}", needed, None if monitor["required"] else "not required")


def screened(monitor: Mapping) -> str:
    """What the scores without labels say of a monitor; empty where it was not screened."""
    found = monitor["screening"]
    if not found:
        return ""
    alarms = f"alarms {percent(found['alarm_before'])} → {percent(found['alarm_after'])}"
    return _joined(
        alarms, f"agreement {percent(found['agreement'])}", f"PSI {number(found['psi'], 2)}", f"KS {number(found['ks'], 2)}"
    )


def stands(monitor: Mapping) -> str:
    """How far its scores stand from the threshold, and how far they moved beside the noise; empty where neither is known."""
    return _either(standing_words(monitor.get("standing")), noise_words(monitor.get("noise")))


def _either(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


# ---------------------------------------------------------------- the rest of the first screen


def compared(report: Report) -> list[tuple[str, str, str]]:
    """What was compared: what it is, its name, and the start of its fingerprint."""
    found = report["compared"]
    base, update, texts, labels = (found[key] for key in ("base", "update", "texts", "labels"))
    moved = update["size"]
    size = moved if isinstance(moved, str) or moved is None else f"relative size {number(moved)}"
    rows = [
        ("base", base["name"], base["fingerprint"]),
        ("update", _joined(update["name"], update["kind"], size), update["fingerprint"]),
        ("precision", found["precision"], None),
        ("serving", found["serving"], None),
        ("tokenizer and template", "" if found["template"] else None, found["template"]),
        ("settings of a forward pass", settings(found["settings"]), None),
        ("policy", _policy(report["policy"]), report["policy"]["hash"]),
        ("prompts", _prompts(found.get("asked")), (found.get("asked") or {}).get("sha256")),
        ("unlabelled texts", number(texts["n"]), texts["sha256"]) if texts else ("unlabelled texts", "none", None),
        ("labelled texts", _labelled(labels), labels["sha256"]) if labels else ("labelled texts", "none", None),
    ]
    rows = [row for row in rows if row[0] != "prompts" or row[1]]
    return [(what, DASH if value is None else value, short(fingerprint) or "") for what, value, fingerprint in rows]


def _prompts(found: Mapping | None) -> str | None:
    return f"{number(found['n'])} ({number(found['harmful'])} harmful)" if found else None


def behaviour_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Measures of behaviour: what, before → after, the change with its interval, the answer, and the margin."""
    return [_behaviour(one) for one in (report["behaviour"] or {}).get("measures", [])]


def _behaviour(one: Mapping) -> tuple[str, str, str, str, str]:
    scale, digits = (100, 1) if one["unit"] == "share" else (1, 2 if one["unit"] == "ratio" else 3)
    shown = f"{number(one['margin'], 2)} times" if one["unit"] == "ratio" else number(scale * one["margin"], digits)
    change = spread(one["change"], lambda x: DASH if x is None else number(scale * x, digits))
    name = words.label(one) + (", required" if one["required"] else "")
    return name, words.sides_of(one).replace(" -> ", " → "), change, one["answer"], shown


def settings(rows: Sequence[Mapping]) -> str | None:
    """How many settings were compared, and those that differ, field by field; None where none were."""
    if not rows:
        return None
    others = [f"{row['what']} {row['base'] or DASH} → {row['update'] or DASH}" for row in rows if not row["same"]]
    return f"{number(len(rows))} compared, " + (
        f"{number(len(others))} differ: {'; '.join(others)}" if others else "all the same"
    )


def _policy(found: Mapping) -> str:
    """What was asked of each monitor, and where that stands."""
    must = [name for name in found.get("required", []) if name.startswith("behaviour/")]
    kept = f", keeps {', '.join(must)}" if must else ""
    asked = f"TPR at least {percent(found['tpr_floor'])}, FPR at most {number(found['fpr_ratio_ceiling'], 1)} times its promise"
    return f"{found['file'] or 'the defaults'}: {asked}, AUROC above {number(found['auroc_floor'], 2)}{kept}"


def steps_rows(report: Report) -> list[tuple[str, str, str]]:
    """The checkpoints that were looked at: step, verdict, how many monitors are in each state."""
    found = report.get("steps") or {"looked_at": []}
    return [(number(row["step"]), f"{SYMBOLS[row['word']]} {row['word']}", counts(row["monitors"])) for row in found["looked_at"]]


def steps_sentence(report: Report) -> str:
    """From which step on a required monitor is stale, and how that was found."""
    found = report["steps"]
    how = f"{number(len(found['looked_at']))} of {number(found['there'])} checkpoints looked at, by {found['how']}"
    if found["first_stale"] is None:
        return f"No required monitor is stale at the last step; {how}."
    fit = "none before it was shown fit" if found["last_fit"] is None else f"the last shown fit is step {found['last_fit']}"
    return f"A required monitor is stale from step {found['first_stale']} on, {fit}; {how}."


FLOORS = {"missed": "its floor is missed", "kept": "its floor is kept", "open": "its floor is neither shown kept nor missed"}


def floor(found: Mapping) -> str:
    """One floor in words: what is asked, what was measured, the answer."""
    kind = found["measure"].split("_")[0]
    limit = number(found["limit"], 2) if kind == "auroc" else percent(found["limit"])
    side = "at most" if kind == "fpr" else "above" if kind == "auroc" else "at least"
    return f"{NAMES[kind]} {sides(found)}, asked {side} {limit}: {FLOORS[found['answer']]}"


def _labelled(labels: Mapping) -> str:
    return f"{number(labels['n'])} ({number(labels['positives'])} positive, {number(labels['groups'])} groups)"


def todo(report: Report) -> list[tuple[str, str]]:
    """What to do next: the action, and its monitor and detail."""
    return [
        (step["action"][:1].upper() + step["action"][1:], ": ".join(part for part in (step["monitor"], step["detail"]) if part))
        for step in report["next"]
    ]


def controls(report: Report) -> tuple[str, list[Mapping]]:
    """How many controls passed, and all of them with the failed ones first."""
    found = sorted(report["controls"], key=lambda control: control["passed"])
    failed = sum(not control["passed"] for control in found)
    if not found:
        return "no control was run", []
    return (f"{failed} of {len(found)} controls FAILED" if failed else f"all {len(found)} controls passed"), found


def sureness(report: Report) -> list[str]:
    """How often this gate errs at this n, by simulation, a sentence for each rate that is known."""
    found = report["sureness"] or {}
    at = f" at n {number(found['n'])}" if found.get("n") is not None else ""
    said = [
        f"{words} {spread(rate, percent)} of {number(rate['draws'])} simulated runs{at}."
        for key, words in ERRORS.items()
        if (rate := found.get(key))
    ]
    return said or ["Not simulated for this run: nothing is known of how often this gate errs at this n."]
