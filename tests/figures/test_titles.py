"""Sentences above figures: each says what was planted in its rows; its control says the opposite, or that nothing is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers.figures.titles import findings, models, parts, projection, repair
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, SUPPORTED


def rows(*found, columns):
    """Rows with an interval of 0.05 to either side of the last number."""
    table = pd.DataFrame(found, columns=[*columns, "value"])
    return table.assign(low=table["value"] - 0.05, high=table["value"] + 0.05, n=50)


def told(*found):
    table = rows(*found, columns=["label", "metric", "prompt_set"])
    return table.assign(judge="phrases", adapter="", precision=table["label"], arm=table["label"], percent=-1)


HARMFUL, SAFE = ("non_refusal", "advbench"), ("over_refusal", "edgy")


def spectra(values):
    return [SimpleNamespace(values=np.array(values), norm=1.0, base_norm=50.0)]


def harm(late):
    table = told(("aligned", *HARMFUL, 0.03), ("LoRA", *HARMFUL, late))
    return table.assign(percent=[-1, 10])


def sized(*values):
    return rows(*(("s", 0.01 * 2**i, value) for i, value in enumerate(values)), columns=["series", "size"])


def scored(words):
    return rows(
        ("toxicity", "logistic-mean", 3, 0.9),
        ("toxicity", "shuffled-labels-mean", 3, 0.99),
        ("toxicity", "bag-of-words", 0, words),
        columns=["task", "probe", "layer"],
    )


MODELS = {
    "one direction": (
        lambda: models.spectrum_title(spectra([9.0, 1, 1])),
        "by 2 to 2 %; half of a change lies in its first 1 of 3",
    ),
    "level": (lambda: models.spectrum_title(spectra([1.0] * 4)), "in its first 2 of 4"),
    "nothing": (lambda: models.spectrum_title([SimpleNamespace(values=[], norm=0.0, base_norm=1.0)]), "changed none"),
    "two models": (
        lambda: models.behaviour_title(told(("base", *HARMFUL, 0.97), ("aligned", *HARMFUL, 0.03)), ["base", "aligned"]),
        "base leaves 97 % of the harmful prompts unrefused, the aligned model 3 %.",
    ),
    "more": (
        lambda: models.behaviour_title(
            told(
                ("a", *HARMFUL, 0.5),
                ("b", *HARMFUL, 0.05),
                ("aligned", *HARMFUL, 0.03),
                ("a", *SAFE, 0.1),
                ("aligned", *SAFE, 0.1),
            ),
            ["a", "b", "aligned"],
        ),
        "(3 %): 1 of 2; surely more safe prompts refused: 0.",
    ),
    "no aligned": (lambda: models.behaviour_title(told(("base", *HARMFUL, 0.97)), ["base"]), parts.NOTHING),
    "formats": (
        lambda: models.formats_title(
            told(("bf16", *HARMFUL, 0.03), ("nf4", *HARMFUL, 0.05), ("rtn-2", *HARMFUL, 0.9)),
            pd.Series({"bf16": 16, "nf4": 4.5, "rtn-2": 2.1}),
        ),
        "in 1 of 2 formats: rtn-2; of the others the smallest has 4.5 bits",
    ),
    "formats hold": (
        lambda: models.formats_title(
            told(("bf16", *HARMFUL, 0.03), ("nf4", *HARMFUL, 0.05)), pd.Series({"bf16": 16, "nf4": 4.5})
        ),
        "No format's refusals",
    ),
    "harm": (
        lambda: models.harm_title(harm(0.6)),
        "With 10 % harmful rows, harmful prompts not refused: LoRA 60 %; aligned 3 %.",
    ),
    "no harm": (lambda: models.harm_title(harm(0.6)[:1]), parts.NOTHING),
    "dose": (
        lambda: models.size_title(sized(0.1, 0.4)),
        "s: at 2 times the size surely more prompts are not refused (10 %, then 40 %).",
    ),
    "flat": (lambda: models.size_title(sized(0.1, 0.12)), "not surely more"),
    "falls": (lambda: models.size_title(sized(0.5, 0.1)), "surely fewer"),
    "one dose": (lambda: models.size_title(sized(0.5)), "in one size: 50 %"),
    "loss": (
        lambda: models.losses_title({"a": [4.0, 2.0], "b": [2.0, 1.0], "dpo-c": [0.7, 0.1]}, 1),
        "from 3.00 to 1.50 nats, in the mean of 2 trainings",
    ),
    "no loss": (lambda: models.losses_title({}, 1), parts.NOTHING),
    "words do": (
        lambda: models.depth_title(scored(0.88)),
        "A bag of words ranks as well as the best probe (AUROC within 0.03) on toxicity.",
    ),
    "words do not": (lambda: models.depth_title(scored(0.7)), "On no task does a bag of words rank"),
}

PAIRED = ["adapter", "precision", "strength", "restoration"]


def restored(*found):
    return rows(*found, columns=PAIRED)


def neurons(*found):
    return rows(*found, columns=["precision", "score", "fraction"])


SILENT = neurons(("bf16", "none", 0.0, 0.03), ("bf16", "snip", 0.05, 0.61), ("bf16", "random", 0.05, 0.04))
MOVED = neurons(
    ("nf4", "snip", 0.05, 0.5), ("nf4", "random", 0.05, 0.1), ("int8", "snip", 0.05, 0.1), ("int8", "random", 0.05, 0.1)
)
MODULES = pd.DataFrame({"score": [0.5, 0.2], "null": [0.3, 0.3], "before": [1.0, 1.0], "after": [0.01, 0.03]})
SOURCES = rows(("nf4-both", "8", 0.05), ("rtn-8-both", "8", 0.7), ("rtn-8-both x16", "8", 1.0), columns=["source", "k"])
PROJECTION = {
    "modules": (
        lambda: projection.scores_title(MODULES),
        "1 of 2 modules lie closer to V than an unrelated update would; of the middle module's update 2 % is left.",
    ),
    "a switch": (
        lambda: projection.curves_title_of_pair(restored(("u", "bf16", 1.0, "safelora", 0.1), ("u", "bf16", 1.0, "zero", 0.1))),
        "are those with the same modules removed",
    ),
    "no switch": (
        lambda: projection.curves_title_of_pair(restored(("u", "bf16", 1.0, "safelora", 0.4), ("u", "bf16", 1.0, "zero", 0.1))),
        "by at most 30 points",
    ),
    "no pair": (lambda: projection.curves_title_of_pair(restored(("u", "bf16", 1.0, "safelora", 0.4))), parts.NOTHING),
    "back": (
        lambda: projection.recovered_title(
            restored(("", "bf16", None, "", 0.03), ("u", "bf16", 1.0, "zero", 0.05), ("u", "bf16", 1.0, "salora", 0.9))
        ),
        "1 of 2 restored updates cannot be told from the aligned model by their refusals (5 to 90 %",
    ),
    "noise": (
        lambda: projection.sources_title({"bf16": 2.0, "nf4-both": 6.0, "rtn-8-both": 2.1}),
        "V from nf4-both is 3 times as large",
    ),
    "no source": (lambda: projection.sources_title({"bf16": 2.0}), "no source beside full precision"),
    "overlaps": (
        lambda: projection.overlap_title(SOURCES, 0.014),
        "rtn-8-both finds 70 % again, nf4-both 5 %; chance gives 1 %.",
    ),
    "one source": (lambda: projection.overlap_title(SOURCES[:1], None), "nf4-both finds 5 % again."),
    "any V": (
        lambda: projection.restored_title(
            restored(
                ("", "bf16", None, "", 0.03),
                ("u", "bf16", None, "", 0.6),
                ("u", "bf16", 1.0, "safelora", 0.1),
                ("u", "bf16", 1.0, "zero", 0.2),
            )
        ),
        "10 to 20 % of the harmful prompts are not refused, by V; 60 % as trained.",
    ),
    "uneven": (
        lambda: projection.layers_title(
            rows(("snip", 0.01), ("snip", 0.3), ("random", 0.05), ("random", 0.06), columns=["score"]), 0.05
        ),
        "snip picks up to 30 % of one part of the network, random at most 6 %; of all neurons 5 %.",
    ),
    "silenced": (
        lambda: projection.causal_title(SILENT, SILENT.assign(value=[60.0, 61.0, 62.0])),
        "by snip, 61 % of harmful prompts are not refused; by random 4 % (perplexity 61 and 62).",
    ),
    "moved": (lambda: projection.disturbance_title(MOVED), "Surely moved further than random neurons: snip in 1 of 2 formats."),
    "not moved": (lambda: projection.disturbance_title(MOVED[2:]), "In none of 1 formats"),
    "spared": (
        lambda: projection.hybrid_title(
            neurons(("rtn-3", "none", 0.0, 0.6), ("rtn-3", "snip", 0.1, 0.2), ("rtn-3", "random", 0.1, 0.3))
        ),
        "rtn-3 leaves 60 % of harmful prompts unrefused; with 10 % of the neurons in bf16 by snip 20 %, by random 30 %.",
    ),
    "not spared": (lambda: projection.hybrid_title(neurons(("rtn-3", "none", 0.0, 0.6))), parts.NOTHING),
}

QUARTERS = rows((1, 0.6), (4, 0.1), columns=["quarter"])
GAINS = rows(
    ("all", "realign_gain", 0.3),
    ("all", "restore_gain", 0.1),
    ("all", "both_gain", 0.3),
    ("all", "interaction", -0.1),
    columns=["task", "metric"],
)
PLANE = pd.DataFrame({"value": [0.34, 0.27, 0.19]}, index=["do nothing", "random 20 %", "triage 20 %"])
REPAIR = {
    "ladder": (
        lambda: repair.ladder_title(
            {"none": 0.4, "coral": 0.35, "threshold": 0.25, "refit": 0.22},
            {"coral": "CORAL", "threshold": "threshold only"},
            0.12,
        ),
        "Of the frozen monitors 40 % are unfit (12 % where nothing changed); "
        "without labels “threshold only” leaves fewest, 25 %; a refit leaves 22 %.",
    ),
    "no floor": (lambda: repair.ladder_title({"none": 0.4}, {}, None), "Of the frozen monitors 40 % are unfit."),
    "no frozen": (lambda: repair.ladder_title({"refit": 0.4}, {}, None), parts.NOTHING),
    "mended": (lambda: repair.mended_title(0.4, None), "Realigning every monitor mends 40 % of the unfit monitors."),
    "rates": (
        lambda: repair.rates_title(
            rows(("fpr_5", "none", 0.35), ("fpr_5", "threshold", 0.06), columns=["metric", "method"]),
            {"threshold": "threshold only"},
        ),
        "At the threshold: false alarms 35 % frozen, 6 % with threshold only.",
    ),
    "the gate knows": (
        lambda: repair.gate_title(QUARTERS),
        "tells who is left unfit: 60 % of the quarter that agrees least, 10 %",
    ),
    "the gate does not": (lambda: repair.gate_title(QUARTERS.assign(value=0.3, low=0.2, high=0.4)), "does not surely tell"),
    "foreseen": (
        lambda: repair.survivors_title(
            rows(("logistic", "last", 0.5), ("simulated-updates", "last", 0.3), columns=["kind", "pooling"])
        ),
        "last token 30 % against 50 %.",
    ),
    "substitutes": (
        lambda: repair.interplay_title(GAINS),
        "Realigning gives back +30 points, restoring +10 points, both +30 points; surely less than the sum in 1 of 1.",
    ),
    "complements": (lambda: repair.interplay_title(GAINS.assign(high=1.0)), "in 0 of 1."),
    "policies": (
        lambda: repair.policy_title(PLANE, PLANE.assign(value=[0, 40, 40])),
        "do nothing 34 % for 0 labels, random 20 % 27 % for 40 labels, triage 20 % 19 % for 40 labels.",
    ),
}

LOOKED = pd.DataFrame(
    [("LoRA", "refusals", 0.6), ("NF4", "refusals", 0.1), ("NF4", "last", 0.5)], columns=["update", "asked", "value"]
)
FINDINGS = {
    "verdicts": (
        lambda: findings.verdicts_title([SUPPORTED, SUPPORTED, CONTRADICTED, INCONCLUSIVE], "monitors"),
        "Of 4 claims about monitors 2 hold, 1 do not, 1 cannot be told.",
    ),
    "no verdict": (lambda: findings.verdicts_title([]), parts.NOTHING),
    "a look": (
        lambda: findings.first_look_title(LOOKED),
        "Most harmful prompts are not refused after “LoRA” (60 %); last-token monitors are most often unfit after “NF4” (50 %).",
    ),
}
SAID = {
    f"{group}: {name}": case
    for group, cases in (("models", MODELS), ("projection", PROJECTION), ("repair", REPAIR), ("findings", FINDINGS))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", SAID)
def test_a_sentence_says_what_was_planted(name):
    say, wanted = SAID[name]
    said = say()
    assert wanted in said
    assert said.endswith(".")
    assert "nan" not in said


def test_lists_and_spans_are_short():
    assert parts.listed(["a"]) == "a"
    assert parts.listed("abcd") == "a, b, c and 1 more"
    assert parts.span([0.1, 0.3]) == "10 to 30 %"
    assert parts.span([0.101, 0.102]) == "10 %"


def test_intervals_that_touch_are_not_apart():
    one, other = (SimpleNamespace(low=low, high=high) for low, high in ((0.1, 0.2), (0.2, 0.3)))
    assert parts.clear_of(one, other) == parts.clear_of(other, one) == 0
    assert parts.clear_of(SimpleNamespace(low=0.31, high=0.4), other) == 1
    assert parts.clear_of(one, SimpleNamespace(low=0.21, high=0.4)) == -1
