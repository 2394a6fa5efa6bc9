"""What a text set holds: one exchange, one question; and the coin with which samples and splits are drawn from texts alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


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
