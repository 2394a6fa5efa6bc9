"""A report as text: Markdown for the summary of a CI job, and how lines for a terminal are broken.

The Markdown is headings, tables and lists only; nothing of the report in it is taken for HTML, a link or emphasis.
"""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from helpers.revalidation.report import wording
from helpers.revalidation.report.wording import Report

COLUMNS = 100  # of a terminal
LIMIT = 60_000  # bytes
SIZES = (1000, 300, 100, 30, 10, 3)  # rows of a table; the first that keeps the limit is taken
_SIGNS = re.compile(r"([\\`*_\[\]#|~$@]|:(?=\S)|(?<=\bwww)\.)", re.IGNORECASE)


def escaped(value: object) -> str:
    """The value on one line as text of Markdown: every sign that could mean something is escaped, tables' pipes too."""
    text = wording.clean(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SIGNS.sub(r"\\\1", text)  # what means something only where a line starts is left: no line starts with it


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]], most: int) -> list[str]:
    """The lines of a table, its first `most` rows; a table without rows is none."""
    if not rows:
        return []
    body = [f"| {' | '.join(map(escaped, row))} |" for row in rows[:most]]
    more = [f"\n{len(rows) - most:,} more in report.json."] if len(rows) > most else []
    return ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *body, *more, ""]


def fitting(lines: Callable[[int], Sequence[str]]) -> str:
    """The text of `lines(most rows of a table)`, with as many rows as 60 kB hold."""
    for most in SIZES:
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines(most))).strip() + "\n"
        if len(text.encode()) <= LIMIT:
            break
    return text


def report_markdown(report: Report) -> str:
    """The summary of a report that is plain and checked, at most 60 kB, in the order of the page's first screen."""
    return fitting(partial(_lines, report))


def _lines(report: Report, most: int) -> list[str]:
    found = report["verdict"]
    passed, controls = wording.controls(report)
    steps = [
        f"{i}. **{escaped(act)}**{': ' * bool(more)}{escaped(more)}" for i, (act, more) in enumerate(wording.todo(report), 1)
    ]
    failed = [f"- FAILED {escaped(c['name'])}: {escaped(c['detail'])}" for c in controls if not c["passed"]]
    return [
        f"## {wording.SYMBOLS[found['word']]} {escaped(found['word'].upper())}: {escaped(found['sentence'])}",
        "", f"Why: {escaped(found['reason'])}",
        "", "### What was compared", *markdown_table(("what", "name", "fingerprint"), wording.compared(report), most),
        f"### Monitors: {escaped(wording.counts(report['monitors']))}", *_monitors(report, most),
        *_behaviour(report, most), *_steps(report, most),
        "### What to do next", "", *(steps[:most] or ["Nothing."]),
        "", f"### Controls: {escaped(passed)}", "", *failed[:most],
        "", "### How sure this gate is", "", *(f"- {escaped(sentence)}" for sentence in wording.sureness(report)),
        "", *_tests(report, most),
    ]  # fmt: skip


def _monitors(report: Report, most: int) -> list[str]:
    rows = []
    for monitor in wording.ordered(report["monitors"]):
        tests = wording.tests_of(monitor)
        both = [
            "; ".join(wording.sides(t) for t in tests if t["measure"].startswith(kind)) or wording.DASH for kind in wording.WORSE
        ]
        state = f"{wording.SYMBOLS[monitor['state']]} {monitor['state']}"
        rows.append([state, monitor["name"], wording.facts(monitor), *both, monitor["reason"]])
    return markdown_table(("state", "monitor", "n", "TPR", "FPR", "AUROC", "reason"), rows, most)


def _behaviour(report: Report, most: int) -> list[str]:
    rows = wording.behaviour_rows(report)
    heads = ("measure", "before → after", "change, 90 % interval", "answer", "margin")
    return ["### Behaviour", *markdown_table(heads, rows, most)] if rows else []


def _steps(report: Report, most: int) -> list[str]:
    if not report.get("steps"):
        return []
    table = markdown_table(("step", "verdict", "monitors"), wording.steps_rows(report), most)
    return ["### Which step", "", escaped(wording.steps_sentence(report)), *table]


def _tests(report: Report, most: int) -> list[str]:
    """The tests of monitors that are not fine, with their adjusted p values."""
    rows = [_test(monitor, test) for monitor in wording.ordered(report["monitors"]) if monitor["state"] in wording.URGENCY[:3]
            for test in wording.tests_of(monitor)]  # fmt: skip
    heads = ("monitor", "measure", "change, 90 % interval", "margin", "p worse (Holm)", "p preserved (Hochberg)", "answer")
    return ["### Tests of monitors that are not fine", *markdown_table(heads, rows, most)] if rows else []


def _test(monitor: Mapping, test: Mapping) -> list[object]:
    p = (wording.probability(test[key]) for key in ("p_worse_adjusted", "p_preserved_adjusted"))
    measure = wording.measure(test, monitor["tests"])
    return [monitor["name"], measure, wording.change(test), wording.margin(test), *p, test["answer"]]


# ---------------------------------------------------------------- for a terminal


def wrapped(lines: Iterable[str]) -> list[str]:
    """The lines in plain signs, broken at 100 columns where a terminal would break them, with their indent kept."""
    found = []
    for line in lines:
        for sign, simple in (("−", "-"), ("→", "->"), (wording.DASH, "-"), (" ·", ";"), ("…", "...")):
            line = line.replace(sign, simple)
        wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in line)  # such a letter fills two columns
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        found += textwrap.wrap(line, COLUMNS // 2 if wide else COLUMNS, subsequent_indent=indent) or [""]
    return found
