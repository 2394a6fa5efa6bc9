"""What the monitors read: the labelled texts of all tasks in one plan, and each monitor's features and scores in activations.

One plan serves every variant, so that the same texts sit in the same batches everywhere; a task's rows are found in it by
index. The aligned model, on which monitors are fitted and thresholds set, reads more: `on_variants` is what the others read.
Nothing here touches a model.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from helpers.data import tasks
from helpers.data.splits import THRESHOLD, check
from helpers.data.text_rows import unit
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.activations import POOLINGS, Activations, layers
from helpers.models.encoding import Plan
from helpers.models.foreign.templates import template_identity
from helpers.models.loading import chat_text, encode_text
from helpers.monitors import probes
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readouts import Features, Pooled, Ragged
from helpers.updates.names import SIMULATED

ATTENTION = "attention"
FEW = 10  # validation texts a class that variants read, too: the few labels that a forecast may use
LINEAR = ("logistic", "mean-difference", "lda")  # kinds with one direction: a refit of them is cheap and can be compared
TURNED = ("logistic", "mean-difference")  # kinds whose angle gets an interval, at the price of several more fits


@dataclass(frozen=True)
class Rows:
    """Some rows of a plan: their places, labels (1 = to be flagged) and groups."""

    index: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def parse_attention(name: str) -> tuple[str, float]:
    """Task and depth of `task:depth`, for which an attention-pooling probe is fitted."""
    task, _, depth = name.rpartition(":")
    try:
        found = float(depth)
    except ValueError:
        found = -1.0
    if not 0 < found <= 1:
        raise StudyError(f"attention {name!r} is not <task>:<depth>, such as harmful-request:0.45; give a depth in (0, 1]")
    return tasks.known(task), found


def plan(
    monitor_tasks: Sequence[str], depths: Sequence[float], attention: Sequence[str], rows: Sequence[int], limit: int,
    origin: str, long: Mapping[str, int] | None = None, seed: int = 0,
) -> Plan:  # fmt: skip
    """The texts of all tasks and what is read of them.

    rows: at most so many a class in train, validation and test; then, 0 unless given, in the second test set, and harmless texts
    a task that a threshold is set on. long: tokens of the tasks that are cut later than at `limit`. seed: whose draw of training
    texts.
    """
    asked = dict.fromkeys(parse_attention(name) for name in attention)
    absent = [task for task, _ in asked if task not in monitor_tasks]
    if absent:
        raise StudyError(f"attention names task {absent[0]!r}, which is not among monitor_tasks; add it there")
    later = long or {}
    strange = [task for task in later if task not in monitor_tasks]
    if strange:
        raise StudyError(f"long_tasks names task {strange[0]!r}, which is not among monitor_tasks; add it there or leave it out")
    train, validation, test, second, harmless_texts = (*rows, 0, 0)[:5]
    sizes = {"train": train, "validation": validation, "test": test, "elsewhere": second, "threshold": harmless_texts}
    found = {name: tasks.examples(name, origin, **sizes, seed=seed) for name in monitor_tasks}
    for name, part in found.items():
        check(part, name)
    tokens = tuple((found[name][0].task, depth) for name, depth in asked)  # a file's task is called as the file is
    limits = tuple((found[name][0].task, tokens) for name, tokens in later.items())
    return Plan(tuple(example for part in found.values() for example in part), tuple(depths), limit, tokens, limits=limits)


def on_variants(reading: Plan) -> Plan:
    """What variants read of a plan: training texts (for refits and maps), both test sets, and the first `FEW` validation texts a
    class. What monitors are chosen by and thresholds are set on is read on the aligned model alone. Again, it changes nothing."""
    return _only(reading, _read_by_all(reading))


def aligned_alone(reading: Plan) -> Plan:
    """The rest of a plan: what only the aligned model reads. It has passes of its own, so that the aligned model reads what is
    compared in the same batches as every variant; in bf16 a text's states move with its batch."""
    return _only(reading, [not shared for shared in _read_by_all(reading)])


def _read_by_all(reading: Plan) -> list[bool]:
    held, found = Counter[tuple[str, int]](), []
    for example in reading.examples:
        held[example.task, example.label] += example.split == "validation"
        few = example.split == "validation" and held[example.task, example.label] <= FEW
        found.append(few or example.split not in ("validation", THRESHOLD))
    return found


def _only(reading: Plan, kept: Sequence[bool]) -> Plan:
    examples = tuple(example for example, keep in zip(reading.examples, kept, strict=True) if keep)
    there = {example.task for example in examples}
    return replace(reading, examples=examples, tokens=tuple(place for place in reading.tokens if place[0] in there))


def merged(reading: Plan, shared: Activations, alone: Activations) -> Activations:
    """The activations of a whole plan from those of its two parts, `on_variants` and `aligned_alone`."""
    kept = np.array(_read_by_all(reading))
    order = np.empty(len(kept), int)  # where each text of the plan stands in both parts, one after the other
    order[np.flatnonzero(kept)], order[np.flatnonzero(~kept)] = np.arange(kept.sum()), kept.sum() + np.arange((~kept).sum())
    pooled = {name: torch.cat([rows, alone.pooled[name]])[order] for name, rows in shared.pooled.items()}
    tokens, offsets = dict(shared.tokens), dict(shared.offsets)
    for name, rest in alone.tokens.items():
        own = kept[[example.task == name.rpartition("/")[0] for example in reading.examples]]
        both = Ragged(torch.cat([tokens[name], rest]), np.append(offsets[name], offsets[name][-1] + alone.offsets[name][1:]))
        part = both.take(np.where(own, np.cumsum(own) - 1, own.sum() + np.cumsum(~own) - 1))
        tokens[name], offsets[name] = part.tokens, part.offsets
    counts = {name: count if name == "prefix" else count + alone.counts[name] for name, count in shared.counts.items()}
    return Activations(shared.layers, pooled, tokens, offsets, counts)


def hashed_halves(rows: Rows) -> np.ndarray:
    """The half, 0 or 1, of each row by the hash of its group; groups of both classes and of one alone are dealt out evenly.

    What is chosen on one half is judged on the other.
    """
    kinds = pd.Series(rows.labels).groupby(rows.groups).agg(["min", "max"])
    order = sorted(kinds.itertuples(name=None), key=lambda kind: (*kind[1:], unit(str(kind[0]), "halves")))
    side = {group: i % 2 for i, (group, *_) in enumerate(order)}
    return np.array([side[group] for group in rows.groups])


def task_names(reading: Plan) -> list[str]:
    """The tasks of a plan, in its order."""
    return list(dict.fromkeys(example.task for example in reading.examples))


def rows_of(reading: Plan, task: str, split: str) -> Rows:
    """The rows of a task's split."""
    chosen = [(i, e.label, e.group) for i, e in enumerate(reading.examples) if e.task == task and e.split == split]
    if not chosen:
        raise StudyError(f"task {task!r} has no rows in split {split!r}; raise rows_{split}", NOT_COMPARABLE)
    index, labels, groups = zip(*chosen, strict=True)
    return Rows(np.array(index), np.array(labels), np.array(groups))


def harmless(reading: Plan, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Places of the texts that a task's thresholds are set on: those of the task's own, and those of another source."""
    kept = [(i, bool(e.corpus)) for i, e in enumerate(reading.examples)
            if e.task == task and not e.label and e.split in ("validation", THRESHOLD)]  # fmt: skip
    own, others = (np.array([i for i, other in kept if other == side], dtype=int) for side in (False, True))
    return own, others


def has(reading: Plan, task: str, split: str) -> bool:
    """Whether a task has texts in a split of the plan: not each has a second test."""
    return any(example.task == task and example.split == split for example in reading.examples)


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class Place:
    """Where a monitor reads: task, kind of probe, pooling ("" for attention), layer by number and as a fraction."""

    task: str
    kind: str
    pooling: str
    layer: int
    depth: float


def places(reading: Plan, kinds: Sequence[str], model_depth: int, simulated: Sequence[int] = ()) -> Iterator[Place]:
    """Every place at which a probe of the given kinds is fitted: tasks x layers x poolings, attention where asked, and those
    that foresee updates at the layers where updates were simulated."""
    pooled = [kind for kind in kinds if PROBES[kind].reads == "pooled"]
    for task in task_names(reading):
        for layer in layers(reading.depths, model_depth):
            here = [kind for kind in pooled if not kind.startswith(SIMULATED) or layer in simulated]
            yield from (Place(task, kind, pool, layer, layer / model_depth) for pool in POOLINGS for kind in here)
        for asked, depth in reading.tokens:
            if asked == task and ATTENTION in kinds:
                (layer,) = layers((depth,), model_depth)
                yield Place(task, ATTENTION, "", layer, layer / model_depth)


def in_double(found: Activations) -> Activations:
    """The same activations, the pooled ones in float64, in which they are fitted and scored: converted once, not per probe."""
    return replace(found, pooled={name: rows.double() for name, rows in found.pooled.items()})


def features(found: Activations, reading: Plan, place: Place | Monitor, index: np.ndarray) -> Features:
    """The features at a place for the given rows of the plan."""
    pooled = PROBES[place.kind].reads == "pooled"
    name = f"{place.pooling if pooled else place.task}/{place.layer}"
    if name not in (found.pooled if pooled else found.tokens):
        raise StudyError(f"the activations hold no {name!r}; read them with the depths and tasks of the monitors", NOT_COMPARABLE)
    if pooled:
        return Pooled(found.pooled[name][index])
    first = next(i for i, e in enumerate(reading.examples) if e.task == place.task)  # a task's rows stand together in the plan
    return Ragged(found.tokens[name], found.offsets[name]).take(index - first)


def scores(monitors: Iterable[Monitor], found: Activations, reading: Plan, index: np.ndarray) -> np.ndarray:
    """Scores of monitors (rows) on texts (columns)."""
    return np.array([monitor.score(features(found, reading, monitor, index)) for monitor in monitors])


def readout_angle(a: Readout, b: Readout) -> float:
    """Degrees between the directions of two linear readouts; nan where one has none, since its classes have equal means."""
    first, second = probes.direction(a), probes.direction(b)
    return np.nan if first is None or second is None else probes.angle(first, second)


DECIDING = ("vocabulary", "normalizer", "pre_tokenizer", "model", "added_tokens", "special_tokens", "chat_template", "rendered")
AROUND = ("post_processor", "decoder")  # they make the tokens around a bare text, and text of tokens


def tokenizer_parts(tokenizer) -> dict[str, str]:
    """A hash of each part that makes tokens of a text, by its name; `DECIDING` are those that what monitors read depends on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inner = json.loads(backend.to_str()) if backend is not None else {}
    parts = {name: inner.get(name) for name in (*DECIDING[1:5], *AROUND)}
    parts["vocabulary"] = sorted(tokenizer.get_vocab().items())
    parts["special_tokens"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts["chat_template"] = template_identity(tokenizer.chat_template)
    parts["rendered"] = encode_text(tokenizer, chat_text(tokenizer, "Text, 1 ü \n end"))
    return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16] for name, part in parts.items()}


def fingerprint(tokenizer) -> str:
    """A hash of all that makes tokens of a text: normalizer, pre-tokenizer, vocabulary with merges, special tokens, template."""
    parts = tokenizer_parts(tokenizer)
    return hashlib.sha256(json.dumps([parts[name] for name in DECIDING]).encode()).hexdigest()[:16]
