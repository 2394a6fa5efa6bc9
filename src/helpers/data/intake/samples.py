"""Samples: which rows of a file are read that holds more than are; the same for the same seed, and said."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from helpers.seeding import derive_seed

Row = TypeVar("Row")
Say = Callable[[str], None]
MOST_ROWS = 5_000  # the search for near duplicates compares all pairs


def unsaid(line: str) -> None:
    """Says nothing: for who has said it already."""


def sampled(
    rows: Sequence[Row], name: str, seed: int, say: Say, kind: Callable[[Row], Hashable] = lambda row: 0, most: int | None = None
) -> list[Row]:
    """At most `most` of the rows (MOST_ROWS) in their order, drawn without replacement; `say` is told of what is left out.

    Each kind gets as many places as the others, or all that it needs: rates of two classes are then as sure as they can be.
    """
    most = MOST_ROWS if most is None else most
    if len(rows) <= most:
        return list(rows)
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(kind(row), []).append(place)
    draw, left, chosen = np.random.default_rng(derive_seed(seed, f"sample of {most} rows")), most, list[int]()
    for i, members in enumerate(sorted(places.values(), key=len)):  # small kinds first: what they leave goes to the others
        share = min(len(members), left // (len(places) - i))
        chosen += [members[j] for j in draw.choice(len(members), share, replace=False)]
        left -= share
    alike = ", as many of each kind as there are places" if len(places) > 1 else ""
    say(f"{name} holds {len(rows)} texts; a random sample of {len(chosen)} was read (seed {seed}{alike})")
    return [rows[place] for place in sorted(chosen)]
