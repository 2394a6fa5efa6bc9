"""Reasons: why a component is undecided, in one generated sentence each, and what it would take.

A premise that was not there, an effect that is nil as far as the interval reaches, or a width that more seeds or more items
would cut: how many of either follows from what the width is made of (`over_seeds.Spread`). Items are called what they are:
prompts, references, texts, places of monitors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.stats.intervals import Bounds, Estimate
from helpers.stats.over_seeds import Spread
from helpers.study.claims import LEVELS, SEEDS, UNITS, Component

MOST_SEEDS, MOST_ITEMS = 40, 50  # what could be run: seeds, and times as many items
FAR = f" for {MOST_SEEDS} seeds or {MOST_ITEMS} times the items"
NEVER = 0  # no number within these decides


@dataclass(frozen=True)
class Judged:
    """A component over seeds: its estimate, the 90 % interval, what the width is made of, and the seeds that count.

    level: of the estimate's interval, where it is another than its side's.
    """

    component: Component
    estimate: Estimate
    inner: Estimate
    spread: Spread | None
    seeds: int
    premises: Sequence[tuple[float, bool]] = ()
    level: float = 0.0

    def ends(self, seeds: int = 0, items: int = 0) -> Bounds:
        """The interval's ends at so many seeds and items, those there are unless given, were the estimate the truth."""
        assert self.spread is not None
        return planned_ends(self.estimate, self.spread, seeds, items, self.level or LEVELS[self.component.side])


def planned_ends(e: Estimate, spread: Spread, seeds: int, items: int, level: float) -> Bounds:
    """The ends of an estimate's interval at other numbers of seeds and items; exact ends come nearer as 1 / n, by items alone."""
    if exact(e, spread, level):
        times = (items or spread.units) / spread.units
        return e.value - (e.value - e.low) / times, e.value + (e.high - e.value) / times
    return spread.ends(e.value, seeds, items, level)


def exact(e: Estimate, spread: Spread, level: float) -> bool:
    """Whether the ends are those of few items that differ, further than the spread says: items narrow them and seeds do not."""
    low, high = spread.ends(e.value, level=level)
    return e.value - e.low > 1.2 * (e.value - low) or e.high - e.value > 1.2 * (high - e.value)


def decides(component: Component, low: float, high: float) -> bool:
    """Whether an interval leaves out the bound; of sameness, whether it lies within the margin or beyond it."""
    low, high, margin = low - component.bound, high - component.bound, component.margin
    if component.side == "within":
        return max(-low, high) < margin or max(low, -high) > margin
    return low > 0 or high < 0


def seeds_needed(judged: Judged) -> int:
    """The fewest seeds that decide at today's items, mean and spread; 0 where no number within reach does."""
    return _first(judged, ((s, 0) for s in range(max(judged.seeds + 1, SEEDS), MOST_SEEDS + 1)), 0)


def items_needed(judged: Judged) -> int:
    """The fewest items that decide with the seeds there are; 0 where no number within reach does."""
    units = judged.spread.units if judged.spread else 0
    steps = np.unique(np.ceil(units * np.geomspace(1, MOST_ITEMS, 80)).astype(int))
    return _first(judged, ((max(judged.seeds, SEEDS), int(n)) for n in steps if n > units), 1)


def _first(judged: Judged, tried: Iterable[tuple[int, int]], place: int) -> int:
    enough = (pair for pair in tried if judged.spread and decides(judged.component, *judged.ends(*pair)))
    return next(enough, (NEVER, NEVER))[place]


def reason(judged: Judged) -> str:
    """Why this component is undecided; empty where it is not for want of anything that can be named."""
    component, held = judged.component, sum(one for _, one in judged.premises)
    if not judged.seeds and not judged.premises:
        return component.lacking
    if judged.premises and held < min(SEEDS, len(judged.premises)):
        return f"no premise: {component.premise} in {held} of {counted_seeds(len(judged.premises))}"
    if judged.seeds < SEEDS:
        return f"{counted_seeds(judged.seeds)}, and fewer than {SEEDS} decide nothing"
    reach = max(abs(judged.inner.low - component.bound), abs(judged.inner.high - component.bound))
    unit = UNITS[component.unit]
    if component.side != "within" and reach <= unit.step:
        written = f"{unit.scale * reach:{unit.form.lstrip('+')}}"
        return f"nil within {written}{unit.words} of the bound"
    return _wanting(judged)


def _wanting(judged: Judged) -> str:
    seeds, items = seeds_needed(judged), items_needed(judged)
    parts = [f"{seeds} seeds instead of {judged.seeds}"] * bool(seeds)
    if items and judged.spread is not None:
        parts += [f"{items:,} {judged.component.items} a seed instead of {judged.spread.units:,}"]
    if parts:
        return f"needs about {', or '.join(parts)}"
    return f"too near its bound{FAR}"


def counted_seeds(number: int) -> str:
    """A number of seeds in words."""
    return f"{number} seed{'' if number == 1 else 's'}"
