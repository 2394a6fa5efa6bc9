"""Seeds crossed with units in part: what it gives on a whole table, and that it covers where cells are wanting."""

import numpy as np
import pytest
from support.coverage import places_coverage
from support.simulated import assert_covers
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats.over_seeds import MEASURES, crossed
from helpers.stats.unbalanced import crossed_in_part


@pytest.mark.parametrize("strata", [None, ["a"] * 3 + ["b"] * 5], ids=["plain", "strata"])
@pytest.mark.parametrize("spread", [(0.5, 1.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.1)])
def test_a_whole_table_gives_what_crossed_gives(spread, strata):
    rng, (between, within, noise) = np.random.default_rng(1), spread
    rows = between * rng.normal(size=(4, 1)) + within * rng.normal(size=8) + noise * rng.normal(size=(4, 8))
    (e, own), (other, whole) = (make(rows, level=0.9, strata=strata) for make in (crossed_in_part, crossed))
    assert (e.value, e.low, e.high, e.n) == pytest.approx((other.value, other.low, other.high, other.n))
    assert vars(own) == pytest.approx(vars(whole), abs=1e-12)


@mostly_slow("the same simulation at other sizes", "5-6-0.3-both")
@pytest.mark.parametrize("spread", [(0.0, 1.0, 1.0), (0.5, 1.0, 0.5), (1.0, 0.3, 0.3)], ids=["units", "both", "seeds"])
@pytest.mark.parametrize("lacking", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("units", [3, 6, 12])
@pytest.mark.parametrize("seeds", [3, 5])
def test_other_seeds_and_other_units_are_covered_where_cells_are_wanting(seeds, units, lacking, spread):
    """It may be wide, since seeds that hold other units are charged with the units' scatter as well; never short."""

    assert_covers(places_coverage(seeds, units, lacking, spread, 600, seed=3), 0.93, 1.0)


def test_a_unit_that_one_seed_lacks_counts_in_the_others_and_every_seed_alike():
    """The fault: with each further seed fewer places were in all of them, and only those counted."""
    rows = np.array([[0.0, 1.0, np.nan], [0.0, np.nan, 1.0], [0.0, 1.0, 1.0]])
    e, spread = crossed_in_part(rows, bounds=(0, 1))
    assert (e.value, e.n, spread.units) == (pytest.approx((0.5 + 0.5 + 2 / 3) / 3), 7, 3)
    assert 0 <= e.low < e.value < e.high <= 1


def test_seeds_that_share_no_unit_are_held_apart_by_their_means():
    rows = np.full((3, 6), np.nan)
    for seed in range(3):
        rows[seed, 2 * seed : 2 * seed + 2] = [seed, seed + 0.2]
    e, spread = crossed_in_part(rows)
    assert (e.value, e.n) == (pytest.approx(1.1), 6)
    assert spread.parts()[0] == pytest.approx(4.3027 * np.std([0.1, 1.1, 2.1], ddof=1) / np.sqrt(3), rel=1e-4)


def test_one_value_everywhere_has_no_width_if_it_is_a_measure_and_some_if_it_is_a_share():
    rows = np.array([[0.5, np.nan], [0.5, 0.5]])
    assert np.ptp([*vars(crossed_in_part(rows, kind=MEASURES)[0]).values()][:3]) == 0
    share = crossed_in_part(rows, bounds=(0, 1))[0]
    assert share.low < 0.5 < share.high


def test_a_seed_without_a_unit_is_refused():
    with pytest.raises(StudyError, match="a seed has no unit at all; leave it out"):
        crossed_in_part(np.array([[1.0, 2.0], [np.nan, np.nan]]))
