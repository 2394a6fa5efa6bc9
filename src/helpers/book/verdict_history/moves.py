"""Moves: which verdicts differ between two folders of a profile's results, and which part of the claim gave another answer.

Verdicts are compared as they were published, in `findings.parquet`. What gave another answer is found by judging the tables of
both sides by one set of rules, the present one; so a verdict that moved with the rules alone is told from one that the numbers
moved.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from helpers.book.verdict_history.sides import NUMBERS, Side
from helpers.cache import plain
from helpers.errors import NOT_COMPARABLE, USAGE, StudyError
from helpers.figures.findings_tables import asked, head_of
from helpers.study.claims import CLAIMS, RULES_SET
from helpers.study.findings import NOT_RUN

Moves = dict[str, Any]


def compare(old: Side, new: Side) -> Moves:
    """What moved from one side to the other, in JSON's own types.

    moved: claims with another verdict, each with its headlines, the parts that gave another answer, and notes; only_old,
    only_new: claims that one side alone has, with their verdicts; verdicts: those of the new side.
    """
    if old.folder == new.folder:
        raise StudyError(f"{old.name} and {new.name} are the same folder, so nothing can have moved; name another one", USAGE)
    if old.profiles and new.profiles and old.profiles != new.profiles:
        sides = (f"{side.name} is of profile {', '.join(sorted(side.profiles))}" for side in (old, new))
        raise StudyError(f"{' and '.join(sides)}; compare two folders of one profile", NOT_COMPARABLE)
    before, after = old.verdicts, new.verdicts
    moved = [claim for claim in after if claim in before and before[claim] != after[claim]]
    return plain({
        "old": old.name, "new": new.name, "rules": {"before": old.rules, "after": new.rules}, "claims": len(after),
        "moved": [_claim(claim, old, new) for claim in moved],
        "only_old": [_alone(claim, before) for claim in before if claim not in after],
        "only_new": [_alone(claim, after) for claim in after if claim not in before],
        "notes": [_recomputed(side) for side in (old, new) if side.stored is None], "verdicts": after,
    })  # fmt: skip


def short_of(claim: str) -> str:
    """The claim in a few words; empty for one that is no longer asked."""
    return CLAIMS[claim].short if claim in CLAIMS else ""


def _recomputed(side: Side) -> str:
    return f"{side.name} has no findings.parquet: its runs were judged anew, by the rules of {RULES_SET}"


def _alone(claim: str, verdicts: Mapping[str, str]) -> dict[str, str]:
    return {"claim": claim, "short": short_of(claim), "verdict": verdicts[claim]}


def _claim(claim: str, old: Side, new: Side) -> dict[str, Any]:
    sides = {"before": old, "after": new}
    heads = {when: _headline(claim, side) for when, side in sides.items()}
    reason = new.findings.set_index("claim").loc[claim, "reason"]
    unit = head_of(claim, reason).unit if claim in CLAIMS else ""
    parts = _parts(claim, old, new) if old.runs and new.runs else []
    notes = _notes(claim, old, new, parts)
    return {"claim": claim, "short": short_of(claim), "unit": unit, **heads, "parts": parts, "notes": notes}


def _headline(claim: str, side: Side) -> dict[str, Any]:
    row = side.findings.set_index("claim").loc[claim]
    return {"verdict": row["verdict"], **{name: row[name] for name in NUMBERS}}


def _parts(claim: str, old: Side, new: Side) -> list[dict[str, Any]]:
    """The conjuncts of a claim whose answers differ, by model; what one side has no row of was not run there."""
    before, after = _rows(claim, old), _rows(claim, new)
    found = []
    for key in dict.fromkeys([*after, *before]):
        rows = {"before": before.get(key), "after": after.get(key)}
        answers = {when: NOT_RUN if row is None else row["answer"] for when, row in rows.items()}
        one = rows["after"] or rows["before"]
        if one is not None and answers["before"] != answers["after"]:
            told = {when: _told(row) for when, row in rows.items()}
            wanted = asked(one["unit"], one["side"], one["bound"], one["margin"])
            found.append({"name": one["name"], "model": one["model"], "unit": one["unit"], "asked": wanted, **told})
    return found


def _rows(claim: str, side: Side) -> dict[tuple[str, int], dict[str, Any]]:
    parts: pd.DataFrame = side.judged[1]
    own = parts[(parts["claim"] == claim) & ~parts["beside"].astype(bool)]
    return {(row["model"], row["component"]): row for row in own.to_dict("records")}


def _told(row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {"answer": NOT_RUN, **dict.fromkeys(("estimate", "low", "high")), "n": 0, "seeds": 0}
    return {"answer": row["answer"], **{name: row[name] for name in NUMBERS}}


def _notes(claim: str, old: Side, new: Side, parts: list) -> list[str]:
    """What a verdict owes to its rules, and where parts are not known."""
    bare = [side.name for side in (old, new) if not side.runs]
    if bare:
        return [f"no finished run in {' and '.join(bare)}, so no part of the claim is known there"]
    if claim not in CLAIMS:
        return ["this claim is no longer asked, so its parts are not known"]
    notes = []
    for when, side in (("old", old), ("new", new)):
        anew = dict(zip(*(side.judged[0][name] for name in ("claim", "verdict")), strict=True))[claim]
        if anew != side.verdicts[claim]:
            rules = f", by the rules of {' and '.join(side.rules)}" if side.rules else ""
            said = f"the {when} results say {side.verdicts[claim]}{rules}"
            notes.append(f"{said}; judged anew, by the rules of {RULES_SET}, they say {anew}")
    if not parts:
        notes.append("judged by the same rules, no part of the claim gives another answer")
    return notes
