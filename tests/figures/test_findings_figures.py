"""Chapter 11's figures: intervals stand where their numbers are, shapes tell verdicts apart, no text is cut or covered."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from support.tiers import mostly_slow
from test_findings import dots
from test_model_figures import check_texts, drawing  # noqa: F401
from test_monitor_figures import check_page, drawing_functions

from helpers.figures import findings, findings_tables
from helpers.stats import intervals
from helpers.study import claims as all_claims
from helpers.study import findings as all_findings
from helpers.study.claims import CLAIMS, UNITS
from helpers.study.evidence.behaviour import UPDATES
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, MIXED, NOT_RUN, SUPPORTED, VERDICTS


def scattered(seeds=range(3), models=("embedded",), spread=4.0):
    """Findings as they come: wide and narrow intervals on both sides of their bounds, up to the ends of a unit's range."""
    rng, parts = np.random.default_rng(5), []
    for model in models:
        table = dots(seeds=seeds, model=model, skip={("M6", 1), ("M6", 2), ("S4", 3)})
        steps = np.array([UNITS[CLAIMS[c].components[p - 1].unit].step for c, p in table[["claim", "component"]].to_numpy()])
        names = table["claim"] + table["component"].astype(str)
        draws = {name: rng.normal(0, spread) for name in names.unique()}
        middle = table["value"] + names.map(draws) * steps + rng.normal(0, 0.3, len(table)) * steps
        half = names.map({name: rng.exponential(1.5) for name in names.unique()}) * steps
        parts.append(table.assign(value=middle, low=middle - half, high=middle + half))
    return pd.concat(parts, ignore_index=True)


TABLES = {
    "one seed": lambda: scattered(seeds=[0]), "three seeds": scattered, "five seeds": lambda: scattered(seeds=range(5)),
    "two models": lambda: scattered(models=("embedded", "meta-llama--Llama-2-7b-chat-hf")),
    "far away": lambda: scattered(spread=200.0),
}  # fmt: skip


def forest(table, group=""):
    return findings.forest(all_findings.judge(table)[1], table, group)


@mostly_slow("shorter labels of the same figures", "two models-monitors")
@pytest.mark.parametrize("group", findings.GROUPS)
@pytest.mark.parametrize("name", TABLES)
def test_no_text_of_the_forest_is_cut_or_covered(name, group):
    check_page(forest(TABLES[name](), group))


def test_the_groups_share_the_claims_out():
    table = scattered()
    texts = [{text.get_text() for text in forest(table, group).axes[0].texts} & set(CLAIMS) for group in findings.GROUPS]
    assert sorted(claim for found in texts for claim in found) == sorted(CLAIMS)


def test_a_seed_that_had_nothing_to_show_is_a_ring_and_no_dot():
    table = scattered().assign(premise=0.1, counts=lambda t: t["seed"] != 1, seen=None)
    ax = forest(table, "models").axes[0]
    rings = [line for line in ax.lines if str(line.get_label()).endswith("a seed without its premise")]
    assert rings
    assert {line.get_markerfacecolor() for line in rings} == {"white"}


@mostly_slow("shorter labels of the same figures", "two models", "nothing")
@pytest.mark.parametrize("name", [*TABLES, "nothing"])
def test_no_text_of_the_strip_is_cut_or_covered(name):
    table = TABLES[name]() if name in TABLES else dots(seeds=[])
    figure = findings.headline(all_findings.judge(table)[0])
    check_texts(figure)
    assert figure.get_size_inches()[0] <= 10.5


def test_every_function_that_draws_is_tested_here():
    assert drawing_functions(findings) == {"first_look", "forest", "headline"}


def looked_at(seeds=3, most=1.0):
    """What `findings.overlook` gives: rates anywhere between 0 and 1, with intervals that hold them."""
    rng, rows = np.random.default_rng(seeds), []
    for update in UPDATES:
        for asked_for in ("refusals", "last", "mean"):
            values = rng.uniform(0, most, seeds)
            rows += [(update, asked_for, "embedded", str(seed), v, v, v, 32) for seed, v in enumerate(values)]
            mean = values.mean()
            rows.append((update, asked_for, "embedded", all_findings.ALL, mean, max(0, mean - 0.3), min(1, mean + 0.3), 96))
    return pd.DataFrame(rows, columns=["update", "asked", "model", "seed", "value", "low", "high", "n"])


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_first_look_shows_each_update_with_its_mean_and_every_seed(seeds):
    table = looked_at(seeds)
    figure = findings.first_look(table)
    check_page(figure)
    left = figure.axes[0]
    means = table[(table["asked"] == "refusals") & (table["seed"] == all_findings.ALL)]["value"]
    assert [text.get_text() for text in left.texts] == [f"{100 * value:.0f} %" for value in means]
    assert len(left.lines[0].get_xdata()) == seeds * len(UPDATES)
    assert [label.get_text() for label in left.get_yticklabels()] == list(UPDATES)


def test_a_first_look_at_nothing_says_so():
    check_page(findings.first_look(looked_at().iloc[:0]), measured=False)


def test_a_profile_that_measured_no_claim_says_so():
    check_page(forest(dots(seeds=[])), measured=False)


def test_the_forest_draws_without_dots():
    table = scattered()
    figure = findings.forest(all_findings.judge(table)[1])
    check_page(figure)
    assert "one seed" not in [text.get_text() for text in figure.legends[0].get_texts()]


# ---------------------------------------------------------------- places


ROWS = [("above", 0.05, 0.0), ("below", 0.05, 0.0), ("within", 0.0, 0.05), ("within", 0.1, 0.05)]


@pytest.mark.parametrize(("side", "bound", "margin"), ROWS)
def test_right_of_the_line_is_as_claimed_for_every_kind_of_claim(side, bound, margin):
    """The line is crossed by just those intervals that decide nothing, and the side agrees with the answer."""
    rng, row = np.random.default_rng(0), {"side": side, "bound": bound, "margin": margin, "unit": "points"}
    part = all_claims.Component("planted", "points", side, bound, lambda tables: None, margin)
    for _ in range(500):
        low, high = np.sort(rng.normal(bound, 0.08, 2))
        middle = rng.uniform(low, high)
        v, a, b = findings.towards(row, middle, low, high)
        assert a <= v + 1e-12
        assert v <= b + 1e-12
        answer = all_findings.answer(intervals.Estimate(middle, low, high, 9), 3, part)
        assert answer == (SUPPORTED if a > 0 else CONTRADICTED if b < 0 else INCONCLUSIVE)


def test_a_step_is_the_units_and_the_margin_is_the_most_that_sameness_can_have():
    row = {"side": "above", "bound": 0.05, "margin": 0.0, "unit": "points"}
    assert findings.towards(row, 0.20, 0.05, 0.25) == pytest.approx((3, 0, 4))
    assert findings.towards({**row, "side": "below"}, 0.20, 0.05, 0.25) == pytest.approx((-3, -4, 0))
    same = {"side": "within", "bound": 0.0, "margin": 0.05, "unit": "points"}
    assert findings.towards(same, 0.0, -0.02, 0.01) == pytest.approx((1, 0.6, 1))
    assert findings.towards(same, -0.10, -0.20, -0.05) == pytest.approx((-1, -3, 0))


def test_every_interval_is_drawn_at_its_place_and_in_the_colour_of_its_answer():
    table = scattered()
    parts = all_findings.judge(table)[1]
    ax = findings.forest(parts, table).axes[0]
    measured = [row for row in parts.to_dict("records") if row["seeds"]]
    drawn = [(dot, bar.get_segments()[0][:, 0]) for dot, _, (bar,) in (one.lines for one in ax.containers)]
    assert len(drawn) == len(measured)
    for (dot, interval), row in zip(drawn, measured, strict=True):
        v, a, b = findings.towards(row, row["estimate"], row["low"], row["high"])
        assert list(dot.get_xdata()) == pytest.approx([v])
        assert list(interval) == pytest.approx([min(a, v), max(b, v)])  # a planted value may lie beyond its unit's range
        assert to_rgba(dot.get_color()) == to_rgba(findings.LOOKS[row["answer"]][0])
    left, right = ax.get_xlim()
    ends = np.concatenate([interval for _, interval in drawn])
    assert left < ends.min()
    assert ends.max() < right
    seeds = [x for line in ax.lines if line.get_color() == findings.SEED for x in line.get_xdata()]
    assert len(seeds) == len(table)
    assert left < min(seeds)
    assert max(seeds) < right


def test_the_forest_says_each_claims_verdict_and_each_components_numbers():
    table = scattered()
    found, parts = all_findings.judge(table)
    said = [text.get_text() for text in forest(table).axes[0].texts]
    for row in found.to_dict("records"):
        at = said.index(row["claim"])
        assert said[at : at + 3] == [row["claim"], CLAIMS[row["claim"]].short, row["verdict"]]
        size = f"3 seeds, n = {row['n']:,}"
        assert (said[at + 3 : at + 4] == [size]) == (row["verdict"] != NOT_RUN)
    for row in parts.to_dict("records"):
        assert row["name"] in said
        assert findings_tables.said(row["unit"], row["estimate"], row["low"], row["high"]) in said
    assert len({row["verdict"] for row in found.to_dict("records")}) >= 4


# ---------------------------------------------------------------- the strip, and grey


def test_the_strip_counts_every_claim_once_under_its_verdict():
    found = all_findings.judge(scattered())[0]
    figure = findings.headline(found)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(text for text in said if text in CLAIMS) == sorted(CLAIMS)
    groups = found.groupby("verdict")["claim"].agg(list)
    assert [text for text in said if text in VERDICTS] == [name for name in VERDICTS if name in groups]
    for name, claims in groups.items():
        at = said.index(name)
        assert said[at + 1 : at + 2 + len(claims)] == [str(len(claims)), *claims]


def test_verdicts_differ_in_shape_and_in_grey_as_well():
    assert list(findings.LOOKS) == [SUPPORTED, CONTRADICTED, MIXED, INCONCLUSIVE, NOT_RUN]
    assert len({(marker, filled) for _, marker, filled in findings.LOOKS.values()}) == 5
    assert len({marker for _, marker, _ in findings.LOOKS.values()}) >= 4
