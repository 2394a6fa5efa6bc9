"""Watches: all that a run knows of each monitor, with the states that labels show and how sure these are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.revalidation import error_rates, hypotheses
from helpers.revalidation.evidence import distances
from helpers.revalidation.floors import Floor, measured_floors
from helpers.revalidation.hypotheses import Call, Measure, Panel
from helpers.revalidation.screening import Screened
from helpers.seeding import derive_seed
from helpers.stats.paired_aurocs import ALPHA

if TYPE_CHECKING:  # it imports torch
    from helpers.revalidation.repair import Mended


@dataclass(frozen=True)
class Watch:
    """One monitor of the run: who it is, and what was found of it.

    Without labels there are no measures. p_worse and p_preserved: adjusted, by measure; p_fine: of the whole monitor. floors:
    what it must do at least; p_fails: adjusted, by measure; missed and `first`: measures whose floor is surely missed now, and
    was before. standing and noise: distances of its scores to its threshold and between readings, as `distances` has them.
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
    floors: tuple[Floor, ...]
    p_fails: Mapping[str, float]
    missed: frozenset[str]
    first: frozenset[str]
    screened: Screened | None
    mended: "Mended | None"
    level: float = ALPHA
    standing: Mapping[str, Any] | None = None
    noise: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LabelEvidence:
    """What labels show of the monitors of all panels: by name its call and measures, and how sure that is."""

    panels: tuple[Panel, ...]
    watches: Mapping[str, dict]
    sure: error_rates.Sureness | None
    controls: tuple[error_rates.Control, ...]


def judge(panels: Sequence[Panel], required: Mapping[str, bool], again: Sequence[np.ndarray] | None, seed: int) -> LabelEvidence:
    """Tests, states, controls and simulated errors of all monitors with labels, as one family."""
    if not panels:
        return LabelEvidence((), {}, None, ())
    names = [name for panel in panels for name in panel.names]
    asked = np.array([required[name] for name in names])
    call = error_rates.judge_states(panels, asked)
    measures = [found for panel in panels for found in hypotheses.measured(panel, len(names))]
    floors = [found for panel in panels for found in measured_floors(panel, len(names))]
    watches = {
        name: _shown(call, i, found, kept) for i, (name, found, kept) in enumerate(zip(names, measures, floors, strict=True))
    }
    for name, seen in _looked_at(panels, again).items():
        watches[name] |= seen | {"state": state_of(watches[name]["state"], seen["noise"])}
    controls = (
        error_rates.identity(panels, asked, again, derive_seed(seed, "identity")),
        error_rates.shuffled(panels, derive_seed(seed, "shuffled")),
        error_rates.noised(panels, asked, derive_seed(seed, "noised")),
    )
    return LabelEvidence(tuple(panels), watches, error_rates.simulate(panels, asked, derive_seed(seed, "simulate")), controls)


def state_of(state: str, noise: Mapping[str, Any] | None) -> str:
    """The state of a monitor: none is stale whose scores moved no further than the base's own do when it is read twice."""
    return "inconclusive" if state == "stale" and noise and noise["within"] else state


def states_shown(panels: Sequence[Panel], required: Mapping[str, bool], again: Sequence[np.ndarray] | None) -> dict[str, str]:
    """The states that labels show, and nothing else of `judge`."""
    names = [name for panel in panels for name in panel.names]
    if not names:
        return {}
    call = error_rates.judge_states(panels, np.array([required[name] for name in names]))
    seen = _looked_at(panels, again)
    return {name: state_of(state, seen[name]["noise"]) for name, state in zip(names, call.states, strict=True)}


def _looked_at(panels: Sequence[Panel], again: Sequence[np.ndarray] | None) -> dict[str, dict[str, Any]]:
    """Distances of each monitor's scores to its threshold and between two readings."""
    return {
        name: {
            "standing": distances.standing(panel.before[j], panel.after[j], panel.cuts[j], panel.labels),
            "noise": distances.noise(panel.before[j], panel.after[j], None if again is None else again[i][j]),
        }
        for i, panel in enumerate(panels)
        for j, name in enumerate(panel.names)
    }


def _shown(call: Call, i: int, measures: Sequence[Measure], floors: Sequence[Floor]) -> dict[str, Any]:
    """What labels show of monitor i, adjusted p values by the names of measures."""

    def by_name(found: Sequence[Measure] | Sequence[Floor], column: np.ndarray) -> dict[str, Any]:
        return {one.measure: column[i, hypotheses.MEASURES.index(one.measure.split("_")[0])].item() for one in found}

    return {
        "state": call.states[i], "measures": tuple(measures), "floors": tuple(floors), "p_fine": float(call.p_fine[i]),
        "p_worse": by_name(measures, call.p_worse), "p_preserved": by_name(measures, call.p_preserved),
        "p_fails": by_name(floors, call.p_fails),
        **{side: frozenset(name for name, is_so in by_name(floors, getattr(call, side)).items() if is_so)
           for side in ("missed", "first")},
    }  # fmt: skip


UNKNOWN: dict[str, Any] = {
    "state": "inconclusive", "measures": (), "floors": (), "p_fine": None, "p_worse": {}, "p_preserved": {}, "p_fails": {},
    "missed": frozenset(), "first": frozenset(), "standing": None, "noise": None,
}  # of a monitor without labels  # fmt: skip


def watch(judged: LabelEvidence, name: str, same: bool, standing: Mapping[str, Any] | None = None, **known: Any) -> Watch:
    """All that is known of one monitor; one that sees no update is told so, unless labels show that it never did its job.

    standing: that of unlabelled texts, for a monitor without labels.
    """
    shown = judged.watches.get(name, UNKNOWN)
    unseen = {"state": "no update"} if same and shown["state"] != "unfit" else {}
    n = next((len(panel.labels) for panel in judged.panels if name in panel.names), 0)
    level = judged.panels[0].policy.level if judged.panels else ALPHA
    stands = {"standing": shown["standing"] or standing}
    return Watch(name=name, n=n, level=level, **{**shown, **unseen, **stands}, **known)
