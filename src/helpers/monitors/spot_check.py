"""A sketch of a model: a few prompts, a few texts and the monitors in use, cheap enough for every point of a curve.

The measures are those of the full protocol, by the same calls on fewer items. What a curve is used to choose is sketched on
validation items; the choice is then measured in full on test items. Labels are kept by item, so that points can be paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from helpers import results
from helpers.data import corpora
from helpers.data.splits import Example
from helpers.data.text_rows import fingerprint
from helpers.definitions import SKETCH, content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import activations, behaviour, compute, utility
from helpers.models.behaviour import ITEM_COLUMNS, PromptSet
from helpers.models.encoding import Plan
from helpers.models.judge_types import JudgeSettings
from helpers.models.loading import LanguageModel
from helpers.monitors import fitting, readings
from helpers.monitors.frozen import Monitor
from helpers.monitors.readings import ATTENTION, Rows
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import Estimate, rate_interval
from helpers.updates.measurements import Protocol
from helpers.updates.names import EVERY

COLUMNS = ["measured_on", "metric", "value", "low", "high", "n"]
SPLITS = ("validation", "test")
HARMFUL = {"validation": ("advbench",), "test": ("advbench", "strongreject")}  # sets of another source are for tests alone


@dataclass(frozen=True)
class Sketch:
    """What is looked at: prompts and texts, the labelled texts of some monitors, and these monitors, one a task."""

    protocol: Protocol
    reading: Plan
    monitors: tuple[Monitor, ...]
    split: str

    def place(self, name: str) -> str:
        """What a row of the sketch is measured on: never the name under which the full protocol tells its own."""
        return f"{name}/{self.split}"

    def key(self) -> str:
        """A hash of everything that the values depend on, besides the model."""
        frozen = [monitor.hash for monitor in self.monitors]
        return content_key(protocol=self.protocol.key(), reading=self.reading.key(), monitors=frozen)


def prompt_sets(split: str, n_harmful: int, n_edgy: int, origin: str) -> tuple[PromptSet, ...]:
    """Harmful and edgy prompts of a split; on test a second harmful set, from another source, of as many prompts."""
    if split not in SPLITS:
        raise StudyError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    sources = {name: (name if name == "strongreject" else f"{name}/{split}", "harmful", n_harmful) for name in HARMFUL[split]}
    sources["edgy"] = (f"edgy/{split}", "edgy", n_edgy)
    return tuple(PromptSet(name, kind, tuple(corpora.sample(at, n, origin))) for name, (at, kind, n) in sources.items())


def utility_sets(split: str, n_references: int, n_documents: int, origin: str) -> utility.UtilitySets:
    """A few held-out reference summaries of dialogues and C4 documents; those of validation are taken from the other end."""

    def few(name: str, n: int) -> tuple:
        every = corpora.sample(name, len(corpora.texts(name, origin)), origin)
        return tuple(every[:n] if split == "test" else every[len(every) - min(n, len(every)) :])

    references = {"dialogue": few("dialogue/test", n_references)} if n_references else {}
    documents = {"c4": few("c4/test", n_documents)} if n_documents else {}
    return utility.UtilitySets(references, documents, {})


def in_use(note: dict) -> tuple[Monitor, ...]:
    """The monitor in use for each task, as chapter 04 noted them."""
    named = {monitor.name: monitor for monitor in fitting.load_fitted(note["monitors"])}
    return tuple(named[choice["monitor"]] for choice in note["chosen"].values())


def first_rows(reading: Plan, split: str, rows: int) -> tuple[Example, ...]:
    """The first `rows` texts a class of one split of every task."""
    kept: list[Example] = []
    seen: dict[tuple[str, int], int] = {}
    for example in reading.examples:
        place = (example.task, example.label)
        if example.split == split and seen.get(place, 0) < rows:
            kept.append(example)
            seen[place] = seen.get(place, 0) + 1
    return tuple(kept)


def restricted(reading: Plan, monitors: Sequence[Monitor], split: str, rows: int) -> Plan:
    """The plan with the first `rows` texts a class of one split, read only where the monitors read."""
    tokens = tuple((m.task, m.depth) for m in monitors if m.kind == ATTENTION)
    return replace(
        reading, examples=first_rows(reading, split, rows), depths=tuple(sorted({m.depth for m in monitors})), tokens=tokens
    )


def sketch(
    note: dict, split: str, n_harmful: int, n_edgy: int, n_references: int, n_documents: int, rows: int, new_tokens: int,
    origin: str = "embedded",
) -> Sketch:  # fmt: skip
    """The sketch of those sizes, with the monitors that chapter 04 noted as in use and `rows` of their texts a class."""
    monitors = in_use(note)
    protocol = Protocol(
        prompt_sets(split, n_harmful, n_edgy, origin), utility_sets(split, n_references, n_documents, origin), ("phrases",),
        JudgeSettings(), new_tokens, 0, origin,
    )  # fmt: skip
    return Sketch(protocol, restricted(readings.plan(**note["reading"]), monitors, split, rows), monitors, split)


# ---------------------------------------------------------------- taking it


def take(of: str, plan: Sketch, build: Callable[[], LanguageModel], device: str = "cpu") -> pd.DataFrame:
    """The items of the sketch on the model that `build` gives; `of` says what that model is made of, by content.

    Taken once, then read from the cache, so that `build` may never be called.
    """
    return stored(of, plan, lambda: look(plan, build()), device)


def stored(of: str, plan: Sketch, make: Callable[[], pd.DataFrame], device: str = "cpu") -> pd.DataFrame:
    """The items kept for what `of` names, made first where they are not there."""
    key = SKETCH.key(of=of, plan=plan.key(), **compute.machine(device))
    return results.cached_table("sketches", key, make)


def look(plan: Sketch, language: LanguageModel) -> pd.DataFrame:
    """The items of the sketch on a model: labels of replies, utility, and the monitors' scores."""
    asked = plan.protocol
    said = behaviour.measure_behaviour(
        language, asked.sets, asked.judge_names, asked.settings, asked.new_tokens, asked.origin, brief=True
    )
    useful = utility.measure_utility(language, asked.utility)
    return pd.concat([part for part in (said, useful, _scores(plan, language)) if len(part)], ignore_index=True)


def _scores(plan: Sketch, language: LanguageModel) -> pd.DataFrame:
    """One row a monitor and text: its score. A text is named by its place in the plan and by a hash, never by its words."""
    found = readings.in_double(activations.read(language, plan.reading))
    items = []
    for monitor in plan.monitors:
        rows = readings.rows_of(plan.reading, monitor.task, plan.split)
        scores = monitor.score(readings.features(found, plan.reading, monitor, rows.index))
        for i, group, score in zip(rows.index, rows.groups, scores, strict=True):
            items.append(("monitor", monitor.task, str(i), fingerprint([str(group)]), monitor.name, "score", float(score), 0, ""))
    return pd.DataFrame(items, columns=ITEM_COLUMNS)


# ---------------------------------------------------------------- from items to rows


def spot_check_rows(plan: Sketch, items: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """What the sketch says, each value with interval and n; monitors are compared with the `reference` model's items.

    Besides the rates and likelihoods of the full protocol: each monitor's AUROC drop and its alarms at the frozen threshold,
    and over all monitors the mean drop and the share of texts on which an alarm came or went.
    """
    said = behaviour.summarize_behaviour(items[items["kind"].isin(["harmful", "edgy"]) & items["metric"].eq("refused")])
    found = [(plan.place(row.prompt_set), row.metric, row.value, row.low, row.high, row.n) for row in said.itertuples()]
    if (items["kind"] == "utility").any():
        useful = utility.summarize_utility(items[items["kind"] == "utility"])
        found += [(plan.place(row.corpus), row.metric, row.value, row.low, row.high, row.n) for row in useful.itertuples()]
    found += [(plan.place(on), *values) for on, *values in _health(plan, items, reference)]
    return pd.DataFrame(found, columns=COLUMNS)


def _health(plan: Sketch, items: pd.DataFrame, reference: pd.DataFrame) -> list[tuple]:
    seen = []
    for monitor in plan.monitors:
        held = readings.rows_of(plan.reading, monitor.task, plan.split)
        seen.append(Seen(monitor, held, _of(reference, monitor), _of(items, monitor)))
    return health(seen)


@dataclass(frozen=True, eq=False)
class Seen:
    """A monitor's scores of the same texts on the model it was frozen on, and on another."""

    monitor: Monitor
    rows: Rows
    before: np.ndarray
    after: np.ndarray

    def alarms(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Which texts it flags before and after at its frozen threshold; None where too few texts gave it none."""
        cut = self.monitor.thresholds.get("5")
        return None if cut is None else (self.before > cut, self.after > cut)

    def units(self) -> np.ndarray:
        """The groups of the texts, told apart from those of other tasks."""
        return np.array([f"{self.monitor.task}/{group}" for group in self.rows.groups])


def health(seen: Sequence[Seen]) -> list[tuple]:
    """Measured on, metric, value, low, high and n of each monitor, and of all together.

    One by one the AUROC drop and the alarm rates at the frozen threshold; together the mean drop (tasks are independent), and
    `alarms_changed`, the share of texts on which an alarm came or went.
    """
    found, contrasts = [], []
    for one in seen:
        drop = paired_aurocs.many_contrasts(
            one.rows.labels, one.before[None], one.after[None], one.rows.groups, name=one.monitor.task
        )[0]
        values = {"auroc_drop": drop.estimate} | _alarm_rates(one)
        found += [(one.monitor.task, metric, e.value, e.low, e.high, e.n) for metric, e in values.items() if np.isfinite(e.value)]
        contrasts += [drop] if np.isfinite(drop.estimate.value) else []
    every = {"mean_auroc_drop": paired_aurocs.combine(contrasts).estimate} if contrasts else {}
    alarmed = [(one, alarms) for one in seen if (alarms := one.alarms()) is not None]
    if alarmed:
        changed = np.concatenate([np.not_equal(*alarms) for _, alarms in alarmed])
        every["alarms_changed"] = rate_interval(changed, np.concatenate([one.units() for one, _ in alarmed]))
    return found + [(EVERY, metric, e.value, e.low, e.high, e.n) for metric, e in every.items() if np.isfinite(e.value)]


def _of(items: pd.DataFrame, monitor: Monitor) -> np.ndarray:
    found = items[(items["kind"] == "monitor") & (items["judge"] == monitor.name)]
    if not len(found):
        raise StudyError(f"the sketch holds no scores of monitor {monitor.name!r}; take it with that monitor", NOT_COMPARABLE)
    return found["value"].to_numpy()


def _alarm_rates(one: Seen) -> dict[str, Estimate]:
    found = {}
    for level, cut in one.monitor.thresholds.items():
        found[f"tpr_{level}"], found[f"fpr_{level}"] = roc.rates(one.rows.labels, one.after, cut, one.rows.groups)
    return found
