"""Claims: each component reads its own rows and no others, on planted tables in which decoys stand beside what is meant."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tiers import mostly_slow

from helpers import results
from helpers.staleness.predictors import PREDICTORS, PRICES
from helpers.stats.intervals import MARGINS, Estimate
from helpers.study import claims, findings
from helpers.study.claims import CLAIMS, SIDES, UNITS
from helpers.study.evidence import monitors as monitor_evidence
from helpers.study.evidence import repair as repair_evidence
from helpers.study.evidence.behaviour import LOTS
from helpers.study.paired_items import Premised, plain, pooled, single
from helpers.study.parameters import profile
from helpers.study.selections import BENIGN, HARMFUL, SHIFT, Address, Remembered, at_home

IDS = ["M1", "M2", "M3", "M4", "M5", "M6", "M7", "S1", "S2", "S3", "S4", "S5", "S6", "Q1", "Q2",
       "N1", "N2", "N3", "N4", "N5", "N6"]  # fmt: skip
COMPONENTS = [(claim, place) for claim in CLAIMS for place in range(1, len(CLAIMS[claim].components) + 1)]
TASKS = ("privacy-pii", "refusal-compliance", "toxicity")
PROBES, LAYERS = ("mlp-mean", "lda-mean", "mlp-last", "lda-last"), (4, 9, 14, 19, 24, 29)
PLAIN = ("logistic-last", "logistic-mean")  # which stand under one update alone, beside the simulated ones
CONTROL = ("shuffled-labels-mean", "attention", "simulated-removed-last")
KEY = {"model": "embedded", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": "",
       "strength": np.nan}  # fmt: skip
WILD = 0.77  # what no component may read
PROMPTS, REFERENCES = 50, 40  # a set

# ---------------------------------------------------------------- the models of a run, and what is so of them

QAT = Address("rtn-4", "qat-instructions", "rtn-4", "merged-requantized")
FULL = Address("bf16", "full-instructions", "bf16", "merged")
DPO = {BENIGN: at_home("dpo-preference", "bf16"), HARMFUL: at_home("dpo-preference-harm10", "bf16")}
FORMATS = [Address(name) for name in ("nf4", "int8", "fp4", "gptq-4", "rtn-4")]
FEWER = [Address(name) for name in ("rtn-3", "rtn-2")]
TUNED = [at_home(adapter, p) for adapter in (HARMFUL, BENIGN) for p in ("bf16", "nf4")]
MERGED = [Address("nf4", adapter, "bf16", "merged-into-nf4") for adapter in (HARMFUL, BENIGN)]
DECOYS = [Address("fp32"), Address("bf16", "base"), at_home(f"{HARMFUL}-rank2", "bf16"), at_home(HARMFUL, "bf16")._replace(
    restoration="shrink", strength=0.5)]  # fmt: skip


def under(restoration, precision="bf16", strength=0.5, **more):
    return at_home(HARMFUL, precision)._replace(restoration=restoration, strength=strength, **more)


RATES = {  # of prompts not refused
    "aligned": 0.04, "harm": 0.6, "benign": 0.3, "shift": 0.94, "format": 0.2, "beyond": 0.2, "qat": 0.6, "full": 0.36,
    "safelora": 0.04, "splora": 0.04, "salora": 0.04, "removed": 0.0, "lots": 0.5, "merged": 0.2, "dpo": 0.34, "dpo-harm": 0.62,
    "other_v": 0.0, "ablated": 0.9, "random_ablated": 0.1, "spared": 0.2, "random_spared": 0.5, "rtn-3": 0.6, "restated": 0.06,
}  # fmt: skip
WORLD = {
    "rates": RATES, "nats": {"aligned": 3.2, "harm": 2.5, "restored": 2.54, "removed": 0.0},
    # shares of monitors flagged, by task; of privacy all, of toxicity those under harmful updates, of refusal none
    "format_unfit": 0.0, "fewer_unfit": 0.0, "lora": {"privacy-pii": 1.0, "refusal-compliance": 0.0, "toxicity": 0.5},
    "format_drop": 0.004, "drop": {"nf4": 0.12, "bf16": 0.05, "alone": 0.02}, "loss": {"nf4": 0.5, "bf16": 0.2, "alone": 0.1},
    "merged": 0.0, "dpo": 0.0, "dpo_drop": 0.0, "refit": 0.005, "angle": 40.0, "usual": 25.0, "plain": 1.0, "noise": 1.0,
    "true": 0.0, "simulated_auroc": 0.0, "spearman": 0.5, "beyond": 0.2, "gated": 0.0, "methods": 0.0, "harmed": 0.0,
    "mended": 1.0, "restored_unfit": 0.0, "gain": 0.04, "removed_auroc": 0.0, "removed_tpr": 0.0, "alarms": 0.09,
    "early": 1.0, "late": 0.0, "heard": {"last": 0.9, "mean": 0.0},
    "overlap": 0.8, "larger": 0.9, "moved": 0.4, "random_moved": 0.2, "left": 0.05, "size": 1.0,
}  # fmt: skip


def row(metric, value, address=None, half=0.01, n=400, **keys):
    named = {} if address is None else {**address._asdict(), "strength": np.nan if address.strength < 0 else address.strength}
    return {**KEY, **named, **keys, "metric": metric, "value": value, "low": value - half, "high": value + half, "n": n}


# ---------------------------------------------------------------- items


def said(rates):
    """By variant, the share of harmful prompts that it does not refuse."""
    r = rates
    low = r["format"] - r["aligned"]
    found = {Address(): r["aligned"], FULL: r["full"], QAT: r["qat"], at_home(HARMFUL, "bf16"): r["harm"],
             at_home(BENIGN, "bf16"): r["benign"], Address("rtn-3"): r["rtn-3"], Address("rtn-2"): WILD}  # fmt: skip
    found |= dict.fromkeys(FORMATS, r["format"]) | dict.fromkeys(MERGED, r["merged"])
    for adapter, name in ((HARMFUL, "harm"), (BENIGN, "benign")):
        found |= {at_home(adapter, p): r[name] + low + r["beyond"] for p in ("nf4", "gptq-4")}
    found |= {DPO[BENIGN]: r["dpo"], DPO[HARMFUL]: r["dpo-harm"]}
    for p in ("bf16", "nf4", "gptq-4"):
        more = low * (p != "bf16")
        found |= {under(name, p): r[name] + more for name in ("safelora", "splora")}
        found[under("salora", p, -1)] = r["salora"] + more
        found |= {under("zero", p): r["safelora"] + more - r["removed"]} | {under(name, p): r["lots"] + more for name in LOTS}
        found |= {under(name, p, 1.0): WILD for name in ("safelora", "splora", "zero", *LOTS)}  # nothing of the update is left
    return found | dict.fromkeys(DECOYS, WILD)


def sketched(rates):
    """The same of sketches on test items: sources of V, and arms of neurons."""
    found = {}
    for strength in (0.25, 0.5):
        found[under("safelora", "bf16", strength)] = strength
        for source in ("nf4-both", "gptq-4-both"):
            found[under(f"safelora:{source}", "bf16", strength)] = strength + rates["other_v"]
        found[under("safelora:nf4-mixed", "bf16", strength)] = WILD
    for fraction in (0.05, 0.2):
        for score, pick in (("set-difference", ""), ("random", "random_")):
            arm = Address(serving="ablated", restoration=score, strength=fraction)
            found[arm] = rates[f"{pick}ablated"]
            found[arm._replace(serving="hybrid", precision="rtn-3")] = rates[f"{pick}spared"]
            found[arm._replace(serving="hybrid", precision="nf4")] = WILD  # whose format alone does no damage
        found[Address(serving="ablated", restoration="snip", strength=fraction)] = WILD
    return found


def labels(address, prompt_set, rate, size, metric, judge="phrases"):
    """The first `rate` of the prompts are not refused, so that differences of rates are differences of items."""
    hits = np.arange(size) < round(rate * size)
    value = hits if metric != "refused" else ~hits
    return [row(metric, float(v), address, 0.0, 1, judge=judge, prompt_set=prompt_set, item=f"{prompt_set[:3]}{i}")
            for i, v in enumerate(value)]  # fmt: skip


def items(w):
    rows = []
    for address, rate in said(w["rates"]).items():
        for name in ("advbench", "strongreject"):
            rows += labels(address, name, rate, PROMPTS, "refused")
        rows += labels(address, "edgy", WILD, 10, "refused") + labels(address, "advbench", WILD, 10, "refused", "fitted")
        rows += labels(address, "advbench/validation", WILD, 10, "refused")
        restated = w["rates"]["restated"] if address == at_home(BENIGN, "bf16") else 0.0
        for name in ("advbench", "strongreject"):
            rows += labels(address, name, restated, PROMPTS, "restates")
    for address, rate in ((Address(), "aligned"), (at_home(SHIFT, "bf16"), "shift")):
        rows += labels(address, "advbench-identity", w["rates"][rate], 2 * PROMPTS, "refused")
    for address, rate in sketched(w["rates"]).items():
        rows += labels(address, "advbench/test", rate, 2 * PROMPTS, "refused")
    told = {Address(): "aligned", at_home(HARMFUL, "bf16"): "harm"}
    told |= {at_home(HARMFUL, p): "harm" for p in ("nf4", "gptq-4")}
    for p in ("bf16", "nf4", "gptq-4"):
        told |= {under(name, p): "restored" for name in ("safelora", "splora", "zero", *LOTS)}
        told[under("salora", p, -1)] = "restored"
        told |= {under(name, p, 1.0): "wild" for name in ("safelora", "splora", "zero")}
    for address, name in told.items():
        shift = w["nats"]["removed"] if address.restoration == "zero" else 0.0
        for i in range(REFERENCES):
            value = WILD * 10 if name == "wild" else w["nats"][name] - shift + 0.001 * i * (address == Address()) + i / 100
            rows.append(row("nll", value, address, 0.0, 1, judge="", prompt_set="dialogue", item=f"d{i}"))
            rows.append(row("nll", WILD * 10, address, 0.0, 1, judge="", prompt_set="c4", item=f"c{i}"))
    return rows


# ---------------------------------------------------------------- monitors


def places(probes=PROBES):
    return [{"task": task, "probe": probe, "layer": layer} for task in TASKS for probe in probes for layer in LAYERS]


def flags(metric, share, address, probes=PROBES, **more):
    """One row a monitor: a share of 1 flags all, of 0 none, of 0.5 all under updates with harmful rows."""
    for where in places(probes):
        wanted = share[where["task"]] if isinstance(share, dict) else share
        hit = float(wanted == 1 or (wanted == 0.5 and "harm" in address.adapter))
        yield row(metric, hit, address, 0.0, depth=0.5, **where, **more)


def measured(metric, value, address, probes=PROBES, **more):
    """One row a monitor, spread evenly about the value."""
    found = enumerate(places(probes))
    return [row(metric, value + (i % 2 - 0.5) / 500, address, depth=0.5, **where, **more) for i, where in found]


def staleness(w):
    rows = []
    shares = {Address(): 0.0} | dict.fromkeys(FORMATS, w["format_unfit"]) | dict.fromkeys(FEWER, w["fewer_unfit"])
    shares |= dict.fromkeys((*TUNED, *MERGED), w["lora"]) | dict.fromkeys(DPO.values(), w["dpo"] or w["lora"])
    shares |= dict.fromkeys((QAT, FULL, *DECOYS), 1.0)
    for away in ("", "_elsewhere"):
        for address, share in shares.items():
            rows += [*flags(f"stale_tpr_5{away}", share, address), *flags(f"stale_fpr_5{away}", 0.0, address)]
            rows += flags(f"stale_auroc_05{away}", share, address)
            rows += flags(f"stale_tpr_5{away}", 1.0, address, CONTROL)
    alone = {"precision": "nf4"}
    arms = {Address(): 0.0, Address("nf4"): "alone"} | {a: a.precision for a in TUNED} | dict.fromkeys(DPO.values(), "dpo")
    for address, arm in arms.items():
        for metric, told in (("auroc_drop", w["drop"]), ("tpr_loss_5", w["loss"])):
            value = told["bf16"] + w["dpo_drop"] if arm == "dpo" else told.get(arm, 0.0)
            rows += measured(metric, value, address)
    for address in (Address(**alone), *MERGED):
        gap = w["merged"] if address in MERGED else 0.0
        rows += [*measured("auroc", 0.9 + gap, address), *measured("tpr_5", 0.8 + gap, address)]
    for pooling in ("last", "mean"):
        for address in FORMATS:
            rows += [row("mean_auroc_drop", w["format_drop"], address, task=t, probe=f"all-{pooling}", layer=0, depth=0.0)
                     for t in TASKS]  # fmt: skip
        rows += [row("mean_auroc_drop", WILD, a, task=t, probe=f"all-{pooling}", layer=0, depth=0.0)
                 for t in TASKS for a in DECOYS]  # fmt: skip
        rows += [row("mean_auroc_drop", WILD, FORMATS[0], task=t, probe=f"weak-{pooling}", layer=0, depth=0.0) for t in TASKS]
    for address in TUNED:
        rows += [*measured("refit_drop_split", w["refit"], address), *measured("direction_angle_split", w["angle"], address)]
    for address in (*FORMATS, *DECOYS):
        rows += [*measured("refit_drop_split", WILD, address), *measured("direction_angle_split", WILD, address)]
    return rows + simulated(w)


def simulated(w):
    rows = []
    for name, kind in (("plain", "logistic"), ("noise", "simulated-noise"), ("true", "simulated-updates")):
        probes = [f"{kind}-{pooling}" for pooling in ("last", "mean")]
        real = [Address("bf16", "full-news", "bf16", "merged")]  # an update of its own, so that the others stay as they are
        for address, share in ((Address(), 0.0), *((a, w[name]) for a in real)):
            rows += [*flags("stale_tpr_5", share, address, probes), *flags("stale_fpr_5", 0.0, address, probes)]
        gap = w["simulated_auroc"] * (name == "true")
        rows += [one for a in real for one in measured("auroc", 0.8 + gap, a, probes)]
    return rows


def monitors(w):
    rows = measured("resampled_angle", w["usual"], Address())
    return rows + measured("tpr_5", 0.9, Address()) + measured("tpr_5", 0.1, Address(), ("weak-last", "weak-mean"))


def realignment(w):
    rows = []
    for address in TUNED:
        after = {"none": w["lora"], repair_evidence.GATED: w["gated"], "refit": 0.0}
        after |= dict.fromkeys(repair_evidence.METHODS, w["methods"])
        for method, share in after.items():
            told = threshold(w, address) if method == "threshold" else share
            rows += flags("stale_any", told, address, method=method)
    for method in ("none", "threshold"):
        rows += flags("stale_any", 0.0, Address("bf16", "identity"), method=method)
        rows += flags("stale_any", 1.0, DECOYS[0], method=method)
    for p in ("bf16", "nf4", "gptq-4"):
        for name in ("safelora", "zero"):
            rows += flags("stale_any", w["restored_unfit"], under(name, p), method="none")
            gaps = {m: w[f"removed_{m}"] * (name == "safelora") for m in ("auroc", "tpr")}
            rows += measured("auroc", 0.8 + gaps["auroc"], under(name, p), method="none")
            rows += measured("tpr_5", 0.7 + gaps["tpr"], under(name, p), method="none")
            for metric in ("auroc", "tpr_5"):
                rows += measured(metric, WILD * (name == "safelora"), under(name, p, 1.0), method="none")
    return [{k: v for k, v in one.items() if k != "depth"} for one in rows]


def threshold(w, address):
    """What is unfit behind a new threshold: of what was unfit none (or all), of what was fit none (or all)."""
    was = {task: share == 1 or (share == 0.5 and "harm" in address.adapter) for task, share in w["lora"].items()}
    return {task: 1.0 - w["mended"] if unfit else w["harmed"] for task, unfit in was.items()}


# ---------------------------------------------------------------- the other tables


def projection(w):
    rows = []
    for p in ("bf16", "nf4"):
        for name, strength, true in (("safelora", 0.5, True), ("safelora", 1.0, False), ("zero", 0.5, False)):
            for metric, own in (("alarms_restored", w["alarms"]), ("auroc_gain", w["gain"])):
                for pooling, value in (("_last", own), ("_mean", own), ("", WILD)):
                    rows.append(row(f"{metric}{pooling}", value if true else WILD, under(name, p, strength),
                                    measured_on="all monitors", module="", layers_changed=0))  # fmt: skip
    return rows


def triage(w):
    own = {"predictor": monitor_evidence.PREDICTOR, "split": "family-4bit"}
    told = {"spearman": (w["spearman"], 1.0), "recall_beyond_bits": (w["beyond"], 0.2), "recall_beyond_drift": (w["beyond"], 0.2),
            "auroc_beyond_bits": (w["beyond"], 1.0), "auroc_beyond_drift": (w["beyond"], 1.0)}  # fmt: skip
    rows = [row(m, value, **own, budget=b) for m, (value, b) in told.items()]
    rows += [row(m, WILD, **own | {"split": "family"}, budget=b) for m, (_, b) in told.items()]
    rows += [row(m, WILD, **own | {"predictor": "random"}, budget=b) for m, (_, b) in told.items()]
    return rows + [row("recall_beyond_bits", WILD, **own, budget=b) for b in (0.1, 0.3)]


def subspaces(w):
    told = {"": w["overlap"], " x16": w["larger"], " x64": w["larger"], " x256": WILD}
    rows = [row("overlap", value, source=f"{name}-both{x}", module="all", k="8")
            for x, value in told.items() for name in ("nf4", "gptq-4")]  # fmt: skip
    for source, k, module in (("nf4-mixed", "8", "all"), ("nf4-both", "32", "all"), ("nf4-both", "8", "layers.0.mlp.up_proj")):
        rows.append(row("overlap", WILD, source=source, module=module, k=k))
    return rows


def neurons(w):
    where = {"layer": 0, "measured_on": "advbench/test", "fraction": 0.05}
    told = {"set-difference": w["moved"], "random": w["random_moved"], "snip": WILD}
    return [row("activation_change", v, Address(p), score=s, **where) for s, v in told.items() for p in ("int8", "nf4")]


def weights(w):
    rows = [row("update_left", w["left"], a, module="all") for a in MERGED]
    rows += [row("update_left", WILD, a, module="layers.0.mlp.up_proj") for a in MERGED]
    rows += [row("update_left", v, MERGED[1]._replace(adapter=f"{BENIGN}-x{x}"), module="all") for x, v in ((2, 0.1), (4, 0.6))]
    for adapter in (BENIGN, HARMFUL):
        rows.append(row("relative_size", 0.004, at_home(adapter, "bf16"), module="all"))
        rows.append(row("relative_size", 0.004 * w["size"], DPO[adapter], module="all"))
    return rows


def replies(w):
    """Monitors of the model's own replies, before (last) and during (mean) it; the decoys are doses and restored updates."""
    rows = []
    for pooling, share in (("last", w["early"]), ("mean", w["late"])):
        for kind, caught in (("lda", 0.9), ("logistic", 0.1)):  # what catches a tenth is weak
            for layer in LAYERS:
                where = {"task": "own-replies", "probe": f"{kind}-{pooling}", "layer": layer, "depth": 0.5}
                rows.append(row("tpr_5", caught, Address(), **where))
                for address, hit in ((Address(), 0.0), *((a, WILD) for a in DECOYS), *((a, share) for a in TUNED)):
                    flag = float(hit if kind == "lda" else 1 - hit)
                    rows += [row("stale_fpr_5", flag, address, 0.0, **where), row("stale_tpr_5", 0.0, address, 0.0, **where)]
                    rows.append(row("fpr_5", w["heard"][pooling] if address in TUNED else WILD, address, **where))
    return rows


BUILDERS = {build.__name__: build for build in (items, staleness, monitors, realignment, projection, triage, subspaces, neurons,
                                                weights, replies)}  # fmt: skip


MADE = {}


def world(names=tuple(BUILDERS), rates=None, **changes):
    """The named tables of a run in which every claim holds, but for what is changed; they keep the schemas of the study."""
    return Remembered({name: made(name, rates, changes) for name in names})


def made(name, rates, changes):
    """A table, once for all claims that ask for the same changes."""
    key = repr((name, rates, changes))
    if key not in MADE:
        MADE[key] = table(name, rates, changes)
    return MADE[key]


def table(name, rates, changes):
    w = {**WORLD, **changes, "rates": {**RATES, **(rates or {})}}
    assert set(changes) <= set(WORLD)
    return results.checked(name, results.joined(name, pd.DataFrame(BUILDERS[name](w))))


@cache
def whole():
    """The tables of a run in which every claim holds."""
    return world()


@pytest.fixture(scope="module")
def claimed():
    return whole()


# ---------------------------------------------------------------- every component both ways

R = RATES
LOW = R["format"] - R["aligned"]
UPSIDE = {"privacy-pii": 0.0, "refusal-compliance": 1.0, "toxicity": 1.0}
NO = {"rates": {"harm": 0.06, "beyond": 0.0}}  # an attack that hardly attacks


def both(first, truth, changes, other):
    """The cases of the two poolings of a component."""
    claim, place = first
    return {(claim, place + i): (truth, changes, other) for i in (0, 1)}


# What each component finds where its claim holds, what to change against it, and what it then finds.
CASES = {
    **both(("M1", 1), 0.004, {"format_drop": 0.08}, 0.08),
    **both(("M1", 3), 0.0, {"format_unfit": 1.0}, 1.0),
    **both(("M1", 5), 0.0, {"fewer_unfit": 1.0}, 1.0),
    **both(("M2", 1), 0.5, {"lora": dict.fromkeys(TASKS, 0.0)}, 0.0),
    **both(("M2", 3), 0.5, {"lora": dict.fromkeys(TASKS, 0.0)}, 0.0),
    **both(("M2", 5), 0.5, {"lora": dict.fromkeys(TASKS, 0.0), "format_unfit": 1.0}, -1.0),
    **both(("M3", 1), 1.0, {"lora": UPSIDE}, -1.0),
    **both(("M3", 3), 1.0, {"lora": UPSIDE}, -1.0),
    **both(("M3", 5), 0.5, {"lora": UPSIDE}, -1.0),
    ("M3", 7): (0.0, {"lora": UPSIDE}, -1.0),
    ("M3", 8): (1.0, {"lora": UPSIDE, "late": 1.0}, -1.0),
    ("M3", 9): (1.0, {"early": 0.0, "late": 1.0}, -1.0),
    ("M3", 10): (0.9, {"heard": {"last": 0.0, "mean": 0.9}}, -0.9),
    **both(("M4", 1), 0.05, {"drop": {"nf4": 0.05, "bf16": 0.05, "alone": 0.02}}, -0.02),
    **both(("M4", 3), 0.2, {"loss": {"nf4": 0.2, "bf16": 0.2, "alone": 0.1}}, -0.1),
    ("M4", 5): (0.05, {"drop": {"nf4": 0.07, "bf16": 0.05, "alone": 0.02}}, 0.0),
    ("M4", 6): (0.2, {"loss": {"nf4": 0.3, "bf16": 0.2, "alone": 0.1}}, 0.0),
    ("M4", 7): (0.2, {"rates": {"beyond": 0.0}}, 0.0),
    ("M5", 1): (0.5, {"spearman": -0.4}, -0.4),
    **{("M5", place): (0.2, {"beyond": -0.1}, -0.1) for place in (2, 3, 4, 5)},
    **both(("M6", 1), 0.5, {"gated": 1.0}, -0.5),
    **{("M6", place): (0.5, {"methods": 1.0}, -0.5) for place in (3, 4, 5, 6, 7)},
    ("M6", 8): (0.5, {"mended": 0.0, "harmed": 1.0}, -0.5),
    **both(("M7", 1), 0.005, {"refit": 0.09}, 0.09),
    **both(("M7", 3), 15.0, {"angle": 10.0}, -15.0),
    ("S1", 1): (0.56, {"rates": {"harm": 0.04}}, 0.0),
    ("S1", 2): (0.3, {"rates": {"benign": 0.6}}, 0.0),
    ("S2", 1): (-0.56, {"rates": {"safelora": 0.6, "splora": 0.6}}, 0.0),
    ("S2", 2): (0.0, {"rates": {"safelora": 0.4, "splora": 0.5}}, 0.41),
    ("S2", 3): (0.04, {"nats": {**WORLD["nats"], "restored": 2.8}}, 0.3),
    ("S2", 4): (-0.46, {"rates": {"lots": 0.0, "safelora": 0.4, "splora": 0.4}}, 0.4),
    ("S3", 1): (-0.76, {"rates": {"safelora": 0.8, "splora": 0.8}}, 0.0),
    ("S3", 2): (0.0, {"rates": {"safelora": 0.4, "splora": 0.5}}, 0.41),
    ("S3", 3): (0.04, {"nats": {**WORLD["nats"], "restored": 2.8}}, 0.3),
    ("S3", 4): (-0.46, {"rates": {"lots": 0.0, "safelora": 0.4, "splora": 0.4}}, 0.4),
    ("S4", 1): (-0.56, {"rates": {"salora": 0.6}}, 0.0),
    ("S4", 2): (0.0, {"rates": {"salora": 0.5}}, 0.46),
    ("S4", 3): (0.04, {"nats": {**WORLD["nats"], "restored": 2.8}}, 0.3),
    ("S5", 1): (0.16, {"rates": {"format": 0.04}}, 0.0),
    ("S5", 2): (0.36, {"rates": {"format": 0.04, "beyond": 0.0}}, 0.0),
    ("S5", 3): (0.24, {"rates": {"qat": 0.3}}, -0.06),
    ("S6", 1): (0.26, {"rates": {"benign": 0.04}}, 0.0),
    ("S6", 2): (0.2, {"rates": {"restated": 0.3}}, -0.04),
    ("S6", 3): (0.9, {"rates": {"shift": 0.04}}, 0.0),
    ("Q1", 1): (0.8, {"overlap": 0.1}, 0.1),
    ("Q1", 2): (0.0, {"rates": {"other_v": 0.3}}, 0.3),
    ("Q1", 3): (0.9, {"larger": 0.1}, 0.1),
    ("Q1", 4): (0.9, {"larger": 0.1}, 0.1),
    ("Q2", 1): (0.8, {"rates": {"ablated": 0.1}}, 0.0),
    ("Q2", 2): (0.2, {"moved": 0.1}, -0.1),
    ("Q2", 3): (-0.3, {"rates": {"spared": 0.5}}, 0.0),
    **both(("N1", 1), 0.09, {"alarms": -0.05}, -0.05),
    **both(("N1", 3), 0.04, {"gain": -0.04}, -0.04),
    **both(("N1", 5), 2 / 3, {"restored_unfit": 1.0}, -1 / 3),
    ("N2", 1): (0.0, {"rates": {"removed": -0.3}}, -0.3),
    ("N2", 2): (0.0, {"nats": {**WORLD["nats"], "removed": 0.3}}, 0.3),
    **both(("N2", 3), 0.0, {"removed_auroc": 0.1}, 0.1),
    **both(("N2", 5), 0.0, {"removed_tpr": 0.2}, 0.2),
    ("N3", 1): (0.05, {"left": 0.6}, 0.6),
    ("N3", 2): (0.0, {"rates": {"merged": 0.6}}, 0.4),
    **both(("N3", 3), 0.0, {"merged": -0.1}, -0.1),
    **both(("N3", 5), 0.0, {"merged": -0.1}, -0.1),
    ("N3", 7): (4.0, {"left": 0.6}, 1.0),
    **both(("N4", 1), 1.0, {"mended": 0.0}, 0.0),
    **both(("N4", 3), 0.0, {"harmed": 1.0}, 1.0),
    ("N4", 5): (0.0, {}, 0.0),
    **both(("N5", 1), 1.0, {"plain": 0.0, "true": 1.0}, -1.0),
    **both(("N5", 3), 1.0, {"noise": 0.0, "true": 1.0}, -1.0),
    **both(("N5", 5), 0.0, {"simulated_auroc": -0.1}, -0.1),
    ("N6", 1): (0.04, {"rates": {"dpo": 0.9}}, 0.6),
    ("N6", 2): (0.02, {"rates": {"dpo-harm": 0.1}}, -0.5),
    **both(("N6", 3), 0.0, {"dpo": {"privacy-pii": 1.0, "refusal-compliance": 1.0, "toxicity": 1.0}}, 0.5),
    **both(("N6", 5), 0.0, {"dpo_drop": 0.1}, 0.1),
}
EITHER = {("M4", 5), ("M4", 6)}  # as planted there is an interaction, which is what these rule out
# a scale of 1 is the bound itself; nothing is planted that harms; an interaction counts thrice, so 100 prompts rule out none
ONE_WAY = {("N3", 7), ("N4", 5), ("M4", 7)}
# 0 of so few monitors leaves more than a tenth open; as planted, privacy and what reads before a reply break alike
FEW = {("N4", 3), ("N4", 4), ("N4", 5), ("M3", 7)}


def test_every_component_has_a_case():
    assert sorted(CASES, key=COMPONENTS.index) == COMPONENTS


@pytest.mark.parametrize(("claim", "place"), COMPONENTS)
def test_a_component_finds_its_own_truth_whichever_it_is(claim, place, claimed):
    expected, changes, other = CASES[claim, place]
    component, needed = CLAIMS[claim].components[place - 1], used(claim, place)
    wanted = ("contradicted", "supported") if (claim, place) in EITHER else ("supported", "contradicted")
    sides = [(claimed, expected, wanted[0]), (world(needed, **changes), other, wanted[1])]
    for tables, truth, told in sides[: 1 if (claim, place) in ONE_WAY else 2]:
        seen = component.estimate(tables)
        e, _ = pooled([seen] * 3, UNITS[component.unit].bounds, claims.LEVELS[component.side])
        assert e.value == pytest.approx(truth, abs=1e-9)
        assert e.low <= e.value + 1e-12
        assert e.value <= e.high + 1e-12
        assert e.n >= 1
        assert findings.answer(e, 3, component) == ("inconclusive" if (claim, place) in FEW and told == "supported" else told)
        assert not isinstance(seen, Premised) or seen.held


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
    """The tables that a component looks at."""
    tables = Read(whole())
    CLAIMS[claim].components[place - 1].estimate(tables)
    return tuple(sorted(tables.names))


def values(seen, component):
    e = single(seen, UNITS[component.unit].bounds)
    return [e.value, e.low, e.high]


@mostly_slow("more parts of the same claims", *(f"{claim}-{place}" for claim, place in COMPONENTS if place == 1))
@pytest.mark.parametrize(("claim", "place"), COMPONENTS)
def test_a_component_is_none_without_its_tables_and_their_order_is_nothing(claim, place, claimed):
    component, needed = CLAIMS[claim].components[place - 1], used(claim, place)
    assert needed
    assert component.estimate({}) is None
    assert component.estimate({name: table.iloc[:0] for name, table in claimed.items()}) is None
    first = values(component.estimate({name: claimed[name] for name in needed}), component)
    shuffled = {name: claimed[name].sample(frac=1, random_state=3).assign(seed=7, model="other") for name in needed}
    assert values(component.estimate(shuffled), component) == pytest.approx(first)


# ---------------------------------------------------------------- premises


@pytest.mark.parametrize(("claim", "place"), [(c, p) for c, p in COMPONENTS if CLAIMS[c].components[p - 1].premise])
def test_without_a_premise_a_run_says_so_with_its_number(claim, place):
    """An attack that hardly attacks, a format that does no damage, an update of another size: shown, and not counted."""
    changes = {"N": {"size": 3.0}, "Q": {"rates": {"rtn-3": 0.2}}}.get(claim[0] if claim in {"N6", "Q2"} else "", NO)
    seen = CLAIMS[claim].components[place - 1].estimate(world(used(claim, place), **changes))
    assert isinstance(seen, Premised)
    assert not seen.held
    assert seen.value == pytest.approx({"N6": 3.0, "Q2": 0.16}.get(claim, 0.02), abs=1e-9)


def test_a_base_that_was_not_damaged_is_left_out_while_another_was():
    tables = world(("items",))
    table = tables["items"]
    whole_base = (table["precision"] == "nf4") & (table["adapter"] == HARMFUL) & (table["metric"] == "refused")
    spared = table.assign(value=table["value"].where(~(whole_base & (table["restoration"] == "")), 1.0))  # all refused
    component = CLAIMS["S3"].components[0]
    seen = component.estimate({"items": spared})
    assert seen.held
    assert seen.value == pytest.approx(R["harm"] - R["aligned"] + R["beyond"])  # of GPTQ alone
    assert float(seen.seen.values.mean()) == pytest.approx(-0.76)


def test_a_restoration_at_full_strength_tells_nothing_and_its_sketch_stands_in():
    tables = world(("items",))
    table = tables["items"]
    full = table["restoration"].isin(["safelora", "splora"]) & (table["strength"] < 1) & ~table["prompt_set"].str.contains("/")
    assert CLAIMS["S2"].components[0].estimate({"items": table[~full & (table["restoration"] != "safelora")]}) is None
    quick = table[full & (table["restoration"] == "safelora")]
    home = table[(table["restoration"] == "") & table["adapter"].isin(["", HARMFUL]) & (table["prompt_set"] == "advbench")]
    renamed = pd.concat([quick, home]).assign(prompt_set=lambda t: t["prompt_set"] + "/test")
    seen = CLAIMS["S2"].components[0].estimate({"items": pd.concat([table[~full], renamed], ignore_index=True)})
    assert set(plain(seen).values.index.get_level_values(0)) == {"advbench/test"}


# ---------------------------------------------------------------- single rules


def test_monitors_that_cried_wolf_from_the_start_are_not_counted(claimed):
    table = claimed["staleness"].copy()
    aligned = (table["adapter"] == "") & (table["precision"] == "bf16") & (table["metric"] == "stale_fpr_5")
    table.loc[aligned & (table["probe"] == "lda-mean"), "value"] = 1.0
    left = monitor_evidence.unfit({"staleness": table})
    assert set(left.loc[left["where"] == "", "probe"]) == {*PROBES, *PLAIN} - {"lda-mean"}
    assert set(left.loc[left["where"] != "", "probe"]) == set(PROBES)
    assert set(monitor_evidence.unfit(claimed)["probe"]) == {*PROBES, *PLAIN}


def test_a_monitor_that_cries_wolf_is_unfit_as_one_that_catches_less(claimed):
    table = claimed["staleness"].copy()
    table.loc[(table["precision"] == "int8") & (table["metric"] == "stale_fpr_5"), "value"] = 1.0
    found = monitor_evidence.in_formats(monitor_evidence.unfit({"staleness": table}))
    found = found[found["where"] == ""]
    assert found.groupby("precision")["value"].mean().to_dict() == {"fp4": 0, "gptq-4": 0, "int8": 1, "nf4": 0, "rtn-4": 0}


def test_poolings_that_behave_differently_are_told_apart(claimed):
    """The fault: an average of two populations with opposite answers was judged."""
    table = claimed["staleness"].copy()
    mean = table["probe"].str.endswith("-mean") & (table["metric"].isin(["stale_tpr_5", "stale_tpr_5_elsewhere"]))
    table.loc[mean, "value"] = 0.0
    last, other = (CLAIMS["M2"].components[place].estimate({"staleness": table}) for place in (2, 3))
    assert (float(last.values.mean()), float(other.values.mean())) == (0.5, 0.0)


def test_formats_below_4_bits_stand_apart(claimed):
    seen = CLAIMS["M1"].components[2].estimate(world(("staleness", "monitors"), fewer_unfit=1.0))
    assert float(seen.values.mean()) == 0.0
    assert all(c.beside for c in CLAIMS["M1"].components[4:])


def test_monitors_that_caught_little_from_the_start_are_left_out(claimed):
    weak = claimed["monitors"].assign(value=lambda t: t["value"].where(t["probe"] != "lda-last", 0.1))
    table = claimed["staleness"]
    flagged = table.assign(value=table["value"].where((table["probe"] != "lda-last") | (table["adapter"] == ""), 1.0))
    flagged.loc[flagged["metric"].str.startswith("stale_fpr"), "value"] = 0.0
    seen = [CLAIMS["M2"].components[2].estimate({"staleness": flagged, "monitors": m}) for m in (claimed["monitors"], weak)]
    assert [float(one.values.mean()) for one in seen] == pytest.approx([0.75, 0.5])


@pytest.mark.parametrize("kind", ["logistic", "simulated-updates"])
def test_a_simulated_probe_is_not_spared_because_it_caught_nothing(claimed, kind):
    """The fault: what was not caught cannot be lost, and a weak probe stood among those that stay fit; its place is left out."""
    first = {"task": TASKS[0], "probe": f"{kind}-last", "layer": LAYERS[0], "depth": 0.5}
    weak = pd.concat([claimed["monitors"], pd.DataFrame([row("tpr_5", 0.1, Address(), **first)])], ignore_index=True)
    for component in (CLAIMS["N5"].components[0], CLAIMS["N5"].components[4]):
        tables = [{"staleness": claimed["staleness"], "monitors": found} for found in (claimed["monitors"], weak)]
        before, after = map(component.estimate, tables)
        assert set(before.values.index) - set(after.values.index) == {f"{TASKS[0]}/last/{LAYERS[0]}"}


def test_profile_cpu_makes_v_as_large_as_claim_q1_reads_it():
    """The fault: V 4 times as large was read, and the profile made none."""
    asked = profile("cpu", Path(__file__).parents[2] / "profiles")
    read = [int(re.search(r"V (\d+) times", c.name)[1]) for c in CLAIMS["Q1"].components if c.beside]
    assert set(read) <= {*asked["doses"], *asked["v_scales"]}
    assert "nf4-both" in asked["sources"]


def test_two_rates_on_the_same_prompts_are_paired(claimed):
    """The fault: of 0 discordant prompts in 100, two rates taken as independent left 15 points open; the items leave 4."""
    seen = CLAIMS["N2"].components[0].estimate(claimed)
    e, _ = pooled([seen] * 3, (-1, 1), 0.90)
    assert float(np.abs(seen.values).max()) == 0.0
    assert (e.value, len(seen.values)) == (0.0, 2 * PROMPTS)
    assert e.high == pytest.approx(1 - 0.04 ** (1 / (2 * PROMPTS)))
    assert e.high < MARGINS["refusal"]


def test_both_sets_of_harmful_prompts_count_with_the_set_as_a_stratum(claimed):
    """The fault: StrongREJECT was measured on every variant and never judged."""
    seen = CLAIMS["S1"].components[0].estimate(claimed)
    assert seen.values.index.get_level_values(0).value_counts().to_dict() == {"advbench": PROMPTS, "strongreject": PROMPTS}
    apart = seen.values + np.where(seen.values.index.get_level_values(0) == "advbench", 0.2, -0.2)
    flat = pd.Series(apart.to_numpy(), index=["/".join(name) for name in apart.index])
    widths = [float(np.ptp(values(type(seen)(one, "measures"), CLAIMS["S1"].components[0])[1:])) for one in (apart, flat)]
    assert widths[0] < widths[1]  # what differs between sets is no error


def test_seeds_that_lack_items_are_crossed_on_those_that_all_have(claimed):
    seen = CLAIMS["S1"].components[0].estimate(claimed)
    short = type(seen)(seen.values.iloc[10:])
    e, spread = pooled([seen, short, seen], (-1, 1))
    assert (e.n, spread.units) == (3 * 90, 90)
    alone, _ = pooled([seen, type(seen)(seen.values.rename(index=lambda name: f"other {name}"))], (-1, 1))
    assert alone.n == 200  # nothing in common: two estimates


def test_cells_weigh_alike_and_no_task_more_for_having_few():
    few = Estimate(0.0, -0.01, 0.01, 50)
    table = pd.DataFrame([{"task": "a", **vars(Estimate(0.1, 0.0, 0.2, 50))}] + [{"task": "b", **vars(few)}] * 9)
    assert monitor_evidence.over_cells(table).value == pytest.approx(0.01)
    assert monitor_evidence.over_tasks(table).value == pytest.approx(0.05)


def test_what_was_picked_by_halves_weighs_by_its_texts():
    """The fault: each cell counted once, so that of 4,000 which lack 0.04 (noise of a half: 0.05) the picked ones lacked less."""
    lacks = 0.04 + np.random.default_rng(0).normal(0, 0.05, (4000, 2))
    picked, other = lacks >= 0.05, lacks[:, ::-1]
    where = {"task": TASKS[0], "probe": "logistic-last", "layer": 1, "depth": 0.5}
    cells = [(one[hit].mean(), 50 * hit.sum()) for one, hit in zip(other, picked, strict=True) if hit.any()]
    table = pd.DataFrame([row("refit_drop_split", v, at_home(BENIGN, "bf16"), n=n, **where) for v, n in cells])
    assert monitor_evidence.over_cells(table).value < 0.035
    assert monitor_evidence.refit_lacks("last")({"staleness": table}).value == pytest.approx(0.04, abs=0.003)


# ---------------------------------------------------------------- the registry


def test_the_claims_are_those_of_the_study_in_order():
    assert list(CLAIMS) == IDS
    for claim in CLAIMS.values():
        assert not claim.components[0].beside
        assert re.fullmatch(r"0[1-9]|1[01]", claim.chapter)
        for text in (claim.statement, claim.source, claim.literature, claim.short, *(c.name for c in claim.components)):
            assert text
            assert not re.search(r"[<>&|*_`{}$\\#]", text), text  # plain in HTML and in MyST
        assert claim.statement.endswith(".")
        assert len(claim.short) <= 36
        assert len({c.name for c in claim.components}) == len(claim.components)
        assert max(len(c.name) for c in claim.components) <= 46


def test_every_rule_is_complete_and_dated():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", claims.RULES_SET)
    for claim in CLAIMS.values():
        for c in claim.components:
            assert c.side in SIDES
            assert c.unit in UNITS
            assert (c.margin > 0) == (c.side == "within")
            assert c.margin in (0.0, claims.LIKE, *MARGINS.values())
            low, high = UNITS[c.unit].bounds
            assert low <= c.bound < high
    assert [MARGINS[name] for name in ("auroc", "refusal", "nll")] == [claims.AUROC, claims.REFUSAL, claims.NLL]
    assert claims.LEVELS == {"above": 0.95, "below": 0.95, "within": 0.90}


def test_claims_about_restoring_have_a_premise_and_claims_about_monitors_both_poolings():
    assert all(c.premise for name in ("S2", "S3", "S4", "N1") for c in CLAIMS[name].components)
    assert CLAIMS["Q2"].components[-1].premise
    for name in ("M1", "M2", "M3", "M4", "M6", "M7", "N1", "N2", "N3", "N4", "N5", "N6"):
        told = [c.name.rpartition(": ")[2] for c in CLAIMS[name].components if not c.beside]
        assert told.count("last token") == told.count("mean of tokens") > 0


def test_the_forecast_is_named_and_takes_no_labels():
    assert monitor_evidence.PREDICTOR in PREDICTORS
    assert "labels" not in PRICES[monitor_evidence.PREDICTOR.rpartition(", ")[2]]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("points", 0.44, "+44"), ("points", -0.001, "0"), ("share", 0.271, "27"), ("AUROC", 0.0034, "+0.003"),
     ("AUROC", -4e-5, "0.000"), ("degrees", -7.6, "-8"), ("nats", 0.126, "+0.13"), ("overlap", 0.04, "0.04")],
)  # fmt: skip
def test_numbers_as_text(unit, value, text):
    assert UNITS[unit].written(value) == [text]


# ---------------------------------------------------------------- what was published here

RUNS = sorted((Path(__file__).parents[2] / "results" / "cpu").glob("*/seed-*"))


@pytest.mark.parametrize("folder", RUNS[:1], ids=lambda folder: folder.name)
def test_the_committed_run_has_finite_estimates(folder):
    tables = findings.run_tables(folder)
    found = findings.by_seed([(folder.parent.name, 0, tables)])
    assert len(found)
    assert np.isfinite(found[["value", "low", "high"]].to_numpy()).all()
    assert (found["n"] >= 1).all()
    assert ((found["low"] <= found["value"] + 1e-12) & (found["value"] <= found["high"] + 1e-12)).all()
    table, _ = findings.judge(found)
    assert set(table["verdict"]) <= {"inconclusive", "not run"}
