"""Repairs: the ladder by which a monitor frozen on one model is brought back on another, from cheap to dear.

Pure arithmetic on stored activations. `repair_case` says which texts a rung may see.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import optimize, special

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.monitors import gate, probes, readings
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import Readout
from helpers.monitors.readings import LINEAR
from helpers.monitors.realignment import REALIGNMENTS, through
from helpers.monitors.repair_case import RepairCase, place
from helpers.seeding import named_seed

PULL = 1.0  # towards the frozen direction and offset, where few labels are to move them
EXACT = {"ftol": 1e-14, "gtol": 1e-7, "maxiter": 500}
FEW_LABELS = {f"labels-{count}": count for count in (10, 20, 50)}

NULL = "mispaired"  # the control among the realignments: it never counts as a repair
GATED = "gated"  # as the gate says: left as it is, or behind the realignment that it chose; where it asks for labels, as it is
OWN = ("coral", "procrustes")  # also fitted on the task's own texts: how much does the domain matter?

Outcome = tuple[np.ndarray, dict[str, float], int, int]  # scores of the test texts, thresholds, unlabelled passes, labels


@dataclass(frozen=True, eq=False)
class Repaired:
    """A monitor after one rung of the ladder: its scores of the task's test texts, where it now alarms, and what that cost.

    cost_texts: forward passes over unlabelled texts, through either model. cost_labels: labelled texts.
    """

    monitor: Monitor
    method: str
    scores: np.ndarray
    thresholds: dict[str, float]
    cost_texts: int
    cost_labels: int


# ---------------------------------------------------------------- rungs


def _as_it_is(case: RepairCase, monitor: Monitor) -> Outcome:
    return case.score(monitor, case.rows["test"].index), monitor.thresholds, 0, 0


def _realigned(name: str, corpus: str, case: RepairCase, monitor: Monitor) -> Outcome:
    """The frozen readout behind a map; a paired map needs both models' states of a text, an unpaired one either's."""
    readout = through(case.fitted(name, place(monitor), corpus), monitor.readout)
    passes = len(case.texts[corpus]) * (2 if REALIGNMENTS[name].paired else 1)
    return case.score(monitor, case.rows["test"].index, readout=readout), monitor.thresholds, passes, 0


def _gated(case: RepairCase, monitor: Monitor) -> Outcome:
    """What a team without labels does: realigned where the gate says so, by the candidate that it judged."""
    answer, passes = gate.judged(case, monitor), 2 * len(case.texts[case.read(monitor)])
    rung = partial(_realigned, answer.candidate, "others") if answer.gate.choice == "realign" else _as_it_is
    scores, thresholds, _, _ = rung(case, monitor)
    return scores, thresholds, passes, 0


def matched(cut: float, before: np.ndarray, after: np.ndarray) -> float:
    """The threshold that as many of the `after` scores lie above as of the `before` scores lie above `cut`.

    Between two scores it keeps its share of the way; beyond the outermost its distance in standard deviations.
    """
    old, new = np.sort(before), np.sort(after)
    stretch = new.std() / old.std() if old.std() > 0 else 1.0
    if cut >= old[-1]:
        return float(new[-1] + (cut - old[-1]) * stretch)
    if cut < old[0]:
        return float(new[0] - max((old[0] - cut) * stretch, 1e-9 * max(1.0, abs(new[0]))))
    k = int((old <= cut).sum())  # the k lowest do not alarm
    return float(new[k - 1] + (cut - old[k - 1]) / (old[k] - old[k - 1]) * (new[k] - new[k - 1]))


def _matched(case: RepairCase, monitor: Monitor, readout: Readout | None = None) -> tuple[dict[str, float], int]:
    """The thresholds of a readout on the variant that keep the share of alarms of the frozen one, and the passes they cost."""
    index = case.texts[case.read(monitor)]
    old, new = case.score(monitor, index, after=False), case.score(monitor, index, readout=readout)
    return {level: matched(cut, old, new) for level, cut in monitor.thresholds.items()}, 2 * len(index)


def _threshold(case: RepairCase, monitor: Monitor) -> Outcome:
    return case.score(monitor, case.rows["test"].index), *_matched(case, monitor), 0


def _labelled(count: int, case: RepairCase, monitor: Monitor) -> Outcome:
    """A head on few labelled training texts, pulled towards the frozen readout; its threshold by the unlabelled texts."""
    train, index = case.rows["train"], case.texts["others"]
    # One order for all counts: those of 10 are among those of 20.
    order = np.random.default_rng(named_seed(case.seed, f"few/{case.task}")).permutation(len(train.labels))
    chosen = np.concatenate([[i for i in order if train.labels[i] == label][: count // 2] for label in (0, 1)])
    seen = case.after.pooled[place(monitor)]
    spread = float(case.score(monitor, index, after=False).std()) or 1.0
    readout = pulled(monitor.readout, seen[train.index[chosen]].double().numpy(), train.labels[chosen],
                     seen[index].double().numpy(), spread)  # fmt: skip
    cuts, passes = _matched(case, monitor, readout)
    return case.score(monitor, case.rows["test"].index, readout=readout), cuts, passes, count


def pulled(frozen: Readout, x: np.ndarray, y: np.ndarray, around: np.ndarray, spread: float) -> Readout:
    """A logistic head fitted on few texts x with labels y, whose penalty pulls towards a frozen linear readout.

    It minimizes sum log(1 + exp(-(2 y - 1) f)) + PULL / 2 (||u - u0||^2 + (c - c0)^2) with f = z @ u + c and
    z = (x - mean) / (sd sqrt(d)) by the unlabelled texts `around`; (u0, c0) is the frozen readout in units of `spread`, the
    standard deviation of its scores. A weighted form of transfer by a Gaussian prior (Chelba and Acero 2006).
    """
    centre, scale = around.mean(axis=0), np.where(np.ptp(around, axis=0) > 0, around.std(axis=0), 1.0) * np.sqrt(x.shape[1])
    w, b = frozen.tensors["w"] / spread, float(frozen.tensors["b"]) / spread
    start = x @ w + b
    # The optimum moves u within the span of the few rows alone (Kimeldorf and Wahba 1971), so at most k + 1 numbers are fitted.
    basis, rows = np.linalg.qr(((x - centre) / scale).T)
    moved = _moved(start, np.column_stack([rows.T, np.ones(len(x))]), y)
    w = w + basis @ moved[:-1] / scale
    return replace(frozen, tensors={"w": w, "b": np.array(b + moved[-1] - centre @ (w - frozen.tensors["w"] / spread))})


def _moved(start: np.ndarray, rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The t that minimizes the logistic loss of start + rows @ t plus PULL / 2 ||t||^2: convex, so there is one."""

    def loss(t: np.ndarray) -> tuple[float, np.ndarray]:
        f = start + rows @ t
        value = np.logaddexp(0, -(2.0 * y - 1) * f).sum() + PULL / 2 * t @ t
        return float(value), rows.T @ (special.expit(f) - y) + PULL * t

    return optimize.minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options=EXACT).x


def _refit(case: RepairCase, monitor: Monitor) -> Outcome:
    """A probe of the same kind and strength, fitted anew; its threshold, like that of few labels, by the unlabelled texts, since
    a threshold read off the task's few harmless ones would jump more than most updates make it."""
    train = case.rows["train"]
    seen = readings.features(case.after, case.plan, monitor, train.index)
    readout = probes.refit(monitor.readout, seen, train.labels, monitor.seed, monitor.name)
    cuts, passes = _matched(case, monitor, readout)
    return case.score(monitor, case.rows["test"].index, readout=readout), cuts, passes, len(train.index)


Rung = Callable[[RepairCase, Monitor], Outcome]
RUNGS: dict[str, Rung] = {
    **{name: partial(_realigned, name, "others") for name in REALIGNMENTS},
    "none": _as_it_is,
    "threshold": _threshold,
    **{name: partial(_labelled, count) for name, count in FEW_LABELS.items()},
    "refit": _refit,
    **{f"{name} (own corpus)": partial(_realigned, name, "own") for name in OWN},
    GATED: _gated,
}
LADDER = tuple(name for name in RUNGS if name != GATED and not name.endswith("(own corpus)"))  # cheapest first


def missing(method: str, monitor: Monitor, case: RepairCase) -> str:
    """Why a rung of the ladder does not apply to a monitor, in words; "" where it does."""
    if method in FEW_LABELS and monitor.kind not in LINEAR:
        return f"probe {monitor.kind!r} has no single direction and offset for few labels to move"
    if method in FEW_LABELS and min(np.bincount(case.rows["train"].labels, minlength=2)) < FEW_LABELS[method] // 2:
        return f"task {case.task!r} has too few training texts (raise rows_train)"
    if method != "none" and case.dead(monitor):
        return "the variant holds the same for every text there"
    return ""


def apply(method: str, monitor: Monitor, case: RepairCase) -> Repaired:
    """The monitor after one rung of the ladder, on what its task's monitors share. Errors: `missing` says why."""
    if method not in RUNGS:
        raise StudyError(f"unknown repair {method!r}; choose one of {', '.join(RUNGS)}")
    reason = missing(method, monitor, case)
    if reason:
        raise StudyError(f"repair {method!r} of monitor {monitor.name}: {reason}; choose another rung", NOT_COMPARABLE)
    return Repaired(monitor, method, *RUNGS[method](case, monitor))
