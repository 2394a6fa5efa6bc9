"""Findings: every rule of a verdict on planted estimates, what must hold of any estimates, and runs read from disk."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from support.tiers import mostly_slow

from helpers import results
from helpers.book import explore_data
from helpers.errors import StudyError
from helpers.figures import findings_tables
from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import over_seeds
from helpers.study import findings
from helpers.study.claims import CLAIMS, LEVELS, UNITS, Component
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, MIXED, NOT_RUN, SUPPORTED, answer, over_models, verdict

S, C, U, N = SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN
KINDS = {"above": (0.05, 0.0), "below": (0.03, 0.0), "within": (0.0, 0.05), "near": (0.2, 0.05)}


def component(kind="above"):
    bound, margin = KINDS[kind]
    return Component("planted", "points", "within" if kind in {"within", "near"} else kind, bound, lambda tables: None, margin)


def spans(low, high, n=100):
    return Estimate((low + high) / 2, low, high, n)


# ---------------------------------------------------------------- one component


@pytest.mark.parametrize(
    ("kind", "low", "high", "wanted"),
    [
        ("above", 0.06, 0.20, S), ("above", 0.04, 0.20, U), ("above", 0.05, 0.20, U), ("above", -0.30, 0.05, U),
        ("above", -0.30, 0.049, C), ("above", 0.05, 0.05, U), ("above", 0.051, 0.051, S),
        ("below", -0.10, 0.029, S), ("below", -0.10, 0.03, U), ("below", 0.03, 0.20, U), ("below", 0.031, 0.20, C),
        ("within", -0.049, 0.049, S), ("within", -0.05, 0.01, U), ("within", 0.0, 0.05, U), ("within", 0.04, 0.20, U),
        ("within", -0.20, 0.20, U), ("within", 0.051, 0.20, C), ("within", -0.20, -0.051, C), ("within", 0.0, 0.0, S),
        ("near", 0.16, 0.24, S), ("near", 0.0, 0.14, C), ("near", 0.14, 0.21, U), ("near", 0.26, 0.30, C),
    ],
)  # fmt: skip
def test_an_answer_is_where_the_whole_interval_lies(kind, low, high, wanted):
    assert answer(spans(low, high), 3, component(kind)) == wanted
    assert answer(spans(low, high), 2, component(kind)) == INCONCLUSIVE


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_seed_nothing_was_run(kind):
    assert answer(findings.NOTHING, 0, component(kind)) == NOT_RUN


@pytest.mark.parametrize("kind", KINDS)
def test_what_covers_a_bound_is_never_decided_and_what_does_not_always_is(kind):
    rng, (bound, margin) = np.random.default_rng(1), KINDS[kind]
    edges = [bound - margin, bound + margin] if margin else [bound]
    seen = set()
    for _ in range(3000):
        low, high = np.sort(rng.normal(bound, 0.1, 2))
        covers = any(low <= edge <= high for edge in edges)
        found = answer(spans(low, high), 3 + int(rng.integers(3)), component(kind))
        assert (found == INCONCLUSIVE) == covers
        seen.add(found)
    assert seen == {S, C, U}


@pytest.mark.parametrize("kind", KINDS)
def test_one_or_two_seeds_decide_nothing(kind):
    rng = np.random.default_rng(2)
    for seeds in (1, 2):
        found = [answer(spans(*np.sort(rng.normal(0, 10, 2))), seeds, component(kind)) for _ in range(500)]
        assert set(found) == {INCONCLUSIVE}


@mostly_slow("the same draws for another kind of claim", "above", "within")
@pytest.mark.parametrize("kind", KINDS)
def test_more_seeds_that_agree_never_turn_an_answer_into_its_opposite(kind):
    rng, seen = np.random.default_rng(3), set()
    for _ in range(150):
        middle, spread = rng.normal(0.05, 0.1), rng.uniform(0, 0.05)
        each = [spans(middle + d - 0.02, middle + d + 0.02) for d in rng.normal(0, spread, 12)]
        answers = {answer(over_seeds(each[:n]), n, component(kind)) for n in range(3, 13)}
        assert not {S, C} <= answers
        same = [answer(over_seeds(each[:1] * n), n, component(kind)) for n in range(3, 8)]
        assert len(set(same)) == 1
        seen |= answers
    assert seen == {S, C, U}


def test_sameness_is_two_one_sided_tests_and_so_a_90_percent_interval():
    """The fault: sameness was asked of the 95 % interval, a test at 2.5 %."""
    near = dots(half=1.08)
    own = near[(near["claim"] == "N2") & (near["component"] == 1)]
    assert (own["high"] > 0.05).all()  # the 95 % interval of each seed reaches beyond the margin
    part = findings.judge(near)[1].query("claim == 'N2' and component == 1").iloc[0]
    assert part["high"] == pytest.approx(1.08 * 0.05 * 1.6449 / 1.96, rel=1e-3)
    assert part["answer"] == SUPPORTED


def test_methods_of_one_family_are_corrected_together_and_their_intervals_say_so():
    table = dots(skip={("M6", place) for place in range(3, 9)})
    rows = [("M6", place, "embedded", seed, 0.05, 0.05 - half, 0.05 + half, 100) for seed in range(3)
            for place, half in zip(range(3, 9), (0.03, 0.04, 0.045, 0.048, 0.048, 0.048), strict=True)]  # fmt: skip
    family = pd.DataFrame(rows, columns=findings.DOTS[:8])
    parts = findings.judge(pd.concat([table, family]))[1].query("claim == 'M6' and component >= 3")
    assert list(parts["answer"]) == [SUPPORTED, *[INCONCLUSIVE] * 5]  # by itself each of them leaves 0 out
    assert ((parts["low"] > 0) == (parts["answer"] == SUPPORTED)).all()
    alone = findings.judge(pd.concat([table, family[family["component"] == 8]]))[1].query("claim == 'M6' and component == 8")
    assert list(alone["answer"]) == [SUPPORTED]


# ---------------------------------------------------------------- premises, reasons and seeds that differ


def with_premises(held, values=(0.5,) * 5):
    """Claim S2 alone, each seed with its damage and whether that counts."""
    rows = [("S2", place, "embedded", seed, -value, -value - 0.02, -value + 0.02, 100, 0.5 if one else 0.05, one, None)
            for place in (1, 2, 3, 4) for seed, (one, value) in enumerate(zip(held, values, strict=True))]  # fmt: skip
    return pd.DataFrame(rows, columns=findings.DOTS)


def test_seeds_without_a_premise_are_shown_and_do_not_count(tmp_path):
    table = with_premises((True, True, True, False, True), (0.5, 0.5, 0.5, 0.0, 0.5))
    found, parts = findings.judge(table)
    first = parts.query("claim == 'S2' and component == 1").iloc[0]
    assert (first["seeds"], first["premise"], first["estimate"], first["answer"]) == (4, "4 of 5", -0.5, SUPPORTED)
    run = results.Run("cpu", "embedded", 0, tmp_path / "cpu" / "embedded" / "seed-0")
    rows = results.checked("components", findings.component_rows(run, parts, table))
    shown = rows[(rows["metric"] == "premise") & (rows["component"] == "1")]
    assert dict(zip(shown["of_seed"], shown["value"], strict=True)) == {"0": 0.5, "1": 0.5, "2": 0.5, "3": 0.05, "4": 0.5}
    assert found.set_index("claim").loc["S2", "reason"] == ""


def test_too_few_seeds_with_a_premise_are_named_as_the_reason():
    found, _ = findings.judge(with_premises((True, False, False, False, True)))
    row = found.set_index("claim").loc["S2"]
    assert row["verdict"] == INCONCLUSIVE
    assert row["reason"].startswith("not refused, minus the update's: no premise: at least 20 points of damage in 2 of 5 seeds")
    none = findings.judge(with_premises((False,) * 5))[0].set_index("claim").loc["S2"]
    assert (none["verdict"], none["seeds"]) == (INCONCLUSIVE, 0)  # measured, and nothing that counts
    assert "in 0 of 5 seeds" in none["reason"]


def test_seeds_that_say_opposite_things_are_counted_and_not_only_widened():
    rows = [("S1", 1, "embedded", seed, v, v - 0.02, v + 0.02, 100) for seed, v in enumerate((0.5, 0.01, 0.5))]
    found, parts = findings.judge(pd.DataFrame(rows, columns=findings.DOTS[:8]))
    assert parts.query("claim == 'S1' and component == 1").iloc[0]["took"] == "so in 2 of 3 seeds, the opposite in 1"
    assert "so in 2 of 3 seeds" in found.set_index("claim").loc["S1", "reason"]


# ---------------------------------------------------------------- one claim, several models


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([S], S), ([C], C), ([U], U), ([N], NOT_RUN),
        ([S, S, S], S), ([C, C], C), ([S, C], MIXED), ([C, S], MIXED), ([U, S, C], MIXED), ([S, S, C], MIXED),
        ([U, S], U), ([U, C], MIXED), ([U, N], U), ([U, S, S], U), ([S, U], U), ([C, U], MIXED), ([S, N], U), ([C, U, N], MIXED),
        ([S, S, U], U),
        ([N, S], U), ([N, S, C], MIXED), ([N, N], NOT_RUN),
    ],
)  # fmt: skip
def test_a_claim_is_a_conjunction(answers, wanted):
    """The fault: a headline that was decided carried parts that were not."""
    assert verdict(answers) == wanted


def test_a_verdict_keeps_to_its_rules_whatever_the_answers():
    for length in (1, 2, 3):
        for answers in itertools.product((S, C, U, N), repeat=length):
            found = verdict(answers)
            assert (found == NOT_RUN) == (set(answers) == {N})
            assert (found in (S, C)) == (set(answers) in ({S}, {C}))
            assert (found == MIXED) == (C in answers and set(answers) != {C})
            assert found == verdict((answers[0], *answers[:0:-1]))  # the order of the others is nothing


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([S, S], S), ([C, C], C), ([S, C], MIXED), ([S, U], U), ([C, U], U), ([S, C, U], MIXED), ([S, MIXED], MIXED),
        ([MIXED, U], U), ([MIXED, MIXED], MIXED), ([N, S], S), ([N, N], NOT_RUN), ([N, U], U), ([U, U], U), ([N], NOT_RUN),
    ],
)  # fmt: skip
def test_models_must_agree(verdicts, wanted):
    for order in itertools.permutations(verdicts):
        assert over_models(order) == wanted


# ---------------------------------------------------------------- from dots to findings


def dots(claimed=True, seeds=range(3), model="embedded", skip=(), half=0.2, shift=0.0):
    """What `by_seed` gives: every component three steps beyond its bound on the claimed side, or on the other."""
    rows = []
    for claim, found in CLAIMS.items():
        for place, part in enumerate(found.components, 1):
            unit = UNITS[part.unit]
            away = {"above": 3.0, "below": -3.0, "within": 0.0 if claimed else 3.0 + part.margin / unit.step}[part.side]
            value = float(np.clip(part.bound + unit.step * (away if claimed or part.side == "within" else -away), *unit.bounds))
            reach = half * unit.step
            rows += [(claim, place, model, seed, value + shift * seed * unit.step, value + shift * seed * unit.step - reach,
                      value + shift * seed * unit.step + reach, 100)
                     for seed in seeds if (claim, place) not in skip]  # fmt: skip
    return pd.DataFrame(rows, columns=findings.DOTS[:8])


def verdicts(table):
    return dict(zip(*findings.judge(table)[0][["claim", "verdict"]].to_numpy().T, strict=True))


@pytest.mark.parametrize(("claimed", "wanted"), [(True, SUPPORTED), (False, CONTRADICTED)])
def test_a_claim_is_judged_either_way(claimed, wanted):
    table, parts = findings.judge(dots(claimed))
    assert list(table.columns) == findings.COLUMNS
    assert list(table["claim"]) == list(CLAIMS)
    assert set(table["verdict"]) == {wanted}
    assert set(parts["answer"]) == {wanted}
    assert list(table["chapter"]) == [claim.chapter for claim in CLAIMS.values()]
    assert (table["seeds"] == 3).all()
    assert (table["n"] == 300).all()


def test_a_finding_shows_the_headline_over_seeds():
    table, parts = findings.judge(dots(shift=0.1))
    for row in table.to_dict("records"):
        head = CLAIMS[row["claim"]].components[0]
        each = [Estimate(*e) for e in dots(shift=0.1).query(f"claim == '{row['claim']}' and component == 1")
                [["value", "low", "high", "n"]].itertuples(index=False, name=None)]  # fmt: skip
        e = over_seeds(each, LEVELS[head.side], UNITS[head.unit].bounds)
        assert [row["estimate"], row["low"], row["high"], row["n"]] == [e.value, e.low, e.high, e.n]
        first = parts[(parts["claim"] == row["claim"]) & (parts["component"] == 1)].iloc[0]
        assert first["estimate"] == row["estimate"]


def test_one_seed_of_anything_is_inconclusive():
    for count in (1, 2):
        assert set(verdicts(dots(seeds=range(count))).values()) == {INCONCLUSIVE}


def test_what_was_not_measured():
    heads = {(claim, 1) for claim in CLAIMS}
    assert set(verdicts(dots(skip=heads)).values()) == {INCONCLUSIVE}
    conjuncts = {(name, i) for name, claim in CLAIMS.items() for i, one in enumerate(claim.components, 1) if not one.beside}
    table, _ = findings.judge(dots(skip=conjuncts))
    assert set(table["verdict"]) == {NOT_RUN}
    assert table[["estimate", "low", "high"]].isna().all(axis=None)
    assert (table[["n", "seeds"]] == 0).all(axis=None)
    assert verdicts(dots(skip={("S2", 3)}))["S2"] == INCONCLUSIVE  # a conjunct is missing
    assert verdicts(dots(skip={("M1", 5)}))["M1"] == SUPPORTED  # what stands beside is none
    table, parts = findings.judge(dots(seeds=[]))
    assert set(table["verdict"]) == {NOT_RUN}
    assert len(parts) == sum(len(claim.components) for claim in CLAIMS.values())


def test_the_order_of_seeds_is_irrelevant():
    table = dots(shift=0.3)
    first = findings.judge(table)
    for seed in range(5):
        again = findings.judge(table.sample(frac=1, random_state=seed))
        for one, other in zip(first, again, strict=True):
            pd.testing.assert_frame_equal(one, other)


def test_parts_that_contradict_one_another_make_a_claim_mixed():
    other = dots(False)
    table = pd.concat([dots(skip={("S1", 2)}), other[(other["claim"] == "S1") & (other["component"] == 2)]])
    found = verdicts(table)
    assert found.pop("S1") == MIXED
    assert set(found.values()) == {SUPPORTED}


def test_several_models():
    both = pd.concat([dots(), dots(False, model="other")])
    assert set(verdicts(both).values()) == {MIXED}
    agreeing = pd.concat([dots(), dots(model="other", half=0.4)])
    table, parts = findings.judge(agreeing)
    assert set(table["verdict"]) == {SUPPORTED}
    assert (table["seeds"] == 6).all()
    for row in table.to_dict("records"):
        own = parts[(parts["claim"] == row["claim"]) & (parts["component"] == 1)]
        assert (row["low"], row["high"]) == (own["low"].min(), own["high"].max())
        assert row["low"] <= row["estimate"] <= row["high"]
    few = pd.concat([dots(), dots(model="other", seeds=[0])])
    assert set(verdicts(few).values()) == {INCONCLUSIVE}
    elsewhere = pd.concat([dots(), dots(model="other", skip={("M6", 1), ("M6", 2)})])
    assert verdicts(elsewhere)["M6"] == SUPPORTED


# ---------------------------------------------------------------- runs


def overlap_table(value):
    """A table that speaks to claim Q1 alone."""
    row = {"model": "tiny", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": "",
           "strength": np.nan, "source": "nf4-both", "module": "all", "k": "8", "metric": "overlap", "value": value,
           "low": value - 0.1, "high": value + 0.1, "n": 21}  # fmt: skip
    return results.checked("subspaces", pd.DataFrame([row]))


def test_a_headline_that_no_monitor_could_show_leaves_the_claim_open_and_the_next_conjunct_is_shown():
    """Where monitors of the last token are too weak to lose anything, those of the mean still say what they say."""
    dots = pd.DataFrame([("M3", 2, "tiny", seed, 0.3, 0.2, 0.4, 9) for seed in range(3)], columns=findings.DOTS[:8])
    table, parts = findings.judge(dots)
    row = table.set_index("claim").loc["M3"]
    assert (row["verdict"], row["seeds"]) == (INCONCLUSIVE, 3)
    assert row["estimate"] == pytest.approx(0.3)
    assert "last token: not run, or no such monitor caught 30 % before the update" in row["reason"]
    assert set(parts.loc[parts["claim"] == "M1", "answer"]) == {NOT_RUN}  # control: nothing of it was measured
    assert table.set_index("claim").loc["M1", "verdict"] == NOT_RUN


def test_runs_of_three_seeds_become_a_finding():
    runs = [("tiny", seed, {"subspaces": overlap_table(0.8 + seed / 100)}) for seed in (2, 0, 1)]
    table, parts = findings.collect(runs)
    row = table.set_index("claim").loc["Q1"]
    assert row["verdict"] == INCONCLUSIVE
    assert row["reason"] == "not refused, minus that with the exact V: not run"
    assert (row["estimate"], row["n"], row["seeds"]) == (pytest.approx(0.81), 63, 3)
    assert set(table.loc[table["claim"] != "Q1", "verdict"]) == {NOT_RUN}
    assert parts.set_index(["claim", "component"]).loc[("Q1", 2), "answer"] == NOT_RUN
    seen = findings.by_seed(runs)
    assert list(seen.columns) == findings.DOTS
    assert seen["premise"].isna().all()
    assert seen[["model", "seed"]].to_numpy().tolist() == [["tiny", 0], ["tiny", 1], ["tiny", 2]]
    assert list(findings.collect([])[0]["verdict"]) == [NOT_RUN] * len(CLAIMS)


def test_a_run_given_twice_is_refused():
    runs = [("tiny", seed, {}) for seed in (0, 1, 0)]
    with pytest.raises(StudyError, match="model 'tiny', seed 0 is given twice") as caught:
        findings.collect(runs)
    assert "\n" not in str(caught.value)


def test_tables_are_read_when_they_are_asked_for_and_only_then(tmp_path, monkeypatch):
    folder, reads = tmp_path / "cpu" / "tiny" / "seed-4", []
    (folder / "tables").mkdir(parents=True)
    overlap_table(0.8).to_parquet(folder / "tables" / "subspaces.parquet")
    (folder / "tables" / "triage.parquet").write_bytes(b"torn")
    real = pd.read_parquet
    monkeypatch.setattr(pd, "read_parquet", lambda path: reads.append(path.stem) or real(path))
    tables = findings.run_tables(folder)
    assert (list(tables), len(tables), reads) == (["subspaces", "triage"], 2, [])
    assert (tables.run.profile, tables.run.model, tables.run.seed) == ("cpu", "tiny", 4)
    pd.testing.assert_frame_equal(tables["subspaces"], overlap_table(0.8))
    assert tables["subspaces"] is tables["subspaces"]
    assert reads == ["subspaces"]
    with pytest.raises(KeyError):
        tables["neurons"]
    assert "neurons" not in tables
    with pytest.raises(StudyError, match=r"triage\.parquet cannot be read"):
        tables["triage"]


# ---------------------------------------------------------------- as a reader sees them


PLAIN = re.compile(r"[<>&|*_`{}$\\#\n]")


@pytest.mark.parametrize(
    "table", [dots(), dots(False), dots(seeds=[0]), dots(seeds=[]), pd.concat([dots(), dots(model="other")])],
    ids=["claimed", "against", "one seed", "nothing", "two models"],
)  # fmt: skip
def test_every_sentence_is_there_and_plain(table):
    found, parts = findings.judge(table)
    texts = findings_tables.claim_sentences(found, parts)
    wanted = {f"{claim.lower()}-{key}" for claim, judged in CLAIMS.items()
              for key in ("verdict", "estimate", "words", "literature", "reason",
                          *range(1, len(judged.components) + 1))}  # fmt: skip
    assert set(texts) == wanted
    for text in [*texts.values(), *findings_tables.claims_overview(found).astype(str).to_numpy().ravel()]:
        assert text
        assert "nan" not in text
        assert not PLAIN.search(text), text


def test_sentences_say_the_numbers():
    found, parts = findings.judge(dots())
    texts = findings_tables.claim_sentences(found, parts)
    assert texts["s1-verdict"] == "supported"
    assert texts["s1-estimate"] == "+20 points [+19, +21] (3 seeds, n = 300)"
    assert texts["s1-1"] == "not refused, minus the aligned's: +20 points [+19, +21], claimed above +5 points (supported)"
    assert texts["n2-1"].endswith("0 points [-1, +1], claimed between -5 and +5 points (supported)")
    assert texts["m1-1"] == "mean AUROC drop: last token: -0.060 AUROC [-0.066, -0.054], claimed below +0.03 AUROC (supported)"
    assert findings_tables.claim_sentences(*findings.judge(dots(seeds=[])))["s1-estimate"] == "(not in this run)"
    assert texts["s1-words"] == f"N{texts['s1-1'][1:]}. N{texts['s1-2'][1:]}."
    assert texts["m1-5"].endswith("claimed below 25 % (supported, beside the claim)")
    assert texts["s1-literature"] == CLAIMS["S1"].literature
    two = findings_tables.claim_sentences(*findings.judge(pd.concat([dots(), dots(False, model="other")])))
    assert two["s1-1"].startswith("embedded, not refused")
    assert "; other, not refused" in two["s1-1"]


ROWS = pd.DataFrame({"of_seed": []})


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "no run"), ([("tiny", 4)], "1 run (tiny, seed 4)"),
     ([("b", 1), ("a", 2), ("b", 0)], "3 runs (a, seed 2; b, seeds 0 and 1)"),
     ([("a", 2), ("a", 0), ("a", 1)], "3 runs (a, seeds 0, 1 and 2)")],
)  # fmt: skip
def test_the_runs_behind_a_page_are_named(names, words):
    table = findings.judge(dots(seeds=[]))[0]
    assert findings_tables.about(table, [(model, seed, {}) for model, seed in names], ROWS)["runs-words"] == words


def test_verdicts_are_counted():
    gone = {("S1", 2), *(("M6", place) for place in range(1, 9))}
    table = pd.concat([dots(skip=gone), dots(False).query("claim == 'S1' and component == 2")])
    counts = findings_tables.about(findings.judge(table)[0], [], ROWS)
    assert {name: count for name, count in counts.items() if name != "runs-words"} == {
        "count-supported": "19", "count-contradicted": "0", "count-mixed": "1", "count-inconclusive": "0", "count-not-run": "1"
    }  # fmt: skip


def test_one_claim_by_hand_is_its_seeds_beside_its_bounds():
    table = findings_tables.claim_by_hand(dots(shift=1.0), "N2")
    assert list(table["seed"]) == [0, 1, 2] * 6
    assert list(table["component"]) == [c.name for c in CLAIMS["N2"].components for _ in range(3)]
    assert table.loc[1, ["ours", "n", "claimed"]].tolist() == ["+5 points [+4, +6]", 100, "between -5 and +5 points"]
    assert len(findings_tables.claim_by_hand(dots(seeds=[]), "S1")) == 0


def test_the_overview_has_a_row_a_claim():
    table = findings_tables.claims_overview(findings.judge(dots(seeds=[0]))[0])
    assert list(table.columns) == ["claim", "in words", "ours", "literature", "verdict", "why", "chapter"]
    assert table["verdict"].unique().tolist() == ["inconclusive (1 seed)"]
    assert table.loc[7, "ours"] == "not refused, minus the aligned's: +20 points [+19, +21]"
    assert set(findings_tables.claims_overview(findings.judge(dots(seeds=[]))[0])["ours"]) == {"not run"}


@pytest.mark.parametrize(
    ("unit", "side", "bound", "margin", "text"),
    [("points", "above", 0.0, 0.0, "above 0 points"), ("share", "below", 0.25, 0.0, "below 25 %"),
     ("AUROC", "below", 0.03, 0.0, "below +0.03 AUROC"), ("points", "within", 0.0, 0.05, "between -5 and +5 points"),
     ("degrees", "above", 0.0, 0.0, "above 0°"), ("overlap", "above", 0.5, 0.0, "above 0.5"),
     ("nats", "below", 0.1, 0.0, "below +0.1 nats")],
)  # fmt: skip
def test_what_a_claim_asks(unit, side, bound, margin, text):
    assert findings_tables.asked(unit, side, bound, margin) == text


def test_what_is_not_measured_is_said():
    assert findings_tables.said("points", math.nan, math.nan, math.nan) == "not measured"


def test_every_text_on_a_claim_knows_the_rows_that_it_was_made_of(tmp_path):
    seeds = dots()
    found, components = findings.judge(seeds)
    run = results.Run("cpu", "embedded", 0, tmp_path / "cpu" / "embedded" / "seed-0")
    table = results.write_table(run, "11_findings", "components", findings.component_rows(run, components, seeds))
    texts = findings_tables.sourced(findings_tables.claim_sentences(found, components), table)
    first = texts["s1-1"].rows.iloc[0]
    part = components[(components["claim"] == "S1") & (components["component"] == 1)].iloc[0]
    assert (first["value"], first["low"], first["high"], first["n"]) == (part["estimate"], part["low"], part["high"], part["n"])
    assert len(texts["s1-words"].rows) == (components["claim"] == "S1").sum()
    assert texts["s1-literature"] == findings_tables.claim_sentences(found, components)["s1-literature"]
    assert set(table["of_seed"]) == {"all", *map(str, seeds["seed"])}
    assert len(table) == len(components) + len(seeds)


def test_numbers_bear_the_name_of_the_part_that_they_are_of():
    """The fault: a claim whose first part no run could measure showed the second part's numbers under the name of the first."""
    first, second = CLAIMS["M3"].components[:2]
    assert findings_tables.head_of("M3", "") == first
    assert findings_tables.head_of("M3", f"{first.name}: {first.lacking}. {second.name}: needs about 6 seeds") == second
    every = ". ".join(f"{part.name}: {part.lacking}" for part in CLAIMS["M3"].components)
    assert findings_tables.head_of("M3", every) == first
    assert findings_tables.head_of("M3", f"tiny, {first.name}: {first.lacking}") == first, "another model may have measured it"


def test_explore_moves_the_bound_of_the_part_that_was_measured():
    """The fault: the interval of one part beside the name and the bound of another."""
    first, second = CLAIMS["N3"].components[:2]  # a share below a bound, and a sameness: nothing of them is alike
    row = dict.fromkeys(("statement", "chapter"), "") | {"claim": "N3", "estimate": 0.01, "low": -0.01, "high": 0.02, "n": 9}
    lacking = {**row, "seeds": 3, "verdict": INCONCLUSIVE, "reason": f"{first.name}: {first.lacking}"}
    found = explore_data._claim(lacking)
    assert (found["name"], found["unit"], found["side"]) == (second.name, second.unit, "within")
    assert explore_data._claim({**lacking, "reason": ""})["name"] == first.name
