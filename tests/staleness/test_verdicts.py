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
from helpers.staleness import interaction, verdicts
from helpers.staleness.drops import COLUMNS, Observed, Reference
from helpers.stats import p_values, paired_aurocs
from helpers.stats.intervals import MARGINS
from helpers.updates import names as update_names
from helpers.updates.names import Variant

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


def monitor(task: str, layer: int, cut: float | None = 2.0, pooling: str = "mean") -> Monitor:
    """A monitor of which name and threshold count here."""
    cuts = {} if cut is None else {"5": cut}
    where = {"task": task, "pooling": pooling, "layer": layer, "depth": layer / 4, "width": 1, "layers": 4}
    known = {"thresholds": cuts, "negatives": 0, "seed": 0, "reads": "", "limit": 0, "model": "tiny", "tensors": {}}
    return Monitor(kind="logistic", strength=0.0, **where, **known)


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
BEST = {task: {"mean": f"{task}/logistic-mean/2"} for task in TASKS}
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
    assert {family for _, family in KINDS.values()} <= set(verdicts.FAMILIES)


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


@pytest.mark.parametrize(
    ("variant", "group"),
    [
        (ALIGNED, ""),
        (replace(ALIGNED, adapter="identity"), "nothing changed"),
        (replace(ALIGNED, precision="fp32"), "nothing changed"),
        (replace(ALIGNED, adapter="base"), "before alignment"),
        *[
            (replace(ALIGNED, precision=name), "formats, 4 bits and more")
            for name in ("nf4", "nf4-dq", "int8", "gptq-4", "rtn-8")
        ],
        *[(replace(ALIGNED, precision=name), "formats below 4 bits") for name in ("rtn-3", "rtn-2")],
        (LORA, "LoRA"),
        (QLORA, "QLoRA"),
        (replace(QLORA, trained_on="rtn-3", precision="rtn-3"), "fine-tunes below 4 bits"),
        (replace(LORA, adapter="lora-dialogue-steps6"), ""),  # another dose of an update: in no mean
        (replace(LORA, adapter="lora-dialogue-rank2"), ""),
        (replace(LORA, restoration="safelora", strength=0.5), ""),
        (replace(LORA, adapter="full-dialogue", serving="merged"), "full fine-tune"),
    ],
)
def test_every_variant_is_averaged_in_its_group_or_in_none(variant, group):
    assert verdicts.group_of(variant) == group
    assert group in {"", *verdicts.GROUPS}


# ---------------------------------------------------------------- doses


def attached(name: str) -> Variant:
    adapter, precision = name.split("@")
    return replace(ALIGNED, adapter=adapter, trained_on=precision, precision=precision, serving="attached")


def weights(**sizes: float) -> pd.DataFrame:
    """The table `weights` with the size of each adapter, of one module and over all; and a format's error."""
    told = (("relative_size", "all", 1), ("relative_size", "m", 9), ("relative_error", "all", 5))
    rows = [(name.replace("_", "-"), *key, size * factor) for name, size in sizes.items() for *key, factor in told]
    table = pd.DataFrame(rows, columns=["adapter", "metric", "module", "value"])
    return pd.concat([table.assign(trained_on="bf16"), table.assign(trained_on="nf4", value=99.0)])


SIZES = {"lora_dialogue": 0.4, "lora_dialogue_rank2": 0.1, "lora_dialogue_steps6": 0.2, "lora_identity_shift": 0.7}


def test_doses_are_those_of_the_update_with_the_most_of_them_smallest_first():
    names = ["lora-dialogue@bf16", "lora-dialogue-rank2@bf16", "lora-dialogue-steps6@bf16", "lora-dialogue-rank4@bf16",
             "lora-dialogue@nf4", "lora-identity-shift@bf16"]  # fmt: skip
    merged = replace(attached("lora-dialogue@bf16"), serving="merged")
    table = verdicts.described(staleness({v: drops(0.1) for v in [*map(attached, names), merged, ALIGNED]}))
    found = verdicts.doses(table, weights(**SIZES))
    assert found["adapter"].tolist() == ["lora-dialogue-rank2", "lora-dialogue-steps6", "lora-dialogue"]  # rank 4: no size
    assert found["size"].tolist() == [0.1, 0.2, 0.4]
    assert found["label"].tolist() == [f"{name} · bf16→bf16 attached" for name in found["adapter"]]
    assert set(found["series"]) == {"lora-dialogue"}


@pytest.mark.parametrize("names", [[], ["lora-dialogue@bf16"], ["lora-dialogue@bf16", "lora-identity-shift@bf16"]])
def test_without_two_doses_of_one_update_there_are_none(names):
    table = verdicts.described(staleness({v: drops(0.1) for v in [*map(attached, names), ALIGNED]}))
    assert verdicts.doses(table, weights(**SIZES)).empty


# ---------------------------------------------------------------- three answers


@pytest.fixture(scope="module")
def answered():
    rtn = replace(ALIGNED, precision="rtn-3")
    aurocs = {ALIGNED: 0.9, VARIANTS[1]: 0.9, rtn: 0.6, LORA: 0.895, QLORA: 0.87, replace(ALIGNED, precision="nf4"): 0.898,
              replace(ALIGNED, precision="rtn-2"): 0.85}  # fmt: skip
    seen = observed(aurocs, pairs=400)
    return seen, verdicts.verdicts(seen, BEST)


def test_an_answer_is_a_test_at_the_margin(answered):
    seen, table = answered
    assert len(table) == 2 * len(TASKS) * (len(seen.scores) - 1)  # two measures; the aligned model is the reference
    for row in table[table["measure"] == "ranking"].itertuples():
        ref, variant = seen.references[row.task], next(v for v in seen.scores if v.label == row.label)
        assert (row.monitor, row.pooling, row.side) == (CHOSEN[row.task]["monitor"], "mean", "AUROC")
        both = np.array([ref.scores[1], seen.scores[variant][row.task][1]])
        e = paired_aurocs.auroc_contrast(ref.test.labels, both, (1, -1), ref.test.groups).estimate
        assert (row.value, row.low, row.high, row.n) == (e.value, e.low, e.high, 800)


def test_holm_is_kept_within_a_family(answered):
    seen, table = answered
    table = table[table["measure"] == "ranking"]
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
    answers = table[table["measure"] == "ranking"].groupby("label")["answer"].agg(set)
    assert answers["rtn-3"] == {"worse"}
    assert answers["identity"] == {"preserved"}  # the same scores bit by bit
    assert answers["nf4"] == {"preserved"}
    assert "inconclusive" in answers["lora-dialogue · nf4→nf4 attached"]  # about the margin


def test_an_unsure_answer_names_the_texts_it_would_take(answered):
    _, table = answered
    names = list(dict.fromkeys(table["label"]))
    for measure, rows in table.groupby("measure"):
        shown = staleness_tables.verdict_table(table, ["absent", *reversed(names)], "mean", measure)
        assert list(shown.columns) == ["variant", *TASKS]
        assert list(shown["variant"]) == names[::-1]
        for row in rows.itertuples():
            cell = shown.loc[shown["variant"] == row.label, row.task].item()
            side = "" if measure == "ranking" else f"{row.side} "
            assert cell.startswith(f"{side}{row.value:+.2f} [{row.low:+.2f}, {row.high:+.2f}] {row.answer}")
            assert (f"of {row.needed:,})" in cell) == (row.answer == "inconclusive" and row.needed < paired_aurocs.NEVER)
    assert staleness_tables.verdict_table(table, names, "last", "ranking").empty


def test_an_unsure_answer_always_takes_more_texts_than_there_were(answered):
    """Holm asks more of a family's answers than 5 % each, and so does the n that is named."""
    _, table = answered
    unsure = table[(table["answer"] == "inconclusive") & (table["measure"] == "ranking")]
    assert len(unsure)
    assert (unsure["needed"] > unsure["n"]).all()


def test_answers_are_counted_by_family_pooling_and_measure(answered):
    _, table = answered
    counts = staleness_tables.answers(table)
    assert list(counts.columns) == ["family", "pooling", "measure", "worse", "preserved", "inconclusive"]
    ranking = counts[counts["measure"] == "ranking"].set_index("family").drop(columns=["pooling", "measure"])
    assert list(ranking.index) == ["control", "quantization", "LoRA", "QLoRA"]
    assert ranking.sum(axis=1).to_dict() == {"control": 2, "quantization": 6, "LoRA": 2, "QLoRA": 2}
    assert counts[["worse", "preserved", "inconclusive"]].to_numpy().sum() == len(table)
    assert ranking.loc["control", "preserved"] == 2


def test_tied_scores_get_no_answer():
    seen = observed({QLORA: 0.8}, cut=None)
    for scores in seen.scores[QLORA].values():
        scores[:] = 0.0
    table = verdicts.verdicts(seen, BEST)
    assert (table["answer"] == "inconclusive").all()
    assert set(table["measure"]) == {"ranking"}  # without a threshold there is none to keep
    assert table["value"].isna().all()
    assert "undefined" in staleness_tables.verdict_table(table, [QLORA.label], "mean", "ranking").loc[0, "toxicity"]


@pytest.mark.parametrize(("shift", "side"), [(2.0, "alarms"), (-2.0, "caught")])
def test_scores_that_move_together_keep_the_ranking_and_break_the_threshold(shift, side):
    """Up, and the harmless are flagged; down, and less is caught: either is worse. Nothing moved: preserved, both of them."""
    nf4, same = replace(ALIGNED, precision="nf4"), replace(ALIGNED, adapter="identity")
    table = verdicts.verdicts(observed({nf4: 0.9, same: 0.9}, pairs=600, shift={nf4: shift}), BEST)
    told = table.set_index(["label", "measure"])
    assert set(told.loc[("nf4", "ranking"), "answer"]) == {"preserved"}
    assert set(told.loc[("nf4", "threshold"), "answer"]) == {"worse"}
    assert set(told.loc[("nf4", "threshold"), "side"]) == {side}
    assert (told.loc[("nf4", "threshold"), "low"] > 0.05).all()
    assert set(told.loc[("identity", "threshold"), "answer"]) == {"preserved"}


def test_a_threshold_is_worse_by_either_side_at_half_the_level_each():
    rtn = replace(ALIGNED, precision="rtn-3")
    seen = observed({rtn: 0.9}, shift={rtn: -0.3})
    (row,) = verdicts.verdicts(seen, {"toxicity": BEST["toxicity"]}).query("measure == 'threshold'").itertuples()
    ref = seen.references["toxicity"]
    change = (ref.scores[1] > 2.0).astype(float) - (seen.scores[rtn]["toxicity"][1] > 2.0)
    sides = [interaction.mean_contrast(sign * change[ref.test.labels == label], ref.test.groups[ref.test.labels == label], 1.0)
             for label, sign in ((1, 1), (0, -1))]  # fmt: skip
    assert row.p_worse == pytest.approx(min(1, 2 * min(paired_aurocs.worse(side, 0.05) for side in sides)))
    assert row.p_preserved == pytest.approx(max(paired_aurocs.preserved(side, 0.05) for side in sides))
    assert row.value == max(side.estimate.value for side in sides)


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
