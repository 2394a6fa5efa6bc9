"""What a text set holds: one exchange, one question; and the coin with which samples and splits are drawn from texts alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.errors import REFUSED, StudyError


@dataclass(frozen=True)
class Row:
    """One exchange: a prompt, the reply to learn or to compare with, and the group that must stay on one side of a split."""

    prompt: str
    reply: str = ""
    group: str = ""
    system: str = ""


@dataclass(frozen=True)
class Preference(Row):
    """One prompt with the reply that is preferred and the one that is not."""

    rejected: str = ""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; `answer` is the index of the right option."""

    prompt: str
    options: tuple[str, ...]
    answer: int
    group: str = ""


def unit(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the text alone: the coin with which splits are made."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8], "big") / 2**64


def fingerprint(rows: Sequence[object]) -> str:
    """A hash of the texts in their order, for content keys and manifests."""
    return hashlib.sha256("\0".join(repr(row) for row in rows).encode()).hexdigest()[:16]


def spread(items: Sequence, n: int, salt: str = "") -> list:
    """The first `n` items in hash order: a fixed sample that grows with `n` and never reshuffles."""
    return sorted(items, key=lambda item: unit(repr(item), salt))[:n]


def with_exchange(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The row with `text` and `reply` in place of chat `messages`: one of the user, and at most one that answers it.

    A monitor reads the user's text or, where there is one, the reply, in the model's own template. What this cannot hold, such as
    earlier turns or another system message, is refused by the row's place.
    """
    turns = row.get("messages")
    if turns is None:
        return row
    if any(row.get(column) for column in ("text", "prompt", "reply")):
        raise StudyError(f"{place} has messages and another text beside them; keep one of the two", REFUSED)
    if not isinstance(turns, list) or not all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in turns):
        raise StudyError(f"{place}: messages is no list of role and content; write .jsonl as chat models take it", REFUSED)
    roles = [one.get("role") for one in turns]
    if roles not in (["user"], ["user", "assistant"]):
        told = ", ".join(str(role)[:12] for role in roles[:6])
        how = "one of the user and at most one reply are read: give each exchange a row, without a system message"
        raise StudyError(f"{place} has messages of {told or 'nobody'}; {how}", REFUSED)
    said = dict(zip(("text", "reply"), (one["content"] for one in turns), strict=False))
    return {**{name: value for name, value in row.items() if name != "messages"}, **said}
