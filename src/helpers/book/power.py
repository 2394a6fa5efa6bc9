"""Power: how wide each component's interval will be with more seeds or more items, from what runs have measured.

`python -m helpers.book.power` writes the table that the page on power shows: book/_static/tables/power.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers.cache import atomic_file
from helpers.folders import project_root, results_root, run_folders
from helpers.stats.intervals import Estimate
from helpers.study import findings
from helpers.study.claims import CLAIMS, LEVELS, UNITS, Component
from helpers.study.paired_items import Seen, pooled
from helpers.study.reasons import decides, planned_ends

PLANS = ((3, 1), (5, 1), (5, 2), (5, 4), (8, 1), (8, 4))  # seeds, and times as many items as were measured
COLUMNS = ["claim", "name", "unit", "side", "bound", "margin", "estimate", "seeds", "items", "half_width", "decides", "from"]
HEADLINES = ("S1", "S2", "S3", "S4", "S5", "S6", "Q1", "Q2", "N1", "N2")  # whose headline asks today what it asked of older runs


def planned_widths(runs: Sequence[findings.Run]) -> pd.DataFrame:
    """One row a component and plan: half width and whether the estimate, were it the truth, would be decided.

    From items where runs hold them, else from each run's estimates; of components that no run can tell any more, from the rows
    of the table `components` that the runs hold (`from`).
    """
    dots, rows = findings.by_seed(runs), []
    for claim, found in CLAIMS.items():
        for place, component in enumerate(found.components, 1):
            own = dots[(dots["claim"] == claim) & (dots["component"] == place)]
            seen, source = list(own.loc[own["counts"].astype(bool), "seen"]), "tables"
            if not seen and place == 1 and claim in HEADLINES:
                seen, source = _stored(runs, claim, component), "components"
            if seen:
                rows += [(claim, *row, source) for row in planned(component, seen)]
    return pd.DataFrame(rows, columns=COLUMNS)


def planned(component: Component, seen: Sequence[Seen]) -> list[tuple]:
    """Name, unit, side, bound, margin and estimate of a component; seeds, items a seed, half width and whether that decides.

    Where one end reaches further than the other, the half width is that towards the bound, or of sameness the larger.
    """
    level = LEVELS[component.side]
    e, spread = pooled(seen, UNITS[component.unit].bounds, level)
    front = (component.name, component.unit, component.side, component.bound, component.margin, e.value)
    found = []
    for seeds, items in ((s, spread.units * times) for s, times in PLANS):
        ends = planned_ends(e, spread, seeds, items, level) if spread.seeds > 1 else spread.ends(e.value, seeds, items, level)
        found.append((*front, seeds, items, _facing(component, e.value, *ends), decides(component, *ends)))
    return found


def _facing(component: Component, value: float, low: float, high: float) -> float:
    below, above = value - low, high - value
    return max(below, above) if component.side == "within" else below if value > component.bound else above


def _stored(runs: Sequence[findings.Run], claim: str, component: Component) -> list[Seen]:
    """What each run's own rows of the table `components` say on the headline of a claim."""
    found: list[Seen] = []
    for _, seed, tables in runs:
        if "components" in tables:
            table = tables["components"]
            own = table[(table["claim"] == claim) & (table["component"] == "1") & (table["metric"] == component.unit)]
            own = own[own["of_seed"] == str(seed)]
            found += [Estimate(*row) for row in own[["value", "low", "high", "n"]].itertuples(index=False, name=None)][:1]
    return found


def main(profile: str = "cpu") -> int:
    """Writes the table from the finished runs of a profile."""
    folders = run_folders(results_root() / profile)
    runs = [(folder.parent.name, int(folder.name.removeprefix("seed-")), findings.run_tables(folder)) for folder in folders]
    path = Path(project_root()) / "book" / "_static" / "tables" / "power.csv"
    atomic_file(path, lambda place: planned_widths(runs).to_csv(place, index=False, float_format="%.4g", lineterminator="\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
