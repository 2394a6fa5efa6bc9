"""Verdicts: the answers follow their p values, Holm's are those by hand, and tables hold just the series and cases they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri
from support import planted

from helpers.figures import staleness_tables
from helpers.monitors import readings
from helpers.monitors.frozen import Monitor
from helpers.staleness import verdicts
from helpers.staleness.drops import COLUMNS, Observed, Reference
from helpers.stats import intervals, p_values, paired_aurocs
from helpers.stats.intervals import MARGINS
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, Variant

TASKS = ("toxicity", "jailbreak")
ALIGNED = Variant("tiny", 3)
LORA = replace(ALIGNED, adapter="lora-dialogue", trained_on="bf16", serving="attached")
QLORA = replace(LORA, precision="nf4", trained_on="nf4")
KINDS = {  # label and family of every kind of variant
    ALIGNED: ("aligned", "control"),
    replace(ALIGNED, adapter="identity"): ("identity", "control"),
    replace(ALIGNED, precision="fp32"): ("fp32", "control"),
    replace(ALIGNED, adapter="base"): ("base", "before alignment"),
    replace(ALIGNED, precision="rtn-3"): ("rtn-3", "quantization"),
    LORA: ("lora-dialogue · bf16→bf16 attached", "LoRA"),
    QLORA: ("lora-dialogue · nf4→nf4 attached", "QLoRA"),
    replace(LORA, precision="nf4"): ("lora-dialogue · bf16→nf4 attached", "QLoRA"),
    replace(LORA, adapter="full-dialogue", serving="merged"): ("full-dialogue · bf16→bf16 merged", "full fine-tune"),
    replace(LORA, adapter="qat-dialogue", precision="rtn-4", trained_on="rtn-4", serving="merged-requantized"): (
        "qat-dialogue · rtn-4→rtn-4 merged-requantized", "QAT",
    ),
}  # fmt: skip


def monitor(task: str, layer: int, cut: float | None = 2.0) -> Monitor:
    """A monitor of which name and threshold count here."""
    return Monitor(task, "logistic", "mean", layer, layer / 4, 1, 4, 0.0, {} if cut is None else {"5": cut}, 0, 0, "", "tiny", {})


def observed(aurocs: dict[Variant, float], cut: float | None = 2.0, pairs: int = 150, shift=()) -> Observed:
    """Two monitors a task; scores of every variant with about the given AUROC, from the aligned model's 0.9; some shifted."""
    references, scores, rng = {}, {v: {} for v in aurocs}, np.random.default_rng(1)
    for task in TASKS:
        rows = readings.rows_of(planted.plan(task, pairs=(2, 2, pairs)), task, "test")
        noise = rng.normal(size=(2, 2 * pairs))
        at = {a: noise + ndtri(a) * np.sqrt(2) * rows.labels for a in {0.9, *aurocs.values()}}
        references[task] = Reference(task, (monitor(task, 1, cut), monitor(task, 2, cut)), rows, rows, np.zeros(0), at[0.9], {})
        for variant, auroc in aurocs.items():
            own = 0.0 if auroc == 0.9 else 0.1 * rng.normal(size=noise.shape)
            scores[variant][task] = at[auroc] + own + dict(shift).get(variant, 0.0)
    return Observed(pd.DataFrame(), references, scores)


CHOSEN = {task: {"monitor": f"{task}/logistic-mean/2", "of": 2} for task in TASKS}
VARIANTS = list(KINDS)


# ---------------------------------------------------------------- families


def staleness(values: dict[Variant, dict[tuple[str, str, int, str], float]]) -> pd.DataFrame:
    """A table `staleness` with these values: variant -> (task, probe, layer, metric) -> value."""
    tables = []
    for variant, rows in values.items():
        found = [(task, probe, layer, layer / 4, metric, x, x, x, 100) for (task, probe, layer, metric), x in rows.items()]
        tables.append(update_names.keyed(variant, pd.DataFrame(found, columns=COLUMNS)))
    return pd.concat(tables, ignore_index=True)


def drops(value: float) -> dict:
    return {("toxicity", "logistic-mean", 2, "auroc_drop"): value}


def test_every_kind_of_variant_has_its_label_and_family():
    table = verdicts.described(staleness({v: drops(0.0) for v in VARIANTS}))
    assert list(zip(table["label"], table["family"], strict=True)) == list(KINDS.values())
    assert set(verdicts.FAMILIES) == {family for _, family in KINDS.values()}


def test_the_order_is_by_family_and_leaves_the_reference_out():
    shuffled = [VARIANTS[i] for i in np.random.default_rng(0).permutation(len(VARIANTS))]
    found = verdicts.order(verdicts.described(staleness({v: drops(0.0) | {("t", "lda", 1, "x"): 0.0} for v in shuffled})))
    families = [dict(KINDS.values())[label] for label in found]
    assert sorted(families, key=verdicts.FAMILIES.index) == families
    assert len(found) == len(set(found)) == len(VARIANTS) - 1
    assert "aligned" not in found
    labels = [KINDS[v][0] for v in shuffled]
    qlora = [label for label in found if dict(KINDS.values())[label] == "QLoRA"]
    assert qlora == sorted(qlora, key=labels.index)  # within a family as in the table


# ---------------------------------------------------------------- doses


RECIPES = {
    "lora-dialogue@bf16": {"rank": 16, "steps": 100},
    "lora-dialogue-rank4@bf16": {"rank": 4, "steps": 100},
    "lora-dialogue-steps20@bf16": {"rank": 16, "steps": 20},
    "lora-dialogue-rank4-steps20@bf16": {"rank": 4, "steps": 20},
    "lora-dialogue@nf4": {"rank": 16, "steps": 100},
    "lora-dialogue-harm10@bf16": {"rank": 16, "steps": 100},
    "lora-dialogue-harm10-rank4@bf16": {"rank": 4, "steps": 100},
}


def attached(name: str) -> Variant:
    adapter, precision = name.split("@")
    return replace(ALIGNED, adapter=adapter, trained_on=precision, precision=precision, serving="attached")


def doses(names, *others) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of those variants, and the rows that were added for doses."""
    table = staleness({v: drops(0.1) for v in [*map(attached, names), *others]})
    found = verdicts.with_dose(table, RECIPES)
    pd.testing.assert_frame_equal(found.loc[: len(table) - 1, list(table)], table)
    return table, found[len(table) :]


def test_updates_trained_in_several_doses_stand_once_more_with_each():
    elsewhere = [replace(attached("lora-dialogue-rank4@bf16"), precision="nf4"), replace(ALIGNED, precision="nf4"), ALIGNED]
    _, added = doses(RECIPES, *elsewhere)
    found = {kind: sorted(zip(part["adapter"], part["dose_value"], strict=True)) for kind, part in added.groupby("dose_kind")}
    assert found == {  # not the one whose rank and steps both changed, nor the one that has no other dose on nf4
        "rank": [
            ("lora-dialogue", 16),
            ("lora-dialogue-harm10", 16),
            ("lora-dialogue-harm10-rank4", 4),
            ("lora-dialogue-rank4", 4),
        ],
        "steps": [("lora-dialogue", 100), ("lora-dialogue-steps20", 20)],
    }
    assert (added["precision"] == "bf16").all()


@pytest.mark.parametrize(
    "names", [[], ["lora-dialogue@bf16"], ["lora-dialogue@bf16", "lora-dialogue@nf4", "lora-dialogue-rank4-steps20@bf16"]]
)
def test_without_several_doses_nothing_is_added(names):
    table, added = doses(names, ALIGNED, replace(ALIGNED, precision="nf4"))
    assert added.empty
    assert len(table) == len(names) + 2


# ---------------------------------------------------------------- three answers


@pytest.fixture(scope="module")
def answered():
    rtn = replace(ALIGNED, precision="rtn-3")
    aurocs = {ALIGNED: 0.9, VARIANTS[1]: 0.9, rtn: 0.6, LORA: 0.895, QLORA: 0.87, replace(ALIGNED, precision="nf4"): 0.898,
              replace(ALIGNED, precision="rtn-2"): 0.85}  # fmt: skip
    seen = observed(aurocs, pairs=400)
    return seen, verdicts.verdicts(seen, CHOSEN)


def test_an_answer_is_a_test_at_the_margin(answered):
    seen, table = answered
    assert len(table) == len(TASKS) * (len(seen.scores) - 1)  # the aligned model is the reference
    for row in table.itertuples():
        ref, variant = seen.references[row.task], next(v for v in seen.scores if v.label == row.label)
        assert row.monitor == CHOSEN[row.task]["monitor"]
        both = np.array([ref.scores[1], seen.scores[variant][row.task][1]])
        e = paired_aurocs.auroc_contrast(ref.test.labels, both, (1, -1), ref.test.groups).estimate
        assert (row.value, row.low, row.high, row.n) == (e.value, e.low, e.high, 800)


def test_holm_is_kept_within_a_family(answered):
    seen, table = answered
    assert {family: len(part) for family, part in table.groupby("family")} == {
        "control": 2, "quantization": 6, "LoRA": 2, "QLoRA": 2,
    }  # fmt: skip
    for _, part in table.groupby("family"):
        for name, test in (("p_worse", paired_aurocs.worse), ("p_preserved", paired_aurocs.preserved)):
            raw = []
            for row in part.itertuples():
                ref, variant = seen.references[row.task], next(v for v in seen.scores if v.label == row.label)
                both = np.array([ref.scores[1], seen.scores[variant][row.task][1]])
                raw.append(test(paired_aurocs.auroc_contrast(ref.test.labels, both, (1, -1), ref.test.groups), MARGINS["auroc"]))
            np.testing.assert_allclose(part[name], p_values.holm(raw), rtol=1e-12)
            assert (part[name] >= np.array(raw) - 1e-15).all()


def test_the_words_follow_the_p_values(answered):
    _, table = answered
    worse, preserved = table["p_worse"] <= paired_aurocs.ALPHA, table["p_preserved"] <= paired_aurocs.ALPHA
    assert not (worse & preserved).any()
    assert (table.loc[worse, "answer"] == "worse").all()
    assert (table.loc[preserved, "answer"] == "preserved").all()
    assert (table.loc[~worse & ~preserved, "answer"] == "inconclusive").all()
    answers = table.groupby("label")["answer"].agg(set)
    assert answers["rtn-3"] == {"worse"}
    assert answers["identity"] == {"preserved"}  # the same scores bit by bit
    assert answers["nf4"] == {"preserved"}
    assert "inconclusive" in answers["lora-dialogue · nf4→nf4 attached"]  # about the margin


def test_an_unsure_answer_names_the_texts_it_would_take(answered):
    _, table = answered
    names = list(dict.fromkeys(table["label"]))
    shown = staleness_tables.verdict_table(table, ["absent", *reversed(names)])
    assert list(shown.columns) == ["variant", *TASKS]
    assert list(shown["variant"]) == names[::-1]
    for row in table.itertuples():
        cell = shown.loc[shown["variant"] == row.label, row.task].item()
        assert cell.startswith(f"{row.value:+.2f} [{row.low:+.2f}, {row.high:+.2f}] {row.answer}")
        assert (f"of {row.needed:,})" in cell) == (row.answer == "inconclusive")


def test_an_unsure_answer_always_takes_more_texts_than_there_were(answered):
    """Holm asks more of a family's answers than 5 % each, and so does the n that is named."""
    _, table = answered
    unsure = table[table["answer"] == "inconclusive"]
    assert len(unsure)
    assert (unsure["needed"] > unsure["n"]).all()


def test_answers_are_counted_by_family(answered):
    _, table = answered
    counts = staleness_tables.answers(table).set_index("family")
    assert list(counts.index) == ["control", "quantization", "LoRA", "QLoRA"]
    assert list(counts.columns) == ["worse", "preserved", "inconclusive"]
    assert counts.sum(axis=1).to_dict() == {"control": 2, "quantization": 6, "LoRA": 2, "QLoRA": 2}
    assert counts.to_numpy().sum() == len(table)
    assert counts.loc["control", "preserved"] == 2


def test_tied_scores_get_no_answer():
    seen = observed({QLORA: 0.8})
    for scores in seen.scores[QLORA].values():
        scores[:] = 0.0
    table = verdicts.verdicts(seen, CHOSEN)
    assert (table["answer"] == "inconclusive").all()
    assert table["value"].isna().all()
    assert "undefined" in staleness_tables.verdict_table(table, [QLORA.label]).loc[0, "toxicity"]


# ---------------------------------------------------------------- the broken threshold


def test_the_planted_case_is_picked():
    up, down, worst = replace(ALIGNED, precision="nf4"), replace(ALIGNED, precision="rtn-4"), replace(ALIGNED, precision="rtn-2")
    seen = observed({ALIGNED: 0.9, LORA: 0.9, up: 0.9, down: 0.9, worst: 0.6}, shift={up: 1.0, down: -1.0, worst: 9.0})
    case = verdicts.broken_threshold(seen, CHOSEN)
    assert case.names == ("aligned", "nf4")  # `worst` moved further, but lost its ranking
    task = case.monitor.split("/")[0]
    assert case.monitor == CHOSEN[task]["monitor"]
    np.testing.assert_array_equal(case.groups, seen.references[task].test.groups)
    np.testing.assert_array_equal(case.before, seen.references[task].scores[1])
    np.testing.assert_array_equal(case.after, case.before + 1.0)
    assert case.threshold == 2.0
    moved = {}
    for name in TASKS:
        harmless, before = seen.references[name].test.labels == 0, seen.references[name].scores[1]
        moved[name] = np.mean(before[harmless] + 1.0 > 2.0) - np.mean(before[harmless] > 2.0)
    assert task == max(moved, key=moved.get)


def test_without_a_kept_ranking_or_a_threshold_there_is_no_case():
    rtn = replace(ALIGNED, precision="rtn-2")
    assert verdicts.broken_threshold(observed({rtn: 0.6}, shift={rtn: 9.0}), CHOSEN) is None
    assert verdicts.broken_threshold(observed({rtn: 0.9}, cut=None, shift={rtn: 9.0}), CHOSEN) is None
    assert verdicts.broken_threshold(observed({rtn: 0.9}, shift={rtn: 9.0}), CHOSEN, level="1") is None


# ---------------------------------------------------------------- shares


def flags(*values: float, flag: str = "stale_auroc_05") -> dict:
    """That flag of monitors, two at each place (layer and pooling), and of a control and a summary that do not count."""
    names = ("mlp-mean", "lda-mean", "mlp-last", "lda-last")
    found = {("toxicity", names[i % 4], 1 + i // 4, flag): x for i, x in enumerate(values)}
    return found | {("toxicity", f"{CONTROL}-mean", 1, flag): 1.0, ("toxicity", "all", 0, f"share_{flag}"): 1.0}


def test_shares_count_monitors_and_leave_controls_out():
    rtn = replace(ALIGNED, precision="rtn-3")
    nf4 = replace(ALIGNED, precision="nf4")
    values = {ALIGNED: flags(0, 0), rtn: flags(1, 1, 0, 0, 1, 0), nf4: flags(0, 1, 0, 0, 0, 0), QLORA: flags(1, 1)}
    table = verdicts.described(staleness(values))
    shown = staleness_tables.family_table(table)
    assert list(shown["family"]) == ["control", "quantization", "QLoRA"]
    row = shown.set_index("family").loc["quantization"]
    assert (row["task"], row["variants"]) == ("toxicity", 2)
    units = [
        f"{label}/{place}" for label in ("rtn-3", "nf4") for place in ("mean/1", "mean/1", "last/1", "last/1", "mean/2", "mean/2")
    ]
    e = intervals.rate_interval([1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0], units)
    assert row["AUROC lost 0.05"] == f"33 % [{100 * e.low:.0f}, {100 * e.high:.0f}] of 12"
    assert row["AUROC lost 0.10"] == "–"  # never measured


def test_sentences_say_what_was_not_in_the_run():
    rtn = replace(ALIGNED, precision="rtn-3")
    found = staleness_tables.staleness_sentences(
        verdicts.described(staleness({ALIGNED: flags(1), rtn: flags(1, 0), QLORA: flags(0, 0, 0)}))
    )
    assert set(found) == {"stale-quantized", "stale-lora", "stale-qlora"}
    assert found["stale-lora"] == "–"
    assert found["stale-quantized"].startswith("50 % [")
    assert found["stale-qlora"].startswith("0 % [0, ")
    assert found["stale-qlora"].endswith("] of 3")


def test_the_resampled_angle_of_a_probe_is_the_middle_one():
    probes = ["logistic-mean"] * 3 + ["lda-mean", "logistic-mean"]
    table = pd.DataFrame({"probe": probes, "metric": ["resampled_angle"] * 4 + ["auroc"], "value": [10.0, 40.0, 30.0, 5.0, 99.0]})
    assert staleness_tables.resampled_angles(table) == {"logistic-mean": 30.0, "lda-mean": 5.0}
    assert staleness_tables.resampled_angles(table[4:]) == {}
