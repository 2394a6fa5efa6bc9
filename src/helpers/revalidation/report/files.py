"""A revalidation report in its five files, written together or not at all, and as lines for a terminal.

`report.json` is the report, `schema.json` its form, `report.html` for people, `report.md` for a job's summary, `junit.xml`
for a CI's list of tests. A report holds hashes, names and numbers; texts of people and models have no place in it.
"""

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.errors import ENVIRONMENT, REFUSED, StudyError
from helpers.revalidation.report import comment, html, markdown, schema, wording
from helpers.revalidation.report.wording import Report

FILES = ("schema.json", "report.html", "report.md", "junit.xml", "report.json")  # the JSON last: it says that the rest is there
REPAIRED = "repaired"  # folder of the monitors that a run mended
BIGGEST = 50_000_000  # bytes of a report that is read
_NUMBERS = re.compile(r"\[\n\s+(?:(?:null|[-\d.eE+]+),\s+)*(?:null|[-\d.eE+]+)\s+\]")


# ---------------------------------------------------------------- for a terminal


def report_lines(report: Report) -> list[str]:
    """The report's first screen for a terminal, at most 100 columns wide, in the order of the page."""
    report = wording.plain(report)
    found = report["verdict"]
    said = [f"{found['word'].upper()}: {found['sentence']}", *([f"  {found['reason']}"] if found["reason"] else []), "compared:"]
    said += [f"  {what}: {' '.join(part for part in rest if part)}" for what, *rest in wording.compared(report)]
    said += [f"monitors: {wording.counts(report['monitors'])}"]
    said += [line for monitor in wording.ordered(report["monitors"]) for line in _monitor(monitor)]
    said += [f"behaviour: {name} {sides}, change {change}: {answer}" for name, sides, change, answer, _ in
             wording.behaviour_rows(report)]  # fmt: skip
    if report.get("steps"):
        rows = wording.steps_rows(report)
        said += [f"steps: {wording.steps_sentence(report)}", *(f"  {step}: {word} ({states})" for step, word, states in rows)]
    said += ["next:", *(f"  {i}. {action}{': ' * bool(more)}{more}" for i, (action, more) in enumerate(wording.todo(report), 1))]
    passed, controls = wording.controls(report)
    said += [f"controls: {passed}", *(f"  FAILED {c['name']}: {c['detail']}" for c in controls if not c["passed"])]
    said += ["how sure:", *(f"  {sentence}" for sentence in wording.sureness(report))]
    return markdown.wrapped(said)


def _monitor(monitor: Mapping) -> list[str]:
    tests = wording.tests_of(monitor)
    state = f"  {monitor['state'].upper():<12} {monitor['name']} ({wording.facts(monitor)}): {monitor['reason']}"
    rates = ", ".join(f"{wording.measure(test, tests)} {wording.sides(test)}" for test in tests) or wording.screened(monitor)
    return [state, *(f"      {line}" for line in (rates, wording.stands(monitor)) if line)]


# ---------------------------------------------------------------- the files


def _json(value: object) -> str:
    """JSON for eyes; a list of plain numbers takes one line, as scores are thousands."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)


def rendered(report: Report) -> dict[str, str]:
    """The five files' texts by name, of a report that is cleaned and checked first (`report_schema.check`)."""
    found = wording.plain(report)
    schema.check_report(found)
    texts = {
        "schema.json": _json(schema.SCHEMA),
        "report.html": html.html(found),
        "report.md": markdown.report_markdown(found),
        "junit.xml": junit(found),
        "report.json": _json(found),
    }
    return {name: texts[name] for name in FILES}


def write_comment(report: Report, path: Path) -> None:
    """Writes the report as the comment of a pull request, whole or not at all."""
    found = wording.plain(report)
    schema.check_report(found)
    part = path.with_name(f".{path.name}.tmp")
    try:
        part.write_text(comment.comment_markdown(found), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        said = f"--comment {wording.clean(path.name, 200)} cannot be written ({error.strerror})"
        raise StudyError(f"{said}; name a file in a folder that can be written", ENVIRONMENT) from error


def ready(folder: Path, monitors: str = "") -> None:
    """Nothing, if a report can be written into `folder`: new, empty, or holding an older report. For before any work is done.

    monitors: the folder of those that are revalidated, which must not be the repaired ones there: a new report removes them.
    """
    shown = wording.clean(str(folder), 200)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise StudyError(f"--out {shown} is a file; name a folder that is new, or that holds an older report")
    if monitors and Path(monitors).resolve() == (folder / REPAIRED).resolve():
        raise StudyError(f"--monitors are those that lie in --out {shown}, and would be removed there; name another folder")
    place = folder if os.path.isdir(folder) else next(up for up in folder.absolute().parents if os.path.lexists(up))
    if not os.path.isdir(place) or not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise StudyError(f"--out {shown} cannot be written; mend the rights of its folder, or name another", ENVIRONMENT)
    if place == folder and any(folder.iterdir()) and not _ours(folder / "report.json"):
        raise StudyError(f"--out {shown} holds other files and no older report; name a new folder, or empty this one")


def _ours(path: Path) -> bool:
    """Whether a report of any version stands there."""
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= BIGGEST else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"schema_version", "verdict", "monitors"} <= set(found)


def write(report: Report, folder: Path) -> list[Path]:
    """The paths of the five files, all written or none; an older report in the folder is replaced, with the monitors that it had
    repaired; other files there stay.
    """
    folder = Path(folder)
    ready(folder)
    texts = rendered(report)
    work = folder / ".report.tmp" if folder.is_dir() else folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
        work.mkdir(parents=True)
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
        if folder.is_dir():
            _swap(work, folder)
        else:
            os.replace(work, folder)
    except OSError as error:
        shown = wording.clean(folder.name, 200)
        raise StudyError(
            f"cannot write the report {shown}: {error.strerror}; free disk space or mend its rights", ENVIRONMENT
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _forget(folder / REPAIRED)
    return [folder / name for name in FILES]


def _forget(folder: Path) -> None:
    """Removes the monitors that an older run repaired, under an update that the new report does not tell of."""
    for name in ("monitors.json", "monitors.safetensors"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds other files
        folder.rmdir()


def _swap(work: Path, folder: Path) -> None:
    """Puts the new files in the place of the old ones; at an error the old ones are put back."""
    old = work / "old"
    old.mkdir()
    moved: list[str] = []
    try:
        for name in FILES:
            if os.path.lexists(folder / name):
                os.replace(folder / name, old / name)
            moved.append(name)
            os.replace(work / name, folder / name)
    except BaseException:  # a signal too
        for name in moved:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
                os.replace(old / name, folder / name)
        raise


def read(path: Path) -> dict[str, Any]:
    """The report of a `report.json`, or of the folder that holds one; refused where it has not the form of one."""
    path = path / "report.json" if path.is_dir() else path
    shown = wording.clean(str(path), 200)
    try:
        if path.stat().st_size > BIGGEST:
            raise StudyError(f"{shown} is larger than {BIGGEST:,} bytes; that is no report of ours", REFUSED)
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{shown} cannot be read ({error.strerror}); name a report.json or its folder") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{shown} is not JSON; name a report.json that python -m helpers revalidate wrote", REFUSED) from error
    found = wording.plain(found)
    schema.check_report(found)
    return found


# ---------------------------------------------------------------- JUnit


def junit(report: Report) -> str:
    """The report as JUnit XML: a test case a monitor and one a control.

    Stale and unfit are failures. Inconclusive is one (type `inconclusive`) where the gate requires the monitor, else skipped.
    """
    seconds = f"{report['seconds'] or 0:.3f}"
    root = ET.Element("testsuites", name="revalidate", time=seconds)
    suite = ET.SubElement(root, "testsuite", name="monitors", time=seconds)
    for monitor in wording.ordered(report["monitors"]):
        case = ET.SubElement(suite, "testcase", classname=f"monitors.{monitor['task'] or 'all'}", name=monitor["name"], time="0")
        _outcome(case, monitor)
    suite = ET.SubElement(root, "testsuite", name="controls", time="0")
    for control in report["controls"]:
        case = ET.SubElement(suite, "testcase", classname="controls", name=control["name"], time="0")
        if not control["passed"]:
            ET.SubElement(case, "failure", type="control", message=control["detail"] or "failed")
    for each in (*root, root):
        for key, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            each.set(key, str(len(list(each.iter(tag)))))
        each.set("errors", "0")
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(('<?xml version="1.0" encoding="UTF-8"?>\n', "\n"))


def _outcome(case: ET.Element, monitor: Mapping) -> None:
    """The failure or the skip of a monitor's test case, with its numbers below."""
    state = monitor["state"]
    if state not in {"stale", "unfit", "inconclusive"}:
        return
    failed = state != "inconclusive" or monitor["required"]
    found = ET.SubElement(case, "failure", type=state) if failed else ET.SubElement(case, "skipped")
    found.set("message", f"{state}: {monitor['reason']} ({wording.facts(monitor)})")
    tests = wording.tests_of(monitor)
    changes = [
        f"{wording.measure(t, tests)} {wording.sides(t)}, change {wording.change(t)}, margin {wording.margin(t)}: {t['answer']}"
        for t in tests
    ]
    found.text = "\n".join([*changes, *map(wording.floor, monitor["floors"])])
