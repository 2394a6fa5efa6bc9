"""Pages of claims: reasons, power and coverage are made from tables, and a missing table is said to be missing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.book import claim_pages, power
from helpers.stats.over_seeds import crossed
from helpers.study.claims import CLAIMS
from helpers.study.paired_items import Items


def test_a_plan_says_how_wide_the_interval_will_be_and_whether_it_decides():
    rng, component = np.random.default_rng(0), CLAIMS["S1"].components[0]
    units = pd.MultiIndex.from_product([["advbench"], [f"i{k}" for k in range(60)]])
    seen = [Items(pd.Series((rng.random(60) < 0.6).astype(float), index=units)) for _ in range(3)]
    found = pd.DataFrame(power.planned(component, seen), columns=power.COLUMNS[1:-1])
    spread = crossed([one.values for one in seen])[1]
    assert found["seeds"].tolist() == [seeds for seeds, _ in power.PLANS]
    assert found["items"].tolist() == [60 * times for _, times in power.PLANS]
    assert found.loc[0, "half_width"] == pytest.approx(spread.half_width())
    assert found["half_width"].iloc[-1] < found["half_width"].iloc[0]
    assert (found["decides"] == (found["half_width"] < found["estimate"] - component.bound)).all()


def test_what_no_item_contradicted_is_not_taken_for_certain():
    units = pd.MultiIndex.from_product([["advbench"], [f"i{k}" for k in range(40)]])
    seen = [Items(pd.Series(0.0, index=units)) for _ in range(3)]
    found = pd.DataFrame(power.planned(CLAIMS["N2"].components[0], seen), columns=power.COLUMNS[1:-1])
    assert found.loc[0, "half_width"] == pytest.approx(1 - 0.04 ** (1 / 40))  # no item differed: exact ends, at 90 %
    assert found.set_index(["seeds", "items"]).loc[(5, 160), "half_width"] == pytest.approx((1 - 0.04 ** (1 / 40)) / 4)
    assert found["decides"].tolist() == [False, False, True, True, False, True]


def test_a_table_that_is_not_made_is_said_so_and_one_that_is_stands_on_the_page(tmp_path):
    for make in (claim_pages.power, claim_pages.coverage, claim_pages.decisions):
        assert make(tmp_path, tmp_path) == claim_pages.MISSING
    (tmp_path / claim_pages.TABLES).mkdir(parents=True)
    rows = [("items, effect of 0.3", 5, 96, 1.2, 0.951, 0.94, 0.96, 500)]
    names = ["what", "seeds", "n", "spread", "coverage", "low", "high", "repeats"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / claim_pages.TABLES / "coverage.csv", index=False)
    assert "95.1 %" in claim_pages.coverage(tmp_path, tmp_path)
    told = [("an attack", seeds, 32, 1.2, share, share, share, 500) for seeds, share in ((3, 0.12), (5, 0.934))]
    pd.DataFrame(told, columns=[*names[:4], "decided", *names[5:]]).to_csv(
        tmp_path / claim_pages.TABLES / "decisions.csv", index=False)  # fmt: skip
    shown = claim_pages.decisions(tmp_path, tmp_path)
    assert [word in shown for word in ("3 seeds, 32 prompts", "12 %", "93 %", "1.2")] == [True] * 4
    plans = [("S1", "planted", "points", "above", 0.05, 0.0, 0.4, s, 100 * t, 0.1, s > 3, "tables") for s, t in power.PLANS]
    pd.DataFrame(plans, columns=power.COLUMNS).to_csv(tmp_path / claim_pages.TABLES / "power.csv", index=False)
    (line,) = [line for line in claim_pages.power(tmp_path, tmp_path).splitlines() if line.startswith("| S1")]
    assert line.count("**") == 2 * 5


def test_the_page_says_of_studies_that_decide_what_its_table_says():
    """ "Five of them would have decided in less than half of such studies", and with an attack that works "nearly always"."""
    found = pd.read_csv(Path(__file__).parents[2] / claim_pages.TABLES / "decisions.csv")
    five = found[found["seeds"] == 5].groupby("what", sort=False)["high"].max()
    assert len(five) == 3
    assert (five.iloc[:2] < 0.5).all()
    assert found.loc[(found["seeds"] == 5) & (found["what"] == five.index[2]), "low"].min() > 0.95


def test_table_one_without_a_run_says_so(tmp_path):
    (tmp_path / "cpu" / "embedded" / "seed-0").mkdir(parents=True)
    assert "No run of this profile" in claim_pages.table_one(tmp_path, tmp_path / "cpu" / "embedded" / "seed-0")
