"""Record: the changes of verdicts of a profile, in `verdicts.json` beside its findings; written by a command and by nothing else.

Each entry says what moved, on which date, by which rules, and which verdict each claim had afterwards: so the next entry can
be checked to begin where the last one ended.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from helpers.book.verdict_history.moves import Moves
from helpers.book.verdict_history.sides import Side
from helpers.cache import write_json
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError, shown
from helpers.study.findings import VERDICTS

RECORD = "verdicts.json"
VERSION = 1
Change = dict[str, Any]


def _object(**fields: object) -> dict[str, object]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def _list(items: object) -> dict[str, object]:
    return {"type": "array", "items": items, "maxItems": 1000}


TEXT: dict[str, object] = {"type": "string", "maxLength": 400}
VERDICT = {"enum": [*VERDICTS]}
NUMBER = {"type": ["number", "null"]}
COUNT = {"type": "integer", "minimum": 0}
ENDS = {"estimate": NUMBER, "low": NUMBER, "high": NUMBER, "n": COUNT, "seeds": COUNT}
HEAD, ANSWER = _object(verdict=VERDICT, **ENDS), _object(answer=VERDICT, **ENDS)
PART = _object(name=TEXT, model=TEXT, unit=TEXT, asked=TEXT, before=ANSWER, after=ANSWER)
MOVED = _object(claim=TEXT, short=TEXT, unit=TEXT, before=HEAD, after=HEAD, parts=_list(PART))
ALONE = _list(_object(claim=TEXT, short=TEXT, verdict=VERDICT))
SCHEMA = _object(
    schema={"const": VERSION},
    changes=_list(
        _object(
            date={"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
            rules=_object(before=_list(TEXT), after=_list(TEXT)),
            moved=_list(MOVED),
            only_old=ALONE,
            only_new=ALONE,
            verdicts={"type": "object", "additionalProperties": VERDICT, "maxProperties": 1000},
        )
    ),
)


def read_changes(folder: Path) -> list[Change]:
    """The recorded changes of the profile in a folder, the oldest first; none where nothing was recorded.

    Raises StudyError (12) where the file is not as the command writes it.
    """
    path = folder / RECORD
    if not path.is_file():
        return []
    from jsonschema import Draft202012Validator  # 0.2 s, so only where there is something to check

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, "it cannot be read as JSON") from error
    fault = next(iter(Draft202012Validator(SCHEMA).iter_errors(found)), None)
    if fault is not None:
        raise _broken(path, f"{'/'.join(map(str, fault.absolute_path)) or 'the whole'}: {shown(fault.message, 120)}")
    dates = [change["date"] for change in found["changes"]]
    for day in dates:
        checked_date(day, f"{path.parent.name}/{RECORD}", REFUSED)
    if dates != sorted(dates):
        raise _broken(path, "its dates are not in order")
    return found["changes"]


def _broken(path: Path, why: str) -> StudyError:
    place = f"{path.parent.name}/{path.name}"
    return StudyError(f"{place} is not as `findings --record` writes it ({why}); restore it from git", REFUSED)


def checked_date(text: str, where: str = "--record", code: int = USAGE) -> str:
    """The date, if it is one, as 2026-12-01."""
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        raise StudyError(f"{where} {shown(text)} is no date; write it as 2026-12-01", code) from None
    return text


def append(old: Side, new: Side, moves: Moves, day: str) -> Path | None:
    """Where the change was recorded: in the new folder, after all that it or the old folder holds; None if nothing moved.

    The same change of the same date is recorded once. Raises StudyError where the date lies before the last one (2), and where
    the old verdicts are not those that the record ends with (13).
    """
    checked_date(day)
    if not any(moves[key] for key in ("moved", "only_old", "only_new")):
        return None
    changes = read_changes(new.folder) or read_changes(old.folder)
    moved = [{name: claim[name] for name in MOVED["properties"]} for claim in moves["moved"]]  # type: ignore[attr-defined]
    change = {"date": day, "moved": moved, **{key: moves[key] for key in ("rules", "only_old", "only_new", "verdicts")}}
    path = new.folder / RECORD
    if not changes or changes[-1] != change:
        _continues(changes, old, day)
        changes = [*changes, change]
    write_json(path, {"schema": VERSION, "changes": changes})
    return path


def _continues(changes: list[Change], old: Side, day: str) -> None:
    if not changes:
        return
    last = changes[-1]
    if day < last["date"]:
        raise StudyError(f"--record {day} lies before the last recorded change, of {last['date']}; give that date or a later one")
    now = unlike(last["verdicts"], old.verdicts)
    if now:
        raise StudyError(
            f"{old.name} has other verdicts ({', '.join(now)}) than the record ends with on {last['date']}; "
            "name as OLD the results that were recorded last",
            NOT_COMPARABLE,
        )


def unlike(recorded: Mapping[str, str], verdicts: Mapping[str, str]) -> list[str]:
    """The claims whose verdicts are others than those recorded, or that one of the two lacks."""
    return [claim for claim in dict.fromkeys([*recorded, *verdicts]) if recorded.get(claim) != verdicts.get(claim)]
