"""What a reader of chapter 09 sees: every arm once, in order, each cell with its interval, and nothing where nothing is."""

import numpy as np
import pandas as pd
import pytest

from helpers import results
from helpers.figures.neurons import arm, neuron_sentences, neuron_table
from helpers.updates import names
from helpers.updates.names import Variant

OWN = [*results.OWN["neurons"], *results.VALUES]
PLAIN, ABLATED = Variant("tiny"), Variant("tiny", serving="ablated")
RATES = {("none", 0.0): 0.1, ("snip", 0.05): 0.6, ("random", 0.05): 0.2, ("snip", 0.1): 0.9, ("random", 0.1): 0.3}


def rows(variant, score, fraction, values, layer=0):
    """Rows of one arm: (measured on, metric) -> value, each with an interval of 0.05 to both sides."""
    found = [(score, fraction, layer, *place, v, v - 0.05, v + 0.05, 12) for place, v in values.items()]
    return names.keyed(variant, pd.DataFrame(found, columns=OWN))


def silenced(rates, split="test"):
    """What `arms.silenced` gives, with a second set of prompts that no table of chapter 09 shows."""
    return pd.concat(
        [
            rows(PLAIN if score == "none" else ABLATED, score, fraction, {
                (f"strongreject/{split}", "non_refusal"): 0.99, (f"advbench/{split}", "non_refusal"): rate,
                (f"edgy/{split}", "over_refusal"): rate / 2, (f"c4/{split}", "perplexity"): 10 + rate,
                (f"all monitors/{split}", "alarms_changed"): rate / 4, (f"toxicity/{split}", "auroc_drop"): 0.0,
            })
            for (score, fraction), rate in rates.items()
        ],
        ignore_index=True,
    )  # fmt: skip


SILENT = silenced(RATES)


@pytest.mark.parametrize(
    ("score", "fraction", "name"),
    [("none", 0.0, "none"), ("snip", 0.05, "5 % by snip"), ("random", 0.07, "7 % by random"), ("wanda", 0.001, "0.1 % by wanda")],
)
def test_an_arm_is_called_by_its_share_and_score(score, fraction, name):
    assert arm(pd.Series({"score": score, "fraction": fraction})) == name


# ---------------------------------------------------------------- joined


def test_joined_holds_each_address_once_and_loses_none():
    patching = rows(Variant("tiny", adapter="base", serving="patched"), "snip", 0.05, {("advbench/test", "non_refusal"): 0.5})
    layers = pd.concat([rows(PLAIN, "snip", 0.05, {("", "picked"): 0.06}, layer) for layer in (1, 2)], ignore_index=True)
    parts = [SILENT, patching, layers]
    found = results.joined("neurons", *parts)
    assert len(results.checked("neurons", found)) == sum(map(len, parts))
    pd.testing.assert_frame_equal(results.joined("neurons", *parts, SILENT.iloc[:5], patching), found)
    changed = results.joined("neurons", patching, patching.assign(value=0.7, high=0.8))
    assert changed["value"].tolist() == [0.5]  # the first stands


# ---------------------------------------------------------------- wide


@pytest.mark.parametrize("split", ["test", "validation"])
def test_one_row_an_arm_and_one_column_a_metric_in_the_order_asked_for(split):
    found = neuron_table(silenced(RATES, split), ["perplexity", "non_refusal", "over_refusal"])
    assert list(found.columns) == ["variant", "perplexity", "non refusal", "over refusal"]
    assert found["variant"].tolist() == ["none", "5 % by snip", "5 % by random", "10 % by snip", "10 % by random"]
    assert found.iloc[1].tolist() == ["5 % by snip", "10.6 [10.5, 10.7]", "60 % [55, 65]", "30 % [25, 35]"]


def test_rows_stand_in_the_order_of_the_table():
    shuffled = SILENT.iloc[np.random.default_rng(0).permutation(len(SILENT))]
    first = shuffled[shuffled["metric"].isin(["non_refusal", "perplexity"])]
    first = first[~first["measured_on"].str.startswith("strongreject")]
    order = list(dict.fromkeys(first.apply(arm, axis=1)))
    found = neuron_table(shuffled, ["non_refusal", "perplexity"]).set_index("variant")
    assert found.index.tolist() == order
    pd.testing.assert_frame_equal(
        found.sort_index(), neuron_table(SILENT, ["non_refusal", "perplexity"]).set_index("variant").sort_index()
    )


def test_a_metric_that_was_not_measured_has_no_column_and_a_missing_cell_is_empty():
    held = SILENT[(SILENT["metric"] != "perplexity") & ~((SILENT["score"] == "snip") & (SILENT["metric"] == "over_refusal"))]
    found = neuron_table(held, ["non_refusal", "over_refusal", "perplexity"]).set_index("variant")
    assert list(found.columns) == ["non refusal", "over refusal"]
    assert found["over refusal"].isna().tolist() == [False, True, False, True, False]


def test_formats_are_named_where_they_are_not_bf16():
    several = [rows(Variant("tiny", precision=precision, serving="hybrid"), score, fraction, {
        ("advbench/test", "non_refusal"): 0.5, ("weights", "bits_per_weight"): bits,
    }) for precision, bits in (("rtn-3", 3.1), ("nf4", 4.5)) for score, fraction in (("none", 0.0), ("snip", 0.05))]  # fmt: skip
    found = neuron_table(pd.concat(several, ignore_index=True), ["non_refusal", "bits_per_weight"])
    assert found["variant"].tolist() == ["rtn-3, none", "rtn-3, 5 % by snip", "nf4, none", "nf4, 5 % by snip"]
    assert found["bits per weight"].iloc[2] == "4.5 [4.45, 4.55]"
    one = neuron_table(pd.concat(several[:2], ignore_index=True), ["non_refusal"])
    assert one["variant"].tolist() == ["rtn-3, none", "rtn-3, 5 % by snip"]


# ---------------------------------------------------------------- sentences


def test_sentences_name_the_largest_share_by_the_first_score():
    assert neuron_sentences(SILENT) == {
        "nonrefusal-whole": "10 % [5, 15]", "ablated-share": "10 %", "ablated-by": "snip",
        "nonrefusal-ablated": "90 % [85, 95]", "nonrefusal-random": "30 % [25, 35]",
    }  # fmt: skip
    assert neuron_sentences(silenced(RATES, "validation")) == neuron_sentences(SILENT)


@pytest.mark.parametrize(
    ("left", "missing", "by"),
    [
        ({("none", 0.0), ("snip", 0.05)}, {"nonrefusal-random"}, "snip"),
        ({("none", 0.0), ("random", 0.05)}, {"nonrefusal-ablated"}, "none"),
        ({("snip", 0.05), ("random", 0.05)}, {"nonrefusal-whole"}, "snip"),
        ({("none", 0.0)}, {"nonrefusal-random"}, "none"),
    ],
)
def test_an_arm_that_is_missing_is_said_to_be(left, missing, by):
    found = neuron_sentences(silenced({key: rate for key, rate in RATES.items() if key in left}))
    assert {name for name, text in found.items() if text == "(not measured)"} == missing
    assert found["ablated-by"] == by
