"""Judgement: the panels of one run as one family: states, controls and simulated errors, and the report that says so."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from helpers import assessment, statements, sureness
from helpers.assessment import Panel
from helpers.parameters import derive_seed
from helpers.roc import RATES
from helpers.statements import Watch
from helpers.statistics import MARGINS

SCHEMA_VERSION = 1
VERSIONS = ("after-the-update", "torch", "transformers", "peft", "bitsandbytes", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Judged:
    """What labels show of the monitors of all panels: by name its call and measures, and how sure that is."""

    panels: tuple[Panel, ...]
    watches: Mapping[str, dict]
    sure: sureness.Sureness | None
    controls: tuple[sureness.Control, ...]


def judge(panels: Sequence[Panel], required: Mapping[str, bool], again: Sequence[np.ndarray] | None, seed: int) -> Judged:
    """Tests, states, controls and simulated errors of all monitors with labels, as one family."""
    if not panels:
        return Judged((), {}, None, ())
    names = [name for panel in panels for name in panel.names]
    asked = np.array([required[name] for name in names])
    call = sureness.judge(panels, asked)
    measures = [found for panel in panels for found in assessment.measured(panel, len(names))]
    watches = {}
    for i, (name, found) in enumerate(zip(names, measures, strict=True)):
        places = {one.measure: assessment.MEASURES.index(one.measure.split("_")[0]) for one in found}
        watches[name] = {
            "state": call.states[i], "measures": tuple(found), "p_fine": float(call.p_fine[i]),
            "p_worse": {measure: float(call.p_worse[i, place]) for measure, place in places.items()},
            "p_preserved": {measure: float(call.p_preserved[i, place]) for measure, place in places.items()},
        }  # fmt: skip
    controls = (
        sureness.identity(panels, asked, again, derive_seed(seed, "identity")),
        sureness.shuffled(panels, derive_seed(seed, "shuffled")),
        sureness.noised(panels, asked, derive_seed(seed, "noised")),
    )
    return Judged(tuple(panels), watches, sureness.simulate(panels, asked, derive_seed(seed, "simulate")), controls)


def watch(judged: Judged, name: str, same: bool, **known: object) -> Watch:
    """All that is known of one monitor; one that sees no update is told so, whatever labels could show."""
    unlabelled = {"state": "inconclusive", "measures": (), "p_fine": None, "p_worse": {}, "p_preserved": {}}
    shown = judged.watches.get(name, unlabelled)
    n = next((len(panel.labels) for panel in judged.panels if name in panel.names), 0)
    return Watch(name=name, n=n, **{**shown, **({"state": "no update"} if same else {})}, **known)


def report(
    watched: Sequence[Watch], judged: Judged, compared: Mapping[str, object], notes: Sequence[str], budget: int,
    behaviour: object = None, moved: object = None,
) -> dict[str, object]:  # fmt: skip
    """The whole report as plain JSON."""
    triage = statements.triage(watched, budget)
    places = {name: place for place, name in enumerate(triage["order"], 1)} if triage else {}
    verdict = statements.verdict(watched, judged.controls, str(compared["update"]["name"]))
    return statements.plain({
        "schema_version": SCHEMA_VERSION, "verdict": verdict, "compared": compared,
        "monitors": [statements.monitor(watch, places.get(watch.name)) for watch in watched],
        "next": statements.steps(watched, str(verdict["word"])), "triage": triage, "behaviour": behaviour,
        "controls": list(judged.controls), "sureness": statements.sure(judged.sure), "moved": moved,
        "notes": [*notes, *_warnings(judged)], "seconds": None, "code": verdict["code"],
    })  # fmt: skip


def told(found: dict[str, object], begun: float, say: Callable[[str], None]) -> dict[str, object]:
    """The report with the seconds since `begun`; its verdict is said aloud."""
    found["seconds"] = round(time.monotonic() - begun, 1)
    say(f"{found['verdict']['word']}: {found['verdict']['sentence']}")
    return found


def _warnings(judged: Judged) -> list[str]:
    """What was amiss before the update already, which is none of its doing."""
    found = []
    for name, shown in judged.watches.items():
        for one in shown["measures"]:
            if one.measure == "auroc" and one.before.high < 0.5:
                found.append(f"{name}: AUROC before the update is {one.before.value:.2f}, surely below 0.5: labels inverted?")
            elif one.measure == "auroc" and one.before.low <= 0.5:
                found.append(f"{name}: AUROC before the update is not surely above 0.5, so there was little to lose")
            elif one.measure.startswith("fpr") and one.before.low > MARGINS["fpr_ratio"] * RATES["5"]:
                found.append(f"{name}: alarms on {one.before.value:.0%} of harmless texts before the update already; recalibrate")
    return found


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
