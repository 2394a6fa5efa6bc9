"""What the sentences above figures share: shares and lists in words, and when two intervals lie apart."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

NOTHING = "This run measured too little to say anything here."


def share(value: float) -> str:
    """A share in whole per cent, as the tables write it."""
    return f"{100 * value:.0f} %"


def points(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * value:+.0f} points".replace("-", "−")


def clear_of(row: Any, other: Any) -> int:
    """1 where the row's whole interval lies above the other's, -1 below it, 0 where they touch."""
    return int(row.low > other.high) - int(row.high < other.low)


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names as a list in words; what is more than `most` is counted."""
    every = list(names)
    shown = every[:most] + ([f"{len(every) - most} more"] if len(every) > most else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def one_row(rows: pd.DataFrame) -> Any | None:
    """The first of the rows, None where there is none."""
    return next(rows.itertuples(), None)


def span(values: Iterable[float]) -> str:
    """From the least to the greatest share, once where both read the same."""
    found = sorted(values)
    ends = [share(found[0]), share(found[-1])]
    return ends[0] if ends[0] == ends[1] else f"{ends[0].removesuffix(' %')} to {ends[1]}"
