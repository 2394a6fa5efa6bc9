"""A report as one HTML page that needs nothing else: no script, no request, light and dark, from a telephone to paper.

The first screen answers in this order: the verdict, what was compared, each monitor, what to do, the controls, how sure
the gate is. Everything else is folded.
"""

from collections.abc import Mapping, Sequence

from helpers.revalidation.report import svg, wording
from helpers.revalidation.report.html_detail import FEW, MANY, URGENT, details, figure, html_table, name, rest, text, wide
from helpers.revalidation.report.svg_steps import draw_steps
from helpers.revalidation.report.wording import DASH, Report

LIMIT = 500_000  # bytes of a page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><style>{svg.style()}</style>
"""
# Rows of a table, of which the first that keeps the page within its limit is taken.
SIZES = (3000, 1000, 300, 100, 30, 10, 3)


def html(report: Report) -> str:
    """The page of a report that is plain and checked; where a table is cut to keep the limit, it says so and names the JSON."""
    for rows in SIZES:
        page = _page(report, rows)
        if len(page.encode()) <= LIMIT:
            break
    return page


def _page(report: Report, rows: int) -> str:
    title = text(f"{report['verdict']['word'].capitalize()}: {report['compared']['update']['name']} revalidated")
    first = _top(report) + _verdict(report) + _compared(report) + _monitors(report, rows)
    first += _behaviour(report) + _steps(report) + _next(report, rows)
    beside = f'<div class="pair">{_controls(report, rows)}{_sureness(report)}</div>\n'
    return f"{HEAD}<title>{title}</title></head>\n<body><main>\n{first}{beside}{details(report, rows)}\n</main></body></html>\n"


def _tag(state: str) -> str:
    """A state as a word with its symbol; the colour only helps."""
    symbol = f'<span aria-hidden="true">{wording.SYMBOLS[state]}</span>'
    return f'<span class="tag {svg.CLASSES[state]}">{symbol} {text(state.upper())}</span>'


def _top(report: Report) -> str:
    update = text(report["compared"]["update"]["name"])
    seconds = "" if report["seconds"] is None else f" · {figure(report['seconds'], 1)} s"
    code = f"exit code {figure(report['code'])}{seconds}"
    return f'<p class="top"><span>Revalidation of <bdi>{update}</bdi></span><span>{code}</span></p>\n'


def _verdict(report: Report) -> str:
    found = report["verdict"]
    body = f"{_tag(found['word'])}<h1>{text(found['sentence'])}</h1><p>{text(found['reason'])}</p>"
    return f'<section class="verdict {svg.CLASSES[found["word"]]}" aria-label="Verdict">{body}</section>\n'


def _compared(report: Report) -> str:
    rows = "".join(
        f"<div><dt>{text(what)}</dt><dd>{text(value)} <code>{text(fingerprint)}</code></dd></div>"
        for what, value, fingerprint in wording.compared(report)
    )
    return f'<section><h2>What was compared</h2><dl class="grid">{rows}</dl></section>\n'


# ---------------------------------------------------------------- monitors


def _monitors(report: Report, most: int) -> str:
    """A line each; of many monitors only those that are not fine, the others folded into a table."""
    found = wording.ordered(report["monitors"])
    shown = found if len(found) <= FEW else [monitor for monitor in found if monitor["state"] in URGENT][: min(MANY, most)]
    lines = "".join(map(_line, shown))
    key = svg.KEY if any(monitor["tests"] for monitor in shown) else ""
    folded = _folded(found[len(shown) :], most) if len(shown) < len(found) else ""
    title = f"<h2>Monitors: {text(wording.counts(found))}</h2>"
    return f'<section>{title}{key}<ul class="mon">{lines}</ul>{folded}</section>\n'


def _line(monitor: Mapping) -> str:
    head = f'<p>{_tag(monitor["state"])} <b class="name">{name(monitor)}</b></p>'
    why = f'<p class="note">{text(wording.facts(monitor))} · {text(monitor["reason"])}</p>'
    stands = wording.stands(monitor)
    why += f'<p class="note">{text(stands)}</p>' if stands else ""
    return f"<li><div>{head}{why}</div>{_measures(monitor)}</li>"


def _measures(monitor: Mapping) -> str:
    """Before -> after at the frozen threshold and in ranking, and the drawing; without labels, what the scores alone say."""
    tests = wording.tests_of(monitor)
    if not tests:
        return f'<p class="note">{text(wording.screened(monitor) or "not measured")}</p>'
    rows = "".join(_measure(test, tests) for test in tests)
    return f'<div class="three"><table>{rows}</table>{svg.intervals(tests)}</div>'


def _measure(test: Mapping, among: Sequence[Mapping]) -> str:
    colour, symbol = svg.ANSWERS[test["answer"]]
    answer = (
        f'<td class="{colour}"><span aria-hidden="true">{symbol}</span> <span class="word">{text(test["answer"])}</span></td>'
    )
    head = f'<th scope="row">{text(wording.measure(test, among))}</th>'
    return f"<tr>{head}<td>{text(wording.sides(test))}</td><td>{text(wording.change(test))}</td>{answer}</tr>"


def _folded(monitors: Sequence[Mapping], most: int) -> str:
    rows = [[_tag(m["state"]), name(m), figure(m["n"]), *_three(m)] for m in monitors]
    inside = html_table(("state", "monitor", "n", "TPR", "FPR", "AUROC"), rows, most, (1,))
    return f"<details><summary>And {text(wording.counts(monitors))}</summary>{inside}</details>"


def _three(monitor: Mapping) -> list[str]:
    """TPR, FPR and AUROC, a cell each."""
    tests = wording.tests_of(monitor)
    return [
        "<br>".join(text(wording.sides(test)) for test in tests if test["measure"].startswith(kind)) or DASH
        for kind in wording.WORSE
    ]


# ---------------------------------------------------------------- what follows from it


def _next(report: Report, most: int) -> str:
    steps, most = wording.todo(report), min(MANY, most)
    rows = "".join(f"<li><b>{text(action)}</b>{': ' * bool(detail)}{text(detail)}</li>" for action, detail in steps[:most])
    steps_left = rest(len(steps) - most)
    return f'<section><h2>What to do next</h2><ol class="do">{rows or "<li>Nothing.</li>"}</ol>{steps_left}</section>\n'


def _behaviour(report: Report) -> str:
    """What the model itself says, measure by measure; empty where nothing was measured."""
    rows = [[text(cell) for cell in cells] for cells in wording.behaviour_rows(report)]
    heads = ("measure", "before → after", "change, 90 % interval", "answer", "margin")
    return f"<section><h2>Behaviour</h2>{html_table(heads, rows, MANY, (0,))}</section>\n" if rows else ""


def _steps(report: Report) -> str:
    """The checkpoints that were looked at, drawn and in a table; empty where the update was one."""
    if not report.get("steps"):
        return ""
    rows = [[text(cell) for cell in cells] for cells in wording.steps_rows(report)]
    table = html_table(("step", "verdict", "monitors"), rows, MANY, (2,))
    drawn = wide(draw_steps(report["steps"]["looked_at"]))
    return f"<section><h2>Which step</h2><p>{text(wording.steps_sentence(report))}</p>{drawn}{table}</section>\n"


def _controls(report: Report, most: int) -> str:
    (said, found), most = wording.controls(report), min(MANY, most)
    marks = {True: '<span class="fine">✓ passed</span>', False: '<span class="stale">✗ FAILED</span>'}
    rows = "".join(
        f'<li>{marks[control["passed"]]} {text(control["name"])} <span class="note">{text(control["detail"])}</span></li>'
        for control in found[:most]
    )
    return f'<section><h2>Controls: {text(said)}</h2><ul class="ok">{rows}</ul>{rest(len(found) - most)}</section>'


def _sureness(report: Report) -> str:
    rows = "".join(f"<p>{text(sentence)}</p>" for sentence in wording.sureness(report))
    return f"<section><h2>How sure this gate is</h2>{rows}</section>"
