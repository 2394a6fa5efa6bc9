"""Reasons: why a component is undecided, in one generated sentence each, and what it would take.

A premise that was not there, an effect that is nil as far as the interval reaches, or a width that more seeds or more items
would cut: how many of either follows from what the width is made of (`over_seeds.Spread`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import Spread
from helpers.study.claims import LEVELS, SEEDS, UNITS, Component

MOST_SEEDS, MOST_ITEMS = 40, 50  # what could be run: seeds, and times as many items
FAR = f" for {MOST_SEEDS} seeds or {MOST_ITEMS} times the items"
NEVER = 0  # no number within these decides


@dataclass(frozen=True)
class Judged:
    """A component over seeds: its estimate, the 90 % interval, what the width is made of, and the seeds that count."""

    component: Component
    estimate: Estimate
    inner: Estimate
    spread: Spread | None
    seeds: int
    premises: Sequence[tuple[float, bool]] = ()


def gap_to_decide(component: Component, value: float) -> float:
    """How far the estimate lies from what decides: the bound, or of sameness the nearer end of the margin."""
    away = value - component.bound
    return abs(abs(away) - component.margin) if component.side == "within" else abs(away)


def seeds_needed(judged: Judged) -> int:
    """The fewest seeds that decide at today's items, mean and spread; 0 where no number within reach does."""
    if exact(judged):
        return NEVER
    return _needed(judged, [(s, 0) for s in range(max(judged.seeds, SEEDS), MOST_SEEDS + 1)], 0)


def items_needed(judged: Judged) -> int:
    """The fewest items that decide with the seeds there are; 0 where no number within reach does."""
    if judged.spread is None:
        return NEVER
    if exact(judged):  # such ends come nearer as 1 / n
        reach, gap = _reach(judged), gap_to_decide(judged.component, judged.estimate.value)
        needed = int(np.ceil(judged.spread.units * reach / gap)) if gap > 0 else NEVER
        return needed if needed <= MOST_ITEMS * judged.spread.units else NEVER
    steps = np.unique(np.ceil(judged.spread.units * np.geomspace(1, MOST_ITEMS, 80)).astype(int))
    return _needed(judged, [(max(judged.seeds, SEEDS), int(n)) for n in steps], 1)


def _reach(judged: Judged) -> float:
    return max(judged.estimate.high - judged.estimate.value, judged.estimate.value - judged.estimate.low)


def exact(judged: Judged) -> bool:
    """Whether the ends are those of few items that differ, and no normal ones: then items narrow them and seeds do not."""
    level = LEVELS[judged.component.side]
    return judged.spread is not None and _reach(judged) > 1.2 * judged.spread.half_width(level=level)


def _needed(judged: Judged, tried: Sequence[tuple[int, int]], place: int) -> int:
    if judged.spread is None:
        return NEVER
    gap, level = gap_to_decide(judged.component, judged.estimate.value), LEVELS[judged.component.side]
    enough = (pair for pair in tried if judged.spread.half_width(*pair, level=level) < gap)
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
    parts = [f"{seeds} seeds"] * bool(seeds) + [f"{items:,} items a seed"] * bool(items and judged.spread is not None)
    if parts:
        return f"needs about {' or '.join(parts)}"
    return f"too near its bound{FAR}"


def counted_seeds(number: int) -> str:
    """A number of seeds in words."""
    return f"{number} seed{'' if number == 1 else 's'}"
