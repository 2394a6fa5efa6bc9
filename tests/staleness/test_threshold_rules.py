"""The plain rule finds a planted threshold, keeps its promise where it was calibrated, and does what its words say."""

import re

import numpy as np
import pytest
from test_predictors import planted, refused

from helpers.staleness import threshold_rules
from helpers.staleness.predictors import COLUMNS
from helpers.staleness.threshold_rules import ThresholdRule


def test_the_plain_rule_finds_a_planted_threshold():
    cells = planted(strength=0).assign(stale=lambda c: c["score_ks"] > 1)
    rule = threshold_rules.plain_rule(cells, missed=0)
    assert [signal for signal, _ in rule.tests] == ["score_ks"]
    assert rule.tests[0][1] == pytest.approx(1, abs=0.02)
    assert rule.words == f"revalidate where score_ks >= {rule.tests[0][1]:g}"
    flags = rule.flags(cells)
    assert flags[cells["stale"]].all()
    assert flags.sum() <= cells["stale"].sum() + 1


@pytest.mark.parametrize("joined", ["and", "or"])
def test_the_plain_rule_joins_two_tests_where_that_saves_checks(joined):
    cells = planted(strength=0, variants=40)
    hot, low = cells["score_ks"] > (0 if joined == "and" else 1.2), cells["cka"] < (0 if joined == "and" else -1.2)
    cells["stale"] = hot & low if joined == "and" else hot | low
    rule = threshold_rules.plain_rule(cells, missed=0.1)
    assert {signal for signal, _ in rule.tests} == {"score_ks", "cka"}
    assert rule.joined == joined
    assert f" {joined} " in rule.words
    assert "cka <= " in rule.words
    flags = rule.flags(cells)
    assert flags[cells["stale"]].mean() >= 0.9
    assert flags.mean() < 1.25 * cells["stale"].mean()


@pytest.mark.parametrize("signal", threshold_rules.WARNS)
@pytest.mark.parametrize("missed", [0.0, 0.1, 0.3])
def test_the_rule_keeps_its_promise_on_the_cells_it_was_calibrated_on(signal, missed):
    cells = planted(signal if threshold_rules.WARNS[signal] > 0 else "score_ks")[[*COLUMNS, signal]]
    rule = threshold_rules.plain_rule(cells, missed)
    assert rule.flags(cells)[cells["stale"]].mean() >= 1 - missed
    assert len(rule.tests) <= 1


def test_a_rule_flags_exactly_what_its_words_say():
    cells = planted()
    rule = threshold_rules.plain_rule(cells)
    said = np.ones(len(cells), bool)
    for name, side, number in re.findall(r"\|?(\w+)\|? (>=|<=) (-?[\d.e-]+)", rule.words):
        values = cells[name].abs() if name == "mean_shift" else cells[name]
        said &= (values >= float(number)) if side == ">=" else (values <= float(number))
    assert len(rule.tests) == 1
    assert np.array_equal(rule.flags(cells), said)


def test_a_missing_signal_sends_the_cell_to_revalidation():
    cells = planted().assign(score_ks=np.nan)
    assert ThresholdRule((("score_ks", 0.5),)).flags(cells).all()


def test_without_a_stale_cell_everything_is_revalidated():
    cells = planted().assign(stale=False)
    assert threshold_rules.plain_rule(cells) == ThresholdRule()
    assert ThresholdRule().flags(cells).all()
    assert ThresholdRule().words == "revalidate everything"


@pytest.mark.parametrize("missed", [-0.1, 1, float("nan")])
def test_a_target_that_is_no_share_is_refused(missed):
    with refused(f"missed {missed}"):
        threshold_rules.plain_rule(planted(), missed)
