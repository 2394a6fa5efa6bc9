"""Labelled texts in groups and splits: what belongs together, what leaks from elsewhere, and what may never cross a split.

Near duplicates share a group and a group lies in one split. Splits depend on hashes of groups, never on a seed. Errors name a
row by its split or a short hash, never by its words.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.data import corpora, near_duplicates, text_rows
from helpers.errors import REFUSED, StudyError, shown

SPLITS = ("train", "validation", "test")
ELSEWHERE = "elsewhere"  # the second test set
THRESHOLD = "threshold"  # harmless texts that a threshold is set on, besides those of validation
DRAWN = 0.8  # of the training texts of each class, at most, that one seed draws
SHARES = (0.5, 0.2)  # of the groups of a user's file: training, validation; the rest is the test


@dataclass(frozen=True)
class Example:
    """One labelled text; label 1 is what the monitor is to flag. With a reply, the monitor reads the reply.

    corpus: the source of a text that is not of the task's own.
    """

    task: str
    split: str
    label: int
    group: str
    prompt: str
    reply: str = ""
    corpus: str = ""


def seen(example: Example, words: int | None = None) -> str:
    """The text that a monitor pools over, the reply where there is one, cut to its first `words` words."""
    text = example.reply or example.prompt
    return text if words is None else corpora.clip(text, words)


# ---------------------------------------------------------------- groups, leaks and splits


def _texts(rows: Sequence[Example]) -> tuple[list[str], list[int]]:
    """All prompts and replies, and the number of the row each belongs to."""
    both = [(text, i) for i, row in enumerate(rows) for text in (row.prompt, row.reply) if text]
    return [text for text, _ in both], [i for _, i in both]


def linked(rows: Sequence[Example]) -> list[Example]:
    """The rows with one group for all that a chain of near duplicates, equal texts or shared groups links."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    texts, owner = _texts(rows)
    first: dict[tuple, int] = {}
    edges = [(owner[a], owner[b]) for a, b in near_duplicates.near_pairs(texts, texts)]
    edges += [(first.setdefault(("group", row.group), i), i) for i, row in enumerate(rows) if row.group]
    edges += [(first.setdefault(("text", text), i), i) for text, i in zip(texts, owner, strict=True)]
    ends = np.array(edges).T
    labels = connected_components(coo_matrix((np.ones(len(edges)), ends), (len(rows), len(rows))), directed=False)[1]
    names: dict[int, str] = {}
    return [
        replace(row, group=names.setdefault(k, _short(row.prompt + "\0" + row.reply)))
        for row, k in zip(rows, labels, strict=True)
    ]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def leaks(rows: Sequence[Example], others: Sequence[str]) -> set[tuple[str, str]]:
    """Task and group of what is near to one of the other texts, or to a text of a task that stands earlier in the rows."""
    texts, owner = _texts(rows)
    near = {owner[i] for i, _ in near_duplicates.near_pairs(texts, others)}
    within = ((owner[a], owner[b]) for a, b in near_duplicates.near_pairs(texts, texts))
    near |= {i for i, earlier in within if i > earlier and rows[i].task != rows[earlier].task}
    return {(rows[i].task, rows[i].group) for i in near}


def in_splits(rows: Sequence[Example], shares: tuple[float, float] = SHARES) -> list[Example]:
    """The rows with their splits: groups in hash order, the first for training, the next for validation, the rest for the test.

    Groups of both classes, of flagged rows alone and of other rows alone are dealt out apart, so that every class gets
    its share of every split.
    """
    held = defaultdict(set)
    for row in rows:
        held[row.group].add(row.label)
    split = {}
    for labels in ({0, 1}, {0}, {1}):
        groups = sorted((group for group in held if held[group] == labels), key=text_rows.unit)
        for i, group in enumerate(groups):
            place = (i + 0.5) / len(groups)
            split[group] = SPLITS[(place >= shares[0]) + (place >= sum(shares))]
    return [replace(row, split=split[row.group]) for row in rows]


def balanced(rows: Sequence[Example], n: int, salt: str = "") -> list[Example]:
    """At most n rows of each class, equally many of both, in hash order of their groups, groups of both classes first."""
    held = defaultdict(set)
    for row in rows:
        held[row.group].add(row.label)
    rows = sorted(rows, key=lambda row: (len(held[row.group]) == 1, text_rows.unit(row.group, salt), row.group))
    classes = [[row for row in rows if row.label == label] for label in (1, 0)]
    return [row for pair in list(zip(*classes, strict=False))[:n] for row in pair]


def drawn(rows: Sequence[Example], n: int, seed: int) -> list[Example]:
    """At most n training rows of each class, a draw of the seed: never more than `DRAWN` of what is there, so that every seed's
    monitors learn from other texts, and a spread over seeds holds the draw."""
    most = math.ceil(DRAWN * len(balanced(rows, len(rows))) / 2)
    return balanced(rows, min(n, most), f"train-{seed}")


# ---------------------------------------------------------------- checks


def check(rows: Sequence[Example], name: str) -> None:
    """Raises StudyError, in one line that names task and split, for rows that no monitor can be fitted and judged on."""
    further = [ELSEWHERE] if any(row.split == ELSEWHERE for row in rows) else []
    for split in (*SPLITS, *further):
        labels = [row.label for row in rows if row.split == split]
        if len(labels) < 2 or len(set(labels)) < 2:
            what = f"{len(labels)} row(s)" if len(labels) < 2 else f"only rows of label {labels[0]}"
            raise StudyError(
                f"task {shown(name)}: its {split} split has {what}; give rows of both labels to every split", REFUSED
            )
    if any(row.label for row in rows if row.split == THRESHOLD):
        what = "its threshold split holds a text to be flagged; a threshold is set on harmless texts, of label 0"
        raise StudyError(f"task {shown(name)}: {what}", REFUSED)
    empty = [row.split for row in rows if not row.prompt.strip() or (row.reply and not row.reply.strip())]
    if empty:
        raise StudyError(f"task {shown(name)}: {len(empty)} text(s) of its {empty[0]} split are empty; remove them", REFUSED)
    texts, owner = _texts(rows)
    pairs = near_duplicates.near_pairs(texts, texts) + _equal(texts)
    crossing = sorted({(a, b) for a, b in pairs if a < b and rows[owner[a]].split != rows[owner[b]].split})
    if crossing:
        first, second = (rows[owner[i]].split for i in crossing[0])
        where = (
            f"{first} and {second}: {len(crossing)} (near) duplicate pair(s), the first of text {_short(texts[crossing[0][0]])}"
        )
        raise StudyError(f"task {shown(name)}: across {where}; remove one of each or put both into one split", REFUSED)
    _check_groups(rows, name)


def _check_groups(rows: Sequence[Example], name: str) -> None:
    splits: dict[str, str] = {}
    for row in rows:
        if splits.setdefault(row.group, row.split) != row.split:
            where = f"group {_short(row.group)} stands in {splits[row.group]} and {row.split}"
            raise StudyError(f"task {shown(name)}: {where}; put the whole group into one split", REFUSED)


def _equal(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal texts: of those without a Latin letter or digit, `near_pairs` sees no words."""
    first: dict[str, int] = {}
    return [(first.setdefault(text, i), i) for i, text in enumerate(texts)]
