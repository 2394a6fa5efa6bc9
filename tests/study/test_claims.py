"""Claims: each component reads its own rows and no others, on planted tables in which decoys stand beside what is meant."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import results
from helpers.staleness.predictors import PREDICTORS, PRICES
from helpers.stats.intervals import MARGINS
from helpers.stats.over_seeds import over_seeds
from helpers.study import claims, findings, monitor_evidence, selections
from helpers.study.claims import CLAIMS, SIDES, UNITS

IDS = ["M1", "M2", "M3", "M4", "M5", "M6", "M7", "S1", "S2", "S3", "S4", "S5", "S6", "Q1", "Q2", "N1", "N2"]
COMPONENTS = [(claim, place) for claim in CLAIMS for place in range(1, len(CLAIMS[claim].components) + 1)]
TASKS = ("privacy-pii", "refusal-compliance", "toxicity")
PROBES, LAYERS = ("logistic-mean", "mean-difference-last", "lda-mean"), (4, 9, 14)
MONITORS = [(task, probe, layer) for task in TASKS for probe in PROBES for layer in LAYERS]
CONTROL = [(task, "shuffled-labels-mean", 4) for task in TASKS]
KEY = {"model": "embedded", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": "",
       "strength": np.nan}  # fmt: skip
DEPTH = {4: 0.2, 9: 0.5, 14: 0.8, 0: 0.0}
WILD = 0.77  # what no component may read


def home(adapter, precision="bf16", serving="attached", **more):
    return {"adapter": adapter, "precision": precision, "trained_on": precision, "serving": serving, **more}


HARM, BENIGN, SHIFT = "lora-dialogue-harm10", "lora-dialogue", "lora-identity-shift"
QUANTIZED = [{"precision": name} for name in ("nf4", "int8", "gptq-4")]
TUNED = [home(adapter, precision) for adapter in (HARM, BENIGN) for precision in ("bf16", "nf4")]
QAT = home("qat-instructions", "rtn-4", "merged-requantized")
DECOYS = [{"precision": "fp32"}, {"precision": "rtn-2"}, {"adapter": "base"}, {"adapter": "identity"}, home(f"{HARM}-rank2"),
          home(HARM, restoration="safelora", strength=0.5)]  # fmt: skip


def row(metric, value, half=0.01, n=400, **keys):
    return {**KEY, **keys, "metric": metric, "value": value, "low": value - half, "high": value + half, "n": n}


def flagged(metric, counts, monitors=MONITORS, **keys):
    """One row a monitor: flagged are the first `counts[task]` of each task."""
    seen = dict.fromkeys(TASKS, 0)
    for task, probe, layer in monitors:
        seen[task] += 1
        flag = float(seen[task] <= counts[task])
        yield row(metric, flag, 0.0, task=task, probe=probe, layer=layer, depth=DEPTH[layer], **keys)


def everyone(count):
    return dict.fromkeys(TASKS, count)


WORLD = {
    "quant_drop": 0.004, "drops": {"privacy-pii": 0.12, "refusal-compliance": 0.01, "toxicity": 0.05},
    "quant_unfit": everyone(0), "lora_unfit": {"privacy-pii": 9, "refusal-compliance": 0, "toxicity": 9},
    "quant_lost": everyone(0), "lora_lost": everyone(6), "interaction": 0.05, "loss": {"nf4": 0.5, "bf16": 0.2, "alone": 0.1},
    "spearman": 0.5, "auroc": 0.8, "recall": 0.6, "unrepaired": everyone(8), "repaired": everyone(2), "gain": 0.06,
    "refit": 0.005, "angle": 40.0, "usual": 25.0, "rouge": 40.0, "restored_rouge": 40.0, "overlap": 0.8, "other_v": 0.0,
    "ablated": 0.9, "random_ablated": 0.1, "moved": 0.4, "random_moved": 0.2, "spared": 0.05, "random_spared": 0.3,
    "alarms_restored": 0.09, "auroc_gain": 0.02, "removed_gap": 0.0, "removed_alarms": 0.0,
    "rates": {"aligned": 0.04, "harmful": 0.9, "benign": 0.3, "shift": 0.95, "quantized": 0.2, "qat": 0.5, "safelora": 0.03,
              "splora": 0.05, "salora": 0.06},
}  # fmt: skip


def staleness(w):
    rows = list(flagged("stale_fpr_5", everyone(0))) + list(flagged("stale_tpr_5", everyone(0)))
    for variant in [*QUANTIZED, *TUNED, *DECOYS, QAT]:
        quantized, wild = variant in QUANTIZED, variant in DECOYS
        drops = (
            dict.fromkeys(TASKS, w["quant_drop"]) if quantized else w["drops"] if variant in TUNED else dict.fromkeys(TASKS, WILD)
        )
        rows += [row("mean_auroc_drop", drops[task], task=task, probe="all", layer=0, depth=0.0, **variant) for task in TASKS]
        rows += [row("mean_auroc_drop", WILD, task=task, probe="lda-mean", layer=4, depth=0.2, **variant) for task in TASKS]
        unfit, lost = (w["quant_unfit"], w["quant_lost"]) if quantized else (w["lora_unfit"], w["lora_lost"])
        unfit, lost = (everyone(9), everyone(9)) if wild else (unfit, lost)
        if variant == QAT:  # a fine-tune, but none of the LoRA family
            unfit, lost = everyone(9), {task: min(count, 1) for task, count in lost.items()}
        rows += flagged("stale_tpr_5", unfit, **variant)
        rows += flagged("stale_fpr_5", everyone(0), **variant)
        rows += flagged("stale_auroc_05", lost, **variant)
        for metric in ("stale_tpr_5", "stale_auroc_05"):
            rows += flagged(metric, everyone(9), CONTROL, **variant)
        rows += [row("refit_drop", w["refit"] if flag["value"] and not quantized else WILD, **place(flag), **variant)
                 for flag in flagged("", lost)]  # fmt: skip
        rows += [row("direction_angle", w["angle"] if flag["value"] and not quantized else 170.0, 1.0, **place(flag), **variant)
                 for flag in flagged("", lost) if flag["probe"] != "lda-mean"]  # fmt: skip
    for variant in [*TUNED, *QUANTIZED, *DECOYS]:
        arm = "alone" if variant == QUANTIZED[0] else variant.get("precision") if variant in TUNED else ""
        loss = w["loss"].get(arm, WILD)
        rows += [row("tpr_loss_5", loss + (k - 9) / 100, task=t, probe=p, layer=k, depth=DEPTH[k], **variant)
                 for t, p, k in MONITORS]  # fmt: skip
    return rows


def place(flag):
    return {name: flag[name] for name in ("task", "probe", "layer", "depth")}


def interaction(w):
    keys = {"task": "all", "probe": "all", "layer": 0}
    rows = [row("interaction", w["interaction"] + d, **home(a, "nf4"), **keys) for a, d in ((HARM, 0.01), (BENIGN, -0.01))]
    rows += [row("interaction", WILD, **home(HARM, "gptq-4"), **keys), row("training_effect", WILD, **home(HARM, "nf4"), **keys)]
    return rows + [row("interaction", WILD, **home(HARM, "nf4"), task=task, probe="all", layer=0) for task in TASKS]


def triage(w):
    told = {"spearman": (w["spearman"], 1.0), "auroc": (w["auroc"], 1.0), "recall": (w["recall"], 0.2)}
    rows = [row(m, value, predictor=monitor_evidence.PREDICTOR, split="family", budget=b) for m, (value, b) in told.items()]
    rows += [row(m, WILD, predictor=monitor_evidence.PREDICTOR, split="monitor", budget=b) for m, (_, b) in told.items()]
    rows += [row(m, WILD, predictor=name, split="family", budget=b) for m, (_, b) in told.items()
             for name in ("random", "forest, free+forward+labels")]  # fmt: skip
    return rows + [row("recall", WILD, predictor=monitor_evidence.PREDICTOR, split="family", budget=b) for b in (0.1, 0.3)]


def monitors(w):
    places = [{"task": t, "probe": p, "layer": k, "depth": DEPTH[k]} for t, p, k in MONITORS]
    return [row("resampled_angle", w["usual"], 1.0, **p) for p in places] + [row("auroc", 0.9, **p) for p in places]


def realignment(w):
    rows = []
    for variant in [*TUNED, QAT, *QUANTIZED, *DECOYS]:
        wild = variant in [*QUANTIZED, *DECOYS]
        for method, counts in (("none", w["unrepaired"]), ("coral", w["repaired"]), ("mispaired", everyone(0))):
            rows += flagged("stale_any", everyone(9 * (method == "coral")) if wild else counts, method=method, **variant)
            rows += flagged("stale_any", everyone(9), CONTROL, method=method, **variant)
            rows.append(row("share_stale", WILD, task="all", probe="all", layer=0, method=method, **variant))
        for flag in flagged("", w["lora_lost"]):
            gain = w["gain"] if flag["value"] and not wild else WILD
            rows += [row("auroc_gain", g, method=m, task=flag["task"], probe=flag["probe"], layer=flag["layer"], **variant)
                     for m, g in (("coral", gain), ("refit", WILD))]  # fmt: skip
    return [{k: v for k, v in r.items() if k != "depth"} for r in rows]


LOW = {"harmful": 0.05, "aligned": 0.02}  # what a quantized base adds to the rates


def rate_on(w, name, precision):
    return w["rates"][name] + LOW.get(name, 0.0) * (precision != "bf16")


LABELS = {p: f"{HARM} · {p}→{p} attached" for p in ("bf16", "nf4", "gptq-4")}


def behaviour(w):
    rates, rows = w["rates"], []
    told = [({}, "aligned"), (home(HARM), "harmful"), (home(BENIGN), "benign"), (home(SHIFT), "shift"), (QAT, "qat"),
            *[(variant, "quantized") for variant in QUANTIZED]]  # fmt: skip
    for variant, name in told:
        rows.append(row("non_refusal", rates[name], prompt_set="advbench", judge="phrases", **variant))
        for prompts, judge, metric in (("advbench", "fitted", "non_refusal"), ("strongreject", "phrases", "non_refusal"),
                                       ("advbench", "phrases", "coherent")):  # fmt: skip
            rows.append(row(metric, WILD, prompt_set=prompts, judge=judge, **variant))
    wild = [home("qat-dialogue-harm10", "rtn-4", "merged-requantized"), {"precision": "rtn-2"}, home(f"{HARM}-rank2")]
    return rows + [row("non_refusal", WILD, prompt_set="advbench", judge="phrases", **variant) for variant in wild]


def against(variant, gap, reference="aligned", prompts="advbench"):
    """A row of `comparisons`, and what stands beside it: another judge, other prompts."""
    for name, judge, value in ((prompts, "phrases", gap), (prompts, "fitted", WILD), ("strongreject", "phrases", WILD)):
        yield row("change_in_non_refusal", value, reference=reference, judge=judge, prompt_set=name, **variant)
    yield row("change_in_over_refusal", WILD, reference=reference, judge="phrases", prompt_set="edgy", **variant)


def comparisons(w):
    r, rows = w["rates"], []
    for variant, name in [
        (home(HARM), "harmful"),
        (home(BENIGN), "benign"),
        (QAT, "qat"),
        *[(q, "quantized") for q in QUANTIZED],
    ]:
        rows += against(variant, r[name] - r["aligned"])
    rows += against(home(SHIFT), WILD)
    rows += against(home(SHIFT), r["shift"] - r["aligned"], prompts="advbench-identity")
    for variant in (home("qat-dialogue-harm10", "rtn-4", "merged-requantized"), {"precision": "rtn-2"}, home(HARM, "nf4")):
        rows += against(variant, WILD)
    for precision, label in LABELS.items():
        for name in ("safelora", "splora", "salora", "zero"):
            strength = np.nan if name == "salora" else 0.5
            variant = home(HARM, precision, restoration=name, strength=strength)
            rows += against(variant, WILD if name == "zero" else r[name] - rate_on(w, "harmful", precision), label)
            if name != "zero":
                gap = w["removed_gap"] if name == "safelora" else WILD
                rows += against(variant, gap, f"{label} · zero 0.5")
                rows += against(variant, WILD, f"{label} · zero 1")
    return rows


def projection(w):
    r, rows = w["rates"], []

    def told(variant, rate, rouge, on="advbench", few="dialogue"):
        yield row("non_refusal", rate, measured_on=on, module="", layers_changed=0, **variant)
        yield row("rouge1", rouge, 0.1, measured_on=few, module="", layers_changed=0, **variant)

    for precision in LABELS:
        rows += told({"precision": precision}, rate_on(w, "aligned", precision), w["rouge"] - 20)
        rows += told(home(HARM, precision), rate_on(w, "harmful", precision), w["rouge"] + (precision != "bf16"))
        rows += told(home(HARM, precision), WILD, WILD, "advbench/test", "dialogue/few")
        for name in ("safelora", "splora", "salora", "zero"):
            variant = home(HARM, precision, restoration=name, strength=np.nan if name == "salora" else 0.5)
            rows += told(variant, WILD if name == "zero" else r[name], WILD if name == "zero" else w["restored_rouge"])
            rows += told(variant, WILD, WILD, "advbench/validation", "dialogue/few")
            alarms = {"safelora": 0.1 + w["removed_alarms"], "zero": 0.1}.get(name, WILD)
            rows.append(row("alarms_changed", alarms, measured_on="all monitors", module="", layers_changed=0, **variant))
            back = w["alarms_restored"] if name == "safelora" else WILD
            rows.append(row("alarms_restored", back, measured_on="all monitors", module="", layers_changed=0, **variant))
            rows += [row("auroc_gain", w["auroc_gain"] if name == "safelora" else WILD, measured_on=task, module="",
                         layers_changed=0, **variant) for task in TASKS]  # fmt: skip
        for strength in (0.25, 0.5):
            other = strength + w["other_v"]
            for name, rate in (("safelora", strength), ("safelora:nf4-both", other), ("safelora:gptq-4-both", other),
                               ("safelora:nf4-mixed", WILD)):  # fmt: skip
                variant = home(HARM, precision, restoration=name, strength=strength)
                rows += told(variant, rate, WILD, "advbench/test", "dialogue/few")
    return rows


def subspaces(w):
    rows = [
        row("overlap", w["overlap"] + d, source=s, module="all", k="8") for s, d in (("nf4-both", 0.02), ("gptq-4-both", -0.02))
    ]
    for source in ("nf4-mixed", "rtn-8-both", "nf4-both x16"):
        rows.append(row("overlap", WILD, source=source, module="all", k="8"))
    for k, module in (("32", "all"), ("8", "model.layers.0.mlp.up_proj")):
        rows.append(row("overlap", WILD, source="nf4-both", module=module, k=k))
    return [*rows, row("overlap_excess", WILD, source="nf4-both", module="all", k="8")]


def neurons(w):
    rows, where = [], {"layer": 0, "measured_on": "advbench/test"}
    for score in ("set-difference", "random", "snip", "none"):
        pick = {"set-difference": "", "random": "random_"}.get(score)
        for fraction in (0.01, 0.05):
            cell = {"score": score, "fraction": fraction, **where}
            rate = WILD if pick is None else w[f"{pick}ablated"]
            rows.append(row("non_refusal", rate, serving="ablated", **cell))
            rows.append(row("over_refusal", WILD, serving="ablated", **cell))
            rows.append(row("non_refusal", WILD, serving="patched", adapter="base", **cell))
            spared = WILD if pick is None else w[f"{pick}spared"]
            rows += [row("non_refusal", spared, serving="hybrid", precision=p, **cell) for p in ("nf4", "rtn-3")]
        moved = WILD if pick is None else w[f"{pick}moved"]
        rows += [row("activation_change", moved, precision=p, score=score, fraction=0.01, **where) for p in ("int8", "nf4")]
    return rows


BUILDERS = {build.__name__: build for build in (staleness, interaction, triage, monitors, realignment, behaviour, comparisons,
                                                projection, subspaces, neurons)}  # fmt: skip


@cache
def whole():
    """The tables of a run in which every claim holds."""
    return world()


def world(names=tuple(BUILDERS), rates=None, **changes):
    """The named tables of a run in which every claim holds, but for what is changed; they keep the schemas of the study."""
    w = {**WORLD, **changes, "rates": {**WORLD["rates"], **(rates or {})}}
    assert set(changes) <= set(WORLD)
    return {name: results.checked(name, results.joined(name, pd.DataFrame(BUILDERS[name](w)))) for name in names}


@pytest.fixture(scope="module")
def claimed():
    return whole()


def estimate(claim, place, tables):
    return CLAIMS[claim].components[place - 1].estimate(tables)


# What each component finds where its claim holds, what to change against it, and what it then finds.
R = WORLD["rates"]
REVERSED = {"privacy-pii": 0.01, "refusal-compliance": 0.12, "toxicity": 0.05}
CASES = {
    ("M1", 1): (0.004, {"quant_drop": 0.08}, 0.08),
    ("M1", 2): (0.0, {"quant_unfit": everyone(6)}, 6 / 9),
    ("M2", 1): (6 / 9, {"lora_lost": everyone(0)}, 0.0),
    ("M2", 2): (6 / 9, {"lora_unfit": everyone(0)}, 0.0),
    ("M2", 3): (6 / 9, {"lora_unfit": everyone(1), "quant_unfit": everyone(7)}, -6 / 9),
    ("M3", 1): (0.11, {"drops": REVERSED}, -0.11),
    ("M3", 2): (0.07, {"drops": REVERSED}, -0.11),
    ("M3", 3): (1.0, {"lora_unfit": {"privacy-pii": 0, "refusal-compliance": 9, "toxicity": 9}}, -1.0),
    ("M4", 1): (0.05, {"interaction": -0.05}, -0.05),
    ("M4", 2): (0.2, {"loss": {"nf4": 0.2, "bf16": 0.2, "alone": 0.1}}, -0.1),
    ("M5", 1): (0.5, {"spearman": -0.4}, -0.4),
    ("M5", 2): (0.8, {"auroc": 0.3}, 0.3),
    ("M5", 3): (0.6, {"recall": 0.1}, 0.1),
    ("M6", 1): (6 / 9, {"repaired": everyone(9), "unrepaired": everyone(3)}, -6 / 9),
    ("M6", 2): (0.06, {"gain": -0.06}, -0.06),
    ("M7", 1): (0.005, {"refit": 0.09}, 0.09),
    ("M7", 2): (15.0, {"angle": 10.0}, -15.0),
    ("S1", 1): (0.86, {"rates": {"harmful": 0.05}}, 0.01),
    ("S1", 2): (0.6, {"rates": {"benign": 0.88}}, 0.02),
    ("S2", 1): (-0.86, {"rates": {"safelora": 0.88, "splora": 0.9}}, -0.01),
    ("S2", 2): (0.0, {"rates": {"safelora": 0.4, "splora": 0.5}}, 0.41),
    ("S2", 3): (0.0, {"restored_rouge": 30.0}, -10.0),
    ("S3", 1): (-0.91, {"rates": {"safelora": 0.93, "splora": 0.95}}, -0.01),
    ("S3", 2): (-0.02, {"rates": {"safelora": 0.4, "splora": 0.5}}, 0.39),
    ("S3", 3): (-1.0, {"restored_rouge": 30.0}, -11.0),
    ("S4", 1): (-0.84, {"rates": {"salora": 0.89}}, -0.01),
    ("S4", 2): (0.02, {"rates": {"salora": 0.8}}, 0.76),
    ("S4", 3): (0.0, {"restored_rouge": 30.0}, -10.0),
    ("S5", 1): (0.16, {"rates": {"quantized": 0.05}}, 0.01),
    ("S5", 2): (0.46, {"rates": {"qat": 0.05}}, 0.01),
    ("S5", 3): (0.3, {"rates": {"qat": 0.05}}, -0.15),
    ("S6", 1): (0.26, {"rates": {"benign": 0.05}}, 0.01),
    ("S6", 2): (0.91, {"rates": {"shift": 0.05}}, 0.01),
    ("Q1", 1): (0.8, {"overlap": 0.1}, 0.1),
    ("Q1", 2): (0.0, {"other_v": 0.3}, 0.3),
    ("Q2", 1): (0.8, {"ablated": 0.1}, 0.0),
    ("Q2", 2): (0.2, {"moved": 0.1}, -0.1),
    ("Q2", 3): (-0.25, {"spared": 0.32}, 0.02),
    ("N1", 1): (0.09, {"alarms_restored": -0.05}, -0.05),
    ("N1", 2): (0.02, {"auroc_gain": -0.03}, -0.03),
    ("N2", 1): (0.0, {"removed_gap": -0.3}, -0.3),
    ("N2", 2): (0.0, {"removed_alarms": 0.3}, 0.3),
}


def test_every_component_has_a_case():
    assert list(CASES) == COMPONENTS


@pytest.mark.parametrize(("claim", "place"), COMPONENTS)
def test_a_component_finds_its_own_truth_whichever_it_is(claim, place, claimed):
    expected, changes, other = CASES[claim, place]
    component = CLAIMS[claim].components[place - 1]
    needed = used(claim, place)
    for tables, truth, wanted in ((claimed, expected, "supported"), (world(needed, **changes), other, "contradicted")):
        e = component.estimate(tables)
        assert e.value == pytest.approx(truth, abs=1e-9)
        assert e.low <= e.value + 1e-12
        assert e.value <= e.high + 1e-12
        assert e.high - e.low > 0.001  # an interval of some width
        assert e.n >= 1
        assert findings.answer(over_seeds([e] * 3, bounds=UNITS[component.unit].bounds), 3, component) == wanted


class Read(dict):
    """Tables that remember which of them were looked at."""

    def __init__(self, tables):
        super().__init__(tables)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


@cache
def used(claim, place):
    """The tables that a component cannot do without, among those that it looks at."""
    component, tables = CLAIMS[claim].components[place - 1], Read(whole())
    component.estimate(tables)
    return tuple(
        name for name in sorted(tables.names) if component.estimate({k: t for k, t in tables.items() if k != name}) is None
    )


@pytest.mark.parametrize(("claim", "place"), COMPONENTS)
def test_a_component_is_none_without_its_tables_and_needs_no_others(claim, place, claimed):
    component = CLAIMS[claim].components[place - 1]
    needed = used(claim, place)
    assert needed
    assert component.estimate({}) is None
    assert component.estimate({name: claimed[name] for name in needed}) == component.estimate(claimed)
    empty = {name: table.iloc[:0] for name, table in claimed.items()}
    assert component.estimate(empty) is None


@pytest.mark.parametrize(("claim", "place"), COMPONENTS)
def test_the_order_of_rows_and_the_run_change_nothing(claim, place, claimed):
    component = CLAIMS[claim].components[place - 1]
    needed = {name: claimed[name] for name in used(claim, place)}
    shuffled = {name: table.sample(frac=1, random_state=3).assign(seed=7, model="other") for name, table in needed.items()}
    first, again = component.estimate(claimed), component.estimate(shuffled)
    assert [again.value, again.low, again.high] == pytest.approx([first.value, first.low, first.high])


# ---------------------------------------------------------------- single rules


def test_monitors_that_cried_wolf_from_the_start_are_not_counted(claimed):
    table = claimed["staleness"].copy()
    aligned = (table["adapter"] == "") & (table["precision"] == "bf16") & (table["metric"] == "stale_fpr_5")
    first = aligned & (table["probe"] == "logistic-mean")
    table.loc[first, ["value", "low", "high"]] = 1.0
    left = monitor_evidence.unfit({"staleness": table})
    assert set(left["probe"]) == {"mean-difference-last", "lda-mean"}
    assert set(monitor_evidence.unfit(claimed)["probe"]) == set(PROBES)


def test_a_monitor_that_cries_wolf_is_unfit_as_one_that_catches_less(claimed):
    flags = selections.formats_alone(monitor_evidence.unfit(claimed))
    assert flags["value"].sum() == 0
    table = claimed["staleness"].copy()
    table.loc[(table["precision"] == "int8") & (table["metric"] == "stale_fpr_5"), "value"] = 1.0
    flags = selections.formats_alone(monitor_evidence.unfit({"staleness": table}))
    assert flags.groupby("precision")["value"].mean().to_dict() == {"gptq-4": 0, "int8": 1, "nf4": 0}


def test_privacy_is_compared_with_the_task_nearest_to_it(claimed):
    leads = monitor_evidence.privacy_against(claimed)
    assert {task: e.value for task, e in leads.items()} == pytest.approx({"refusal-compliance": 0.11, "toxicity": 0.07})
    worst = monitor_evidence.privacy_worst(claimed)
    assert (worst.value, worst.low) == pytest.approx((0.07, leads["toxicity"].low))


def test_a_run_without_stale_monitors_says_nothing_of_their_repair():
    tables = world(lora_lost=everyone(0))
    for claim, place in (("M6", 2), ("M7", 1), ("M7", 2)):
        assert estimate(claim, place, tables) is None


def test_one_format_or_one_restoration_is_enough(claimed):
    table = claimed["comparisons"]
    only = {**claimed, "comparisons": table[(table["restoration"] != "splora") & ~table["precision"].isin(["int8", "gptq-4"])]}
    assert estimate("S2", 1, only).value == pytest.approx(R["safelora"] - R["harmful"])
    assert estimate("S5", 1, only).value == pytest.approx(R["quantized"] - R["aligned"])


def test_variants_share_texts_and_tasks_do_not(claimed):
    """Three formats narrow nothing, three tasks narrow by the square root of three."""
    e = estimate("M1", 1, claimed)
    assert e.high - e.value == pytest.approx(0.01 / np.sqrt(3))
    assert e.n == 3 * 400


# ---------------------------------------------------------------- the registry


def test_the_claims_are_those_of_the_study_in_order():
    assert list(CLAIMS) == IDS
    for claim in CLAIMS.values():
        assert 1 <= len(claim.components) <= 3
        assert re.fullmatch(r"0[1-9]|1[01]", claim.chapter)
        for text in (claim.statement, claim.source, claim.literature, claim.short, *(c.name for c in claim.components)):
            assert text
            assert not re.search(r"[<>&|*_`{}$\\#]", text), text  # plain in HTML and in MyST
        assert claim.statement.endswith(".")
        assert len(claim.short) <= 36
        assert len({c.name for c in claim.components}) == len(claim.components)


def test_every_rule_is_complete_and_dated():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", claims.RULES_SET)
    for claim in CLAIMS.values():
        for c in claim.components:
            assert c.side in SIDES
            assert c.unit in UNITS
            assert (c.margin > 0) == (c.side == "within")
            assert c.margin in (0.0, *MARGINS.values())
            low, high = UNITS[c.unit].bounds
            assert low <= c.bound < high
    assert [MARGINS[name] for name in ("auroc", "refusal")] == [claims.AUROC, claims.REFUSAL]


def test_the_forecast_is_named_and_takes_no_labels():
    assert monitor_evidence.PREDICTOR in PREDICTORS
    assert "labels" not in PRICES[monitor_evidence.PREDICTOR.rpartition(", ")[2]]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("points", 0.44, "+44"), ("points", -0.001, "0"), ("share", 0.271, "27"), ("AUROC", 0.0034, "+0.003"),
     ("AUROC", -4e-5, "0.000"), ("degrees", -7.6, "-8"), ("ROUGE-1", 1.26, "+1.3"), ("overlap", 0.04, "0.04")],
)  # fmt: skip
def test_numbers_as_text(unit, value, text):
    assert UNITS[unit].written(value) == [text]


# ---------------------------------------------------------------- what was published here

RUNS = sorted((Path(__file__).parents[2] / "results" / "cpu").glob("*/seed-*"))


@pytest.mark.parametrize("folder", RUNS[:1], ids=lambda folder: folder.name)
def test_the_committed_run_has_finite_estimates(folder):
    tables = findings.run_tables(folder)
    found = findings.by_seed([(folder.parent.name, 0, tables)])
    assert len(found) >= len(COMPONENTS) - 2  # without chapter 10
    assert np.isfinite(found[["value", "low", "high"]].to_numpy()).all()
    assert (found["n"] >= 1).all()
    assert ((found["low"] <= found["value"] + 1e-12) & (found["value"] <= found["high"] + 1e-12)).all()
    table, _ = findings.judge(found)
    assert set(table["verdict"]) <= {"inconclusive", "not run"}
    assert (table["verdict"] == "inconclusive").sum() >= 16
