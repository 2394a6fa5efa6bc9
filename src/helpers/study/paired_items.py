"""Paired items: what one run says on every prompt, or on every place of monitors, of a comparison; and several runs as one.

Runs that tell their items are crossed with them: prompts on those that all runs have (`stats.over_seeds.two_level`), places of
monitors on all, since which monitors count differs from run to run (`stats.unbalanced`). Runs that tell an estimate alone are put
together as estimates. A premise says whether there was anything to see: what a restoration is
said to bring back must first be lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from helpers.stats.intervals import Bounds, Estimate
from helpers.stats.over_seeds import LABELS, Spread, crossed, over_seeds, spread_over_seeds
from helpers.stats.unbalanced import crossed_in_part

LEAST = 2  # items that runs must share to be crossed
NORMAL = 0.95  # the level of the intervals that tables hold


@dataclass(frozen=True, eq=False)
class Items:
    """One run's value of every unit, by the unit's name; where names have two levels the first is a stratum (a set of prompts).

    kind: of the values, as in `over_seeds.two_level`. contrast: two strata of which the means are compared, first minus second.
    """

    values: pd.Series
    kind: str = LABELS
    contrast: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Premised:
    """What a run says, and what had to be there first: its size, and whether that is enough for the run to count."""

    seen: "Estimate | Items"
    value: float
    held: bool


Seen = Estimate | Items | Premised


def plain(seen: Seen) -> Estimate | Items:
    """What was seen, without its premise."""
    return seen.seen if isinstance(seen, Premised) else seen


def single(seen: Seen, bounds: Bounds, level: float = NORMAL) -> Estimate:
    """One run's estimate, with an interval for other items alone."""
    return pooled([seen], bounds, level)[0]


def pooled(seen: Sequence[Seen], bounds: Bounds, level: float = NORMAL) -> tuple[Estimate, Spread]:
    """The mean over runs with its interval, and what the width is made of; n counts the items of all runs that were used."""
    found = [plain(one) for one in seen]
    items = [one for one in found if isinstance(one, Items)]
    alike = len(items) == len(found) and len({one.contrast for one in items}) == 1
    if alike and len(table := shared(items)) >= min(LEAST, min(len(one.values) for one in items)):
        strata = table.index.get_level_values(0) if table.index.nlevels > 1 else None
        scores, kind = _contrasted(table, items[0].contrast).T.to_numpy(), items[0].kind
        if np.isnan(scores).any():
            return crossed_in_part(scores, level, bounds, strata, kind)
        return crossed(scores, None, level, bounds, strata, kind)
    estimates = [single(one, bounds) if isinstance(one, Items) else one for one in found]
    return over_seeds(estimates, level, bounds), spread_over_seeds(estimates)


def _contrasted(table: pd.DataFrame, contrast: tuple[str, str] | None) -> pd.DataFrame:
    """The values times what makes each run's mean the difference of two strata's means."""
    if contrast is None:
        return table
    names = table.index.get_level_values(0)
    held = table.notna()
    counts = held.groupby(names).sum()
    weights = pd.DataFrame({run: names.map(counts[run]) for run in table}, index=table.index)
    signs = names.map(dict(zip(contrast, (1.0, -1.0), strict=True))).to_numpy(float)
    return table.mul(signs, axis=0) * held.sum() / weights


def shared(items: Sequence[Items]) -> pd.DataFrame:
    """The values of the units, units x runs, in the order of the units' names: of prompts those that all runs have, of places of
    monitors all of them, NaN where a run lacks one."""
    join: Literal["inner", "outer"] = "inner" if items[0].kind == LABELS else "outer"
    table = pd.concat([one.values.rename(i) for i, one in enumerate(items)], axis=1, join=join).sort_index()
    wanted = items[0].contrast
    whole = wanted is None or set(wanted) <= set(table.index.get_level_values(0))
    return table if whole else table.iloc[:0]


def gap(new: pd.Series | None, old: pd.Series | None) -> pd.Series | None:
    """new - old on the units that both have; None where there are none."""
    if new is None or old is None:
        return None
    found = (new - old).dropna()
    return found if len(found) else None


def average(parts: Sequence[pd.Series | None]) -> pd.Series | None:
    """The mean over variants of what was measured on each unit; a unit that some variants lack counts by the others."""
    held = [part for part in parts if part is not None and len(part)]
    return pd.concat(held, axis=1).mean(axis=1).sort_index() if held else None


def told(values: pd.Series | None, kind: str = LABELS) -> Items | None:
    """The values as items; None where there are none."""
    return None if values is None or values.empty else Items(values.astype(float), kind)


def premised(seen: Estimate | Items | None, value: float | None, held: bool) -> Premised | None:
    """What was seen with its premise; None where either was not measured."""
    return None if seen is None or value is None or not np.isfinite(value) else Premised(seen, float(value), bool(held))
