"""Repairs: the ladder by which a monitor frozen on one model is brought back on another, and a gate that needs no labels.

Pure arithmetic on stored activations. What needs no labels reads training and validation texts of the OTHER tasks of the plan,
so that no map, threshold or gate has seen the corpus it is judged on. Attention reads tokens, which are kept for its own task
only: its maps come from the pooled states of the others, its threshold and gate read its own texts, their labels unused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from scipy import optimize, special, stats

from helpers.data.splits import SPLITS
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings, realignment
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import Readout
from helpers.monitors.readings import ATTENTION, LINEAR, Rows
from helpers.monitors.realignment import REALIGNMENTS, Map
from helpers.seeding import named_seed
from helpers.stats.intervals import MARGINS
from helpers.stats.roc import RATES

# ---- set before any result was looked at
DEFAULT = "coral"  # what is done where no gate is asked
CANDIDATES = ("centre", "centre-scale", "coral", "low-rank")  # what the gate chooses from, simplest first
# Were all disagreement noise, an AUROC of 0.90 would fall by 0.04 at a rank correlation of 0.9: just not yet stale.
AGREEMENT = 0.90
ALARM_SHIFT = RATES["5"] * (MARGINS["fpr_ratio"] - 1)  # as many more alarms as make a 5 % false-positive rate stale
PULL = 1.0  # towards the frozen direction and offset, where few labels are to move them
EXACT = {"ftol": 1e-14, "gtol": 1e-7, "maxiter": 500}
FEW_LABELS = {f"labels-{count}": count for count in (10, 20, 50)}

GATES = ("deploy", "realign", "refit")
NULL = "mispaired"  # the control among the realignments: it never counts as a repair
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


@dataclass(frozen=True, eq=False)
class RepairCase:
    """One task on one variant: its texts under both models, and its maps, each fitted once for all monitors of a place.

    texts: places in the plan of the unlabelled `others`, the two halves of them, and the task's `own`. `fitted` gives the map
    of a method, a place such as mean/14, and one of these.
    """

    task: str
    plan: Plan
    before: Activations
    after: Activations
    groups: np.ndarray  # of every text of the plan, as numbers
    texts: Mapping[str, np.ndarray]
    rows: Mapping[str, Rows]  # the labelled ones of the task, by split
    fitted: Callable[[str, str, str], Map]
    seed: int

    def score(self, monitor: Monitor, index: np.ndarray, after: bool = True, readout: Readout | None = None) -> np.ndarray:
        """Scores of some texts as one of the two models holds them, by the frozen readout or another of its kind."""
        seen = readings.features(self.after if after else self.before, self.plan, monitor, index)
        return probes.score(readout or monitor.readout, seen, monitor.name)

    def dead(self, monitor: Monitor) -> bool:
        """Whether the variant holds the same for every unlabelled text where the monitor reads: there is nothing to fit."""
        seen, index = self.after.pooled[place(monitor)], self.texts["others"]
        return torch.equal(*seen[index[:2]]) and bool((seen[index] == seen[index[0]]).all())

    def read(self, monitor: Monitor) -> str:
        """Which unlabelled texts the monitor can be scored on."""
        return "own" if monitor.kind == ATTENTION else "others"


def other_texts(plan: Plan, task: str, most: int | None = None) -> np.ndarray:
    """Places in the plan of the training and validation texts of all other tasks; of `most` of them, as many of each task."""
    found: dict[str, list[int]] = {}
    for i, e in enumerate(plan.examples):
        if e.task != task and e.split != "test":
            found.setdefault(e.task, []).append(i)
    if not found:
        raise StudyError(f"task {task!r} is the only one, so there is no text of another corpus; add a task to monitor_tasks",
                         NOT_COMPARABLE)  # fmt: skip
    share = None if most is None else max(1, most // len(found))
    # train comes first in a task, its classes one after the other: every k-th text has some of both
    kept = [places if share is None else places[:: max(1, -(-len(places) // share))] for places in found.values()]
    return np.concatenate(kept).astype(int)


def case(
    task: str, before: Activations, after: Activations, plan: Plan, others: np.ndarray | None = None, seed: int = 0
) -> RepairCase:
    """What all monitors of a task share on a variant; both activations best in double (`readings.in_double`)."""
    others = other_texts(plan, task) if others is None else others
    groups = np.unique([f"{e.task}/{e.group}" for e in plan.examples], return_inverse=True)[1]
    own = [i for i, e in enumerate(plan.examples) if e.task == task and e.split != "test"]
    texts = {"others": others, "own": np.array(own)}
    texts |= {f"half-{h}": others[part] for h, part in enumerate(group_halves(groups[others], seed))}
    fitted = cache(partial(_fitted, before, after, groups, texts, seed))
    rows = {split: readings.rows_of(plan, task, split) for split in SPLITS}
    return RepairCase(task, plan, before, after, groups, texts, rows, fitted, seed)


def group_halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of two halves of some texts; a group lies in one."""
    return realignment.halves(len(groups), groups, named_seed(seed, "halves"))


def _fitted(
    before: Activations, after: Activations, groups: np.ndarray, texts: Mapping[str, np.ndarray], seed: int,
    method: str, place: str, corpus: str,
) -> Map:  # fmt: skip
    index = texts[corpus]
    old, new = (found.pooled[place][index].double().numpy() for found in (before, after))
    return realignment.fit_map(method, old, new, named_seed(seed, f"{method}/{place}/{corpus}"), groups[index])


def place(monitor: Monitor) -> str:
    """The pooled states that a monitor's maps are fitted on; an affine map of tokens maps their mean alike."""
    return f"{monitor.pooling or 'mean'}/{monitor.layer}"


def through(found: Map, readout: Readout) -> Readout:
    """The readout, of any kind, that scores x as `readout` scores the mapped x: each of its weights on x is unfolded.

    With y = target + scale (x - source) + (x - source) L R^T, y @ w = x @ w' + const for w' = scale w + L R^T w; exact. A query's
    constant is the same for all tokens of a text, so that the softmax drops it.
    """
    tensors = dict(readout.tensors)
    for name, bias in (("w", "b"), ("W1", "b1"), ("v", "b"), ("q", None)):
        if name in tensors:
            rows = tensors[name]
            tensors[name] = rows * found.scale + (rows @ found.right) @ found.left.T
            if bias:
                tensors[bias] = tensors[bias] + rows @ found.target - tensors[name] @ found.source
    return replace(readout, tensors=tensors)


# ---------------------------------------------------------------- rungs


def _as_it_is(case: RepairCase, monitor: Monitor) -> Outcome:
    return case.score(monitor, case.rows["test"].index), monitor.thresholds, 0, 0


def _realigned(name: str, corpus: str, case: RepairCase, monitor: Monitor) -> Outcome:
    """The frozen readout behind a map; a paired map needs both models' states of a text, an unpaired one either's."""
    readout = through(case.fitted(name, place(monitor), corpus), monitor.readout)
    passes = len(case.texts[corpus]) * (2 if REALIGNMENTS[name].paired else 1)
    return case.score(monitor, case.rows["test"].index, readout=readout), monitor.thresholds, passes, 0


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
    """A probe of the same kind and strength, fitted anew; its threshold from the validation negatives of the updated model."""
    train, held = case.rows["train"], case.rows["validation"]
    seen = readings.features(case.after, case.plan, monitor, train.index)
    readout = probes.refit(monitor.readout, seen, train.labels, monitor.seed, monitor.name)
    negatives = case.score(monitor, held.index[held.labels == 0], readout=readout)
    cuts = {level: frozen_monitors.threshold(negatives, RATES[level]) for level in monitor.thresholds}
    thresholds = {level: cut for level, cut in cuts.items() if cut is not None}
    return case.score(monitor, case.rows["test"].index, readout=readout), thresholds, 0, len(train.index) + len(held.index)


Rung = Callable[[RepairCase, Monitor], Outcome]
RUNGS: dict[str, Rung] = {
    **{name: partial(_realigned, name, "others") for name in REALIGNMENTS},
    "none": _as_it_is,
    "threshold": _threshold,
    **{name: partial(_labelled, count) for name, count in FEW_LABELS.items()},
    "refit": _refit,
    **{f"{name} (own corpus)": partial(_realigned, name, "own") for name in OWN},
}
LADDER = tuple(name for name in RUNGS if not name.endswith("(own corpus)"))  # cheapest first


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


def repair(
    method: str, monitor: Monitor, before: Activations, after: Activations, plan: Plan,
    unlabelled: np.ndarray | None = None, seed: int = 0,
) -> Repaired:  # fmt: skip
    """`apply` for a single monitor; `unlabelled`: places in the plan, those of the other tasks unless given."""
    return apply(method, monitor, case(monitor.task, before, after, plan, unlabelled, seed))


# ---------------------------------------------------------------- the gate


@dataclass(frozen=True)
class Gate:
    """What to do with a monitor by unlabelled texts alone, and the signs: rank agreement of the scores on both models, and by
    how much the share of alarms at the frozen threshold moved, as the monitor is and behind the realignment."""

    choice: str
    agreement_before: float
    agreement_after: float
    alarm_shift_before: float
    alarm_shift_after: float


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two scores of the same texts: 1 where they are the same, else 0 where one is constant."""
    if np.array_equal(first, second):
        return 1.0
    ranks = stats.rankdata(np.array([first, second]), axis=-1)
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=-1).all() else 0.0


def _shift(before: np.ndarray, after: np.ndarray, thresholds: Mapping[str, float]) -> float:
    cut = thresholds.get("5")
    return 0.0 if cut is None else float(abs((after > cut).mean() - (before > cut).mean()))


def gate(before: np.ndarray, after: np.ndarray, realigned: np.ndarray, thresholds: Mapping[str, float]) -> Gate:
    """deploy, realign or refit, from one monitor's scores of held-out unlabelled texts on both models and behind a map.

    A monitor works as it did where its scores agree in rank with those on the original model (AGREEMENT) and the share of
    alarms stays (ALARM_SHIFT; without a threshold there are none). deploy: so as it is; realign: so behind the map; else refit.
    """
    agreements = [agreement(before, scores) for scores in (after, realigned)]
    shifts = [_shift(before, scores, thresholds) for scores in (after, realigned)]
    fine = [value >= AGREEMENT and shift <= ALARM_SHIFT for value, shift in zip(agreements, shifts, strict=True)]
    return Gate(GATES[0] if fine[0] else GATES[1] if fine[1] else GATES[2], *agreements, *shifts)


@dataclass(frozen=True, eq=False)
class GateAnswer:
    """The gate's answer for one monitor: the candidate that it judged, and the held-out scores behind it, with their groups."""

    gate: Gate
    candidate: str
    before: np.ndarray
    after: np.ndarray
    realigned: np.ndarray
    groups: np.ndarray


def judged(case: RepairCase, monitor: Monitor) -> GateAnswer:
    """The gate on unlabelled texts that the maps have not seen: fitted on one half of the groups, judged on the other, both ways.

    Of the candidates whose alarms stay, the one that agrees best; at a tie the simplest.
    """
    index = case.texts[case.read(monitor)]
    old, new = case.score(monitor, index, after=False), case.score(monitor, index)
    if case.dead(monitor):
        return GateAnswer(gate(old, new, new, monitor.thresholds), DEFAULT, old, new, new, case.groups[index])
    parts = group_halves(case.groups[index], case.seed)
    found = {}
    for name in CANDIDATES:
        scores = np.empty(len(index))
        for h, part in enumerate(parts):
            readout = through(case.fitted(name, place(monitor), f"half-{1 - h}"), monitor.readout)
            scores[part] = case.score(monitor, index[part], readout=readout)
        found[name] = scores
    gates = {name: gate(old, new, scores, monitor.thresholds) for name, scores in found.items()}
    best = max(CANDIDATES, key=lambda name: (gates[name].alarm_shift_after <= ALARM_SHIFT, gates[name].agreement_after))
    return GateAnswer(gates[best], best, old, new, found[best], case.groups[index])
