"""Near duplicates: which texts are one text in other words."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from helpers.data.text_rows import Row

NEAR = 0.6  # Jaccard similarity of word sets from which two texts count as near duplicates


def words(text: str) -> frozenset[str]:
    """The set of lower-case words of a text."""
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def near_pairs(first: Sequence[str], second: Sequence[str], threshold: float = NEAR) -> list[tuple[int, int]]:
    """Index pairs whose word sets have Jaccard similarity of at least `threshold`, found by a sparse matrix product."""
    from sklearn.feature_extraction.text import CountVectorizer

    if not first or not second:
        return []
    counted = CountVectorizer(analyzer=words, binary=True).fit_transform([*first, *second]).astype(np.int32)
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
