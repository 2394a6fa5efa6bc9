"""Judging: a reader's answer held against the right one, and what is wrong with its form where that is what is wrong.

Lists stay lists: what is said of an answer's form is said of what the reader wrote, and of nothing that was made of it.
"""

import math
import re
from collections.abc import Collection, Iterable
from numbers import Real
from typing import TypeGuard

import numpy as np
import pandas as pd

RELATIVE, ABSOLUTE = 0.02, 0.005  # how far a number may be off: about what rounding costs
SHOWN = {  # names as figures and text have them, and as tables have them; a test holds them to the figures' own
    "harmful request": "harmful-request", "refusal or compliance": "refusal-compliance", "privacy (PII)": "privacy-pii",
    "privacy": "privacy-pii", "PII": "privacy-pii",
    "SafeLoRA": "safelora", "SPLoRA": "splora", "SaLoRA": "salora", "same modules removed": "zero", "Safe Delta": "safe-delta",
    "null space": "null-space", "random modules removed": "random-modules", "whole update shrunk": "shrink",
    "ranking": "stale_auroc_05", "catching less": "stale_tpr_5", "crying wolf": "stale_fpr_5",
    "a new threshold": "threshold", "new threshold": "threshold",
}  # fmt: skip
HELD = str | float | None
LISTS = (list, tuple, set, frozenset, dict, np.ndarray, pd.Series, pd.Index)


def comparable(name: object) -> str:
    """A name as it is compared: by its letters and digits, whatever their case and what stands between them."""
    return re.sub(r"[^a-z0-9]+", " ", str(name).casefold()).strip()


_PLAIN = {comparable(words): comparable(name) for words, name in SHOWN.items()}


def is_list(value: object) -> TypeGuard[Collection[object]]:
    """Whether somebody wrote several things, or none, and not one."""
    return isinstance(value, LISTS) and getattr(value, "ndim", 1) > 0


def nothing(value: object) -> bool:
    """Whether a solution has found no answer: no number, no name, and no list, not even an empty one."""
    return not is_list(value) and one(value) is None


def one(value: object) -> HELD:
    """One thing in a form that can be compared: a number, or a name in words; None for no number and for nothing."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Real):
        return None if math.isnan(value) else float(value)
    return comparable(value)


def several(value: Iterable[object]) -> frozenset[HELD]:
    """The things of a list, each once, in whatever order."""
    return frozenset(one(item) for item in value)


def agrees(answer: object, truth: object) -> bool:
    """Whether the answer is right: numbers within RELATIVE or ABSOLUTE, names as tables or as figures have them.

    One name may stand in a list of one, and a list of one name may be given by the name.
    """
    answers, truths = ([*value] if is_list(value) else [value] for value in (answer, truth))
    if len(answers) == len(truths) == 1:
        return _same(answers[0], truths[0])
    known = several(truths)
    return {_known(name, known) for name in several(answers)} == known


def _same(answer: object, truth: object) -> bool:
    right = one(truth)
    if isinstance(right, float):
        return near(number(answer), right)
    return right is not None and _known(one(_whole(answer)), {right}) == right


def _whole(value: object) -> object:
    """A number as a name such as "32" writes it: a whole one without its point."""
    return f"{float(value):g}" if isinstance(value, Real) and not isinstance(value, bool | np.bool_) else value


def _known(name: HELD, names: Collection[HELD]) -> HELD:
    """The name as it stands among the names, by itself or by the words that figures have for it."""
    return name if name in names or not isinstance(name, str) else _PLAIN.get(name, name)


def number(answer: object) -> float:
    """The answer as a number; `nan` where it is none. A percent sign is taken off, and nothing is divided."""
    try:
        return float(answer.strip().removesuffix("%") if isinstance(answer, str) else answer)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def near(answer: float, truth: float) -> bool:
    """Whether two numbers are the same but for rounding."""
    return abs(answer - truth) <= max(RELATIVE * abs(truth), ABSOLUTE)


def form(answer: object, truth: object, text: str, names: Collection[str]) -> str:
    """What is wrong with the form of a wrong answer, in a sentence; empty where the form is right.

    `text` is the exercise's own, which says the unit; `names` are what the tables of the run hold.
    """
    if is_list(truth):
        return _unknown(answer, names) if is_list(answer) else 'The answer is a list of names, such as ["a", "b"]. '
    if isinstance(one(truth), str):
        return "The answer is one name. " if is_list(answer) or not isinstance(answer, str) else _unknown([answer], names)
    return _number_form([*answer] if is_list(answer) else [answer], float(one(truth) or 0), text)


def _unknown(answer: Iterable[object], names: Collection[str]) -> str:
    """Names that no table of the run has: a slip of the pen, most often."""
    known = {one(name) for name in names}
    strange = [str(name) for name in answer if _known(one(name), known) not in known]
    return f"No table that it takes has the name {strange[0][:60]!r}; write names as the tables do. " if strange else ""


def _number_form(answers: list[object], truth: float, text: str) -> str:
    if len(answers) != 1 or math.isnan(number(answers[0])):
        return "The answer is a number. "
    given = number(answers[0])
    if re.search(r"per ?cent|percentage points", text):
        return "Give it in per cent, 40, not 0.4. " if abs(given) <= 1 and near(100 * given, truth) else ""
    return "Give the rate as a share, 0.4, not 40. " if abs(truth) <= 1 and near(given / 100, truth) else ""
