"""What people said of replies: refused or not, and how severe. The judges are held against it, and one learns from it."""

from functools import lru_cache

import numpy as np

from helpers.data import sources
from helpers.data.corpora import read_csv
from helpers.data.near_duplicates import clusters


@lru_cache
def human_refusals() -> tuple[list[str], list[bool], list[str]]:
    """Replies, human labels (True = refused) and groups, from the refusal scorer's evaluation set."""
    rows = [row for name in ("refusal.csv", "refusal_extra.csv")
            for row in read_csv(sources.path("pyrit", name), "objective", "assistant_response", "human_score")]  # fmt: skip
    return (
        [row["assistant_response"] for row in rows],
        [float(row["human_score"]) > 0.5 for row in rows],
        clusters([r["objective"] for r in rows]),
    )


@lru_cache
def human_severity() -> tuple[list[str], list[str], list[float], list[str]]:
    """Prompts, replies, mean human severity in 0..1 and groups, from the harm scorers' evaluation sets."""
    files = [name for name in sources.SOURCES["pyrit"].files if name.startswith("harm/") and "mini" not in name]
    table = [row for name in files for row in read_csv(sources.path("pyrit", name), "objective", "assistant_response")]
    rows = list({row["assistant_response"]: row for row in table}.values())  # a reply stands in several files: once is enough
    scores = [float(np.mean([float(v) for k, v in row.items() if k and k.startswith("human_score") and v])) for row in rows]
    prompts = [row["objective"] for row in rows]
    return prompts, [row["assistant_response"] for row in rows], scores, clusters(prompts)
