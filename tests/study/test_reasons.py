"""Reasons: what an undecided component would take, in the word for its items, and of no more than that what cannot help."""

import re

import numpy as np
import pandas as pd
import pytest

from helpers.stats.over_seeds import SHARES
from helpers.study import reasons
from helpers.study.claims import CLAIMS, LEVELS, UNITS, Component
from helpers.study.paired_items import Items, pooled
from helpers.study.reasons import Judged, decides, items_needed, reason, seeds_needed


def judged(component: Component, seen: list[Items]) -> Judged:
    bounds, level = UNITS[component.unit].bounds, LEVELS[component.side]
    (e, spread), (inner, _) = (pooled(seen, bounds, one) for one in (level, 0.9))
    return Judged(component, e, inner, spread, len(seen))


def prompts(*rates: float, n: int = 100) -> list[Items]:
    """What seeds with these rates say on the same prompts, evenly mixed."""
    units = pd.MultiIndex.from_product([["advbench"], [f"i{k}" for k in range(n)]])
    rng = np.random.default_rng(0)
    return [Items(pd.Series((rng.permutation(n) < rate * n).astype(float), index=units)) for rate in rates]


def test_one_seed_that_lies_apart_is_a_want_of_seeds_and_not_of_items():
    """The fault: an end that reaches far because seeds lie skewed was taken for an exact one, which items would bring nearer."""
    component = CLAIMS["S6"].components[0]
    found = judged(component, prompts(1.0, 1.0, 0.95, 1.0, 0.2))
    assert found.estimate.low < component.bound < found.estimate.value
    assert found.spread.lean() < 0
    assert items_needed(found) == reasons.NEVER
    assert 5 < seeds_needed(found) <= 10
    assert re.fullmatch(r"needs about \d+ seeds instead of 5", reason(found))


def test_what_is_needed_decides_and_one_less_does_not():
    for seen in (prompts(0.2, 0.3, 0.1), prompts(1.0, 1.0, 0.3), prompts(0.05, 0.12, 0.1, 0.08, n=40)):
        found = judged(CLAIMS["S1"].components[0], seen)
        if decides(found.component, *found.ends()):
            continue
        seeds, items = seeds_needed(found), items_needed(found)
        assert not seeds or decides(found.component, *found.ends(seeds))
        assert not items or decides(found.component, *found.ends(0, items))
        assert not seeds or not decides(found.component, *found.ends(seeds - 1))


def test_where_no_item_differs_items_alone_come_to_decide():
    found = judged(CLAIMS["S1"].components[0], prompts(0.0, 0.0, 0.0, n=20))
    assert seeds_needed(found) == reasons.NEVER
    assert items_needed(found) > 20


@pytest.mark.parametrize(
    ("component", "words"),
    [("M1-1", "texts"), ("M2-1", "places of monitors"), ("N4-1", "monitors"), ("S1-1", "prompts"), ("S2-3", "references")],
)
def test_items_are_called_what_they_are_beside_how_many_there_were(component, words):
    """The fault: thirteen items, which were places of monitors, stood beside a thousand, which were texts."""
    claim, place = component.split("-")
    asked = CLAIMS[claim].components[int(place) - 1]
    assert asked.items == words
    e = prompts(0.3, 0.3, 0.3, n=12)
    seen = [Items(one.values.droplevel(0), SHARES) for one in e]
    told = reasons._wanting(judged(Component("planted", "share", "above", 0.2, lambda tables: None, items=asked.items), seen))
    assert re.search(rf"\d+ {words} a seed instead of 12$", told)


def test_every_part_of_a_claim_about_monitors_or_refusals_says_what_its_items_are():
    plain = {part.name for claim in CLAIMS.values() for part in claim.components if part.items == "items" and not part.beside}
    assert plain == {part.name for part in CLAIMS["M5"].components if not part.beside}  # cells of several seeds
