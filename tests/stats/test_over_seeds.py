"""Intervals from estimates: they cover other seeds and other items, by hand and in simulation."""

import numpy as np
import pytest
from scipy import stats
from support.coverage import ATTACKS, EFFECTS, SPREADS, crossed_coverage, decided
from support.simulated import assert_covers, coverage
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats.intervals import Estimate, mean_interval, wilson
from helpers.stats.over_seeds import MEASURES, SHARES, crossed, mean_of, over_seeds, spread_over_seeds, two_level


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("n", "between"), [(20, 0.0), (20, 2.0), (60, 0.5), (200, 0.1), (200, 2.0)])
def test_over_seeds_covers_other_seeds_and_other_items(seeds, n, between):
    """Seeds crossed with items, of which each seed tells its own mean and interval alone; it may be wide, never short."""

    def draw(rng):
        rows = between * rng.normal(size=(seeds, 1)) + 0.7 * rng.normal(size=n) + 0.7 * rng.normal(size=(seeds, n))
        return ([mean_interval(row) for row in rows],)

    assert_covers(coverage(over_seeds, draw, 0.0, repeats=250, seed=9), 0.93, 1.0)


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("n", "odds", "between"), [(20, -5.0, 0.0), (20, -3.5, 1.0), (200, -5.0, 0.3), (200, -3.5, 1.0), (60, 0.0, 1.0)]
)
def test_over_seeds_covers_rates_near_0(seeds, n, odds, between):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float(weights @ (1 / (1 + np.exp(-odds - np.hypot(between, 1.0) * nodes))) / weights.sum())

    def draw(rng):
        chance = 1 / (1 + np.exp(-odds - between * rng.normal(size=(seeds, 1)) - rng.normal(size=n)))
        return ([wilson(int(row.sum()), n) for row in rng.random((seeds, n)) < chance],)

    assert_covers(coverage(lambda found: over_seeds(found, bounds=(0, 1)), draw, truth, repeats=250, seed=10), 0.93, 1.0)


@mostly_slow("the same simulation at other sizes", "True-0.5")
@pytest.mark.parametrize(("shared", "share"), [(True, 1.0), (True, 0.5), (True, 0.0), (False, 0.0)])
def test_mean_of_covers_whatever_the_estimates_share(shared, share):
    """share: of the variance of three estimates that is common to them; taken as independent they must share nothing."""

    def draw(rng):
        errors = np.sqrt(share) * rng.normal() + np.sqrt(1 - share) * rng.normal(size=3)
        return ([Estimate(e, e - 1.96, e + 1.96, 10) for e in errors], shared)

    exact = share == 1.0 or not shared
    assert_covers(coverage(mean_of, draw, 0.0, repeats=2000, seed=11), 0.94, 0.96 if exact else 1.0)


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [(0.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, 0.3, 0.3)])
def test_two_level_covers_other_seeds_and_other_groups(seeds, spread):
    def draw(rng):
        between, within, noise = spread
        rows = between * rng.normal(size=(seeds, 1)) + within * rng.normal(size=100) + noise * rng.normal(size=(seeds, 100))
        return (rows,)

    # Noise is charged to the seeds' few degrees of freedom, so seeds that do nothing leave it a little wide, never short.
    assert_covers(coverage(two_level, draw, 0.0, repeats=500, seed=7), 0.93, 0.98)


@mostly_slow("the same simulation at other sizes", "5-96-1.2-effect of 0.75")
@pytest.mark.parametrize("what", EFFECTS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("n", [32, 96, 200])
@pytest.mark.parametrize("seeds", [5, 8])
def test_labels_of_prompts_crossed_with_seeds_are_covered(seeds, n, spread, what):
    """At 5 seeds and more, effects of 0.3 to 0.75; with 3 seeds that lie far apart it is less, which `make coverage` tells."""
    assert_covers(crossed_coverage(seeds, n, spread, EFFECTS[what], 600), 0.93, 0.975)


def test_an_attack_that_works_decides_with_few_seeds_what_one_that_hardly_attacks_does_not():
    """The simulation on which the attack is trained until it breaks refusals; `make coverage` makes the whole table."""
    few, more = ([decided(seeds, n, spread, effect, 250).value for effect, spread in ATTACKS.values()]
                 for seeds, n in ((3, 32), (5, 140)))  # fmt: skip
    assert few[2] > 0.7 > 0.3 > max(few[:2])
    assert more[2] > 0.95 > 0.6 > max(more[:2])


def test_seeds_that_agree_on_constant_values_are_not_certain():
    same = two_level([np.zeros(50)] * 3, bounds=(-1, 1))
    assert same.low < 0 < same.high
    measures = two_level([np.zeros(50)] * 3, bounds=(-1, 1), kind=MEASURES)
    assert (measures.low, measures.high) == (0.0, 0.0)  # what was measured bit by bit the same


def test_few_labels_that_differ_get_exact_ends_and_shares_none():
    rows = np.zeros((3, 100))
    rows[:, 0] = 1.0  # one prompt, gained in every seed
    found, plain = two_level(rows, bounds=(-1, 1)), two_level(rows, bounds=(-1, 1), kind=SHARES)
    tail = 0.025
    low = stats.beta.ppf(0.2 * tail, 1, 100) - stats.beta.ppf(1 - 0.8 * tail, 1, 100)
    high = stats.beta.ppf(1 - 0.8 * tail, 2, 99)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.low < plain.low < 0.01 < plain.high < found.high


def test_what_differs_between_strata_is_no_error():
    rng = np.random.default_rng(3)
    rows, sets = rng.normal(size=(3, 60)), np.repeat(["a", "b"], 30)
    moved = rows + np.where(sets == "a", 5.0, -5.0)
    plain, apart = two_level(rows, strata=sets), two_level(moved, strata=sets)
    assert (apart.value, apart.low, apart.high) == pytest.approx((plain.value, plain.low, plain.high))
    wide = two_level(moved)
    assert wide.high - wide.low > 4 * (plain.high - plain.low)
    own = two_level(moved[:1], strata=sets)
    assert own.high - own.low < 2 < two_level(moved[:1]).high - two_level(moved[:1]).low


def test_the_width_is_what_its_parts_make_at_any_number_of_seeds_and_items():
    rng = np.random.default_rng(4)
    rows = 0.5 * rng.normal(size=(5, 1)) + rng.normal(size=40) + rng.normal(size=(5, 40))
    e, spread = crossed(rows)
    assert min(e.high - e.value, e.value - e.low) == pytest.approx(spread.half_width())
    assert np.hypot(*spread.parts()) == pytest.approx(spread.half_width())
    more = spread.half_width(500, 40_000)
    assert more < 0.1 * spread.half_width()
    assert spread.half_width(5, 40_000) == pytest.approx(stats.t.ppf(0.975, 4) * np.sqrt(spread.seed / 5), rel=0.02)
    parts = [mean_interval(row) for row in rows]
    assert spread_over_seeds(parts).half_width() == pytest.approx(over_seeds(parts).high - over_seeds(parts).value, rel=0.05)


def test_a_90_percent_interval_of_estimates_is_narrower_by_what_normal_ones_are():
    one = [Estimate(0.1, 0.0, 0.2, 50)] * 4
    assert over_seeds(one, 0.90).high == pytest.approx(0.1 + 0.1 * 1.6449 / 1.9600, abs=1e-5)
    assert over_seeds(one[:1], 0.90).high == over_seeds(one, 0.90).high
    assert over_seeds(one[:1]) == one[0]


def test_over_seeds_by_hand():
    found = over_seeds([Estimate(0.1, 0.0, 0.3, 50), Estimate(0.2, 0.1, 0.4, 50), Estimate(0.3, 0.1, 0.7, 60)])
    seeds = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(0.2), 160)
    assert found.value - found.low == pytest.approx(np.hypot(seeds, 0.4 / 3))
    assert found.high - found.value == pytest.approx(np.hypot(seeds, 0.8 / 3))


def test_over_seeds_of_one_seed_is_that_seed_and_agreeing_seeds_keep_its_interval():
    one = Estimate(0.0, 0.0, 0.16, 20)
    assert over_seeds([one]) == one
    same = over_seeds([one] * 4, bounds=(0, 1))
    assert (same.value, same.low, same.high, same.n) == (0.0, 0.0, pytest.approx(0.16), 80)


def test_over_seeds_keeps_to_its_bounds_and_to_no_order():
    parts = [Estimate(v, v - 0.1, v + 0.1, 9) for v in (0.9, 0.95, 0.1)]
    found = over_seeds(parts, bounds=(0, 1))
    assert (found.low, found.high) == (0.0, 1.0)
    assert found == over_seeds(parts[::-1], bounds=(0, 1)) == over_seeds([parts[1], parts[0], parts[2]], bounds=(0, 1))
    wide, narrow = over_seeds(parts, level=0.99), over_seeds(parts, level=0.8)
    assert wide.high - wide.low > narrow.high - narrow.low


def test_mean_of_by_hand():
    parts = [Estimate(0.1, 0.0, 0.4, 50), Estimate(0.3, 0.1, 0.4, 60)]
    shared, apart = mean_of(parts, shared=True), mean_of(parts, shared=False)
    assert [shared.value, shared.low, shared.high, shared.n] == pytest.approx([0.2, 0.2 - 0.15, 0.2 + 0.2, 60])
    assert [apart.value, apart.low, apart.high, apart.n] == pytest.approx(
        [0.2, 0.2 - np.hypot(0.1, 0.2) / 2, 0.2 + np.hypot(0.3, 0.1) / 2, 110]
    )
    assert mean_of(parts[:1], shared=True) == mean_of(parts[:1], shared=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: over_seeds([]),
        lambda: over_seeds([Estimate(0.1, float("nan"), float("nan"), 5)] * 3),
        lambda: mean_of([], shared=True),
        lambda: two_level([[1.0, 2.0], [1.0]]),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(make):
    with pytest.raises(StudyError) as caught:
        make()
    assert "\n" not in str(caught.value)
