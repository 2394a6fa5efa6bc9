"""What the table `realignment` says to a reader, on a small table planted by hand."""

import itertools

import pandas as pd
import pytest

from helpers.figures import repair_tables
from helpers.monitors import repair_ladder
from helpers.monitors.repairs import LADDER
from helpers.results import OWN, VALUES
from helpers.updates import names
from helpers.updates.names import Variant

COLUMNS = [*OWN["realignment"], *VALUES]
ALIGNED = Variant("tiny", 0)
NF4 = Variant("tiny", 0, "nf4")
LORA = Variant("tiny", 0, "bf16", "lora-dialogue", "bf16", "attached")
IDENTITY = Variant("tiny", 0, "bf16", "identity")
RESTORED = Variant("tiny", 0, "bf16", "lora-dialogue", "bf16", "attached", "safelora", 0.5)
IN_USE = {"privacy-pii": "privacy-pii/logistic-mean/3"}


def rows(variant: Variant, *found: tuple) -> pd.DataFrame:
    """Rows (task, probe, layer, method, metric, value) of a variant, with an interval around each."""
    table = [(*row[:5], row[5], row[5] - 0.01, row[5] + 0.01, 40) for row in found]
    return names.keyed(variant, pd.DataFrame(table, columns=COLUMNS))


def monitor(method: str, metric: str, value: float) -> tuple:
    return ("privacy-pii", "logistic-mean", 3, method, metric, value)


def share(method: str, metric: str, value: float) -> tuple:
    return ("all", "all", 0, method, metric, value)


@pytest.fixture
def table() -> pd.DataFrame:
    """CORAL halves what NF4 broke and mends the LoRA whole; the control variant would drag every mean along."""
    return pd.concat(
        [
            rows(
                NF4, monitor("none", "alarms_changed", 0.2), share("none", "share_stale", 0.6), share("coral", "share_stale", 0.3)
            ),
            rows(
                LORA,
                monitor("none", "alarms_changed", 0.4),
                monitor("none", "auroc", 0.9),
                monitor("coral", "alarms_changed", 0.1),
                monitor("coral", "cost_texts", 300.0),
                monitor("coral", "cost_labels", 0.0),
                monitor("refit", "cost_labels", 62.0),
                share("none", "share_stale", 0.8),
                share("coral", "share_stale", 0.1),
            ),
            rows(IDENTITY, monitor("none", "alarms_changed", 0.9), share("none", "share_stale", 0.0)),
        ],
        ignore_index=True,
    )


def test_the_worst_case_is_that_of_a_real_update_and_of_a_monitor_in_use(table):
    other = rows(NF4, ("toxicity", "lda-last", 3, "none", "alarms_changed", 0.99))
    case = repair_tables.worst(pd.concat([table, other], ignore_index=True), IN_USE)
    assert (case.task, case.probe, case.layer, case.variant) == ("privacy-pii", "logistic-mean", 3, LORA)
    assert case.words.startswith("privacy-pii (logistic-mean, layer 3) on lora-dialogue")


def test_without_thresholds_the_worst_case_is_that_of_the_largest_drop():
    drops = pd.concat([rows(v, monitor("none", "auroc_drop", d)) for v, d in ((NF4, 0.2), (LORA, 0.1))], ignore_index=True)
    assert repair_tables.worst(drops, IN_USE).variant == NF4


def test_by_hand_goes_down_the_ladder_on_that_case_alone(table):
    shown = repair_tables.repair_by_hand(table, repair_tables.worst(table, IN_USE))
    assert shown["rung"].tolist() == ["none", "coral", "refit"]  # the order of the ladder
    assert shown["alarms changed"].tolist()[:2] == ["40 % [39, 41]", "10 % [9, 11]"]
    assert shown["labels"].tolist()[1:] == ["0", "62"]
    assert shown["passes"].iloc[1] == "300"


def test_means_are_over_updates_and_leave_controls_out(table):
    none, coral = (repair_tables.over_updates(table, name, "share_stale") for name in ("none", "coral"))
    assert (none.value, none.n) == (pytest.approx(0.7), 2)
    assert coral.value == pytest.approx(0.2)
    assert none.low <= 0.6 < 0.8 <= none.high  # two updates that differ so much say little
    shown = repair_tables.balance(table).set_index("rung")
    assert shown.loc["none", "unfit"].startswith("70 %")
    assert shown.loc["coral", "repaired, of the unfit"] == "–"


def test_sentences_name_every_rung_whatever_the_run(table):
    texts = repair_tables.repair_sentences(table)
    assert set(texts) == {f"{word}-{name}" for name in LADDER for word in ("unfit", "harmed")}
    assert texts["unfit-coral"].startswith("20 %")
    assert texts["unfit-refit"] == "(not in this run)"


def test_restored_variants_stand_with_their_update():
    told = pd.concat([rows(v, share("x", "alarms_restored", 0.1)) for v in (RESTORED, NF4)][:1], ignore_index=True)
    assert repair_ladder.restored(told) == {LORA: [RESTORED]}
    assert repair_ladder.restored(told.iloc[:0]) == {}


def test_the_gates_answers_are_told_in_their_order():
    found = pd.DataFrame([(*share("gate", "unfit_accepted", 0.25)[:5], 0.25, 0.1, 0.5, 20)], columns=COLUMNS)
    assert repair_tables.gate_table(found).to_dict("records") == [
        {"what the gate said, and what came": "realigned, and unfit", "share": "25 % [10, 50]", "n": 20}
    ]


# ---------------------------------------------------------------- a new threshold, and probes that foresaw updates


def test_a_new_threshold_stands_beside_the_floor_of_the_controls(table):
    more = rows(IDENTITY, share("threshold", "share_stale", 0.05), share("threshold", "share_harmed", 0.05))
    real = [rows(one, share("threshold", "share_stale", 0.2), share("threshold", "share_repaired", 0.7)) for one in (NF4, LORA)]
    found = repair_tables.new_threshold(pd.concat([table, more, *real], ignore_index=True)).set_index(["variants", "rung"])
    controls = "controls: nothing changed"
    assert found.index.to_list() == [(who, rung) for who in ("real updates", controls) for rung in ("none", "threshold")]
    assert found.loc[("real updates", "none"), "unfit"].startswith("70")
    assert found.loc[("real updates", "threshold"), "repaired, of the unfit"].startswith("70")
    assert found.loc[(controls, "threshold"), "harmed, of the fit"].startswith("5")


def scored(variant: Variant, kind: str, layer: int = 2, broken: bool = False) -> pd.DataFrame:
    """Rows of the table `staleness` about one probe of each pooling."""
    values = {"stale_tpr_5": float(broken), "stale_fpr_5": 0.0, "auroc": 0.9 - 0.2 * broken}
    found = [("privacy-pii", f"{kind}-{pooling}", layer, 0.5, *item) for pooling in ("last", "mean") for item in values.items()]
    table = pd.DataFrame([(*row, row[5], row[5], 40) for row in found], columns=[*OWN["staleness"], *VALUES])
    return names.keyed(variant, table)


def test_survival_compares_the_same_places_on_updates_that_the_fitting_never_saw():
    seen = Variant("tiny", 0, "rtn-4")
    kinds = ("logistic", "simulated-updates", "simulated-noise")
    every = itertools.product((NF4, LORA, seen, IDENTITY), kinds)
    rows = [scored(variant, kind, broken=kind == "logistic" and variant == LORA) for variant, kind in every]
    rows.append(scored(LORA, "logistic", layer=3, broken=True))  # where no update was simulated: another place
    found = repair_tables.survived(pd.concat(rows, ignore_index=True), ["rtn-4"])
    unfit = found[found["metric"] == "unfit"].set_index(["pooling", "kind"])
    assert unfit["value"].to_dict() == {(p, kind): 0.5 * (kind == "logistic") for p in ("last", "mean") for kind in kinds}
    assert set(unfit["n"]) == {2}
    auroc = found[found["metric"] == "auroc"].set_index(["pooling", "kind"])["value"]
    assert auroc["last", "logistic"] == pytest.approx(0.8)
    shown = repair_tables.survival(found)
    assert list(shown.columns) == ["pooling", "probe", "unfit", "AUROC", "cells"]
    assert set(shown["probe"]) == {"plain", "fitted on simulated updates", "random moves (control)"}


def test_a_run_without_simulated_updates_has_nothing_to_compare():
    found = repair_tables.survived(scored(LORA, "logistic"))
    assert found.empty
    assert repair_tables.survival(found).empty
