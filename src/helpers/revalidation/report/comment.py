"""A report as the comment of a pull request: the verdict, a line a monitor, what to do, and by which hashes it can be checked."""

from helpers.revalidation.report import markdown, wording
from helpers.revalidation.report.markdown import escaped, markdown_table
from helpers.revalidation.report.wording import Report

MARK = "<!-- after-the-update revalidate -->"  # by which an older comment is found and replaced
LIMIT = 8_000  # bytes
SIZES = (20, 10, 5, 2)  # monitors


def comment_markdown(report: Report) -> str:
    """The comment of a report that is plain and checked, at most 8 kB; what is left out is said and stands in report.json."""
    for most in SIZES:
        text = "\n".join(_lines(report, most)).strip() + "\n"
        if len(text.encode()) <= LIMIT:
            break
    return text if len(text.encode()) <= LIMIT else _short(report)


def _lines(report: Report, most: int) -> list[str]:
    found, steps = report["verdict"], wording.todo(report)[:3]
    monitors = wording.ordered(report["monitors"])
    rows = [_row(monitor) for monitor in monitors]
    heads = ("", "monitor", "TPR", "FPR", "AUROC", "n")
    behaviour = [cells[:4] for cells in wording.behaviour_rows(report)]
    todo = [f"{i}. {escaped(act)}: {escaped(more)}" for i, (act, more) in enumerate(steps, 1)]
    return [
        *_head(report), "", escaped(found["reason"]),
        *markdown_table(heads, rows, most),
        *markdown_table(("behaviour", "before → after", "change", "answer"), behaviour, most),
        *(["**Next**", "", *todo] if todo else []),
        "", _foot(report),
    ]  # fmt: skip


def _head(report: Report) -> list[str]:
    found = report["verdict"]
    return [MARK, f"### {wording.SYMBOLS[found['word']]} {escaped(found['word'].upper())}: {escaped(found['sentence'])}"]


def _row(monitor) -> list[str]:
    """State, name and rates of a monitor; one that is not required says so."""
    tests = wording.tests_of(monitor)
    both = ["; ".join(wording.sides(t) for t in tests if t["measure"].startswith(kind)) or wording.DASH for kind in wording.WORSE]
    name = monitor["name"] + ("" if monitor["required"] else " (not required)")
    state = f"{wording.SYMBOLS[monitor['state']]} {monitor['state']}"
    return [state, name, *both, wording.number(monitor["n"])]


def _foot(report: Report) -> str:
    """Counts, and the start of the hashes of policy, update and evidence."""
    hashes = {
        "policy": report["policy"]["hash"], "update": report["compared"]["update"]["fingerprint"],
        "evidence": (report.get("evidence") or {}).get("sha256"),
    }  # fmt: skip
    said = ", ".join(f"{name} {escaped(wording.short(value))}" for name, value in hashes.items() if value)
    passed, _ = wording.controls(report)
    return f"{escaped(wording.counts(report['monitors']))}; {escaped(passed)}; exit code {report['code']}; {said}"


def _short(report: Report) -> str:
    """The verdict alone, where names are so long that no table fits."""
    return "\n".join([*_head(report), "", markdown.escaped(wording.clean(_foot(report), 300)), ""])
