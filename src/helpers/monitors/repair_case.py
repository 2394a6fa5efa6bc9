"""Repair cases: one task on one variant, its texts under both models, and the maps that all its monitors share.

What needs no labels reads training and validation texts of the OTHER tasks of the plan, so that no map, threshold or gate has
seen the corpus it is judged on. The task's own texts, for maps that may see it, are those of training and validation and its
second test set, labels unused: no text that anything is judged on. Attention reads tokens, which are kept for its own task only:
its maps come from the pooled states of the others, its threshold and gate read its own texts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from helpers.data.splits import ELSEWHERE, SPLITS
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import probes, readings, realignment
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import Readout
from helpers.monitors.readings import ATTENTION, Rows
from helpers.monitors.realignment import Map
from helpers.seeding import named_seed

UNTESTED = ("train", "validation")  # the splits of a task's own source that nothing is judged on


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
        if e.task != task and e.split in UNTESTED:
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
    own = [i for i, e in enumerate(plan.examples) if e.task == task and e.split in (*UNTESTED, ELSEWHERE)]
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
