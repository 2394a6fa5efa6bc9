"""Near duplicates: which texts are one text in other words."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from helpers.data.text_rows import Row

NEAR = 0.6  # Jaccard similarity of word sets from which two texts count as near duplicates


# scripts that are written without blanks between words: pairs of neighbouring letters stand for words there
DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What is a word in any script: letters, digits and the marks on them; and a run of a script without blanks."""
    marks = "".join(chr(i) for i in range(0x300, 0x1F000) if unicodedata.category(chr(i)) in {"Mn", "Mc"})
    return re.compile(rf"(?:[^\W_]|['{marks}])+"), re.compile(rf"[{DENSE}]+")


@lru_cache(2**16)  # the same texts are held against many others
def words(text: str) -> frozenset[str]:
    """The set of words of a text in small letters, in any script; of one without letters and digits, pairs of its signs."""
    if text.isascii():
        found = set(re.findall(r"[a-z0-9']+", text.lower()))
    else:
        word, dense = _patterns()
        plain = unicodedata.normalize("NFKC", text).casefold()
        if not dense.search(plain):
            found = set(word.findall(plain))
        else:
            ones = word.findall(plain)
            found = {pair for one in ones for run in dense.findall(one) for pair in _pairs(run)}
            found |= {part for one in ones for part in dense.sub(" ", one).split()}
    return frozenset(found or _pairs("".join(text.split())))


def _pairs(run: str) -> set[str]:
    return {run[i : i + 2] for i in range(max(len(run) - 1, 1))} - {""}


def near_pairs(first: Sequence[str], second: Sequence[str], threshold: float = NEAR) -> list[tuple[int, int]]:
    """Index pairs whose word sets have Jaccard similarity of at least `threshold`, found by a sparse matrix product."""
    from sklearn.feature_extraction.text import CountVectorizer

    sets = [words(text) for text in (*first, *second)]
    if not first or not second or not any(sets):
        return []
    counted = CountVectorizer(analyzer=frozenset, binary=True).fit_transform(sets).astype(np.int32)
    a, b = counted[: len(first)], counted[len(first) :]
    overlap = (a @ b.T).tocoo()
    union = np.asarray(a.sum(1)).ravel()[overlap.row] + np.asarray(b.sum(1)).ravel()[overlap.col] - overlap.data
    near = overlap.data >= threshold * union
    return list(zip(overlap.row[near].tolist(), overlap.col[near].tolist(), strict=True))


def clusters(texts: Sequence[str], threshold: float = NEAR) -> list[str]:
    """One group name a text: texts linked by a chain of near duplicates share it."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = np.array(near_pairs(texts, texts, threshold)).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(texts), len(texts)))
    labels = connected_components(graph, directed=False)[1]
    first = {label: texts[i] for i, label in reversed(list(enumerate(labels)))}
    return [hashlib.sha256(first[label].encode()).hexdigest()[:10] for label in labels]


def without_near(rows: list[Row], others: Sequence[str]) -> list[Row]:
    """The rows that are no near duplicate of any of the other texts."""
    near = {i for i, _ in near_pairs([row.prompt for row in rows], others)}
    return [row for i, row in enumerate(rows) if i not in near]
