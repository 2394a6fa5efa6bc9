"""Sentences above the figures of chapter 11."""

from collections.abc import Iterable

import pandas as pd

from helpers.figures.titles.parts import NOTHING, share
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, MIXED, NOT_RUN, SUPPORTED

ABOUT = {"monitors": "claims about monitors", "models": "claims about models", "ours": "claims of our own"}
PARTS = (
    (SUPPORTED, "hold"),
    (CONTRADICTED, "do not"),
    (MIXED, "hold in part"),
    (INCONCLUSIVE, "cannot be told"),
    (NOT_RUN, "were not run"),
)
LOOKED = {"refusals": "most harmful prompts are not refused after", "last": "last-token monitors are most often unfit after",
          "mean": "mean-pooled ones after"}  # fmt: skip


def verdicts_title(verdicts: Iterable[str], group: str = "") -> str:
    """How many claims hold, do not, hold in part, cannot be told or were not run; those that occur."""
    found = list(verdicts)
    said = [f"{found.count(name)} {words}" for name, words in PARTS if name in found]
    return f"Of {len(found)} {ABOUT.get(group, 'claims')} {', '.join(said)}." if said else NOTHING


def first_look_title(rows: pd.DataFrame) -> str:
    """Which update leaves most harmful prompts unrefused, and which breaks most of the monitors of either pooling."""
    said = []
    for asked, words in LOOKED.items():
        own = rows[rows["asked"] == asked]
        if len(own):
            top = own.loc[own["value"].idxmax()]
            said.append(f"{words} “{top['update']}” ({share(top['value'])})")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else NOTHING
