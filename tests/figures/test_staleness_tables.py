"""What chapter 05 says in tables and sentences: one pooling and measure at a time, the weak apart, and words for each outcome."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers.figures import staleness_tables as told
from helpers.staleness import cohorts, verdicts
from helpers.staleness.drops import COLUMNS
from helpers.stats import intervals
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, SIMULATED, Variant

ALIGNED = Variant("tiny", 3)
RTN, NF4 = replace(ALIGNED, precision="rtn-3"), replace(ALIGNED, precision="nf4")
LORA = replace(ALIGNED, adapter="lora-dialogue", trained_on="bf16", serving="attached")
QLORA = replace(LORA, precision="nf4", trained_on="nf4")
DOSE = replace(LORA, adapter="lora-dialogue-rank2")


def table(values: dict[Variant, dict[tuple[str, int, str], float]], task: str = "toxicity") -> pd.DataFrame:
    """A table `staleness` with its labels, from variant -> (probe, layer, metric) -> value."""
    tables = []
    for variant, rows in values.items():
        found = [(task, probe, layer, layer / 4, metric, x, x, x, 100) for (probe, layer, metric), x in rows.items()]
        tables.append(update_names.keyed(variant, pd.DataFrame(found, columns=COLUMNS)))
    return verdicts.described(pd.concat(tables, ignore_index=True))


def flags(*values: float, flag: str = "stale_auroc_05", pooling: str = "last", tpr: float = 0.8) -> dict:
    """That flag of monitors, two at each layer, and of a control, a simulated update and a summary, which do not count."""
    found = {(f"{('mlp', 'lda')[i % 2]}-{pooling}", 1 + i // 2, flag): x for i, x in enumerate(values)}
    found |= {(f"{('mlp', 'lda')[i % 2]}-{pooling}", 1 + i // 2, "tpr_5"): tpr for i in range(len(values))}
    luck = {(f"{kind}-{pooling}", 1, flag): 1.0 for kind in (CONTROL, f"{SIMULATED}-updates")}
    return found | luck | {(f"all-{pooling}", 0, f"share_{flag}"): 1.0}


# ---------------------------------------------------------------- tables


def test_shares_count_the_monitors_of_one_pooling_and_leave_controls_out():
    values = {RTN: flags(1, 1, 0, 0, 1, 0) | flags(0, 0, pooling="mean"), NF4: flags(0, 1, 0, 0, 0, 0), QLORA: flags(1, 1)}
    values |= {replace(NF4, precision="fp4"): flags(1, 1, 1, 1, 1, 1), ALIGNED: flags(0, 0), DOSE: flags(1, 1)}
    shown = told.family_table(table(values))
    assert list(zip(shown["updates"], shown["reads"], strict=True)) == [
        (verdicts.FINE, "the last token"), (verdicts.COARSE, "the last token"), (verdicts.COARSE, "the mean over tokens"),
        ("QLoRA", "the last token"),
    ]  # fmt: skip
    row = shown.iloc[0]
    assert (row["task"], row["variants"], row["weak"]) == ("toxicity", 2, 0)
    units = [f"{label}/{layer}" for label in ("nf4", "fp4") for layer in (1, 1, 2, 2, 3, 3)]
    e = intervals.rate_interval([0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], units)
    assert row["AUROC lost 0.05"] == f"58 % [{100 * e.low:.0f}, {100 * e.high:.0f}] of 12"
    assert row["AUROC lost 0.10"] == "–"  # never measured
    assert shown.iloc[2]["AUROC lost 0.05"].startswith("0 % [0, ")


def test_weak_monitors_are_counted_apart_in_every_table():
    """Caught 20 % before any update: whatever their flags, they are in no share, and the table says how many they are."""
    start = flags(0, 0, tpr=0.2) | flags(0, 0, pooling="mean")
    found = table({ALIGNED: start, LORA: flags(1, 1) | flags(1, 0, pooling="mean")})
    shown = told.family_table(found).set_index("reads")
    assert shown.loc["the last token", "weak"] == 2
    assert shown.loc["the last token", "AUROC lost 0.05"] == "–"
    assert shown.loc["the mean over tokens", "weak"] == 0
    weak = told.weak_table(found).set_index("reads")
    assert weak["monitors"].to_dict() == {"the last token": 2, "the mean over tokens": 2}
    assert weak["weak: caught less than 30 %"].to_dict() == {"the last token": 2, "the mean over tokens": 0}
    assert told.pooled_share(found, "LoRA", "last", "stale_auroc_05") is None
    assert told.pooled_share(found, "LoRA", "mean", "stale_auroc_05").value == 0.5


def test_sentences_are_by_what_broke_by_pooling_and_by_group():
    alarms = {"flag": "stale_fpr_5"}
    start = flags(0, 0, **alarms) | flags(0, 1, pooling="mean", **alarms)
    found = table({ALIGNED: start, RTN: flags(1, 0), LORA: flags(1, 1, **alarms) | flags(1, 1, pooling="mean", **alarms)})
    said = told.staleness_sentences(found)
    assert set(said) == {f"{m}-{p}-{g}" for m in ("ranking", "threshold") for p in cohorts.POOLINGS for g in told.SAID}
    assert said["ranking-last-coarse"].startswith("50 % [")
    assert said["threshold-last-lora"].startswith("100 % [")
    assert said["threshold-mean-lora"].endswith("] of 1")  # the other cried wolf before any update
    assert said["ranking-last-lora"] == said["threshold-mean-qlora"] == "–"


def test_the_resampled_angle_of_a_probe_is_the_middle_one():
    probes = ["logistic-mean"] * 3 + ["lda-mean", "logistic-mean"]
    rows = pd.DataFrame({"probe": probes, "metric": ["resampled_angle"] * 4 + ["auroc"], "value": [10.0, 40.0, 30.0, 5.0, 99.0]})
    assert told.resampled_angles(rows) == {"logistic-mean": 30.0, "lda-mean": 5.0}
    assert told.resampled_angles(rows[4:]) == {}


def test_the_table_of_doses_has_a_row_a_dose_and_a_column_a_pooling():
    arms = pd.DataFrame([("a-x2", "two", 0.008), ("a-x4", "four", 0.016)], columns=["adapter", "label", "size"])
    rows = pd.DataFrame(
        [("two", "last", 0.5), ("two", "last", 0.7), ("four", "mean", 0.1)], columns=["label", "pooling", "value"]
    )
    shown = told.table_of_doses(arms, rows, rows).set_index("dose")
    assert shown.loc["a-x2", ["|BA| / |W|", "unfit, the last token", "AUROC drop, the last token"]].tolist() == [
        "0.80 %",
        "60 %",
        "+0.600",
    ]
    assert shown.loc["a-x2", "unfit, the mean over tokens"] == "–"


# ---------------------------------------------------------------- sentences above figures: a branch for each outcome


def means(*cells: tuple[str, str, float, float]) -> pd.DataFrame:
    """Mean drops: group, pooling, value, half width."""
    rows = [(group, "toxicity", pooling, value, value - half, value + half) for group, pooling, value, half in cells]
    return pd.DataFrame(rows, columns=["group", "task", "pooling", "value", "low", "high"])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([], told.NOBODY),
        ([(verdicts.FLOOR, "last", 0.5, 0.1)], told.NOBODY),  # the floor alone is no finding
        (
            [("LoRA", "last", 0.01, 0.01), ("LoRA", "mean", 0.0, 0.01)],
            "Rankings survived: all 2 mean drops of AUROC lie within 0.03",
        ),
        (
            [("LoRA", "last", 0.02, 0.05), ("LoRA", "mean", 0, 0.01)],
            "No ranking surely fell by more than 0.03; 1 of 2 mean rankings",
        ),
        (
            [("LoRA", "last", 0.2, 0.05), ("LoRA", "mean", 0, 0.01)],
            "1 of 2 mean rankings surely fell by more than 0.03: 1 for the last",
        ),
        ([(verdicts.COARSE, "mean", 0.2, 0.05)], "1 for the mean over tokens. All of them lie in formats below 4 bits."),
    ],
)
def test_the_map_says_which_means_surely_fell(cells, words):
    assert words in told.heat_map_title(means(*cells))


def broken(last: float, mean: float | None, ranking: float = 0.0, count: int = 40) -> pd.DataFrame:
    """LoRA breaks these shares of the thresholds of either pooling, and that share of rankings."""
    values = {ALIGNED: {}, LORA: {}}
    for pooling, share in (("last", last), ("mean", mean)):
        for i in range(count if share is not None else 0):
            place = (f"lda-{pooling}", i + 1)
            values[ALIGNED] |= {(*place, "stale_tpr_5"): 0.0, (*place, "tpr_5"): 0.9}
            values[LORA] |= {
                (*place, "stale_tpr_5"): float(i < share * count),
                (*place, "stale_auroc_05"): float(i < ranking * count),
            }
    return table(values)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            broken(0.75, 0.25),
            "After LoRA 75% of the monitors of the last token are unfit, 25% of the mean over tokens; by AUROC 0%",
        ),
        (broken(0.25, 0.75), "75% of the monitors of the mean over tokens are unfit, 25% of the last token; by AUROC"),
        (broken(0.5, 0.3, count=10), "(the intervals overlap)"),
        (broken(0.5, 0.5), "both poolings break alike at the threshold (50% and 50% of monitors)"),
        (broken(0.5, 0.25, ranking=0.5), "AUROC says as much (50%)"),
        (broken(0.5, None), "After LoRA 50% of the monitors of the last token are unfit at their threshold, 0% by AUROC."),
        (table({NF4: flags(1)}), told.NOBODY),
    ],
)
def test_the_definitions_say_which_pooling_breaks_and_whether_auroc_sees_it(case, words):
    assert words in told.definitions_title(case)


@pytest.mark.parametrize(
    ("drop", "refit", "words"),
    [
        (0.01, 0.01, "0.010 AUROC (LoRA): nothing for a refit to bring back."),
        (0.2, 0.01, "a refit lacks +0.010: turned, not lost."),
        (0.2, 0.1, "a refit still lacks 0.100: some of the signal is lost."),
        (0.2, 0.2, "a refit still lacks 0.200: all of the signal is lost."),
        (None, 0.2, told.NOBODY),
    ],
)
def test_refits_say_turned_or_lost(drop, refit, words):
    rows = {("logistic-last", 1, "refit_drop"): refit} | ({} if drop is None else {("logistic-last", 1, "auroc_drop"): drop})
    assert told.refit_title(table({LORA: rows, ALIGNED: flags(0)}), "last").endswith(words)


def test_angles_say_in_how_many_groups_more_than_chance():
    means_ = pd.DataFrame([("logistic-last", name, angle) for name, angle in (("LoRA", 30), ("QLoRA", 10), (verdicts.FLOOR, 90))],
                          columns=["probe", "group", "value"])  # fmt: skip
    assert told.angle_title(means_, {"logistic-last": 20.0}).endswith("1 of 2 groups for the last token.")
    assert told.angle_title(means_, {}) == told.NOBODY


@pytest.mark.parametrize(
    ("low", "words"),
    [
        ({8: 0.0, 4: 0.0, 2: 0.1}, "holds down to 4 bits"),
        ({8: 0.0, 4: 0.1, 2: 0.0}, "holds down to 8 bits"),  # what fell at more bits is not mended by fewer
        ({8: 0.1, 4: 0.1, 2: 0.1}, "falls at every number of bits"),
    ],
)
def test_bits_say_how_few_hold(low, words):
    rows = pd.DataFrame({"probe": "all-last", "x": list(low), "low": list(low.values())}).astype({"x": float})
    assert told.bits_title(rows) == f"Ranking, within 0.03: the last token {words}."


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ({"last": (0.1, 0.9), "mean": (0.1, 0.5)}, "breaks more: unfit 10% to 90% for the last token, 10% to 50% for"),
        ({"last": (0.1, 0.9), "mean": (0.1, 0.1)}, "breaks more of the last token only"),
        ({"last": (0.9, 0.1), "mean": (0.1, 0.1)}, "breaks no more"),
        ({"mean": (0.1, 0.5)}, "breaks more: unfit 10% to 50% for the mean over tokens."),
        ({}, told.NOBODY),
    ],
)
def test_doses_say_whether_more_breaks_more(ends, words):
    arms = pd.DataFrame([("a", "small", 0.004), ("a-x4", "large", 0.016)], columns=["adapter", "label", "size"])
    rows = [(label, pooling, pair[i]) for pooling, pair in ends.items() for i, label in enumerate(("small", "large"))]
    said = told.dose_title(pd.DataFrame(rows, columns=["label", "pooling", "value"]), arms)
    assert words in said
    assert "4.0 times as large" in said or said == told.NOBODY


@pytest.mark.parametrize(
    ("outer", "inner", "words"),
    [
        ([(0.01, 0.05)], [(0.02, 0.04)], "the last token, AUROC: worse."),
        ([(0.01, 0.05), (-0.1, 0.1)], [(0.02, 0.04), (-0.1, 0.1)], "worse in 1 of 2 updates."),
        ([(-0.02, 0.04)], [(-0.01, 0.029)], "equal within 0.03."),
        ([(-0.02, 0.04)], [(-0.01, 0.031)], "cannot be told."),
    ],
)
def test_interactions_say_worse_equal_or_open(outer, inner, words):
    rows = [("all", "all-last", f"u{i}", f"interaction{end}", *pair) for end, pairs in (("", outer), ("_90", inner))
            for i, pair in enumerate(pairs)]  # fmt: skip
    found = pd.DataFrame(rows, columns=["task", "probe", "adapter", "metric", "low", "high"])
    assert told.interaction_title(found).endswith(words)
    assert told.interaction_title(found.assign(task="toxicity")) == told.NOBODY
    assert np.isfinite(found["low"]).all()
