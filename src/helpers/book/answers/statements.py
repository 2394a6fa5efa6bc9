"""Statements: one sentence for each way in which a question can end, and the one that the numbers of all seeds choose.

So, not so, in part, cannot be told (and why), no effect to speak of, not measured. The sentence says what was found in these
runs; with other runs another one stands in its place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.book.answers.numbers import Gathered, Told, link, linked_number
from helpers.book.markup import text
from helpers.study.claims import IN_WORDS
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED
from helpers.study.reasons import FAR

SO, NOT_SO, PARTLY, OPEN, NIL, UNMEASURED = "so", "not so", "in part", "open", "nil", "not measured"
OUTCOMES = (SO, NOT_SO, PARTLY, OPEN, NIL, UNMEASURED)
SIMPLE = {SUPPORTED: SO, CONTRADICTED: NOT_SO, NOT_RUN: UNMEASURED}
KEY = re.compile(r"\{(?P<bound>bound:)?(?P<key>[a-z0-9-]+)\}")
YES = {SO: "yes", NOT_SO: "no", NIL: "no sign of it", OPEN: "open", UNMEASURED: "not measured"}
SHOWN = "nil within"  # how the reason of an effect begins that is none, as far as the interval reaches


@dataclass(frozen=True)
class Statement:
    """A question, the numbers that decide it, and what is said where all of them say yes, or all no.

    whether: the question as a clause, to stand behind "whether". `{m1-1}` in `yes`, `no` and `beside` is a number, and
    `{bound:m1-1}` what was asked of it. beside: said as well where all its numbers were measured. A statement without deciding
    numbers states a level: `yes` is said where it was measured.
    """

    parts: tuple[str, ...]
    whether: str
    yes: str
    no: str = ""
    beside: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """All numbers that it can show."""
        texts = (self.yes, self.no, self.beside)
        return tuple(dict.fromkeys([*self.parts, *(match["key"] for one in texts for match in KEY.finditer(one))]))


def outcome(found: Gathered, statement: Statement) -> str:
    """Which of OUTCOMES the numbers say, over all parts and models."""
    told = _told(found, statement.parts or statement.keys)
    if not statement.parts:
        return SO if all(each.measured for each in told) else UNMEASURED
    each = {_single(one) for one in told}
    measured = each - {UNMEASURED}
    if len(each) == 1:
        return next(iter(each))
    if not measured & {SO, NOT_SO}:
        return OPEN if OPEN in each else NIL
    return PARTLY


def _told(found: Gathered, keys: Sequence[str]) -> list[Told]:
    return [each for key in keys for each in found.told.get(key, ())]


def _single(told: Told) -> str:
    if told.answer == INCONCLUSIVE:
        return NIL if told.reason.startswith(SHOWN) else OPEN
    return SIMPLE[told.answer]


def stated(found: Gathered, statement: Statement, up: str = "") -> str:
    """The sentence that the numbers choose, as Markdown with its numbers linked; `up`: to the site's folder."""
    which = outcome(found, statement)
    if which in {SO, NOT_SO}:
        shown = filled_in(found, statement.yes if which == SO else statement.no, up)
        seeds = found.counting(statement.parts or statement.keys)
        counted = f"{shown.removesuffix('.')} ({seeds})." if seeds else shown
        return " ".join(filter(None, (counted, _beside(found, statement, up))))
    listed = "" if which == UNMEASURED else f": {_listed(found, statement, which, up)}"
    return f"{begins(found, statement)} {statement.whether}{listed}."


def begins(found: Gathered, statement: Statement) -> str:
    """How the sentence begins where it is neither yes nor no; the question follows, as a clause."""
    each = {_single(one) for one in _told(found, statement.parts)}
    partly = "It depends whether" if {SO, NOT_SO} <= each else "It is only partly clear whether"
    ways = {PARTLY: partly, OPEN: "It cannot be told yet whether", NIL: "There is no sign that"}
    return ways.get(outcome(found, statement), "It was not measured in these runs whether")


def _beside(found: Gathered, statement: Statement, up: str) -> str:
    keys = [match["key"] for match in KEY.finditer(statement.beside)]
    return filled_in(found, statement.beside, up) if keys and all(one.measured for one in _told(found, keys)) else ""


def filled_in(found: Gathered, template: str, up: str = "") -> str:
    """The template with each key's number, linked, and each bound as it was asked for."""

    def put(match: re.Match) -> str:
        return text(found.told[match["key"]][0].wanted) if match["bound"] else linked_number(found, match["key"], up)

    return KEY.sub(put, template)


def _listed(found: Gathered, statement: Statement, which: str, up: str) -> str:
    """The parts one by one: number, what it says where parts differ, and why it is open; a reason that all share stands once."""
    reasons = {_why(found, key) for key in statement.parts}
    shared = len(reasons) == 1 and which != PARTLY
    lines = []
    for key in statement.parts:
        each = found.told[key]
        label = text(each[0].part if each[0].part in IN_WORDS.values() else f"{each[0].part}:")
        label = label if len(statement.parts) > 1 else ""
        says = ", ".join(dict.fromkeys(YES[_single(one)] for one in each)) if which == PARTLY else _unmeasured(each)
        notes = ": ".join(text(note) for note in (says, "" if shared else _why(found, key)) if note)
        shown = linked_number(found, key, up) if any(one.measured for one in each) else ""
        lines.append(" ".join(filter(None, (label, shown, f"({notes})" if notes else ""))))
    why = next(iter(reasons)) if shared else ""
    bare = not any(one.measured for one in _told(found, statement.parts))  # then the reason is what leads to the origin
    shared_reason = link(statement.parts[0], why, up) if why and bare else text(why)
    return "; ".join(filter(None, (", ".join(filter(None, lines)), shared_reason)))


def _unmeasured(each: Sequence[Told]) -> str:
    """That a part was not measured, and where others measured it, on which models."""
    gone = [one.model for one in each if _single(one) == UNMEASURED]
    return YES[UNMEASURED] if len(gone) == len(each) else "; ".join(f"{model}: {YES[UNMEASURED]}" for model in gone)


def _why(found: Gathered, key: str) -> str:
    told = [each for each in found.told[key] if each.answer == INCONCLUSIVE]
    return "; ".join(dict.fromkeys(filter(None, [note for each in told for note in (_brief(each.reason), each.took)])))


def _brief(reason: str) -> str:
    """The reason without what the page of the claim tells: another way to decide it, and for how large a study it is too near."""
    first = reason.removesuffix(FAR).partition(", or ")[0].replace("places of monitors", "places")
    return re.sub(r"( a seed)? instead of (\d)", r", not \2", first)
