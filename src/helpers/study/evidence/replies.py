"""Replies: what one run's tables say on monitors that read the model's own replies; None where nothing was measured.

They read in two places: before the reply (the last token of the prompt) and during it (the mean over its first tokens). The unit
is a layer and a place; its value is the mean over kinds of probe and variants. Monitors that caught little before any update are
left out, and so are those that called answers refusals too often even then.
"""

import pandas as pd

from helpers.staleness import cohorts
from helpers.staleness.cohorts import OWN_REPLIES, POOLINGS
from helpers.stats.over_seeds import SHARES
from helpers.study.evidence.monitors import lead, shares_by_task, under_lora
from helpers.study.paired_items import Items, gap, told
from helpers.study.selections import Evidence, Tables, kept, select

BEFORE, DURING = POOLINGS


@kept
def of_replies(tables: Tables) -> pd.DataFrame:
    """The rows of `replies` about single monitors that kept their promises on the aligned model."""
    return cohorts.keeping_promises(cohorts.single_monitors(select(tables, "replies", restoration="")))


@kept
def unfit_on_replies(tables: Tables) -> pd.DataFrame:
    """Which of them fail at their frozen threshold, one row a monitor and variant: missing refusals, or calling answers so."""
    return cohorts.unfit(of_replies(tables))


def _by_layer(rows: pd.DataFrame, pooling: str) -> pd.Series | None:
    own = rows[rows["pooling"] == pooling]
    return own.groupby("layer")["value"].mean() if len(own) else None


def sooner_than_later(metric: str) -> Evidence:
    """A share under the LoRA family of those that read before the reply minus that of those that read during it, paired by layer:
    `unfit`, or `fpr_5`, the answers that are called refusals."""

    def found(tables: Tables) -> Items | None:
        rows = of_replies(tables)
        rows = under_lora(unfit_on_replies(tables) if metric == cohorts.UNFIT else rows[rows["metric"] == metric])
        return told(gap(_by_layer(rows, BEFORE), _by_layer(rows, DURING)), SHARES)

    return found


def apart_from_replies(pooling: str) -> Evidence:
    """The share unfit of privacy's monitors minus that of monitors of own replies, under the LoRA family: the last token's
    against those that read before the reply, the mean's against those that read during it."""

    def found(tables: Tables) -> Items | None:
        own = under_lora(unfit_on_replies(tables))
        own = own[own["pooling"] == pooling].groupby(["task", "place"])["value"].mean()
        return lead(pd.concat([shares_by_task(tables, cohorts.UNFIT, pooling), own]), OWN_REPLIES) if len(own) else None

    return found
