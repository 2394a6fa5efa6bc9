"""Watches: all that a run knows of each monitor, with the states that labels show and how sure these are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.revalidation import error_rates, hypotheses
from helpers.revalidation.hypotheses import Measure, Panel
from helpers.revalidation.screening import Screened
from helpers.seeding import derive_seed

if TYPE_CHECKING:  # it imports torch
    from helpers.revalidation.repair import Mended


@dataclass(frozen=True)
class Watch:
    """One monitor of the run: who it is, and what was found of it.

    Without labels there are no measures. p_worse and p_preserved: adjusted, by measure; p_fine: of the whole monitor.
    """

    name: str
    task: str | None
    kind: str | None
    layer: int | None
    hash: str | None
    required: bool
    n: int
    state: str
    measures: tuple[Measure, ...]
    p_worse: Mapping[str, float]
    p_preserved: Mapping[str, float]
    p_fine: float | None
    screened: Screened | None
    mended: "Mended | None"


@dataclass(frozen=True)
class Judged:
    """What labels show of the monitors of all panels: by name its call and measures, and how sure that is."""

    panels: tuple[Panel, ...]
    watches: Mapping[str, dict]
    sure: error_rates.Sureness | None
    controls: tuple[error_rates.Control, ...]


def judge(panels: Sequence[Panel], required: Mapping[str, bool], again: Sequence[np.ndarray] | None, seed: int) -> Judged:
    """Tests, states, controls and simulated errors of all monitors with labels, as one family."""
    if not panels:
        return Judged((), {}, None, ())
    names = [name for panel in panels for name in panel.names]
    asked = np.array([required[name] for name in names])
    call = error_rates.judge_states(panels, asked)
    measures = [found for panel in panels for found in hypotheses.measured(panel, len(names))]
    watches = {}
    for i, (name, found) in enumerate(zip(names, measures, strict=True)):
        places = {one.measure: hypotheses.MEASURES.index(one.measure.split("_")[0]) for one in found}
        watches[name] = {
            "state": call.states[i], "measures": tuple(found), "p_fine": float(call.p_fine[i]),
            "p_worse": {measure: float(call.p_worse[i, place]) for measure, place in places.items()},
            "p_preserved": {measure: float(call.p_preserved[i, place]) for measure, place in places.items()},
        }  # fmt: skip
    controls = (
        error_rates.identity(panels, asked, again, derive_seed(seed, "identity")),
        error_rates.shuffled(panels, derive_seed(seed, "shuffled")),
        error_rates.noised(panels, asked, derive_seed(seed, "noised")),
    )
    return Judged(tuple(panels), watches, error_rates.simulate(panels, asked, derive_seed(seed, "simulate")), controls)


def watch(judged: Judged, name: str, same: bool, **known: Any) -> Watch:
    """All that is known of one monitor; one that sees no update is told so, whatever labels could show."""
    unlabelled: dict[str, Any] = {"state": "inconclusive", "measures": (), "p_fine": None, "p_worse": {}, "p_preserved": {}}
    shown = judged.watches.get(name, unlabelled)
    n = next((len(panel.labels) for panel in judged.panels if name in panel.names), 0)
    return Watch(name=name, n=n, **{**shown, **({"state": "no update"} if same else {})}, **known)
