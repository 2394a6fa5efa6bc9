"""A planted signal is found by every predictor that may pay for it, a useless one by none; intervals hold the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from support.tiers import mostly_slow
from test_predictors import BAD, planted, refused

from helpers.staleness import order_measures, predictors, triage
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import BITS, DRIFT, ORDERS, PARTS, PREDICTORS, SPLITS

ONE_EACH = ["ridge, free", "logistic, free+forward", "forest, free+forward+labels"]


def row(table, metric, predictor="ridge, free+forward", split="monitor", budget=1.0):
    keys = {"metric": metric, "predictor": predictor, "split": split, "budget": budget}
    found = table[np.logical_and.reduce([table[name] == value for name, value in keys.items()])]
    assert len(found) == 1, keys
    return found.iloc[0]


# ---------------------------------------------------------------- the metrics


def recall(risk: np.ndarray, stale: np.ndarray, budget: float) -> float:
    """The share of the stale cells among the riskiest `budget` of one fold."""
    found, every = order_measures.recall_at(risk, stale, np.ones((1, len(risk))), budget)
    return float(found[0] / every[0])


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("sick", [3, 20, 60])
def test_a_perfect_order_finds_what_the_budget_allows(budget, sick):
    stale = np.arange(100) < sick
    assert recall(-np.arange(100.0), stale, budget) == pytest.approx(min(1, budget / stale.mean()))
    assert recall(np.arange(100.0), stale, budget) == pytest.approx(max(0, (budget - 1 + stale.mean()) / stale.mean()))


@pytest.mark.parametrize("budget", [0.1, 0.3, 1.0])
def test_a_level_order_has_the_mean_recall_of_many_shuffles(budget):
    rng, stale = np.random.default_rng(0), np.arange(50) < 12
    shuffled = [recall(rng.permutation(50).astype(float), stale, budget) for _ in range(4000)]
    exact = recall(np.zeros(50), stale, budget)
    assert exact == pytest.approx(budget)
    assert np.mean(shuffled) == pytest.approx(exact, abs=0.005)


def test_ties_are_broken_by_expectation_not_by_place():
    rng = np.random.default_rng(0)
    risk, stale = rng.integers(4, size=60).astype(float), rng.random(60) < 0.3
    broken = [recall(risk + 1e-6 * rng.random(60), stale, 0.2) for _ in range(4000)]
    assert recall(risk, stale, 0.2) == pytest.approx(np.mean(broken), abs=0.01)
    order = rng.permutation(60)
    assert recall(risk[order], stale[order], 0.2) == pytest.approx(recall(risk, stale, 0.2))


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_metrics_are_those_of_repeated_cells(ties):
    rng = np.random.default_rng(1)
    risk, drop = rng.standard_normal((2, 80))
    risk, drop = (np.round(risk), np.round(drop)) if ties else (risk, drop)
    stale, weights = drop > 0.4, rng.integers(4, size=(3, 80)).astype(float)
    for number in range(3):
        again = np.repeat(np.arange(80), weights[number].astype(int))
        above, below = (side[number] for side in order_measures._concordant(risk, stale, weights))
        assert above / below == pytest.approx(roc_auc_score(stale[again], risk[again]))
        above, below = (side[number] for side in order_measures._agreement(risk, drop, weights))
        assert above / below == pytest.approx(stats.spearmanr(risk[again], drop[again]).statistic)
        above, below = (side[number] for side in order_measures.recall_at(risk, stale, weights, 0.25))
        assert above / below == pytest.approx(recall(risk[again], stale[again], 0.25))


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget):
    with refused(f"budget {budget}", "above 0 and at most 1"):
        triage.evaluate(planted(), budgets=(0.1, budget))


def test_without_a_stale_cell_there_is_no_recall():
    table, notes = triage.evaluate(planted().assign(stale=False), splits=["family"])
    assert any("no cell is stale" in note for note in notes)
    assert set(table["metric"]) == {"spearman", "flagged"}  # the size of the drop can still be foretold
    assert (table["n"] > 0).all()


# ---------------------------------------------------------------- planted truth


def test_where_no_signal_tells_anything_the_intervals_hold_chance():
    """Thirty studies of noise, twenty updates each; the interval is over updates and says nothing of other monitors."""
    held, claimed = {"spearman": 0.0, "auroc": 0.5}, {"spearman": 0, "auroc": 0}
    inside = dict.fromkeys(held, 0)
    for seed in range(30):
        cells = planted(strength=0, seed=seed, variants=20)
        cells = cells.assign(stale=cells["drop"] >= 0.02)
        table = triage.evaluate(cells, predictors=["ridge, free+forward"], splits=["family"], seed=seed)[0]
        for metric, chance in held.items():
            e = row(table, metric, "ridge, free+forward", "family")
            inside[metric] += e["low"] <= chance <= e["high"]
            claimed[metric] += e["low"] > chance
    assert min(inside.values()) >= 26  # 95 % of 30 is 28.5; fewer than 26 has a chance of 2 %
    assert max(claimed.values()) <= 3


@pytest.fixture(scope="module")
def found():
    """A drift that tells the drop, and everything else noise: all predictors on all splits."""
    return triage.evaluate(planted(tasks=3, seeds=2, layers=2), seed=0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_finds_the_planted_signal_where_it_may_pay_for_it(found, predictor, split):
    recall = row(found[0], "recall", predictor, split, 0.2)
    rho = row(found[0], "spearman", predictor, split)
    if "forward" in predictor:
        assert recall["low"] > 0.5
        assert rho["low"] > 0.6
    else:  # control: free signals are noise here
        assert recall["low"] < 0.25
        assert abs(rho["value"]) < 0.2


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_simple_order_stands_beside_the_predictors(found, order, split):
    if order == "fine-tunes first" and "family" in split:  # a family is all fine-tunes, or none: there is no order in it
        assert not ((found[0]["predictor"] == order) & (found[0]["split"] == split)).any()
        assert any(note.startswith(f"{order}, {split}: left out") for note in found[1])
        return
    recall = row(found[0], "recall", order, split, 0.3)
    if order == DRIFT:
        assert recall["low"] > 0.6
    else:
        assert recall["value"] == pytest.approx(0.3, abs=0.08)
    if order == "random":
        assert (recall["value"], recall["low"], recall["high"]) == (0.3, 0.3, 0.3)  # known exactly: no sampling


def test_every_row_has_finite_numbers_in_order_and_stands_once(found):
    table, _ = found
    assert list(table.columns) == triage.ROW
    assert np.isfinite(table[["budget", "value", "low", "high"]].to_numpy()).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert not table.duplicated(["predictor", "split", "budget", "metric"]).any()
    assert (table["n"] > 0).all()


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("predictor", ONE_EACH)
def test_useless_signals_are_not_found(predictor, seed):
    table, _ = triage.evaluate(planted(strength=0, seed=seed).assign(stale=STALE), predictors=[predictor], splits=["family"])
    recall, rho = row(table, "recall", predictor, "family", 0.2), row(table, "spearman", predictor, "family")
    assert recall["value"] == pytest.approx(0.2, abs=0.1)
    assert abs(rho["value"]) < 0.2
    assert recall["low"] - 0.05 < 0.2 < recall["high"] + 0.05  # 95 % intervals miss now and then, never by far


STALE = np.random.default_rng(9).random(480) < 0.2


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(("sizes", "absent"), [({"seeds": 1}, "seed"), ({"variants": 1}, "family"), ({"tasks": 1}, "monitor")])
def test_a_split_that_the_cells_do_not_allow_is_absent_and_noted(sizes, absent):
    cells = planted(**{"seeds": 2, **sizes})
    cells["stale"] = np.arange(len(cells)) % 3 == 0
    assert absent not in predictors.applicable(cells)
    table, notes = triage.evaluate(cells, predictors=["ridge, free"])
    assert absent not in set(table["split"])
    assert any(note.startswith(f"split {absent}: left out") for note in notes)
    worth, notes = triage.importance(cells, "ridge, free", split=absent)
    assert worth.empty
    assert notes == [f"ridge, free, {absent}: left out, nothing remains to learn from without some fold"]


# ---------------------------------------------------------------- intervals


@mostly_slow("the same simulation at other sizes", "10")
@pytest.mark.parametrize("updates", [10, 30])
def test_the_intervals_hold_the_truth_for_other_updates(updates):
    """Updates differ as wholes: an interval over cells would be far too narrow here."""

    def draw(rng, count):
        own, seen = rng.standard_normal((2, count, 1))
        cells = rng.standard_normal((2, count, 20))
        drop, risk = (own + cells[0]).ravel(), (0.7 * own + 0.7 * seen + cells[1]).ravel()
        return pd.DataFrame({"variant": np.repeat(np.arange(count), 20), "drop": drop, "stale": drop > 1}), risk

    def metrics(cells, risk, cluster):
        weights, folds = order_measures.weightings(cells, cluster), [("all", np.array([]), np.arange(len(cells)))]
        found = order_measures.measured(cells, folds, risk, weights, [0.2])
        return [estimate for _, _, estimate in found.estimates(len(cells), int(cells["stale"].sum()))]

    rng = np.random.default_rng(0)
    big, risk = draw(rng, 20_000)
    stale, drop, ones = big["stale"].to_numpy(), big["drop"].to_numpy(), np.ones((1, len(big)))
    ratios = [
        order_measures.recall_at(risk, stale, ones, 0.2),
        order_measures._concordant(risk, stale, ones),
        order_measures._agreement(risk, drop, ones),
    ]
    truths = [float(above[0] / below[0]) for above, below in ratios]
    hits = []
    for _ in range(300):
        estimates = metrics(*draw(rng, updates), "variant")
        hits.append([e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)])
    assert (np.mean(hits, axis=0) >= 0.915).all()
    assert (np.mean(hits, axis=0) <= 0.995).all()


def test_few_updates_are_said():
    _, notes = triage.evaluate(planted(variants=8), predictors=["ridge, free"], splits=["monitor"])
    assert any(note.startswith("8 clusters by variant") for note in notes)
    _, notes = triage.evaluate(planted(variants=25), predictors=["ridge, free"], splits=["monitor"])
    assert not any("clusters by" in note for note in notes)


def test_where_all_stale_cells_lie_in_one_update_there_is_a_note_and_no_row():
    cells = planted().assign(stale=lambda c: c["variant"] == "v3")
    table, notes = triage.evaluate(cells, predictors=["ridge, free+forward"], splits=["monitor"])
    assert set(table["metric"][table["predictor"] == "ridge, free+forward"]) == {"spearman"}
    assert any("recall is left out" in note for note in notes)
    assert any("auroc is left out" in note for note in notes)


# ---------------------------------------------------------------- predictors and what they meet


@pytest.mark.parametrize("predictor", ["logistic, free+forward", "ridge, free+forward"])
def test_one_class_in_training_falls_back_to_the_mean_drop_and_says_so(predictor):
    cells = planted()
    cells["stale"] &= cells["family"] == "QAT"
    train, test = cells[cells["family"] != "QAT"], cells[cells["family"] == "QAT"]
    risk = PREDICTORS[predictor](train, test, ["score_ks"], 0)
    _, notes = triage.evaluate(cells, predictors=[predictor], splits=["family"])
    fallen = [note for note in notes if "one class only without QAT" in note and "mean drop" in note]
    if predictor.startswith("logistic"):
        assert risk == pytest.approx(np.full(len(test), train["drop"].mean()))
        assert len(fallen) == 1
        assert any("no order inside QAT" in note for note in notes)
    else:  # control: the drop itself still tells the cells apart
        assert np.ptp(risk) > 0.05
        assert not fallen


def test_the_order_of_the_rows_does_not_matter():
    cells = planted()
    shuffled = cells.sample(frac=1, random_state=1)
    tables = [triage.evaluate(c, predictors=["ridge, free+forward"], splits=["monitor", "family"])[0] for c in (cells, shuffled)]
    pd.testing.assert_frame_equal(*tables)


def test_what_the_cells_lack_is_left_out_with_a_note():
    cells = planted().drop(columns=[name for name, s in SIGNALS.items() if s.price != "free"])
    table, notes = triage.evaluate(cells, splits=["monitor"])
    assert set(table["predictor"]) == {
        "random",
        "fine-tunes first",
        BITS,
        "plain rule",
        *(p for p in PREDICTORS if p.endswith(", free")),
    }
    assert "largest drift first: left out, the cells have no score_ks" in notes
    assert "ridge, free+forward: left out, the cells have no signal of the price 'forward'" in notes


# ---------------------------------------------------------------- a rule for tomorrow


def test_the_rule_is_judged_on_cells_it_was_not_calibrated_on(found):
    table, notes = found
    for split in SPLITS:
        caught, flagged = (row(table, metric, "plain rule", split) for metric in ("caught", "flagged"))
        assert caught["value"] > 0.8
        assert flagged["value"] < 0.6
        assert len([note for note in notes if note.startswith(f"plain rule, {split}:") and "the target" in note]) == 1


@pytest.mark.parametrize("off", [0, 9])
def test_a_rule_that_fails_on_another_family_is_said_to_fail(off):
    """A family on which the drift reads 9 lower is missed when nobody calibrated on it; without that shift it is not."""
    cells = planted(variants=100, tasks=2)[[*predictors.COLUMNS, "score_ks"]]
    cells["score_ks"] -= off * (cells["family"] == "QLoRA")
    _, notes = triage.evaluate(cells, predictors=[], splits=["family"], missed=0.05)
    assert any(note.startswith("plain rule, family: fails the target") for note in notes) == (off > 0)


@pytest.mark.parametrize("missed", [-0.1, 1, float("nan")])
def test_a_target_that_is_no_share_is_refused(missed):
    with refused(f"missed {missed}"):
        triage.evaluate(planted(), missed=missed)


# ---------------------------------------------------------------- beyond the simple orders


def crushed(strength=1.0, **sizes):
    """Cells of which a fifth lie in a model of 2 bits, all of them stale; elsewhere a drift tells the drop."""
    cells = planted(strength=strength, **sizes)
    broken = cells["variant"].isin([f"v{i}" for i in range(0, 20, 5)])
    return cells.assign(
        family=np.where(broken, "quantization", cells["family"]),
        bits=np.where(broken, 2.1, 4.5 + 0.1 * cells["family"].map({"LoRA": 1, "QLoRA": 2}).fillna(0)),
        drop=np.where(broken, 0.4, cells["drop"]), stale=broken | cells["stale"], score_ks=np.where(broken, 9, cells["score_ks"]),
    )  # fmt: skip


def test_an_order_by_bits_finds_what_lies_in_few_bits_and_nothing_else():
    """All the stale cells of the whole grid lie in 2 bits: the predictor finds no more than the bits tell. Without that format
    the drift that truly tells is seen, and the bits are worth nothing."""
    cells = crushed(tasks=3, layers=2)
    mostly = cells.assign(stale=cells["stale"] & ((cells["bits"] < 4) | (np.arange(len(cells)) % 8 == 0)))
    whole = triage.evaluate(mostly, predictors=["ridge, free+forward"], splits=["monitor"])[0]
    assert row(whole, "recall", BITS, "monitor", 0.2)["low"] > 0.6
    assert row(whole, "recall_beyond_bits", split="monitor", budget=0.2)["high"] < 0.25
    part = triage.evaluate(cells, predictors=["ridge, free+forward"], splits=["family-4bit"])[0]
    e = row(part, "recall_beyond_bits", split="family-4bit", budget=0.2)
    assert e["low"] > 0.1  # within these families all have as many bits: the order is worth what chance is
    assert e["n"] == (cells["stale"] & (cells["bits"] > 4)).sum()
    assert row(part, "auroc_beyond_bits", split="family-4bit")["low"] > 0.05
    assert BITS not in set(part["predictor"])
    assert set(cells.loc[cells["bits"] < 4, "family"]) == {"quantization"}


def test_what_a_predictor_finds_beyond_an_order_is_a_paired_difference(found):
    table = found[0]
    for split in SPLITS:
        for budget, metric in ((0.1, "recall"), (0.3, "recall"), (1.0, "auroc")):
            own, base = (row(table, metric, name, split, budget) for name in ("ridge, free", DRIFT))
            e = row(table, f"{metric}_beyond_drift", "ridge, free", split, budget)
            assert e["value"] == pytest.approx(own["value"] - base["value"])
            assert e["high"] < 0  # noise against the drift that tells the drop
    assert not table.loc[~table["predictor"].isin(PREDICTORS), "metric"].str.contains("beyond").any()


def test_a_predictor_that_is_nearly_the_order_itself_is_beyond_it_by_nothing():
    """Ridge on family and drift has nearly the order of the drift, and the interval holds 0."""
    cells = planted(variants=12)[[*predictors.COLUMNS, "score_ks"]]
    table, _ = triage.evaluate(cells, predictors=["ridge, free+forward"], splits=["monitor"])
    e = row(table, "recall_beyond_drift", budget=0.2)
    assert e["low"] < 0 < e["high"]
    assert e["value"] == pytest.approx(0, abs=0.02)


def test_the_interval_of_a_difference_covers_and_is_narrower_than_unpaired():
    """Two orders of the same cells, alike good: their difference is 0, and paired it is known better than from each alone."""
    rng, hits, paired, apart = np.random.default_rng(3), [], [], []
    for _ in range(200):
        own, seen = rng.standard_normal((2, 15, 1))
        drop = (own + rng.standard_normal((15, 12))).ravel()
        risks = [(0.7 * own + 0.7 * seen + 0.5 * rng.standard_normal((15, 12))).ravel() for _ in range(2)]
        cells = pd.DataFrame({"variant": np.repeat(np.arange(15), 12), "drop": drop, "stale": drop > 1})
        weights, folds = order_measures.weightings(cells, "variant"), [("all", np.array([]), np.arange(len(cells)))]
        first, second = (order_measures.measured(cells, folds, risk, weights, [0.2]) for risk in risks)
        both = {metric: e for _, metric, e in order_measures.beyond(first, second, "other", 180, 30)}
        e = both["auroc_beyond_other"]
        hits.append(e.low <= 0 <= e.high)
        paired.append(e.high - e.low)
        alone = [next(x for _, m, x in order.estimates(180, 30) if m == "auroc") for order in (first, second)]
        apart.append(np.hypot(*(x.high - x.low for x in alone)))
    assert 0.915 <= np.mean(hits) <= 0.99
    assert np.mean(paired) < 0.9 * np.mean(apart)


def test_twenty_skewed_updates_get_no_mass_that_no_update_has():
    """The recall of an order that is right on all updates but one: the end on the side of the many stays near them."""
    values = np.array([0.9, *np.repeat(0.9 + 0.002, 19), 0.6])
    e = order_measures.over_updates(values, 40, (0, 1))
    half = stats.t.ppf(0.975, 19) * np.sqrt(19 / 20 * np.square(values[1:] - values[1:].mean()).sum())
    assert (e.low, e.high) == pytest.approx((0.9 - half, min(0.9 + half, 1)))
    certain = order_measures.over_updates(np.ones(21), 40, (0, 1))
    assert (certain.value, certain.high) == (1, 1)
    assert 0.8 < certain.low < 0.9  # what an unseen share of updates could do


@pytest.mark.parametrize("split", PARTS)
def test_a_split_of_a_part_is_that_split_of_the_part_alone(split):
    cells = crushed(tasks=2, layers=1)
    kept = cells[cells["bits"] >= 4].reset_index(drop=True)
    whole, _ = triage.evaluate(cells, predictors=["ridge, free"], splits=[split])
    alone, _ = triage.evaluate(kept, predictors=["ridge, free"], splits=["family"])
    pd.testing.assert_frame_equal(whole, alone.assign(split=split))
    without, notes = triage.evaluate(cells.drop(columns="bits"), predictors=["ridge, free"], splits=[split])
    assert without.empty
    assert notes[-1].startswith(f"split {split}: left out")


# ---------------------------------------------------------------- importance


@mostly_slow("the same simulation at other sizes", "logistic, free+forward-family")
@pytest.mark.parametrize("split", ["monitor", "family"])
@pytest.mark.parametrize("predictor", ONE_EACH[1:])
def test_the_planted_signal_is_the_important_one(predictor, split):
    table, _ = triage.importance(planted(), predictor, split=split)
    table = table.set_index("metric")
    assert list(table.reset_index()[triage.ROW].columns) == triage.ROW
    assert table["value"].idxmax() == "importance:score_ks"
    assert table.loc["importance:score_ks", "low"] > 0.4
    others = table.drop("importance:score_ks")["value"]
    assert others.abs().max() < 0.1
    assert len(others) >= 10


def test_a_signal_that_cannot_be_permuted_is_noted():
    table, notes = triage.importance(planted(), "ridge, free", ["family", "rank"], "family")
    assert table["metric"].tolist() == ["importance:rank"]
    assert any("family is left out, it is constant inside every fold" in note for note in notes)
    table, notes = triage.importance(planted(), "ridge, free", ["family", "rank"], "monitor")
    assert table["metric"].tolist() == ["importance:family", "importance:rank"]  # control: there it varies
    assert not notes


# ---------------------------------------------------------------- what is refused


def test_names_that_nobody_knows_are_refused_with_those_there_are():
    cells = planted()
    with refused("'ridge, gold'", "'?ridge, free"):
        triage.evaluate(cells, predictors=["ridge, gold"])
    with refused("split 'random'", "monitor"):
        triage.evaluate(cells, splits=["random"])
    with refused("signal 'vibes'", "score_ks"):
        triage.importance(cells, "ridge, free", ["vibes"])
    with refused("cluster 'moon'"):
        triage.evaluate(cells, cluster="moon")


@pytest.mark.parametrize("bad", BAD)
def test_cells_that_cannot_be_triaged_are_refused(bad):
    change, words, code = BAD[bad]
    for call in (triage.evaluate, lambda c: triage.importance(c, "ridge, free")):
        with refused(words, code=code):
            call(change(planted()))
